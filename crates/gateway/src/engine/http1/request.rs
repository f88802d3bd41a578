//! Looks at a request's head: whether it is an ordinary request, which upstream it is for, and the head that an endpoint
//! gets. Nothing here waits.
//!
//! What must hold: a request that is anything but ordinary (malformed, an upgrade, a route with rules of its own, no
//! route) is not judged here; [`Judged::Special`] leaves it, with all of its bytes, to the general path.

use super::half::Left;
use super::response::push_field;
use crate::balance::{Balance, Choice, HashKey};
use crate::engine::record::{Head, Recording, Ticket};
use crate::engine::tls::Secured;
use crate::engine::{Core, headers};
use crate::framing::{Framing, Request, storage};
use crate::metrics::RouteMetrics;
use crate::snapshot::{Asked, Conditions, Snapshot, Timeouts, normal_path};
use crate::upstream::Upstream;
use http::{HeaderMap, HeaderValue, Method, header};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Who asks, and by what listener.
pub(super) struct Client<'a> {
    pub(super) core: &'a Core,
    pub(super) address: IpAddr,
    /// `address` as text.
    pub(super) written: &'a str,
    pub(super) tls: Option<&'a Secured>,
    pub(super) max_uri: usize,
    pub(super) max_head: usize,
}

/// What a head asks for.
#[allow(clippy::large_enum_variant, reason = "moved once, on its way to the heap")]
pub(super) enum Judged {
    /// Not all of it is there.
    Incomplete,
    /// Something for the general path.
    Special,
    /// To be passed on.
    Forward(Plan, Recording),
}

/// An ordinary request.
pub(super) struct Plan {
    pub(super) upstream: Arc<Upstream>,
    pub(super) timeouts: Timeouts,
    pub(super) choice: Choice,
    /// What the endpoint gets.
    pub(super) head: Vec<u8>,
    /// How many bytes the client's head has.
    pub(super) length: usize,
    pub(super) left: Left,
    pub(super) is_head: bool,
    /// Whether it may be sent twice.
    pub(super) repeatable: bool,
    /// Whether the client wants the connection to end.
    pub(super) close: bool,
    /// What the client likes to read, as far as our pages have it.
    accept: Option<&'static str>,
}

impl Plan {
    /// The fields that a page is made for.
    pub(super) fn accept(&self) -> HeaderMap {
        self.accept.map(|it| (header::ACCEPT, HeaderValue::from_static(it))).into_iter().collect()
    }
}

#[derive(Default)]
struct Seen<'b> {
    special: bool,
    close: bool,
    has_id: bool,
    accept: Option<&'b [u8]>,
}

/// Judges the head that `bytes` begin with.
pub(super) fn judge(bytes: &[u8], client: &Client<'_>) -> Judged {
    let mut storage = storage();
    let request = match Request::read(bytes, &mut storage) {
        Ok(Some(request)) => request,
        Ok(None) => return Judged::Incomplete,
        Err(_) => return Judged::Special,
    };
    plan(&request, client).map_or(Judged::Special, |(plan, recording)| Judged::Forward(plan, recording))
}

fn plan(request: &Request<'_, '_>, client: &Client<'_>) -> Option<(Plan, Recording)> {
    let mut seen = Seen::default();
    request.fields.iter().for_each(|it| seen.field(it));
    let host = std::str::from_utf8(request.host?).ok()?;
    let is_plain =
        request.http_11 && !seen.special && request.framing != Framing::Upgrade && request.target.starts_with('/');
    let too_long = request.target.len() > client.max_uri || request.length > client.max_head;
    if !is_plain || too_long || !request.target.bytes().all(is_plain_byte) {
        return None;
    }
    let key = host_key(host)?;
    if let Some(tls) = client.tls
        && !client.core.shared.certificates.load().same_policy(&tls.entry, &key)
    {
        return None;
    }
    let snapshot = client.core.shared.snapshot.load();
    let method = Method::from_bytes(request.method.as_bytes()).ok()?;
    let (metrics, upstream, timeouts) = route(&snapshot, &key, &method, request.target, client.address)?;
    let choice = choice(&upstream, client.address);
    let left = match request.framing {
        Framing::Length(length) => Left::Length(length),
        Framing::Chunked => Left::Chunked(Box::default()),
        Framing::Upgrade => return None,
    };
    let has_body = !matches!(left, Left::Length(0));
    let fresh_id = (!seen.has_id).then(|| client.core.fresh_id());
    let draft = Ticket::take(client.core).map(|ticket| {
        let mut draft = ticket.draft(&noted(request, host, &seen, client));
        draft.named(fresh_id, snapshot.host(&key).map(|it| &it.name));
        draft
    });
    let recording = Recording::of(metrics, Instant::now(), draft);
    let plan = Plan {
        head: head_for_endpoint(request, host, fresh_id, client),
        upstream,
        timeouts,
        choice,
        length: request.length,
        left,
        is_head: request.method == "HEAD",
        repeatable: method.is_idempotent() && !has_body,
        close: seen.close,
        accept: seen.accept.and_then(liked),
    };
    Some((plan, recording))
}

/// What the line of a request says of its head.
fn noted<'a>(request: &Request<'_, 'a>, host: &'a str, seen: &Seen<'_>, client: &Client<'_>) -> Head<'a> {
    let field = |name: &str| {
        let found = request.fields.iter().find(|it| it.name.eq_ignore_ascii_case(name));
        found.map_or(&b""[..], |it| it.value)
    };
    Head {
        client: client.address,
        tls: client.tls.map(|it| it.version),
        protocol: "HTTP/1.1",
        method: request.method,
        target: request.target,
        host,
        referer: field("referer"),
        user_agent: field("user-agent"),
        request_id: if seen.has_id { field("x-request-id") } else { b"" },
    }
}

/// The upstream of a rule that only passes requests on.
pub(in crate::engine) fn route(
    snapshot: &Snapshot,
    host: &str,
    method: &Method,
    target: &str,
    client: IpAddr,
) -> Option<(Arc<RouteMetrics>, Arc<Upstream>, Timeouts)> {
    if !snapshot.trusted_proxies.is_empty() {
        let client = client.to_canonical();
        if snapshot.trusted_proxies.iter().any(|it| it.contains(&client)) {
            return None;
        }
    }
    let entry = snapshot.host(host)?;
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = normal_path(path);
    let headers = HeaderMap::new();
    // Whether it came over TLS is a condition as well.
    let asked = Asked { method, path: &path, query, headers: &headers, secure: false };
    let rule = entry.rules().iter().find(|it| it.is_for(&path))?;
    // With conditions the rule depends on fields, or another rule may be the one.
    if rule.policy.is_some() || rule.conditions != Conditions::default() || !rule.conditions.hold(&asked) {
        return None;
    }
    let fits = |upstream: &&Arc<Upstream>| {
        let settings = &upstream.settings;
        let plain = !settings.transport.http2 && settings.transport.tls.is_none();
        plain && !is_by_fields(&settings.balance)
    };
    let upstream_of = |name: &Arc<str>| snapshot.upstreams.get(name).filter(fits);
    // Before one of several takes its turn: whoever is left to the general path takes it there.
    if rule.targets.len() > 1 && !rule.targets.iter().all(|it| upstream_of(&it.0).is_some()) {
        return None;
    }
    let upstream = upstream_of(rule.target())?;
    Some((Arc::clone(&entry.metrics), Arc::clone(upstream), rule.timeouts.unwrap_or(upstream.timeouts)))
}

/// Whether fields of a request decide about its endpoint.
fn is_by_fields(balance: &Balance) -> bool {
    match balance {
        Balance::Hash(key) => !matches!(key, HashKey::Source),
        Balance::Sticky(_) => true,
        _ => false,
    }
}

/// How an endpoint of an upstream of [`route`] is chosen.
pub(in crate::engine) fn choice(upstream: &Upstream, client: IpAddr) -> Choice {
    match upstream.settings.balance {
        Balance::Hash(HashKey::Source) => upstream.settings.balance.choice(&HeaderMap::new(), client),
        _ => Choice::default(),
    }
}

impl<'b> Seen<'b> {
    fn field(&mut self, field: &httparse::Header<'b>) {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            6 if is("accept") => self.accept = self.accept.or(Some(field.value)),
            6 if is("expect") => self.special = true,
            10 if is("connection") => {
                for option in field.value.split(|it| *it == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        self.close = true;
                    } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                        self.special = true;
                    }
                }
            }
            12 if is("x-request-id") => {
                self.has_id = headers::is_request_id(field.value);
                // A bad one is replaced where fields can be looked at twice.
                self.special |= !self.has_id;
            }
            _ => {}
        }
    }
}

fn head_for_endpoint(request: &Request<'_, '_>, host: &str, id: Option<u128>, client: &Client<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(request.length + 3 * client.written.len() + host.len() + 256);
    for part in [request.method, " ", request.target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for field in request.fields {
        if !headers::stays_here(field.name.as_bytes()) {
            push_field(&mut out, field.name.as_bytes(), field.value);
        }
    }
    if request.framing == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    let scheme = if client.tls.is_some() { "https" } else { "http" };
    push_origin(&mut out, client.written, scheme, host);
    if let Some(id) = id {
        push_id(&mut out, id);
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Appends who asks, and how.
pub(in crate::engine) fn push_origin(out: &mut Vec<u8>, client: &str, scheme: &str, host: &str) {
    for part in [
        "x-forwarded-for: ",
        client,
        "\r\nx-real-ip: ",
        client,
        "\r\nx-forwarded-proto: ",
        scheme,
        "\r\nx-forwarded-host: ",
        host,
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Appends the id of a request.
pub(in crate::engine) fn push_id(out: &mut Vec<u8>, id: u128) {
    out.extend_from_slice(b"x-request-id: ");
    out.extend((0..32).rev().map(|place| b"0123456789abcdef"[(id >> (place * 4)) as usize & 15]));
    out.extend_from_slice(b"\r\n");
}

/// Bytes of a target that every reader takes for what they are.
pub(in crate::engine) fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%?".contains(&byte)
}

/// `Host` as a key: lower case, without port and final dot.
pub(in crate::engine) fn host_key(host: &str) -> Option<Cow<'_, str>> {
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || host.starts_with('[') {
        return None;
    }
    Some(if name.bytes().any(|it| it.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() })
}

/// What of an `Accept` field our pages look at; the same order as there.
pub(in crate::engine) fn liked(accept: &[u8]) -> Option<&'static str> {
    let accept = std::str::from_utf8(accept).ok()?;
    if accept.contains("application/json") || accept.contains("+json") {
        Some("application/json")
    } else if accept.contains("text/html") {
        Some("text/html")
    } else {
        None
    }
}
