//! Settings of builds: `[builder]`.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Address ranges that builds never reach (RFC 6890 and RFC 1918).
pub const PRIVATE_NETWORKS: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/5",
    "248.0.0.0/5",
];

/// Hosts that builds may reach when nothing else is said: where sources, packages and modules come from.
const HOSTS: [&str; 22] = [
    "deb.debian.org",
    "security.debian.org",
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "nodejs.org",
    "pypi.org",
    "files.pythonhosted.org",
    "proxy.golang.org",
    "sum.golang.org",
    "index.crates.io",
    "static.crates.io",
    "repo.maven.apache.org",
    "repo1.maven.org",
    "plugins.gradle.org",
    "rubygems.org",
    "index.rubygems.org",
    "repo.packagist.org",
    "api.nuget.org",
    "github.com",
    "codeload.github.com",
    "gitlab.com",
    "bitbucket.org",
];

/// What builds may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Every public address, and `allowed_networks`.
    #[default]
    Public,
    /// Only `allowed_hosts`, by name through the platform's proxy; nothing else, not even name service.
    Allowlist,
}

/// What becomes of steps of builds where pods have no user namespace (`kubernetes.user_namespaces = false`), so that root in
/// them is root of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutUserNamespace {
    /// Steps of languages run as a user without rights; a Dockerfile with `RUN` is refused before anything of it runs.
    #[default]
    Refuse,
    /// They run, as root of the node with the capabilities of instances.
    Allow,
}

/// How builds run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuilderConfig {
    /// Builds at the same time; 0 means as many as cores.
    pub concurrency: usize,
    /// Longest build, in ms.
    pub timeout_ms: u64,
    /// Memory of a build, in MiB.
    pub memory_mb: u32,
    /// Disk of a build, in MiB.
    pub disk_mb: u32,
    /// Processes of a build.
    pub pids: u32,
    /// Most that the caches of package clients of one component take where the platform keeps them in its blob store (with
    /// Kubernetes), in MiB, compressed; 0 keeps none. On one machine they are folders of its disk.
    pub cache_mb: u32,
    /// Private networks that builds may reach nevertheless (package mirrors).
    pub allowed_networks: Vec<Ipv4Net>,
    /// What builds may reach: `public` or `allowlist`.
    pub egress: Egress,
    /// Hosts that builds may reach with `egress = "allowlist"`: `name`, `*.suffix`, each with `:port` for another port
    /// than 80 and 443. A private address that such a name has must also be in `allowed_networks`.
    pub allowed_hosts: Vec<String>,
    /// What becomes of steps of builds on a cluster whose pods have no user namespace: `refuse` or `allow`.
    pub without_user_namespace: WithoutUserNamespace,
    /// Image names that mean one of our stacks: `debian:12` → `stack/base`.
    pub image_aliases: BTreeMap<String, String>,
    /// Debian mirror for base stacks; empty means what the machine's own apt uses, else `debian_default_mirror`.
    pub debian_mirror: String,
    /// Debian mirror of machines whose apt names none for the release of the stacks.
    pub debian_default_mirror: String,
    /// npm registry that Node.js comes from; empty means what the server's `npm_config_registry` says, else
    /// `npm_default_registry`.
    pub npm_registry: String,
    /// npm registry of machines that name none.
    pub npm_default_registry: String,
    /// Go module proxy that Go comes from where the server's `GOPROXY` names none.
    pub go_default_proxy: String,
    /// Variables for every build (proxies, registry mirrors). By default those of the platform's own environment that
    /// package clients know are handed on.
    pub env: BTreeMap<String, String>,
}

impl Default for BuilderConfig {
    fn default() -> Self {
        let aliases = ["debian:12", "debian:12-slim", "debian:bookworm", "debian:bookworm-slim", "debian:latest"];
        Self {
            concurrency: 0,
            timeout_ms: 1_800_000,
            memory_mb: 4096,
            disk_mb: 8192,
            pids: 2048,
            cache_mb: 2048,
            allowed_networks: Vec::new(),
            egress: Egress::default(),
            allowed_hosts: HOSTS.map(str::to_owned).to_vec(),
            without_user_namespace: WithoutUserNamespace::default(),
            image_aliases: aliases.into_iter().map(|it| (it.to_owned(), "stack/base".to_owned())).collect(),
            debian_mirror: String::new(),
            debian_default_mirror: "http://deb.debian.org/debian".to_owned(),
            npm_registry: String::new(),
            npm_default_registry: "https://registry.npmjs.org".to_owned(),
            go_default_proxy: "https://proxy.golang.org".to_owned(),
            env: BTreeMap::new(),
        }
    }
}
