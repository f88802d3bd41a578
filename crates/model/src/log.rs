//! Lines of logs: of operations, builds and instances.

use crate::id::{ComponentId, InstanceId, OperationId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Whose log.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogStream {
    /// The log of an operation: its steps and its build.
    Operation {
        /// Which.
        id: OperationId,
    },
    /// Output of the instances of a component.
    Component {
        /// Which.
        id: ComponentId,
    },
}

/// Which pipe a line came out of.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogOrigin {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Said by the platform, not by the program.
    Platform,
}

/// One line.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written.
    pub at: Timestamp,
    /// Which instance wrote it, for components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Which pipe.
    pub origin: LogOrigin,
    /// The text without its line end; bytes that are not UTF-8 were replaced.
    pub text: String,
}
