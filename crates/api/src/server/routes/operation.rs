//! Operations.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Asked, Named};
use super::super::identity::Caller;
use super::super::read::matches;
use crate::wire::{ErrorBody, OperationDocument, OperationQuery, Page, PageQuery};
use arco_model::name::TenantName;
use axum::extract::State;
use axum::{Extension, Json};

/// Operations of a tenant, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/operations", tag = "operations",
    params(("tenant" = String, Path), PageQuery, OperationQuery), responses((status = 200, body = Page<OperationDocument>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<OperationQuery>,
) -> Result<Json<Page<OperationDocument>>, ApiError> {
    api.tenant_exists(&tenant).await?;
    let OperationQuery { application, component, failed } = query;
    let wanted = |it: &_| matches(it, &tenant, application.as_deref(), component.as_deref(), failed);
    api.operations(&page, wanted).await.map(Json)
}

/// One operation.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations", params(("id" = String, Path)),
    responses((status = 200, body = OperationDocument), (status = 404, body = ErrorBody)))]
pub(super) async fn get(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Result<Json<OperationDocument>, ApiError> {
    Ok(Json(OperationDocument::from(&api.operation(&caller, &id).await?)))
}

/// Ends a build. What is being rolled out already is taken back by a rollback instead.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", tag = "operations", params(("id" = String, Path)),
    responses((status = 200, body = OperationDocument), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn cancel(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Result<Json<OperationDocument>, ApiError> {
    api.cancel(&caller, &id).await.map(Json)
}
