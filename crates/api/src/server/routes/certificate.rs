//! Certificates of hosts.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Body, Named};
use crate::wire::{ErrorBody, HostCertificateDocument, Page, SetHostCertificate};
use arco_model::name::TenantName;
use axum::Json;
use axum::extract::State;
use http::StatusCode;

/// Certificates of a tenant, with expiry and use.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/certificates", tag = "certificates", params(("tenant" = String, Path)),
    responses((status = 200, body = Page<HostCertificateDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn list(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
) -> Result<Json<Page<HostCertificateDocument>>, ApiError> {
    Ok(Json(Page::whole(api.certificates(&tenant).await?)))
}

/// Keeps a certificate under a name; one that is there is replaced, without a reconnect of anybody.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/certificates/{name}", tag = "certificates",
    params(("tenant" = String, Path), ("name" = String, Path)), request_body = SetHostCertificate,
    responses((status = 200, body = HostCertificateDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn set(
    State(api): State<Api>,
    Named((tenant, name)): Named<(TenantName, String)>,
    Body(request): Body<SetHostCertificate>,
) -> Result<Json<HostCertificateDocument>, ApiError> {
    Ok(Json(api.set_certificate(&tenant, &name, request).await?))
}

/// Takes a certificate away that no route names.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/certificates/{name}", tag = "certificates",
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Named((tenant, name)): Named<(TenantName, String)>,
) -> Result<StatusCode, ApiError> {
    api.delete_certificate(&tenant, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has an automatic certificate issued anew at once.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/certificates/{name}/renew", tag = "certificates",
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 202, body = HostCertificateDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn renew(
    State(api): State<Api>,
    Named((tenant, name)): Named<(TenantName, String)>,
) -> Result<(StatusCode, Json<HostCertificateDocument>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(api.renew_certificate(&tenant, &name).await?)))
}
