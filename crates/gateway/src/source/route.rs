//! Rules from a route as it is written ([`arco_model::route`]): the one way, from the file and from the store.

use crate::balance::{Balance, Check, CheckHttp, Ejection, HashKey, hash};
use crate::protect::{Protection, RateKey, RateLimit, Users, canonical};
use crate::snapshot::{
    Action, Answer, Conditions, Cors, ForwardAuth, HeaderEdits, Https, Maintenance, Mirror, PathMatch, PathRewrite,
    Pattern, Policy, Redirect, Retry, Rewrite, Rule, StickyCookie, Test, Timeouts,
};
use crate::upstream::Transport;
use arco_model::route::{self, FieldMatch, Route, RouteTimeouts};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What goes on counting when a route is made anew.
#[derive(Debug, Default)]
pub(super) struct Kept {
    rates: HashMap<String, Arc<RateLimit>>,
    users: HashMap<String, Arc<Users>>,
}

impl Kept {
    /// Forgets what no rule holds any more.
    pub(super) fn prune(&mut self) {
        self.rates.retain(|_, it| Arc::strong_count(it) > 1);
        self.users.retain(|_, it| Arc::strong_count(it) > 1);
    }

    /// Everything that is counted by.
    pub(super) fn rates(&self) -> Vec<Arc<RateLimit>> {
        self.rates.values().cloned().collect()
    }

    /// Keeps what a route counts by.
    pub(super) fn keep(&mut self, prepared: &Prepared) {
        self.rates.extend(prepared.rates.iter().cloned());
        self.users.extend(prepared.users.iter().cloned());
    }
}

/// A route that was checked, and what it needs to become rules.
pub(super) struct Prepared {
    pub(super) paths: Vec<PathMatch>,
    conditions: Conditions,
    rates: Vec<(String, Arc<RateLimit>)>,
    users: Option<(String, Arc<Users>)>,
    https_port: Option<u16>,
}

impl Prepared {
    /// Checks a route for `hosts`; files are read relative to `folder`, where there may be some. `https_port` is where
    /// its hosts are served over TLS.
    pub(super) fn new<T: Display>(
        route: &Route<T>,
        hosts: &[String],
        folder: Option<&Path>,
        https_port: Option<u16>,
        kept: &Kept,
    ) -> Result<Self, String> {
        route.check()?;
        let rates = route.rate_limits.iter().enumerate().map(|(at, it)| {
            let name = format!("{at} {hosts:?} {} {it:?}", route.meaning());
            let limit =
                kept.rates.get(&name).cloned().map_or_else(|| rate(it).map(|it| Arc::new(it.named(&name))), Ok)?;
            Ok((name, limit))
        });
        let rates = rates.collect::<Result<Vec<_>, String>>()?;
        let users = match (&route.basic_auth, folder) {
            (None, _) => None,
            (Some(it), None) if it.users_file.is_some() => {
                return Err("`basic_auth.users_file` is for the gateway's own file; give `users` here".to_owned());
            }
            (Some(it), folder) => {
                let name = format!("{hosts:?} {} {it:?}", route.meaning());
                let known = kept.users.get(&name).filter(|_| it.users_file.is_none()).cloned();
                let made = known.map_or_else(|| users(it, folder).map(Arc::new), Ok)?;
                Some((name, made))
            }
        };
        let paths = if route.paths.is_empty() {
            vec![PathMatch::Prefix("/".to_owned())]
        } else {
            route.paths.iter().map(path).collect::<Result<_, _>>()?
        };
        let this = Self { paths, conditions: conditions(route)?, rates, users, https_port };
        this.policy(route)?;
        Ok(this)
    }

    /// Which requests are meant, to find two routes with the same.
    pub(super) fn meanings(&self) -> impl Iterator<Item = String> {
        self.paths.iter().map(|it| format!("{it} {:?}", self.conditions))
    }

    /// One rule per path. `known` gives an upstream's name as it is kept already (what a request looks at lies closer
    /// together then), and its limits.
    pub(super) fn rules<T: Display>(
        &self,
        route: &Route<T>,
        known: impl Fn(String) -> (Arc<str>, Timeouts),
    ) -> Vec<Rule> {
        let rule = |path: &PathMatch| {
            let mut base = None;
            let target = |to| {
                let (name, limits) = known(upstream_name(to, EndpointRules::of(route)));
                base.get_or_insert(limits);
                name
            };
            let names: Vec<Arc<str>> = route.targets.iter().map(|it| &it.to).map(target).collect();
            let targets = names.into_iter().zip(route.targets.iter().map(|it| it.weight));
            let timeouts = (!route.timeouts.is_empty()).then(|| merged(base.unwrap_or_default(), &route.timeouts));
            let rule = Rule::new(path.clone(), targets, timeouts);
            let rule = rule.with(self.conditions.clone(), self.policy(route).ok()?);
            Some(rule.with_https(https(&route.tls, self.https_port)))
        };
        self.paths.iter().filter_map(rule).collect()
    }

    fn policy<T: Display>(&self, route: &Route<T>) -> Result<Option<Box<Policy>>, String> {
        let action = match (&route.redirect, &route.answer) {
            (Some(it), _) => Action::Redirect(redirect(it)?),
            (_, Some(it)) => Action::Answer(answer(it)?),
            _ => Action::Forward,
        };
        let plain = !route.answers_itself()
            && route.rewrite.is_none()
            && route.maintenance.is_none()
            && route.request_headers.is_empty()
            && route.response_headers.is_empty()
            && route.cors.is_none()
            && route.mirror.is_none()
            && route.sticky.is_none()
            && route.retry.is_none()
            && route.allow.is_empty()
            && route.deny.is_empty()
            && route.rate_limits.is_empty()
            && route.basic_auth.is_none()
            && route.forward_auth.is_none()
            && route.buffer.is_empty()
            && route.max_body_bytes.is_none();
        if plain {
            return Ok(None);
        }
        Ok(Some(Box::new(Policy {
            action,
            maintenance: route.maintenance.as_ref().map(|it| Maintenance {
                message: it.message.clone(),
                retry_after_s: it.retry_after_s,
                allow: networks(&it.allow),
            }),
            rewrite: rewrite(route.rewrite.as_ref())?,
            request_headers: edits(&route.request_headers)?,
            response_headers: edits(&route.response_headers)?,
            cors: route.cors.as_ref().map(cors).transpose()?,
            mirror: route.mirror.as_ref().map(|it| Mirror::new(it.to.to_string().into(), it.percent)),
            sticky: route.sticky.as_ref().map(sticky),
            protection: Protection {
                allow: networks(&route.allow),
                deny: networks(&route.deny),
                rates: self.rates.iter().map(|it| Arc::clone(&it.1)).collect(),
                users: self.users.as_ref().map(|it| Arc::clone(&it.1)),
                max_body_bytes: route.max_body_bytes,
            },
            forward_auth: route.forward_auth.as_ref().map(forward_auth).transpose()?,
            retry: route.retry.as_ref().map(retry).transpose()?,
            buffer: route.buffer,
        })))
    }
}

/// What a route says about the instances of its targets.
#[derive(Clone, Copy, Default)]
pub(super) struct EndpointRules<'a> {
    pub(super) balance: Option<&'a route::Balance>,
    pub(super) circuit: Option<&'a route::Circuit>,
    pub(super) check: Option<&'a route::HealthCheck>,
    pub(super) tls: Option<&'a route::UpstreamTls>,
}

impl<'a> EndpointRules<'a> {
    pub(super) fn of<T>(route: &'a Route<T>) -> Self {
        let balance = route.balance.as_ref().filter(|it| !matches!(it, route::Balance::RoundRobin));
        let (circuit, check) = (route.circuit.as_ref(), route.health_check.as_ref());
        Self { balance, circuit, check, tls: route.upstream_tls.as_ref() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.balance.is_none() && self.circuit.is_none() && self.check.is_none() && self.tls.is_none()
    }
}

/// Name of the upstream of a target: routes that treat its instances in another way have one of their own.
pub(super) fn upstream_name<T: Display>(target: &T, rules: EndpointRules<'_>) -> String {
    let mut name = target.to_string();
    if let Some(balance) = rules.balance {
        name.push_str(&format!(" {balance}"));
    }
    if let Some(circuit) = rules.circuit {
        name.push_str(&format!(" circuit {}", serde_json::json!(circuit)));
    }
    if let Some(check) = rules.check {
        name.push_str(&format!(" check {}", serde_json::json!(check)));
    }
    if let Some(tls) = rules.tls {
        name.push_str(&format!(" tls {} {:016x}", tls.name, hash(tls.ca.as_bytes(), 0)));
    }
    name
}

/// When an endpoint is left out because of its answers.
pub(super) fn ejection(written: &route::Circuit) -> Option<Ejection> {
    (written.failures > 0).then(|| Ejection {
        failures: written.failures,
        base: Duration::from_millis(written.base_ms),
        slow_return: Duration::from_millis(written.slow_return_ms),
    })
}

/// How the endpoints of a port are spoken to, which by itself is `http2`, and `over_tls` or not.
pub(super) fn transport(asked: Option<&route::UpstreamTls>, over_tls: bool, http2: bool) -> Transport {
    match asked {
        None if over_tls => Transport::of_anybody(http2),
        None => Transport::plain(http2),
        Some(tls) => {
            let of_nobody = |why| Transport::of_nobody(format!("`upstream_tls` of `{}`: {why}", tls.name), http2);
            Transport::of(&tls.name, tls.ca.as_bytes(), http2).unwrap_or_else(of_nobody)
        }
    }
}

/// How endpoints are checked.
pub(super) fn check(written: &route::HealthCheck) -> Result<Check, String> {
    written.check()?;
    let http = match &written.path {
        None => None,
        Some(path) => Some(CheckHttp {
            path: http::uri::PathAndQuery::try_from(path.as_str())
                .map_err(|it| format!("the check's path `{path}` is malformed: {it}"))?,
            host: value(written.host.as_deref().unwrap_or("localhost"))?,
            status: written.status,
        }),
    };
    Ok(Check {
        http,
        interval: Duration::from_millis(written.interval_ms),
        timeout: Duration::from_millis(written.timeout_ms),
        healthy: written.healthy,
        unhealthy: written.unhealthy,
    })
}

fn retry(written: &route::Retry) -> Result<Retry, String> {
    let status = |it: &u16| StatusCode::from_u16(*it).map_err(|it| it.to_string());
    let statuses = written.statuses.iter().map(status).collect::<Result<_, _>>()?;
    let attempt = written.attempt_ms.map(Duration::from_millis);
    Ok(Retry::new(written.attempts as usize, &written.on, statuses, attempt, written.budget_percent))
}

/// How an endpoint is chosen, as a route says it.
pub(super) fn balance(written: Option<&route::Balance>) -> Balance {
    match written {
        None | Some(route::Balance::RoundRobin) => Balance::RoundRobin,
        Some(route::Balance::LeastRequests) => Balance::LeastRequests,
        Some(route::Balance::Ewma) => Balance::Ewma,
        Some(route::Balance::Sticky(it)) => Balance::Sticky(sticky(it)),
        Some(route::Balance::Hash(by)) => Balance::Hash(match by {
            route::HashBy::Address => HashKey::Source,
            route::HashBy::Cookie(it) => HashKey::Cookie(it.clone()),
            // Checked with the route; what is no name is never sent.
            route::HashBy::Header(it) => name(it).map_or(HashKey::Source, HashKey::Header),
        }),
    }
}

/// The limits of `base`, but what a route says.
pub(super) fn merged(base: Timeouts, route: &RouteTimeouts) -> Timeouts {
    let or = |value: Option<u64>, base| value.map_or(base, Duration::from_millis);
    Timeouts {
        request_body: or(route.request_body_ms, base.request_body),
        connect: or(route.connect_ms, base.connect),
        response: or(route.response_ms, base.response),
        total: route.total_ms.map(Duration::from_millis).or(base.total),
    }
}

/// As clients are compared with them.
pub(super) fn networks(written: &[ipnet::IpNet]) -> Vec<ipnet::IpNet> {
    written.iter().map(canonical).collect()
}

fn forward_auth<T: Display>(written: &route::ForwardAuth<T>) -> Result<ForwardAuth, String> {
    let path = http::uri::PathAndQuery::try_from(written.path.as_str());
    let path = path.map_err(|it| format!("`forward_auth.path` is not a path: {it}"))?;
    let copy = written.copy_headers.iter().map(|it| name(it)).collect::<Result<_, _>>()?;
    Ok(ForwardAuth { upstream: written.to.to_string().into(), path, copy })
}

/// The cookie by which clients come back.
pub(super) fn sticky(written: &route::Sticky) -> StickyCookie {
    StickyCookie { name: written.cookie.as_str().into(), max_age_s: written.max_age_s }
}

fn path(written: &route::PathMatch) -> Result<PathMatch, String> {
    match (&written.exact, &written.prefix, &written.regex) {
        (Some(it), ..) => Ok(PathMatch::Exact(it.clone())),
        (_, Some(it), _) => Ok(PathMatch::Prefix(it.clone())),
        (_, _, Some(it)) => Ok(PathMatch::Regex(Pattern::new(it)?)),
        _ => Err("a path needs either `prefix`, `exact` or `regex`".to_owned()),
    }
}

fn test(written: &FieldMatch) -> Result<Test, String> {
    Ok(match written.test() {
        Some(route::Test::Present(true)) => Test::Present,
        Some(route::Test::Present(false)) => Test::Absent,
        Some(route::Test::Equals(it)) => Test::Equals(it.to_owned()),
        Some(route::Test::Matches(it)) => Test::Matches(Pattern::new(it)?),
        None => return Err(format!("the condition on `{}` needs one of `equals`, `matches`, `present`", written.name)),
    })
}

fn conditions<T>(route: &Route<T>) -> Result<Conditions, String> {
    let method = |it: &String| Method::try_from(it.as_str()).map_err(|_| format!("`{it}` is not a method"));
    let named = |list: &[FieldMatch]| {
        list.iter().map(|it| Ok((it.name.clone(), test(it)?))).collect::<Result<Vec<_>, String>>()
    };
    let headers = route.headers.iter().map(|it| Ok((name(&it.name)?, test(it)?)));
    Ok(Conditions {
        methods: route.methods.iter().map(method).collect::<Result<_, _>>()?,
        headers: headers.collect::<Result<_, String>>()?,
        cookies: named(&route.cookies)?,
        query: named(&route.query)?,
        secure: route.scheme.map(|it| it == route::Scheme::Https),
    })
}

fn name(text: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(text).map_err(|_| format!("`{text}` is not the name of a header field"))
}

fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` cannot be the value of a header field"))
}

fn rate(written: &route::RateLimit) -> Result<RateLimit, String> {
    let key = match (written.key, &written.header) {
        (route::RateKey::Header, Some(it)) => RateKey::Header(name(it)?),
        (route::RateKey::Header, None) => return Err("a rate limit by `header` names none".to_owned()),
        (route::RateKey::Route, _) => RateKey::Route,
        (route::RateKey::Address, _) => RateKey::Address,
    };
    let burst = written.burst.unwrap_or(written.requests);
    Ok(RateLimit::new(key, written.requests, Duration::from_millis(written.per_ms), burst))
}

fn users(written: &route::BasicAuth, folder: Option<&Path>) -> Result<Users, String> {
    let mut text: String = written.users.iter().map(|(name, hash)| format!("{name}:{hash}\n")).collect();
    if let (Some(file), Some(folder)) = (&written.users_file, folder) {
        let path = folder.join(file);
        let shown = path.display();
        text += &std::fs::read_to_string(&path).map_err(|it| format!("cannot read the users file {shown}: {it}"))?;
        return Users::parse(&text, &written.realm).map_err(|it| format!("in the users file {shown}: {it}"));
    }
    Users::parse(&text, &written.realm)
}

fn edits(written: &route::HeaderEdits) -> Result<HeaderEdits, String> {
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(it, text)| Ok((name(it)?, value(text)?))).collect::<Result<Vec<_>, String>>()
    };
    let remove = written.remove.iter().map(|it| name(it)).collect::<Result<_, _>>()?;
    Ok(HeaderEdits { set: pairs(&written.set)?, add: pairs(&written.add)?, remove })
}

fn path_rewrite(
    path: Option<&String>,
    prefix: Option<&String>,
    regex: Option<&route::RegexRewrite>,
) -> Result<Option<PathRewrite>, String> {
    Ok(match (path, prefix, regex) {
        (Some(it), ..) => Some(PathRewrite::Full(it.clone())),
        (_, Some(it), _) => Some(PathRewrite::Prefix(it.clone())),
        (_, _, Some(it)) => Some(PathRewrite::Regex(Pattern::new(&it.pattern)?, it.replacement.clone())),
        _ => None,
    })
}

fn rewrite(written: Option<&route::Rewrite>) -> Result<Rewrite, String> {
    let Some(it) = written else { return Ok(Rewrite::default()) };
    let path = path_rewrite(it.path.as_ref(), it.prefix.as_ref(), it.regex.as_ref())?;
    Ok(Rewrite { path, host: it.host.as_deref().map(value).transpose()? })
}

fn redirect(written: &route::Redirect) -> Result<Redirect, String> {
    let scheme = match written.scheme.as_deref() {
        None => None,
        Some("https") => Some("https"),
        Some(_) => Some("http"),
    };
    let path = path_rewrite(written.path.as_ref(), written.prefix.as_ref(), written.regex.as_ref())?;
    let status = StatusCode::from_u16(written.status.unwrap_or(302)).map_err(|it| it.to_string())?;
    Ok(Redirect { scheme, host: written.host.clone(), port: written.port, path, status })
}

fn answer(written: &route::Answer) -> Result<Answer, String> {
    Ok(Answer {
        status: StatusCode::from_u16(written.status).map_err(|it| it.to_string())?,
        content_type: value(written.content_type.as_deref().unwrap_or("text/plain; charset=utf-8"))?,
        body: written.body.as_str().into(),
    })
}

fn https(written: &route::RouteTls, port: Option<u16>) -> Option<Box<Https>> {
    let redirect = written.redirect.then(|| Redirect {
        scheme: Some("https"),
        host: None,
        port: Some(port.unwrap_or(443)),
        path: None,
        status: StatusCode::PERMANENT_REDIRECT,
    });
    let hsts = written.hsts_max_age_s.and_then(|it| HeaderValue::try_from(format!("max-age={it}")).ok());
    (redirect.is_some() || hsts.is_some()).then(|| Box::new(Https { redirect, hsts }))
}

fn joined(list: &[String], default: &str) -> Result<HeaderValue, String> {
    value(&if list.is_empty() { default.to_owned() } else { list.join(", ") })
}

fn cors(written: &route::Cors) -> Result<Cors, String> {
    let listed = |list: &[String]| if list.is_empty() { Ok(None) } else { joined(list, "").map(Some) };
    Ok(Cors {
        origins: written.origins.clone(),
        methods: joined(&written.methods, "GET, HEAD, POST, PUT, PATCH, DELETE")?,
        headers: listed(&written.headers)?,
        expose: listed(&written.expose)?,
        credentials: written.credentials,
        max_age_s: written.max_age_s.unwrap_or(600),
    })
}
