//! What a route says about the instances behind it: when a request is sent to another one, when one is left out, how
//! they are asked whether they are well, and who they must prove to be.
//!
//! Whether a request may be sent twice at all is not a route's to say: the gateway does it only where that is safe.

use serde::{Deserialize, Serialize};

/// When a request is sent to another instance.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Most instances that one request is sent to, 1 to 4; 1 is never again.
    pub attempts: u32,
    /// After what.
    pub on: Vec<RetryOn>,
    /// And after which answers: statuses from 500 to 599, and 429.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    /// Longest wait for the answer of one instance, in ms; the route's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_ms: Option<u64>,
    /// Of a hundred requests so many may be sent again, and ten at once, so that retries do not multiply a breakdown.
    pub budget_percent: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            on: vec![RetryOn::Connect, RetryOn::Broken],
            statuses: Vec::new(),
            attempt_ms: None,
            budget_percent: 20,
        }
    }
}

/// What a request is sent again after.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// The instance could not be reached: nothing was sent.
    Connect,
    /// It broke off before it answered.
    Broken,
    /// It did not answer in time.
    Timeout,
}

impl Retry {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=4).contains(&self.attempts) {
            return Err(format!("`retry.attempts` is 1 to 4, not {}", self.attempts));
        }
        if let Some(status) = self.statuses.iter().find(|it| !(500..600).contains(*it) && **it != 429) {
            return Err(format!("`retry.statuses` takes 500 to 599 and 429, not {status}"));
        }
        if self.attempt_ms.is_some_and(|it| !(1..=86_400_000).contains(&it)) {
            return Err("`retry.attempt_ms` is 1 to 86400000".to_owned());
        }
        if self.budget_percent > 100 {
            return Err(format!("`retry.budget_percent` is 0 to 100, not {}", self.budget_percent));
        }
        Ok(())
    }
}

/// When an instance gets no requests for a while.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Circuit {
    /// Most open requests of one instance; when all are full the answer is 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_open: Option<u32>,
    /// So many failures in a row (no answer, or 500 and above) leave it out; 0 never does.
    pub failures: u32,
    /// For how long at first, in ms; twice as long each time in a row, up to 32 times.
    pub base_ms: u64,
    /// Its share grows back over so many ms.
    pub slow_return_ms: u64,
}

impl Default for Circuit {
    fn default() -> Self {
        Self { max_open: None, failures: 5, base_ms: 10_000, slow_return_ms: 10_000 }
    }
}

impl Circuit {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.max_open == Some(0) {
            return Err("`circuit.max_open` is at least 1".to_owned());
        }
        let times = [self.base_ms, self.slow_return_ms];
        if self.failures > 1_000_000 || times.iter().any(|it| !(1..=86_400_000).contains(it)) {
            return Err("`circuit` takes `base_ms` and `slow_return_ms` of 1 to 86400000".to_owned());
        }
        Ok(())
    }
}

/// How instances are asked whether they are well; those that are not come last.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked for; without it, a connection is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Host of the question; `localhost` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The only good status; 200 to 399 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How often, in ms, from 50.
    pub interval_ms: u64,
    /// Longest wait for the answer, in ms.
    pub timeout_ms: u64,
    /// So many good ones in a row let it in again.
    pub healthy: u32,
    /// So many bad ones in a row leave it out.
    pub unhealthy: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { path: None, host: None, status: None, interval_ms: 5000, timeout_ms: 1000, healthy: 2, unhealthy: 3 }
    }
}

impl HealthCheck {
    /// Whether it can be asked; the reason why not.
    pub fn check(&self) -> Result<(), String> {
        let times = (50..=86_400_000).contains(&self.interval_ms) && (1..=86_400_000).contains(&self.timeout_ms);
        if !times || self.healthy == 0 || self.unhealthy == 0 {
            return Err("a `check` needs interval_ms of at least 50, and everything else above 0".to_owned());
        }
        let Some(path) = &self.path else {
            let by_http = self.host.is_some() || self.status.is_some();
            return if by_http { Err("a `check` by HTTP needs a `path`".to_owned()) } else { Ok(()) };
        };
        if !path.starts_with('/')
            || path.len() > 1024
            || !path.bytes().all(|it| (b'!'..127).contains(&it) && it != b'#')
        {
            return Err(format!("the check's path `{}` must begin with / and have no spaces", path.escape_debug()));
        }
        if self.status.is_some_and(|it| !(100..600).contains(&it)) {
            return Err("the check's `status` is 100 to 599".to_owned());
        }
        if self.host.as_deref().is_some_and(|it| it.is_empty() || !it.bytes().all(|it| (b'!'..127).contains(&it))) {
            return Err("the check's `host` is malformed".to_owned());
        }
        Ok(())
    }
}

/// Who instances must prove to be, over TLS.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// Host or address that their certificate must be for; they are asked by it (SNI).
    pub name: String,
    /// Authorities, of one of which it must come (PEM).
    pub ca: String,
}

impl UpstreamTls {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.name.contains('*') || super::check_host(&self.name).is_err() {
            return Err(format!("`upstream_tls.name` is one host or address, not `{}`", self.name.escape_debug()));
        }
        if !self.ca.contains("-----BEGIN CERTIFICATE-----") {
            let why = "`upstream_tls.ca` holds no `BEGIN CERTIFICATE`: give certificates of authorities as PEM";
            return Err(why.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_refused() {
        let retry = |text: &str| serde_json::from_str::<Retry>(text).unwrap().check();
        for (text, fine) in [
            ("{}", true),
            (r#"{"attempts": 1}"#, true),
            (r#"{"attempts": 5}"#, false),
            (r#"{"attempts": 0}"#, false),
            (r#"{"statuses": [503, 429]}"#, true),
            (r#"{"statuses": [404]}"#, false),
            (r#"{"on": ["timeout"], "attempt_ms": 100}"#, true),
            (r#"{"attempt_ms": 0}"#, false),
            (r#"{"budget_percent": 101}"#, false),
        ] {
            assert_eq!(retry(text).is_ok(), fine, "{text}");
        }
        let circuit = |text: &str| serde_json::from_str::<Circuit>(text).unwrap().check();
        for (text, fine) in [
            ("{}", true),
            (r#"{"max_open": 1, "failures": 0}"#, true),
            (r#"{"max_open": 0}"#, false),
            (r#"{"base_ms": 0}"#, false),
        ] {
            assert_eq!(circuit(text).is_ok(), fine, "{text}");
        }
        let check = |text: &str| serde_json::from_str::<HealthCheck>(text).unwrap().check();
        for (text, fine) in [
            ("{}", true),
            (r#"{"path": "/healthz?x", "host": "a.test", "status": 204}"#, true),
            (r#"{"host": "a.test"}"#, false),
            (r#"{"path": "healthz"}"#, false),
            (r#"{"path": "/a b"}"#, false),
            (r#"{"path": "/", "host": "a b"}"#, false),
            (r#"{"path": "/", "status": 99}"#, false),
            (r#"{"interval_ms": 1}"#, false),
            (r#"{"unhealthy": 0}"#, false),
        ] {
            assert_eq!(check(text).is_ok(), fine, "{text}");
        }
    }
}
