//! What a node and the servers of the platform say to each other, as JSON over mutual TLS.
//!
//! A node names a pod by its namespace and uid; whose it is, servers know, and seal it for those that come after them. Not
//! here: who answers.

use arco_model::log::LogOrigin;
use arco_model::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a node asks how far the output of pods is kept: [`Vec<Pod>`] to [`Vec<Cursor>`], in the same order.
pub const CURSORS: &str = "/nodes/cursors";
/// Where it sends output: [`Vec<Output>`] to [`Vec<Kept>`], in the same order, when all of it is on disk.
pub const OUTPUT: &str = "/nodes/output";
/// Largest request, in bytes.
pub const REQUEST_MAX: usize = 16 << 20;
/// Most pods of a request.
pub const PODS_MAX: usize = 256;
/// Role in the certificate of a node.
pub const ROLE: &str = "node";
/// A name that is in the certificate of every server of a platform: a node asks any of them.
pub const ANY_SERVER: &str = "server.arco.internal";

/// A pod.
#[derive(Clone, Debug, Eq, PartialEq, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// What no other pod ever has.
    pub uid: String,
    /// The last [`Cursor::After::seal`] of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
}

/// How far the output of a pod is kept.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cursor {
    /// The pod is not an instance of this platform, or not known yet.
    Unknown,
    /// It cannot be said now.
    Later,
    /// Everything before `at`, and of that millisecond these lines.
    After {
        /// When the last line was written that is kept; without one, where to begin.
        at: Timestamp,
        /// Texts of the lines of that millisecond.
        texts: Vec<String>,
        /// Whose the pod is, as only servers read it: one that began after the pod went knows it by this alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seal: Option<String>,
    },
}

/// A line of a program.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When it was written, by the clock of the runtime.
    pub at: Timestamp,
    /// Which pipe. The platform's means that files went before they were read; what is said then, servers know.
    pub origin: LogOrigin,
    /// Without its line end.
    pub text: String,
}

/// Output of a pod, in order.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Whose.
    pub pod: Pod,
    /// The lines.
    pub lines: Vec<Line>,
}

/// What became of the output of a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is on disk, or was refused for good (a flood, which its keeper tells of).
    Yes,
    /// Nobody knows whether it is, and nobody keeps it from now on: ask for the cursor.
    No,
    /// The pod is not known.
    Unknown,
}
