//! `arco cluster manifest`: prints the documents of an installation; applies nothing.

use super::super::given_file;
use super::{Failure, Ui, image};
use arco_orchestrator_kubernetes::manifest::{CREDENTIALS, Exposure, Installation, Replicas, Stores, manifest};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Examples of the help.
pub(super) const EXAMPLES: &str = "Examples:
  arco cluster manifest --domain apps.example.com --image registry.example.com/platform/arco:1 --trust-registry >arco.yaml
  kubectl apply --server-side -f arco.yaml
  kubectl delete -f arco.yaml        (delete applications before; tenants' namespaces stay: docs/guides/cluster.md)

  arco cluster manifest … --high-availability --replicas builder=3 --metadata postgres://… --coordination etcd://… --blobs s3://… \\
    --store-secret arco-stores --credentials metadata-password,secret.key,…     (pods of its own for each role)

The same command with a newer --image upgrades.";

/// Most pods of a part.
const MOST: u32 = 100;

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
    /// Port of HTTP as people see it: in URLs, of the gateway's service, and of every node with `--gateway node-port`
    #[arg(long, value_name = "PORT", default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    public_http_port: u16,
    /// Port of HTTPS as people see it
    #[arg(long, value_name = "PORT", default_value_t = 443, value_parser = clap::value_parser!(u16).range(1..))]
    public_https_port: u16,
    /// Ports of the gateway for components without HTTP that its service opens, as `arco route add --tcp` gives them
    #[arg(long, value_name = "PORT/tcp|udp,...", value_delimiter = ',')]
    stream_port: Vec<String>,
    /// Several pods for each role, spread over nodes, so that any node may go; needs shared stores
    #[arg(long)]
    high_availability: bool,
    /// How many pods of api, builder, controller, eventlog and gateway [default: 2 of each]
    #[arg(long, value_name = "PART=N,...", value_delimiter = ',', requires = "high_availability")]
    replicas: Vec<String>,
    /// How nodes reach the platform's registry [default: by the name of its service, with --trust-registry]
    #[arg(long, value_name = "HOST:PORT", default_value = "")]
    registry: String,
    /// Open the registry on this port of every node
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    registry_node_port: u16,
    /// Let a DaemonSet write a hosts.toml for the registry into containerd's folder on each node
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "/etc/containerd/certs.d")]
    trust_registry: Option<PathBuf>,
    /// Let a DaemonSet read the output of instances from this folder of each node, instead of through the API server
    #[arg(
        long,
        value_name = "FOLDER",
        num_args = 0..=1,
        default_missing_value = "/var/log/pods",
        requires = "high_availability"
    )]
    node_logs: Option<PathBuf>,
    /// Storage class [default: that of --local-storage, else the cluster's default]
    #[arg(long, value_name = "NAME", default_value = "")]
    storage_class: String,
    /// Let the leading controller make volumes of this folder of the nodes, for clusters without a storage class
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "/var/lib/arco/volumes")]
    local_storage: Option<PathBuf>,
    /// Keep the one server's own volume in that folder of this node (its label kubernetes.io/hostname)
    #[arg(
        long,
        value_name = "NODE",
        requires = "local_storage",
        conflicts_with = "high_availability",
        default_value = ""
    )]
    server_node: String,
    /// Serve the cluster's Ingress and Gateway API objects of this class
    #[arg(long, value_name = "NAME", default_value = "")]
    route_class: String,
    /// Run instances without a user namespace, for nodes that cannot give one (before containerd 2.0); Dockerfiles with
    /// RUN are then refused, unless `builder.without_user_namespace` in the settings allows them
    #[arg(long)]
    no_user_namespaces: bool,
    /// Size of the server's own volume, in GiB
    #[arg(long, value_name = "N", default_value_t = 20)]
    volume_gb: u32,
    /// Further settings of the servers, as in their configuration file: mirrors and limits of builds, … No secrets: everybody
    /// who may read the namespace's ConfigMap sees them
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
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
    if let Err(why) = arco_config::KubernetesConfig::check_prefix(&args.namespace_prefix) {
        return wrong(format!("`--namespace-prefix {}` tells no platforms apart", args.namespace_prefix), why.as_str());
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
    if args.node_logs.as_ref().is_some_and(|it| !it.is_absolute()) {
        return wrong("`--node-logs` is a folder of the nodes".to_owned(), "give an absolute path");
    }
    if args.local_storage.as_ref().is_some_and(|it| !it.is_absolute() || it.parent().is_none()) {
        return wrong(
            "`--local-storage` is a folder of the nodes".to_owned(),
            "give an absolute path, as /var/lib/arco/volumes",
        );
    }
    let made_by_nobody = args.storage_class.is_empty() && args.server_node.is_empty() && !args.high_availability;
    if args.local_storage.is_some() && made_by_nobody {
        return wrong(
            "one server keeps its state on a volume, which cannot be one that it makes itself once it runs".to_owned(),
            "name a node for it by `--server-node` (`kubectl get nodes -L kubernetes.io/hostname`), or a class by `--storage-class`",
        );
    }
    if args.registry_node_port != 0 && !(30000..=32767).contains(&args.registry_node_port) {
        return wrong(format!("port {} is not one of nodes", args.registry_node_port), "choose one of 30000 to 32767");
    }
    let known = |it: &String| CREDENTIALS.iter().any(|(key, _)| key == it);
    if let Some(key) = args.credentials.iter().find(|it| !known(it)) {
        let keys: Vec<&str> = CREDENTIALS.iter().map(|(key, _)| *key).collect();
        return wrong(format!("`{key}` is no credential of a store"), &format!("use {}", keys.join(", ")));
    }
    if args.public_http_port == args.public_https_port {
        return wrong("HTTP and HTTPS have the same public port".to_owned(), "choose two");
    }
    let mut stream_ports = Vec::new();
    for written in &args.stream_port {
        let (port, protocol) = written.split_once('/').unwrap_or((written.as_str(), "tcp"));
        match (port.parse::<u16>(), protocol) {
            (Ok(port), "tcp") if port != 0 => stream_ports.push(("TCP", port)),
            (Ok(port), "udp") if port != 0 => stream_ports.push(("UDP", port)),
            _ => {
                return wrong(
                    format!("`--stream-port {written}` is no port"),
                    "give PORT/tcp or PORT/udp, as 10432/tcp",
                );
            }
        }
    }
    let stores = Stores {
        metadata: args.metadata.clone(),
        coordination: args.coordination.clone(),
        blobs: args.blobs.clone(),
        secret: args.store_secret.clone(),
    };
    let replicas = match args.high_availability {
        true => Some(spread(args, &stores)?),
        false => None,
    };
    let domain = args.domain.trim_matches('.').to_ascii_lowercase();
    let made = Installation {
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
        node_logs: args.node_logs.clone(),
        storage_class: args.storage_class.clone(),
        local_storage: args.local_storage.clone(),
        server_node: args.server_node.clone(),
        volume_gb: args.volume_gb,
        namespace_prefix: args.namespace_prefix.clone(),
        route_class: args.route_class.clone(),
        user_namespaces: !args.no_user_namespaces,
        public_ports: [args.public_http_port, args.public_https_port],
        stream_ports,
        replicas,
        stores,
        credentials: args.credentials.clone(),
        further: BTreeMap::new(),
    };
    match &args.settings {
        None => Ok(made),
        Some(file) => with_settings(made, &given_file::text(file)?).map_err(|(what, advice)| {
            Failure::usage("manifest_invalid", format!("`--settings {}`: {what}", file.display()), advice)
        }),
    }
}

/// The installation with further settings; says what is wrong with them, and what to do.
fn with_settings(mut made: Installation, text: &str) -> Result<Installation, (String, &'static str)> {
    let table = |text: &str| text.parse::<toml::Table>().map_err(|it| it.message().to_owned());
    let asked = table(text).map_err(|it| (it, "write it as `arco config template` shows"))?;
    let own = table(&made.settings()).map_err(|it| (it, "report this"))?;
    for (section, values) in asked {
        let toml::Value::Table(values) = values else {
            return Err((format!("`{section}` is outside of a section"), "write it as `arco config template` shows"));
        };
        let set = own.get(&section).and_then(toml::Value::as_table);
        if let Some(key) = values.keys().find(|it| set.is_some_and(|set| set.contains_key(*it))) {
            return Err((
                format!("the manifest sets `{section}.{key}` itself"),
                "leave it out, and use the flag for it",
            ));
        }
        let lines = values.iter().map(|(key, value)| format!("{key} = {value}"));
        made.further.insert(section, lines.collect());
    }
    let all = table(&made.settings()).map_err(|it| (it, "write it as `arco config template` shows"))?;
    match arco_config::from_table(all) {
        Ok(_) => Ok(made),
        Err(error) => Err((error.to_string(), "`arco config template` lists all settings")),
    }
}

/// How many pods each part has; refused when they would not be one platform.
fn spread(args: &ManifestArgs, stores: &Stores) -> Result<Replicas, Failure> {
    let wrong = |what: String, advice: &str| Err(Failure::usage("manifest_invalid", what, advice));
    let missing = stores.not_shared();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(name, _)| format!("`--{name}`")).collect();
        let wanted: Vec<_> = missing.iter().map(|(name, kinds)| format!("--{name} {kinds}")).collect();
        return wrong(
            format!(
                "servers of several nodes share their stores, and {} names none that can be shared",
                names.join(", ")
            ),
            &format!("give {}", wanted.join(", ")),
        );
    }
    if !args.credentials.iter().any(|it| it == "secret.key") {
        return wrong(
            "every server needs the same key of secrets".to_owned(),
            "put one into the secret of `--store-secret` (`echo \"k1 $(openssl rand -hex 32)\" >secret.key`) and name it in `--credentials`",
        );
    }
    let mut replicas = Replicas::default();
    for written in &args.replicas {
        let count = written.split_once('=').and_then(|(part, count)| Some((part, count.parse::<u32>().ok()?)));
        let Some((part, count)) = count.filter(|it| (1..=MOST).contains(&it.1)) else {
            return wrong(
                format!("`--replicas {written}` is not PART=N"),
                &format!("give a number of 1 to {MOST}, as api=3"),
            );
        };
        let place = match part {
            "api" => &mut replicas.api,
            "builder" => &mut replicas.builder,
            "controller" => &mut replicas.controller,
            "eventlog" => &mut replicas.eventlog,
            "gateway" => &mut replicas.gateway,
            _ => return wrong(format!("there is no part `{part}`"), "use api, builder, controller, eventlog, gateway"),
        };
        *place = count;
    }
    Ok(replicas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        manifest: ManifestArgs,
    }

    fn given(words: &[&str]) -> Result<Installation, String> {
        let base = ["arco", "--trust-registry"];
        let line = Line::try_parse_from(base.iter().chain(words)).map_err(|it| it.to_string())?;
        installation(&line.manifest).map_err(|it| format!("{it:?}"))
    }

    #[test]
    fn further_settings_stand_beside_those_of_the_manifest() {
        let made = || given(&[]).unwrap();
        let text = "[builder]\nmemory_mb = 512\n[builder.env]\nA_B = \"it's \\\"x\\\"\"\n[kubernetes]\nshared_access = \"read_write_many\"\n";
        let settings = with_settings(made(), text).unwrap().settings();
        let config: arco_config::Config = toml::from_str(&settings).unwrap();
        assert_eq!((config.builder.memory_mb, config.builder.env["A_B"].as_str()), (512, "it's \"x\""));
        let plain: arco_config::Config = toml::from_str(&made().settings()).unwrap();
        let same = |it: &arco_config::Config| (it.kubernetes.registry.clone(), it.gateway.clone());
        assert_eq!(same(&config), same(&plain));
        assert_ne!(config.kubernetes, plain.kubernetes);
        for (text, wanted) in [
            ("[kubernetes]\nregistry = \"x\"\n", "sets `kubernetes.registry` itself"),
            ("[builder]\nno_such = 1\n", "no_such"),
            ("[nothing]\nx = 1\n", "nothing"),
            ("x = 1\n", "outside of a section"),
            ("[", ""),
        ] {
            let (what, _) = with_settings(made(), text).unwrap_err();
            assert!(what.contains(wanted), "{text}: {what}");
        }
    }

    #[test]
    fn high_availability_is_refused_where_servers_would_not_be_one_platform() {
        let stores = ["--metadata", "postgres://a@b/c", "--coordination", "etcd://a:1", "--blobs", "s3://a/b"];
        let key = ["--store-secret", "s", "--credentials", "secret.key,metadata-password"];
        let ask = |more: &[&[&str]]| given(&[&["--high-availability"][..], &more.concat()].concat());
        let rows: [(&[&[&str]], &str); 8] = [
            (&[], "`--metadata`, `--coordination`, `--blobs`"),
            (&[&stores[..2], &stores[4..]], "`--coordination` names none"),
            (&[&["--metadata", "sqlite:/x"], &stores[2..], &key], "`--metadata` names none"),
            (&[&stores], "same key of secrets"),
            (&[&stores, &["--store-secret", "s", "--credentials", "metadata-password"]], "same key of secrets"),
            (&[&stores, &key, &["--replicas", "api=0"]], "not PART=N"),
            (&[&stores, &key, &["--replicas", "api"]], "not PART=N"),
            (&[&stores, &key, &["--replicas", "dns=2"]], "no part `dns`"),
        ];
        for (words, wanted) in rows {
            let refused = ask(words).unwrap_err();
            assert!(refused.contains(wanted), "{words:?}: {refused}");
        }
        let it = ask(&[&stores, &key, &["--replicas", "builder=3,gateway=4"]]).unwrap();
        assert_eq!(it.replicas, Some(Replicas { builder: 3, gateway: 4, ..Replicas::default() }));
        let local = ask(&[&stores, &key, &["--local-storage"]]).unwrap().local_storage;
        assert_eq!(local, Some(PathBuf::from("/var/lib/arco/volumes")));
        assert!(
            given(&["--local-storage"]).unwrap_err().contains("--server-node"),
            "who makes the server's own volume?"
        );
        assert!(given(&["--local-storage", "--storage-class", "fast"]).is_ok());
        assert_eq!(given(&["--local-storage", "--server-node", "n1"]).unwrap().server_node, "n1");
        assert!(given(&["--server-node", "n1"]).unwrap_err().contains("--local-storage"));
        assert!(ask(&[&stores, &key, &["--local-storage", "--server-node", "n1"]]).is_err(), "no server is the one");
        for folder in ["volumes", "/"] {
            assert!(given(&["--local-storage", folder]).unwrap_err().contains("a folder of the nodes"), "{folder}");
        }
        assert!(given(&["--namespace-prefix", "x-"]).is_ok());
        assert!(given(&["--namespace-prefix", "x"]).unwrap_err().contains("tells no platforms apart"));
        assert!(given(&["--replicas", "api=2"]).unwrap_err().contains("--high-availability"));
        assert_eq!(given(&[]).unwrap().replicas, None);
        assert!(given(&["--public-http-port", "443"]).unwrap_err().contains("same public port"));
        assert!(given(&["--public-http-port", "0"]).is_err());
        let streams = given(&["--stream-port", "10432/tcp,10433/udp", "--stream-port", "10434"]).unwrap().stream_ports;
        assert_eq!(streams, [("TCP", 10432), ("UDP", 10433), ("TCP", 10434)]);
        for wrong in ["0/tcp", "x", "10432/sctp"] {
            assert!(given(&["--stream-port", wrong]).unwrap_err().contains("is no port"));
        }
    }
}
