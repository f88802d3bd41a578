//! Containers: made, watched, stopped, exported, removed; one `shim` process each.
//!
//! A container belongs to its shim (see `shim`), not to this process: [`Containers::open`] finds those that run. What
//! must hold: after [`Containers::remove`] nothing of a container is left (processes, mounts, cgroups, folders), and
//! variables lie on tmpfs only. Networks, volumes and supervision of components are not here.

mod disk;
mod exec;
mod export;
mod layers;
mod lifecycle;
mod state;
mod tail;
mod unpack;

use crate::{Error, ExecRequest, ExecSession, OutputLine, Usage};
use arco_model::artifact::Layer;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::observed::ExitFacts;
use arco_model::plan::{HostMount, LayerExport};
use arco_model::spec::Resources;
use arco_model::time::Timestamp;
use arco_store::images::Images;
use arco_store::logs::LogSink;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};

/// Where containers live.
#[derive(Clone, Debug)]
pub struct ContainersConfig {
    /// Below it: `instances/<id>/` with disk image and log of each container.
    pub data_dir: PathBuf,
    /// Shared by all servers of this machine; below it: `layers/<diff_id>/` and prepared disk images.
    pub cache_dir: PathBuf,
    /// Largest log of one container on disk, in MiB.
    pub instance_log_mb: u32,
    /// The program that has [`super::shim_main`] behind its first argument `shim`; usually ourselves.
    pub executable: PathBuf,
}

/// Whether a program that ended is started again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It ran once; its files stay until [`Containers::remove`].
    #[default]
    Never,
    /// By its shim, also while the server is dead: after 1 s, 2 s, … 60 s; from the start again after 60 s of good running.
    BackOff,
}

/// A file that is made for a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerFile {
    /// Absolute path inside.
    pub path: String,
    /// What is in it.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
}

/// How a container is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its id, also in its cgroup's name.
    pub id: InstanceId,
    /// Whose log its output goes to. `None`: a one-shot of this process, whose output goes to [`Containers::output`]
    /// only; it is removed by [`Containers::close`] and ends by itself 30 s after its server died.
    pub component: Option<ComponentId>,
    /// Layers of the root file system, lowest first.
    pub layers: Vec<Layer>,
    /// Size of the writable layer, in MiB.
    pub disk_mb: u32,
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables. Only ever written to tmpfs.
    pub env: BTreeMap<String, String>,
    /// Working directory, made when missing; empty means `/`.
    pub working_dir: String,
    /// `user[:group]` by number or by name in the image; empty means root of the container's user namespace.
    pub user: String,
    /// Signal that stops it (`SIGTERM`, `TERM` or `15`); empty means SIGTERM.
    pub stop_signal: String,
    /// Limits; `disk_mb` in here is not looked at.
    pub resources: Resources,
    /// Folders and files of the host.
    pub mounts: Vec<HostMount>,
    /// Files made for it on tmpfs: read-only, and its user's own.
    #[serde(default)]
    pub files: Vec<ContainerFile>,
    /// A network namespace (a bound file); `None`: a fresh one with nothing but loopback.
    pub netns: Option<PathBuf>,
    /// Host name inside.
    pub hostname: String,
    /// Content of `/etc/resolv.conf`; `None`: what the image has.
    pub resolv_conf: Option<String>,
    /// Content of `/etc/hosts`; `None`: localhost and the host name.
    pub hosts: Option<String>,
    /// Whether the program is started again.
    pub restart: RestartPolicy,
    /// Kept for whoever adopts the container: template, revision, place, …
    pub labels: BTreeMap<String, String>,
}

/// How far a container is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// Its files are being made.
    #[default]
    Preparing,
    /// Its program runs.
    Running,
    /// Its program ended and is started again after a pause.
    BackOff,
    /// Its program ended for good.
    Exited,
}

/// Facts about a container.
#[derive(Clone, Debug)]
pub struct ContainerState {
    /// Id.
    pub id: InstanceId,
    /// Whose log.
    pub component: Option<ComponentId>,
    /// As given in its spec.
    pub labels: BTreeMap<String, String>,
    /// How far it is.
    pub phase: ContainerPhase,
    /// Its first process, in the host's numbering, while it runs.
    pub pid: Option<i32>,
    /// How often its program was started again.
    pub restarts: u32,
    /// When its program was started last.
    pub started_at: Option<Timestamp>,
    /// How its program ended last.
    pub last_exit: Option<ExitFacts>,
}

/// All containers of one data directory; cheap to clone.
#[derive(Clone)]
pub struct Containers {
    inner: Arc<state::Inner>,
}

impl Containers {
    /// Opens the data directory: adopts what runs, clears what died or was half made. Needs root.
    pub async fn open(config: ContainersConfig, images: Images, logs: LogSink) -> Result<Self, Error> {
        let inner = state::Inner::open(config, images, logs).await?;
        let containers = Self { inner: Arc::new(inner) };
        lifecycle::adopt_all(&containers.inner).await?;
        Ok(containers)
    }

    /// Every container that is not removed.
    pub async fn list(&self) -> Vec<ContainerState> {
        self.inner.list()
    }

    /// One container.
    pub async fn state(&self, id: &InstanceId) -> Option<ContainerState> {
        self.inner.state(id)
    }

    /// A bell: containers whose state changed. A receiver that lagged must look at all.
    pub fn changes(&self) -> broadcast::Receiver<InstanceId> {
        self.inner.changes.subscribe()
    }

    /// Makes a container and starts its program; returns when the program runs. On an error nothing is left.
    pub async fn create(&self, spec: ContainerSpec) -> Result<(), Error> {
        lifecycle::create(&self.inner, spec).await
    }

    /// Ends the program: its stop signal, then SIGKILL after `grace_ms`. No error when it has ended.
    pub async fn stop(&self, id: &InstanceId, grace_ms: u64) -> Result<(), Error> {
        lifecycle::stop(&self.inner, id, grace_ms).await
    }

    /// Removes a container, ended or not; nothing is left. No error when it is not there.
    pub async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        lifecycle::remove(&self.inner, id).await
    }

    /// Runs a program inside, as the container's user, with the same limits and rights.
    pub async fn exec(&self, id: &InstanceId, request: ExecRequest) -> Result<ExecSession, Error> {
        exec::exec(&self.inner, id, request).await
    }

    /// What a container uses now.
    pub async fn usage(&self, id: &InstanceId) -> Result<Usage, Error> {
        lifecycle::usage(&self.inner, id).await
    }

    /// Writes what an ended container (restart `Never`) wrote as a layer into the blob store.
    pub async fn export_layer(&self, id: &InstanceId, export: &LayerExport) -> Result<Layer, Error> {
        export::export_layer(&self.inner, id, export).await
    }

    /// Output from now on (call it before [`Containers::create`] to get all). Ends after the last line of an ended
    /// container. A slow reader slows the reading of this container's log, not the program.
    pub async fn output(&self, id: &InstanceId) -> mpsc::Receiver<OutputLine> {
        self.inner.subscribe_output(id)
    }

    /// Stops watching; containers go on, but one-shots are removed. When none is left, the run directory is removed too.
    pub async fn close(&self) {
        for one_shot in self.inner.list().into_iter().filter(|it| it.component.is_none()) {
            if let Err(error) = lifecycle::remove(&self.inner, &one_shot.id).await {
                tracing::error!(container = %one_shot.id, %error, "a one-shot is not wholly removed");
            }
        }
        self.inner.close().await;
    }
}
