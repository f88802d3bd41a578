//! Whether the settings of networks fit the cluster: instances are kept from what is its own, and they find names.
//!
//! What must hold: what is seen of a cluster is a sample (no plugin tells its networks), so a finding says what is wrong for
//! sure, and never that all is right. Not here: whether policies are enforced at all, which only a trial could tell.

use super::Finding;
use crate::cluster::words;
use arco_config::{KubernetesConfig, PRIVATE_NETWORKS};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Client;
use kube::api::{Api, ListParams};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

const CHECK: &str = "networks";
const NAMES: &str = "names";
/// How many pods are looked at.
const PODS: u32 = 500;
/// How many addresses of a kind are named.
const SHOWN: usize = 3;
/// What nodes have is told apart: their public addresses are open to everybody.
const OF_NODES: &str = "nodes";
/// Label of the service of the cluster's DNS, and of the pods that answer names on each node.
const DNS: &str = "k8s-app=kube-dns";
const NODE_LOCAL: &str = "k8s-app=node-local-dns";

/// A service that answers names.
struct Names {
    namespace: String,
    name: String,
    address: Option<Ipv4Addr>,
}

/// What was seen of a cluster.
struct Seen {
    /// Addresses and networks, with what has them.
    addresses: Vec<(&'static str, Ipv4Net)>,
    names: Vec<Names>,
    /// Whether nodes answer names themselves.
    node_local: bool,
    /// Whether pods have addresses of version 6 and no others.
    only_version_6: bool,
}

pub(super) async fn networks(client: &Client, config: &KubernetesConfig) -> Vec<Finding> {
    match look(client).await {
        Ok(it) if it.only_version_6 => vec![Finding::bad(
            CHECK,
            "pods of this cluster have addresses of IPv6 alone; instances are called, and kept apart, by those of IPv4",
            "give pods and services of the cluster networks of both, IPv4 and IPv6 (dual stack), or take a cluster with IPv4",
        )],
        Ok(it) => vec![judge_networks(&it.addresses, config), judge_names(&it.names, it.node_local, config)],
        Err(error) => vec![Finding::warning(
            CHECK,
            format!("which networks the cluster has is not known: {}", words(&error)),
            "let this account list nodes, pods and services",
        )],
    }
}

async fn look(client: &Client) -> Result<Seen, kube::Error> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let pods: Api<Pod> = Api::all(client.clone());
    let some = pods.list(&ListParams::default().limit(PODS)).await?;
    let node_local = pods.list(&ListParams::default().labels(NODE_LOCAL).limit(1)).await?;
    let names = Api::<Service>::all(client.clone()).list(&ListParams::default().labels(DNS)).await?;
    let api = Api::<Service>::namespaced(client.clone(), "default").get_opt("kubernetes").await?;
    let mut addresses: Vec<(&'static str, Ipv4Net)> = nodes.items.iter().flat_map(of_node).collect();
    addresses.extend(some.items.iter().filter_map(of_pod).map(|it| ("pods", it)));
    let services = api.iter().chain(&names.items).filter_map(address);
    addresses.extend(services.map(|it| ("services", it.into())));
    let names = names.items.iter().map(|it| Names {
        namespace: it.metadata.namespace.clone().unwrap_or_default(),
        name: it.metadata.name.clone().unwrap_or_default(),
        address: address(it),
    });
    let only_version_6 = is_only_version_6(&nodes.items, &some.items);
    Ok(Seen { addresses, names: names.collect(), node_local: !node_local.items.is_empty(), only_version_6 })
}

/// Whether pods that have addresses of their own, and the networks that nodes have for them, are of version 6, all of them.
fn is_only_version_6(nodes: &[Node], pods: &[Pod]) -> bool {
    let of_nodes = nodes.iter().filter_map(|it| it.spec.as_ref()).flat_map(|it| it.pod_cidrs.iter().flatten());
    let own = |it: &&Pod| it.spec.as_ref().is_some_and(|it| it.host_network != Some(true));
    let statuses = pods.iter().filter(own).filter_map(|it| it.status.as_ref());
    let of_pods = statuses.flat_map(|it| it.pod_ip.iter().chain(it.pod_ips.iter().flatten().map(|it| &it.ip)));
    let mut all = of_nodes.chain(of_pods).peekable();
    all.peek().is_some() && all.all(|it| it.contains(':'))
}

/// A node's own addresses, and the networks of its pods. Only those of version 4: policies open no others.
fn of_node(node: &Node) -> Vec<(&'static str, Ipv4Net)> {
    let networks = node.spec.iter().flat_map(|it| it.pod_cidrs.iter().flatten());
    let mut found: Vec<_> = networks.filter_map(|it| it.parse().ok()).map(|it| ("pods", it)).collect();
    let addresses = node.status.iter().flat_map(|it| it.addresses.iter().flatten());
    let addresses = addresses.filter_map(|it| it.address.parse::<Ipv4Addr>().ok());
    found.extend(addresses.map(|it| (OF_NODES, it.into())));
    found
}

/// The address of a pod that has one of its own.
fn of_pod(pod: &Pod) -> Option<Ipv4Net> {
    if pod.spec.as_ref()?.host_network == Some(true) {
        return None;
    }
    let address: Ipv4Addr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    Some(address.into())
}

fn address(service: &Service) -> Option<Ipv4Addr> {
    service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
}

/// Whether instances are kept from what is the cluster's own.
fn judge_networks(seen: &[(&'static str, Ipv4Net)], config: &KubernetesConfig) -> Finding {
    let closed = |it: &Ipv4Net| config.cluster_networks.iter().any(|own| own.contains(it));
    let private =
        |it: &Ipv4Net| PRIVATE_NETWORKS.iter().any(|own| own.parse::<Ipv4Net>().is_ok_and(|own| own.contains(it)));
    let mut open: BTreeMap<&str, BTreeSet<Ipv4Net>> = BTreeMap::new();
    for (what, network) in seen {
        if !closed(network) && (*what != OF_NODES || private(network)) {
            open.entry(what).or_default().insert(*network);
        }
    }
    if open.is_empty() {
        return Finding::good(
            CHECK,
            "the addresses of nodes, pods and services that were seen are closed to instances",
        );
    }
    let open: Vec<String> = open.iter().map(|(what, networks)| format!("{what} ({})", some(networks))).collect();
    Finding::warning(
        CHECK,
        format!("instances may reach {}: `kubernetes.cluster_networks` has not their networks", open.join(", ")),
        "name them there, too (`--settings FILE` of `arco cluster manifest`); by default it has every private network",
    )
}

fn some(networks: &BTreeSet<Ipv4Net>) -> String {
    let shown = |it: &Ipv4Net| if it.prefix_len() == 32 { it.addr().to_string() } else { it.to_string() };
    let mut words: Vec<String> = networks.iter().take(SHOWN).map(shown).collect();
    if networks.len() > SHOWN {
        words.push("…".to_owned());
    }
    words.join(", ")
}

/// Whether instances may ask whoever answers names.
fn judge_names(found: &[Names], node_local: bool, config: &KubernetesConfig) -> Finding {
    let Some(service) = found.iter().find(|it| it.namespace == config.dns_namespace) else {
        return Finding::warning(
            NAMES,
            format!("no service with the label `{DNS}` is in the namespace `{}`", config.dns_namespace),
            "name the namespace of the cluster's DNS by `kubernetes.dns_namespace`, and the port of its pods by `kubernetes.dns_port` (OpenShift: openshift-dns, 5353), or instances may ask nobody",
        );
    };
    let shown = format!("`{}` in `{}`", service.name, service.namespace);
    match service.address {
        Some(address) if node_local && !config.dns_networks.iter().any(|it| it.contains(&address)) => Finding::warning(
            NAMES,
            format!("{shown} answers, and on nodes NodeLocal DNSCache, perhaps at the same address"),
            format!("add \"{address}/32\" to `kubernetes.dns_networks`, if that is what pods have in /etc/resolv.conf"),
        ),
        _ => Finding::good(NAMES, format!("{shown} answers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Weight;
    use serde_json::json;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|it| it.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_the_clusters_own_is_closed() {
        let usual = KubernetesConfig::default();
        let narrow = KubernetesConfig { cluster_networks: nets(&["10.0.0.0/8"]), ..KubernetesConfig::default() };
        for (config, what, network, open) in [
            (&usual, "pods", "192.168.4.7/32", false),
            (&usual, "pods", "100.64.0.0/16", false),
            (&usual, OF_NODES, "172.18.0.2/32", false),
            (&usual, OF_NODES, "203.0.113.7/32", false),
            (&usual, "pods", "203.0.113.7/32", true),
            (&narrow, "services", "10.96.0.1/32", false),
            (&narrow, "pods", "192.168.4.7/32", true),
            (&narrow, OF_NODES, "172.18.0.2/32", true),
            (&narrow, OF_NODES, "203.0.113.7/32", false),
            (&narrow, "pods", "10.0.0.0/7", true),
        ] {
            let found = judge_networks(&[(what, network.parse().unwrap())], config);
            assert_eq!(found.weight == Weight::Warning, open, "{what} {network}: {found:?}");
        }
        let many = nets(&["1.0.0.1/32", "1.0.0.2/32", "1.0.0.3/32", "1.0.0.4/32", "2.0.0.0/8"]);
        let found = judge_networks(&many.iter().map(|it| ("pods", *it)).collect::<Vec<_>>(), &usual);
        assert!(found.found.contains("pods (1.0.0.1, 1.0.0.2, 1.0.0.3, …)"), "{found:?}");
    }

    #[test]
    fn addresses_are_read() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n" }, "spec": { "podCIDRs": ["192.168.4.0/24", "fd00::/64"] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "172.18.0.2" }, { "type": "Hostname", "address": "n" },
                { "type": "InternalIP", "address": "fd01::2" },
            ]},
        }))
        .unwrap();
        let wanted = [("pods", "192.168.4.0/24"), (OF_NODES, "172.18.0.2/32")]
            .map(|(it, net)| (it, net.parse::<Ipv4Net>().unwrap()));
        assert_eq!(of_node(&node), wanted);
        for (host, wanted) in [(true, None), (false, Some("192.168.4.7/32".parse::<Ipv4Net>().unwrap()))] {
            let pod: Pod = serde_json::from_value(json!({
                "spec": { "hostNetwork": host, "containers": [] }, "status": { "podIP": "192.168.4.7" },
            }))
            .unwrap();
            assert_eq!(of_pod(&pod), wanted);
        }
    }

    #[test]
    fn a_cluster_without_addresses_of_version_4_is_told() {
        let node = |networks: &[&str]| -> Node {
            serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "podCIDRs": networks } })).unwrap()
        };
        let pod = |host: bool, addresses: &[&str]| -> Pod {
            let all: Vec<_> = addresses.iter().map(|it| json!({ "ip": it })).collect();
            let status = json!({ "podIP": addresses.first(), "podIPs": all });
            let spec = json!({ "hostNetwork": host, "containers": [] });
            serde_json::from_value(json!({ "spec": spec, "status": status })).unwrap()
        };
        for (nodes, pods, wanted) in [
            (vec![node(&["fd00::/64"])], vec![pod(false, &["fd00::7"])], true),
            (vec![node(&[])], vec![pod(false, &["fd00::7"]), pod(true, &["172.18.0.2"])], true),
            (vec![node(&["fd00::/64", "10.244.0.0/24"])], vec![], false),
            (vec![node(&[])], vec![pod(false, &["fd00::7", "10.244.0.7"])], false),
            (vec![node(&["10.244.0.0/24"])], vec![], false),
            (vec![node(&[])], vec![pod(false, &[])], false),
            (vec![], vec![], false),
        ] {
            assert_eq!(is_only_version_6(&nodes, &pods), wanted, "{nodes:?} {pods:?}");
        }
    }

    #[test]
    fn instances_may_ask_whoever_answers_names() {
        let names = |namespace: &str| Names {
            namespace: namespace.to_owned(),
            name: "kube-dns".to_owned(),
            address: Some(Ipv4Addr::new(10, 96, 0, 10)),
        };
        let usual = KubernetesConfig::default();
        let told = KubernetesConfig { dns_networks: nets(&["10.96.0.10/32"]), ..KubernetesConfig::default() };
        for (found, node_local, config, weight, part) in [
            (vec![names("kube-system")], false, &usual, Weight::Good, "`kube-dns` in `kube-system`"),
            (vec![], false, &usual, Weight::Warning, "kubernetes.dns_port"),
            (vec![names("elsewhere")], false, &usual, Weight::Warning, "kubernetes.dns_namespace"),
            (
                vec![names("kube-system")],
                true,
                &usual,
                Weight::Warning,
                "\"10.96.0.10/32\" to `kubernetes.dns_networks`",
            ),
            (vec![names("kube-system")], true, &told, Weight::Good, "answers"),
        ] {
            let found = judge_names(&found, node_local, config);
            assert_eq!(found.weight, weight, "{found:?}");
            assert!(format!("{} {}", found.found, found.advice).contains(part), "{found:?}");
        }
    }
}
