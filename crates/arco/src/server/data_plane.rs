//! The data plane: how the server starts, adopts and watches it, and `arco data-plane`, which it is.
//!
//! The two meet in a private file, `<data-dir>/data-plane/link.json`: the server writes it at each start and when the
//! client certificate is renewed, the data plane reads it again when it changes. Routes travel through the coordination
//! store's etcd interface; the last known ones are on the data plane's own disk.

use anyhow::Context as _;
use arco_config::{Config, GatewayConfig};
use arco_daemon::pki::{Leaf, Pki, Subject};
use arco_daemon::{BoxError, OnExit, Supervisor, telemetry, tls};
use arco_gateway::process::{self, DataPlaneArgs, Handle, Process};
use arco_mesh::dns::Dns;
use arco_model::traffic::{GATEWAY_KEYS, GATEWAY_PREFIX, STATUS_PREFIX};
use arco_store::kv::front::{Front, Grant};
use arco_store::kv::{EtcdKv, EtcdTls, SharedKv, SwapKv};
use arco_store::secrets::{SecretBox, write_private};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Common name of the data plane's certificate.
const CLIENT: &str = "gateway";
/// How long a data plane may take to serve.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the data plane looks at the link.
const LOOK: Duration = Duration::from_secs(1);

/// What the server tells the data plane.
#[derive(Serialize, Deserialize)]
struct Link {
    /// Log filter.
    log: String,
    /// Listeners and limits.
    gateway: GatewayConfig,
    /// Address of the store's etcd interface.
    store: SocketAddr,
    /// Opens the private keys of certificates ([`GATEWAY_KEYS`]).
    certificate_keys: String,
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
}

impl Link {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("data-plane").join("link.json")
    }

    fn read(data_dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(data_dir);
        let text = std::fs::read(&path)
            .with_context(|| format!("failed to read `{}`; `arco server` writes it", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = Self::path(data_dir);
        std::fs::create_dir_all(path.parent().unwrap_or(data_dir))?;
        write_private(&path, &serde_json::to_vec(self)?)
            .with_context(|| format!("failed to write `{}`", path.display()))
    }

    async fn store(&self) -> anyhow::Result<SharedKv> {
        let tls = EtcdTls {
            ca_pem: self.authority_pem.clone(),
            cert_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
        };
        Ok(Arc::new(EtcdKv::connect(&[format!("https://{}", self.store)], Some(&tls)).await?))
    }
}

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
    let grants = || vec![Grant::new(CLIENT, &[GATEWAY_PREFIX], &[STATUS_PREFIX]), Grant::all(Subject::admin().name)];
    let before = Link::read(&config.server.data_dir).map(|it| it.store.port()).unwrap_or(0);
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
    let make = {
        let (pki, config) = (pki.clone(), config.clone());
        let certificate_keys = secrets.derive(GATEWAY_KEYS);
        move |gateway: GatewayConfig| -> anyhow::Result<(Link, Leaf)> {
            let leaf =
                pki.client(&Subject { name: CLIENT.to_owned(), role: CLIENT.to_owned(), tenants: Vec::new() })?;
            let link = Link {
                log: config.server.log.clone(),
                gateway,
                store,
                certificate_keys: certificate_keys.clone(),
                authority_pem: pki.authority_pem().to_owned(),
                certificate_pem: leaf.certificate_pem.clone(),
                key_pem: leaf.key_pem.clone(),
            };
            Ok((link, leaf))
        }
    };
    let (link, leaf) = make(config.gateway.clone())?;
    link.write(&data_dir)?;
    let wanted = |asked: SocketAddr, bound: SocketAddr| asked.port() == 0 && asked.ip() == bound.ip() || asked == bound;
    let handle = match process::adopt(&data_dir).await {
        Some(found)
            if found.status.version == env!("CARGO_PKG_VERSION")
                && wanted(config.gateway.http_listen, found.status.http)
                && wanted(config.gateway.https_listen, found.status.https) =>
        {
            tracing::info!(pid = found.status.pid, "the data plane runs already, it is adopted");
            found
        }
        Some(other) => {
            tracing::info!(pid = other.status.pid, "the data plane is of another version or address, it is replaced");
            other.stop(Duration::from_millis(config.gateway.drain_timeout_ms)).await;
            spawn(&data_dir).await?
        }
        None => spawn(&data_dir).await?,
    };
    let running = Running { handle: Arc::new(Mutex::new(handle)) };
    let token = supervisor.token().clone();
    let (watched, keep, folder) = (running.clone(), make.clone(), data_dir.clone());
    supervisor.spawn("data plane watch", OnExit::Continue, async move {
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
                    *watched.handle.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
                    if token.is_cancelled() {
                        // The server stops and did not know of this one.
                        fresh.stop(Duration::from_secs(1)).await;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the data plane could not be started, next attempt in 1 s"
                    );
                    let _ = tokio::time::timeout(Duration::from_secs(1), token.cancelled()).await;
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

/// The gateway's settings as last written.
fn keep_config(data_dir: &Path) -> GatewayConfig {
    Link::read(data_dir).map(|it| it.gateway).unwrap_or_default()
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
    Ok(process::spawn(command, data_dir, log, PATIENCE).await?)
}

/// `arco data-plane --data-dir DIR`: gateway and DNS; started by the server.
pub(crate) fn main(data_dir: &Path) -> ExitCode {
    match run(data_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(data_dir: &Path) -> anyhow::Result<()> {
    let link = Link::read(data_dir)?;
    telemetry::init(&link.log, telemetry::LogFormat::Text)?;
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let supervisor = Supervisor::new();
        let keys = SecretBox::parse(&link.certificate_keys).map_err(|it| {
            anyhow::anyhow!("failed to read the keys of certificates: {it}; start `arco server` again")
        })?;
        let args = DataPlaneArgs {
            data_dir: data_dir.to_owned(),
            config: link.gateway.clone(),
            id: host_name(),
            keys: Arc::new(keys),
        };
        let process = Process::start(&supervisor, &args)?;
        let kv = Arc::new(SwapKv::new(link.store().await?));
        let (follow, folder, token) = (kv.clone(), data_dir.to_owned(), supervisor.token().clone());
        supervisor.spawn("store link", OnExit::Continue, async move {
            follow_link(&follow, &folder, token).await;
            Ok(())
        });
        let dns = Dns::build(process.mirror());
        // Names resolve as long as requests are open: DNS ends after the drain.
        let token = supervisor.token().clone();
        supervisor.spawn("dns", OnExit::Continue, async move { dns.run(token).await });
        process.run(kv).await?;
        supervisor.shutdown(Duration::from_secs(2)).await;
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Exchanges the store's client whenever the link is written anew.
async fn follow_link(kv: &SwapKv, data_dir: &Path, token: arco_daemon::CancellationToken) {
    let written = |path: &Path| std::fs::metadata(path).and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let path = Link::path(data_dir);
    let mut seen = written(&path);
    while tokio::time::timeout(LOOK, token.cancelled()).await.is_err() {
        let now = written(&path);
        if now == seen {
            continue;
        }
        seen = now;
        let fresh = async { Link::read(data_dir)?.store().await };
        match fresh.await {
            Ok(fresh) => kv.swap(fresh),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "the new link to the store is not usable, the old one stays"
            ),
        }
    }
}

/// This gateway's name among others.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|it| it.into_string().ok()).unwrap_or_default();
    let name: String = name.chars().filter(|it| it.is_ascii_alphanumeric() || *it == '-').collect();
    if name.is_empty() { "gateway".to_owned() } else { name }
}
