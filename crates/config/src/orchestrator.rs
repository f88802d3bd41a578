//! Settings of the orchestrator: `[orchestrator]`.

use serde::{Deserialize, Serialize};

/// What runs instances.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrchestratorDriver {
    /// Our own containers on this machine.
    #[default]
    Local,
    /// Pods of a cluster; see `[kubernetes]`.
    Kubernetes,
}

/// Where instances run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrchestratorConfig {
    /// `local` or `kubernetes`.
    pub driver: OrchestratorDriver,
    /// Largest log of one instance on disk before eventlog takes it, in MiB (two files of half of it).
    pub instance_log_mb: u32,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        Self { driver: OrchestratorDriver::Local, instance_log_mb: 16 }
    }
}
