//! The data plane as a process of its own, and how the server starts, adopts, watches and stops it.
//!
//! What must hold: one data plane per data directory (a lock, gone with the process); it lives in its own session, so
//! that it outlives the server; it serves the last known routes before the store answers.
//!
//! The executable composes it with DNS: [`Process::start`], then DNS on [`Process::mirror`], then [`Process::run`].

mod handle;

use crate::admin::{Admin, serve_unix};
use crate::data_plane::{DataPlane, GatewayError, system};
use crate::engine::Shared;
use crate::explain::{Question, steps};
use crate::rates::Rates;
use arco_config::GatewayConfig;
use arco_daemon::{CancellationToken, OnExit, Supervisor};
use arco_model::traffic::GATEWAY_PREFIX;
use arco_store::kv::SharedKv;
use arco_store::kv::mirror::Mirror;
use arco_store::secrets::SecretBox;
pub use handle::{Handle, adopt, spawn};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the control socket in `<data-dir>/run/`.
const SOCKET: &str = "data-plane.sock";
/// Name of the lock, which holds the process id.
const LOCK: &str = "data-plane.pid";
/// Where a start that failed says why.
const FAILURE: &str = "data-plane.failure";

/// What the process needs to know.
#[derive(Clone)]
pub struct DataPlaneArgs {
    /// Everything the platform keeps.
    pub data_dir: PathBuf,
    /// Listeners and limits.
    pub config: GatewayConfig,
    /// Name of this gateway among others: letters, digits and `-`.
    pub id: String,
    /// Opens the private keys of certificates.
    pub keys: Arc<SecretBox>,
}

/// What the process tells about itself on its control socket.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Process id.
    pub pid: u32,
    /// Version of the executable.
    pub version: String,
    /// Where plain HTTP is served.
    pub http: SocketAddr,
    /// Where HTTPS is served.
    pub https: SocketAddr,
    /// Store revision that requests are routed by; 0 when nothing is known.
    pub applied_revision: u64,
    /// Whether the store has answered since the start.
    pub live: bool,
}

/// A data plane that listens.
pub struct Process {
    supervisor: Supervisor,
    mirror: Arc<Mirror>,
    plane: DataPlane,
    stop: CancellationToken,
    data_dir: PathBuf,
    _lock: Flock<File>,
}

impl Process {
    /// Takes the data directory, begins a session of its own, binds every address and serves the last known routes.
    pub fn start(supervisor: &Supervisor, args: &DataPlaneArgs) -> Result<Self, GatewayError> {
        let run = folder(&args.data_dir.join("run"))?;
        let started = Self::start_in(supervisor, args, &run);
        if let Err(error) = &started {
            // The starter reads it; the log has it as well.
            let _ = std::fs::write(run.join(FAILURE), error.to_string());
        }
        started
    }

    fn start_in(supervisor: &Supervisor, args: &DataPlaneArgs, run: &Path) -> Result<Self, GatewayError> {
        // Fails only for the leader of a group: then it has a session of its own already, or a terminal that ends it.
        let _ = nix::unistd::setsid();
        let lock = lock(&run.join(LOCK))?;
        let kept = folder(&args.data_dir.join("data-plane"))?;
        let mirror = Mirror::open(GATEWAY_PREFIX, &kept.join("routes.journal"))?;
        let plane = DataPlane::build(supervisor, &args.config, Arc::clone(&mirror), &args.id, Arc::clone(&args.keys))?;
        let stop = supervisor.token().child_token();
        let rates = Rates::new(plane.shared());
        supervisor.spawn("rates", OnExit::Continue, Arc::clone(&rates).run(supervisor.token().clone()));
        let admin = Arc::new(admin(&plane, &mirror, rates, &stop));
        let listener = listen(run).map_err(system("listen on its control socket"))?;
        supervisor.spawn("control socket", OnExit::Shutdown, serve_unix(admin, listener, supervisor.clone()));
        let data_dir = args.data_dir.clone();
        Ok(Self { supervisor: supervisor.clone(), mirror, plane, stop, data_dir, _lock: lock })
    }

    /// Everything below `/gateway/`, kept on disk: DNS is fed from it as well.
    pub fn mirror(&self) -> Arc<Mirror> {
        Arc::clone(&self.mirror)
    }

    /// Cancelled when the process is asked to stop; open requests still go on then.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Where plain HTTP is served, as really bound.
    pub fn http(&self) -> SocketAddr {
        self.plane.http()
    }

    /// Where HTTPS is served, as really bound.
    pub fn https(&self) -> SocketAddr {
        self.plane.https()
    }

    /// Serves until SIGTERM, SIGINT or `POST /stop`, then drains. The caller shuts the supervisor down afterwards.
    pub async fn run(self, kv: SharedKv) -> Result<(), GatewayError> {
        let signal = |kind| tokio::signal::unix::signal(kind).map_err(system("listen for signals"));
        let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
        let (stop, ended) = (self.stop.clone(), self.supervisor.token().clone());
        self.supervisor.spawn("stop signals", OnExit::Continue, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = stop.cancelled() => return Ok(()),
            }
            stop.cancel();
            // A second signal is impatience.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = ended.cancelled() => return Ok(()),
            }
            std::process::exit(1);
        });
        let (mirror, token, followed) = (Arc::clone(&self.mirror), self.supervisor.token().clone(), Arc::clone(&kv));
        self.supervisor.spawn("store mirror", OnExit::Continue, async move {
            mirror.run(followed, token).await;
            Ok(())
        });
        self.plane.run(kv, self.stop).await;
        let _ = std::fs::remove_file(self.data_dir.join("run").join(SOCKET));
        Ok(())
    }
}

/// Answers the server's questions about routes.
fn ask(shared: &Shared, rates: &Rates, path: &str, body: &[u8]) -> Option<Result<serde_json::Value, String>> {
    fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
        serde_json::from_slice(body).map_err(|it| format!("the question is not as expected: {it}"))
    }
    Some(match path {
        "/rates" => read::<Vec<String>>(body).map(|hosts| serde_json::json!(rates.of(&hosts))),
        "/explain" => {
            let question = read(body).and_then(|it| Question::parse(&it));
            question.map(|it| serde_json::json!(steps(&shared.snapshot.load(), &it)))
        }
        _ => return None,
    })
}

fn admin(plane: &DataPlane, mirror: &Arc<Mirror>, rates: Arc<Rates>, stop: &CancellationToken) -> Admin {
    let (http, https, applied) = (plane.http(), plane.https(), plane.applied());
    let (shared, mirror) = (plane.shared(), Arc::clone(mirror));
    let (metrics, asked) = (shared.metrics.clone(), Arc::clone(&shared));
    Admin {
        metrics: Box::new(move || metrics.text()),
        status: Box::new(move || {
            let status = Status {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                http,
                https,
                applied_revision: *applied.borrow(),
                live: mirror.read(|view| view.live),
            };
            serde_json::to_value(status).unwrap_or_default()
        }),
        ask: Box::new(move |path, body| ask(&asked, &rates, path, body)),
        stop: stop.clone(),
    }
}

/// Makes a folder that only its owner may enter.
fn folder(path: &Path) -> Result<PathBuf, GatewayError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(system("make a folder in its data directory"))?;
    Ok(path.to_owned())
}

/// Takes the lock and writes the process id into it.
fn lock(path: &Path) -> Result<Flock<File>, GatewayError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(system("open its lock"))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, _)| {
        let mut pid = String::new();
        // The number is only for the message.
        let _ = file.read_to_string(&mut pid);
        GatewayError::Running(pid.trim().to_owned())
    })?;
    let written = lock.set_len(0).and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(system("write its process id"))?;
    Ok(lock)
}

/// A path to `name` in `folder` that fits into a socket address (107 bytes), however deep the folder is; it is valid
/// while the file lives.
fn short(folder: &Path, name: &str) -> std::io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    let folder = options.read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
    Ok((folder, path))
}

/// Listens on the control socket; the lock is held, so what is there is a left-over.
fn listen(run: &Path) -> std::io::Result<tokio::net::UnixListener> {
    let (_folder, path) = short(run, SOCKET)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
