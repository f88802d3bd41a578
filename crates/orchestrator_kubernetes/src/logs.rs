//! Output of instances, read from the API server and handed to the keeper of logs.
//!
//! What must hold: while this process runs each line comes once (a cursor per pod, by the runtime's own timestamps); at
//! most [`FOLLOWED`] pods are followed, so that a large cluster's API server is not held up: beyond that the nodes
//! themselves must be read. What was written while no server ran is not fetched. Of several processes the leader reads.

use crate::driver::Inner;
use crate::seen::{PodSeen, Program};
use crate::{lines, names};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::logs::LogSink;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff;
use kube::api::LogParams;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::sync::CancellationToken;

/// Most pods whose output is followed at the same time.
const FOLLOWED: usize = 500;
/// After so many connections without a line, one after another, it is given up until the program runs again.
const FAILURES: u64 = 20;
/// Most lines that are handed over together.
const BATCH: usize = 256;

/// Which pods are followed, and how far.
pub(crate) struct Logs {
    sink: LogSink,
    state: Mutex<State>,
}

struct State {
    /// By component and uid of the pod.
    cursors: BTreeMap<ComponentId, BTreeMap<String, Cursor>>,
    /// What is older was read by another process.
    began: Timestamp,
    /// Cancelled when another process reads; `None` while one does.
    reads: Option<CancellationToken>,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// Which run of the program is followed, counted from 1.
    run: u32,
    /// Whether it still is.
    open: bool,
    /// When the last line was written.
    last: jiff::Timestamp,
}

impl Logs {
    /// `reads`: whether this process is the one that reads.
    pub(crate) fn new(sink: LogSink, reads: bool) -> Self {
        let reads = reads.then(CancellationToken::new);
        Self { sink, state: Mutex::new(State { cursors: BTreeMap::new(), began: clock::now(), reads }) }
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
            (state.cursors, state.began) = (BTreeMap::new(), clock::now());
        }
        if here {
            inner.seen().everything().iter().for_each(|it| Self::follow(inner, it));
        }
    }

    /// Follows every pod of a component whose program runs or ran and is not followed yet.
    pub(crate) fn follow(inner: &Arc<Inner>, component: &ComponentId) {
        let pods: Vec<PodSeen> = inner.seen().with(component, |it| it.instances().cloned().collect());
        let logs = &inner.logs;
        let mut state = logs.lock();
        let State { cursors, began, reads: Some(reads) } = &mut *state else { return };
        let mut open = cursors.values().flat_map(BTreeMap::values).filter(|it| it.open).count();
        if pods.is_empty() {
            cursors.remove(component);
            return;
        }
        let cursors = cursors.entry(component.clone()).or_default();
        cursors.retain(|uid, _| pods.iter().any(|it| it.uid == *uid));
        for pod in pods {
            let ran = matches!(pod.program, Program::Running(_) | Program::Ended(..));
            let known = cursors.get(&pod.uid).copied();
            if !ran || known.is_some_and(|it| it.open || it.run > pod.restarts) {
                continue;
            }
            if open >= FOLLOWED {
                tracing::warn!(pod = pod.name, "its output is not read: {FOLLOWED} others are read already");
                continue;
            }
            // Pods older than this process were followed by an earlier one.
            let from = if pod.created < *began { *began } else { pod.created };
            let from = jiff::Timestamp::from_millisecond(i64::try_from(from.0).unwrap_or_default()).unwrap_or_default();
            let last = known.map_or(from, |it| it.last);
            open += 1;
            cursors.insert(pod.uid.clone(), Cursor { run: pod.restarts + 1, open: true, last });
            let (inner, component, elsewhere) = (inner.clone(), component.clone(), reads.clone());
            inner.clone().tracker.spawn(async move {
                let stop = inner.stop.clone();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = elsewhere.cancelled() => {}
                    () = read(&inner, &component, &pod, last) => {}
                }
            });
        }
    }

    fn moved(&self, component: &ComponentId, uid: &str, open: bool, last: jiff::Timestamp) {
        if let Some(it) = self.lock().cursors.get_mut(component).and_then(|it| it.get_mut(uid)) {
            (it.open, it.last) = (open, last);
        }
    }
}

/// Reads until the program has ended; a cut connection is made again.
async fn read(inner: &Inner, component: &ComponentId, pod: &PodSeen, mut last: jiff::Timestamp) {
    let mut failures = 0;
    while failures < FAILURES {
        let before = last;
        match follow(inner, component, pod, &mut last).await {
            Ok(()) if last > before => failures = 0,
            Ok(()) => failures += 1,
            Err(error) => {
                failures += 1;
                let error = crate::cluster::words(&error);
                tracing::debug!(pod = pod.name, error, "its output cannot be read now");
            }
        }
        let runs = inner.seen().with(component, |it| {
            let now = it.pods.get(&pod.name).map(|(_, it)| it);
            now.is_some_and(|it| {
                it.uid == pod.uid && it.restarts == pod.restarts && matches!(it.program, Program::Running(_))
            })
        });
        if !runs {
            break;
        }
        tokio::time::sleep(Duration::from_secs(failures)).await;
    }
    inner.logs.moved(component, &pod.uid, false, last);
}

/// Hands over what one connection says; `last` moves with it.
async fn follow(
    inner: &Inner,
    component: &ComponentId,
    pod: &PodSeen,
    last: &mut jiff::Timestamp,
) -> Result<(), kube::Error> {
    let how = LogParams {
        follow: true,
        timestamps: true,
        since_time: Some(*last),
        container: Some(names::CONTAINER.to_owned()),
        ..LogParams::default()
    };
    let from = inner.cluster().typed::<Pod>(&pod.namespace).log_stream(&pod.name, &how).await?;
    let mut lines = Box::pin(lines::of(from.compat()).ready_chunks(BATCH));
    while let Some(chunk) = lines.next().await {
        let mut batch = Vec::with_capacity(chunk.len());
        for text in chunk {
            // `since_time` counts whole seconds: lines up to the cursor came before.
            if let Some((at, line)) = line(&text, &pod.id)
                && at > *last
            {
                *last = at;
                batch.push(line);
            }
        }
        if !batch.is_empty() {
            inner.logs.sink.append(LogStream::Component { id: component.clone() }, batch).await;
            inner.logs.moved(component, &pod.uid, true, *last);
        }
    }
    Ok(())
}

/// A line as the API server gives it: time, space, text.
fn line(text: &str, instance: &InstanceId) -> Option<(jiff::Timestamp, LogLine)> {
    let (time, text) = text.split_once(' ')?;
    let at: jiff::Timestamp = time.parse().ok()?;
    let line = LogLine {
        at: Timestamp(u64::try_from(at.as_millisecond()).unwrap_or_default()),
        instance: Some(instance.clone()),
        origin: LogOrigin::Stdout,
        text: text.to_owned(),
    };
    Some((at, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_the_runtimes_time() {
        let id = InstanceId::from_parts(1, 1);
        let (at, line) = line("2026-01-31T09:05:00.250999Z hello world", &id).unwrap();
        assert_eq!((line.at.0, line.text.as_str()), (1_769_850_300_250, "hello world"));
        assert!(at > "2026-01-31T09:05:00.250Z".parse().unwrap());
        assert!(super::line("no time", &id).is_none());
    }
}
