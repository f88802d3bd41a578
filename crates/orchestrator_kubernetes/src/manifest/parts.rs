//! The installation with pods for each role, several of each, spread over nodes: any one node may go.
//!
//! What must hold: a part has the rights that its roles use and no others, so whoever reads bytes from outside (gateway) has
//! none; pods leave one at a time, and only after the cluster had time to send nothing more to them.

use super::objects::{
    API_PORT, CONSOLE_PORT, HTTP_PORT, HTTPS_PORT, PodOf, REGISTRY_PORT, account, budget, claim, cluster_role,
    controlling, labels, meta, pod, policy, selector,
};
use super::{Installation, Replicas};
use crate::access::OF_RUNNERS;
use crate::names;
use serde_json::{Value, json};

/// Where servers reach each other, mutual TLS.
pub(super) const PEERS_PORT: u16 = 7071;
/// The Lease by which controllers agree on who leads.
const LEASE: &str = "arco-controller";
/// Between the moment when a pod is taken from its service and the one when it is told to stop, in seconds: every node
/// has heard of it then.
const LEAVING_S: u32 = 5;
/// How long pods wait on a node that does not answer before others take their place, in seconds.
const LOST_NODE_S: u32 = 30;

/// One kind of pod.
struct Part {
    name: &'static str,
    roles: &'static str,
    ports: &'static [(&'static str, u16)],
    asks_the_cluster: bool,
    keeps_state: bool,
    replicas: fn(&Replicas) -> u32,
}

/// Every role is in one of them; the console is in each, for its health.
const PARTS: [Part; 5] = [
    Part {
        name: "api",
        roles: "api,registry,console",
        ports: &[("api", API_PORT), ("registry", REGISTRY_PORT), ("console", CONSOLE_PORT), ("peers", PEERS_PORT)],
        asks_the_cluster: true,
        keeps_state: false,
        replicas: |it| it.api,
    },
    Part {
        name: "builder",
        roles: "builder,console",
        ports: &[("console", CONSOLE_PORT), ("peers", PEERS_PORT)],
        asks_the_cluster: true,
        keeps_state: false,
        replicas: |it| it.builder,
    },
    Part {
        name: "controller",
        roles: "controller,console",
        ports: &[("console", CONSOLE_PORT), ("peers", PEERS_PORT)],
        asks_the_cluster: true,
        keeps_state: false,
        replicas: |it| it.controller,
    },
    Part {
        name: "eventlog",
        roles: "eventlog,console",
        ports: &[("console", CONSOLE_PORT), ("peers", PEERS_PORT)],
        asks_the_cluster: false,
        keeps_state: true,
        replicas: |it| it.eventlog,
    },
    Part {
        name: "gateway",
        roles: "gateway,console",
        ports: &[("http", HTTP_PORT), ("https", HTTPS_PORT), ("console", CONSOLE_PORT), ("peers", PEERS_PORT)],
        asks_the_cluster: false,
        keeps_state: false,
        replicas: |it| it.gateway,
    },
];

fn named(part: &str) -> String {
    format!("arco-{part}")
}

/// An account for each part, and what each may do.
pub(super) fn access(it: &Installation) -> Vec<Value> {
    let mut documents: Vec<Value> = PARTS.iter().map(|part| account(it, &named(part.name), part.name)).collect();
    documents.extend(cluster_role(it, &it.namespace, &controlling(it), &["arco-controller"]));
    let runners = format!("{}-runners", it.namespace);
    documents.extend(cluster_role(it, &runners, OF_RUNNERS, &["arco-api", "arco-builder"]));
    documents.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta(it, LEASE, "controller"),
        "rules": [
            { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"] }, // has no name yet
            { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [LEASE], "verbs": ["get", "update"] },
        ],
    }));
    documents.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta(it, LEASE, "controller"),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": LEASE },
        "subjects": [{ "kind": "ServiceAccount", "name": "arco-controller", "namespace": it.namespace }],
    }));
    documents
}

/// The guards and pods of every part.
pub(super) fn all(it: &Installation, replicas: &Replicas, settings: &str) -> Vec<Value> {
    let mut documents = vec![policy(it, &PARTS.map(|part| part.name))];
    documents.extend(PARTS.iter().map(|part| budget(it, &named(part.name), part.name)));
    documents.extend(PARTS.iter().map(|part| workload(it, part, (part.replicas)(replicas), settings)));
    documents
}

fn workload(it: &Installation, part: &Part, replicas: u32, settings: &str) -> Value {
    let name = named(part.name);
    let mut template = pod(
        it,
        &PodOf {
            part: part.name,
            account: &name,
            roles: part.roles,
            ports: part.ports,
            asks_the_cluster: part.asks_the_cluster,
            keeps_state: part.keeps_state,
            settings,
        },
    );
    let pod = &mut template["spec"];
    let revision = if part.keeps_state { "controller-revision-hash" } else { "pod-template-hash" };
    pod["topologySpreadConstraints"] = json!([
        // However many nodes there are, none has two more than another; a node that is lost does not count.
        {
            "maxSkew": 1, "topologyKey": names::HOSTNAME, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": selector(part.name) }, "matchLabelKeys": [revision],
            "nodeTaintsPolicy": "Honor",
        },
        {
            "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": selector(part.name) }, "matchLabelKeys": [revision],
        },
    ]);
    let lost = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_S });
    pod["tolerations"] = json!(names::SILENT.map(lost));
    let container = &mut pod["containers"][0];
    container["env"] = json!([
        { "name": "POD_ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
        { "name": "ARCO_SERVER__PEER_ADDRESS", "value": format!("$(POD_ADDRESS):{PEERS_PORT}") },
    ]);
    // `preStop.sleep` came with 1.30, and our image has no other program.
    let leave = json!(["/usr/bin/arco", "cluster", "linger", LEAVING_S.to_string()]);
    container["lifecycle"] = json!({ "preStop": { "exec": { "command": leave } } });
    let mut spec = json!({
        "replicas": replicas, "selector": { "matchLabels": selector(part.name) }, "template": template,
    });
    let kind = if part.keeps_state {
        spec["serviceName"] = name.as_str().into();
        spec["podManagementPolicy"] = "Parallel".into();
        spec["volumeClaimTemplates"] = json!([claim(it)]);
        "StatefulSet"
    } else {
        // The new one is ready before an old one leaves.
        spec["strategy"] = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
        "Deployment"
    };
    json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name, "namespace": it.namespace, "labels": labels(part.name) }, "spec": spec })
}
