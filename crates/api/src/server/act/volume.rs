//! Volumes that nothing uses: kept when their component was deleted, or not named by it any more.

use super::super::Api;
use super::super::error::ApiError;
use arco_model::component::{Component, Power, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::{RevisionId, RowId};
use arco_model::name::{TenantName, VolumeName};
use arco_orchestrator::Removal;
use arco_store::sql::{Batch, Query, VolumeRow};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a volume may take to go: meanwhile it is nobody else's turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// On a cluster a volume goes after the last pod that has it.
fn still_used(row: &VolumeRow) -> Problem {
    Problem::new(
        ErrorKind::Conflict,
        "volume_still_used",
        format!(
            "volume `{}` of `{}/{}` is to go, but something still has it",
            row.name, row.application, row.component
        ),
        "let one-off runs of the component end (`arco run`), start a node that does not answer again, then delete the volume again",
    )
}

impl Api {
    /// Names of the volumes of a component that are asked for, or that a revision has which serves, will serve or still
    /// has an instance. An older revision gets such a volume anew when somebody goes back to it.
    pub(in super::super) async fn volumes_in_use(
        &self,
        component: &Component,
    ) -> Result<BTreeSet<VolumeName>, ApiError> {
        let mut used: BTreeSet<VolumeName> = component.spec.volumes.iter().map(|it| it.name.clone()).collect();
        let observed = &component.observed;
        let revisions: BTreeSet<&RevisionId> = observed
            .instances
            .iter()
            .map(|it| &it.revision)
            .chain(&observed.serving_revision)
            .chain(&component.desired_revision)
            .collect();
        for id in revisions {
            let revision = self.deps.metadata.get::<Revision>(id.as_str()).await?;
            used.extend(revision.into_iter().flat_map(|it| it.value.spec.volumes).map(|it| it.name));
        }
        Ok(used)
    }

    /// Deletes a volume that nothing uses, with its content.
    pub(in super::super) async fn delete_volume(&self, tenant: &TenantName, id: &str) -> Result<(), ApiError> {
        let turn = self.changing.lock().await?;
        let missing = || Problem::not_found("volume", id);
        let id: RowId = id.parse().map_err(|_| missing())?;
        let mut found = self
            .deps
            .metadata
            .get::<VolumeRow>(id.as_str())
            .await?
            .filter(|it| it.value.tenant == *tenant)
            .ok_or_else(missing)?;
        let owner = &found.value.component_id;
        let component = self.deps.metadata.get::<Component>(owner.as_str()).await?;
        let lives = component.is_some();
        if let Some(component) = component
            && (matches!(component.value.power, Power::Deleting { .. })
                || self.volumes_in_use(&component.value).await?.contains(&found.value.name))
        {
            let reference = component.value.reference();
            let name = &found.value.name;
            let message = format!("volume `{name}` belongs to `{reference}`");
            let advice = format!(
                "take it away first (`arco volume remove {reference} {name}`), or delete all: `arco delete {reference}`"
            );
            return Err(Problem::new(ErrorKind::Conflict, "volume_in_use", message, advice).into());
        }
        let siblings = self.deps.metadata.list::<VolumeRow>(&Query::parent(owner.as_str())).await?.items;
        let alone = lives || siblings.len() > 1;
        let what = if alone { Removal::Volume(found.value.name.clone()) } else { Removal::Everything };
        // What is destroyed does not come back: only while it is our turn, and the row is still as it was read.
        turn.metadata().update(&found).await?;
        found.version += 1;
        let removal = self.deps.orchestrator.remove(&found.value.component_id, &what);
        match tokio::time::timeout(PATIENCE, removal).await {
            Ok(removed) => removed?,
            Err(_) => return Err(still_used(&found.value).into()),
        }
        let mut batch = Batch::default();
        batch.delete(&found);
        Ok(turn.metadata().commit(batch).await?)
    }
}
