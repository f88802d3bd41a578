//! Bodies that are taken whole, or ahead of who reads them: a request before an endpoint is asked, a response as fast as
//! the endpoint sends it.
//!
//! What must hold: an endpoint is free as soon as it has sent the last byte, however slow the client is; when there is no
//! place to keep more, a response goes on as fast as the client takes it, and nothing of it is lost.

use super::Core;
use super::body::{BodyEnd, BodyError, BodyWatch, EndpointBody, Exchange, RequestBody};
use super::spool::{Held, Spool, SpoolError};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

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
}

impl AheadBody {
    /// Takes `incoming` from its endpoint until it ends or the client leaves, and then ends the exchange.
    pub(super) fn start(core: &Core, incoming: EndpointBody, exchange: Exchange) -> Self {
        let (sender, frames) = mpsc::channel(1);
        let left = incoming.size_hint();
        let spool = Spool::of_response(&core.shared.buffers);
        core.supervisor.spawn("response buffer", arco_daemon::OnExit::Continue, async move {
            Ahead { incoming, exchange: Some(exchange), spool, has_place: true, trailers: None, error: None }
                .run(sender)
                .await;
            Ok(())
        });
        Self { frames, left, ended: false }
    }
}

impl Body for AheadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.frames.poll_recv(cx));
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
}

impl Ahead {
    async fn run(mut self, client: mpsc::Sender<Result<Frame<Bytes>, BodyError>>) {
        while self.exchange.is_some() || !self.spool.is_empty() {
            tokio::select! {
                biased;
                () = client.closed() => break,
                place = client.reserve(), if !self.spool.is_empty() => {
                    let Ok(place) = place else { break };
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
                frame = self.incoming.frame(), if self.exchange.is_some() && self.has_place => self.take(frame).await,
            }
        }
        // The client has left: the rest of it is worth nothing.
        self.end(false);
        let last = match (self.error, self.trailers) {
            (Some(error), _) => Some(Err(error)),
            (None, trailers) => trailers.map(|it| Ok(Frame::trailers(it))),
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
