//! One request to one of an upstream's endpoints, and to another one when that is safe.
//!
//! What must hold: a request is sent a second time only when none of its bytes were sent, or when its body can be sent
//! again (there is none, or it was taken whole) and its method repeated (RFC 9110 §9.2.2).

use super::Core;
use super::body::{BodyEnd, BodyWatch, EndpointBody, Exchange, RequestBody};
use super::http1::direct;
use super::multiplexed::Taken;
use super::pool::Key;
use super::transport::{Sender, connect};
use crate::balance::Choice;
use crate::snapshot::{Retry, Timeouts};
use crate::upstream::{OpenRequest, Transport, Upstream};
use arco_model::route::RetryOn;
use http::{HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body::Body as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most endpoints that one request tries.
pub(super) const MAX_ENDPOINTS: usize = 4;
/// Most stale connections that one request finds at one endpoint.
pub(super) const MAX_STALE: usize = 2;

/// Why there is no response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// Nobody could be asked.
    NoEndpoint,
    /// Not reachable, or broke off.
    Broken,
    /// No response in time.
    TimedOut,
    /// Too many requests are open.
    Full,
    /// This process has no file descriptor for another connection.
    NoRoom,
}

/// What a request needs on its way.
pub(super) struct Forward<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) timeouts: Timeouts,
    pub(super) watch: Option<Arc<BodyWatch>>,
    pub(super) began: Instant,
    pub(super) choice: Choice,
    /// What its route says about endpoints that fail.
    pub(super) retry: Option<&'a Retry>,
}

/// A request on its way to an endpoint.
pub(super) enum Message {
    /// Without a body, for a plain HTTP/1.1 endpoint.
    Written(Written),
    /// Any other.
    Whole(Box<Request<RequestBody>>),
}

/// The head of a request, as it is sent.
pub(super) struct Written {
    pub(super) head: Vec<u8>,
    /// Whether it is HEAD.
    pub(super) is_head: bool,
    /// Whether it may be sent twice.
    pub(super) repeatable: bool,
}

impl Message {
    /// The form that endpoints of this transport get.
    fn new(mut request: Request<RequestBody>, transport: &Transport) -> Result<Self, http::Error> {
        if transport.http2 {
            for_http2(&mut request, transport)?;
        }
        let is_plain = !transport.http2 && transport.tls.is_none();
        if !(is_plain && request.body().is_end_stream() && direct::is_for(request.headers())) {
            return Ok(Self::Whole(Box::new(request)));
        }
        let (is_head, repeatable) = (*request.method() == Method::HEAD, is_repeatable(&request));
        Ok(Self::Written(Written { head: direct::head(&request), is_head, repeatable }))
    }

    /// The same again, when it may be sent twice.
    fn copy(&self) -> Option<Self> {
        match self {
            Self::Written(it) if it.repeatable => Some(Self::Written(Written { head: it.head.clone(), ..*it })),
            Self::Whole(it) if is_repeatable(it) => Some(Self::Whole(Box::new(copy_of(it)))),
            _ => None,
        }
    }
}

/// A failed attempt; the request is there when it may be sent again.
struct Attempt {
    failure: Failure,
    outcome: RetryOn,
    request: Option<Message>,
}

/// Sends `request` and waits for the head of the response.
pub(super) async fn forward(
    plan: Forward<'_>,
    request: Request<RequestBody>,
) -> Result<(Response<EndpointBody>, Exchange), Failure> {
    let message = Message::new(request, &plan.upstream.settings.transport).map_err(|_| Failure::Broken)?;
    send(plan, message).await
}

/// The same, for a message that is in its form. A block and no async function, which would have room for what it takes twice.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub(super) fn send(
    plan: Forward<'_>,
    mut request: Message,
) -> impl Future<Output = Result<(Response<EndpointBody>, Exchange), Failure>> + Send {
    async move {
        let metrics = &plan.upstream.metrics;
        let mut tried: Vec<SocketAddr> = Vec::new();
        let settings = &plan.upstream.settings;
        let mut last = if plan.upstream.is_limited() { Failure::Full } else { Failure::NoEndpoint };
        plan.retry.into_iter().for_each(Retry::earn);
        let most = plan.retry.map_or(MAX_ENDPOINTS, |it| it.attempts.min(MAX_ENDPOINTS));
        let mut next = plan.upstream.pick_for(&tried, &plan.choice);
        while let Some(open) = next.take() {
            let mut another = || {
                tried.push(open.endpoint().address);
                if tried.len() >= most {
                    return None;
                }
                let other = plan.upstream.pick_for(&tried, &plan.choice)?;
                plan.retry.is_none_or(Retry::spend).then(|| {
                    metrics.retries.inc();
                    other
                })
            };
            let copy = plan.retry.filter(|it| it.wants_any_status()).and_then(|_| request.copy());
            let asked = Instant::now();
            let outcome = match request {
                Message::Written(written) => ask_directly(&plan, &open, written).await,
                // On the heap: what most requests never need would be moved about with each of them.
                Message::Whole(request) => Box::pin(attempt(&plan, &open, *request)).await,
            };
            if let Some(ejection) = &settings.ejection {
                let well = match &outcome {
                    Ok((response, _)) => Some(!response.status().is_server_error()),
                    // Who breaks off a body, or sends too much of one, says nothing about who is asked.
                    Err(_) if plan.watch.as_ref().is_some_and(|it| it.end() != BodyEnd::Well) => None,
                    Err(attempt) => (attempt.failure != Failure::NoRoom).then_some(false),
                };
                if well.is_some_and(|it| open.endpoint().state.ended(it, ejection)) {
                    metrics.ejections.inc();
                    let (name, address) = (&plan.upstream.name, open.endpoint().address);
                    tracing::warn!(upstream = %name, %address, "an endpoint is left out for a while: its answers failed");
                }
            }
            match outcome {
                Ok((response, sender)) => {
                    open.endpoint().state.answered();
                    if let Some(copy) = copy
                        && plan.retry.is_some_and(|it| it.wants_status(response.status()))
                        && let Some(other) = another()
                    {
                        // Its connection ends with it: nobody reads the rest of that answer.
                        (request, next) = (copy, Some(other));
                        continue;
                    }
                    if matches!(settings.balance, crate::balance::Balance::Ewma) {
                        open.endpoint().state.took(asked.elapsed());
                    }
                    metrics.open.inc();
                    if let Some(watch) = &plan.watch {
                        watch.answer_began();
                    }
                    let exchange = Exchange {
                        open,
                        sender,
                        pool: Arc::clone(&plan.core.pool),
                        transport: settings.transport.id,
                        watch: plan.watch,
                        metrics: Arc::clone(metrics),
                        began: plan.began,
                    };
                    return Ok((response, exchange));
                }
                Err(Attempt { failure, outcome, request: again }) => {
                    metrics.failures.inc();
                    last = failure;
                    let Some(again) = again.filter(|_| plan.retry.is_none_or(|it| it.wants(outcome))) else { break };
                    (request, next) = (again, another());
                }
            }
        }
        Err(last)
    }
}

/// A request without a body to a plain HTTP/1.1 endpoint. A block for the reason of [`send`].
#[expect(clippy::manual_async_fn, reason = "see above")]
fn ask_directly(
    plan: &Forward<'_>,
    open: &OpenRequest,
    written: Written,
) -> impl Future<Output = Result<(Response<EndpointBody>, Option<Sender>), Attempt>> + Send {
    async move {
        let (core, address) = (plan.core, open.endpoint().address);
        let key = (address, plan.upstream.settings.transport.id);
        let repeatable = written.repeatable;
        let limit = limit_of(plan, repeatable);
        let mut stale = 0;
        loop {
            let pooled = core.endpoints.take(key, repeatable).filter(|_| stale < MAX_STALE);
            let from_pool = pooled.is_some();
            let endpoint = match pooled {
                Some(endpoint) => endpoint,
                None => match Box::pin(core.connect(address, plan.timeouts.connect)).await {
                    Ok(endpoint) => endpoint,
                    Err(Failure::NoRoom) => {
                        return Err(Attempt { failure: Failure::NoRoom, outcome: RetryOn::Connect, request: None });
                    }
                    Err(failure) => {
                        open.endpoint().state.failed();
                        return Err(Attempt {
                            failure,
                            outcome: RetryOn::Connect,
                            request: Some(Message::Written(written)),
                        });
                    }
                },
            };
            let asked = {
                let asking = std::pin::pin!(direct::ask(core, (key, endpoint), &written.head, written.is_head));
                in_time(asking, limit, None).await
            };
            match asked {
                Some(Ok(response)) => return Ok((response.map(EndpointBody::Direct), None)),
                None => {
                    let request = Some(Message::Written(written)).filter(|_| repeatable && plan.retry.is_some());
                    return Err(Attempt { failure: Failure::TimedOut, outcome: RetryOn::Timeout, request });
                }
                Some(Err(broken)) => {
                    let again = !broken.invalid && (repeatable || !broken.began);
                    tracing::debug!(%address, again, "an endpoint broke off");
                    if !(again && from_pool && !broken.heard) {
                        let request = again.then_some(Message::Written(written));
                        return Err(Attempt { failure: Failure::Broken, outcome: RetryOn::Broken, request });
                    }
                    // Its server closed it while it lay idle; the others of that age are no better.
                    core.endpoints.forget(key);
                    stale += 1;
                }
            }
        }
    }
}

async fn attempt(
    plan: &Forward<'_>,
    open: &OpenRequest,
    mut request: Request<RequestBody>,
) -> Result<(Response<EndpointBody>, Option<Sender>), Attempt> {
    let address = open.endpoint().address;
    let transport = &plan.upstream.settings.transport;
    let key = (address, transport.id);
    let repeatable = is_repeatable(&request);
    let limit = limit_of(plan, repeatable);
    let mut stale = 0;
    loop {
        let (mut sender, from_pool) = match connection(plan, key, repeatable, stale >= MAX_STALE).await {
            Ok(it) => it,
            Err(Failure::NoRoom) => {
                plan.core.room.tighten();
                return Err(Attempt { failure: Failure::NoRoom, outcome: RetryOn::Connect, request: None });
            }
            Err(failure) => {
                open.endpoint().state.failed();
                return Err(Attempt { failure, outcome: RetryOn::Connect, request: Some(whole(request)) });
            }
        };
        if from_pool && matches!(sender, Sender::One(_)) {
            // Its own task looks first whether the endpoint has closed it, or said something that nobody asked for.
            tokio::task::yield_now().await;
        }
        if sender.ready().await.is_err() {
            stale += 1;
            if !from_pool {
                return Err(Attempt {
                    failure: Failure::Broken,
                    outcome: RetryOn::Broken,
                    request: Some(whole(request)),
                });
            }
            continue;
        }
        let copy = repeatable.then(|| copy_of(&request));
        let sent = {
            let sending = std::pin::pin!(sender.send(request));
            in_time(sending, limit, plan.watch.as_deref()).await
        };
        let (failure, unsent, is_gone) = match sent {
            Some(Ok(response)) => return Ok((response.map(EndpointBody::Hyper), Some(sender))),
            Some(Err(mut error)) => {
                let unsent = error.take_message();
                let is_gone = error.error().is_timeout();
                tracing::debug!(%address, error = %error.error(), sent = unsent.is_none(), "an endpoint broke off");
                (Failure::Broken, unsent.or(copy), is_gone)
            }
            None => {
                if let Sender::Many(it) = &sender {
                    it.timed_out();
                }
                // Only where a route says so: whoever is slow gets no more of the same otherwise.
                let request = copy.filter(|_| plan.retry.is_some()).map(whole);
                return Err(Attempt { failure: Failure::TimedOut, outcome: RetryOn::Timeout, request });
            }
        };
        if is_gone {
            // It gave no sign of life: others are asked first.
            open.endpoint().state.failed();
        }
        match unsent {
            Some(again) if from_pool && !is_gone => {
                // Its server closed it while it lay idle; the others of that age are no better.
                match &sender {
                    Sender::One(_) => plan.core.pool.forget(key),
                    Sender::Many(it) => it.leave_out(),
                }
                stale += 1;
                request = again;
            }
            unsent => return Err(Attempt { failure, outcome: RetryOn::Broken, request: unsent.map(whole) }),
        }
    }
}

/// A connection for one request, and whether it was there already; one that was not when it has to be `fresh`.
async fn connection(plan: &Forward<'_>, key: Key, repeatable: bool, fresh: bool) -> Result<(Sender, bool), Failure> {
    let (core, transport, limit) = (plan.core, &plan.upstream.settings.transport, plan.timeouts.connect);
    if !transport.http2 {
        if let Some(sender) = core.pool.take(key, repeatable).filter(|_| !fresh) {
            return Ok((sender, true));
        }
        return Ok((connect(&core.supervisor, transport, key.0, limit).await?, false));
    }
    let (mut deadline, mut waits) = (None, true);
    let leave = loop {
        if fresh {
            break core.multiplexed.another(key);
        }
        match core.multiplexed.take(key, repeatable, waits) {
            Taken::Place(it) => return Ok((Sender::Many(it), true)),
            Taken::Leave(it) => break it,
            Taken::Wait(made) if waits => {
                let deadline = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + limit);
                waits = tokio::time::timeout_at(deadline, made).await.is_ok();
            }
            Taken::Wait(_) => return Err(Failure::TimedOut),
        }
    };
    let sender = connect(&core.supervisor, transport, key.0, limit).await?;
    if let Sender::Many(it) = &sender {
        leave.keep(it);
    }
    Ok((sender, false))
}

fn whole(request: Request<RequestBody>) -> Message {
    Message::Whole(Box::new(request))
}

/// Waits for the response's head. While the request's body still moves or the client has to send, no time runs. `sending` stays
/// where it is, and this is a block, for the reason of [`send`].
#[expect(clippy::manual_async_fn, reason = "see above")]
fn in_time<F: Future<Output: Send> + Send + Unpin>(
    mut sending: F,
    limit: Duration,
    watch: Option<&BodyWatch>,
) -> impl Future<Output = Option<F::Output>> + Send {
    async move {
        let mut deadline = Instant::now() + limit;
        loop {
            tokio::select! {
                biased;
                done = &mut sending => return Some(done),
                () = tokio::time::sleep_until(deadline.into()) => {
                    let moved = watch.map(|it| {
                        let last = if it.waits_for_client() { Instant::now() } else { it.last_progress() };
                        last + limit
                    });
                    match moved.filter(|it| *it > Instant::now()) {
                        Some(later) => deadline = later,
                        None => return None,
                    }
                }
            }
        }
    }
}

/// Gives a request the form that HTTP/2 needs: the host as part of the target.
pub(super) fn for_http2(request: &mut Request<RequestBody>, transport: &Transport) -> Result<(), http::Error> {
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.as_ref().and_then(|it| it.to_str().ok()).unwrap_or_default();
    let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
    let scheme = if transport.tls.is_some() { "https" } else { "http" };
    *request.uri_mut() = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()?;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(())
}

/// How long one endpoint may take: a time of its own is set only where another one can be asked.
fn limit_of(plan: &Forward<'_>, repeatable: bool) -> Duration {
    let limit = plan.retry.and_then(|it| it.attempt).filter(|_| repeatable);
    limit.map_or(plan.timeouts.response, |it| it.min(plan.timeouts.response))
}

/// Whether it may be sent twice: with no body that would be lost, and by its method (RFC 9110 §9.2.2).
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    request.body().is_repeatable() && request.method().is_idempotent()
}

/// The same request again; only for those whose body can be sent again.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(request.body().again().unwrap_or_else(RequestBody::empty));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
