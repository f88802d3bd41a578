//! What passes through each host just now: requests and errors per second, and how long they take.
//!
//! Every few seconds the counters are noted; a question compares them with what they were five to ten seconds ago. Hosts
//! that nobody ever asked for take no memory. Times are those of the components that a host leads to.

use crate::engine::Shared;
use crate::metrics::Times;
use crate::snapshot::Snapshot;
use arco_daemon::{BoxError, CancellationToken};
use arco_model::traffic::HostRates;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often counters are noted.
const PERIOD: Duration = Duration::from_secs(5);
/// Notes that are kept: the oldest is what is compared with.
const NOTES: usize = 2;

/// What one gateway saw of a host in the last seconds; what several saw can be added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostSeen {
    /// Answered requests per second.
    pub requests_per_s: f64,
    /// Of these, answered with 500 or above, per second.
    pub errors_per_s: f64,
    /// Requests by how long they took, in the buckets of [`Times`].
    #[serde(default)]
    pub times: Vec<u64>,
}

impl HostSeen {
    /// Adds what another gateway saw of the same host.
    pub fn add(&mut self, other: &Self) {
        self.requests_per_s += other.requests_per_s;
        self.errors_per_s += other.errors_per_s;
        self.times.resize(self.times.len().max(other.times.len()).min(Times::BUCKETS), 0);
        self.times.iter_mut().zip(&other.times).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
    }

    /// As people are told.
    pub fn rates(&self) -> HostRates {
        HostRates {
            requests_per_s: self.requests_per_s,
            errors_per_s: self.errors_per_s,
            p50_ms: Times::quantile_ms(&self.times, 0.5),
            p99_ms: Times::quantile_ms(&self.times, 0.99),
        }
    }
}

/// Answers and server errors of a host since the start.
type Answers = (u64, u64);

struct Note {
    at: Instant,
    hosts: HashMap<Arc<str>, Answers>,
    times: HashMap<Arc<str>, Vec<u64>>,
}

impl Note {
    fn take(snapshot: &Snapshot) -> Self {
        let hosts = snapshot.hosts.iter().filter_map(|host| {
            let answers = host.metrics.answers();
            (answers.0 > 0).then(|| (Arc::clone(host.name()), answers))
        });
        let times = snapshot.upstreams.iter().filter_map(|(name, upstream)| {
            let counts = upstream.metrics.times.counts();
            counts.iter().any(|it| *it > 0).then(|| (Arc::clone(name), counts))
        });
        Self { at: Instant::now(), hosts: hosts.collect(), times: times.collect() }
    }
}

/// See the module.
pub struct Rates {
    shared: Arc<Shared>,
    notes: Mutex<VecDeque<Note>>,
}

impl Rates {
    /// Nothing is noted yet but the present.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        let first = Note::take(&shared.snapshot.load());
        Arc::new(Self { shared, notes: Mutex::new([first].into()) })
    }

    /// Notes the counters until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), BoxError> {
        while tokio::time::timeout(PERIOD, stop.cancelled()).await.is_err() {
            self.note();
        }
        Ok(())
    }

    fn note(&self) {
        let note = Note::take(&self.shared.snapshot.load());
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push_back(note);
        while notes.len() > NOTES {
            notes.pop_front();
        }
    }

    /// What was seen of `hosts`; those without an entry, or without counters of their own, are left out.
    pub fn of(&self, hosts: &[String]) -> BTreeMap<String, HostSeen> {
        let snapshot = self.shared.snapshot.load();
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = notes.front() else { return BTreeMap::new() };
        let seconds = before.at.elapsed().as_secs_f64().max(0.001);
        let rates = hosts.iter().filter_map(|name| {
            let host = snapshot.hosts.get(name.as_str()).filter(|it| it.metrics.is_own())?;
            let now = host.metrics.answers();
            let then = before.hosts.get(name.as_str()).copied().unwrap_or_default();
            let mut times = vec![0; Times::BUCKETS];
            for upstream in host.rules().iter().flat_map(|it| &it.targets) {
                let Some(found) = snapshot.upstreams.get(&upstream.0) else { continue };
                let then = before.times.get(&upstream.0);
                for (at, count) in found.metrics.times.counts().into_iter().enumerate() {
                    times[at] += count.saturating_sub(then.map_or(0, |it| it[at]));
                }
            }
            let per_s = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
            let (requests_per_s, errors_per_s) = (per_s(now.0, then.0), per_s(now.1, then.1));
            Some((name.clone(), HostSeen { requests_per_s, errors_per_s, times }))
        });
        rates.collect()
    }
}
