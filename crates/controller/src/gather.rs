//! Fetches what a plan and a status need.

use crate::{Controller, ReconcileError};
use arco_model::application::Application;
use arco_model::component::{Component, Revision};
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::plan::BoundComponent;
use arco_model::secret::SecretVersion;
use arco_model::status::Status;
use arco_store::secrets::Sealed;
use arco_store::sql::{Query, Versioned};
use std::collections::BTreeMap;

/// A bound component, also when it is missing.
pub(crate) struct Bound {
    /// What the plan needs; absent when the component does not exist (any more).
    pub(crate) component: Option<BoundComponent>,
    /// `application/component`.
    pub(crate) reference: String,
}

impl Controller {
    /// What the bindings of a revision point at.
    pub(crate) async fn bound(&self, component: &Component, revision: &Revision) -> Result<Vec<Bound>, ReconcileError> {
        let mut found = Vec::new();
        for binding in &revision.spec.bindings {
            let reference = format!("{}/{}", binding.application, binding.component);
            let target =
                self.find(component.tenant.as_str(), binding.application.as_str(), binding.component.as_str()).await?;
            let Some(target) = target else {
                found.push(Bound { component: None, reference });
                continue;
            };
            let port = match &target.desired_revision {
                Some(id) => self.revision(id.as_str()).await?.and_then(|it| it.ports().first().copied()),
                None => None,
            };
            let component = BoundComponent {
                alias: binding.alias.clone(),
                host: target.internal_host(),
                port: port.or_else(|| target.spec.ports.first().copied()),
                ready: target.observed.ready_replicas > 0 || target.observed.report.status == Status::Succeeded,
                id: target.id,
            };
            found.push(Bound { component: Some(component), reference });
        }
        Ok(found)
    }

    /// A component by names.
    async fn find(&self, tenant: &str, application: &str, name: &str) -> Result<Option<Component>, ReconcileError> {
        let Some(application) = self.deps.metadata.find::<Application>(tenant, application).await? else {
            return Ok(None);
        };
        let found = self.deps.metadata.find::<Component>(application.value.id.as_str(), name).await?;
        Ok(found.map(|it| it.value))
    }

    /// A revision by id.
    pub(crate) async fn revision(&self, id: &str) -> Result<Option<Revision>, ReconcileError> {
        Ok(self.deps.metadata.get::<Revision>(id).await?.map(|it| it.value))
    }

    /// Values of the secrets that a revision names.
    pub(crate) async fn secrets(&self, revision: &Revision) -> Result<BTreeMap<String, String>, ReconcileError> {
        let mut values = BTreeMap::new();
        for (name, version) in &revision.spec.secrets {
            let key = SecretVersion::row_key(&revision.component_id, name, *version);
            let missing = || ReconcileError::Secret { name: name.clone(), version: *version };
            let row = self.deps.metadata.get::<SecretVersion>(&key).await?.ok_or_else(missing)?.value;
            let sealed = Sealed { key_id: row.key_id.clone(), text: row.sealed.clone() };
            let opened = self.deps.secrets.unseal(&row.context(), &sealed)?;
            values.insert(name.clone(), String::from_utf8(opened).map_err(|_| missing())?);
        }
        Ok(values)
    }

    /// Operations of a component that have not ended, oldest first.
    pub(crate) async fn open_operations(
        &self,
        component: &Component,
    ) -> Result<Vec<Versioned<Operation>>, ReconcileError> {
        let query =
            Query { tags: vec!["open".to_owned(), "outbox".to_owned()], ..Query::parent(component.id.as_str()) };
        Ok(self.deps.metadata.list::<Operation>(&query).await?.items)
    }

    /// Why the newest deploy failed, for components that never ran.
    pub(crate) async fn build_problem(
        &self,
        component: &Component,
    ) -> Result<Option<(String, String)>, ReconcileError> {
        let query = Query { newest_first: true, limit: 10, ..Query::parent(component.id.as_str()) };
        let operations = self.deps.metadata.list::<Operation>(&query).await?.items;
        let deploy = operations.into_iter().map(|it| it.value).find(|it| it.kind == OperationKind::Deploy);
        let problem = deploy.filter(|it| it.status == OperationStatus::Failed).and_then(|it| it.problem);
        Ok(problem.map(|it| (it.message, it.advice)))
    }
}
