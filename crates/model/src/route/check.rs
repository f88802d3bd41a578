//! What the types of a route cannot say: every rule that a route must keep to be served.
//!
//! A reason names the field and what to write instead.

use super::{Balance, FieldMatch, HashBy, HeaderEdits, PathMatch, RateKey, RateLimit, RegexRewrite, Route, check_host};

/// Most bytes of a compiled expression.
const MAX_PATTERN: usize = 256 << 10;
/// Most of anything that a route lists, so that one route cannot make every request slow.
const MAX_LIST: usize = 100;
/// Longest text of a fixed answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// Most rounds that a password hash may ask for: each wrong password costs them.
const MAX_ROUNDS: u32 = 600_000;

/// Fields that frame a message or belong to one hop: no route may touch them.
const FORBIDDEN: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
];

impl<T> Route<T> {
    /// Whether every part can be served; the reason why not. Hosts are checked when there are some.
    pub fn check(&self) -> Result<(), String> {
        if self.targets.is_empty() && !self.answers_itself() {
            return Err("it needs `targets` (or `redirect`, or `answer`)".to_owned());
        }
        if self.redirect.is_some() && self.answer.is_some() || self.answers_itself() && !self.targets.is_empty() {
            return Err("it has more than one of `targets`, `redirect`, `answer`".to_owned());
        }
        let lists = [
            ("hosts", self.hosts.len()),
            ("paths", self.paths.len()),
            ("headers", self.headers.len()),
            ("cookies", self.cookies.len()),
            ("query", self.query.len()),
            ("targets", self.targets.len()),
            ("allow", self.allow.len()),
            ("deny", self.deny.len()),
            ("rate_limits", self.rate_limits.len()),
        ];
        if let Some((name, _)) = lists.iter().find(|it| it.1 > MAX_LIST) {
            return Err(format!("it has more than {MAX_LIST} `{name}`"));
        }
        self.hosts.iter().try_for_each(|it| check_host(it)).map_err(|it| it.to_string())?;
        self.paths.iter().try_for_each(PathMatch::check)?;
        for method in &self.methods {
            if !is_token(method) || !method.bytes().all(|it| it.is_ascii_uppercase() || it == b'-') {
                return Err(format!("`{method}` is not a method; methods are written in capitals"));
            }
        }
        for condition in &self.headers {
            if !is_token(&condition.name) {
                return Err(format!("`{}` is not the name of a header field", condition.name));
            }
        }
        for condition in self.headers.iter().chain(&self.cookies).chain(&self.query) {
            condition.check()?;
        }
        if self.targets.iter().map(|it| u64::from(it.weight)).sum::<u64>() > 1_000_000 {
            return Err("its weights are more than 1000000 together".to_owned());
        }
        if self.mirror.as_ref().is_some_and(|it| it.percent > 100) {
            return Err("it mirrors more than 100 percent".to_owned());
        }
        if self.passes_through() {
            return self.check_passthrough();
        }
        self.check_actions()?;
        self.check_protection()
    }

    /// Nothing can be said about requests that are not read.
    fn check_passthrough(&self) -> Result<(), String> {
        if self.targets.len() != 1 || self.mirror.is_some() {
            return Err("`tls: passthrough` needs one of `targets`, and nothing else that is called".to_owned());
        }
        let read = !self.paths.is_empty()
            || !self.methods.is_empty()
            || !self.headers.is_empty()
            || !self.cookies.is_empty()
            || !self.query.is_empty()
            || self.scheme.is_some()
            || self.sticky.is_some()
            || self.balance.is_some()
            || self.retry.is_some()
            || self.circuit.is_some()
            || self.health_check.is_some()
            || self.upstream_tls.is_some()
            || self.rewrite.is_some()
            || self.maintenance.is_some()
            || !self.request_headers.is_empty()
            || !self.response_headers.is_empty()
            || self.cors.is_some()
            || !self.allow.is_empty()
            || !self.deny.is_empty()
            || !self.rate_limits.is_empty()
            || self.basic_auth.is_some()
            || self.forward_auth.is_some()
            || self.max_body_bytes.is_some()
            || !self.buffer.is_empty()
            || !self.timeouts.is_empty()
            || self.tls.redirect
            || self.tls.hsts_max_age_s.is_some()
            || self.tls.client_ca.is_some();
        if read {
            return Err("`tls: passthrough` goes with hosts and a target only: the requests are not read".to_owned());
        }
        Ok(())
    }

    fn check_actions(&self) -> Result<(), String> {
        if let Some(sticky) = &self.sticky
            && !is_token(&sticky.cookie)
        {
            return Err(format!("`{}` is not a name for a cookie", sticky.cookie));
        }
        if let Some(it) = &self.forward_auth {
            if self.answers_itself() {
                return Err("`forward_auth` goes with `targets`: what the gateway answers itself is open".to_owned());
            }
            if !it.path.starts_with('/') || it.path.contains(['#', ' ']) || it.path.chars().any(char::is_control) {
                return Err(format!("`forward_auth.path` must begin with /: `{}`", it.path));
            }
            let bad = |name: &&String| !is_token(name) || FORBIDDEN.contains(&name.to_ascii_lowercase().as_str());
            if let Some(name) = it.copy_headers.iter().find(bad) {
                return Err(format!("`forward_auth.copy_headers` cannot copy `{name}`"));
            }
        }
        match &self.balance {
            Some(Balance::Hash(HashBy::Header(name)) | Balance::Hash(HashBy::Cookie(name))) if !is_token(name) => {
                return Err(format!("`{name}` cannot be hashed: it is not the name of a header field or cookie"));
            }
            Some(Balance::Sticky(sticky)) if !is_token(&sticky.cookie) => {
                return Err(format!("`{}` is not a name for a cookie", sticky.cookie));
            }
            _ => {}
        }
        if let Some(it) = &self.rewrite {
            new_path(it.path.as_ref(), it.prefix.as_ref(), it.regex.as_ref())?;
            it.host.as_deref().map_or(Ok(()), new_host)?;
        }
        if let Some(it) = &self.redirect {
            if let Some(scheme) = it.scheme.as_deref().filter(|it| !["http", "https"].contains(it)) {
                return Err(format!("a redirect leads to `http` or `https`, not to `{scheme}`"));
            }
            it.host.as_deref().map_or(Ok(()), new_host)?;
            let path = new_path(it.path.as_ref(), it.prefix.as_ref(), it.regex.as_ref())?;
            if it.scheme.is_none() && it.host.is_none() && it.port.is_none() && !path {
                return Err("a redirect needs a new `scheme`, `host`, `port`, `path`, `prefix` or `regex`".to_owned());
            }
            if let Some(status) = it.status.filter(|it| ![301, 302, 303, 307, 308].contains(it)) {
                return Err(format!("a redirect's status is 301, 302, 303, 307 or 308, not {status}"));
            }
        }
        if let Some(it) = &self.answer {
            if !(200..600).contains(&it.status) {
                return Err(format!("{} is not a status to answer with", it.status));
            }
            if it.body.len() > MAX_ANSWER {
                return Err(format!("the answer's body is longer than {MAX_ANSWER} bytes"));
            }
            it.content_type.as_deref().map_or(Ok(()), check_value)?;
        }
        self.request_headers.check()?;
        self.response_headers.check()?;
        if let Some(it) = &self.cors {
            if it.origins.is_empty() {
                return Err("`cors` needs `origins`".to_owned());
            }
            if it.credentials && it.origins.iter().any(|it| it == "*") {
                return Err(
                    "`cors` with `credentials` must name its `origins`; `*` would open it to every site".to_owned()
                );
            }
            for origin in &it.origins {
                if origin != "*" && (!origin.contains("://") || origin.ends_with('/')) {
                    return Err(format!("`{origin}` is not an origin: write `https://a.example.com`"));
                }
            }
            for text in it.methods.iter().chain(&it.headers).chain(&it.expose) {
                check_value(text)?;
            }
        }
        Ok(())
    }

    fn check_protection(&self) -> Result<(), String> {
        self.retry.as_ref().map_or(Ok(()), super::Retry::check)?;
        self.circuit.as_ref().map_or(Ok(()), super::Circuit::check)?;
        self.health_check.as_ref().map_or(Ok(()), super::HealthCheck::check)?;
        self.upstream_tls.as_ref().map_or(Ok(()), super::UpstreamTls::check)?;
        self.rate_limits.iter().try_for_each(RateLimit::check)?;
        if let Some(it) = &self.basic_auth {
            if it.realm.contains(['"', '\\']) || !it.realm.bytes().all(|it| (32..127).contains(&it)) {
                return Err("`basic_auth.realm` holds quotes or characters beyond ASCII".to_owned());
            }
            if it.users.is_empty() && it.users_file.is_none() {
                return Err("`basic_auth` names no `users`: nobody could come in".to_owned());
            }
            for (name, hash) in &it.users {
                if name.is_empty() || name.contains(':') || !is_password_hash(hash) {
                    return Err(format!(
                        "the user `{name}` needs a name without `:` and a hash `pbkdf2-sha256$ROUNDS$SALT$HASH` \
                         (1000 to {MAX_ROUNDS} rounds, salt and hash in hexadecimal)"
                    ));
                }
            }
        }
        let timeouts = &self.timeouts;
        let all = [timeouts.request_body_ms, timeouts.connect_ms, timeouts.response_ms, timeouts.total_ms];
        if all.iter().flatten().any(|it| !(1..=86_400_000).contains(it)) {
            return Err("a time in `timeouts` is 1 to 86400000 ms".to_owned());
        }
        if self.tls.client_ca.as_ref().is_some_and(|it| !it.contains("-----BEGIN CERTIFICATE-----")) {
            return Err(
                "`tls.client_ca` holds no `BEGIN CERTIFICATE`: give certificates of authorities as PEM".to_owned()
            );
        }
        Ok(())
    }
}

impl PathMatch {
    /// Whether it is one path, prefix or expression that can be matched; the reason why not.
    pub fn check(&self) -> Result<(), String> {
        match (&self.exact, &self.prefix, &self.regex) {
            (Some(path), None, None) | (None, Some(path), None) => {
                let fine = path.starts_with('/')
                    && path.len() <= 1024
                    && path.bytes().all(|it| it > b' ' && it != 127 && !b"?#\\".contains(&it))
                    && !path.split('/').any(|it| it == "." || it == "..")
                    && !path.contains("//");
                if fine {
                    Ok(())
                } else {
                    Err(format!("the path `{}` must begin with / and have no spaces, ?, #, //, . or ..", short(path)))
                }
            }
            (None, None, Some(regex)) => check_pattern(regex),
            _ => Err("a path needs either `prefix`, `exact` or `regex`".to_owned()),
        }
    }
}

impl FieldMatch {
    fn check(&self) -> Result<(), String> {
        match self.test() {
            None => Err(format!("the condition on `{}` needs one of `equals`, `matches`, `present`", self.name)),
            Some(super::Test::Matches(pattern)) => check_pattern(pattern),
            Some(_) if self.name.is_empty() => Err("a condition has no `name`".to_owned()),
            Some(_) => Ok(()),
        }
    }
}

impl HeaderEdits {
    fn check(&self) -> Result<(), String> {
        for name in self.set.keys().chain(self.add.keys()).chain(&self.remove) {
            if !is_token(name) {
                return Err(format!("`{name}` is not the name of a header field"));
            }
            if FORBIDDEN.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(format!("the header field `{name}` belongs to the connection and cannot be changed"));
            }
        }
        self.set.values().chain(self.add.values()).try_for_each(|it| check_value(it))
    }
}

impl RateLimit {
    fn check(&self) -> Result<(), String> {
        let fine = (1..=1_000_000).contains(&self.requests) && (1..=86_400_000).contains(&self.per_ms);
        if !fine || self.burst == Some(0) || self.burst.is_some_and(|it| it > 1_000_000) {
            return Err("a rate limit takes 1 to 1000000 `requests` per 1 to 86400000 `per_ms`, and a `burst` above 0"
                .to_owned());
        }
        match (self.key, &self.header) {
            (RateKey::Header, Some(name)) if !is_token(name) => Err(format!("`{name}` is not a header field")),
            (RateKey::Header, Some(_)) | (RateKey::Route | RateKey::Address, None) => Ok(()),
            _ => Err("a rate limit has a `header` when its `key` is `header`, and only then".to_owned()),
        }
    }
}

fn new_host(host: &str) -> Result<(), String> {
    check_host(host).map_err(|it| it.to_string())?;
    if host.contains('*') { Err(format!("the new host `{host}` must be one host, without `*`")) } else { Ok(()) }
}

/// Whether there is a new path; at most one way to say it.
fn new_path(path: Option<&String>, prefix: Option<&String>, regex: Option<&RegexRewrite>) -> Result<bool, String> {
    let absolute = |it: &String| {
        let fine =
            it.starts_with('/') && it.bytes().all(|it| (b'!'..127).contains(&it) && !b"?#\"<>\\^`{|}".contains(&it));
        if fine { Ok(true) } else { Err(format!("the new path `{}` must begin with / and have no ? or #", short(it))) }
    };
    match (path, prefix, regex) {
        (None, None, None) => Ok(false),
        (Some(it), None, None) | (None, Some(it), None) => absolute(it),
        (None, None, Some(it)) => check_pattern(&it.pattern).map(|()| true),
        _ => Err("a new path needs one of `path`, `prefix`, `regex`".to_owned()),
    }
}

fn check_pattern(text: &str) -> Result<(), String> {
    let built = regex::RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
    built.map(drop).map_err(|it| format!("the pattern `{}` is not valid: {it}", short(text)))
}

/// A value of a header field (RFC 9110 §5.5): visible characters, spaces and tabs; beyond ASCII as UTF-8.
fn check_value(text: &str) -> Result<(), String> {
    if text.bytes().all(|it| (it >= b' ' && it != 127) || it == b'\t') {
        Ok(())
    } else {
        Err(format!("`{}` cannot be the value of a header field", short(text)))
    }
}

/// A token (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&it))
}

fn is_password_hash(text: &str) -> bool {
    let parts: Vec<&str> = text.split('$').collect();
    let [scheme, rounds, salt, hash] = parts[..] else { return false };
    let hex = |it: &str| it.len().is_multiple_of(2) && it.bytes().all(|it| it.is_ascii_hexdigit());
    scheme == "pbkdf2-sha256"
        && rounds.parse().is_ok_and(|it: u32| (1000..=MAX_ROUNDS).contains(&it))
        && (hex(salt) && salt.len() >= 16)
        && (hex(hash) && hash.len() == 64)
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
