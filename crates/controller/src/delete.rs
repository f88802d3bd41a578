//! Takes a component away: instances, keys, rows, and the application with its last component.

use crate::{Controller, Gone, ReconcileError};
use arco_model::application::Application;
use arco_model::component::{Component, Revision};
use arco_model::id::ComponentId;
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::secret::SecretVersion;
use arco_orchestrator::Removal;
use arco_store::clock;
use arco_store::sql::{Batch, Entity, Query, RouteRow, StreamRow, Versioned, VolumeRow};

impl Controller {
    /// Ends what runs of a component that has no row (any more).
    pub(crate) async fn forget(&self, id: &ComponentId) -> Result<(), ReconcileError> {
        // Volumes of a component without a row were asked to stay when it was deleted.
        self.deps.orchestrator.remove(id, &Removal::KeepVolumes).await?;
        self.traffic.withdraw(id).await?;
        self.callers.forget(id);
        Ok(())
    }

    /// Deletes a component whose power says so. Every step may be done again.
    pub(crate) async fn delete(
        &self,
        component: Versioned<Component>,
        keep_volumes: bool,
    ) -> Result<(), ReconcileError> {
        let id = component.value.id.clone();
        self.traffic.withdraw(&id).await?;
        self.deps.orchestrator.remove(&id, &Removal::of_component(keep_volumes)).await?;
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
        Ok(())
    }

    async fn collect<T: Entity>(&self, batch: &mut Batch, query: &Query) -> Result<(), ReconcileError> {
        for row in self.deps.metadata.list::<T>(query).await?.items {
            batch.delete(&row);
        }
        Ok(())
    }
}
