//! Requests that somebody else decides about: an upstream is asked before the request goes on.
//!
//! What must hold: without a yes nobody comes in, whatever goes wrong; fields that the answer vouches for never come from
//! the client.

use super::Core;
use super::body::{EndpointBody, Exchange, RequestBody, ResponseBody};
use super::forward::{Forward, forward};
use super::headers::{remove_all_spellings, strip_hop_by_hop};
use crate::balance::Choice;
use crate::snapshot::{ForwardAuth, Snapshot};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, Version, header};
use http_body_util::BodyExt as _;
use std::sync::Arc;
use std::time::Instant;

/// Longest body of a yes that is read to use its connection again, in pieces.
const MAX_PIECES: usize = 16;

/// Fields about the body, which stays here, and about the resource, which another answer must not be measured by.
const NOT_ASKED: [HeaderName; 11] = [
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

/// Why a request does not come in.
pub(super) enum Denied {
    /// This is what the client is told.
    Answer(Box<(Response<EndpointBody>, Exchange)>),
    /// Nobody decided.
    Silent,
}

/// Asks whether a request for `host` with these parts, as an endpoint would get it, may come in; then its fields are those
/// that the answer vouches for.
pub(super) async fn ask(
    core: &Arc<Core>,
    snapshot: &Snapshot,
    auth: &ForwardAuth,
    host: &str,
    parts: &mut Parts,
) -> Result<(), Denied> {
    let upstream = snapshot.upstreams.get(&auth.upstream).ok_or(Denied::Silent)?;
    let timeouts = upstream.timeouts;
    let (began, choice) = (Instant::now(), Choice::default());
    let plan = Forward { core, upstream, timeouts, watch: None, began, choice, retry: None };
    let (response, exchange) = forward(plan, question(auth, host, parts)).await.map_err(|_| Denied::Silent)?;
    if !response.status().is_success() {
        if response.status().is_informational() {
            exchange.end(false);
            return Err(Denied::Silent);
        }
        return Err(Denied::Answer(Box::new((response, exchange))));
    }
    for name in &auth.copy {
        remove_all_spellings(&mut parts.headers, name);
    }
    for name in &auth.copy {
        for value in response.headers().get_all(name) {
            parts.headers.append(name, value.clone());
        }
    }
    let mut body = ResponseBody::proxied(response.into_body(), exchange, Some(timeouts.response), None);
    for _ in 0..MAX_PIECES {
        if !matches!(body.frame().await, Some(Ok(_))) {
            break;
        }
    }
    Ok(())
}

/// The request's fields without its body, and what was asked for. Of the host it is told what the request was routed by: by
/// what a proxy may have passed on from its client, it would judge another host.
fn question(auth: &ForwardAuth, host: &str, parts: &Parts) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = auth.path.clone().into();
    let mut headers = parts.headers.clone();
    strip_hop_by_hop(&mut headers);
    for name in NOT_ASKED {
        headers.remove(name);
    }
    let asked = parts.uri.path_and_query().map_or("/", |it| it.as_str());
    let told = [("x-forwarded-host", host), ("x-forwarded-method", parts.method.as_str()), ("x-forwarded-uri", asked)];
    for (name, value) in told {
        headers.remove(name);
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    *request.headers_mut() = headers;
    request
}
