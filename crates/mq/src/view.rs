//! What is known of a topic, and which job comes next. Pure: it is told changes and the time.
//!
//! Order: a key's jobs by the revision that made them. A job that was begun holds its key until it is done, also while
//! it waits for its next attempt; one that was never begun and is not due yet holds back nobody.

use crate::QueueError;
use crate::keys::{self, Part, Stored};
use arco_model::id::JobId;
use arco_model::job::Topic;
use arco_model::time::Timestamp;
use arco_store::kv::{Event, KeyValue};
use std::collections::{BTreeMap, HashMap, HashSet};

#[cfg(test)]
mod tests;

/// A job and where it stands in the store.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub stored: Stored,
    pub mod_revision: u64,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Give this job out.
    Claim(Box<Entry>),
    /// Nothing is due before this time, or before something changes.
    Wait(Option<Timestamp>),
}

/// A topic as of `revision`.
#[derive(Debug)]
pub(crate) struct View {
    topic: Topic,
    /// Everything up to here is in.
    pub revision: u64,
    /// Escaped key → (revision that made the job → job).
    jobs: HashMap<String, BTreeMap<u64, Entry>>,
    /// Job id → (escaped key, revision that made it).
    places: HashMap<JobId, (String, u64)>,
    /// Keys that are with a worker.
    claims: HashSet<String>,
}

impl View {
    pub(crate) fn new(topic: Topic) -> Self {
        Self { topic, revision: 0, jobs: HashMap::new(), places: HashMap::new(), claims: HashSet::new() }
    }

    /// The view of a whole listing.
    pub(crate) fn of(topic: Topic, items: &[KeyValue], revision: u64) -> Self {
        let mut view = Self::new(topic);
        items.iter().for_each(|it| view.put(it));
        view.revision = revision;
        view
    }

    /// Takes in the changes of one revision.
    pub(crate) fn apply(&mut self, revision: u64, events: &[Event]) {
        for event in events {
            match event {
                Event::Put(kv) => self.put(kv),
                Event::Delete { key, .. } => self.delete(key),
            }
        }
        self.revision = self.revision.max(revision);
    }

    fn put(&mut self, kv: &KeyValue) {
        match keys::parse(self.topic, &kv.key) {
            Part::Claim(key) => {
                self.claims.insert(key.to_owned());
            }
            Part::Job(_) => {
                let stored: Result<Stored, QueueError> = keys::decode(&kv.key, &kv.value);
                match stored {
                    Ok(stored) => {
                        let key = keys::escape(&stored.job.request.key);
                        self.places.insert(stored.job.id.clone(), (key.clone(), kv.create_revision));
                        let entry = Entry { stored, mod_revision: kv.mod_revision };
                        self.jobs.entry(key).or_default().insert(kv.create_revision, entry);
                    }
                    // Left where it is: a newer version may be able to read it.
                    Err(error) => tracing::error!(error = %error, "a job cannot be read and is passed over"),
                }
            }
            Part::Other => {}
        }
    }

    fn delete(&mut self, key: &[u8]) {
        match keys::parse(self.topic, key) {
            Part::Claim(key) => {
                self.claims.remove(key);
            }
            Part::Job(id) => {
                let place = id.parse::<JobId>().ok().and_then(|it| self.places.remove(&it));
                if let Some((key, made)) = place
                    && let Some(queue) = self.jobs.get_mut(&key)
                {
                    queue.remove(&made);
                    if queue.is_empty() {
                        self.jobs.remove(&key);
                    }
                }
            }
            Part::Other => {}
        }
    }

    /// The job to give out now. `reserved` are (escaped) keys that a call is just claiming.
    pub(crate) fn next(&self, now: Timestamp, reserved: impl Fn(&str) -> bool) -> Next {
        let mut best: Option<(u64, &Entry)> = None;
        let mut wake: Option<Timestamp> = None;
        for (key, queue) in &self.jobs {
            if self.claims.contains(key) || reserved(key) {
                continue;
            }
            let begun = queue.iter().find(|(_, it)| it.stored.job.attempts > 0);
            let head = begun.or_else(|| queue.iter().find(|(_, it)| it.stored.job.not_before <= now));
            match head {
                Some((made, entry)) if entry.stored.job.not_before <= now => {
                    if best.is_none_or(|(other, _)| *made < other) {
                        best = Some((*made, entry));
                    }
                }
                Some((_, entry)) => wake = earlier(wake, entry.stored.job.not_before),
                None => {
                    let first = queue.values().map(|it| it.stored.job.not_before).min();
                    wake = first.map_or(wake, |it| earlier(wake, it));
                }
            }
        }
        best.map_or(Next::Wait(wake), |(_, entry)| Next::Claim(Box::new(entry.clone())))
    }

    /// Jobs that nobody has, those that workers have.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let running = self.claims.iter().filter(|it| self.jobs.contains_key(*it)).count() as u64;
        ((self.places.len() as u64).saturating_sub(running), running)
    }
}

fn earlier(a: Option<Timestamp>, b: Timestamp) -> Option<Timestamp> {
    Some(a.map_or(b, |it| it.min(b)))
}
