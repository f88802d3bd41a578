//! The documents of the platform itself: who it is and what it may do, its settings, how it is reached, and the server.

use super::parts::PEERS_PORT;
use super::{Exposure, Installation, nodes};
use crate::access::{self, Rule};
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
/// Ports that a node may have (the API server's default range).
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Where the stores' credentials are mounted.
pub(super) const CREDENTIALS_FOLDER: &str = "/etc/arco/credentials";
/// Why a program ended stands where people look first: in `kubectl describe pods`, out of the end of its log.
pub(super) const TOLD_BY_LOG: &str = "FallbackToLogsOnError";
/// User and group of our image.
const USER: u32 = 65532;

/// Labels of everything; `part` is what it belongs to.
pub(super) fn labels(part: &str) -> Value {
    json!({ "app.kubernetes.io/name": "arco", "app.kubernetes.io/component": part, (names::MANAGED_BY): "arco-cluster-manifest" })
}

/// Labels by which the pods of a part are found.
pub(super) fn selector(part: &str) -> Value {
    json!({ "app.kubernetes.io/name": "arco", "app.kubernetes.io/component": part })
}

pub(super) fn meta(it: &Installation, name: &str, part: &str) -> Value {
    json!({ "name": name, "namespace": it.namespace, "labels": labels(part) })
}

/// Namespace, and the class of the objects that the gateway serves.
pub(super) fn namespace(it: &Installation) -> Vec<Value> {
    let mut guarded = labels("server");
    for mode in ["enforce", "audit", "warn"] {
        guarded[format!("pod-security.kubernetes.io/{mode}")] = "restricted".into();
    }
    let mut documents = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": it.namespace, "labels": guarded } }),
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

/// Account, role and binding of the one server.
pub(super) fn access(it: &Installation) -> Vec<Value> {
    let mut documents = vec![account(it, "arco", "server")];
    documents.extend(cluster_role(it, &it.namespace, &controlling(it), &["arco"]));
    documents
}

/// What whoever controls components may do.
pub(super) fn controlling(it: &Installation) -> Vec<Rule> {
    access::rules(!it.route_class.is_empty(), it.local_storage.is_some())
}

pub(super) fn account(it: &Installation, name: &str, part: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(it, name, part), "automountServiceAccountToken": false })
}

/// A role of the whole cluster, for some accounts.
pub(super) fn cluster_role(it: &Installation, name: &str, rules: &[Rule], accounts: &[&str]) -> [Value; 2] {
    let rule = |it: &Rule| json!({ "apiGroups": [it.group], "resources": it.resources, "verbs": it.verbs });
    let rules: Vec<Value> = rules.iter().map(rule).collect();
    let subject = |name: &&str| json!({ "kind": "ServiceAccount", "name": name, "namespace": it.namespace });
    let subjects: Vec<Value> = accounts.iter().map(subject).collect();
    let whole = json!({ "name": name, "labels": labels("server") });
    [
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": whole, "rules": rules }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": whole,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": subjects,
        }),
    ]
}

/// The settings' file.
pub(super) fn settings(it: &Installation, text: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(it, "arco", "server"), "data": { "arco.toml": text } })
}

/// How the platform is reached: gateway from outside, API and registry inside, and the names of pods with a volume.
pub(super) fn services(it: &Installation) -> Vec<Value> {
    let spread = it.replicas.is_some();
    let service = |name: &str, part: &str, spec: Value| {
        let part = if spread { part } else { "server" };
        let mut spec = spec;
        spec["selector"] = selector(part);
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta(it, name, part), "spec": spec })
    };
    let port = |name: &str, port: u16, target: &str| json!({ "name": name, "port": port, "targetPort": target });
    let kind = match it.gateway {
        Exposure::LoadBalancer => "LoadBalancer",
        Exposure::NodePort => "NodePort",
        Exposure::ClusterIp => "ClusterIP",
    };
    let gateway_port = |name: &str, public: u16| {
        let mut port = port(name, public, name);
        if it.gateway == Exposure::NodePort && NODE_PORTS.contains(&public) {
            port["nodePort"] = public.into();
        }
        port
    };
    let [http, https] = it.public_ports;
    let mut ports = vec![gateway_port("http", http), gateway_port("https", https)];
    ports.extend(it.stream_ports.iter().map(|(protocol, port)| {
        let name = format!("{}-{port}", protocol.to_lowercase());
        json!({ "name": name, "protocol": protocol, "port": port, "targetPort": port })
    }));
    let mut gateway = json!({ "type": kind, "ports": ports });
    if it.gateway != Exposure::ClusterIp {
        gateway["externalTrafficPolicy"] = "Local".into(); // the gateway sees who calls
    }
    let mut registry = port("registry", REGISTRY_PORT, "registry");
    if it.registry_node_port != 0 {
        registry["nodePort"] = it.registry_node_port.into();
    }
    let registry_kind = if it.registry_node_port == 0 { "ClusterIP" } else { "NodePort" };
    let mut registry = json!({ "type": registry_kind, "ports": [registry] });
    if spread {
        registry["sessionAffinity"] = "ClientIP".into(); // the pieces of an upload meet in one server
    }
    // Found before it is ready: it is the name of the pod itself.
    let named = |port: Value| json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "ports": [port] });
    let mut api = json!({ "type": "ClusterIP", "ports": [port("api", API_PORT, "api"), port("console", CONSOLE_PORT, "console")] });
    if it.node_logs.is_some() {
        api["ports"].as_array_mut().into_iter().for_each(|it| it.push(port("peers", PEERS_PORT, "peers")));
    }
    vec![
        service("arco-gateway", "gateway", gateway),
        service("arco-api", "api", api),
        service("arco-registry", "api", registry),
        match spread {
            false => service("arco", "server", named(port("api", API_PORT, "api"))),
            true => service("arco-eventlog", "eventlog", named(port("console", CONSOLE_PORT, "console"))),
        },
    ]
}

/// What guards the server: a budget for drains, and who may call it.
pub(super) fn guards(it: &Installation) -> Vec<Value> {
    vec![budget(it, "arco", "server"), policy(it, &["server"])]
}

/// Lets nodes be emptied one pod of a part after another; one that does not serve holds up nobody.
pub(super) fn budget(it: &Installation, name: &str, part: &str) -> Value {
    let pods = json!({ "matchLabels": selector(part) });
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(it, name, part),
        "spec": { "maxUnavailable": 1, "selector": pods, "unhealthyPodEvictionPolicy": "AlwaysAllow" },
    })
}

/// Who may call the pods of these parts. A port that a pod does not have is not open there.
pub(super) fn policy(it: &Installation, parts: &[&str]) -> Value {
    let pods = json!({
        "matchLabels": { "app.kubernetes.io/name": "arco" },
        "matchExpressions": [{ "key": "app.kubernetes.io/component", "operator": "In", "values": parts }],
    });
    let ports = |ports: &[&str]| {
        let ports: Vec<Value> = ports.iter().map(|it| json!({ "protocol": "TCP", "port": it })).collect();
        json!({ "ports": ports })
    };
    let mut console = ports(&["console"]);
    console["from"] = json!([{ "podSelector": {} }]);
    let mut open = ports(&["http", "https", "api", "registry"]);
    if let Some(open) = open["ports"].as_array_mut() {
        let streams = it.stream_ports.iter();
        open.extend(streams.map(|(protocol, port)| json!({ "protocol": protocol, "port": port })));
    }
    let mut ingress = vec![open, console];
    if it.replicas.is_some() {
        let mut peers = ports(&["peers"]);
        peers["from"] = json!([{ "podSelector": pods }]);
        if it.node_logs.is_some() {
            let namespace = json!({ "matchLabels": { "kubernetes.io/metadata.name": nodes::namespace(it) } });
            let from =
                json!({ "namespaceSelector": namespace, "podSelector": { "matchLabels": selector(nodes::LOGS) } });
            peers["from"].as_array_mut().into_iter().for_each(|it| it.push(from.clone()));
        }
        ingress.push(peers);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(it, "arco", "server"),
        "spec": { "podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress },
    })
}

/// What differs between the platform's pods.
pub(super) struct PodOf<'a> {
    /// Its part.
    pub(super) part: &'a str,
    /// Account.
    pub(super) account: &'a str,
    /// `--role`; empty means all.
    pub(super) roles: &'a str,
    /// Ports with their names.
    pub(super) ports: &'a [(&'a str, u16)],
    /// Whether it asks the API server.
    pub(super) asks_the_cluster: bool,
    /// Whether its state is on a volume of its own, else it goes with the pod.
    pub(super) keeps_state: bool,
    /// Digest of the settings.
    pub(super) settings: &'a str,
}

/// A pod template.
pub(super) fn pod(it: &Installation, of: &PodOf<'_>) -> Value {
    let port = |(name, port): &(&str, u16)| json!({ "name": name, "containerPort": port });
    let probe = |seconds: u32, failures: u32| json!({ "httpGet": { "path": "/healthz", "port": "console" }, "periodSeconds": seconds, "failureThreshold": failures, "timeoutSeconds": 5 });
    let mut mounts = vec![
        json!({ "name": "state", "mountPath": "/var/lib/arco" }),
        json!({ "name": "cache", "mountPath": "/var/cache/arco" }),
        json!({ "name": "temporary", "mountPath": "/tmp" }),
        json!({ "name": "settings", "mountPath": "/etc/arco/settings", "readOnly": true }),
    ];
    let mut volumes = vec![
        json!({ "name": "cache", "emptyDir": {} }),
        json!({ "name": "temporary", "emptyDir": {} }),
        json!({ "name": "settings", "configMap": { "name": "arco" } }),
    ];
    if !of.keeps_state {
        volumes.push(json!({ "name": "state", "emptyDir": {} }));
    }
    if of.asks_the_cluster {
        let token = json!([
            { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
        ]);
        mounts.push(json!({ "name": "account", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true }));
        volumes.push(json!({ "name": "account", "projected": { "sources": token, "defaultMode": 0o440 } }));
    }
    if !it.stores.secret.is_empty() {
        mounts.push(json!({ "name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": true }));
        volumes
            .push(json!({ "name": "credentials", "secret": { "secretName": it.stores.secret, "defaultMode": 0o440 } }));
    }
    let mut args = vec!["server", "--config", "/etc/arco/settings/arco.toml"];
    if !of.roles.is_empty() {
        args.extend(["--role", of.roles]);
    }
    let container = json!({
        "name": "server", "image": it.image, "args": args,
        "ports": of.ports.iter().map(port).collect::<Vec<_>>(),
        "volumeMounts": mounts,
        "resources": { "requests": { "cpu": "100m", "memory": "256Mi" }, "limits": { "memory": "2Gi" } },
        "startupProbe": probe(2, 150),
        "readinessProbe": probe(5, 2),
        // Only a process that does not even answer is started anew: an unready one waits for what it needs.
        "livenessProbe": { "tcpSocket": { "port": "console" }, "periodSeconds": 10, "failureThreshold": 6 },
        "terminationMessagePolicy": TOLD_BY_LOG,
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        },
    });
    let mut pod = json!({
        "serviceAccountName": of.account,
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
        "metadata": { "labels": labels(of.part), "annotations": { "arco.internal/settings": of.settings } },
        "spec": pod,
    })
}

/// The volume of a server's state.
pub(super) fn claim(it: &Installation) -> Value {
    let mut claim = json!({
        "metadata": { "name": "state" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": format!("{}Gi", it.volume_gb) } } },
    });
    let class = it.volume_class();
    if it.replicas.is_none() && !it.server_node.is_empty() {
        claim["spec"]["storageClassName"] = "".into(); // its volume is in the manifest
    } else if !class.is_empty() {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

/// The server.
pub(super) fn server(it: &Installation, settings: &str) -> Value {
    let template = pod(
        it,
        &PodOf {
            part: "server",
            account: "arco",
            roles: "",
            ports: &[
                ("http", HTTP_PORT),
                ("https", HTTPS_PORT),
                ("api", API_PORT),
                ("console", CONSOLE_PORT),
                ("registry", REGISTRY_PORT),
            ],
            asks_the_cluster: true,
            keeps_state: true,
            settings,
        },
    );
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta(it, "arco", "server"),
        "spec": {
            "serviceName": "arco", "replicas": 1, "selector": { "matchLabels": selector("server") },
            "template": template,
            "volumeClaimTemplates": [claim(it)],
        },
    })
}
