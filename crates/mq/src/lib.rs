//! Jobs: at least once, in order and exclusive per key, leased, retried with back-off, dead-lettered with their reason.
//!
//! What must hold:
//! - what [`Queue::enqueue`] accepted is there until it was acknowledged, or its dead letter was removed;
//! - of the jobs of one topic and key at most one is with a worker, and they are given out in the order of acceptance;
//!   different keys run in parallel; a job that waits for its next attempt holds back only its own key;
//! - a job whose worker died is given out again.
//!
//! Everything is kept in `store::kv` below `/mq/<topic>/`; what a job means is its handler's business: handlers are
//! idempotent. Not here: network access to the queue.

mod keys;
mod leased;
pub mod outbox;
mod queue;
mod session;
mod topic;
mod view;

pub use leased::{Fate, Leased};
pub use queue::{DeadJob, Depth, Queue};

use arco_model::id::JobId;
use arco_store::kv::KvError;

/// How often a job may fail before it is dead-lettered.
pub const MAX_FAILURES: u32 = 5;
/// How often a job may be lost with its worker (a crash, a kill) before it is dead-lettered: it may be the cause.
pub const MAX_LOSSES: u32 = 50;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The store failed; nothing is known to have changed. Calling again is safe.
    #[error("the job queue failed to {step}: {source}")]
    Store {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: KvError,
    },
    /// The job is no longer this worker's: its lease ended, and somebody else may have it.
    #[error("job {0} is no longer leased to this worker; it is given out again")]
    Lost(JobId),
    /// A key of the queue holds something that is not ours.
    #[error("the queue's key `{key}` is not readable: {cause}")]
    Corrupt {
        /// Key in the store.
        key: String,
        /// Why not.
        cause: String,
    },
}
