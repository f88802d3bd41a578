//! TLS of clients: certificates by SNI, exact before wildcard; an unknown name gets the alert; ACME's challenges.

mod hello;
mod stream;

use super::buffers::Span;
use crate::metrics::Metrics;
use crate::snapshot::lookup_wildcard;
use crate::tickets::Tickets;
use hello::Hello;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
pub(super) use stream::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

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

/// Session tickets of TLS 1.3 that a connection brings. A client that comes back with several connections has had as many
/// before; each ticket more would cost every new connection a few microseconds.
const TICKETS: usize = 1;
/// Protocol of ACME's TLS-ALPN-01 challenge (RFC 8737).
const CHALLENGE: &[u8] = b"acme-tls/1";

/// A certificate as it is served, and the policy of connections made with it.
#[derive(Debug)]
pub struct CertificateEntry {
    /// Two hosts with the same policy may share a connection.
    policy: Arc<str>,
    hosts: Vec<Arc<str>>,
    config: Arc<ServerConfig>,
}

impl CertificateEntry {
    /// Reads a chain and its key from PEM files, and the authorities of clients when these must show a certificate;
    /// sessions are resumed with `tickets`.
    pub fn read(
        hosts: &[String],
        certificate: &Path,
        key: &Path,
        client_ca: Option<&Path>,
        tickets: &Tickets,
    ) -> Result<Self, CertificateError> {
        let fail = |step, path: &Path, cause: String| {
            let (hosts, path) = (hosts.join(", "), path.display().to_string());
            CertificateError { hosts, step, path, cause }
        };
        let text = |path: &Path| std::fs::read_to_string(path).map_err(|it| fail("cannot read", path, it.to_string()));
        let (chain, key_pem) = (text(certificate)?, text(key)?);
        let client_ca = client_ca.map(text).transpose()?;
        let hosts: Vec<String> = hosts.iter().map(|it| it.to_ascii_lowercase()).collect();
        let policy = format!("{} {}", hosts.join(","), client_ca.as_deref().unwrap_or_default());
        let mut entry = Self::new(&policy, &chain, &key_pem, client_ca.as_deref())
            .map_err(|it| fail("cannot serve", certificate, it))?
            .with_tickets(tickets, client_ca.as_deref());
        entry.hosts = hosts.into_iter().map(Arc::from).collect();
        Ok(entry)
    }

    /// A chain and its key (PEM); with `client_ca` (PEM), clients must show a certificate of one of these authorities.
    pub fn new(policy: &str, chain_pem: &str, key_pem: &str, client_ca: Option<&str>) -> Result<Self, String> {
        let mut config = config(chain_pem, key_pem, client_ca)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { policy: policy.into(), hosts: Vec::new(), config: Arc::new(config) })
    }

    /// The same with session tickets, for clients that must show a certificate of `client_ca` (PEM), if one is given.
    pub fn with_tickets(mut self, tickets: &Tickets, client_ca: Option<&str>) -> Self {
        let authorities: Vec<_> =
            client_ca.map(|it| CertificateDer::pem_slice_iter(it.as_bytes()).flatten().collect()).unwrap_or_default();
        let authorities: Vec<&[u8]> = authorities.iter().map(|it: &CertificateDer<'_>| it.as_ref()).collect();
        let config = Arc::make_mut(&mut self.config);
        config.ticketer = tickets.for_clients(&authorities);
        config.send_tls13_tickets = TICKETS;
        self
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(all) if all.is_empty() => Err("there is no `BEGIN CERTIFICATE` in it".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(error.to_string()),
    }
}

fn config(chain_pem: &str, key_pem: &str, client_ca: Option<&str>) -> Result<ServerConfig, String> {
    let chain = certificates(chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|it| format!("its key is not one: {it}"))?;
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|it| it.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for authority in certificates(pem).map_err(|it| format!("the authorities of clients: {it}"))? {
                roots.add(authority).map_err(|it| format!("an authority of clients cannot be used: {it}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|it| it.to_string())?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|it| format!("it does not fit its key: {it}"))?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    // Not even begun: without keys each would be made in vain.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// All certificates, by host.
#[derive(Debug, Default)]
pub struct Certificates {
    by_host: HashMap<Arc<str>, Arc<CertificateEntry>>,
    challenges: HashMap<Arc<str>, Arc<ServerConfig>>,
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
        Self { by_host, challenges: HashMap::new() }
    }

    /// The table, by hosts.
    pub fn by_host(by_host: HashMap<Arc<str>, Arc<CertificateEntry>>) -> Self {
        Self { by_host, challenges: HashMap::new() }
    }

    /// Proves `host` to an authority that asks by TLS-ALPN-01.
    pub fn challenge(&mut self, host: &str, chain_pem: &str, key_pem: &str) -> Result<(), String> {
        let chain = certificates(chain_pem)?;
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|it| format!("its key is not one: {it}"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = provider.key_provider.load_private_key(key).map_err(|it| it.to_string())?;
        // Whether they fit is not looked at: what proves the host is an extension that must be understood, and is not.
        let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|it| it.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![CHALLENGE.to_vec()];
        self.challenges.insert(host.into(), Arc::new(config));
        Ok(())
    }

    fn find(&self, host: &str) -> Option<&Arc<CertificateEntry>> {
        self.by_host.get(host).or_else(|| lookup_wildcard(host, |it| self.by_host.get(it)))
    }

    /// Whether connections for `host` can be made.
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.find(host).is_some()
    }

    /// Whether a connection made with `entry` may ask for `host`.
    pub(super) fn same_policy(&self, entry: &Arc<CertificateEntry>, host: &str) -> bool {
        self.find(host).is_some_and(|it| it.policy == entry.policy)
    }
}

/// Reads the first message of a client; what was read is kept for the handshake. When it is not one, the client is told.
async fn hello<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    incoming: &mut Span,
    certificates: &Certificates,
) -> io::Result<Hello> {
    fill(stream, incoming).await?;
    // Mostly all of it is there, and asks for a host that is known: it is taken apart once, for the handshake.
    if let Some(hello) = Hello::read(incoming.filled())
        && hello.name.as_deref().is_some_and(|it| certificates.covers(it))
    {
        return Ok(hello);
    }
    // On the heap: most connections need no room for it.
    Box::pin(hello_by_rustls(stream, incoming)).await
}

async fn fill<S: AsyncRead + Unpin>(stream: &mut S, incoming: &mut Span) -> io::Result<()> {
    match poll_fn(|cx| stream::poll_fill(incoming, cx, stream)).await? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn hello_by_rustls<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, incoming: &mut Span) -> io::Result<Hello> {
    let (mut acceptor, mut known) = (Acceptor::default(), 0);
    loop {
        let mut fresh = &incoming.filled()[known..];
        known += fresh.len();
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted.client_hello().into()),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut told = Vec::new();
                    alert.write_all(&mut told)?;
                    // The client learns why; when it does not listen, nothing is lost.
                    let _ = stream.write_all(&told).await;
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            }
        }
        fill(stream, incoming).await?;
    }
}

/// How the connection of a client is secured.
#[derive(Clone, Debug)]
pub(super) struct Secured {
    /// The certificate that it was made with.
    pub(super) entry: Arc<CertificateEntry>,
    /// Version of TLS: `1.2` or `1.3`.
    pub(super) version: &'static str,
}

/// Why a handshake failed, by one of a few words.
fn reason(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => "client_certificate",
        Some(rustls::Error::AlertReceived(_)) => "alert",
        Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
        Some(rustls::Error::InvalidMessage(_)) => "not_tls",
        None if error.kind() != ErrorKind::InvalidData => "closed",
        _ => "protocol",
    }
}

/// Completes the handshake of a client; `None` when it is refused or breaks off.
pub(super) async fn accept<S>(
    certificates: Arc<Certificates>,
    mut stream: S,
    metrics: &Metrics,
) -> Option<(Box<TlsStream<S>>, Secured)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut incoming = Span::default();
    let Hello { name, challenged } = match hello(&mut stream, &mut incoming, &certificates).await {
        Ok(hello) => hello,
        Err(error) => {
            metrics.handshake_failed(reason(&error));
            tracing::debug!(%error, "a TLS handshake did not begin");
            return None;
        }
    };
    if let Some(config) = name.as_deref().filter(|_| challenged).and_then(|it| certificates.challenges.get(it)) {
        // The handshake is the whole answer.
        if let Ok(mut stream) = TlsStream::accept(stream, incoming, Arc::clone(config)).await {
            let _ = stream.shutdown().await;
        }
        return None;
    }
    let Some(entry) = name.as_deref().and_then(|it| certificates.find(it)).cloned() else {
        metrics.handshake_failed("unknown_name");
        tracing::debug!(name, "no certificate for this name");
        // As above.
        let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
        let _ = stream.shutdown().await;
        return None;
    };
    match TlsStream::accept(stream, incoming, Arc::clone(&entry.config)).await {
        Ok(stream) => {
            let (version, resumed) = stream.agreed();
            metrics.handshake(version, resumed);
            Some((stream, Secured { entry, version }))
        }
        Err(error) => {
            metrics.handshake_failed(reason(&error));
            tracing::debug!(%error, "a TLS handshake broke off");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CustomExtension, KeyPair};

    #[test]
    fn handshakes_fail_for_few_reasons() {
        let of_tls = |it: rustls::Error| io::Error::new(ErrorKind::InvalidData, it);
        for (error, expected) in [
            (of_tls(rustls::Error::NoCertificatesPresented), "client_certificate"),
            (of_tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), "client_certificate"),
            (of_tls(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA)), "alert"),
            (of_tls(rustls::PeerIncompatible::NoCipherSuitesInCommon.into()), "incompatible"),
            (of_tls(rustls::InvalidMessage::InvalidContentType.into()), "not_tls"),
            (of_tls(rustls::Error::DecryptError), "protocol"),
            (io::Error::new(ErrorKind::InvalidData, "the client has sent early data"), "protocol"),
            (ErrorKind::UnexpectedEof.into(), "closed"),
            (ErrorKind::ConnectionReset.into(), "closed"),
        ] {
            assert_eq!(reason(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_proof_with_its_critical_extension_is_served() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&[7; 32])];
        let proof = params.self_signed(&key).unwrap().pem();
        let mut table = Certificates::default();
        table.challenge("a.test", &proof, &key.serialize_pem()).unwrap();
        assert!(table.challenge("b.test", "", &key.serialize_pem()).unwrap_err().contains("BEGIN CERTIFICATE"));
        assert_eq!(table.challenges.len(), 1);
    }
}
