//! An API over memory stores and an orchestrator that only pretends; ends with the test.

use arco_api::client::{Client, ClientError, Context};
use arco_api::server::{ApiDeps, build};
use arco_api::wire::{DeployRequest, OperationDocument, SpecPatch};
use arco_config::Config;
use arco_daemon::health::Health;
use arco_daemon::metrics::Metrics;
use arco_daemon::pki::{Pki, Subject};
use arco_daemon::tls::{ClientAuth, HotCertificate, server_config};
use arco_daemon::{OnExit, Supervisor, listener};
use arco_model::component::{Component, Revision, RunDefaults};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::TenantName;
use arco_model::observed::{ExitFacts, InstanceFacts, InstancePhase, Observed};
use arco_model::operation::{Operation, OperationStatus};
use arco_model::plan::{OneShot, WorkloadPlan};
use arco_model::sample;
use arco_model::source::Source;
use arco_model::spec::{Port, Protocol};
use arco_model::storage::{AccessMode, VolumeClass, VolumeFacts};
use arco_mq::Queue;
use arco_orchestrator::{
    Connection, Error, ExecRequest, ExecSession, OneShotResult, Orchestrator, OutputLine, Removal, Storage, Telling,
    Usage,
};
use arco_store::blob::{BlobError, BlobStat, ByteStream, MemoryBlobs};
use arco_store::clock;
use arco_store::images::Images;
use arco_store::kv::{MemoryKv, SharedKv};
use arco_store::leader::KvLock;
use arco_store::logs::LogSink;
use arco_store::secrets::SecretBox;
use arco_store::sql::{Batch, MemoryMetadata, SharedMetadata, Versioned};
use async_trait::async_trait;
use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Path, RawQuery};
use axum::response::IntoResponse as _;
use axum::routing::get;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

/// The component that most tests use.
pub(crate) const WEB: (&str, &str) = ("shop", "web");

pub(crate) struct Platform {
    pub(crate) client: Client,
    pub(crate) metadata: SharedMetadata,
    pub(crate) kv: SharedKv,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) orchestrator: Arc<Pretender>,
    pub(crate) outbox: Arc<Notify>,
    pub(crate) pki: Arc<Pki>,
    pub(crate) api: String,
    supervisor: Supervisor,
    _folder: tempfile::TempDir,
}

/// Blobs in memory that a test can take away.
#[derive(Default)]
pub(crate) struct Blobs {
    kept: MemoryBlobs,
    away: AtomicBool,
}

impl Blobs {
    /// From now on nothing can be read or written, or again.
    pub(crate) fn take_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn here(&self, step: &'static str, path: &str) -> Result<&MemoryBlobs, BlobError> {
        if !self.away.load(Ordering::SeqCst) {
            return Ok(&self.kept);
        }
        Err(BlobError::Io { step, path: path.to_owned(), source: std::io::Error::other("connection refused") })
    }
}

#[async_trait]
impl arco_store::blob::Blobs for Blobs {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn put(&self, path: &str, content: ByteStream) -> Result<u64, BlobError> {
        self.here("write", path)?.put(path, content).await
    }

    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError> {
        self.here("read", path)?.get(path, offset).await
    }

    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError> {
        self.here("look for", path)?.stat(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError> {
        self.here("list", prefix)?.list(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.here("delete", path)?.delete(path).await
    }

    fn local_file(&self, path: &str) -> Option<std::path::PathBuf> {
        self.kept.local_file(path)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.supervisor.token().cancel();
    }
}

impl Platform {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(settings: impl FnOnce(&mut Config)) -> Self {
        Self::assemble(Arc::new(MemoryMetadata::default()), false, settings).await
    }

    pub(crate) async fn over(metadata: SharedMetadata) -> Self {
        Self::assemble(metadata, false, |_| {}).await
    }

    /// One of several servers, which take turns.
    pub(crate) async fn among_several(metadata: SharedMetadata) -> Self {
        Self::assemble(metadata, true, |_| {}).await
    }

    async fn assemble(metadata: SharedMetadata, several: bool, settings: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.domain = "example.test".to_owned();
        settings(&mut config);
        let pki = Arc::new(Pki::open(&folder.path().join("pki")).unwrap());
        let (blobs, orchestrator) = (Arc::new(Blobs::default()), Arc::new(Pretender::new()));
        let (outbox, kv): (_, SharedKv) = (Arc::new(Notify::new()), Arc::new(MemoryKv::new()));
        let (logs, _nobody) = LogSink::channel(1);
        let role = build(ApiDeps {
            turn: several.then(|| Arc::new(KvLock::new(kv.clone(), "turn", "here", 30)) as _),
            config,
            metadata: metadata.clone(),
            blobs: blobs.clone(),
            images: Images::new(metadata.clone(), blobs.clone()),
            orchestrator: orchestrator.clone(),
            storage: orchestrator.clone(),
            queue: Queue::new(kv.clone()),
            outbox: outbox.clone(),
            secrets: Arc::new(SecretBox::open(&folder.path().join("secret.key")).unwrap()),
            logs,
            eventlog: eventlog(),
            gateway_http: Arc::new(|| Some("127.0.0.1:8080".parse().unwrap())),
            gateway_https: Arc::new(|| Some("127.0.0.1:8443".parse().unwrap())),
            gateway: None,
            pki: Some(pki.clone()),
            health: Health::new(),
            metrics: Metrics::new(),
            registry_token: Some(Arc::new(|repository| Ok(format!("token for {repository}")))),
        });
        role.prepare().await.unwrap();
        let certificate = HotCertificate::new(&pki.server(&["127.0.0.1".to_owned()]).unwrap()).unwrap();
        let tls = server_config(certificate, pki.authority_pem(), ClientAuth::Required).unwrap();
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), "api", "--api-listen").await.unwrap();
        let api = listener.local_addr().unwrap().to_string();
        let supervisor = Supervisor::new();
        supervisor.spawn("api", OnExit::Shutdown, role.run(listener, tls, supervisor.clone()));
        let client = client(&pki, &api, &Subject::admin());
        Self { client, metadata, kv, blobs, orchestrator, outbox, pki, api, supervisor, _folder: folder }
    }

    /// A client with another certificate.
    pub(crate) fn client_of(&self, name: &str, role: &str, tenants: &[&str]) -> Client {
        let tenants = tenants.iter().map(|it| (*it).to_owned()).collect();
        client(&self.pki, &self.api, &Subject { name: name.to_owned(), role: role.to_owned(), tenants })
    }

    pub(crate) async fn deploy(&self, name: (&str, &str), patch: SpecPatch) -> Result<OperationDocument, ClientError> {
        let source = Source::Image { reference: "stack/base".to_owned() };
        self.client.deploy("default", name, &DeployRequest { source, patch, no_cache: false }).await
    }

    /// Deploys, and does the builder's and the controller's part: a revision, one ready instance, the operation ended.
    pub(crate) async fn running(&self, name: (&str, &str), patch: SpecPatch) -> Component {
        let operation = self.deploy(name, patch).await.unwrap();
        self.built(&operation.id).await
    }

    pub(crate) async fn built(&self, operation: &str) -> Component {
        let mut operation: Versioned<Operation> = self.metadata.get(operation).await.unwrap().unwrap();
        let mut component: Versioned<Component> =
            self.metadata.get(operation.value.component_id.as_str()).await.unwrap().unwrap();
        let it = &mut component.value;
        it.last_revision_number += 1;
        let ports = vec![Port { port: 8080, protocol: Protocol::Http, outer: true }];
        let revision = Revision {
            id: clock::fresh(),
            number: it.last_revision_number,
            defaults: RunDefaults { ports, ..RunDefaults::default() },
            operation_id: operation.value.id.clone(),
            created_at: clock::now(),
            ..sample::revision(it)
        };
        it.desired_revision = Some(revision.id.clone());
        it.observed.serving_revision = Some(revision.id.clone());
        it.observed.ready_replicas = 1;
        it.observed.instances = vec![instance(&revision)];
        operation.value.status = OperationStatus::Succeeded;
        let mut batch = Batch::default();
        batch.insert(&revision).unwrap();
        batch.update(&component).unwrap();
        batch.update(&operation).unwrap();
        self.metadata.commit(batch).await.unwrap();
        self.component(name_of(&component.value)).await
    }

    /// The row.
    pub(crate) async fn component(&self, name: (&str, &str)) -> Component {
        let document = self.client.component("default", name).await.unwrap();
        self.metadata.get::<Component>(&document.id).await.unwrap().unwrap().value
    }

    /// The revision that a component should serve.
    pub(crate) async fn desired(&self, component: &Component) -> Revision {
        let id = component.desired_revision.as_ref().unwrap();
        self.metadata.get::<Revision>(id.as_str()).await.unwrap().unwrap().value
    }
}

fn name_of(component: &Component) -> (&str, &str) {
    (component.application.as_str(), component.name.as_str())
}

fn client(pki: &Pki, api: &str, subject: &Subject) -> Client {
    let leaf = pki.client(subject).unwrap();
    let ca = pki.authority_pem().to_owned();
    let (certificate, key) = (leaf.certificate_pem, leaf.key_pem);
    Client::new(&Context { api: api.to_owned(), tenant: None, ca, certificate, key }).unwrap()
}

/// Says what it was asked, as one line of log.
fn eventlog() -> Router {
    let answer = |kind: &'static str| {
        move |Path(id): Path<String>,
              RawQuery(query): RawQuery,
              socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>| async move {
            let text = format!("{kind} {id} {}", query.unwrap_or_default());
            if let Ok(socket) = socket {
                return socket
                    .on_upgrade(|mut socket| async move { drop(socket.send(Message::Text(text.into())).await) });
            }
            let lines = serde_json::json!({"lines": [{"at": 1, "origin": "stdout", "text": text}], "more": false});
            axum::Json(lines).into_response()
        }
    };
    Router::new()
        .route("/streams/operation/{id}", get(answer("operation")))
        .route("/streams/component/{id}", get(answer("component")))
}

fn instance(revision: &Revision) -> InstanceFacts {
    InstanceFacts {
        id: clock::fresh(),
        revision: revision.id.clone(),
        template: String::new(),
        place: 0,
        phase: InstancePhase::Ready,
        address: Some("10.64.0.2".parse().unwrap()),
        node: "here".to_owned(),
        restarts: 0,
        started_at: Some(clock::now()),
        last_exit: None,
        listens_on: Vec::new(),
        fault: None,
        node_silent: false,
    }
}

/// The code of a refused call.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused { body, .. } => {
            assert!(!body.message.is_empty() && !body.advice.is_empty(), "{body:?}");
            body.code
        }
        other => panic!("not refused: {other}"),
    }
}

/// Pretends: `exec` echoes its input in capitals on standard output and its first argument on standard error.
pub(crate) struct Pretender {
    changes: broadcast::Sender<ComponentId>,
    pub(crate) ran: Mutex<Vec<OneShot>>,
    pub(crate) removed: Mutex<Vec<(ComponentId, Removal)>>,
    pub(crate) volumes: Mutex<Vec<VolumeFacts>>,
    /// Tenants that have something beside their components.
    pub(crate) tenants: Mutex<BTreeSet<TenantName>>,
}

impl Pretender {
    fn new() -> Self {
        Self {
            changes: broadcast::channel(1).0,
            ran: Mutex::default(),
            removed: Mutex::default(),
            volumes: Mutex::default(),
            tenants: Mutex::default(),
        }
    }
}

#[async_trait]
impl Storage for Pretender {
    async fn classes(&self) -> Result<Vec<VolumeClass>, Error> {
        let class = |name: &str, grows| VolumeClass {
            name: name.to_owned(),
            provisioner: "example.com/any".to_owned(),
            default: grows,
            access: vec![AccessMode::ReadWriteOnce],
            grows,
            snapshots: Some(false),
            retains: false,
            limits: None,
        };
        Ok(vec![class("slow", false), class("fast", true)])
    }
    async fn volumes(&self, of: Option<&ComponentId>, _: Telling) -> Result<Vec<VolumeFacts>, Error> {
        let all = self.volumes.lock().unwrap().clone();
        Ok(all.into_iter().filter(|it| of.is_none_or(|of| it.component == *of)).collect())
    }
}

#[async_trait]
impl Orchestrator for Pretender {
    async fn apply(&self, _plan: &WorkloadPlan) -> Result<(), Error> {
        Ok(())
    }
    async fn remove(&self, component: &ComponentId, what: &Removal) -> Result<(), Error> {
        self.removed.lock().unwrap().push((component.clone(), what.clone()));
        Ok(())
    }
    async fn observe(&self, _component: &ComponentId) -> Result<Observed, Error> {
        Ok(Observed::default())
    }
    async fn components(&self) -> Result<Vec<ComponentId>, Error> {
        Ok(Vec::new())
    }
    async fn tenants(&self) -> Result<BTreeSet<TenantName>, Error> {
        Ok(self.tenants.lock().unwrap().clone())
    }
    fn changes(&self) -> broadcast::Receiver<ComponentId> {
        self.changes.subscribe()
    }
    async fn release(&self, _instance: &InstanceId) -> Result<(), Error> {
        Ok(())
    }
    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        _cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error> {
        self.ran.lock().unwrap().push(workload.clone());
        let _ = output.send(OutputLine { stderr: false, text: workload.argv.join(" ") }).await;
        let _ = output.send(OutputLine { stderr: true, text: "done".to_owned() }).await;
        Ok(OneShotResult { exit: ExitFacts { status: 3, ..ExitFacts::default() }, timed_out: false, layer: None })
    }
    /// On port 8080 a program answers without reading, and ends.
    async fn connect(&self, _instance: &InstanceId, port: u16) -> Result<Connection, Error> {
        use tokio::io::AsyncWriteExt as _;
        if port != 8080 {
            return Err(Error::Refused(format!("nothing listens on port {port}")));
        }
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(b"answer").await.unwrap();
        let (tell, failure) = oneshot::channel();
        tell.send("it was reset".to_owned()).unwrap();
        Ok(Connection { stream: Box::new(ours), failure })
    }

    async fn exec(&self, _instance: &InstanceId, request: ExecRequest) -> Result<ExecSession, Error> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (stdin, mut input) = tokio::io::duplex(4096);
        let (mut output, stdout) = tokio::io::duplex(4096);
        let (mut problems, stderr) = tokio::io::duplex(4096);
        let (resize, mut sizes) = mpsc::channel(4);
        let (end, exit) = oneshot::channel();
        let first = request.argv[0].clone();
        tokio::spawn(async move {
            let mut text = String::new();
            input.read_to_string(&mut text).await.unwrap();
            let size = sizes.try_recv().map(|(columns, rows)| format!(" {columns}x{rows}")).unwrap_or_default();
            output.write_all(format!("{}{size}", text.to_uppercase()).as_bytes()).await.unwrap();
            problems.write_all(first.as_bytes()).await.unwrap();
            drop((output, problems));
            let _ = end.send(7);
        });
        Ok(ExecSession { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr: Box::new(stderr), resize, exit })
    }
    async fn usage(&self, _instance: &InstanceId) -> Result<Usage, Error> {
        Ok(Usage { cpu_ms: 5, memory_bytes: 6, pids: 7 })
    }
    async fn shutdown(&self, _stop_instances: bool) -> Result<(), Error> {
        Ok(())
    }
}
