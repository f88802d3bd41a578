//! Stands between a client's socket and the HTTP parser: passes on only what [`Tracker`] accepts, and keeps the
//! deadlines of a client that is slow or silent between requests. One that is silent there makes room for others.

use super::room::{Ear, Room};
use crate::framing::{Refusal, Tracker};
use futures_util::task::AtomicWaker;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const UNDECIDED: u8 = 0;
const RESUME: u8 = 1;
const TUNNEL: u8 = 2;

/// What the request handler tells the guard of its connection.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Requests whose answer has been passed on.
    answered: AtomicU64,
    decision: AtomicU8,
    waker: AtomicWaker,
}

impl Control {
    /// A request that counts as answered when this is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        InFlight { control: Arc::clone(self) }
    }

    /// The question of an upgrade; it counts as refused when dropped unanswered.
    pub(super) fn upgrade(self: &Arc<Self>) -> UpgradeQuestion {
        UpgradeQuestion { control: Some(Arc::clone(self)) }
    }

    fn decide(&self, decision: u8) {
        self.decision.store(decision, Ordering::Release);
        self.waker.wake();
    }
}

/// A request that has no complete answer yet.
#[derive(Debug)]
pub(super) struct InFlight {
    control: Arc<Control>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.control.answered.fetch_add(1, Ordering::AcqRel);
        self.control.waker.wake();
    }
}

/// See [`Control::upgrade`].
#[derive(Debug)]
pub(super) struct UpgradeQuestion {
    control: Option<Arc<Control>>,
}

impl UpgradeQuestion {
    /// From here on the connection is a tunnel.
    pub(super) fn accept(mut self) {
        if let Some(control) = self.control.take() {
            control.decide(TUNNEL);
        }
    }
}

impl Drop for UpgradeQuestion {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.decide(RESUME);
        }
    }
}

/// Longest silences of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientLimits {
    pub(super) max_header_bytes: usize,
    pub(super) request_header: Duration,
    pub(super) idle: Duration,
}

/// What a deadline waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wait {
    Nothing,
    NextRequest,
    RestOfHead,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Guard<S> {
    stream: S,
    tracker: Tracker,
    held_back: Vec<u8>,
    control: Arc<Control>,
    limits: ClientLimits,
    served_one: bool,
    room: Room,
    ear: Ear,
    wait: Wait,
    /// Since when it is waited.
    since: Instant,
    deadline: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Guard<S> {
    pub(super) fn new(stream: S, limits: ClientLimits, control: Arc<Control>, room: Room) -> Self {
        let (ear, now) = (room.ear(), Instant::now());
        Self {
            stream,
            tracker: Tracker::new(limits.max_header_bytes),
            held_back: Vec::new(),
            control,
            limits,
            served_one: false,
            room,
            ear,
            wait: Wait::Nothing,
            since: now,
            deadline: now,
            timer: None,
        }
    }

    /// The refusal that nobody has answered yet.
    pub(super) fn unanswered_refusal(&self) -> Option<Refusal> {
        self.tracker.refusal().filter(|_| !self.tracker.is_refused_in_body())
    }

    /// Whether the client is in the middle of a body.
    pub(super) fn is_in_body(&self) -> bool {
        self.tracker.is_in_body()
    }

    /// Whether a request that was passed on has no complete answer yet.
    fn is_busy(&self) -> bool {
        self.control.answered.load(Ordering::Acquire) < self.tracker.heads()
    }

    /// The stream below.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    /// Whether the client has been silent for too long, or for long enough when its place is needed. Call when nothing can
    /// be read.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = if self.tracker.is_in_head() {
            Wait::RestOfHead
        } else if self.tracker.is_idle() && !self.is_busy() {
            Wait::NextRequest
        } else {
            Wait::Nothing
        };
        if wait != self.wait {
            self.wait = wait;
            let limit = match wait {
                Wait::Nothing => return Poll::Pending,
                Wait::NextRequest if self.served_one => self.limits.idle,
                Wait::NextRequest | Wait::RestOfHead => self.limits.request_header,
            };
            self.served_one |= wait == Wait::RestOfHead;
            self.since = Instant::now();
            self.deadline = self.since + limit;
        }
        if wait == Wait::Nothing {
            return Poll::Pending;
        }
        if wait == Wait::NextRequest {
            self.room.listen(&mut self.ear, cx);
            if self.room.wants(self.since.into_std()) {
                return Poll::Ready(());
            }
        }
        // The timer is moved only when it fires early: most requests never touch it.
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.deadline)));
        if timer.deadline() > self.deadline {
            timer.as_mut().reset(self.deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }

    /// Passes on what was held back; `None` when nothing may be passed on now.
    fn pass_held_back(&mut self, buffer: &mut ReadBuf<'_>) -> Option<()> {
        let offered = self.held_back.len().min(buffer.remaining());
        let passed = self.tracker.advance(&self.held_back[..offered]);
        buffer.put_slice(&self.held_back[..passed]);
        self.held_back.drain(..passed);
        (passed > 0).then_some(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            this.control.waker.register(cx.waker());
            if this.tracker.is_undecided() {
                match this.control.decision.swap(UNDECIDED, Ordering::AcqRel) {
                    UNDECIDED => return Poll::Pending,
                    decision => this.tracker.decide(decision == TUNNEL),
                }
            }
            if let Some(refusal) = this.tracker.refusal() {
                if this.tracker.is_refused_in_body() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal.why)));
                }
                // Answers that are under way go first; then the parser sees the end.
                return if this.is_busy() { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            if !this.held_back.is_empty() {
                match this.pass_held_back(buffer) {
                    Some(()) => return Poll::Ready(Ok(())),
                    None => continue,
                }
            }
            let before = buffer.filled().len();
            match Pin::new(&mut this.stream).poll_read(cx, buffer) {
                Poll::Pending => {
                    if this.poll_deadline(cx).is_pending() {
                        return Poll::Pending;
                    }
                    if this.tracker.is_idle() {
                        return Poll::Ready(Ok(()));
                    }
                    this.tracker.refuse(Refusal { status: 408, why: "the request header did not arrive in time" });
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {
                    let arrived = buffer.filled().len() - before;
                    if arrived == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    this.served_one |= !this.tracker.is_idle();
                    let passed = this.tracker.advance(&buffer.filled()[before..]);
                    if passed < arrived {
                        this.held_back.extend_from_slice(&buffer.filled()[before + passed..]);
                        buffer.set_filled(before + passed);
                    }
                    // A complete head in one piece never waits for its rest, but the next silence is a new one.
                    if this.tracker.is_idle() {
                        this.wait = Wait::Nothing;
                        this.served_one = true;
                    }
                    if passed > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The refusal is still to be written on this stream.
        if this.unanswered_refusal().is_some() {
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.stream).poll_shutdown(cx)
        }
    }
}
