//! Pods that make and remove folders, and volumes. Pure.
//!
//! What must hold: a pod sees the one folder that volumes lie in and nothing else of its node, has no account in the cluster,
//! and no capability but, where it removes content of anybody, those for that; no word of a claim gets into a path.

use super::world::{CHOSEN, Claim, MADE_BY, NODE, PROVISIONER, ROLE, Task};
use crate::names;
use crate::render::{Kind, Object};
use arco_config::KubernetesConfig;
use serde_json::{Value, json};

/// Name of the container, and where it sees the folder that volumes lie in.
const CONTAINER: &str = "folder";
const SEEN_AT: &str = "/volumes";
/// How long a pod may work, in seconds: what is removed may be many files.
const MAKING_S: u32 = 120;
const REMOVING_S: u32 = 3600;

/// How a container is confined that works on folders of its node: root, because they are root's, and nothing more.
pub(crate) fn confined() -> Value {
    json!({
        "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// The pod that makes or removes the folder of a volume on a node.
pub(super) fn pod(task: Task, volume: &str, node: &str, folder: &str, config: &KubernetesConfig) -> Object {
    let mut security = confined();
    if task == Task::Remove {
        // Instances run as anybody, and may have closed what they wrote.
        security["capabilities"]["add"] = json!(["DAC_OVERRIDE", "FOWNER"]);
    }
    let container = json!({
        "name": CONTAINER,
        "image": config.local_storage_image,
        "args": ["cluster", "volume-folder", task.word(), "--folder", SEEN_AT, volume],
        "volumeMounts": [{ "name": "volumes", "mountPath": SEEN_AT }],
        "resources": { "requests": { "cpu": "1m", "memory": "16Mi" }, "limits": { "memory": "128Mi" } },
        "securityContext": security,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let mut spec = json!({
        // Chosen already; a node that is closed for new pods still has its volumes.
        "nodeName": node,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": if task == Task::Make { MAKING_S } else { REMOVING_S },
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "tolerations": [{ "operator": "Exists" }],
        "containers": [container],
        "volumes": [{ "name": "volumes", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } }],
    });
    if !config.local_storage_image_pull_secret.is_empty() {
        spec["imagePullSecrets"] = json!([{ "name": config.local_storage_image_pull_secret }]);
    }
    let mut labels = names::platform_labels(&config.namespace_prefix);
    labels.insert(names::ROLE.to_owned(), ROLE.into());
    Object::new(Kind::Pod, &config.local_storage_namespace, &task.pod(volume), labels, json!({ "spec": spec }))
}

/// The volume of a claim, whose folder is there. `hostname`: what volumes call its node; `reclaim`: what becomes of its content.
pub(super) fn volume(claim: &Claim, folder: &str, hostname: &str, reclaim: &str, config: &KubernetesConfig) -> Object {
    let name = claim.volume();
    let of = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": claim.namespace, "name": claim.name, "uid": claim.uid,
    });
    let path = format!("{folder}/{name}");
    let spec = folder_of_node(&path, hostname, &claim.size, &config.local_storage_class, reclaim, &of);
    let labels = names::platform_labels(&config.namespace_prefix);
    let mut object = Object::new(Kind::Volume, "", &name, labels, json!({ "spec": spec }));
    object.annotate(MADE_BY, PROVISIONER);
    object.annotate(NODE, claim.node.as_str());
    object
}

/// What a volume is that is a folder of one node, for the claim `of`.
pub(crate) fn folder_of_node(path: &str, hostname: &str, size: &str, class: &str, reclaim: &str, of: &Value) -> Value {
    let here = json!({ "key": names::HOSTNAME, "operator": "In", "values": [hostname] });
    json!({
        "capacity": { "storage": size },
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "persistentVolumeReclaimPolicy": reclaim,
        "storageClassName": class,
        "claimRef": of,
        "local": { "path": path },
        "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [here] }] } },
    })
}

/// What lets the scheduler choose another node for a claim.
pub(super) fn choose_again(claim: &Claim) -> Value {
    json!({ "metadata": { "uid": claim.uid, "annotations": { (CHOSEN): null } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> KubernetesConfig {
        KubernetesConfig {
            local_storage_class: "arco-local".into(),
            local_storage_namespace: "arco-system-nodes".into(),
            local_storage_image: "registry.test/arco:1".into(),
            ..KubernetesConfig::default()
        }
    }

    #[test]
    fn a_pod_sees_one_folder_and_may_nothing_else() {
        let made = pod(Task::Make, "pvc-u1", "n1", "/folders", &config());
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "make-pvc-u1",
                "namespace": "arco-system-nodes",
                "labels": {
                    "app.kubernetes.io/managed-by": "arco", "arco.internal/platform": "arco",
                    "arco.internal/role": "volume-folder",
                },
                "annotations": {},
            },
            "spec": {
                "nodeName": "n1",
                "restartPolicy": "Never",
                "activeDeadlineSeconds": 120,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "folder",
                    "image": "registry.test/arco:1",
                    "args": ["cluster", "volume-folder", "make", "--folder", "/volumes", "pvc-u1"],
                    "volumeMounts": [{ "name": "volumes", "mountPath": "/volumes" }],
                    "resources": { "requests": { "cpu": "1m", "memory": "16Mi" }, "limits": { "memory": "128Mi" } },
                    "securityContext": {
                        "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
                    },
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }],
                "volumes": [{ "name": "volumes", "hostPath": { "path": "/folders", "type": "DirectoryOrCreate" } }],
            },
        });
        assert_eq!(made.body, wanted);
        let secret = KubernetesConfig { local_storage_image_pull_secret: "login".into(), ..config() };
        let removes = pod(Task::Remove, "pvc-u1", "n1", "/folders", &secret).body;
        let container = &removes["spec"]["containers"][0];
        assert_eq!(container["args"][2], "remove");
        assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["DAC_OVERRIDE", "FOWNER"]));
        assert_eq!(removes["spec"]["imagePullSecrets"], json!([{ "name": "login" }]));
    }

    #[test]
    fn a_volume_is_of_one_claim_and_one_node() {
        let claim = Claim {
            namespace: "arco-acme".into(),
            name: "data".into(),
            uid: "u1".into(),
            node: "n1".into(),
            size: "5Gi".into(),
            ..Claim::default()
        };
        let made = volume(&claim, "/folders", "host-1", "Delete", &config());
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": "pvc-u1",
                "labels": { "app.kubernetes.io/managed-by": "arco", "arco.internal/platform": "arco" },
                "annotations": { "pv.kubernetes.io/provisioned-by": "arco.internal/local", "arco.internal/node": "n1" },
            },
            "spec": {
                "capacity": { "storage": "5Gi" },
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": "arco-local",
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": "arco-acme", "name": "data", "uid": "u1",
                },
                "local": { "path": "/folders/pvc-u1" },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": ["host-1"] },
                ]}]}},
            },
        });
        assert_eq!((made.kind, made.body), (Kind::Volume, wanted));
    }
}
