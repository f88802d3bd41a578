//! Everything that installs the platform on a cluster, as documents for `kubectl apply`. Pure: equal settings give equal
//! documents, in the order in which they are to be applied.
//!
//! What must hold: no more rights than [`crate::access`] says; pods that pass the `restricted` pod security standard; no
//! secret value in any document. One server runs all roles, or each role has pods of its own ([`Replicas`]), which needs
//! shared stores. Not here: applying it.

mod nodes;
mod objects;
mod parts;

pub(crate) use nodes::CREDENTIALS as NODE_CREDENTIALS;

use crate::scale;
use arco_model::artifact::Digest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How traffic from outside reaches the gateway.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Exposure {
    /// An address of the cloud's or the cluster's load balancer.
    #[default]
    LoadBalancer,
    /// A port of every node.
    NodePort,
    /// Only inside the cluster; something of the operator's leads there.
    ClusterIp,
}

/// Shared stores; an empty URL keeps that store on the server's own volume.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stores {
    /// `store.metadata`.
    pub metadata: String,
    /// `store.coordination`.
    pub coordination: String,
    /// `store.blobs`.
    pub blobs: String,
    /// Secret in the platform's namespace with their credentials, under the keys of [`CREDENTIALS`].
    pub secret: String,
}

impl Stores {
    /// Settings of stores that several servers cannot share, with what they may be.
    pub fn not_shared(&self) -> Vec<(&'static str, &'static str)> {
        let is = |url: &str, schemes: &[&str]| url.split_once(':').is_some_and(|(it, _)| schemes.contains(&it));
        let mut found = Vec::new();
        if !is(&self.metadata, &["mysql", "mariadb", "postgres", "postgresql"]) {
            found.push(("metadata", "mysql://… or postgres://…"));
        }
        if !is(&self.coordination, &["etcd"]) {
            found.push(("coordination", "etcd://…"));
        }
        if !is(&self.blobs, &["s3"]) {
            found.push(("blobs", "s3://…"));
        }
        found
    }
}

/// How many pods each part has, where roles have pods of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Replicas {
    /// API and registry.
    pub api: u32,
    /// Builders.
    pub builder: u32,
    /// Controllers, of which one leads.
    pub controller: u32,
    /// Keepers of logs, with a volume each.
    pub eventlog: u32,
    /// Gateways.
    pub gateway: u32,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { api: 2, builder: 2, controller: 2, eventlog: 2, gateway: 2 }
    }
}

/// Keys of the secret with the stores' credentials, and the settings that name their files.
pub const CREDENTIALS: [(&str, &str); 7] = [
    ("metadata-password", "metadata_password_file"),
    ("coordination-ca.pem", "coordination_ca_file"),
    ("coordination-cert.pem", "coordination_cert_file"),
    ("coordination-key.pem", "coordination_key_file"),
    ("blobs-credentials", "blobs_credentials_file"),
    ("blobs-ca.pem", "blobs_ca_file"),
    ("secret.key", "secret_key"),
];

/// What is installed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Installation {
    /// Namespace of the platform itself; names what the whole cluster shares, too.
    pub namespace: String,
    /// Our image.
    pub image: String,
    /// Secret in that namespace with the login for the image; empty when none is needed.
    pub image_pull_secret: String,
    /// Suffix of default hosts.
    pub domain: String,
    /// How the gateway is reached.
    pub gateway: Exposure,
    /// Ports of the gateway for HTTP and HTTPS as people see them. Those that a node may have are opened on each node when the
    /// gateway is reached by a port of every node.
    pub public_ports: [u16; 2],
    /// Ports of the gateway that lead to components without HTTP and are reached from outside: protocol (`TCP`, `UDP`) and port.
    pub stream_ports: Vec<(&'static str, u16)>,
    /// Pods of each role; absent: one server with all roles.
    pub replicas: Option<Replicas>,
    /// How nodes reach our registry, `HOST:PORT`; empty means by the name of its service.
    pub registry: String,
    /// Port of every node for the registry; 0 means none.
    pub registry_node_port: u16,
    /// Folder of containerd's `hosts.toml` files on the nodes, to let a DaemonSet write ours there.
    pub containerd_hosts: Option<PathBuf>,
    /// Folder of the nodes with the output of their pods, to let a DaemonSet read it there; needs pods of each role.
    pub node_logs: Option<PathBuf>,
    /// Storage class of the server's volume and of the components' volumes; empty means that of local storage, else the
    /// cluster's default.
    pub storage_class: String,
    /// Folder of the nodes that the leading controller makes volumes of.
    pub local_storage: Option<PathBuf>,
    /// Where one server's own volume is, which it cannot make before it runs: a folder beside those of `local_storage`, on the node
    /// with this `kubernetes.io/hostname`; empty means that its claim is of `storage_class`.
    pub server_node: String,
    /// Size of the server's volume, in GiB.
    pub volume_gb: u32,
    /// Tenant `t` gets the namespace `<prefix>t`.
    pub namespace_prefix: String,
    /// Class of the Ingress and Gateway API objects that the gateway serves; empty means none.
    pub route_class: String,
    /// Whether instances and builds get a user namespace; every node must be able to.
    pub user_namespaces: bool,
    /// Keys of the secret that are there (of [`CREDENTIALS`]), and the stores.
    pub stores: Stores,
    /// Which of [`CREDENTIALS`] the secret has.
    pub credentials: Vec<String>,
    /// Further settings by section, as lines `key = value`; none of them is one that [`Installation::settings`] sets itself.
    pub further: BTreeMap<String, Vec<String>>,
}

impl Installation {
    /// How nodes name our registry.
    pub fn registry_host(&self) -> String {
        if self.registry.is_empty() {
            format!("arco-registry.{}.svc:{}", self.namespace, objects::REGISTRY_PORT)
        } else {
            self.registry.clone()
        }
    }

    /// Name of the class of local storage: as platforms of one cluster differ in their prefix, so does this.
    fn local_class(&self) -> String {
        format!("{}local", self.namespace_prefix)
    }

    /// What volumes are made of that name no class; empty means the cluster's default.
    fn volume_class(&self) -> String {
        match &self.local_storage {
            Some(_) if self.storage_class.is_empty() => self.local_class(),
            _ => self.storage_class.clone(),
        }
    }

    /// The server's settings.
    pub fn settings(&self) -> String {
        let mut lines = vec![
            "# Written by `arco cluster manifest`.".to_owned(),
            "[server]".to_owned(),
            format!("domain = {}", toml_text(&self.domain)),
        ];
        if self.replicas.is_some() {
            lines.push("leader_lock = \"kubernetes\"".to_owned());
            lines.push(format!("peer_listen = \"0.0.0.0:{}\"", parts::PEERS_PORT));
        }
        lines.extend([
            "[api]".to_owned(),
            format!("listen = \"0.0.0.0:{}\"", objects::API_PORT),
            "[console]".to_owned(),
            format!("listen = \"0.0.0.0:{}\"", objects::CONSOLE_PORT),
            "[registry]".to_owned(),
            format!("listen = \"0.0.0.0:{}\"", objects::REGISTRY_PORT),
            "[gateway]".to_owned(),
            format!("http_listen = \"0.0.0.0:{}\"", objects::HTTP_PORT),
            format!("https_listen = \"0.0.0.0:{}\"", objects::HTTPS_PORT),
            format!("public_http_port = {}", self.public_ports[0]),
            format!("public_https_port = {}", self.public_ports[1]),
            "[orchestrator]".to_owned(),
            "driver = \"kubernetes\"".to_owned(),
            "[kubernetes]".to_owned(),
            format!("namespace_prefix = {}", toml_text(&self.namespace_prefix)),
            format!("registry = {}", toml_text(&self.registry_host())),
            format!("storage_class = {}", toml_text(&self.volume_class())),
            format!("user_namespaces = {}", self.user_namespaces),
        ]);
        if !self.route_class.is_empty() {
            lines.push(format!("route_class = {}", toml_text(&self.route_class)));
            lines.push(format!("route_service = {}", toml_text(&format!("{}/arco-gateway", self.namespace))));
        }
        if self.node_logs.is_some() {
            lines.push(format!("node_namespace = {}", toml_text(&nodes::namespace(self))));
        }
        if let Some(folder) = &self.local_storage {
            let text = |setting: &str, value: &str| format!("local_storage_{setting} = {}", toml_text(value));
            lines.push(text("class", &self.local_class()));
            lines.push(text("folder", &folder.to_string_lossy()));
            lines.push(text("namespace", &nodes::namespace(self)));
            lines.push(text("image", &self.image));
            lines.push(text("image_pull_secret", &self.image_pull_secret));
        }
        lines.push("[store]".to_owned());
        let stores = &self.stores;
        for (key, url) in
            [("metadata", &stores.metadata), ("coordination", &stores.coordination), ("blobs", &stores.blobs)]
        {
            if !url.is_empty() {
                lines.push(format!("{key} = {}", toml_text(url)));
            }
        }
        for (key, setting) in CREDENTIALS {
            if self.credentials.iter().any(|it| it == key) {
                lines.push(format!("{setting} = {}", toml_text(&format!("{}/{key}", objects::CREDENTIALS_FOLDER))));
            }
        }
        for (section, further) in &self.further {
            let head = format!("[{section}]");
            let at = match lines.iter().position(|it| *it == head) {
                Some(at) => at + 1,
                None => {
                    lines.push(head);
                    lines.len()
                }
            };
            lines.splice(at..at, further.iter().cloned());
        }
        lines.join("\n") + "\n"
    }
}

/// Every document, in order.
pub fn manifest(installation: &Installation) -> Vec<Value> {
    let settings = installation.settings();
    let digest = Digest::of(settings.as_bytes());
    let version = &digest.hex()[..16];
    let mut definition = scale::definition();
    definition["metadata"]["labels"] = objects::labels("controller");
    let mut documents = vec![definition];
    documents.extend(objects::namespace(installation));
    match &installation.replicas {
        None => {
            documents.extend(objects::access(installation));
            documents.push(objects::settings(installation, &settings));
            documents.extend(objects::services(installation));
            documents.extend(objects::guards(installation));
            documents.extend(nodes::server_volume(installation));
            documents.push(objects::server(installation, version));
        }
        Some(replicas) => {
            documents.extend(parts::access(installation));
            documents.push(objects::settings(installation, &settings));
            documents.extend(objects::services(installation));
            documents.extend(parts::all(installation, replicas, version));
        }
    }
    documents.extend(nodes::all(installation));
    documents
}

/// A basic string of TOML.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for it in text.chars() {
        match it {
            '"' | '\\' => quoted.extend(['\\', it]),
            it if it.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(it))),
            it => quoted.push(it),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests;
