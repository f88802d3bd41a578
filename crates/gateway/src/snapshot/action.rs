//! What is done with a request that a rule is for: answered here, or changed and passed on. Pure.

use super::matching::{PathMatch, Pattern, below, is_two_faced, normal_path};
use http::header::{self, HeaderMap, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Response, StatusCode};
use std::borrow::Cow;
use std::sync::Arc;

/// Who answers.
#[derive(Debug, Default)]
pub enum Action {
    /// One of the rule's targets.
    #[default]
    Forward,
    /// A redirect.
    Redirect(Redirect),
    /// This answer.
    Answer(Answer),
}

/// What is done with plain HTTP, and told about it.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Https {
    /// Where requests by plain HTTP go.
    pub redirect: Option<Redirect>,
    /// `Strict-Transport-Security` of answers over TLS (RFC 6797 §7: never over plain HTTP).
    pub hsts: Option<HeaderValue>,
}

/// A new path, host and port for the client to ask.
#[derive(Debug, Eq, PartialEq)]
pub struct Redirect {
    /// `http` or `https`; `None` keeps the request's.
    pub scheme: Option<&'static str>,
    /// Host without port; `None` keeps the request's.
    pub host: Option<String>,
    /// Port; `None` is the scheme's usual one when scheme or host change, else the request's.
    pub port: Option<u16>,
    /// Path; `None` keeps the request's. The query stays.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

impl Redirect {
    /// The answer to a request for `path_and_query` on `host` (as the client wrote it).
    pub fn answer(&self, matched: &PathMatch, scheme: &str, host: &str, uri: &http::Uri) -> Option<Response<String>> {
        let written = host.rsplit_once(':').filter(|it| it.1.bytes().all(|it| it.is_ascii_digit()));
        let name = self.host.as_deref().unwrap_or_else(|| written.map_or(host, |it| it.0));
        let kept = written.filter(|_| self.host.is_none() && self.scheme.is_none_or(|it| it == scheme)).map(|it| it.1);
        let new_scheme = self.scheme.unwrap_or(scheme);
        let port = match (self.port, kept) {
            (Some(80), _) if new_scheme == "http" => String::new(),
            (Some(443), _) if new_scheme == "https" => String::new(),
            (Some(port), _) => format!(":{port}"),
            (None, Some(kept)) => format!(":{kept}"),
            (None, None) => String::new(),
        };
        let path = match &self.path {
            Some(rewrite) => rewrite.apply(matched, uri)?,
            None => uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
        };
        let location = HeaderValue::from_str(&format!("{new_scheme}://{name}{port}{path}")).ok()?;
        let mut response = Response::new(String::new());
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::LOCATION, location);
        Some(response)
    }
}

/// A fixed answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: HeaderValue,
    /// Text.
    pub body: Arc<str>,
}

impl Answer {
    /// As a response.
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(self.body.to_string());
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, self.content_type.clone());
        response
    }
}

/// While set, only some clients come through.
#[derive(Debug)]
pub struct Maintenance {
    /// One sentence for people.
    pub message: String,
    /// `Retry-After` in seconds.
    pub retry_after_s: u32,
    /// Clients that come through nevertheless.
    pub allow: Vec<ipnet::IpNet>,
}

/// How a path is changed; the query stays.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathRewrite {
    /// All of it.
    Full(String),
    /// The prefix that the rule matched.
    Prefix(String),
    /// What the expression finds, by a replacement that may hold `$1`, `${name}`.
    Regex(Pattern, String),
}

impl PathRewrite {
    /// The new path with the query of `uri`; `None` when no valid path comes out.
    pub fn apply(&self, matched: &PathMatch, uri: &http::Uri) -> Option<PathAndQuery> {
        let path = uri.path();
        // A path that was matched in another spelling is sent on in the spelling that was matched.
        let straight = !path.contains("/.") && !path.contains("//") && !is_two_faced(path);
        let mut new = match self {
            Self::Full(full) => full.clone(),
            Self::Prefix(prefix) => {
                let old = match matched {
                    PathMatch::Prefix(old) | PathMatch::Exact(old) => old.as_str(),
                    PathMatch::Regex(_) => "/",
                };
                let normal;
                let rest = match below(path, old).filter(|_| straight) {
                    Some(rest) => rest,
                    None => {
                        normal = encoded(&normal_path(path));
                        below(&normal, old)?
                    }
                };
                format!("{}{rest}", prefix.strip_suffix('/').unwrap_or(prefix))
            }
            Self::Regex(pattern, replacement) if straight && pattern.0.is_match(path) => {
                pattern.0.replace(path, replacement.as_str()).into_owned()
            }
            Self::Regex(pattern, replacement) => {
                match pattern.0.replace(&encoded(&normal_path(path)), replacement.as_str()) {
                    // It is found in no spelling.
                    Cow::Borrowed(_) => path.to_owned(),
                    Cow::Owned(new) => new,
                }
            }
        };
        if !new.starts_with('/') {
            new.insert(0, '/');
        }
        if let Some(query) = uri.query() {
            // The replacement of an expression may bring a query along.
            new.push(if new.contains('?') { '&' } else { '?' });
            new.push_str(query);
        }
        PathAndQuery::try_from(new).ok()
    }
}

fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What the endpoint is asked instead.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// Path.
    pub path: Option<PathRewrite>,
    /// `Host`.
    pub host: Option<HeaderValue>,
}

/// Changes of header fields: removed, then set, then added.
#[derive(Debug, Default)]
pub struct HeaderEdits {
    /// Replaced, or new.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside what is there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Gone.
    pub remove: Vec<HeaderName>,
}

impl HeaderEdits {
    /// Changes `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// A copy of requests; its answers are thrown away.
#[derive(Debug)]
pub struct Mirror {
    /// Upstream that gets the copies.
    pub upstream: Arc<str>,
    /// Share of the requests in percent.
    pub percent: u32,
    pub(super) turn: std::sync::atomic::AtomicU32,
}

impl Mirror {
    /// A mirror of `percent` of the requests, 0 to 100.
    pub fn new(upstream: Arc<str>, percent: u32) -> Self {
        Self { upstream, percent, turn: std::sync::atomic::AtomicU32::new(0) }
    }

    /// Whether the next request is copied: exactly the share of each hundred, well mixed.
    pub fn takes(&self) -> bool {
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // 61 has no common divisor with 100: the steps visit each place once.
        (turn % 100) * 61 % 100 < self.percent
    }
}

/// Cross-origin rules (the Fetch standard's CORS protocol).
#[derive(Debug)]
pub struct Cors {
    /// Origins: exact, `*`, or `https://*.example.com`.
    pub origins: Vec<String>,
    /// `Access-Control-Allow-Methods`.
    pub methods: HeaderValue,
    /// `Access-Control-Allow-Headers`; `None` allows what is asked for.
    pub headers: Option<HeaderValue>,
    /// `Access-Control-Expose-Headers`.
    pub expose: Option<HeaderValue>,
    /// Whether cookies and the like may be sent.
    pub credentials: bool,
    /// How long a browser may remember, in seconds.
    pub max_age_s: u32,
}

impl Cors {
    /// Whether a browser asks before its request.
    pub fn is_preflight(method: &Method, request: &HeaderMap) -> bool {
        let asked = request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        *method == Method::OPTIONS && asked && request.contains_key(header::ORIGIN)
    }

    /// The answer to a preflight request; `None` when it is none.
    pub fn preflight(&self, method: &Method, request: &HeaderMap) -> Option<Response<String>> {
        if !Self::is_preflight(method, request) {
            return None;
        }
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        if self.mark(request, headers) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let asked = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(allowed) = self.headers.as_ref().or(asked) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age_s));
            headers.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
        }
        Some(response)
    }

    /// Marks a response to `request`; what the endpoint said about origins is replaced. Returns whether it is allowed.
    pub fn mark(&self, request: &HeaderMap, response: &mut HeaderMap) -> bool {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            response.remove(name);
        }
        let any = !self.credentials && self.origins.iter().any(|it| it == "*");
        if !any {
            response.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = request.get(header::ORIGIN) else { return false };
        if !origin.to_str().is_ok_and(|it| self.origins.iter().any(|rule| is_origin(rule, it))) {
            return false;
        }
        let shown = if any { HeaderValue::from_static("*") } else { origin.clone() };
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, shown);
        if self.credentials {
            response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        true
    }
}

fn is_origin(rule: &str, origin: &str) -> bool {
    match rule.split_once("*.") {
        _ if rule == "*" => true,
        Some((scheme, suffix)) => origin
            .strip_prefix(scheme)
            .and_then(|it| it.strip_suffix(suffix))
            .is_some_and(|it| it.len() > 1 && it.ends_with('.') && !it.contains(['/', '@'])),
        None => origin.eq_ignore_ascii_case(rule),
    }
}
