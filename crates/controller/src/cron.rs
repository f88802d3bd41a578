//! Runs cron components at their times: each run is a one-shot workload, never two of a component at once in one process.
//!
//! A time that passed while nothing of the platform ran is made up for once, not for each missed time. A run ends with the
//! time of the leader that began it ([`LAST`] later at most); what the next one finds without an end was cut off.

use crate::{Controller, ReconcileError, pause, until};
use arco_daemon::{BoxError, CancellationToken, OnExit, Supervisor};
use arco_model::component::{Component, CronRun, Power};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::plan::{self, OneShot, OneShotNetwork, PlanContext};
use arco_model::spec::{ComponentKind, next_run};
use arco_model::time::Timestamp;
use arco_orchestrator::{Error, OneShotResult};
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
/// How long a run may go on once its leader is to lead no more: what is nearly done gets to its end.
const LAST: Duration = Duration::from_secs(5);

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

    fn holds(&self, id: &ComponentId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// How a run ended.
#[derive(Clone, Debug, Eq, PartialEq)]
enum End {
    /// By itself, with this status.
    Exited(i32),
    /// It took longer than it may; with this status.
    OverTime(i32),
    /// With the leader that began it.
    CutOff,
    /// It did not begin.
    NotStarted(String),
}

impl End {
    /// `cut`: it was told to end because its leader does.
    fn of(outcome: &Result<OneShotResult, Error>, cut: bool) -> Self {
        match outcome {
            Ok(it) if it.timed_out => Self::OverTime(it.exit.status),
            Ok(it) if it.exit.asked => Self::CutOff,
            Ok(it) => Self::Exited(it.exit.status),
            Err(_) if cut => Self::CutOff,
            Err(error) => Self::NotStarted(error.to_string()),
        }
    }

    /// What the component remembers of it; no status when it was cut off.
    fn status(&self) -> Option<i32> {
        match self {
            Self::Exited(status) | Self::OverTime(status) => Some(*status),
            Self::CutOff => None,
            Self::NotStarted(_) => Some(-1),
        }
    }

    /// The line in the log of the component.
    fn told(&self, scheduled_at: Timestamp, took_ms: u64) -> String {
        let (run, seconds) = (format!("the run of {}", scheduled_at.rfc3339()), took_ms.div_ceil(1000));
        match self {
            Self::Exited(0) => format!("{run} succeeded after {seconds} s"),
            Self::Exited(status) => format!("{run} ended with status {status} after {seconds} s"),
            Self::OverTime(_) => format!("{run} was ended: it took longer than {} s", RUN_MAX_MS / 1000),
            Self::CutOff => format!("{run} was cut off: the server that ran it ends, or leads no more"),
            Self::NotStarted(why) => format!("{run} could not start: {why}"),
        }
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

/// The time of a run that has begun and has no end.
fn open_run(component: &Component) -> Option<Timestamp> {
    component.observed.last_run.as_ref().filter(|it| it.ended_at.is_none()).map(|it| it.scheduled_at)
}

/// The end of the time in which a run may go on.
async fn over(leads: &CancellationToken) {
    leads.cancelled().await;
    tokio::time::sleep(LAST).await;
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
                        if let Some(lost) = open_run(&component).filter(|_| !self.crons.holds(&component.id)) {
                            self.close_run(&component, lost).await;
                        }
                        let runs = component.spec.kind == ComponentKind::Cron && component.power == Power::On;
                        if !runs || component.desired_revision.is_none() {
                            continue;
                        }
                        let now = clock::now();
                        if let Some(at) = due(&component, now) {
                            if self.crons.begin(&component.id) {
                                let this = self.clone();
                                let leads = token.clone();
                                let run = async move {
                                    let outcome = this.run_cron(&component, at, &leads).await;
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

    async fn run_cron(
        &self,
        component: &Component,
        scheduled_at: Timestamp,
        leads: &CancellationToken,
    ) -> Result<(), ReconcileError> {
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
        let (keep, cancel) = oneshot::channel();
        let stream = LogStream::Component { id: component.id.clone() };
        let forward = async {
            while let Some(line) = output.recv().await {
                let origin = if line.stderr { LogOrigin::Stderr } else { LogOrigin::Stdout };
                let line = LogLine { at: clock::now(), instance: Some(id.clone()), origin, text: line.text };
                self.deps.logs.append(stream.clone(), vec![line]).await;
            }
        };
        let begun = clock::now();
        let running = async { tokio::join!(self.deps.orchestrator.run(&workload, sender, cancel), forward).0 };
        tokio::pin!(running);
        let end = tokio::select! {
            outcome = &mut running => End::of(&outcome, false),
            () = over(leads) => {
                drop(keep); // ends it
                End::of(&running.await, true)
            }
        };
        let now = clock::now();
        let text = end.told(scheduled_at, now.since_ms(begun));
        let line = LogLine { at: now, instance: Some(id.clone()), origin: LogOrigin::Platform, text };
        self.deps.logs.append(stream.clone(), vec![line]).await;
        let run = CronRun { scheduled_at, ended_at: Some(now), exit_status: end.status() };
        self.record_run(component, run).await?;
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

    /// Notes that a run which nobody runs any more has ended, unless its end was noted meanwhile.
    async fn close_run(&self, component: &Component, scheduled_at: Timestamp) {
        let now = clock::now();
        let mut closed = false;
        let close = |row: &mut Component| {
            closed = open_run(row) == Some(scheduled_at);
            if let Some(run) = row.observed.last_run.as_mut().filter(|_| closed) {
                run.ended_at = Some(now);
            }
            closed
        };
        match self.deps.metadata.modify::<Component>(component.id.as_str(), close).await {
            Err(error) => tracing::warn!(%error, component = %component.id, "a run that was cut off is noted later"),
            Ok(found) if found.is_some() && closed => {
                let text = End::CutOff.told(scheduled_at, 0);
                let line = LogLine { at: now, instance: None, origin: LogOrigin::Platform, text };
                self.deps.logs.append(LogStream::Component { id: component.id.clone() }, vec![line]).await;
                self.work.look(component.id.clone());
            }
            Ok(_) => {}
        }
    }

    /// Notes how a run ended, unless another controller, which leads by now, has begun a later one.
    async fn record_run(&self, component: &Component, run: CronRun) -> Result<(), ReconcileError> {
        let set = |row: &mut Component| {
            let newest = row.observed.last_run.as_ref().is_none_or(|it| it.scheduled_at <= run.scheduled_at);
            if newest {
                row.observed.last_run = Some(run.clone());
            }
            newest
        };
        self.deps.metadata.modify::<Component>(component.id.as_str(), set).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
