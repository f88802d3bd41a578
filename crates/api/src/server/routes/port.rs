//! Ports of the gateway that lead to components without HTTP.

use super::super::Api;
use super::super::act::Target;
use super::super::error::ApiError;
use super::super::extract::{Body, ComponentPath, Named};
use crate::wire::{ErrorBody, Page, StreamDocument, StreamRequest};
use arco_model::id::RowId;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use axum::Json;
use axum::extract::State;
use http::StatusCode;

type StreamPath = Named<(TenantName, ApplicationName, ComponentName, RowId)>;

/// Every port of the gateway that leads to a component of a tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/streams", tag = "routes", params(("tenant" = String, Path)),
    responses((status = 200, body = Page<StreamDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn of_tenant(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
) -> Result<Json<Page<StreamDocument>>, ApiError> {
    Ok(Json(Page::whole(api.tenant_streams(&tenant).await?)))
}

/// Ports of the gateway that lead to a component.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/streams", tag = "routes",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 200, body = Page<StreamDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn of_component(
    State(api): State<Api>,
    Named(path): ComponentPath,
) -> Result<Json<Page<StreamDocument>>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    Ok(Json(Page::whole(api.streams(&component).await?)))
}

/// Gives a component a port of the gateway: the asked one, or a free one of the pool.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/streams", tag = "routes",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    request_body = StreamRequest,
    responses((status = 201, body = StreamDocument), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn add(
    State(api): State<Api>,
    Named(path): ComponentPath,
    Body(request): Body<StreamRequest>,
) -> Result<(StatusCode, Json<StreamDocument>), ApiError> {
    Ok((StatusCode::CREATED, Json(api.add_stream(&Target::from(path), request).await?)))
}

/// Takes a port of the gateway from a component.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/streams/{id}", tag = "routes",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Named((tenant, application, component, id)): StreamPath,
) -> Result<StatusCode, ApiError> {
    api.delete_stream(&Target { tenant, application, component }, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
