//! The typed client of the REST API: mutual TLS by a [`Context`], one method per call, logs that are followed, programs
//! that run in instances.
//!
//! Nothing here prints or exits; every failure is a [`ClientError`] with an advice.

mod calls;
mod context;
mod error;
mod exec;
mod follow;
mod transfer;

pub use calls::{ComponentName, ExecCall, ForwardCall, LogOf};
pub use context::{Context, ContextError};
pub use error::ClientError;
pub use exec::{ExecReceiver, ExecSender, ExecStream};
pub use follow::{LogEvent, LogFollower};

use crate::wire::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a whole call may take; uploads and followed logs have no limit.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one platform; cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    tls: Arc<rustls::ClientConfig>,
    api: String,
}

impl Client {
    /// A client of the platform that a context names. Connects to nothing yet.
    pub fn new(context: &Context) -> Result<Self, ClientError> {
        let tls = context.tls()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("arco/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|it| ClientError::Context(ContextError::Tls(it.to_string())))?;
        Ok(Self { http, tls: Arc::new(tls), api: context.api.clone() })
    }

    /// Address of the API, `host:port`.
    pub fn api(&self) -> &str {
        &self.api
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.api)
    }

    fn request(&self, method: http::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let response = request.send().await.map_err(|it| ClientError::from_http(&self.api, it))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap_or_default();
        Err(ClientError::Refused { status, body: refusal(&self.api, status, &body) })
    }

    async fn json<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request.timeout(CALL_TIMEOUT)).await?;
        let bytes = response.bytes().await.map_err(|it| ClientError::from_http(&self.api, it))?;
        serde_json::from_slice(&bytes).map_err(|it| ClientError::Answer(it.to_string()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(http::Method::GET, path)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: http::Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(self.request(method, path).json(body)).await
    }
}

/// Why a call was refused; what is between us and the platform (a proxy that does not reach it) says it by status alone.
fn refusal(api: &str, status: u16, body: &[u8]) -> ErrorBody {
    let (code, advice) = match status {
        502..=504 => {
            ("unavailable", "try again in a moment; the log of the server, or of the proxy before it, has the cause")
        }
        _ => ("unexpected_answer", "check that this address is an Arco API of the same version"),
    };
    serde_json::from_slice(body).unwrap_or_else(|_| ErrorBody {
        code: code.to_owned(),
        message: format!("the platform at {api} answered with status {status}"),
        advice: advice.to_owned(),
        operation: None,
    })
}

/// A path of segments that are percent-encoded, so that no name can leave its place.
fn path(segments: &[&str]) -> String {
    let mut out = String::new();
    for segment in segments {
        out.push('/');
        out.push_str(&encode(segment));
    }
    out
}

/// Percent-encoding of everything but unreserved characters (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_no_without_a_reason_is_told_by_its_status() {
        let said = br#"{"code": "blobs_unavailable", "message": "m", "advice": "a"}"#;
        let rows: [(u16, &[u8], &str); 5] = [
            (503, said, "blobs_unavailable"),
            (503, b"", "unavailable"),
            (502, b"<html>Bad Gateway</html>", "unavailable"),
            (404, b"not here", "unexpected_answer"),
            (500, b"", "unexpected_answer"),
        ];
        for (status, body, code) in rows {
            assert_eq!(refusal("h:1", status, body).code, code, "{status}");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(path(&["v1", "tenants", "a/../b?x#y ü"]), "/v1/tenants/a%2F..%2Fb%3Fx%23y%20%C3%BC");
    }
}
