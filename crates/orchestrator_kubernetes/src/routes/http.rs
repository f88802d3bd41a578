//! Rules of HTTPRoutes and GRPCRoutes. Pure.
//!
//! What must hold: what cannot be served answers 500 (calls of gRPC: 503, which is UNAVAILABLE to them), as the Gateway API
//! wants it, and is told; it never falls through to another rule, or from one backend to another.

use super::backend::{Backends, Speech, Unresolved};
use super::filter::{Fault, apply};
use super::kind::Kind;
use super::object::{
    GrpcMethod, NamedMatch, PathMatch as Written, RouteMatch, RouteRule, RouteSpec, SessionPersistence,
};
use arco_model::route::{Answer, Balance, FieldMatch, PathMatch, Route, RouteTimeouts, Sticky, Target, UpstreamTarget};
use arco_model::traffic::UpstreamState;
use serde::Deserialize as _;

/// What became of a route's rules.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) rules: Vec<Route<UpstreamTarget>>,
    /// The first reference that leads nowhere.
    pub(super) unresolved: Option<Unresolved>,
    /// Why rules are not served as they are written.
    pub(super) unsupported: Vec<String>,
    /// Rules that are served as they are written.
    pub(super) fine: usize,
}

/// Translates all rules.
pub(super) fn rules(kind: Kind, namespace: &str, spec: &RouteSpec, backends: &mut Backends<'_>) -> Rules {
    let mut all = Rules::default();
    for (at, written) in spec.rules.iter().enumerate() {
        let mut fine = true;
        let base = match rule(kind, namespace, written, backends, &mut all.unresolved) {
            Ok(base) => base,
            Err(Fault::Unsupported(why)) => {
                fine = false;
                all.unsupported.push(format!("rule {}: {why}", at + 1));
                broken(kind, "This route asks for something that is not served here.\n")
            }
            Err(Fault::Unresolved(it)) => {
                all.unresolved.get_or_insert(it);
                broken(kind, "This route names something that is not there.\n")
            }
        };
        let any = [RouteMatch::default()];
        for it in if written.matches.is_empty() { &any[..] } else { &written.matches } {
            match matched(kind, it, base.clone()).and_then(|it| it.check().map(|()| it)) {
                Ok(rule) => all.rules.push(rule),
                Err(why) => {
                    fine = false;
                    all.unsupported.push(format!("rule {}: {why}", at + 1));
                    // The same requests, if it can be said which, must not get to somebody else.
                    let closed = matched(kind, it, broken(kind, "This route cannot be served as it is written.\n"));
                    all.rules.extend(closed.ok().filter(|it| it.check().is_ok()));
                }
            }
        }
        all.fine += usize::from(fine);
    }
    all
}

fn broken(kind: Kind, body: &str) -> Route<UpstreamTarget> {
    let status = if kind == Kind::GrpcRoute { 503 } else { 500 };
    let answer = Answer { status, body: body.to_owned(), content_type: None };
    Route { answer: Some(answer), ..Route::default() }
}

/// A rule without its matches.
fn rule(
    kind: Kind,
    namespace: &str,
    written: &RouteRule,
    backends: &mut Backends<'_>,
    unresolved: &mut Option<Unresolved>,
) -> Result<Route<UpstreamTarget>, Fault> {
    let from = (kind.word(), namespace);
    let mut rule = Route::default();
    apply(&written.filters, from, backends, &mut rule)?;
    rule.timeouts = RouteTimeouts {
        total_ms: duration(written.timeouts.request.as_deref())?,
        response_ms: duration(written.timeouts.backend_request.as_deref())?,
        ..RouteTimeouts::default()
    };
    if let Some(it) = &written.session_persistence {
        rule.balance = Some(Balance::Sticky(session(it)?));
    }
    if rule.redirect.is_some() {
        if !written.backend_refs.is_empty() {
            return Err(Fault::Unsupported("a redirect goes without `backendRefs`".to_owned()));
        }
        return Ok(Route { rewrite: None, balance: None, mirror: None, ..rule });
    }
    let speech = if kind == Kind::GrpcRoute { Speech::H2C } else { Speech::default() };
    let mut missing = Vec::new();
    for it in &written.backend_refs {
        if !it.filters.is_empty() {
            let what = format!("filters of the backend `{}` alone are not understood", it.name);
            return Err(Fault::Unsupported(what));
        }
        let (reference, weight) = (it.object(), it.weight.unwrap_or(1));
        match backends.referred(from, &reference, speech) {
            Ok(to) => rule.targets.push(Target { to, weight }),
            Err(why) => {
                unresolved.get_or_insert(why);
                missing.push((reference, weight));
            }
        }
    }
    if rule.targets.iter().all(|it| it.weight == 0) {
        return Ok(broken(kind, "No backend of this route can answer.\n"));
    }
    // To gRPC 500 would be UNKNOWN; what has no endpoint is UNAVAILABLE.
    let state = if kind == Kind::GrpcRoute { UpstreamState::Up } else { UpstreamState::Missing };
    for (reference, weight) in missing.into_iter().filter(|it| it.1 > 0) {
        rule.targets.push(Target { to: backends.missing(namespace, &reference, state), weight });
    }
    let sum: u64 = rule.targets.iter().map(|it| u64::from(it.weight)).sum();
    let scale = sum.div_ceil(1_000_000);
    for it in rule.targets.iter_mut().filter(|it| scale > 1 && it.weight > 0) {
        it.weight = u32::try_from((u64::from(it.weight) / scale).max(1)).unwrap_or(1);
    }
    Ok(rule)
}

fn session(written: &SessionPersistence) -> Result<Sticky, Fault> {
    if written.r#type.as_deref().is_some_and(|it| it != "Cookie") {
        return Err(Fault::Unsupported("`sessionPersistence` is by cookie only".to_owned()));
    }
    let age = duration(written.absolute_timeout.as_deref())?;
    // A cookie of the kind `Session` goes with the browser, as it does when nothing is said.
    let stays = written.cookie_config.lifetime_type.as_deref() == Some("Permanent");
    Ok(Sticky {
        cookie: written.session_name.clone().unwrap_or_else(|| "arco-session".to_owned()),
        max_age_s: age.filter(|_| stays).map(|it| u32::try_from(it / 1000).unwrap_or(u32::MAX)),
    })
}

/// Which requests.
fn matched(kind: Kind, written: &RouteMatch, mut rule: Route<UpstreamTarget>) -> Result<Route<UpstreamTarget>, String> {
    match kind {
        Kind::GrpcRoute => {
            if let Some(it) = &written.method {
                rule.paths = vec![grpc(&GrpcMethod::deserialize(it).map_err(|it| it.to_string())?)?];
            }
        }
        _ => {
            rule.paths.extend(written.path.as_ref().map(path).transpose()?);
            rule.methods.extend(written.method.as_ref().and_then(|it| it.as_str()).map(str::to_owned));
        }
    }
    rule.headers = fields(&written.headers)?;
    rule.query = fields(&written.query_params)?;
    Ok(rule)
}

fn path(written: &Written) -> Result<PathMatch, String> {
    let value = written.value.as_deref().unwrap_or("/");
    match written.r#type.as_deref().unwrap_or("PathPrefix") {
        "PathPrefix" => Ok(PathMatch::prefix(value)),
        "Exact" => Ok(PathMatch::exact(value)),
        "RegularExpression" => Ok(expression(value)),
        other => Err(format!("paths cannot be matched by `{other}`")),
    }
}

/// The whole path is matched.
fn expression(text: &str) -> PathMatch {
    PathMatch { regex: Some(format!("^(?:{text})$")), ..PathMatch::default() }
}

fn grpc(written: &GrpcMethod) -> Result<PathMatch, String> {
    let part = |it: &Option<String>| it.clone().filter(|it| !it.is_empty());
    let (service, method) = (part(&written.service), part(&written.method));
    match (written.r#type.as_deref().unwrap_or("Exact"), service, method) {
        ("Exact", Some(service), Some(method)) => Ok(PathMatch::exact(&format!("/{service}/{method}"))),
        ("Exact", Some(service), None) => Ok(PathMatch::prefix(&format!("/{service}"))),
        ("Exact", None, Some(method)) => {
            let quoted: String = method
                .chars()
                .map(|it| if it.is_alphanumeric() { it.to_string() } else { format!("\\{it}") })
                .collect();
            Ok(expression(&format!("/[^/]+/{quoted}")))
        }
        ("RegularExpression", service, method) => {
            let any = || "[^/]+".to_owned();
            Ok(expression(&format!("/(?:{})/(?:{})", service.unwrap_or_else(any), method.unwrap_or_else(any))))
        }
        ("Exact", None, None) => Ok(PathMatch::prefix("/")),
        (other, ..) => Err(format!("methods cannot be matched by `{other}`")),
    }
}

fn fields(written: &[NamedMatch]) -> Result<Vec<FieldMatch>, String> {
    let mut all: Vec<FieldMatch> = Vec::new();
    for it in written {
        // Of two for one name the first counts.
        if all.iter().any(|known| known.name.eq_ignore_ascii_case(&it.name)) {
            continue;
        }
        let (equals, matches) = match it.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => (Some(it.value.clone()), None),
            "RegularExpression" => (None, Some(format!("^(?:{})$", it.value))),
            other => return Err(format!("`{}` cannot be matched by `{other}`", it.name)),
        };
        all.push(FieldMatch { name: it.name.clone(), equals, matches, present: None });
    }
    Ok(all)
}

/// A duration as `1h30m`, `10s`, `500ms`, in ms; `0s` means none.
fn duration(text: Option<&str>) -> Result<Option<u64>, Fault> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || Fault::Unsupported(format!("`{text}` is not a duration as `1h30m`, `10s` or `500ms`"));
    let mut rest = text;
    let mut sum = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = rest[digits..].find(|it: char| it.is_ascii_digit()).map_or(rest.len(), |it| it + digits);
        let unit = match &rest[digits..unit_end] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return Err(wrong()),
        };
        sum = sum.saturating_add(number.saturating_mul(unit));
        rest = &rest[unit_end..];
    }
    Ok(Some(sum).filter(|it| *it > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_outlives_the_browser_only_where_it_is_to() {
        for (kind, wanted) in [(None, None), (Some("Session"), None), (Some("Permanent"), Some(3600))] {
            let written = serde_json::json!({ "absoluteTimeout": "1h", "cookieConfig": { "lifetimeType": kind } });
            let session = session(&SessionPersistence::deserialize(written).unwrap());
            assert_eq!(session.ok().map(|it| it.max_age_s), Some(wanted), "{kind:?}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, wanted) in [
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("0s", None),
            ("1m1ms", Some(60_001)),
        ] {
            assert_eq!(duration(Some(text)).ok(), Some(wanted), "{text}");
        }
        for text in ["10", "s", "1d", "-1s", "1.5s"] {
            assert!(duration(Some(text)).is_err(), "{text}");
        }
    }
}
