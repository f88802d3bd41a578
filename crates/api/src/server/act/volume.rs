//! Volumes that were kept when their component was deleted.

use super::super::Api;
use super::super::error::ApiError;
use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::RowId;
use arco_model::name::TenantName;
use arco_orchestrator::Removal;
use arco_store::sql::{Batch, Query, VolumeRow};

impl Api {
    /// Deletes a kept volume with its content.
    pub(in super::super) async fn delete_volume(&self, tenant: &TenantName, id: &str) -> Result<(), ApiError> {
        let _one_at_a_time = self.changing.lock().await?;
        let missing = || Problem::not_found("volume", id);
        let id: RowId = id.parse().map_err(|_| missing())?;
        let found = self
            .deps
            .metadata
            .get::<VolumeRow>(id.as_str())
            .await?
            .filter(|it| it.value.tenant == *tenant)
            .ok_or_else(missing)?;
        let owner = &found.value.component_id;
        if let Some(component) = self.deps.metadata.get::<Component>(owner.as_str()).await? {
            let reference = component.value.reference();
            let message = format!("volume `{}` belongs to `{reference}`", found.value.name);
            let advice = format!("its content goes with the component: `arco delete {reference}`");
            return Err(Problem::new(ErrorKind::Conflict, "volume_in_use", message, advice).into());
        }
        let siblings = self.deps.metadata.list::<VolumeRow>(&Query::parent(owner.as_str())).await?.items;
        let what = if siblings.len() > 1 { Removal::Volume(found.value.name.clone()) } else { Removal::Everything };
        self.deps.orchestrator.remove(owner, &what).await?;
        let mut batch = Batch::default();
        batch.delete(&found);
        Ok(self.deps.metadata.commit(batch).await?)
    }
}
