//! Stacks that the platform keeps. Only administrators change them: everybody's sources are built on them.

use super::super::Api;
use super::super::error::ApiError;
use super::super::extract::{Body, Named};
use crate::wire::{ErrorBody, Page, StackDocument, StackRequest};
use axum::Json;
use axum::extract::State;
use http::StatusCode;

/// Stacks that the platform keeps; servers that are root of their machine make others themselves.
#[utoipa::path(get, path = "/v1/stacks", tag = "system", responses((status = 200, body = Page<StackDocument>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Page<StackDocument>>, ApiError> {
    Ok(Json(Page::whole(api.stacks().await?)))
}

/// Keeps a stack; one of the same name and edition is replaced. Its blobs are sent before.
#[utoipa::path(put, path = "/v1/stacks/{name}", tag = "system", params(("name" = String, Path)), request_body = StackRequest,
    responses((status = 200, body = StackDocument), (status = 400, body = ErrorBody)))]
pub(super) async fn keep(
    State(api): State<Api>,
    Named(name): Named<String>,
    Body(request): Body<StackRequest>,
) -> Result<Json<StackDocument>, ApiError> {
    api.keep_stack(&name, &request).await.map(Json)
}

/// Forgets every edition of a stack.
#[utoipa::path(delete, path = "/v1/stacks/{name}", tag = "system", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn forget(State(api): State<Api>, Named(name): Named<String>) -> Result<StatusCode, ApiError> {
    api.forget_stack(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
