//! The loop that takes batches, and starts the rounds of writing and of clearing away beside it.
//!
//! It never waits for the disk, but when it meets a stream for the first time. Nothing happens while nothing comes.

use crate::stream::StreamLog;
use crate::write::{OpenFiles, Round, flush};
use crate::{Eventlog, EventlogError, blocking};
use arco_daemon::CancellationToken;
use arco_model::log::LogStream;
use arco_store::logs::LogBatch;
use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// Pause after a write that failed, and before dropped lines are said again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often age and sizes are looked at when nothing is written.
const CLEAR_EVERY: Duration = Duration::from_secs(600);
/// The first look, when the start is over.
const CLEAR_FIRST: Duration = Duration::from_secs(15);

/// Streams that have lines for the disk.
#[derive(Default)]
struct Dirty {
    streams: HashMap<LogStream, Arc<StreamLog>>,
    bytes: usize,
    due: Option<Instant>,
}

impl Dirty {
    fn due_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |it| it.min(at)));
    }
}

impl Eventlog {
    /// Takes lines until `token` is cancelled, then what was sent before, and ends when all of it is on disk.
    /// Followers end with it.
    pub async fn run(
        &self,
        mut receiver: mpsc::Receiver<LogBatch>,
        token: CancellationToken,
    ) -> Result<(), EventlogError> {
        let _closing = self.0.closing.clone().drop_guard();
        let mut dirty = Dirty::default();
        let mut files = Some(OpenFiles::default());
        let mut flushing: Option<JoinHandle<(Round, OpenFiles)>> = None;
        let mut clearing: Option<JoinHandle<()>> = None;
        let mut clear_tick = tokio::time::interval_at(Instant::now() + CLEAR_FIRST, CLEAR_EVERY);
        clear_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut open, mut closed) = (true, false);
        loop {
            if !open && receiver.is_empty() && flushing.is_none() {
                break;
            }
            tokio::select! {
                () = token.cancelled(), if open => {
                    receiver.close();
                    open = false;
                }
                batch = receiver.recv(), if open || !receiver.is_empty() => match batch {
                    Some(batch) => self.take(batch, &mut dirty).await,
                    None => open = false,
                },
                () = at(dirty.due), if flushing.is_none() => {
                    let streams = std::mem::take(&mut dirty.streams).into_values().collect();
                    (dirty.bytes, dirty.due) = (0, None);
                    let (inner, mut files) = (self.0.clone(), files.take().unwrap_or_default());
                    flushing = Some(tokio::task::spawn_blocking(move || (flush(&inner, streams, &mut files), files)));
                }
                ended = joined(&mut flushing) => {
                    flushing = None;
                    let Ok((round, returned)) = ended else { continue };
                    files = Some(returned);
                    for stream in round.again {
                        dirty.streams.insert(stream.stream.clone(), stream);
                        dirty.due_by(Instant::now() + AGAIN_AFTER);
                    }
                    closed |= round.closed;
                    if closed && clearing.is_none() {
                        closed = false;
                        clearing = Some(self.clear());
                    }
                }
                _ = joined(&mut clearing) => clearing = closed.then(|| {
                    closed = false;
                    self.clear()
                }),
                _ = clear_tick.tick() => if clearing.is_none() {
                    clearing = Some(self.clear());
                }
            }
        }
        let streams: Vec<_> = dirty.streams.into_values().collect();
        let (inner, mut files) = (self.0.clone(), files.unwrap_or_default());
        blocking(move || Ok(flush(&inner, streams, &mut files))).await?;
        if let Some(clearing) = clearing {
            let _ = clearing.await;
        }
        Ok(())
    }

    async fn take(&self, batch: LogBatch, dirty: &mut Dirty) {
        let stream = self.stream(&batch.stream);
        if !stream.is_loaded() {
            let loading = stream.clone();
            if let Err(error) = blocking(move || loading.load()).await {
                tracing::error!(error = %error, "a log cannot be opened; its lines are dropped");
                self.0.metrics.dropped_lines.inc_by(batch.lines.len() as u64);
                return;
            }
        }
        // Its sender looks what is kept before it says these lines again.
        if batch.is_abandoned() {
            return;
        }
        let now = Instant::now();
        let after =
            if batch.written.is_some() { self.0.limits.flush_acknowledged_after } else { self.0.limits.flush_after };
        let low = self.0.disk_low.load(Ordering::Relaxed);
        let done = stream.append(&batch.lines, batch.written, &self.0.limits, low, arco_store::clock::now());
        self.0.metrics.lines.inc_by(done.lines);
        self.0.metrics.bytes.inc_by(done.bytes);
        self.0.metrics.dropped_lines.inc_by(done.dropped);
        dirty.streams.entry(batch.stream).or_insert(stream);
        dirty.bytes += done.bytes as usize;
        dirty.due_by(if dirty.bytes >= self.0.limits.flush_bytes { now } else { now + after });
    }

    fn clear(&self) -> JoinHandle<()> {
        let log = self.clone();
        tokio::task::spawn_blocking(move || log.clear_away())
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => pending().await,
    }
}

async fn joined<T>(handle: &mut Option<JoinHandle<T>>) -> <JoinHandle<T> as Future>::Output {
    match handle {
        Some(handle) => handle.await,
        None => pending().await,
    }
}
