//! Filters of rules of the Gateway API as parts of a route. Pure.
//!
//! What must hold: a filter that is not understood is never skipped; the rule is refused.

use super::backend::{Backends, Speech, Unresolved};
use super::object::{CorsFilter, Filter, Headers, MirrorFilter, NewPath};
use arco_model::route::{Cors, HeaderEdits, Mirror, Redirect, Rewrite, Route, UpstreamTarget};

/// Why a rule cannot be served.
pub(super) enum Fault {
    /// Something in it is not understood, or cannot be done.
    Unsupported(String),
    /// What it names is not there.
    Unresolved(Unresolved),
}

/// Puts all filters into `rule`. `from` is kind and namespace of the route.
pub(super) fn apply(
    filters: &[Filter],
    from: (&str, &str),
    backends: &mut Backends<'_>,
    rule: &mut Route<UpstreamTarget>,
) -> Result<(), Fault> {
    for it in filters {
        one(it, from, backends, rule)?;
    }
    Ok(())
}

fn one(
    filter: &Filter,
    from: (&str, &str),
    backends: &mut Backends<'_>,
    rule: &mut Route<UpstreamTarget>,
) -> Result<(), Fault> {
    let unsupported = |what: &str| Err(Fault::Unsupported(format!("the filter `{}` {what}", filter.r#type)));
    match filter.r#type.as_str() {
        "RequestHeaderModifier" => {
            let Some(it) = &filter.request_header_modifier else { return unsupported("says nothing") };
            edit(&mut rule.request_headers, it);
        }
        "ResponseHeaderModifier" => {
            let Some(it) = &filter.response_header_modifier else { return unsupported("says nothing") };
            edit(&mut rule.response_headers, it);
        }
        "RequestRedirect" => {
            let Some(it) = &filter.request_redirect else { return unsupported("says nothing") };
            let (path, prefix) = new_path(it.path.as_ref())?;
            rule.redirect = Some(Redirect {
                scheme: it.scheme.clone(),
                host: it.hostname.clone(),
                port: it.port,
                path,
                prefix,
                regex: None,
                status: it.status_code,
            });
        }
        "URLRewrite" => {
            let Some(it) = &filter.url_rewrite else { return unsupported("says nothing") };
            let (path, prefix) = new_path(it.path.as_ref())?;
            rule.rewrite = Some(Rewrite { path, prefix, regex: None, host: it.hostname.clone() });
        }
        "RequestMirror" => {
            let Some(it) = &filter.request_mirror else { return unsupported("says nothing") };
            if rule.mirror.is_some() {
                return unsupported("can be there once");
            }
            let to = backends.referred(from, &it.backend_ref.object(), Speech::default()).map_err(Fault::Unresolved)?;
            rule.mirror = Some(Mirror { to, percent: percent(it) });
        }
        "CORS" => {
            let Some(it) = &filter.cors else { return unsupported("says nothing") };
            rule.cors = Some(cors(it));
        }
        _ => return unsupported("is not understood"),
    }
    Ok(())
}

fn edit(edits: &mut HeaderEdits, written: &Headers) {
    edits.set.extend(written.set.iter().map(|it| (it.name.clone(), it.value.clone())));
    edits.add.extend(written.add.iter().map(|it| (it.name.clone(), it.value.clone())));
    edits.remove.extend(written.remove.iter().cloned());
}

/// A whole new path, or a new prefix.
fn new_path(written: Option<&NewPath>) -> Result<(Option<String>, Option<String>), Fault> {
    let Some(it) = written else { return Ok((None, None)) };
    match it.r#type.as_str() {
        "ReplaceFullPath" => Ok((Some(it.replace_full_path.clone().unwrap_or_else(|| "/".to_owned())), None)),
        "ReplacePrefixMatch" => {
            let prefix = it.replace_prefix_match.clone().filter(|it| !it.is_empty());
            Ok((None, Some(prefix.unwrap_or_else(|| "/".to_owned()))))
        }
        other => Err(Fault::Unsupported(format!("a path cannot be changed by `{other}`"))),
    }
}

fn percent(it: &MirrorFilter) -> u32 {
    let fraction = it.fraction.as_ref().map(|it| {
        let share = u64::from(it.numerator) * 100 / u64::from(it.denominator.unwrap_or(100).max(1));
        u32::try_from(share.min(100)).unwrap_or(100)
    });
    it.percent.or(fraction).unwrap_or(100)
}

fn cors(it: &CorsFilter) -> Cors {
    Cors {
        origins: it.allow_origins.clone(),
        methods: it.allow_methods.iter().filter(|it| *it != "*").cloned().collect(),
        headers: it.allow_headers.iter().filter(|it| *it != "*").cloned().collect(),
        expose: it.expose_headers.clone(),
        credentials: it.allow_credentials.unwrap_or_default(),
        max_age_s: it.max_age,
    }
}
