//! A platform that answers as scripted, with real mutual TLS on a free port, and the command line run against it.

use arco_api::client::Context;
use arco_api::wire::{
    ApplicationDocument, ComponentSummary, ErrorBody, OperationDocument, Page, RegistryToken, RegistryTokenQuery,
};
use arco_daemon::listener;
use arco_daemon::pki::{Pki, Subject};
use arco_daemon::tls::{ClientAuth, HotCertificate, server_config};
use arco_daemon::{OnExit, Supervisor};
use arco_model::operation::{OperationKind, OperationStatus};
use arco_model::spec::ComponentKind;
use arco_model::status::Status;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State, WebSocketUpgrade, ws};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What the platform was asked, and what it has.
#[derive(Default)]
struct Seen {
    calls: Vec<String>,
    bodies: Vec<Value>,
    upload: Option<String>,
    polls: usize,
}

type Shared = Arc<Mutex<Seen>>;

/// A platform, and a context for it.
pub(crate) struct FakeApi {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    supervisor: Supervisor,
    seen: Shared,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Standard output as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|it| panic!("{it}: {self:?}"))
    }
}

/// Runs the command line with an environment of its own.
pub(crate) fn arco(context: Option<&std::path::Path>, words: &[&str]) -> Ended {
    let home = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_arco"));
    command.env_clear().env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if let Some(context) = context {
        command.env("ARCO_CONTEXT", context);
    }
    let output = command.args(words).stdin(std::process::Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl FakeApi {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (seen, supervisor) = (Shared::default(), Supervisor::new());
        let pki = Pki::open(&folder.path().join("pki")).unwrap();
        let server = pki.server(&["127.0.0.1".to_owned()]).unwrap();
        let client = pki.client(&Subject::admin()).unwrap();
        let tls =
            server_config(HotCertificate::new(&server).unwrap(), pki.authority_pem(), ClientAuth::Required).unwrap();
        let router = router(seen.clone());
        let api = runtime.block_on(async {
            // One that nobody gets when it is stopped.
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], arco_testkit::servers::free_port()));
            let listener = listener::bind(address, "fake", "--none").await.unwrap();
            supervisor.spawn(
                "fake",
                OnExit::Continue,
                listener::serve(listener, Some(tls), router, supervisor.clone()),
            );
            address.to_string()
        });
        let ca = pki.authority_pem().to_owned();
        let context = Context { api, tenant: None, ca, certificate: client.certificate_pem, key: client.key_pem };
        context.save(&folder.path().join("context.toml")).unwrap();
        Self { folder, runtime, supervisor, seen }
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.folder.path().join("context.toml")
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ended {
        arco(Some(&self.context()), words)
    }

    /// `METHOD path` of every call since the last time.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap().calls)
    }

    /// JSON bodies of every call since the last time.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        std::mem::take(&mut self.seen.lock().unwrap().bodies)
    }

    /// Nobody listens there any more.
    pub(crate) fn stop(&self) {
        assert!(self.runtime.block_on(self.supervisor.shutdown(std::time::Duration::from_secs(60))));
    }
}

fn router(seen: Shared) -> Router {
    let t = "/v1/tenants/{tenant}";
    let c = format!("{t}/applications/{{application}}/components/{{component}}");
    Router::new()
        .route(&format!("{t}/uploads/{{digest}}"), any(upload_there))
        .route(&format!("{t}/uploads"), any(upload))
        .route(&format!("{t}/applications"), get(applications))
        .route(&format!("{t}/applications/{{application}}"), get(application))
        .route(&c, any(component))
        .route(&format!("{c}/exec"), get(exec))
        .route(&format!("{c}/log"), get(component_log))
        .route(&format!("{c}/{{verb}}"), any(act))
        .route("/v1/registry/token", get(registry_token))
        .route("/v1/operations/{id}", get(operation))
        .route("/v1/operations/{id}/log", get(operation_log))
        .layer(axum::middleware::from_fn_with_state(seen.clone(), note))
        .with_state(seen)
}

async fn note(State(seen): State<Shared>, request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let path = request.uri().path_and_query().map_or(String::new(), ToString::to_string);
    seen.lock().unwrap().calls.push(format!("{} {path}", request.method()));
    next.run(request).await
}

fn refuse(status: u16) -> Response {
    let body = ErrorBody {
        code: format!("code_{status}"),
        message: format!("this is\n{status}"),
        advice: "do this".to_owned(),
        operation: None,
    };
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

/// Names of the form `e404` are answered with that status.
fn scripted(name: &str) -> Option<Response> {
    name.strip_prefix('e')?.parse().ok().map(refuse)
}

async fn upload_there(State(seen): State<Shared>, Path((_, digest)): Path<(String, String)>) -> Response {
    if seen.lock().unwrap().upload.as_ref() == Some(&digest) {
        axum::Json(json!({"digest": digest, "size": 1})).into_response()
    } else {
        refuse(404)
    }
}

async fn upload(State(seen): State<Shared>, body: Bytes) -> axum::Json<Value> {
    let digest = arco_model::artifact::Digest::of(&body).to_string();
    seen.lock().unwrap().upload = Some(digest.clone());
    axum::Json(json!({"digest": digest, "size": body.len()}))
}

async fn registry_token(Query(asked): Query<RegistryTokenQuery>) -> Response {
    match asked.repository.split('/').nth(1).and_then(scripted) {
        Some(refused) => refused,
        None => axum::Json(RegistryToken { repository: asked.repository, token: "a.token".to_owned() }).into_response(),
    }
}

async fn applications() -> axum::Json<Page<ApplicationDocument>> {
    axum::Json(Page::whole(vec![shop("one", 1), shop("two", 2)]))
}

fn shop(name: &str, components: usize) -> ApplicationDocument {
    let component = |it: usize| ComponentSummary {
        component: format!("web{it}"),
        status: Status::Running,
        reason: String::new(),
        kind: ComponentKind::Stateless,
        replicas: 1,
        ready_replicas: 1,
        revision: Some(3),
        urls: vec![format!("http://web{it}-{name}.localhost")],
    };
    ApplicationDocument {
        tenant: "default".to_owned(),
        application: name.to_owned(),
        components: (1..=components).map(component).collect(),
        created_at: "2026-01-31T09:05:00.250Z".to_owned(),
    }
}

async fn application(Path((_, name)): Path<(String, String)>) -> Response {
    match name.as_str() {
        "one" => axum::Json(shop("one", 1)).into_response(),
        "two" => axum::Json(shop("two", 2)).into_response(),
        name => scripted(name).unwrap_or_else(|| refuse(404)),
    }
}

async fn component(
    State(seen): State<Shared>,
    method: Method,
    Path((_, application, component)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    if let Some(answer) = scripted(&application) {
        return answer;
    }
    match method {
        Method::GET => axum::Json(document(&application, &component)).into_response(),
        Method::PATCH => {
            seen.lock().unwrap().bodies.push(serde_json::from_slice(&body).unwrap());
            axum::Json(running(OperationKind::Configure, &application, &component)).into_response()
        }
        Method::DELETE => axum::Json(running(OperationKind::Delete, &application, &component)).into_response(),
        _ => refuse(405),
    }
}

fn document(application: &str, component: &str) -> Value {
    json!({
        "application": application, "component": component, "status": "running", "reason": "", "advice": "",
        "replicas": 1, "ready_replicas": 1, "revision": 3, "generation": 7, "observed_generation": 7,
        "urls": [format!("http://{component}-{application}.localhost:8080")],
        "instances": [{"id": "01jz0000000000000001", "status": "running", "reason": "", "restarts": 0,
            "address": "10.64.0.5", "node": "n1", "started_at": "2026-01-31T09:05:00.250Z", "revision": 3}],
        "tenant": "default", "id": "01jz0000000000000000", "desired_revision": 3, "address": "10.64.0.4", "power": "on",
        "ports": [{"port": 8080}], "spec": {"source": {"kind": "image", "reference": "a"}, "env": {"A": "1"},
            "files": [{"path": "/etc/there", "content": "hi"}]},
        "created_at": "2026-01-31T09:05:00.250Z"
    })
}

fn running(kind: OperationKind, application: &str, component: &str) -> OperationDocument {
    OperationDocument {
        // Failing operations belong to an application of that name.
        id: if application == "bad" { "bad" } else { "good" }.to_owned(),
        kind,
        tenant: "default".to_owned(),
        application: application.to_owned(),
        component: component.to_owned(),
        status: OperationStatus::Pending,
        generation: 7,
        revision: None,
        problem: None,
        warnings: Vec::new(),
        cancel_asked: false,
        build_ms: None,
        rollout_ms: None,
        created_at: "2026-01-31T09:05:00.250Z".to_owned(),
        ended_at: None,
    }
}

async fn act(
    State(seen): State<Shared>,
    Path((_, application, component, verb)): Path<(String, String, String, String)>,
    body: Bytes,
) -> Response {
    if let Some(answer) = scripted(&application) {
        return answer;
    }
    let mut seen = seen.lock().unwrap();
    seen.polls = 0;
    if let Ok(body) = serde_json::from_slice(&body) {
        seen.bodies.push(body);
    }
    let kind = if verb == "deploy" { OperationKind::Deploy } else { OperationKind::Scale };
    (StatusCode::ACCEPTED, axum::Json(running(kind, &application, &component))).into_response()
}

async fn operation(State(seen): State<Shared>, Path(id): Path<String>) -> Response {
    let mut seen = seen.lock().unwrap();
    seen.polls += 1;
    // The platform is away for a moment; whoever waits must bear that.
    if seen.polls == 2 {
        return refuse(503);
    }
    let mut operation = running(OperationKind::Deploy, &id, "web");
    operation.status = match (seen.polls, id.as_str()) {
        (_, "slow") | (1, _) => OperationStatus::Building,
        (_, "bad") => OperationStatus::Failed,
        _ => OperationStatus::Succeeded,
    };
    if id == "bad" {
        operation.problem = Some(ErrorBody {
            code: "build_failed".to_owned(),
            message: "step 2 failed\nwith two lines".to_owned(),
            advice: "mend it".to_owned(),
            operation: Some("bad".to_owned()),
        });
    }
    (operation.revision, operation.build_ms, operation.rollout_ms) = (Some(3), Some(11), Some(22));
    axum::Json(operation).into_response()
}

async fn operation_log() -> Response {
    let line = |text: &str| format!("event: line\ndata: {}\n\n", json!({"at": 1, "origin": "platform", "text": text}));
    let body = format!("{}{}event: end\ndata: {{}}\n\n", line("step 1"), line("step 2 \u{1b}[31m"));
    ([("content-type", "text/event-stream")], body).into_response()
}

/// Four lines, three on a page.
async fn component_log(uri: Uri) -> axum::Json<Value> {
    let line = |at: u64, text: &str| json!({"at": at, "origin": "stdout", "text": text});
    let all = [line(5, "a"), line(5, "b"), line(6, "c"), line(7, "d")];
    let from = uri
        .query()
        .and_then(|it| it.split_once("from="))
        .map_or(0, |(_, it)| it.split('&').next().unwrap().parse().unwrap());
    let page: Vec<&Value> = all.iter().skip(from).take(3).collect();
    axum::Json(json!({"lines": page, "more": from + 3 < all.len(), "next": from + page.len()}))
}

/// Echoes its input in capitals and ends with 7.
async fn exec(uri: Uri, upgrade: WebSocketUpgrade) -> Response {
    let argv: Vec<String> =
        uri.query().unwrap_or("").split('&').filter_map(|it| it.strip_prefix("argv=")).map(str::to_owned).collect();
    upgrade.on_upgrade(move |mut socket| async move {
        let mut input = Vec::new();
        while let Some(Ok(ws::Message::Binary(message))) = socket.recv().await {
            match message.split_first() {
                Some((0, [])) => break,
                Some((0, bytes)) => input.extend_from_slice(bytes),
                _ => {}
            }
        }
        let said = format!("{} {}", argv.join(" "), String::from_utf8_lossy(&input).to_uppercase());
        for message in [format!("\u{1}{said}"), "\u{2}oh".to_owned(), "\u{3}{\"exit\":{\"status\":7}}".to_owned()] {
            socket.send(ws::Message::Binary(message.into())).await.unwrap();
        }
    })
}
