//! Leading: keeps the lock of a leader alive, and begins and ends with it what only one process may do.
//!
//! What must hold: nobody leads longer than a renewal of the lock that was answered allows, by this process's own clock,
//! whether or not the lock's place answers; the work has ended, or can do no harm any more, before the lock is wanted
//! again. That a process which was paused does no harm is the work of the fence (`store::fence`) and of
//! [`Term::holds`], which is asked before each act outside the stores.

use crate::supervisor::{BoxError, Supervisor};
use arco_store::leader::{LeaderLock, LockError, Taken};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Pause after an attempt that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long tasks of a time that is over may take to end before the lock is wanted again.
const GRACE: Duration = Duration::from_secs(10);

/// How a candidate stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Not known yet, or the lock's place does not answer.
    Unknown,
    /// Somebody else leads.
    Follows(String),
    /// It leads.
    Leads,
}

/// Wants to lead.
pub struct Candidate {
    lock: Arc<dyn LeaderLock>,
    standing: watch::Sender<Standing>,
}

impl Candidate {
    /// A candidate for a lock; it does nothing yet.
    pub fn new(lock: Arc<dyn LeaderLock>) -> Self {
        Self { lock, standing: watch::Sender::new(Standing::Unknown) }
    }

    /// How it stands, now and later.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    fn stands(&self, now: Standing) {
        let changed = |before: &mut Standing| {
            let news = *before != now;
            before.clone_from(&now);
            news
        };
        self.standing.send_if_modified(changed);
    }

    /// Waits until the lock is ours.
    pub async fn campaign(&self) -> Term {
        loop {
            let began = Instant::now();
            match self.lock.take().await {
                Ok(Taken::Ours) => {
                    self.stands(Standing::Leads);
                    return Term::begin(self.lock.clone(), began);
                }
                Ok(Taken::Held { by }) => {
                    self.stands(Standing::Follows(by));
                    self.lock.moved().await;
                }
                Err(error) => {
                    self.stands(Standing::Unknown);
                    tracing::warn!(%error, "nobody knows who leads, it is tried again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// The time in which we lead; cheap to clone.
#[derive(Clone)]
pub struct Term(Arc<Time>);

struct Time {
    lock: Arc<dyn LeaderLock>,
    /// Until when we lead if nothing is renewed any more.
    until: Arc<Mutex<Instant>>,
    lost: CancellationToken,
    keeper: AbortOnDropHandle<()>,
}

/// What of the lock's life is used; the rest is for acts that are just being done.
fn share(life: Duration) -> Duration {
    life * 4 / 5
}

impl Term {
    fn begin(lock: Arc<dyn LeaderLock>, began: Instant) -> Self {
        let until = Arc::new(Mutex::new(began + share(lock.life())));
        let lost = CancellationToken::new();
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep(lock.clone(), until.clone(), lost.clone())));
        Self(Arc::new(Time { lock, until, lost, keeper }))
    }

    /// Cancelled when we do not lead any more.
    pub fn lost(&self) -> &CancellationToken {
        &self.0.lost
    }

    /// Whether we lead at this moment.
    pub fn holds(&self) -> bool {
        !self.0.lost.is_cancelled() && Instant::now() < read(&self.0.until)
    }

    /// Asks the lock itself whether we lead. When that cannot be said the time is over: nobody leads without working.
    pub async fn verify(&self) -> bool {
        let holds = self.holds() && renew(&*self.0.lock, &self.0.until).await.is_ok() && self.holds();
        if !holds {
            self.lose();
        }
        holds
    }

    /// Ends it: a write showed that somebody else leads.
    pub fn lose(&self) {
        self.0.lost.cancel();
    }

    /// Ends it and gives the lock to the next one at once.
    pub async fn end(self) {
        self.0.lost.cancel();
        self.0.keeper.abort();
        if let Err(error) = self.0.lock.give_back().await {
            tracing::debug!(%error, "the leader's lock ends by itself");
        }
    }
}

fn read(until: &Mutex<Instant>) -> Instant {
    *until.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn renew(lock: &dyn LeaderLock, until: &Mutex<Instant>) -> Result<(), LockError> {
    let began = Instant::now();
    lock.renew().await?;
    let mut until = until.lock().unwrap_or_else(PoisonError::into_inner);
    *until = (*until).max(began + share(lock.life()));
    Ok(())
}

async fn keep(lock: Arc<dyn LeaderLock>, until: Arc<Mutex<Instant>>, lost: CancellationToken) {
    let pause = lock.life() / 5;
    loop {
        let end = read(&until);
        tokio::time::sleep_until(end.min(Instant::now() + pause)).await;
        let end = read(&until);
        if lost.is_cancelled() || Instant::now() >= end {
            break;
        }
        match tokio::time::timeout_at(end, renew(&*lock, &until)).await {
            Ok(Ok(())) => {}
            Ok(Err(error @ LockError::Unavailable { .. })) => {
                tracing::warn!(%error, "the leader's lock was not renewed, trying again");
            }
            Ok(Err(LockError::Lost)) | Err(_) => break,
        }
    }
    lost.cancel();
}

/// Leads whenever the lock is ours, until the supervisor's token is cancelled. `work` starts what a leader does under the
/// supervisor that it is given, whose token ends with the time; when it fails, the lock is given back and the campaign
/// begins anew. A task of the work that ends unasked and must not (`OnExit::Shutdown`) stops the process, as everywhere.
pub async fn lead<W, F>(candidate: Candidate, supervisor: Supervisor, work: W) -> Result<(), BoxError>
where
    W: Fn(Term, Supervisor) -> F + Send,
    F: Future<Output = Result<(), BoxError>> + Send,
{
    let stop = supervisor.token().clone();
    loop {
        let Some(term) = stop.run_until_cancelled(candidate.campaign()).await else { return Ok(()) };
        let tasks = supervisor.child();
        let begun = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = term.lost().cancelled() => Ok(()),
            begun = work(term.clone(), tasks.clone()) => begun,
        };
        match &begun {
            Ok(()) => tokio::select! {
                () = stop.cancelled() => {}
                () = term.lost().cancelled() => tracing::warn!("this server does not lead any more"),
                () = tasks.token().cancelled() => stop.cancel(),
            },
            Err(error) => {
                tracing::error!(%error, "leading could not begin, it is tried again");
                term.lose(); // what began of it does nothing while it ends
            }
        }
        if !tasks.shutdown(GRACE).await {
            tracing::warn!("tasks of a leader that is none any more go on; what they write is refused");
        }
        candidate.stands(Standing::Unknown);
        term.end().await;
        if begun.is_err() {
            stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
        }
    }
}

#[cfg(test)]
mod tests;
