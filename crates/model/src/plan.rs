//! The workload plan: what an orchestrator is asked to keep running for one component.
//!
//! Built by a pure function from component, revision, bindings and secrets; equal inputs give an equal fingerprint, so
//! that applying it again does nothing.

use crate::artifact::{Digest, ImageRef};
use crate::component::{Component, Power, Revision};
use crate::id::{ComponentId, InstanceId, RevisionId};
use crate::name::{ApplicationName, ComponentName, TenantName};
use crate::spec::autoscaling::Autoscaling;
use crate::spec::files::{FileMode, FileSpec};
use crate::spec::scheduling::Scheduling;
use crate::spec::{ComponentKind, Port, Probe, Protocol, Resources, RolloutSpec, VolumeSpec};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What an orchestrator keeps running for one component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadPlan {
    /// Owner of every instance, volume and address.
    pub component: ComponentId,
    /// For names, labels and isolation.
    pub tenant: TenantName,
    /// For names and labels.
    pub application: ApplicationName,
    /// For names and labels.
    pub name: ComponentName,
    /// How instances live.
    pub kind: ComponentKind,
    /// How many; when scaled by load, how many at first.
    pub replicas: u32,
    /// Between how many, by load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// How each is made; a change of it replaces instances.
    pub template: InstanceTemplate,
    /// How instances are replaced.
    pub rollout: RolloutSpec,
    /// Components whose stable address this one may reach (isolation rule), by id.
    pub may_call: BTreeSet<ComponentId>,
    /// Whether new instances wait because a binding is not ready yet.
    pub hold: bool,
    /// How many places of a stateful component have their own volumes although nothing runs: an import fills them in.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prepared_places: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How one instance is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceTemplate {
    /// Revision that it belongs to.
    pub revision: RevisionId,
    /// Number of that revision, for people.
    pub revision_number: u64,
    /// What runs, by digest.
    pub image: ImageRef,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables, secrets resolved. Never written to disk but on tmpfs, never logged.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `user[:group]`; empty means root of the instance's user namespace.
    pub user: String,
    /// Signal that stops it; empty means SIGTERM.
    pub stop_signal: String,
    /// Limits.
    pub resources: Resources,
    /// Ports that it listens on.
    pub ports: Vec<Port>,
    /// How readiness is asked; `None` means a TCP connect to the first TCP port, or nothing without one.
    pub probe: Option<Probe>,
    /// Volumes to mount.
    pub volumes: Vec<VolumeSpec>,
    /// Configuration files to put in, read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InstanceFile>,
    /// Raised by each asked restart.
    pub restarts_asked: u64,
    /// Where it may run, on a cluster.
    #[serde(default, skip_serializing_if = "Scheduling::is_empty")]
    pub scheduling: Scheduling,
    /// A raw part of a pod template, put over what a cluster would make of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<serde_json::Value>,
}

/// A configuration file of an instance.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct InstanceFile {
    /// Absolute path inside.
    pub path: String,
    /// Permission bits, as the user of the instance is to meet them.
    pub mode: FileMode,
    /// What is in it.
    pub content: FileContent,
}

/// What is in a configuration file.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileContent {
    /// This text.
    Text(String),
    /// The value of the variable of this name, which is a secret: it is kept in one place.
    Variable(String),
}

impl InstanceFile {
    fn of(spec: &FileSpec) -> Option<Self> {
        let text = spec.content.clone().map(FileContent::Text);
        let content = text.or_else(|| spec.secret.clone().map(FileContent::Variable))?;
        Some(Self { path: spec.path.clone(), mode: spec.mode.unwrap_or_default(), content })
    }

    /// The content, with the variables of the instance; `None` when they lack the secret.
    pub fn text<'a>(&'a self, env: &'a BTreeMap<String, String>) -> Option<&'a str> {
        match &self.content {
            FileContent::Text(text) => Some(text),
            FileContent::Variable(name) => env.get(name).map(String::as_str),
        }
    }
}

impl WorkloadPlan {
    /// Fingerprint over everything.
    pub fn fingerprint(&self) -> String {
        fingerprint(self)
    }
}

impl InstanceTemplate {
    /// Fingerprint of the template alone: instances with another one are replaced.
    pub fn fingerprint(&self) -> String {
        fingerprint(self)
    }

    /// The probe that is really asked.
    pub fn effective_probe(&self) -> Option<Probe> {
        self.probe.clone().or_else(|| {
            let first = self.ports.iter().find(|it| it.protocol != Protocol::Udp)?;
            Some(Probe::Tcp { port: Some(first.port) })
        })
    }
}

/// The first 32 hex digits of the SHA-256 of the JSON form (maps are ordered, so it is stable).
fn fingerprint(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).unwrap_or_default();
    Digest::of(&json).hex()[..32].to_owned()
}

/// A bound component, as the plan needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundComponent {
    /// Prefix of the variables.
    pub alias: String,
    /// Its id.
    pub id: ComponentId,
    /// Its name inside the platform.
    pub host: String,
    /// Its first port.
    pub port: Option<Port>,
    /// Whether it has a ready instance now.
    pub ready: bool,
}

/// Inputs of [`build`] that are not rows.
#[derive(Clone, Debug, Default)]
pub struct PlanContext {
    /// What the bindings point at.
    pub bound: Vec<BoundComponent>,
    /// Secret values by variable name.
    pub secrets: BTreeMap<String, String>,
    /// Whether instances of this component run already (then bindings do not hold it back).
    pub already_runs: bool,
}

/// The plan of a component at a revision. Pure.
pub fn build(component: &Component, revision: &Revision, context: &PlanContext) -> WorkloadPlan {
    let spec = &revision.spec;
    let ports = revision.ports().to_vec();
    let mut env = revision.defaults.env.clone();
    if let Some(port) = ports.first() {
        env.insert("PORT".to_owned(), port.port.to_string());
    }
    for bound in &context.bound {
        let alias = bound.alias.to_ascii_uppercase().replace('-', "_");
        env.insert(format!("{alias}_HOST"), bound.host.clone());
        if let Some(port) = bound.port {
            env.insert(format!("{alias}_PORT"), port.port.to_string());
            env.insert(format!("{alias}_URL"), format!("{}://{}:{}", url_scheme(port.protocol), bound.host, port.port));
        }
    }
    env.extend(spec.env.clone());
    env.extend(context.secrets.clone());
    env.insert("ARCO_APPLICATION".to_owned(), component.application.to_string());
    env.insert("ARCO_COMPONENT".to_owned(), component.name.to_string());
    env.insert("ARCO_REVISION".to_owned(), revision.number.to_string());
    let argv = spec.command.as_ref().or(revision.defaults.command.as_ref()).map(|it| it.argv()).unwrap_or_default();
    let runs = component.power == Power::On && spec.kind != ComponentKind::Cron;
    WorkloadPlan {
        component: component.id.clone(),
        tenant: component.tenant.clone(),
        application: component.application.clone(),
        name: component.name.clone(),
        kind: spec.kind,
        replicas: if runs { component.wanted_replicas(None) } else { 0 },
        autoscaling: component.spec.autoscaling.filter(|_| runs),
        rollout: spec.rollout,
        may_call: context.bound.iter().map(|it| it.id.clone()).collect(),
        hold: !context.already_runs && context.bound.iter().any(|it| !it.ready),
        prepared_places: component.prepared_places(spec.kind),
        template: InstanceTemplate {
            revision: revision.id.clone(),
            revision_number: revision.number,
            image: revision.artifact.clone(),
            argv,
            env,
            working_dir: revision.defaults.working_dir.clone(),
            user: revision.defaults.user.clone(),
            stop_signal: revision.defaults.stop_signal.clone(),
            resources: spec.resources,
            ports,
            probe: spec.probe.clone(),
            volumes: spec.volumes.clone(),
            files: spec.files.iter().filter_map(InstanceFile::of).collect(),
            restarts_asked: component.restarts_asked,
            scheduling: spec.scheduling.clone(),
            overlay: spec.overlay.clone(),
        },
    }
}

fn url_scheme(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Https => "https",
        Protocol::H2c => "http",
        Protocol::Grpc => "grpc",
        Protocol::Grpcs => "grpcs",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// Which part of the network a one-shot workload may reach.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OneShotNetwork {
    /// Nothing, not even DNS.
    #[default]
    None,
    /// The build network: public addresses and `builder.allowed_networks`; never private, loopback, instances or us.
    Build,
    /// What an instance of the component may reach.
    Instance,
}

/// A folder of the host inside a one-shot workload.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostMount {
    /// Absolute path on the host; made by the caller, never from input.
    pub host_path: std::path::PathBuf,
    /// Absolute path inside.
    pub path: String,
    /// Whether it may be written.
    pub writable: bool,
}

/// A folder that the one-shots of a component find as the last good one left it: a cache of a package client. Its loss
/// costs time and nothing else.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CacheFolder {
    /// Its name among those of the component: letters, digits, `_` and `-`; made by the caller, never from input.
    pub name: String,
    /// Absolute path inside.
    pub path: String,
    /// Where a driver that runs one-shots on this host keeps it; it is there.
    pub host_path: std::path::PathBuf,
}

/// A workload that runs once to its end: a step of a build, or `arco run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneShot {
    /// Its id.
    pub id: InstanceId,
    /// Tenant, for isolation.
    pub tenant: TenantName,
    /// Component that it works for.
    pub component: ComponentId,
    /// Root file system.
    pub image: ImageRef,
    /// Further layers on top of the image, lowest first (a half-built image).
    pub extra_layers: Vec<crate::artifact::Layer>,
    /// Program and arguments, run without a shell.
    pub argv: Vec<String>,
    /// Variables. Never written to disk but on tmpfs.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: String,
    /// `user[:group]`; empty means root of the user namespace.
    pub user: String,
    /// Whether its program is a user without rights, whatever `user` says, who owns its working folder, its caches, copies of
    /// its mounts and what is exported of it; nothing else there acts by its variables. For programs where root of a pod is
    /// root of the node; the image must be one of the platform.
    #[serde(default)]
    pub unprivileged: bool,
    /// Limits; `disk_mb` bounds the writable layer.
    pub resources: Resources,
    /// Ended after this time.
    pub timeout_ms: u64,
    /// What it may reach.
    pub network: OneShotNetwork,
    /// Folders of the host.
    pub mounts: Vec<HostMount>,
    /// Folders that are kept for the next one-shots of the component; never part of the exported layer.
    pub caches: Vec<CacheFolder>,
    /// Most that all caches of the component may take where the driver keeps them itself, in MiB; 0 keeps none.
    pub cache_mb: u32,
    /// Volumes of the component (for `arco run`).
    pub volumes: Vec<VolumeSpec>,
    /// The place of a stateful component whose own volumes these are.
    #[serde(default)]
    pub place: u32,
    /// Configuration files, as of the component's instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InstanceFile>,
    /// Whether what it wrote is exported as a layer into the blob store.
    pub export: Option<LayerExport>,
    /// Where it may run, on a cluster.
    #[serde(default, skip_serializing_if = "Scheduling::is_empty")]
    pub scheduling: Scheduling,
    /// A raw part of a pod template, as of the component's instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<serde_json::Value>,
}

impl OneShot {
    /// A one-off run of what the instances of a component run (`arco run`, cron); as they do, it knows its own id.
    pub fn of_template(
        id: InstanceId,
        tenant: TenantName,
        component: ComponentId,
        template: InstanceTemplate,
        timeout_ms: u64,
    ) -> Self {
        let mut env = template.env;
        env.insert("ARCO_INSTANCE".to_owned(), id.to_string());
        Self {
            id,
            tenant,
            component,
            image: template.image,
            extra_layers: Vec::new(),
            argv: template.argv,
            env,
            working_dir: template.working_dir,
            user: template.user,
            unprivileged: false,
            resources: template.resources,
            timeout_ms,
            network: OneShotNetwork::Instance,
            mounts: Vec::new(),
            caches: Vec::new(),
            cache_mb: 0,
            volumes: template.volumes,
            place: 0,
            files: template.files,
            export: None,
            scheduling: template.scheduling,
            overlay: template.overlay,
        }
    }
}

/// How the writable layer of a one-shot becomes an image layer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LayerExport {
    /// Only these absolute paths (and their parents); empty means all.
    pub include: Vec<String>,
    /// Never these absolute paths.
    pub exclude: Vec<String>,
}

#[cfg(test)]
mod tests;
