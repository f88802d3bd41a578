//! A workload plan as Kubernetes objects. Pure: no client, no clock; equal inputs give equal objects.
//!
//! What must hold: no secret value stands anywhere but in a Secret; a pod template never changes under one key, so that
//! Kubernetes replaces no instance by itself: a change makes a workload of another key beside the old one (for stateful
//! components: a template that only new pods get), and the driver moves from one to the other.

mod autoscaling;
mod files;
mod network;
mod overlay;
mod placement;
mod pod;
mod tenant;
mod volumes;

pub(crate) use files::config_map;
pub(crate) use pod::one_shot;
pub(crate) use tenant::{held_credential, node_credentials, pull_secret, tenant};

use crate::features::Features;
use crate::names;
use arco_config::KubernetesConfig;
use arco_model::artifact::{Digest, ImageConfig};
use arco_model::plan::WorkloadPlan;
use arco_model::spec::ComponentKind;
use base64::Engine as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What an object is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(crate) enum Kind {
    Claim,
    Secret,
    ConfigMap,
    Service,
    NetworkPolicy,
    DisruptionBudget,
    Autoscaler,
    Scale,
    Deployment,
    StatefulSet,
    Job,
    Pod,
    Namespace,
    Quota,
    Definition,
    Volume,
}

impl Kind {
    /// Group and version, kind, and the word of its address.
    pub(crate) fn wire(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Claim => ("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
            Self::Secret => ("v1", "Secret", "secrets"),
            Self::ConfigMap => ("v1", "ConfigMap", "configmaps"),
            Self::Service => ("v1", "Service", "services"),
            Self::NetworkPolicy => ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
            Self::DisruptionBudget => ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Self::Autoscaler => ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
            Self::Scale => ("arco.internal/v1", "ComponentScale", "componentscales"),
            Self::Deployment => ("apps/v1", "Deployment", "deployments"),
            Self::StatefulSet => ("apps/v1", "StatefulSet", "statefulsets"),
            Self::Job => ("batch/v1", "Job", "jobs"),
            Self::Pod => ("v1", "Pod", "pods"),
            Self::Namespace => ("v1", "Namespace", "namespaces"),
            Self::Quota => ("v1", "ResourceQuota", "resourcequotas"),
            Self::Definition => ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions"),
            Self::Volume => ("v1", "PersistentVolume", "persistentvolumes"),
        }
    }
}

/// An object as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    /// Empty for objects of the whole cluster.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) body: Value,
}

impl Object {
    /// `rest`: its further fields.
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str, labels: Map<String, Value>, rest: Value) -> Self {
        let (version, word, _) = kind.wire();
        let mut body = json!({
            "apiVersion": version,
            "kind": word,
            "metadata": { "name": name, "labels": labels, "annotations": {} },
        });
        if !namespace.is_empty() {
            body["metadata"]["namespace"] = namespace.into();
        }
        for (field, value) in rest.as_object().cloned().unwrap_or_default() {
            body[field] = value;
        }
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), body }
    }

    /// A whole document of the cluster itself.
    pub(crate) fn of_cluster(kind: Kind, body: Value) -> Self {
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Self { kind, namespace: String::new(), name, body }
    }

    pub(crate) fn annotate(&mut self, name: &str, value: impl Into<Value>) {
        self.body["metadata"]["annotations"][name] = value.into();
    }

    /// Whether it is a Service without an address.
    pub(crate) fn is_headless(&self) -> bool {
        self.body["spec"]["clusterIP"] == "None"
    }

    /// Notes what is sent in the object itself, so that a later process knows it.
    fn sealed(mut self) -> Self {
        let applied = digest(&self.body);
        self.annotate(names::APPLIED, applied);
        self
    }

    /// The digest of what is sent.
    pub(crate) fn applied(&self) -> &str {
        self.body["metadata"]["annotations"][names::APPLIED].as_str().unwrap_or_default()
    }
}

/// An object that lies ready to be sent: its fields are one text, which takes a tenth of their tree. There are several for each
/// component, for as long as it is there.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The digest of what is sent.
    pub(crate) applied: String,
    /// Whether it is a Service without an address.
    pub(crate) headless: bool,
    body: Box<str>,
}

impl Packed {
    /// It as it is sent.
    pub(crate) fn unpack(&self) -> Object {
        // The text was written below.
        let body = serde_json::from_str(&self.body).unwrap_or_default();
        Object { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone(), body }
    }
}

impl From<Object> for Packed {
    fn from(it: Object) -> Self {
        let (applied, headless) = (it.applied().to_owned(), it.is_headless());
        let body = it.body.to_string().into();
        Self { kind: it.kind, namespace: it.namespace, name: it.name, applied, headless, body }
    }
}

/// What rendering needs beside the plan.
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a KubernetesConfig,
    /// Configuration of the plan's image.
    pub(crate) image: &'a ImageConfig,
    /// Names and addresses of the components that this one may call, unless DNS of ours answers.
    pub(crate) hosts: &'a BTreeMap<String, Ipv4Addr>,
    /// Whether a pull credential lies in the namespace.
    pub(crate) pull_secret: bool,
    /// What the cluster has.
    pub(crate) features: Features,
}

/// All objects of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    pub(crate) namespace: String,
    /// Stands for the pod template: instances of another key are replaced.
    pub(crate) key: String,
    /// In the order of sending; the workload comes after them.
    pub(crate) others: Vec<Packed>,
    /// Shared claims and those of each place, as they are made new.
    pub(crate) claims: Vec<Packed>,
    /// Where load writes how many pods there are to be; made once, then not ours.
    pub(crate) scale: Option<Packed>,
    kind: ComponentKind,
    base: String,
    workload: Packed,
    fixed: String,
}

impl Rendered {
    /// Name of the workload of a key. A stateful component has only one, whose pods keep their names.
    pub(crate) fn workload_name(&self, key: &str) -> String {
        match self.kind {
            ComponentKind::Stateful => self.base.clone(),
            _ => format!("{}-{key}", self.base),
        }
    }

    /// The workload with that many pods.
    pub(crate) fn workload(&self, replicas: u32) -> Object {
        let mut object = self.workload.unpack();
        if self.workload.kind == Kind::Job {
            object.body["spec"]["parallelism"] = replicas.into();
            object.body["spec"]["completions"] = replicas.into();
        } else {
            object.body["spec"]["replicas"] = replicas.into();
        }
        object.sealed()
    }

    /// Digest of what of a stateful set cannot be changed.
    pub(crate) fn fixed(&self) -> &str {
        &self.fixed
    }
}

/// Renders a plan; the error says what of it cannot be had on Kubernetes, and what to do.
pub(crate) fn component(plan: &WorkloadPlan, around: &Surroundings<'_>) -> Result<Rendered, String> {
    let prefix = &around.config.namespace_prefix;
    let (namespace, base) = (names::namespace(prefix, &plan.tenant), names::base(plan));
    let labels = names::component_labels(prefix, plan);
    let pod = pod::template(plan, around)?;
    let key =
        digest(&json!([pod, plan.template.env, matches!(plan.kind, ComponentKind::Job).then_some(plan.replicas)]));
    let key = key[..10].to_owned();
    let secret_name = format!("{base}-{key}");
    let pod = pod::keyed(pod, &key, &secret_name, plan, around.image);

    let mut others = Vec::new();
    let mut keyed = labels.clone();
    keyed.insert(names::KEY.to_owned(), key.as_str().into());
    if !plan.template.env.is_empty() {
        let rest = json!({ "type": "Opaque", "immutable": true, "data": encoded(&plan.template.env) });
        others.push(Object::new(Kind::Secret, &namespace, &secret_name, keyed.clone(), rest).sealed());
    }
    others.extend(config_map(&plan.template.files, &namespace, &secret_name, keyed).map(Object::sealed));
    others.extend(network::service(plan, &namespace, &base, &labels));
    others.extend(network::places(plan, &namespace, &base, &labels));
    others.push(network::policy(plan, around.config, &namespace, &base, &labels));
    others.extend(network::disruption_budget(plan, &namespace, &base, &labels));
    others.extend(autoscaling::autoscaler(plan, &namespace, &base, &labels));
    let scale = autoscaling::scale(plan, &namespace, &base, &labels);
    let workload = workload(plan, around, &namespace, &base, &key, &labels, pod);
    let claims = volumes::claims(plan, around.config, &namespace, &labels);
    let fixed = workload.body["metadata"]["annotations"][names::FIXED].as_str().unwrap_or_default().to_owned();
    let packed = |all: Vec<Object>| all.into_iter().map(Packed::from).collect();
    let (others, claims) = (packed(others), packed(claims));
    let (scale, workload) = (scale.map(Packed::from), workload.into());
    Ok(Rendered { namespace, key, others, claims, scale, kind: plan.kind, base, workload, fixed })
}

fn workload(
    plan: &WorkloadPlan,
    around: &Surroundings<'_>,
    namespace: &str,
    base: &str,
    key: &str,
    labels: &Map<String, Value>,
    pod: Value,
) -> Object {
    let mut own = labels.clone();
    let component = plan.component.as_str();
    match plan.kind {
        ComponentKind::Stateless => {
            own.insert(names::KEY.to_owned(), key.into());
            let selector = json!({ "matchLabels": { (names::COMPONENT): component, (names::KEY): key } });
            let rest = json!({ "spec": {
                "replicas": 0,
                "revisionHistoryLimit": 0,
                "selector": selector,
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
                "template": pod,
            }});
            Object::new(Kind::Deployment, namespace, &format!("{base}-{key}"), own, rest)
        }
        ComponentKind::Stateful => {
            let templates = volumes::templates(plan, around.config, labels);
            let service = network::places_name(base);
            let fixed = digest(&json!([templates, service]));
            let selector = json!({ "matchLabels": { (names::COMPONENT): component, (names::ROLE): "instance" } });
            let rest = json!({ "spec": {
                "replicas": 0,
                "revisionHistoryLimit": 1,
                "serviceName": service,
                "podManagementPolicy": "OrderedReady",
                "selector": selector,
                "updateStrategy": { "type": "OnDelete" },
                "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
                "template": pod,
                "volumeClaimTemplates": templates,
            }});
            let mut object = Object::new(Kind::StatefulSet, namespace, base, own, rest);
            object.annotate(names::FIXED, fixed);
            object
        }
        ComponentKind::Job | ComponentKind::Cron => {
            own.insert(names::KEY.to_owned(), key.into());
            let mut spec = json!({ "completionMode": "Indexed", "parallelism": 0, "completions": 0, "template": pod });
            if around.features.places_of_jobs {
                spec["backoffLimitPerIndex"] = JOB_RETRIES.into();
                spec["maxFailedIndexes"] = plan.replicas.into();
                spec["podReplacementPolicy"] = "Failed".into();
            } else {
                // All places share one count: it ends the job, with the places that still run.
                spec["backoffLimit"] = (JOB_RETRIES * plan.replicas.max(1)).into();
            }
            Object::new(Kind::Job, namespace, &format!("{base}-{key}"), own, json!({ "spec": spec }))
        }
    }
}

/// Texts as a Secret keeps them.
pub(crate) fn encoded(texts: &BTreeMap<String, String>) -> Value {
    let engine = base64::engine::general_purpose::STANDARD;
    texts.iter().map(|(name, text)| (name.clone(), Value::from(engine.encode(text)))).collect::<Map<_, _>>().into()
}

/// How often a place of a job is tried again after its program failed.
const JOB_RETRIES: u32 = 2;

/// 32 hex digits that stand for a value.
pub(crate) fn digest(value: &Value) -> String {
    Digest::of(value.to_string().as_bytes()).hex()[..32].to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
