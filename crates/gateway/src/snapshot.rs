//! The routing table: immutable, swapped as a whole behind an atomic pointer. Pure.
//!
//! Precedence: an exact host wins over the longest wildcard, that over `*`; within a host see `matching.rs`. Prefixes
//! match whole segments: `/a` matches `/a` and `/a/b`, never `/ab`.

mod action;
mod matching;
mod retry;
mod table;
#[cfg(test)]
mod tests;

use crate::metrics::RouteMetrics;
use crate::protect::Protection;
use crate::upstream::Upstream;
pub use action::{Action, Answer, Cors, HeaderEdits, Https, Maintenance, Mirror, PathRewrite, Redirect, Rewrite};
pub use matching::{Asked, Conditions, PathMatch, Pattern, Test, cookies, normal_path};
pub use retry::Retry;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
pub use table::{Named, Table};

/// Time limits of one request; each can be set per route and per upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// Longest pause between two pieces of a request body until its response begins.
    pub request_body: Duration,
    /// Longest connect.
    pub connect: Duration,
    /// Longest wait for the response's head, and afterwards in which neither side sends anything (but for event streams).
    pub response: Duration,
    /// Longest time for all of a request and its response.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request_body: Duration::from_secs(30),
            connect: Duration::from_secs(3),
            response: Duration::from_secs(60),
            total: None,
        }
    }
}

/// What a rule does beside choosing a target.
#[derive(Debug, Default)]
pub struct Policy {
    /// Who answers.
    pub action: Action,
    /// Set while nobody but a few may come in.
    pub maintenance: Option<Maintenance>,
    /// What the endpoint is asked instead.
    pub rewrite: Rewrite,
    /// Changes of the request.
    pub request_headers: HeaderEdits,
    /// Changes of the response.
    pub response_headers: HeaderEdits,
    /// Cross-origin rules.
    pub cors: Option<Cors>,
    /// Who gets copies.
    pub mirror: Option<Mirror>,
    /// The cookie that keeps a client at the target that it got first.
    pub sticky: Option<StickyCookie>,
    /// Who may come in, how often, with what.
    pub protection: Protection,
    /// Who else decides about that.
    pub forward_auth: Option<ForwardAuth>,
    /// When a request is sent to another endpoint; `None` is whenever that is safe.
    pub retry: Option<Retry>,
    /// What is taken whole, or ahead of who reads it.
    pub buffer: arco_model::route::Buffer,
}

/// Somebody else who decides whether a request may come in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ForwardAuth {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// What is asked.
    pub path: http::uri::PathAndQuery,
    /// Fields of the answer that take the place of the request's.
    pub copy: Vec<http::HeaderName>,
}

/// A cookie by which a client comes back to where it was before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StickyCookie {
    /// Its name.
    pub name: Arc<str>,
    /// How long it lives, in seconds; `None` as long as the browser runs.
    pub max_age_s: Option<u32>,
}

impl StickyCookie {
    /// What the client sent.
    pub fn value<'a>(&self, headers: &'a http::HeaderMap) -> Option<&'a str> {
        cookies(headers).find(|it| it.0 == &*self.name).map(|it| it.1)
    }

    /// The `Set-Cookie` field for `value`, which must be a token.
    pub fn set(&self, value: &str, secure: bool) -> Option<http::HeaderValue> {
        let age = self.max_age_s.map(|it| format!("; Max-Age={it}")).unwrap_or_default();
        let secure = if secure { "; Secure" } else { "" };
        let name = &self.name;
        http::HeaderValue::from_str(&format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{age}{secure}")).ok()
    }

    /// A value that stands for `thing` on every gateway and does not tell its name.
    pub fn token(thing: &str) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, thing.as_bytes());
        digest.as_ref()[..8].iter().map(|it| format!("{it:02x}")).collect()
    }
}

/// One rule of a host. What every request looks at comes first: it lies in one line of the processor's cache, or two.
#[derive(Debug)]
#[repr(C)]
pub struct Rule {
    /// Every path is meant.
    anywhere: bool,
    /// There are no conditions.
    unconditional: bool,
    /// What is done beside passing requests on unchanged.
    pub policy: Option<Box<Policy>>,
    /// What is done with plain HTTP, and told about it. Not in the policy: most hosts with HTTPS have it, and requests over
    /// TLS are passed on unchanged nevertheless.
    pub https: Option<Box<Https>>,
    /// Upstreams by name with their shares; never empty.
    pub targets: Targets,
    /// Limits of this route; `None` takes the upstream's.
    pub timeouts: Option<Timeouts>,
    /// Which paths.
    pub path: PathMatch,
    /// What else a request must have.
    conditions: Conditions,
    total: usize,
    step: usize,
    next: AtomicUsize,
}

/// Upstreams by name with their shares. Most rules have one, which lies in the rule: each place elsewhere that a request
/// looks at is one more wait for memory.
pub type Targets = SmallVec<[(Arc<str>, u32); 1]>;

impl Rule {
    /// A rule; shares of 0 get nothing.
    pub fn new(
        path: PathMatch,
        targets: impl IntoIterator<Item = (Arc<str>, u32)>,
        timeouts: Option<Timeouts>,
    ) -> Self {
        let mut targets: Targets = targets.into_iter().collect();
        if targets.iter().any(|it| it.1 > 0) {
            targets.retain(|it| it.1 > 0);
        } else {
            targets.iter_mut().for_each(|it| it.1 = 1);
        }
        if targets.is_empty() {
            // A rule that answers by itself; nothing is called by the empty name.
            targets.push(("".into(), 1));
        }
        let total = targets.iter().map(|it| it.1 as usize).sum::<usize>().max(1);
        let (conditions, policy, https) = (Conditions::default(), None, None);
        let anywhere = matches!(&path, PathMatch::Prefix(it) if matches!(it.as_str(), "" | "/"));
        let (step, next) = (spread(total), AtomicUsize::new(0));
        let unconditional = true;
        Self { anywhere, unconditional, policy, https, targets, timeouts, path, conditions, total, step, next }
    }

    /// Whether `path` (without query) is meant.
    pub fn is_for(&self, path: &str) -> bool {
        (self.anywhere && path.starts_with('/')) || self.path.matches(path)
    }

    /// The same rule for fewer requests, and with a policy.
    pub fn with(mut self, conditions: Conditions, policy: Option<Box<Policy>>) -> Self {
        self.unconditional = conditions == Conditions::default();
        (self.conditions, self.policy) = (conditions, policy);
        self
    }

    /// What a request must have beside the path.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Whether it is for every request for its paths, and only passes them on. (What becomes of plain HTTP is not asked.)
    pub fn is_plain(&self) -> bool {
        self.unconditional && self.policy.is_none()
    }

    /// The same rule, where something is done with plain HTTP, or told about it.
    pub fn with_https(mut self, https: Option<Box<Https>>) -> Self {
        self.https = https;
        self
    }

    /// Where a client has to go that came over TLS (`secure`) or did not, before anything else is looked at.
    pub fn redirect_to_https(&self, secure: bool) -> Option<&Redirect> {
        self.https.as_ref()?.redirect.as_ref().filter(|_| !secure)
    }

    /// `Strict-Transport-Security` of answers, in place of what an endpoint says.
    pub fn hsts(&self, secure: bool) -> Option<&http::HeaderValue> {
        self.https.as_ref()?.hsts.as_ref().filter(|_| secure)
    }

    /// The target of a client that comes back with `token`, else the next one; and whether it was found by the token.
    pub fn sticky_target(&self, token: Option<&str>) -> (&Arc<str>, bool) {
        let known = token.and_then(|it| self.targets.iter().find(|target| StickyCookie::token(&target.0) == it));
        known.map_or_else(|| (self.target(), false), |it| (&it.0, true))
    }

    /// The target of the next request: each gets exactly its share of every `total` requests, well mixed.
    pub fn target(&self) -> &Arc<str> {
        if self.targets.len() == 1 {
            return &self.targets[0].0;
        }
        self.target_of(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The target that the next request will get, without taking its turn.
    pub fn next_target(&self) -> &Arc<str> {
        self.target_of(self.next.load(Ordering::Relaxed))
    }

    fn target_of(&self, turn: usize) -> &Arc<str> {
        let turn = turn % self.total;
        let mut at = turn * self.step % self.total;
        for (name, share) in &self.targets {
            match at.checked_sub(*share as usize) {
                Some(left) => at = left,
                None => return name,
            }
        }
        &self.targets[0].0
    }
}

/// A step near the golden section of `total` that is coprime to it, so that multiples visit every place once.
pub(crate) fn spread(total: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let wished = total * 618 / 1000;
    (0..total).map(|it| wished + it).find(|it| *it > 0 && gcd(*it, total) == 1).unwrap_or(1)
}

/// All rules of one host. Found by the bytes of its name that lie here, in the line of the processor's cache that is read
/// anyway.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Host {
    key: SmallVec<[u8; 36]>,
    /// Counters of this host.
    pub metrics: Arc<RouteMetrics>,
    /// Most hosts have one, which lies here.
    rules: SmallVec<[Rule; 1]>,
    name: Arc<str>,
}

impl Named for Arc<Host> {
    fn name(&self) -> &[u8] {
        &self.key
    }
}

impl Host {
    /// A host; rules may come in any order.
    pub fn new(name: Arc<str>, mut rules: Vec<Rule>, metrics: Arc<RouteMetrics>) -> Self {
        rules.sort_by_key(|it| std::cmp::Reverse(matching::rank(&it.path, &it.conditions)));
        Self { key: name.bytes().collect(), metrics, rules: rules.into_iter().collect(), name }
    }

    /// Host in lower case; `*.suffix` or `*` for wildcards.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The rule for a plain GET of a path.
    pub fn rule(&self, path: &str) -> Option<&Rule> {
        let headers = http::HeaderMap::new();
        self.find(&Asked { method: &http::Method::GET, path, query: None, headers: &headers, secure: false })
    }

    /// The rule for a request.
    pub fn find(&self, asked: &Asked<'_>) -> Option<&Rule> {
        self.rules.iter().find(|it| it.is_for(asked.path) && it.conditions.hold(asked))
    }

    /// Whether `path`, as the client wrote it, stands for different ones to different servers, and which one it is matters
    /// here: it could come in by the rule for one, and be taken for another that a rule keeps closed.
    pub fn is_unclear(&self, path: &str) -> bool {
        self.differs_by_path() && matching::is_two_faced(path)
    }

    /// Whether it matters which path a request is for.
    pub fn differs_by_path(&self) -> bool {
        !self.rules.iter().all(|it| it.anywhere)
    }

    /// Whether servers that leave the parameters of segments (`;…`) out take a request for `path`, as the client wrote it,
    /// for one of another rule than `rule`, which was found for `asked`. A rule that names a `;` knows what it is for.
    pub fn is_read_otherwise(&self, path: &str, asked: &Asked<'_>, rule: Option<&Rule>) -> bool {
        if !self.differs_by_path() || !asked.path.contains(';') || rule.is_some_and(|it| it.path.names_parameters()) {
            return false;
        }
        let place = |it: Option<&Rule>| it.map(std::ptr::from_ref);
        let reads = matching::without_parameters(path);
        reads.iter().any(|read| place(self.find(&Asked { path: read, ..*asked })) != place(rule))
    }

    /// Its rules, best first.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// Everything a request is routed by.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Revision of the source.
    pub revision: u64,
    /// Hosts by name, wildcards by their name with `*`.
    pub hosts: Table<Arc<Host>>,
    /// Upstreams by name; shared with the table before while they stay the same.
    pub upstreams: Arc<HashMap<Arc<str>, Arc<Upstream>>>,
    /// Whether any host has a wildcard.
    pub wildcards: bool,
    /// Upstreams whose endpoints are checked.
    pub checked: Vec<Arc<Upstream>>,
    /// Peers whose word about addresses and schemes is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Hosts whose TLS connections are passed on unread, with the upstream.
    pub passthrough: HashMap<Arc<str>, Arc<str>>,
}

impl Snapshot {
    /// The upstream that TLS connections for `host` are passed to unread.
    pub fn passed_through(&self, host: &str) -> Option<&Arc<str>> {
        // The one that names the host most closely decides, whether it passes connections on or not.
        let mut name = host.to_owned();
        let mut rest = host;
        loop {
            if let Some(found) = self.passthrough.get(name.as_str()) {
                return Some(found);
            }
            if self.passthrough.is_empty() || self.hosts.get(name.as_str()).is_some() || name == "*" {
                return None;
            }
            (name, rest) = match rest.split_once('.') {
                Some((_, suffix)) => (format!("*.{suffix}"), suffix),
                None => ("*".to_owned(), ""),
            };
        }
    }

    /// Whether TLS connections for `host` are passed on unread: who asks for it on one that ends here has to open another one.
    pub fn is_elsewhere(&self, host: &str) -> bool {
        !self.passthrough.is_empty() && self.passed_through(host).is_some()
    }

    /// The host entry for `host` (lower case, no port, no final dot).
    pub fn host(&self, host: &str) -> Option<&Arc<Host>> {
        self.hosts
            .get(host)
            .or_else(|| if self.wildcards { lookup_wildcard(host, |it| self.hosts.get(it)) } else { None })
    }
}

/// The entry of the longest `*.suffix` that `name` falls under, else of `*`, as `find` knows them. A wildcard stands for one
/// or more labels.
pub fn lookup_wildcard<'a, V>(name: &str, find: impl Fn(&str) -> Option<&'a V>) -> Option<&'a V> {
    let mut key = String::with_capacity(name.len() + 1);
    let mut rest = name;
    while let Some((_, suffix)) = rest.split_once('.') {
        key.clear();
        key.push_str("*.");
        key.push_str(suffix);
        if let Some(found) = find(key.as_str()) {
            return Some(found);
        }
        rest = suffix;
    }
    find("*")
}

/// `Host` as a key: lower case, without port and final dot. `None` when there is nothing left.
pub fn host_key(host: &str) -> Option<String> {
    let name =
        if host.starts_with('[') { &host[..=host.find(']')?] } else { host.split(':').next().unwrap_or_default() };
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && !name.contains('@')).then(|| name.to_ascii_lowercase())
}
