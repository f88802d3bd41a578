//! A message in `mq`: at least once, exclusive and ordered per key.

use crate::id::JobId;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Who works on a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Builds.
    Builder,
    /// Reconciliation of one component.
    Controller,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Topic; 2] = [Topic::Builder, Topic::Controller];

    /// Name in keys and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Controller => "controller",
        }
    }
}

/// What a job says. Handlers reread rows: it names, it does not carry.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Who works on it.
    pub topic: Topic,
    /// Jobs of one key run one after another (a component's id).
    pub key: String,
    /// A job with the same id that is still there is the same job (an operation's id).
    pub dedup_id: String,
}

/// A job as `mq` keeps it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Id.
    pub id: JobId,
    /// What it says.
    pub request: JobRequest,
    /// How often it was given to a worker.
    pub attempts: u32,
    /// Not before this time.
    pub not_before: Timestamp,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}
