//! An operation as people see it.

use super::ErrorBody;
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A user's asynchronous action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationDocument {
    /// Id; also the name of its log.
    pub id: String,
    /// `deploy`, `configure`, `scale`, `start`, `stop`, `restart`, `rollback`, `delete`.
    #[schema(value_type = String)]
    pub kind: OperationKind,
    /// Tenant.
    pub tenant: String,
    /// Application.
    pub application: String,
    /// Component.
    pub component: String,
    /// `pending`, `building`, `rolling_out`, `succeeded`, `failed`, `cancelled`; the last three are final.
    #[schema(value_type = String)]
    pub status: OperationStatus,
    /// The component's generation that this operation made.
    pub generation: u64,
    /// Number of the revision that it made or rolls out.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Why it failed.
    #[serde(default)]
    pub problem: Option<ErrorBody>,
    /// What whoever asked for it should know at once, with what to do; only in the answer to that request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Whether a person asked to end it.
    #[serde(default)]
    pub cancel_asked: bool,
    /// How long the build took, in ms.
    #[serde(default)]
    pub build_ms: Option<u64>,
    /// How long the rollout took, in ms.
    #[serde(default)]
    pub rollout_ms: Option<u64>,
    /// When it was asked (RFC 3339).
    pub created_at: String,
    /// When it ended (RFC 3339).
    #[serde(default)]
    pub ended_at: Option<String>,
}

impl From<&Operation> for OperationDocument {
    fn from(operation: &Operation) -> Self {
        Self {
            id: operation.id.to_string(),
            kind: operation.kind,
            tenant: operation.tenant.to_string(),
            application: operation.application.to_string(),
            component: operation.component.to_string(),
            status: operation.status,
            generation: operation.generation,
            revision: operation.revision_number,
            problem: operation
                .problem
                .clone()
                .map(|it| ErrorBody { operation: Some(operation.id.to_string()), ..ErrorBody::from(it) }),
            warnings: Vec::new(),
            cancel_asked: operation.cancel_asked,
            build_ms: operation.build_ms,
            rollout_ms: operation.rollout_ms,
            created_at: operation.created_at.rfc3339(),
            ended_at: operation.ended_at.map(|it| it.rfc3339()),
        }
    }
}
