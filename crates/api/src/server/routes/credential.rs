//! Credentials for private Git repositories. Values never come back.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Asked, Body, Named};
use crate::wire::{CredentialDocument, CredentialQuery, CredentialRequest, ErrorBody, Page};
use arco_model::name::TenantName;
use axum::Json;
use axum::extract::State;
use http::StatusCode;

/// Where credentials hold; not what they are.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/credentials", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 200, body = Page<CredentialDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn list(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
) -> Result<Json<Page<CredentialDocument>>, ApiError> {
    Ok(Json(Page::whole(api.credentials(&tenant).await?)))
}

/// Keeps a credential, sealed; only the step that fetches a repository of its scope gets it.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/credentials", tag = "tenants", params(("tenant" = String, Path)), request_body = CredentialRequest,
    responses((status = 200, body = CredentialDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn set(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    Body(request): Body<CredentialRequest>,
) -> Result<Json<CredentialDocument>, ApiError> {
    api.set_credential(&tenant, request).await.map(Json)
}

/// Forgets a credential.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/credentials", tag = "tenants", params(("tenant" = String, Path), CredentialQuery),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
    Asked(query): Asked<CredentialQuery>,
) -> Result<StatusCode, ApiError> {
    api.delete_credential(&tenant, &query).await?;
    Ok(StatusCode::NO_CONTENT)
}
