//! Role: brings what runs to what was asked, and tells what it sees.
//!
//! One reconciler per component: `fetch → plan → apply → observe → status → publish → settle`. It takes no input: jobs,
//! the orchestrator's bell and a period only say *look*; every look rereads the whole desired state, so that doing it
//! again, or after a crash, is the same. Judgement is pure and elsewhere (`model::plan`, `model::status`, [`settle`]).
//!
//! Not here: how instances are replaced (the orchestrator's driver), how requests are routed (the gateway).

mod acme;
mod callers;
mod cron;
mod delete;
#[cfg(test)]
mod fixture;
mod gateways;
mod gather;
mod reconcile;
mod retention;
mod settle;
mod tenants;
mod traffic;
mod work;

use arco_config::AcmeConfig;
use arco_daemon::{BoxError, CancellationToken, OnExit, Supervisor};
use arco_model::application::Tenant;
use arco_model::component::Component;
use arco_model::id::{ComponentId, OperationId};
use arco_model::job::Topic;
use arco_model::traffic::STATUS_PREFIX;
use arco_mq::Queue;
use arco_orchestrator::SharedOrchestrator;
use arco_store::clock;
use arco_store::kv::SharedKv;
use arco_store::logs::LogSink;
use arco_store::secrets::SecretBox;
use arco_store::sql::{Kind, Query, SharedMetadata, SqlError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

pub use reconcile::ReconcileError;
pub use retention::Retention;

/// How often everything is looked at although nothing rang.
const PERIOD: Duration = Duration::from_secs(30);
/// Components reconciled at the same time.
const WORKERS: usize = 4;
/// When a job comes again that was given back.
const GIVEN_BACK: Duration = Duration::from_secs(1);

/// What the controller works with.
#[derive(Clone)]
pub struct ControllerDeps {
    /// Rows.
    pub metadata: SharedMetadata,
    /// Where gateways read.
    pub kv: SharedKv,
    /// What runs instances.
    pub orchestrator: SharedOrchestrator,
    /// Whether this process still leads, asked at any time.
    pub leads: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether that is this machine alone, which has no nodes to choose from.
    pub one_machine: bool,
    /// Jobs of topic `controller`.
    pub queue: Queue,
    /// Opens secrets for plans.
    pub secrets: Arc<SecretBox>,
    /// Operations' logs.
    pub logs: LogSink,
    /// Automatic certificates.
    pub acme: AcmeConfig,
    /// Suffix of default hosts.
    pub domain: String,
    /// How long ended operations are kept.
    pub retention: Retention,
    /// Told what is gone, so that others can clean up after it.
    pub gone: mpsc::Sender<Gone>,
}

/// What is gone.
#[derive(Clone, Debug)]
pub enum Gone {
    /// A component was deleted.
    Component(Box<Component>),
    /// An operation is not kept any more.
    Operation(OperationId),
}

/// The role.
#[derive(Clone)]
pub struct Controller {
    deps: Arc<ControllerDeps>,
    work: Arc<work::Work>,
    traffic: Arc<traffic::Publisher>,
    gateways: Arc<gateways::Gateways>,
    notes: Arc<reconcile::Notes>,
    callers: Arc<callers::Callers>,
    crons: Arc<cron::Crons>,
}

impl Controller {
    /// A controller; nothing runs yet.
    pub fn new(deps: ControllerDeps) -> Self {
        let traffic =
            traffic::Publisher::new(deps.kv.clone(), deps.metadata.clone(), deps.secrets.clone(), deps.domain.clone());
        Self {
            work: Arc::default(),
            traffic: Arc::new(traffic),
            gateways: Arc::default(),
            notes: Arc::default(),
            callers: Arc::default(),
            crons: Arc::default(),
            deps: Arc::new(deps),
        }
    }

    /// Starts every loop under `supervisor`.
    pub async fn start(&self, supervisor: &Supervisor) -> Result<(), BoxError> {
        self.traffic.load().await?;
        // Before the first look: who knows no gateway lets go of everything that drains.
        self.gateways.replace(&self.deps.kv.list(STATUS_PREFIX).await?.items);
        // Before the first look as well: what changes after it rings.
        let changes = self.deps.orchestrator.changes();
        let token = supervisor.token().clone();
        for _ in 0..WORKERS {
            supervisor.spawn("controller worker", OnExit::Shutdown, self.clone().worker(token.clone()));
            supervisor.spawn("controller jobs", OnExit::Shutdown, self.clone().jobs(token.clone()));
        }
        supervisor.spawn("controller certificates", OnExit::Shutdown, self.clone().issue(token.clone()));
        supervisor.spawn("controller bell", OnExit::Shutdown, self.clone().bell(changes, token.clone()));
        supervisor.spawn("controller period", OnExit::Shutdown, self.clone().period(token.clone()));
        supervisor.spawn("controller retention", OnExit::Continue, self.clone().forget_operations(token.clone()));
        supervisor.spawn("controller tenants", OnExit::Continue, self.clone().forget_tenants(token.clone()));
        supervisor.spawn("controller gateways", OnExit::Shutdown, self.clone().follow_gateways(token.clone()));
        supervisor.spawn("controller cron", OnExit::Shutdown, self.clone().cron(token, supervisor.clone()));
        Ok(())
    }

    /// Reconciles whatever is due.
    async fn worker(self, token: CancellationToken) -> Result<(), BoxError> {
        loop {
            let item = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                item = self.work.next() => item,
            };
            let again = match self.reconcile(item.id()).await {
                Ok(again) => again,
                Err(error) => {
                    tracing::warn!(component = %item.id(), error = %error.chain(), "reconcile failed, it is tried again");
                    Some(Duration::from_secs(2))
                }
            };
            item.done(again);
        }
    }

    /// Takes jobs: each is one look at its component, or at a deleted tenant, acknowledged when the look is over.
    async fn jobs(self, token: CancellationToken) -> Result<(), BoxError> {
        loop {
            let leased = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                leased = self.deps.queue.lease(Topic::Controller, "controller") => leased,
            };
            let leased = match leased {
                Ok(leased) => leased,
                Err(error) => {
                    tracing::warn!(%error, "taking a job failed");
                    pause(&token, Duration::from_secs(1)).await;
                    continue;
                }
            };
            let key = leased.job().request.key.as_str();
            let (component, tenant) = (key.parse::<ComponentId>().ok(), Tenant::of_removal_key(key));
            let work = async {
                match (component, tenant) {
                    (Some(id), _) => self.work.look_and_wait(id).await,
                    (None, Some(tenant)) => self.forget_tenant(&tenant).await,
                    (None, None) => {}
                }
            };
            tokio::select! {
                () = token.cancelled() => return Ok(()), // unacknowledged: redelivered at the next start
                () = work => {}
            }
            // Who was followed could look, but not act: the job is the next leader's, and whoever waits for it waits on.
            let settled = match (self.deps.leads)() {
                true => leased.ack().await,
                false => leased.postpone(GIVEN_BACK).await,
            };
            if let Err(error) = settled {
                tracing::warn!(%error, "acknowledging a job failed, it comes again");
            }
        }
    }

    /// Looks at what the orchestrator rings for.
    async fn bell(
        self,
        mut changes: broadcast::Receiver<ComponentId>,
        token: CancellationToken,
    ) -> Result<(), BoxError> {
        loop {
            let rung = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                rung = changes.recv() => rung,
            };
            if !self.hear(rung).await {
                return Ok(());
            }
        }
    }

    /// Looks at what was rung for, or at everything when bells were missed; whether there can be more.
    async fn hear(&self, rung: Result<ComponentId, broadcast::error::RecvError>) -> bool {
        match rung {
            Ok(id) => self.work.look(id),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                if let Err(error) = self.look_at_all().await {
                    tracing::warn!(%error, "listing components failed, it is tried again with the next period");
                }
            }
            Err(broadcast::error::RecvError::Closed) => return false,
        }
        true
    }

    /// Looks at everything from time to time: the first time at once, then one after the other over the whole period, so
    /// that a calm platform with many components is never busy with it.
    async fn period(self, token: CancellationToken) -> Result<(), BoxError> {
        let told = |error: SqlError| tracing::warn!(%error, "listing components failed");
        self.look_at_all().await.unwrap_or_else(told);
        while !token.is_cancelled() {
            let all = self.all().await.map_err(told).unwrap_or_default();
            let step = PERIOD / u32::try_from(all.len()).unwrap_or(u32::MAX).max(1);
            if all.is_empty() {
                pause(&token, PERIOD).await;
            }
            for id in all {
                pause(&token, step).await;
                if token.is_cancelled() {
                    break;
                }
                self.work.look(id);
            }
        }
        Ok(())
    }

    async fn look_at_all(&self) -> Result<(), SqlError> {
        self.all().await?.into_iter().for_each(|it| self.work.look(it));
        Ok(())
    }

    /// Every component with a row, and every one of which something still runs.
    async fn all(&self) -> Result<BTreeSet<ComponentId>, SqlError> {
        let rows = self.deps.metadata.list_rows(Kind::Component, &Query::default()).await?.items;
        let mut all: BTreeSet<ComponentId> = rows.into_iter().filter_map(|it| it.key.parse().ok()).collect();
        match self.deps.orchestrator.components().await {
            Ok(found) => all.extend(found),
            Err(error) => tracing::warn!(%error, "listing what runs failed"),
        }
        Ok(all)
    }
}

/// Waits, but not longer than the process lives.
async fn pause(token: &CancellationToken, time: Duration) {
    let _ = tokio::time::timeout(time, token.cancelled()).await;
}

/// Milliseconds from now until `at`, at least 1.
fn until(at: arco_model::time::Timestamp) -> Duration {
    Duration::from_millis(at.since_ms(clock::now()).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::World;
    use arco_model::job::JobRequest;
    use arco_model::spec::ComponentKind;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::broadcast::error::RecvError::{Closed, Lagged};

    #[tokio::test]
    async fn who_missed_bells_looks_at_everything_and_survives_that_it_fails() {
        let world = World::new();
        let component = world.component(ComponentKind::Stateless).await;
        let due = || world.controller.work.take().map(|it| it.id().clone());
        world.rows.take_away(true);
        assert!(world.controller.hear(Err(Lagged(7))).await, "it goes on");
        assert_eq!(due(), None);
        world.rows.take_away(false);
        assert!(world.controller.hear(Err(Lagged(7))).await);
        assert_eq!(due(), Some(component.id));
        assert!(!world.controller.hear(Err(Closed)).await);
    }

    #[tokio::test]
    async fn a_job_that_came_to_who_leads_no_more_is_given_back() {
        let world = World::new();
        let component = world.component(ComponentKind::Stateless).await;
        // From the second time on it leads.
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let leads = Arc::new(move || count.fetch_add(1, Ordering::SeqCst) > 0);
        let controller = Controller::new(ControllerDeps { leads, ..ControllerDeps::clone(&world.controller.deps) });
        let (queue, token) = (controller.deps.queue.clone(), CancellationToken::new());
        let (topic, key) = (Topic::Controller, component.id.to_string());
        queue.enqueue(JobRequest { topic, key, dedup_id: "once".to_owned() }, None).await.unwrap();
        let work =
            async { tokio::join!(controller.clone().worker(token.clone()), controller.clone().jobs(token.clone())) };
        tokio::select! {
            done = tokio::time::timeout(Duration::from_secs(180), queue.passed(topic)) => done.expect("it is done").unwrap(),
            _ = work => panic!("they go on until they are told"),
        }
        assert!(asked.load(Ordering::SeqCst) >= 2, "the first time it was given back");
    }
}
