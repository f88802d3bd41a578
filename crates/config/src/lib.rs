//! Every setting of the server, a file per section.
//!
//! `defaults < file (TOML) < ARCO_SECTION__KEY < flags`. One spelling everywhere; unknown keys are errors. Settings are
//! static: a change needs a restart. What changes while running lives in the store.

mod access_log;
mod acme;
mod builder;
mod eventlog;
mod gateway;
mod kubernetes;
mod load;
mod network;
mod orchestrator;
mod ports;
mod server;
mod store;
mod virtual_address;

pub use access_log::{AccessLogConfig, AccessLogErrors, AccessLogFormat};
pub use acme::{AcmeChallenge, AcmeConfig};
pub use builder::{BuilderConfig, Egress, PRIVATE_NETWORKS, WithoutUserNamespace};
pub use eventlog::EventlogConfig;
pub use gateway::GatewayConfig;
pub use kubernetes::{KubernetesConfig, VolumeAccess};
pub use load::{ConfigError, environment, from_sources, from_table, template};
pub use network::NetworkConfig;
pub use orchestrator::{OrchestratorConfig, OrchestratorDriver};
pub use ports::PortRange;
pub use server::{ApiConfig, ConsoleConfig, LeaderLockPlace, RegistryConfig, Role, ServerConfig};
pub use store::StoreConfig;
pub use virtual_address::VirtualAddress;

use serde::{Deserialize, Serialize};

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The process itself.
    pub server: ServerConfig,
    /// REST API.
    pub api: ApiConfig,
    /// Console listener.
    pub console: ConsoleConfig,
    /// Image registry.
    pub registry: RegistryConfig,
    /// Gateway.
    pub gateway: GatewayConfig,
    /// Stores.
    pub store: StoreConfig,
    /// Network of the instances.
    pub network: NetworkConfig,
    /// Builds.
    pub builder: BuilderConfig,
    /// Where instances run.
    pub orchestrator: OrchestratorConfig,
    /// The cluster, when instances run on Kubernetes.
    pub kubernetes: KubernetesConfig,
    /// Automatic certificates.
    pub acme: AcmeConfig,
    /// Logs.
    pub eventlog: EventlogConfig,
}
