//! The general path: HTTP/2, and the connections that `http1.rs` hands over because they ask for more than an ordinary
//! request. On hyper: parse, route, pass on, answer.

use super::Core;
use super::ahead::{self, AheadBody, NotWhole};
use super::authorize::{self, Denied};
use super::body::{BodyEnd, EndpointBody, RequestBody, ResponseBody};
use super::forward::{Failure, Forward, forward};
use super::gate::{self, Outgoing};
use super::guard::{Control, Guard, InFlight, UpgradeQuestion};
use super::headers::{self, Origin};
use super::record::{Draft, Head, Passed, Recording, Ticket, field, request_id};
use super::spool::SpoolError;
use super::tls::Secured;
use crate::balance::Balance;
use crate::forwarded;
use crate::framing::Refusal;
use crate::metrics::RouteMetrics;
use crate::pages::Page;
use crate::snapshot::{Asked, StickyCookie, host_key, normal_path};
use crate::upstream::Upstream;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// How long a refused client may go on sending, so that it reads the refusal before its connection is reset.
const LINGER: Duration = Duration::from_millis(500);

/// What all requests of one client connection share.
pub(super) struct Connection {
    pub(super) core: Arc<Core>,
    pub(super) peer: SocketAddr,
    pub(super) tls: Option<Secured>,
    pub(super) control: Arc<Control>,
    pub(super) max_uri: usize,
}

/// Serves one client connection to its end.
pub(super) async fn serve<S>(core: Arc<Core>, stream: S, peer: SocketAddr, tls: Option<Secured>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let control = Arc::new(Control::default());
    let (limits, max_uri) = limits_of(&core);
    let guard = Guard::new(stream, limits, Arc::clone(&control), core.room.clone());
    let end_idle = core.end_idle.clone();
    let metrics = core.shared.metrics.clone();
    let max_buffer = limits.max_header_bytes.max(16 * 1024) + 16 * 1024;
    let connection = Arc::new(Connection { core, peer, tls, control, max_uri });
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        let in_flight = connection.control.begin();
        async move {
            let mut response = handle(&connection, request, Some(in_flight)).await;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS && connection.core.keeps_none() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(None).max_headers(crate::framing::MAX_HEADERS);
    http.max_buf_size(max_buffer);
    let mut serving = http.serve_connection(TokioIo::new(guard), service).with_upgrades();
    let mut ends = std::pin::pin!(async {
        end_idle.cancelled().await;
        // A request may be there that this thread has not been told of: it is when the runtime asks the kernel.
        tokio::task::yield_now().await;
    });
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut serving => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a client connection broke off");
                }
                break;
            }
            () = &mut ends, if !draining => {
                draining = true;
                Pin::new(&mut serving).graceful_shutdown();
            }
        }
    }
    let Some(parts) = serving.into_parts() else { return };
    let guard = parts.io.into_inner();
    if let Some(refusal) = guard.unanswered_refusal() {
        metrics.refused(refusal.status);
        refuse(guard.into_stream(), refusal_text(refusal).as_bytes()).await;
    } else if guard.is_in_body() {
        // It was answered before all of it came.
        refuse(guard.into_stream(), b"").await;
    }
}

pub(super) fn limits_of(core: &Core) -> (super::guard::ClientLimits, usize) {
    let limits = core.shared.limits.load();
    (limits.client, limits.max_uri_bytes)
}

/// Writes a last answer and lets the client read it.
pub(super) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &[u8]) {
    let last_words = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut rest = [0u8; 4096];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // Whatever goes wrong now, the connection is over.
    let _ = tokio::time::timeout(LINGER, last_words).await;
}

/// The whole answer to a request that is refused for its form.
pub(super) fn refusal_text(refusal: Refusal) -> String {
    let (status, why) = (refusal.status, refusal.why);
    let reason = StatusCode::from_u16(status).ok().and_then(|it| it.canonical_reason()).unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}\n",
        why.len() + 1
    )
}

/// Answers one request.
pub(super) async fn handle(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    in_flight: Option<InFlight>,
) -> Response<ResponseBody> {
    let mut recording = Recording::new(Instant::now(), noted(connection, &request));
    let response = answer(connection, request, in_flight, &mut recording).await;
    recording.has_status(response.status().as_u16());
    response.map(|it| it.recorded(recording))
}

/// What is kept of a request's head for its line in the access log.
fn noted(connection: &Connection, request: &Request<Incoming>) -> Option<Box<Draft>> {
    let ticket = Ticket::take(&connection.core)?;
    let (headers, host) = (request.headers(), host_of(request));
    Some(ticket.draft(&Head {
        client: connection.peer.ip().to_canonical(),
        tls: connection.tls.as_ref().map(|it| it.version),
        protocol: match request.version() {
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        method: request.method().as_str(),
        target: request.uri().path_and_query().map_or("/", |it| it.as_str()),
        host: &host,
        referer: field(headers, "referer"),
        user_agent: field(headers, "user-agent"),
        request_id: request_id(headers),
    }))
}

/// The answer to one request, as far as it is known with its head; what else is known goes to `recording`.
async fn answer(
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
    in_flight: Option<InFlight>,
    recording: &mut Recording,
) -> Response<ResponseBody> {
    let upgrade = wants_upgrade(&request).then(|| connection.control.upgrade());
    let began = recording.began();
    let core = &connection.core;
    let snapshot = core.shared.snapshot.load_full();
    let written_host = host_of(&request);
    let peer = connection.peer.ip();
    let proxy = Some(&snapshot.trusted_proxies).filter(|it| !it.is_empty());
    let proxy = proxy.filter(|it| it.iter().any(|it| it.contains(&peer.to_canonical())));
    let told = proxy.map(|trusted| forwarded::told(request.headers(), peer, trusted));
    let told = told.as_ref();
    let client = told.map_or(peer, |it| it.client);
    // Of a client whose TLS ends at a trusted proxy: everything that asks whether it came over TLS asks this.
    let own_scheme = if connection.tls.is_some() { "https" } else { "http" };
    let scheme = told.and_then(|it| it.scheme).unwrap_or(own_scheme);
    // First of all: who asks for what is not here has a line as well.
    recording.asked_by(client.to_canonical());
    if request.uri().path_and_query().is_some_and(|it| it.as_str().len() > connection.max_uri) {
        core.shared.metrics.refused(414);
        return page(&uri_too_long(), &request, in_flight);
    }
    if *request.method() == http::Method::CONNECT {
        core.shared.metrics.refused(405);
        let advice = "Ask for the address itself.";
        let refused =
            Page::refused(StatusCode::METHOD_NOT_ALLOWED, "no_connect", "CONNECT is not served here.", advice);
        return page(&refused, &request, in_flight);
    }
    let Some(host) = host_key(&written_host) else {
        core.shared.metrics.refused(404);
        return page(&Page::unknown_host(&written_host), &request, in_flight);
    };
    if let Some(tls) = &connection.tls
        && (!core.shared.certificates.load().same_policy(&tls.entry, &host) || snapshot.is_elsewhere(&host))
    {
        core.shared.metrics.refused(421);
        return page(&Page::misdirected(&host), &request, in_flight);
    }
    let Some(entry) = snapshot.host(&host) else {
        core.shared.metrics.refused(404);
        return page(&Page::unknown_host(&host), &request, in_flight);
    };
    let metrics = &entry.metrics;
    recording.routed(metrics, entry.name());
    if entry.is_unclear(request.uri().path()) {
        metrics.answered(400);
        return page(&Page::bad_path(), &request, in_flight);
    }
    let (rule, read_otherwise) = {
        let path = request.uri().path();
        let asked = Asked {
            method: request.method(),
            path: &normal_path(path),
            query: request.uri().query(),
            headers: request.headers(),
            secure: scheme == "https",
        };
        let rule = entry.find(&asked);
        (rule, entry.is_read_otherwise(path, &asked, rule))
    };
    if read_otherwise {
        metrics.answered(400);
        return page(&Page::bad_path(), &request, in_flight);
    }
    let Some(rule) = rule else {
        metrics.answered(404);
        return page(&Page::unknown_path(&host), &request, in_flight);
    };
    let origin = Origin {
        client,
        scheme,
        chain: told.map(|it| it.chain.as_str()),
        host: &written_host,
        told_host: told.and_then(|it| it.host.as_deref()),
        fresh_id: core.fresh_id(),
    };
    recording.gets(origin.fresh_id);
    let policy = rule.policy.as_deref();
    let mut outgoing = Outgoing::new(rule, request.method(), request.headers(), origin.scheme);
    let mut own = gate::refuse(rule, &request, &origin);
    if own.is_none() {
        let headers = request.headers();
        own = gate::login(core, rule, headers, client).await;
    }
    if let Some(answer) = own.or_else(|| gate::answer(rule, &request, &origin)) {
        metrics.answered(answer.status().as_u16());
        let mut response = answer.map(|it| ResponseBody::own(it, in_flight));
        outgoing.apply(response.headers_mut());
        return response;
    }
    let target = match policy.and_then(|it| it.sticky.as_ref()) {
        Some(sticky) => {
            let (target, known) = rule.sticky_target(sticky.value(request.headers()));
            if !known {
                outgoing.remember(sticky, &StickyCookie::token(target), origin.scheme);
            }
            target
        }
        None => rule.target(),
    };
    let Some(upstream) = snapshot.upstreams.get(target) else {
        metrics.answered(503);
        let starting = Page::not_up(arco_model::traffic::UpstreamState::Starting, target);
        return page(&starting, &request, in_flight);
    };
    let choice = upstream.settings.balance.choice(request.headers(), origin.client);
    let protocol_ok = !upstream.settings.transport.http2
        && request.headers().get(header::UPGRADE).is_some_and(|it| !it.as_bytes().eq_ignore_ascii_case(b"h2c"));
    // An upgrade that is not passed on is answered at once: the request is an ordinary one.
    let upgrade = upgrade.filter(|_| protocol_ok);
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let accept = request.headers().get(header::ACCEPT).cloned();
    let timeouts = rule.timeouts.unwrap_or(upstream.timeouts);
    let sticky_token = choice.token.clone();
    let (mut parts, body) = request.into_parts();
    let is_http2 = parts.version == Version::HTTP_2;
    if is_http2 {
        headers::join_cookies(&mut parts.headers);
    }
    headers::for_endpoint(&mut parts.headers, origin, upgrade.is_some());
    to_origin_form(&mut parts.uri);
    if parts.version != Version::HTTP_11 {
        parts.version = Version::HTTP_11;
    }
    if (is_http2 || !parts.headers.contains_key(header::HOST))
        && let Ok(value) = HeaderValue::from_str(&written_host)
    {
        parts.headers.insert(header::HOST, value);
    }
    if let Some(auth) = policy.and_then(|it| it.forward_auth.as_ref())
        && let Err(denied) = Box::pin(authorize::ask(core, &snapshot, auth, &written_host, &mut parts)).await
    {
        return denied_answer(denied, metrics, outgoing, accept, timeouts.response, in_flight);
    }
    if policy.is_some_and(|it| gate::rewrite(it, rule, &mut parts).is_err()) {
        metrics.answered(400);
        return page_for(&Page::bad_path(), accept, in_flight);
    }
    let (mut body, watch) = RequestBody::new(body, timeouts.request_body);
    recording.watched(watch.as_ref());
    if let Some(max) = policy.and_then(|it| it.protection.max_body_bytes) {
        body.limit(max);
    }
    let deadline = timeouts.total.map(|it| began + it);
    let buffer = policy.map(|it| it.buffer).unwrap_or_default();
    let (mut upstream, mut watch, later) = (upstream, watch, OnceLock::new());
    if buffer.request && watch.is_some() {
        let taking = Box::pin(ahead::whole(core, body, watch.as_deref()));
        let taken = match deadline {
            None => taking.await,
            Some(at) => {
                let late = Err(NotWhole::Client(BodyEnd::TimedOut));
                tokio::time::timeout_at(at.into(), taking).await.unwrap_or(late)
            }
        };
        match taken {
            Ok(held) => (body, watch) = RequestBody::held(held),
            Err(why) => {
                let answer = not_whole_page(why, upstream);
                metrics.answered(answer.status.as_u16());
                let mut response = page_for(&answer, accept, in_flight);
                if !is_http2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                return response;
            }
        }
        // Its instances may be others by now.
        upstream = later.get_or_init(|| core.shared.snapshot.load_full()).upstreams.get(target).unwrap_or(upstream);
    }
    if let Some(policy) = policy {
        gate::mirror(core, &snapshot, policy, &parts, &mut body);
    }
    let retry = policy.and_then(|it| it.retry.as_ref());
    let plan = Forward { core, upstream, timeouts, watch: watch.clone(), began, choice, retry };
    let request = Request::from_parts(parts, body);
    let outcome = match deadline {
        None => forward(plan, request).await,
        Some(at) => {
            let forwarding = Box::pin(tokio::time::timeout_at(at.into(), forward(plan, request)));
            forwarding.await.unwrap_or(Err(Failure::TimedOut))
        }
    };
    let (mut response, exchange) = match outcome {
        Ok(it) => it,
        Err(failure) => {
            let answer = failure_page(watch.map_or(BodyEnd::Well, |it| it.end()), failure, upstream);
            metrics.answered(answer.status.as_u16());
            let mut headers = http::HeaderMap::new();
            accept.map(|it| headers.insert(header::ACCEPT, it));
            let mut response = rendered(&answer, &headers, in_flight);
            if answer.status.is_client_error() && !is_http2 {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return response;
        }
    };
    metrics.answered(response.status().as_u16());
    recording.reached(upstream, exchange.open.endpoint().address);
    if let (Balance::Sticky(cookie), false) = (&upstream.settings.balance, sticks(upstream, &sticky_token, &exchange)) {
        let token = exchange.open.endpoint().token();
        cookie.set(&token, scheme == "https").map(|it| response.headers_mut().append(header::SET_COOKIE, it));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(question), Some(client_side)) = (upgrade, client_side) else {
            // Nobody asked for it.
            exchange.end(false);
            return page_for(&Page::bad_gateway(&upstream.reference), accept, in_flight);
        };
        let recording = std::mem::replace(recording, Recording::new(began, None));
        return switch(connection, question, client_side, response, exchange, in_flight, recording);
    }
    drop(upgrade);
    let (mut parts, incoming) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::UPGRADE);
    let events = parts.headers.get(header::CONTENT_TYPE).is_some_and(|it| headers::is_events(it.as_bytes()));
    let silence = (!events).then_some(timeouts.response);
    parts.version = Version::HTTP_11;
    outgoing.apply(&mut parts.headers);
    let body = if buffer.response && !events && !incoming.is_end_stream() {
        ResponseBody::ahead(AheadBody::start(core, incoming, exchange), watch, silence, in_flight)
    } else {
        ResponseBody::proxied(incoming, exchange, silence, in_flight)
    };
    Response::from_parts(parts, body.until(deadline))
}

/// What a client is told that somebody else did not let in.
fn denied_answer(
    denied: Denied,
    metrics: &RouteMetrics,
    outgoing: Outgoing<'_>,
    accept: Option<HeaderValue>,
    silence: Duration,
    in_flight: Option<InFlight>,
) -> Response<ResponseBody> {
    let Denied::Answer(answer) = denied else {
        metrics.answered(503);
        let (message, advice) = ("Whoever decides about access does not answer.", "Try again in a moment.");
        let page = Page::refused(StatusCode::SERVICE_UNAVAILABLE, "authorization_silent", message, advice);
        return page_for(&page, accept, in_flight);
    };
    let (response, exchange) = *answer;
    metrics.answered(response.status().as_u16());
    let (mut parts, incoming) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::UPGRADE);
    parts.version = Version::HTTP_11;
    outgoing.apply(&mut parts.headers);
    Response::from_parts(parts, ResponseBody::proxied(incoming, exchange, Some(silence), in_flight))
}

/// Answers 101 and joins both sides.
fn switch(
    connection: &Arc<Connection>,
    question: UpgradeQuestion,
    client_side: hyper::upgrade::OnUpgrade,
    mut response: Response<EndpointBody>,
    exchange: super::body::Exchange,
    in_flight: Option<InFlight>,
    mut recording: Recording,
) -> Response<ResponseBody> {
    recording.has_status(response.status().as_u16());
    let endpoint_side = hyper::upgrade::on(&mut response);
    question.accept();
    let stop = connection.core.supervisor.token().clone();
    connection.core.supervisor.spawn("tunnel", arco_daemon::OnExit::Continue, async move {
        let passed = Passed::default();
        let joined = async {
            let (client, endpoint) = tokio::try_join!(client_side, endpoint_side)?;
            let (mut client, mut endpoint) = (passed.count(TokioIo::new(client)), TokioIo::new(endpoint));
            tokio::io::copy_bidirectional(&mut client, &mut endpoint).await?;
            Ok::<_, super::body::BodyError>(())
        };
        tokio::select! {
            ended = joined => if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel broke off");
            },
            () = stop.cancelled() => {}
        }
        recording.passed(passed.received(), passed.sent());
        drop(recording);
        // The request counts as open until here, so that a draining endpoint keeps its tunnels.
        exchange.metrics.open.dec();
        exchange.metrics.finished(exchange.began.elapsed());
        drop(exchange);
        Ok(())
    });
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.remove(header::UPGRADE);
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        parts.headers.insert(header::UPGRADE, protocol);
    }
    Response::from_parts(parts, ResponseBody::own(String::new(), in_flight))
}

/// Whether the guard waits for an answer to this request: the same rule as in `framing`.
fn wants_upgrade(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    let has_length = headers.get(header::CONTENT_LENGTH).is_some_and(|it| it.as_bytes().iter().any(|it| *it != b'0'));
    request.version() == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && !headers.contains_key(header::TRANSFER_ENCODING)
        && !has_length
        && headers::connection_has(headers, "upgrade")
}

/// The host as the client wrote it: of an absolute target, else of the field.
fn host_of(request: &Request<Incoming>) -> String {
    if let Some(authority) = request.uri().authority() {
        return authority.as_str().to_owned();
    }
    request.headers().get(header::HOST).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned()
}

fn to_origin_form(uri: &mut http::Uri) {
    if uri.authority().is_some() {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
        *uri = http::Uri::from(path);
    }
}

/// Whether the client knows this endpoint already.
fn sticks(upstream: &Upstream, token: &Option<String>, exchange: &super::body::Exchange) -> bool {
    matches!(upstream.settings.balance, Balance::Sticky(_))
        && token.as_ref().is_some_and(|it| *it == exchange.open.endpoint().token())
}

fn uri_too_long() -> Page {
    let advice = "Shorten the address, or send what is in it as a body.";
    Page::refused(StatusCode::URI_TOO_LONG, "uri_too_long", "The address is longer than this gateway accepts.", advice)
}

/// What the client is told when there is no response.
pub(super) fn failure_page(body: BodyEnd, failure: Failure, upstream: &Upstream) -> Page {
    match (body, failure) {
        (BodyEnd::TimedOut, _) => Page::request_timeout(),
        (BodyEnd::Failed, _) => malformed_body(),
        (BodyEnd::TooLarge, _) => gate::too_large(),
        (BodyEnd::Lost, _) => Page::not_kept(),
        (BodyEnd::Well, Failure::Full) => Page::overloaded(&upstream.reference),
        (BodyEnd::Well, Failure::NoRoom) => Page::no_room(),
        (BodyEnd::Well, Failure::NoEndpoint) => Page::not_up(upstream.state, &upstream.reference),
        (BodyEnd::Well, Failure::Broken) => Page::bad_gateway(&upstream.reference),
        (BodyEnd::Well, Failure::TimedOut) => Page::gateway_timeout(&upstream.reference),
    }
}

/// What the client is told when its request was not taken whole.
fn not_whole_page(why: NotWhole, upstream: &Upstream) -> Page {
    match why {
        NotWhole::Client(end) => failure_page(end, Failure::Broken, upstream),
        NotWhole::Place(SpoolError::Full) => Page::no_place(),
        NotWhole::Place(SpoolError::NoRoom) => Page::no_room(),
        NotWhole::Place(SpoolError::Broken) => Page::not_kept(),
    }
}

fn malformed_body() -> Page {
    Page {
        status: StatusCode::BAD_REQUEST,
        code: "malformed_body",
        message: "The request body is malformed or broke off.".to_owned(),
        advice: "Send it again on a new connection.",
    }
}

fn page(page: &Page, request: &Request<Incoming>, in_flight: Option<InFlight>) -> Response<ResponseBody> {
    rendered(page, request.headers(), in_flight)
}

fn page_for(page: &Page, accept: Option<HeaderValue>, in_flight: Option<InFlight>) -> Response<ResponseBody> {
    let mut headers = http::HeaderMap::new();
    accept.map(|it| headers.insert(header::ACCEPT, it));
    rendered(page, &headers, in_flight)
}

fn rendered(page: &Page, headers: &http::HeaderMap, in_flight: Option<InFlight>) -> Response<ResponseBody> {
    page.render(headers).map(|it| ResponseBody::own(it, in_flight))
}
