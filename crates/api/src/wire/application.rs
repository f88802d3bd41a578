//! Applications, and the declarative change of a whole one.

use super::OperationDocument;
use arco_model::manifest::ComponentManifest;
use arco_model::name::ComponentName;
use arco_model::source::Source;
use arco_model::spec::ComponentKind;
use arco_model::status::Status;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// An application and its components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApplicationDocument {
    /// Tenant.
    pub tenant: String,
    /// Name.
    pub application: String,
    /// Components by name.
    pub components: Vec<ComponentSummary>,
    /// When it was made (RFC 3339).
    pub created_at: String,
}

/// A component in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComponentSummary {
    /// Name in its application.
    pub component: String,
    /// As in [`super::ComponentDocument`].
    #[schema(value_type = String)]
    pub status: Status,
    /// Why; empty only when all is well.
    pub reason: String,
    /// How its instances live.
    #[serde(default)]
    #[schema(value_type = String)]
    pub kind: ComponentKind,
    /// Instances that were asked for, by a person or by load.
    pub replicas: u32,
    /// Instances that may get requests.
    pub ready_replicas: u32,
    /// Number of the revision that answers now.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Where it can be opened.
    pub urls: Vec<String>,
}

/// A whole application as it should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Components by name.
    #[schema(value_type = BTreeMap<String, ComponentApply>)]
    pub components: BTreeMap<ComponentName, ComponentApply>,
    /// Whether components that are not named here are deleted.
    #[serde(default)]
    pub prune: bool,
}

/// A component as it should be. What it does not say goes back to the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ComponentApply {
    /// Its source, folders already uploaded.
    #[schema(value_type = Object)]
    pub source: Source,
    /// All else; `source` and `dir` in it are not read.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub manifest: ComponentManifest,
}

/// What an apply changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApplyResult {
    /// The difference, in the order of names.
    pub changes: Vec<ApplyChange>,
    /// Operations that bring it about; empty for a dry run or when nothing changes.
    pub operations: Vec<OperationDocument>,
}

/// One changed field of one component.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApplyChange {
    /// Component.
    pub component: String,
    /// `create`, `change`, `delete`.
    pub action: String,
    /// Path of the field, as `env.GREETING`; empty for `create` and `delete`.
    #[serde(default)]
    pub field: String,
    /// Value before, as JSON; `null` when there was none.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub before: serde_json::Value,
    /// Value afterwards, as JSON; `null` when there is none.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub after: serde_json::Value,
}
