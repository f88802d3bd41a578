//! What comes: an application from elsewhere, made with the rules of every change, off until somebody starts it.
//!
//! What must hold: what is here is never overwritten; a second import of the same finds nothing to do; what cannot be
//! made beside the components (a route whose host is taken, a port that is busy) is told and made by the next import.

use super::super::super::Api;
use super::super::super::change::Change;
use super::super::super::error::ApiError;
use super::super::super::identity::Caller;
use super::super::super::world::not_deleting;
use super::super::Target;
use super::super::apply::difference;
use super::secrets::OpenedSecrets;
use super::{ArchiveKey, certificate_key, users_of};
use crate::wire::{
    CarriedApplication, CarriedComponent, CarriedRevision, ErrorBody, ImportAction, ImportRequest, ImportResult,
    ImportedComponent, SecretText, SetHostCertificate,
};
use arco_model::artifact::{Digest, ImageRef};
use arco_model::component::{Component, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::ComponentId;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::secret::SecretVersion;
use arco_model::source::Source;
use arco_model::spec::{ComponentKind, ComponentSpec, REPLICAS_MAX, VolumeSpec};
use arco_model::time::Timestamp;
use arco_store::blob::content_path;
use arco_store::clock;
use arco_store::images::{ImageError, MANIFEST_MAX};
use arco_store::sql::{CertificateRow, Query, RouteRow, StreamRow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Highest number of a revision, generation or version that is believed, and the latest time in ms (the year 2527).
const NUMBER_MAX: u64 = 1 << 44;

/// Most routes that a note names.
const TOLD_ROUTES: usize = 5;

impl Api {
    /// Makes an application as it was elsewhere, or (dry run) tells what that would do.
    pub(in super::super::super) async fn import(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        application: &ApplicationName,
        request: &ImportRequest,
        dry_run: bool,
    ) -> Result<ImportResult, ApiError> {
        believable(application, &request.application)?;
        let (carried, left) = self.with_classes_of_here(&request.application).await?;
        let carried = &carried;
        let key = ArchiveKey::new(request.key.as_ref())?;
        let mut secrets: BTreeMap<&ComponentName, OpenedSecrets> = BTreeMap::new();
        for component in &carried.components {
            let mut opened = OpenedSecrets::open(application, component, &key)?;
            opened.compare(self, tenant, application, component).await?;
            secrets.insert(&component.name, opened);
            if !dry_run {
                self.keep_image(tenant, application, component).await?;
            }
        }
        // The last attempt's answer; decisions are pure but for this note.
        let (found, none) = (Mutex::new(Vec::new()), OpenedSecrets::default());
        let decide = |change: &mut Change<'_>| {
            let mut all = Vec::new();
            for component in &carried.components {
                let opened = secrets.get(&component.name).unwrap_or(&none);
                all.push(self.decide(change, tenant, application, component, opened, &request.archive, dry_run)?);
            }
            *found.lock().unwrap_or_else(PoisonError::into_inner) = all;
            Ok(())
        };
        if dry_run {
            self.try_out(tenant, application, decide).await?;
        } else {
            self.change(caller, tenant, application, None, decide).await?;
        }
        let mut result = ImportResult {
            components: found.into_inner().unwrap_or_else(PoisonError::into_inner),
            notes: [self.what_differs(carried), left].concat(),
        };
        let fits = |it: &ImportedComponent| it.action != ImportAction::Differs;
        if result.components.iter().all(fits) {
            self.import_certificates(tenant, carried, &key, dry_run, &mut result.notes).await?;
            for component in &carried.components {
                let target = Target {
                    tenant: tenant.clone(),
                    application: application.clone(),
                    component: component.name.clone(),
                };
                if dry_run {
                    self.foresee(&target, component, &mut result.notes).await?;
                } else {
                    self.import_ways(caller, &target, component, &key, &mut result.notes).await?;
                }
            }
        }
        Ok(result)
    }

    /// The application without classes of volumes that are not here, and a note about each: the platform then chooses.
    async fn with_classes_of_here(
        &self,
        carried: &CarriedApplication,
    ) -> Result<(CarriedApplication, Vec<String>), ApiError> {
        let (mut carried, mut notes) = (carried.clone(), Vec::new());
        let name = carried.name.clone();
        let asked = |it: &CarriedComponent| -> Vec<VolumeSpec> {
            it.spec.volumes.iter().chain(it.revision.iter().flat_map(|it| &it.spec.volumes)).cloned().collect()
        };
        let asked: Vec<VolumeSpec> = carried.components.iter().flat_map(asked).collect();
        let unknown = self.unknown_classes(asked.iter()).await?;
        for component in &mut carried.components {
            let reference = format!("{name}/{}", component.name);
            let specs = [Some(&mut component.spec), component.revision.as_mut().map(|it| &mut it.spec)];
            let volumes = specs.into_iter().flatten().flat_map(|it| &mut it.volumes);
            for volume in volumes {
                let Some(class) = volume.class.take_if(|it| unknown.contains(it)) else { continue };
                let note = format!(
                    "volume `{}` of `{reference}` was of class `{class}`, which is not here: the platform chooses",
                    volume.name
                );
                if !notes.contains(&note) {
                    notes.push(note); // once, though spec and revision say it
                }
            }
        }
        Ok((carried, notes))
    }

    /// One component: here as it should be, half here, another one, or to be made.
    #[allow(clippy::too_many_arguments, reason = "what a decision is about; it is called from one place")]
    fn decide(
        &self,
        change: &mut Change<'_>,
        tenant: &TenantName,
        application: &ApplicationName,
        carried: &CarriedComponent,
        secrets: &OpenedSecrets,
        archive: &Digest,
        dry_run: bool,
    ) -> Result<ImportedComponent, ApiError> {
        let answer = |action, fields| ImportedComponent {
            application: application.to_string(),
            component: carried.name.to_string(),
            action,
            fields,
        };
        if let Some(found) = change.world.find(&carried.name) {
            not_deleting(&found.value)?;
            let runs = change.world.facts(&found.value.id).revision.as_ref();
            let mut fields = differing(&found.value, runs, carried);
            for field in &secrets.differing {
                if !fields.contains(field) {
                    fields.push(field.clone());
                }
            }
            let action = match &found.value.arriving {
                _ if !fields.is_empty() => ImportAction::Differs,
                Some(other) if other != archive => ImportAction::Differs,
                Some(_) => ImportAction::Resume,
                None => ImportAction::Same,
            };
            let fields = if action == ImportAction::Differs && fields.is_empty() {
                vec!["an unfinished import of another archive".to_owned()]
            } else {
                fields
            };
            if action == ImportAction::Differs && !dry_run {
                let reference = format!("{application}/{}", carried.name);
                let message = format!(
                    "`{reference}` is here already and is another one than the archive's: {}",
                    fields.join(", ")
                );
                let advice = format!(
                    "nothing is overwritten: `arco delete {reference}` here first, or import other applications by name"
                );
                return Err(Problem::new(ErrorKind::Conflict, "component_differs", message, advice).into());
            }
            return Ok(answer(action, fields));
        }
        let now = change.world.now;
        change.arrive(&carried.name, &carried.spec.source, |component| {
            component.spec = carried.spec.clone();
            component.generation = carried.generation.max(1);
            let revision = carried.revision.as_ref().map(|it| revision(tenant, application, component, it));
            if let Some(revision) = &revision {
                component.arriving = Some(archive.clone());
                component.arriving_places = carried.places;
                component.last_revision_number = revision.number;
                component.desired_revision = Some(revision.id.clone());
            }
            Ok((revision, self.sealed(&component.id, &secrets.values, now)?))
        })?;
        Ok(answer(ImportAction::Create, Vec::new()))
    }

    fn sealed(
        &self,
        id: &ComponentId,
        secrets: &[(String, u64, String)],
        now: Timestamp,
    ) -> Result<Vec<SecretVersion>, ApiError> {
        let mut rows = Vec::new();
        for (name, version, value) in secrets {
            let mut row = SecretVersion {
                component_id: id.clone(),
                name: name.clone(),
                version: *version,
                key_id: String::new(),
                sealed: String::new(),
                created_at: now,
            };
            let sealed = self.deps.secrets.seal(&row.context(), value.as_bytes())?;
            (row.key_id, row.sealed) = (sealed.key_id, sealed.text);
            rows.push(row);
        }
        Ok(rows)
    }

    /// The manifest of an image whose blobs are here, in the repository of its component.
    async fn keep_image(
        &self,
        tenant: &TenantName,
        application: &ApplicationName,
        component: &CarriedComponent,
    ) -> Result<(), ApiError> {
        let Some(revision) = &component.revision else { return Ok(()) };
        let repository = repository(tenant, application, &component.name);
        let document = self.deps.blobs.get_bytes(&content_path(&revision.artifact), MANIFEST_MAX).await?;
        let images = &self.deps.images;
        let kept = images.put_manifest(&repository, &revision.media_type, document).await.map_err(image_error)?;
        if kept != revision.artifact {
            let message = format!("blob {} is damaged: it is {kept}", revision.artifact);
            return Err(Problem::invalid("image_invalid", message, "send it again").into());
        }
        // It can be run: a configuration, and as many layers as it names.
        images.read(&ImageRef { repository, digest: kept }).await.map(drop).map_err(image_error)
    }

    fn what_differs(&self, carried: &CarriedApplication) -> Vec<String> {
        let mut notes = Vec::new();
        let (driver, domain) = (super::driver(&self.deps.config), &self.deps.config.server.domain);
        let name = &carried.name;
        if carried.driver != driver {
            notes.push(format!(
                "`{name}` ran on `{}`; here it runs on `{driver}`, whose volumes come from its own storage",
                carried.driver
            ));
        }
        if carried.domain != *domain {
            notes.push(format!("default hosts of `{name}` end with `{domain}` here, with `{}` before", carried.domain));
        }
        let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        for component in &carried.components {
            let reference = format!("{name}/{}", component.name);
            let built_for = component.revision.as_ref().map_or("", |it| it.architecture.as_str());
            if !["", here].contains(&built_for) {
                notes.push(format!("the image of `{reference}` is for {built_for}, this server is {here}: build it anew with `arco deploy`"));
            }
            if matches!(component.spec.source, Source::Git { .. }) {
                notes.push(format!("`{reference}` is built from a repository; if that is private, give its credential before the next deploy: `arco credential set`"));
            }
            for stream in component.streams.iter().filter(|_| driver == "kubernetes") {
                let (protocol, port) = (&stream.protocol, stream.port.unwrap_or_default());
                notes.push(format!("{protocol} port {port} of `{reference}` opens in the gateway's pods: the service `arco-gateway` must have it, too (`arco cluster manifest --stream-port {port}/{protocol}`)"));
            }
            if component.runs && component.spec.kind == ComponentKind::Job {
                notes.push(format!("job `{reference}` is not run again by itself: `arco start {reference}` runs it"));
            }
        }
        notes
    }

    async fn import_certificates(
        &self,
        tenant: &TenantName,
        carried: &CarriedApplication,
        key: &ArchiveKey,
        dry_run: bool,
        notes: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        for certificate in &carried.certificates {
            let private = key.open(&certificate_key(&certificate.name), &certificate.sealed_key)?;
            let found = self.deps.metadata.find::<CertificateRow>(tenant.as_str(), &certificate.name).await?;
            match found {
                Some(found) if found.value.chain_pem == certificate.chain => {}
                Some(_) => notes.push(format!("certificate `{}` is another one here, which stays", certificate.name)),
                None if dry_run => {}
                None => {
                    let request = SetHostCertificate { chain: certificate.chain.clone(), key: SecretText(private) };
                    if let Err(error) = self.set_certificate(tenant, &certificate.name, request).await {
                        notes.push(not_made(&format!("certificate `{}`", certificate.name), &error.body()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Routes and ports of the gateway that are not here yet.
    async fn import_ways(
        &self,
        caller: &Caller,
        target: &Target,
        carried: &CarriedComponent,
        key: &ArchiveKey,
        notes: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let component = self.component(target).await?;
        let reference = component.reference();
        let rows = self.deps.metadata.list::<RouteRow>(&Query::tag(component.id.as_str())).await?.items;
        let rows: Vec<RouteRow> = rows.into_iter().map(|it| it.value).collect();
        let mut elsewhere = Vec::new();
        for (at, it) in carried.routes.iter().enumerate() {
            let host = it.route.hosts.first().cloned().unwrap_or_default();
            if rows.iter().any(|row| row.host == host && row.route.meaning() == it.route.meaning()) {
                continue;
            }
            let mut route = it.route.clone();
            if let (Some(auth), Some(sealed)) = (&mut route.basic_auth, &it.sealed_users) {
                let what = users_of(target.application.as_str(), target.component.as_str(), &host, at);
                let invalid =
                    |_| Problem::invalid("archive_invalid", format!("{what} are not readable"), "export it again");
                auth.users = serde_json::from_str(&key.open(&what, sealed)?).map_err(invalid)?;
            }
            if let Err(error) = self.add_route(caller, target, route).await {
                let (shown, body) = (told_route(&host, &it.route.meaning()), error.body());
                match body.code.as_str() {
                    "host_taken" => elsewhere.push(shown),
                    _ => notes.push(not_made(&format!("route {shown} of `{reference}`"), &body)),
                }
            }
        }
        notes.extend(lead_elsewhere(&reference, "were not made", &elsewhere));
        for stream in &carried.streams {
            if let Err(error) = self.add_stream(target, stream.clone()).await {
                let port = stream.port.unwrap_or_default();
                notes.push(not_made(&format!("{} port {port} of `{reference}`", stream.protocol), &error.body()));
            }
        }
        self.wake(&component.id).await
    }

    /// What would not become routes and ports, as far as that can be seen before the components are here.
    async fn foresee(
        &self,
        target: &Target,
        carried: &CarriedComponent,
        notes: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let own = self.component(target).await.ok().map(|it| it.id);
        let reference = format!("{}/{}", target.application, target.component);
        let mut elsewhere = Vec::new();
        for route in carried.routes.iter().map(|it| &it.route) {
            let Some(host) = route.hosts.first() else { continue };
            let rows = self.deps.metadata.list::<RouteRow>(&Query::parent(RouteRow::host_parent(host))).await?.items;
            let taken = |it: &RouteRow| {
                it.host == *host
                    && Some(&it.component_id) != own.as_ref()
                    && (it.tenant != target.tenant || it.route.meaning() == route.meaning())
            };
            if rows.iter().any(|it| taken(&it.value)) {
                elsewhere.push(told_route(host, &route.meaning()));
            }
        }
        notes.extend(lead_elsewhere(&reference, "will not be made", &elsewhere));
        for stream in &carried.streams {
            let port = stream.port.unwrap_or_default();
            let rows = self.deps.metadata.list::<StreamRow>(&Query::parent(stream.protocol.as_str())).await?.items;
            let taken = |it: &StreamRow| it.stream.port == port && Some(&it.stream.target.component) != own.as_ref();
            let pool = self.deps.config.gateway.stream_ports;
            let shown = format!("{} port {port} of `{reference}` will not be made", stream.protocol);
            if rows.iter().any(|it| taken(&it.value)) {
                notes.push(format!("{shown}: it leads elsewhere here"));
            } else if !pool.holds(port) {
                notes.push(format!("{shown}: the gateway's ports for components are {pool} here"));
            }
        }
        Ok(())
    }
}

/// A route as people tell it from the others of its host.
fn told_route(host: &str, meaning: &str) -> String {
    format!("`{host}` ({meaning})")
}

/// One note for all routes of a component whose hosts others have; the first few are named.
fn lead_elsewhere(reference: &str, word: &str, routes: &[String]) -> Option<String> {
    let (first, more) = routes.split_at(routes.len().min(TOLD_ROUTES));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    let advice = "free these hosts and import again, or add the routes with other hosts";
    let hosts = first.join(", ");
    let text = format!("routes of `{reference}` {word}, their hosts lead elsewhere here: {hosts}{more}; {advice}");
    (!routes.is_empty()).then_some(text)
}

fn not_made(what: &str, body: &ErrorBody) -> String {
    format!("{what} was not made: {}; {}", body.message, body.advice)
}

/// Why an image of an archive cannot be kept.
pub(super) fn image_error(error: ImageError) -> ApiError {
    match error {
        ImageError::Sql(error) => error.into(),
        ImageError::Blob(error) => error.into(),
        other => Problem::invalid("image_invalid", other.to_string(), "export it again; the archive is damaged").into(),
    }
}

fn repository(tenant: &TenantName, application: &ApplicationName, component: &ComponentName) -> String {
    format!("{tenant}/{application}/{component}")
}

fn revision(
    tenant: &TenantName,
    application: &ApplicationName,
    component: &Component,
    carried: &CarriedRevision,
) -> Revision {
    Revision {
        id: clock::fresh(),
        component_id: component.id.clone(),
        number: carried.number,
        artifact: ImageRef {
            repository: repository(tenant, application, &component.name),
            digest: carried.artifact.clone(),
        },
        defaults: carried.defaults.clone(),
        spec: carried.spec.clone(),
        build_key: carried.build_key.clone(),
        commit: carried.commit.clone(),
        cause: carried.cause.clone(),
        operation_id: clock::fresh(),
        created_at: carried.created_at,
    }
}

/// Fields in which a component that is here is another one than the carried.
fn differing(found: &Component, runs: Option<&Revision>, carried: &CarriedComponent) -> Vec<String> {
    let spec = |a: &ComponentSpec, b: &ComponentSpec| difference(&carried.name, a, b);
    let mut fields: Vec<String> = spec(&found.spec, &carried.spec).into_iter().map(|it| it.field).collect();
    let artifact = carried.revision.as_ref().map(|it| &it.artifact);
    if runs.map(|it| &it.artifact.digest) != artifact {
        fields.push("image".to_owned());
    }
    fields
}

/// What no rule of a change looks at, because it never came from outside before.
fn believable(application: &ApplicationName, carried: &CarriedApplication) -> Result<(), Problem> {
    let bad = |why: String| {
        let advice = "export it again; archives are not written by hand";
        Err(Problem::invalid("archive_invalid", format!("the archive of `{application}`: {why}"), advice))
    };
    if carried.name != *application {
        return bad(format!("it holds `{}`", carried.name));
    }
    if carried.components.is_empty() {
        return bad("it holds no component".to_owned());
    }
    let mut names = BTreeSet::new();
    for component in &carried.components {
        let name = &component.name;
        if !names.insert(name) {
            return bad(format!("component `{name}` stands in it twice"));
        }
        let mut numbers = vec![component.generation];
        numbers.extend(component.secrets.iter().map(|it| it.version));
        if let Some(revision) = &component.revision {
            numbers.extend([revision.number, revision.created_at.0]);
            let defaults = &revision.defaults;
            let texts = defaults.env.iter().flat_map(|(name, value)| [name, value]);
            let argv = defaults.command.iter().chain(defaults.commands.values()).flat_map(|it| it.argv());
            if texts.chain([&defaults.working_dir, &defaults.user]).any(|it| it.contains('\0'))
                || argv.into_iter().any(|it| it.contains('\0'))
                || defaults.ports.iter().any(|it| it.port == 0)
                || revision.number == 0
            {
                return bad(format!("the revision of `{name}` is none"));
            }
        }
        if numbers.iter().any(|it| *it > NUMBER_MAX) {
            return bad(format!("a number of `{name}` is beyond belief"));
        }
        if component.places > REPLICAS_MAX {
            return bad(format!("`{name}` has more than {REPLICAS_MAX} places"));
        }
        if component.routes.iter().any(|it| it.route.hosts.len() != 1) {
            return bad(format!("a route of `{name}` has not one host"));
        }
    }
    Ok(())
}
