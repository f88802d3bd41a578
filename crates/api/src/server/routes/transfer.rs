//! Applications on their way between platforms. Only administrators: secrets leave here, sealed with a key of theirs.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{ApplicationPath, Asked, Body, Named};
use super::super::identity::Caller;
use crate::wire::{
    CarriedApplication, ErrorBody, ExportRequest, ImportQuery, ImportRequest, ImportResult, UploadReceipt,
};
use arco_model::artifact::Digest;
use arco_model::name::TenantName;
use arco_store::blob::content_path;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

/// An application as it is, to be made elsewhere.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/export", tag = "transfer",
    params(("tenant" = String, Path), ("application" = String, Path)), request_body = ExportRequest,
    responses((status = 200, body = CarriedApplication), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn export(
    State(api): State<Api>,
    Named((tenant, application)): ApplicationPath,
    Body(request): Body<ExportRequest>,
) -> Result<Json<CarriedApplication>, ApiError> {
    api.export(&tenant, &application, &request).await.map(Json)
}

/// Makes an application as it was elsewhere; what is here already is never overwritten. Nothing runs before it is started.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/import", tag = "transfer",
    params(("tenant" = String, Path), ("application" = String, Path), ImportQuery), request_body = ImportRequest,
    responses((status = 200, body = ImportResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn import(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, application)): ApplicationPath,
    Asked(query): Asked<ImportQuery>,
    Body(request): Body<ImportRequest>,
) -> Result<Json<ImportResult>, ApiError> {
    api.import(&caller, &tenant, &application, &request, query.dry_run).await.map(Json)
}

/// Content by its digest: a blob of an image, or a source.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/blobs/{digest}", tag = "transfer",
    params(("tenant" = String, Path), ("digest" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
pub(super) async fn get_blob(
    State(api): State<Api>,
    Named((tenant, digest)): Named<(TenantName, Digest)>,
) -> Result<Response, ApiError> {
    api.tenant_exists(&tenant).await?;
    let path = content_path(&digest);
    let size = api.blob_size(&digest).await?;
    let content = api.deps.blobs.get(&path, 0).await?;
    let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, size.to_string())];
    Ok((headers, axum::body::Body::from_stream(content)).into_response())
}

/// Keeps content that has this digest.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/blobs/{digest}", tag = "transfer",
    params(("tenant" = String, Path), ("digest" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = UploadReceipt), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody, description = "Too large, or no room")))]
pub(super) async fn put_blob(
    State(api): State<Api>,
    Named((tenant, digest)): Named<(TenantName, Digest)>,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<UploadReceipt>), ApiError> {
    api.tenant_exists(&tenant).await?;
    Ok((StatusCode::CREATED, Json(api.put_blob(&tenant, body, &digest).await?)))
}
