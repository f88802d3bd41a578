//! HTTP/2 connections to endpoints, per core: many requests share one, and there are several where an endpoint takes fewer
//! requests at once on a connection than there are.
//!
//! What must hold: a request waits behind others of its connection only when there are [`MOST`] connections to its endpoint;
//! more are not kept, and not made while so many are being made. How many requests an endpoint takes is asked anew for each.
//! A connection that was silent until a request's time was over, or until nobody waited any more, gets no further one.
//!
//! Not here: connections with one request at a time (`pool.rs`), connecting (`transport.rs`).

use super::body::RequestBody;
use super::pool::{Key, MAX_IDLE, MAX_IDLE_ONCE, SWEEP};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Most connections to one endpoint.
const MOST: usize = 32;
/// A connection that was silent for so long when somebody did not want to wait any more is not believed in.
const SILENCE: Duration = Duration::from_secs(5);

/// Says how many requests the endpoint takes at once on a connection.
pub(super) type Ceiling = Box<dyn Fn() -> usize + Send + Sync>;

/// A connection that its task drives, and that can be asked something meanwhile.
pub(super) struct Driven<C>(Arc<Mutex<Option<C>>>);

impl<C> Driven<C> {
    /// The connection, and a place where it is found until it has ended.
    pub(super) fn new(connection: C) -> (Self, Place<C>) {
        let place = Arc::new(Mutex::new(Some(connection)));
        (Self(Arc::clone(&place)), Place(place))
    }
}

impl<C: Future + Unpin> Future for Driven<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        match lock(&self.0).as_mut() {
            Some(connection) => Pin::new(connection).poll(cx),
            // It is taken only when this is dropped.
            None => Poll::Pending,
        }
    }
}

impl<C> Drop for Driven<C> {
    /// However its task ended: hyper calls a connection closed when it is dropped.
    fn drop(&mut self) {
        let ended = lock(&self.0).take();
        drop(ended);
    }
}

/// See [`Driven::new`].
pub(super) struct Place<C>(Arc<Mutex<Option<C>>>);

impl<C> Place<C> {
    /// What `ask` says of the connection; `None` when it has ended.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&C) -> T) -> Option<T> {
        lock(&self.0).as_ref().map(ask)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is counted of a connection.
struct Load {
    /// Requests on it.
    open: AtomicUsize,
    born: Instant,
    /// When the last one ended, in milliseconds since `born`.
    ended_ms: AtomicU64,
    /// Answers that have begun.
    answers: AtomicU64,
    /// Whether no further request is put on it.
    left_out: AtomicBool,
    ceiling: Ceiling,
}

impl Load {
    /// How long there has been no request; `None` while there is one.
    fn idle(&self) -> Option<Duration> {
        let ended = Duration::from_millis(self.ended_ms.load(Ordering::Relaxed));
        let is_idle = self.open.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.born.elapsed().saturating_sub(ended))
    }
}

/// A connection with a place for one request on it, which is free when this is dropped.
pub(super) struct Many {
    sender: http2::SendRequest<RequestBody>,
    load: Arc<Load>,
    began: Instant,
    /// Answers on it that had begun before.
    answers: u64,
    answered: bool,
}

impl Many {
    /// The first one on a connection.
    pub(super) fn new(sender: http2::SendRequest<RequestBody>, ceiling: Ceiling) -> Self {
        let load = Load {
            open: AtomicUsize::new(0),
            born: Instant::now(),
            ended_ms: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            left_out: AtomicBool::new(false),
            ceiling,
        };
        Self::on(sender, Arc::new(load))
    }

    fn on(sender: http2::SendRequest<RequestBody>, load: Arc<Load>) -> Self {
        load.open.fetch_add(1, Ordering::Relaxed);
        let answers = load.answers.load(Ordering::Relaxed);
        Self { sender, load, began: Instant::now(), answers, answered: false }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn ready(&mut self) -> Result<(), hyper::Error> {
        self.sender.ready().await
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let outcome = self.sender.try_send_request(request).await;
        if outcome.is_ok() {
            self.answered = true;
            self.load.answers.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// Puts nothing on the connection any more; what is on it goes on.
    pub(super) fn leave_out(&self) {
        self.load.left_out.store(true, Ordering::Relaxed);
    }

    /// The time for an answer is over: nobody else is to wait for it on a connection that is as dead as it looks.
    pub(super) fn timed_out(&self) {
        // An answer to another request shows that it is not.
        if self.load.answers.load(Ordering::Relaxed) == self.answers {
            self.leave_out();
        }
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        if !self.answered && self.began.elapsed() >= SILENCE {
            self.timed_out();
        }
        if self.load.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.load.ended_ms.store(self.load.born.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }
}

/// A connection that requests can be put on.
struct Line {
    sender: http2::SendRequest<RequestBody>,
    load: Arc<Load>,
}

impl Line {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.load.left_out.load(Ordering::Relaxed)
    }
}

/// The connections to one endpoint.
#[derive(Default)]
struct Lines {
    there: Vec<Line>,
    /// How many are being made.
    making: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Multiplexed {
    endpoints: Mutex<HashMap<Key, Lines>>,
    /// Rung when a connection has been made, or could not be.
    made: Arc<Notify>,
    /// Rung when there is something to sweep.
    filled: Notify,
}

/// What a request gets.
pub(super) enum Taken {
    /// A connection.
    Place(Many),
    /// Leave to make one.
    Leave(Making),
    /// What to wait for before it asks again.
    Wait(OwnedNotified),
}

impl Multiplexed {
    /// A connection for one request, if it has a place. `repeatable` says whether the request may be sent again if this one
    /// is stale, `waits` whether it would rather wait for one that is being made than behind others.
    pub(super) fn take(self: &Arc<Self>, key: Key, repeatable: bool, waits: bool) -> Taken {
        let longest = if repeatable { MAX_IDLE } else { MAX_IDLE_ONCE };
        let mut endpoints = lock(&self.endpoints);
        let lines = endpoints.entry(key).or_default();
        lines.there.retain(Line::is_usable);
        let seen = lines.there.iter().map(|it| Seen {
            open: it.load.open.load(Ordering::Relaxed),
            most: (it.load.ceiling)(),
            idle: it.load.idle(),
        });
        match choose(seen, lines.making, longest, waits) {
            Choice::Use(at) => {
                let line = &lines.there[at];
                Taken::Place(Many::on(line.sender.clone(), Arc::clone(&line.load)))
            }
            Choice::Make => Taken::Leave(self.making(key, lines)),
            Choice::Wait => Taken::Wait(Arc::clone(&self.made).notified_owned()),
        }
    }

    /// Leave to make a connection, however many there are.
    pub(super) fn another(self: &Arc<Self>, key: Key) -> Making {
        self.making(key, lock(&self.endpoints).entry(key).or_default())
    }

    fn making(self: &Arc<Self>, key: Key, lines: &mut Lines) -> Making {
        lines.making += 1;
        Making { of: Arc::clone(self), key }
    }

    /// Puts nothing on any connection any more.
    pub(super) fn clear(&self) {
        lock(&self.endpoints).retain(|_, lines| {
            lines.there.clear();
            lines.making > 0
        });
    }

    /// Closes what has been idle for too long; sleeps while there is nothing.
    pub(super) async fn sweep(&self) {
        loop {
            let empty = {
                let mut endpoints = lock(&self.endpoints);
                endpoints.retain(|_, lines| {
                    let stays = |it: &Line| it.is_usable() && it.load.idle().is_none_or(|it| it < MAX_IDLE);
                    lines.there.retain(stays);
                    !lines.there.is_empty() || lines.making > 0
                });
                endpoints.is_empty()
            };
            if empty {
                self.filled.notified().await;
            }
            tokio::time::sleep(SWEEP).await;
        }
    }
}

/// Leave to make one connection, until this is dropped.
pub(super) struct Making {
    of: Arc<Multiplexed>,
    key: Key,
}

impl Making {
    /// It is made: others may share it from now on.
    pub(super) fn keep(self, made: &Many) {
        let mut endpoints = lock(&self.of.endpoints);
        let there = &mut endpoints.entry(self.key).or_default().there;
        // It was made because these are full, or too old for the request: the latter will not get younger.
        there.retain(|it| it.load.idle().is_none_or(|it| it <= MAX_IDLE_ONCE));
        if there.len() < MOST {
            there.push(Line { sender: made.sender.clone(), load: Arc::clone(&made.load) });
        }
        drop(endpoints);
        // The sweeper sleeps only while there is nothing to sweep.
        self.of.filled.notify_one();
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut endpoints = lock(&self.of.endpoints);
        if let Some(lines) = endpoints.get_mut(&self.key) {
            lines.making = lines.making.saturating_sub(1);
            if lines.making == 0 && lines.there.is_empty() {
                endpoints.remove(&self.key);
            }
        }
        drop(endpoints);
        self.of.made.notify_waiters();
    }
}

/// What is known of a connection when a request looks for one.
#[derive(Clone, Copy, Debug)]
struct Seen {
    open: usize,
    most: usize,
    idle: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Choice {
    Use(usize),
    Make,
    Wait,
}

/// The first connection that has a place and was not idle for longer than `longest`, so that those at the end fall idle;
/// else another one, while there are fewer than there may be; else, when those that are being made are there, the one with
/// the fewest requests, on which this one waits for its turn.
fn choose(seen: impl Iterator<Item = Seen>, making: usize, longest: Duration, waits: bool) -> Choice {
    let (mut count, mut least) = (making, None::<(usize, usize)>);
    for (at, line) in seen.enumerate() {
        count += 1;
        if line.idle.is_some_and(|it| it > longest) {
            continue;
        }
        if line.open < line.most {
            return Choice::Use(at);
        }
        if least.is_none_or(|(_, open)| line.open < open) {
            least = Some((at, line.open));
        }
    }
    match least {
        _ if count < MOST => Choice::Make,
        Some((at, _)) if making == 0 || !waits => Choice::Use(at),
        _ if making > 0 => Choice::Wait,
        _ => Choice::Make,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_a_place_or_another_connection() {
        let busy = |open, most| Seen { open, most, idle: None };
        let idle = |seconds| Seen { open: 0, most: 2, idle: Some(Duration::from_secs(seconds)) };
        let full = vec![busy(2, 2); MOST];
        let fewer = [vec![busy(4, 2)], vec![busy(3, 2); MOST - 1]].concat();
        for (name, seen, making, expected) in [
            ("none", vec![], 0, Choice::Make),
            ("one is being made", vec![], 1, Choice::Make),
            ("as many are being made as may be", vec![], MOST, Choice::Wait),
            ("the first that has a place", vec![busy(2, 2), busy(1, 2), idle(0)], 0, Choice::Use(1)),
            ("one that was lowered", vec![busy(2, 1), idle(5)], 0, Choice::Use(1)),
            ("all are full", vec![busy(2, 2), busy(2, 2)], 0, Choice::Make),
            ("it takes nothing, or has ended", vec![busy(0, 0)], 0, Choice::Make),
            ("too old", vec![idle(11)], 0, Choice::Make),
            ("an old one beside a full one", vec![busy(2, 2), idle(11)], 0, Choice::Make),
            ("all that may be are full", full.clone(), 0, Choice::Use(0)),
            ("one of them is being made", full[1..].to_vec(), 1, Choice::Wait),
            ("the one with the fewest", fewer, 0, Choice::Use(1)),
            ("as many as may be, and all too old", vec![idle(11); MOST], 0, Choice::Make),
        ] {
            assert_eq!(choose(seen.into_iter(), making, Duration::from_secs(10), true), expected, "{name}");
        }
        // Who has waited for long enough takes what there is.
        for (seen, expected) in [(full[1..].to_vec(), Choice::Use(0)), (Vec::new(), Choice::Wait)] {
            let making = MOST - seen.len();
            assert_eq!(choose(seen.into_iter(), making, Duration::from_secs(10), false), expected);
        }
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_connection_that_could_not_be_made() {
        let pool = Arc::new(Multiplexed::default());
        let key: Key = (std::net::SocketAddr::from(([127, 0, 0, 1], 80)), 1);
        let mut leaves: Vec<Making> = Vec::new();
        for _ in 0..MOST {
            let Taken::Leave(leave) = pool.take(key, true, true) else { panic!("no leave") };
            leaves.push(leave);
        }
        let Taken::Wait(made) = pool.take(key, true, true) else { panic!("there are too many") };
        drop(leaves.pop());
        made.await;
        assert!(matches!(pool.take(key, true, true), Taken::Leave(_)));
        drop((pool.another(key), leaves));
        assert!(lock(&pool.endpoints).is_empty());
    }

    #[tokio::test]
    async fn a_connection_is_asked_until_it_has_ended() {
        let (driven, place) = Driven::new(std::future::ready(7));
        assert_eq!(place.ask(|_| 1), Some(1));
        let ended = tokio::spawn(driven).await.unwrap();
        assert_eq!((ended, place.ask(|_| 1)), (7, None));
    }
}
