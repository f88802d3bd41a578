//! The table of routes, from which the OpenAPI document is made: neither can be there without the other.
//!
//! A handler parses, calls one function and answers. Who may call is decided before it ([`super::identity`]).

mod application;
mod certificate;
mod component;
mod context;
mod credential;
mod operation;
mod port;
mod route;
mod setting;
mod stack;
mod stream;
mod system;
mod tenant;
mod transfer;

pub(super) use system::not_here;

use super::Api;
use super::error::ApiError;
use super::identity;
use arco_model::error::{ErrorKind, Problem};
use axum::http::Uri;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use std::any::Any;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The head of the document; paths and schemas come with the routes.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Arco API",
        description = "Self-hosted application platform. Calls carry a client certificate of the platform's own authority. \
                       Errors are `application/problem+json` with `code`, `message`, `advice` and, if there is one, `operation`."
    ),
    components(schemas(crate::wire::ErrorBody))
)]
struct Head;

fn table() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Head::openapi())
        .routes(routes!(system::healthz))
        .routes(routes!(system::metrics))
        .routes(routes!(system::document))
        .routes(routes!(system::whoami))
        .routes(routes!(context::list, context::create))
        .routes(routes!(context::revoke))
        .routes(routes!(system::registry_token))
        .routes(routes!(stack::list))
        .routes(routes!(stack::keep, stack::forget))
        .routes(routes!(tenant::list, tenant::create))
        .routes(routes!(tenant::change, tenant::delete))
        .routes(routes!(tenant::upload))
        .routes(routes!(tenant::has_upload))
        .routes(routes!(tenant::volumes))
        .routes(routes!(tenant::delete_volume))
        .routes(routes!(tenant::storage))
        .routes(routes!(tenant::volume_classes))
        .routes(routes!(credential::list, credential::set, credential::delete))
        .routes(routes!(certificate::list))
        .routes(routes!(certificate::set, certificate::delete))
        .routes(routes!(certificate::renew))
        .routes(routes!(application::list))
        .routes(routes!(application::get, application::apply, application::delete))
        .routes(routes!(transfer::export))
        .routes(routes!(transfer::import))
        .routes(routes!(transfer::get_blob, transfer::put_blob))
        .routes(routes!(component::get, component::patch, component::delete))
        .routes(routes!(component::deploy))
        .routes(routes!(component::start))
        .routes(routes!(component::stop))
        .routes(routes!(component::restart))
        .routes(routes!(component::scale))
        .routes(routes!(component::rollback))
        .routes(routes!(component::revisions))
        .routes(routes!(component::instances))
        .routes(routes!(setting::volumes))
        .routes(routes!(route::of_tenant))
        .routes(routes!(route::of_component, route::add))
        .routes(routes!(route::set, route::delete))
        .routes(routes!(port::of_tenant))
        .routes(routes!(port::of_component, port::add))
        .routes(routes!(port::delete))
        .routes(routes!(route::explain))
        .routes(routes!(route::follow))
        .routes(routes!(setting::secrets))
        .routes(routes!(setting::set_secret, setting::delete_secret))
        .routes(routes!(stream::component_log))
        .routes(routes!(stream::exec))
        .routes(routes!(stream::port_forward))
        .routes(routes!(stream::run))
        .routes(routes!(operation::list))
        .routes(routes!(operation::get))
        .routes(routes!(operation::cancel))
        .routes(routes!(stream::operation_log))
}

/// The OpenAPI document.
pub fn openapi() -> OpenApi {
    table().into_openapi()
}

/// All routes over their state.
pub(super) fn router(api: Api) -> Router {
    let (router, document) = table().split_for_parts();
    let document = Arc::new(document.to_json().unwrap_or_default());
    router
        .route_layer(from_fn_with_state(api.clone(), identity::authorize))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(system::Document(document)))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(api)
}

async fn unknown(uri: Uri) -> ApiError {
    let message = format!("`{}` is not a path of this API", uri.path().chars().take(200).collect::<String>());
    Problem::new(
        ErrorKind::NotFound,
        "path_unknown",
        message,
        "`/openapi.json` lists the paths; the command line must have the platform's version",
    )
    .into()
}

async fn wrong_method(method: http::Method, uri: Uri) -> Response {
    let message = format!("`{}` does not answer {method}", uri.path().chars().take(200).collect::<String>());
    let mut response =
        ApiError::from(Problem::invalid("method_not_allowed", message, "`/openapi.json` lists the methods"))
            .into_response();
    *response.status_mut() = http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or_default(), "a handler panicked");
    ApiError::from(Problem::internal("answer this request")).into_response()
}
