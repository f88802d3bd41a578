//! A user's asynchronous action: it has a log and one final status, and it always ends.

use crate::error::Problem;
use crate::id::{ComponentId, OperationId, RevisionId};
use crate::job::Topic;
use crate::name::{ApplicationName, ComponentName, TenantName};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// What was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Build a source, then roll it out.
    Deploy,
    /// Roll out a change of settings.
    Configure,
    /// Change the number of instances.
    Scale,
    /// Let it run.
    Start,
    /// End every instance.
    Stop,
    /// Replace every instance.
    Restart,
    /// Serve an older revision again.
    Rollback,
    /// Remove it.
    Delete,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationStatus {
    /// Written, not begun.
    #[default]
    Pending,
    /// The builder works on it.
    Building,
    /// The controller brings it to the instances.
    RollingOut,
    /// Ended well.
    Succeeded,
    /// Ended badly; `problem` says why.
    Failed,
    /// Ended because a person or a newer operation ended it.
    Cancelled,
}

impl OperationStatus {
    /// Whether it will not change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A user's asynchronous action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Id; also the name of its log.
    pub id: OperationId,
    /// What was asked.
    pub kind: OperationKind,
    /// Tenant.
    pub tenant: TenantName,
    /// Application.
    pub application: ApplicationName,
    /// Component.
    pub component: ComponentName,
    /// Id of the component.
    pub component_id: ComponentId,
    /// How far it is.
    pub status: OperationStatus,
    /// The component's generation that this operation made.
    pub generation: u64,
    /// The revision that it made or rolls out.
    pub revision: Option<RevisionId>,
    /// Number of that revision.
    pub revision_number: Option<u64>,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// Where its job goes (outbox): written in the same transaction as this row.
    pub topic: Topic,
    /// Whether `mq` has accepted the job.
    pub enqueued: bool,
    /// Whether a person asked to end it.
    pub cancel_asked: bool,
    /// Whether the build must not use caches.
    pub no_cache: bool,
    /// How long the build took, in ms.
    pub build_ms: Option<u64>,
    /// How long the rollout took, in ms.
    pub rollout_ms: Option<u64>,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When the rollout began.
    pub rollout_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When it fails by itself if nothing ended it.
    pub deadline: Timestamp,
}
