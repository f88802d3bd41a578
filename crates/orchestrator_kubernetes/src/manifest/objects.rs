//! The documents of the platform itself: who it is and what it may do, its settings, how it is reached, and the server.

use super::{Exposure, Installation};
use crate::access::{OF_ROUTES, RULES};
use crate::names;
use serde_json::{Value, json};

/// REST API, mutual TLS.
pub(super) const API_PORT: u16 = 8443;
/// Health, metrics and console.
pub(super) const CONSOLE_PORT: u16 = 7070;
/// Image registry.
pub(super) const REGISTRY_PORT: u16 = 5000;
/// Gateway, HTTP: above 1024, so that no capability is needed.
pub(super) const HTTP_PORT: u16 = 10080;
/// Gateway, HTTPS.
pub(super) const HTTPS_PORT: u16 = 10443;
/// Where the stores' credentials are mounted.
pub(super) const CREDENTIALS_FOLDER: &str = "/etc/arco/credentials";
/// User and group of our image.
const USER: u32 = 65532;

/// Labels of everything; `part` is what it belongs to.
pub(super) fn labels(part: &str) -> Value {
    json!({ "app.kubernetes.io/name": "arco", "app.kubernetes.io/component": part, (names::MANAGED_BY): "arco-cluster-manifest" })
}

fn selector() -> Value {
    json!({ "app.kubernetes.io/name": "arco", "app.kubernetes.io/component": "server" })
}

fn meta(it: &Installation, name: &str, part: &str) -> Value {
    json!({ "name": name, "namespace": it.namespace, "labels": labels(part) })
}

/// Namespace, account, role and binding.
pub(super) fn access(it: &Installation) -> Vec<Value> {
    let mut guarded = labels("server");
    for mode in ["enforce", "audit", "warn"] {
        guarded[format!("pod-security.kubernetes.io/{mode}")] = "restricted".into();
    }
    let of_routes = if it.route_class.is_empty() { &[] } else { OF_ROUTES };
    let rules: Vec<Value> = RULES
        .iter()
        .chain(of_routes)
        .map(|rule| json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs }))
        .collect();
    let whole = json!({ "name": it.namespace, "labels": labels("server") });
    let mut documents = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": it.namespace, "labels": guarded } }),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(it, "arco", "server"), "automountServiceAccountToken": false }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": whole, "rules": rules }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": whole,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": it.namespace },
            "subjects": [{ "kind": "ServiceAccount", "name": "arco", "namespace": it.namespace }],
        }),
    ];
    if !it.route_class.is_empty() {
        documents.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": { "name": it.route_class, "labels": labels("server") },
            "spec": { "controller": format!("arco.internal/{}", it.route_class) },
        }));
    }
    documents
}

/// The settings' file.
pub(super) fn settings(it: &Installation, text: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(it, "arco", "server"), "data": { "arco.toml": text } })
}

/// How the platform is reached: gateway from outside, API and registry inside, and the name of the one pod.
pub(super) fn services(it: &Installation) -> Vec<Value> {
    let service = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["selector"] = selector();
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta(it, name, "server"), "spec": spec })
    };
    let port = |name: &str, port: u16, target: &str| json!({ "name": name, "port": port, "targetPort": target });
    let kind = match it.gateway {
        Exposure::LoadBalancer => "LoadBalancer",
        Exposure::NodePort => "NodePort",
        Exposure::ClusterIp => "ClusterIP",
    };
    let mut gateway = json!({ "type": kind, "ports": [port("http", 80, "http"), port("https", 443, "https")] });
    if it.gateway != Exposure::ClusterIp {
        gateway["externalTrafficPolicy"] = "Local".into(); // the gateway sees who calls
    }
    let mut registry = port("registry", REGISTRY_PORT, "registry");
    if it.registry_node_port != 0 {
        registry["nodePort"] = it.registry_node_port.into();
    }
    let registry_kind = if it.registry_node_port == 0 { "ClusterIP" } else { "NodePort" };
    vec![
        service("arco-gateway", gateway),
        service(
            "arco-api",
            json!({ "type": "ClusterIP", "ports": [port("api", API_PORT, "api"), port("console", CONSOLE_PORT, "console")] }),
        ),
        service("arco-registry", json!({ "type": registry_kind, "ports": [registry] })),
        // Found before it is ready: it is the name of the pod itself.
        service(
            "arco",
            json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "ports": [port("api", API_PORT, "api")] }),
        ),
    ]
}

/// What guards the server: a budget for drains, and who may call it.
pub(super) fn guards(it: &Installation) -> Vec<Value> {
    let from_all = |ports: &[&str]| {
        let ports: Vec<Value> = ports.iter().map(|it| json!({ "protocol": "TCP", "port": it })).collect();
        json!({ "ports": ports })
    };
    let mut console = from_all(&["console"]);
    console["from"] = json!([{ "podSelector": {} }]);
    vec![
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(it, "arco", "server"),
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": selector() } },
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(it, "arco", "server"),
            "spec": {
                "podSelector": { "matchLabels": selector() }, "policyTypes": ["Ingress"],
                "ingress": [from_all(&["http", "https", "api", "registry"]), console],
            },
        }),
    ]
}

/// The server.
pub(super) fn server(it: &Installation, settings: &str) -> Value {
    let port = |name: &str, port: u16| json!({ "name": name, "containerPort": port });
    let probe = |seconds: u32, failures: u32| json!({ "httpGet": { "path": "/healthz", "port": "console" }, "periodSeconds": seconds, "failureThreshold": failures, "timeoutSeconds": 5 });
    let mut mounts = vec![
        json!({ "name": "state", "mountPath": "/var/lib/arco" }),
        json!({ "name": "cache", "mountPath": "/var/cache/arco" }),
        json!({ "name": "temporary", "mountPath": "/tmp" }),
        json!({ "name": "settings", "mountPath": "/etc/arco/settings", "readOnly": true }),
        json!({ "name": "account", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true }),
    ];
    let token = json!([
        { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
    ]);
    let mut volumes = vec![
        json!({ "name": "cache", "emptyDir": {} }),
        json!({ "name": "temporary", "emptyDir": {} }),
        json!({ "name": "settings", "configMap": { "name": "arco" } }),
        json!({ "name": "account", "projected": { "sources": token, "defaultMode": 0o440 } }),
    ];
    if !it.stores.secret.is_empty() {
        mounts.push(json!({ "name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": true }));
        volumes
            .push(json!({ "name": "credentials", "secret": { "secretName": it.stores.secret, "defaultMode": 0o440 } }));
    }
    let container = json!({
        "name": "server", "image": it.image,
        "args": ["server", "--config", "/etc/arco/settings/arco.toml"],
        "ports": [port("http", HTTP_PORT), port("https", HTTPS_PORT), port("api", API_PORT), port("console", CONSOLE_PORT), port("registry", REGISTRY_PORT)],
        "volumeMounts": mounts,
        "resources": { "requests": { "cpu": "100m", "memory": "256Mi" }, "limits": { "memory": "2Gi" } },
        "startupProbe": probe(2, 150),
        "readinessProbe": probe(5, 2),
        // Only a process that does not even answer is started anew: an unready one waits for what it needs.
        "livenessProbe": { "tcpSocket": { "port": "console" }, "periodSeconds": 10, "failureThreshold": 6 },
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        },
    });
    let mut claim = json!({
        "metadata": { "name": "state" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": format!("{}Gi", it.volume_gb) } } },
    });
    if !it.storage_class.is_empty() {
        claim["spec"]["storageClassName"] = it.storage_class.as_str().into();
    }
    let mut pod = json!({
        "serviceAccountName": "arco",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false, // ARCO_… variables of services are not settings of ours
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container],
        "volumes": volumes,
    });
    if !it.image_pull_secret.is_empty() {
        pod["imagePullSecrets"] = json!([{ "name": it.image_pull_secret }]);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta(it, "arco", "server"),
        "spec": {
            "serviceName": "arco", "replicas": 1, "selector": { "matchLabels": selector() },
            "template": {
                "metadata": { "labels": labels("server"), "annotations": { "arco.internal/settings": settings } },
                "spec": pod,
            },
            "volumeClaimTemplates": [claim],
        },
    })
}
