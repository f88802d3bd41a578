//! One look at one component: fetch → plan → apply → observe → status → publish → settle.

use crate::settle::{View, settle, without_effect};
use crate::traffic::PublishError;
use crate::{Controller, until};
use arco_model::component::{Component, ObservedState, Power, Revision};
use arco_model::id::{ComponentId, OperationId, RevisionId};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::observed::{InstancePhase, Observed, RolloutFacts, ScalingFacts};
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::plan::{self, PlanContext};
use arco_model::spec::VolumeKind;
use arco_model::status::{self, Status, StatusContext, StatusReport};
use arco_store::clock;
use arco_store::kv::KvError;
use arco_store::secrets::SecretError;
use arco_store::sql::{Query, SqlError, Versioned, VolumeRow};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Why a look failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Rows.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Keys.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// What runs instances.
    #[error(transparent)]
    Orchestrator(#[from] arco_orchestrator::Error),
    /// Routing entries.
    #[error("failed to publish routes")]
    Publish(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A secret that a revision names is gone.
    #[error("version {version} of secret `{name}` is missing")]
    Secret {
        /// Its name.
        name: String,
        /// Which version.
        version: u64,
    },
    /// A secret cannot be opened.
    #[error(transparent)]
    Unseal(#[from] SecretError),
}

impl From<PublishError> for ReconcileError {
    fn from(error: PublishError) -> Self {
        Self::Publish(Box::new(error))
    }
}

impl ReconcileError {
    /// The error with its causes, for the log.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(it) = cause {
            text = format!("{text}: {it}");
            cause = it.source();
        }
        text
    }
}

/// What was last written into each operation's log, so that a line comes once.
#[derive(Default)]
pub(crate) struct Notes(Mutex<HashMap<OperationId, String>>);

impl Notes {
    fn is_new(&self, operation: &OperationId, text: &str) -> bool {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.insert(operation.clone(), text.to_owned()).is_none_or(|old| old != text)
    }

    fn forget(&self, operation: &OperationId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(operation);
    }
}

impl Controller {
    /// Looks at a component. Returns when to look again by itself.
    pub(crate) async fn reconcile(&self, id: &ComponentId) -> Result<Option<Duration>, ReconcileError> {
        let Some(row) = self.deps.metadata.get::<Component>(id.as_str()).await? else {
            return self.forget(id).await;
        };
        if let Power::Deleting { keep_volumes } = row.value.power {
            return self.delete(row, keep_volumes).await;
        }
        let component = row.value;
        let revision = match &component.desired_revision {
            Some(revision) => self.revision(revision.as_str()).await?,
            None => None,
        };
        let operations = self.open_operations(&component).await?;
        let mut context = self.context(&component, revision.as_ref(), &operations).await?;
        let mut observed = self.deps.orchestrator.observe(id).await?;
        let mut plan = String::new();
        let mut failed = None;
        if let Some(revision) = &revision {
            self.callers.bind(id, &component.tenant, &revision.spec.bindings);
            let bound = self.bound(&component, revision).await?;
            let inputs = PlanContext {
                already_runs: observed.instances.iter().any(|it| it.revision == revision.id),
                bound: bound.iter().filter_map(|it| it.component.clone()).collect(),
                secrets: self.secrets(revision).await?,
            };
            let wanted = plan::build(&component, revision, &inputs);
            context.waiting_for = bound
                .iter()
                .filter(|it| it.component.as_ref().is_none_or(|it| !it.ready))
                .map(|it| it.reference.clone())
                .collect();
            plan = wanted.fingerprint();
            self.keep_volume_rows(&component, revision).await?;
            if observed.plan != plan {
                // What runs is followed, and operations end in time, also while a plan cannot be taken over.
                failed = self.deps.orchestrator.apply(&wanted).await.err();
                observed = self.deps.orchestrator.observe(id).await?;
            }
        }
        let report = status::decide(&component, &observed, &context);
        let published = self.traffic.publish(&component, revision.as_ref(), &observed, report.status).await?;
        for instance in observed.instances.iter().filter(|it| it.phase == InstancePhase::Draining) {
            self.gateways.drain(&instance.id, published);
        }
        self.gateways_changed().await;
        self.write_observed(&component, &observed, &report).await?;
        let now = clock::now();
        let gateways_follow = self.gateways.applied(published);
        if !gateways_follow && !operations.is_empty() {
            self.gateways.wait_for(&component.id, published);
        }
        let view =
            View { component: &component, observed: &observed, report: &report, plan: &plan, gateways_follow, now };
        let mut again = None;
        for operation in operations {
            match settle(&operation.value, &view) {
                Some((status, problem)) => self.end(operation.value, status, problem, &component).await?,
                None => {
                    self.tell(&operation.value, &view).await;
                    again = sooner(again, until(operation.value.deadline));
                    again = sooner(again, Duration::from_secs(2));
                }
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        let moving = observed.rollout == RolloutFacts::Progressing
            || matches!(report.status, Status::Starting | Status::Stopping);
        Ok(if moving { sooner(again, Duration::from_secs(1)) } else { again })
    }

    async fn context(
        &self,
        component: &Component,
        revision: Option<&Revision>,
        operations: &[Versioned<Operation>],
    ) -> Result<StatusContext, ReconcileError> {
        let building = |it: &Operation| {
            it.kind == OperationKind::Deploy
                && matches!(it.status, OperationStatus::Pending | OperationStatus::Building)
        };
        let building = operations.iter().any(|it| building(&it.value));
        let never_ran = component.desired_revision.is_none() && !building;
        Ok(StatusContext {
            building,
            build_problem: if never_ran { self.build_problem(component).await? } else { None },
            waiting_for: Vec::new(),
            ports: revision.map(|it| it.ports().to_vec()).unwrap_or_default(),
            resources: revision.map(|it| it.spec.resources).unwrap_or_default(),
            start_deadline_ms: revision.map(|it| it.spec.rollout.start_deadline_ms).unwrap_or_default(),
            now: clock::now(),
        })
    }

    /// Writes what was seen, if it says something new.
    pub(crate) async fn write_observed(
        &self,
        component: &Component,
        observed: &Observed,
        report: &StatusReport,
    ) -> Result<(), ReconcileError> {
        let ready = observed.instances.iter().filter(|it| it.phase == InstancePhase::Ready);
        let ready_replicas = ready.clone().count() as u32;
        let serving_revision = serving(component, observed);
        let healthy_revision = status::healthy_revision(component, observed);
        let was_ready = component.observed.ready_replicas > 0;
        let address_changed = component.observed.address != observed.address;
        let scaling = scaling(component, observed);
        self.tell_scaling(component, scaling.as_ref()).await;
        let next = |row: &Component| ObservedState {
            observed_generation: component.generation,
            report: report.clone(),
            ready_replicas,
            serving_revision: serving_revision.clone(),
            healthy_revision: healthy_revision.clone().or_else(|| row.observed.healthy_revision.clone()),
            instances: observed.instances.clone(),
            address: observed.address,
            last_run: row.observed.last_run.clone(),
            scaling: scaling.clone(),
            at: row.observed.at,
        };
        // Nobody else writes these: as long as they say what the row said when it was read, no transaction is begun.
        if next(component) != component.observed {
            let write = |row: &mut Component| {
                let next = next(row);
                let changed = next != row.observed;
                row.observed = ObservedState { at: clock::now(), ..next };
                changed
            };
            self.deps.metadata.modify::<Component>(component.id.as_str(), write).await?;
        }
        if was_ready != (ready_replicas > 0) || address_changed || report.status != component.observed.report.status {
            self.wake_callers(component);
        }
        Ok(())
    }

    /// Says in the component's own log that load asks for another number of instances, and why.
    async fn tell_scaling(&self, component: &Component, now: Option<&ScalingFacts>) {
        let before = component.observed.scaling.as_ref();
        let Some(text) = scaling_line(before, now) else { return };
        tracing::info!(component = %component.id, text, "scaled by load");
        let line = LogLine { at: clock::now(), instance: None, origin: LogOrigin::Platform, text };
        self.deps.logs.append(LogStream::Component { id: component.id.clone() }, vec![line]).await;
    }

    /// Looks at the components that are bound to this one.
    pub(crate) fn wake_callers(&self, component: &Component) {
        let callers = self.callers.of(&component.tenant, &component.application, &component.name);
        callers.into_iter().for_each(|it| self.work.look(it));
    }

    /// Every volume that a revision asks for has a row.
    async fn keep_volume_rows(&self, component: &Component, revision: &Revision) -> Result<(), ReconcileError> {
        let asked: Vec<_> = revision.spec.volumes.iter().filter(|it| it.kind != VolumeKind::Memory).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let present = self.deps.metadata.list::<VolumeRow>(&Query::parent(component.id.as_str())).await?.items;
        for volume in asked {
            match present.iter().find(|it| it.value.name == volume.name) {
                Some(row) if row.value.size_mb >= volume.size_mb => {}
                Some(row) => {
                    let grow = |it: &mut VolumeRow| {
                        it.size_mb = volume.size_mb;
                        true
                    };
                    self.deps.metadata.modify::<VolumeRow>(row.value.id.as_str(), grow).await?;
                }
                None => {
                    let row = VolumeRow::new(component, volume.name.clone(), volume.size_mb);
                    match self.deps.metadata.insert(&row).await {
                        Ok(()) | Err(SqlError::Exists { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends an operation and says so in its log.
    pub(crate) async fn end(
        &self,
        operation: Operation,
        status: OperationStatus,
        problem: Option<arco_model::error::Problem>,
        component: &Component,
    ) -> Result<(), ReconcileError> {
        let now = clock::now();
        let line = match (&status, &problem) {
            (OperationStatus::Succeeded, _) => "done".to_owned(),
            (_, Some(problem)) => format!("{}. {}", problem.message, problem.advice),
            _ => "cancelled".to_owned(),
        };
        // The line first: whoever follows the log sees it before the operation is final.
        let notice = without_effect(self.deps.one_machine, &operation, component);
        let said = |text| LogLine { at: now, instance: None, origin: LogOrigin::Platform, text };
        let lines = notice.into_iter().chain([line]).map(said).collect();
        self.deps.logs.append(LogStream::Operation { id: operation.id.clone() }, lines).await;
        self.deps
            .metadata
            .modify::<Operation>(operation.id.as_str(), |row| {
                if row.status.is_final() {
                    return false;
                }
                row.status = status;
                row.enqueued = true;
                row.problem = problem.clone();
                row.ended_at = Some(now);
                row.rollout_ms = Some(now.since_ms(row.rollout_at.unwrap_or(row.created_at)));
                true
            })
            .await?;
        self.notes.forget(&operation.id);
        Ok(())
    }

    /// Says in an operation's log how far it is, when that is new.
    async fn tell(&self, operation: &Operation, view: &View<'_>) {
        if operation.status != OperationStatus::RollingOut {
            return;
        }
        let asked = view.component.wanted_replicas(view.observed.scaling.as_ref()) as usize;
        let text = match (view.report.status, view.report.reason.as_str()) {
            (_, "") => status::count_ready(view.component, &view.observed.instances, asked),
            // It says itself what is on its way, which is no upgrade when it is the first deploy.
            (Status::Upgrading, reason) => reason.to_owned(),
            (status, reason) => format!("{}: {reason}", status.as_str()),
        };
        if self.notes.is_new(&operation.id, &text) {
            let lines = vec![LogLine { at: view.now, instance: None, origin: LogOrigin::Platform, text }];
            self.deps.logs.append(LogStream::Operation { id: operation.id.clone() }, lines).await;
        }
    }
}

/// What load asks for. Who acts may have forgotten what changed the number last; what was told then stands.
fn scaling(component: &Component, observed: &Observed) -> Option<ScalingFacts> {
    let mut now = observed.scaling.clone()?;
    if let Some(before) = component.observed.scaling.as_ref()
        && now.reason.is_empty()
        && before.replicas == now.replicas
    {
        now.reason.clone_from(&before.reason);
    }
    Some(now)
}

/// What is said when load asks for another number, or cannot be followed any more, or again.
fn scaling_line(before: Option<&ScalingFacts>, now: Option<&ScalingFacts>) -> Option<String> {
    let (before, now) = (before?, now?);
    if now.problem != before.problem {
        return Some(match &now.problem {
            Some(problem) => format!("load is not followed: {problem}"),
            None => "load is followed again".to_owned(),
        });
    }
    if (&now.reason, now.replicas) == (&before.reason, before.replicas) {
        return None;
    }
    match now.reason.as_str() {
        "" => Some(format!("scaled from {} to {}", before.replicas, now.replicas)),
        reason => Some(reason.to_owned()),
    }
}

/// The revision that answers: the desired one once it has a ready instance and the rollout is over, else the one with
/// most ready instances.
fn serving(component: &Component, observed: &Observed) -> Option<RevisionId> {
    let mut counts: HashMap<&RevisionId, usize> = HashMap::new();
    for instance in observed.instances.iter().filter(|it| it.phase == InstancePhase::Ready) {
        *counts.entry(&instance.revision).or_default() += 1;
    }
    let desired = component.desired_revision.as_ref();
    if observed.rollout == RolloutFacts::Done
        && let Some(desired) = desired.filter(|it| counts.contains_key(it))
    {
        return Some(desired.clone());
    }
    counts.into_iter().max_by_key(|(id, count)| (*count, (*id).clone())).map(|(id, _)| id.clone())
}

fn sooner(a: Option<Duration>, b: Duration) -> Option<Duration> {
    Some(a.map_or(b, |a| a.min(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::World;
    use arco_model::sample;
    use arco_model::spec::ComponentKind;
    use arco_model::time::Timestamp;
    use arco_orchestrator::Orchestrator as _;

    #[tokio::test]
    async fn what_runs_is_followed_while_a_plan_cannot_be_taken_over() {
        let world = World::new();
        let component = world.component(ComponentKind::Stateless).await;
        let (controller, id) = (&world.controller, &component.id);
        controller.reconcile(id).await.unwrap();
        let operation = Operation { deadline: Timestamp(1), ..sample::operation(&component, OperationKind::Scale) };
        let rows = &controller.deps.metadata;
        rows.insert(&operation).await.unwrap();
        let more = |it: &mut Component| {
            it.spec.replicas = 2;
            true
        };
        rows.modify::<Component>(id.as_str(), more).await.unwrap();

        world.orchestrator.refuse_plans(Some("the image cannot be read"));
        let instance = world.orchestrator.observe(id).await.unwrap().instances[0].id.clone();
        world.orchestrator.alter(&instance, |it| it.phase = InstancePhase::Unready);
        let error = controller.reconcile(id).await.unwrap_err().chain();
        assert!(error.contains("the image cannot be read"), "{error}");
        let row = world.row(&component).await;
        assert_eq!((row.observed.ready_replicas, row.observed.instances[0].phase), (0, InstancePhase::Unready));
        let ended = rows.get::<Operation>(operation.id.as_str()).await.unwrap().unwrap().value;
        assert_eq!((ended.status, ended.problem.unwrap().code.as_str()), (OperationStatus::Failed, "deadline_passed"));

        world.orchestrator.refuse_plans(None);
        controller.reconcile(id).await.unwrap();
        assert_eq!(world.orchestrator.observe(id).await.unwrap().instances.len(), 2);
    }

    #[test]
    fn each_change_of_the_number_is_told_once() {
        let facts = |replicas, reason: &str, problem: Option<&str>| ScalingFacts {
            replicas,
            reason: reason.into(),
            problem: problem.map(str::to_owned),
        };
        let two = facts(2, "", None);
        for (name, before, now, said) in [
            ("at first", None, Some(&two), None),
            ("nothing new", Some(&two), Some(&two), None),
            ("more", Some(&two), Some(&facts(3, "scaled from 2 to 3: CPU", None)), Some("scaled from 2 to 3: CPU")),
            ("nobody knows why", Some(&two), Some(&facts(4, "", None)), Some("scaled from 2 to 4")),
            ("in vain", Some(&two), Some(&facts(2, "", Some("no metrics"))), Some("load is not followed: no metrics")),
            ("again", Some(&facts(2, "", Some("no metrics"))), Some(&two), Some("load is followed again")),
            ("not by load any more", Some(&two), None, None),
        ] {
            assert_eq!(scaling_line(before, now).as_deref(), said, "{name}");
        }
    }
}
