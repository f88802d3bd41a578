//! An API server that fails as asked: a proxy before the real one. What instances say it answers itself: on fake nodes nothing
//! runs.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use k8s_openapi::jiff;
use kube::config::Kubeconfig;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Nobody answers: connections end without a word.
    Down,
    /// The first and then every second request is told to come later (429, `Retry-After`).
    Overloaded,
    /// The first and then every second write meets another writer (409).
    Conflicts,
    /// The credential is not good any more (401).
    Expired,
    /// Only the credential `second` is good (401).
    Replaced,
    /// Watches and lists from a revision are too old (410).
    Gone,
    /// A webhook rejects every write of a Deployment.
    Rejecting,
    /// Pods cannot be deleted (500).
    Undeletable,
    /// Who asks what instances say hears nothing: connections end without a word.
    Mute,
}

/// What every instance says.
#[derive(Clone, Default)]
struct Output {
    /// With their times.
    lines: Vec<String>,
    /// Whether nothing more comes: streams end.
    over: bool,
}

/// The time of one fault. A request belongs to the time that it came in, however late it is answered.
struct Time {
    fault: Fault,
    /// Ends what streams.
    cut: CancellationToken,
    /// Requests that the fault is about.
    met: AtomicU64,
    failed: AtomicU64,
    /// When each write failed last, by method and path; and the longest time between two tries of one.
    tries: Mutex<(BTreeMap<String, Instant>, Duration)>,
}

impl Time {
    fn of(fault: Fault) -> Arc<Self> {
        let (met, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { fault, cut: CancellationToken::new(), met, failed, tries: Mutex::default() })
    }

    fn note(&self, request: &Request) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        if request.method() != Method::GET {
            let (what, now) = (format!("{} {}", request.method(), request.uri().path()), Instant::now());
            let mut tries = self.tries.lock().unwrap();
            if let Some(before) = tries.0.insert(what, now) {
                tries.1 = tries.1.max(now - before);
            }
        }
    }
}

struct Inner {
    real: kube::Client,
    now: Mutex<Arc<Time>>,
    output: watch::Sender<Output>,
    /// How often somebody asked for it and was answered.
    followed: AtomicU64,
}

impl Inner {
    fn now(&self) -> Arc<Time> {
        self.now.lock().unwrap().clone()
    }
}

/// The proxy; ends with the runtime of its test.
pub(crate) struct Faulty {
    inner: Arc<Inner>,
    /// Names the proxy as the cluster.
    pub(crate) kubeconfig: PathBuf,
    /// Holds the credential, `first` at the beginning.
    pub(crate) token: PathBuf,
}

impl Faulty {
    /// Before the API server that `client` reaches.
    pub(crate) async fn before(client: kube::Client, folder: &Path) -> Self {
        let (now, followed) = (Mutex::new(Time::of(Fault::None)), AtomicU64::new(0));
        let inner = Arc::new(Inner { real: client, now, output: watch::Sender::default(), followed });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(pass).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let token = folder.join("token");
        std::fs::write(&token, "first").unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "it", "user": { "tokenFile": token } }], // the proxy has its own
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        let kubeconfig = folder.join("faulty.kubeconfig");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Kubeconfig::read_from(&kubeconfig).unwrap();
        Self { inner, kubeconfig, token }
    }

    /// From now on this goes wrong; what streams is cut.
    pub(crate) fn fail(&self, fault: Fault) {
        let before = std::mem::replace(&mut *self.inner.now.lock().unwrap(), Time::of(fault));
        before.cut.cancel();
    }

    /// The longest time between two tries of a write that met the present fault.
    pub(crate) fn longest_pause(&self) -> Duration {
        self.inner.now().tries.lock().unwrap().1
    }

    /// Every instance says this now.
    pub(crate) fn say(&self, text: &str) {
        self.inner.output.send_modify(|it| it.lines.push(format!("{} {text}\n", jiff::Timestamp::now())));
    }

    /// No instance says any more: who follows one comes to the end.
    pub(crate) fn say_no_more(&self) {
        self.inner.output.send_modify(|it| it.over = true);
    }

    /// How many requests met the present fault.
    pub(crate) fn failed(&self) -> u64 {
        self.inner.now().failed.load(Ordering::SeqCst)
    }

    /// How often somebody asked for the output of an instance or a run, and was answered.
    pub(crate) fn followed(&self) -> u64 {
        self.inner.followed.load(Ordering::SeqCst)
    }
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    let mut response = (code, [(header::CONTENT_TYPE, "application/json")], status.to_string()).into_response();
    if code == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

fn asks_for_output(request: &Request) -> bool {
    request.uri().path().contains("/pods/") && request.uri().path().ends_with("/log")
}

/// What instances said and say, until the stream is cut.
fn output(inner: &Inner, cut: CancellationToken) -> Response {
    let said = futures_util::stream::unfold((inner.output.subscribe(), 0), |(mut output, told)| async move {
        let Output { lines, .. } = output.wait_for(|it| it.over || it.lines.len() > told).await.ok()?.clone();
        let new = lines.get(told..).filter(|it| !it.is_empty())?.concat();
        Some((Ok::<_, std::io::Error>(new), (output, lines.len())))
    });
    Body::from_stream(said.take_until(cut.cancelled_owned())).into_response()
}

/// Whether a fault is about a request.
fn concerns(fault: Fault, request: &Request) -> bool {
    let writes = request.method() != Method::GET;
    match fault {
        Fault::None => false,
        Fault::Down | Fault::Overloaded | Fault::Expired => true,
        Fault::Replaced => request.headers().get(header::AUTHORIZATION).is_none_or(|it| it != "Bearer second"),
        Fault::Conflicts => writes,
        Fault::Gone => request.uri().query().is_some_and(|it| it.contains("watch=true")),
        Fault::Rejecting => writes && request.uri().path().contains("/deployments"),
        Fault::Undeletable => request.method() == Method::DELETE && request.uri().path().contains("/pods/"),
        Fault::Mute => asks_for_output(request),
    }
}

/// How a request fails; `None` when it is let through.
fn failure(fault: Fault, number: u64) -> Option<Response> {
    Some(match fault {
        Fault::None => return None,
        Fault::Overloaded | Fault::Conflicts if number % 2 == 1 => return None,
        Fault::Down | Fault::Mute => {
            let cut = Err::<String, _>(std::io::Error::other("cut off on purpose"));
            Body::from_stream(futures_util::stream::iter([cut])).into_response()
        }
        Fault::Overloaded => refusal(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "come later"),
        Fault::Conflicts => refusal(StatusCode::CONFLICT, "Conflict", "the object has been modified"),
        Fault::Expired | Fault::Replaced => refusal(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"),
        Fault::Undeletable => refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcdserver: leader changed"),
        Fault::Gone => refusal(StatusCode::GONE, "Expired", "too old resource version"),
        Fault::Rejecting => {
            refusal(StatusCode::FORBIDDEN, "Forbidden", "admission webhook \"no.example\" denied the request")
        }
    })
}

async fn pass(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let now = inner.now();
    let cut = now.cut.clone();
    if concerns(now.fault, &request)
        && let Some(response) = failure(now.fault, now.met.fetch_add(1, Ordering::SeqCst))
    {
        now.note(&request);
        return response;
    }
    if asks_for_output(&request) {
        inner.followed.fetch_add(1, Ordering::SeqCst);
        return output(&inner, cut);
    }
    let (mut parts, body) = request.into_parts();
    for name in [header::HOST, header::AUTHORIZATION, header::ACCEPT_ENCODING, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let request = axum::http::Request::from_parts(parts, kube::client::Body::from(body));
    match inner.real.send(request).await {
        Ok(response) => response.map(|it| {
            let body = Body::new(it).into_data_stream();
            Body::from_stream(body.take_until(cut.cancelled_owned()))
        }),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
