//! Pushes one image to a registry (OCI distribution API 1.1): blobs that it does not have, then the manifest under its tag.
//! Logs in as the registry asks for: Basic, or a token of the place that it names.

use super::layout::Image;
use crate::cli::failure::{Failure, exit};
use arco_model::artifact::Digest;
use arco_store::images::MANIFEST_TYPE;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use std::time::Duration;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one call may take, with the upload of a layer.
const CALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Who pushes.
pub(super) enum Access {
    /// Nobody in particular.
    Anonymous,
    /// A name and a password or token.
    Login { name: String, password: String },
}

/// A repository of a registry, and a tag in it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Registry {
    scheme: &'static str,
    host: String,
    name: String,
    tag: String,
}

impl Registry {
    /// Of `HOST[:PORT]/NAME[:TAG]`.
    pub(super) fn of(reference: &str, plain_http: bool) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{reference}` is not a place to push to: {why}"));
        let Some((host, path)) = reference.split_once('/') else { return wrong("it names no registry") };
        if !host.contains(['.', ':']) && host != "localhost" {
            return wrong("it does not begin with the address of a registry");
        }
        if path.contains('@') {
            return wrong("a digest follows from the content and cannot be given");
        }
        let (name, tag) = path.rsplit_once(':').unwrap_or((path, "latest"));
        let lower = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
        let part = |it: &str| {
            it.starts_with(lower) && it.ends_with(lower) && it.chars().all(|c| lower(c) || "._-".contains(c))
        };
        if !name.split('/').all(part) {
            return wrong("its name has other characters than a-z 0-9 . _ - /");
        }
        let word = |it: char| it.is_ascii_alphanumeric() || it == '_';
        if !tag.starts_with(word) || tag.len() > 128 || !tag.chars().all(|it| word(it) || ".-".contains(it)) {
            return wrong("its tag has other characters than a-z A-Z 0-9 _ . -");
        }
        let machine = host.rsplit_once(':').map_or(host, |(machine, _)| machine);
        let address = machine.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        let loopback = machine == "localhost" || address.is_ok_and(|it| it.is_loopback());
        let scheme = if plain_http || loopback { "http" } else { "https" };
        if Url::parse(&format!("{scheme}://{host}/")).is_err() {
            return wrong("its address is not one");
        }
        Ok(Self { scheme, host: host.to_owned(), name: name.to_owned(), tag: tag.to_owned() })
    }

    /// `HOST[:PORT]`.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    fn url(&self, rest: &str) -> String {
        format!("{}://{}/v2/{}/{rest}", self.scheme, self.host, self.name)
    }

    /// Pushes; `ca` is a PEM file's content.
    pub(super) async fn push(&self, image: &Image, access: &Access, ca: Option<&[u8]>) -> Result<(), Failure> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut http = Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT);
        if let Some(pem) = ca {
            let roots = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|it| Failure::usage("ca_invalid", it.to_string(), "give a PEM file with the registry's CA"))?;
            http = http.tls_certs_merge(roots);
        }
        let http = http.build().map_err(|it| Failure::local(it.to_string(), "check the CA file"))?;
        let mut session = Session { registry: self, http, access, authorization: None };
        for (digest, bytes) in image.blobs() {
            session.push_blob(digest, bytes).await?;
        }
        let call = Call { body: image.manifest().to_vec(), content_type: MANIFEST_TYPE, ..Call::new(Method::PUT) };
        let url = self.url(&format!("manifests/{}", self.tag));
        session.call(&url, &call, &[StatusCode::CREATED, StatusCode::OK]).await?;
        Ok(())
    }
}

/// What is sent.
struct Call {
    method: Method,
    body: Vec<u8>,
    content_type: &'static str,
}

impl Call {
    fn new(method: Method) -> Self {
        Self { method, body: Vec::new(), content_type: "application/octet-stream" }
    }
}

/// One push.
struct Session<'a> {
    registry: &'a Registry,
    http: Client,
    access: &'a Access,
    authorization: Option<String>,
}

impl Session<'_> {
    async fn push_blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Failure> {
        let there = self.registry.url(&format!("blobs/{digest}"));
        let found = self.call(&there, &Call::new(Method::HEAD), &[StatusCode::OK, StatusCode::NOT_FOUND]).await?;
        if found.status() == StatusCode::OK {
            return Ok(());
        }
        let begun = self
            .call(
                &self.registry.url("blobs/uploads/"),
                &Call::new(Method::POST),
                &[StatusCode::ACCEPTED, StatusCode::CREATED],
            )
            .await?;
        let location = begun.headers().get(LOCATION).and_then(|it| it.to_str().ok());
        // The location may be relative, and may carry a query of its own.
        let mut upload = location.and_then(|it| begun.url().join(it).ok()).ok_or_else(|| {
            self.failed("began an upload without saying where it goes", "check that this address is an OCI registry")
        })?;
        upload.query_pairs_mut().append_pair("digest", digest.as_str());
        let call = Call { body: bytes.to_vec(), ..Call::new(Method::PUT) };
        self.call(upload.as_str(), &call, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).await?;
        Ok(())
    }

    /// One call; logs in when the registry asks for it.
    async fn call(&mut self, url: &str, call: &Call, expected: &[StatusCode]) -> Result<Response, Failure> {
        let mut answer = self.send(url, call).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.authorization = Some(self.log_in(answer.headers()).await?);
            answer = self.send(url, call).await?;
        }
        let status = answer.status();
        if expected.contains(&status) {
            return Ok(answer);
        }
        let body = answer.text().await.unwrap_or_default();
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(),
            _ => self.failed(
                &format!("answered {} with status {status}: {}", call.method, first_error(&body)),
                "check the name of the repository and the registry's own log",
            ),
        })
    }

    async fn send(&self, url: &str, call: &Call) -> Result<Response, Failure> {
        let mut request = self.http.request(call.method.clone(), url);
        // An upload may go elsewhere (a store behind the registry): our token is for the registry alone.
        let base = Url::parse(&self.registry.url("")).map(|it| it.origin());
        let ours = base.is_ok_and(|base| Url::parse(url).is_ok_and(|it| it.origin() == base));
        if let (Some(authorization), true) = (&self.authorization, ours) {
            request = request.header(AUTHORIZATION, authorization);
        }
        if call.method != Method::HEAD {
            request = request.header(CONTENT_TYPE, call.content_type).body(call.body.clone());
        }
        request.send().await.map_err(|it| self.unreachable(&it))
    }

    /// What to send as `Authorization`, by the registry's challenge.
    async fn log_in(&self, answer: &HeaderMap) -> Result<String, Failure> {
        let basic = match self.access {
            Access::Anonymous => None,
            Access::Login { name, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
            }
        };
        let challenges = answer.get_all(WWW_AUTHENTICATE).iter().filter_map(|it| it.to_str().ok());
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("basic") {
                return basic.ok_or_else(|| self.denied());
            }
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(rest, basic.as_deref()).await;
            }
        }
        Err(self.denied())
    }

    /// A token of the realm that the challenge names.
    async fn token(&self, challenge: &str, basic: Option<&str>) -> Result<String, Failure> {
        let parameters = parameters(challenge);
        let value =
            |key: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, it)| it.as_str());
        let realm = value("realm").and_then(|it| Url::parse(it).ok());
        let Some(mut url) = realm.filter(|it| it.scheme() == "https" || it.scheme() == self.registry.scheme) else {
            return Err(self.failed("names no place to log in at", "check that this address is an OCI registry"));
        };
        let scope = format!("repository:{}:pull,push", self.registry.name);
        if let Some(service) = value("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &scope);
        let mut request = self.http.get(url);
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let answer = request.send().await.map_err(|it| self.unreachable(&it))?;
        if !answer.status().is_success() {
            return Err(self.denied());
        }
        let body: serde_json::Value = answer.json().await.unwrap_or_default();
        let token = body["token"].as_str().or(body["access_token"].as_str()).ok_or_else(|| self.denied())?;
        Ok(format!("Bearer {token}"))
    }

    fn denied(&self) -> Failure {
        let who = match self.access {
            Access::Anonymous => "nobody in particular".to_owned(),
            Access::Login { name, .. } => format!("`{name}`"),
        };
        let message = format!("registry {} does not let {who} push to {}", self.registry.host, self.registry.name);
        Failure::new(
            exit::DENIED,
            "push_denied",
            message,
            "log in with `--username NAME --password @FILE`, or `docker login`",
        )
    }

    fn failed(&self, what: &str, advice: &str) -> Failure {
        Failure::new(exit::FAILED, "push_failed", format!("registry {} {what}", self.registry.host), advice)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut reason: &dyn std::error::Error = error;
        while let Some(deeper) = reason.source() {
            reason = deeper;
        }
        let message = format!("registry {} cannot be reached: {reason}", self.registry.host);
        let advice = "check the address; `--ca FILE` trusts its own authority, `--plain-http` speaks without TLS";
        Failure::new(exit::UNREACHABLE, "registry_unreachable", message, advice)
    }
}

/// `a="b",c="d, e"` → pairs.
fn parameters(challenge: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = challenge.trim_start_matches([' ', ',']);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"').and_then(|it| it.split_once('"')) {
            Some((value, next)) => (value, next),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        pairs.push((name.trim().to_owned(), value.to_owned()));
        rest = next.trim_start_matches([' ', ',']);
    }
    pairs
}

/// The first error of a registry's answer, or the beginning of what else it said.
fn first_error(body: &str) -> String {
    let parsed: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let first = &parsed["errors"][0];
    match (first["code"].as_str(), first["message"].as_str()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => body.chars().take(200).collect(),
    }
}

/// The login that `docker login` kept for this registry (`$DOCKER_CONFIG/config.json`), without credential stores.
pub(super) fn docker_login(host: &str) -> Option<Access> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    let login = STANDARD.decode(config["auths"][host]["auth"].as_str()?).ok()?;
    let (name, password) = std::str::from_utf8(&login).ok()?.split_once(':')?;
    Some(Access::Login { name: name.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_can_be_pushed_to() {
        let rows = [
            ("registry.test/arco", "https", "registry.test", "arco", "latest"),
            ("registry.test:5000/a/b-c/arco:1.2", "https", "registry.test:5000", "a/b-c/arco", "1.2"),
            ("localhost/arco:x", "http", "localhost", "arco", "x"),
            ("127.0.0.1:5000/arco:x", "http", "127.0.0.1:5000", "arco", "x"),
            ("127.other.test/arco:x", "https", "127.other.test", "arco", "x"),
        ];
        for (text, scheme, host, name, tag) in rows {
            let registry = Registry::of(text, false).unwrap();
            let parts = (registry.scheme, registry.host.as_str(), registry.name.as_str(), registry.tag.as_str());
            assert_eq!(parts, (scheme, host, name, tag), "{text}");
        }
        assert_eq!(Registry::of("registry.test/arco", true).unwrap().scheme, "http");
        for wrong in [
            "arco",
            "arco:1",
            "library/arco",
            "r.test/Arco",
            "r.test/a//b",
            "r.test/../x",
            "r.test/a:b c",
            "r.test/a@sha256:00",
            "r .test/a",
        ] {
            assert!(Registry::of(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn challenges_are_taken_apart() {
        let found = parameters(r#"realm="https://auth.test/token",service="a, b",scope=x"#);
        let expected = [("realm", "https://auth.test/token"), ("service", "a, b"), ("scope", "x")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(parameters("").is_empty());
    }

    #[test]
    fn errors_of_registries_are_short() {
        assert_eq!(first_error(r#"{"errors":[{"code":"DENIED","message":"no"}]}"#), "DENIED: no");
        assert_eq!(first_error("<html>"), "<html>");
    }
}
