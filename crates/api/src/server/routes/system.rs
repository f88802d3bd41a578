//! The platform itself: readiness, metrics, its document, who asks, certificates of people, registry tokens.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Asked, Body};
use super::super::identity::{Caller, Role};
use crate::wire::{CertificateAnswer, CertificateRequest, ErrorBody, RegistryToken, RegistryTokenQuery, WhoAmI};
use arco_daemon::pki::Subject;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::{ComponentName, TenantName};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use std::sync::Arc;

/// The OpenAPI document as text.
#[derive(Clone)]
pub(in super::super) struct Document(pub(in super::super) Arc<String>);

/// Whether every role of this process is ready.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200, body = Object, description = "Ready; role table"), (status = 503, body = Object)))]
pub(super) async fn healthz(State(api): State<Api>) -> Response {
    arco_daemon::health::healthz(State(api.deps.health.clone())).await.into_response()
}

/// Metrics of this process (OpenMetrics).
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    arco_daemon::metrics::metrics(State(api.deps.metrics.clone())).await.into_response()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses((status = 200, body = Object)))]
pub(super) async fn document(Extension(Document(text)): Extension<Document>) -> Response {
    ([(CONTENT_TYPE, "application/json")], text.as_str().to_owned()).into_response()
}

/// Who asks, and which platform answers.
#[utoipa::path(get, path = "/v1/whoami", tag = "system", responses((status = 200, body = WhoAmI)))]
pub(super) async fn whoami(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Json<WhoAmI> {
    Json(WhoAmI {
        name: caller.name,
        role: caller.role.as_str().to_owned(),
        tenants: caller.tenants,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: api.deps.config.server.domain.clone(),
    })
}

/// A client certificate for a person, limited to tenants. It is shown once and not kept.
#[utoipa::path(post, path = "/v1/certificates", tag = "system", request_body = CertificateRequest,
    responses((status = 201, body = CertificateAnswer), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(super) async fn create_certificate(
    State(api): State<Api>,
    Body(request): Body<CertificateRequest>,
) -> Result<(StatusCode, Json<CertificateAnswer>), ApiError> {
    let pki = api.deps.pki.as_ref().ok_or_else(|| not_here("the certificate authority"))?;
    let leaf = pki.client(&subject(request)?)?;
    let ca = pki.authority_pem().to_owned();
    Ok((StatusCode::CREATED, Json(CertificateAnswer { ca, certificate: leaf.certificate_pem, key: leaf.key_pem })))
}

fn subject(request: CertificateRequest) -> Result<Subject, Problem> {
    let bad = |message: String| {
        Problem::invalid(
            "certificate_invalid",
            message,
            "give a name, a role (viewer, developer, operator) and tenants",
        )
    };
    // The rule of component names serves for people as well: short, printable, nothing to quote.
    ComponentName::new(request.name.clone())
        .map_err(|_| bad(format!("`{}` is not a name of a-z, 0-9 and -", request.name)))?;
    match Role::parse(&request.role) {
        None => return Err(bad(format!("`{}` is not a role", request.role))),
        Some(Role::Admin) => return Err(bad("administrators use the context of the server itself".to_owned())),
        Some(Role::Viewer | Role::Developer | Role::Operator) => {}
    }
    if request.tenants.is_empty() {
        return Err(bad("no tenant is named".to_owned()));
    }
    for tenant in &request.tenants {
        TenantName::new(tenant.clone()).map_err(|it| bad(it.to_string()))?;
    }
    Ok(Subject { name: request.name, role: request.role, tenants: request.tenants })
}

/// A token for pulling from and pushing to one repository.
#[utoipa::path(get, path = "/v1/registry/token", tag = "system", params(RegistryTokenQuery),
    responses((status = 200, body = RegistryToken), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn registry_token(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Asked(query): Asked<RegistryTokenQuery>,
) -> Result<Json<RegistryToken>, ApiError> {
    let issue = api.deps.registry_token.as_ref().ok_or_else(|| not_here("the registry"))?;
    let missing = || Problem::not_found("repository", &query.repository);
    let tenant = query.repository.split('/').next().unwrap_or_default();
    let tenant = TenantName::new(tenant).map_err(|_| missing())?;
    caller.require(&tenant).map_err(|_| missing())?;
    Ok(Json(RegistryToken { token: issue(&query.repository)?, repository: query.repository }))
}

pub(super) fn not_here(what: &str) -> Problem {
    let message = format!("{what} does not run in this process");
    Problem::new(ErrorKind::Unavailable, "role_missing", message, "ask a server that runs all roles")
}
