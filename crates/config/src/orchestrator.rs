//! Settings of the orchestrator: `[orchestrator]`.

use serde::{Deserialize, Serialize};

/// Where instances run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrchestratorConfig {
    /// `local`.
    pub driver: String,
    /// Largest log of one instance on disk before eventlog takes it, in MiB (two files of half of it).
    pub instance_log_mb: u32,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        Self { driver: "local".to_owned(), instance_log_mb: 16 }
    }
}
