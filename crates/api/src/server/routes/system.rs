//! The platform itself: readiness, metrics, its document, who asks, registry tokens.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::Asked;
use super::super::identity::Caller;
use crate::wire::{ErrorBody, RegistryToken, RegistryTokenQuery, WhoAmI};
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::TenantName;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
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

pub(in super::super) fn not_here(what: &str) -> Problem {
    let message = format!("{what} does not run in this process");
    Problem::new(ErrorKind::Unavailable, "role_missing", message, "ask a server that runs all roles")
}
