//! `arco gateway --config FILE`: the data plane without a control plane. The file is read again on SIGHUP and when it
//! changes; a file that is not valid, or asks for an address that cannot be had, is refused and the old one stays.

use crate::admin::{Admin, serve_tcp};
use crate::bind::BindError;
use crate::data_plane::{GatewayError, system};
use crate::engine::{Engine, Listening, Shared};
use crate::metrics::Metrics;
use crate::source::file::{FileSource, ListenerSpec, Loaded};
use arco_daemon::{CancellationToken, OnExit, Supervisor};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the file's time and size are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long open requests may finish.
const GRACE: Duration = Duration::from_secs(10);

/// Reads and checks a file without serving.
pub fn check(path: &Path) -> Result<(), GatewayError> {
    FileSource::new(path, Metrics::new()).load()?;
    Ok(())
}

/// A gateway that serves one file.
pub struct Alone {
    path: PathBuf,
    source: FileSource,
    engine: Engine,
    shared: Arc<Shared>,
    listening: HashMap<String, (ListenerSpec, Listening)>,
    admin: Option<SocketAddr>,
}

impl Alone {
    /// Reads the file, binds its listeners and its admin address, and serves.
    pub async fn build(supervisor: &Supervisor, path: &Path) -> Result<Self, GatewayError> {
        let metrics = Metrics::new();
        let mut source = FileSource::new(path, metrics.clone());
        let loaded = source.load()?;
        let shared = Shared::new(loaded.limits, metrics);
        let engine =
            Engine::start(supervisor, Arc::clone(&shared), loaded.threads).map_err(system("start its threads"))?;
        let mut this = Self { path: path.to_owned(), source, engine, shared, listening: HashMap::new(), admin: None };
        let admin = loaded.admin;
        this.put(loaded)?;
        if let Some(address) = admin {
            this.admin = Some(this.serve_admin(supervisor, address).await?);
        }
        Ok(this)
    }

    /// Listeners by name, as really bound.
    pub fn addresses(&self) -> HashMap<String, SocketAddr> {
        self.listening.iter().map(|(name, (_, listening))| (name.clone(), listening.address)).collect()
    }

    /// Where `/healthz` and `/metrics` answer, as really bound.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Serves until `stop`; then drains.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), GatewayError> {
        let kind = tokio::signal::unix::SignalKind::hangup();
        let mut hangup = tokio::signal::unix::signal(kind).map_err(system("listen for SIGHUP"))?;
        let mut seen = stamp(&self.path);
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => break,
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = stamp(&self.path);
            if asked || now != seen {
                seen = now;
                self.reload();
            }
        }
        if !self.engine.drain(GRACE).await {
            tracing::warn!("requests were still open when the drain time was over");
        }
        Ok(())
    }

    /// Reads the file again; on any error everything stays as it is.
    pub fn reload(&mut self) {
        match self.source.load().map_err(GatewayError::from).and_then(|it| self.put(it).map_err(GatewayError::from)) {
            Ok(()) => tracing::info!(path = %self.path.display(), "the file was read again"),
            Err(error) => tracing::error!(%error, "the file is refused; the one before stays"),
        }
    }

    /// Puts a valid file into effect: first what can fail (addresses), then the rest at once.
    fn put(&mut self, loaded: Loaded) -> Result<(), BindError> {
        let mut fresh = Vec::new();
        for spec in &loaded.listeners {
            if self.listening.get(&spec.name).is_none_or(|(known, _)| known != spec) {
                // The same address under another name or protocol is handed over after the new file is in effect.
                let taken =
                    self.listening.values().any(|(known, _)| known.address == spec.address && spec.address.port() != 0);
                fresh.push((
                    spec.clone(),
                    if taken { None } else { Some(self.engine.listen(spec.address, &spec.protocol)?) },
                ));
            }
        }
        self.shared.limits.store(Arc::new(loaded.limits));
        self.shared.certificates.store(Arc::new(loaded.certificates));
        self.shared.metrics.applied(loaded.snapshot.revision);
        self.shared.snapshot.store(Arc::new(loaded.snapshot));
        self.shared.metrics.prune();
        self.listening.retain(|_, (known, _)| loaded.listeners.contains(known));
        let mut failed = None;
        for (spec, listening) in fresh {
            let listening = match listening {
                Some(listening) => Ok(listening),
                None => self.engine.listen(spec.address, &spec.protocol),
            };
            match listening {
                Ok(listening) => drop(self.listening.insert(spec.name.clone(), (spec, listening))),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn serve_admin(&self, supervisor: &Supervisor, address: SocketAddr) -> Result<SocketAddr, GatewayError> {
        let fail = system("listen on the admin address");
        let listener = tokio::net::TcpListener::bind(address).await.map_err(&fail)?;
        let bound = listener.local_addr().map_err(&fail)?;
        let (metrics, shared) = (self.shared.metrics.clone(), Arc::clone(&self.shared));
        let admin = Admin {
            metrics: Box::new(move || metrics.text()),
            status: Box::new(move || {
                let snapshot = shared.snapshot.load();
                serde_json::json!({
                    "pid": std::process::id(),
                    "revision": snapshot.revision,
                    "hosts": snapshot.hosts.len(),
                    "upstreams": snapshot.upstreams.len(),
                })
            }),
            ask: Box::new(|_, _| None),
            stop: CancellationToken::new(),
        };
        supervisor.spawn("admin", OnExit::Shutdown, serve_tcp(Arc::new(admin), listener, supervisor.clone()));
        Ok(bound)
    }
}

/// What changes when a file is written or replaced.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}
