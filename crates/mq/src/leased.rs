//! A job in a worker's hands, and the four ways to give it back.

use crate::keys::{self, Claim, Stored};
use crate::queue::{DeadJob, Inner, delete, put, store};
use crate::session::Live;
use crate::topic::Picked;
use crate::view::Entry;
use crate::{MAX_FAILURES, QueueError};
use arco_model::job::{Job, Topic};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::kv::{Compare, KeyValue, KvError, Operation, Range, Txn};
use std::sync::Arc;
use std::time::Duration;

/// Pause before a store that does not say what became of a claim is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// What became of a job that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is given out again, not before this time.
    Retried(Timestamp),
    /// It failed too often and lies with the dead letters.
    Dead,
}

/// A job that is this worker's alone until it is given back. Dropping it without a word (a panic, a cancelled task)
/// gives it out again after a pause.
pub struct Leased {
    inner: Arc<Inner>,
    session: Arc<Live>,
    stored: Stored,
    claim_revision: u64,
    settled: bool,
}

impl Leased {
    /// Takes what was picked; `None` when somebody was faster. The claim is finished also when the caller goes away,
    /// and then given back at once.
    pub(crate) async fn claim(
        inner: &Arc<Inner>,
        topic: Topic,
        picked: Picked,
        session: Arc<Live>,
        worker: &str,
    ) -> Result<Option<Leased>, QueueError> {
        let (inner, worker) = (inner.clone(), worker.to_owned());
        let task = tokio::spawn(async move { claim(inner, topic, picked, session, worker).await });
        // The task neither panics nor is aborted but when the runtime ends.
        task.await.unwrap_or(Ok(None))
    }

    /// The job.
    pub fn job(&self) -> &Job {
        &self.stored.job
    }

    /// Waits until the job is lost (the process could not renew its lease); the worker should then stop.
    pub async fn lost(&self) {
        self.session.lost.cancelled().await;
    }

    /// Whether the job is lost.
    pub fn is_lost(&self) -> bool {
        self.session.lost.is_cancelled()
    }

    /// Done: the job is gone.
    pub async fn ack(mut self) -> Result<(), QueueError> {
        let steps = self.removal();
        self.settle("acknowledge a job", steps).await
    }

    /// Failed: to be tried again after `delay`, by default 1 s doubled with each failure up to 60 s; after
    /// [`MAX_FAILURES`] failures it is dead-lettered instead.
    pub async fn retry(mut self, reason: impl Into<String>, delay: Option<Duration>) -> Result<Fate, QueueError> {
        let reason = reason.into();
        self.stored.failures += 1;
        self.stored.job.last_error = Some(reason.clone());
        if self.stored.failures >= MAX_FAILURES {
            let steps = self.burial(reason)?;
            return self.settle("dead-letter a job", steps).await.map(|()| Fate::Dead);
        }
        let delay = delay.unwrap_or_else(|| backoff(self.stored.failures));
        let at = clock::now().plus_ms(delay.as_millis() as u64);
        let steps = self.again(at)?;
        self.settle("put a job back", steps).await.map(|()| Fate::Retried(at))
    }

    /// Not failed, but not to be done now: given out again after `delay`, counted as no failure. It keeps its place and
    /// its key.
    pub async fn postpone(mut self, delay: Duration) -> Result<(), QueueError> {
        let steps = self.again(clock::now().plus_ms(delay.as_millis() as u64))?;
        self.settle("postpone a job", steps).await
    }

    /// Failed for good: to the dead letters.
    pub async fn dead(mut self, reason: impl Into<String>) -> Result<(), QueueError> {
        let reason = reason.into();
        self.stored.job.last_error = Some(reason.clone());
        let steps = self.burial(reason)?;
        self.settle("dead-letter a job", steps).await
    }

    fn topic(&self) -> Topic {
        self.stored.job.request.topic
    }

    fn claim_key(&self) -> String {
        keys::claim(self.topic(), &self.stored.job.request.key)
    }

    fn removal(&self) -> Vec<Operation> {
        std::iter::once(delete(&self.claim_key())).chain(remove_job(&self.stored)).collect()
    }

    fn burial(&self, reason: String) -> Result<Vec<Operation>, QueueError> {
        let mut steps = self.removal();
        steps.push(bury(&self.stored, reason)?);
        Ok(steps)
    }

    fn again(&mut self, at: Timestamp) -> Result<Vec<Operation>, QueueError> {
        self.stored.running = false;
        self.stored.job.not_before = at;
        let key = keys::job(self.topic(), &self.stored.job.id);
        Ok(vec![delete(&self.claim_key()), put(&key, keys::encode(&key, &self.stored)?)])
    }

    /// Does the steps if the claim is still ours.
    async fn settle(&mut self, step: &'static str, success: Vec<Operation>) -> Result<(), QueueError> {
        let compare = vec![Compare::ModRevision(self.claim_key().into_bytes(), self.claim_revision)];
        let done = self.inner.kv.txn(Txn { compare, success, failure: Vec::new() }).await.map_err(store(step))?;
        self.settled = true;
        if done.succeeded { Ok(()) } else { Err(QueueError::Lost(self.stored.job.id.clone())) }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if self.settled || self.is_lost() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut rest = Leased {
            inner: self.inner.clone(),
            session: self.session.clone(),
            stored: self.stored.clone(),
            claim_revision: self.claim_revision,
            settled: true,
        };
        let panicked = std::thread::panicking();
        runtime.spawn(async move {
            rest.stored.losses += 1;
            let reason = if panicked { "the worker panicked" } else { "the worker went away" };
            rest.stored.job.last_error = Some(reason.to_owned());
            // Long enough that a handler with a bug does not spin, short enough for the next start of the process.
            let pause = backoff(rest.stored.losses).min(Duration::from_secs(5));
            let at = clock::now().plus_ms(pause.as_millis() as u64);
            // A store that cannot write now (a full disk) must not leave the job claimed for as long as we live.
            loop {
                let outcome = match rest.again(at) {
                    Ok(steps) => rest.settle("put back an abandoned job", steps).await,
                    Err(error) => Err(error),
                };
                match outcome {
                    Err(QueueError::Store { step, source }) if !rest.is_lost() => {
                        tracing::warn!(job = %rest.stored.job.id, step, error = %source, "trying again in 2 s");
                        tokio::time::sleep(Duration::from_secs(2)).await;
                    }
                    Err(error) => {
                        tracing::warn!(job = %rest.stored.job.id, error = %error, "an abandoned job was not put back");
                        return;
                    }
                    Ok(()) => return,
                }
            }
        });
    }
}

async fn claim(
    inner: Arc<Inner>,
    topic: Topic,
    picked: Picked,
    session: Arc<Live>,
    worker: String,
) -> Result<Option<Leased>, QueueError> {
    let mut stored = picked.entry.stored.clone();
    if stored.running {
        stored.losses += 1;
    }
    stored.running = true;
    stored.job.attempts += 1;
    let job_key = keys::job(topic, &stored.job.id);
    let claim_key = keys::claim(topic, &stored.job.request.key);
    let claim = Claim { id: stored.job.id.clone(), worker, at: clock::now() };
    let value = keys::encode(&claim_key, &claim)?;
    let put_claim =
        Operation::Put { key: claim_key.clone().into_bytes(), value: value.clone(), lease: Some(session.lease) };
    let txn = Txn {
        compare: vec![
            Compare::Absent(claim_key.into_bytes()),
            Compare::ModRevision(job_key.clone().into_bytes(), picked.entry.mod_revision),
        ],
        success: vec![put_claim, put(&job_key, keys::encode(&job_key, &stored)?)],
        failure: Vec::new(),
    };
    match inner.kv.txn(txn).await {
        Ok(done) if done.succeeded => {
            picked.done_at(done.revision);
            Ok(Some(Leased { inner, session, stored, claim_revision: done.revision, settled: false }))
        }
        Ok(_) => {
            picked.stale();
            Ok(None)
        }
        Err(KvError::NoLease(_)) => {
            session.lost.cancel();
            Ok(None)
        }
        Err(error @ KvError::Unavailable { .. }) => {
            tracing::warn!(job = %stored.job.id, %error, "it is not known whether a job was taken, the store is asked");
            let doubt = settle_doubt(&inner, &session, &picked.entry, &value).await?;
            match doubt {
                Doubt::Done(at) => {
                    picked.done_at(at);
                    Ok(Some(Leased { inner, session, stored, claim_revision: at, settled: false }))
                }
                Doubt::Undone(at) => {
                    picked.done_at(at);
                    Ok(None)
                }
                Doubt::Other => {
                    picked.stale();
                    Ok(None)
                }
                Doubt::Over => Ok(None),
            }
        }
        Err(error) => Err(store("take a job")(error)),
    }
}

/// What became of a claim whose answer was lost.
enum Doubt {
    /// It was done, at this revision of the store.
    Done(u64),
    /// It was not, and cannot be any more since this revision.
    Undone(u64),
    /// Somebody else has the job, or it is another one by now.
    Other,
    /// If it was done, it ends with its lease.
    Over,
}

/// Asks the store what became of a claim with this value until it answers: nobody else would end a claim that nobody knows
/// of, because the lease that it hangs on lives on. The job is written as it was, so that a claim which is still on its way
/// finds another revision than it was for, and fails.
async fn settle_doubt(inner: &Inner, session: &Live, picked: &Entry, claim: &[u8]) -> Result<Doubt, QueueError> {
    let request = &picked.stored.job.request;
    let job_key = keys::job(request.topic, &picked.stored.job.id);
    let claim_key = keys::claim(request.topic, &request.key).into_bytes();
    let ask = Txn {
        compare: vec![
            Compare::Absent(claim_key.clone()),
            Compare::ModRevision(job_key.clone().into_bytes(), picked.mod_revision),
        ],
        success: vec![put(&job_key, keys::encode(&job_key, &picked.stored)?)],
        failure: vec![Operation::Get(Range::Key(claim_key))],
    };
    loop {
        match inner.kv.txn(ask.clone()).await {
            Ok(done) if done.succeeded => return Ok(Doubt::Undone(done.revision)),
            Ok(done) => {
                let ours = |it: &KeyValue| it.lease == Some(session.lease) && it.value == claim;
                let found = done.results.into_iter().flatten().next().filter(ours);
                return Ok(found.map_or(Doubt::Other, |it| Doubt::Done(it.mod_revision)));
            }
            Err(error) => tracing::debug!(%error, "the store does not say whether a job was taken, it is asked again"),
        }
        tokio::select! {
            () = session.lost.cancelled() => return Ok(Doubt::Over),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Dead-letters a job that nobody has.
pub(crate) async fn bury_unclaimed(inner: &Inner, picked: Picked, reason: String) -> Result<(), QueueError> {
    let stored = &picked.entry.stored;
    let (topic, id) = (stored.job.request.topic, &stored.job.id);
    let compare = vec![
        Compare::Absent(keys::claim(topic, &stored.job.request.key).into_bytes()),
        Compare::ModRevision(keys::job(topic, id).into_bytes(), picked.entry.mod_revision),
    ];
    let mut success = remove_job(stored).to_vec();
    success.push(bury(stored, reason)?);
    let done = inner.kv.txn(Txn { compare, success, failure: Vec::new() }).await.map_err(store("dead-letter a job"))?;
    if done.succeeded {
        picked.done_at(done.revision)
    } else {
        picked.stale()
    }
    Ok(())
}

fn remove_job(stored: &Stored) -> [Operation; 2] {
    let request = &stored.job.request;
    [delete(&keys::job(request.topic, &stored.job.id)), delete(&keys::dedup(request.topic, &request.dedup_id))]
}

fn bury(stored: &Stored, reason: String) -> Result<Operation, QueueError> {
    let key = keys::dead(stored.job.request.topic, &stored.job.id);
    tracing::warn!(job = %stored.job.id, key = stored.job.request.key, reason, "a job is dead-lettered");
    let letter = DeadJob { job: stored.job.clone(), reason, at: clock::now() };
    Ok(put(&key, keys::encode(&key, &letter)?))
}

/// 1 s, 2 s, 4 s, … 60 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs((1u64 << failures.saturating_sub(1).min(6)).min(60))
}
