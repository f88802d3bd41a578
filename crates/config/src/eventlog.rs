//! Settings of logs: `[eventlog]`.

use serde::{Deserialize, Serialize};

/// How long and how much is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventlogConfig {
    /// Most of one component's log, in MiB; the oldest segments go first.
    pub component_mb: u32,
    /// Most of all logs, in MiB.
    pub total_mb: u32,
    /// Oldest line kept, in days.
    pub days: u32,
    /// How long an operation is listed after its end, in days. The last deploy of each component stays.
    pub operation_days: u32,
    /// Most ended operations that are kept; the oldest go first, with their logs.
    pub operations: u32,
}

impl Default for EventlogConfig {
    fn default() -> Self {
        Self { component_mb: 100, total_mb: 4096, days: 30, operation_days: 90, operations: 20_000 }
    }
}
