//! One request and its response: an endpoint is asked (another one, when that is safe), and both bodies pass at once.
//!
//! What must hold: a request is sent a second time only when none of its bytes were sent, or when it has no body and its
//! method may be repeated (RFC 9110 §9.2.2); a connection to an endpoint is used again only after a whole exchange with
//! nothing left over.

use super::endpoint::Endpoint;
use super::half::{Broken, Half};
use super::request::Plan;
use super::response::{self, Asked, Reply};
use super::{End, Session};
use crate::balance::Balance;
use crate::engine::body::BodyEnd;
use crate::engine::forward::{Failure, MAX_ENDPOINTS, MAX_STALE};
use crate::engine::http::failure_page;
use crate::engine::record::Recording;
use crate::metrics::UpstreamMetrics;
use crate::upstream::OpenRequest;
use http::StatusCode;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};

/// Most informational responses before the response itself.
const MAX_INFORMATIONAL: usize = 16;
/// For what may take any time.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why there is no response to pass on.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The endpoint's fault; and whether another may be asked.
    Endpoint(Failure, bool),
    /// The client's body.
    Body(BodyEnd),
    /// The client has left.
    Gone,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sending {
    Goes,
    Done,
    /// The endpoint takes no more of it; what it answers counts.
    Refused,
}

/// A response that has begun.
struct Answer {
    endpoint: Endpoint,
    down: Half,
    sending: Sending,
    close: bool,
    keeps: bool,
    events: bool,
    status: StatusCode,
}

/// Counts a response that is under way.
struct Counted<'a> {
    metrics: &'a UpstreamMetrics,
    began: Instant,
    /// Once it is over.
    took: Option<Duration>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.finished(self.took.unwrap_or_else(|| self.began.elapsed()));
        self.metrics.open.dec();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Answers the request that `plan` is for, whose head and what follows it is in `bytes`.
    ///
    /// Not an `async fn`, whose arguments would lie in it twice: it is allocated for each request, and the allocator has
    /// no quick way for more than a kilobyte.
    pub(super) fn exchange(
        &mut self,
        mut plan: Plan,
        mut recording: Recording,
        bytes: Vec<u8>,
    ) -> impl Future<Output = End> {
        let began = recording.began();
        let mut up = Half::new(bytes);
        let left = std::mem::replace(&mut plan.left, super::half::Left::Length(0));
        up.begin(plan.length, std::mem::take(&mut plan.head), left);
        async move {
            let mut fault = None;
            let asked = self.ask(&plan, &mut up, began);
            let Ok((mut answer, open)) = asked.await.map_err(|it| fault = Some(it)) else {
                let (end, failure) = match fault {
                    Some(Fault::Endpoint(failure, _)) => (BodyEnd::Well, failure),
                    Some(Fault::Body(end)) => (end, Failure::Broken),
                    Some(Fault::Gone) | None => {
                        recording.passed(up.passed(), 0);
                        return End::Close;
                    }
                };
                return Box::pin(self.fail(&plan, recording, &up, end, failure)).await;
            };
            recording.answered(answer.status.as_u16());
            recording.reached(&plan.upstream, open.endpoint().address);
            let metrics = &plan.upstream.metrics;
            metrics.open.inc();
            let mut counted = Counted { metrics, began, took: None };
            let mut since = None;
            let whole = poll_fn(|cx| self.poll_relay(cx, &plan, &mut up, &mut answer, &mut since, began)).await;
            let took = began.elapsed();
            counted.took = Some(took);
            drop(counted);
            recording.passed(up.passed(), answer.down.passed());
            recording.took(took);
            if !whole {
                return End::Close;
            }
            let Answer { endpoint, down, sending, close, keeps, .. } = answer;
            if keeps && sending == Sending::Done && down.unseen().is_empty() {
                let key = (open.endpoint().address, plan.upstream.settings.transport.id);
                self.core.endpoints.put(key, endpoint);
            }
            match sending {
                Sending::Done if close => End::Close,
                Sending::Done => End::Keep(up.into_unseen()),
                Sending::Goes | Sending::Refused => End::Linger,
            }
        }
    }

    async fn fail(&mut self, plan: &Plan, mut recording: Recording, up: &Half, end: BodyEnd, failure: Failure) -> End {
        let page = failure_page(end, failure, &plan.upstream);
        recording.answered(page.status.as_u16());
        let close = plan.close || page.status.is_client_error() || !up.is_read() || self.core.keeps_none();
        let page = page.render(&plan.accept());
        let sent = self.page(&page, plan.is_head, close).await;
        recording.passed(up.passed(), if sent && !plan.is_head { page.body().len() as u64 } else { 0 });
        match (sent, up.is_read()) {
            (false, _) => End::Close,
            (true, false) => End::Linger,
            (true, true) if close => End::Close,
            (true, true) => End::Keep(up.unseen().to_vec()),
        }
    }

    /// Asks one endpoint after the other until one has answered. Not an `async fn`, for the same reason.
    fn ask<'a>(
        &'a mut self,
        plan: &'a Plan,
        up: &'a mut Half,
        began: Instant,
    ) -> impl Future<Output = Result<(Answer, OpenRequest), Fault>> + use<'a, S> {
        let (upstream, settings) = (&plan.upstream, &plan.upstream.settings);
        let mut tried: Vec<SocketAddr> = Vec::new();
        async move {
            let mut last = if upstream.is_limited() { Failure::Full } else { Failure::NoEndpoint };
            while tried.len() < MAX_ENDPOINTS {
                let Some(open) = upstream.pick_for(&tried, &plan.choice) else { break };
                if !tried.is_empty() {
                    upstream.metrics.retries.inc();
                }
                let outcome = self.attempt(plan, &open, up, began).await;
                let (address, state) = (open.endpoint().address, &open.endpoint().state);
                if let Some(ejection) = &settings.ejection {
                    let well = match &outcome {
                        Ok(answer) => Some(!answer.status.is_server_error()),
                        Err(Fault::Endpoint(Failure::NoRoom, _)) => None,
                        Err(Fault::Endpoint(..)) => Some(false),
                        Err(_) => None,
                    };
                    if well.is_some_and(|it| state.ended(it, ejection)) {
                        upstream.metrics.ejections.inc();
                        let name = &upstream.name;
                        tracing::warn!(upstream = %name, %address, "an endpoint is left out for a while: its answers failed");
                    }
                }
                match outcome {
                    Ok(answer) => {
                        state.answered();
                        if matches!(settings.balance, Balance::Ewma) {
                            state.took(began.elapsed());
                        }
                        return Ok((answer, open));
                    }
                    Err(Fault::Endpoint(failure, again)) => {
                        upstream.metrics.failures.inc();
                        last = failure;
                        if !again {
                            break;
                        }
                    }
                    Err(fault) => return Err(fault),
                }
                tried.push(address);
            }
            Err(Fault::Endpoint(last, false))
        }
    }

    /// Asks one endpoint. Not an `async fn`, for the same reason.
    fn attempt<'a>(
        &'a mut self,
        plan: &'a Plan,
        open: &'a OpenRequest,
        up: &'a mut Half,
        began: Instant,
    ) -> impl Future<Output = Result<Answer, Fault>> + use<'a, S> {
        let key = (open.endpoint().address, plan.upstream.settings.transport.id);
        let mut stale = 0;
        async move {
            loop {
                let pooled = self.core.endpoints.take(key, plan.repeatable).filter(|_| stale < MAX_STALE);
                let fresh = pooled.is_none();
                let mut endpoint = match pooled {
                    Some(endpoint) => endpoint,
                    // On the heap: most requests find a connection.
                    _ => match Box::pin(self.core.connect(key.0, plan.timeouts.connect)).await {
                        Ok(endpoint) => endpoint,
                        Err(Failure::NoRoom) => return Err(Fault::Endpoint(Failure::NoRoom, false)),
                        Err(failure) => {
                            open.endpoint().state.failed();
                            return Err(Fault::Endpoint(failure, true));
                        }
                    },
                };
                let mut talk = Talk {
                    down: Half::new(Vec::new()),
                    sending: Sending::Goes,
                    close: false,
                    since: if fresh { Instant::now() } else { began },
                    waited: false,
                    informed: 0,
                };
                let spoken = poll_fn(|cx| self.poll_talk(cx, plan, up, &mut endpoint, &mut talk, began)).await;
                let Talk { mut down, sending, close, .. } = talk;
                match spoken {
                    Ok(reply) => {
                        let Reply { status, length, head, left, keeps, events } = reply;
                        down.begin(length, head, left);
                        return Ok(Answer { endpoint, down, sending, close, keeps, events, status });
                    }
                    Err(Fault::Endpoint(Failure::Broken, _)) => {
                        let again = plan.repeatable || !up.began;
                        tracing::debug!(address = %key.0, again, "an endpoint broke off");
                        if again {
                            up.rewind();
                        }
                        if !(again && !fresh && down.unseen().is_empty()) {
                            return Err(Fault::Endpoint(Failure::Broken, again));
                        }
                        // Its server closed it while it lay idle; the others of that age are no better.
                        self.core.endpoints.forget(key);
                        stale += 1;
                    }
                    Err(fault) => return Err(fault),
                }
            }
        }
    }

    /// Sends the request and reads the head of the response.
    fn poll_talk(
        &mut self,
        cx: &mut Context<'_>,
        plan: &Plan,
        up: &mut Half,
        endpoint: &mut Endpoint,
        talk: &mut Talk,
        began: Instant,
    ) -> Poll<Result<Reply, Fault>> {
        self.poll_send(cx, up, endpoint, &mut talk.sending)?;
        loop {
            if talk.informed > 0 && !talk.down.is_done() {
                // An informational response goes first.
                match talk.down.poll(cx, &mut endpoint.0, &mut self.stream) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Gone)),
                }
            }
            if !talk.down.unseen().is_empty() {
                talk.close = plan.close || talk.sending != Sending::Done || self.core.keeps_none();
                let asked = Asked { head: plan.is_head, close: talk.close, hsts: plan.hsts.as_ref() };
                let spare = if plan.repeatable { Vec::with_capacity(512) } else { up_spare(up, talk.sending) };
                match response::read(talk.down.unseen(), asked, spare) {
                    Ok(None) => {}
                    Ok(Some(reply)) if !reply.status.is_informational() => return Poll::Ready(Ok(reply)),
                    Ok(Some(reply)) if reply.status != StatusCode::SWITCHING_PROTOCOLS => {
                        talk.informed += 1;
                        if talk.informed > MAX_INFORMATIONAL {
                            return Poll::Ready(Err(Fault::Endpoint(Failure::Broken, false)));
                        }
                        if reply.status == StatusCode::CONTINUE {
                            // Nobody asked for it: requests that do are not served here.
                            talk.down.skip(reply.length);
                        } else {
                            talk.down.begin(reply.length, reply.head, reply.left);
                        }
                        continue;
                    }
                    Ok(Some(_)) => return Poll::Ready(Err(Fault::Endpoint(Failure::Broken, false))),
                    Err(why) => {
                        tracing::debug!(upstream = %plan.upstream.name, why, "a response is not valid");
                        return Poll::Ready(Err(Fault::Endpoint(Failure::Broken, false)));
                    }
                }
            }
            match talk.down.poll_more(cx, &mut endpoint.0) {
                Poll::Pending => break,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(Err(Fault::Endpoint(Failure::Broken, false))),
            }
        }
        if self.poll_gone(cx, up, talk.sending) {
            return Poll::Ready(Err(Fault::Gone));
        }
        let waits_for_client = talk.sending == Sending::Goes && up.reads;
        let limit = if waits_for_client { plan.timeouts.request_body } else { plan.timeouts.response };
        // The first look follows right after the head was read: it needs no clock.
        let moved = std::mem::take(&mut up.moved) | std::mem::take(&mut talk.down.moved);
        if moved && std::mem::replace(&mut talk.waited, true) {
            talk.since = Instant::now();
        }
        match self.poll_late(cx, talk.since + limit, plan.timeouts.total.map(|it| began + it)) {
            false => Poll::Pending,
            true if waits_for_client => Poll::Ready(Err(Fault::Body(BodyEnd::TimedOut))),
            true => Poll::Ready(Err(Fault::Endpoint(Failure::TimedOut, false))),
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Half,
        endpoint: &mut Endpoint,
        sending: &mut Sending,
    ) -> Result<(), Fault> {
        if *sending == Sending::Goes {
            match up.poll(cx, &mut self.stream, &mut endpoint.0) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => *sending = Sending::Done,
                Poll::Ready(Err(Broken::Sink)) => *sending = Sending::Refused,
                Poll::Ready(Err(Broken::Source)) => return Err(Fault::Gone),
                Poll::Ready(Err(Broken::Framing(refusal))) => {
                    tracing::debug!(why = refusal.why, "a request body is not valid");
                    return Err(Fault::Body(BodyEnd::Failed));
                }
            }
        }
        Ok(())
    }

    /// Whether the client has left. What it sends meanwhile is kept for later.
    fn poll_gone(&mut self, cx: &mut Context<'_>, up: &mut Half, sending: Sending) -> bool {
        sending == Sending::Done
            && up.unseen().is_empty()
            && matches!(up.poll_more(cx, &mut self.stream), Poll::Ready(Ok(0) | Err(_)))
    }

    fn poll_late(&mut self, cx: &mut Context<'_>, deadline: Instant, total: Option<Instant>) -> bool {
        self.timer.set(total.map_or(deadline, |it| it.min(deadline)).into());
        self.timer.poll(cx).is_ready()
    }

    /// Passes the response on, and what is left of the request; ready with whether that was all of the response.
    fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        plan: &Plan,
        up: &mut Half,
        answer: &mut Answer,
        since: &mut Option<Instant>,
        began: Instant,
    ) -> Poll<bool> {
        if self.poll_send(cx, up, &mut answer.endpoint, &mut answer.sending).is_err() {
            return Poll::Ready(false);
        }
        match answer.down.poll(cx, &mut answer.endpoint.0, &mut self.stream) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => return Poll::Ready(true),
            Poll::Ready(Err(broken)) => {
                if !matches!(broken, Broken::Sink) {
                    plan.upstream.metrics.failures.inc();
                    tracing::debug!(upstream = %plan.upstream.name, ?broken, "a response broke off");
                }
                return Poll::Ready(false);
            }
        }
        if self.poll_gone(cx, up, answer.sending) {
            return Poll::Ready(false);
        }
        // What the client still sends, and when, is between it and the endpoint: no limit of its own is on its silence.
        let limit = if !answer.down.reads {
            self.limits.idle
        } else if answer.events {
            FOREVER
        } else {
            plan.timeouts.response
        };
        if std::mem::take(&mut up.moved) | std::mem::take(&mut answer.down.moved) || since.is_none() {
            *since = Some(Instant::now());
        }
        let since = since.unwrap_or(began);
        if self.poll_late(cx, since + limit, plan.timeouts.total.map(|it| began + it)) {
            tracing::debug!(upstream = %plan.upstream.name, "a response took too long");
            return Poll::Ready(false);
        }
        Poll::Pending
    }
}

/// What an attempt knows until there is a response.
struct Talk {
    down: Half,
    sending: Sending,
    close: bool,
    /// When something moved last.
    since: Instant,
    waited: bool,
    /// How many informational responses there were.
    informed: usize,
}

/// The request's head is not needed any more once it is sent and will not be sent again.
fn up_spare(up: &mut Half, sending: Sending) -> Vec<u8> {
    if sending == Sending::Done { up.spare() } else { Vec::new() }
}
