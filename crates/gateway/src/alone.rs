//! `arco gateway --config FILE`: the data plane without a control plane. The file is read again on SIGHUP and when it
//! changes; a file that is not valid, or asks for an address that cannot be had, is refused and the old one stays. Who
//! serves it is a driver ([`crate::driver`]).

use crate::access_log::{self, LAST_LINES, Place};
use crate::addresses::Addresses;
use crate::admin::{Admin, serve_tcp};
use crate::data_plane::{GatewayError, system};
use crate::driver::{Builtin, Driver, GRACE_OF_HAND_OVER, Nginx};
use crate::engine::{Protocol, Shared, threads};
use crate::metrics::Metrics;
use crate::snapshot::StickyCookie;
use crate::source::file::{DriverKind, FileSource};
use crate::tickets::OwnTickets;
use crate::virtual_address::{Keepalived, Stop};
use arco_config::VirtualAddress;
use arco_daemon::handover::{Claim, Order, Sockets};
use arco_daemon::{CancellationToken, OnExit, Supervisor};
use arco_store::clock;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the file's time and size are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Where the configurations of programs that work for us are kept, by the gateway's file.
const RUN: &str = "/run/arco-gateway";
/// Name of the admin listener among the sockets that are kept; those of the file have names of their own.
const ADMIN: &str = "admin";

/// Reads and checks a file without serving.
pub fn check(path: &Path) -> Result<(), GatewayError> {
    let loaded = FileSource::new(path, Metrics::new()).load()?;
    match loaded.driver {
        DriverKind::Builtin => Ok(()),
        DriverKind::Nginx => Nginx::check(&loaded),
    }
}

/// A gateway that serves one file.
pub struct Alone {
    path: PathBuf,
    source: FileSource,
    tickets: OwnTickets,
    driver: Box<dyn Driver>,
    kind: DriverKind,
    buffer_folder: Option<PathBuf>,
    shared: Arc<Shared>,
    sockets: Sockets,
    addresses: Addresses,
    admin: Option<(SocketAddr, Claim)>,
    /// Stops looking after the address that this machine shares.
    shared_address: Option<Stop>,
    /// What the file was when it was read last.
    seen: Option<Stamp>,
    /// What it is since then, if it is another one, and when that was first seen: a file that is being written is not read.
    changing: Option<(Option<Stamp>, Instant)>,
    /// Another process has taken over.
    over: CancellationToken,
}

impl Alone {
    /// Reads the file, binds its listeners and its admin address, and serves.
    pub async fn build(supervisor: &Supervisor, path: &Path) -> Result<Self, GatewayError> {
        Self::build_on(supervisor, path, Sockets::alone()).await
    }

    /// The same on sockets that outlive this process.
    pub async fn build_on(supervisor: &Supervisor, path: &Path, sockets: Sockets) -> Result<Self, GatewayError> {
        let metrics = Metrics::new();
        let tickets = OwnTickets::open(&sockets).map_err(system("keep the keys of session tickets in memory"))?;
        let mut source = FileSource::new(path, metrics.clone()).with_tickets(tickets.tickets());
        // Before it is read: what is written meanwhile is seen later.
        let seen = stamp(path);
        let loaded = source.load()?;
        let shared = Shared::new(loaded.limits, metrics.clone());
        access_log::check(&loaded.access_log).map_err(GatewayError::Driver)?;
        if let Some(folder) = &loaded.buffer_folder {
            shared.keep_bodies_in(folder).map_err(|it| {
                GatewayError::Driver(format!("`buffer_folder`: no file can be made in {}: {it}", folder.display()))
            })?;
        }
        let addresses = Addresses::follow(supervisor, &loaded.ignore_interfaces);
        let kind = loaded.driver;
        let driver: Box<dyn Driver> = match kind {
            DriverKind::Builtin => {
                Box::new(Builtin::start(supervisor, &shared, loaded.threads, sockets.clone(), addresses.clone())?)
            }
            DriverKind::Nginx => Box::new(Nginx::new(&folder(path)?.join("nginx"), addresses.clone())),
        };
        let logged = shared.access_log.set(&loaded.access_log, Place::Here, threads(loaded.threads), &metrics);
        logged.map_err(system("start to write its access log"))?;
        let (path, over) = (path.to_owned(), supervisor.token().child_token());
        let buffer_folder = loaded.buffer_folder.clone();
        let (admin, shared_address) = (loaded.admin, loaded.virtual_address.clone());
        let mut this = Self {
            path,
            source,
            tickets,
            driver,
            kind,
            buffer_folder,
            shared,
            sockets,
            addresses,
            admin: None,
            shared_address: None,
            seen,
            changing: None,
            over,
        };
        this.driver.put(loaded).await?;
        if let Some(settings) = shared_address {
            this.shared_address = Some(this.share_address(supervisor, settings)?);
        }
        crate::process::give_back();
        if let Some(address) = admin {
            this.admin = Some(this.serve_admin(supervisor, address)?);
        }
        Ok(this)
    }

    /// Listeners by name, as really bound.
    pub fn addresses(&self) -> HashMap<String, SocketAddr> {
        self.driver.listeners().into_iter().map(|(spec, address)| (spec.name, address)).collect()
    }

    /// What the traffic path shares. Whoever ends the supervisor cuts off what is still open: its lines are in the access
    /// log after another flush.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Where `/healthz` and `/metrics` answer, as really bound.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|it| it.0)
    }

    /// Serves until `stop`, or until its holder says so; then drains.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), GatewayError> {
        let kind = tokio::signal::unix::SignalKind::hangup();
        let mut hangup = tokio::signal::unix::signal(kind).map_err(system("listen for SIGHUP"))?;
        self.sockets.forget_rest();
        self.sockets.ready(GRACE_OF_HAND_OVER);
        let mut addresses = self.addresses.clone();
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
                    // This process opens its files itself.
                    Order::File => false,
                },
                _ = hangup.recv() => {
                    self.shared.access_log.reopen();
                    true
                }
                () = addresses.changed() => {
                    self.driver.follow_addresses().await;
                    false
                }
                () = tokio::time::sleep(LOOK) => false,
            };
            self.driver.tend().await;
            if let Err(error) = self.tickets.rotate(clock::now()) {
                tracing::warn!(%error, "a successor will not know the new key of session tickets");
            }
            if self.is_due(asked, stamp(&self.path), Instant::now()) {
                self.reload().await;
            }
        };
        match &self.shared_address {
            Some(stop) if successor => stop.leave.cancel(),
            // Before this one stops to answer, another machine does.
            Some(stop) => stop.give_away().await,
            None => {}
        }
        self.sockets.released();
        if successor {
            tracing::info!("another process has taken over; what is open here is finished");
            self.over.cancel();
        }
        let whole = self.driver.end(successor).await;
        if !whole {
            tracing::warn!("requests were still open when the drain time was over");
        }
        self.shared.access_log.flush(LAST_LINES).await;
        Ok(())
    }

    /// Whether the file is to be read, which is `now` this one: when somebody has asked for it, and when it has changed and
    /// stayed so for a while.
    fn is_due(&mut self, asked: bool, now: Option<Stamp>, at: Instant) -> bool {
        let (since, is_due) = settled(asked, self.seen, self.changing, now, at);
        self.changing = since;
        if is_due {
            self.seen = now;
        }
        is_due
    }

    /// Reads the file again; on any error everything stays as it is.
    pub async fn reload(&mut self) {
        let needs_restart = |it: &str| Err(GatewayError::Driver(format!("another `{it}` needs a restart")));
        let loaded = self.source.load().map_err(GatewayError::from).and_then(|it| match it {
            it if it.driver != self.kind => needs_restart("driver"),
            it if it.buffer_folder != self.buffer_folder => needs_restart("buffer_folder"),
            // Most likely it is just being written; whoever wants nothing to be served stops the gateway.
            it if it.listeners.is_empty() && !self.driver.listeners().is_empty() => {
                Err(GatewayError::Driver("it names no `listeners`, and some are open".to_owned()))
            }
            it if self.shared.access_log.is(&it.access_log) => Ok(it),
            it => access_log::check(&it.access_log).map(|()| it).map_err(GatewayError::Driver),
        });
        let put = match loaded {
            Ok(loaded) => {
                let (access_log, lanes) = (loaded.access_log.clone(), threads(loaded.threads));
                self.driver.put(loaded).await.and_then(|()| {
                    let (log, metrics) = (&self.shared.access_log, &self.shared.metrics);
                    let logged = log.set(&access_log, Place::Here, lanes, metrics);
                    logged.map_err(system("start to write its access log"))
                })
            }
            Err(error) => Err(error),
        };
        match put {
            Ok(()) => tracing::info!(path = %self.path.display(), "the file was read again"),
            Err(error) => tracing::error!(%error, "the file is refused; the one before stays"),
        }
        crate::process::give_back();
    }

    /// Looks after the address that this machine shares with others.
    fn share_address(&self, supervisor: &Supervisor, settings: VirtualAddress) -> Result<Stop, GatewayError> {
        let open = self.driver.listeners();
        let plain = open.iter().filter_map(|(spec, address)| match &spec.protocol {
            Protocol::Http => Some((*address, false)),
            Protocol::Proxied(inner) if **inner == Protocol::Http => Some((*address, true)),
            _ => None,
        });
        let listener = plain.min_by_key(|(it, proxied)| (!it.ip().is_unspecified(), *proxied, it.port()));
        let missing = || {
            let why = "`virtual_address` needs an http listener that is open here, as one on 0.0.0.0:80";
            GatewayError::VirtualAddress(why.to_owned())
        };
        let (listener, proxied) = listener.ok_or_else(missing)?;
        let executable = std::env::current_exe().map_err(system("find this executable"))?;
        let folder = folder(&self.path)?;
        let keepalived =
            Keepalived::new(settings, &folder, &executable, listener, proxied).map_err(GatewayError::VirtualAddress)?;
        let (stop, metrics, address) = (Stop::default(), self.shared.metrics.clone(), keepalived.address());
        let looking = keepalived.run(
            self.addresses.clone(),
            move |standing| metrics.virtual_address(address, standing),
            stop.clone(),
        );
        supervisor.spawn("shared address", OnExit::Continue, async move {
            looking.await;
            Ok(())
        });
        Ok(stop)
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
        let driver = self.driver.name();
        let admin = Admin {
            metrics: Box::new(move || metrics.text()),
            status: Box::new(move || {
                let snapshot = shared.snapshot.load();
                serde_json::json!({
                    "driver": driver,
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

/// Where the configurations of programs that work for the gateway of this file are kept.
fn folder(file: &Path) -> Result<PathBuf, GatewayError> {
    let path = std::path::absolute(file).map_err(system("find its file"))?;
    Ok(Path::new(RUN).join(StickyCookie::token(&path.to_string_lossy())))
}

/// What changes when a file is written or replaced: inode, length, seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

/// What is known of a change from now on, and whether the file is to be read: it is not what was `seen`, and what it is has
/// been so for [`LOOK`] or more.
fn settled(
    asked: bool,
    seen: Option<Stamp>,
    changing: Option<(Option<Stamp>, Instant)>,
    now: Option<Stamp>,
    at: Instant,
) -> (Option<(Option<Stamp>, Instant)>, bool) {
    if asked || now == seen {
        return (None, asked);
    }
    match changing.filter(|it| it.0 == now) {
        Some((_, since)) if at.duration_since(since) >= LOOK => (None, true),
        Some(known) => (Some(known), false),
        None => (Some((now, at)), false),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_has_stayed_as_it_is_for_a_while() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let [old, cut, whole] = [(1, 90, 0, 0), (1, 0, 5, 0), (1, 80, 5, 0)].map(Some);
        let (mut seen, mut changing) = (old, None);
        // Asked, what it is, when, and whether it is read.
        for (asked, now, ms, read) in [
            (false, old, 0, false),
            (false, cut, 10, false),
            (false, whole, 20, false),
            (false, whole, 400, false),
            (false, whole, 520, true),
            (false, whole, 1100, false),
            (true, whole, 1200, true),
            (false, cut, 1300, false),
            (true, whole, 1310, true),
            (false, None, 2000, false),
            (false, None, 2500, true),
        ] {
            let (next, is_due) = settled(asked, seen, changing, now, at(ms));
            assert_eq!(is_due, read, "{ms} ms");
            changing = next;
            if is_due {
                seen = now;
            }
        }
    }
}
