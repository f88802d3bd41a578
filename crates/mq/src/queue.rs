//! The queue's calls: accept, give out, count, and look after dead letters.

use crate::keys::{self, Stored};
use crate::leased::Leased;
use crate::session::Session;
use crate::topic::TopicState;
use crate::{MAX_LOSSES, QueueError};
use arco_model::id::JobId;
use arco_model::job::{Job, JobRequest, Topic};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::kv::{Compare, Event, Operation, Range, SharedKv, Txn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How many jobs a topic holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Depth {
    /// Accepted and with nobody.
    pub waiting: u64,
    /// With a worker.
    pub running: u64,
    /// Dead-lettered.
    pub dead: u64,
}

/// A job that is not tried any more.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DeadJob {
    /// The job as it was last.
    pub job: Job,
    /// Why it was given up.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Jobs in a coordination store; cheap to clone. Workers of one process share one queue.
#[derive(Clone)]
pub struct Queue {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub kv: SharedKv,
    pub session: Session,
    topics: [TopicState; Topic::ALL.len()],
}

impl Queue {
    /// A queue on a store. Does nothing yet; the first [`Queue::lease`] begins to follow its topic.
    pub fn new(kv: SharedKv) -> Self {
        let topics = Topic::ALL.map(|it| TopicState::new(it, kv.clone()));
        Self { inner: Arc::new(Inner { session: Session::new(kv.clone()), kv, topics }) }
    }

    /// The store below.
    pub fn kv(&self) -> &SharedKv {
        &self.inner.kv
    }

    /// Frees what workers of an earlier process had, so that it is given out again at once and not after their lease
    /// ended. To be called once at start, before any [`Queue::lease`], and only by a process that alone works on this
    /// store (embedded store). Returns how many claims were freed.
    pub async fn release_claims(&self) -> Result<usize, QueueError> {
        let mut freed = 0;
        for topic in Topic::ALL {
            let range = Range::Prefix(format!("{}claims/", keys::prefix(topic)).into_bytes());
            let txn = Txn { success: vec![Operation::Delete(range)], ..Txn::default() };
            let done = self.inner.kv.txn(txn).await.map_err(store("free claims"))?;
            freed += done.results.first().map_or(0, Vec::len);
        }
        Ok(freed)
    }

    /// Accepts a job; when this returns, it is kept. One with the same topic and `dedup_id` that is still there is the
    /// same job, and its id is returned. `not_before`: not given out earlier (default: at once).
    pub async fn enqueue(&self, request: JobRequest, not_before: Option<Timestamp>) -> Result<JobId, QueueError> {
        let topic = request.topic;
        let dedup = keys::dedup(topic, &request.dedup_id);
        let now = clock::now();
        loop {
            let job = Job {
                id: clock::fresh(),
                request: request.clone(),
                attempts: 0,
                not_before: not_before.unwrap_or(now),
                created_at: now,
                last_error: None,
            };
            let (id, key) = (job.id.clone(), keys::job(topic, &job.id));
            let value = keys::encode(&key, &Stored { job, failures: 0, losses: 0, running: false })?;
            let txn = Txn {
                compare: vec![Compare::Absent(dedup.clone().into_bytes()), Compare::Absent(key.clone().into_bytes())],
                success: vec![put(&dedup, id.as_str().as_bytes().to_vec()), put(&key, value)],
                failure: vec![Operation::Get(Range::Key(dedup.clone().into_bytes()))],
            };
            let done = self.inner.kv.txn(txn).await.map_err(store("accept a job"))?;
            if done.succeeded {
                return Ok(id);
            }
            // Not there either: the fresh id was taken, which only asks for another one.
            if let Some(found) = done.results.into_iter().flatten().next() {
                let text = String::from_utf8_lossy(&found.value).into_owned();
                return text
                    .parse()
                    .map_err(|_| QueueError::Corrupt { key: dedup, cause: format!("`{text}` is no id") });
            }
        }
    }

    /// Waits until a job of the topic is due and nobody has its key, and takes it. `worker` is a name for people.
    /// Dropping the future takes nothing.
    /// A store that fails for a while is waited for.
    pub async fn lease(&self, topic: Topic, worker: &str) -> Result<Leased, QueueError> {
        let mut pauses = [100, 250, 500, 1000, 2000].into_iter().chain(std::iter::repeat(5000));
        loop {
            match self.try_lease(topic, worker).await {
                Ok(Some(leased)) => return Ok(leased),
                Ok(None) => {}
                Err(error @ QueueError::Store { .. }) => {
                    tracing::warn!(topic = topic.as_str(), error = %error, "no job can be taken, trying again");
                    tokio::time::sleep(Duration::from_millis(pauses.next().unwrap_or(5000))).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_lease(&self, topic: Topic, worker: &str) -> Result<Option<Leased>, QueueError> {
        let picked = self.inner.topics[topic as usize].next().await;
        if picked.entry.stored.losses >= MAX_LOSSES {
            let reason = format!("its worker died {MAX_LOSSES} times while it had this job");
            return crate::leased::bury_unclaimed(&self.inner, picked, reason).await.map(|()| None);
        }
        let session = self.inner.session.current().await?;
        Leased::claim(&self.inner, topic, picked, session, worker).await
    }

    /// How many jobs the topic holds.
    pub async fn depth(&self, topic: Topic) -> Result<Depth, QueueError> {
        let list = self.inner.kv.list(&keys::prefix(topic)).await.map_err(store("count jobs"))?;
        let (waiting, running) = crate::view::View::of(topic, &list.items, list.revision).counts();
        let dead = keys::dead_prefix(topic).into_bytes();
        let dead = list.items.iter().filter(|it| it.key.starts_with(&dead)).count() as u64;
        Ok(Depth { waiting, running, dead })
    }

    /// Waits until no job is left of those that the topic holds now: done or dead-lettered.
    pub async fn passed(&self, topic: Topic) -> Result<(), QueueError> {
        let prefix = keys::jobs_prefix(topic);
        let now = self.inner.kv.list(&prefix).await.map_err(store("list jobs"))?;
        let mut left: BTreeSet<Vec<u8>> = now.items.into_iter().map(|it| it.key).collect();
        if left.is_empty() {
            return Ok(());
        }
        let range = Range::Prefix(prefix.into_bytes());
        let mut watch = self.inner.kv.watch(range, Some(now.revision + 1)).await.map_err(store("follow jobs"))?;
        while !left.is_empty() {
            let Some(batch) = watch.next().await else { break }; // the store is closed
            for event in batch.map_err(store("follow jobs"))?.events {
                if let Event::Delete { key, .. } = event {
                    left.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// The dead-lettered jobs, oldest first.
    pub async fn dead(&self, topic: Topic) -> Result<Vec<DeadJob>, QueueError> {
        let list = self.inner.kv.list(&keys::dead_prefix(topic)).await.map_err(store("list dead letters"))?;
        list.items.iter().map(|it| keys::decode(&it.key, &it.value)).collect()
    }

    /// Removes a dead letter for good.
    pub async fn discard(&self, topic: Topic, id: &JobId) -> Result<(), QueueError> {
        self.inner.kv.delete(&keys::dead(topic, id)).await.map_err(store("remove a dead letter"))
    }
}

pub(crate) fn put(key: &str, value: Vec<u8>) -> Operation {
    Operation::Put { key: key.as_bytes().to_vec(), value, lease: None }
}

pub(crate) fn delete(key: &str) -> Operation {
    Operation::Delete(Range::Key(key.as_bytes().to_vec()))
}

pub(crate) fn store(step: &'static str) -> impl Fn(arco_store::kv::KvError) -> QueueError {
    move |source| QueueError::Store { step, source }
}
