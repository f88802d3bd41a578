//! Contexts of people: client certificates that are made, listed and revoked.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Body, Named};
use crate::wire::{CertificateAnswer, CertificateRequest, ContextDocument, ErrorBody, Page};
use axum::Json;
use axum::extract::State;
use http::StatusCode;

/// A client certificate for a person, limited to tenants. It is shown once and not kept.
#[utoipa::path(post, path = "/v1/certificates", tag = "system", request_body = CertificateRequest,
    responses((status = 201, body = CertificateAnswer), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(super) async fn create(
    State(api): State<Api>,
    Body(request): Body<CertificateRequest>,
) -> Result<(StatusCode, Json<CertificateAnswer>), ApiError> {
    Ok((StatusCode::CREATED, Json(api.create_context(request).await?)))
}

/// Certificates that were made for people, revoked ones included.
#[utoipa::path(get, path = "/v1/certificates", tag = "system",
    responses((status = 200, body = Page<ContextDocument>), (status = 403, body = ErrorBody)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Page<ContextDocument>>, ApiError> {
    Ok(Json(Page::whole(api.contexts().await?)))
}

/// Revokes every certificate that was made for a person so far; the person's connections are refused from now on.
#[utoipa::path(delete, path = "/v1/certificates/{name}", tag = "system", params(("name" = String, Path)),
    responses((status = 200, body = Page<ContextDocument>), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn revoke(
    State(api): State<Api>,
    Named(name): Named<String>,
) -> Result<Json<Page<ContextDocument>>, ApiError> {
    Ok(Json(Page::whole(api.revoke_context(&name).await?)))
}
