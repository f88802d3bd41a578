//! A component as people see it: status, instances, revisions, volumes, routes, names of secrets.

use arco_model::component::{Component, Power, Revision};
use arco_model::observed::{InstanceFacts, ScalingFacts};
use arco_model::source::Source;
use arco_model::spec::{ComponentKind, ComponentSpec, Port, VolumeKind, next_run};
use arco_model::status::Status;
use arco_model::storage::VolumeClass;
use arco_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The whole truth about one component; `arco status -o json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComponentDocument {
    /// Application.
    pub application: String,
    /// Name in its application.
    pub component: String,
    /// `undeployed`, `building`, `build_failed`, `starting`, `running`, `degraded`, `upgrading`, `abnormal`, `stopping`,
    /// `stopped`, `succeeded`.
    #[schema(value_type = String)]
    pub status: Status,
    /// Why, in one sentence; empty only when all is well.
    pub reason: String,
    /// What to do; empty when all is well or it passes by itself.
    pub advice: String,
    /// Instances that were asked for, by a person or by load.
    pub replicas: u32,
    /// Instances that may get requests.
    pub ready_replicas: u32,
    /// How many instances load asks for, what changed that last, and why load is not followed (`replicas`, `reason`,
    /// `problem`); absent when the number does not follow load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub scaling: Option<ScalingFacts>,
    /// Number of the revision that answers now; `null` before the first.
    pub revision: Option<u64>,
    /// Raised by every change of what is asked.
    pub generation: u64,
    /// The generation that this status speaks of.
    pub observed_generation: u64,
    /// Where it can be opened, the default host first.
    pub urls: Vec<String>,
    /// What is wrong beside its status, with what to do: certificates of its hosts that cannot be issued; for a
    /// stopped one, that what would start has not become healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When it runs, for `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunsDocument>,
    /// Instances, as last seen.
    pub instances: Vec<InstanceDocument>,
    /// Tenant.
    pub tenant: String,
    /// Id of the component.
    pub id: String,
    /// Number of the revision that should answer.
    #[serde(default)]
    pub desired_revision: Option<u64>,
    /// The component's stable address inside the platform's network.
    #[serde(default)]
    pub address: Option<String>,
    /// `on`, `off`, or `{"deleting": …}`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub power: Power,
    /// Ports that it listens on: asked, else detected.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub ports: Vec<Port>,
    /// What is asked of it.
    #[schema(value_type = Object)]
    pub spec: ComponentSpec,
    /// When it was made (RFC 3339).
    pub created_at: String,
}

/// When a cron component runs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunsDocument {
    /// Five fields, UTC.
    pub schedule: String,
    /// The time that the last run was for (RFC 3339); `null` before the first.
    pub last_at: Option<String>,
    /// When that run ended (RFC 3339); `null` while it runs.
    pub last_ended_at: Option<String>,
    /// Its exit status, -1 when it could not start; `null` while it runs, and when it was cut off.
    pub last_exit_status: Option<i32>,
    /// When it runs next (RFC 3339); `null` while it is stopped, or when the schedule names no time.
    pub next_at: Option<String>,
}

impl RunsDocument {
    /// Those of a component, when it is a cron one.
    pub fn of(component: &Component, now: Timestamp) -> Option<Self> {
        let schedule = component.spec.schedule.clone().filter(|_| component.spec.kind == ComponentKind::Cron)?;
        let last = component.observed.last_run.as_ref();
        let runs = component.power == Power::On && component.desired_revision.is_some();
        Some(Self {
            last_at: last.map(|it| it.scheduled_at.rfc3339()),
            last_ended_at: last.and_then(|it| it.ended_at).map(|it| it.rfc3339()),
            last_exit_status: last.and_then(|it| it.exit_status),
            next_at: next_run(&schedule, now).filter(|_| runs).map(|it| it.rfc3339()),
            schedule,
        })
    }
}

/// One instance.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceDocument {
    /// Id.
    pub id: String,
    /// `pending`, `starting`, `running`, `unready`, `back_off`, `draining`, `stopping`, `ended`.
    pub status: String,
    /// Why it is not running; empty when it is.
    pub reason: String,
    /// How often its program was started again.
    pub restarts: u32,
    /// Address inside the platform's network.
    pub address: Option<String>,
    /// The machine that it runs on.
    pub node: String,
    /// When its program was started last (RFC 3339).
    pub started_at: Option<String>,
    /// Number of the revision that it runs.
    #[serde(default)]
    pub revision: Option<u64>,
}

impl InstanceDocument {
    /// An instance from its facts; `revision` is the number of its revision, when the caller knows it.
    pub fn new(facts: &InstanceFacts, revision: Option<u64>) -> Self {
        let reason = match (&facts.fault, &facts.last_exit) {
            (Some(fault), _) => fault.clone(),
            (None, Some(exit)) if exit.out_of_memory => "out of memory".to_owned(),
            (None, Some(exit)) if exit.disk_full => "its disk is full".to_owned(),
            (None, Some(exit)) if exit.asked => String::new(),
            (None, Some(exit)) => match exit.signal {
                Some(signal) => format!("ended by signal {signal}"),
                None => format!("exited with status {}", exit.status),
            },
            (None, None) => String::new(),
        };
        Self {
            id: facts.id.to_string(),
            status: facts.phase.as_str().to_owned(),
            reason,
            restarts: facts.restarts,
            address: facts.address.map(|it| it.to_string()),
            node: facts.node.clone(),
            started_at: facts.started_at.map(|it| it.rfc3339()),
            revision,
        }
    }
}

/// An instance and what it uses now; `arco ps` prints it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceUsage {
    /// The instance.
    #[serde(flatten)]
    pub instance: InstanceDocument,
    /// What it uses; `null` when it does not run.
    #[serde(default)]
    pub usage: Option<UsageDocument>,
}

/// What an instance uses now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageDocument {
    /// CPU time since its start, in ms.
    pub cpu_ms: u64,
    /// Memory, in bytes (without page cache that can be dropped).
    pub memory_bytes: u64,
    /// Its memory limit, in bytes.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// One revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RevisionDocument {
    /// Id.
    pub id: String,
    /// 1, 2, 3, … in its component.
    pub number: u64,
    /// Digest of the image.
    pub artifact: String,
    /// Language that was built, as `node`.
    pub language: String,
    /// Commit of the source, when it had one.
    pub commit: Option<String>,
    /// What made it: `deploy`, `env set`, …
    pub cause: String,
    /// The operation that made it.
    pub operation: String,
    /// Whether it answers now.
    pub serving: bool,
    /// Whether it should answer.
    pub desired: bool,
    /// Where it came from.
    #[schema(value_type = Object)]
    pub source: Source,
    /// When it was made (RFC 3339).
    pub created_at: String,
}

impl RevisionDocument {
    /// A revision, with what its component says about it.
    pub fn new(revision: &Revision, serving: bool, desired: bool) -> Self {
        Self {
            id: revision.id.to_string(),
            number: revision.number,
            artifact: revision.artifact.digest.to_string(),
            language: revision.defaults.language.clone(),
            commit: revision.commit.clone(),
            cause: revision.cause.clone(),
            operation: revision.operation_id.to_string(),
            serving,
            desired,
            source: revision.spec.source.clone(),
            created_at: revision.created_at.rfc3339(),
        }
    }
}

/// A volume that exists.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDocument {
    /// Application.
    pub application: String,
    /// Component that it belongs (or belonged) to.
    pub component: String,
    /// Name in its component.
    pub name: String,
    /// Absolute path inside the instances; empty when its component is gone or does not ask for it.
    pub path: String,
    /// Size in MiB.
    pub size_mb: u32,
    /// `shared`, `local`, `memory`.
    #[schema(value_type = String)]
    pub kind: VolumeKind,
    /// Whether nothing uses it: its component is gone, or does not name it any more. It can be deleted alone.
    #[serde(default)]
    pub kept: bool,
    /// Id, what a kept volume is deleted by; empty when it is asked for but not made yet.
    #[serde(default)]
    pub id: String,
    /// When it was made (RFC 3339); empty when it is asked for but not made yet.
    #[serde(default)]
    pub created_at: String,
    /// What it is made of (`/v1/volume-classes`); empty while that is not known.
    #[serde(default)]
    pub class: String,
    /// Who may use it at the same time: `RWO` (instances on one node), `RWX` (on every node), `ROX`, `RWOP`.
    #[serde(default)]
    pub access: Vec<String>,
    /// Its size at every place together, in bytes; `null` when it does not exist yet.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// How much of it is used, in bytes; `null` when nobody can tell now.
    #[serde(default)]
    pub used_bytes: Option<u64>,
}

/// What volumes can be made of, and what they can then.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeClassDocument {
    /// Name.
    pub class: String,
    /// What makes the volumes.
    pub provisioner: String,
    /// Whether volumes are made of it that name no class.
    pub default: bool,
    /// Who may use a volume at the same time, as in [`VolumeDocument`]; empty: nobody knows before it is tried.
    pub access: Vec<String>,
    /// Whether a volume can grow.
    pub grows: bool,
    /// Whether snapshots can be taken; `null` when the platform may not ask that.
    #[serde(default)]
    pub snapshots: Option<bool>,
    /// Whether the content stays where it is when the volume is deleted.
    pub retains: bool,
    /// Whether no more than a volume's size can be written to it; `null` when nobody knows.
    #[serde(default)]
    pub limits: Option<bool>,
}

impl From<VolumeClass> for VolumeClassDocument {
    fn from(it: VolumeClass) -> Self {
        let VolumeClass { name, provisioner, default, access, grows, snapshots, retains, limits } = it;
        let access = access.into_iter().map(|it| it.short().to_owned()).collect();
        Self { class: name, provisioner, default, access, grows, snapshots, retains, limits }
    }
}

/// How much storage a tenant has, and each of its components.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StorageDocument {
    /// Volumes, each place counted.
    pub volumes: u64,
    /// Their sizes together, in bytes.
    pub size_bytes: u64,
    /// How much of them is used, in bytes, as far as that is known; `null` when nobody can tell now.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// By `application/component`, kept volumes included.
    pub components: BTreeMap<String, ComponentStorage>,
}

/// How much storage a component has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComponentStorage {
    /// Volumes, each place counted.
    pub volumes: u64,
    /// Their sizes together, in bytes.
    pub size_bytes: u64,
    /// How much of them is used, in bytes, as far as that is known; `null` when nobody can tell now.
    #[serde(default)]
    pub used_bytes: Option<u64>,
}

/// A secret without its value.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretDocument {
    /// Name of the variable.
    pub name: String,
    /// Version in use.
    pub version: u64,
    /// When that version was set (RFC 3339).
    pub created_at: String,
}
