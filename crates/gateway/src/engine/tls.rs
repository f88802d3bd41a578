//! TLS of clients: certificates by SNI, exact before wildcard; an unknown name gets the alert.

use crate::snapshot::lookup_wildcard;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A fatal `unrecognized_name` (RFC 6066 §3) as a TLS record.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificate for {hosts} cannot be used: {step} {path}: {cause}")]
pub struct CertificateError {
    hosts: String,
    step: &'static str,
    path: String,
    cause: String,
}

/// A certificate, and the hosts that connections made with it may ask for.
#[derive(Debug)]
pub struct CertificateEntry {
    hosts: Vec<Arc<str>>,
    config: Arc<ServerConfig>,
}

impl CertificateEntry {
    /// Reads a chain and its key from PEM files.
    pub fn read(hosts: &[String], certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let fail = |step, path: &Path, cause: String| {
            let (hosts, path) = (hosts.join(", "), path.display().to_string());
            CertificateError { hosts, step, path, cause }
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(|it| it.collect::<Result<Vec<_>, _>>())
            .map_err(|it| fail("cannot read", certificate, it.to_string()))?;
        if chain.is_empty() {
            return Err(fail("no certificate in", certificate, "the file holds no `BEGIN CERTIFICATE`".to_owned()));
        }
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|it| fail("cannot read", key, it.to_string()))?;
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|it| fail("no TLS version for", certificate, it.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key_der)
            .map_err(|it| fail("does not fit the key", certificate, it.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.max_early_data_size = 0;
        let hosts = hosts.iter().map(|it| it.to_ascii_lowercase().into()).collect();
        Ok(Self { hosts, config: Arc::new(config) })
    }
}

/// All certificates, by host.
#[derive(Debug, Default)]
pub struct Certificates {
    by_host: HashMap<Arc<str>, Arc<CertificateEntry>>,
}

impl Certificates {
    /// The table; of several certificates for one host the first counts.
    pub fn new(entries: Vec<CertificateEntry>) -> Self {
        let mut by_host = HashMap::new();
        for entry in entries.into_iter().map(Arc::new) {
            for host in &entry.hosts {
                by_host.entry(Arc::clone(host)).or_insert_with(|| Arc::clone(&entry));
            }
        }
        Self { by_host }
    }

    fn find(&self, host: &str) -> Option<&Arc<CertificateEntry>> {
        self.by_host.get(host).or_else(|| lookup_wildcard(&self.by_host, host))
    }

    /// Whether a connection made with `entry` may ask for `host`: the certificate for that host is for the same hosts.
    pub(super) fn same_policy(&self, entry: &Arc<CertificateEntry>, host: &str) -> bool {
        self.find(host).is_some_and(|it| it.hosts == entry.hosts)
    }
}

/// Completes the handshake of a client; `None` when it is refused or breaks off.
pub(super) async fn accept<S>(
    certificates: Arc<Certificates>,
    stream: S,
) -> Option<(TlsStream<S>, Arc<CertificateEntry>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let start = match LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await {
        Ok(start) => start,
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake did not begin");
            return None;
        }
    };
    let name = start.client_hello().server_name().map(|it| it.trim_end_matches('.').to_ascii_lowercase());
    let Some(entry) = name.as_deref().and_then(|it| certificates.find(it)).cloned() else {
        tracing::debug!(name, "no certificate for this name");
        let mut stream = start.io;
        // The client learns why; when it does not listen, nothing is lost.
        let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
        let _ = stream.shutdown().await;
        return None;
    };
    match start.into_stream(Arc::clone(&entry.config)).await {
        Ok(stream) => Some((stream, entry)),
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake broke off");
            None
        }
    }
}
