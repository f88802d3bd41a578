//! TLS of our own listeners: certificates that can be swapped while connections live, clients known by certificate; and
//! whose certificates count.
//!
//! What must hold: aws-lc-rs is the only provider; TLS 1.2 and 1.3 only; a swap takes effect for the next handshake.

use crate::pki::{Leaf, PkiError};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, PoisonError, RwLock};

/// The provider of all cryptography in this process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Makes [`provider`] the default of the process, for libraries that ask for it. May be called again.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// Who shows one is known; who shows a wrong one is refused.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// A server certificate that can be swapped; cheap to clone.
#[derive(Clone)]
pub struct HotCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl HotCertificate {
    /// Begins with `leaf`.
    pub fn new(leaf: &Leaf) -> Result<Self, PkiError> {
        Ok(Self(Arc::new(RwLock::new(certified(leaf)?))))
    }

    /// The next handshake shows `leaf`.
    pub fn swap(&self, leaf: &Leaf) -> Result<(), PkiError> {
        let fresh = certified(leaf)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for HotCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HotCertificate")
    }
}

impl ResolvesServerCert for HotCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// Settings of a server that shows `certificate` and, as `clients` says, asks for one signed by `authority_pem`.
pub fn server_config(
    certificate: HotCertificate,
    authority_pem: &str,
    clients: ClientAuth,
) -> Result<Arc<ServerConfig>, PkiError> {
    let fail = |it: &dyn std::fmt::Display| PkiError::certificate("set up TLS", it);
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|it| fail(&it))?;
    let builder = match clients {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional | ClientAuth::Required => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority_pem)?), provider());
            let verifier = if clients == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|it| fail(&it))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Settings of a client that trusts only `authority_pem` and shows `leaf`.
pub fn client_config(authority_pem: &str, leaf: Option<&Leaf>) -> Result<ClientConfig, PkiError> {
    let fail = |it: &dyn std::fmt::Display| PkiError::certificate("set up TLS", it);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|it| fail(&it))?;
    let builder = builder.with_root_certificates(roots(authority_pem)?);
    match leaf {
        None => Ok(builder.with_no_client_auth()),
        Some(leaf) => {
            let (chain, key) = parts(leaf)?;
            builder.with_client_auth_cert(chain, key).map_err(|it| fail(&it))
        }
    }
}

/// The authorities of a PEM text, to be trusted; the reason why they cannot be.
pub fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|it| format!("it is no PEM: {it}"))?;
        roots.add(certificate).map_err(|it| format!("a certificate in it cannot be used: {it}"))?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

fn roots(authority_pem: &str) -> Result<RootCertStore, PkiError> {
    authorities(authority_pem.as_bytes()).map_err(|it| PkiError::certificate("trust the authority", it))
}

fn certified(leaf: &Leaf) -> Result<Arc<CertifiedKey>, PkiError> {
    let (chain, key) = parts(leaf)?;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    certified.map(Arc::new).map_err(|it| PkiError::certificate("use a certificate", it))
}

fn parts(leaf: &Leaf) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
    let chain = CertificateDer::pem_slice_iter(leaf.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|it| PkiError::certificate("read a certificate", it))?;
    let key =
        PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).map_err(|it| PkiError::certificate("read a key", it))?;
    Ok((chain, key))
}
