//! What the server and a shim tell each other: files below the container's run directory and lines on its socket.
//!
//! `spec.json` (mode 0600, on tmpfs) → the shim; `state.json` ← the shim, replaced whole at each change. On `socket`
//! each side writes JSON lines: the server [`Request`]s, the shim [`Notice`]s.

use crate::local::container::{ContainerPhase, ContainerSpec};
use arco_model::observed::ExitFacts;
use arco_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What the shim is told.
pub(in crate::local) const SPEC_FILE: &str = "spec.json";
/// What the shim last said.
pub(in crate::local) const STATE_FILE: &str = "state.json";
/// Where the shim listens.
pub(in crate::local) const SOCKET_FILE: &str = "socket";
/// The runtime configuration that `exec` reads.
pub(in crate::local) const BUNDLE_FILE: &str = "config.json";
/// How many ids a user namespace maps.
pub(in crate::local) const ID_RANGE: u32 = 65_536;

/// Everything that a shim needs; nothing else is handed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::local) struct ShimSpec {
    /// As asked.
    pub(in crate::local) container: ContainerSpec,
    /// Unpacked layers, lowest first.
    pub(in crate::local) layers: Vec<PathBuf>,
    /// Prepared disk image; `None`: the writable layer lies in `disk_dir`, unbounded.
    pub(in crate::local) disk_image: Option<PathBuf>,
    /// Folder for the writable layer when there is no image.
    pub(in crate::local) disk_dir: PathBuf,
    /// Where the log files go.
    pub(in crate::local) log_dir: PathBuf,
    /// Most bytes of log on disk.
    pub(in crate::local) log_bytes: u64,
    /// Mounts of others below it are let go.
    pub(in crate::local) data_dir: PathBuf,
    /// tmpfs shared by the containers of one server; holds `init` and the mount point `m`.
    pub(in crate::local) run_root: PathBuf,
    /// Cgroup, relative to the root of each hierarchy.
    pub(in crate::local) cgroup: String,
    /// First host id of the user namespace; `None`: no user namespace.
    pub(in crate::local) id_base: Option<u32>,
    /// Signal number that stops the program.
    pub(in crate::local) stop_signal: i32,
}

/// What a shim knows about its container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::local) struct ShimState {
    /// How far it is.
    pub(in crate::local) phase: ContainerPhase,
    /// The shim itself.
    pub(in crate::local) shim_pid: i32,
    /// PID 1 of the container in the host's numbering.
    pub(in crate::local) pid: Option<i32>,
    /// How often the program was started again.
    pub(in crate::local) restarts: u32,
    /// When it was started last.
    pub(in crate::local) started_at: Option<Timestamp>,
    /// How it ended last.
    pub(in crate::local) last_exit: Option<ExitFacts>,
    /// Whether the user namespace that was asked for is there.
    pub(in crate::local) user_namespace: bool,
}

/// From the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(in crate::local) enum Request {
    /// End the program: stop signal, then SIGKILL.
    Stop {
        /// Time between both.
        grace_ms: u64,
    },
    /// End the program at once, undo all mounts, end the shim.
    Finish,
}

/// From the shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub(in crate::local) enum Notice {
    /// First after connecting, and at each change.
    State(ShimState),
    /// The log grew; said again only after new output.
    Log,
}

/// Writes a file whole or not at all, for root only.
pub(in crate::local) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let fresh = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    drop(file);
    std::fs::rename(&fresh, path)
}
