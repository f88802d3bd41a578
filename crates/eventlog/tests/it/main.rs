//! The logs as others use them: lines in through the sink, lines out by query, follower and HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod follow;
mod http;
mod keep;
mod query;
mod rate;

use arco_config::EventlogConfig;
use arco_daemon::CancellationToken;
use arco_eventlog::{Eventlog, EventlogError, Filter, Limits};
use arco_model::id::{ComponentId, InstanceId, OperationId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::time::Timestamp;
use arco_store::logs::{LogBatch, LogSink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(180);

/// Logs that run.
struct Running {
    log: Eventlog,
    sink: LogSink,
    token: CancellationToken,
    task: JoinHandle<Result<(), EventlogError>>,
}

impl Running {
    fn start(folder: &Path, limits: Limits) -> Self {
        let log = Eventlog::open_with(limits, folder).unwrap();
        let (sink, receiver) = LogSink::channel(64);
        let token = CancellationToken::new();
        let (running, stop) = (log.clone(), token.clone());
        let task = tokio::spawn(async move { running.run(receiver, stop).await });
        Self { log, sink, token, task }
    }

    async fn stop(self) {
        self.token.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }

    async fn texts(&self, stream: &LogStream, filter: Filter) -> Vec<String> {
        self.log.query(stream, &filter).await.unwrap().lines.into_iter().map(|it| it.1.text).collect()
    }
}

fn limits() -> Limits {
    Limits {
        stream_rate: 1 << 30,
        stream_burst: 1 << 30,
        waiting_bytes: 1 << 30,
        free_bytes: 0,
        ..Limits::from(&EventlogConfig::default())
    }
}

fn component(number: u64) -> LogStream {
    LogStream::Component { id: ComponentId::from_parts(1, number) }
}

fn operation(number: u64) -> LogStream {
    LogStream::Operation { id: OperationId::from_parts(1, number) }
}

fn instance(number: u64) -> InstanceId {
    InstanceId::from_parts(2, number)
}

fn line(at: u64, text: impl Into<String>) -> LogLine {
    LogLine { at: Timestamp(at), instance: None, origin: LogOrigin::Stdout, text: text.into() }
}

fn lines(range: std::ops::Range<u64>) -> Vec<LogLine> {
    range.map(|it| line(1000 + it, format!("line {it}"))).collect()
}

/// The files with this ending, below a folder.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // What is cleared away meanwhile is not there.
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|it| it == ending) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}
