//! The data plane: how the server starts, adopts and watches it, and `arco data-plane`, which it is.
//!
//! The two meet in a file, `<data-dir>/data-plane/link.json` ([`link`]): the server writes it at each start and when the
//! client certificate is renewed, the data plane reads it again when it changes. Routes travel through the coordination
//! store's etcd interface; the last known ones are on the data plane's own disk.
//!
//! What must hold: a data plane that can go on is never stopped first: another executable or other settings take over
//! from it with both alive.

mod link;
mod process;

use anyhow::Context as _;
use arco_config::{Config, GatewayConfig};
use arco_daemon::pki::{Leaf, Pki, Subject};
use arco_daemon::{BoxError, OnExit, Supervisor};
use arco_gateway::access_log;
use arco_gateway::bind::answers;
use arco_gateway::process::{self as plane, Handle, PATIENCE, build_of};
use arco_model::traffic::{GATEWAY_KEYS, GATEWAY_PREFIX, RATES_PREFIX, STATUS_PREFIX};
use arco_store::kv::front::{Front, Grant};
use arco_store::kv::{EtcdTls, SharedKv};
use arco_store::secrets::SecretBox;
use link::Link;
pub(crate) use process::main;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Common name of the data plane's certificate.
const CLIENT: &str = "gateway";
/// What it may read and write of the store: it looks whether there are other gateways.
const READS: &[&str] = &[GATEWAY_PREFIX, STATUS_PREFIX, RATES_PREFIX];
const WRITES: &[&str] = &[STATUS_PREFIX, RATES_PREFIX];
/// Pause before another attempt to start a data plane that ended: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a start waits for the store's routes, and between two looks.
const ROUTES: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// The store's etcd interface on loopback, on the port that it had before, if that is free.
pub(crate) async fn front(
    config: &Config,
    pki: &Arc<Pki>,
    kv: SharedKv,
    supervisor: &Supervisor,
) -> anyhow::Result<SocketAddr> {
    let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let leaf = pki.server(&hosts)?;
    let etcd_tls = |leaf: &Leaf| EtcdTls {
        ca_pem: pki.authority_pem().to_owned(),
        cert_pem: leaf.certificate_pem.clone(),
        key_pem: leaf.key_pem.clone(),
    };
    let grants = || vec![Grant::new(CLIENT, READS, WRITES), Grant::all(Subject::admin().name)];
    let before = Link::read(&link::folder(&config.server.data_dir)).map(|it| it.store.port()).unwrap_or(0);
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let front = match Front::bind(address(before), kv.clone(), &etcd_tls(&leaf), grants()).await {
        Ok(front) => front,
        Err(_) if before != 0 => Front::bind(address(0), kv, &etcd_tls(&leaf), grants()).await?,
        Err(error) => return Err(error.into()),
    };
    let bound = front.address();
    let (certificates, pki) = (front.certificates(), pki.clone());
    let token = supervisor.token().clone();
    supervisor.spawn("store front certificate", OnExit::Continue, {
        let (make, authority) = (pki.clone(), pki.authority_pem().to_owned());
        async move {
            let apply = move |leaf: &Leaf| {
                let tls = EtcdTls {
                    ca_pem: authority.clone(),
                    cert_pem: leaf.certificate_pem.clone(),
                    key_pem: leaf.key_pem.clone(),
                };
                certificates
                    .replace(&tls)
                    .unwrap_or_else(|error| tracing::error!(%error, "the store's certificate was not renewed"));
                Ok(())
            };
            arco_daemon::pki::keep_fresh(leaf, move || make.server(&hosts), apply, token).await;
            Ok(())
        }
    });
    let token = supervisor.token().clone();
    supervisor.spawn("store front", OnExit::Shutdown, async move { front.serve(token).await.map_err(BoxError::from) });
    Ok(bound)
}

/// The running data plane.
#[derive(Clone)]
pub(crate) struct Running {
    handle: Arc<Mutex<Handle>>,
}

impl Running {
    pub(super) fn handle(&self) -> Handle {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where plain HTTP is served.
    pub(crate) fn http(&self) -> SocketAddr {
        self.handle().status.http
    }

    /// Where HTTPS is served.
    pub(crate) fn https(&self) -> SocketAddr {
        self.handle().status.https
    }

    /// Waits until it routes by what the store said after its start: whoever balances over gateways must not send requests
    /// to one that knows no host yet. When the store does not answer in time, it serves what it knew before.
    pub(super) async fn has_its_routes(&self) {
        let told = async {
            while self.handle().refresh().await.is_none_or(|it| !it.live || it.applied_revision == 0) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(ROUTES, told).await.is_err() {
            tracing::warn!("the data plane has not heard of the store yet, it serves what it knew before");
        }
    }

    /// Drains and stops it.
    pub(crate) async fn stop(&self, grace: Duration) {
        if !self.handle().stop(grace).await {
            tracing::warn!("the data plane did not stop in time and was ended");
        }
    }
}

/// Adopts the data plane that runs, or starts one, and keeps one running.
pub(crate) async fn start(
    config: &Config,
    pki: &Arc<Pki>,
    store: SocketAddr,
    secrets: &SecretBox,
    supervisor: &Supervisor,
) -> anyhow::Result<Running> {
    let data_dir = config.server.data_dir.clone();
    let executable = std::env::current_exe().context("failed to find this executable")?;
    let make = {
        let (pki, config, executable) = (pki.clone(), config.clone(), executable.clone());
        let certificate_keys = secrets.derive(GATEWAY_KEYS);
        move |gateway: GatewayConfig| -> anyhow::Result<(Link, Leaf)> {
            let leaf =
                pki.client(&Subject { name: CLIENT.to_owned(), role: CLIENT.to_owned(), tenants: Vec::new() })?;
            let link = Link {
                log: config.server.log.clone(),
                gateway,
                executable: executable.clone(),
                store,
                certificate_keys: certificate_keys.clone(),
                authority_pem: pki.authority_pem().to_owned(),
                certificate_pem: leaf.certificate_pem.clone(),
                key_pem: leaf.key_pem.clone(),
            };
            Ok((link, leaf))
        }
    };
    access_log::check(&config.gateway.access_log).map_err(|it| anyhow::anyhow!("[gateway] {it}"))?;
    let (link, leaf) = make(config.gateway.clone())?;
    link.write(&data_dir)?;
    let handle = match plane::find(&data_dir, PATIENCE).await {
        Some(found) => take_over(found, &link, &executable).await?,
        None => {
            plane::end_mute(&data_dir).await;
            spawn(&data_dir).await?
        }
    };
    let running = Running { handle: Arc::new(Mutex::new(handle)) };
    let token = supervisor.token().clone();
    let (watched, keep, folder) = (running.clone(), make.clone(), data_dir.clone());
    supervisor.spawn("data plane watch", OnExit::Continue, async move {
        let mut pause = PAUSE.0;
        loop {
            let handle = watched.handle();
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = handle.ended() => {}
            }
            if token.is_cancelled() {
                return Ok(());
            }
            tracing::error!(pid = handle.status.pid, "the data plane ended, it is started again on the same addresses");
            let gateway = GatewayConfig {
                http_listen: handle.status.http,
                https_listen: handle.status.https,
                ..keep_config(&folder)
            };
            let again = async {
                keep(gateway)?.0.write(&folder)?;
                spawn(&folder).await
            };
            match again.await {
                Ok(fresh) => {
                    pause = PAUSE.0;
                    *watched.handle.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
                    if token.is_cancelled() {
                        // The server stops and did not know of this one.
                        fresh.stop(Duration::from_secs(1)).await;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the data plane could not be started, it is tried again"
                    );
                    let _ = tokio::time::timeout(pause, token.cancelled()).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    });
    let token = supervisor.token().clone();
    supervisor.spawn("data plane certificate", OnExit::Continue, async move {
        let renewed = Mutex::new(None);
        let again = || {
            let (link, leaf) =
                make(keep_config(&data_dir)).map_err(|it| arco_daemon::pki::PkiError::certificate("renew", &it))?;
            *renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
            Ok(leaf)
        };
        let apply = |_: &Leaf| {
            if let Some(link) = renewed.lock().unwrap_or_else(PoisonError::into_inner).take() {
                link.write(&data_dir).map_err(|it| arco_daemon::pki::PkiError::certificate("hand over", &it))?;
            }
            Ok(())
        };
        arco_daemon::pki::keep_fresh(leaf, again, apply, token).await;
        Ok(())
    });
    Ok(running)
}

/// Goes on with the data plane that runs if it is this executable's with these settings; else lets it hand over.
async fn take_over(found: Handle, link: &Link, executable: &Path) -> anyhow::Result<Handle> {
    let status = &found.status;
    let stays = answers(link.gateway.http_listen, status.http) && answers(link.gateway.https_listen, status.https);
    let build = build_of(executable);
    if stays && status.build == build && status.settings == link.settings() {
        tracing::info!(pid = status.pid, "the data plane runs already, it is adopted");
        return Ok(found);
    }
    tracing::info!(pid = status.pid, "the data plane is of another build or has other settings, it hands over");
    match found.hand_over(&build, PATIENCE).await {
        Ok(fresh) => Ok(fresh),
        Err(error) if stays => {
            tracing::error!(%error, "the new data plane does not serve; the one before goes on");
            Ok(found)
        }
        Err(error) => Err(error.into()),
    }
}

/// The gateway's settings as last written.
fn keep_config(data_dir: &Path) -> GatewayConfig {
    Link::read(&link::folder(data_dir)).map(|it| it.gateway).unwrap_or_default()
}

async fn spawn(data_dir: &Path) -> anyhow::Result<Handle> {
    let path = data_dir.join("data-plane.log");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("failed to open `{}`", path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("failed to find this executable")?);
    command.arg("data-plane").arg("--data-dir").arg(data_dir);
    Ok(plane::spawn(command, data_dir, log, PATIENCE).await?)
}
