//! From rows to jobs: an operation is written with its job in one row (tag `outbox`); the relay brings the job to the
//! queue and then notes that it did.
//!
//! A crash between the two makes the relay enqueue again, which is the same job by its deduplication id, or, when the job
//! was done meanwhile, one more run of an idempotent handler. Nothing is forgotten.

use crate::{Queue, QueueError};
use arco_model::job::JobRequest;
use arco_model::operation::Operation;
use arco_store::sql::{Query, SharedMetadata, SqlError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often the relay looks although nobody rang.
const INTERVAL: Duration = Duration::from_secs(5);
/// Rows of one pass.
const PAGE: usize = 100;

/// Why a pass failed; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The rows cannot be read or written.
    #[error(transparent)]
    Rows(#[from] SqlError),
    /// The queue does not accept.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Brings written jobs to the queue; cheap to clone.
#[derive(Clone)]
pub struct Relay {
    metadata: SharedMetadata,
    queue: Queue,
    bell: Arc<Notify>,
}

impl Relay {
    /// A relay; [`Relay::run`] is its task.
    pub fn new(metadata: SharedMetadata, queue: Queue) -> Self {
        Self { metadata, queue, bell: Arc::new(Notify::new()) }
    }

    /// Rung (`notify_one`) after an operation was written.
    pub fn bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }

    /// Works until `stop`: at once, whenever the bell rings, and every 5 s.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.pass().await {
                tracing::warn!(error = %error, "jobs wait in the outbox; trying again in 5 s");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.bell.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Enqueues what waits in the outbox, oldest first; returns how many jobs that were.
    pub async fn pass(&self) -> Result<usize, OutboxError> {
        let (mut relayed, mut after) = (0, None);
        loop {
            let query = Query { limit: PAGE, ..Query::tag("outbox").after(after) };
            let page = self.metadata.list::<Operation>(&query).await?;
            for found in page.items {
                let operation = found.value;
                let request = JobRequest {
                    topic: operation.topic,
                    key: operation.component_id.to_string(),
                    dedup_id: operation.id.to_string(),
                };
                match self.queue.enqueue(request, None).await {
                    Ok(_) => {}
                    // One that cannot be brought holds back no other.
                    Err(error @ QueueError::Corrupt { .. }) => {
                        tracing::error!(operation = %operation.id, %error, "a job stays in the outbox");
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
                let mark = |it: &mut Operation| !std::mem::replace(&mut it.enqueued, true);
                self.metadata.modify::<Operation>(operation.id.as_str(), mark).await?;
                relayed += 1;
            }
            after = page.next;
            if after.is_none() {
                return Ok(relayed);
            }
        }
    }
}
