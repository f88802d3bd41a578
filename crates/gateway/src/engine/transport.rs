//! How endpoints are spoken to: HTTP/1.1 or HTTP/2, plain or over TLS; and one connection to one of them.

use super::KEEPALIVE;
use super::body::RequestBody;
use super::forward::Failure;
use super::multiplexed::{Driven, Many};
use super::pool::{Key, Pooled};
use super::room;
use crate::upstream::{Transport, UpstreamTls};
use arco_daemon::{OnExit, Supervisor};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How often one endpoint is complained of.
const SAID: Duration = Duration::from_secs(30);
/// Of most so many endpoints it is known when that was; nobody else is complained of meanwhile.
const MAX_SAID: usize = 1024;
/// How many requests an HTTP/2 connection takes until its endpoint says how many.
const UNTOLD: usize = 1;
/// A machine from which the kernel hears nothing for so long is gone, and so is a program that takes nothing of what is sent
/// for so long: HTTP/2 connections to it end. While nothing is sent, the kernel asks.
const GONE: Duration = Duration::from_secs(30);
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How often the program is asked for a sign of life while a request is open and nothing comes, and how long it may take.
/// Servers of gRPC end a connection on which that is done more often than every five minutes.
const PING_EVERY: Duration = Duration::from_secs(305);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

static COMPLAINTS: Mutex<Complaints> = Mutex::new(Complaints(BTreeMap::new()));

/// When endpoints were complained of last: each request and each check has the same cause to.
struct Complaints(BTreeMap<Key, Instant>);

impl Complaints {
    fn is_due(&mut self, of: Key, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < SAID;
        if self.0.get(&of).is_some_and(|at| is_recent(*at)) {
            return false;
        }
        if self.0.len() >= MAX_SAID {
            self.0.retain(|_, at| is_recent(*at));
        }
        if self.0.len() >= MAX_SAID {
            return false;
        }
        self.0.insert(of, now);
        true
    }
}

/// Says what is wrong with the TLS of an endpoint, seldom enough for clients not to fill the log with it.
fn complain(of: Key, error: &impl Display, what: &'static str) {
    let address = of.0;
    if COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner).is_due(of, Instant::now()) {
        tracing::warn!(%address, %error, "{what}");
    } else {
        tracing::debug!(%address, %error, "{what}");
    }
}

/// Lets hyper start its tasks where ours are.
#[derive(Clone)]
pub(super) struct Spawner(pub(super) Supervisor);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        self.0.spawn("http/2 stream", OnExit::Continue, async move {
            future.await;
            Ok(())
        });
    }
}

/// A connection to an endpoint, or a place on one that many requests share.
pub(super) enum Sender {
    One(http1::SendRequest<RequestBody>),
    Many(Many),
}

impl Pooled for Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::One(it) => it.is_closed(),
            Self::Many(it) => it.is_closed(),
        }
    }
}

impl Sender {
    pub(super) async fn ready(&mut self) -> Result<(), hyper::Error> {
        match self {
            Self::One(it) => it.ready().await,
            Self::Many(it) => it.ready().await,
        }
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::One(it) => it.try_send_request(request).await,
            Self::Many(it) => it.send(request).await,
        }
    }
}

/// Connects to `address` in at most `limit`, handshakes included.
pub(super) async fn connect(
    supervisor: &Supervisor,
    transport: &Transport,
    address: SocketAddr,
    limit: Duration,
) -> Result<Sender, Failure> {
    let tls = match &transport.tls {
        None => None,
        Some(UpstreamTls { config: Ok(config), name }) => Some((config, name)),
        Some(UpstreamTls { config: Err(error), .. }) => {
            complain((address, transport.id), error, "an endpoint is not asked: no certificate of it would do");
            return Err(Failure::Broken);
        }
    };
    let connecting = async {
        let stream = match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(error) if room::is_used_up(&error) => return Err(Failure::NoRoom),
            Err(error) => {
                tracing::debug!(%address, %error, "an endpoint cannot be reached");
                return Err(Failure::Broken);
            }
        };
        // Without it small answers wait for acknowledgements; a socket that refuses it still works.
        let _ = stream.set_nodelay(true);
        if transport.http2 {
            notice_absence(&stream);
        } else {
            // What is upgraded may be silent for any time, and its endpoint be gone.
            let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
        }
        let Some((config, name)) = tls else { return speak(supervisor, transport.http2, stream, address).await };
        let name = name.clone().unwrap_or_else(|| address.ip().into());
        match tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await {
            Ok(stream) => speak(supervisor, transport.http2, stream, address).await,
            Err(error) => {
                complain((address, transport.id), &error, "an endpoint's TLS handshake failed");
                Err(Failure::Broken)
            }
        }
    };
    tokio::time::timeout(limit, connecting).await.unwrap_or(Err(Failure::TimedOut))
}

/// Has the kernel end a connection to a machine that is gone without a word: requests would be put on it for as long as it
/// is there.
fn notice_absence(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    // A socket that refuses these still works.
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(GONE));
}

async fn speak<S>(supervisor: &Supervisor, http2: bool, stream: S, address: SocketAddr) -> Result<Sender, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ended = move |result: Result<(), hyper::Error>| {
        if let Err(error) = result {
            tracing::debug!(%address, %error, "a connection to an endpoint ended");
        }
        Ok(())
    };
    if http2 {
        let mut builder = http2::Builder::new(Spawner(supervisor.clone()));
        builder.timer(TokioTimer::new()).adaptive_window(true).max_header_list_size(128 * 1024);
        builder.initial_max_send_streams(UNTOLD);
        builder.keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(false);
        let (sender, connection): (http2::SendRequest<RequestBody>, _) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
        let (driven, place) = Driven::new(connection);
        supervisor.spawn("endpoint connection", OnExit::Continue, async move { ended(driven.await) });
        let ceiling = move || place.ask(|it| it.current_max_send_streams()).unwrap_or_default();
        return Ok(Sender::Many(Many::new(sender, Box::new(ceiling))));
    }
    let mut builder = http1::Builder::new();
    builder.max_buf_size(128 * 1024);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
    supervisor.spawn("endpoint connection", OnExit::Continue, async move { ended(connection.with_upgrades().await) });
    Ok(Sender::One(sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_complained_of_seldom() {
        let mut complaints = Complaints(BTreeMap::new());
        let (begin, address) = (Instant::now(), SocketAddr::from(([127, 0, 0, 1], 8443)));
        for (after_s, transport, is_due) in
            [(0, 2, true), (29, 2, false), (29, 3, true), (30, 2, true), (31, 2, false), (59, 3, true)]
        {
            let now = begin + Duration::from_secs(after_s);
            assert_eq!(complaints.is_due((address, transport), now), is_due, "{after_s} s, {transport}");
        }
        // However many there are.
        let now = begin + 10 * SAID;
        let due = (0..2 * MAX_SAID as u64).filter(|it| complaints.is_due((address, *it), now)).count();
        assert_eq!((due, complaints.0.len()), (MAX_SAID, MAX_SAID));
        assert!(complaints.is_due((address, u64::MAX), now + SAID));
    }
}
