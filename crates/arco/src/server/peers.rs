//! Servers of one platform talk to each other: a listener with mutual TLS for what others need of this one, and requests
//! that go to the server with the role that this one does not run.
//!
//! What must hold: only certificates of servers are let in, although people's are of the same authority; a request is
//! passed on as it is, streams and WebSockets too; a role that nobody runs is named, with what to do.

use anyhow::Context as _;
use arco_config::Role;
use arco_daemon::discovery::{Directory, Server};
use arco_daemon::listener::Peer;
use arco_daemon::pki::{Leaf, Pki, Subject, keep_fresh};
use arco_daemon::{OnExit, Supervisor, tls};
use arco_model::error::{ErrorKind, Problem};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Name and role in the certificate of a server.
const SERVER: &str = "server";
/// How long another server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// The other servers; cheap to clone.
#[derive(Clone)]
pub(super) struct Peers {
    directory: Directory,
    me: Arc<str>,
    tls: Arc<RwLock<Arc<rustls::ClientConfig>>>,
}

impl Peers {
    /// Reaches others with a certificate that is renewed in time.
    pub(super) fn new(directory: Directory, me: &str, pki: &Arc<Pki>, supervisor: &Supervisor) -> anyhow::Result<Self> {
        let subject = Subject { name: SERVER.to_owned(), role: SERVER.to_owned(), tenants: Vec::new() };
        let leaf = pki.client(&subject)?;
        let config = tls::client_config(pki.authority_pem(), Some(&leaf))?;
        let peers = Self { directory, me: me.into(), tls: Arc::new(RwLock::new(Arc::new(config))) };
        let (pki, held, token) = (pki.clone(), peers.tls.clone(), supervisor.token().clone());
        supervisor.spawn("certificate for other servers", OnExit::Continue, async move {
            let authority = pki.authority_pem().to_owned();
            let apply = move |fresh: &Leaf| {
                let config = tls::client_config(&authority, Some(fresh))?;
                *held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                Ok(())
            };
            keep_fresh(leaf, move || pki.client(&subject), apply, token).await;
            Ok(())
        });
        Ok(peers)
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Name of this process.
    pub(super) fn me(&self) -> &str {
        &self.me
    }

    fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The server that is asked for `key` in a role.
    pub(super) fn find(&self, role: Role, key: &str) -> Result<Server, Problem> {
        self.directory.owner(role, key).ok_or_else(|| missing(role))
    }

    /// Sends a request to a server, and its answer back; an upgraded connection is carried both ways.
    pub(super) async fn send(&self, to: &Server, request: Request) -> Response {
        let sent = tokio::time::timeout(CONNECT, self.connect(to)).await;
        let connection = match sent {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return answer(silent(to, &error.to_string())),
            Err(_) => return answer(silent(to, &format!("no connection within {} s", CONNECT.as_secs()))),
        };
        match exchange(connection, request).await {
            Ok(response) => response,
            Err(error) => answer(silent(to, &error.to_string())),
        }
    }

    async fn connect(&self, to: &Server) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let host = to.address.rsplit_once(':').map_or(to.address.as_str(), |it| it.0).trim_matches(['[', ']']);
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        let stream = TcpStream::connect(&to.address).await?;
        stream.set_nodelay(true)?;
        let mut config = (*self.tls()).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

async fn exchange(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    mut request: Request,
) -> Result<Response, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection: when both sides are done, or either is gone.
    tokio::spawn(connection.with_upgrades());
    let upgraded = request.extensions_mut().remove::<OnUpgrade>();
    *request.version_mut() = axum::http::Version::HTTP_11;
    request.headers_mut().entry(header::HOST).or_insert(header::HeaderValue::from_static(SERVER));
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgraded
        && let Some(server) = response.extensions_mut().remove::<OnUpgrade>()
    {
        tokio::spawn(async move {
            let (Ok(client), Ok(server)) = tokio::join!(client, server) else { return };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await; // either side may go at any time
        });
    }
    Ok(response.map(Body::new))
}

/// A role that nobody runs.
pub(super) fn missing(role: Role) -> Problem {
    let name = word(role);
    Problem::new(
        ErrorKind::Unavailable,
        "role_missing",
        format!("no server of this platform runs the role `{name}` now"),
        format!(
            "start one with `arco server --role {name}` on the same stores, or look why the one that was there ended"
        ),
    )
}

/// A server that does not answer.
pub(super) fn silent(to: &Server, why: &str) -> Problem {
    Problem::new(
        ErrorKind::Unavailable,
        "server_silent",
        format!("the server {} at {} does not answer: {why}", to.name, to.address),
        "try again in some seconds; servers must reach each other's `server.peer_address`",
    )
}

/// The word of a role in settings.
fn word(role: Role) -> String {
    serde_json::to_value(role).ok().and_then(|it| it.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A problem as an answer of this role's router.
pub(super) fn answer(problem: Problem) -> Response {
    let status = match problem.kind {
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

/// What other servers ask of this one, for servers alone.
pub(super) fn guarded(router: Router) -> Router {
    router.layer(from_fn(servers_only))
}

async fn servers_only(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let subject = peer.and_then(|it| it.certificate.as_ref()).and_then(|it| Subject::of(it).ok());
    if subject.is_some_and(|it| it.role == SERVER) {
        return next.run(request).await;
    }
    let advice = "people use the API's own address";
    answer(Problem::new(ErrorKind::Denied, "not_a_server", "only servers of the platform may ask here", advice))
}

/// `HOST:PORT` by which others reach a listener.
pub(super) fn advertised(setting: &str, bound: std::net::SocketAddr) -> anyhow::Result<String> {
    if setting.is_empty() {
        return Ok(match bound.ip().is_unspecified() {
            true => format!("{}:{}", super::shared::machine(), bound.port()),
            false => bound.to_string(),
        });
    }
    let port = setting.rsplit_once(':').and_then(|it| it.1.parse::<u16>().ok());
    port.with_context(|| format!("`server.peer_address` is `{setting}`; give HOST:PORT"))?;
    Ok(setting.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_that_they_can_use() {
        let bound = |text: &str| text.parse().unwrap();
        assert_eq!(advertised("", bound("10.0.0.1:7")).unwrap(), "10.0.0.1:7");
        assert_eq!(advertised("a.example:9", bound("0.0.0.0:7")).unwrap(), "a.example:9");
        let named = advertised("", bound("0.0.0.0:7")).unwrap();
        assert_eq!(named, format!("{}:7", super::super::shared::machine()));
        assert!(advertised("a.example", bound("0.0.0.0:7")).is_err());
    }

    #[test]
    fn a_role_that_nobody_runs_is_named() {
        let problem = missing(Role::Eventlog);
        assert!(problem.message.contains("`eventlog`") && problem.advice.contains("--role eventlog"), "{problem:?}");
    }
}
