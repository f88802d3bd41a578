//! The rows that a decision needs, read at one go, and the loop that decides again when another writer was faster.
//!
//! The controller writes what it sees into component rows all the time, so losing a race is ordinary here. Rules that
//! span rows (hosts, quotas, bindings) hold because one change is decided and written at a time in this process.

use super::Api;
use super::change::Change;
use super::error::ApiError;
use super::identity::Caller;
use arco_model::application::{Application, Tenant};
use arco_model::component::{Component, Power, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::ComponentId;
use arco_model::job::Topic;
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::operation::Operation;
use arco_model::secret::SecretVersion;
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::sql::{Query, RouteRow, Versioned, VolumeRow};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a decision is taken again before the caller is told.
const ATTEMPTS: usize = 50;

/// What a decision is based on.
pub(super) struct World {
    pub(super) now: Timestamp,
    /// Suffix of default hosts.
    pub(super) domain: String,
    /// Longest build, in ms.
    pub(super) build_ms: u64,
    pub(super) tenant: Versioned<Tenant>,
    pub(super) application_name: ApplicationName,
    pub(super) application: Option<Versioned<Application>>,
    /// Every component of the platform.
    pub(super) platform: Vec<Versioned<Component>>,
    /// More about the components that the decision is about.
    pub(super) facts: BTreeMap<ComponentId, Facts>,
    /// Volumes of the tenant.
    pub(super) volumes: Vec<VolumeRow>,
    /// Added hosts of the platform.
    pub(super) routes: Vec<RouteRow>,
}

/// More about one component.
#[derive(Default)]
pub(super) struct Facts {
    /// The desired revision.
    pub(super) revision: Option<Revision>,
    /// The highest version of each secret that was ever set.
    pub(super) secrets: BTreeMap<String, u64>,
    /// Operations that have not ended.
    pub(super) open: Vec<Versioned<Operation>>,
}

impl World {
    async fn load(
        api: &Api,
        tenant: &TenantName,
        application: &ApplicationName,
        only: Option<&ComponentName>,
    ) -> Result<Self, ApiError> {
        let metadata = &api.deps.metadata;
        let tenant =
            metadata.get::<Tenant>(tenant.as_str()).await?.ok_or_else(|| Problem::not_found("tenant", tenant))?;
        let name = tenant.value.name.as_str();
        let found = metadata.find::<Application>(name, application.as_str()).await?;
        let platform = metadata.list::<Component>(&Query::default()).await?.items;
        let volumes = metadata.list::<VolumeRow>(&Query::tag(name)).await?.items;
        let routes = metadata.list::<RouteRow>(&Query::default()).await?.items;
        let mut world = Self {
            now: clock::now(),
            domain: api.deps.config.server.domain.clone(),
            build_ms: api.deps.config.builder.timeout_ms,
            application_name: application.clone(),
            application: found,
            platform,
            facts: BTreeMap::new(),
            volumes: volumes.into_iter().map(|it| it.value).collect(),
            routes: routes.into_iter().map(|it| it.value).collect(),
            tenant,
        };
        let about: Vec<Component> =
            world.siblings().map(|it| it.value.clone()).filter(|it| only.is_none_or(|name| it.name == *name)).collect();
        for component in about {
            world.facts.insert(component.id.clone(), Facts::load(api, &component).await?);
        }
        Ok(world)
    }

    /// Components of the application.
    pub(super) fn siblings(&self) -> impl Iterator<Item = &Versioned<Component>> {
        let application = self.application.as_ref().map(|it| &it.value.id);
        self.platform.iter().filter(move |it| Some(&it.value.application_id) == application)
    }

    /// A component of the application.
    pub(super) fn find(&self, name: &ComponentName) -> Option<&Versioned<Component>> {
        self.siblings().find(|it| it.value.name == *name)
    }

    /// A component of the application that is not being deleted.
    pub(super) fn component(&self, name: &ComponentName) -> Result<&Versioned<Component>, ApiError> {
        let reference = format!("{}/{name}", self.application_name);
        let found = self.find(name).ok_or_else(|| Problem::not_found("component", &reference))?;
        not_deleting(&found.value)?;
        Ok(found)
    }

    /// More about a component; nothing for one that is not there yet.
    pub(super) fn facts(&self, id: &ComponentId) -> &Facts {
        const NONE: &Facts = &Facts { revision: None, secrets: BTreeMap::new(), open: Vec::new() };
        self.facts.get(id).unwrap_or(NONE)
    }
}

/// Fails for a component that is being deleted.
pub(super) fn not_deleting(component: &Component) -> Result<(), Problem> {
    if matches!(component.power, Power::Deleting { .. }) {
        let message = format!("component `{}` is being deleted", component.reference());
        return Err(Problem::new(
            ErrorKind::Conflict,
            "being_deleted",
            message,
            "wait until it is gone (`arco operations`), then try again",
        ));
    }
    Ok(())
}

impl Facts {
    async fn load(api: &Api, component: &Component) -> Result<Self, ApiError> {
        let metadata = &api.deps.metadata;
        let parent = Query::parent(component.id.as_str());
        let revision = match &component.desired_revision {
            Some(id) => metadata.get::<Revision>(id.as_str()).await?.map(|it| it.value),
            None => None,
        };
        let mut secrets = BTreeMap::new();
        for row in metadata.list::<SecretVersion>(&parent).await?.items {
            let highest = secrets.entry(row.value.name).or_insert(0);
            *highest = row.value.version.max(*highest);
        }
        let tags = vec!["open".to_owned(), "outbox".to_owned()];
        let open = metadata.list::<Operation>(&Query { tags, ..parent }).await?.items;
        Ok(Self { revision, secrets, open })
    }
}

impl Api {
    /// Decides on fresh rows until the decision could be written whole; then rings the outbox. `only` is the component
    /// that it is about; without it, all of the application are. Returns the operations in the order they were made.
    pub(super) async fn change<D>(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        application: &ApplicationName,
        only: Option<&ComponentName>,
        decide: D,
    ) -> Result<Vec<Operation>, ApiError>
    where
        D: Fn(&mut Change<'_>) -> Result<(), ApiError> + Send + Sync,
    {
        let turn = self.changing.lock().await?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let world = World::load(self, tenant, application, only).await?;
            let (batch, operations) = {
                let mut change = Change::new(&world, &self.deps.secrets);
                decide(&mut change)?;
                change.finish()?
            };
            if batch.writes.is_empty() {
                return Ok(operations);
            }
            match turn.metadata().commit(batch).await.map_err(ApiError::from) {
                Ok(()) => {
                    drop(turn);
                    self.deps.outbox.notify_one();
                    self.announce(caller, &operations).await;
                    self.show_builds(&operations).await;
                    return Ok(operations);
                }
                Err(error) if error.is_stale() && attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The status of a component that begins to be built changes, and only the controller writes it: it is rung. Without
    /// the bell it would look by itself a little later.
    async fn show_builds(&self, operations: &[Operation]) {
        for operation in operations.iter().filter(|it| it.topic == Topic::Builder) {
            if self.wake(&operation.component_id).await.is_err() {
                tracing::warn!(operation = %operation.id, "the controller was not rung for a new build");
            }
        }
    }

    /// Decides without writing: only says whether it could be done.
    pub(super) async fn try_out<D>(
        &self,
        tenant: &TenantName,
        application: &ApplicationName,
        decide: D,
    ) -> Result<(), ApiError>
    where
        D: Fn(&mut Change<'_>) -> Result<(), ApiError> + Send + Sync,
    {
        let world = World::load(self, tenant, application, None).await?;
        let mut change = Change::new(&world, &self.deps.secrets);
        decide(&mut change)?;
        change.finish().map(drop)
    }

    /// The first line of each operation's log. A log that is far behind must not hold the answer up.
    async fn announce(&self, caller: &Caller, operations: &[Operation]) {
        for operation in operations.iter().filter(|it| !it.status.is_final()) {
            let kind = serde_json::to_value(operation.kind)
                .ok()
                .and_then(|it| it.as_str().map(str::to_owned))
                .unwrap_or_default();
            let text = format!("{kind} of {}/{} asked by {}", operation.application, operation.component, caller.name);
            let line = LogLine { at: clock::now(), instance: None, origin: LogOrigin::Platform, text };
            let stream = LogStream::Operation { id: operation.id.clone() };
            let _ = tokio::time::timeout(Duration::from_millis(200), self.deps.logs.append(stream, vec![line])).await;
        }
    }
}
