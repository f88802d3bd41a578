//! Runs cron components at their times: each run is a one-shot workload, never two of a component at once.
//!
//! A time that passed while nothing of the platform ran is made up for once, not for each missed time.

use crate::{Controller, ReconcileError, pause, until};
use arco_daemon::{BoxError, CancellationToken, OnExit, Supervisor};
use arco_model::component::{Component, CronRun, Power};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::plan::{self, OneShot, OneShotNetwork, PlanContext};
use arco_model::spec::{ComponentKind, next_run};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::sql::Query;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How often new and changed schedules are seen.
const LOOK: Duration = Duration::from_secs(10);
/// Longest run: a day.
const RUN_MAX_MS: u64 = 86_400_000;

/// Components whose run has not ended.
#[derive(Default)]
pub(crate) struct Crons(Mutex<HashSet<ComponentId>>);

impl Crons {
    fn begin(&self, id: &ComponentId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone())
    }

    fn end(&self, id: &ComponentId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// The newest time of the schedule that is due and has not been run. Pure.
fn due(component: &Component, now: Timestamp) -> Option<Timestamp> {
    let schedule = component.spec.schedule.as_deref()?;
    let last = component.observed.last_run.as_ref().map_or(component.created_at, |it| it.scheduled_at);
    let mut due = next_run(schedule, last).filter(|it| *it <= now)?;
    // At most a day of missed minutes is stepped over; what is older than that is found from a day ago.
    if now.since_ms(due) > RUN_MAX_MS {
        due = next_run(schedule, Timestamp(now.0 - RUN_MAX_MS)).filter(|it| *it <= now)?;
    }
    while let Some(later) = next_run(schedule, due).filter(|it| *it <= now) {
        due = later;
    }
    Some(due)
}

impl Controller {
    /// Starts runs when they are due.
    pub(crate) async fn cron(self, token: CancellationToken, supervisor: Supervisor) -> Result<(), BoxError> {
        while !token.is_cancelled() {
            let mut sleep = LOOK;
            match self.deps.metadata.list::<Component>(&Query::default()).await {
                Err(error) => tracing::warn!(%error, "listing cron components failed"),
                Ok(page) => {
                    for component in page.items.into_iter().map(|it| it.value) {
                        let runs = component.spec.kind == ComponentKind::Cron && component.power == Power::On;
                        if !runs || component.desired_revision.is_none() {
                            continue;
                        }
                        let now = clock::now();
                        if let Some(at) = due(&component, now) {
                            if self.crons.begin(&component.id) {
                                let this = self.clone();
                                let run = async move {
                                    let outcome = this.run_cron(&component, at).await;
                                    this.crons.end(&component.id);
                                    outcome.map_err(BoxError::from)
                                };
                                supervisor.spawn("cron run", OnExit::Continue, run);
                            }
                        } else if let Some(next) = component.spec.schedule.as_deref().and_then(|it| next_run(it, now)) {
                            sleep = sleep.min(until(next));
                        }
                    }
                }
            }
            pause(&token, sleep).await;
        }
        Ok(())
    }

    async fn run_cron(&self, component: &Component, scheduled_at: Timestamp) -> Result<(), ReconcileError> {
        let Some(revision) = &component.desired_revision else { return Ok(()) };
        let Some(revision) = self.revision(revision.as_str()).await? else { return Ok(()) };
        let bound = self.bound(component, &revision).await?;
        let inputs = PlanContext {
            already_runs: true,
            bound: bound.into_iter().filter_map(|it| it.component).collect(),
            secrets: self.secrets(&revision).await?,
        };
        let template = plan::build(component, &revision, &inputs).template;
        let id: InstanceId = clock::fresh();
        let workload =
            OneShot::of_template(id.clone(), component.tenant.clone(), component.id.clone(), template, RUN_MAX_MS);
        debug_assert_eq!(workload.network, OneShotNetwork::Instance);
        if !self.claim_run(component, scheduled_at).await? {
            return Ok(()); // another controller led when it was due, and ran it
        }
        let (sender, mut output) = mpsc::channel::<arco_orchestrator::OutputLine>(256);
        let (_keep, cancel) = oneshot::channel();
        let stream = LogStream::Component { id: component.id.clone() };
        let forward = async {
            while let Some(line) = output.recv().await {
                let origin = if line.stderr { LogOrigin::Stderr } else { LogOrigin::Stdout };
                let line = LogLine { at: clock::now(), instance: Some(id.clone()), origin, text: line.text };
                self.deps.logs.append(stream.clone(), vec![line]).await;
            }
        };
        let (outcome, ()) = tokio::join!(self.deps.orchestrator.run(&workload, sender, cancel), forward);
        let exit_status = match &outcome {
            Ok(result) => result.exit.status,
            Err(error) => {
                let text = format!("the run of {} could not start: {error}", scheduled_at.rfc3339());
                let line = LogLine { at: clock::now(), instance: Some(id.clone()), origin: LogOrigin::Platform, text };
                self.deps.logs.append(stream, vec![line]).await;
                -1
            }
        };
        self.record_run(
            component,
            CronRun { scheduled_at, ended_at: Some(clock::now()), exit_status: Some(exit_status) },
        )
        .await?;
        self.work.look(component.id.clone());
        Ok(())
    }

    /// Notes that a run begins, unless one of this time or a later one has begun already.
    async fn claim_run(&self, component: &Component, scheduled_at: Timestamp) -> Result<bool, ReconcileError> {
        let mut claimed = false;
        let claim = |row: &mut Component| {
            claimed = row.observed.last_run.as_ref().is_none_or(|it| it.scheduled_at < scheduled_at);
            if claimed {
                row.observed.last_run = Some(CronRun { scheduled_at, ended_at: None, exit_status: None });
            }
            claimed
        };
        Ok(self.deps.metadata.modify::<Component>(component.id.as_str(), claim).await?.is_some() && claimed)
    }

    async fn record_run(&self, component: &Component, run: CronRun) -> Result<(), ReconcileError> {
        let set = |row: &mut Component| {
            row.observed.last_run = Some(run.clone());
            true
        };
        self.deps.metadata.modify::<Component>(component.id.as_str(), set).await?;
        Ok(())
    }
}
