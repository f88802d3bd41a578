//! Start, stop, restart: and what is said to who starts again what never worked.

use super::super::Api;
use super::super::error::ApiError;
use super::super::identity::Caller;
use super::Target;
use crate::wire::OperationDocument;
use arco_model::component::Component;
use arco_model::id::RevisionId;
use arco_model::operation::OperationKind;
use arco_model::spec::ComponentKind;
use arco_model::status::Status;

impl Api {
    pub(in super::super) async fn power(
        &self,
        caller: &Caller,
        target: &Target,
        kind: OperationKind,
    ) -> Result<OperationDocument, ApiError> {
        let warning = match kind {
            OperationKind::Stop => None,
            _ => self.unproven_warning(&self.component(target).await?).await?,
        };
        let mut operation = self.one(caller, target, |it| it.power(&target.component, kind)).await?;
        operation.warnings.extend(warning);
        Ok(operation)
    }

    /// Says that what is to run has never become healthy, and what did.
    pub(in super::super) async fn unproven_warning(&self, component: &Component) -> Result<Option<String>, ApiError> {
        let Some((desired, healthy)) = unproven(component) else { return Ok(None) };
        let numbers = (self.number(Some(desired)).await?, self.number(Some(healthy)).await?);
        let (Some(desired), Some(healthy)) = numbers else { return Ok(None) };
        let reference = component.reference();
        Ok(Some(format!(
            "revision {desired} of {reference} has not become healthy, revision {healthy} was the last that did: \
             `arco rollback {reference} {healthy}` goes back to it"
        )))
    }
}

/// The desired revision and the one that was healthy last, when that is another one and no change is on its way.
fn unproven(component: &Component) -> Option<(&RevisionId, &RevisionId)> {
    let observed = &component.observed;
    let waits = matches!(component.spec.kind, ComponentKind::Stateless | ComponentKind::Stateful);
    let seen = observed.observed_generation == component.generation;
    let on_its_way = matches!(observed.report.status, Status::Building | Status::Starting | Status::Upgrading);
    let (desired, healthy) = (component.desired_revision.as_ref()?, observed.healthy_revision.as_ref()?);
    (waits && seen && !on_its_way && desired != healthy).then_some((desired, healthy))
}
