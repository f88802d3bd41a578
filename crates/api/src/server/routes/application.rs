//! Applications.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{ApplicationPath, Asked, Body, Named};
use super::super::identity::Caller;
use crate::wire::{
    ApplicationDocument, ApplyQuery, ApplyRequest, ApplyResult, DeleteQuery, ErrorBody, OperationDocument, Page,
    PageQuery,
};
use arco_model::name::TenantName;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;

/// Applications of a tenant with their components.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications", tag = "applications", params(("tenant" = String, Path), PageQuery),
    responses((status = 200, body = Page<ApplicationDocument>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    Asked(query): Asked<PageQuery>,
) -> Result<Json<Page<ApplicationDocument>>, ApiError> {
    api.applications(&tenant, &query).await.map(Json)
}

/// One application.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}", tag = "applications",
    params(("tenant" = String, Path), ("application" = String, Path)),
    responses((status = 200, body = ApplicationDocument), (status = 404, body = ErrorBody)))]
pub(super) async fn get(
    State(api): State<Api>,
    Named((tenant, application)): ApplicationPath,
) -> Result<Json<ApplicationDocument>, ApiError> {
    api.application(&tenant, &application).await.map(Json)
}

/// Makes a whole application as asked; what the request leaves out goes back to its default.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/applications/{application}", tag = "applications", request_body = ApplyRequest,
    params(("tenant" = String, Path), ("application" = String, Path), ApplyQuery),
    responses((status = 200, body = ApplyResult, description = "Nothing to wait for"), (status = 202, body = ApplyResult),
        (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn apply(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, application)): ApplicationPath,
    Asked(query): Asked<ApplyQuery>,
    Body(request): Body<ApplyRequest>,
) -> Result<(StatusCode, Json<ApplyResult>), ApiError> {
    let result = api.apply(&caller, &tenant, &application, &request, query.dry_run).await?;
    let status = if result.operations.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(result)))
}

/// Deletes an application with all of its components.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/applications/{application}", tag = "applications",
    params(("tenant" = String, Path), ("application" = String, Path), DeleteQuery),
    responses((status = 202, body = Page<OperationDocument>), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, application)): ApplicationPath,
    Asked(query): Asked<DeleteQuery>,
) -> Result<(StatusCode, Json<Page<OperationDocument>>), ApiError> {
    let operations = api.delete_application(&caller, &tenant, &application, query.keep_volumes).await?;
    Ok((StatusCode::ACCEPTED, Json(Page::whole(operations))))
}
