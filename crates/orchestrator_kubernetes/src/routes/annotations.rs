//! What annotations of an Ingress (`nginx.ingress.kubernetes.io/…`) ask for. Pure.
//!
//! What must hold: an annotation that guards something and is not understood closes the Ingress; any other that is not
//! understood is named and left out.

use super::backend::Speech;
use super::object::Words;
use arco_model::route::{
    Balance, FieldMatch, HashBy, PathMatch, RegexRewrite, Rewrite, Route, RouteTimeouts, Sticky, UpstreamTarget,
};

/// Without one of these read, an Ingress would be open to people whom it should keep out.
const GUARDS: [&str; 6] =
    ["auth-type", "auth-url", "auth-secret", "auth-tls-secret", "satisfy", "auth-tls-verify-client"];
/// What is so here anyway, or says how nginx does something that is done otherwise here.
const MOOT: [&str; 6] =
    ["proxy-buffer-size", "proxy-buffers-number", "proxy-http-version", "service-upstream", "l4-host", "canary"];

/// What an Ingress asks for beside hosts, paths and backends.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    /// Goes into every rule.
    pub(super) rule: Route<UpstreamTarget>,
    /// Share among those that mean the same requests.
    pub(super) share: Option<u32>,
    /// Paths are expressions.
    pub(super) regex: bool,
    /// New path, with `$1` for what the expression of the path caught.
    pub(super) rewrite: Option<String>,
    /// Backends are asked without the prefix that was matched.
    pub(super) strip: bool,
    /// Where `/` leads.
    pub(super) app_root: Option<String>,
    /// Plain HTTP is answered by a redirect: always, never, or where there is a certificate.
    pub(super) redirect: Option<bool>,
    /// What backends speak.
    pub(super) speech: Speech,
    /// A port of the gateway that leads to the backend without HTTP.
    pub(super) stream: Option<u16>,
    /// Why it is not served at all.
    pub(super) closed: Option<String>,
    /// What is left out.
    pub(super) problems: Vec<String>,
}

/// Reads all of them.
pub(super) fn wishes(annotations: &Words) -> Wishes {
    let mut wishes = Wishes::default();
    let mut rewrite_regex = None;
    for (name, text) in annotations {
        match read(&mut wishes, name, text.trim()) {
            Ok(true) => {}
            Ok(false) if GUARDS.contains(&name.as_str()) => {
                wishes.closed = Some(format!("`{name}` is not understood: without it, it would be open to everybody"));
            }
            Ok(false) if name.starts_with("rewrite-") => match name.rsplit_once('-') {
                Some((_, "flag")) => {}
                Some((number, part @ ("regex" | "replacement"))) => {
                    let (first, regex, replacement) = rewrite_regex.get_or_insert((number, None, None));
                    match part {
                        _ if *first != number => {
                            wishes.problems.push(format!("`{name}`: only the first rewrite counts"))
                        }
                        "regex" => *regex = Some(text.clone()),
                        _ => *replacement = Some(text.clone()),
                    }
                }
                _ => wishes.problems.push(format!("`{name}` is not read")),
            },
            Ok(false) => wishes.problems.push(format!("`{name}` is not read")),
            Err(why) if ["whitelist-source-range", "denylist-source-range"].contains(&name.as_str()) => {
                wishes.closed = Some(format!("`{name}`: {why}"));
            }
            Err(why) => wishes.problems.push(format!("`{name}`: {why}")),
        }
    }
    if annotations.get("l4-enable").is_some_and(|it| it == "false") {
        wishes.stream = None;
    }
    if let Some((_, Some(pattern), Some(replacement))) = rewrite_regex {
        let regex = Some(RegexRewrite { pattern, replacement: braced(&replacement) });
        wishes.rule.rewrite = Some(Rewrite { regex, ..Rewrite::default() });
    }
    wishes
}

/// Whether it is known, or what is wrong with its value.
fn read(wishes: &mut Wishes, name: &str, text: &str) -> Result<bool, String> {
    let rule = &mut wishes.rule;
    let yes = || match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("`{other}` is neither true nor false")),
    };
    let on = || match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("`{other}` is neither on nor off")),
    };
    match name {
        "weight" | "canary-weight" => wishes.share = Some(number(text)?),
        "header" => rule.headers = fields(text)?,
        "cookie" => rule.cookies = fields(text)?,
        "path-rewrite" => wishes.strip = yes()?,
        "rewrite-target" => wishes.rewrite = Some(text.to_owned()).filter(|it| !it.is_empty()),
        "use-regex" => wishes.regex = yes()?,
        "app-root" => wishes.app_root = Some(text.to_owned()),
        "ssl-redirect" => {
            let asked = yes()?;
            wishes.redirect = wishes.redirect.filter(|it| *it).or((!asked).then_some(false));
        }
        "force-ssl-redirect" => wishes.redirect = if yes()? { Some(true) } else { wishes.redirect },
        "backend-protocol" => match text {
            "HTTP" => {}
            "GRPC" | "H2C" => wishes.speech = Speech::H2C,
            "HTTPS" => wishes.speech = Speech { http2: false, tls: true },
            "GRPCS" => wishes.speech = Speech { http2: true, tls: true },
            other => wishes.closed = Some(format!("`backend-protocol`: backends cannot be called by `{other}`")),
        },
        "proxy-ssl-verify" if on()? => {
            wishes.closed = Some("`proxy-ssl-verify`: certificates of backends are not verified here".to_owned());
        }
        "proxy-ssl-verify" => {}
        "lb-type" => {
            rule.balance = match text {
                "round-robin" | "" => None,
                "least-conn" | "least_conn" => Some(Balance::LeastRequests),
                "ewma" => Some(Balance::Ewma),
                "cookie-session-affinity" => {
                    Some(Balance::Sticky(Sticky { cookie: "route".to_owned(), max_age_s: None }))
                }
                other => return Err(format!("`{other}` is no way to choose an endpoint")),
            }
        }
        "upstream-hash-by" => {
            let by = text.trim_start_matches('$').trim_start_matches('{').trim_end_matches('}');
            rule.balance = Some(Balance::Hash(if let Some(it) = by.strip_prefix("cookie_") {
                HashBy::Cookie(it.to_owned())
            } else if let Some(it) = by.strip_prefix("http_") {
                HashBy::Header(it.replace('_', "-"))
            } else if ["remote_addr", "binary_remote_addr"].contains(&by) {
                HashBy::Address
            } else {
                return Err(format!("`{text}` cannot be hashed: $remote_addr, $http_NAME or $cookie_NAME"));
            }));
        }
        "l4-enable" => drop(yes()?),
        "l4-port" => wishes.stream = Some(number(text)?),
        "proxy-connect-timeout" => rule.timeouts = RouteTimeouts { connect_ms: Some(seconds(text)?), ..rule.timeouts },
        "proxy-send-timeout" => {
            rule.timeouts = RouteTimeouts { request_body_ms: Some(seconds(text)?), ..rule.timeouts }
        }
        "proxy-read-timeout" => rule.timeouts = RouteTimeouts { response_ms: Some(seconds(text)?), ..rule.timeouts },
        "proxy-body-size" => rule.max_body_bytes = Some(size(text)?).filter(|it| *it > 0),
        "proxy-request-buffering" => rule.buffer.request = on()?,
        "proxy-buffering" => rule.buffer.response = on()?,
        "whitelist-source-range" => rule.allow = networks(text)?,
        "denylist-source-range" => rule.deny = networks(text)?,
        _ => {
            if let Some(field) = name.strip_prefix("set-header-") {
                rule.request_headers.set.insert(field.to_owned(), text.to_owned());
            } else if let Some(field) = name.strip_prefix("resp-header-") {
                rule.response_headers.set.insert(field.to_owned(), text.to_owned());
            } else {
                return Ok(MOOT.contains(&name));
            }
        }
    }
    Ok(true)
}

/// The paths of a rule, and what becomes of them.
pub(super) fn path(wishes: &Wishes, kind: &str, written: &str) -> (PathMatch, Option<Rewrite>) {
    let written = if written.is_empty() { "/" } else { written };
    let regex = wishes.regex && kind != "Exact";
    let matched = match kind {
        "Exact" => PathMatch::exact(written),
        _ if regex => PathMatch { regex: Some(format!("(?i)^{written}")), ..PathMatch::default() },
        _ => PathMatch::prefix(written),
    };
    let stripped = (wishes.strip && matched.prefix.is_some())
        .then(|| Rewrite { prefix: Some("/".to_owned()), ..Rewrite::default() });
    let rewrite = wishes.rewrite.as_ref().map(|target| match regex {
        // nginx replaces the whole path by the target, with what the expression caught.
        true => {
            let pattern = format!("(?i)^{}.*$", written.trim_end_matches('$'));
            let regex = Some(RegexRewrite { pattern, replacement: braced(target) });
            Rewrite { regex, ..Rewrite::default() }
        }
        false => Rewrite { path: Some(target.clone()), ..Rewrite::default() },
    });
    (matched, rewrite.or(stripped))
}

/// `$1x` as `${1}x`: nginx takes one digit, expressions here the longest name.
fn braced(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(it) = rest.next() {
        match (it, rest.peek().copied()) {
            ('$', Some(digit)) if digit.is_ascii_digit() => {
                rest.next();
                out.push_str(&format!("${{{digit}}}"));
            }
            _ => out.push(it),
        }
    }
    out
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that can be used"))
}

/// Seconds in ms.
fn seconds(text: &str) -> Result<u64, String> {
    Ok(number::<u64>(text.trim_end_matches('s'))?.saturating_mul(1000))
}

/// A size with `k`, `m` or `g`, in bytes.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.chars().last() {
        Some('k') => (&lower[..lower.len() - 1], 10),
        Some('m') => (&lower[..lower.len() - 1], 20),
        Some('g') => (&lower[..lower.len() - 1], 30),
        _ => (lower.as_str(), 0),
    };
    number::<u64>(digits)?.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too much"))
}

fn networks(text: &str) -> Result<Vec<ipnet::IpNet>, String> {
    let network = |it: &str| {
        let address = it.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
        address.or_else(|_| it.parse()).map_err(|_| format!("`{it}` is not a network"))
    };
    text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(network).collect()
}

/// `K:V;K:V`.
fn fields(text: &str) -> Result<Vec<FieldMatch>, String> {
    let pair = |it: &str| {
        let (name, value) = it.split_once([':', '=']).ok_or_else(|| format!("`{it}` is not NAME:VALUE"))?;
        let (name, equals) = (name.trim().to_owned(), Some(value.trim().to_owned()));
        Ok(FieldMatch { name, equals, matches: None, present: None })
    };
    text.split(';').map(str::trim).filter(|it| !it.is_empty()).map(pair).collect()
}
