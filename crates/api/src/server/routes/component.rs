//! Components: what is asked of them, and the actions on them. Each action answers 202 with its operation.

use super::super::Api;
use super::super::act::Target;
use super::super::error::ApiError;
use super::super::extract::{Asked, Body, ComponentPath, Named};
use super::super::identity::Caller;
use crate::wire::{
    ComponentDocument, DeleteQuery, DeployRequest, ErrorBody, InstanceUsage, OperationDocument, Page, PageQuery,
    RevisionDocument, RollbackRequest, ScaleRequest, SpecPatch,
};
use arco_model::operation::OperationKind;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;

/// What an action answers.
type Accepted = Result<(StatusCode, Json<OperationDocument>), ApiError>;

fn accepted(operation: OperationDocument) -> (StatusCode, Json<OperationDocument>) {
    (StatusCode::ACCEPTED, Json(operation))
}

/// Status, instances and spec of a component.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 200, body = ComponentDocument), (status = 404, body = ErrorBody)))]
pub(super) async fn get(
    State(api): State<Api>,
    Named(path): ComponentPath,
) -> Result<Json<ComponentDocument>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    api.component_document(component).await.map(Json)
}

/// Changes what is asked; what is absent stays.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)), request_body = SpecPatch,
    responses((status = 202, body = OperationDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn patch(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
    Body(request): Body<SpecPatch>,
) -> Accepted {
    api.patch(&caller, &Target::from(path), &request).await.map(accepted)
}

/// Deletes a component.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), DeleteQuery),
    responses((status = 202, body = OperationDocument), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
    Asked(query): Asked<DeleteQuery>,
) -> Accepted {
    api.delete_component(&caller, &Target::from(path), query.keep_volumes).await.map(accepted)
}

/// Builds a source and rolls it out; application and component are made as needed.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/deploy", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)), request_body = DeployRequest,
    responses((status = 202, body = OperationDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn deploy(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
    Body(request): Body<DeployRequest>,
) -> Accepted {
    api.deploy(&caller, &Target::from(path), &request).await.map(accepted)
}

/// Lets a stopped component run.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/start", tag = "components", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 202, body = OperationDocument), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn start(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
) -> Accepted {
    api.power(&caller, &Target::from(path), OperationKind::Start).await.map(accepted)
}

/// Ends every instance; routes answer 503.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/stop", tag = "components", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 202, body = OperationDocument), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn stop(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
) -> Accepted {
    api.power(&caller, &Target::from(path), OperationKind::Stop).await.map(accepted)
}

/// Replaces every instance.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/restart", tag = "components", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 202, body = OperationDocument), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn restart(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
) -> Accepted {
    api.power(&caller, &Target::from(path), OperationKind::Restart).await.map(accepted)
}

/// Changes number or size of the instances.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/scale", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)), request_body = ScaleRequest,
    responses((status = 202, body = OperationDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn scale(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
    Body(request): Body<ScaleRequest>,
) -> Accepted {
    api.scale(&caller, &Target::from(path), &request).await.map(accepted)
}

/// Serves an older revision again.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/rollback", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)), request_body = RollbackRequest,
    responses((status = 202, body = OperationDocument), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn rollback(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
    Body(request): Body<RollbackRequest>,
) -> Accepted {
    api.rollback(&caller, &Target::from(path), request.revision).await.map(accepted)
}

/// Revisions, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/revisions", tag = "components",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), PageQuery),
    responses((status = 200, body = Page<RevisionDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn revisions(
    State(api): State<Api>,
    Named(path): ComponentPath,
    Asked(query): Asked<PageQuery>,
) -> Result<Json<Page<RevisionDocument>>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    api.revision_documents(&component, &query).await.map(Json)
}

/// Instances with what they use now.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/instances", tag = "components", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 200, body = Page<InstanceUsage>), (status = 404, body = ErrorBody)))]
pub(super) async fn instances(
    State(api): State<Api>,
    Named(path): ComponentPath,
) -> Result<Json<Page<InstanceUsage>>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    Ok(Json(Page::whole(api.usage(&component).await?)))
}
