//! Output of instances, read from the API server and handed to the keeper of logs.
//!
//! What must hold: each line comes once: a cursor per pod, by the runtime's own timestamps, which begins after the last
//! line that is kept ([`KeptLines`]), so that a process goes on where another one was killed; at most [`FOLLOWED`] pods
//! are followed, so that a large cluster's API server is not held up, and others take the places of those that end. Of
//! several processes the leader reads. Nothing of it where nodes read their files (`kubernetes.node_namespace`). Not here:
//! what a program wrote before it was started again while nobody read.

pub(crate) mod cursor;
pub(crate) mod stream;
mod tries;

use crate::driver::Inner;
use crate::seen::convert::instant;
use crate::seen::{PodSeen, Program};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::logs::LogSink;
use async_trait::async_trait;
use cursor::{Cursor, Line};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stream::{Listener, Source};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most pods whose output is followed at the same time.
const FOLLOWED: usize = 500;
/// How often it is said that more are not.
const SAID: Duration = Duration::from_secs(3600);
/// Streams that are opened at the same time, so that a leader that begins has the API server for its first looks as well.
const OPENING: usize = 8;
/// A stream without a line for so long is opened anew.
const IDLE: Duration = Duration::from_secs(300);

/// How far back lines of an instance are fetched of which none is kept, before this process began to read: longer than the
/// platform is away. What is older was kept, and went because of its age, so it is not fetched again.
const REACH_MS: u64 = 7 * 24 * 3_600_000;
/// Kept lines that are looked at to find where reading goes on: more than a program writes in one millisecond.
const OVERLAP: usize = 256;
/// How long another process that stopped may take until its last lines are kept.
const LEAVING: Duration = Duration::from_secs(4);
/// Instances whose kept lines are asked for at the same time, and how often each is asked for while nobody knows.
const ASKING: usize = 8;
const ASKED: usize = 150;

/// Knows which lines of instances are kept.
#[async_trait]
pub trait KeptLines: Send + Sync {
    /// The last lines of an instance, at most so many, oldest first. The error says why nobody knows now.
    async fn last(&self, component: &ComponentId, instance: &InstanceId, most: usize) -> Result<Vec<LogLine>, String>;
}

/// Which pods are followed, and how far.
pub(crate) struct Logs {
    sink: LogSink,
    kept: Option<Arc<dyn KeptLines>>,
    asking: Semaphore,
    opening: Semaphore,
    /// Other processes may have read before.
    shared: bool,
    state: Mutex<State>,
}

struct State {
    /// By component and uid of the pod.
    reading: BTreeMap<ComponentId, BTreeMap<String, Reading>>,
    /// Of what is older, another process may have read a part.
    began: Timestamp,
    /// Cancelled when another process reads; `None` while one does.
    reads: Option<CancellationToken>,
    /// Components with pods for which there was no place.
    waiting: BTreeSet<ComponentId>,
    /// When it was said last that there are such.
    said: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Which run of the program is followed, counted from 1.
    run: u32,
    /// Whether it still is.
    open: bool,
    /// When the last line was written.
    last: jiff::Timestamp,
}

impl Logs {
    /// `shared`: other processes read as well, this one when [`Logs::read_here`] says so.
    pub(crate) fn new(sink: LogSink, kept: Option<Arc<dyn KeptLines>>, shared: bool) -> Self {
        let reads = (!shared).then(CancellationToken::new);
        let state = Mutex::new(State {
            reading: BTreeMap::new(),
            began: clock::now(),
            reads,
            waiting: BTreeSet::new(),
            said: None,
        });
        let (asking, opening) = (Semaphore::new(ASKING), Semaphore::new(OPENING));
        Self { sink, kept, asking, opening, shared, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this process reads, or another one does.
    pub(crate) fn read_here(inner: &Arc<Inner>, here: bool) {
        {
            let mut state = inner.logs.lock();
            if state.reads.is_some() == here {
                return;
            }
            if let Some(ended) = state.reads.take() {
                ended.cancel();
            }
            state.reads = here.then(CancellationToken::new);
            (state.reading, state.waiting, state.began) = (BTreeMap::new(), BTreeSet::new(), clock::now());
        }
        if here {
            inner.seen().everything().iter().for_each(|it| Self::follow(inner, it));
        }
    }

    /// Follows every pod of a component whose program runs or ran and is not followed yet.
    pub(crate) fn follow(inner: &Arc<Inner>, component: &ComponentId) {
        if !inner.config.node_namespace.is_empty() {
            return; // nodes read it from their files
        }
        let pods: Vec<PodSeen> = inner.seen().with(component, |it| it.instances().cloned().collect());
        let logs = &inner.logs;
        let mut state = logs.lock();
        let State { reading, began, reads: Some(reads), waiting, said } = &mut *state else { return };
        waiting.remove(component);
        let mut open = reading.values().flat_map(BTreeMap::values).filter(|it| it.open).count();
        if pods.is_empty() {
            reading.remove(component);
            return;
        }
        let reading = reading.entry(component.clone()).or_default();
        reading.retain(|uid, _| pods.iter().any(|it| it.uid == *uid));
        for pod in pods {
            let ran = matches!(pod.program, Program::Running(_) | Program::Ended(..));
            let known = reading.get(&pod.uid).copied();
            if !ran || known.is_some_and(|it| it.open || it.run > pod.restarts) {
                continue;
            }
            if open >= FOLLOWED {
                waiting.insert(component.clone());
                continue;
            }
            // Pods older than this process were followed by an earlier one.
            let earlier = (known.is_none() && pod.created < *began).then_some(*began);
            let last = known.map_or_else(|| instant(pod.created), |it| it.last);
            open += 1;
            reading.insert(pod.uid.clone(), Reading { run: pod.restarts + 1, open: true, last });
            let (inner, component, elsewhere) = (inner.clone(), component.clone(), reads.clone());
            inner.clone().tracker.spawn(async move {
                let stop = inner.stop.clone();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = elsewhere.cancelled() => {}
                    () = read(&inner, &component, &pod, last, earlier) => Self::go_on(&inner, &component),
                }
            });
        }
        let left_out = waiting.contains(component) && is_due(said, Instant::now());
        drop(state);
        if left_out {
            let runs = |id: &ComponentId| {
                inner
                    .seen()
                    .with(id, |it| it.instances().filter(|it| matches!(it.program, Program::Running(_))).count())
            };
            let running: usize = inner.seen().everything().iter().map(runs).sum();
            let (not_read, advice) =
                (running.saturating_sub(FOLLOWED).max(1), "let nodes read it (`arco cluster manifest --node-logs`)");
            tracing::warn!(not_read, advice, "output of instances is not read: {FOLLOWED} others are read already");
        }
    }

    /// A pod is not read any more: its program may run again meanwhile, and another pod may wait for the place.
    fn go_on(inner: &Arc<Inner>, component: &ComponentId) {
        Self::follow(inner, component);
        let next = inner.logs.lock().waiting.pop_first();
        if let Some(next) = next {
            Self::follow(inner, &next);
        }
    }

    fn moved(&self, component: &ComponentId, uid: &str, open: bool, last: jiff::Timestamp) {
        if let Some(it) = self.lock().reading.get_mut(component).and_then(|it| it.get_mut(uid)) {
            (it.open, it.last) = (open, last);
        }
    }
}

/// Whether it is time to say again what was said last then; it counts as said.
fn is_due(said: &mut Option<Instant>, now: Instant) -> bool {
    let due = said.is_none_or(|it| now.duration_since(it) >= SAID);
    if due {
        *said = Some(now);
    }
    due
}

/// Where reading begins, and the lines of that millisecond that are kept already.
struct Resume {
    last: jiff::Timestamp,
    at: Timestamp,
    texts: Vec<String>,
}

impl Resume {
    /// `kept`: the last lines that are kept; `reach`: where to begin when there are none.
    fn after(kept: &[LogLine], reach: Timestamp) -> Self {
        let Some(newest) = kept.last() else { return Self { last: instant(reach), at: reach, texts: Vec::new() } };
        let same = kept.iter().rev().take_while(|it| it.at == newest.at);
        let before = jiff::SignedDuration::from_nanos(1);
        let last = instant(newest.at).checked_sub(before).unwrap_or_else(|_| instant(newest.at));
        Self { last, at: newest.at, texts: same.map(|it| it.text.clone()).collect() }
    }

    /// Whether a line is one of those; each counts once.
    fn holds(&mut self, line: &LogLine) -> bool {
        let place = self.texts.iter().position(|it| line.at == self.at && *it == line.text);
        place.map(|it| self.texts.swap_remove(it)).is_some()
    }
}

/// Where to go on with a pod that an earlier process may have read, until `began`.
async fn resume(inner: &Inner, component: &ComponentId, pod: &PodSeen, began: Timestamp) -> Resume {
    let logs = &inner.logs;
    let Some(kept) = &logs.kept else { return Resume::after(&[], began) };
    if logs.shared {
        tokio::time::sleep(LEAVING).await;
    }
    let mut why = String::new();
    for _ in 0..ASKED {
        let asked = match logs.asking.acquire().await {
            Ok(_turn) => kept.last(component, &pod.id, OVERLAP).await,
            Err(closed) => Err(closed.to_string()),
        };
        match asked {
            Ok(mut lines) => {
                lines.retain(|it| it.instance.as_ref() == Some(&pod.id));
                return Resume::after(&lines, pod.created.max(Timestamp(began.0.saturating_sub(REACH_MS))));
            }
            Err(error) => why = error,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tracing::warn!(pod = pod.name, why, "which of its lines are kept is not known: some may be missing");
    Resume::after(&[], began)
}

/// Reads until the program has ended and all of it is read. `earlier`: until when another process may have read.
async fn read(
    inner: &Inner,
    component: &ComponentId,
    pod: &PodSeen,
    last: jiff::Timestamp,
    earlier: Option<Timestamp>,
) {
    let resumed = match earlier {
        Some(began) => resume(inner, component, pod, began).await,
        None => Resume { last, at: pod.created, texts: Vec::new() },
    };
    let (begin, mut cursor) = (resumed.last, Cursor::after(resumed.last));
    let pods = inner.cluster().typed::<Pod>(&pod.namespace);
    let source = Source { pods, pod: &pod.name, idle: IDLE, opening: Some(&inner.logs.opening), again: None };
    let mut keeping = Keeping { inner, component, pod, resumed };
    if !stream::read(&source, &mut cursor, &mut keeping).await {
        tracing::warn!(pod = pod.name, "its output is not read any more: the API server does not find it");
    }
    inner.logs.moved(component, &pod.uid, false, cursor.last().unwrap_or(begin));
}

/// Hands the output of a pod to the keeper of logs.
struct Keeping<'a> {
    inner: &'a Inner,
    component: &'a ComponentId,
    pod: &'a PodSeen,
    resumed: Resume,
}

#[async_trait]
impl Listener for Keeping<'_> {
    async fn take(&mut self, lines: Vec<Line>, cursor: &Cursor) -> bool {
        let Self { inner, component, pod, resumed } = self;
        let of = |Line { at, text }| LogLine { at, instance: Some(pod.id.clone()), origin: LogOrigin::Stdout, text };
        let lines: Vec<LogLine> = lines.into_iter().map(of).filter(|it| !resumed.holds(it)).collect();
        if !lines.is_empty() {
            inner.logs.sink.append(LogStream::Component { id: component.clone() }, lines).await;
        }
        if let Some(last) = cursor.last() {
            inner.logs.moved(component, &pod.uid, true, last);
        }
        true
    }

    fn runs(&self) -> Option<bool> {
        // Nothing when it is gone, or runs anew.
        self.inner.seen().with(self.component, |it| {
            let now = it.pods.get(&self.pod.name).map(|(_, it)| it);
            let same = now.filter(|it| it.uid == self.pod.uid && it.restarts == self.pod.restarts);
            same.map(|it| matches!(it.program, Program::Running(_)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_output_is_not_read_is_said_once_an_hour() {
        let (mut said, begin) = (None, Instant::now());
        let minutes = |it: u64| begin + Duration::from_secs(60 * it);
        let told: Vec<u64> = (0..=130).filter(|it| is_due(&mut said, minutes(*it))).collect();
        assert_eq!(told, [0, 60, 120]);
    }

    #[test]
    fn reading_goes_on_after_the_last_line_that_is_kept() {
        let id = InstanceId::from_parts(1, 1);
        let kept = |lines: &[(u64, &str)]| -> Vec<LogLine> {
            let of = |(at, text): &(u64, &str)| LogLine {
                at: Timestamp(*at),
                instance: Some(id.clone()),
                origin: LogOrigin::Stdout,
                text: (*text).to_owned(),
            };
            lines.iter().map(of).collect()
        };
        let there = kept(&[(1, "a"), (1, "b"), (2, "b"), (2, "b"), (2, "c"), (2, "d"), (3, "b")]);
        for (known, wanted) in [
            (&there[..0], 0),
            (&there[..1], 1),
            (&there[..3], 3), // one of two equal lines of a millisecond
            (&there[..4], 4),
            (&there[..5], 5),
            (&there[..7], 7),
        ] {
            let mut resumed = Resume::after(known, Timestamp(0));
            let mut read = there.clone();
            read.retain(|it| instant(it.at) > resumed.last && !resumed.holds(it));
            assert_eq!(read, there[wanted..], "after {wanted}");
        }
    }
}
