//! Opt-in: nodes that find and trust our registry. A DaemonSet writes one `hosts.toml` below containerd's folder of hosts.
//!
//! It needs a folder of the node, which only the `privileged` standard allows; so it has a namespace of its own, and the
//! server stays in one that allows nothing. It may write that folder and nothing else: no token, no network, no capability.

use super::Installation;
use super::objects::{REGISTRY_PORT, labels};
use serde_json::{Value, json};
use std::path::Path;

/// Namespace and DaemonSet.
pub(super) fn trust(it: &Installation, folder: &Path) -> Vec<Value> {
    let namespace = format!("{}-nodes", it.namespace);
    let mut guarded = labels("nodes");
    guarded["pod-security.kubernetes.io/enforce"] = "privileged".into();
    let selector = json!({ "app.kubernetes.io/name": "arco", "app.kubernetes.io/component": "nodes" });
    let service = format!("arco-registry.{}.svc:{REGISTRY_PORT}", it.namespace);
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "tolerations": [{ "operator": "Exists" }],
        "containers": [{
            "name": "trust-registry", "image": it.image,
            "args": ["cluster", "trust-registry", "--name", it.registry_host(), "--service", service, "--folder", "/hosts"],
            "volumeMounts": [{ "name": "hosts", "mountPath": "/hosts" }],
            "resources": { "requests": { "cpu": "1m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
            "securityContext": {
                "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
            },
        }],
        "volumes": [{ "name": "hosts", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } }],
    });
    if !it.image_pull_secret.is_empty() {
        pod["imagePullSecrets"] = json!([{ "name": it.image_pull_secret }]);
    }
    vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": guarded } }),
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": { "name": "arco-trust-registry", "namespace": namespace, "labels": labels("nodes") },
            "spec": {
                "selector": { "matchLabels": selector },
                "template": { "metadata": { "labels": labels("nodes") }, "spec": pod },
            },
        }),
    ]
}
