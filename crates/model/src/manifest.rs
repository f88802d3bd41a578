//! `arco.yaml`: a whole application in one document. The same schema in a repository and in `arco apply -f`.

use crate::name::{ApplicationName, ComponentName};
use crate::route::{ComponentTarget, Route};
use crate::spec::autoscaling::Autoscaling;
use crate::spec::files::FileSpec;
use crate::spec::scheduling::Scheduling;
use crate::spec::{ComponentKind, Port, Probe, Resources, RolloutSpec, VolumeSpec};
use crate::traffic::StreamProtocol;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A whole application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationManifest {
    /// Name; in a repository it may be left out and comes from `--app`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<ApplicationName>,
    /// Components by name.
    pub components: BTreeMap<ComponentName, ComponentManifest>,
}

/// One component of an application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComponentManifest {
    /// Folder (relative to the file), Git URL with optional `#ref`, or `image:REF`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Sub-directory of the source.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dir: String,
    /// How its instances live.
    pub kind: ComponentKind,
    /// For `cron`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// How many by load, instead of a fixed number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Names of secrets that must be set (`arco secret set`); values never stand in this file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Variables of the build.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub build_env: BTreeMap<String, String>,
    /// Volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeSpec>,
    /// Configuration files, read-only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSpec>,
    /// `[application/]component[=ALIAS]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bind: Vec<String>,
    /// What runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<crate::spec::Command>,
    /// How readiness is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// How changes are rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
    /// Where instances may run, on a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Scheduling>,
    /// A raw part of a pod template, put over what is made of the component on Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<serde_json::Value>,
    /// Every route of the component but its own host; when absent, they stay as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route<ComponentTarget>>>,
    /// Every port of the gateway that leads to the component without HTTP; when absent, they stay as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<Vec<StreamManifest>>,
}

/// A port of the gateway that leads to a component without HTTP.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamManifest {
    /// `tcp` or `udp`.
    pub protocol: StreamProtocol,
    /// Port of the gateway; a free one of the pool when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Inner port of the component; its first outer one of the protocol when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Address of the gateway's machine that it is served on, where that address is; every one of
    /// `gateway.stream_listen` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
}
