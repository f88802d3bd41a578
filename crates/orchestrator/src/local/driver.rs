//! The driver: one task per component that decides with `supervise::step` and acts through containers, network and
//! volumes.
//!
//! What must hold: only a component's own task changes its instances; facts are published after each change and before
//! anything slow that they do not depend on; what ran before this process is adopted with its ids and left alone until
//! its plan comes again.

mod component;
mod instance;
mod record;
mod run_once;
mod scaling;

use super::container::{Containers, ContainersConfig};
use super::network::rules::BuildWay;
use super::network::{Network, NetworkOptions, egress};
use super::volumes::Volumes;
use crate::{
    Connection, Error, ExecRequest, ExecSession, OneShotResult, Orchestrator, OutputLine, Removal, Storage, Telling,
    Usage,
};
use arco_config::{Egress, NetworkConfig};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::observed::Observed;
use arco_model::plan::{OneShot, WorkloadPlan};
use arco_model::storage::{VolumeClass, VolumeFacts};
use arco_store::images::Images;
use arco_store::logs::LogSink;
use async_trait::async_trait;
use component::Event;
use ipnet::Ipv4Net;
pub use scaling::Pace;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the local driver needs.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The server's data folder.
    pub data_dir: PathBuf,
    /// Shared by all servers of this machine.
    pub cache_dir: PathBuf,
    /// `[network]`.
    pub network: NetworkConfig,
    /// `builder.allowed_networks`.
    pub allowed_networks: Vec<Ipv4Net>,
    /// `builder.egress`; with an allow-list builds reach nothing until [`LocalOrchestrator::open_build_proxy`].
    pub egress: Egress,
    /// Largest log of one instance on disk, in MiB.
    pub instance_log_mb: u32,
    /// The program that is run as `shim`; usually ourselves.
    pub executable: PathBuf,
    /// How load is looked at where the number of instances follows it.
    pub pace: Pace,
}

/// Instances that are prepared at the same time; more would only wait for the disk.
const PREPARING_AT_ONCE: usize = 8;

/// How long a stop waits for instances that are just being made or ended.
const LEAVING: Duration = Duration::from_secs(15);

/// Our own OCI containers on one machine.
pub struct LocalOrchestrator {
    inner: Arc<Inner>,
}

/// What the tasks of all components share.
struct Inner {
    containers: Containers,
    images: Images,
    network: Network,
    volumes: Volumes,
    gateway: Ipv4Addr,
    pool: Ipv4Net,
    node: String,
    dir: PathBuf,
    pace: Pace,
    preparing: Semaphore,
    tracker: TaskTracker,
    stop: CancellationToken,
    bell: broadcast::Sender<ComponentId>,
    facts: Mutex<BTreeMap<ComponentId, Observed>>,
    tasks: Mutex<BTreeMap<ComponentId, mpsc::UnboundedSender<Event>>>,
    /// Which component an instance belongs to, for those that a component's task watches.
    owners: Mutex<BTreeMap<InstanceId, ComponentId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic while it was held leaves whole values behind: each use is one insertion or one look.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Inner {
    fn publish(&self, component: &ComponentId, observed: Observed) {
        let before = lock(&self.facts).insert(component.clone(), observed.clone());
        if before.as_ref() != Some(&observed) {
            let _ = self.bell.send(component.clone());
        }
    }

    fn tell(&self, component: &ComponentId, event: Event) -> bool {
        lock(&self.tasks).get(component).is_some_and(|it| it.send(event).is_ok())
    }
}

impl LocalOrchestrator {
    /// Starts the driver: adopts what runs, makes bridge and rules. Needs root, `nft`, and the ext4 tools for volumes.
    pub async fn start(config: LocalConfig, images: Images, logs: LogSink) -> Result<Arc<Self>, Error> {
        // One name for one folder: links, rules and run folders are called after it.
        let dir = std::fs::canonicalize(&config.data_dir).map_err(|it| Error::failed("open the data folder", it))?;
        let containers = ContainersConfig {
            data_dir: dir.clone(),
            cache_dir: config.cache_dir,
            instance_log_mb: config.instance_log_mb,
            executable: config.executable,
        };
        let containers = Containers::open(containers, images.clone(), logs).await?;
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let running = containers.list().await;
        let (adopted, lost): (Vec<_>, Vec<_>) = running.into_iter().partition(|it| instance::is_adoptable(&it.labels));
        for it in &lost {
            // The caller of a one-shot went with the process that asked for it.
            containers.remove(&it.id).await?;
        }
        let alive: BTreeSet<_> = adopted.iter().map(|it| it.id.clone()).collect();
        let network = network(&config.network, config.allowed_networks, config.egress, &dir, &alive).await?;
        let used = adopted.iter().map(|it| (it.id.clone(), instance::volume_paths(&it.labels))).collect();
        let volumes = Volumes::open(dir.join("volumes"), used).await?;
        let mut by_component: BTreeMap<ComponentId, Vec<_>> = BTreeMap::new();
        for it in adopted {
            if let Some(component) = it.component.clone() {
                if let Ok(address) = instance::label(&it.labels, "address").parse() {
                    let known = network.recover(&it.id, &component, address).await;
                    known.map_err(|error| Error::failed("connect a running instance again", error))?;
                }
                by_component.entry(component).or_default().push(it);
            }
        }
        let (gateway, pool) = (network.gateway().await, network.pool().await);
        let node = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|it| it.trim().to_owned());
        let inner = Arc::new(Inner {
            containers,
            images,
            network,
            volumes,
            gateway,
            pool,
            node: node.unwrap_or_default(),
            dir: dir.join("orchestrator"),
            pace: config.pace,
            preparing: Semaphore::new(PREPARING_AT_ONCE),
            tracker,
            stop,
            bell: broadcast::channel(4096).0,
            facts: Mutex::default(),
            tasks: Mutex::default(),
            owners: Mutex::default(),
        });
        let this = Arc::new(Self { inner });
        this.watch_containers();
        for (component, found) in by_component {
            component::open(&this.inner, &component, found).await;
        }
        Ok(this)
    }

    /// Address of the bridge: where DNS for instances listens.
    pub fn dns_address(&self) -> Ipv4Addr {
        self.inner.gateway
    }

    /// Every address that instances and components can have.
    pub fn pool(&self) -> Ipv4Net {
        self.inner.pool
    }

    /// Ports of this machine that instances may reach on any of its addresses (published gateway ports).
    pub async fn publish_ports(&self, ports: BTreeSet<u16>) -> Result<(), Error> {
        self.inner.network.publish(ports).await.map_err(|it| Error::failed("publish ports to instances", it))
    }

    /// Lets builds reach a proxy on this port of [`LocalOrchestrator::dns_address`], and nothing else. Returns the single
    /// private addresses that the machine's own settings let builds reach.
    pub async fn open_build_proxy(&self, port: u16) -> Result<Vec<SocketAddrV4>, Error> {
        let network = &self.inner.network;
        network.set_build_proxy(port).await.map_err(|it| Error::failed("let builds reach their proxy", it))?;
        Ok(network.allowed_endpoints().await)
    }

    /// Hands the bell of the containers on to the components' tasks.
    fn watch_containers(&self) {
        let inner = self.inner.clone();
        let mut bell = inner.containers.changes();
        self.inner.tracker.spawn(async move {
            loop {
                let changed = tokio::select! {
                    () = inner.stop.cancelled() => return,
                    changed = bell.recv() => changed,
                };
                let changed = match changed {
                    Ok(id) => vec![id],
                    Err(broadcast::error::RecvError::Lagged(_)) => lock(&inner.owners).keys().cloned().collect(),
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                for id in changed {
                    let owner = lock(&inner.owners).get(&id).cloned();
                    if let Some(owner) = owner {
                        inner.tell(&owner, Event::Container(id));
                    }
                }
            }
        });
    }
}

async fn network(
    config: &NetworkConfig,
    allowed_networks: Vec<Ipv4Net>,
    egress: Egress,
    dir: &std::path::Path,
    alive: &BTreeSet<InstanceId>,
) -> Result<Network, Error> {
    let endpoints = tokio::task::spawn_blocking(egress::detect).await.unwrap_or_default();
    let forwarders = config.forwarders.iter().copied().filter_map(|it| match it {
        IpAddr::V4(it) if !it.is_loopback() => Some(it),
        _ => None,
    });
    let mut resolvers: Vec<_> = forwarders.collect();
    if config.forwarders.is_empty() {
        resolvers = egress::resolvers();
    }
    let options = NetworkOptions {
        dir: dir.join("network"),
        owner: dir.to_string_lossy().into_owned(),
        pool: config.pool,
        allowed_networks,
        allowed_endpoints: endpoints,
        resolvers,
        build_way: if egress == Egress::Allowlist { BuildWay::Closed } else { BuildWay::Direct },
    };
    Network::open(options, alive).await.map_err(|it| Error::failed("set up the instances' network", it))
}

#[async_trait]
impl Storage for LocalOrchestrator {
    async fn classes(&self) -> Result<Vec<VolumeClass>, Error> {
        Ok(vec![Volumes::class()])
    }

    async fn volumes(&self, of: Option<&ComponentId>, _: Telling) -> Result<Vec<VolumeFacts>, Error> {
        Ok(self.inner.volumes.facts(of).await)
    }
}

#[async_trait]
impl Orchestrator for LocalOrchestrator {
    async fn apply(&self, plan: &WorkloadPlan) -> Result<(), Error> {
        let inner = &self.inner;
        let made = inner.network.component(&plan.component, &plan.tenant, &plan.application, &plan.may_call).await;
        let address = made.map_err(|it| Error::failed("give the component its address", it))?;
        component::open(inner, &plan.component, Vec::new()).await;
        let (taken, done) = oneshot::channel();
        let event = Event::Plan { plan: Box::new(plan.clone()), address, taken };
        if inner.tell(&plan.component, event) && done.await.is_ok() {
            return Ok(());
        }
        Err(Error::Refused(format!("{} is being removed, or the server stops", plan.component)))
    }

    async fn remove(&self, component: &ComponentId, what: &Removal) -> Result<(), Error> {
        let inner = &self.inner;
        if let Removal::Volume(volume) = what {
            return inner.volumes.remove_one(component, volume).await;
        }
        let (ended, done) = oneshot::channel();
        let ran = inner.tell(component, Event::Remove { ended });
        if ran && done.await.is_err() {
            return Err(Error::failed(format!("end the instances of {component}"), "the server stops"));
        }
        lock(&inner.tasks).remove(component);
        let known = lock(&inner.facts).remove(component).is_some();
        record::remove(&inner.dir, component);
        inner
            .network
            .forget_component(component)
            .await
            .map_err(|it| Error::failed("free the component's address", it))?;
        if *what == Removal::Everything {
            inner.volumes.remove(component).await?;
        }
        if ran || known {
            let _ = inner.bell.send(component.clone()); // nobody may listen
        }
        Ok(())
    }

    async fn observe(&self, component: &ComponentId) -> Result<Observed, Error> {
        Ok(lock(&self.inner.facts).get(component).cloned().unwrap_or_default())
    }

    async fn components(&self) -> Result<Vec<ComponentId>, Error> {
        let mut found: BTreeSet<_> = lock(&self.inner.tasks).keys().cloned().collect();
        found.extend(self.inner.network.components().await);
        found.extend(self.inner.volumes.components());
        Ok(found.into_iter().collect())
    }

    fn changes(&self) -> broadcast::Receiver<ComponentId> {
        self.inner.bell.subscribe()
    }

    async fn release(&self, instance: &InstanceId) -> Result<(), Error> {
        let owner = lock(&self.inner.owners).get(instance).cloned();
        match owner {
            Some(owner) if self.inner.tell(&owner, Event::Release(instance.clone())) => Ok(()),
            _ => Err(Error::NotFound(format!("instance {instance}"))),
        }
    }

    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error> {
        if workload.unprivileged {
            return Err(Error::Unsupported("run a program as a user without rights: here each has a user namespace"));
        }
        // A task of its own, so that it is cleaned up also when the caller is dropped.
        let task = run_once::run(self.inner.clone(), workload.clone(), output, cancel);
        let task = self.inner.tracker.spawn(task);
        task.await.unwrap_or_else(|it| Err(Error::failed("run a one-shot workload", it)))
    }

    async fn attach(&self, workload: &OneShot, terminal: Option<(u16, u16)>) -> Result<ExecSession, Error> {
        // A task of its own, so that it is cleaned up also when the caller is dropped.
        let task = self.inner.tracker.spawn(run_once::attach(self.inner.clone(), workload.clone(), terminal));
        task.await.unwrap_or_else(|it| Err(Error::failed("run a one-off instance", it)))
    }

    async fn exec(&self, instance: &InstanceId, request: ExecRequest) -> Result<ExecSession, Error> {
        self.inner.containers.exec(instance, request).await
    }

    async fn connect(&self, instance: &InstanceId, port: u16) -> Result<Connection, Error> {
        if !lock(&self.inner.owners).contains_key(instance) {
            return Err(Error::NotFound(format!("instance {instance}")));
        }
        let stream = self.inner.network.dial(instance, port).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                Error::Refused(format!("nothing listens on port {port} inside instance {instance}"))
            }
            _ => Error::failed(format!("connect to port {port} inside instance {instance}"), error),
        })?;
        Ok(Connection { stream: Box::new(stream), failure: oneshot::channel().1 })
    }

    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error> {
        self.inner.containers.usage(instance).await
    }

    async fn shutdown(&self, stop_instances: bool) -> Result<(), Error> {
        let inner = &self.inner;
        if stop_instances {
            let tasks: Vec<_> = lock(&inner.tasks).values().cloned().collect();
            let ended = tasks.into_iter().map(|task| {
                let (ended, done) = oneshot::channel();
                let _ = task.send(Event::Remove { ended });
                done
            });
            futures_util::future::join_all(ended.collect::<Vec<_>>()).await;
        }
        inner.stop.cancel();
        inner.tracker.close();
        if tokio::time::timeout(LEAVING, inner.tracker.wait()).await.is_err() {
            tracing::warn!("instances were being made or ended when the server stopped; the next start clears them");
        }
        let empty = inner.network.is_empty().await && inner.containers.list().await.is_empty();
        let closed = if empty { inner.network.close().await } else { Ok(()) };
        inner.containers.close().await;
        lock(&inner.tasks).clear();
        closed.map_err(|it| Error::failed("remove the instances' network", it))
    }
}
