//! The small listener for people and programs that watch the gateway: `/healthz`, `/metrics`, `/status`; on the control
//! socket also `POST /stop` and questions about routes (`POST /rates`, `POST /explain`).

use arco_daemon::{BoxError, CancellationToken, OnExit, Supervisor};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// What the listener tells and does.
pub struct Admin {
    /// Counters as text.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// The state as a JSON document.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Answers a question about routes, by its path and JSON document; `None` when there is no such question, the
    /// reason when it cannot be understood.
    pub ask: Question,
    /// Cancelled by `POST /stop`.
    pub stop: CancellationToken,
}

/// See [`Admin::ask`].
pub type Question = Box<dyn Fn(&str, &[u8]) -> Option<Result<serde_json::Value, String>> + Send + Sync>;

/// Largest document of a question, in bytes.
const MAX_QUESTION: usize = 4 << 20;

/// Answers on an address: reading only.
pub async fn serve_tcp(admin: Arc<Admin>, listener: TcpListener, supervisor: Supervisor) -> Result<(), BoxError> {
    let stop = supervisor.token().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connection(&supervisor, Arc::clone(&admin), stream, false),
            Err(error) => pause(&error).await,
        }
    }
}

/// Answers on the control socket: whoever may open it may also stop the process.
pub async fn serve_unix(admin: Arc<Admin>, listener: UnixListener, supervisor: Supervisor) -> Result<(), BoxError> {
    let stop = supervisor.token().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connection(&supervisor, Arc::clone(&admin), stream, true),
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "an admin connection cannot be accepted");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

fn connection<S>(supervisor: &Supervisor, admin: Arc<Admin>, stream: S, control: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stop = supervisor.token().clone();
    supervisor.spawn("admin connection", OnExit::Continue, async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = Arc::clone(&admin);
            async move { Ok::<_, Infallible>(answer(&admin, request, control).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(hyper_util::rt::TokioTimer::new()).half_close(true);
        tokio::select! {
            served = http.serve_connection(TokioIo::new(stream), service) => if let Err(error) = served {
                tracing::debug!(%error, "an admin connection broke off");
            },
            () = stop.cancelled() => {}
        }
        Ok(())
    });
}

async fn answer(admin: &Admin, request: Request<Incoming>, control: bool) -> Response<BoxBody<Bytes, Infallible>> {
    if control && request.method() == Method::POST && request.uri().path() != "/stop" {
        let path = request.uri().path().to_owned();
        let body = match Limited::new(request.into_body(), MAX_QUESTION).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return text(StatusCode::BAD_REQUEST, "text/plain", format!("{error}\n")),
        };
        return match (admin.ask)(&path, &body) {
            Some(Ok(document)) => text(StatusCode::OK, "application/json", format!("{document}\n")),
            Some(Err(why)) => text(StatusCode::BAD_REQUEST, "text/plain", format!("{why}\n")),
            None => text(StatusCode::NOT_FOUND, "text/plain", "there is no such question\n".to_owned()),
        };
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET, "/metrics") => {
            text(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", (admin.metrics)())
        }
        (&Method::GET, "/status") => text(StatusCode::OK, "application/json", format!("{}\n", (admin.status)())),
        (&Method::POST, "/stop") if control => {
            admin.stop.cancel();
            text(StatusCode::ACCEPTED, "text/plain", "stopping\n".to_owned())
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "there are /healthz, /metrics and /status\n".to_owned()),
    }
}

fn text(status: StatusCode, content_type: &'static str, text: String) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::from(text).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
