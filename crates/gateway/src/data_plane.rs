//! The gateway fed by the coordination store: applies each revision, and says which one it routes by.
//!
//! What must hold: a revision is acknowledged only after every new request is routed by it; instances that drain and
//! still have open requests are named with it (`acknowledge`).

mod acknowledge;

use crate::access_log::{self, LAST_LINES, Place};
use crate::addresses::Addresses;
use crate::bind::{BindError, Bound, bind_kept};
use crate::engine::{Engine, Limits, Listening, Protocol, Shared, threads};
use crate::metrics::Metrics;
use crate::rate_exchange::RateExchange;
use crate::snapshot::Timeouts;
use crate::source::store::StoreSource;
use crate::streams::Streams;
use acknowledge::{TIMES, acknowledge};
use arco_config::GatewayConfig;
use arco_daemon::handover::{HoldError, Sockets};
use arco_daemon::{CancellationToken, Supervisor};
use arco_model::traffic::{GatewayStatus, STATUS_PREFIX, StreamProtocol};
use arco_store::kv::SharedKv;
use arco_store::kv::mirror::{Mark, Mirror};
use arco_store::secrets::SecretBox;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long the store may take to forget a gateway that leaves.
const FORGET: Duration = Duration::from_millis(500);
/// Pause before a port for a component that could not be opened is tried again.
const STREAM_PAUSE: Duration = Duration::from_secs(2);

/// Why the gateway does not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The file of `--config` is not valid.
    #[error(transparent)]
    File(#[from] crate::source::file::FileError),
    /// The last snapshot cannot be used.
    #[error(transparent)]
    Mirror(#[from] arco_store::kv::mirror::MirrorError),
    /// The operating system refused something.
    #[error("the gateway cannot {step}: {cause}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why not.
        cause: std::io::Error,
    },
    /// Another process serves this data directory.
    #[error("another data plane (pid {0}) serves this data directory; stop it, or give another `--data-dir`")]
    Running(String),
    /// The process that keeps the sockets cannot go on.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The address that machines share cannot be looked after.
    #[error("{0}")]
    VirtualAddress(String),
    /// The driver cannot serve the file.
    #[error("{0}")]
    Driver(String),
    /// The process ended before it was ready.
    #[error("the data plane did not start: {0}")]
    NotStarted(String),
}

pub(crate) fn system(step: &'static str) -> impl Fn(std::io::Error) -> GatewayError {
    move |cause| GatewayError::System { step, cause }
}

/// Addresses that a gateway listens on, bound before it gives up the right to; and what else it opens by then.
#[derive(Debug)]
pub struct Listeners {
    http: Bound,
    https: Bound,
    access_log: Option<File>,
    cores: usize,
    sockets: Sockets,
}

impl Listeners {
    /// Takes them from those that are kept, or binds them.
    pub fn bind(config: &GatewayConfig, sockets: &Sockets) -> Result<Self, BindError> {
        let cores = threads(0);
        let http = bind_kept(sockets, "http", config.http_listen, cores)?;
        let https = bind_kept(sockets, "https", config.https_listen, cores)?;
        // Requests matter more than their lines: those are dropped and counted until a file is handed over.
        let access_log = access_log::open(&config.access_log).and_then(|it| {
            let destination = &config.access_log.destination;
            it.inspect_err(|error| tracing::error!(destination, %error, "the access log cannot be opened")).ok()
        });
        Ok(Self { http, https, access_log, cores, sockets: sockets.clone() })
    }
}

/// A gateway that listens, and routes by the last known state from the start.
pub struct DataPlane {
    id: String,
    keys: Arc<SecretBox>,
    engine: Engine,
    shared: Arc<Shared>,
    mirror: Arc<Mirror>,
    /// What of the mirror the snapshot was made of.
    seen: Mutex<Mark>,
    source: Arc<Mutex<StoreSource>>,
    idle: Arc<Notify>,
    applied: watch::Sender<u64>,
    http: SocketAddr,
    https: SocketAddr,
    /// Closed when this process leaves.
    listening: Mutex<Vec<Listening>>,
    streams: Arc<Mutex<Streams>>,
    addresses: Addresses,
    drain_timeout: Duration,
    /// No new connections are accepted any more.
    left: AtomicBool,
}

impl DataPlane {
    /// Binds every address and routes by what `mirror` knows already. `id` names this gateway among others; `keys`
    /// open the private keys of certificates.
    pub fn build(
        supervisor: &Supervisor,
        config: &GatewayConfig,
        mirror: Arc<Mirror>,
        id: &str,
        keys: Arc<SecretBox>,
    ) -> Result<Self, GatewayError> {
        let listeners = Listeners::bind(config, &Sockets::alone())?;
        Self::build_on(supervisor, config, mirror, id, keys, listeners, None)
    }

    /// The same on addresses that are bound; bodies that wait are kept in the folder `bodies`.
    pub fn build_on(
        supervisor: &Supervisor,
        config: &GatewayConfig,
        mirror: Arc<Mirror>,
        id: &str,
        keys: Arc<SecretBox>,
        listeners: Listeners,
        bodies: Option<&Path>,
    ) -> Result<Self, GatewayError> {
        let millis = Duration::from_millis;
        let metrics = Metrics::new();
        let mut limits = Limits::new(config.max_header_bytes, millis(config.request_header_ms), millis(config.idle_ms));
        limits.max_uri_bytes = config.max_uri_bytes;
        limits.max_connections = Some(config.max_connections).filter(|it| *it > 0);
        limits.max_connections_per_address = Some(config.max_connections_per_address).filter(|it| *it > 0);
        limits.max_buffered_bytes = config.max_buffered_bytes;
        let shared = Shared::new(limits, metrics.clone());
        let place = Place::Handed(listeners.access_log);
        let logged = shared.access_log.set(&config.access_log, place, listeners.cores, &metrics);
        logged.map_err(system("start to write its access log"))?;
        // Before the first connection is accepted.
        if let Some(folder) = bodies
            && let Err(error) = shared.keep_bodies_in(folder)
        {
            tracing::error!(folder = %folder.display(), %error, "bodies that wait cannot be kept here");
        }
        let timeouts = Timeouts {
            connect: millis(config.connect_ms),
            response: millis(config.response_ms),
            request_body: millis(config.request_body_ms),
            ..Timeouts::default()
        };
        let idle = Arc::new(Notify::new());
        let mut source = StoreSource::new(metrics, timeouts, Arc::clone(&idle), Arc::clone(&keys));
        source.trust(&config.trusted_proxies);
        let source = Arc::new(Mutex::new(source));
        let engine =
            Engine::start(supervisor, Arc::clone(&shared), listeners.cores).map_err(system("start its threads"))?;
        let (http, https) = (listeners.http.address, listeners.https.address);
        source.lock().unwrap_or_else(PoisonError::into_inner).serve_https_on(config.https_port(https.port()));
        let drain_timeout = millis(config.drain_timeout_ms);
        let applied = watch::Sender::new(0);
        let listening = Mutex::default();
        let addresses = Addresses::follow(supervisor, &config.ignore_interfaces);
        let streams = Streams::new(config.stream_listen, listeners.sockets, addresses.clone());
        let streams = Arc::new(Mutex::new(streams));
        let this = Self {
            id: id.to_owned(),
            keys,
            engine,
            shared,
            mirror,
            seen: Mutex::default(),
            source,
            idle,
            applied,
            http,
            https,
            listening,
            streams,
            addresses,
            drain_timeout,
            left: AtomicBool::new(false),
        };
        // Connections may be waiting on kept sockets: what is known is in effect before the first is accepted.
        this.apply();
        crate::process::give_back();
        let share = system("share a listener among its threads");
        // Behind another proxy every connection begins with who it is for.
        let spoken = |it| if config.proxy_protocol { Protocol::Proxied(Box::new(it)) } else { it };
        let http = this.engine.listen_on(listeners.http, &spoken(Protocol::Http)).map_err(&share)?;
        let https = this.engine.listen_on(listeners.https, &spoken(Protocol::Https)).map_err(&share)?;
        this.listening.lock().unwrap_or_else(PoisonError::into_inner).extend([http, https]);
        Ok(this)
    }

    /// Where plain HTTP is served, as really bound.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where HTTPS is served, as really bound.
    pub fn https(&self) -> SocketAddr {
        self.https
    }

    /// Revision of the snapshot that requests are routed by.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// How long open requests may finish.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// What the traffic path shares: for `/metrics`.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Follows the mirror and tells the store what is applied, until `stop`; then drains.
    pub async fn run(self, kv: SharedKv, stop: CancellationToken) {
        let asked = async {
            stop.cancelled().await;
            false
        };
        self.run_until(kv, asked).await;
    }

    /// The same until `leave`, which says whether a successor accepts on the same sockets. Whoever ends instances still
    /// hears about the requests that are open here.
    pub async fn run_until(self, kv: SharedKv, leave: impl Future<Output = bool>) {
        let mut changed = self.mirror.changed();
        let mut addresses = self.addresses.clone();
        let follow = async {
            loop {
                self.apply();
                let closed = self.streams().has_failed();
                tokio::select! {
                    changed = changed.changed() => if changed.is_err() {
                        std::future::pending::<()>().await;
                    },
                    () = addresses.changed() => {}
                    // Whoever has a port that is wanted may let go of it.
                    () = tokio::time::sleep(STREAM_PAUSE), if closed => {}
                }
            }
        };
        let drained = async {
            let successor = leave.await;
            self.engine.leave();
            // Whoever connects from now on is a successor's, or refused.
            self.listening.lock().unwrap_or_else(PoisonError::into_inner).clear();
            self.left.store(true, Ordering::SeqCst);
            self.streams().close();
            match successor {
                true => self.engine.hand_over(self.drain_timeout).await,
                false => self.engine.drain(self.drain_timeout).await,
            }
        };
        let key = format!("{STATUS_PREFIX}{}", self.id);
        let status =
            || GatewayStatus { applied_revision: *self.applied.borrow(), busy_draining: self.source().busy_draining() };
        let whole = tokio::select! {
            whole = drained => whole,
            () = follow => true,
            () = acknowledge(&kv, &key, TIMES, self.applied.subscribe(), &self.idle, status) => true,
            () = RateExchange::new(&self.id, Arc::clone(&self.keys)).run(&kv, || self.source().rates()) => true,
        };
        if !whole {
            tracing::warn!("requests were still open when the drain time was over");
        }
        self.shared.access_log.flush(LAST_LINES).await;
        // The lease ends it anyway; this is only sooner.
        let _ = tokio::time::timeout(FORGET, kv.delete(&key)).await;
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells which ports for components are not open, and why.
    pub fn stream_problems(&self) -> impl Fn() -> Vec<(StreamProtocol, u16, String)> + Send + Sync + 'static {
        let streams = Arc::clone(&self.streams);
        move || streams.lock().unwrap_or_else(PoisonError::into_inner).problems()
    }

    fn source(&self) -> MutexGuard<'_, StoreSource> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes by what the mirror knows now.
    fn apply(&self) {
        let before = self.shared.snapshot.load_full();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, certificates) = self.mirror.read_since(&mut seen, |view, changed| {
            let mut source = self.source();
            (source.snapshot(view, &before, changed.as_ref()), source.certificates(view))
        });
        if let Some(certificates) = certificates {
            self.shared.certificates.store(Arc::new(certificates));
        }
        let revision = snapshot.revision;
        self.shared.snapshot.store(Arc::new(snapshot));
        drop(before);
        if !self.left.load(Ordering::SeqCst) {
            self.streams().apply(&self.engine, self.source().streams());
        }
        self.shared.metrics.applied(revision);
        self.shared.metrics.prune();
        self.applied.send_replace(revision);
    }
}
