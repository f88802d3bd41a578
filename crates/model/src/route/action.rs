//! What is done with the requests of a route, as it is written down.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A cookie by which a client comes back to where it was before.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// How long it lives, in seconds; as long as the browser runs when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u32>,
}

/// A replacement of what an expression finds.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// The expression.
    pub pattern: String,
    /// What takes its place; may hold `$1`, `${name}`.
    pub replacement: String,
}

/// What the endpoint is asked instead. At most one of `path`, `prefix`, `regex`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    /// A new path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A new prefix in place of the one that the route matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A replacement within the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<RegexRewrite>,
    /// A new `Host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A redirect; what is not set stays as in the request. The query stays.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Host without port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port; the scheme's usual one when scheme or host change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// A new path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A new prefix in place of the one that the route matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A replacement within the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<RegexRewrite>,
    /// 301, 302 (when absent), 303, 307 or 308.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// What does not pass piece by piece.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Buffer {
    /// All of a request is taken before an instance is asked: slow clients hold none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub request: bool,
    /// A response is taken as fast as the instance sends it: slow clients hold none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub response: bool,
}

impl Buffer {
    /// Whether everything passes piece by piece.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A fixed answer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Status, 200 to 599.
    pub status: u16,
    /// Text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// `text/plain; charset=utf-8` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// While set, others than `allow` get 503.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Maintenance {
    /// One sentence for people.
    pub message: String,
    /// `Retry-After`, in seconds.
    pub retry_after_s: u32,
    /// Networks whose clients come through nevertheless.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
}

impl Default for Maintenance {
    fn default() -> Self {
        let message = "This application is being worked on.".to_owned();
        Self { message, retry_after_s: 300, allow: Vec::new() }
    }
}

/// Changes of header fields: removed, then set, then added.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderEdits {
    /// Replaced, or new.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Beside what is there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
    /// Gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

impl HeaderEdits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// Cross-origin rules.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// Origins: exact, `*`, or `https://*.example.com`.
    pub origins: Vec<String>,
    /// Methods; the usual ones when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Request header fields; whatever is asked for when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Response header fields that scripts may read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Whether cookies and the like may be sent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub credentials: bool,
    /// How long a browser may remember, in seconds; 600 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u32>,
}

/// What a rate is counted by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateKey {
    /// All requests of the route together.
    Route,
    /// The client's address; of IPv6 the /64.
    #[default]
    Address,
    /// A header field.
    Header,
}

/// At most so many requests per time; beyond that 429.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What is counted by.
    #[serde(default)]
    pub key: RateKey,
    /// The header field, when `key` is `header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Requests, 1 to 1,000,000.
    pub requests: u32,
    /// Per so many ms, 1 to 86,400,000.
    #[serde(default = "second")]
    pub per_ms: u64,
    /// Requests at once; as many as `requests` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

fn second() -> u64 {
    1000
}

/// Names and passwords.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BasicAuth {
    /// Shown by browsers.
    pub realm: String,
    /// Name → `pbkdf2-sha256$ROUNDS$SALT$HASH`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<String, String>,
    /// A file with lines `name:hash`; in the gateway's own file only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_file: Option<String>,
}

impl Default for BasicAuth {
    fn default() -> Self {
        Self { realm: "restricted".to_owned(), users: BTreeMap::new(), users_file: None }
    }
}
