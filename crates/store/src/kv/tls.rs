//! Certificates of the etcd interface, as PEM texts, made into rustls settings with the one provider of this house.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;

/// Who signs the other side, and what we show to it.
#[derive(Clone)]
pub struct EtcdTls {
    /// Certificates of the authority that signs the other side, PEM.
    pub ca_pem: String,
    /// Our certificate and those between it and its authority, PEM.
    pub cert_pem: String,
    /// Its private key, PEM.
    pub key_pem: String,
}

/// The key stays out of every log.
impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

/// Settings of a server that asks each client for a certificate.
pub(super) fn server(tls: &EtcdTls) -> Result<Arc<rustls::ServerConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&tls.ca_pem, "authority")? {
        roots.add(authority).map_err(|it| format!("the authority's certificate: {it}"))?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|it| format!("the authority's certificates: {it}"))?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).map_err(|it| format!("the private key: {it}"))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|it| it.to_string())?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(&tls.cert_pem, "server")?, key)
        .map_err(|it| format!("the server's certificate: {it}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &str, whose: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|it| format!("the {whose}'s certificate: {it}"))?;
    if found.is_empty() { Err(format!("the {whose}'s certificate is empty")) } else { Ok(found) }
}

/// The common name of a certificate.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    // Two names would leave open which one counts.
    names.next().is_none().then_some(name)
}
