//! Answers over HTTP/2 that their client does not take. hyper asks for more of a body when its client has room for what
//! there is; while it has none, nobody would look at the time, and what the body holds (the connection of an endpoint, a
//! place among its requests) would be held for ever.
//!
//! What must hold: a stream whose client takes nothing for the connection's idle time ends, and so does one whose route's
//! time is over; then all that it holds is free, and the client gets a reset. One whose client takes slowly but steadily
//! goes on: pieces are small until the client has shown that it takes them quickly, and large ones get more time.

use super::super::body::{BodyError, ResponseBody};
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Sizes of pieces of a body that goes on after them, in bytes.
const FIRST: usize = 256;
const LEAST: usize = 64;
const MOST: usize = 16 * 1024;
/// By how much a piece is larger than the one before, or smaller when that one took long.
const STEP: usize = 8;
/// What part of the idle time is long.
const LONG: u32 = 16;
/// For so many bytes that are on their way the client gets the idle time once more.
const MORE_TIME: usize = 4 * 1024;

/// How many times as long a client gets for so many bytes that are on their way.
pub(super) fn times(bytes: usize) -> u32 {
    u32::try_from(1 + bytes / MORE_TIME).unwrap_or(u32::MAX)
}

/// A future of hyper's that answers one request.
pub(super) type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who is to do something next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    /// We, or the endpoint.
    Here,
    /// The client: it has been given something, and nobody asks for more.
    Client,
}

struct State {
    idle: Duration,
    turn: Turn,
    /// When it was first seen that the client lets us wait.
    since: Option<Instant>,
    /// Size of the next piece.
    size: usize,
    /// What was given last, and what before: hyper asks for a piece when the one before the last one is on its way.
    given: usize,
    before: usize,
    /// When all of the response must have passed.
    deadline: Option<Instant>,
}

/// What a stream and the body of its response know of each other. Both belong to the task of their connection.
#[derive(Clone)]
pub(super) struct Taking(Arc<Mutex<State>>);

impl Taking {
    /// `idle`: how long a client may take nothing.
    pub(super) fn new(idle: Duration) -> Self {
        let (turn, since, deadline) = (Turn::Here, None, None);
        Self(Arc::new(Mutex::new(State { idle, turn, since, size: FIRST, given: 0, before: 0, deadline })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response, watched.
    pub(super) fn watch(self, response: Response<ResponseBody>) -> Response<TakenBody<ResponseBody>> {
        response.map(|body| {
            let deadline = body.deadline();
            TakenBody::new(body, deadline, self)
        })
    }

    /// More is asked for; at most how much of a body that goes on.
    fn asked(&self) -> usize {
        let mut state = self.lock();
        if state.turn == Turn::Client {
            // What it let us wait for is the piece before the last one.
            let before = state.before;
            state.size = match state.since.take().map(|it| it.elapsed()) {
                None => (state.size * STEP).min(MOST),
                Some(waited) if waited < state.idle / LONG => (before * STEP).clamp(FIRST, MOST),
                Some(_) => (before / STEP).clamp(LEAST, MOST),
            };
            state.turn = Turn::Here;
        }
        state.size
    }

    /// How many bytes were given last: they may still be on their way when there is nothing more to give.
    fn given(&self) -> usize {
        self.lock().given
    }

    fn gave(&self, bytes: usize) {
        let mut state = self.lock();
        (state.before, state.given) = (state.given, bytes);
        state.turn = Turn::Client;
    }

    /// Until when the client must have taken something; `None` while it is not its turn.
    fn until(&self) -> Option<Instant> {
        let mut state = self.lock();
        if state.turn == Turn::Here {
            return None;
        }
        let since = *state.since.get_or_insert_with(Instant::now);
        let until = since + state.idle.saturating_mul(times(state.before));
        Some(state.deadline.map_or(until, |it| it.min(until)))
    }
}

/// The body of a response, in pieces that a slow client can take in time.
pub(super) struct TakenBody<B> {
    body: B,
    /// What came and was not given on.
    rest: Bytes,
    taking: Taking,
}

impl<B> TakenBody<B> {
    fn new(body: B, deadline: Option<Instant>, taking: Taking) -> Self {
        taking.lock().deadline = deadline;
        Self { body, rest: Bytes::new(), taking }
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for TakenBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let most = this.taking.asked();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => {
                        this.taking.gave(0);
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                other => return Poll::Ready(other),
            }
        }
        // What is the end of a body holds nothing any more once it is given.
        let whole = this.rest.len() <= most || this.body.is_end_stream();
        let piece = if whole { std::mem::take(&mut this.rest) } else { this.rest.split_to(most) };
        this.taking.gave(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if rest == 0 {
            return hint;
        }
        let upper = hint.upper().map(|it| it.saturating_add(rest));
        let lower = hint.lower().saturating_add(rest);
        hint = SizeHint::new();
        hint.set_lower(lower);
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint
    }
}

/// A stream that ends when its client takes nothing.
pub(super) struct Watched {
    stream: Stream,
    /// `None` for what is no answer to a request.
    taking: Option<Taking>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(stream: Stream, taking: Option<Taking>) -> Self {
        Self { stream, taking, timer: None }
    }
}

impl Future for Watched {
    /// How many bytes of its answer may still be on their way.
    type Output = usize;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<usize> {
        if self.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(self.taking.as_ref().map_or(0, Taking::given));
        }
        let Some(until) = self.taking.as_ref().and_then(Taking::until) else { return Poll::Pending };
        // It stays while the client takes, so that a piece costs no timer.
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= until {
                tracing::debug!("a client took nothing of an answer for too long, its stream is reset");
                return Poll::Ready(0);
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::Semaphore;

    const IDLE: Duration = Duration::from_secs(60);

    /// Pieces as an endpoint sends them; `stalls`: it says nothing more after them.
    struct Pieces {
        left: VecDeque<usize>,
        stalls: bool,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            match self.left.pop_front() {
                Some(length) => Poll::Ready(Some(Ok(Frame::data(vec![b'x'; length].into())))),
                None if self.stalls => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    /// As hyper passes a body on: it has a piece in hand until all before it is on its way.
    async fn pass(mut body: TakenBody<Pieces>, window: Arc<Semaphore>, all: Arc<AtomicBool>) {
        let mut before = 1;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let length = frame.unwrap().into_data().unwrap().len();
            window.acquire_many(before).await.unwrap().forget();
            before = u32::try_from(length).unwrap();
        }
        all.store(true, Ordering::SeqCst);
    }

    /// Passes 320 KiB on to a client that takes `bytes` each `every`; whether it came to the end, and when it ended.
    async fn run(first: usize, (bytes, every): (usize, Duration), limit: Option<Duration>) -> (bool, Duration) {
        let began = Instant::now();
        let (taking, window) = (Taking::new(IDLE), Arc::new(Semaphore::new(first)));
        let all = Arc::new(AtomicBool::new(false));
        let pieces = Pieces { left: vec![32 * 1024; 10].into(), stalls: false };
        let body = TakenBody::new(pieces, limit.map(|it| began + it), taking.clone());
        let stream = Watched::new(Box::pin(pass(body, window.clone(), all.clone())), Some(taking));
        let client = async {
            while !window.is_closed() {
                tokio::time::sleep(every).await;
                window.add_permits(bytes);
            }
        };
        tokio::select! {
            _ = stream => {}
            () = client => {}
        }
        (all.load(Ordering::SeqCst), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_slowly_is_waited_for_and_one_that_takes_nothing_is_not() {
        let second = Duration::from_secs(1);
        for (name, first, takes) in [
            ("quick", 1 << 20, (0, second)),
            ("100 bytes a second", 0, (100, second)),
            ("20 bytes a second", 0, (20, second)),
            ("a window, then slowly", 65_535, (200, second)),
            ("much, seldom", 65_535, (4096, 30 * second)),
        ] {
            assert!(run(first, takes, None).await.0, "{name}");
        }
        let (all, after) = run(0, (0, second), None).await;
        assert!(!all && after >= IDLE && after < IDLE + second, "{after:?}");
        let (all, after) = run(65_535, (0, second), None).await;
        assert!(!all && after < 6 * IDLE, "what is on its way gets more time, and not for ever: {after:?}");
        let (all, after) = run(0, (0, second), Some(5 * second)).await;
        assert!(!all && after < 6 * second, "the time of its route is over: {after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_silent_is_not_the_clients_fault() {
        let taking = Taking::new(IDLE);
        let body = TakenBody::new(Pieces { left: vec![10, 20].into(), stalls: true }, None, taking.clone());
        let passing = pass(body, Arc::new(Semaphore::new(1 << 20)), Arc::default());
        let stream = Watched::new(Box::pin(passing), Some(taking));
        assert!(tokio::time::timeout(10 * IDLE, stream).await.is_err());
    }

    #[test]
    fn only_what_goes_on_is_cut_into_pieces() {
        let taking = Taking::new(IDLE);
        let mut body = TakenBody::new(Pieces { left: vec![5000].into(), stalls: false }, None, taking);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut lengths = Vec::new();
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) {
            lengths.push(frame.into_data().unwrap().len());
            assert_eq!(body.size_hint().lower(), 5000 - lengths.iter().sum::<usize>() as u64);
        }
        assert_eq!(lengths, [256, 2048, 2696]);
        let own = ResponseBody::own("y".repeat(5000), None);
        let mut body = TakenBody::new(own, None, Taking::new(IDLE));
        assert_eq!(body.size_hint().exact(), Some(5000));
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else { panic!("nothing comes") };
        assert_eq!((frame.into_data().unwrap().len(), body.is_end_stream()), (5000, true));
    }
}
