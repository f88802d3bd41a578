//! Routes of components, and which of them a request would take.

use super::super::Api;
use super::super::act::Target;
use super::super::error::ApiError;
use super::super::extract::{Body, ComponentPath, Named};
use super::super::identity::Caller;
use super::system::not_here;
use crate::wire::{Applied, ErrorBody, Explanation, Page, RouteDocument, RouteRequest};
use arco_model::id::RowId;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::traffic::RouteQuestion;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;

type RoutePath = Named<(TenantName, ApplicationName, ComponentName, RowId)>;

/// Every route of a tenant, with what passes through its host.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/routes", tag = "routes", params(("tenant" = String, Path)),
    responses((status = 200, body = Page<RouteDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn of_tenant(
    State(api): State<Api>,
    Named(tenant): Named<TenantName>,
) -> Result<Json<Page<RouteDocument>>, ApiError> {
    let routes = api.tenant_routes(&tenant).await?;
    Ok(Json(Page::whole(api.with_rates(routes).await)))
}

/// Routes of a component, the default hosts first, with what passes through them.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/routes", tag = "routes", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    responses((status = 200, body = Page<RouteDocument>), (status = 404, body = ErrorBody)))]
pub(super) async fn of_component(
    State(api): State<Api>,
    Named(path): ComponentPath,
) -> Result<Json<Page<RouteDocument>>, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    let routes = api.routes(&component).await?;
    Ok(Json(Page::whole(api.with_rates(routes).await)))
}

/// Adds a route to each of its hosts; one of the component's own for the same requests is replaced.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/routes", tag = "routes",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path)),
    request_body(content = Object, description = "A route: docs/guides/routing.md describes every field"),
    responses((status = 201, body = Page<RouteDocument>), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn add(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(path): ComponentPath,
    Body(request): Body<RouteRequest>,
) -> Result<(StatusCode, Json<Page<RouteDocument>>), ApiError> {
    let added = api.add_route(&caller, &Target::from(path), request).await?;
    Ok((StatusCode::CREATED, Json(Page::whole(added))))
}

/// Makes a route say something else.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/routes/{id}", tag = "routes",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ("id" = String, Path)),
    request_body(content = Object, description = "The whole route as it shall be, with one host"),
    responses((status = 200, body = RouteDocument), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn set(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named((tenant, application, component, id)): RoutePath,
    Body(request): Body<RouteRequest>,
) -> Result<Json<RouteDocument>, ApiError> {
    let target = Target { tenant, application, component };
    Ok(Json(api.set_route(&caller, &target, &id, request).await?))
}

/// Takes a route away.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/routes/{id}", tag = "routes",
    params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Named((tenant, application, component, id)): RoutePath,
) -> Result<StatusCode, ApiError> {
    api.delete_route(&Target { tenant, application, component }, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Waits, for seconds at most, until every live gateway routes by all that was changed before.
#[utoipa::path(post, path = "/v1/gateway/follow", tag = "routes",
    responses((status = 200, body = Applied), (status = 503, body = ErrorBody)))]
pub(super) async fn follow(State(api): State<Api>) -> Result<Json<Applied>, ApiError> {
    Ok(Json(api.gateways_follow().await?))
}

/// Which route a request would take in the running gateway, what is changed, who answers, and why.
#[utoipa::path(post, path = "/v1/gateway/explain", tag = "routes",
    request_body(content = Object, description = "`url`, and if need be `method`, `headers` (`NAME: VALUE`), `client`"),
    responses((status = 200, body = Explanation), (status = 400, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn explain(
    State(api): State<Api>,
    Body(question): Body<RouteQuestion>,
) -> Result<Json<Explanation>, ApiError> {
    let gateway = api.deps.gateway.as_ref().ok_or_else(|| not_here("the gateway"))?;
    Ok(Json(Explanation { url: question.url.clone(), steps: gateway.explain(&question).await? }))
}
