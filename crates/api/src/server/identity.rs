//! Who asks, and what they may do: one pure table, checked in one place before any handler runs.
//!
//! A client certificate names a person, a role and the tenants that it is limited to ([`arco_daemon::pki::Subject`]).
//! What lies in a tenant that somebody may not see does not exist for them (404). Every call that changes something,
//! and every `exec`, `run` and `port-forward`, leaves a line with target `audit` in the log.

use super::Api;
use super::error::ApiError;
use arco_daemon::listener::Peer;
use arco_daemon::metrics::Metrics;
use arco_daemon::pki::Subject;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::TenantName;
use axum::Extension;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::Method;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

const APPLICATION: &str = "/v1/tenants/{tenant}/applications/{application}";
const COMPONENT: &str = "/v1/tenants/{tenant}/applications/{application}/components/{component}";
const EXPORT: &str = "/v1/tenants/{tenant}/applications/{application}/export";
const IMPORT: &str = "/v1/tenants/{tenant}/applications/{application}/import";
const BLOB: &str = "/v1/tenants/{tenant}/blobs/{digest}";
const STACK: &str = "/v1/stacks/{name}";
const VOLUME: &str = "/v1/tenants/{tenant}/volumes/{id}";

/// What a certificate lets its owner do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Sees everything in its tenants.
    Viewer,
    /// Deploys and changes components too, and runs programs in them.
    Developer,
    /// Deletes applications, components and volumes too.
    Operator,
    /// Everything, in every tenant.
    Admin,
}

impl Role {
    /// The role of this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Developer, Self::Operator, Self::Admin].into_iter().find(|it| it.as_str() == text)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Developer => "developer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The table.
    pub fn allows(self, permission: Permission) -> bool {
        match permission {
            Permission::Know | Permission::View => true,
            Permission::Change => self != Self::Viewer,
            Permission::Operate => matches!(self, Self::Operator | Self::Admin),
            Permission::Administer => self == Self::Admin,
        }
    }
}

/// What a call needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permission {
    /// Nothing but a certificate of ours.
    Know,
    /// To look.
    View,
    /// To change components and run programs in them.
    Change,
    /// To delete what cannot be had back.
    Operate,
    /// To make tenants and certificates.
    Administer,
}

impl Permission {
    /// What a call of this method and route needs.
    pub fn of(method: &Method, route: &str) -> Self {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match route {
            "/healthz" | "/openapi.json" | "/v1/whoami" => Self::Know,
            "/metrics" | "/v1/gateway/explain" | "/v1/certificates" | "/v1/certificates/{name}" => Self::Administer,
            // All of an application with its secrets, and any content by its digest.
            EXPORT | IMPORT | BLOB => Self::Administer,
            // Everybody's sources are built and run on it.
            STACK => Self::Administer,
            "/v1/tenants" | "/v1/tenants/{tenant}" if !reads => Self::Administer,
            "/v1/registry/token" => Self::Change,
            _ if *method == Method::DELETE && [APPLICATION, COMPONENT, VOLUME].contains(&route) => Self::Operate,
            _ if ["/exec", "/run", "/port-forward"].iter().any(|it| route.ends_with(it)) => Self::Change,
            _ if reads => Self::View,
            _ => Self::Change,
        }
    }
}

/// Who asks; an extension of every request that came through.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Name in the certificate.
    pub(crate) name: String,
    /// Role.
    pub(crate) role: Role,
    /// Tenants; empty means all.
    pub(crate) tenants: Vec<String>,
}

impl Caller {
    fn of(peer: &Peer) -> Result<Self, Problem> {
        let denied = |message: &str| {
            let advice = "use a context of this platform: `arco context create --name YOU` on the server makes one";
            Problem::new(ErrorKind::Denied, "certificate_refused", message, advice)
        };
        let certificate =
            peer.certificate.as_ref().ok_or_else(|| denied("the call came without a client certificate"))?;
        let subject = Subject::of(certificate).map_err(|_| denied("the client certificate cannot be read"))?;
        let role = Role::parse(&subject.role).ok_or_else(|| denied("the client certificate is not one of a person"))?;
        let limited = role != Role::Admin;
        if limited && subject.tenants.is_empty() {
            return Err(denied("the client certificate names no tenant"));
        }
        Ok(Self { name: subject.name, role, tenants: if limited { subject.tenants } else { Vec::new() } })
    }

    /// Whether it may see a tenant.
    pub(crate) fn sees(&self, tenant: &str) -> bool {
        self.tenants.is_empty() || self.tenants.iter().any(|it| it == tenant)
    }

    /// Whether it may read any content by its digest, whoever has sent it.
    pub(crate) fn reads_any_content(&self) -> bool {
        self.role.allows(Permission::of(&Method::GET, BLOB))
    }

    /// Fails as if the tenant did not exist when the caller may not see it.
    pub(crate) fn require(&self, tenant: &TenantName) -> Result<(), Problem> {
        if self.sees(tenant.as_str()) { Ok(()) } else { Err(Problem::not_found("tenant", tenant)) }
    }
}

/// Counts requests by status.
#[derive(Clone)]
pub(crate) struct Requests(Family<Vec<(String, String)>, Counter>);

impl Requests {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let family = Family::default();
        metrics.register("api", |it| it.register("requests", "Requests answered, by status code", family.clone()));
        Self(family)
    }
}

/// The one place that lets a call through.
pub(crate) async fn authorize(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    route: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let tenant = params.iter().find(|(key, _)| *key == "tenant").map(|(_, value)| value.to_owned());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let permission = Permission::of(&method, route.as_str());
    let admitted = match refuse_revoked(&api, &peer).await {
        Ok(()) => admit(&peer, permission, tenant.as_deref()).map_err(ApiError::from),
        Err(error) => Err(error),
    };
    let (who, response) = match admitted {
        Ok(caller) => {
            let who = format!("{} ({})", caller.name, caller.role.as_str());
            request.extensions_mut().insert(caller);
            (who, next.run(request).await)
        }
        Err(error) => (peer.address.to_string(), error.into_response()),
    };
    let status = response.status().as_u16();
    if !matches!(permission, Permission::Know | Permission::View) {
        tracing::info!(target: "audit", who, %method, path, status);
    }
    api.requests.0.get_or_create(&vec![("status".to_owned(), status.to_string())]).inc();
    response
}

async fn refuse_revoked(api: &Api, peer: &Peer) -> Result<(), ApiError> {
    let Some(certificate) = &peer.certificate else { return Ok(()) };
    if !api.revoked.holds(certificate, &api.deps.metadata).await? {
        return Ok(());
    }
    let advice = "ask an administrator for a new context: `arco context create --name YOU`";
    Err(Problem::new(ErrorKind::Denied, "certificate_revoked", "the client certificate was revoked", advice).into())
}

fn admit(peer: &Peer, permission: Permission, tenant: Option<&str>) -> Result<Caller, Problem> {
    let caller = Caller::of(peer)?;
    if let Some(tenant) = tenant.filter(|it| !caller.sees(it)) {
        return Err(Problem::not_found("tenant", tenant));
    }
    if !caller.role.allows(permission) {
        let message = format!("`{}` has the role {}, which may not do this", caller.name, caller.role.as_str());
        return Err(Problem::new(
            ErrorKind::Denied,
            "role_denied",
            message,
            "ask an administrator for a context with another role",
        ));
    }
    Ok(caller)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_roles() {
        use Permission::{Administer, Change, Know, Operate, View};
        let rows = [
            (Role::Viewer, vec![Know, View]),
            (Role::Developer, vec![Know, View, Change]),
            (Role::Operator, vec![Know, View, Change, Operate]),
            (Role::Admin, vec![Know, View, Change, Operate, Administer]),
        ];
        for (role, allowed) in rows {
            for permission in [Know, View, Change, Operate, Administer] {
                assert_eq!(role.allows(permission), allowed.contains(&permission), "{role:?} {permission:?}");
            }
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("gateway"), None);
    }

    #[test]
    fn calls_need_what_they_do() {
        let component = COMPONENT;
        let rows = [
            (Method::GET, "/v1/whoami".to_owned(), Permission::Know),
            (Method::GET, component.to_owned(), Permission::View),
            (Method::PATCH, component.to_owned(), Permission::Change),
            (Method::DELETE, component.to_owned(), Permission::Operate),
            (Method::DELETE, format!("{component}/routes"), Permission::Change),
            (Method::GET, format!("{component}/exec"), Permission::Change),
            (Method::GET, format!("{component}/run"), Permission::Change),
            (Method::GET, format!("{component}/port-forward"), Permission::Change),
            (Method::POST, "/v1/tenants/{tenant}/uploads".to_owned(), Permission::Change),
            (Method::DELETE, APPLICATION.to_owned(), Permission::Operate),
            (Method::POST, "/v1/tenants".to_owned(), Permission::Administer),
            (Method::DELETE, "/v1/tenants/{tenant}".to_owned(), Permission::Administer),
            (Method::PATCH, "/v1/tenants/{tenant}".to_owned(), Permission::Administer),
            (Method::POST, "/v1/gateway/follow".to_owned(), Permission::Change),
            (Method::POST, "/v1/certificates".to_owned(), Permission::Administer),
            (Method::GET, "/v1/certificates".to_owned(), Permission::Administer),
            (Method::DELETE, "/v1/certificates/{name}".to_owned(), Permission::Administer),
            (Method::POST, EXPORT.to_owned(), Permission::Administer),
            (Method::POST, IMPORT.to_owned(), Permission::Administer),
            (Method::GET, BLOB.to_owned(), Permission::Administer),
            (Method::PUT, BLOB.to_owned(), Permission::Administer),
            (Method::PUT, STACK.to_owned(), Permission::Administer),
            (Method::GET, "/v1/stacks".to_owned(), Permission::View),
            (Method::GET, "/v1/tenants/{tenant}/credentials".to_owned(), Permission::View),
            (Method::PUT, "/v1/tenants/{tenant}/credentials".to_owned(), Permission::Change),
        ];
        for (method, route, permission) in rows {
            assert_eq!(Permission::of(&method, &route), permission, "{method} {route}");
        }
    }
}
