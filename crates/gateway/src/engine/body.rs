//! Bodies on their way through: requests with a limit on silence, responses that give their connection back at the end.
//! Neither is collected, unless its route says so (`ahead.rs`, `spool.rs`): each piece is passed on before the next one is
//! read.

use super::ahead::AheadBody;
use super::guard::InFlight;
use super::http1::direct::DirectBody;
use super::pool::Pool;
use super::record::Recording;
use super::spool::{Held, SpoolError};
use super::transport::Sender;
use crate::metrics::UpstreamMetrics;
use crate::upstream::OpenRequest;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// Most pieces of a body that wait for a mirror.
const MAX_COPIED: usize = 32;
/// How often a client that may be silent is looked at, at most.
const LEAST_SILENCE: Duration = Duration::from_millis(1);

/// Any error of a body.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// How a request body ended, as its handler sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BodyEnd {
    /// It has not failed.
    Well,
    /// The client broke it off or broke its framing.
    Failed,
    /// The client was silent for too long.
    TimedOut,
    /// It is larger than its route takes.
    TooLarge,
    /// It was kept here, and is gone.
    Lost,
}

/// What the handler can see of a body that it has handed on.
#[derive(Debug)]
pub(super) struct BodyWatch {
    end: AtomicU8,
    complete: AtomicBool,
    waits_for_client: AtomicBool,
    answering: AtomicBool,
    born: Instant,
    progress_ms: AtomicU64,
    received: AtomicU64,
}

impl BodyWatch {
    fn new(complete: bool) -> Arc<Self> {
        Arc::new(Self {
            end: AtomicU8::new(0),
            complete: AtomicBool::new(complete),
            waits_for_client: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            born: Instant::now(),
            progress_ms: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    }

    /// How it ended so far.
    pub(super) fn end(&self) -> BodyEnd {
        match self.end.load(Ordering::Acquire) {
            0 => BodyEnd::Well,
            1 => BodyEnd::Failed,
            3 => BodyEnd::TooLarge,
            4 => BodyEnd::Lost,
            _ => BodyEnd::TimedOut,
        }
    }

    /// Whether all of it was handed on.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether the next piece is the client's turn: its silence has a limit of its own.
    pub(super) fn waits_for_client(&self) -> bool {
        self.waits_for_client.load(Ordering::Acquire)
    }

    /// The response has begun: while it goes on, the client may be silent for as long as both ends like (gRPC streams).
    pub(super) fn answer_began(&self) {
        self.answering.store(true, Ordering::Release);
    }

    /// The response is over: who is silent now has nothing to wait for.
    fn answer_ended(&self) {
        self.answering.store(false, Ordering::Release);
    }

    fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Acquire)
    }

    /// How many bytes of it came from the client.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// When the last piece was handed on.
    pub(super) fn last_progress(&self) -> Instant {
        self.born + Duration::from_millis(self.progress_ms.load(Ordering::Acquire))
    }
}

/// A request body on its way to an endpoint.
#[derive(Debug)]
pub(super) struct RequestBody {
    incoming: Option<Incoming>,
    /// Where a mirror takes its pieces from, and at last that there are no more; `incoming` is empty then.
    copied: Option<(mpsc::Receiver<Option<Bytes>>, SizeHint)>,
    /// All of it, when it was taken whole; `incoming` is empty then.
    held: Option<Reading>,
    /// Where a mirror's pieces go.
    copy_to: Option<mpsc::Sender<Option<Bytes>>>,
    /// Most bytes that may still come.
    room: u64,
    watch: Option<Arc<BodyWatch>>,
    silence: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self {
            incoming: None,
            copied: None,
            held: None,
            copy_to: None,
            room: u64::MAX,
            watch: None,
            silence: Duration::ZERO,
            timer: None,
        }
    }

    /// The client's body; `silence` is the longest pause between two pieces while no response is under way.
    pub(super) fn new(incoming: Incoming, silence: Duration) -> (Self, Option<Arc<BodyWatch>>) {
        if incoming.is_end_stream() {
            return (Self::empty(), None);
        }
        let watch = BodyWatch::new(false);
        let body = Self { incoming: Some(incoming), watch: Some(Arc::clone(&watch)), silence, ..Self::empty() };
        (body, Some(watch))
    }

    /// A body that was taken whole: it can be sent again.
    pub(super) fn held(held: Arc<Held>) -> (Self, Option<Arc<BodyWatch>>) {
        let watch = BodyWatch::new(held.length() == 0);
        let body = Self { held: Some(Reading::new(held)), watch: Some(Arc::clone(&watch)), ..Self::empty() };
        (body, Some(watch))
    }

    /// The same from its beginning, when nothing is lost by that: there is none, or it was taken whole.
    pub(super) fn again(&self) -> Option<Self> {
        match &self.held {
            Some(it) => {
                let held = Some(Reading::new(Arc::clone(&it.held)));
                Some(Self { held, watch: self.watch.clone(), ..Self::empty() })
            }
            None => self.is_end_stream().then(Self::empty),
        }
    }

    /// Whether [`RequestBody::again`] has an answer.
    pub(super) fn is_repeatable(&self) -> bool {
        self.held.is_some() || self.is_end_stream()
    }

    /// Lets at most `bytes` through.
    pub(super) fn limit(&mut self, bytes: u64) {
        self.room = bytes;
    }

    /// A body that gets the same pieces as this one, until it falls behind.
    pub(super) fn tee(&mut self) -> Self {
        if let Some(it) = &self.held {
            return Self { held: Some(Reading::new(Arc::clone(&it.held))), ..Self::empty() };
        }
        if self.incoming.is_none() {
            return Self::empty();
        }
        let (sender, receiver) = mpsc::channel(MAX_COPIED);
        self.copy_to = Some(sender);
        Self { copied: Some((receiver, self.size_hint())), watch: Some(BodyWatch::new(false)), ..Self::empty() }
    }

    /// What can be seen of it when it is handed on.
    pub(super) fn watch(&self) -> Option<Arc<BodyWatch>> {
        self.watch.clone()
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(reading) = &mut self.held else { return Poll::Ready(None) };
        if reading.at == 0
            && let Some(watch) = &self.watch
        {
            // Sent a second time it is not complete any more.
            watch.complete.store(reading.held.length() == 0, Ordering::Release);
        }
        if reading.left() == 0 {
            return Poll::Ready(None);
        }
        let piece = ready!(reading.poll(cx));
        match piece {
            Ok(piece) => {
                let complete = self.held.as_ref().is_some_and(|it| it.left() == 0);
                self.progressed(complete);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Err(_) => {
                self.ended(4);
                Poll::Ready(Some(Err("the request body that was kept is gone".into())))
            }
        }
    }

    /// Tells a mirror that it has all.
    fn copied_whole(&mut self) {
        if let Some(copy_to) = self.copy_to.take() {
            // One without room for this fell behind.
            let _ = copy_to.try_send(None);
        }
    }

    fn ended(&self, end: u8) {
        if let Some(watch) = &self.watch {
            watch.end.store(end, Ordering::Release);
        }
    }

    fn progressed(&self, complete: bool) {
        if let Some(watch) = &self.watch {
            watch.waits_for_client.store(false, Ordering::Release);
            watch.progress_ms.store(watch.born.elapsed().as_millis() as u64, Ordering::Release);
            if complete {
                watch.complete.store(true, Ordering::Release);
            }
        }
    }
}

/// A piece of a kept body on its way.
type ReadPiece = Pin<Box<dyn Future<Output = Result<Bytes, SpoolError>> + Send>>;

/// How far a body that was taken whole is read.
struct Reading {
    held: Arc<Held>,
    at: u64,
    piece: Option<ReadPiece>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Reading({} of {})", self.at, self.held.length())
    }
}

impl Reading {
    fn new(held: Arc<Held>) -> Self {
        Self { held, at: 0, piece: None }
    }

    fn left(&self) -> u64 {
        self.held.length() - self.at
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, SpoolError>> {
        let (held, at) = (&self.held, self.at);
        let piece = self.piece.get_or_insert_with(|| Box::pin(Arc::clone(held).read(at)));
        let outcome = ready!(piece.as_mut().poll(cx));
        self.piece = None;
        if let Ok(piece) = &outcome {
            self.at += piece.len() as u64;
        }
        Poll::Ready(outcome)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some((receiver, left)) = &mut self.copied {
            let piece = match ready!(receiver.poll_recv(cx)) {
                Some(Some(piece)) => piece,
                Some(None) => {
                    self.copied = None;
                    self.progressed(true);
                    return Poll::Ready(None);
                }
                // One that was cut off must not look whole.
                None if left.exact().is_none_or(|it| it > 0) => {
                    self.ended(1);
                    return Poll::Ready(Some(Err("the mirror fell behind, or the body broke off".into())));
                }
                None => return Poll::Ready(None),
            };
            if let Some(known) = left.exact() {
                left.set_exact(known.saturating_sub(piece.len() as u64));
            }
            let complete = left.exact() == Some(0);
            self.progressed(complete);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if self.held.is_some() {
            return self.poll_held(cx);
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                let length = frame.data_ref().map_or(0, |it| it.len() as u64);
                if let Some(watch) = &self.watch {
                    watch.received.fetch_add(length, Ordering::Relaxed);
                }
                let Some(room) = self.room.checked_sub(length) else {
                    self.ended(3);
                    return Poll::Ready(Some(Err("the request body is larger than this route takes".into())));
                };
                self.room = room;
                let complete = self.incoming.as_ref().is_some_and(Body::is_end_stream);
                if let (Some(copy_to), Some(piece)) = (&self.copy_to, frame.data_ref())
                    && copy_to.try_send(Some(piece.clone())).is_err()
                {
                    self.copy_to = None;
                }
                if complete {
                    self.copied_whole();
                }
                self.progressed(complete);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.ended(1);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.copied_whole();
                self.progressed(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let this = &mut *self;
                let silence = this.silence;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
                let is_answering = this.watch.as_ref().is_some_and(|it| it.is_answering());
                let mut timed_out = timer.as_mut().poll(cx).is_ready();
                while timed_out && is_answering {
                    // Looked at again: nobody tells this side when the response is over.
                    timer.as_mut().reset(tokio::time::Instant::now() + silence.max(LEAST_SILENCE));
                    timed_out = timer.as_mut().poll(cx).is_ready();
                }
                if let Some(watch) = &this.watch {
                    watch.waits_for_client.store(!timed_out, Ordering::Release);
                }
                if !timed_out {
                    return Poll::Pending;
                }
                this.ended(2);
                Poll::Ready(Some(Err("the request body did not arrive in time".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        if let Some(it) = &self.held {
            return it.left() == 0;
        }
        self.copied.is_none() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(it) = &self.held {
            return SizeHint::with_exact(it.left());
        }
        if let Some((_, left)) = &self.copied {
            return *left;
        }
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// What happens when a response has been passed on, or broke off.
pub(super) struct Exchange {
    pub(super) open: OpenRequest,
    /// `None` when the body has the connection itself.
    pub(super) sender: Option<Sender>,
    pub(super) pool: Arc<Pool<Sender>>,
    pub(super) transport: u64,
    pub(super) watch: Option<Arc<BodyWatch>>,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) began: Instant,
}

impl Exchange {
    pub(super) fn end(self, whole: bool) {
        self.metrics.finished(self.began.elapsed());
        self.metrics.open.dec();
        if let Some(watch) = &self.watch {
            watch.answer_ended();
        }
        // Of a connection that many share a place is free when it is dropped.
        if let Some(sender @ Sender::One(_)) = self.sender.filter(|_| whole)
            && self.watch.is_none_or(|it| it.is_complete())
        {
            self.pool.put((self.open.endpoint().address, self.transport), sender);
        }
    }
}

/// The body of an endpoint's response, by whom it is read.
pub(super) enum EndpointBody {
    Hyper(Incoming),
    Direct(DirectBody),
}

impl Body for EndpointBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Hyper(it) => Pin::new(it).poll_frame(cx).map_err(BodyError::from),
            Self::Direct(it) => Pin::new(it).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(it) => it.is_end_stream(),
            Self::Direct(it) => it.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(it) => it.size_hint(),
            Self::Direct(it) => it.size_hint(),
        }
    }
}

/// A response body on its way to a client.
pub(super) struct ResponseBody {
    content: Content,
    exchange: Option<Exchange>,
    /// How long neither this nor the request's body may move; `None` for streams of events or messages.
    silence: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The request's body, which may still be on its way.
    request: Option<Arc<BodyWatch>>,
    /// When all of it must have passed.
    deadline: Option<Pin<Box<Sleep>>>,
    /// What is counted and written of its request when this is dropped.
    recording: Option<Recording>,
    _in_flight: Option<InFlight>,
}

enum Content {
    Own(Option<Bytes>),
    Proxied(EndpointBody),
    Ahead(AheadBody),
}

impl ResponseBody {
    /// A page of ours.
    pub(super) fn own(text: String, in_flight: Option<InFlight>) -> Self {
        let content = Content::Own(Some(Bytes::from(text)).filter(|it| !it.is_empty()));
        Self::new(content, None, None, in_flight)
    }

    fn new(
        content: Content,
        exchange: Option<Exchange>,
        silence: Option<Duration>,
        in_flight: Option<InFlight>,
    ) -> Self {
        let request = exchange.as_ref().and_then(|it| it.watch.clone());
        let (timer, deadline, recording) = (None, None, None);
        Self { content, exchange, silence, timer, request, deadline, recording, _in_flight: in_flight }
    }

    /// Breaks off at `deadline`.
    pub(super) fn until(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline.map(|it| Box::pin(tokio::time::sleep_until(it.into())));
        self
    }

    /// When it breaks off.
    pub(super) fn deadline(&self) -> Option<tokio::time::Instant> {
        self.deadline.as_ref().map(|it| it.deadline())
    }

    /// An endpoint's answer.
    pub(super) fn proxied(
        incoming: EndpointBody,
        exchange: Exchange,
        silence: Option<Duration>,
        in_flight: Option<InFlight>,
    ) -> Self {
        Self::new(Content::Proxied(incoming), Some(exchange), silence, in_flight)
    }

    /// An endpoint's answer to `request` that is taken from it as fast as it comes; who takes it ends the exchange.
    pub(super) fn ahead(
        incoming: AheadBody,
        request: Option<Arc<BodyWatch>>,
        silence: Option<Duration>,
        in_flight: Option<InFlight>,
    ) -> Self {
        let mut body = Self::new(Content::Ahead(incoming), None, silence, in_flight);
        body.request = request;
        body
    }

    /// The same; with its end the request ends that `recording` is of.
    pub(super) fn recorded(mut self, recording: Recording) -> Self {
        self.recording = Some(recording);
        self
    }

    fn passed(&mut self, bytes: usize) {
        if let Some(recording) = &mut self.recording {
            recording.passed(0, bytes as u64);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err("the response took longer than its route allows".into())));
        }
        let polled = match &mut self.content {
            Content::Own(bytes) => {
                let bytes = bytes.take();
                self.passed(bytes.as_ref().map_or(0, Bytes::len));
                return Poll::Ready(bytes.map(|it| Ok(Frame::data(it))));
            }
            Content::Proxied(incoming) => Pin::new(incoming).poll_frame(cx),
            Content::Ahead(incoming) => Pin::new(incoming).poll_frame(cx),
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                self.passed(frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(exchange) = self.exchange.take() {
                    exchange.metrics.failures.inc();
                    exchange.end(false);
                }
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                if let Some(exchange) = self.exchange.take() {
                    exchange.end(true);
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                let this = &mut *self;
                let Some(silence) = this.silence else { return Poll::Pending };
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
                while timer.as_mut().poll(cx).is_ready() {
                    // An endpoint that takes a long upload has nothing to say yet.
                    let until = this.request.as_ref().map(|it| it.last_progress() + silence);
                    let Some(later) = until.filter(|it| *it > Instant::now()) else {
                        return Poll::Ready(Some(Err("the response body did not arrive in time".into())));
                    };
                    timer.as_mut().reset(later.into());
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(bytes) => bytes.is_none(),
            Content::Proxied(incoming) => incoming.is_end_stream(),
            Content::Ahead(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64)),
            Content::Proxied(incoming) => incoming.size_hint(),
            Content::Ahead(incoming) => incoming.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let whole = self.is_end_stream();
        if let Some(exchange) = self.exchange.take() {
            exchange.end(whole);
        }
    }
}
