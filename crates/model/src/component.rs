//! Component, revision, and the observed state that stands beside the asked one.

use crate::artifact::{Digest, ImageRef};
use crate::id::{ApplicationId, ComponentId, OperationId, RevisionId};
use crate::name::{ApplicationName, ComponentName, TenantName};
use crate::observed::ScalingFacts;
use crate::spec::autoscaling::Autoscaling;
use crate::spec::{Command, ComponentKind, ComponentSpec, Port};
use crate::status::StatusReport;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One deployable unit: what is asked of it, and what was last seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Its id; instances, volumes and keys are named by it.
    pub id: ComponentId,
    /// Tenant.
    pub tenant: TenantName,
    /// Id of its application.
    pub application_id: ApplicationId,
    /// Application.
    pub application: ApplicationName,
    /// Name, unique in the application.
    pub name: ComponentName,
    /// What is asked.
    pub spec: ComponentSpec,
    /// Raised by every change of `spec`, `power`, `restarts_asked` or `desired_revision`.
    pub generation: u64,
    /// Whether it should run at all.
    pub power: Power,
    /// How often a person asked for a restart; a change replaces every instance.
    pub restarts_asked: u64,
    /// The revision that should serve; `None` until the first build succeeded.
    pub desired_revision: Option<RevisionId>,
    /// Number of the newest revision.
    pub last_revision_number: u64,
    /// What was last seen.
    pub observed: ObservedState,
    /// When it was made.
    pub created_at: Timestamp,
    /// The archive that it is being made from, until somebody starts or stops it: the content of its volumes may be
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arriving: Option<Digest>,
    /// Of how many places that archive holds the content; more than are asked for when it was scaled down there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub arriving_places: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Component {
    /// `application/component`, as people write it.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.application, self.name)
    }

    /// How many instances there are to be; `scaling` is what its load asks for, as far as that is known.
    pub fn wanted_replicas(&self, scaling: Option<&ScalingFacts>) -> u32 {
        let of_load = |asked: &Autoscaling| asked.within(scaling.map_or(self.spec.replicas, |it| it.replicas));
        self.spec.autoscaling.as_ref().map_or(self.spec.replicas, of_load)
    }

    /// How many places it may have, as a component of this kind; one that is not stateful has one.
    pub fn places(&self, kind: ComponentKind) -> u32 {
        let most = self.spec.autoscaling.as_ref().map_or(self.spec.replicas, |it| it.max_replicas);
        if kind == ComponentKind::Stateful { most.max(1) } else { 1 }
    }

    /// How many places have volumes of their own although nothing runs, as a component of this kind: an import fills them
    /// in. 0 when none is going on.
    pub fn prepared_places(&self, kind: ComponentKind) -> u32 {
        match self.arriving {
            Some(_) if kind == ComponentKind::Stateful => self.places(kind).max(self.arriving_places),
            _ => 0,
        }
    }

    /// The default hosts of its first outer HTTP port: by labels (`web.shop.<domain>`), which cannot collide and is the
    /// one that people are shown, and in one label (`web-shop.<domain>`), which one wildcard certificate covers.
    pub fn default_hosts(&self, domain: &str) -> [String; 2] {
        if self.tenant == TenantName::default_tenant() {
            [
                format!("{}.{}.{domain}", self.name, self.application),
                format!("{}-{}.{domain}", self.name, self.application),
            ]
        } else {
            let (name, application, tenant) = (&self.name, &self.application, &self.tenant);
            [format!("{name}.{application}.{tenant}.{domain}"), format!("{name}-{application}-{tenant}.{domain}")]
        }
    }

    /// The name that other components reach it by: `<component>.<application>.<tenant>.arco.internal`.
    pub fn internal_host(&self) -> String {
        format!("{}.{}.{}.{INTERNAL_DOMAIN}", self.name, self.application, self.tenant)
    }
}

/// Suffix of the names that instances resolve.
pub const INTERNAL_DOMAIN: &str = "arco.internal";

/// Whether a component should run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Instances as many as `replicas`.
    #[default]
    On,
    /// No instances; its routes answer 503.
    Off,
    /// Being deleted; the row goes when nothing of it is left.
    Deleting {
        /// Whether its volumes stay.
        keep_volumes: bool,
    },
}

/// What was last seen of a component. Only the controller writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObservedState {
    /// The generation that this speaks of.
    pub observed_generation: u64,
    /// Status, reason and advice.
    pub report: StatusReport,
    /// Instances that are ready.
    pub ready_replicas: u32,
    /// The revision that answers requests now.
    pub serving_revision: Option<RevisionId>,
    /// The revision that was healthy last: it was desired, and every instance of it as asked. `None`: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_revision: Option<RevisionId>,
    /// Instances, as last seen.
    pub instances: Vec<crate::observed::InstanceFacts>,
    /// The component's stable address inside the platform's network.
    pub address: Option<std::net::Ipv4Addr>,
    /// When a cron component ran last.
    pub last_run: Option<CronRun>,
    /// How many instances load asks for, when it is scaled by load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingFacts>,
    /// When this was written.
    pub at: Timestamp,
}

/// One run of a cron component.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CronRun {
    /// The time of the schedule.
    pub scheduled_at: Timestamp,
    /// When it ended; `None` while it runs.
    pub ended_at: Option<Timestamp>,
    /// Exit status, -1 when it could not start; `None` while it runs, and when it was cut off.
    pub exit_status: Option<i32>,
}

/// An immutable snapshot of a component: artifact and the spec that runs with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Id.
    pub id: RevisionId,
    /// Its component.
    pub component_id: ComponentId,
    /// 1, 2, 3, … in its component.
    pub number: u64,
    /// What runs.
    pub artifact: ImageRef,
    /// What the build found out, for what the spec leaves open.
    pub defaults: RunDefaults,
    /// The spec as it was.
    pub spec: ComponentSpec,
    /// Digest over source and build settings: the same key means the same artifact.
    pub build_key: String,
    /// Commit of the source, when it had one.
    pub commit: Option<String>,
    /// What made it: `deploy`, `env set`, `scale`, …
    pub cause: String,
    /// The operation that made it.
    pub operation_id: OperationId,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a build found out about running its artifact.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunDefaults {
    /// Language, as `node` or `dockerfile`.
    pub language: String,
    /// What runs, if the spec gives nothing.
    pub command: Option<Command>,
    /// Further commands by name (other lines of a Procfile).
    pub commands: BTreeMap<String, Command>,
    /// Ports, if the spec gives none.
    pub ports: Vec<Port>,
    /// Variables; the spec's win.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `user[:group]`; empty means root inside the instance's user namespace.
    pub user: String,
    /// Signal that stops it; empty means SIGTERM.
    pub stop_signal: String,
}

impl Revision {
    /// The ports that its instances listen on: the spec's, else the detected ones.
    pub fn ports(&self) -> &[Port] {
        if self.spec.ports.is_empty() { &self.defaults.ports } else { &self.spec.ports }
    }

    /// The first port that the gateway routes by host, if there is one.
    pub fn first_outer_http_port(&self) -> Option<Port> {
        self.ports().iter().copied().find(|it| it.outer && it.protocol.is_http())
    }
}
