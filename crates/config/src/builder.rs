//! Settings of builds: `[builder]`.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Private networks that builds may reach nevertheless (package mirrors).
    pub allowed_networks: Vec<Ipv4Net>,
    /// Image names that mean one of our stacks: `debian:12` → `stack/base`.
    pub image_aliases: BTreeMap<String, String>,
    /// Debian mirror for base stacks; empty means what the machine's own apt uses.
    pub debian_mirror: String,
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
            allowed_networks: Vec::new(),
            image_aliases: aliases.into_iter().map(|it| (it.to_owned(), "stack/base".to_owned())).collect(),
            debian_mirror: String::new(),
            env: BTreeMap::new(),
        }
    }
}
