//! The data plane as a process of its own: the worker that serves, the holder that keeps its sockets, and the server's
//! hand on both.
//!
//! What must hold: one data plane per data directory (a lock, gone with the holder); it lives in its own session, so
//! that it outlives the server; it serves the last known routes before the store answers; of two workers, only the one
//! that owns it writes the last known routes to disk.
//!
//! The executable composes it with DNS: [`Process::start`], then DNS on [`Process::mirror`], then [`Process::run`].

mod handle;
mod hold;

use crate::access_log;
use crate::admin::{Admin, serve_unix};
use crate::data_plane::{DataPlane, GatewayError, Listeners, system};
use crate::engine::Shared;
use crate::explain::{Question, steps};
use crate::rates::Rates;
use arco_config::GatewayConfig;
use arco_daemon::handover::{Order, Sockets, Start};
use arco_daemon::{CancellationToken, OnExit, Supervisor};
use arco_model::traffic::GATEWAY_PREFIX;
use arco_store::kv::SharedKv;
use arco_store::kv::mirror::Mirror;
use arco_store::secrets::SecretBox;
pub use handle::{Handle, adopt, end_mute, find, spawn};
pub use hold::{HoldArgs, control, hold, inherited_control};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Name of the control socket in `<data-dir>/run/`.
const SOCKET: &str = "data-plane.sock";
/// Name of the lock, which holds the holder's process id.
const LOCK: &str = "data-plane.pid";
/// Where a start that failed says why.
const FAILURE: &str = "data-plane.failure";

/// Gives memory that is free again back to the system: reading thousands of hosts takes a multiple of what they need.
pub(crate) fn give_back() {
    // Other libraries have allocators without such a call.
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and works on what is free only.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// What the process needs to know.
#[derive(Clone)]
pub struct DataPlaneArgs {
    /// Where the last known routes are kept; its folder is there.
    pub journal: PathBuf,
    /// Listeners and limits.
    pub config: GatewayConfig,
    /// A name that no other gateway of these stores has, and that it keeps over starts.
    pub id: String,
    /// See [`Status::build`].
    pub build: String,
    /// See [`Status::settings`].
    pub settings: String,
    /// Opens the private keys of certificates.
    pub keys: Arc<SecretBox>,
}

/// What the process tells about itself on its control socket.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Process id of the worker, which serves.
    pub pid: u32,
    /// Process id of the holder, which keeps the sockets.
    pub holder: u32,
    /// Version of the executable.
    pub version: String,
    /// Which file the executable is ([`build_of`]).
    pub build: String,
    /// Stands for the settings that it runs with.
    pub settings: String,
    /// Where plain HTTP is served.
    pub http: SocketAddr,
    /// Where HTTPS is served.
    pub https: SocketAddr,
    /// Store revision that requests are routed by; 0 when nothing is known.
    pub applied_revision: u64,
    /// Whether the store has answered since the start.
    pub live: bool,
}

/// Tells executables apart, also of one version: changes when the file is replaced.
pub fn build_of(executable: &Path) -> String {
    let stamp = |it: std::fs::Metadata| format!("{:x}-{:x}-{:x}.{:x}", it.dev(), it.ino(), it.mtime(), it.mtime_nsec());
    std::fs::metadata(executable).map(stamp).unwrap_or_default()
}

/// A data plane that listens.
pub struct Process {
    supervisor: Supervisor,
    sockets: Sockets,
    mirror: Arc<Mirror>,
    plane: DataPlane,
    leave: Leave,
}

/// How this process was asked to leave.
#[derive(Clone)]
struct Leave {
    /// Somebody asked at the control socket or by a signal.
    asked: CancellationToken,
    /// No new requests from now on.
    now: CancellationToken,
    /// Another process has taken over.
    over: CancellationToken,
    successor: Arc<AtomicBool>,
}

impl Process {
    /// Serves the last known routes on `listeners`. `control` is where it answers the server.
    pub fn start(
        supervisor: &Supervisor,
        args: &DataPlaneArgs,
        listeners: Listeners,
        control: UnixListener,
        sockets: &Sockets,
        start: Start,
    ) -> Result<Self, GatewayError> {
        let mirror = Mirror::open_shared(GATEWAY_PREFIX, &args.journal)?;
        // A worker that serves beside another one has a status of its own.
        let id = if start.slot <= 1 { args.id.clone() } else { format!("{}-{}", args.id, start.slot) };
        let keys = Arc::clone(&args.keys);
        let bodies = args.journal.parent();
        let plane = DataPlane::build_on(supervisor, &args.config, Arc::clone(&mirror), &id, keys, listeners, bodies)?;
        let leave = Leave {
            asked: supervisor.token().child_token(),
            now: supervisor.token().child_token(),
            over: supervisor.token().child_token(),
            successor: Arc::default(),
        };
        let rates = Rates::new(plane.shared());
        supervisor.spawn("rates", OnExit::Continue, Arc::clone(&rates).run(supervisor.token().clone()));
        let admin = Arc::new(admin(args, &plane, &mirror, rates, &leave.asked));
        control.set_nonblocking(true).map_err(system("listen on its control socket"))?;
        let control = tokio::net::UnixListener::from_std(control).map_err(system("listen on its control socket"))?;
        let (over, tasks) = (leave.over.clone(), supervisor.clone());
        supervisor.spawn("control socket", OnExit::Shutdown, async move {
            let ended = tasks.token().clone();
            tokio::select! {
                served = serve_unix(admin, control, tasks) => served,
                // The successor answers there.
                () = over.cancelled() => { ended.cancelled().await; Ok(()) }
            }
        });
        Ok(Self { supervisor: supervisor.clone(), sockets: sockets.clone(), mirror, plane, leave })
    }

    /// Everything below `/gateway/`, kept on disk: DNS is fed from it as well.
    pub fn mirror(&self) -> Arc<Mirror> {
        Arc::clone(&self.mirror)
    }

    /// What the traffic path shares. Whoever ends the supervisor cuts off what is still open: its lines are in the access
    /// log after another flush.
    pub fn shared(&self) -> Arc<Shared> {
        self.plane.shared()
    }

    /// Cancel it to drain and stop.
    pub fn stop(&self) -> CancellationToken {
        self.leave.asked.clone()
    }

    /// Cancelled when another process has taken over, or everything ends: names are not this process's any more.
    pub fn over(&self) -> CancellationToken {
        self.leave.over.clone()
    }

    /// Where plain HTTP is served, as really bound.
    pub fn http(&self) -> SocketAddr {
        self.plane.http()
    }

    /// Where HTTPS is served, as really bound.
    pub fn https(&self) -> SocketAddr {
        self.plane.https()
    }

    /// Serves until it is told to leave, then drains. The caller shuts the supervisor down afterwards.
    pub async fn run(self, kv: SharedKv) -> Result<(), GatewayError> {
        // The holder decides when a worker ends; a signal to the whole group (Ctrl-C) goes to the holder as well.
        let ignored = |kind| tokio::signal::unix::signal(kind).map_err(system("listen for signals"));
        let _ignored = (
            ignored(tokio::signal::unix::SignalKind::terminate())?,
            ignored(tokio::signal::unix::SignalKind::interrupt())?,
            ignored(tokio::signal::unix::SignalKind::hangup())?,
        );
        let (mirror, token, followed) = (Arc::clone(&self.mirror), self.supervisor.token().clone(), Arc::clone(&kv));
        self.supervisor.spawn("store mirror", OnExit::Continue, async move {
            mirror.run(followed, token).await;
            Ok(())
        });
        let (mirror, leave) = (Arc::clone(&self.mirror), self.leave.clone());
        let orders = follow_orders(self.sockets.clone(), mirror, self.plane.shared(), leave);
        self.supervisor.spawn("orders", OnExit::Continue, orders);
        self.sockets.forget_rest();
        self.sockets.ready(self.plane.drain_timeout());
        let leave = self.leave;
        self.plane
            .run_until(kv, async {
                leave.now.cancelled().await;
                leave.successor.load(Ordering::SeqCst)
            })
            .await;
        Ok(())
    }
}

/// Does what the holder says; without one, what was asked here.
async fn follow_orders(
    sockets: Sockets,
    mirror: Arc<Mirror>,
    shared: Arc<Shared>,
    leave: Leave,
) -> Result<(), arco_daemon::BoxError> {
    let mut asked = false;
    loop {
        let order = tokio::select! {
            order = sockets.order() => order,
            () = leave.asked.cancelled(), if !asked => {
                asked = true;
                if sockets.stop() {
                    continue; // the holder says so to every worker
                }
                Order::Drain { successor: false }
            }
            () = leave.now.cancelled() => {
                // A part of this process ended: another one is needed.
                sockets.let_go();
                Order::Drain { successor: false }
            }
        };
        match order {
            Order::Own => mirror.own().await,
            Order::File => {
                if let Some(file) = sockets.file(access_log::NAME) {
                    shared.access_log.hand(file.into());
                }
            }
            Order::Drain { successor } => {
                mirror.release().await;
                sockets.released();
                leave.successor.store(successor, Ordering::SeqCst);
                if successor {
                    tracing::info!("another process has taken over; what is open here is finished");
                    leave.over.cancel();
                }
                break;
            }
            Order::Alone => {
                tracing::error!("the process that keeps the sockets is gone; what is open is finished");
                mirror.release().await;
                leave.over.cancel();
                break;
            }
        }
    }
    leave.now.cancel();
    Ok(())
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
            question.map(|it| serde_json::json!(steps(&shared.snapshot.load(), &shared.certificates.load(), &it)))
        }
        _ => return None,
    })
}

fn admin(
    args: &DataPlaneArgs,
    plane: &DataPlane,
    mirror: &Arc<Mirror>,
    rates: Arc<Rates>,
    stop: &CancellationToken,
) -> Admin {
    let (http, https, applied) = (plane.http(), plane.https(), plane.applied());
    let (shared, mirror) = (plane.shared(), Arc::clone(mirror));
    let (build, settings) = (args.build.clone(), args.settings.clone());
    let (metrics, asked) = (shared.metrics.clone(), Arc::clone(&shared));
    let stream_problems = plane.stream_problems();
    Admin {
        metrics: Box::new(move || metrics.text()),
        status: Box::new(move || {
            let status = Status {
                pid: std::process::id(),
                holder: std::os::unix::process::parent_id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                build: build.clone(),
                settings: settings.clone(),
                http,
                https,
                applied_revision: *applied.borrow(),
                live: mirror.read(|view| view.live),
            };
            serde_json::to_value(status).unwrap_or_default()
        }),
        ask: Box::new(move |path, body| match path {
            "/streams" => Some(Ok(serde_json::json!(stream_problems()))),
            _ => ask(&asked, &rates, path, body),
        }),
        stop: stop.clone(),
    }
}

/// How long the server waits for a data plane that starts, or that is slow to answer.
pub const PATIENCE: Duration = Duration::from_secs(20);
