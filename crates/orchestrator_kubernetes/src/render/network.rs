//! How a component is reached, and what it may reach.
//!
//! What must hold: as on one machine, instances reach their application, the components that they are bound to, names,
//! and what lies outside the cluster; nobody from another tenant reaches them.

use super::{Kind, Object};
use crate::names;
use arco_config::{KubernetesConfig, PRIVATE_NETWORKS};
use arco_model::plan::WorkloadPlan;
use arco_model::spec::{ComponentKind, Port, Protocol};
use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// What a one-shot may reach: `none`, `build` or `instance`.
pub(super) const NETWORK: &str = "arco.internal/network";

/// Where clouds keep the credentials of a node.
const METADATA: &str = "169.254.0.0/16";

pub(super) fn transport(port: &Port) -> &'static str {
    if port.protocol == Protocol::Udp { "UDP" } else { "TCP" }
}

pub(super) fn port_name(port: &Port) -> String {
    format!("{}-{}", transport(port).to_ascii_lowercase(), port.port)
}

/// The stable address, of what has ports.
pub(super) fn service(plan: &WorkloadPlan, namespace: &str, base: &str, labels: &Map<String, Value>) -> Option<Object> {
    if plan.template.ports.is_empty() {
        return None;
    }
    let component = plan.component.as_str();
    let port =
        |it: &Port| json!({ "name": port_name(it), "port": it.port, "targetPort": it.port, "protocol": transport(it) });
    let ports: Vec<_> = plan.template.ports.iter().map(port).collect();
    let selector = json!({ (names::COMPONENT): component, (names::SERVING): "true" });
    // Gateways and `/etc/hosts` know addresses of version 4; where a cluster has both, the other one may be its first.
    let spec = json!({ "type": "ClusterIP", "ipFamilies": ["IPv4"], "selector": selector, "ports": ports });
    Some(Object::new(Kind::Service, namespace, base, labels.clone(), json!({ "spec": spec })).sealed())
}

/// Name of what a stateful set names its places by ([`places`]).
pub(super) fn places_name(base: &str) -> String {
    format!("{base}-places")
}

/// Names of the places, which a stateful set wants whether it has ports or not. It has no address, and whether a Service has
/// one cannot be changed: so it is never the stable address as well.
pub(super) fn places(plan: &WorkloadPlan, namespace: &str, base: &str, labels: &Map<String, Value>) -> Option<Object> {
    if plan.kind != ComponentKind::Stateful {
        return None;
    }
    let selector = json!({ (names::COMPONENT): plan.component.as_str(), (names::ROLE): "instance" });
    let spec = json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "selector": selector });
    let name = places_name(base);
    Some(Object::new(Kind::Service, namespace, &name, labels.clone(), json!({ "spec": spec })).sealed())
}

/// What the instances of a component, and its one-off runs, may reach and be reached by.
pub(super) fn policy(
    plan: &WorkloadPlan,
    config: &KubernetesConfig,
    namespace: &str,
    base: &str,
    labels: &Map<String, Value>,
) -> Object {
    let mut near =
        vec![json!({ "podSelector": { "matchLabels": { (names::APPLICATION): plan.application.as_str() } } })];
    let bound: Vec<_> = plan.may_call.iter().map(|it| it.as_str()).collect();
    if !bound.is_empty() {
        near.push(json!({ "podSelector": { "matchExpressions": [
            { "key": names::COMPONENT, "operator": "In", "values": bound },
        ]}}));
    }
    let mut never: Vec<_> = config.cluster_networks.iter().map(ToString::to_string).collect();
    never.push(METADATA.to_owned());
    let mut from = vec![
        json!({ "podSelector": {} }),
        json!({ "namespaceSelector": { "matchExpressions": [{ "key": names::TENANT, "operator": "DoesNotExist" }] } }),
    ];
    from.extend(config.gateway_networks.iter().map(|it| json!({ "ipBlock": { "cidr": it.to_string() } })));
    let spec = json!({
        "podSelector": {
            "matchLabels": { (names::COMPONENT): plan.component.as_str() },
            "matchExpressions": [{ "key": NETWORK, "operator": "NotIn", "values": ["none", "build"] }],
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": from }],
        "egress": [{ "to": near }, { "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": never } }] }, dns(config)],
    });
    Object::new(Kind::NetworkPolicy, namespace, base, labels.clone(), json!({ "spec": spec })).sealed()
}

/// What holds for every pod of a tenant: nothing that is not allowed elsewhere; and the build network.
pub(super) fn tenant_policies(
    config: &KubernetesConfig,
    allowed: &[Ipv4Net],
    namespace: &str,
    labels: &Map<String, Value>,
) -> [Object; 2] {
    let closed = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    let mut open =
        vec![json!({ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": PRIVATE_NETWORKS } }] }), dns(config)];
    if !allowed.is_empty() {
        let to: Vec<_> = allowed.iter().map(|it| json!({ "ipBlock": { "cidr": it.to_string() } })).collect();
        open.push(json!({ "to": to }));
    }
    let build = json!({
        "podSelector": { "matchLabels": { (NETWORK): "build" } },
        "policyTypes": ["Ingress", "Egress"],
        "egress": open,
    });
    [("arco-closed", closed), ("arco-build", build)].map(|(name, spec)| {
        Object::new(Kind::NetworkPolicy, namespace, name, labels.clone(), json!({ "spec": spec })).sealed()
    })
}

/// Names may be asked of the cluster's DNS, of what answers for it on nodes, and of ours. There is always somebody in `to`, and
/// a port: a rule without them would open everything.
fn dns(config: &KubernetesConfig) -> Value {
    let servers = json!({ "kubernetes.io/metadata.name": config.dns_namespace });
    let mut to = vec![json!({ "namespaceSelector": { "matchLabels": servers } })];
    let addresses = config.dns_address.iter().map(|it| Ipv4Net::from(*it));
    let addresses = config.dns_networks.iter().copied().chain(addresses);
    to.extend(addresses.map(|it| json!({ "ipBlock": { "cidr": it.to_string() } })));
    let ports = BTreeSet::from([53, config.dns_port]);
    let ports = ports.iter().flat_map(|port| ["UDP", "TCP"].map(|it| json!({ "protocol": it, "port": port })));
    json!({ "to": to, "ports": ports.collect::<Vec<_>>() })
}

/// Lets a node be emptied one instance after another. A single instance is not protected: its node could never be. Nor are
/// those that are not ready: a component that is ill would hold up every drain.
pub(super) fn disruption_budget(
    plan: &WorkloadPlan,
    namespace: &str,
    base: &str,
    labels: &Map<String, Value>,
) -> Option<Object> {
    let most = plan.autoscaling.map_or(plan.replicas, |it| it.max_replicas);
    if most < 2 || plan.kind.runs_to_end() {
        return None;
    }
    let selector = json!({ "matchLabels": { (names::COMPONENT): plan.component.as_str(), (names::ROLE): "instance" } });
    let spec = json!({ "maxUnavailable": 1, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow" });
    Some(Object::new(Kind::DisruptionBudget, namespace, base, labels.clone(), json!({ "spec": spec })).sealed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_asked_where_the_settings_say() {
        let config = KubernetesConfig {
            dns_namespace: "openshift-dns".to_owned(),
            dns_port: 5353,
            dns_networks: Vec::new(),
            dns_address: Some([10, 96, 0, 11].into()),
            ..KubernetesConfig::default()
        };
        let servers = json!({ "kubernetes.io/metadata.name": "openshift-dns" });
        let to =
            json!([{ "namespaceSelector": { "matchLabels": servers } }, { "ipBlock": { "cidr": "10.96.0.11/32" } }]);
        let port = |protocol: &str, port: u16| json!({ "protocol": protocol, "port": port });
        let ports = json!([port("UDP", 53), port("TCP", 53), port("UDP", 5353), port("TCP", 5353)]);
        assert_eq!(dns(&config), json!({ "to": to, "ports": ports }));
    }
}
