//! The role table: what each role is given, in which order they start, and how they stop.
//!
//! Order: stores → logs → orchestrator → jobs → data plane → roles. Stopping is the reverse, except that stores need no
//! stop: what was answered as done is on disk.

use super::ask_gateway::{self, Gateways};
use super::data_plane::{self, Running};
use super::files::{self, Addresses};
use super::instances::Instances;
use super::keepers::Keepers;
use super::keeping::Keeping;
use super::kept::Kept;
use super::peers::{Peers, advertised};
use super::storage_use::StorageUse;
use super::stores::Stores;
use super::{Listeners, console, lead, node_logs, shared};
use anyhow::Context as _;
use arco_api::server::{ApiDeps, AskGateway, TokenIssuer};
use arco_builder::{Builder, BuilderDeps};
use arco_config::{Config, OrchestratorDriver, Role};
use arco_controller::{ControllerDeps, Gone, Retention};
use arco_daemon::discovery::{Directory, Server};
use arco_daemon::health::Health;
use arco_daemon::metrics::Metrics;
use arco_daemon::pki::{Leaf, Pki, keep_fresh};
use arco_daemon::tls::{ClientAuth, HotCertificate, server_config};
use arco_daemon::{BoxError, OnExit, Supervisor, listener};
use arco_gateway::virtual_address::Stop;
use arco_model::log::LogStream;
use arco_model::traffic::{DataPlaneSettings, SETTINGS};
use arco_mq::Queue;
use arco_mq::outbox::Relay;
use arco_node::wire::ANY_SERVER;
use arco_orchestrator::SharedOrchestrator;
use arco_registry::{Action, Registry, RegistryDeps, Scope};
use arco_store::blob::builds_path;
use arco_store::clock;
use arco_store::images::Images;
use arco_store::kv::{Compare, Operation, SharedKv, Txn};
use arco_store::leader::KvLock;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

/// How long a registry token of the API is good for.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Lock by which servers with the API take turns, and how long one that died keeps it, in seconds.
const TURN: &str = "changes";
const TURN_S: u64 = 30;

/// Everything that runs.
pub(crate) struct Platform {
    pub(crate) addresses: Addresses,
    data_plane: Option<Running>,
    shared_address: Option<Stop>,
    instances: Instances,
    keeping: Keeping,
}

/// Starts every role of the settings.
pub(crate) async fn start(
    config: &Config,
    listeners: Listeners,
    supervisor: &Supervisor,
    health: &Health,
) -> anyhow::Result<Platform> {
    let data_dir = &config.server.data_dir;
    let token = supervisor.token();
    let metrics = Metrics::new();
    let stores = Stores::open(config).await?;
    lead::may_control(config, &stores.kv).await?;
    let name = shared::name_of_server(data_dir)?;
    let me = shared::name_of_process(&name);
    let alone = stores.kv.name() == "embedded";
    let pki = Arc::new(shared::authority(&stores.kv, &stores.secrets, &data_dir.join("pki")).await?);
    let peers = match alone {
        true => None,
        false => {
            let directory = Directory::follow(stores.kv.clone(), &name, supervisor).await;
            let directory = directory.context("failed to learn which other servers there are")?;
            Some(Peers::new(directory, &me, &pki, supervisor)?)
        }
    };

    let keepers = peers.clone().map(|it| Keepers::new(stores.kv.clone(), it));
    if let Some(keepers) = keepers.as_ref().filter(|_| config.server.has(Role::Eventlog)) {
        keepers.enter(supervisor).await.context("failed to be known as a keeper of logs")?;
    }
    let keeping = Keeping::start(config, peers.as_ref(), keepers, &metrics, health, supervisor)?;
    let logs = keeping.sink.clone();
    shared::registry_key(&stores.kv, &stores.secrets, &data_dir.join("registry")).await?;
    let registry = Registry::build(RegistryDeps {
        images: stores.images.clone(),
        folder: data_dir.join("registry"),
        public_url: None,
    })?;
    let instances = Instances::start(config, &stores, &keeping, &registry, (!alone).then_some(name.as_str())).await?;
    if instances.orchestrator().is_ok() {
        health.role("orchestrator").ready();
    }

    let queue = Queue::new(stores.kv.clone());
    if alone {
        // Only this process works on the embedded store: what its predecessor had is free at once.
        queue.release_claims().await.context("failed to free the jobs of the last run")?;
    }
    let relay = Relay::new(stores.metadata.clone(), queue.clone());
    let outbox = relay.bell();
    {
        let token = token.clone();
        supervisor.spawn("outbox relay", OnExit::Shutdown, async move {
            relay.run(token).await;
            Ok(())
        });
    }

    let mut addresses = Addresses::default();
    let (mut data_plane, mut shared_address) = (None, None);
    if config.server.has(Role::Gateway) || config.server.has(Role::Controller) {
        publish_settings(config, &stores.kv, instances.dns_address()).await?;
    }
    if config.server.has(Role::Gateway) {
        let store = data_plane::front(config, &pki, stores.kv.clone(), supervisor).await?;
        super::tickets::keep(stores.kv.clone(), &stores.secrets, supervisor)?;
        let running = data_plane::start(config, &pki, store, &stores.secrets, supervisor).await?;
        running.has_its_routes().await;
        (addresses.http, addresses.https) = (Some(running.http()), Some(running.https()));
        let ports = [running.http().port(), running.https().port()];
        instances.publish_ports(ports, &stores.kv, supervisor).await?;
        shared_address = super::shared_address::keep(config, running.http(), health, &metrics, supervisor)?;
        data_plane = Some(running);
        health.role("gateway").ready();
    }

    let (gone, left) = mpsc::channel(1024);
    if config.server.has(Role::Controller) {
        let deps = ControllerDeps {
            metadata: stores.metadata.clone(),
            kv: stores.kv.clone(),
            orchestrator: instances.orchestrator()?,
            leads: Arc::new(|| true), // each time of a leader has its own
            one_machine: config.orchestrator.driver == OrchestratorDriver::Local,
            queue: queue.clone(),
            secrets: stores.secrets.clone(),
            logs: logs.clone(),
            acme: config.acme.clone(),
            domain: config.server.domain.clone(),
            retention: Retention { days: config.eventlog.operation_days, count: config.eventlog.operations },
            gone,
        };
        let storage_use = StorageUse::new(&metrics);
        let (me, peers) = (me.clone(), peers.clone());
        let (stores, instances) = (stores.clone(), instances.clone());
        let pki = pki.clone();
        let parts = lead::Parts { server: name.clone(), me, deps, peers, stores, instances, pki, storage_use };
        lead::start(config, parts, supervisor, health).await?;
    }
    clean_up_after(
        left,
        keeping.router.clone(),
        stores.images.clone(),
        data_dir.join("cache").join("builds"),
        supervisor,
    );

    if config.server.has(Role::Builder) {
        let builder = Builder::new(BuilderDeps {
            config: config.builder.clone(),
            data_dir: data_dir.clone(),
            cache_dir: config.server.cache_dir.clone(),
            makes_stacks: nix::unistd::geteuid().is_root(),
            confined: config.orchestrator.driver == OrchestratorDriver::Local || config.kubernetes.user_namespaces,
            metadata: stores.metadata.clone(),
            images: stores.images.clone(),
            orchestrator: instances.orchestrator()?,
            queue: queue.clone(),
            secrets: stores.secrets.clone(),
            logs: logs.clone(),
            proxy: instances.build_proxy(config).await?,
        });
        let builder = builder.await.map_err(|it| anyhow::anyhow!("failed to start the builder: {it}"))?;
        let token = token.clone();
        supervisor.spawn("builder", OnExit::Shutdown, async move { builder.run(token).await });
        health.role("builder").ready();
    }

    if let Some(listener) = listeners.registry {
        addresses.registry = Some(listener.local_addr()?);
        supervisor.spawn(
            "registry",
            OnExit::Shutdown,
            listener::serve(listener, None, registry.router(), supervisor.clone()),
        );
        if let Some(listener) = listeners.nodes_registry {
            let name = host_of(&config.kubernetes.registry);
            let certificate = certificate(&pki, "registry certificate", listener.local_addr()?, name, supervisor)?;
            let tls = server_config(certificate, pki.authority_pem(), ClientAuth::None)?;
            let serve = listener::serve(listener, Some(tls), registry.router_over_tls(), supervisor.clone());
            supervisor.spawn("registry of nodes", OnExit::Shutdown, serve);
        }
        collect_garbage(registry.clone(), instances.orchestrator()?, supervisor);
        health.role("registry").ready();
    }

    if let Some(listener) = listeners.api {
        let address = listener.local_addr()?;
        addresses.api = Some(address);
        files::keep_admin_context(config, &pki, address, supervisor)?;
        let issuer = registry.clone();
        let issue: TokenIssuer = Arc::new(move |repository: &str| {
            let scope = Scope::repository(repository, &[Action::Pull, Action::Push]);
            Ok(issuer.tokens().issue(&scope, TOKEN_LIFE))
        });
        let (http, https) = (data_plane.clone(), data_plane.clone());
        let (of_http, of_https) = (peers.clone(), peers.clone());
        let gateways = Gateways::new(data_plane.clone(), peers.clone());
        let role = arco_api::server::build(ApiDeps {
            config: config.clone(),
            metadata: stores.metadata.clone(),
            blobs: stores.blobs.clone(),
            images: stores.images.clone(),
            orchestrator: instances.orchestrator()?,
            storage: instances.storage()?,
            queue: queue.clone(),
            turn: (!alone).then(|| Arc::new(KvLock::new(stores.kv.clone(), TURN, &me, TURN_S)) as _),
            outbox,
            secrets: stores.secrets.clone(),
            logs: logs.clone(),
            eventlog: keeping.router.clone(),
            gateway_http: Arc::new(move || first_gateway(http.as_ref(), of_http.as_ref()).map(|it| it.0)),
            gateway_https: Arc::new(move || first_gateway(https.as_ref(), of_https.as_ref()).map(|it| it.1)),
            gateway: gateways.map(|it| Arc::new(it) as Arc<dyn AskGateway>),
            pki: Some(pki.clone()),
            health: health.clone(),
            metrics: metrics.clone(),
            registry_token: Some(issue),
        });
        role.prepare().await?;
        let certificate = certificate(&pki, "api certificate", address, None::<String>, supervisor)?;
        let tls = server_config(certificate, pki.authority_pem(), ClientAuth::Required)?;
        supervisor.spawn("api", OnExit::Shutdown, role.run(listener, tls, supervisor.clone()));
        health.role("api").ready();
    }

    if let Some(listener) = listeners.console {
        addresses.console = Some(listener.local_addr()?);
        let shown = |it: Option<SocketAddr>| it.map_or_else(|| "does not run here".to_owned(), |it| it.to_string());
        let page = console::Page {
            health: health.clone(),
            applications: addresses.applications(config),
            gateway: shown(addresses.http),
            api: shown(addresses.api),
            registry: shown(addresses.registry),
            data_dir: data_dir.display().to_string(),
        };
        health.role("console").ready();
        let router = console::router(page, metrics, data_plane.clone());
        supervisor.spawn("console", OnExit::Shutdown, listener::serve(listener, None, router, supervisor.clone()));
    }
    if let (Some(peers), Some(listener)) = (peers, listeners.peers) {
        let mut asked = Router::new();
        if let Some(keeper) = keeping.for_peers.clone() {
            asked = asked.merge(keeper);
        }
        if let Some(here) = &data_plane {
            asked = asked.merge(ask_gateway::for_peers(here.clone()));
        }
        if config.server.has(Role::Api) && !config.kubernetes.node_namespace.is_empty() {
            let kept = Kept::new(&keeping);
            asked = asked.merge(node_logs::for_nodes(instances.clone(), kept, logs.clone(), &stores.secrets)?);
        }
        let bound = listener.local_addr()?;
        let address = advertised(&config.server.peer_address, bound)?;
        let names = host_of(&address).into_iter().chain([ANY_SERVER.to_owned()]);
        let certificate = certificate(&pki, "certificate for servers", bound, names, supervisor)?;
        let tls = server_config(certificate, pki.authority_pem(), ClientAuth::Required)?;
        supervisor.spawn("servers", OnExit::Shutdown, listener::serve(listener, Some(tls), asked, supervisor.clone()));
        let roles = Role::ALL.into_iter().filter(|it| config.server.has(*it)).collect();
        let gateway = data_plane.as_ref().map(|it| (it.http(), it.https()));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        // Last: whoever finds this server finds it ready.
        peers.directory().enter(Server { name, roles, address, gateway, version, since: clock::now() }, supervisor);
    }
    Ok(Platform { addresses, data_plane, shared_address, instances, keeping })
}

/// Where a gateway answers: this server's, else one of another server.
fn first_gateway(here: Option<&Running>, peers: Option<&Peers>) -> Option<(SocketAddr, SocketAddr)> {
    let there = || peers?.directory().with(Role::Gateway).into_iter().find_map(|it| it.gateway);
    here.map(|it| (it.http(), it.https())).or_else(there)
}

impl Platform {
    /// Where people go next.
    pub(crate) fn welcome(&self, config: &Config) -> String {
        let shown = |it: Option<SocketAddr>| it.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let mut text = format!(
            "applications at {}, console at http://{}",
            self.addresses.applications(config).unwrap_or_else(|| "-".to_owned()),
            shown(self.addresses.console)
        );
        if config.server.domain == "localhost" {
            text.push_str("; hosts below `localhost` open on this machine only: start with `--domain SUFFIX` whose wildcard points here for others");
        }
        text
    }

    /// Stops everything in order.
    pub(crate) async fn stop(&self, config: &Config, supervisor: &Supervisor, grace: Duration) {
        let began = std::time::Instant::now();
        match &self.shared_address {
            Some(stop) if config.server.keep_data_plane => stop.leave.cancel(),
            // Before the gateway stops to answer, another machine's does.
            Some(stop) => stop.give_away().await,
            None => {}
        }
        if let Some(data_plane) = self.data_plane.as_ref().filter(|_| !config.server.keep_data_plane) {
            supervisor.token().cancel(); // the watch must not start it again
            data_plane.stop(Duration::from_millis(config.gateway.drain_timeout_ms)).await;
        }
        self.instances.shutdown(config.server.stop_instances).await;
        if !supervisor.shutdown(grace.saturating_sub(began.elapsed())).await {
            tracing::warn!("some tasks did not stop in time");
        }
        self.keeping.stop().await;
    }
}

/// What DNS needs. Instances are on the controller's machine, where they ask: another server says it only where nobody has.
async fn publish_settings(config: &Config, kv: &SharedKv, dns: Option<Ipv4Addr>) -> anyhow::Result<()> {
    let mut forwarders = match config.network.forwarders.is_empty() {
        false => config.network.forwarders.clone(),
        true => name_servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    };
    leave_out(&mut forwarders, dns);
    let settings = DataPlaneSettings {
        dns_listen: dns.map(|it| SocketAddrV4::new(it, 53)),
        dns_forwarders: forwarders,
        domain: config.server.domain.clone(),
    };
    let (key, value) = (SETTINGS.as_bytes().to_vec(), serde_json::to_vec(&settings)?);
    let compare = match config.server.has(Role::Controller) {
        true => Vec::new(),
        false => vec![Compare::Absent(key.clone())],
    };
    let success = vec![Operation::Put { key, value, lease: None }];
    kv.txn(Txn { compare, success, failure: Vec::new() }).await.context("failed to say where DNS listens")?;
    Ok(())
}

/// Addresses of `nameserver` lines (resolv.conf(5)).
fn name_servers(text: &str) -> Vec<std::net::IpAddr> {
    let line = |it: &str| it.trim().strip_prefix("nameserver").and_then(|it| it.trim().parse().ok());
    text.lines().filter_map(line).collect()
}

/// A machine that asks our DNS itself names it in its `/etc/resolv.conf`; there each foreign name would come back.
fn leave_out(forwarders: &mut Vec<std::net::IpAddr>, dns: Option<Ipv4Addr>) {
    forwarders.retain(|it| dns.is_none_or(|own| *it != own));
}

/// The host of `HOST:PORT`.
fn host_of(address: &str) -> Option<String> {
    let host = address.rsplit_once(':').map_or(address, |it| it.0).trim_matches(['[', ']']);
    (!host.is_empty()).then(|| host.to_owned())
}

/// A certificate of a listener for its address and `names`, renewed at half of its life.
fn certificate(
    pki: &Arc<Pki>,
    task: &'static str,
    address: SocketAddr,
    names: impl IntoIterator<Item = String>,
    supervisor: &Supervisor,
) -> anyhow::Result<HotCertificate> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if address.ip().is_unspecified() {
        hosts.extend(interface_addresses());
    } else {
        hosts.push(address.ip().to_string());
    }
    if let Ok(name) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        hosts.push(name.trim().to_owned());
    }
    hosts.extend(names);
    let leaf = pki.server(&hosts)?;
    let certificate = HotCertificate::new(&leaf)?;
    let (pki, swapped, token) = (pki.clone(), certificate.clone(), supervisor.token().clone());
    supervisor.spawn(task, OnExit::Continue, async move {
        keep_fresh(leaf, move || pki.server(&hosts), move |fresh: &Leaf| swapped.swap(fresh), token).await;
        Ok(())
    });
    Ok(certificate)
}

/// Addresses by which clients may reach a listener on all interfaces.
fn interface_addresses() -> Vec<String> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let address = |it: nix::ifaddrs::InterfaceAddress| {
        let address = it.address?;
        let v4 = address.as_sockaddr_in().map(|it| std::net::IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| std::net::IpAddr::V6(it.ip())))
    };
    let mut found: Vec<_> = found.filter_map(address).filter(|it| !it.is_loopback()).map(|it| it.to_string()).collect();
    found.dedup();
    found
}

/// Removes what components and operations leave with others: logs, images, build caches.
fn clean_up_after(
    mut gone: mpsc::Receiver<Gone>,
    logs: Router,
    images: Images,
    caches: PathBuf,
    supervisor: &Supervisor,
) {
    let token = supervisor.token().clone();
    supervisor.spawn("clean up after components", OnExit::Continue, async move {
        loop {
            let found = tokio::select! {
                () = token.cancelled() => return Ok(()),
                found = gone.recv() => found,
            };
            let component = match found {
                Some(Gone::Component(component)) => component,
                Some(Gone::Operation(id)) => {
                    if let Err(error) = remove_log(&logs, &LogStream::Operation { id: id.clone() }).await {
                        tracing::warn!(operation = %id, error, "the log of an old operation stays until it is too old");
                    }
                    continue;
                }
                None => return Ok(()),
            };
            let (id, shown) = (component.id.clone(), component.reference());
            if let Err(error) = remove_log(&logs, &LogStream::Component { id: id.clone() }).await {
                tracing::warn!(component = shown, error, "the log of a deleted component stays");
            }
            let repository = format!("{}/{}", component.tenant, shown);
            if let Err(error) = arco_registry::garbage::forget_repository(&images, &repository).await {
                tracing::warn!(component = shown, %error, "the images of a deleted component stay until they are collected");
            }
            if let Err(error) = images.blobs().delete_below(&builds_path(&id)).await {
                tracing::warn!(component = shown, %error, "what builds of a deleted component left stays");
            }
            match tokio::fs::remove_dir_all(caches.join(id.as_str())).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(component = shown, %error, "the build cache of a deleted component stays");
                }
                _ => {}
            }
        }
    });
}

/// Removes a log, wherever it is kept.
async fn remove_log(logs: &Router, stream: &LogStream) -> Result<(), String> {
    let path = match stream {
        LogStream::Operation { id } => format!("/streams/operation/{id}"),
        LogStream::Component { id } => format!("/streams/component/{id}"),
    };
    let request = Request::delete(path).body(Body::empty()).map_err(|it| it.to_string())?;
    let Ok(response) = logs.clone().oneshot(request).await;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("its keeper answered with {status}")),
    }
}

/// Collects what no revision and no running instance uses.
fn collect_garbage(registry: Registry, orchestrator: SharedOrchestrator, supervisor: &Supervisor) {
    let token = supervisor.token().clone();
    supervisor.spawn("registry garbage", OnExit::Continue, async move {
        let keep = move || {
            let orchestrator = orchestrator.clone();
            async move {
                // What runs has a revision; asking proves that the orchestrator answers before anything is deleted.
                orchestrator.components().await?;
                Ok(HashSet::new())
            }
        };
        registry.run(keep, token).await.map_err(BoxError::from)
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn name_servers_are_read_from_resolv_conf() {
        let text = "# c\nsearch a\nnameserver 10.0.0.1\n nameserver ::1\nnameserver x\n";
        assert_eq!(super::name_servers(text).len(), 2);
    }

    #[test]
    fn dns_does_not_ask_itself() {
        let mut forwarders = super::name_servers("nameserver 10.64.0.1\nnameserver 10.0.0.1\n");
        super::leave_out(&mut forwarders, None);
        assert_eq!(forwarders.len(), 2);
        super::leave_out(&mut forwarders, Some("10.64.0.1".parse().unwrap()));
        assert_eq!(forwarders, super::name_servers("nameserver 10.0.0.1"));
    }
}
