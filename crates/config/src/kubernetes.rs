//! Settings of the Kubernetes driver: `[kubernetes]`. They count when `orchestrator.driver` is `kubernetes`.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Who may mount a volume at the same time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeAccess {
    /// Instances on one node.
    #[default]
    ReadWriteOnce,
    /// Instances on every node; the storage class must be able to do it.
    ReadWriteMany,
}

/// How the platform uses a cluster. An empty text means: not set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// File with cluster and credentials; empty means the pod's own account, else `$KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: PathBuf,
    /// Context in that file; empty means its current one.
    pub context: String,
    /// Tenant `t` lives in the namespace `<prefix>t`. Platforms that share a cluster need different ones. See
    /// [`KubernetesConfig::check_prefix`].
    pub namespace_prefix: String,
    /// Name under which the API server records what is ours.
    pub field_manager: String,
    /// How nodes name the platform's registry: `HOST:PORT`. Their container runtime must reach and trust it.
    pub registry: String,
    /// Where this server's registry answers nodes, with TLS by the platform's own authority (`<data-dir>/pki/ca.pem`)
    /// for the host of `registry`; absent means that something else leads from `registry` to `registry.listen`.
    pub registry_listen: Option<SocketAddr>,
    /// Storage class of volumes; empty means the cluster's default.
    pub storage_class: String,
    /// Storage class of shared volumes; empty means `storage_class`.
    pub shared_storage_class: String,
    /// Who may mount a shared volume at the same time.
    pub shared_access: VolumeAccess,
    /// Labels of the nodes that instances run on; empty means every node.
    pub node_selector: BTreeMap<String, String>,
    /// Priority classes that components may ask for (`scheduling.priority_class`): pods of a higher one can end those of others.
    pub priority_classes: Vec<String>,
    /// Whether a component's `overlay` may set any field of its pods. Without it, fields that may loosen how pods are confined
    /// or reach what is not the component's are refused; Pod Security `baseline` of the namespaces holds in either case.
    pub any_overlay: bool,
    /// Hard limits of each tenant's namespace, in Kubernetes' words (`requests.memory` = `64Gi`).
    pub tenant_quota: BTreeMap<String, String>,
    /// Networks outside the pods from which a gateway calls instances.
    pub gateway_networks: Vec<Ipv4Net>,
    /// Networks of the cluster's nodes, pods and services: instances reach only what they are bound to in them. By default all
    /// private networks.
    pub cluster_networks: Vec<Ipv4Net>,
    /// Namespace of the cluster's DNS servers, which instances and builds may ask.
    pub dns_namespace: String,
    /// Port of their pods, beside 53.
    pub dns_port: u16,
    /// Where else names may be asked, on port 53: by default the usual address of NodeLocal DNSCache.
    pub dns_networks: Vec<Ipv4Net>,
    /// Where the platform's DNS answers inside the cluster; absent means that names of bound components are written into
    /// the instances' `/etc/hosts`.
    pub dns_address: Option<Ipv4Addr>,
    /// Whether instances and builds get a user namespace (Kubernetes 1.33, containerd 2.0, Linux 6.3).
    pub user_namespaces: bool,
    /// How much of its limits an instance is promised, in percent.
    pub request_percent: u32,
    /// How long instances of stateless components stay on a node that does not answer, once the cluster has noticed (after
    /// 50 s, unless it says otherwise), until another node takes them. Places of stateful components and jobs are never
    /// moved by force.
    pub lost_node_s: u32,
    /// How long an instance of a stateless component with ports goes on once the cluster ends it, in s: its program gets the stop
    /// signal afterwards. Gateways hear of it meanwhile, when its node is drained or something more important takes its place; but
    /// each end takes that much longer. 0 means none; so do clusters before Kubernetes 1.30.
    pub eviction_pause_s: u32,
    /// Class of the cluster's Ingress and Gateway API objects that the gateway serves, whatever `orchestrator.driver` says;
    /// empty means none. Gateway classes name the controller `arco.internal/<class>`.
    pub route_class: String,
    /// Addresses of the gateway, IPs or names, as these objects tell them.
    pub route_addresses: Vec<String>,
    /// Service `NAMESPACE/NAME` that leads to the gateway; its addresses are told beside `route_addresses`.
    pub route_service: String,
    /// Namespace of the DaemonSet that reads the output of instances from the files of each node; empty means that it is read
    /// through the API server.
    pub node_namespace: String,
    /// Storage class whose volumes the leading controller makes itself, of folders of the nodes; empty means none. Its provisioner
    /// is `arco.internal/local`.
    pub local_storage_class: String,
    /// Folder of each node that these volumes lie in.
    pub local_storage_folder: PathBuf,
    /// Namespace of the short-lived pods that make and remove folders there; it must allow `hostPath` (Pod Security `privileged`).
    pub local_storage_namespace: String,
    /// The platform's own image, which these pods run.
    pub local_storage_image: String,
    /// Secret in that namespace with the login for the image; empty when none is needed.
    pub local_storage_image_pull_secret: String,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        let none = ["services.loadbalancers", "services.nodeports"];
        Self {
            kubeconfig: PathBuf::new(),
            context: String::new(),
            namespace_prefix: "arco-".to_owned(),
            field_manager: "arco".to_owned(),
            registry: String::new(),
            registry_listen: None,
            storage_class: String::new(),
            shared_storage_class: String::new(),
            shared_access: VolumeAccess::default(),
            node_selector: BTreeMap::new(),
            priority_classes: Vec::new(),
            any_overlay: false,
            tenant_quota: none.into_iter().map(|it| (it.to_owned(), "0".to_owned())).collect(),
            gateway_networks: Vec::new(),
            cluster_networks: networks(&["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"]),
            dns_namespace: "kube-system".to_owned(),
            dns_port: 53,
            dns_networks: networks(&["169.254.20.10/32"]),
            dns_address: None,
            user_namespaces: true,
            request_percent: 50,
            lost_node_s: 30,
            eviction_pause_s: 5,
            route_class: String::new(),
            route_addresses: Vec::new(),
            route_service: String::new(),
            node_namespace: String::new(),
            local_storage_class: String::new(),
            local_storage_folder: PathBuf::from("/var/lib/arco/volumes"),
            local_storage_namespace: String::new(),
            local_storage_image: String::new(),
            local_storage_image_pull_secret: String::new(),
        }
    }
}

impl KubernetesConfig {
    /// Whether `prefix` can be one of namespaces: 2 to 30 of a-z, 0-9 and -, a letter first, one - last. With what is before that
    /// the objects of a platform are labelled: it must tell platforms apart. The error says what it has to be.
    pub fn check_prefix(prefix: &str) -> Result<(), String> {
        let label = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
        let fits = prefix.len() <= 30
            && prefix.starts_with(|it: char| it.is_ascii_lowercase())
            && prefix.chars().all(label)
            && prefix.ends_with('-')
            && !prefix.ends_with("--");
        if fits {
            Ok(())
        } else {
            Err("use a-z, 0-9 and -, a letter first and one - last, at most 30 characters".to_owned())
        }
    }
}

fn networks(written: &[&str]) -> Vec<Ipv4Net> {
    written.iter().filter_map(|it| it.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_tell_platforms_apart() {
        assert_eq!(KubernetesConfig::check_prefix(&KubernetesConfig::default().namespace_prefix), Ok(()));
        let long = format!("{}-", "a".repeat(29));
        let longer = format!("a{long}");
        for (prefix, fits) in [
            ("x-", true),
            ("team-1-", true),
            (long.as_str(), true),
            ("x", false),
            ("x--", false),
            ("-x-", false),
            ("1x-", false),
            ("-", false),
            ("", false),
            ("X-", false),
            ("a.b-", false),
            ("\u{e4}-", false),
            (longer.as_str(), false),
        ] {
            assert_eq!(KubernetesConfig::check_prefix(prefix).is_ok(), fits, "{prefix}");
        }
    }
}
