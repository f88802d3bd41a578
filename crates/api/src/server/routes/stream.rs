//! What streams: logs (answered by the log role), programs in instances, and connections to their ports.

use super::super::Api;
use super::super::act::Target;
use super::super::error::ApiError;
use super::super::exec::{ExecAsked, carry};
use super::super::extract::{Asked, ComponentPath, Named};
use super::super::forward;
use super::super::identity::Caller;
use crate::wire::{ErrorBody, ExecQuery, ForwardQuery, LogAnswer, LogQuery};
use arco_model::error::Problem;
use axum::Extension;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use tower::ServiceExt as _;

/// Largest message of a client.
const MESSAGE_MAX: usize = 1 << 20;

/// Log of an operation: JSON, server-sent events (`Accept: text/event-stream`) or WebSocket.
#[utoipa::path(get, path = "/v1/operations/{id}/log", tag = "logs", params(("id" = String, Path), LogQuery),
    responses((status = 200, body = LogAnswer), (status = 404, body = ErrorBody)))]
pub(super) async fn operation_log(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let operation = api.operation(&caller, &id).await?;
    proxy(&api, &format!("/streams/operation/{}", operation.id), request).await
}

/// Log of a component's instances: JSON, server-sent events (`Accept: text/event-stream`) or WebSocket.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/log", tag = "logs", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), LogQuery),
    responses((status = 200, body = LogAnswer), (status = 404, body = ErrorBody)))]
pub(super) async fn component_log(
    State(api): State<Api>,
    Named(path): ComponentPath,
    request: Request,
) -> Result<Response, ApiError> {
    let component = api.component(&Target::from(path)).await?;
    proxy(&api, &format!("/streams/component/{}", component.id), request).await
}

/// Hands a request over to the log role under another path. It is made anew: what our router noted in it (path
/// parameters) would be taken for the other's.
async fn proxy(api: &Api, path: &str, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let query = parts.uri.query().map(|it| format!("?{it}")).unwrap_or_default();
    let mut inner =
        Request::builder().method(parts.method).uri(format!("{path}{query}")).version(parts.version).body(body);
    if let Ok(inner) = &mut inner {
        *inner.headers_mut() = parts.headers;
        if let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() {
            inner.extensions_mut().insert(upgrade);
        }
    }
    let inner = inner.map_err(|_| Problem::internal("hand over a request for a log"))?;
    let Ok(response) = api.deps.eventlog.clone().oneshot(inner).await;
    Ok(response)
}

/// Runs a program in a running instance. WebSocket of binary messages; the first byte is the channel: 0 standard input,
/// 1 standard output, 2 standard error, 3 control as JSON (`resize`, `exit`, `error`).
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/exec", tag = "programs", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ExecQuery),
    responses((status = 101), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn exec(
    State(api): State<Api>,
    Named(path): ComponentPath,
    Asked(query): Asked<Vec<(String, String)>>,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let socket = upgrade(socket)?;
    let session = api.exec(&Target::from(path), ExecAsked::parse(query)?).await?;
    Ok(socket.on_upgrade(move |socket| carry(session, socket)))
}

/// Runs a program in an instance of its own, with the variables and volumes of what serves now. The same messages.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/run", tag = "programs", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ExecQuery),
    responses((status = 101), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn run(
    State(api): State<Api>,
    Named(path): ComponentPath,
    Asked(query): Asked<Vec<(String, String)>>,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let socket = upgrade(socket)?;
    let asked = ExecAsked::parse(query)?;
    let how = asked.how();
    let workload = api.one_off(&Target::from(path), asked).await?;
    Ok(socket.on_upgrade(move |socket| api.run(workload, how, socket)))
}

/// One connection to a TCP port inside a running instance. WebSocket of binary messages as for `exec`: 0 bytes to the
/// instance, 1 bytes from it, an empty one ends that direction; 3 control as JSON (`error`).
#[utoipa::path(get, path = "/v1/tenants/{tenant}/applications/{application}/components/{component}/port-forward", tag = "programs", params(("tenant" = String, Path), ("application" = String, Path), ("component" = String, Path), ForwardQuery),
    responses((status = 101), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn port_forward(
    State(api): State<Api>,
    Named(path): ComponentPath,
    Asked(query): Asked<ForwardQuery>,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let socket = upgrade(socket)?;
    let connection = api.forward(&Target::from(path), &query).await?;
    Ok(socket.on_upgrade(move |socket| forward::carry(connection, socket)))
}

fn upgrade(socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Result<WebSocketUpgrade, Problem> {
    let advice = "use `arco exec`, `arco run` or `arco port-forward`, or a WebSocket client";
    let socket = socket
        .map_err(|it| Problem::invalid("websocket_expected", format!("this call is a WebSocket: {it}"), advice))?;
    Ok(socket.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX))
}
