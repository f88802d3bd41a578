//! Which requests a rule is for, and which of several rules wins. Pure.
//!
//! Precedence is that of the Kubernetes Gateway API: exact path, then regular expression (there left open; here the
//! longer pattern), then the longest prefix; then a method; then the number of header and cookie conditions; then the
//! number of query conditions; then the order in the source.

use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method};
use regex::Regex;
use std::borrow::Cow;

/// How a rule matches a path.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum PathMatch {
    /// This path and nothing else.
    Exact(String),
    /// This path and everything below it, by whole segments.
    Prefix(String),
    /// Paths in which this expression is found; anchor it with `^` and `$`.
    Regex(Pattern),
}

impl PathMatch {
    /// Whether `path` (without query) matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => below(path, prefix).is_some(),
            Self::Regex(pattern) => pattern.0.is_match(path),
        }
    }

    /// Whether it speaks of parameters of segments (`;…`, RFC 3986 §3.3).
    pub(super) fn names_parameters(&self) -> bool {
        match self {
            Self::Exact(text) | Self::Prefix(text) => text.contains(';'),
            Self::Regex(pattern) => pattern.0.as_str().contains(';'),
        }
    }

    /// Higher wins.
    fn rank(&self) -> (u8, usize) {
        match self {
            Self::Exact(path) => (2, path.len()),
            Self::Regex(pattern) => (1, pattern.0.as_str().len()),
            Self::Prefix(path) => (0, path.strip_suffix('/').unwrap_or(path).len()),
        }
    }
}

impl std::fmt::Display for PathMatch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(path) => write!(out, "exact {path}"),
            Self::Prefix(path) => write!(out, "prefix {path}"),
            Self::Regex(pattern) => write!(out, "regex {}", pattern.0.as_str()),
        }
    }
}

/// What is left of `path` behind `prefix`, matched by whole segments.
pub(super) fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A regular expression that compares by its text. It runs in time linear to its input.
#[derive(Clone, Debug)]
pub struct Pattern(pub(super) Regex);

impl Pattern {
    /// A pattern, or what is wrong with it. Its compiled form is limited to 256 KiB.
    pub fn new(text: &str) -> Result<Self, String> {
        let built = regex::RegexBuilder::new(text).size_limit(256 << 10).build();
        built.map(Self).map_err(|it| format!("the pattern `{text}` is not valid: {it}"))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

impl std::hash::Hash for Pattern {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

/// What is asked of a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Test {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// One is exactly this.
    Equals(String),
    /// The expression is found in one.
    Matches(Pattern),
}

impl Test {
    fn holds<'a>(&self, mut values: impl Iterator<Item = Cow<'a, str>>) -> bool {
        match self {
            Self::Present => values.next().is_some(),
            Self::Absent => values.next().is_none(),
            Self::Equals(wanted) => values.any(|it| it == *wanted),
            Self::Matches(pattern) => values.any(|it| pattern.0.is_match(&it)),
        }
    }
}

/// What a request is matched by.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path as [`normal_path`] made it.
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// Header fields.
    pub headers: &'a HeaderMap,
    /// Whether it came over TLS.
    pub secure: bool,
}

/// Conditions beyond the path; all must hold. The default holds always.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Conditions {
    /// One of these; empty takes any.
    pub methods: Vec<Method>,
    /// Header fields.
    pub headers: Vec<(HeaderName, Test)>,
    /// Cookies by name.
    pub cookies: Vec<(String, Test)>,
    /// Parameters of the query, percent-decoded.
    pub query: Vec<(String, Test)>,
    /// It came over TLS, or it did not.
    pub secure: Option<bool>,
}

impl Conditions {
    /// Whether all hold.
    pub fn hold(&self, asked: &Asked<'_>) -> bool {
        self.broken(asked).is_none()
    }

    /// The first one that does not hold, in words.
    pub fn broken(&self, asked: &Asked<'_>) -> Option<String> {
        if !self.methods.is_empty() && !self.methods.contains(asked.method) {
            return Some(format!("the method {} is none of {:?}", asked.method, self.methods));
        }
        if let Some(secure) = self.secure.filter(|it| *it != asked.secure) {
            return Some(if secure { "it did not come over TLS" } else { "it came over TLS" }.to_owned());
        }
        let broken = |kind, name: &str, test: &Test| Some(format!("the {kind} `{name}` is not {}", words(test)));
        for (name, test) in &self.headers {
            if !test.holds(asked.headers.get_all(name).iter().map(|it| String::from_utf8_lossy(it.as_bytes()))) {
                return broken("header", name.as_str(), test);
            }
        }
        for (name, test) in &self.cookies {
            if !test.holds(cookies(asked.headers).filter(|it| it.0 == name).map(|it| it.1.into())) {
                return broken("cookie", name, test);
            }
        }
        for (name, test) in &self.query {
            if !test.holds(parameters(asked.query).filter(|it| it.0 == *name).map(|it| it.1)) {
                return broken("query parameter", name, test);
            }
        }
        None
    }
}

fn words(test: &Test) -> String {
    match test {
        Test::Present => "present".to_owned(),
        Test::Absent => "absent".to_owned(),
        Test::Equals(value) => format!("equal to `{value}`"),
        Test::Matches(pattern) => format!("matched by `{}`", pattern.0.as_str()),
    }
}

/// Higher wins; equal ones keep the order of their source.
pub(super) fn rank(path: &PathMatch, conditions: &Conditions) -> impl Ord + use<> {
    let fields = conditions.headers.len() + conditions.cookies.len();
    (path.rank(), !conditions.methods.is_empty(), fields, conditions.query.len())
}

/// Cookies of a request as name and value.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|it: &HeaderValue| it.to_str().ok());
    lines.flat_map(|it| it.split(';')).filter_map(|it| it.trim().split_once('='))
}

fn parameters(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.unwrap_or_default().split('&').filter(|it| !it.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name, true), decoded(value, true))
    })
}

/// Percent-decodes; what is not a valid escape stays. `plus` makes a space of `+`.
fn decoded(text: &str, plus: bool) -> Cow<'_, str> {
    if !text.bytes().any(|it| it == b'%' || (plus && it == b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|it| char::from(*it).to_digit(16)).map(|it| it as u8);
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 2;
            }
            (b'+', ..) if plus => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// The path that is matched: percent-decoded, without empty, `.` and `..` segments, so that no spelling of a path gets
/// around the rule for it. What is sent on stays as it was written, unless it is rewritten.
pub fn normal_path(path: &str) -> Cow<'_, str> {
    if !path.contains('%') && !path.contains("/.") && !path.contains("//") {
        return Cow::Borrowed(path);
    }
    Cow::Owned(straightened(&decoded(path, false)))
}

/// `path`, decoded, without empty, `.` and `..` segments.
fn straightened(path: &str) -> String {
    let ends_open = ["/", "/.", "/.."].iter().any(|it| path.ends_with(it));
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_open || out.is_empty() {
        out.push('/');
    }
    out
}

/// What servers match that leave the parameters of segments (`;…`, RFC 3986 §3.3) out: some do so before they decode the
/// path, some after.
pub(super) fn without_parameters(path: &str) -> [String; 2] {
    let cut = |it: &str| {
        let segments: Vec<&str> = it.split('/').map(|it| it.split(';').next().unwrap_or_default()).collect();
        segments.join("/")
    };
    let (before, after) = (cut(path), cut(&decoded(path, false)));
    [straightened(&decoded(&before, false)), straightened(&after)]
}

/// Whether servers take `path` (without query) for different ones: it climbs by `..`, in whatever spelling, or holds a `\`,
/// which some take for a `/`. Who takes it as it is written finds it below another route than who resolves it.
pub(super) fn is_two_faced(path: &str) -> bool {
    if path.contains('\\') {
        return true;
    }
    if !path.contains('%') && !path.contains("/..") {
        return false;
    }
    // Some servers cut parameters off each segment (RFC 3986 §3.3) before they look at it.
    let is_up = |it: &str| it.split(';').next() == Some("..");
    decoded(path, false).split(['/', '\\']).any(is_up)
}
