//! Documents from rows: applications, components, revisions, volumes, routes, operations; and pages of them.

use super::Api;
use super::act::Target;
use super::act::route::HIDDEN;
use super::error::ApiError;
use super::world::not_deleting;
use crate::wire::{
    ApplicationDocument, ComponentDocument, ComponentSummary, InstanceDocument, InstanceUsage, OperationDocument, Page,
    PageQuery, RevisionDocument, RouteDocument, RunsDocument, SecretDocument, UsageDocument,
};
use arco_model::application::{Application, Tenant};
use arco_model::component::{Component, Power, Revision};
use arco_model::error::Problem;
use arco_model::id::{ComponentId, RevisionId};
use arco_model::name::{ApplicationName, TenantName};
use arco_model::observed::InstancePhase;
use arco_model::operation::{Operation, OperationStatus};
use arco_model::route::{ComponentTarget, Route, Target as RouteTarget};
use arco_model::secret::SecretVersion;
use arco_model::spec::{ComponentKind, Port};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::sql::{Cursor, Entity, Query, RouteRow};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Things on a page when the caller does not say.
const PAGE: u32 = 100;
/// Most things on a page.
const PAGE_MAX: u32 = 1000;
/// Operations read for one page when a filter lets few of them through.
const SCAN_MAX: usize = 5000;
/// Revisions that are remembered.
const CACHE_MAX: usize = 4096;

/// What lists need of a revision; it never changes.
#[derive(Clone)]
pub(super) struct RevisionFacts {
    number: u64,
    ports: Vec<Port>,
}

/// Numbers and ports of revisions, so that a list of 200 components is not 200 reads each time.
#[derive(Default)]
pub(super) struct RevisionCache(Mutex<HashMap<RevisionId, Arc<RevisionFacts>>>);

impl RevisionCache {
    async fn get(&self, api: &Api, id: Option<&RevisionId>) -> Result<Option<Arc<RevisionFacts>>, ApiError> {
        let Some(id) = id else { return Ok(None) };
        if let Some(found) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(Some(found.clone()));
        }
        let Some(revision) = api.deps.metadata.get::<Revision>(id.as_str()).await? else { return Ok(None) };
        let facts = Arc::new(RevisionFacts { number: revision.value.number, ports: revision.value.ports().to_vec() });
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        cache.insert(id.clone(), facts.clone());
        Ok(Some(facts))
    }
}

/// Which page, as rows are asked for.
pub(super) fn page(query: &PageQuery) -> Result<(usize, Option<Cursor>), ApiError> {
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid("limit_invalid", format!("`limit` is {limit}"), "give 1 to 1000").into());
    }
    let parse = |text: &String| {
        let (at, key) = text.split_once('.')?;
        Some(Cursor { created_at: Timestamp(at.parse().ok()?), key: key.to_owned() })
    };
    let bad = || {
        Problem::invalid("cursor_invalid", "`cursor` is not one of ours", "give `next` of the page before, as it was")
    };
    let cursor = query.cursor.as_ref().map(|it| parse(it).ok_or_else(bad)).transpose()?;
    Ok((limit as usize, cursor))
}

pub(super) fn next(cursor: Option<Cursor>) -> Option<String> {
    cursor.map(|it| format!("{}.{}", it.created_at.0, it.key))
}

impl Api {
    /// A component that is not being deleted or still is: it is there as long as its row.
    pub(super) async fn component(&self, target: &Target) -> Result<Component, ApiError> {
        let missing = || Problem::not_found("component", format!("{}/{}", target.application, target.component));
        let application =
            self.deps.metadata.find::<Application>(target.tenant.as_str(), target.application.as_str()).await?;
        let application = application.ok_or_else(missing)?.value;
        let found = self.deps.metadata.find::<Component>(application.id.as_str(), target.component.as_str()).await?;
        Ok(found.ok_or_else(missing)?.value)
    }

    /// Fails for a tenant that does not exist.
    pub(super) async fn tenant_exists(&self, tenant: &TenantName) -> Result<(), ApiError> {
        let found = self.deps.metadata.get::<Tenant>(tenant.as_str()).await?;
        found.map(drop).ok_or_else(|| Problem::not_found("tenant", tenant).into())
    }

    /// Ports of the desired revision, else those that were asked for.
    pub(super) async fn ports(&self, component: &Component) -> Result<Vec<Port>, ApiError> {
        let revision = self.revisions.get(self, component.desired_revision.as_ref()).await?;
        Ok(revision.map_or_else(|| component.spec.ports.clone(), |it| it.ports.clone()))
    }

    pub(super) async fn number(&self, id: Option<&RevisionId>) -> Result<Option<u64>, ApiError> {
        Ok(self.revisions.get(self, id).await?.map(|it| it.number))
    }

    fn url(&self, host: &str, prefix: &str) -> String {
        let gateway = &self.deps.config.gateway;
        let port = gateway.http_port((self.deps.gateway_http)().unwrap_or(gateway.http_listen).port());
        let port = if port == 80 { String::new() } else { format!(":{port}") };
        format!("http://{host}{port}{}", if prefix == "/" { "" } else { prefix })
    }

    /// Where people begin with a route: over HTTPS when plain HTTP only leads there, or is not served.
    fn url_of(&self, row: &RouteRow) -> String {
        let path = path_of(&row.route);
        let tls = &row.route.tls;
        if !tls.redirect && tls.client_ca.is_none() && !row.route.passes_through() {
            return self.url(&row.host, path);
        }
        let gateway = &self.deps.config.gateway;
        let port = gateway.https_port((self.deps.gateway_https)().unwrap_or(gateway.https_listen).port());
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        format!("https://{}{port}{}", row.host, if path == "/" { "" } else { path })
    }

    async fn urls(&self, component: &Component, routes: &[RouteRow]) -> Result<Vec<String>, ApiError> {
        // Nothing that runs and ends waits for requests.
        let waits = !matches!(component.spec.kind, ComponentKind::Job | ComponentKind::Cron);
        let outer = waits && self.ports(component).await?.iter().any(|it| it.outer && it.protocol.is_http());
        let own = routes.iter().filter(|it| it.component_id == component.id && !it.host.starts_with('*'));
        let own = own.map(|it| self.url_of(it));
        let hosts = component.default_hosts(&self.deps.config.server.domain);
        let defaults = hosts.iter().filter(|_| outer).map(|it| self.url(it, "/"));
        let mut urls: Vec<String> = Vec::new();
        for url in defaults.chain(own) {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        Ok(urls)
    }

    async fn routes_of(&self, component: &ComponentId) -> Result<Vec<RouteRow>, ApiError> {
        let rows = self.deps.metadata.list::<RouteRow>(&Query::tag(component.as_str())).await?;
        Ok(rows.items.into_iter().map(|it| it.value).collect())
    }

    async fn instances(&self, component: &Component) -> Result<Vec<InstanceDocument>, ApiError> {
        let mut documents = Vec::new();
        for facts in &component.observed.instances {
            documents.push(InstanceDocument::new(facts, self.number(Some(&facts.revision)).await?));
        }
        Ok(documents)
    }

    pub(super) async fn component_document(&self, component: Component) -> Result<ComponentDocument, ApiError> {
        let routes = self.routes_of(&component.id).await?;
        let observed = &component.observed;
        let hosts: Vec<&str> = routes.iter().map(|it| it.host.as_str()).collect();
        let mut warnings = self.certificate_warnings(&component.tenant, &hosts).await?;
        if component.power == Power::Off {
            warnings.extend(self.unproven_warning(&component).await?);
        }
        Ok(ComponentDocument {
            application: component.application.to_string(),
            component: component.name.to_string(),
            status: observed.report.status,
            reason: observed.report.reason.clone(),
            advice: observed.report.advice.clone(),
            replicas: component.wanted_replicas(component.observed.scaling.as_ref()),
            ready_replicas: observed.ready_replicas,
            revision: self.number(observed.serving_revision.as_ref()).await?,
            generation: component.generation,
            observed_generation: observed.observed_generation,
            urls: self.urls(&component, &routes).await?,
            warnings,
            runs: RunsDocument::of(&component, clock::now()),
            instances: self.instances(&component).await?,
            tenant: component.tenant.to_string(),
            id: component.id.to_string(),
            desired_revision: self.number(component.desired_revision.as_ref()).await?,
            address: observed.address.map(|it| it.to_string()),
            power: component.power,
            scaling: component.observed.scaling.clone(),
            ports: self.ports(&component).await?,
            created_at: component.created_at.rfc3339(),
            spec: component.spec,
        })
    }

    async fn summary(&self, component: &Component, routes: &[RouteRow]) -> Result<ComponentSummary, ApiError> {
        let observed = &component.observed;
        Ok(ComponentSummary {
            component: component.name.to_string(),
            status: observed.report.status,
            reason: observed.report.reason.clone(),
            kind: component.spec.kind,
            replicas: component.wanted_replicas(component.observed.scaling.as_ref()),
            ready_replicas: observed.ready_replicas,
            revision: self.number(observed.serving_revision.as_ref()).await?,
            urls: self.urls(component, routes).await?,
        })
    }

    async fn application_document(
        &self,
        application: Application,
        mut components: Vec<Component>,
        routes: &[RouteRow],
    ) -> Result<ApplicationDocument, ApiError> {
        components.sort_by(|a, b| a.name.cmp(&b.name));
        let mut summaries = Vec::new();
        for component in &components {
            summaries.push(self.summary(component, routes).await?);
        }
        let Application { tenant, name, created_at, .. } = application;
        Ok(ApplicationDocument {
            tenant: tenant.to_string(),
            application: name.to_string(),
            components: summaries,
            created_at: created_at.rfc3339(),
        })
    }

    /// Applications of a tenant; one without components does not exist (any more).
    pub(super) async fn applications(
        &self,
        tenant: &TenantName,
        query: &PageQuery,
    ) -> Result<Page<ApplicationDocument>, ApiError> {
        self.tenant_exists(tenant).await?;
        let (limit, after) = page(query)?;
        let metadata = &self.deps.metadata;
        let page = metadata.list::<Application>(&Query { limit, after, ..Query::parent(tenant.as_str()) }).await?;
        let routes: Vec<_> =
            metadata.list::<RouteRow>(&Query::default()).await?.items.into_iter().map(|it| it.value).collect();
        let mut components: BTreeMap<_, Vec<Component>> = BTreeMap::new();
        for row in metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items {
            components.entry(row.value.application_id.clone()).or_default().push(row.value);
        }
        let mut items = Vec::new();
        for row in page.items {
            if let Some(own) = components.remove(&row.value.id) {
                items.push(self.application_document(row.value, own, &routes).await?);
            }
        }
        Ok(Page { items, next: next(page.next) })
    }

    pub(super) async fn application(
        &self,
        tenant: &TenantName,
        name: &ApplicationName,
    ) -> Result<ApplicationDocument, ApiError> {
        let metadata = &self.deps.metadata;
        let missing = || Problem::not_found("application", name);
        let application =
            metadata.find::<Application>(tenant.as_str(), name.as_str()).await?.ok_or_else(missing)?.value;
        let components = metadata.list::<Component>(&Query::parent(application.id.as_str())).await?.items;
        let components: Vec<_> = components.into_iter().map(|it| it.value).collect();
        if components.is_empty() {
            return Err(missing().into());
        }
        let mut routes = Vec::new();
        for component in &components {
            routes.extend(self.routes_of(&component.id).await?);
        }
        self.application_document(application, components, &routes).await
    }

    pub(super) async fn revision_documents(
        &self,
        component: &Component,
        query: &PageQuery,
    ) -> Result<Page<RevisionDocument>, ApiError> {
        let (limit, after) = page(query)?;
        let query = Query { newest_first: true, limit, after, ..Query::parent(component.id.as_str()) };
        let page = self.deps.metadata.list::<Revision>(&query).await?;
        let document = |it: &Revision| {
            let is = |other: &Option<RevisionId>| other.as_ref() == Some(&it.id);
            RevisionDocument::new(it, is(&component.observed.serving_revision), is(&component.desired_revision))
        };
        Ok(Page { items: page.items.iter().map(|it| document(&it.value)).collect(), next: next(page.next) })
    }

    /// Instances with what they use now.
    pub(super) async fn usage(&self, component: &Component) -> Result<Vec<InstanceUsage>, ApiError> {
        let memory_limit_bytes = u64::from(component.spec.resources.memory_mb) << 20;
        let mut items = Vec::new();
        for (facts, instance) in component.observed.instances.iter().zip(self.instances(component).await?) {
            let runs = !matches!(facts.phase, InstancePhase::Pending | InstancePhase::Ended | InstancePhase::BackOff);
            // An instance may end between the two looks: then it uses nothing.
            let usage = if runs { self.deps.orchestrator.usage(&facts.id).await.ok() } else { None };
            let usage = usage.map(|it| UsageDocument {
                cpu_ms: it.cpu_ms,
                memory_bytes: it.memory_bytes,
                memory_limit_bytes,
                pids: it.pids,
            });
            items.push(InstanceUsage { instance, usage });
        }
        Ok(items)
    }

    /// Routes of a component, its default hosts first.
    pub(super) async fn routes(&self, component: &Component) -> Result<Vec<RouteDocument>, ApiError> {
        let port = self.ports(component).await?.into_iter().find(|it| it.outer && it.protocol.is_http());
        let hosts = component.default_hosts(&self.deps.config.server.domain);
        let default = |host: &String, port: Port| RouteDocument {
            id: None,
            application: component.application.to_string(),
            component: component.name.to_string(),
            host: host.clone(),
            path: "/".to_owned(),
            port: Some(port.port),
            default: true,
            url: self.url(host, "/"),
            route: Route {
                hosts: vec![host.clone()],
                targets: vec![RouteTarget { to: named(component, Some(port.port)), weight: 100 }],
                ..Route::default()
            },
            rates: None,
        };
        let mut items: Vec<_> =
            port.into_iter().flat_map(|port| hosts.iter().map(move |it| default(it, port))).collect();
        items.extend(self.route_documents(component, &self.routes_of(&component.id).await?).await?);
        Ok(items)
    }

    /// Added routes of a component as people see them.
    pub(super) async fn route_documents(
        &self,
        component: &Component,
        rows: &[RouteRow],
    ) -> Result<Vec<RouteDocument>, ApiError> {
        let mut known: HashMap<ComponentId, Option<ComponentTarget>> = HashMap::new();
        known.insert(component.id.clone(), Some(named(component, None)));
        let mut items = Vec::new();
        for row in rows {
            let callees: Vec<ComponentId> = row.route.callees().map(|it| it.component.clone()).collect();
            for id in callees {
                if let std::collections::hash_map::Entry::Vacant(place) = known.entry(id) {
                    let found = self.deps.metadata.get::<Component>(place.key().as_str()).await?;
                    place.insert(found.map(|it| named(&it.value, None)));
                }
            }
            let name = |it: arco_model::route::UpstreamTarget| {
                let known = known.get(&it.component).cloned().flatten();
                Ok::<_, ApiError>(known.map(|known| ComponentTarget { port: Some(it.port), ..known }))
            };
            let mut route = row.route.clone().rename(name)?;
            route.hosts = vec![row.host.clone()];
            if let Some(auth) = &mut route.basic_auth {
                auth.users.values_mut().for_each(|it| HIDDEN.clone_into(it));
            }
            items.push(RouteDocument {
                id: Some(row.id.to_string()),
                application: row.application.to_string(),
                component: row.component.to_string(),
                host: row.host.clone(),
                path: path_of(&row.route).to_owned(),
                port: row.route.targets.first().map(|it| it.to.port),
                default: false,
                url: self.url_of(row),
                route,
                rates: None,
            });
        }
        Ok(items)
    }

    /// Every route of a tenant.
    pub(super) async fn tenant_routes(&self, tenant: &TenantName) -> Result<Vec<RouteDocument>, ApiError> {
        self.tenant_exists(tenant).await?;
        let mut components = self.deps.metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items;
        components.sort_by_key(|it| it.value.reference());
        let mut items = Vec::new();
        for component in components {
            items.extend(self.routes(&component.value).await?);
        }
        Ok(items)
    }

    /// Says what passed through the hosts of `routes`, when the gateway answers.
    pub(super) async fn with_rates(&self, mut routes: Vec<RouteDocument>) -> Vec<RouteDocument> {
        let Some(gateway) = &self.deps.gateway else { return routes };
        let mut hosts: Vec<String> = routes.iter().map(|it| it.host.clone()).collect();
        hosts.sort();
        hosts.dedup();
        match gateway.rates(&hosts).await {
            Ok(rates) => routes.iter_mut().for_each(|it| it.rates = rates.get(&it.host).copied()),
            Err(problem) => tracing::debug!(%problem, "the gateway does not tell its rates"),
        }
        routes
    }

    pub(super) async fn secrets(&self, component: &Component) -> Result<Vec<SecretDocument>, ApiError> {
        let mut items = Vec::new();
        for (name, version) in &component.spec.secrets {
            let key = SecretVersion::row_key(&component.id, name, *version);
            let row = self.deps.metadata.get::<SecretVersion>(&key).await?;
            let created_at = row.map(|it| it.value.created_at.rfc3339()).unwrap_or_default();
            items.push(SecretDocument { name: name.clone(), version: *version, created_at });
        }
        Ok(items)
    }

    /// Operations of a tenant, newest first, of which `wanted` says yes. A page may be shorter than asked and still have
    /// a next one.
    pub(super) async fn operations(
        &self,
        query: &PageQuery,
        wanted: impl Fn(&Operation) -> bool,
    ) -> Result<Page<OperationDocument>, ApiError> {
        let (limit, mut after) = page(query)?;
        let (mut items, mut read) = (Vec::new(), 0);
        loop {
            let page = self
                .deps
                .metadata
                .list::<Operation>(&Query { newest_first: true, limit, after, ..Query::default() })
                .await?;
            read += page.items.len();
            for row in &page.items {
                if !wanted(&row.value) {
                    continue;
                }
                items.push(OperationDocument::from(&row.value));
                if items.len() == limit {
                    let cursor = Cursor { created_at: row.value.created_at, key: row.value.key() };
                    return Ok(Page { items, next: next(Some(cursor)) });
                }
            }
            after = page.next;
            if after.is_none() || read >= SCAN_MAX {
                return Ok(Page { items, next: next(after) });
            }
        }
    }

    /// A component and the revision that serves, else the desired one: what `exec` and `run` begin with.
    pub(super) async fn serving(&self, target: &Target) -> Result<(Component, Option<Revision>), ApiError> {
        let component = self.component(target).await?;
        not_deleting(&component)?;
        let id = component.observed.serving_revision.as_ref().or(component.desired_revision.as_ref());
        let revision = match id {
            Some(id) => self.deps.metadata.get::<Revision>(id.as_str()).await?.map(|it| it.value),
            None => None,
        };
        Ok((component, revision))
    }
}

/// Whether an operation is one of those that a list asks for.
pub(super) fn matches(
    operation: &Operation,
    tenant: &TenantName,
    application: Option<&str>,
    component: Option<&str>,
    failed: bool,
) -> bool {
    operation.tenant == *tenant
        && application.is_none_or(|it| operation.application.as_str() == it)
        && component.is_none_or(|it| operation.component.as_str() == it)
        && (!failed || operation.status == OperationStatus::Failed)
}

fn named(component: &Component, port: Option<u16>) -> ComponentTarget {
    ComponentTarget { application: component.application.clone(), component: component.name.clone(), port }
}

/// Where people begin: the first path of a route that is one.
fn path_of<T>(route: &Route<T>) -> &str {
    let path = route.paths.iter().find_map(|it| it.prefix.as_deref().or(it.exact.as_deref()));
    path.unwrap_or("/")
}
