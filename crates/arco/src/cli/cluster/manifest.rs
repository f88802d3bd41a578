//! `arco cluster manifest`: prints the documents of an installation; applies nothing.

use super::{Failure, Ui, image};
use arco_orchestrator_kubernetes::manifest::{CREDENTIALS, Exposure, Installation, Stores, manifest};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Examples of the help.
pub(super) const EXAMPLES: &str = "Examples:
  arco cluster manifest --domain apps.example.com --image registry.example.com/platform/arco:1 | kubectl apply -f -
  arco cluster manifest … | kubectl delete -f -        (tenants' namespaces stay: delete applications before)

The same command with a newer --image upgrades.";

/// How traffic from outside reaches the gateway.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum GatewayService {
    LoadBalancer,
    NodePort,
    ClusterIp,
}

/// Flags.
#[derive(Args, Debug)]
pub(crate) struct ManifestArgs {
    /// Suffix of the applications' hosts; its wildcard leads to the gateway
    #[arg(long, value_name = "SUFFIX", default_value = "localhost")]
    domain: String,
    /// Our image, as `arco cluster image` named it
    #[arg(long, value_name = "REF", default_value = image::DEFAULT_NAME)]
    image: String,
    /// Secret in the namespace with the login for the image
    #[arg(long, value_name = "SECRET", default_value = "")]
    image_pull_secret: String,
    /// Namespace of the platform itself
    #[arg(long, value_name = "NAME", default_value = "arco-system")]
    namespace: String,
    /// Tenant T gets the namespace PREFIXT
    #[arg(long, value_name = "PREFIX", default_value = "arco-")]
    namespace_prefix: String,
    /// How traffic from outside reaches the gateway
    #[arg(
        long,
        value_enum,
        default_value = "load-balancer",
        hide_possible_values = true,
        value_name = "load-balancer|node-port|cluster-ip"
    )]
    gateway: GatewayService,
    /// How nodes reach the platform's registry [default: by the name of its service, with --trust-registry]
    #[arg(long, value_name = "HOST:PORT", default_value = "")]
    registry: String,
    /// Open the registry on this port of every node
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    registry_node_port: u16,
    /// Let a DaemonSet write a hosts.toml for the registry into containerd's folder on each node
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "/etc/containerd/certs.d")]
    trust_registry: Option<PathBuf>,
    /// Storage class [default: the cluster's default]
    #[arg(long, value_name = "NAME", default_value = "")]
    storage_class: String,
    /// Serve the cluster's Ingress and Gateway API objects of this class
    #[arg(long, value_name = "NAME", default_value = "")]
    route_class: String,
    /// Run instances and builds without a user namespace, for nodes that cannot give one (before containerd 2.0)
    #[arg(long)]
    no_user_namespaces: bool,
    /// Size of the server's own volume, in GiB
    #[arg(long, value_name = "N", default_value_t = 20)]
    volume_gb: u32,
    /// Metadata store, as `store.metadata` [default: on the server's volume]
    #[arg(long, value_name = "URL", default_value = "")]
    metadata: String,
    /// Coordination store, as `store.coordination` [default: on the server's volume]
    #[arg(long, value_name = "URL", default_value = "")]
    coordination: String,
    /// Blob store, as `store.blobs` [default: on the server's volume]
    #[arg(long, value_name = "URL", default_value = "")]
    blobs: String,
    /// Secret in the namespace with the stores' credentials
    #[arg(long, value_name = "SECRET", requires = "credentials", default_value = "")]
    store_secret: String,
    /// Keys of that secret: metadata-password, coordination-ca.pem, coordination-cert.pem, coordination-key.pem,
    /// blobs-credentials, blobs-ca.pem, secret.key
    #[arg(long, value_name = "KEY,...", value_delimiter = ',', requires = "store_secret")]
    credentials: Vec<String>,
}

/// Runs.
pub(super) fn run(args: &ManifestArgs, ui: &Ui) -> Result<(), Failure> {
    let documents = manifest(&installation(args)?);
    if ui.json() {
        ui.json_line(&serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": documents }));
        return Ok(());
    }
    let mut text = String::new();
    for document in &documents {
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(document).map_err(|it| Failure::local(it.to_string(), "report this"))?);
    }
    ui.bytes(text.as_bytes());
    Ok(())
}

fn installation(args: &ManifestArgs) -> Result<Installation, Failure> {
    let wrong = |what: String, advice: &str| Err(Failure::usage("manifest_invalid", what, advice));
    for (flag, name) in [("--namespace", &args.namespace), ("--namespace-prefix", &args.namespace_prefix)] {
        let label = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
        if name.is_empty()
            || name.len() > 30
            || !name.chars().all(label)
            || !name.starts_with(|it: char| it.is_ascii_lowercase())
        {
            return wrong(
                format!("`{flag} {name}` cannot be part of a namespace"),
                "use a-z, 0-9 and -, at most 30 characters",
            );
        }
    }
    if args.namespace.starts_with(&args.namespace_prefix) {
        let tenant = &args.namespace[args.namespace_prefix.len()..];
        if tenant != "system" {
            return wrong(
                format!("namespace `{}` is that of a tenant `{tenant}`", args.namespace),
                "choose another `--namespace` or `--namespace-prefix`",
            );
        }
    }
    if args.trust_registry.is_none() && args.registry.is_empty() {
        return wrong(
            "nodes have no way to the platform's registry".to_owned(),
            "give `--trust-registry` (containerd with a config_path), or `--registry HOST:PORT` that nodes reach and trust",
        );
    }
    if args.trust_registry.as_ref().is_some_and(|it| !it.is_absolute()) {
        return wrong("`--trust-registry` is a folder of the nodes".to_owned(), "give an absolute path");
    }
    if args.registry_node_port != 0 && !(30000..=32767).contains(&args.registry_node_port) {
        return wrong(format!("port {} is not one of nodes", args.registry_node_port), "choose one of 30000 to 32767");
    }
    let known = |it: &String| CREDENTIALS.iter().any(|(key, _)| key == it);
    if let Some(key) = args.credentials.iter().find(|it| !known(it)) {
        let keys: Vec<&str> = CREDENTIALS.iter().map(|(key, _)| *key).collect();
        return wrong(format!("`{key}` is no credential of a store"), &format!("use {}", keys.join(", ")));
    }
    let domain = args.domain.trim_matches('.').to_ascii_lowercase();
    Ok(Installation {
        namespace: args.namespace.clone(),
        image: args.image.clone(),
        image_pull_secret: args.image_pull_secret.clone(),
        domain,
        gateway: match args.gateway {
            GatewayService::LoadBalancer => Exposure::LoadBalancer,
            GatewayService::NodePort => Exposure::NodePort,
            GatewayService::ClusterIp => Exposure::ClusterIp,
        },
        registry: args.registry.clone(),
        registry_node_port: args.registry_node_port,
        containerd_hosts: args.trust_registry.clone(),
        storage_class: args.storage_class.clone(),
        volume_gb: args.volume_gb,
        namespace_prefix: args.namespace_prefix.clone(),
        route_class: args.route_class.clone(),
        user_namespaces: !args.no_user_namespaces,
        stores: Stores {
            metadata: args.metadata.clone(),
            coordination: args.coordination.clone(),
            blobs: args.blobs.clone(),
            secret: args.store_secret.clone(),
        },
        credentials: args.credentials.clone(),
    })
}
