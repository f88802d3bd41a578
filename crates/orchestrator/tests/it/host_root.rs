//! A place to run containers in: stores in memory, temporary folders, and a root file system made of the host's own
//! small programs and their libraries, so that nothing is downloaded.
//!
//! The test binary is also the shim: see [`BECOME_SHIM`].

use arco_model::artifact::{Descriptor, Digest, Layer};
use arco_model::id::InstanceId;
use arco_model::spec::Resources;
use arco_orchestrator::local::container::{ContainerSpec, ContainerState, Containers, ContainersConfig, RestartPolicy};
use arco_store::blob::{MemoryBlobs, content_path};
use arco_store::clock;
use arco_store::images::{Images, LAYER_GZIP_TYPE};
use arco_store::logs::{LogBatch, LogSink};
use arco_store::sql::MemoryMetadata;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Runs before `main`, hence before any thread of the test harness: `shim …` makes this binary the shim.
#[used]
#[unsafe(link_section = ".init_array")]
static BECOME_SHIM: extern "C" fn(i32, *const *const libc::c_char) = become_shim;

extern "C" fn become_shim(count: i32, words: *const *const libc::c_char) {
    // SAFETY: the C start code hands over the arguments of the process.
    let words: Vec<_> = (1..count.max(1) as usize)
        .map(|it| unsafe { std::ffi::CStr::from_ptr(*words.add(it)) })
        .map(|it| std::ffi::OsString::from_vec(it.to_bytes().to_vec()))
        .collect();
    if words.first().is_some_and(|it| it == "shim") {
        let status = arco_orchestrator::local::shim_main(&words[1..]);
        // SAFETY: ends the process as `main` would.
        unsafe { libc::exit(status) }
    }
}

const PROGRAMS: [&str; 17] = [
    "sh", "cat", "echo", "sleep", "ls", "id", "mkdir", "rm", "ln", "dd", "tail", "grep", "stty", "tty", "ping",
    "touch", "stat",
];

pub(crate) use arco_orchestrator::contract::in_time;

/// What every test needs. Dropping it removes all containers of it.
pub(crate) struct Place {
    pub(crate) containers: Containers,
    pub(crate) images: Images,
    pub(crate) logs: mpsc::Receiver<LogBatch>,
    pub(crate) layer: Layer,
    pub(crate) config: ContainersConfig,
    _folder: tempfile::TempDir,
}

impl Drop for Place {
    /// After a failed test: removes what it left, from a thread of its own because this one belongs to a runtime.
    fn drop(&mut self) {
        let containers = self.containers.clone();
        let work = async move {
            for container in containers.list().await {
                let _ = containers.remove(&container.id).await;
            }
            containers.close().await;
        };
        let clean = move || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work);
        let _ = std::thread::spawn(clean).join();
    }
}

/// A place, or `None` (said loudly) where this user cannot make containers.
pub(crate) async fn place() -> Option<Place> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: container tests need root");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = ContainersConfig {
        data_dir: folder.path().join("data"),
        cache_dir: folder.path().join("cache"),
        instance_log_mb: 1,
        executable: std::env::current_exe().unwrap(),
    };
    std::fs::create_dir_all(&config.data_dir).unwrap();
    std::fs::create_dir_all(&config.cache_dir).unwrap();
    let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
    let layer = put_layer(&images, &host_root()).await;
    let (sink, logs) = LogSink::channel(1024);
    let containers = Containers::open(config.clone(), images.clone(), sink).await.unwrap();
    Some(Place { containers, images, logs, layer, config, _folder: folder })
}

impl Place {
    /// A container that runs a shell command line.
    pub(crate) fn spec(&self, command: &str) -> ContainerSpec {
        ContainerSpec {
            id: clock::fresh::<InstanceId>(),
            component: None,
            layers: vec![self.layer.clone()],
            disk_mb: 32,
            argv: vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()],
            env: BTreeMap::new(),
            working_dir: String::new(),
            user: String::new(),
            stop_signal: String::new(),
            resources: Resources { cpu_milli: 0, memory_mb: 64, disk_mb: 32, pids: 64 },
            mounts: Vec::new(),
            files: Vec::new(),
            netns: None,
            hostname: "box".to_owned(),
            resolv_conf: Some("nameserver 10.0.0.1\n".to_owned()),
            hosts: None,
            restart: RestartPolicy::Never,
            labels: BTreeMap::from([("place".to_owned(), "0".to_owned())]),
        }
    }

    /// Runs to the end and returns the output's lines and the state.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (Vec<String>, ContainerState) {
        let id = spec.id.clone();
        let output = self.containers.output(&id).await;
        self.containers.create(spec).await.unwrap();
        let lines = all_lines(output).await;
        let state = self.containers.state(&id).await.unwrap();
        (lines, state)
    }

    /// Removes every container and checks that nothing is left.
    pub(crate) async fn end(self) {
        for container in self.containers.list().await {
            self.containers.remove(&container.id).await.unwrap();
            assert_nothing_left(&self.config, &container.id);
        }
        self.containers.close().await;
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(self.config.data_dir.to_str().unwrap()), "{mounts}");
    }
}

/// Every line of a container, until it ends.
pub(crate) async fn all_lines(mut output: mpsc::Receiver<arco_orchestrator::OutputLine>) -> Vec<String> {
    let mut lines = Vec::new();
    let read = async {
        while let Some(line) = output.recv().await {
            lines.push(line.text);
        }
    };
    tokio::time::timeout(in_time(Duration::from_secs(90)), read).await.expect("the container ends");
    lines
}

/// Waits for a state of a container.
pub(crate) async fn until(
    containers: &Containers,
    id: &InstanceId,
    what: impl Fn(&ContainerState) -> bool,
) -> ContainerState {
    let mut changes = containers.changes();
    let wait = async {
        loop {
            if let Some(state) = containers.state(id).await
                && what(&state)
            {
                return state;
            }
            let _ = changes.recv().await;
        }
    };
    match tokio::time::timeout(in_time(Duration::from_secs(60)), wait).await {
        Ok(state) => state,
        Err(_) => panic!("waited in vain; the container is {:?}", containers.state(id).await),
    }
}

/// No process, mount, cgroup or folder names the container.
pub(crate) fn assert_nothing_left(config: &ContainersConfig, id: &InstanceId) {
    let id = id.as_str();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let status = || std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        assert!(!arguments.contains(id), "process {:?}: {arguments}: {}", process.path(), status());
    }
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(id));
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        assert!(!folder.to_string_lossy().contains(id), "{}", folder.display());
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.filter(|it| it.file_type().is_ok_and(|it| it.is_dir())).map(|it| it.path()));
    }
    assert!(!config.data_dir.join("instances").join(id).exists());
}

/// Stores a tar as a gzip layer.
pub(crate) async fn put_layer(images: &Images, tar: &[u8]) -> Layer {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, tar).unwrap();
    let bytes = encoder.finish().unwrap();
    let digest = Digest::of(&bytes);
    let size = bytes.len() as u64;
    images.blobs().put_bytes(&content_path(&digest), bytes.into()).await.unwrap();
    Layer { blob: Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest, size }, diff_id: Digest::of(tar) }
}

/// A tar with the host's programs and what they are linked to.
fn host_root() -> Vec<u8> {
    let mut files = BTreeSet::new();
    for name in PROGRAMS {
        let Some(path) = ["/bin", "/usr/bin"].map(|it| Path::new(it).join(name)).into_iter().find(|it| it.exists())
        else {
            continue;
        };
        let listed = std::process::Command::new("ldd").arg(&path).output().unwrap();
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|it| it.starts_with('/')) {
            files.insert(PathBuf::from(word));
        }
        files.insert(path);
    }
    let mut builder = tar::Builder::new(Vec::new());
    for path in files {
        builder.append_path_with_name(std::fs::canonicalize(&path).unwrap(), path.strip_prefix("/").unwrap()).unwrap();
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n"),
        ("etc/group", "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}
