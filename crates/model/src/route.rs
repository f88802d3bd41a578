//! Routes: which requests are meant, who answers them, and what is changed on the way. One schema for the API, the
//! keys below `/gateway/hosts/`, and the gateway's own file.
//!
//! What must hold: [`Route::check`] refuses whatever a gateway could not serve, so that a stored route never fails
//! there. A route is generic over what a target is called: a component for people ([`ComponentTarget`]), an id for
//! gateways ([`UpstreamTarget`]), an upstream's name in the file (`String`).
//!
//! Not here: how a request is matched and answered (the gateway's `snapshot`).

mod action;
mod balance;
mod check;
mod endpoints;
mod host;
mod target;
#[cfg(test)]
mod tests;

pub use action::{
    Answer, BasicAuth, Buffer, Cors, HeaderEdits, Maintenance, RateKey, RateLimit, Redirect, RegexRewrite, Rewrite,
    Sticky,
};
pub use balance::{Balance, HashBy};
pub use endpoints::{Circuit, HealthCheck, Retry, RetryOn, UpstreamTls};
pub use host::{HostError, check_host};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
pub use target::{ComponentTarget, ForwardAuth, Mirror, Target, TargetError, UpstreamTarget};

/// Path prefix of the answers to ACME's HTTP-01 challenges (RFC 8555 §8.3).
pub const CHALLENGE_PREFIX: &str = "/.well-known/acme-challenge/";

/// One route.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route<T> {
    /// Hosts, exact, `*.suffix` or `*`; empty where the place of the route says it.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Any of these paths; empty means all.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathMatch>,
    /// One of these methods; empty means any.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Conditions on header fields; all must hold.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FieldMatch>,
    /// Conditions on cookies.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<FieldMatch>,
    /// Conditions on parameters of the query.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<FieldMatch>,
    /// Only requests that came over this; either when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Who answers, with shares.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target<T>>,
    /// Keeps a client at the target that it got first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// How an instance of a target is chosen; in turn when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// When a request is sent to another instance; when absent, after every failure that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When an instance gets no requests for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,
    /// How instances are asked whether they are well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Instances are asked over TLS, and must show a certificate of this name and authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_tls: Option<UpstreamTls>,
    /// Who gets copies of requests.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror<T>>,
    /// What the endpoint is asked instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Answers with a redirect; there are no targets then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answers with this; there are no targets then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Set while only some may come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    /// Changes of the request.
    #[serde(default, skip_serializing_if = "HeaderEdits::is_empty")]
    pub request_headers: HeaderEdits,
    /// Changes of the response.
    #[serde(default, skip_serializing_if = "HeaderEdits::is_empty")]
    pub response_headers: HeaderEdits,
    /// Cross-origin rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// When not empty, only clients of these networks may come in.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// Clients of these networks may not, whatever `allow` says.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
    /// All must have room.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// Names and passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// Somebody else decides who may come in: an answer from 200 to 299 lets in, any other is the client's.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub forward_auth: Option<ForwardAuth<T>>,
    /// Largest request body in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    /// What the gateway takes whole, or ahead of who reads it.
    #[serde(default, skip_serializing_if = "Buffer::is_empty")]
    pub buffer: Buffer,
    /// Limits of time.
    #[serde(default, skip_serializing_if = "RouteTimeouts::is_empty")]
    pub timeouts: RouteTimeouts,
    /// Certificate and HTTPS.
    #[serde(default, skip_serializing_if = "RouteTls::is_empty")]
    pub tls: RouteTls,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Default for Route<T> {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            paths: Vec::new(),
            methods: Vec::new(),
            headers: Vec::new(),
            cookies: Vec::new(),
            query: Vec::new(),
            scheme: None,
            targets: Vec::new(),
            sticky: None,
            balance: None,
            retry: None,
            circuit: None,
            health_check: None,
            upstream_tls: None,
            mirror: None,
            rewrite: None,
            redirect: None,
            answer: None,
            maintenance: None,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            cors: None,
            allow: Vec::new(),
            deny: Vec::new(),
            rate_limits: Vec::new(),
            basic_auth: None,
            forward_auth: None,
            max_body_bytes: None,
            buffer: Buffer::default(),
            timeouts: RouteTimeouts::default(),
            tls: RouteTls::default(),
        }
    }
}

impl<T> Route<T> {
    /// Whether the gateway answers by itself.
    pub fn answers_itself(&self) -> bool {
        self.redirect.is_some() || self.answer.is_some()
    }

    /// Whether it passes TLS connections on, by the name that clients ask for; it says nothing about HTTP then.
    pub fn passes_through(&self) -> bool {
        self.tls.certificate.as_deref() == Some(TLS_PASSTHROUGH)
    }

    /// Everything that is called, the mirror and who decides about access included.
    pub fn callees(&self) -> impl Iterator<Item = &T> {
        let targets = self.targets.iter().map(|it| &it.to).chain(self.mirror.iter().map(|it| &it.to));
        targets.chain(self.forward_auth.iter().map(|it| &it.to))
    }

    /// The same route with other names for its targets; those without one are left out. A mirror goes silently; when who
    /// decides about access has no name, nobody comes in.
    pub fn rename<U, E>(self, mut name: impl FnMut(T) -> Result<Option<U>, E>) -> Result<Route<U>, E> {
        let mut targets = Vec::new();
        for Target { to, weight } in self.targets {
            targets.extend(name(to)?.map(|to| Target { to, weight }));
        }
        let mirror = match self.mirror {
            Some(Mirror { to, percent }) => name(to)?.map(|to| Mirror { to, percent }),
            None => None,
        };
        let mut answer = self.answer;
        let mut forward_auth = None;
        if let Some(ForwardAuth { to, path, copy_headers }) = self.forward_auth {
            forward_auth = name(to)?.map(|to| ForwardAuth { to, path, copy_headers });
            if forward_auth.is_none() {
                targets.clear();
                let body = "Whoever decides about access to this is gone.\n".to_owned();
                answer = Some(Answer { status: 503, body, content_type: None });
            }
        }
        Ok(Route {
            hosts: self.hosts,
            paths: self.paths,
            methods: self.methods,
            headers: self.headers,
            cookies: self.cookies,
            query: self.query,
            scheme: self.scheme,
            targets,
            sticky: self.sticky,
            balance: self.balance,
            retry: self.retry,
            circuit: self.circuit,
            health_check: self.health_check,
            upstream_tls: self.upstream_tls,
            mirror,
            rewrite: self.rewrite,
            redirect: self.redirect,
            answer,
            maintenance: self.maintenance,
            request_headers: self.request_headers,
            response_headers: self.response_headers,
            cors: self.cors,
            allow: self.allow,
            deny: self.deny,
            rate_limits: self.rate_limits,
            basic_auth: self.basic_auth,
            forward_auth,
            max_body_bytes: self.max_body_bytes,
            buffer: self.buffer,
            timeouts: self.timeouts,
            tls: self.tls,
        })
    }

    /// Which requests are meant, beside the host: two routes of a host with equal texts would take them from each other.
    pub fn meaning(&self) -> String {
        let sorted = |list: &[FieldMatch]| {
            let mut list: Vec<_> = list.iter().map(FieldMatch::to_string).collect();
            list.sort();
            list.join(",")
        };
        if self.passes_through() {
            return "TLS, passed through".to_owned();
        }
        let mut paths: Vec<_> = self.paths.iter().map(|it| it.to_string()).collect();
        let mut methods = self.methods.clone();
        paths.sort();
        methods.sort();
        let paths = if paths.is_empty() { "prefix /".to_owned() } else { paths.join(",") };
        let mut meaning = paths;
        for (word, conditions) in [
            ("over", self.scheme.map(|it| it.as_str().to_owned()).unwrap_or_default()),
            ("methods", methods.join(",")),
            ("headers", sorted(&self.headers)),
            ("cookies", sorted(&self.cookies)),
            ("query", sorted(&self.query)),
        ] {
            if !conditions.is_empty() {
                meaning.push_str(&format!(" {word} {conditions}"));
            }
        }
        meaning
    }
}

/// What a request came over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Which paths. Exactly one of the three is set.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PathMatch {
    /// This path and everything below it, by whole segments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// This path and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// Paths in which this expression is found; anchor it with `^` and `$`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

impl PathMatch {
    /// A prefix.
    pub fn prefix(path: &str) -> Self {
        Self { prefix: Some(path.to_owned()), ..Self::default() }
    }

    /// One path.
    pub fn exact(path: &str) -> Self {
        Self { exact: Some(path.to_owned()), ..Self::default() }
    }

    /// What to show for it: the path or expression itself.
    pub fn text(&self) -> &str {
        self.prefix.as_deref().or(self.exact.as_deref()).or(self.regex.as_deref()).unwrap_or("/")
    }
}

impl std::fmt::Display for PathMatch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match (&self.exact, &self.regex) {
            (Some(_), _) => "exact",
            (_, Some(_)) => "regex",
            _ => "prefix",
        };
        write!(out, "{kind} {}", self.text())
    }
}

/// A condition on a named value: one of `equals`, `matches`, `present`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldMatch {
    /// Name of the header field, cookie or parameter.
    pub name: String,
    /// It is exactly this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
    /// This expression is found in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// It is there, or it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// As the command line writes it: `K=V`, `K=~REGEX`, `K`, `!K`.
impl std::fmt::Display for FieldMatch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.name.to_ascii_lowercase();
        match self.test() {
            Some(Test::Equals(value)) => write!(out, "{name}={value}"),
            Some(Test::Matches(pattern)) => write!(out, "{name}=~{pattern}"),
            Some(Test::Present(true)) | None => write!(out, "{name}"),
            Some(Test::Present(false)) => write!(out, "!{name}"),
        }
    }
}

/// What is asked of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Test<'a> {
    /// There is one (true) or none.
    Present(bool),
    /// It is exactly this.
    Equals(&'a str),
    /// This expression is found in it.
    Matches(&'a str),
}

impl FieldMatch {
    /// What is asked; `None` unless exactly one test is given.
    pub fn test(&self) -> Option<Test<'_>> {
        match (&self.equals, &self.matches, self.present) {
            (Some(it), None, None) => Some(Test::Equals(it)),
            (None, Some(it), None) => Some(Test::Matches(it)),
            (None, None, Some(it)) => Some(Test::Present(it)),
            _ => None,
        }
    }
}

/// Limits of time; what is not set comes from the upstream or the gateway.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTimeouts {
    /// Longest pause between two pieces of a request body until its response begins, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_body_ms: Option<u64>,
    /// Longest connect, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u64>,
    /// Longest wait for a response, in which neither side sends anything once it has begun, and for an instance that takes
    /// nothing of a body, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_ms: Option<u64>,
    /// Longest time for all of a request and its response, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
}

impl RouteTimeouts {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Certificate and HTTPS of a route's hosts.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTls {
    /// `auto` (issued and renewed by itself), `off`, `passthrough` (the component speaks TLS itself), or the name of a
    /// certificate. When absent, whichever certificate of the tenant covers the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Plain HTTP is answered by a redirect to HTTPS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub redirect: bool,
    /// Lets browsers use HTTPS only, for so many seconds (`Strict-Transport-Security`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts_max_age_s: Option<u32>,
    /// Clients must show a certificate of one of these authorities (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<String>,
}

/// What [`RouteTls::certificate`] says for certificates that are issued automatically.
pub const TLS_AUTO: &str = "auto";
/// What [`RouteTls::certificate`] says for hosts whose TLS connections are passed to the component unread.
pub const TLS_PASSTHROUGH: &str = "passthrough";
/// What [`RouteTls::certificate`] says for hosts that are not served over TLS.
pub const TLS_OFF: &str = "off";

impl RouteTls {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
