//! What the mutating calls do: each one decision over [`World`](super::world::World), written as one batch.

mod apply;
mod certificate;
mod context;
mod credential;
mod follow;
mod operation;
mod power;
pub(super) mod route;
pub(super) mod scale;
mod stack;
mod stream;
mod tenant;
mod transfer;
mod volume;

pub(super) use context::Revoked;

use super::Api;
use super::change::SecretEdits;
use super::error::ApiError;
use super::identity::Caller;
use super::turn::OurTurn;
use super::world::not_deleting;
use crate::wire::{DeployRequest, OperationDocument, SecretText, SpecPatch};
use arco_model::component::{Component, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::ComponentId;
use arco_model::job::{JobRequest, Topic};
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::operation::{Operation, OperationKind};
use arco_model::source::Source;
use arco_model::spec::ComponentSpec;
use arco_store::clock;
use arco_store::sql::{Batch, Kind, Query, SqlError};

/// How often others may change a component while rows of it are written.
const ATTEMPTS: usize = 100;

/// Which component a call is about.
pub(super) struct Target {
    pub(super) tenant: TenantName,
    pub(super) application: ApplicationName,
    pub(super) component: ComponentName,
}

impl From<(TenantName, ApplicationName, ComponentName)> for Target {
    fn from((tenant, application, component): (TenantName, ApplicationName, ComponentName)) -> Self {
        Self { tenant, application, component }
    }
}

impl Api {
    pub(super) async fn deploy(
        &self,
        caller: &Caller,
        target: &Target,
        request: &DeployRequest,
    ) -> Result<OperationDocument, ApiError> {
        self.source_is_here(caller, target, &request.source).await?;
        names_agree(&request.patch)?;
        self.volumes_fit(target, request.patch.volumes.values().flatten()).await?;
        let edit = |spec: &mut ComponentSpec| request.patch.apply(spec);
        let deploy = |it: &mut super::change::Change<'_>| {
            it.deploy(&target.component, &request.source, &edit, &request.patch.secrets, request.no_cache)
        };
        self.one(caller, target, deploy).await
    }

    pub(super) async fn patch(
        &self,
        caller: &Caller,
        target: &Target,
        patch: &SpecPatch,
    ) -> Result<OperationDocument, ApiError> {
        let edit = |spec: &mut ComponentSpec| patch.apply(spec);
        names_agree(patch)?;
        self.volumes_fit(target, patch.volumes.values().flatten()).await?;
        let cause = cause(patch);
        self.one(caller, target, |it| {
            it.configure(&target.component, OperationKind::Configure, cause, &edit, &patch.secrets)
        })
        .await
    }

    pub(super) async fn set_secret(
        &self,
        caller: &Caller,
        target: &Target,
        name: &str,
        value: Option<SecretText>,
    ) -> Result<OperationDocument, ApiError> {
        let component = self.component(target).await?;
        if value.is_none() && !component.spec.secrets.contains_key(name) {
            return Err(Problem::not_found("secret", name).into());
        }
        let cause = if value.is_some() { "secret set" } else { "secret unset" };
        let secrets = SecretEdits::from([(name.to_owned(), value)]);
        self.one(caller, target, |it| {
            it.configure(&target.component, OperationKind::Configure, cause, &|_| {}, &secrets)
        })
        .await
    }

    pub(super) async fn rollback(
        &self,
        caller: &Caller,
        target: &Target,
        number: Option<u64>,
    ) -> Result<OperationDocument, ApiError> {
        let component = self.component(target).await?;
        let revisions = self.deps.metadata.list::<Revision>(&Query::parent(component.id.as_str())).await?.items;
        let revisions: Vec<Revision> = revisions.into_iter().map(|it| it.value).collect();
        let wanted = rollback_to(&component, &revisions, number)?;
        self.one(caller, target, |it| it.rollback(&target.component, wanted)).await
    }

    pub(super) async fn delete_component(
        &self,
        caller: &Caller,
        target: &Target,
        keep_volumes: bool,
    ) -> Result<OperationDocument, ApiError> {
        let missing = || Problem::not_found("component", format!("{}/{}", target.application, target.component));
        self.one(caller, target, |it| {
            let found = it.world.find(&target.component).ok_or_else(missing)?;
            it.delete(found, keep_volumes)
        })
        .await
    }

    pub(super) async fn delete_application(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        application: &ApplicationName,
        keep_volumes: bool,
    ) -> Result<Vec<OperationDocument>, ApiError> {
        let delete = |it: &mut super::change::Change<'_>| {
            let found: Vec<_> = it.world.siblings().collect();
            if found.is_empty() {
                return Err(Problem::not_found("application", application).into());
            }
            found.into_iter().try_for_each(|component| it.delete(component, keep_volumes))
        };
        let operations = self.change(caller, tenant, application, None, delete).await?;
        Ok(operations.iter().map(OperationDocument::from).collect())
    }

    /// A change of one component, which makes one operation.
    async fn one<D>(&self, caller: &Caller, target: &Target, decide: D) -> Result<OperationDocument, ApiError>
    where
        D: Fn(&mut super::change::Change<'_>) -> Result<(), ApiError> + Send + Sync,
    {
        let operations =
            self.change(caller, &target.tenant, &target.application, Some(&target.component), decide).await?;
        let first: Option<&Operation> = operations.first();
        first.map(OperationDocument::from).ok_or_else(|| Problem::internal("note an operation").into())
    }

    /// Writes new rows that belong to a component. The controller removes what there is of them together with it, so they are
    /// written only while it is there and is to stay.
    async fn commit_for(&self, turn: &OurTurn, component: &Component, batch: Batch) -> Result<(), ApiError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let found = self.deps.metadata.get::<Component>(component.id.as_str()).await?;
            let found = found.ok_or_else(|| Problem::not_found("component", component.reference()))?;
            not_deleting(&found.value)?;
            let mut batch = batch.clone();
            batch.check(&found);
            match turn.metadata().commit(batch).await {
                Err(SqlError::Conflict { kind: Kind::Component, .. }) if attempts < ATTEMPTS => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// An upload has arrived for the tenant before anything is built from it.
    async fn source_is_here(&self, caller: &Caller, target: &Target, source: &Source) -> Result<(), ApiError> {
        let Source::Upload { digest, .. } = source else { return Ok(()) };
        let mut found = self.find_upload(caller, &target.tenant, digest).await?;
        if found.is_none() {
            found = self.find_former_source(target, digest).await?;
        }
        match found {
            Some(_) => Ok(()),
            None => {
                let message = format!("the upload {digest} is not here");
                Err(Problem::new(ErrorKind::NotFound, "upload_missing", message, "upload the archive, then deploy it")
                    .into())
            }
        }
    }

    /// Lets the controller look at a component although no operation was written.
    pub(super) async fn wake(&self, component: &ComponentId) -> Result<(), ApiError> {
        let unique: arco_model::id::RowId = clock::fresh();
        let request = JobRequest { topic: Topic::Controller, key: component.to_string(), dedup_id: unique.to_string() };
        self.deps.queue.enqueue(request, None).await?;
        Ok(())
    }
}

/// Volumes, files and bindings stand under their own names.
fn names_agree(patch: &SpecPatch) -> Result<(), Problem> {
    let volumes =
        patch.volumes.iter().find(|(name, it)| it.as_ref().is_some_and(|it| it.name.as_str() != name.as_str()));
    let bindings = patch.bindings.iter().find(|(alias, it)| it.as_ref().is_some_and(|it| it.alias != **alias));
    let files = patch.files.iter().find(|(path, it)| it.as_ref().is_some_and(|it| it.path != **path));
    let names = [volumes.map(|it| it.0), files.map(|it| it.0), bindings.map(|it| it.0)];
    match names.into_iter().flatten().next() {
        Some(name) => Err(Problem::invalid(
            "patch_invalid",
            format!("`{name}` stands for something of another name"),
            "use the same name in both places",
        )),
        None => Ok(()),
    }
}

/// What made a revision, in the words of the command line.
fn cause(patch: &SpecPatch) -> &'static str {
    let rest = |other: &SpecPatch| *patch == *other;
    if rest(&SpecPatch { env: patch.env.clone(), ..SpecPatch::default() }) {
        if patch.env.values().all(Option::is_none) { "env unset" } else { "env set" }
    } else if rest(&SpecPatch { secrets: patch.secrets.clone(), ..SpecPatch::default() }) {
        "secret set"
    } else if rest(&SpecPatch { bindings: patch.bindings.clone(), ..SpecPatch::default() }) {
        if patch.bindings.values().all(Option::is_none) { "unbind" } else { "bind" }
    } else if rest(&SpecPatch { volumes: patch.volumes.clone(), ..SpecPatch::default() }) {
        "volume"
    } else if rest(&SpecPatch { files: patch.files.clone(), ..SpecPatch::default() }) {
        if patch.files.values().all(Option::is_none) { "file unset" } else { "file set" }
    } else {
        "configure"
    }
}

/// The asked revision, else the newest one older than the desired.
fn rollback_to<'r>(
    component: &Component,
    revisions: &'r [Revision],
    number: Option<u64>,
) -> Result<&'r Revision, Problem> {
    let reference = component.reference();
    let advice = format!("`arco revisions {reference}` lists them");
    let desired = revisions.iter().find(|it| Some(&it.id) == component.desired_revision.as_ref());
    let wanted = match number {
        Some(number) => revisions.iter().find(|it| it.number == number),
        None => revisions
            .iter()
            .filter(|it| desired.is_some_and(|desired| it.number < desired.number))
            .max_by_key(|it| it.number),
    };
    match (wanted, number) {
        (Some(wanted), _) if Some(&wanted.id) == component.desired_revision.as_ref() => {
            let message = format!("`{reference}` is at revision {} already", wanted.number);
            Err(Problem::new(ErrorKind::Conflict, "revision_is_desired", message, advice))
        }
        (Some(wanted), _) => Ok(wanted),
        (None, Some(number)) => {
            let message = format!("`{reference}` has no revision {number}");
            Err(Problem::new(ErrorKind::NotFound, "revision_not_found", message, advice))
        }
        (None, None) => {
            let message = format!("`{reference}` has no revision before the present one");
            Err(Problem::new(ErrorKind::Conflict, "no_older_revision", message, advice))
        }
    }
}
