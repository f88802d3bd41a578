//! What runs instances, by the settings: our own containers, or pods of a cluster.
//!
//! What must hold: the rest of the process knows the seam alone; what only one machine has (the bridge's DNS, ports
//! published to instances) is absent on a cluster, not imitated.

use super::keeping::Keeping;
use super::kept::Kept;
use super::stores::Stores;
use anyhow::Context as _;
use arco_builder::BuildProxy;
use arco_config::{Config, Egress, OrchestratorDriver, Role};
use arco_daemon::{BoxError, OnExit, Supervisor};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::TenantName;
use arco_model::traffic::{STREAMS, StreamEntry};
use arco_orchestrator::local::{LocalConfig, LocalOrchestrator, Pace};
use arco_orchestrator::{SharedOrchestrator, SharedStorage};
use arco_orchestrator_kubernetes::{KubernetesOptions, KubernetesOrchestrator, Leads, PullCredentials};
use arco_registry::{Action, Registry, Scope};
use arco_store::kv::{Range, SharedKv};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// Pause before ports are followed again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked what servers that are gone left in the cluster.
const CLEAR: Duration = Duration::from_secs(60);

/// Roles that ask a cluster for anything. A server without them needs no rights there.
const ASKED_BY: [Role; 4] = [Role::Api, Role::Builder, Role::Controller, Role::Registry];

/// The orchestrator, and what of it belongs to this machine; cheap to clone.
#[derive(Clone)]
pub(super) struct Instances {
    orchestrator: Option<SharedOrchestrator>,
    storage: Option<SharedStorage>,
    local: Option<Arc<LocalOrchestrator>>,
    cluster: Option<Arc<KubernetesOrchestrator>>,
}

impl Instances {
    /// Starts the driver of the settings.
    pub(super) async fn start(
        config: &Config,
        stores: &Stores,
        keeping: &Keeping,
        registry: &Registry,
        server: Option<&str>,
    ) -> anyhow::Result<Self> {
        let logs = keeping.sink.clone();
        match config.orchestrator.driver {
            OrchestratorDriver::Local => {
                let local = LocalConfig {
                    data_dir: config.server.data_dir.clone(),
                    cache_dir: config.server.cache_dir.clone(),
                    network: config.network.clone(),
                    allowed_networks: config.builder.allowed_networks.clone(),
                    egress: config.builder.egress,
                    instance_log_mb: config.orchestrator.instance_log_mb,
                    executable: std::env::current_exe().context("failed to find this executable")?,
                    pace: Pace::default(),
                };
                let local = LocalOrchestrator::start(local, stores.images.clone(), logs)
                    .await
                    .context("failed to start the local orchestrator; `arco doctor` checks this machine")?;
                let storage = Some(local.clone() as SharedStorage);
                Ok(Self { orchestrator: Some(local.clone()), storage, local: Some(local), cluster: None })
            }
            OrchestratorDriver::Kubernetes if !ASKED_BY.iter().any(|it| config.server.has(*it)) => {
                Ok(Self { orchestrator: None, storage: None, local: None, cluster: None })
            }
            OrchestratorDriver::Kubernetes => {
                let options = KubernetesOptions {
                    config: config.kubernetes.clone(),
                    allowed_networks: config.builder.allowed_networks.clone(),
                    pull_credentials: Some(Arc::new(NodeLogins(registry.clone()))),
                    kept_lines: Some(Arc::new(Kept::new(keeping))),
                };
                let driver = match server {
                    None => KubernetesOrchestrator::start(options, stores.images.clone(), logs).await,
                    Some(server) => KubernetesOrchestrator::follow(options, stores.images.clone(), logs, server).await,
                };
                let driver = driver.context(
                    "failed to start the Kubernetes orchestrator; see the section [kubernetes] of the settings",
                )?;
                let storage = Some(driver.clone() as SharedStorage);
                Ok(Self { orchestrator: Some(driver.clone()), storage, local: None, cluster: Some(driver) })
            }
        }
    }

    /// The orchestrator; fails in a server whose roles do not ask for it.
    pub(super) fn orchestrator(&self) -> anyhow::Result<SharedOrchestrator> {
        self.orchestrator.clone().context("the roles of this server have nothing to do with instances")
    }

    /// Whose instance a pod of the cluster is.
    pub(super) fn of_pod(&self, namespace: &str, uid: &str) -> Option<(ComponentId, InstanceId)> {
        self.cluster.as_ref()?.instance_of_pod(namespace, uid)
    }

    /// Hands nodes the files of their certificate.
    pub(super) async fn equip_nodes(&self, files: BTreeMap<String, String>) -> anyhow::Result<()> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        Ok(cluster.equip_nodes(files).await?)
    }

    /// Their storage; fails as [`Self::orchestrator`] does.
    pub(super) fn storage(&self) -> anyhow::Result<SharedStorage> {
        self.storage.clone().context("the roles of this server have nothing to do with volumes")
    }

    /// Lets go of the instances, when the server stops.
    pub(super) async fn shutdown(&self, stop_instances: bool) {
        let Some(orchestrator) = &self.orchestrator else { return };
        if let Err(error) = orchestrator.shutdown(stop_instances).await {
            tracing::error!(%error, "the orchestrator did not stop as it should");
        }
    }

    /// From when on this process leads those that share the instances, as long as `holds` says so; `None`: no more.
    pub(super) fn lead(&self, leads: Option<Leads>) {
        if let Some(cluster) = &self.cluster {
            cluster.lead(leads);
        }
    }

    /// Removes what servers left in the cluster that `known` does not know, one look after the other, as long as this
    /// process `leads`: after a pause of its own it may not know who came meanwhile.
    pub(super) async fn clear_after(&self, known: impl Fn(&str) -> bool + Send, leads: impl Fn() -> bool + Send) {
        let Some(cluster) = &self.cluster else { return std::future::pending().await };
        // A server that starts works before it is known, so who is unknown twice in a row counts as gone.
        let mut before = Vec::new();
        loop {
            tokio::time::sleep(CLEAR).await;
            let servers = match cluster.servers_of_one_shots().await {
                Ok(servers) => servers,
                Err(error) => {
                    tracing::warn!(%error, "what servers left in the cluster is looked for later");
                    continue;
                }
            };
            let unknown: Vec<_> = servers.into_iter().filter(|it| !known(it)).collect();
            for server in unknown.iter().filter(|it| before.contains(*it)) {
                if !leads() {
                    break;
                }
                if let Err(error) = cluster.clear_one_shots_of(server).await {
                    tracing::warn!(server, %error, "it is tried again");
                }
            }
            before = unknown;
        }
    }

    /// Where DNS for instances listens on this machine.
    pub(super) fn dns_address(&self) -> Option<Ipv4Addr> {
        self.local.as_ref().map(|it| it.dns_address())
    }

    /// Lets instances on this machine reach these ports of it, and those that lead to components without HTTP, as they
    /// come and go.
    pub(super) async fn publish_ports(
        &self,
        ports: [u16; 2],
        kv: &SharedKv,
        supervisor: &Supervisor,
    ) -> anyhow::Result<()> {
        let Some(local) = self.local.clone() else { return Ok(()) };
        local.publish_ports(ports.into()).await.context("failed to let instances reach the gateway")?;
        let (kv, token) = (kv.clone(), supervisor.token().clone());
        supervisor.spawn("published ports", OnExit::Continue, async move {
            let follow = async {
                loop {
                    if let Err(error) = follow_streams(&local, ports, &kv).await {
                        tracing::warn!(%error, "ports for components are not open to instances yet, it is tried again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            tokio::select! {
                () = token.cancelled() => {}
                () = follow => {}
            }
            Ok(())
        });
        Ok(())
    }

    /// Where builds reach out, when a list says which hosts they may reach.
    pub(super) async fn build_proxy(&self, config: &Config) -> anyhow::Result<Option<BuildProxy>> {
        if config.builder.egress != Egress::Allowlist {
            return Ok(None);
        }
        let Some(local) = &self.local else {
            anyhow::bail!(
                "`builder.egress = \"allowlist\"` needs instances on this machine: a cluster's builds do not reach the proxy; set it to \"public\""
            );
        };
        let listener = tokio::net::TcpListener::bind((local.dns_address(), 0)).await;
        let listener = listener.context("failed to open the proxy of builds on the instances' network")?;
        let endpoints = local.open_build_proxy(listener.local_addr()?.port()).await?;
        Ok(Some(BuildProxy { listener, endpoints }))
    }
}

/// Publishes `ports` and those of streams, again after each change, until the watch is cut.
async fn follow_streams(local: &LocalOrchestrator, ports: [u16; 2], kv: &SharedKv) -> Result<(), BoxError> {
    loop {
        let now = kv.list(STREAMS).await?;
        let streams = now.items.iter().filter_map(|it| serde_json::from_slice::<StreamEntry>(&it.value).ok());
        local.publish_ports(streams.map(|it| it.port).chain(ports).collect()).await?;
        let range = Range::Prefix(STREAMS.as_bytes().to_vec());
        let mut watch = kv.watch(range, Some(now.revision + 1)).await?;
        match watch.next().await {
            Some(batch) => drop(batch?),
            None => return Ok(()),
        }
    }
}

/// A tenant's nodes pull its images and our base stacks, and nothing else.
struct NodeLogins(Registry);

impl PullCredentials for NodeLogins {
    fn issue(&self, tenant: &TenantName, life: Duration) -> String {
        let stacks = Scope::repository("stack/*", &[Action::Pull]);
        self.0.tokens().issue(&Scope::tenant(tenant, &[Action::Pull]).and(stacks), life)
    }

    fn takes(&self, credential: &str) -> bool {
        self.0.tokens().check(credential).is_some()
    }
}
