//! What the cluster says of local storage, cut down to what is decided by. Pure.
//!
//! What must hold: only claims of our class, volumes that we made, and pods that we started for them are kept; of every node
//! its name, what volumes call it, and whether it answers.

use crate::names;
use crate::seen::convert::{stamp, word};
use arco_model::time::Timestamp;
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;
use std::path::Path;

/// What makes the volumes, as storage classes name it.
pub(crate) const PROVISIONER: &str = "arco.internal/local";
/// Which provisioner the cluster asks for a claim's volume (Kubernetes' own annotation), and its older name.
const ASKED: [&str; 2] = ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// The node that the scheduler chose for a claim (Kubernetes' own annotation).
pub(super) const CHOSEN: &str = "volume.kubernetes.io/selected-node";
/// Who made a volume (Kubernetes' own annotation).
pub(super) const MADE_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Name of the node that a volume's folder is on (annotation).
pub(super) const NODE: &str = "arco.internal/node";
/// Value of [`names::ROLE`] of the pods.
pub(super) const ROLE: &str = "volume-folder";

/// What the name of a volume begins with; the uid of its claim follows.
pub(super) const PREFIX: &str = "pvc-";

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct World {
    /// By uid.
    pub(super) claims: BTreeMap<String, Claim>,
    /// By name.
    pub(super) volumes: BTreeMap<String, Volume>,
    /// By name.
    pub(super) nodes: BTreeMap<String, Node>,
    /// By name.
    pub(super) pods: BTreeMap<String, Pod>,
}

/// A claim of our class.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Claim {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Node that the scheduler chose; empty: none yet.
    pub(super) node: String,
    /// How much it asks for, in the API's words.
    pub(super) size: String,
    /// Why no folder can be what it asks for.
    pub(super) impossible: Option<&'static str>,
    /// Whether it has a volume.
    pub(super) bound: bool,
    pub(super) deleting: bool,
}

impl Claim {
    /// Name of the volume that is made for it: the same in every process, and never of another claim.
    pub(super) fn volume(&self) -> String {
        format!("{PREFIX}{}", self.uid)
    }
}

/// A volume that we made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Volume {
    pub(super) uid: String,
    /// Node that its folder is on.
    pub(super) node: String,
    /// What its folder lies in; `None`: it is not where we make folders.
    pub(super) folder: Option<String>,
    /// Whether its claim is gone.
    pub(super) released: bool,
    /// Whether its content goes with its claim.
    pub(super) goes: bool,
    pub(super) deleting: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    /// What volumes call it.
    pub(super) hostname: String,
    /// Whether it answers.
    pub(super) ready: bool,
}

/// What a pod does with a volume's folder.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Task {
    Make,
    Remove,
}

impl Task {
    /// As the program takes it, and names of pods begin.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Make => "make",
            Self::Remove => "remove",
        }
    }

    /// Name of the pod.
    pub(super) fn pod(self, volume: &str) -> String {
        format!("{}-{volume}", self.word())
    }
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// It has not ended; with the reason when something is in its way.
    Begun(Option<String>),
    Done,
    /// Why, and when.
    Failed(String, Timestamp),
}

/// A pod that makes or removes a folder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) task: Task,
    pub(super) volume: String,
    pub(super) node: String,
    /// What the volume's folder lies in.
    pub(super) folder: String,
    pub(super) created: Timestamp,
    pub(super) state: State,
    pub(super) deleting: bool,
}

/// A claim, if it is of our class and the cluster asks us for its volume.
pub(super) fn claim(it: &api::PersistentVolumeClaim, class: &str) -> (String, Option<Claim>) {
    let (meta, uid) = (&it.metadata, it.metadata.uid.clone().unwrap_or_default());
    let asked = ASKED.iter().any(|it| word(&meta.annotations, it) == PROVISIONER);
    let Some(spec) = it.spec.as_ref().filter(|it| asked && it.storage_class_name.as_deref() == Some(class)) else {
        return (uid, None);
    };
    let size = spec.resources.as_ref().and_then(|it| it.requests.as_ref()).and_then(|it| it.get("storage"));
    let claim = Claim {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: uid.clone(),
        node: word(&meta.annotations, CHOSEN).to_owned(),
        size: size.map(|it| it.0.clone()).unwrap_or_default(),
        impossible: impossible(spec),
        bound: spec.volume_name.as_ref().is_some_and(|it| !it.is_empty()),
        deleting: meta.deletion_timestamp.is_some(),
    };
    (uid, Some(claim))
}

fn impossible(spec: &api::PersistentVolumeClaimSpec) -> Option<&'static str> {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("it is a folder of a node, not a block device: ask for `volumeMode: Filesystem`");
    }
    if modes.iter().any(|it| it != "ReadWriteOnce") {
        return Some(
            "it is a folder of one node, so it can only be `ReadWriteOnce`: ask for that, or for a class whose volumes reach every node",
        );
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Some("it begins empty: neither snapshots nor other volumes can be its source");
    }
    spec.selector.as_ref().map(|_| "it is made new: leave out `selector`, which chooses among volumes that are there")
}

/// A volume, if we made it.
pub(super) fn volume(it: &api::PersistentVolume) -> (String, Option<Volume>) {
    let (meta, name) = (&it.metadata, it.metadata.name.clone().unwrap_or_default());
    let Some(spec) = it.spec.as_ref().filter(|_| word(&meta.annotations, MADE_BY) == PROVISIONER) else {
        return (name, None);
    };
    let volume = Volume {
        uid: meta.uid.clone().unwrap_or_default(),
        node: word(&meta.annotations, NODE).to_owned(),
        folder: spec.local.as_ref().and_then(|it| above(&it.path, &name)),
        released: it.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Released"),
        goes: spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete"),
        deleting: meta.deletion_timestamp.is_some(),
    };
    (name, Some(volume))
}

/// The folder that a volume's folder lies in, if that one is called as the volume is.
fn above(path: &str, name: &str) -> Option<String> {
    let path = Path::new(path);
    let fits = name.starts_with(PREFIX) && path.is_absolute() && path.file_name().is_some_and(|it| it == name);
    path.parent().filter(|_| fits).and_then(Path::to_str).map(str::to_owned)
}

/// A node.
pub(super) fn node(it: &api::Node) -> (String, Option<Node>) {
    let mut conditions = it.status.iter().flat_map(|it| it.conditions.iter().flatten());
    let ready = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
    let hostname = word(&it.metadata.labels, names::HOSTNAME).to_owned();
    (it.metadata.name.clone().unwrap_or_default(), Some(Node { hostname, ready }))
}

/// A pod, if its name says what it is for.
pub(super) fn pod(it: &api::Pod) -> (String, Option<Pod>) {
    let (meta, name) = (&it.metadata, it.metadata.name.clone().unwrap_or_default());
    let of = |task: Task| Some((task, name.strip_prefix(task.word())?.strip_prefix('-')?.to_owned()));
    let Some((task, volume)) = of(Task::Make).or_else(|| of(Task::Remove)) else { return (name, None) };
    let spec = it.spec.as_ref();
    let mut volumes = spec.and_then(|it| it.volumes.as_ref()).into_iter().flatten();
    let folder = volumes.find_map(|it| Some(it.host_path.as_ref()?.path.clone()));
    let created = meta.creation_timestamp.as_ref().map(stamp).unwrap_or_default();
    let pod = Pod {
        uid: meta.uid.clone().unwrap_or_default(),
        task,
        volume,
        node: spec.and_then(|it| it.node_name.clone()).unwrap_or_default(),
        folder: folder.unwrap_or_default(),
        created,
        state: it.status.as_ref().map_or(State::Begun(None), |it| state(it, created)),
        deleting: meta.deletion_timestamp.is_some(),
    };
    (name, Some(pod))
}

fn state(status: &api::PodStatus, created: Timestamp) -> State {
    let container = status.container_statuses.iter().flatten().next();
    let now = container.and_then(|it| it.state.as_ref());
    match status.phase.as_deref() {
        Some("Succeeded") => State::Done,
        Some("Failed") => {
            let ended = now.and_then(|it| it.terminated.as_ref());
            let said = ended.and_then(|it| it.message.clone()).filter(|it| !it.trim().is_empty());
            let code = || ended.map(|it| format!("its program ended with status {}", it.exit_code));
            let why = said.or_else(|| status.message.clone()).or_else(|| status.reason.clone()).or_else(code);
            let at = ended.and_then(|it| it.finished_at.as_ref()).map_or(created, stamp);
            State::Failed(line(&why.unwrap_or_else(|| "the node does not say why".to_owned())), at)
        }
        _ => {
            let waiting = now.and_then(|it| it.waiting.as_ref());
            let reason = waiting.and_then(|it| it.reason.as_deref()).unwrap_or_default();
            let passes = ["", "ContainerCreating", "PodInitializing"].contains(&reason);
            let said = || waiting.and_then(|it| it.message.clone()).unwrap_or_default();
            State::Begun((!passes).then(|| line(&format!("{reason}: {}", said()))))
        }
    }
}

/// In one line, and not longer than an event may be.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

/// Selector of the pods.
pub(super) fn pods_selector(prefix: &str) -> String {
    format!("{},{}={ROLE}", names::platform_selector(prefix), names::ROLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A claim of our class with these fields of its spec.
    fn asked(spec: &Value, provisioner: &str) -> Option<Claim> {
        let mut whole = json!({
            "storageClassName": "arco-local", "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "5Gi" } },
        });
        for (field, value) in spec.as_object().cloned().unwrap_or_default() {
            whole[field] = value;
        }
        let annotations = json!({ (ASKED[0]): provisioner, (CHOSEN): "n1" });
        let meta = json!({ "name": "data", "namespace": "arco-acme", "uid": "u1", "annotations": annotations });
        let it = serde_json::from_value(json!({ "metadata": meta, "spec": whole })).unwrap();
        claim(&it, "arco-local").1
    }

    #[test]
    fn claims_of_our_class_are_read_and_say_what_no_folder_can_be() {
        let found = asked(&json!({}), PROVISIONER).unwrap();
        assert_eq!((found.node.as_str(), found.size.as_str(), found.bound), ("n1", "5Gi", false));
        assert_eq!((found.volume().as_str(), found.impossible), ("pvc-u1", None));
        assert!(asked(&json!({ "volumeName": "x" }), PROVISIONER).unwrap().bound);
        assert!(asked(&json!({ "storageClassName": "fast" }), PROVISIONER).is_none());
        assert!(asked(&json!({}), "rancher.io/local-path").is_none(), "a class of our name that is another's");
        for (spec, wanted) in [
            (json!({ "volumeMode": "Block" }), "block device"),
            (json!({ "accessModes": ["ReadWriteMany"] }), "`ReadWriteOnce`"),
            (json!({ "accessModes": ["ReadWriteOnce", "ReadOnlyMany"] }), "`ReadWriteOnce`"),
            (json!({ "dataSource": { "kind": "PersistentVolumeClaim", "name": "other" } }), "begins empty"),
            (json!({ "selector": {} }), "`selector`"),
        ] {
            let found = asked(&spec, PROVISIONER).unwrap().impossible;
            assert!(found.is_some_and(|it| it.contains(wanted)), "{spec}: {found:?}");
        }
    }

    #[test]
    fn volumes_are_ours_only_where_their_folder_is_called_as_they_are() {
        let of = |name: &str, path: &str, made_by: &str| {
            let annotations = json!({ (MADE_BY): made_by, (NODE): "n1" });
            let it = serde_json::from_value(json!({
                "metadata": { "name": name, "uid": "v1", "annotations": annotations },
                "spec": { "local": { "path": path }, "persistentVolumeReclaimPolicy": "Delete" },
                "status": { "phase": "Released" },
            }));
            volume(&it.unwrap()).1
        };
        let found = of("pvc-u1", "/folders/pvc-u1", PROVISIONER).unwrap();
        assert!(found.released && found.goes && found.node == "n1");
        assert_eq!(found.folder.as_deref(), Some("/folders"));
        assert!(of("pvc-u1", "/folders/pvc-u1", "another").is_none());
        for (name, path) in [("pvc-u1", "/etc"), ("etc", "/etc"), ("pvc-u1", "pvc-u1"), ("pvc-u1", "/a/../pvc-u1/..")] {
            assert_eq!(of(name, path, PROVISIONER).unwrap().folder, None, "{name} {path}");
        }
    }

    #[test]
    fn a_pod_says_how_far_it_is_and_what_is_in_its_way() {
        let of = |name: &str, status: Value| {
            let spec = json!({ "nodeName": "n1", "containers": [], "volumes": [{ "name": "f", "hostPath": { "path": "/folders" } }] });
            let meta = json!({ "name": name, "uid": "p1", "creationTimestamp": "2026-01-01T00:00:00Z" });
            pod(&serde_json::from_value(json!({ "metadata": meta, "spec": spec, "status": status })).unwrap()).1
        };
        let container = |state: Value| json!([{ "name": "folder", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state }]);
        let waits = |reason: &str| json!({ "phase": "Pending", "containerStatuses": container(json!({ "waiting": { "reason": reason, "message": "why\n  not" } })) });
        let ended =
            json!({ "terminated": { "exitCode": 1, "message": "it is\nfull", "finishedAt": "2026-01-01T00:00:09Z" } });
        let began = 1_767_225_600_000;
        for (status, wanted) in [
            (json!({}), State::Begun(None)),
            (waits("ContainerCreating"), State::Begun(None)),
            (waits("ErrImagePull"), State::Begun(Some("ErrImagePull: why not".into()))),
            (json!({ "phase": "Succeeded" }), State::Done),
            (
                json!({ "phase": "Failed", "containerStatuses": container(ended) }),
                State::Failed("it is full".into(), Timestamp(began + 9_000)),
            ),
            (
                json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "no room" }),
                State::Failed("no room".into(), Timestamp(began)),
            ),
        ] {
            let found = of("remove-pvc-u1", status.clone()).unwrap();
            assert_eq!(found.state, wanted, "{status}");
            assert_eq!(
                (found.task, found.volume.as_str(), found.folder.as_str()),
                (Task::Remove, "pvc-u1", "/folders")
            );
        }
        assert_eq!(of("make-pvc-u1", json!({})).unwrap().task, Task::Make);
        assert!(of("arco-trust-registry-x", json!({})).is_none());
    }
}
