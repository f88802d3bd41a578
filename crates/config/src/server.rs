//! Settings of the process and its plain listeners: `[server]`, `[api]`, `[console]`, `[registry]`.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// A part of the platform.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// REST API.
    Api,
    /// Builds.
    Builder,
    /// Reconcilers.
    Controller,
    /// Logs.
    Eventlog,
    /// Gateway and DNS, in a process of their own.
    Gateway,
    /// Image registry.
    Registry,
    /// Console listener.
    Console,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 7] =
        [Role::Api, Role::Builder, Role::Controller, Role::Eventlog, Role::Gateway, Role::Registry, Role::Console];
}

/// Where the lock of a leader lies.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaderLockPlace {
    /// In the coordination store.
    #[default]
    Store,
    /// A Lease in the namespace of the platform's own pods.
    Kubernetes,
}

/// The process itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Everything the platform keeps.
    pub data_dir: PathBuf,
    /// What is shared by all servers of this machine: base stacks, toolchains, unpacked layers.
    pub cache_dir: PathBuf,
    /// Roles that run here; empty means all.
    pub roles: Vec<Role>,
    /// Suffix of default hosts.
    pub domain: String,
    /// Longest time from SIGTERM to the end, in ms.
    pub shutdown_timeout_ms: u64,
    /// Whether instances are stopped when the server stops; not for one of several servers of a cluster.
    pub stop_instances: bool,
    /// Whether the data plane goes on when the server stops.
    pub keep_data_plane: bool,
    /// Where servers with the role `controller` agree on who leads: `store` or `kubernetes`.
    pub leader_lock: LeaderLockPlace,
    /// How long a leader that is silent keeps its lock, in seconds; at least 5. Another one takes over after that.
    pub leader_lease_s: u32,
    /// Where servers on the same shared stores reach this one, with mutual TLS. Port 0 picks a free port; the default is
    /// for servers on one machine.
    pub peer_listen: SocketAddr,
    /// `HOST:PORT` by which others reach `peer_listen`; empty: the address itself, or this machine's name when it listens
    /// on all addresses.
    pub peer_address: String,
    /// Filter of the log, as `info` or `info,arco_builder=debug`.
    pub log: String,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/arco"),
            cache_dir: PathBuf::from("/var/cache/arco"),
            roles: Vec::new(),
            domain: "localhost".to_owned(),
            shutdown_timeout_ms: 30_000,
            stop_instances: false,
            keep_data_plane: false,
            leader_lock: LeaderLockPlace::Store,
            leader_lease_s: 10,
            peer_listen: loopback(0),
            peer_address: String::new(),
            log: "info".to_owned(),
        }
    }
}

impl ServerConfig {
    /// Whether `role` runs here.
    pub fn has(&self, role: Role) -> bool {
        self.roles.is_empty() || self.roles.contains(&role)
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// REST API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Address, with mutual TLS. Port 0 picks a free port.
    pub listen: SocketAddr,
    /// Largest upload, in bytes.
    pub max_upload_bytes: u64,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { listen: loopback(8443), max_upload_bytes: 2 << 30 }
    }
}

/// Console listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Address. Port 0 picks a free port.
    pub listen: SocketAddr,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { listen: loopback(7070) }
    }
}

/// Image registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Address. Port 0 picks a free port.
    pub listen: SocketAddr,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { listen: loopback(5000) }
    }
}
