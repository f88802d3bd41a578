//! What a rule answers by itself, and what it changes on the way in and out. Nothing here waits, but for a password that
//! was not proven before.

use super::Core;
use super::body::{RequestBody, ResponseBody};
use super::forward::{Forward, forward};
use super::headers::{Origin, remove_all_spellings};
use super::passwords;
use crate::pages::Page;
use crate::protect::{Login, Look};
use crate::snapshot::{Action, Cors, Policy, Rule, Snapshot, StickyCookie};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Most copies that are under way at once, of all routes; beyond that requests are not copied.
const MAX_MIRRORED: usize = 256;
static MIRRORED: AtomicUsize = AtomicUsize::new(0);

/// The answer to a request that may not come in, whoever sent it.
pub(super) fn refuse<B>(rule: &Rule, request: &Request<B>, origin: &Origin<'_>) -> Option<Response<String>> {
    let headers = request.headers();
    // Before anything secret is asked for.
    if let Some(redirect) = rule.redirect_to_https(origin.scheme == "https") {
        let answer = redirect.answer(&rule.path, origin.scheme, origin.host, request.uri());
        return Some(answer.unwrap_or_else(|| Page::bad_path().render(headers)));
    }
    let policy = rule.policy.as_deref()?;
    let protection = &policy.protection;
    if !protection.admits(origin.client) {
        let (message, advice) = ("You may not come in from this address.", "Ask whoever runs this application.");
        return Some(Page::refused(StatusCode::FORBIDDEN, "forbidden", message, advice).render(headers));
    }
    if let Some(answer) = policy.cors.as_ref().and_then(|it| it.preflight(request.method(), headers)) {
        return Some(answer);
    }
    protection.wait(origin.client, headers).map(|wait| too_many("You ask too often.", wait, headers))
}

/// The answer to a client at `client` who has no right password where one is needed.
pub(super) async fn login(
    core: &Arc<Core>,
    rule: &Rule,
    headers: &HeaderMap,
    client: IpAddr,
) -> Option<Response<String>> {
    let users = rule.policy.as_deref()?.protection.users.as_ref()?;
    let login = match users.look(headers, client) {
        Look::Known(login) => login,
        // On the heap: most requests never need it.
        Look::Unknown(_) => {
            Box::pin(passwords::judge(&core.shared.judges, &core.supervisor, users, headers, client)).await
        }
    };
    match login {
        Login::Welcome => None,
        Login::TooMany => Some(too_many("You ask too often.", Duration::from_secs(6), headers)),
        Login::Busy => {
            Some(too_many("Many names and passwords are checked just now.", Duration::from_secs(2), headers))
        }
        Login::Refused => {
            let (message, advice) = ("This needs a name and a password.", "Log in, or ask whoever runs this.");
            let page = Page::refused(StatusCode::UNAUTHORIZED, "unauthorized", message, advice);
            let mut answer = page.render(headers);
            let asked = HeaderValue::try_from(format!("Basic realm=\"{}\", charset=\"UTF-8\"", users.realm));
            asked.into_iter().for_each(|it| drop(answer.headers_mut().insert(header::WWW_AUTHENTICATE, it)));
            Some(answer)
        }
    }
}

/// The answer to a request that may come in and needs no endpoint.
pub(super) fn answer<B>(rule: &Rule, request: &Request<B>, origin: &Origin<'_>) -> Option<Response<String>> {
    let (policy, headers) = (rule.policy.as_deref()?, request.headers());
    let protection = &policy.protection;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
    if protection.max_body_bytes.zip(length).is_some_and(|(max, length)| length > max) {
        return Some(too_large().render(headers));
    }
    if let Some(maintenance) = &policy.maintenance
        && !maintenance.allow.iter().any(|it| it.contains(&origin.client.to_canonical()))
    {
        let mut answer = Page::maintenance(&maintenance.message).render(headers);
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(maintenance.retry_after_s));
        return Some(answer);
    }
    match &policy.action {
        Action::Forward => None,
        Action::Answer(answer) => Some(answer.response()),
        Action::Redirect(redirect) => {
            let answer = redirect.answer(&rule.path, origin.scheme, origin.host, request.uri());
            Some(answer.unwrap_or_else(|| Page::bad_path().render(headers)))
        }
    }
}

/// The page for a body that is larger than its route takes.
pub(super) fn too_large() -> Page {
    let (message, advice) = ("The request body is larger than this application accepts.", "Send less at once.");
    Page::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message, advice)
}

fn too_many(message: &str, wait: Duration, headers: &HeaderMap) -> Response<String> {
    let advice = "Wait a moment, then try again.";
    let mut answer = Page::refused(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message, advice).render(headers);
    let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    answer
}

/// What of a request is needed for its response.
pub(super) struct Outgoing<'a> {
    policy: Option<&'a Policy>,
    hsts: Option<&'a HeaderValue>,
    origin: HeaderMap,
    cookie: Option<HeaderValue>,
    preflight: bool,
}

impl<'a> Outgoing<'a> {
    /// For a request by this method with these fields.
    pub(super) fn new(rule: &'a Rule, method: &Method, request: &HeaderMap, scheme: &str) -> Self {
        let policy = rule.policy.as_deref();
        let preflight = policy.is_some_and(|it| it.cors.is_some()) && Cors::is_preflight(method, request);
        let mut origin = HeaderMap::new();
        if let Some(value) = policy.and_then(|it| it.cors.as_ref()).and_then(|_| request.get(header::ORIGIN)) {
            origin.insert(header::ORIGIN, value.clone());
        }
        Self { policy, hsts: rule.hsts(scheme == "https"), origin, cookie: None, preflight }
    }

    /// Lets the client come back to the target `name`.
    pub(super) fn remember(&mut self, sticky: &StickyCookie, token: &str, scheme: &str) {
        self.cookie = sticky.set(token, scheme == "https");
    }

    /// Changes a response, an endpoint's or our own. A preflight is marked already.
    pub(super) fn apply(self, response: &mut HeaderMap) {
        if let Some(cors) = self.policy.and_then(|it| it.cors.as_ref()).filter(|_| !self.preflight) {
            cors.mark(&self.origin, response);
        }
        if let Some(cookie) = self.cookie {
            response.append(header::SET_COOKIE, cookie);
        }
        if let Some(policy) = self.policy {
            policy.response_headers.apply(response);
        }
        if let Some(hsts) = self.hsts {
            response.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }
}

/// Changes the request on its way to an endpoint; the answer when that cannot be done.
pub(super) fn rewrite(policy: &Policy, rule: &Rule, parts: &mut http::request::Parts) -> Result<(), StatusCode> {
    if let Some(path) = &policy.rewrite.path {
        parts.uri = path.apply(&rule.path, &parts.uri).ok_or(StatusCode::BAD_REQUEST)?.into();
    }
    if let Some(host) = &policy.rewrite.host {
        parts.headers.insert(header::HOST, host.clone());
    }
    let edits = &policy.request_headers;
    for name in edits.remove.iter().chain(edits.set.iter().map(|it| &it.0)) {
        remove_all_spellings(&mut parts.headers, name);
    }
    edits.apply(&mut parts.headers);
    Ok(())
}

/// Sends a copy of the request where the rule says so; the copy's fate changes nothing for the client. A body is copied
/// as it passes; a mirror that is too slow for it is cut off.
pub(super) fn mirror(
    core: &Arc<Core>,
    snapshot: &Snapshot,
    policy: &Policy,
    parts: &http::request::Parts,
    body: &mut RequestBody,
) {
    let Some(mirror) = policy.mirror.as_ref().filter(|it| it.takes()) else { return };
    let Some(upstream) = snapshot.upstreams.get(&mirror.upstream).cloned() else { return };
    if parts.headers.contains_key(header::UPGRADE) {
        return;
    }
    if MIRRORED.fetch_add(1, Ordering::Relaxed) >= MAX_MIRRORED {
        MIRRORED.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let copy = body.tee();
    let watch = copy.watch();
    let mut request = Request::new(copy);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    let core = Arc::clone(core);
    let supervisor = core.supervisor.clone();
    supervisor.spawn("mirror", arco_daemon::OnExit::Continue, async move {
        let timeouts = upstream.timeouts;
        let (began, choice) = (Instant::now(), crate::balance::Choice::default());
        let plan = Forward { core: &core, upstream: &upstream, timeouts, watch, began, choice, retry: None };
        if let Ok((response, exchange)) = forward(plan, request).await {
            let mut body = ResponseBody::proxied(response.into_body(), exchange, Some(timeouts.response), None);
            while let Some(Ok(_)) = body.frame().await {}
        }
        MIRRORED.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    });
}
