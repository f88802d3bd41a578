//! HTTP/1.1 connections of clients on a codec of our own: ordinary requests to endpoints that speak plain HTTP/1.1.
//!
//! What must hold: a connection that waits holds no buffer; a request that is anything but ordinary is handed over, with
//! the connection and all of its bytes, to the general path (`http.rs`), which then keeps the connection.

pub(super) mod direct;
mod endpoint;
mod exchange;
mod half;
mod handover;
pub(super) mod request;
mod response;

use super::guard::ClientLimits;
use super::room::Ear;
use super::timer::Timer;
use super::tls::Secured;
use super::{Core, buffers, date, http};
use crate::framing::Refusal;
use ::http::Response;
use arco_daemon::BoxError;
pub(super) use endpoint::Endpoint;
use handover::Prefixed;
use request::{Answer, Client, Judged, judge};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::io::poll_read_buf;

/// What the requests of one connection share.
struct Session<S> {
    core: Arc<Core>,
    stream: S,
    limits: ClientLimits,
    timer: Timer,
    /// Hears when a connection without a request may have to end.
    ear: Ear,
}

/// What becomes of the connection after an exchange.
enum End {
    /// It goes on with these bytes.
    Keep(Vec<u8>),
    /// It ends.
    Close,
    /// It ends when the client has read the response, or after a while.
    Linger,
}

/// What came of waiting for bytes.
enum More {
    Bytes,
    Late,
    End,
    /// Nothing came, and the gateway drains or needs its place.
    Unwanted,
}

/// Serves one client connection to its end; `guards` are held so long.
///
/// Not an `async fn`: that would have room for its arguments twice, and most connections are idle.
pub(super) fn serve<S, G>(
    core: Arc<Core>,
    stream: S,
    peer: SocketAddr,
    tls: Option<Secured>,
    guards: G,
) -> impl Future<Output = Result<(), BoxError>> + Send + 'static
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    G: Send + 'static,
{
    let (limits, max_uri) = http::limits_of(&core);
    let written: Box<str> = peer.ip().to_canonical().to_string().into();
    let ear = core.room.ear();
    let timer = Timer::new(Instant::now().into());
    let mut session = Session { core, stream, limits, timer, ear };
    let mut bytes = Vec::new();
    // Until the first request there is less patience.
    let (mut patience, mut since) = (limits.request_header, Instant::now());
    async move {
        let _guards = &guards;
        loop {
            if !bytes.is_empty() {
                let (mut hands_over, mut answer) = (false, None);
                let end = {
                    let (address, max_head) = (peer.ip().to_canonical(), limits.max_header_bytes);
                    let (core, tls) = (&session.core, tls.as_ref());
                    let exchange =
                        match judge(&bytes, &Client { core, address, written: &written, tls, max_uri, max_head }) {
                            Judged::Forward(plan, recording) => {
                                let bytes = std::mem::take(&mut bytes);
                                Some(Box::pin(session.exchange(plan, recording, bytes)))
                            }
                            Judged::Answer(it) => {
                                answer = Some(it);
                                None
                            }
                            Judged::Incomplete if bytes.len() <= limits.max_header_bytes => {
                                patience = limits.request_header;
                                None
                            }
                            Judged::Incomplete | Judged::Special => {
                                hands_over = true;
                                None
                            }
                        };
                    match exchange {
                        Some(exchange) => Some(exchange.await),
                        None => None,
                    }
                };
                let end = match answer {
                    Some(answer) => Some(Box::pin(session.answer(answer, std::mem::take(&mut bytes))).await),
                    None => end,
                };
                match end {
                    Some(End::Keep(rest)) => {
                        bytes = rest;
                        (patience, since) = (limits.idle, Instant::now());
                        continue;
                    }
                    Some(End::Close) => return session.close().await,
                    Some(End::Linger) => {
                        Box::pin(http::refuse(session.stream, b"")).await;
                        return Ok(());
                    }
                    None if hands_over => {
                        let stream = Prefixed::new(bytes, session.stream);
                        Box::pin(http::serve(session.core, stream, peer, tls)).await;
                        return Ok(());
                    }
                    None => {}
                }
            }
            let was_idle = bytes.is_empty();
            match session.more(&mut bytes, since, patience).await {
                More::Bytes if was_idle => since = Instant::now(),
                More::Bytes => {}
                More::Late if !was_idle => {
                    let refusal = Refusal { status: 408, why: "the request header did not arrive in time" };
                    session.core.shared.metrics.refused(refusal.status);
                    buffers::put(bytes);
                    let answer = http::refusal_text(refusal);
                    Box::pin(http::refuse(session.stream, answer.as_bytes())).await;
                    return Ok(());
                }
                More::Late | More::End | More::Unwanted => return session.close().await,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Waits for bytes. Without any, the connection also ends when the gateway drains or needs its place.
    async fn more(&mut self, bytes: &mut Vec<u8>, since: Instant, patience: Duration) -> More {
        self.timer.set((since + patience).into());
        let mut looked = false;
        loop {
            let more = poll_fn(|cx| {
                if bytes.capacity() == 0 {
                    *bytes = buffers::take();
                } else if bytes.len() == bytes.capacity() {
                    bytes.reserve(bytes.len());
                }
                match poll_read_buf(Pin::new(&mut self.stream), cx, bytes) {
                    Poll::Ready(Ok(1..)) => return Poll::Ready(More::Bytes),
                    Poll::Ready(_) => {
                        buffers::put(std::mem::take(bytes));
                        return Poll::Ready(More::End);
                    }
                    Poll::Pending => {}
                }
                if bytes.is_empty() {
                    buffers::put(std::mem::take(bytes));
                    self.core.room.listen(&mut self.ear, cx);
                    if self.core.end_idle.is_cancelled() || self.core.room.wants(since) {
                        return Poll::Ready(More::Unwanted);
                    }
                }
                self.timer.poll(cx).map(|()| More::Late)
            })
            .await;
            if looked || !matches!(more, More::Unwanted) {
                return more;
            }
            // A request may be there that this thread has not been told of: it is when the runtime asks the kernel.
            tokio::task::yield_now().await;
            looked = true;
        }
    }

    /// Answers the request that `bytes` begin with.
    async fn answer(&mut self, answer: Box<Answer>, mut bytes: Vec<u8>) -> End {
        let Answer { page, mut recording, length, is_head, close } = *answer;
        let close = close || self.core.keeps_none();
        let sent = self.page(&page, is_head, close).await;
        recording.passed(0, if sent && !is_head { page.body().len() as u64 } else { 0 });
        if !sent || close {
            buffers::put(bytes);
            return End::Close;
        }
        bytes.drain(..length);
        End::Keep(bytes)
    }

    /// Ends the connection. Whatever goes wrong now, it is over.
    async fn close(&mut self) -> Result<(), BoxError> {
        let _ = self.stream.shutdown().await;
        Ok(())
    }

    /// Writes an answer of our own. Returns whether that went well.
    async fn page(&mut self, page: &Response<String>, is_head: bool, close: bool) -> bool {
        let status = page.status();
        let reason = status.canonical_reason().unwrap_or_default();
        let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
        for (name, value) in page.headers() {
            response::push_field(&mut out, name.as_str().as_bytes(), value.as_bytes());
        }
        // As hyper has it, which does the same on the general path.
        if !(is_head && page.body().is_empty()) {
            response::push_field(&mut out, b"content-length", page.body().len().to_string().as_bytes());
        }
        if close {
            response::push_field(&mut out, b"connection", b"close");
        }
        date::push(&mut out);
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(page.body().as_bytes());
        }
        let writing = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        matches!(tokio::time::timeout(self.limits.idle, writing).await, Ok(Ok(())))
    }
}
