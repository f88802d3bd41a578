//! One change of some components: collects the rows of one batch, then checks every rule on the state that it leads to.
//!
//! What must hold: a change raises the component's generation; what changes how instances run makes a revision, when
//! there is an artifact; each touched component gets exactly one operation; secret values leave here sealed.

use super::act::scale::follows_load;
use super::error::ApiError;
use super::rules::After;
use super::world::World;
use crate::wire::SecretText;
use arco_model::application::Application;
use arco_model::component::{Component, ObservedState, Power, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::ComponentId;
use arco_model::job::Topic;
use arco_model::name::ComponentName;
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::secret::SecretVersion;
use arco_model::source::Source;
use arco_model::spec::{self, ComponentSpec, VolumeKind, VolumeSpec};
use arco_store::clock;
use arco_store::secrets::SecretBox;
use arco_store::sql::{Batch, Versioned, VolumeRow};
use std::collections::{BTreeMap, BTreeSet};

/// What a rollout may take beside the instances' own deadlines, in ms.
const ROLLOUT_SLACK_MS: u64 = 60_000;

/// How a spec is edited; the same edit is made on what is asked and on what runs.
pub(super) type Edit<'e> = &'e (dyn Fn(&mut ComponentSpec) + Send + Sync);

/// Secrets to set (with a value) or to remove.
pub(super) type SecretEdits = BTreeMap<String, Option<SecretText>>;

/// A change in the making.
pub(super) struct Change<'w> {
    pub(super) world: &'w World,
    keys: &'w SecretBox,
    batch: Batch,
    operations: Vec<Operation>,
    after: BTreeMap<ComponentId, Component>,
    created: BTreeSet<ComponentId>,
    application: Option<Application>,
}

impl<'w> Change<'w> {
    pub(super) fn new(world: &'w World, keys: &'w SecretBox) -> Self {
        Self {
            world,
            keys,
            batch: Batch::default(),
            operations: Vec::new(),
            after: BTreeMap::new(),
            created: BTreeSet::new(),
            application: None,
        }
    }

    /// Builds `source` and rolls it out; application and component are made as needed.
    pub(super) fn deploy(
        &mut self,
        name: &ComponentName,
        source: &Source,
        edit: Edit<'_>,
        secrets: &SecretEdits,
        no_cache: bool,
    ) -> Result<(), ApiError> {
        let found = self.world.find(name);
        let mut component = match found {
            Some(found) => {
                super::world::not_deleting(&found.value)?;
                self.refuse_second_build(&found.value)?;
                found.value.clone()
            }
            None => self.create(name, source)?,
        };
        component.spec.source = source.clone();
        edit(&mut component.spec);
        for (name, version) in self.seal(&component, secrets)? {
            set_version(&mut component.spec, &name, version);
        }
        check(found.map(|it| &it.value), &component, &self.world.volumes)?;
        component.generation += 1;
        component.power = Power::On;
        (component.arriving, component.arriving_places) = (None, 0);
        let mut operation = self.operation(&component, OperationKind::Deploy);
        operation.topic = Topic::Builder;
        operation.status = OperationStatus::Pending;
        operation.rollout_at = None;
        operation.no_cache = no_cache;
        operation.deadline = operation.deadline.plus_ms(2 * self.world.build_ms);
        self.put(found, component, operation)
    }

    /// Changes what is asked, and with it what runs.
    pub(super) fn configure(
        &mut self,
        name: &ComponentName,
        kind: OperationKind,
        cause: &str,
        edit: Edit<'_>,
        secrets: &SecretEdits,
    ) -> Result<(), ApiError> {
        let found = self.world.component(name)?;
        let mut component = found.value.clone();
        let versions = self.seal(&component, secrets)?;
        let whole = |spec: &mut ComponentSpec| {
            edit(spec);
            for (name, version) in &versions {
                set_version(spec, name, *version);
            }
        };
        whole(&mut component.spec);
        check(Some(&found.value), &component, &self.world.volumes)?;
        if component.spec == found.value.spec {
            let operation = done(self.operation(&found.value, kind), self.world);
            self.note(operation)?;
            return Ok(());
        }
        component.generation += 1;
        let mut operation = self.operation(&component, kind);
        match &self.world.facts(&component.id).revision {
            // Nothing runs: the next deploy brings it about.
            None => operation = done(operation, self.world),
            Some(old) => {
                let mut spec = old.spec.clone();
                whole(&mut spec);
                if runs_differently(&old.spec, &spec) {
                    let revision = self.revision(&mut component, old, spec, cause, &operation);
                    operation.revision = Some(revision.id.clone());
                    operation.revision_number = Some(revision.number);
                    self.batch.insert(&revision)?;
                }
            }
        }
        self.put(Some(found), component, operation)
    }

    /// Lets it run, ends it, or replaces its instances.
    pub(super) fn power(&mut self, name: &ComponentName, kind: OperationKind) -> Result<(), ApiError> {
        let found = self.world.component(name)?;
        let mut component = found.value.clone();
        component.generation += 1;
        (component.arriving, component.arriving_places) = (None, 0);
        component.power = if kind == OperationKind::Stop { Power::Off } else { Power::On };
        if kind == OperationKind::Restart {
            component.restarts_asked += 1;
        }
        let mut operation = self.operation(&component, kind);
        if component.desired_revision.is_none() {
            operation = done(operation, self.world);
        }
        self.put(Some(found), component, operation)
    }

    /// Serves an older revision again, with as many instances as are asked now.
    pub(super) fn rollback(&mut self, name: &ComponentName, revision: &Revision) -> Result<(), ApiError> {
        let found = self.world.component(name)?;
        let mut component = found.value.clone();
        component.generation += 1;
        let ComponentSpec { replicas, autoscaling, .. } = component.spec;
        component.spec = ComponentSpec { replicas, autoscaling, ..revision.spec.clone() };
        component.desired_revision = Some(revision.id.clone());
        let mut operation = self.operation(&component, OperationKind::Rollback);
        operation.revision = Some(revision.id.clone());
        operation.revision_number = Some(revision.number);
        self.put(Some(found), component, operation)
    }

    /// Makes a component as it was elsewhere. It does not run before somebody starts it, so there is nothing to wait for.
    /// Its id is told before anything is written: secrets are sealed for it.
    pub(super) fn arrive(
        &mut self,
        name: &ComponentName,
        source: &Source,
        fill: impl FnOnce(&mut Component) -> Result<(Option<Revision>, Vec<SecretVersion>), ApiError>,
    ) -> Result<(), ApiError> {
        let kept = |it: &&VolumeRow| it.application == self.world.application_name && it.component == *name;
        if let Some(kept) = self.world.volumes.iter().find(kept) {
            let reference = format!("{}/{name}", kept.application);
            let message = format!("volume `{}` of a former `{reference}` is kept here", kept.name);
            let advice = format!("delete it (`arco volume delete {}`), then import again", kept.id);
            return Err(Problem::new(ErrorKind::Conflict, "volume_kept", message, advice).into());
        }
        let mut component = self.create(name, source)?;
        component.power = Power::Off;
        let (revision, secrets) = fill(&mut component)?;
        check(None, &component, &self.world.volumes)?;
        if let Some(revision) = &revision {
            spec::validate(&revision.spec)?;
            self.batch.insert(revision)?;
        }
        for secret in &secrets {
            self.batch.insert(secret)?;
        }
        self.batch.insert(&component)?;
        self.after.insert(component.id.clone(), component);
        Ok(())
    }

    /// Removes a component; a deletion that goes on already is the answer again.
    pub(super) fn delete(&mut self, found: &Versioned<Component>, keep_volumes: bool) -> Result<(), ApiError> {
        let open = &self.world.facts(&found.value.id).open;
        if matches!(found.value.power, Power::Deleting { .. })
            && let Some(already) = open.iter().find(|it| it.value.kind == OperationKind::Delete)
        {
            self.operations.push(already.value.clone());
            return Ok(());
        }
        for build in open.iter().filter(|it| builds(&it.value)) {
            let mut build = build.clone();
            build.value.cancel_asked = true;
            self.batch.update(&build)?;
        }
        let mut component = found.value.clone();
        component.generation += 1;
        component.power = Power::Deleting { keep_volumes };
        let operation = self.operation(&component, OperationKind::Delete);
        self.put(Some(found), component, operation)
    }

    /// The rows, if every rule holds on what they lead to.
    pub(super) fn finish(mut self) -> Result<(Batch, Vec<Operation>), ApiError> {
        let world = self.world;
        let before: Vec<&Component> = world.platform.iter().map(|it| &it.value).collect();
        let mut all: Vec<&Component> = before.iter().map(|it| self.after.get(&it.id).unwrap_or(it)).collect();
        all.extend(self.after.values().filter(|it| self.created.contains(&it.id)));
        let after = After { all, changed: self.after.keys().collect(), created: self.created.iter().collect() };
        after.hosts(&world.domain, &world.routes)?;
        after.bindings(&world.tenant.value.name)?;
        after.deletions(&world.tenant.value.name)?;
        after.quota(&world.tenant.value, &before)?;
        if let Some(application) = &self.application {
            self.batch.insert(application)?;
        } else if let (Some(application), false) = (&world.application, self.created.is_empty()) {
            // The controller removes an application with its last component, if the row is as it was when it looked for others.
            self.batch.update(application)?;
        }
        Ok((self.batch, self.operations))
    }

    fn create(&mut self, name: &ComponentName, source: &Source) -> Result<Component, ApiError> {
        let world = self.world;
        let application = match (&world.application, &self.application) {
            (Some(found), _) => found.value.clone(),
            (None, Some(made)) => made.clone(),
            (None, None) => {
                let (tenant, name) = (world.tenant.value.name.clone(), world.application_name.clone());
                self.application.insert(Application { id: clock::fresh(), tenant, name, created_at: world.now }).clone()
            }
        };
        // Volumes that were kept when a component of this name was deleted lie under its id: it gets them back.
        let kept = world.volumes.iter().find(|it| {
            it.application == application.name
                && it.component == *name
                && !world.platform.iter().any(|other| other.value.id == it.component_id)
        });
        let id = kept.map_or_else(clock::fresh, |it| it.component_id.clone());
        self.created.insert(id.clone());
        Ok(Component {
            id,
            tenant: application.tenant,
            application_id: application.id,
            application: application.name,
            name: name.clone(),
            spec: ComponentSpec::new(source.clone()),
            generation: 0,
            power: Power::On,
            restarts_asked: 0,
            desired_revision: None,
            last_revision_number: 0,
            observed: ObservedState::default(),
            created_at: world.now,
            arriving: None,
            arriving_places: 0,
        })
    }

    fn refuse_second_build(&self, component: &Component) -> Result<(), ApiError> {
        let Some(open) = self.world.facts(&component.id).open.iter().find(|it| builds(&it.value)) else {
            return Ok(());
        };
        let message = format!("`{}` is being built already by operation {}", component.reference(), open.value.id);
        let advice = format!("wait for it, or end it with `arco operation cancel {}`", open.value.id);
        Err(ApiError::from(Problem::new(ErrorKind::Conflict, "deploy_in_progress", message, advice))
            .about(&open.value.id))
    }

    /// Writes new versions of secrets; the versions (`None`: removed) by name.
    fn seal(&mut self, component: &Component, secrets: &SecretEdits) -> Result<Vec<(String, Option<u64>)>, ApiError> {
        let mut versions = Vec::new();
        for (name, value) in secrets {
            let Some(value) = value else {
                versions.push((name.clone(), None));
                continue;
            };
            // The same limits as for variables; checked here because the value never reaches the spec.
            if value.0.contains('\0') || value.0.len() > 131_072 {
                let message = format!("the value of secret `{name}` holds a NUL or is longer than 128 KiB");
                return Err(Problem::invalid(
                    "secret_value_invalid",
                    message,
                    "give a shorter text; files go into volumes",
                )
                .into());
            }
            let highest = self.world.facts(&component.id).secrets.get(name).copied().unwrap_or(0);
            let mut row = SecretVersion {
                component_id: component.id.clone(),
                name: name.clone(),
                version: highest + 1,
                key_id: String::new(),
                sealed: String::new(),
                created_at: self.world.now,
            };
            let sealed = self.keys.seal(&row.context(), value.0.as_bytes())?;
            (row.key_id, row.sealed) = (sealed.key_id, sealed.text);
            self.batch.insert(&row)?;
            versions.push((name.clone(), Some(row.version)));
        }
        Ok(versions)
    }

    fn revision(
        &self,
        component: &mut Component,
        old: &Revision,
        spec: ComponentSpec,
        cause: &str,
        operation: &Operation,
    ) -> Revision {
        component.last_revision_number += 1;
        let revision = Revision {
            id: clock::fresh(),
            number: component.last_revision_number,
            spec,
            cause: cause.to_owned(),
            operation_id: operation.id.clone(),
            created_at: self.world.now,
            ..old.clone()
        };
        component.desired_revision = Some(revision.id.clone());
        revision
    }

    fn operation(&self, component: &Component, kind: OperationKind) -> Operation {
        let now = self.world.now;
        let rollout = component.spec.rollout;
        let each = rollout.start_deadline_ms.saturating_add(rollout.drain_ms).saturating_add(rollout.stop_grace_ms);
        let wanted = component.wanted_replicas(component.observed.scaling.as_ref());
        let replicas = u64::from(wanted.max(1));
        Operation {
            id: clock::fresh(),
            kind,
            tenant: component.tenant.clone(),
            application: component.application.clone(),
            component: component.name.clone(),
            component_id: component.id.clone(),
            status: OperationStatus::RollingOut,
            generation: component.generation,
            revision: None,
            revision_number: None,
            problem: None,
            topic: Topic::Controller,
            enqueued: false,
            cancel_asked: false,
            no_cache: false,
            build_ms: None,
            rollout_ms: None,
            created_at: now,
            rollout_at: Some(now),
            ended_at: None,
            deadline: now.plus_ms(each.saturating_mul(replicas).saturating_add(ROLLOUT_SLACK_MS)),
        }
    }

    fn note(&mut self, operation: Operation) -> Result<(), ApiError> {
        self.batch.insert(&operation)?;
        self.operations.push(operation);
        Ok(())
    }

    fn put(
        &mut self,
        found: Option<&Versioned<Component>>,
        component: Component,
        operation: Operation,
    ) -> Result<(), ApiError> {
        match found {
            Some(found) => self.batch.update(&Versioned { value: component.clone(), version: found.version })?,
            None => self.batch.insert(&component)?,
        };
        self.after.insert(component.id.clone(), component);
        self.note(operation)
    }
}

/// An operation that has nothing to wait for.
fn done(operation: Operation, world: &World) -> Operation {
    Operation {
        status: OperationStatus::Succeeded,
        enqueued: true,
        rollout_ms: Some(0),
        ended_at: Some(world.now),
        ..operation
    }
}

/// Whether an operation is a build that has not become a rollout.
pub(super) fn builds(operation: &Operation) -> bool {
    operation.kind == OperationKind::Deploy
        && matches!(operation.status, OperationStatus::Pending | OperationStatus::Building)
}

fn set_version(spec: &mut ComponentSpec, name: &str, version: Option<u64>) {
    match version {
        Some(version) => drop(spec.secrets.insert(name.to_owned(), version)),
        None => drop(spec.secrets.remove(name)),
    }
}

/// Whether instances of one spec are not those of the other: all but the number of instances and how they are built.
pub(super) fn runs_differently(a: &ComponentSpec, b: &ComponentSpec) -> bool {
    let normal = |it: &ComponentSpec| ComponentSpec {
        replicas: 0,
        autoscaling: None,
        build: a.build.clone(),
        source: a.source.clone(),
        ..it.clone()
    };
    normal(a) != normal(b)
}

fn check(before: Option<&Component>, after: &Component, volumes: &[VolumeRow]) -> Result<(), Problem> {
    spec::validate(&after.spec)?;
    if let Some(before) = before
        && before.spec.autoscaling.is_some()
        && before.spec.autoscaling == after.spec.autoscaling
        && before.spec.replicas != after.spec.replicas
    {
        return Err(follows_load(before));
    }
    not_smaller(before, after, volumes)?;
    match before {
        Some(before) if before.last_revision_number > 0 && before.spec.kind != after.spec.kind => {
            let message = format!("the kind of `{}` cannot change once it has run", after.reference());
            Err(Problem::new(
                ErrorKind::Conflict,
                "kind_fixed",
                message,
                "deploy it under another name, then delete the old one",
            ))
        }
        _ => Ok(()),
    }
}

/// A volume has content and keeps its size or grows; who asks for less would believe to have it.
fn not_smaller(before: Option<&Component>, after: &Component, volumes: &[VolumeRow]) -> Result<(), Problem> {
    // What was said before this rule does not stand in the way of other changes.
    let said = |it: &VolumeSpec| before.is_some_and(|before| before.spec.volumes.contains(it));
    for asked in after.spec.volumes.iter().filter(|it| it.kind != VolumeKind::Memory && !said(it)) {
        let made = volumes.iter().find(|it| it.component_id == after.id && it.name == asked.name);
        if let Some(made) = made.filter(|it| it.size_mb > asked.size_mb) {
            let (name, size) = (&asked.name, made.size_mb);
            let message = format!("the volume `{name}` has {size} MB and cannot become smaller ({} MB)", asked.size_mb);
            let advice = format!("ask for {size} MB or more, or copy what it holds to a volume of another name");
            return Err(Problem::new(ErrorKind::Conflict, "volume_smaller", message, advice));
        }
    }
    Ok(())
}
