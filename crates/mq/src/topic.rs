//! A topic as this process follows it: one watch of the store feeds one view, from which all workers pick.
//!
//! A picked key is reserved until the view has seen what became of the pick, so that two workers of this process never
//! go for the same job. Between processes the store's compare-and-set decides.

use crate::keys;
use crate::view::{Entry, Next, View};
use arco_model::job::Topic;
use arco_store::clock;
use arco_store::kv::{KvError, SharedKv};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Pauses between attempts to reach a store that failed.
const PAUSES_MS: [u64; 6] = [50, 100, 250, 500, 1000, 2000];

pub(crate) struct TopicState {
    topic: Topic,
    kv: SharedKv,
    shared: Arc<Shared>,
    follower: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct Shared {
    known: Mutex<Known>,
    /// Raised at each change of `known`.
    changes: watch::Sender<u64>,
}

struct Known {
    view: View,
    /// Raised with each change of the view.
    step: u64,
    /// Escaped keys that a worker of this process is just claiming.
    reserved: HashMap<String, Reserved>,
}

#[derive(Clone, Copy, PartialEq)]
enum Reserved {
    /// The claim is under way.
    Pending,
    /// It was done at this revision of the store.
    DoneAt(u64),
    /// It failed because the view was out of date: wait for the next change.
    Stale,
}

/// A job that was picked, and the hold on its key.
pub(crate) struct Picked {
    pub entry: Entry,
    hold: Hold,
}

struct Hold {
    shared: Arc<Shared>,
    key: String,
    /// `Known::step` when it was picked.
    step: u64,
    settled: bool,
}

impl TopicState {
    pub(crate) fn new(topic: Topic, kv: SharedKv) -> Self {
        let known = Known { view: View::new(topic), step: 0, reserved: HashMap::new() };
        let shared = Arc::new(Shared { known: Mutex::new(known), changes: watch::Sender::new(0) });
        Self { topic, kv, shared, follower: Mutex::new(None) }
    }

    /// Waits for a job that can be given out, and reserves its key.
    pub(crate) async fn next(&self) -> Picked {
        self.follow();
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let wake = match self.shared.pick() {
                Ok(picked) => return picked,
                Err(wake) => wake,
            };
            let pause = wake.map_or(Duration::MAX, |it| Duration::from_millis(it.since_ms(clock::now()).max(1)));
            // A pause is at most a minute: the wall clock may be set while we wait.
            let _ = tokio::time::timeout(pause.min(Duration::from_secs(60)), changes.changed()).await;
        }
    }

    /// Begins to follow the topic, once.
    fn follow(&self) {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        if follower.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let task = follow(self.topic, self.kv.clone(), self.shared.clone());
            *follower = Some(AbortOnDropHandle::new(tokio::spawn(task)));
        }
    }
}

/// Lists the topic, then takes in its changes; again from the start when the watch breaks.
async fn follow(topic: Topic, kv: SharedKv, shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        if let Err(error) = follow_once(topic, &kv, &shared, &mut failures).await {
            tracing::warn!(topic = topic.as_str(), error = %error, "the queue lost its view of the store, it begins anew");
        }
        let pause = PAUSES_MS[failures.min(PAUSES_MS.len() - 1)];
        failures += 1;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn follow_once(topic: Topic, kv: &SharedKv, shared: &Shared, failures: &mut usize) -> Result<(), KvError> {
    let prefix = keys::prefix(topic);
    let list = kv.list(&prefix).await?;
    shared.change(|known| known.view = View::of(topic, &list.items, list.revision));
    let range = arco_store::kv::Range::Prefix(prefix.into_bytes());
    let mut watch = kv.watch(range, Some(list.revision + 1)).await?;
    *failures = 0;
    while let Some(batch) = watch.next().await {
        let batch = batch?;
        shared.change(|known| known.view.apply(batch.revision, &batch.events));
    }
    Ok(())
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        change(&mut known);
        known.step += 1;
        let revision = known.view.revision;
        known.reserved.retain(|_, it| match *it {
            Reserved::Pending => true,
            Reserved::DoneAt(at) => at > revision,
            Reserved::Stale => false,
        });
        drop(known);
        self.changes.send_modify(|it| *it += 1);
    }

    /// A job, or when to look again.
    fn pick(self: &Arc<Self>) -> Result<Picked, Option<arco_model::time::Timestamp>> {
        let mut known = self.known();
        match known.view.next(clock::now(), |key| known.reserved.contains_key(key)) {
            Next::Wait(until) => Err(until),
            Next::Claim(entry) => {
                let key = keys::escape(&entry.stored.job.request.key);
                known.reserved.insert(key.clone(), Reserved::Pending);
                let hold = Hold { shared: self.clone(), key, step: known.step, settled: false };
                Ok(Picked { entry: *entry, hold })
            }
        }
    }
}

impl Picked {
    /// What was picked happened at this revision of the store.
    pub(crate) fn done_at(mut self, revision: u64) {
        self.hold.settle(|known| (known.view.revision < revision).then_some(Reserved::DoneAt(revision)));
    }

    /// The store says otherwise than the view did.
    pub(crate) fn stale(mut self) {
        let step = self.hold.step;
        self.hold.settle(|known| (known.step == step).then_some(Reserved::Stale));
    }
}

impl Hold {
    fn settle(&mut self, outcome: impl FnOnce(&Known) -> Option<Reserved>) {
        self.settled = true;
        let mut known = self.shared.known();
        match outcome(&known) {
            Some(reserved) => known.reserved.insert(self.key.clone(), reserved),
            None => known.reserved.remove(&self.key),
        };
        drop(known);
        self.shared.changes.send_modify(|it| *it += 1);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(|_| None);
        }
    }
}
