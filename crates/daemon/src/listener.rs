//! Listening sockets, and serving an axum router on them with or without TLS.
//!
//! What must hold: an address is bound once and without SO_REUSEPORT, so that a second server finds the conflict; the
//! error for a busy address says who holds it. Each connection is a task of the [`Supervisor`]; when its token is
//! cancelled, no connection is accepted any more and open ones may finish the request they are in, for a bounded time.

mod holder;

use crate::supervisor::{BoxError, OnExit, Supervisor};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use holder::{Holder, holder};

/// A client has so long for its TLS handshake and for the header of each request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long open requests may go on after a stop was asked for; a followed log would go on for ever.
const DRAIN: Duration = Duration::from_secs(5);
/// Open connections of one listener; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{message}; {advice}")]
pub struct ListenError {
    /// Which address, for what, and why not.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// Binds `address` for `purpose` (`api`), which is changed by `flag` (`--api-listen`).
pub async fn bind(address: SocketAddr, purpose: &str, flag: &str) -> Result<TcpListener, ListenError> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
    let bound = socket.and_then(|socket| {
        // Only lets us bind beside old connections in TIME_WAIT; two listeners still exclude each other.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    });
    bound.map_err(|error| explain(address, purpose, flag, &error))
}

fn explain(address: SocketAddr, purpose: &str, flag: &str, error: &std::io::Error) -> ListenError {
    let other = format!("choose another address with `{flag}`");
    let (why, advice) = match error.kind() {
        std::io::ErrorKind::AddrInUse => match holder(address) {
            Some(it) => {
                (format!("is in use by `{}` (process {})", it.name, it.pid), format!("stop that process, or {other}"))
            }
            None => ("is in use".to_owned(), format!("stop what uses it, or {other}")),
        },
        std::io::ErrorKind::PermissionDenied => ("may not be bound".to_owned(), format!("run as root, or {other}")),
        std::io::ErrorKind::AddrNotAvailable => ("does not belong to this machine".to_owned(), other),
        _ => (format!("cannot be bound: {error}"), other),
    };
    ListenError { message: format!("the {purpose} address {address} {why}"), advice }
}

/// Who is at the other end of a connection; an extension of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its verified certificate, when it showed one.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Serves `router` until the supervisor's token is cancelled. With `tls`, connections that fail the handshake are
/// dropped. Every request carries a [`Peer`] extension.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    supervisor: Supervisor,
) -> Result<(), BoxError> {
    let acceptor = tls.map(TlsAcceptor::from);
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    let token = supervisor.token().clone();
    loop {
        let Some(place) = token.run_until_cancelled(places.clone().acquire_owned()).await else { return Ok(()) };
        let Some(accepted) = token.run_until_cancelled(listener.accept()).await else { return Ok(()) };
        let (stream, address) = match accepted {
            Ok(it) => it,
            Err(error) => {
                // Out of descriptors, or the client has gone: without a pause this loop would spin.
                tracing::warn!(%error, "a connection was not accepted");
                token.run_until_cancelled(tokio::time::sleep(Duration::from_millis(100))).await;
                continue;
            }
        };
        let (acceptor, router, token) = (acceptor.clone(), router.clone(), token.clone());
        supervisor.spawn("connection", OnExit::Continue, async move {
            let _place = place?;
            connection(stream, address, acceptor, router, token).await;
            Ok(())
        });
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    token: tokio_util::sync::CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return exchange(stream, Peer { address, certificate: None }, router, token).await;
    };
    match token.run_until_cancelled(tokio::time::timeout(HEADER_TIMEOUT, acceptor.accept(stream))).await {
        Some(Ok(Ok(stream))) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let certificate = certificates.and_then(|it| it.first()).map(|it| it.clone().into_owned());
            exchange(stream, Peer { address, certificate }, router, token).await;
        }
        Some(Ok(Err(error))) => tracing::debug!(%address, %error, "TLS handshake failed"),
        Some(Err(_)) | None => tracing::debug!(%address, "TLS handshake not finished"),
    }
}

async fn exchange<S>(stream: S, peer: Peer, router: Router, token: tokio_util::sync::CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let address = peer.address;
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "connection ended");
    }
}
