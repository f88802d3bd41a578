//! What this process knows about containers: a table fed by the shims, bells, and the tasks that watch.
//!
//! The truth is in the shims; this is a copy that may be late, never invented.

use super::{ContainerPhase, ContainerState, ContainersConfig, tail};
use crate::local::cgroup;
use crate::local::shim::protocol::{ShimSpec, ShimState};
use crate::local::shim::{INIT, protocol};
use crate::{Error, OutputLine};
use arco_model::artifact::Digest;
use arco_model::id::{ComponentId, InstanceId};
use arco_store::images::Images;
use arco_store::logs::LogSink;
use nix::mount::{MntFlags, MsFlags};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

/// A container in the table.
pub(super) struct Entry {
    pub(super) component: Option<ComponentId>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) shim: ShimState,
    /// Requests to the shim; `None` while it is not connected.
    pub(super) requests: Option<Arc<tokio::sync::Mutex<OwnedWriteHalf>>>,
    /// The shim's end: true once its socket closed.
    pub(super) gone: watch::Sender<bool>,
    /// Counts what the tail has to look at; the second is true when no more comes.
    pub(super) log: watch::Sender<(u64, bool)>,
    /// False while a tail has lines to hand over.
    pub(super) tailed: watch::Sender<bool>,
    pub(super) id_base: Option<u32>,
    pub(super) kill_shim: Option<i32>,
}

impl Entry {
    pub(super) fn new(component: Option<ComponentId>, labels: BTreeMap<String, String>, id_base: Option<u32>) -> Self {
        Self {
            component,
            labels,
            shim: ShimState::default(),
            requests: None,
            gone: watch::channel(false).0,
            log: watch::channel((0, false)).0,
            tailed: watch::channel(true).0,
            id_base,
            kill_shim: None,
        }
    }
}

/// Shared by all clones of `Containers`.
pub(super) struct Inner {
    pub(super) config: ContainersConfig,
    pub(super) images: Images,
    pub(super) logs: LogSink,
    /// tmpfs `/run/arco/<6 hex>`.
    pub(super) run_root: PathBuf,
    /// First part of cgroup names.
    pub(super) cgroup_root: String,
    /// First host id of containers.
    pub(super) id_base: u32,
    pub(super) changes: broadcast::Sender<InstanceId>,
    table: Mutex<HashMap<InstanceId, Entry>>,
    outputs: Mutex<HashMap<InstanceId, Vec<mpsc::Sender<OutputLine>>>>,
    tasks: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves a table that is at worst late.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) async fn open(config: ContainersConfig, images: Images, logs: LogSink) -> Result<Self, Error> {
        let data_dir = tokio::fs::canonicalize(&config.data_dir)
            .await
            .map_err(|error| Error::failed(format!("open the data directory {}", config.data_dir.display()), error))?;
        let config = ContainersConfig { data_dir, ..config };
        let digest = Digest::of(config.data_dir.as_os_str().as_encoded_bytes());
        let name = digest.hex()[..6].to_owned();
        let run_root = Path::new("/run/arco").join(&name);
        prepare_run_root(&run_root).map_err(|error| Error::failed(format!("prepare {}", run_root.display()), error))?;
        for folder in
            [config.data_dir.join("instances"), config.cache_dir.join("layers"), config.cache_dir.join("disks")]
        {
            // Layers hold set-user-id programs; nobody on the host may reach them.
            make_private(&folder).map_err(|error| Error::failed(format!("make {}", folder.display()), error))?;
        }
        let number = u32::from_str_radix(&name, 16).unwrap_or(0) % 16_000;
        Ok(Self {
            config,
            images,
            logs,
            run_root,
            cgroup_root: format!("arco-{name}"),
            // Above what useradd and systemd hand out.
            id_base: 0x4000_0000 + number * protocol::ID_RANGE,
            changes: broadcast::channel(1024).0,
            table: Mutex::default(),
            outputs: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// Run directory of a container: on tmpfs.
    pub(super) fn run_directory(&self, id: &InstanceId) -> PathBuf {
        self.run_root.join(id.as_str())
    }

    /// Folder of a container on disk: disk image and log.
    pub(super) fn folder(&self, id: &InstanceId) -> PathBuf {
        self.config.data_dir.join("instances").join(id.as_str())
    }

    /// Cgroup of a container.
    pub(super) fn cgroup_name(&self, id: &InstanceId) -> String {
        format!("{}/{id}", self.cgroup_root)
    }

    /// Runs a task until [`Inner::close`].
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub(super) fn insert(&self, id: &InstanceId, entry: Entry) -> bool {
        let mut table = lock(&self.table);
        if table.contains_key(id) {
            return false;
        }
        table.insert(id.clone(), entry);
        true
    }

    pub(super) fn forget(&self, id: &InstanceId) {
        lock(&self.table).remove(id);
        lock(&self.outputs).remove(id);
        let _ = self.changes.send(id.clone());
    }

    /// Reads or changes one entry.
    pub(super) fn with<T>(&self, id: &InstanceId, what: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        lock(&self.table).get_mut(id).map(what)
    }

    pub(super) fn list(&self) -> Vec<ContainerState> {
        let table = lock(&self.table);
        let mut list: Vec<_> = table.iter().map(|(id, entry)| facts(id, entry)).collect();
        list.sort_by(|left, right| left.id.cmp(&right.id));
        list
    }

    pub(super) fn state(&self, id: &InstanceId) -> Option<ContainerState> {
        lock(&self.table).get(id).map(|entry| facts(id, entry))
    }

    pub(super) fn subscribe_output(&self, id: &InstanceId) -> mpsc::Receiver<OutputLine> {
        let (sender, receiver) = mpsc::channel(1024);
        lock(&self.outputs).entry(id.clone()).or_default().push(sender);
        receiver
    }

    /// Whoever listens to a container's output now; those that went away are forgotten.
    pub(super) fn listeners(&self, id: &InstanceId) -> Vec<mpsc::Sender<OutputLine>> {
        let mut outputs = lock(&self.outputs);
        let Some(list) = outputs.get_mut(id) else { return Vec::new() };
        list.retain(|it| !it.is_closed());
        list.clone()
    }

    /// No more output comes.
    pub(super) fn end_output(&self, id: &InstanceId) {
        lock(&self.outputs).remove(id);
    }

    /// Begins to hand over a container's log.
    pub(super) fn start_tail(self: &Arc<Self>, id: &InstanceId) {
        let inner = Arc::clone(self);
        let id = id.clone();
        self.with(&id, |entry| entry.tailed.send_replace(false));
        self.spawn(async move { tail::follow(&inner, &id).await });
    }

    pub(super) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
        let empty = lock(&self.table).is_empty();
        if empty {
            let _ = nix::mount::umount2(&self.run_root, MntFlags::MNT_DETACH);
            let _ = std::fs::remove_dir(&self.run_root);
            let _ = std::fs::remove_dir("/run/arco");
            cgroup::remove_parent(&self.cgroup_root);
        }
    }

    /// What the shim of a container is told; the contents of its files are gone once they are in it.
    pub(super) fn read_spec(&self, id: &InstanceId) -> Option<ShimSpec> {
        serde_json::from_slice(&std::fs::read(self.run_directory(id).join(protocol::SPEC_FILE)).ok()?).ok()
    }

    /// What the shim of a container wrote last.
    pub(super) fn read_state(&self, id: &InstanceId) -> Option<ShimState> {
        serde_json::from_slice(&std::fs::read(self.run_directory(id).join(protocol::STATE_FILE)).ok()?).ok()
    }
}

fn facts(id: &InstanceId, entry: &Entry) -> ContainerState {
    let running = entry.shim.phase == ContainerPhase::Running;
    ContainerState {
        id: id.clone(),
        component: entry.component.clone(),
        labels: entry.labels.clone(),
        phase: entry.shim.phase,
        pid: entry.shim.pid.filter(|_| running),
        restarts: entry.shim.restarts,
        started_at: entry.shim.started_at,
        last_exit: entry.shim.last_exit.clone(),
    }
}

/// A tmpfs of our own, whatever `/run` is: variables must not reach a disk.
fn prepare_run_root(run_root: &Path) -> std::io::Result<()> {
    let parent = run_root.parent().unwrap_or(Path::new("/run"));
    crate::local::make_folder(run_root)?;
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o711))?;
    let mounted =
        std::fs::read_to_string("/proc/self/mounts")?.lines().any(|line| line.split(' ').nth(1) == run_root.to_str());
    if !mounted {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        nix::mount::mount(Some("arco"), run_root, Some("tmpfs"), flags, Some("mode=711,size=256m"))?;
    }
    let mount_point = run_root.join("m");
    if !mount_point.exists() {
        std::fs::create_dir(&mount_point)?;
    }
    std::fs::set_permissions(&mount_point, std::fs::Permissions::from_mode(0o755))?;
    let init = run_root.join("init");
    if std::fs::read(&init).is_ok_and(|it| it == INIT) {
        return Ok(());
    }
    // A new file: running containers keep theirs.
    let fresh = run_root.join("init.new");
    std::fs::write(&fresh, INIT)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o555))?;
    std::fs::rename(&fresh, &init)
}

fn make_private(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}
