//! Which components are to be looked at: a set, so that ten bells are one look.
//!
//! What must hold: one component is looked at by one worker at a time; a bell during a look causes another look after
//! it; whoever waits for a look waits for one that *began* after the wait did.

use arco_model::id::ComponentId;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How much later each other one that waits for its time makes a component due: by themselves they all come to at most 50 looks a
/// second, so that a thousand that move at once leave the machine to what they wait for. Who is rung for is due at once.
const SPACING: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    due: VecDeque<ComponentId>,
    due_set: HashSet<ComponentId>,
    busy: HashSet<ComponentId>,
    waiting: HashMap<ComponentId, Vec<oneshot::Sender<()>>>,
    /// When components are due by themselves.
    timers: HashMap<ComponentId, Instant>,
}

/// The set of due components.
#[derive(Default)]
pub(crate) struct Work {
    state: Mutex<State>,
    more: Notify,
}

/// One look that a worker took over.
pub(crate) struct Item {
    id: ComponentId,
    waiting: Vec<oneshot::Sender<()>>,
    work: Arc<Work>,
    finished: bool,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look.
    pub(crate) fn look(&self, id: ComponentId) {
        let mut state = self.lock();
        if state.due_set.insert(id.clone()) {
            state.due.push_back(id);
            self.more.notify_one();
        }
    }

    /// Asks for a look and waits until it is over.
    pub(crate) async fn look_and_wait(&self, id: ComponentId) {
        let (sender, over) = oneshot::channel();
        self.lock().waiting.entry(id.clone()).or_default().push(sender);
        self.look(id);
        let _ = over.await;
    }

    /// The next component that is due and not being looked at.
    pub(crate) async fn next(self: &Arc<Self>) -> Item {
        loop {
            let more = self.more.notified();
            if let Some(item) = self.take() {
                return item;
            }
            let timer = self.lock().timers.values().min().copied();
            match timer {
                Some(at) => drop(tokio::time::timeout_at(at, more).await),
                None => more.await,
            }
        }
    }

    /// What is due now, if anything is.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Item> {
        let mut state = self.lock();
        let now = Instant::now();
        let rung: Vec<_> = state.timers.extract_if(|_, at| *at <= now).map(|(id, _)| id).collect();
        for id in rung {
            if state.due_set.insert(id.clone()) {
                state.due.push_back(id);
            }
        }
        let at = state.due.iter().position(|id| !state.busy.contains(id))?;
        let id = state.due.remove(at)?;
        state.due_set.remove(&id);
        state.busy.insert(id.clone());
        let waiting = state.waiting.remove(&id).unwrap_or_default();
        if state.due.iter().any(|id| !state.busy.contains(id)) {
            self.more.notify_one();
        }
        Some(Item { id, waiting, work: self.clone(), finished: false })
    }

    fn finish(&self, id: &ComponentId, again: Option<Duration>) {
        let mut state = self.lock();
        state.busy.remove(id);
        state.timers.remove(id);
        if let Some(after) = again {
            let others = u32::try_from(state.timers.len()).unwrap_or(u32::MAX);
            state.timers.insert(id.clone(), Instant::now() + after + SPACING.saturating_mul(others));
        }
        drop(state);
        self.more.notify_one();
    }
}

impl Item {
    /// The component to look at.
    pub(crate) fn id(&self) -> &ComponentId {
        &self.id
    }

    /// The look is over; asks for another one after a time.
    pub(crate) fn done(mut self, again: Option<Duration>) {
        self.finished = true;
        self.work.finish(&self.id, again);
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if !self.finished {
            self.work.finish(&self.id, None); // the look panicked
        }
        for sender in self.waiting.drain(..) {
            let _ = sender.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ComponentId {
        ComponentId::from_parts(number, 0)
    }

    #[tokio::test]
    async fn a_component_is_looked_at_by_one_worker_and_again_after_a_bell() {
        let work = Arc::new(Work::default());
        work.look(id(1));
        work.look(id(1));
        work.look(id(2));
        let first = work.next().await;
        work.look(id(1));
        let second = work.next().await;
        assert_eq!((first.id(), second.id()), (&id(1), &id(2)));
        assert!(work.take().is_none(), "1 is due but busy");
        first.done(None);
        assert_eq!(work.next().await.id(), &id(1));
    }

    #[tokio::test]
    async fn who_waits_waits_for_a_look_that_began_later() {
        let work = Arc::new(Work::default());
        work.look(id(1));
        let early = work.next().await;
        let waiter = tokio::spawn({
            let work = work.clone();
            async move { work.look_and_wait(id(1)).await }
        });
        tokio::task::yield_now().await;
        early.done(None);
        assert!(!waiter.is_finished());
        work.next().await.done(None);
        waiter.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_are_due_by_themselves_come_one_after_the_other() {
        let work = Arc::new(Work::default());
        let looks = || std::iter::from_fn(|| work.take()).collect::<Vec<_>>();
        (0..100).for_each(|it| work.look(id(it)));
        looks().into_iter().for_each(|it| it.done(Some(Duration::from_secs(1))));
        tokio::time::advance(Duration::from_millis(1_510)).await;
        let first = looks();
        assert_eq!(first.len(), 26);
        work.look(id(99));
        assert_eq!(work.next().await.id(), &id(99), "who is rung for waits for nobody");
        drop(first);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(looks().len(), 73);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_rings_once() {
        let work = Arc::new(Work::default());
        work.look(id(1));
        work.next().await.done(Some(Duration::from_secs(5)));
        work.next().await.done(None);
    }
}
