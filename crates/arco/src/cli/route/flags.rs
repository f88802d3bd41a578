//! Flags of a route, and how they become one. What is not given stays as it is.

use super::super::failure::Failure;
use super::super::given_file;
use super::super::reference::Named;
use super::super::secret;
use super::super::ui::Ui;
use super::endpoints::EndpointFlags;
use arco_api::wire::RouteRequest;
use arco_model::route::{
    Answer, Balance, BasicAuth, Buffer, ComponentTarget, Cors, FieldMatch, ForwardAuth, HeaderEdits, Maintenance,
    Mirror, PathMatch, RateKey, RateLimit, Redirect, RegexRewrite, RouteTimeouts, RouteTls, Sticky, Target,
    TargetError, UpstreamTls,
};
use clap::Args;
use ipnet::IpNet;
use std::path::Path;

/// Everything that a route can say beside host and path.
#[derive(Args, Debug, Default)]
pub(crate) struct RouteFlags {
    /// Inner port of the component [default: its first outer HTTP port]
    #[arg(long, value_name = "PORT", help_heading = "Targets")]
    port: Option<u16>,
    /// Share of the component itself [default: 100]
    #[arg(long, value_name = "N", help_heading = "Targets")]
    weight: Option<u32>,
    /// A further component with its share (repeatable)
    #[arg(long, value_name = "APP/COMPONENT[:PORT]=N", value_parser = target, help_heading = "Targets")]
    target: Vec<(ComponentTarget, u32)>,
    /// A cookie of this name keeps each client at the target that it got first
    #[arg(long, value_name = "COOKIE[=SECONDS]", value_parser = sticky, help_heading = "Targets")]
    sticky: Option<Sticky>,
    /// How an instance is chosen: round_robin, least_requests, ewma, hash (of the address), hash:header=NAME,
    /// hash:cookie=NAME, sticky:COOKIE[=SECONDS] (the instance that a client got first)
    #[arg(long, value_name = "HOW", help_heading = "Targets")]
    balance: Option<Balance>,
    #[command(flatten)]
    endpoints: EndpointFlags,
    /// Copies of so many percent of the requests go there; their answers are thrown away
    #[arg(long, value_name = "APP/COMPONENT[:PORT][=PERCENT]", value_parser = mirror, help_heading = "Targets")]
    mirror: Option<(ComponentTarget, u32)>,
    /// Only requests of this method (repeatable)
    #[arg(long, value_name = "METHOD", help_heading = "Conditions")]
    method: Vec<String>,
    /// Only requests with this header: K=V equal, K=~REGEX matching, K present, !K absent (repeatable)
    #[arg(long, value_name = "K[=V]", value_parser = condition, help_heading = "Conditions")]
    header: Vec<FieldMatch>,
    /// Only requests with this cookie (repeatable)
    #[arg(long, value_name = "K[=V]", value_parser = condition, help_heading = "Conditions")]
    cookie: Vec<FieldMatch>,
    /// Only requests with this parameter in the query (repeatable)
    #[arg(long, value_name = "K[=V]", value_parser = condition, help_heading = "Conditions")]
    query: Vec<FieldMatch>,
    /// The component sees this path
    #[arg(long, value_name = "PATH", help_heading = "Changes")]
    rewrite_path: Option<String>,
    /// The component sees this in place of the path prefix of the route
    #[arg(long, value_name = "PREFIX", help_heading = "Changes")]
    rewrite_prefix: Option<String>,
    /// The component sees the path with a pattern replaced ($1 is its first group)
    #[arg(long, value_name = "PATTERN=REPLACEMENT", value_parser = replacement, help_heading = "Changes")]
    rewrite_regex: Option<RegexRewrite>,
    /// The component sees this host
    #[arg(long, value_name = "HOST", help_heading = "Changes")]
    rewrite_host: Option<String>,
    /// Set a header of requests (repeatable)
    #[arg(long, value_name = "K=V", value_parser = super::super::spec_flags::pair, help_heading = "Changes")]
    set_header: Vec<(String, String)>,
    /// Add a header to requests (repeatable)
    #[arg(long, value_name = "K=V", value_parser = super::super::spec_flags::pair, help_heading = "Changes")]
    add_header: Vec<(String, String)>,
    /// Remove a header from requests (repeatable)
    #[arg(long, value_name = "K", help_heading = "Changes")]
    remove_header: Vec<String>,
    /// Set a header of responses (repeatable)
    #[arg(long, value_name = "K=V", value_parser = super::super::spec_flags::pair, help_heading = "Changes")]
    set_response_header: Vec<(String, String)>,
    /// Add a header to responses (repeatable)
    #[arg(long, value_name = "K=V", value_parser = super::super::spec_flags::pair, help_heading = "Changes")]
    add_response_header: Vec<(String, String)>,
    /// Remove a header from responses (repeatable)
    #[arg(long, value_name = "K", help_heading = "Changes")]
    remove_response_header: Vec<String>,
    /// Browsers may call from this origin: exact, *, or https://*.example.com (repeatable)
    #[arg(long, value_name = "ORIGIN", help_heading = "Changes")]
    cors_origin: Vec<String>,
    /// Browsers may send cookies along
    #[arg(long, help_heading = "Changes")]
    cors_credentials: bool,
    /// Answer with a redirect to this: https://, https://HOST, https://HOST:PORT/PATH or /PATH
    #[arg(long, value_name = "WHERE", value_parser = redirect, help_heading = "Answers")]
    redirect: Option<Redirect>,
    /// 301, 302, 303, 307 or 308 [default: 302]
    #[arg(long, value_name = "STATUS", help_heading = "Answers")]
    redirect_status: Option<u16>,
    /// Answer with this
    #[arg(long, value_name = "STATUS[:TEXT]", value_parser = answer, help_heading = "Answers")]
    answer: Option<Answer>,
    /// Answer 503 with this sentence
    #[arg(long, value_name = "MESSAGE", num_args = 0..=1, default_missing_value = "This application is being worked on.", help_heading = "Answers")]
    maintenance: Option<String>,
    /// Networks that come through nevertheless (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network, requires = "maintenance", help_heading = "Answers")]
    maintenance_allow: Vec<IpNet>,
    /// Only clients of this network (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network, help_heading = "Protection")]
    allow: Vec<IpNet>,
    /// No clients of this network (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network, help_heading = "Protection")]
    deny: Vec<IpNet>,
    /// At most N requests per second (s), minute (m) or hour (h) and client address; `:route` counts all together,
    /// `:HEADER` counts by a header (repeatable)
    #[arg(long, value_name = "N/s|m|h[:route|:HEADER]", value_parser = rate, help_heading = "Protection")]
    rate: Vec<RateLimit>,
    /// A name and a password that let in (repeatable)
    #[arg(long, value_name = "NAME=@FILE|NAME=-|NAME", help_heading = "Protection")]
    user: Vec<String>,
    /// This component is asked whether a request may come in, at PATH; an answer other than 200 to 299 is the client's
    #[arg(long, value_name = "APP/COMPONENT[:PORT][=PATH]", value_parser = forward_auth, help_heading = "Protection")]
    forward_auth: Option<ForwardAuth<ComponentTarget>>,
    /// A field of that answer that takes the place of the request's (repeatable)
    #[arg(long, value_name = "NAME", help_heading = "Protection")]
    forward_auth_header: Vec<String>,
    /// Largest request body in MiB
    #[arg(long, value_name = "N", help_heading = "Protection")]
    max_body_mb: Option<u64>,
    /// Take requests whole before an instance is asked, responses as fast as they come, or both: slow clients hold no
    /// instance then
    #[arg(long, value_name = "request|response|both", value_parser = buffer, help_heading = "Protection")]
    buffer: Option<Buffer>,
    /// Longest wait for a response, in which neither side sends anything once it has begun, and for an instance that takes
    /// nothing of a body
    #[arg(long, value_name = "SECONDS", value_parser = milliseconds, help_heading = "Protection")]
    timeout: Option<u64>,
    /// Longest time for a request with all of its response
    #[arg(long, value_name = "SECONDS", value_parser = milliseconds, help_heading = "Protection")]
    total_timeout: Option<u64>,
    /// Longest connect to an instance
    #[arg(long, value_name = "SECONDS", value_parser = milliseconds, help_heading = "Protection")]
    connect_timeout: Option<u64>,
    /// Longest pause between two pieces of a request body until its response begins
    #[arg(long, value_name = "SECONDS", value_parser = milliseconds, help_heading = "Protection")]
    body_timeout: Option<u64>,
    /// Certificate of the host: `auto` has one issued and renewed, else one by name, or none; with
    /// `passthrough` the component speaks TLS itself [default: one that covers the host]
    #[arg(long, value_name = "auto|NAME|off|passthrough", help_heading = "TLS")]
    tls: Option<String>,
    /// Plain HTTP is answered by a redirect to HTTPS
    #[arg(long, help_heading = "TLS")]
    redirect_https: bool,
    /// Browsers use HTTPS only, for so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "31536000", help_heading = "TLS")]
    hsts: Option<u32>,
    /// Clients must show a certificate of one of the authorities in this file (PEM)
    #[arg(long, value_name = "@FILE", help_heading = "TLS")]
    client_ca: Option<String>,
    /// Instances are asked over TLS, and must show a certificate of one of the authorities in this file (PEM) for
    /// --upstream-name; without it a port of protocol https may show any
    #[arg(long, value_name = "@FILE", help_heading = "TLS")]
    upstream_ca: Option<String>,
    /// Name that the certificate of instances must be for
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    upstream_name: Option<String>,
}

impl RouteFlags {
    /// Inner port that is asked for.
    pub(super) fn port(&self) -> Option<u16> {
        self.port
    }

    /// Makes `route`, of the component `named`, say what is given.
    pub(super) fn apply(&self, route: &mut RouteRequest, named: &Named, ui: &Ui) -> Result<(), Failure> {
        self.apply_targets(route, named)?;
        replace(&mut route.methods, &self.method.iter().map(|it| it.to_ascii_uppercase()).collect::<Vec<_>>());
        replace(&mut route.headers, &self.header);
        replace(&mut route.cookies, &self.cookie);
        replace(&mut route.query, &self.query);
        replace(&mut route.allow, &self.allow);
        replace(&mut route.deny, &self.deny);
        replace(&mut route.rate_limits, &self.rate);
        if self.rewrite_path.is_some() || self.rewrite_prefix.is_some() || self.rewrite_regex.is_some() {
            let rewrite = route.rewrite.get_or_insert_default();
            rewrite.path = self.rewrite_path.clone();
            rewrite.prefix = self.rewrite_prefix.clone();
            rewrite.regex = self.rewrite_regex.clone();
        }
        if let Some(host) = &self.rewrite_host {
            route.rewrite.get_or_insert_default().host = Some(host.clone());
        }
        edit(&mut route.request_headers, &self.set_header, &self.add_header, &self.remove_header);
        let (set, add) = (&self.set_response_header, &self.add_response_header);
        edit(&mut route.response_headers, set, add, &self.remove_response_header);
        if !self.cors_origin.is_empty() || self.cors_credentials {
            let cors: &mut Cors = route.cors.get_or_insert_default();
            replace(&mut cors.origins, &self.cors_origin);
            cors.credentials |= self.cors_credentials;
        }
        if let Some(redirect) = &self.redirect {
            route.redirect = Some(redirect.clone());
            route.targets.clear();
        }
        if let (Some(status), Some(redirect)) = (self.redirect_status, &mut route.redirect) {
            redirect.status = Some(status);
        }
        if let Some(answer) = &self.answer {
            route.answer = Some(answer.clone());
            route.targets.clear();
        }
        if let Some(message) = &self.maintenance {
            let allow = self.maintenance_allow.clone();
            route.maintenance = Some(Maintenance { message: message.clone(), allow, ..Maintenance::default() });
        }
        for (name, password) in secret::read(&self.user, ui)? {
            let password = password.map(|it| it.0).unwrap_or_default();
            let hash = arco_gateway::protect::password_hash(password.as_bytes()).map_err(|it| {
                Failure::local(format!("the password of `{name}` cannot be hashed: {it}"), "try again")
            })?;
            let auth: &mut BasicAuth = route.basic_auth.get_or_insert_default();
            auth.users.insert(name, hash);
        }
        if let Some(auth) = &self.forward_auth {
            route.forward_auth = Some(auth.clone());
        }
        if let Some(auth) = &mut route.forward_auth {
            replace(&mut auth.copy_headers, &self.forward_auth_header);
        }
        if let Some(megabytes) = self.max_body_mb {
            route.max_body_bytes = Some(megabytes.saturating_mul(1 << 20));
        }
        if let Some(buffer) = self.buffer {
            route.buffer = buffer;
        }
        let timeouts: &mut RouteTimeouts = &mut route.timeouts;
        for (slot, given) in [
            (&mut timeouts.response_ms, self.timeout),
            (&mut timeouts.total_ms, self.total_timeout),
            (&mut timeouts.connect_ms, self.connect_timeout),
            (&mut timeouts.request_body_ms, self.body_timeout),
        ] {
            *slot = given.or(*slot);
        }
        let tls: &mut RouteTls = &mut route.tls;
        tls.certificate = self.tls.clone().or(tls.certificate.take());
        tls.redirect |= self.redirect_https;
        tls.hsts_max_age_s = self.hsts.or(tls.hsts_max_age_s);
        if let Some(path) = &self.client_ca {
            tls.client_ca = Some(text_of(path)?);
        }
        self.apply_upstream_tls(route)
    }

    fn apply_upstream_tls(&self, route: &mut RouteRequest) -> Result<(), Failure> {
        if self.upstream_ca.is_none() && self.upstream_name.is_none() {
            return Ok(());
        }
        let before = route.upstream_tls.take();
        let ca = self.upstream_ca.as_deref().map(text_of).transpose()?;
        let ca = ca.or_else(|| before.as_ref().map(|it| it.ca.clone()));
        let name = self.upstream_name.clone().or_else(|| before.map(|it| it.name));
        let (Some(name), Some(ca)) = (name, ca) else {
            let message = "whose certificate instances must show takes a name and an authority";
            return Err(Failure::usage("route_invalid", message, "give both --upstream-name and --upstream-ca"));
        };
        route.upstream_tls = Some(UpstreamTls { name, ca });
        Ok(())
    }

    fn apply_targets(&self, route: &mut RouteRequest, named: &Named) -> Result<(), Failure> {
        if let Some((to, percent)) = &self.mirror {
            route.mirror = Some(Mirror { to: to.clone(), percent: *percent });
        }
        if let Some(balance) = &self.balance {
            route.balance = Some(balance.clone());
        }
        self.endpoints.apply(route);
        if let Some(sticky) = &self.sticky {
            route.sticky = Some(sticky.clone());
        }
        if self.port.is_none() && self.weight.is_none() && self.target.is_empty() {
            return Ok(());
        }
        let text = named.to_string();
        let itself = |it: &ComponentTarget| format!("{}/{}", it.application, it.component) == text;
        let before = route.targets.iter().find(|it| itself(&it.to)).cloned();
        let port = self.port.or(before.as_ref().and_then(|it| it.to.port));
        let weight = self.weight.or(before.map(|it| it.weight)).unwrap_or(100);
        let own: ComponentTarget = text
            .parse()
            .map(|it: ComponentTarget| ComponentTarget { port, ..it })
            .map_err(|it: TargetError| Failure::usage("target_invalid", it.to_string(), ""))?;
        let others: Vec<_> = if self.target.is_empty() {
            route.targets.iter().filter(|it| !itself(&it.to)).cloned().collect()
        } else {
            self.target.iter().map(|(to, weight)| Target { to: to.clone(), weight: *weight }).collect()
        };
        route.targets = vec![Target { to: own, weight }];
        route.targets.extend(others);
        Ok(())
    }
}

/// The text of a file, as `@FILE` or `FILE`.
fn text_of(path: &str) -> Result<String, Failure> {
    given_file::text(Path::new(path.strip_prefix('@').unwrap_or(path)))
}

/// Parts of a route that can be left out.
const PARTS: [&str; 30] = [
    "paths",
    "methods",
    "headers",
    "cookies",
    "query",
    "scheme",
    "targets",
    "sticky",
    "balance",
    "retry",
    "circuit",
    "health_check",
    "upstream_tls",
    "mirror",
    "rewrite",
    "redirect",
    "answer",
    "maintenance",
    "request_headers",
    "response_headers",
    "cors",
    "allow",
    "deny",
    "rate_limits",
    "basic_auth",
    "forward_auth",
    "max_body_bytes",
    "buffer",
    "timeouts",
    "tls",
];

/// Takes parts of a route away.
pub(super) fn unset(route: &mut RouteRequest, parts: &[String]) -> Result<(), Failure> {
    let mut document = serde_json::to_value(&*route).unwrap_or_default();
    for part in parts {
        if !PARTS.contains(&part.as_str()) {
            let (message, advice) =
                (format!("`{part}` is not a part of a route"), format!("name one of {}", PARTS.join(", ")));
            return Err(Failure::usage("part_unknown", message, advice));
        }
        document.as_object_mut().map(|it| it.remove(part));
    }
    // What is left is a route: every part of one can be absent.
    if let Ok(rest) = serde_json::from_value(document) {
        *route = rest;
    }
    Ok(())
}

fn buffer(text: &str) -> Result<Buffer, String> {
    Ok(match text {
        "request" => Buffer { request: true, response: false },
        "response" => Buffer { request: false, response: true },
        "both" => Buffer { request: true, response: true },
        other => return Err(format!("`{other}` is neither `request`, `response` nor `both`")),
    })
}

fn replace<T: Clone>(slot: &mut Vec<T>, given: &[T]) {
    if !given.is_empty() {
        *slot = given.to_vec();
    }
}

fn edit(edits: &mut HeaderEdits, set: &[(String, String)], add: &[(String, String)], remove: &[String]) {
    edits.set.extend(set.iter().cloned());
    edits.add.extend(add.iter().cloned());
    edits.remove.extend(remove.iter().cloned());
}

/// A path as `--path`, `--exact` and `--regex` say.
pub(super) fn path(text: &str, exact: bool, regex: bool) -> PathMatch {
    match (exact, regex) {
        (true, _) => PathMatch::exact(text),
        (_, true) => PathMatch { regex: Some(text.to_owned()), ..PathMatch::default() },
        _ => PathMatch::prefix(text),
    }
}

fn target(text: &str) -> Result<(ComponentTarget, u32), String> {
    let (to, weight) = text.rsplit_once('=').ok_or("write APP/COMPONENT=WEIGHT")?;
    let weight = weight.parse().map_err(|_| format!("`{weight}` is not a weight: a number from 0"))?;
    Ok((to.parse().map_err(|it: TargetError| it.to_string())?, weight))
}

fn forward_auth(text: &str) -> Result<ForwardAuth<ComponentTarget>, String> {
    let (to, path) = text.split_once('=').unwrap_or((text, "/"));
    let to = to.parse().map_err(|it: TargetError| it.to_string())?;
    Ok(ForwardAuth { to, path: path.to_owned(), copy_headers: Vec::new() })
}

fn mirror(text: &str) -> Result<(ComponentTarget, u32), String> {
    target(&if text.contains('=') { text.to_owned() } else { format!("{text}=100") })
}

fn sticky(text: &str) -> Result<Sticky, String> {
    let (cookie, seconds) = text.split_once('=').map_or((text, None), |it| (it.0, Some(it.1)));
    let seconds = seconds.map(|it| it.parse().map_err(|_| format!("`{it}` is not a number of seconds"))).transpose()?;
    Ok(Sticky { cookie: cookie.to_owned(), max_age_s: seconds })
}

fn condition(text: &str) -> Result<FieldMatch, String> {
    let (name, equals, matches, present) = match (text.strip_prefix('!'), text.split_once('=')) {
        (Some(name), _) => (name, None, None, Some(false)),
        (None, None) => (text, None, None, Some(true)),
        (None, Some((name, value))) => match value.strip_prefix('~') {
            Some(pattern) => (name, None, Some(pattern.to_owned()), None),
            None => (name, Some(value.to_owned()), None, None),
        },
    };
    if name.is_empty() {
        Err("write K=V, K=~REGEX, K or !K".to_owned())
    } else {
        Ok(FieldMatch { name: name.to_owned(), equals, matches, present })
    }
}

fn replacement(text: &str) -> Result<RegexRewrite, String> {
    let (pattern, replacement) = text.split_once('=').ok_or("write PATTERN=REPLACEMENT")?;
    Ok(RegexRewrite { pattern: pattern.to_owned(), replacement: replacement.to_owned() })
}

fn redirect(text: &str) -> Result<Redirect, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (Some(scheme.to_owned()), rest),
        Some((other, _)) => return Err(format!("`{other}` is neither http nor https")),
        None if text.starts_with('/') => (None, text),
        None => return Err("write https://HOST/PATH, https://HOST, https:// or /PATH".to_owned()),
    };
    let (authority, path) = rest.find('/').map_or((rest, None), |at| (&rest[..at], Some(rest[at..].to_owned())));
    let (host, port) = authority.rsplit_once(':').map_or((authority, None), |it| (it.0, Some(it.1)));
    let port = port.map(|it| it.parse().map_err(|_| format!("`{it}` is not a port"))).transpose()?;
    let host = (!host.is_empty()).then(|| host.to_owned());
    Ok(Redirect { scheme, host, port, path, ..Redirect::default() })
}

fn answer(text: &str) -> Result<Answer, String> {
    let (status, body) = text.split_once(':').unwrap_or((text, ""));
    let status = status.parse().map_err(|_| format!("`{status}` is not a status"))?;
    Ok(Answer { status, body: body.to_owned(), content_type: None })
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or(address).map_err(|_| format!("`{text}` is not a network: write 10.0.0.0/8 or 192.0.2.1"))
}

fn rate(text: &str) -> Result<RateLimit, String> {
    let wrong = || format!("`{text}` is not a rate: write 10/s, 100/m or 1000/h, with `:route` or `:HEADER` behind it");
    let (rate, by) = text.split_once(':').map_or((text, None), |it| (it.0, Some(it.1)));
    let (requests, unit) = rate.split_once('/').ok_or_else(wrong)?;
    let per_ms = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let (key, header) = match by {
        None => (RateKey::Address, None),
        Some("route") => (RateKey::Route, None),
        Some(header) => (RateKey::Header, Some(header.to_owned())),
    };
    Ok(RateLimit { key, header, requests: requests.parse().map_err(|_| wrong())?, per_ms, burst: None })
}

pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    let fine = (0.001..=86_400.0).contains(&seconds);
    if fine { Ok((seconds * 1000.0).round() as u64) } else { Err("give 0.001 to 86400 seconds".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read() {
        let parts = |it: FieldMatch| (it.name, it.equals, it.matches, it.present);
        assert_eq!(parts(condition("k=v=w").unwrap()), ("k".into(), Some("v=w".into()), None, None));
        assert_eq!(parts(condition("k=~^v").unwrap()), ("k".into(), None, Some("^v".into()), None));
        assert_eq!(condition("k").unwrap().present, Some(true));
        assert_eq!(condition("!k").unwrap().present, Some(false));
        assert!(condition("=v").is_err() && condition("").is_err());
        let to = redirect("https://b.test:8443/x?").unwrap();
        assert_eq!((to.host.as_deref(), to.port, to.path.as_deref()), (Some("b.test"), Some(8443), Some("/x?")));
        assert_eq!(redirect("https://").unwrap().scheme.as_deref(), Some("https"));
        assert_eq!(redirect("/new").unwrap().path.as_deref(), Some("/new"));
        assert!(redirect("ftp://a").is_err() && redirect("a").is_err());
        assert_eq!(target("a/b:80=5").unwrap(), ("a/b:80".parse().unwrap(), 5));
        assert!(target("a/b").is_err() && target("a=1").is_err());
        let limit = rate("100/m:x-key").unwrap();
        assert_eq!((limit.requests, limit.per_ms, limit.key), (100, 60_000, RateKey::Header));
        assert!(rate("10").is_err() && rate("x/s").is_err());
        assert_eq!(milliseconds("0.25").unwrap(), 250);
        assert_eq!(network("10.0.0.1").unwrap().prefix_len(), 32);
    }

    #[test]
    fn every_part_can_be_taken_away() {
        // The schema itself names its fields when it is given a wrong one.
        let error = serde_json::from_str::<RouteRequest>("{\"x\": 1}").unwrap_err().to_string();
        for part in error.split('`').skip(3).step_by(2).filter(|it| *it != "hosts") {
            assert!(PARTS.contains(&part), "{part}");
        }
        let text = r#"{"hosts": ["a.test"], "methods": ["GET"], "tls": {"redirect": true}}"#;
        let mut route: RouteRequest = serde_json::from_str(text).unwrap();
        unset(&mut route, &["tls".to_owned(), "cors".to_owned()]).unwrap();
        assert_eq!(serde_json::to_string(&route).unwrap(), r#"{"hosts":["a.test"],"methods":["GET"]}"#);
        assert!(unset(&mut route, &["colour".to_owned()]).is_err());
        assert!(unset(&mut route, &["hosts".to_owned()]).is_err());
    }
}
