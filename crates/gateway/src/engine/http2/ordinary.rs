//! Requests of HTTP/2 that only pass: without a body, by a rule without conditions and policy, to plain HTTP/1.1 endpoints.
//! Their head is written at once, as for HTTP/1.1 (`http1/request.rs`), without a table of fields in between.
//!
//! What must hold: whatever is not plain, or needs an answer of ours, is left to the general path, untouched.

use crate::balance::Choice;
use crate::engine::Core;
use crate::engine::body::{BodyEnd, ResponseBody};
use crate::engine::forward::{Failure, Forward, Message, Written, send};
use crate::engine::headers;
use crate::engine::http::{Connection, failure_page};
use crate::engine::http1::direct;
use crate::engine::http1::request::{self, Way};
use crate::engine::record::{Head, Recording, Ticket, field, request_id};
use crate::snapshot::Timeouts;
use crate::upstream::Upstream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body::Body as _;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Instant;

/// See the module.
pub(super) struct Ordinary {
    recording: Recording,
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
    choice: Choice,
    written: Written,
    /// `Strict-Transport-Security` of the answer, in place of what the endpoint says.
    hsts: Option<HeaderValue>,
    /// What the client likes to read, as far as our pages have it.
    accept: Option<&'static str>,
}

impl Ordinary {
    /// What `request` needs, if it is one; `client` is its address as text.
    pub(super) fn new(connection: &Connection, client: &str, request: &Request<Incoming>) -> Option<Self> {
        let (uri, fields, method) = (request.uri(), request.headers(), request.method());
        let (host, target) = (uri.authority()?.as_str(), uri.path_and_query()?.as_str());
        let is_plain = *method != Method::CONNECT
            && target.starts_with('/')
            && target.len() <= connection.max_uri
            && target.bytes().all(request::is_plain_byte)
            && !host.contains('@');
        if !is_plain || !request.body().is_end_stream() || !direct::is_for(fields) {
            return None;
        }
        let key = request::host_key(host)?;
        let (core, tls) = (&connection.core, connection.tls.as_ref()?);
        if !core.shared.certificates.load().same_policy(&tls.entry, &key) {
            return None;
        }
        let address = connection.peer.ip();
        let snapshot = core.shared.snapshot.load();
        if snapshot.is_elsewhere(&key) {
            return None;
        }
        let (entry, rule) = request::plain_rule(&snapshot, &key, target, address)?;
        // There is no HTTP/2 here without TLS.
        let Way { upstream, timeouts, hsts } = request::way(&snapshot, rule, true)?;
        let choice = request::choice(&upstream, address);
        let is_head = *method == Method::HEAD;
        let repeatable = method.is_idempotent();
        let id = request_id(fields);
        let fresh_id = id.is_empty().then(|| core.fresh_id());
        let written = Written { head: head(request, host, target, client, fresh_id), is_head, repeatable };
        let draft = Ticket::take(core).map(|ticket| {
            let mut draft = ticket.draft(&Head {
                client: address.to_canonical(),
                tls: Some(tls.version),
                protocol: "HTTP/2.0",
                method: method.as_str(),
                target,
                host,
                referer: field(fields, "referer"),
                user_agent: field(fields, "user-agent"),
                request_id: id,
            });
            draft.named(fresh_id, Some(entry.name()));
            draft
        });
        let recording = Recording::of(Arc::clone(&entry.metrics), Instant::now(), draft);
        let accept = fields.get(header::ACCEPT).and_then(|it| request::liked(it.as_bytes()));
        Some(Self { recording, upstream, timeouts, choice, written, hsts, accept })
    }

    /// Passes it on and the answer back. A block and no async function, which would have room for what it takes twice.
    #[expect(clippy::manual_async_fn, reason = "see above")]
    pub(super) fn pass(mut self, core: &Arc<Core>) -> impl Future<Output = Response<ResponseBody>> + Send {
        async move {
            let deadline = self.timeouts.total.map(|it| self.recording.began() + it);
            let outcome = {
                let plan = Forward {
                    core,
                    upstream: &self.upstream,
                    timeouts: self.timeouts,
                    watch: None,
                    began: self.recording.began(),
                    choice: self.choice,
                    retry: None,
                };
                let message = Message::Written(self.written);
                // Begun in each arm: there is room once for what is not moved from one to the other.
                match deadline {
                    None => send(plan, message).await,
                    Some(at) => {
                        let sending = Box::pin(tokio::time::timeout_at(at.into(), send(plan, message)));
                        sending.await.unwrap_or(Err(Failure::TimedOut))
                    }
                }
            };
            let (mut response, exchange) = match outcome {
                Ok(it) => it,
                Err(failure) => {
                    let page = failure_page(BodyEnd::Well, failure, &self.upstream);
                    self.recording.answered(page.status.as_u16());
                    let accept = self.accept.map(|it| (header::ACCEPT, HeaderValue::from_static(it)));
                    let fields: HeaderMap = accept.into_iter().collect();
                    return page.render(&fields).map(|it| ResponseBody::own(it, None).recorded(self.recording));
                }
            };
            self.recording.answered(response.status().as_u16());
            self.recording.reached(&self.upstream, exchange.open.endpoint().address);
            if let Some(hsts) = self.hsts {
                response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts);
            }
            let kind = response.headers().get(header::CONTENT_TYPE);
            let events = kind.is_some_and(|it| headers::is_events(it.as_bytes()));
            let silence = (!events).then_some(self.timeouts.response);
            let recording = self.recording;
            response.map(|it| ResponseBody::proxied(it, exchange, silence, None).until(deadline).recorded(recording))
        }
    }
}

/// The head that an endpoint gets.
fn head<B>(request: &Request<B>, host: &str, target: &str, client: &str, fresh_id: Option<u128>) -> Vec<u8> {
    let fields = request.headers();
    let length: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut out = Vec::with_capacity(length + target.len() + 2 * client.len() + 2 * host.len() + 256);
    for part in [request.method().as_str(), " ", target, " HTTP/1.1\r\nhost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in fields {
        let name = name.as_str().as_bytes();
        // Cookies are one field in HTTP/1.1 (RFC 9113 §8.2.3), an id is one, too; the host is there already.
        if matches!(name, b"cookie" | b"host" | b"x-request-id") || headers::stays_here(name) {
            continue;
        }
        for part in [name, b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    for (at, crumb) in fields.get_all(header::COOKIE).iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"cookie: " } else { b"; " });
        out.extend_from_slice(crumb.as_bytes());
    }
    if fields.contains_key(header::COOKIE) {
        out.extend_from_slice(b"\r\n");
    }
    request::push_origin(&mut out, client, "https", host);
    match fresh_id {
        Some(id) => request::push_id(&mut out, id),
        None => {
            for part in [&b"x-request-id: "[..], request_id(fields), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}
