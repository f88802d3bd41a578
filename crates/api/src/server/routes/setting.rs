//! What belongs to one component: volumes, secrets.

use super::super::Api;
use super::super::act::Target;
use super::super::error::ApiError;
use super::super::extract::{Body, ComponentPath, Named};
use super::super::identity::Caller;
use crate::wire::{ErrorBody, OperationDocument, Page, SecretDocument, SetSecret, VolumeDocument};
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;

type SecretPath = Named<(TenantName, ApplicationName, ComponentName, String)>;

/// Volumes of a component.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/volumes", tag = "settings", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 200, body = Page<VolumeDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn volumes(
    State(api): State<Api>,
    Named(path): ComponentPath,
) -> Result<Json<Page<VolumeDocument>>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    Ok(Json(Page::whole(api.volumes(&component).await?)))
}

/// Names and versions of secrets; values never come back.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/secrets", tag = "settings", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 200, body = Page<SecretDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn secrets(
    State(api): State<Api>,
    Named(path): ComponentPath,
) -> Result<Json<Page<SecretDocument>>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    Ok(Json(Page::whole(api.secrets(&component).await?)))
}

/// Sets a new version of a secret.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/secrets/{name}", tag = "settings",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ("name" = String, Path)), request_body = SetSecret,
    responses((status = 202, body = OperationDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn set_secret(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, application, component, name)): SecretPath,
    Body(request): Body<SetSecret>,
) -> Result<(StatusCode, Json<OperationDocument>), ApiError> {
    let target = Target { tenant, application, component };
    Ok((StatusCode::ACCEPTED, Json(api.set_secret(&caller, &target, &name, Some(request.value)).await?)))
}

/// Takes a secret away from what runs; older revisions keep their versions.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/secrets/{name}", tag = "settings",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ("name" = String, Path)),
    responses((status = 202, body = OperationDocument), (status = 404, body = ErrorBody)))]
pub(super) async fn delete_secret(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, application, component, name)): SecretPath,
) -> Result<(StatusCode, Json<OperationDocument>), ApiError> {
    let target = Target { tenant, application, component };
    Ok((StatusCode::ACCEPTED, Json(api.set_secret(&caller, &target, &name, None).await?)))
}
