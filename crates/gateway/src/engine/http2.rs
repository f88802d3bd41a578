//! HTTP/2 connections of clients: hyper speaks the protocol, and one task drives a connection with all of its requests,
//! so that answers that are ready at once leave with one write.
//!
//! What must hold: a request that panics ends alone; what a client may keep open or reset has a bound, and so has the time
//! in which it takes nothing of an answer (`http2/taking.rs`) or asks for nothing (`http2/life.rs`).
//!
//! Requests are answered by `http2/ordinary.rs` when they only pass, else by the general path (`http.rs`).

mod answering;
mod life;
mod ordinary;
mod taking;

use super::Core;
use super::http::{Connection, handle, limits_of};
use super::timer::Timer;
use super::tls::Secured;
use answering::Answering;
use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use life::{Life, SHORT};
use ordinary::Ordinary;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;
use taking::{Taking, Watched};
use tokio::io::{AsyncRead, AsyncWrite};

/// Most requests at once on one connection.
const MAX_STREAMS: u32 = 128;
/// Most streams that a client may have reset before they were looked at, and that we reset on account of its mistakes;
/// beyond that the connection ends (rapid reset).
const MAX_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 256;

/// What has begun and is not driven yet.
#[derive(Default)]
struct Beginning {
    streams: Vec<Watched>,
    /// Of the request that hyper makes a stream of next.
    taking: Option<Taking>,
}

/// Streams that have begun and are not driven yet.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Beginning>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Beginning> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Begun {
    fn execute(&self, stream: F) {
        // The panic hook has said where and why.
        let stream = Box::pin(AssertUnwindSafe(stream).catch_unwind().map(drop));
        let mut begun = self.lock();
        let taking = begun.taking.take();
        begun.streams.push(Watched::new(stream, taking));
    }
}

/// What `judge` says; nothing when it panics: the general path has the request then, and the others go on.
fn guarded<T>(judge: impl FnOnce() -> Option<T>) -> Option<T> {
    // The panic hook has said where and why.
    std::panic::catch_unwind(AssertUnwindSafe(judge)).unwrap_or_default()
}

/// Serves a client that chose HTTP/2 by ALPN.
pub(super) async fn serve<S>(core: Arc<Core>, stream: S, peer: SocketAddr, tls: Secured)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (limits, max_uri) = limits_of(&core);
    let (drain, room) = (core.drain.clone(), core.room.clone());
    let begun = Begun::default();
    let mut http = hyper::server::conn::http2::Builder::new(begun.clone());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(limits.idle)
        .keep_alive_timeout(limits.request_header);
    let address: Arc<str> = peer.ip().to_canonical().to_string().into();
    let connection = Arc::new(Connection { core, peer, tls: Some(tls), control: Arc::default(), max_uri });
    let expecting = begun.clone();
    let service = service_fn(move |request: Request<Incoming>| -> Answering {
        let (connection, taking) = (Arc::clone(&connection), Taking::new(limits.idle));
        // hyper hands over the stream of a request right after it has asked for the answer.
        expecting.lock().taking = Some(taking.clone());
        // On the heap at once: on its way it is moved several times. Most requests need little room.
        match guarded(|| Ordinary::new(&connection, &address, &request)) {
            Some(ordinary) => Answering::kept(async move { Ok(taking.watch(ordinary.pass(&connection.core).await)) }),
            None => Answering::own(async move { Ok(taking.watch(handle(&connection, request, None).await)) }),
        }
    });
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut drained = std::pin::pin!(drain.cancelled());
    let mut streams = FuturesUnordered::<Watched>::new();
    let mut draining = false;
    let mut life = Life::new(limits, Instant::now());
    let (mut timer, mut ear) = (Timer::new(Instant::now().into()), room.ear());
    let ended = poll_fn(|cx| {
        if !draining && drained.as_mut().poll(cx).is_ready() {
            draining = true;
            serving.as_mut().graceful_shutdown();
            life.tell(limits.request_header, Instant::now());
        }
        loop {
            while let Poll::Ready(Some(left)) = streams.poll_next_unpin(cx) {
                life.ended(left);
            }
            if let Poll::Ready(ended) = serving.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            let mut begun = begun.lock();
            if !begun.streams.is_empty() {
                streams.extend(begun.streams.drain(..));
                life.begins();
                continue;
            }
            drop(begun);
            if !streams.is_empty() {
                return Poll::Pending;
            }
            let since = life.rests(Instant::now);
            if !life.is_told() {
                room.listen(&mut ear, cx);
                if room.wants(since) {
                    serving.as_mut().graceful_shutdown();
                    life.tell(SHORT, Instant::now());
                    continue;
                }
            }
            timer.set(life.until(since).into());
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if life.is_told() {
                tracing::debug!(%peer, "a client was told to go and did not, its connection is cut");
                return Poll::Ready(Ok(()));
            }
            serving.as_mut().graceful_shutdown();
            life.tell(life.grace(), Instant::now());
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%peer, %error, "a client connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_leaves_a_request_to_the_general_path() {
        assert_eq!((guarded(|| Some(1)), guarded::<u8>(|| panic!("as it should"))), (Some(1), None));
    }
}
