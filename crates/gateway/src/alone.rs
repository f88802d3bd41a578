//! `arco gateway --config FILE`: the data plane without a control plane. The file is read again on SIGHUP and when it
//! changes; a file that is not valid, or asks for an address that cannot be had, is refused and the old one stays. Its
//! sockets outlive it: a holder keeps them over a crash and an upgrade.

use crate::admin::{Admin, serve_tcp};
use crate::bind::{BindError, Bound, BoundUdp, bind_kept, bind_udp_kept};
use crate::data_plane::{GatewayError, system};
use crate::engine::{Engine, Listening, Protocol, Shared};
use crate::metrics::Metrics;
use crate::source::file::{FileSource, ListenerSpec, Loaded};
use arco_daemon::handover::{Claim, Order, Sockets};
use arco_daemon::{CancellationToken, OnExit, Supervisor};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the file's time and size are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long open requests may finish: when everything stops, and when another process goes on.
const GRACE: Duration = Duration::from_secs(10);
const GRACE_OF_HAND_OVER: Duration = Duration::from_secs(60);
/// Name of the admin listener among the sockets that are kept; those of the file have names of their own.
const ADMIN: &str = "admin";

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
    sockets: Sockets,
    listening: HashMap<String, (ListenerSpec, Listening)>,
    admin: Option<(SocketAddr, Claim)>,
    /// Another process has taken over.
    over: CancellationToken,
}

impl Alone {
    /// Reads the file, binds its listeners and its admin address, and serves.
    pub async fn build(supervisor: &Supervisor, path: &Path) -> Result<Self, GatewayError> {
        Self::build_on(supervisor, path, Sockets::alone())
    }

    /// The same on sockets that outlive this process.
    pub fn build_on(supervisor: &Supervisor, path: &Path, sockets: Sockets) -> Result<Self, GatewayError> {
        let metrics = Metrics::new();
        let mut source = FileSource::new(path, metrics.clone());
        let loaded = source.load()?;
        let shared = Shared::new(loaded.limits, metrics);
        let engine =
            Engine::start(supervisor, Arc::clone(&shared), loaded.threads).map_err(system("start its threads"))?;
        let (path, listening, over) = (path.to_owned(), HashMap::new(), supervisor.token().child_token());
        let mut this = Self { path, source, engine, shared, sockets, listening, admin: None, over };
        let admin = loaded.admin;
        this.put(loaded)?;
        crate::process::give_back();
        if let Some(address) = admin {
            this.admin = Some(this.serve_admin(supervisor, address)?);
        }
        Ok(this)
    }

    /// Listeners by name, as really bound.
    pub fn addresses(&self) -> HashMap<String, SocketAddr> {
        self.listening.iter().map(|(name, (_, listening))| (name.clone(), listening.address)).collect()
    }

    /// Where `/healthz` and `/metrics` answer, as really bound.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|it| it.0)
    }

    /// Serves until `stop`, or until its holder says so; then drains.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), GatewayError> {
        let kind = tokio::signal::unix::SignalKind::hangup();
        let mut hangup = tokio::signal::unix::signal(kind).map_err(system("listen for SIGHUP"))?;
        let mut seen = stamp(&self.path);
        self.sockets.forget_rest();
        self.sockets.ready(GRACE_OF_HAND_OVER);
        let successor = loop {
            let asked = tokio::select! {
                () = stop.cancelled() => break false,
                order = self.sockets.order() => match order {
                    Order::Own => false,
                    Order::Drain { successor } => break successor,
                    Order::Alone => {
                        tracing::error!("the process that keeps the sockets is gone; what is open is finished");
                        break false;
                    }
                },
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = stamp(&self.path);
            if asked || now != seen {
                seen = now;
                self.reload();
            }
        };
        self.sockets.released();
        // Whoever connects from now on is a successor's, or refused.
        self.listening.clear();
        let whole = if successor {
            tracing::info!("another process has taken over; what is open here is finished");
            self.over.cancel();
            self.engine.hand_over(GRACE_OF_HAND_OVER).await
        } else {
            self.engine.drain(GRACE).await
        };
        if !whole {
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
        crate::process::give_back();
    }

    /// Puts a valid file into effect: first what can fail (addresses), then the rest at once. Only then connections are
    /// accepted: they may have been waiting on kept sockets.
    fn put(&mut self, loaded: Loaded) -> Result<(), BindError> {
        let mut fresh = Vec::new();
        for spec in &loaded.listeners {
            if self.listening.get(&spec.name).is_none_or(|(known, _)| known != spec) {
                // The same address under another name or protocol is switched after the new file is in effect.
                let taken = self
                    .listening
                    .iter()
                    .find(|(_, (known, _))| is_same(known.address, spec.address) && known.is_udp() == spec.is_udp());
                let bound = match taken {
                    Some((name, _)) => Err(name.clone()),
                    None => Ok(self.bind(spec)?),
                };
                fresh.push((spec.clone(), bound));
            }
        }
        self.shared.limits.store(Arc::new(loaded.limits));
        self.shared.certificates.store(Arc::new(loaded.certificates));
        self.shared.metrics.applied(loaded.snapshot.revision);
        self.shared.snapshot.store(Arc::new(loaded.snapshot));
        self.shared.metrics.prune();
        let mut failed = None;
        let mut ready = Vec::new();
        for (spec, bound) in fresh {
            let listening = match bound {
                Ok(bound) => self.listen(bound, &spec),
                Err(name) => match self.listening.remove(&name) {
                    Some((_, before)) => {
                        self.engine.switch(before, &spec.protocol).map_err(|it| BindError::new(spec.address, &it))
                    }
                    None => self.bind(&spec).and_then(|it| self.listen(it, &spec)),
                },
            };
            match listening {
                Ok(listening) => ready.push((spec, listening)),
                Err(error) => failed = Some(error),
            }
        }
        self.listening.retain(|_, (known, _)| loaded.listeners.contains(known));
        self.listening.extend(ready.into_iter().map(|(spec, it)| (spec.name.clone(), (spec, it))));
        failed.map_or(Ok(()), Err)
    }

    fn bind(&self, spec: &ListenerSpec) -> Result<AnyBound, BindError> {
        // A listener with an address keeps it under any name.
        let name = match spec.address.port() {
            0 => format!("listener {}", spec.name),
            _ => format!("listener {}", spec.address),
        };
        let cores = self.engine.cores();
        if let Protocol::Udp(upstream) = &spec.protocol {
            let name = format!("UDP {name}");
            let bound = bind_udp_kept(&self.sockets, &name, spec.address, cores)?;
            return Ok(AnyBound::Udp(bound, Arc::clone(upstream)));
        }
        bind_kept(&self.sockets, &name, spec.address, cores).map(AnyBound::Tcp)
    }

    fn listen(&self, bound: AnyBound, spec: &ListenerSpec) -> Result<Listening, BindError> {
        let listening = match bound {
            AnyBound::Tcp(bound) => self.engine.listen_on(bound, &spec.protocol),
            AnyBound::Udp(bound, upstream) => self.engine.listen_udp(bound, &upstream),
        };
        listening.map_err(|it| BindError::new(spec.address, &it))
    }

    fn serve_admin(&self, supervisor: &Supervisor, address: SocketAddr) -> Result<(SocketAddr, Claim), GatewayError> {
        let fail = system("listen on the admin address");
        let local = |it: &std::os::fd::OwnedFd| socket2::SockRef::from(it).local_addr().ok()?.as_socket();
        let fits = |kept: &[std::os::fd::OwnedFd]| {
            kept.first().and_then(local).is_some_and(|it| crate::bind::answers(address, it))
        };
        let (listener, claim) = match self.sockets.take(ADMIN, fits) {
            Some((kept, claim)) => {
                let first = kept.into_iter().next().ok_or(std::io::ErrorKind::NotFound);
                (std::net::TcpListener::from(first.map_err(|it| fail(it.into()))?), claim)
            }
            None => {
                let listener = std::net::TcpListener::bind(address).map_err(&fail)?;
                let claim = self.sockets.keep(ADMIN, &[listener.as_fd()]);
                (listener, claim)
            }
        };
        listener.set_nonblocking(true).map_err(&fail)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(&fail)?;
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
        let (over, tasks) = (self.over.clone(), supervisor.clone());
        supervisor.spawn("admin", OnExit::Shutdown, async move {
            let ended = tasks.token().clone();
            tokio::select! {
                served = serve_tcp(Arc::new(admin), listener, tasks) => served,
                // The successor answers there.
                () = over.cancelled() => { ended.cancelled().await; Ok(()) }
            }
        });
        Ok((bound, claim))
    }
}

/// An address that is bound, for connections or for datagrams.
enum AnyBound {
    Tcp(Bound),
    Udp(BoundUdp, Arc<str>),
}

/// Whether two listeners are one socket; port 0 is never another's.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one == other && one.port() != 0
}

/// What changes when a file is written or replaced.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}
