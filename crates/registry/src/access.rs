//! Who may do what: reads the token of a request, answers with the challenge, exchanges credentials at `/token`.

use crate::Registry;
use crate::refusal::Refusal;
use crate::serve::FORWARDED_PROTO;
use crate::tokens::{ACCESS_LIFE, Action, SERVICE, Scope};
use arco_store::clock;
use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use oci_spec::distribution::ErrorCode;

impl Registry {
    /// The scope of a request whose token allows `action` on `repository` (any valid token, for `None`).
    pub(crate) fn admit(&self, headers: &HeaderMap, need: Option<(&str, Action)>) -> Result<Scope, Refusal> {
        let scope = bearer(headers).and_then(|it| self.tokens().check(it));
        match (&scope, need) {
            (Some(scope), Some((repository, action))) if scope.allows(repository, action) => Ok(scope.clone()),
            (Some(scope), None) => Ok(scope.clone()),
            _ => Err(self.challenge(headers, need, scope.is_some())),
        }
    }

    fn challenge(&self, headers: &HeaderMap, need: Option<(&str, Action)>, known: bool) -> Refusal {
        let mut challenge = format!("Bearer realm=\"{}/token\",service=\"{SERVICE}\"", self.base_url(headers));
        if let Some((repository, action)) = need {
            // Clients push after they looked, so the scope for writing holds reading as well.
            let actions = match action {
                Action::Push => "pull,push",
                other => other.as_str(),
            };
            challenge.push_str(&format!(",scope=\"repository:{repository}:{actions}\""));
        }
        let message = if known {
            challenge.push_str(",error=\"insufficient_scope\"");
            "the token does not allow this; ask for a credential that names this repository and action"
        } else {
            "a token is needed; log in with a credential of this platform"
        };
        let value = HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Bearer"));
        Refusal::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message).with(header::WWW_AUTHENTICATE, value)
    }

    /// The address that the client knows us by, without a slash at its end.
    fn base_url(&self, headers: &HeaderMap) -> String {
        if let Some(url) = &self.0.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let host = headers.get(header::HOST).and_then(|it| it.to_str().ok()).unwrap_or("localhost");
        let plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-' | ':' | '[' | ']');
        let scheme = match headers.get(FORWARDED_PROTO) {
            Some(it) if it == "https" => "https",
            _ => "http",
        };
        format!("{scheme}://{}", if host.chars().all(plain) { host } else { "localhost" })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// The password of basic authentication; the user name does not matter.
fn password(headers: &HeaderMap) -> Option<String> {
    let (scheme, text) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()?;
    Some(String::from_utf8(decoded).ok()?.split_once(':')?.1.to_owned())
}

/// `GET /token?service=…&scope=repository:NAME:ACTIONS`: a credential, given as the password, becomes an access token.
pub(crate) async fn exchange(
    State(registry): State<Registry>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let given = password(&headers).or_else(|| bearer(&headers).map(str::to_owned));
    let Some(scope) = given.and_then(|it| registry.tokens().check(&it)) else {
        let message = "the password must be a credential of this platform that is still valid";
        let realm = HeaderValue::from_static("Basic realm=\"arco-registry\"");
        let refusal = Refusal::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        return refusal.with(header::WWW_AUTHENTICATE, realm).into_response();
    };
    let asked = query.iter().filter(|it| it.0 == "scope").map(|it| it.1.as_str());
    let token = registry.tokens().issue(&scope.narrowed(asked), ACCESS_LIFE);
    let body = serde_json::json!({
        "token": token,
        "access_token": token,
        "expires_in": ACCESS_LIFE.as_secs(),
        "issued_at": clock::now().rfc3339(),
    });
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
