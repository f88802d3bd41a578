//! Room for connections: file descriptors. When they run out, those that are open are served, idle connections make room,
//! and it is said, but not with every connection.
//!
//! What must hold: clients never take the last descriptors, which endpoints and files need; datagrams, whose senders may be
//! made up, never more than half of what clients may have; a lack is never counted against an endpoint.

use nix::sys::resource::{Resource, getrlimit};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// How long a lack lasts at least.
const TIGHT: Duration = Duration::from_secs(1);
/// A connection that has been idle for less stays, however tight it is: its next request may be on its way.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// How often connections are told of a lack at most: datagrams from made-up addresses must not wake all of them each time.
const RINGS: Duration = Duration::from_millis(50);
/// How often a lack is spoken of.
const SAID: Duration = Duration::from_secs(30);

/// Whether it was the lack of descriptors, here or on the whole machine.
pub(super) fn is_used_up(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE))
}

/// The first descriptor that no client gets, of so many: an eighth is for everything else.
fn first_reserved(descriptors: u64) -> u64 {
    descriptors.saturating_sub((descriptors / 8).clamp(24, 1024))
}

/// One core's view of it. Its bell is its own, because waiting for it takes a lock.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// Rung when connections without a request are to look whether they may stay.
    idle: Arc<Notify>,
    all: Arc<Shared>,
}

/// What one connection hears of the bell. One task listens.
#[derive(Debug)]
pub(super) struct Ear(Pin<Box<OwnedNotified>>);

/// What all cores know.
#[derive(Debug)]
struct Shared {
    bells: Vec<Arc<Notify>>,
    reserved: u64,
    /// Flows of datagrams: each has one.
    flows: AtomicU64,
    full: AtomicBool,
    born: Instant,
    /// Milliseconds since `born`; 0 for never.
    tight_until: AtomicU64,
    rung_until: AtomicU64,
    said_until: AtomicU64,
}

impl Shared {
    fn new(cores: usize, descriptors: u64) -> Self {
        Self {
            bells: (0..cores).map(|_| Arc::default()).collect(),
            reserved: first_reserved(descriptors),
            flows: AtomicU64::new(0),
            full: AtomicBool::new(false),
            born: Instant::now(),
            tight_until: AtomicU64::new(0),
            rung_until: AtomicU64::new(0),
            said_until: AtomicU64::new(0),
        }
    }

    fn rooms(self) -> Vec<Room> {
        let all = Arc::new(self);
        all.bells.iter().map(|it| Room { idle: Arc::clone(it), all: Arc::clone(&all) }).collect()
    }
}

impl Room {
    /// One for each core.
    pub(super) fn of_cores(cores: usize) -> Vec<Self> {
        Shared::new(cores, getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |it| it.0)).rooms()
    }

    /// One for a connection.
    pub(super) fn ear(&self) -> Ear {
        Ear(Box::pin(Arc::clone(&self.idle).notified_owned()))
    }

    /// Has the task woken when the bell rings next.
    pub(super) fn listen(&self, ear: &mut Ear, cx: &mut Context<'_>) {
        while ear.0.as_mut().poll(cx).is_ready() {
            ear.0.set(Arc::clone(&self.idle).notified_owned());
        }
    }

    /// Has the connections of this core look whether they may stay.
    pub(super) fn ring(&self) {
        self.idle.notify_waiters();
    }

    /// A client got this descriptor. The kernel gives the lowest free one: its number says how many are in use.
    pub(super) fn gave(&self, client: &impl AsFd) {
        if client.as_fd().as_raw_fd() as u64 >= self.all.reserved {
            self.all.full.store(true, Ordering::Relaxed);
        }
    }

    /// Whether there is room for one more client; `any` is an open descriptor.
    pub(super) fn has_place(&self, any: &impl AsFd) -> bool {
        if self.all.full.load(Ordering::Relaxed) {
            let next = any.as_fd().try_clone_to_owned();
            let full = next.map_or(true, |it| it.as_raw_fd() as u64 >= self.all.reserved);
            self.all.full.store(full, Ordering::Relaxed);
        }
        !self.all.full.load(Ordering::Relaxed)
    }

    /// Whether there is room for one more flow of datagrams, beside that for clients ([`Room::has_place`]).
    pub(super) fn has_flow(&self) -> bool {
        self.all.flows.load(Ordering::Relaxed) < self.all.reserved / 2
    }

    /// Counts a flow of datagrams until this is dropped.
    pub(super) fn flow(&self) -> FlowPlace {
        self.all.flows.fetch_add(1, Ordering::Relaxed);
        FlowPlace(Arc::clone(&self.all))
    }

    /// There is a lack: idle connections end.
    pub(super) fn tighten(&self) {
        let all = &self.all;
        let now = all.born.elapsed();
        let after = |time: Duration| (now + time).as_millis() as u64;
        all.tight_until.store(after(TIGHT), Ordering::Relaxed);
        if now.as_millis() as u64 >= all.said_until.load(Ordering::Relaxed) {
            all.said_until.store(after(SAID), Ordering::Relaxed);
            tracing::warn!(
                for_clients = all.reserved,
                "file descriptors are used up: open requests go on, idle connections are closed, new ones wait; raise the \
                 limit (LimitNOFILE, ulimit -n)"
            );
        }
        if now.as_millis() as u64 >= all.rung_until.load(Ordering::Relaxed) {
            all.rung_until.store(after(RINGS), Ordering::Relaxed);
            all.bells.iter().for_each(|it| it.notify_waiters());
        }
    }

    /// Whether there was a lack just now.
    pub(super) fn is_tight(&self) -> bool {
        let until = self.all.tight_until.load(Ordering::Relaxed);
        until != 0 && (self.all.born.elapsed().as_millis() as u64) < until
    }

    /// Whether a connection that has been idle since then has to go.
    pub(super) fn wants(&self, since: Instant) -> bool {
        self.is_tight() && since.elapsed() >= MIN_IDLE
    }
}

/// See [`Room::flow`].
#[derive(Debug)]
pub(super) struct FlowPlace(Arc<Shared>);

impl Drop for FlowPlace {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn clients_leave_some_for_the_rest() {
        for (descriptors, first) in
            [(0, 0), (20, 0), (64, 40), (256, 224), (1024, 896), (20_000, 18_976), (1 << 20, 1_047_552)]
        {
            assert_eq!(first_reserved(descriptors), first);
        }
    }

    #[test]
    fn what_is_full_is_full_until_a_descriptor_is_free() {
        let any = std::fs::File::open("/dev/null").unwrap();
        for (descriptors, is_full) in [(0, true), (1 << 20, false)] {
            let room = Shared::new(1, descriptors).rooms().remove(0);
            assert!(room.has_place(&any));
            room.gave(&any);
            assert_eq!((room.has_place(&any), room.has_place(&any)), (!is_full, !is_full));
            room.all.full.store(true, Ordering::Relaxed);
            assert_eq!(room.has_place(&any), !is_full);
        }
    }

    #[tokio::test]
    async fn many_lacks_at_once_wake_idle_connections_once() {
        let rooms = Shared::new(2, 1024).rooms();
        let bell = || Arc::clone(&rooms[1].idle).notified_owned();
        let first = bell();
        rooms[0].tighten();
        first.await;
        // Nobody rings before this time is over, however long that takes here.
        rooms[0].all.rung_until.fetch_add(3_600_000, Ordering::Relaxed);
        let mut second = Box::pin(bell());
        (0..1000).for_each(|_| rooms[0].tighten());
        assert!(second.as_mut().now_or_never().is_none());
        rooms[0].all.rung_until.store(0, Ordering::Relaxed);
        rooms[0].tighten();
        second.await;
    }

    #[test]
    fn datagrams_leave_half_of_the_room_to_connections() {
        let rooms = Shared::new(2, 64).rooms();
        let taken: Vec<_> = (0..20).map(|it| rooms[it % 2].flow()).collect();
        assert!(!rooms[0].has_flow() && !rooms[1].has_flow(), "20 of 40");
        drop(taken);
        assert!(rooms[0].has_flow() && rooms[1].has_flow());
    }

    #[test]
    fn a_lack_ends_and_spares_the_young() {
        let long_ago = Instant::now() - Duration::from_secs(100);
        let rooms = Shared { born: long_ago, ..Shared::new(2, 1024) }.rooms();
        assert!(!rooms[0].wants(long_ago));
        rooms[1].tighten();
        // For as long as this takes.
        rooms[0].all.tight_until.fetch_add(3_600_000, Ordering::Relaxed);
        let later = Instant::now() + Duration::from_secs(3600);
        assert!(rooms[0].is_tight() && rooms[0].wants(long_ago) && !rooms[0].wants(later));
        rooms[0].all.tight_until.store(1, Ordering::Relaxed);
        assert!(!rooms[1].is_tight());
    }
}
