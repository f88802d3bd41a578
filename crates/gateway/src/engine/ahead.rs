//! Bodies that are taken whole, or ahead of who reads them: a request before an endpoint is asked, a response as fast as
//! the endpoint sends it.
//!
//! What must hold: an endpoint is free as soon as it has sent the last byte, however slow the client is; when there is no
//! place to keep more, a response goes on as fast as the client takes it, and nothing of it is lost. What a client takes
//! nothing of for as long as a connection may be idle is given up, and never looks whole.

use super::Core;
use super::body::{BodyEnd, BodyError, BodyWatch, EndpointBody, Exchange, RequestBody};
use super::spool::{Held, Spool, SpoolError};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Why a request was not taken whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NotWhole {
    /// The client's fault.
    Client(BodyEnd),
    /// There was no place for it.
    Place(SpoolError),
}

/// Takes all of a request's body. Trailers end here: what is sent on has a length.
pub(super) async fn whole(
    core: &Core,
    mut body: RequestBody,
    watch: Option<&BodyWatch>,
) -> Result<Arc<Held>, NotWhole> {
    let mut spool = Spool::of_request(&core.shared.buffers);
    while let Some(frame) = body.frame().await {
        let failed = |_| NotWhole::Client(watch.map_or(BodyEnd::Failed, BodyWatch::end));
        if let Ok(piece) = frame.map_err(failed)?.into_data() {
            spool.push(&piece).await.map_err(NotWhole::Place)?;
        }
    }
    Ok(spool.whole())
}

/// What a client gets of a response that is taken ahead of it.
pub(super) struct AheadBody {
    frames: mpsc::Receiver<Result<Frame<Bytes>, BodyError>>,
    left: SizeHint,
    ended: bool,
    /// All of it went through `frames`: their end is its end.
    whole: Arc<AtomicBool>,
}

impl AheadBody {
    /// Takes `incoming` from its endpoint until it ends or the client leaves, and then ends the exchange.
    pub(super) fn start(core: &Core, incoming: EndpointBody, exchange: Exchange) -> Self {
        let (sender, frames) = mpsc::channel(1);
        let left = incoming.size_hint();
        let spool = Spool::of_response(&core.shared.buffers);
        let patience = core.shared.limits.load().client.idle;
        let whole = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&whole);
        core.supervisor.spawn("response buffer", arco_daemon::OnExit::Continue, async move {
            let exchange = Some(exchange);
            Ahead { incoming, exchange, spool, has_place: true, trailers: None, error: None, patience, whole: tell }
                .run(sender)
                .await;
            Ok(())
        });
        Self { frames, left, ended: false, whole }
    }
}

impl Body for AheadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.frames.poll_recv(cx));
        if frame.is_none() && !self.whole.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err("a part of the response was not kept".into())));
        }
        self.ended |= frame.is_none();
        if let (Some(Ok(frame)), Some(left)) = (&frame, self.left.exact()) {
            let passed = frame.data_ref().map_or(0, |it| it.len() as u64);
            self.left.set_exact(left.saturating_sub(passed));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left
    }
}

/// A response between its endpoint and its client.
struct Ahead {
    incoming: EndpointBody,
    /// `None` when the endpoint has sent everything.
    exchange: Option<Exchange>,
    spool: Spool,
    /// Whether more may be taken before the client has all that is here.
    has_place: bool,
    trailers: Option<HeaderMap>,
    error: Option<BodyError>,
    /// How long the client may take nothing of what is here.
    patience: Duration,
    whole: Arc<AtomicBool>,
}

impl Ahead {
    async fn run(mut self, client: mpsc::Sender<Result<Frame<Bytes>, BodyError>>) {
        // Since when the client takes nothing of what is here.
        let mut since = Instant::now();
        while self.exchange.is_some() || !self.spool.is_empty() {
            let held = !self.spool.is_empty();
            tokio::select! {
                biased;
                () = client.closed() => break,
                place = client.reserve(), if held => {
                    let Ok(place) = place else { break };
                    since = Instant::now();
                    match self.spool.take().await {
                        Ok(Some(piece)) => place.send(Ok(Frame::data(piece))),
                        Ok(None) => {}
                        Err(_) => {
                            place.send(Err("a part of the response that was kept is gone".into()));
                            break;
                        }
                    }
                    self.has_place |= self.spool.is_empty();
                }
                // What is kept for it is others' place.
                () = sleep_until(since + self.patience), if held => break,
                frame = self.incoming.frame(), if self.exchange.is_some() && self.has_place => {
                    if !held {
                        since = Instant::now();
                    }
                    self.take(frame).await;
                }
            }
        }
        let whole = self.exchange.is_none() && self.spool.is_empty() && self.error.is_none();
        self.whole.store(whole, Ordering::Release);
        // The client has left: the rest of it is worth nothing.
        self.end(false);
        // What is kept is given back now, not when the client has taken the last word.
        drop((self.spool, self.incoming));
        let last = match (self.error, self.trailers) {
            (Some(error), _) => Some(Err(error)),
            // They end it, and so stand for all of it.
            (None, trailers) => trailers.filter(|_| whole).map(|it| Ok(Frame::trailers(it))),
        };
        if let Some(last) = last {
            // Nobody to tell is no harm.
            let _ = client.send(last).await;
        }
    }

    async fn take(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) {
        match frame {
            None => self.end(true),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => {
                    if self.spool.push(&piece).await.is_err() {
                        self.has_place = false;
                    }
                    if self.incoming.is_end_stream() {
                        self.end(true);
                    }
                }
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            },
            Some(Err(error)) => {
                if let Some(exchange) = &self.exchange {
                    exchange.metrics.failures.inc();
                }
                self.error = Some(error);
                self.end(false);
            }
        }
    }

    fn end(&mut self, whole: bool) {
        if let Some(exchange) = self.exchange.take() {
            exchange.end(whole);
        }
    }
}
