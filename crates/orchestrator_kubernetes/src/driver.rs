//! The driver: components, each with a task that looks, and the calls of the seam.
//!
//! What must hold: a call that asks (`observe`, `components`) never waits for the cluster; what another process of this
//! platform made is adopted as it stands, and changed only when its plan comes; nothing of this process keeps a workload
//! alive, so the cluster goes on without it.

use crate::cluster::{Cluster, failed};
use crate::component::{Component, Leads, Shared};
use crate::features::{Features, USER_NAMESPACES};
use crate::local_storage::LocalStorage;
use crate::logs::{KeptLines, Logs};
use crate::render::{self, Kind, Rendered, Surroundings};
use crate::seen::{ObjectSeen, Seen, Whereabouts};
use crate::tenant::{PullCredentials, Tenants};
use crate::{exec, forward, run_once, scale, usage, watch};
use arco_config::KubernetesConfig;
use arco_model::artifact::ImageRef;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::TenantName;
use arco_model::observed::Observed;
use arco_model::plan::{OneShot, WorkloadPlan};
use arco_orchestrator::{
    Connection, Error, ExecRequest, ExecSession, OneShotResult, Orchestrator, OutputLine, Removal, Usage,
};
use arco_store::images::{Image, ImageError, Images};
use arco_store::logs::LogSink;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use kube::api::DeleteParams;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Components that talk with the API server at the same time.
const TALKING: usize = 32;
/// How long a stop waits for what is under way.
const LEAVING: Duration = Duration::from_secs(10);
/// How long an image may take to be read: whoever applies plans has others to apply.
const READING: Duration = Duration::from_secs(10);

/// What the driver needs.
#[derive(Clone)]
pub struct KubernetesOptions {
    /// `[kubernetes]`.
    pub config: KubernetesConfig,
    /// `builder.allowed_networks`.
    pub allowed_networks: Vec<Ipv4Net>,
    /// Makes credentials by which nodes pull; without it nodes must be able to pull anyway.
    pub pull_credentials: Option<Arc<dyn PullCredentials>>,
    /// Knows which lines of instances are kept; without it, what was written before the start is not read.
    pub kept_lines: Option<Arc<dyn KeptLines>>,
}

impl std::fmt::Debug for KubernetesOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesOptions").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Pods of a Kubernetes cluster.
pub struct KubernetesOrchestrator {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: KubernetesConfig,
    pub(crate) images: Images,
    pub(crate) logs: Logs,
    pub(crate) shared: Arc<Shared>,
    components: Mutex<BTreeMap<ComponentId, Arc<Component>>>,
    /// Rung with the name of a component that changed, also for one-shots.
    pub(crate) changed: broadcast::Sender<ComponentId>,
    /// Name of this server, where there are several.
    pub(crate) server: String,
    pub(crate) nodes: usage::Nodes,
    pub(crate) local_storage: LocalStorage,
    /// What the cluster has, by its version when this process began.
    pub(crate) features: Features,
    /// Why components cannot be scaled by load here.
    pub(crate) by_load: Result<(), String>,
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ComponentId, Arc<Component>>> {
        // A panic while it was held leaves whole values behind: each use is one insertion or one look.
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.shared.cluster
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// The component, with a task of its own from now on.
    fn component(self: &Arc<Self>, id: &ComponentId) -> Arc<Component> {
        let mut components = self.lock();
        if let Some(found) = components.get(id) {
            return found.clone();
        }
        let made = Arc::new(Component::new(id.clone(), self.shared.clone()));
        components.insert(id.clone(), made.clone());
        made.tell();
        let (stop, task) = (self.stop.clone(), made.clone());
        self.tracker.spawn(async move {
            let end = task.end.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = end.cancelled() => {}
                () = task.run() => {}
            }
        });
        made
    }

    /// Ends the task of a component.
    fn end(&self, id: &ComponentId) {
        if let Some(it) = self.lock().remove(id) {
            it.end.cancel();
        }
    }

    /// Something of a component changed.
    fn ring(self: &Arc<Self>, id: &ComponentId) {
        let known = self.lock().get(id).cloned();
        let exists = self.seen().with(id, |it| it.instances().next().is_some() || !it.objects.is_empty());
        match known {
            Some(it) => {
                it.tell();
                it.wake.notify_one();
            }
            None if exists => drop(self.component(id)),
            None => {}
        }
        Logs::follow(self, id);
        let _ = self.changed.send(id.clone()); // nobody may listen
    }

    pub(crate) fn whereabouts(&self, id: &InstanceId) -> Result<Whereabouts, Error> {
        self.seen().whereabouts(id).ok_or_else(|| Error::NotFound(format!("instance {id}")))
    }

    /// Addresses of bound components by name, where no DNS of ours answers.
    pub(crate) fn hosts<'a>(&self, called: impl Iterator<Item = &'a ComponentId>) -> BTreeMap<String, Ipv4Addr> {
        let address = |id: &ComponentId| {
            self.seen().with(id, |it| {
                it.of(Kind::Service).find_map(|(_, it)| Some((it.detail.host.clone(), it.detail.address?)))
            })
        };
        called.filter_map(address).collect()
    }

    /// Reads an image. Refused: it is not there, or no image; failed: what keeps it does not answer, and later may.
    pub(crate) async fn image(&self, image: &ImageRef) -> Result<Image, Error> {
        let step = format!("read the image {}", image.repository);
        match tokio::time::timeout(READING, self.images.read(image)).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(it @ (ImageError::NotFound(_) | ImageError::Invalid { .. }))) => {
                Err(Error::Refused(format!("failed to {step}: {it}")))
            }
            Ok(Err(it)) => Err(Error::failed(step, with_causes(&it))),
            Err(_) => Err(Error::failed(step, format!("it took longer than {} s", READING.as_secs()))),
        }
    }
}

/// An error with what caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(it) = cause {
        text = format!("{text}: {it}");
        cause = it.source();
    }
    text
}

impl KubernetesOrchestrator {
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Connects, and lists what there is of this platform. Fails when the cluster does not answer. This process leads.
    pub async fn start(options: KubernetesOptions, images: Images, logs: LogSink) -> Result<Arc<Self>, Error> {
        Self::connect(options, images, logs, None).await
    }

    /// As [`Self::start`], for one of several servers, by its name, which leads only when [`Self::lead`] says so.
    pub async fn follow(
        options: KubernetesOptions,
        images: Images,
        logs: LogSink,
        server: &str,
    ) -> Result<Arc<Self>, Error> {
        Self::connect(options, images, logs, Some(server)).await
    }

    /// Servers that one-shots in the cluster wait for, or waited for when they died.
    pub async fn servers_of_one_shots(&self) -> Result<Vec<String>, Error> {
        let found = run_once::by_server(&self.inner).await;
        Ok(found.map_err(|it| failed("list one-shot workloads", &it))?.into_keys().collect())
    }

    /// Removes the one-shots of a server that is gone.
    pub async fn clear_one_shots_of(&self, server: &str) -> Result<(), Error> {
        let done = run_once::clear_of(&self.inner, server).await;
        done.map_err(|it| failed("remove the one-shot workloads of a server that is gone", &it))
    }

    /// Of several processes one leads: it reads the output of instances, and brings the cluster nearer to plans as long
    /// as `leads`, which is asked before each change, says so. One that does not lead any more (`None`) forgets the plans
    /// that it was given.
    pub fn lead(&self, leads: Option<Leads>) {
        let here = leads.is_some();
        self.inner.shared.lead(leads);
        if !here {
            let known = std::mem::take(&mut *self.inner.lock());
            known.values().for_each(|it| it.end.cancel());
            for id in self.inner.seen().everything() {
                self.inner.ring(&id);
            }
        }
        Logs::read_here(&self.inner, here);
        LocalStorage::lead_here(&self.inner, here);
    }

    /// Whose instance a pod is, or was until a short time ago.
    pub fn instance_of_pod(&self, namespace: &str, uid: &str) -> Option<(ComponentId, InstanceId)> {
        self.inner.seen().whose(namespace, uid).map(|it| (it.component, it.instance))
    }

    /// Hands nodes the files of their certificate, by which they send the output of instances.
    pub async fn equip_nodes(&self, files: BTreeMap<String, String>) -> Result<(), Error> {
        let object = render::node_credentials(&self.inner.config, &files);
        let applied = self.inner.cluster().apply(&object).await;
        applied.map(drop).map_err(|it| failed("hand nodes their certificate", &it))
    }

    async fn connect(
        options: KubernetesOptions,
        images: Images,
        logs: LogSink,
        server: Option<&str>,
    ) -> Result<Arc<Self>, Error> {
        let KubernetesOptions { config, allowed_networks, pull_credentials, kept_lines } = options;
        if config.registry.is_empty() {
            return Err(Error::Refused(
                "nodes do not know where to pull images: set `kubernetes.registry` to the HOST:PORT by which they reach the platform's registry"
                    .to_owned(),
            ));
        }
        let local_storage = LocalStorage::new(&config)?;
        let cluster = Cluster::connect(&config).await?;
        let version = cluster.client.apiserver_version().await;
        let version = version.map_err(|it| failed("ask the cluster for its version", &it))?;
        let features = Features::of(&version.major, &version.minor);
        if config.user_namespaces && !features.user_namespaces {
            return Err(Error::Refused(format!(
                "Kubernetes {} gives instances no user namespace (1.{USER_NAMESPACES} and newer do): upgrade the cluster, or set `kubernetes.user_namespaces = false`",
                version.git_version
            )));
        }
        if config.user_namespaces {
            let selector: Vec<_> = config.node_selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let unable = cluster.nodes_without_user_namespaces(&selector.join(",")).await;
            let unable = unable.map_err(|it| failed("ask the cluster for its nodes", &it))?;
            if !unable.is_empty() {
                return Err(Error::Refused(format!(
                    "nodes {} cannot give instances a user namespace: update their container runtime (containerd 2.0), choose other nodes by `kubernetes.node_selector`, or set `kubernetes.user_namespaces = false` (`arco cluster manifest --no-user-namespaces`)",
                    unable.join(", ")
                )));
            }
        }
        let by_load = scale::ready(&cluster).await;
        if let Err(why) = &by_load {
            tracing::warn!(why, "components cannot be scaled by load");
        }
        let scales = by_load.is_ok();
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let (seen, bell) = (Arc::new(Seen::default()), broadcast::channel(4096).0);
        let tenants = Tenants::new(cluster.clone(), config.clone(), allowed_networks, pull_credentials);
        let shared = Shared::new(cluster.clone(), seen.clone(), tenants, bell, TALKING);
        if server.is_none() {
            shared.lead(Some(Arc::new(|| true)));
        }
        let inner = Arc::new(Inner {
            images,
            logs: Logs::new(logs, kept_lines, server.is_some()),
            shared: Arc::new(shared),
            components: Mutex::default(),
            changed: broadcast::channel(4096).0,
            server: server.unwrap_or_default().to_owned(),
            nodes: usage::Nodes::default(),
            local_storage,
            features,
            by_load,
            tracker: tracker.clone(),
            stop: stop.clone(),
            config,
        });
        let weak = Arc::downgrade(&inner);
        let ring: watch::Bell = Arc::new(move |id| {
            if let Some(inner) = weak.upgrade() {
                inner.ring(id);
            }
        });
        let prefix = &inner.config.namespace_prefix;
        let listed = watch::start(&cluster.client, prefix, scales, &seen, ring, &stop, &tracker).await;
        if let Err(error) = listed {
            stop.cancel();
            return Err(error);
        }
        match server {
            None => {
                run_once::clear(&inner).await;
                LocalStorage::lead_here(&inner, true);
            }
            // Ours are those of our predecessor; other servers wait for theirs.
            Some(server) => {
                let done = run_once::clear_of(&inner, server).await;
                done.map_err(|it| failed("remove the one-shot workloads of an earlier run", &it))?;
            }
        }
        Ok(Arc::new(Self { inner }))
    }

    /// Deletes of a component what is asked, and waits until the cluster has.
    async fn delete_all(&self, id: &ComponentId, what: &Removal) -> Result<(), Error> {
        let mut changed = self.inner.changed.subscribe();
        loop {
            let left = self.inner.seen().component(id);
            let goes = |kind: Kind, object: &ObjectSeen| match what {
                Removal::Everything => true,
                Removal::KeepVolumes => kind != Kind::Claim,
                Removal::Volume(name) => object.detail.volume.as_ref().is_some_and(|(it, _)| it == name.as_str()),
            };
            let objects = left.objects.iter().filter(|((kind, _), it)| goes(*kind, it));
            let pods_go = !matches!(what, Removal::Volume(_));
            let mut waiting = if pods_go { left.pods.len() } else { 0 };
            for ((kind, name), object) in objects {
                waiting += 1;
                if !object.deleting {
                    // In the foreground: the workload goes after its pods, so that nothing is left when it is gone.
                    let how = DeleteParams::foreground();
                    self.delete(*kind, &object.namespace, name, &how).await?;
                }
            }
            let owned = left.objects.keys().any(|it| matches!(it.0, Kind::Deployment | Kind::StatefulSet | Kind::Job));
            for (name, (_, pod)) in
                left.pods.iter().filter(|(_, (_, it))| pods_go && !it.deleting && (it.one_shot || !owned))
            {
                self.delete(Kind::Pod, &pod.namespace, name, &DeleteParams::default()).await?;
            }
            if waiting == 0 {
                return Ok(());
            }
            loop {
                tokio::select! {
                    () = self.inner.stop.cancelled() => {
                        return Err(Error::failed(format!("delete what is left of {id}"), "the server stops"));
                    }
                    rung = changed.recv() => match rung {
                        Ok(other) if other != *id => {}
                        _ => break,
                    },
                }
            }
        }
    }

    async fn delete(&self, kind: Kind, namespace: &str, name: &str, how: &DeleteParams) -> Result<(), Error> {
        let done = self.inner.cluster().delete(kind, namespace, name, how).await;
        done.map_err(|it| failed(format!("delete {} `{name}`", kind.wire().1), &it))
    }
}

#[async_trait]
impl Orchestrator for KubernetesOrchestrator {
    async fn apply(&self, plan: &WorkloadPlan) -> Result<(), Error> {
        let inner = &self.inner;
        if inner.stop.is_cancelled() {
            return Err(Error::Refused(format!("{} is not applied: the server stops", plan.component)));
        }
        let component = inner.component(&plan.component);
        if component.has(&plan.fingerprint()) {
            return Ok(());
        }
        let image = match inner.image(&plan.template.image).await {
            // Nothing is wrong with the plan: whoever gave it gives it again.
            Err(error @ Error::Failed { .. }) => {
                component.hold_up(plan, &error.to_string());
                return Err(error);
            }
            read => read,
        };
        let hosts = inner.hosts(plan.may_call.iter());
        component.take(plan, || -> Result<Rendered, String> {
            let image = image.map_err(|it| it.to_string())?;
            inner.seen().with(&plan.component, |it| crate::component::fits(plan, it))?;
            if plan.autoscaling.is_some()
                && let Err(why) = &inner.by_load
            {
                let reference = format!("{}/{}", plan.application, plan.name);
                return Err(format!(
                    "`{reference}` cannot be scaled by load: {why}; or `arco scale {reference} --off`"
                ));
            }
            let around = Surroundings {
                config: &inner.config,
                image: &image.config,
                hosts: &hosts,
                pull_secret: inner.shared.tenants.have_credentials(),
                features: inner.features,
            };
            render::component(plan, &around)
        });
        Ok(())
    }

    async fn remove(&self, component: &ComponentId, what: &Removal) -> Result<(), Error> {
        if matches!(what, Removal::Volume(_)) {
            return self.delete_all(component, what).await;
        }
        let known = self.inner.lock().get(component).cloned();
        if let Some(known) = &known {
            known.begin_removal().await;
        }
        self.delete_all(component, what).await?;
        self.inner.end(component);
        if known.is_some() {
            let _ = self.inner.shared.bell.send(component.clone()); // nobody may listen
        }
        Ok(())
    }

    async fn observe(&self, component: &ComponentId) -> Result<Observed, Error> {
        let known = self.inner.lock().get(component).cloned();
        Ok(known.map(|it| it.observed()).unwrap_or_default())
    }

    async fn components(&self) -> Result<Vec<ComponentId>, Error> {
        let mut found = self.inner.seen().components();
        found.extend(self.inner.lock().iter().filter(|(_, it)| it.is_asked()).map(|(id, _)| id.clone()));
        Ok(found.into_iter().collect())
    }

    fn changes(&self) -> broadcast::Receiver<ComponentId> {
        self.inner.shared.bell.subscribe()
    }

    async fn release(&self, instance: &InstanceId) -> Result<(), Error> {
        let found = self.inner.whereabouts(instance)?;
        let uid = self.inner.seen().with(&found.component, |it| it.pods.get(&found.pod).map(|(_, it)| it.uid.clone()));
        let known = self.inner.lock().get(&found.component).cloned();
        match (known, uid) {
            (Some(known), Some(uid)) => {
                known.release(&uid);
                Ok(())
            }
            _ => Err(Error::NotFound(format!("instance {instance}"))),
        }
    }

    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error> {
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
        let found = self.inner.whereabouts(instance)?;
        exec::start(self.inner.cluster(), &found.namespace, &found.pod, request).await
    }

    async fn connect(&self, instance: &InstanceId, port: u16) -> Result<Connection, Error> {
        let found = self.inner.whereabouts(instance)?;
        forward::connect(self.inner.cluster(), &found.namespace, &found.pod, port).await
    }

    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error> {
        let found = self.inner.whereabouts(instance)?;
        usage::of(&self.inner, &found).await
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantName>, Error> {
        let found = self.inner.shared.tenants.all().await;
        found.map_err(|it| failed("list the tenants' namespaces", &it))
    }

    async fn remove_tenant(&self, tenant: &TenantName) -> Result<Option<String>, Error> {
        let shared = &self.inner.shared;
        let acting = || match shared.leads() {
            true => Ok(()),
            false => Err(Error::failed(format!("remove what the tenant {tenant} has"), "another server leads now")),
        };
        shared.tenants.remove(tenant, acting).await
    }

    async fn shutdown(&self, stop_instances: bool) -> Result<(), Error> {
        let mut outcome = Ok(());
        if stop_instances {
            let components = self.components().await?;
            let ends = components.iter().map(|it| self.remove(it, &Removal::KeepVolumes));
            outcome = futures_util::future::join_all(ends).await.into_iter().collect();
        }
        self.inner.stop.cancel();
        self.inner.tracker.close();
        if tokio::time::timeout(LEAVING, self.inner.tracker.wait()).await.is_err() {
            tracing::warn!("requests to the cluster were under way when the server stopped; the next start goes on");
        }
        self.inner.lock().clear();
        outcome
    }
}
