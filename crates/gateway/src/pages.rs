//! What people see when no application answers: HTML for browsers, JSON for programs, else plain text. Pure.
//!
//! Everything that comes from a request is escaped; nothing tells about the inside of the platform.

use arco_model::traffic::UpstreamState;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

/// One page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// Status.
    pub status: StatusCode,
    /// Stable word for programs.
    pub code: &'static str,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub advice: &'static str,
}

impl Page {
    /// No route names this host.
    pub fn unknown_host(host: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "unknown_host",
            message: format!("No application answers for the host `{}`.", shorten(host)),
            advice: "Check the address. `arco list` shows the URLs of all applications; `arco route add` adds a domain.",
        }
    }

    /// The host is known, but no rule covers the path.
    pub fn unknown_path(host: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "unknown_path",
            message: format!("No application answers for this path of `{}`.", shorten(host)),
            advice: "`arco route list` shows which paths of this host lead to an application.",
        }
    }

    /// The TLS name and the host do not belong together.
    pub fn misdirected(host: &str) -> Self {
        Self {
            status: StatusCode::MISDIRECTED_REQUEST,
            code: "misdirected",
            message: format!("The host `{}` is not served on this TLS connection.", shorten(host)),
            advice: "Open a new connection for this host.",
        }
    }

    /// There is no endpoint to ask, and why.
    pub fn not_up(state: UpstreamState, reference: &str) -> Self {
        let (code, message, advice) = match state {
            UpstreamState::Stopped => {
                ("stopped", "is stopped", "Start it with `arco start`, naming the application and component.")
            }
            UpstreamState::Starting => {
                ("starting", "is starting", "Try again in a moment. `arco status` shows how far it is.")
            }
            UpstreamState::Abnormal => {
                ("abnormal", "is not well", "`arco status` says why and what to do; `arco logs` shows its last words.")
            }
            UpstreamState::Missing => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                let message = format!("This route cannot lead to {reference}.");
                return Self { status, code: "no_backend", message, advice: "The status of the route says why." };
            }
            UpstreamState::Up => (
                "no_instance",
                "has no instance that is ready",
                "Try again in a moment. `arco status` says what its instances do.",
            ),
        };
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { status, code, message: format!("The component {reference} {message}."), advice }
    }

    /// Instances are there, but none could be reached or spoke HTTP.
    pub fn bad_gateway(reference: &str) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            code: "upstream_failed",
            message: format!("The component {reference} did not answer the request."),
            advice: "Try again. `arco logs` shows what it did; it must listen on 0.0.0.0 and the port that it was given.",
        }
    }

    /// An instance took too long.
    pub fn gateway_timeout(reference: &str) -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            code: "upstream_timeout",
            message: format!("The component {reference} did not answer in time."),
            advice: "Try again. `arco logs` shows what it did; `arco ps` shows how busy it is.",
        }
    }

    /// Closed by its owner for a while.
    pub fn maintenance(message: &str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "maintenance",
            message: message.to_owned(),
            advice: "Try again later.",
        }
    }

    /// Every endpoint has as many open requests as it may have.
    pub fn overloaded(reference: &str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "overloaded",
            message: format!("The component {reference} has too many open requests."),
            advice: "Try again in a moment.",
        }
    }

    /// There is no place on the gateway's disk for a body that is to be taken whole.
    pub fn no_place() -> Self {
        Self {
            status: StatusCode::INSUFFICIENT_STORAGE,
            code: "buffer_full",
            message: "The gateway has no place to take this request whole.".to_owned(),
            advice: "Try again later. The gateway's log says which disk or limit is full.",
        }
    }

    /// A body that was to be taken whole cannot be kept.
    pub fn not_kept() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "buffer_failed",
            message: "The gateway cannot take this request whole.".to_owned(),
            advice: "Try again. The gateway's log says what failed.",
        }
    }

    /// The gateway itself has no room for another connection.
    pub fn no_room() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "gateway_full",
            message: "The gateway has too many connections.".to_owned(),
            advice: "Try again in a moment.",
        }
    }

    /// Kept out by one of the route's rules.
    pub fn refused(status: StatusCode, code: &'static str, message: &str, advice: &'static str) -> Self {
        Self { status, code, message: message.to_owned(), advice }
    }

    /// No valid path comes out of the rule's rewrite.
    pub fn bad_path() -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "bad_path",
            message: "This path cannot be served.".to_owned(),
            advice: "Check the address.",
        }
    }

    /// The request body stopped coming.
    pub fn request_timeout() -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            code: "request_timeout",
            message: "The request did not arrive in time.".to_owned(),
            advice: "Send it again on a new connection.",
        }
    }

    /// The page in the form that the request's `Accept` asks for.
    pub fn render(&self, request: &HeaderMap) -> Response<String> {
        let accept = request.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let (content_type, body) = if accept.contains("application/json") || accept.contains("+json") {
            ("application/json", self.json())
        } else if accept.contains("text/html") {
            ("text/html; charset=utf-8", self.html())
        } else {
            ("text/plain; charset=utf-8", format!("{}\n{}\n", self.message, self.advice))
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("x-arco-gateway", HeaderValue::from_static(self.code));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }

    fn json(&self) -> String {
        let document = serde_json::json!({ "code": self.code, "message": self.message, "advice": self.advice });
        format!("{document}\n")
    }

    fn html(&self) -> String {
        let (message, advice) = (escape(&self.message), escape(self.advice));
        let (status, reason) = (self.status.as_u16(), self.status.canonical_reason().unwrap_or_default());
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{status} {reason}</title>\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em;color:#222}}\
             h1{{font-size:1.3em}}small{{color:#666}}code{{background:#f2f2f2;padding:0 .2em}}</style></head>\
             <body><h1>{message}</h1><p>{advice}</p><small>{status} {reason}</small></body></html>\n"
        )
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Escapes for HTML; what stands in back quotes becomes code.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    let mut in_code = false;
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '`' => {
                out.push_str(if in_code { "</code>" } else { "<code>" });
                in_code = !in_code;
            }
            other => out.push(other),
        }
    }
    if in_code {
        out.push_str("</code>");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_accept_and_input_is_escaped() {
        let page = Page::unknown_host("<script>`&");
        for (accept, content_type, part) in [
            ("text/html,application/xhtml+xml;q=0.9", "text/html; charset=utf-8", "&lt;script&gt;"),
            ("application/json", "application/json", "\"code\":\"unknown_host\""),
            ("*/*", "text/plain; charset=utf-8", "No application answers"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            let response = page.render(&headers);
            assert_eq!(response.status(), 404);
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type);
            assert!(response.body().contains(part), "{}", response.body());
        }
        let not_up = Page::not_up(UpstreamState::Stopped, "demo/web").render(&HeaderMap::new());
        assert_eq!(not_up.status(), 503);
        assert!(not_up.body().contains("demo/web is stopped") && not_up.body().contains("arco start"));
        assert!(not_up.headers().contains_key(header::RETRY_AFTER));
    }
}
