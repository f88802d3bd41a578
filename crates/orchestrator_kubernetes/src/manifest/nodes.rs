//! What runs on each node, opt-in: one DaemonSet lets containerd find and trust our registry, another one reads the output of
//! instances.
//!
//! Both need a folder of the node, which only the `privileged` standard allows; so they have a namespace of their own, and
//! the servers stay in one that allows nothing. What must hold: a pod sees that one folder and nothing else of the node, but
//! for containerd's settings, which the one that trusts the registry reads; it has no account in the cluster and no
//! capability; only the one that trusts the registry may write, and that folder alone.

use super::Installation;
use super::objects::{REGISTRY_PORT, labels, selector};
use super::parts::PEERS_PORT;
use serde_json::{Value, json};
use std::path::Path;

/// The DaemonSet that reads output, its label, and the secret with its certificate.
pub(super) const LOGS: &str = "node-logs";
/// Name of that secret.
pub(crate) const CREDENTIALS: &str = "arco-node";

/// The namespace.
pub(super) fn namespace(it: &Installation) -> String {
    format!("{}-nodes", it.namespace)
}

/// Namespace and DaemonSets.
pub(super) fn all(it: &Installation) -> Vec<Value> {
    let mut sets = Vec::new();
    sets.extend(it.containerd_hosts.as_ref().map(|folder| trust(it, folder)));
    sets.extend(it.node_logs.as_ref().map(|folder| logs(it, folder)));
    if sets.is_empty() {
        return sets;
    }
    let mut guarded = labels("nodes");
    guarded["pod-security.kubernetes.io/enforce"] = "privileged".into();
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace(it), "labels": guarded } });
    sets.insert(0, namespace);
    sets
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
    set(it, "arco-trust-registry", "nodes", container, volumes)
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
    container["securityContext"] = json!({
        "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    });
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
