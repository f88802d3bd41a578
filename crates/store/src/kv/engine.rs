//! One writer thread around a [`State`]: it applies what waits, makes it durable together (group commit), then shows it
//! to readers and watchers and answers. Leases end here as well.
//!
//! What must hold: nobody is told of a change, and nobody sees one, that the journal has not kept. When the journal
//! fails, the whole group is taken back and each caller gets the reason.

#[cfg(test)]
mod tests;

use super::state::{Record, State};
use super::{KvError, LeaseId, Range, Txn, TxnResult, Watch};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Most commands of one group.
const GROUP: usize = 512;
/// Most revisions of history that are kept, and how many more may gather before they are forgotten together.
const HISTORY: (u64, u64) = (10_000, 1_000);
/// How long history is kept when there is less of it.
const HISTORY_AGE: Duration = Duration::from_secs(3600);
/// How often the age of history is looked at.
const LOOK: Duration = Duration::from_secs(300);
/// Waking so much too late means that the whole process stood still.
const STILL: Duration = Duration::from_secs(1);
/// Batches that wait for one watcher; beyond, it reads from history at its own pace.
const WATCH_BUFFER: usize = 64;

/// Makes records durable.
pub(super) trait Journal: Send + 'static {
    /// Keeps all of the records or none; when it returns, they survive a power cut.
    fn keep(&mut self, records: &[Record]) -> Result<(), String>;
}

type Reply<T> = oneshot::Sender<Result<T, KvError>>;

enum Command {
    Txn(Txn, Reply<TxnResult>),
    Grant(u64, Reply<LeaseId>),
    Revoke(LeaseId, Reply<()>),
    Compact(u64, Reply<()>),
}

/// The store without its driver's name.
pub(super) struct Engine {
    state: Arc<RwLock<State>>,
    /// `None` only while dropping.
    commands: Option<Sender<Command>>,
    visible: watch::Receiver<u64>,
    writer: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the writer.
    pub(super) fn start(state: State, journal: impl Journal) -> std::io::Result<Self> {
        let (commands, waiting) = channel();
        let (shown, visible) = watch::channel(state.visible());
        let state = Arc::new(RwLock::new(state));
        let writer = Writer { state: state.clone(), journal, shown, marks: Vec::new() };
        let writer = std::thread::Builder::new().name("kv-writer".to_owned()).spawn(move || writer.run(&waiting))?;
        Ok(Self { state, commands: Some(commands), visible, writer: Some(writer) })
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        self.ask("write", |reply| Command::Txn(txn, reply)).await
    }

    pub(super) async fn grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        self.ask("grant a lease", |reply| Command::Grant(ttl_s, reply)).await
    }

    pub(super) fn keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        write(&self.state).keep_alive(lease, Instant::now())
    }

    pub(super) async fn revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        self.ask("revoke a lease", |reply| Command::Revoke(lease, reply)).await
    }

    pub(super) async fn compact(&self, revision: u64) -> Result<(), KvError> {
        self.ask("compact", |reply| Command::Compact(revision, reply)).await
    }

    /// Follows a range; ends when the receiver is dropped or the store is closed.
    pub(super) fn watch(&self, range: Range, from: Option<u64>) -> Watch {
        let (batches, receiver) = mpsc::channel(WATCH_BUFFER);
        let next = from.map_or_else(|| self.read().visible() + 1, |it| it.max(1));
        tokio::spawn(follow(self.state.clone(), self.visible.clone(), range, next, batches));
        Watch { receiver }
    }

    async fn ask<T>(&self, step: &'static str, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, KvError> {
        let closed = || KvError::Unavailable { step, cause: "it is closed".to_owned() };
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(closed)?;
        commands.send(command(reply)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The writer finishes what was accepted, then lets go of the journal; afterwards the file can be opened again.
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}

/// Brings the changes of a range to one watcher.
async fn follow(
    state: Arc<RwLock<State>>,
    mut visible: watch::Receiver<u64>,
    range: Range,
    mut next: u64,
    batches: mpsc::Sender<Result<super::WatchBatch, KvError>>,
) {
    loop {
        let until = *visible.borrow_and_update();
        let found = state.read().unwrap_or_else(PoisonError::into_inner).changes(&range, next);
        match found {
            Err(error) => {
                let _ = batches.send(Err(error)).await;
                return;
            }
            Ok((found, after)) => {
                next = after;
                for batch in found {
                    if batches.send(Ok(batch)).await.is_err() {
                        return;
                    }
                }
            }
        }
        if next <= until {
            continue;
        }
        tokio::select! {
            () = batches.closed() => return,
            changed = visible.changed() => if changed.is_err() { return },
        }
    }
}

/// An answer that waits for the group's commit.
enum Answer {
    Txn(Reply<TxnResult>, Result<TxnResult, KvError>),
    Grant(Reply<LeaseId>, LeaseId),
    Done(Reply<()>, Result<(), KvError>),
}

struct Writer<J> {
    state: Arc<RwLock<State>>,
    journal: J,
    shown: watch::Sender<u64>,
    /// When which revision was the last one, oldest first.
    marks: Vec<(Instant, u64)>,
}

impl<J: Journal> Writer<J> {
    fn run(mut self, waiting: &Receiver<Command>) {
        let mut look = Instant::now() + LOOK;
        loop {
            let begun = Instant::now();
            let until = self.read().next_deadline().map_or(look, |it| it.min(look));
            let first = match waiting.recv_timeout(until.saturating_duration_since(begun)) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let woken = Instant::now();
            if woken.saturating_duration_since(until.max(begun)) > STILL {
                // The process stood still (stopped, starved), and so did those who renew. Since when is not known: it may
                // have been long before the first lease was to end, which would else end now.
                write(&self.state).stood_still(begun, woken);
            }
            let group: Vec<Command> = first.into_iter().chain(waiting.try_iter().take(GROUP)).collect();
            // After the last command came: a lease has its full time from its call on.
            let now = Instant::now();
            self.group(group, now);
            if now >= look {
                look = now + LOOK;
                self.forget_by_age(now);
            }
            self.forget_by_count();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies, keeps, shows, answers.
    fn group(&mut self, group: Vec<Command>, now: Instant) {
        let (mut records, mut answers, mut compactions) = (Vec::new(), Vec::new(), Vec::new());
        let leases = {
            let mut state = write(&self.state);
            let leases = state.lease_marks();
            for lease in state.expired(now) {
                records.extend(state.revoke(lease));
            }
            for command in group {
                match command {
                    Command::Txn(txn, reply) => {
                        let outcome = state.apply(&txn).map(|(result, record)| {
                            records.extend(record);
                            result
                        });
                        answers.push(Answer::Txn(reply, outcome));
                    }
                    Command::Grant(ttl_s, reply) => {
                        let ttl_s = ttl_s.clamp(1, 9_000_000_000);
                        let mut lease = fresh_lease();
                        while !state.grant(lease, ttl_s, now) {
                            lease = fresh_lease();
                        }
                        records.push(Record::Granted { lease, ttl_s });
                        answers.push(Answer::Grant(reply, lease));
                    }
                    Command::Revoke(lease, reply) => {
                        records.extend(state.revoke(lease));
                        answers.push(Answer::Done(reply, Ok(())));
                    }
                    Command::Compact(revision, reply) => compactions.push((revision, reply)),
                }
            }
            leases
        };
        let kept = if records.is_empty() { Ok(()) } else { self.journal.keep(&records) };
        match &kept {
            Ok(()) => {
                let revision = write(&self.state).publish();
                self.shown.send_if_modified(|it| std::mem::replace(it, revision) != revision);
            }
            Err(cause) => {
                tracing::error!(cause, "the coordination store cannot write; what waited is refused");
                let mut state = write(&self.state);
                state.roll_back(leases);
                // Leases that just ended are still there; the next attempt to end them is a second away.
                state.postpone_deadlines(Duration::from_secs(1));
            }
        }
        for answer in answers {
            answer.send(&kept);
        }
        for (revision, reply) in compactions {
            let outcome = self.compact(revision);
            let _ = reply.send(outcome);
        }
    }

    fn compact(&mut self, oldest: u64) -> Result<(), KvError> {
        let plan = self.read().plan_compaction(oldest)?;
        self.journal.keep(&[plan]).map_err(|cause| KvError::Unavailable { step: "compact", cause })?;
        write(&self.state).compact(oldest);
        Ok(())
    }

    fn forget_by_count(&mut self) {
        let (visible, history) = {
            let state = self.read();
            (state.visible(), state.history())
        };
        if history > HISTORY.0 + HISTORY.1 {
            self.forget(visible - HISTORY.0);
        }
    }

    fn forget_by_age(&mut self, now: Instant) {
        let visible = self.read().visible();
        let old = self.marks.iter().take_while(|(at, _)| now.duration_since(*at) >= HISTORY_AGE).count();
        let oldest = self.marks.drain(..old).next_back();
        if self.marks.last().is_none_or(|(_, it)| *it != visible) {
            self.marks.push((now, visible));
        }
        if let Some((_, revision)) = oldest {
            self.forget(revision);
        }
    }

    fn forget(&mut self, oldest: u64) {
        match self.compact(oldest) {
            // Somebody asked for a later one already.
            Ok(()) | Err(KvError::Compacted { .. }) => {}
            Err(error) => tracing::warn!(error = %error, "old history stays for now"),
        }
    }
}

impl Answer {
    fn send(self, kept: &Result<(), String>) {
        fn outcome<T>(step: &'static str, kept: &Result<(), String>, done: Result<T, KvError>) -> Result<T, KvError> {
            kept.as_ref().map_err(|cause| KvError::Unavailable { step, cause: cause.clone() }).and(done)
        }
        // A caller that went away does not want to know.
        match self {
            Answer::Txn(reply, done) => drop(reply.send(outcome("write", kept, done))),
            Answer::Grant(reply, lease) => drop(reply.send(outcome("grant a lease", kept, Ok(lease)))),
            Answer::Done(reply, done) => drop(reply.send(outcome("revoke a lease", kept, done))),
        }
    }
}

fn fresh_lease() -> LeaseId {
    (crate::clock::random() >> 1) as LeaseId
}
