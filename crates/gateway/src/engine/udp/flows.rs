//! The flows of one socket: which client has which, how long each is kept, and which makes room for another. Pure but for
//! counters.
//!
//! What must hold: a flow whose client has gone on after an answer gives way to nobody. An address that somebody made up
//! never gets that far, so such ones take the place of each other.

use super::datagram::Peer;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A flow without datagrams either way ends after this time; one that was never answered, sooner.
const IDLE: Duration = Duration::from_secs(60);
const UNANSWERED: Duration = Duration::from_secs(10);

/// How far a conversation has got.
const ASKED: u8 = 0;
const ANSWERED: u8 = 1;
const GOES_ON: u8 = 2;

/// One client and its endpoint, which `L` stands for.
#[derive(Debug)]
pub(super) struct Flow<L> {
    pub(super) peer: Peer,
    pub(super) link: L,
    /// Milliseconds since the port was opened, of the last datagram.
    last_ms: AtomicU64,
    got_to: AtomicU8,
}

impl<L> Flow<L> {
    /// A flow whose client has sent its first datagram now. Times are milliseconds since the port was opened.
    pub(super) fn new(peer: Peer, link: L, now_ms: u64) -> Self {
        Self { peer, link, last_ms: AtomicU64::new(now_ms), got_to: AtomicU8::new(ASKED) }
    }

    /// The client has sent something.
    pub(super) fn asked(&self, now_ms: u64) {
        self.last_ms.store(now_ms, Ordering::Relaxed);
        if self.got_to.load(Ordering::Relaxed) == ANSWERED {
            self.got_to.store(GOES_ON, Ordering::Relaxed);
        }
    }

    /// The endpoint has.
    pub(super) fn answered(&self, now_ms: u64) {
        self.last_ms.store(now_ms, Ordering::Relaxed);
        if self.got_to.load(Ordering::Relaxed) == ASKED {
            self.got_to.store(ANSWERED, Ordering::Relaxed);
        }
    }

    /// How long neither has.
    pub(super) fn idle(&self, now_ms: u64) -> Duration {
        Duration::from_millis(now_ms.saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }

    fn is_over(&self, now_ms: u64) -> bool {
        let is_answered = self.got_to.load(Ordering::Relaxed) != ASKED;
        self.idle(now_ms) >= if is_answered { IDLE } else { UNANSWERED }
    }

    fn gives_way(&self) -> bool {
        self.got_to.load(Ordering::Relaxed) != GOES_ON
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flows<L> {
    all: HashMap<Peer, Arc<Flow<L>>>,
    /// Those that may give way, the oldest first; and some that do not any more, or have ended.
    young: VecDeque<Weak<Flow<L>>>,
}

impl<L> Default for Flows<L> {
    fn default() -> Self {
        Self { all: HashMap::new(), young: VecDeque::new() }
    }
}

impl<L> Flows<L> {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, peer: &Peer) -> Option<Arc<Flow<L>>> {
        self.all.get(peer).cloned()
    }

    /// Adds a flow, in the place of another one of its client.
    pub(super) fn insert(&mut self, flow: &Arc<Flow<L>>) {
        self.all.insert(flow.peer, Arc::clone(flow));
        self.young.push_back(Arc::downgrade(flow));
    }

    /// Whether it was there, and not another one of its client.
    pub(super) fn remove(&mut self, flow: &Arc<Flow<L>>) -> bool {
        let is_here = self.all.get(&flow.peer).is_some_and(|it| Arc::ptr_eq(it, flow));
        if is_here {
            self.all.remove(&flow.peer);
        }
        is_here
    }

    /// Removes the oldest of those that give way.
    pub(super) fn evict(&mut self) -> Option<Arc<Flow<L>>> {
        while let Some(oldest) = self.young.pop_front() {
            if let Some(flow) = oldest.upgrade()
                && flow.gives_way()
                && self.remove(&flow)
            {
                return Some(flow);
            }
        }
        None
    }

    /// Removes those that are over, and those that do not stay for another reason.
    pub(super) fn sweep(&mut self, now_ms: u64, stays: impl Fn(&L) -> bool) -> Vec<Arc<Flow<L>>> {
        let mut gone = Vec::new();
        self.all.retain(|_, flow| {
            let is_kept = !flow.is_over(now_ms) && stays(&flow.link);
            if !is_kept {
                gone.push(Arc::clone(flow));
            }
            is_kept
        });
        self.young.retain(|it| it.upgrade().is_some_and(|it| it.gives_way()));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u16) -> Peer {
        Peer::of(([192, 0, 2, 1], number).into())
    }

    /// Flows of clients 1 to `count`, one a second.
    fn flows(count: u16) -> (Flows<u16>, Vec<Arc<Flow<u16>>>) {
        let mut flows = Flows::default();
        let all: Vec<_> = (1..=count).map(|it| Arc::new(Flow::new(peer(it), it, 1000 * u64::from(it)))).collect();
        all.iter().for_each(|it| flows.insert(it));
        (flows, all)
    }

    #[test]
    fn a_flow_is_kept_as_long_as_its_conversation_deserves() {
        for (said, kept_s) in [("", 10), ("c", 10), ("e", 60), ("ec", 60), ("ce", 60), ("ecec", 60)] {
            let (mut flows, all) = flows(1);
            for who in said.chars() {
                if who == 'c' { all[0].asked(5000) } else { all[0].answered(5000) }
            }
            let last = if said.is_empty() { 1000 } else { 5000 };
            assert!(flows.sweep(last + kept_s * 1000 - 1, |_| true).is_empty(), "{said}");
            assert_eq!(flows.sweep(last + kept_s * 1000, |_| true).len(), 1, "{said}");
            assert_eq!((flows.len(), flows.get(&peer(1)).is_none()), (0, true));
        }
    }

    #[test]
    fn the_oldest_that_has_not_gone_on_gives_way() {
        let (mut flows, all) = flows(5);
        all[0].answered(6000);
        all[0].asked(6001);
        all[1].answered(6000);
        all[3].asked(6002);
        assert!(flows.remove(&all[2]));
        let order: Vec<u16> = std::iter::from_fn(|| flows.evict()).map(|it| it.link).collect();
        assert_eq!(order, [2, 4, 5], "neither one that goes on nor one that has gone");
        assert_eq!((flows.len(), flows.get(&peer(1)).map(|it| it.link)), (1, Some(1)));
    }

    #[test]
    fn a_client_that_comes_again_has_another_flow() {
        let (mut flows, all) = flows(1);
        let again = Arc::new(Flow::new(peer(1), 9, 2000));
        flows.insert(&again);
        assert!(!flows.remove(&all[0]), "it was replaced");
        assert_eq!(flows.evict().map(|it| it.link), Some(9));
        assert!(flows.evict().is_none() && flows.len() == 0);
    }

    #[test]
    fn what_has_gone_is_not_remembered() {
        let (mut flows, all) = flows(100);
        all.iter().skip(50).for_each(|it| {
            it.answered(0);
            it.asked(100_000);
        });
        let gone = flows.sweep(100_001, |it| it % 2 == 0);
        assert_eq!((gone.len(), flows.len()), (75, 25));
        drop((gone, all));
        flows.sweep(100_002, |_| true);
        assert!(flows.young.is_empty(), "{}", flows.young.len());
        assert!(flows.evict().is_none(), "who goes on stays");
    }
}
