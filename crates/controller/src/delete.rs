//! Takes a component away: instances, keys, rows, and the application with its last component.
//!
//! What must hold: what does not go (its node is away, its grace is long) keeps no worker from looking at others.

use crate::settle::{View, settle};
use crate::{Controller, Gone, ReconcileError};
use arco_model::application::Application;
use arco_model::component::{Component, Revision};
use arco_model::id::ComponentId;
use arco_model::observed::Observed;
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::secret::SecretVersion;
use arco_model::status::{self, StatusContext};
use arco_orchestrator::Removal;
use arco_store::clock;
use arco_store::sql::{Batch, Entity, Query, RouteRow, StreamRow, Versioned, VolumeRow};
use std::time::Duration;

/// How long a look waits until what it removes is gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// When it is looked at again after that; news of it ring before.
const AGAIN: Duration = Duration::from_secs(1);
/// Both, where a node that does not answer holds it up.
const HELD_UP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

fn patience(observed: &Observed) -> (Duration, Duration) {
    if observed.instances.iter().any(|it| it.node_silent) { HELD_UP } else { (PATIENCE, AGAIN) }
}

impl Controller {
    /// Ends what runs of a component that has no row (any more). Returns when to look again, if it is not gone yet.
    pub(crate) async fn forget(&self, id: &ComponentId) -> Result<Option<Duration>, ReconcileError> {
        self.traffic.withdraw(id).await?;
        self.callers.forget(id);
        // Volumes of a component without a row were asked to stay when it was deleted.
        self.remove(id, &Removal::KeepVolumes).await
    }

    /// Removes what runs. Returns when to look again, if it is not gone yet.
    async fn remove(&self, id: &ComponentId, what: &Removal) -> Result<Option<Duration>, ReconcileError> {
        let (patience, again) = patience(&self.deps.orchestrator.observe(id).await?);
        match tokio::time::timeout(patience, self.deps.orchestrator.remove(id, what)).await {
            Ok(removed) => {
                removed?;
                Ok(None)
            }
            Err(_) => Ok(Some(again)),
        }
    }

    /// Deletes a component whose power says so. Every step may be done again. Returns when to look again, if it is not gone
    /// yet.
    pub(crate) async fn delete(
        &self,
        component: Versioned<Component>,
        keep_volumes: bool,
    ) -> Result<Option<Duration>, ReconcileError> {
        let id = component.value.id.clone();
        self.traffic.withdraw(&id).await?;
        if let Some(again) = self.remove(&id, &Removal::of_component(keep_volumes)).await? {
            self.held_up(&component.value).await?;
            return Ok(Some(again));
        }
        let parent = Query::parent(id.as_str());
        let mut batch = Batch::default();
        self.collect::<Revision>(&mut batch, &parent).await?;
        self.collect::<SecretVersion>(&mut batch, &parent).await?;
        self.collect::<StreamRow>(&mut batch, &Query::tag(id.as_str())).await?;
        self.collect::<RouteRow>(&mut batch, &Query::tag(id.as_str())).await?;
        if !keep_volumes {
            self.collect::<VolumeRow>(&mut batch, &parent).await?;
        }
        let now = clock::now();
        for mut operation in self.open_operations(&component.value).await? {
            let it: &mut Operation = &mut operation.value;
            it.status =
                if it.kind == OperationKind::Delete { OperationStatus::Succeeded } else { OperationStatus::Cancelled };
            it.enqueued = true;
            it.ended_at = Some(now);
            batch.update(&operation)?;
        }
        batch.delete(&component);
        let application = self.deps.metadata.get::<Application>(component.value.application_id.as_str()).await?;
        let siblings =
            self.deps.metadata.list::<Component>(&Query::parent(component.value.application_id.as_str())).await?;
        if let Some(application) = application
            && siblings.items.iter().all(|it| it.value.id == id)
        {
            batch.delete(&application);
        }
        self.deps.metadata.commit(batch).await?;
        let _ = self.deps.gone.try_send(Gone::Component(Box::new(component.value.clone())));
        self.callers.forget(&id);
        self.wake_callers(&component.value);
        Ok(None)
    }

    /// Says what a deletion waits for. An operation that waited long enough ends; the deletion goes on.
    async fn held_up(&self, component: &Component) -> Result<(), ReconcileError> {
        let (observed, now) = (self.deps.orchestrator.observe(&component.id).await?, clock::now());
        let report = status::decide(component, &observed, &StatusContext { now, ..StatusContext::default() });
        self.write_observed(component, &observed, &report).await?;
        let view = View { component, observed: &observed, report: &report, plan: "", gateways_follow: false, now };
        let open = self.open_operations(component).await?.into_iter().map(|it| it.value);
        for operation in open.filter(|it| it.kind == OperationKind::Delete) {
            if let Some((status, problem)) = settle(&operation, &view) {
                self.end(operation, status, problem, component).await?;
            }
        }
        Ok(())
    }

    async fn collect<T: Entity>(&self, batch: &mut Batch, query: &Query) -> Result<(), ReconcileError> {
        for row in self.deps.metadata.list::<T>(query).await?.items {
            batch.delete(&row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::World;
    use arco_model::component::Power;
    use arco_model::sample;
    use arco_model::spec::ComponentKind;
    use arco_model::time::Timestamp;
    use arco_orchestrator::Orchestrator as _;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_go_is_looked_at_again_and_says_why() {
        let world = World::new();
        let component = world.component(ComponentKind::Stateless).await;
        let (controller, id) = (&world.controller, &component.id);
        controller.reconcile(id).await.unwrap();
        let rows = &controller.deps.metadata;
        let off = |it: &mut Component| {
            it.power = Power::Deleting { keep_volumes: false };
            true
        };
        rows.modify::<Component>(id.as_str(), off).await.unwrap();
        let operation = Operation { deadline: Timestamp(1), ..sample::operation(&component, OperationKind::Delete) };
        rows.insert(&operation).await.unwrap();

        world.orchestrator.hold_removals(true);
        assert_eq!(controller.reconcile(id).await.unwrap(), Some(AGAIN));
        assert_eq!(world.row(&component).await.observed.report.reason, "it is being deleted");
        let ended = rows.get::<Operation>(operation.id.as_str()).await.unwrap().unwrap().value;
        assert_eq!((ended.status, ended.problem.unwrap().code.as_str()), (OperationStatus::Failed, "deadline_passed"));
        let instance = world.orchestrator.observe(id).await.unwrap().instances[0].id.clone();
        world.orchestrator.alter(&instance, |it| {
            (it.node_silent, it.fault) = (true, Some("its node `n1` does not answer".to_owned()));
        });
        assert_eq!(controller.reconcile(id).await.unwrap(), Some(HELD_UP.1));
        let reason = world.row(&component).await.observed.report.reason;
        assert_eq!(reason, "it is being deleted: its node `n1` does not answer");

        world.orchestrator.hold_removals(false);
        assert_eq!(controller.reconcile(id).await.unwrap(), None);
        assert!(rows.get::<Component>(id.as_str()).await.unwrap().is_none());
    }
}
