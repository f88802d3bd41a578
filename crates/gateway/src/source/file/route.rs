//! Routes as they are written in the file, and the rules that come of them.

use super::{TargetFile, TimeoutsFile, check_host, check_timeouts, merged};
use crate::protect::{Protection, RateKey, RateLimit, Users};
use crate::snapshot::{
    Action, Answer, Conditions, Cors, HeaderEdits, Maintenance, Mirror, PathMatch, PathRewrite, Pattern, Policy,
    Redirect, Rewrite, Rule, Snapshot, StickyCookie, Test,
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteFile {
    pub(super) hosts: Vec<String>,
    #[serde(default)]
    paths: Vec<PathFile>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    headers: Vec<TestFile>,
    #[serde(default)]
    cookies: Vec<TestFile>,
    #[serde(default)]
    query: Vec<TestFile>,
    #[serde(default)]
    targets: Vec<TargetFile>,
    #[serde(default)]
    timeouts: TimeoutsFile,
    sticky: Option<StickyFile>,
    mirror: Option<MirrorFile>,
    rewrite: Option<RewriteFile>,
    redirect: Option<RedirectFile>,
    answer: Option<AnswerFile>,
    maintenance: Option<MaintenanceFile>,
    #[serde(default)]
    request_headers: HeadersFile,
    #[serde(default)]
    response_headers: HeadersFile,
    cors: Option<CorsFile>,
    #[serde(default)]
    allow: Vec<IpNet>,
    #[serde(default)]
    deny: Vec<IpNet>,
    #[serde(default)]
    rate_limits: Vec<RateFile>,
    basic_auth: Option<BasicAuthFile>,
    max_body_bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateFile {
    #[serde(default)]
    key: RateKeyFile,
    header: Option<String>,
    requests: u32,
    #[serde(default = "second")]
    per_ms: u64,
    burst: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RateKeyFile {
    Route,
    #[default]
    Address,
    Header,
}

fn second() -> u64 {
    1000
}

impl RateFile {
    fn limit(&self) -> Result<RateLimit, String> {
        let fine = (1..=1_000_000).contains(&self.requests) && (1..=86_400_000).contains(&self.per_ms);
        if !fine || self.burst == Some(0) || self.burst.is_some_and(|it| it > 1_000_000) {
            return Err("a rate limit takes 1 to 1000000 `requests` per 1 to 86400000 `per_ms`, and a `burst` above 0"
                .to_owned());
        }
        let key = match (self.key, &self.header) {
            (RateKeyFile::Header, Some(it)) => {
                RateKey::Header(HeaderName::try_from(it.as_str()).map_err(|_| format!("`{it}` is not a header field"))?)
            }
            (RateKeyFile::Route, None) => RateKey::Route,
            (RateKeyFile::Address, None) => RateKey::Address,
            _ => return Err("a rate limit has a `header` when its `key` is `header`, and only then".to_owned()),
        };
        let burst = self.burst.unwrap_or(self.requests);
        Ok(RateLimit::new(key, self.requests, std::time::Duration::from_millis(self.per_ms), burst))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BasicAuthFile {
    #[serde(default = "restricted")]
    realm: String,
    users_file: std::path::PathBuf,
}

fn restricted() -> String {
    "restricted".to_owned()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PathFile {
    prefix: Option<String>,
    exact: Option<String>,
    regex: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestFile {
    name: String,
    equals: Option<String>,
    matches: Option<String>,
    present: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StickyFile {
    cookie: String,
    max_age_s: Option<u32>,
}

impl StickyFile {
    pub(super) fn cookie(&self) -> Result<StickyCookie, String> {
        let name = &self.cookie;
        if HeaderName::try_from(name.as_str()).is_err() {
            return Err(format!("`{name}` is not a name for a cookie"));
        }
        Ok(StickyCookie { name: name.as_str().into(), max_age_s: self.max_age_s })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorFile {
    upstream: String,
    #[serde(default = "hundred")]
    percent: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegexFile {
    pattern: String,
    replacement: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RewriteFile {
    path: Option<String>,
    prefix: Option<String>,
    regex: Option<RegexFile>,
    host: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RedirectFile {
    scheme: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<String>,
    prefix: Option<String>,
    regex: Option<RegexFile>,
    status: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    status: u16,
    #[serde(default)]
    body: String,
    content_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MaintenanceFile {
    message: String,
    retry_after_s: u32,
    allow: Vec<IpNet>,
}

impl Default for MaintenanceFile {
    fn default() -> Self {
        let message = "This application is being worked on.".to_owned();
        Self { message, retry_after_s: 300, allow: Vec::new() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HeadersFile {
    set: BTreeMap<String, String>,
    add: BTreeMap<String, String>,
    remove: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CorsFile {
    origins: Vec<String>,
    methods: Vec<String>,
    headers: Vec<String>,
    expose: Vec<String>,
    credentials: bool,
    max_age_s: Option<u32>,
}

/// A route that was checked: what it needs to become rules.
pub(super) struct Checked {
    pub(super) paths: Vec<PathMatch>,
    pub(super) conditions: Conditions,
    rates: Vec<(String, Arc<RateLimit>)>,
    users: Option<Arc<Users>>,
}

impl Checked {
    /// Rate limits by what they are for, so that the next reading goes on counting.
    pub(super) fn kept_rates(&self) -> Vec<(String, Arc<RateLimit>)> {
        self.rates.clone()
    }
}

/// Fields that frame a message or belong to one hop: no route may touch them.
const FORBIDDEN: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive"];

fn header(name: &str) -> Result<HeaderName, String> {
    let parsed = HeaderName::try_from(name).map_err(|_| format!("`{name}` is not the name of a header field"))?;
    if FORBIDDEN.contains(&parsed.as_str()) {
        return Err(format!("the header field `{name}` belongs to the connection and cannot be changed"));
    }
    Ok(parsed)
}

fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::try_from(text).map_err(|_| format!("`{text}` cannot be the value of a header field"))
}

impl HeadersFile {
    fn edits(&self) -> Result<HeaderEdits, String> {
        let pairs = |map: &BTreeMap<String, String>| {
            map.iter().map(|(name, text)| Ok((header(name)?, value(text)?))).collect::<Result<Vec<_>, String>>()
        };
        let remove = self.remove.iter().map(|it| header(it)).collect::<Result<_, _>>()?;
        Ok(HeaderEdits { set: pairs(&self.set)?, add: pairs(&self.add)?, remove })
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

impl TestFile {
    fn test(&self) -> Result<Test, String> {
        match (&self.equals, &self.matches, self.present) {
            (Some(it), None, None) => Ok(Test::Equals(it.clone())),
            (None, Some(it), None) => Ok(Test::Matches(Pattern::new(it)?)),
            (None, None, Some(true)) => Ok(Test::Present),
            (None, None, Some(false)) => Ok(Test::Absent),
            _ => Err(format!("the condition on `{}` needs one of `equals`, `matches`, `present`", self.name)),
        }
    }
}

fn path_rewrite(
    path: Option<&String>,
    prefix: Option<&String>,
    regex: Option<&RegexFile>,
) -> Result<Option<PathRewrite>, String> {
    let absolute = |it: &String| {
        let fine = it.starts_with('/') && !it.contains(['?', '#']) && http::Uri::try_from(it.as_str()).is_ok();
        if fine { Ok(it.clone()) } else { Err(format!("the new path `{it}` must begin with / and have no ? or #")) }
    };
    match (path, prefix, regex) {
        (None, None, None) => Ok(None),
        (Some(it), None, None) => Ok(Some(PathRewrite::Full(absolute(it)?))),
        (None, Some(it), None) => Ok(Some(PathRewrite::Prefix(absolute(it)?))),
        (None, None, Some(it)) => Ok(Some(PathRewrite::Regex(Pattern::new(&it.pattern)?, it.replacement.clone()))),
        _ => Err("a new path needs one of `path`, `prefix`, `regex`".to_owned()),
    }
}

fn joined(list: &[String], default: &str) -> Result<HeaderValue, String> {
    value(&if list.is_empty() { default.to_owned() } else { list.join(", ") })
}

impl CorsFile {
    fn cors(&self) -> Result<Cors, String> {
        if self.origins.is_empty() {
            return Err("`cors` needs `origins`".to_owned());
        }
        if self.credentials && self.origins.iter().any(|it| it == "*") {
            return Err("`cors` with `credentials` must name its `origins`; `*` would open it to every site".to_owned());
        }
        for origin in &self.origins {
            if origin != "*" && (!origin.contains("://") || origin.ends_with('/')) {
                return Err(format!("`{origin}` is not an origin: write `https://a.example.com`"));
            }
        }
        Ok(Cors {
            origins: self.origins.clone(),
            methods: joined(&self.methods, "GET, HEAD, POST, PUT, PATCH, DELETE")?,
            headers: if self.headers.is_empty() { None } else { Some(joined(&self.headers, "")?) },
            expose: if self.expose.is_empty() { None } else { Some(joined(&self.expose, "")?) },
            credentials: self.credentials,
            max_age_s: self.max_age_s.unwrap_or(600),
        })
    }
}

impl RedirectFile {
    fn redirect(&self) -> Result<Redirect, String> {
        let scheme = match self.scheme.as_deref() {
            None => None,
            Some("http") => Some("http"),
            Some("https") => Some("https"),
            Some(other) => return Err(format!("a redirect leads to `http` or `https`, not to `{other}`")),
        };
        if let Some(host) = &self.host {
            check_host(host)?;
        }
        let path = path_rewrite(self.path.as_ref(), self.prefix.as_ref(), self.regex.as_ref())?;
        if scheme.is_none() && self.host.is_none() && self.port.is_none() && path.is_none() {
            return Err("a redirect needs a new `scheme`, `host`, `port`, `path`, `prefix` or `regex`".to_owned());
        }
        let status = self.status.unwrap_or(302);
        match StatusCode::from_u16(status) {
            Ok(status) if [301, 302, 303, 307, 308].contains(&status.as_u16()) => {
                Ok(Redirect { scheme, host: self.host.clone(), port: self.port, path, status })
            }
            _ => Err(format!("a redirect's status is 301, 302, 303, 307 or 308, not {status}")),
        }
    }
}

impl AnswerFile {
    fn answer(&self) -> Result<Answer, String> {
        let status = StatusCode::from_u16(self.status).ok().filter(|it| it.as_u16() >= 200);
        Ok(Answer {
            status: status.ok_or_else(|| format!("{} is not a status to answer with", self.status))?,
            content_type: value(self.content_type.as_deref().unwrap_or("text/plain; charset=utf-8"))?,
            body: self.body.as_str().into(),
        })
    }
}

impl RouteFile {
    fn answers_itself(&self) -> bool {
        self.redirect.is_some() || self.answer.is_some()
    }

    /// Paths and conditions; everything else is checked.
    pub(super) fn check(
        &self,
        upstreams: &HashSet<&str>,
        folder: &Path,
        known: &HashMap<String, Arc<RateLimit>>,
    ) -> Result<Checked, String> {
        if self.hosts.is_empty() || (self.targets.is_empty() && !self.answers_itself()) {
            return Err("it needs `hosts` and `targets` (or `redirect`, or `answer`)".to_owned());
        }
        if self.redirect.is_some() && self.answer.is_some() || self.answers_itself() && !self.targets.is_empty() {
            return Err("it has more than one of `targets`, `redirect`, `answer`".to_owned());
        }
        self.hosts.iter().try_for_each(|it| check_host(it))?;
        let mirrored = self.mirror.iter().map(|it| &it.upstream);
        for name in self.targets.iter().map(|it| &it.upstream).chain(mirrored) {
            if !upstreams.contains(name.as_str()) {
                return Err(format!("it names the upstream `{name}`, which does not exist"));
            }
        }
        if self.targets.iter().map(|it| u64::from(it.weight)).sum::<u64>() > 1_000_000 {
            return Err("its weights are more than 1000000 together".to_owned());
        }
        if self.mirror.as_ref().is_some_and(|it| it.percent > 100) {
            return Err("it mirrors more than 100 percent".to_owned());
        }
        check_timeouts("it", &self.timeouts)?;
        let rates = self.rate_limits.iter().enumerate().map(|(at, it)| {
            let name = format!("{at} {:?} {:?} {:?} {it:?}", self.hosts, self.paths, self.conditions());
            let limit = it.limit()?;
            let limit = known.get(&name).cloned().unwrap_or_else(|| Arc::new(limit));
            Ok((name, limit))
        });
        let rates = rates.collect::<Result<Vec<_>, String>>()?;
        let users = match &self.basic_auth {
            None => None,
            Some(it) if it.realm.contains(['"', '\\']) || !it.realm.bytes().all(|it| (32..127).contains(&it)) => {
                return Err("`basic_auth.realm` holds quotes or characters beyond ASCII".to_owned());
            }
            Some(it) => Some(Arc::new(Users::read(&folder.join(&it.users_file), &it.realm)?)),
        };
        let checked = Checked { paths: self.paths()?, conditions: self.conditions()?, rates, users };
        self.policy(&checked)?;
        Ok(checked)
    }

    fn paths(&self) -> Result<Vec<PathMatch>, String> {
        if self.paths.is_empty() {
            return Ok(vec![PathMatch::Prefix("/".to_owned())]);
        }
        let one = |it: &PathFile| {
            let plain = |path: &String| {
                if path.starts_with('/') && !path.contains(['?', '#']) {
                    Ok(path.clone())
                } else {
                    Err(format!("the path `{path}` must begin with / and have no ? or #"))
                }
            };
            match (&it.exact, &it.prefix, &it.regex) {
                (Some(exact), None, None) => Ok(PathMatch::Exact(plain(exact)?)),
                (None, Some(prefix), None) => Ok(PathMatch::Prefix(plain(prefix)?)),
                (None, None, Some(regex)) => Ok(PathMatch::Regex(Pattern::new(regex)?)),
                _ => Err("a path needs either `prefix`, `exact` or `regex`".to_owned()),
            }
        };
        self.paths.iter().map(one).collect()
    }

    fn conditions(&self) -> Result<Conditions, String> {
        let method = |it: &String| {
            let upper = it.bytes().all(|it| it.is_ascii_uppercase() || it == b'-');
            Method::try_from(it.as_str()).ok().filter(|_| upper).ok_or_else(|| format!("`{it}` is not a method"))
        };
        let named = |list: &[TestFile]| {
            list.iter().map(|it| Ok((it.name.clone(), it.test()?))).collect::<Result<Vec<_>, String>>()
        };
        let headers = self.headers.iter().map(|it| {
            let name = HeaderName::try_from(it.name.as_str());
            Ok((name.map_err(|_| format!("`{}` is not the name of a header field", it.name))?, it.test()?))
        });
        Ok(Conditions {
            methods: self.methods.iter().map(method).collect::<Result<_, _>>()?,
            headers: headers.collect::<Result<_, String>>()?,
            cookies: named(&self.cookies)?,
            query: named(&self.query)?,
        })
    }

    fn policy(&self, checked: &Checked) -> Result<Option<Box<Policy>>, String> {
        let action = match (&self.redirect, &self.answer) {
            (Some(it), _) => Action::Redirect(it.redirect()?),
            (_, Some(it)) => Action::Answer(it.answer()?),
            _ => Action::Forward,
        };
        let rewrite = match &self.rewrite {
            None => Rewrite::default(),
            Some(it) => Rewrite {
                path: path_rewrite(it.path.as_ref(), it.prefix.as_ref(), it.regex.as_ref())?,
                host: it.host.as_deref().map(|it| check_host(it).and_then(|()| value(it))).transpose()?,
            },
        };
        let plain = !self.answers_itself()
            && self.rewrite.is_none()
            && self.maintenance.is_none()
            && self.request_headers.is_empty()
            && self.response_headers.is_empty()
            && self.cors.is_none()
            && self.mirror.is_none()
            && self.sticky.is_none()
            && self.allow.is_empty()
            && self.deny.is_empty()
            && self.rate_limits.is_empty()
            && self.basic_auth.is_none()
            && self.max_body_bytes.is_none();
        if plain {
            return Ok(None);
        }
        Ok(Some(Box::new(Policy {
            action,
            maintenance: self.maintenance.as_ref().map(|it| Maintenance {
                message: it.message.clone(),
                retry_after_s: it.retry_after_s,
                allow: it.allow.clone(),
            }),
            rewrite,
            request_headers: self.request_headers.edits()?,
            response_headers: self.response_headers.edits()?,
            cors: self.cors.as_ref().map(CorsFile::cors).transpose()?,
            mirror: self.mirror.as_ref().map(|it| Mirror::new(it.upstream.as_str().into(), it.percent)),
            sticky: self.sticky.as_ref().map(StickyFile::cookie).transpose()?,
            protection: Protection {
                allow: self.allow.clone(),
                deny: self.deny.clone(),
                rates: checked.rates.iter().map(|it| Arc::clone(&it.1)).collect(),
                users: checked.users.clone(),
                max_body_bytes: self.max_body_bytes,
            },
        })))
    }

    /// One rule per path.
    pub(super) fn rules(&self, checked: &Checked, snapshot: &Snapshot) -> Vec<Rule> {
        let rule = |path: &PathMatch| {
            let targets: Vec<(Arc<str>, u32)> =
                self.targets.iter().map(|it| (it.upstream.as_str().into(), it.weight)).collect();
            let timeouts = (self.timeouts != TimeoutsFile::default()).then(|| {
                let upstream = targets.first().and_then(|it| snapshot.upstreams.get(&it.0));
                merged(upstream.map(|it| it.timeouts).unwrap_or_default(), &self.timeouts)
            });
            Some(
                Rule::new(path.clone(), targets, timeouts).with(checked.conditions.clone(), self.policy(checked).ok()?),
            )
        };
        checked.paths.iter().filter_map(rule).collect()
    }
}
