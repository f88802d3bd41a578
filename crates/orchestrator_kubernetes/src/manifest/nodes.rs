//! What runs on nodes, opt-in: one DaemonSet lets containerd find and trust our registry, another one reads the output of
//! instances; on one node a third one makes the folder of the server's own volume; and the pods that make and remove other
//! volumes, which the leading controller starts (`local_storage`).
//!
//! All need a folder of the node, which only the `privileged` standard allows; so they have a namespace of their own, and
//! the servers stay in one that allows nothing. What must hold: a pod sees that one folder and nothing else of the node, but
//! for containerd's settings, which the one that trusts the registry reads; it has no account in the cluster and, of the
//! DaemonSets, no capability; the one that reads output may not write.

use super::Installation;
use super::objects::{REGISTRY_PORT, TOLD_BY_LOG, labels, selector};
use super::parts::PEERS_PORT;
use crate::local_storage::{PROVISIONER, confined, folder_of_node};
use crate::names;
use serde_json::{Value, json};
use std::path::Path;

/// The DaemonSet that reads output, its label, and the secret with its certificate.
pub(super) const LOGS: &str = "node-logs";
/// Name of that secret.
pub(crate) const CREDENTIALS: &str = "arco-node";
/// The DaemonSet that makes the folder of the one server's volume, and its label.
const SERVER_VOLUME: &str = "server-volume";
/// The claim that the one server's stateful set makes.
const SERVER_CLAIM: &str = "state-arco-0";

/// The namespace.
pub(super) fn namespace(it: &Installation) -> String {
    format!("{}-nodes", it.namespace)
}

/// Namespace and DaemonSets.
pub(super) fn all(it: &Installation) -> Vec<Value> {
    let mut sets = Vec::new();
    sets.extend(it.containerd_hosts.as_ref().map(|folder| trust(it, folder)));
    sets.extend(it.node_logs.as_ref().map(|folder| logs(it, folder)));
    sets.extend(of_server(it).map(|folder| server_folder(it, folder)));
    if sets.is_empty() && it.local_storage.is_none() {
        return sets;
    }
    sets.extend(it.local_storage.as_ref().map(|_| class(it)));
    let mut guarded = labels("nodes");
    guarded["pod-security.kubernetes.io/enforce"] = "privileged".into();
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace(it), "labels": guarded } });
    sets.insert(0, namespace);
    sets
}

/// The class of local storage. A volume is made where its first pod is to run. Its size is no limit, so nothing is to grow.
fn class(it: &Installation) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": { "name": it.local_class(), "labels": labels("nodes") },
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": false,
    })
}

/// Where the volume of one server lies, if that is to be a folder of a node.
fn of_server(it: &Installation) -> Option<&Path> {
    it.local_storage.as_deref().filter(|_| it.replicas.is_none() && !it.server_node.is_empty())
}

/// Name of the volume of one server, and of its folder.
fn server_volume_name(it: &Installation) -> String {
    format!("{}-state", it.namespace)
}

/// The volume of one server, bound to its claim. Its content stays when the platform is uninstalled.
pub(super) fn server_volume(it: &Installation) -> Option<Value> {
    let (folder, name) = (of_server(it)?, server_volume_name(it));
    let of = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": it.namespace, "name": SERVER_CLAIM,
    });
    let (path, size) = (folder.join(&name), format!("{}Gi", it.volume_gb));
    Some(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": { "name": name, "labels": labels("server") },
        "spec": folder_of_node(&path.to_string_lossy(), &it.server_node, &size, "", "Retain", &of),
    }))
}

/// Makes the folder of that volume on its node.
fn server_folder(it: &Installation, folder: &Path) -> Value {
    let container = json!({
        "name": SERVER_VOLUME, "image": it.image,
        "args": ["cluster", "volume-folder", "make", "--stay", "--folder", "/volumes", server_volume_name(it)],
        "volumeMounts": [{ "name": "volumes", "mountPath": "/volumes" }],
        "resources": { "requests": { "cpu": "1m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
    });
    let volumes = json!([{ "name": "volumes", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } }]);
    let mut set = set(it, &format!("arco-{SERVER_VOLUME}"), SERVER_VOLUME, container, volumes);
    set["spec"]["template"]["spec"]["nodeSelector"] = json!({ (names::HOSTNAME): it.server_node });
    set
}

/// One `hosts.toml` below containerd's folder of hosts.
fn trust(it: &Installation, folder: &Path) -> Value {
    let service = format!("arco-registry.{}.svc:{REGISTRY_PORT}", it.namespace);
    let settings = settings(folder);
    let container = json!({
        "name": "trust-registry", "image": it.image,
        "args": [
            "cluster", "trust-registry", "--name", it.registry_host(), "--service", service, "--folder", "/hosts",
            "--node-folder", folder, "--settings", "/settings", "--node-settings", settings,
        ],
        "volumeMounts": [
            { "name": "hosts", "mountPath": "/hosts" },
            { "name": "settings", "mountPath": "/settings", "readOnly": true },
        ],
        "resources": { "requests": { "cpu": "1m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
    });
    let volumes = json!([
        { "name": "hosts", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } },
        { "name": "settings", "hostPath": { "path": settings, "type": "DirectoryOrCreate" } },
    ]);
    let mut set = set(it, "arco-trust-registry", "nodes", container, volumes);
    // The new pod takes the file over before the old one leaves, which removes it only while it is its own.
    set["spec"]["minReadySeconds"] = 5.into();
    set["spec"]["updateStrategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": 0 } });
    set
}

/// Where containerd's settings are: the folder `containerd` that the folder of hosts is in, as with k3s, else the usual one;
/// never another, which could hold what is not containerd's.
fn settings(hosts: &Path) -> &Path {
    hosts.ancestors().skip(1).find(|it| it.ends_with("containerd")).unwrap_or(Path::new("/etc/containerd"))
}

/// The output of instances, read by whom the files belong to.
fn logs(it: &Installation, folder: &Path) -> Value {
    let servers = format!("arco-api.{}.svc:{PEERS_PORT}", it.namespace);
    let container = json!({
        "name": LOGS, "image": it.image,
        "args": [
            "cluster", "node-logs", "--folder", "/pods", "--namespace-prefix", it.namespace_prefix,
            "--servers", servers, "--credentials", "/etc/arco/node",
        ],
        "volumeMounts": [
            { "name": "pods", "mountPath": "/pods", "readOnly": true },
            { "name": "credentials", "mountPath": "/etc/arco/node", "readOnly": true },
        ],
        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } },
    });
    let volumes = json!([
        { "name": "pods", "hostPath": { "path": folder, "type": "Directory" } },
        // Made by the controller that leads, and renewed.
        { "name": "credentials", "secret": { "secretName": CREDENTIALS, "defaultMode": 0o400 } },
    ]);
    set(it, &format!("arco-{LOGS}"), LOGS, container, volumes)
}

fn set(it: &Installation, name: &str, part: &str, mut container: Value, volumes: Value) -> Value {
    container["terminationMessagePolicy"] = TOLD_BY_LOG.into();
    container["securityContext"] = confined();
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "tolerations": [{ "operator": "Exists" }],
        "containers": [container],
        "volumes": volumes,
    });
    if !it.image_pull_secret.is_empty() {
        pod["imagePullSecrets"] = json!([{ "name": it.image_pull_secret }]);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": name, "namespace": namespace(it), "labels": labels(part) },
        "spec": {
            "selector": { "matchLabels": selector(part) },
            "template": { "metadata": { "labels": labels(part) }, "spec": pod },
        },
    })
}
