//! The controller of this process: which of several leads, and what begins and ends with that.
//!
//! What must hold: whatever the controller writes goes through the fence of its time, whatever it asks of the
//! orchestrator through [`LedOrchestrator`]; so a leader that lost the lock without knowing does nothing any more.
//! Instances on a machine's own containers belong to that machine: two such servers never control the same stores.

use super::instances::Instances;
use super::peers::Peers;
use super::storage_use::StorageUse;
use super::stores::Stores;
use anyhow::{Context as _, bail};
use arco_config::{Config, LeaderLockPlace, OrchestratorDriver, Role};
use arco_controller::{Controller, ControllerDeps};
use arco_daemon::health::{Health, RoleHandle};
use arco_daemon::leader::{Candidate, Standing, Term, lead};
use arco_daemon::pki::{Leaf, Pki, Subject};
use arco_daemon::{BoxError, OnExit, Supervisor};
use arco_node::wire;
use arco_orchestrator::LedOrchestrator;
use arco_orchestrator_kubernetes::{Leads, LeaseLock};
use arco_store::clock;
use arco_store::fence::Fence;
use arco_store::kv::{Compare, Operation, Range, SharedKv, Txn};
use arco_store::leader::{KvLock, LeaderLock};
use arco_store::secrets::write_private;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What is led.
const NAME: &str = "controller";
/// Shortest lease: etcd gives no much shorter ones, and a renewal needs its time.
const LEASE_MIN_S: u32 = 5;
/// The lease of a server that is alone on its store.
const LEASE_ALONE_S: u32 = 60;
/// How long a start waits until it is known who leads.
const KNOWN: Duration = Duration::from_secs(60);
/// How often nodes are handed their certificate: somebody may have removed it. And the pause after that failed.
const EQUIP: Duration = Duration::from_secs(600);
const EQUIP_AGAIN: Duration = Duration::from_secs(10);
/// Whose containers the components of these stores are.
const OWNER: &str = "/orchestrator/local";

/// What leading needs of this process.
#[derive(Clone)]
pub(super) struct Parts {
    /// Name of the server.
    pub(super) server: String,
    /// Name of the process.
    pub(super) me: String,
    pub(super) deps: ControllerDeps,
    pub(super) peers: Option<Peers>,
    pub(super) stores: Stores,
    pub(super) instances: Instances,
    pub(super) pki: Arc<Pki>,
    pub(super) storage_use: StorageUse,
}

/// Begins to want to lead; returns when this process leads or follows another one.
pub(super) async fn start(
    config: &Config,
    parts: Parts,
    supervisor: &Supervisor,
    health: &Health,
) -> anyhow::Result<()> {
    let stores = &parts.stores;
    let alone = stores.kv.name() == "embedded";
    let candidate = Candidate::new(lock(config, &parts, alone).await?);
    let role = health.role(NAME);
    let mut standing = candidate.standing();
    supervisor.spawn("leader's standing", OnExit::Continue, {
        let (role, token, mut standing) = (role.clone(), supervisor.token().clone(), candidate.standing());
        async move {
            while let Some(Ok(())) = token.run_until_cancelled(standing.changed()).await {
                // Who leads says so when its work has begun.
                if let Standing::Follows(by) = &*standing.borrow_and_update() {
                    tracing::info!(by, "another server leads");
                    role.stands_by(format!("ready to take over from {by}"));
                }
            }
            Ok(())
        }
    });
    let (begun, mut begins) = tokio::sync::mpsc::channel(1);
    let work = {
        let config = config.clone();
        move |term: Term, tasks: Supervisor| {
            let (config, parts, role, begun) = (config.clone(), parts.clone(), role.clone(), begun.clone());
            async move {
                begin(&config, parts, term, tasks, role).await?;
                let _ = begun.try_send(()); // only the start waits for it
                Ok(())
            }
        }
    };
    supervisor.spawn("leader", OnExit::Shutdown, lead(candidate, supervisor.clone(), work));
    let known = async {
        tokio::select! {
            _ = begins.recv() => {}
            _ = standing.wait_for(|it| matches!(it, Standing::Follows(_))) => {}
        }
    };
    let known = tokio::time::timeout(KNOWN, known).await;
    known.context("nobody knows who leads: the place of the leader's lock does not answer; see the log above")
}

/// A time of this process begins.
async fn begin(config: &Config, parts: Parts, term: Term, tasks: Supervisor, role: RoleHandle) -> Result<(), BoxError> {
    let Parts { me, deps, peers, stores, instances, pki, storage_use, .. } = parts;
    let fence = Fence::raise(&stores.kv, &stores.metadata, NAME, &me).await?;
    if !term.verify().await {
        return Ok(()); // lost meanwhile: whoever asked sees it
    }
    let (held, leading) = (term.clone(), term.clone());
    let orchestrator = LedOrchestrator::new(instances.orchestrator()?, move || held.holds());
    let leads = Arc::new(move || leading.holds());
    let controller =
        Controller::new(ControllerDeps { metadata: fence.metadata(), kv: fence.kv(), orchestrator, leads, ..deps });
    let (broken, token, breaks) = (fence.broken().clone(), tasks.token().clone(), term.clone());
    tasks.spawn("leader's fence", OnExit::Continue, async move {
        tokio::select! {
            () = broken.cancelled() => breaks.lose(),
            () = token.cancelled() => {}
        }
        Ok(())
    });
    let (ending, led) = (role.clone(), instances.clone());
    lead_instances(&term, &tasks, move |leads| {
        let ends = leads.is_none();
        led.lead(leads);
        if ends {
            ending.stands_by("another server is to lead");
        }
    });
    controller.start(&tasks).await?;
    super::cluster_routes::serve(config, fence.kv(), &stores.secrets, &tasks).await?;
    if stores.kv.name() == "etcd" {
        let (token, kv) = (tasks.token().clone(), stores.kv.clone());
        tasks.spawn("past of the coordination store", OnExit::Continue, async move {
            token.run_until_cancelled(super::history::forget(kv)).await;
            Ok(())
        });
    }
    if !config.kubernetes.node_namespace.is_empty() {
        let (token, instances) = (tasks.token().clone(), instances.clone());
        tasks.spawn("certificate of nodes", OnExit::Continue, async move {
            token.run_until_cancelled(equip_nodes(&instances, &pki)).await;
            Ok(())
        });
    }
    storage_use.follow(instances.storage()?, stores.metadata.clone(), &tasks);
    if let Some(peers) = peers {
        let (token, instances) = (tasks.token().clone(), instances.clone());
        tasks.spawn("after servers that are gone", OnExit::Continue, async move {
            let clear = instances.clear_after(|it| peers.directory().knows(it), || term.holds());
            token.run_until_cancelled(clear).await;
            Ok(())
        });
    }
    tracing::info!(me, "this server leads");
    role.ready();
    Ok(())
}

/// Hands nodes a certificate, again and again, and another one in time.
async fn equip_nodes(instances: &Instances, pki: &Pki) {
    let subject = Subject { name: wire::ROLE.to_owned(), role: wire::ROLE.to_owned(), tenants: Vec::new() };
    let mut held: Option<Leaf> = None;
    loop {
        let handed = async {
            let leaf = match held.take().filter(|it| clock::now() < it.renew_at) {
                Some(leaf) => leaf,
                None => pki.client(&subject)?,
            };
            let leaf = held.insert(leaf);
            let files =
                [("ca.pem", pki.authority_pem()), ("node.pem", &leaf.certificate_pem), ("node.key", &leaf.key_pem)];
            let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
            instances.equip_nodes(files.into()).await
        };
        let pause = match handed.await {
            Ok(()) => EQUIP,
            Err(error) => {
                tracing::warn!(%error, "nodes have no certificate to hand over output with; it is tried again");
                EQUIP_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn lock(config: &Config, parts: &Parts, alone: bool) -> anyhow::Result<Arc<dyn LeaderLock>> {
    let Parts { server, me, stores, .. } = parts;
    let life_s = config.server.leader_lease_s;
    if life_s < LEASE_MIN_S {
        bail!("`server.leader_lease_s` is {life_s}; give at least {LEASE_MIN_S}");
    }
    if config.server.leader_lock == LeaderLockPlace::Kubernetes {
        let lock = LeaseLock::new(&config.kubernetes, "arco-controller", me, life_s).await;
        return Ok(Arc::new(lock.context("failed to reach the Lease of the leader")?));
    }
    // Alone nobody waits to take over, and a machine that stalls for a while changes nothing.
    let life_s = if alone { life_s.max(LEASE_ALONE_S) } else { life_s };
    let lock = KvLock::new(stores.kv.clone(), NAME, me, life_s.into());
    // Store or data dir are this process's alone: whoever held the lock with them is dead.
    let predecessor = format!("{server}-");
    lock.clear(|by| alone || by.starts_with(&predecessor)).await?;
    Ok(Arc::new(lock))
}

/// Refuses to control components that run in another machine's own containers. Asked before anything is made here.
pub(super) async fn may_control(config: &Config, kv: &SharedKv) -> anyhow::Result<()> {
    let local = config.orchestrator.driver == OrchestratorDriver::Local;
    if kv.name() == "embedded" || !local || !config.server.has(Role::Controller) {
        return Ok(());
    }
    own_the_components(kv, &config.server.data_dir).await
}

/// Leads instances from now on, before anything is asked of the orchestrator; undone however this time ends.
fn lead_instances(term: &Term, tasks: &Supervisor, lead: impl Fn(Option<Leads>) + Send + 'static) {
    let leading = term.clone();
    lead(Some(Arc::new(move || leading.holds())));
    let token = tasks.token().clone();
    tasks.spawn("instances of the leader", OnExit::Continue, async move {
        token.cancelled().await;
        lead(None);
        Ok(())
    });
}

/// Containers of one machine are out of reach for every other: the first server that controls them stays the one.
async fn own_the_components(kv: &SharedKv, data_dir: &Path) -> anyhow::Result<()> {
    let path = data_dir.join("owner");
    let id = match std::fs::read_to_string(&path) {
        Ok(id) => id.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = format!("{}:{} {:016x}", super::shared::machine(), data_dir.display(), clock::random());
            write_private(&path, id.as_bytes()).with_context(|| format!("failed to write `{}`", path.display()))?;
            id
        }
        Err(error) => return Err(error).with_context(|| format!("failed to read `{}`", path.display())),
    };
    let key = OWNER.as_bytes().to_vec();
    let txn = Txn {
        compare: vec![Compare::Absent(key.clone())],
        success: vec![Operation::Put { key: key.clone(), value: id.clone().into_bytes(), lease: None }],
        failure: vec![Operation::Get(Range::Key(key))],
    };
    let done = kv.txn(txn).await.context("failed to learn whose containers the components are")?;
    let owner = done.results.iter().flatten().next().map(|it| String::from_utf8_lossy(&it.value).into_owned());
    match owner.filter(|it| !done.succeeded && *it != id) {
        None => Ok(()),
        Some(owner) => {
            let owner = owner.rsplit_once(' ').map_or(owner.as_str(), |it| it.0);
            bail!(
                "the components of these stores run in containers of the server at {owner} (machine:data dir), which alone can control them\n  \
                 leave the role `controller` out here (`--role`), or run components on Kubernetes; if that machine is gone for good: `etcdctl del {OWNER}`"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::kv::MemoryKv;

    #[tokio::test]
    async fn instances_are_let_go_of_also_when_the_time_could_not_begin_wholly() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let candidate = Candidate::new(Arc::new(KvLock::new(kv, NAME, "a", 60)));
        let supervisor = Supervisor::new();
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel::<Option<Leads>>();
        let work = move |term: Term, tasks: Supervisor| {
            let sender = sender.clone();
            async move {
                lead_instances(&term, &tasks, move |leads| drop(sender.send(leads)));
                Err(BoxError::from("what comes after it fails"))
            }
        };
        supervisor.spawn("leader", OnExit::Continue, lead(candidate, supervisor.clone(), work));
        let mut next = async || tokio::time::timeout(KNOWN, told.recv()).await.unwrap().unwrap();
        let leads = next().await.unwrap();
        assert!(next().await.is_none(), "it is told that this time is over");
        assert!(!leads(), "and whoever asks hears it");
        assert!(supervisor.shutdown(KNOWN).await);
    }

    #[tokio::test]
    async fn containers_of_a_machine_have_one_owner() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        own_the_components(&kv, first.path()).await.unwrap();
        let refused = own_the_components(&kv, second.path()).await.unwrap_err().to_string();
        let names_the_owner = refused.contains(&first.path().display().to_string());
        assert!(names_the_owner && refused.contains("etcdctl del"), "{refused}");
        own_the_components(&kv, first.path()).await.unwrap();
        kv.delete(OWNER).await.unwrap();
        own_the_components(&kv, second.path()).await.unwrap();
    }
}
