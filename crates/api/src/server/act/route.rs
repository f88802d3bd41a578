//! Routes of a component. They are published by the controller, which is rung after each change.
//!
//! What must hold: a host belongs to one tenant, also below a wildcard; two routes of a host never mean the same
//! requests; a stored route can be served as it is.

mod own_domain;

use super::super::Api;
use super::super::error::ApiError;
use super::super::identity::{Caller, Role};
use super::Target;
use crate::wire::{RouteDocument, RouteRequest};
use arco_daemon::tls::authorities;
use arco_model::application::Tenant;
use arco_model::component::{Component, INTERNAL_DOMAIN};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::RowId;
use arco_model::route::{ComponentTarget, Route, RouteTls, UpstreamTarget, check_host};
use arco_model::spec::Port;
use arco_model::traffic::StreamProtocol;
use arco_store::clock;
use arco_store::sql::{Batch, Query, RouteRow, Versioned};
use std::collections::HashMap;

impl Api {
    /// Adds a route to each of its hosts. One with the same meaning that is the component's own is replaced.
    pub(in super::super) async fn add_route(
        &self,
        caller: &Caller,
        target: &Target,
        request: RouteRequest,
    ) -> Result<Vec<RouteDocument>, ApiError> {
        let turn = self.changing.lock().await?;
        let component = self.component(target).await?;
        let (hosts, route) = self.stored(caller, &component, request).await?;
        let (mut batch, mut rows) = (Batch::default(), Vec::new());
        for host in hosts {
            self.certificate_for(&component.tenant, &host, &route.tls).await?;
            match self.place(&component, &host, &route, None).await? {
                Some(mut own) => {
                    own.value.route = route.clone();
                    batch.update(&own)?;
                    rows.push(own.value);
                }
                None => {
                    let row = row(&component, host, route.clone());
                    batch.insert(&row)?;
                    rows.push(row);
                }
            }
        }
        self.commit_for(&turn, &component, batch).await?;
        self.wake(&component.id).await?;
        self.route_documents(&component, &rows).await
    }

    /// Makes a route say something else; it keeps its id.
    pub(in super::super) async fn set_route(
        &self,
        caller: &Caller,
        target: &Target,
        id: &RowId,
        mut request: RouteRequest,
    ) -> Result<RouteDocument, ApiError> {
        let turn = self.changing.lock().await?;
        let component = self.component(target).await?;
        let mut row = self.own_route(&component, id).await?;
        keep_passwords(&mut request, &row.value.route);
        let (mut hosts, route) = self.stored(caller, &component, request).await?;
        let (Some(host), true) = (hosts.pop(), hosts.is_empty()) else {
            let advice = "give one host; `arco route add` makes a route for each of several";
            return Err(Problem::invalid("route_invalid", "a route that is changed has one host", advice).into());
        };
        self.certificate_for(&component.tenant, &host, &route.tls).await?;
        if let Some(other) = self.place(&component, &host, &route, Some(id)).await? {
            let same = format!("`{}/{}`", other.value.application, other.value.component);
            return Err(taken(&host, &route, &same).into());
        }
        (row.value.host, row.value.route) = (host, route);
        turn.metadata().update(&row).await?;
        self.wake(&component.id).await?;
        let mut documents = self.route_documents(&component, &[row.value]).await?;
        documents.pop().ok_or_else(|| Problem::internal("show the route").into())
    }

    /// Takes a route away.
    pub(in super::super) async fn delete_route(&self, target: &Target, id: &RowId) -> Result<(), ApiError> {
        let turn = self.changing.lock().await?;
        let component = self.component(target).await?;
        let row = self.own_route(&component, id).await?;
        let mut batch = Batch::default();
        batch.delete(&row);
        turn.metadata().commit(batch).await?;
        self.wake(&component.id).await
    }

    async fn own_route(&self, component: &Component, id: &RowId) -> Result<Versioned<RouteRow>, ApiError> {
        let found = self.deps.metadata.get::<RouteRow>(id.as_str()).await?;
        let found = found.filter(|it| it.value.component_id == component.id);
        Ok(found.ok_or_else(|| Problem::not_found("route", id))?)
    }

    /// The hosts of a request, and the rest of it as it is stored.
    async fn stored(
        &self,
        caller: &Caller,
        component: &Component,
        mut request: RouteRequest,
    ) -> Result<(Vec<String>, Route<UpstreamTarget>), ApiError> {
        let hosts = hosts(&request, caller)?;
        let tenants = self.deps.metadata.list::<Tenant>(&Query::default()).await?.items;
        let tenants: Vec<_> = tenants.into_iter().map(|it| it.value.name).collect();
        let domain = &self.deps.config.server.domain;
        for host in &hosts {
            own_domain::check(host, domain, component, &tenants, caller.role == Role::Admin)?;
        }
        tidy(&mut request)?;
        if request.targets.is_empty() && !request.answers_itself() {
            let itself = ComponentTarget {
                application: component.application.clone(),
                component: component.name.clone(),
                port: None,
            };
            request.targets.push(arco_model::route::Target { to: itself, weight: 100 });
        }
        request.hosts.clear();
        let invalid = |why: String| {
            Problem::invalid(
                "route_invalid",
                format!("the route is not valid: {why}"),
                "`arco route add --help` and docs/guides/routing.md show what a route can say",
            )
        };
        request.check().map_err(invalid)?;
        let of_instances = request.upstream_tls.as_ref().map(|it| ("upstream_tls.ca", it.ca.as_str()));
        let of_clients = request.tls.client_ca.as_deref().map(|it| ("tls.client_ca", it));
        for (part, pem) in of_instances.into_iter().chain(of_clients) {
            authorities(pem.as_bytes()).map_err(|why| invalid(format!("`{part}`: {why}")))?;
        }
        if request.basic_auth.as_ref().is_some_and(|it| it.users_file.is_some()) {
            return Err(
                invalid("`basic_auth.users_file` is for the gateway's own file; give `users`".to_owned()).into()
            );
        }
        let mut named = HashMap::new();
        let callees: Vec<ComponentTarget> = request.callees().cloned().collect();
        for callee in callees {
            named.insert(callee.to_string(), self.upstream(component, &callee, request.passes_through()).await?);
        }
        let route = request.rename(|it| Ok::<_, ApiError>(named.get(&it.to_string()).cloned()))?;
        Ok((hosts, route))
    }

    /// The component and port that a target means.
    async fn upstream(
        &self,
        component: &Component,
        target: &ComponentTarget,
        unread: bool,
    ) -> Result<UpstreamTarget, ApiError> {
        let named = Target {
            tenant: component.tenant.clone(),
            application: target.application.clone(),
            component: target.component.clone(),
        };
        let called = self.component(&named).await?;
        let port = port(&called, &self.ports(&called).await?, target.port, unread)?;
        Ok(UpstreamTarget { component: called.id, port })
    }

    /// The row that a route of `host` replaces, if one means the same; fails when the host is not the component's to
    /// route.
    async fn place(
        &self,
        component: &Component,
        host: &str,
        route: &Route<UpstreamTarget>,
        itself: Option<&RowId>,
    ) -> Result<Option<Versioned<RouteRow>>, ApiError> {
        let domain = &self.deps.config.server.domain;
        for other in self.deps.metadata.list::<Component>(&Query::default()).await?.items {
            let other = other.value;
            if other.id != component.id && other.default_hosts(domain).iter().any(|it| it == host) {
                let own = other.tenant == component.tenant;
                let shown = if own { format!("`{}`", other.reference()) } else { STRANGER.to_owned() };
                return Err(taken(host, route, &shown).into());
            }
        }
        // One for all names of the domain is an administrator's, for those that nobody else has.
        let of_the_domain = format!("*.{domain}");
        for covering in wildcards(host).into_iter().filter(|it| *it != of_the_domain) {
            let rows = self.rows_of(&covering).await?;
            if rows.iter().any(|it| it.value.tenant != component.tenant) {
                return Err(taken(host, route, &format!("{STRANGER} by `{covering}`")).into());
            }
        }
        let meaning = route.meaning();
        let mut same = None;
        for other in self.rows_of(host).await? {
            let it = &other.value;
            if it.tenant != component.tenant {
                return Err(taken(host, route, STRANGER).into());
            }
            if Some(&it.id) == itself {
                continue;
            }
            let shown = format!("`{}/{}`", it.application, it.component);
            if it.route.meaning() == meaning {
                if it.component_id != component.id {
                    return Err(taken(host, route, &shown).into());
                }
                same = Some(other);
                continue;
            }
            agree(host, &it.route.tls, &route.tls, &shown)?;
        }
        Ok(same)
    }

    async fn rows_of(&self, host: &str) -> Result<Vec<Versioned<RouteRow>>, ApiError> {
        let rows = self.deps.metadata.list::<RouteRow>(&Query::parent(RouteRow::host_parent(host))).await?.items;
        Ok(rows.into_iter().filter(|it| it.value.host == host).collect())
    }
}

/// What is shown in place of a password's hash.
pub(in super::super) const HIDDEN: &str = "…";
/// How somebody is called whom the caller may not know.
pub(in super::super) const STRANGER: &str = "another tenant";

fn taken(host: &str, route: &Route<UpstreamTarget>, by: &str) -> Problem {
    let meaning = route.meaning();
    Problem::new(
        ErrorKind::Conflict,
        "host_taken",
        format!("`{host}` with {meaning} already leads to {by}"),
        "choose another host, path or condition, or delete that route first",
    )
}

/// Two routes of a host cannot be served by different certificates or ask for different client certificates.
fn agree(host: &str, there: &RouteTls, asked: &RouteTls, shown: &str) -> Result<(), Problem> {
    let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    if differ(&there.certificate, &asked.certificate) || differ(&there.client_ca, &asked.client_ca) {
        return Err(Problem::new(
            ErrorKind::Conflict,
            "tls_differs",
            format!("another route of `{host}` (of {shown}) has another certificate or client authority"),
            "these hold for a whole host: give the same `--tls` and `--client-ca`, or leave them out here",
        ));
    }
    Ok(())
}

fn row(component: &Component, host: String, route: Route<UpstreamTarget>) -> RouteRow {
    RouteRow {
        id: clock::fresh(),
        tenant: component.tenant.clone(),
        application: component.application.clone(),
        component: component.name.clone(),
        component_id: component.id.clone(),
        host,
        route,
        created_at: clock::now(),
    }
}

/// The wildcards that a host falls under, itself not.
fn wildcards(host: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = host.strip_prefix("*.").unwrap_or(host);
    while let Some((_, suffix)) = rest.split_once('.') {
        found.push(format!("*.{suffix}"));
        rest = suffix;
    }
    found
}

/// The hosts of a request in lower case, each once.
fn hosts(request: &RouteRequest, caller: &Caller) -> Result<Vec<String>, Problem> {
    let bad = |message: String| {
        Problem::invalid("host_invalid", message, "give a name as `www.example.com` or `*.example.com`, without port")
    };
    let mut hosts: Vec<String> = Vec::new();
    for text in &request.hosts {
        let host = text.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        check_host(host).map_err(|it| bad(it.to_string()))?;
        if host == "*" && caller.role != Role::Admin {
            return Err(bad("`*` takes every host that no route names; only an administrator may".to_owned()));
        }
        if host == INTERNAL_DOMAIN || host.ends_with(&format!(".{INTERNAL_DOMAIN}")) {
            return Err(bad(format!(
                "`{host}`: names below `{INTERNAL_DOMAIN}` are those of components inside the platform"
            )));
        }
        if !hosts.iter().any(|it| it == host) {
            hosts.push(host.to_owned());
        }
    }
    if hosts.is_empty() { Err(bad("the route names no host".to_owned())) } else { Ok(hosts) }
}

/// Hashes that were not shown come back as they were shown: they mean the old ones.
fn keep_passwords(request: &mut RouteRequest, before: &Route<UpstreamTarget>) {
    let (Some(auth), Some(before)) = (&mut request.basic_auth, &before.basic_auth) else { return };
    for (name, hash) in auth.users.iter_mut().filter(|it| it.1 == HIDDEN) {
        if let Some(known) = before.users.get(name) {
            hash.clone_from(known);
        }
    }
}

/// One spelling for what means the same.
fn tidy(request: &mut RouteRequest) -> Result<(), Problem> {
    for path in &mut request.paths {
        let advice = match path.regex {
            Some(_) => {
                "give a regular expression, as `^/v[0-9]+/`; `\\` before a character takes it as it is, as `\\(`"
            }
            None => "give an absolute path, as `/api`",
        };
        path.check().map_err(|it| Problem::invalid("path_invalid", it, advice))?;
        if let Some(prefix) = &mut path.prefix
            && prefix.len() > 1
        {
            *prefix = prefix.trim_end_matches('/').to_owned();
        }
    }
    Ok(())
}

/// The asked port, which must be one that the gateway can route by host; else the first such port. One whose connections
/// are passed on `unread` may speak anything over TCP.
fn port(component: &Component, ports: &[Port], asked: Option<u16>, unread: bool) -> Result<u16, Problem> {
    let reference = component.reference();
    if unread {
        return super::stream::inner_port(component, ports, StreamProtocol::Tcp, asked);
    }
    let routable = || ports.iter().filter(|it| it.outer && it.protocol.is_http());
    let found = match asked {
        Some(asked) => routable().find(|it| it.port == asked),
        None => routable().next(),
    };
    let advice = "`--port` names one; the first deploy finds out which there are";
    found.map(|it| it.port).ok_or_else(|| match asked {
        Some(asked) => {
            Problem::invalid("port_not_routable", format!("`{reference}` has no outer HTTP port {asked}"), advice)
        }
        None => Problem::invalid("port_not_routable", format!("`{reference}` has no outer HTTP port"), advice),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role) -> Caller {
        Caller { name: "ada".to_owned(), role, tenants: Vec::new() }
    }

    #[test]
    fn hosts_are_checked() {
        for (text, good) in [
            ("www.Example.com", true),
            ("*.example.com", true),
            ("localhost", true),
            ("", false),
            ("a..b", false),
            ("*", false),
            ("a b", false),
            ("x.arco.internal", false),
            ("h:80", false),
            ("-a.b", false),
            ("a/*", false),
            ("*.*.a", false),
        ] {
            let request = RouteRequest { hosts: vec![text.to_owned()], ..RouteRequest::default() };
            assert_eq!(hosts(&request, &caller(Role::Developer)).is_ok(), good, "{text}");
        }
        let all = RouteRequest { hosts: vec!["*".to_owned()], ..RouteRequest::default() };
        assert!(hosts(&all, &caller(Role::Admin)).is_ok());
        assert!(hosts(&RouteRequest::default(), &caller(Role::Admin)).is_err());
    }

    #[test]
    fn wildcards_above_a_host() {
        assert_eq!(wildcards("a.b.test"), ["*.b.test", "*.test"]);
        assert_eq!(wildcards("*.b.test"), ["*.test"]);
        assert!(wildcards("localhost").is_empty());
    }
}
