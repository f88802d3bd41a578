//! Looks at a request's head: whether it is an ordinary request, which upstream it is for, and the head that an endpoint
//! gets; or that it has to be asked over TLS. Nothing here waits.
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
use crate::snapshot::{Host, Rule, Snapshot, Timeouts, normal_path};
use crate::upstream::Upstream;
use http::{HeaderMap, HeaderValue, Method, Response, Uri, header};
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
    /// To be answered here.
    Answer(Box<Answer>),
}

/// An answer to a request without a body.
pub(super) struct Answer {
    pub(super) page: Response<String>,
    pub(super) recording: Recording,
    /// How many bytes the client's head has.
    pub(super) length: usize,
    pub(super) is_head: bool,
    /// Whether the client wants the connection to end.
    pub(super) close: bool,
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
    /// `Strict-Transport-Security` of the answer, in place of what the endpoint says.
    pub(super) hsts: Option<HeaderValue>,
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
    plan(&request, client).unwrap_or(Judged::Special)
}

fn plan(request: &Request<'_, '_>, client: &Client<'_>) -> Option<Judged> {
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
    if client.tls.is_some() && snapshot.is_elsewhere(&key) {
        return None;
    }
    let method = Method::from_bytes(request.method.as_bytes()).ok()?;
    let (entry, rule) = plain_rule(&snapshot, &key, request.target, client.address)?;
    let secure = client.tls.is_some();
    if let Some(redirect) = rule.redirect_to_https(secure) {
        if request.framing != Framing::Length(0) {
            return None;
        }
        let page = redirect.answer(&rule.path, "http", host, &Uri::try_from(request.target).ok()?)?;
        let fresh_id = (!seen.has_id).then(|| client.core.fresh_id());
        let mut recording = recording(request, host, &seen, client, entry, fresh_id);
        recording.answered(page.status().as_u16());
        let (length, is_head, close) = (request.length, request.method == "HEAD", seen.close);
        return Some(Judged::Answer(Box::new(Answer { page, recording, length, is_head, close })));
    }
    let Way { upstream, timeouts, hsts } = way(&snapshot, rule, secure)?;
    let choice = choice(&upstream, client.address);
    let left = match request.framing {
        Framing::Length(length) => Left::Length(length),
        Framing::Chunked => Left::Chunked(Box::default()),
        Framing::Upgrade => return None,
    };
    let has_body = !matches!(left, Left::Length(0));
    let fresh_id = (!seen.has_id).then(|| client.core.fresh_id());
    let recording = recording(request, host, &seen, client, entry, fresh_id);
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
        hsts,
        accept: seen.accept.and_then(liked),
    };
    Some(Judged::Forward(plan, recording))
}

/// What is counted of a request that the routes of `entry` answer, and its line.
fn recording<'a>(
    request: &Request<'_, 'a>,
    host: &'a str,
    seen: &Seen<'_>,
    client: &Client<'_>,
    entry: &Host,
    fresh_id: Option<u128>,
) -> Recording {
    let draft = Ticket::take(client.core).map(|ticket| {
        let mut draft = ticket.draft(&noted(request, host, seen, client));
        draft.named(fresh_id, Some(entry.name()));
        draft
    });
    Recording::of(Arc::clone(&entry.metrics), Instant::now(), draft)
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

/// The rule for a request and its host, if the rule only leads to HTTPS or passes requests on.
pub(in crate::engine) fn plain_rule<'a>(
    snapshot: &'a Snapshot,
    host: &str,
    target: &str,
    client: IpAddr,
) -> Option<(&'a Host, &'a Rule)> {
    if !snapshot.trusted_proxies.is_empty() {
        let client = client.to_canonical();
        if snapshot.trusted_proxies.iter().any(|it| it.contains(&client)) {
            return None;
        }
    }
    let entry = snapshot.host(host)?;
    let written = target.split_once('?').map_or(target, |it| it.0);
    let path = normal_path(written);
    if matches!(path, Cow::Owned(_)) && entry.is_unclear(written) {
        return None;
    }
    // Who leaves out what stands behind a `;` may find another rule.
    if entry.differs_by_path() && path.contains(';') {
        return None;
    }
    let rule = entry.rules().iter().find(|it| it.is_for(&path))?;
    // With conditions (that it came over TLS is one, too) the rule depends on fields, or another rule may be the one.
    rule.is_plain().then_some((&**entry, rule))
}

/// What becomes of a request that only passes.
pub(in crate::engine) struct Way {
    pub(in crate::engine) upstream: Arc<Upstream>,
    pub(in crate::engine) timeouts: Timeouts,
    /// As in [`Plan`].
    pub(in crate::engine) hsts: Option<HeaderValue>,
}

/// The way of a request that came over TLS (`secure`) or did not, by a [`plain_rule`] that does not lead it to HTTPS.
pub(in crate::engine) fn way(snapshot: &Snapshot, rule: &Rule, secure: bool) -> Option<Way> {
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
    let upstream = Arc::clone(upstream_of(rule.target())?);
    let timeouts = rule.timeouts.unwrap_or(upstream.timeouts);
    Some(Way { upstream, timeouts, hsts: rule.hsts(secure).cloned() })
}

/// Whether fields of a request decide about its endpoint.
fn is_by_fields(balance: &Balance) -> bool {
    match balance {
        Balance::Hash(key) => !matches!(key, HashKey::Source),
        Balance::Sticky(_) => true,
        _ => false,
    }
}

/// How an endpoint of an upstream of [`way`] is chosen.
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
                // A bad one is replaced, and of several one passed on, where fields can be looked at twice.
                self.special |= self.has_id || !headers::is_request_id(field.value);
                self.has_id = true;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::source::file::FileSource;

    /// What becomes of a request for `host` from `client`.
    fn fate(snapshot: &Snapshot, host: &str, client: [u8; 4], secure: bool) -> String {
        let Some((entry, rule)) = plain_rule(snapshot, host, "/x;v=1?y", client.into()) else {
            return "special".to_owned();
        };
        assert_eq!(**entry.name(), *host);
        if let Some(redirect) = rule.redirect_to_https(secure) {
            return format!("led away by {}", redirect.status.as_u16());
        }
        match way(snapshot, rule, secure) {
            None => "special".to_owned(),
            Some(it) => {
                format!("passes to {} {}", it.upstream.name, it.hsts.as_ref().map_or("", |it| it.to_str().unwrap()))
            }
        }
    }

    #[test]
    fn what_is_said_about_plain_http_makes_no_request_special() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        let file = "upstreams: [{name: a, endpoints: ['127.0.0.1:9000']}, {name: s, endpoints: ['127.0.0.1:9001'], protocol: http2}]\n\
             trusted_proxies: [10.0.0.0/8]\n\
             routes:\n\
             \x20 - {hosts: [plain.test], targets: [{upstream: a}]}\n\
             \x20 - {hosts: [paths.test], targets: [{upstream: a}]}\n\
             \x20 - {hosts: [paths.test], paths: [{prefix: /admin}], targets: [{upstream: a}]}\n\
             \x20 - {hosts: [led.test], targets: [{upstream: a}], tls: {redirect: true}}\n\
             \x20 - {hosts: [told.test], targets: [{upstream: a}], tls: {hsts_max_age_s: 60}}\n\
             \x20 - {hosts: [both.test], targets: [{upstream: a}], tls: {redirect: true, hsts_max_age_s: 60}}\n\
             \x20 - {hosts: [ruled.test], targets: [{upstream: a}], tls: {redirect: true}, max_body_bytes: 5}\n\
             \x20 - {hosts: [split.test], scheme: https, targets: [{upstream: a}], tls: {hsts_max_age_s: 60}}\n\
             \x20 - {hosts: [s.test], targets: [{upstream: s}], tls: {redirect: true, hsts_max_age_s: 60}}\n";
        std::fs::write(&path, file).unwrap();
        let snapshot = FileSource::new(&path, Metrics::new()).load().unwrap().snapshot;
        for (host, plain, secure) in [
            ("plain.test", "passes to a ", "passes to a "),
            // Which of its rules is meant, depends on who reads the parameter.
            ("paths.test", "special", "special"),
            ("led.test", "led away by 308", "passes to a "),
            ("told.test", "passes to a ", "passes to a max-age=60"),
            ("both.test", "led away by 308", "passes to a max-age=60"),
            ("ruled.test", "special", "special"),
            ("split.test", "special", "special"),
            ("s.test", "led away by 308", "special"),
        ] {
            assert_eq!(fate(&snapshot, host, [192, 0, 2, 1], false), plain, "{host} by plain HTTP");
            assert_eq!(fate(&snapshot, host, [192, 0, 2, 1], true), secure, "{host} over TLS");
            // What it says of its client is to be read first.
            for secure in [false, true] {
                assert_eq!(fate(&snapshot, host, [10, 0, 0, 1], secure), "special", "{host} by a trusted proxy");
            }
        }
    }
}
