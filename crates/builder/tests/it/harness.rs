//! A builder on stores in a temporary folder, and what a person would do with it.

use crate::chroot::Chroot;
use arco_builder::{Builder, BuilderDeps};
use arco_config::{BuilderConfig, WithoutUserNamespace};
use arco_daemon::{CancellationToken, OnExit, Supervisor};
use arco_model::artifact::Digest;
use arco_model::component::{Component, Revision};
use arco_model::id::{ComponentId, OperationId};
use arco_model::job::{JobRequest, Topic};
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::sample;
use arco_model::source::Source;
use arco_model::spec::ComponentSpec;
use arco_mq::Queue;
use arco_store::blob::{DiskBlobs, SharedBlobs, content_path};
use arco_store::clock;
use arco_store::images::Images;
use arco_store::kv::MemoryKv;
use arco_store::logs::LogSink;
use arco_store::secrets::SecretBox;
use arco_store::sql::{MemoryMetadata, SharedMetadata};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a build may take, on a slow machine too: the first one makes its stack.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);

pub(crate) struct Harness {
    _folder: tempfile::TempDir,
    pub(crate) metadata: SharedMetadata,
    pub(crate) images: Images,
    pub(crate) orchestrator: Arc<Chroot>,
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    pub(crate) queue: Queue,
    supervisor: Supervisor,
}

/// Whether this machine can run these tests; says so when it cannot.
pub(crate) fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    let debootstrap = ["/usr/sbin/debootstrap", "/usr/bin/debootstrap"].iter().any(|it| Path::new(it).exists());
    if !(root && debootstrap) {
        eprintln!("SKIPPED: building needs root and debootstrap (root: {root}, debootstrap: {debootstrap})");
    }
    root && debootstrap
}

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Where stacks of this machine are kept between runs.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("ARCO_TEST_CACHE").map_or_else(|| PathBuf::from("/var/cache/arco"), PathBuf::from)
}

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::start_with(cache(), true).await
    }

    pub(crate) async fn start_with(cache_dir: PathBuf, makes_stacks: bool) -> Self {
        Self::start_as(cache_dir, makes_stacks, true, BuilderConfig::default()).await
    }

    /// A builder whose steps have no user namespace.
    pub(crate) async fn start_unconfined(otherwise: WithoutUserNamespace) -> Self {
        let config = BuilderConfig { without_user_namespace: otherwise, ..BuilderConfig::default() };
        Self::start_as(cache(), true, false, config).await
    }

    async fn start_as(cache_dir: PathBuf, makes_stacks: bool, confined: bool, config: BuilderConfig) -> Self {
        let folder = tempfile::Builder::new().prefix("arco-builder-").tempdir().unwrap();
        let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
        let blobs: SharedBlobs = Arc::new(DiskBlobs::open(folder.path().join("blobs")).unwrap());
        let images = Images::new(metadata.clone(), blobs);
        let orchestrator = Arc::new(Chroot::new(images.clone(), folder.path()));
        let (logs, mut receiver) = LogSink::channel(64);
        let log = Arc::new(Mutex::new(Vec::new()));
        let supervisor = Supervisor::new();
        let kept = log.clone();
        supervisor.spawn("log", OnExit::Continue, async move {
            while let Some(batch) = receiver.recv().await {
                let loud = std::env::var_os("ARCO_TEST_LOUD").is_some();
                for line in batch.lines {
                    if loud {
                        eprintln!("| {}", line.text);
                    }
                    kept.lock().unwrap().push(line.text);
                }
            }
            Ok(())
        });
        let queue = Queue::new(Arc::new(MemoryKv::default()));
        let deps = BuilderDeps {
            config: BuilderConfig { concurrency: 2, timeout_ms: PATIENCE.as_millis() as u64, ..config },
            data_dir: folder.path().join("data"),
            cache_dir,
            makes_stacks,
            confined,
            metadata: metadata.clone(),
            images: images.clone(),
            orchestrator: orchestrator.clone(),
            queue: queue.clone(),
            secrets: Arc::new(SecretBox::open(&folder.path().join("secret.key")).unwrap()),
            logs,
            proxy: None,
        };
        let builder = Builder::new(deps).await.unwrap();
        let token: CancellationToken = supervisor.token().clone();
        supervisor.spawn("builder", OnExit::Shutdown, builder.run(token));
        Self { _folder: folder, metadata, images, orchestrator, log, queue, supervisor }
    }

    /// Puts a folder into the blob store as the client does.
    pub(crate) async fn upload(&self, folder: &Path) -> Source {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        builder.follow_symlinks(false);
        builder.append_dir_all("", folder).unwrap();
        let archive = builder.into_inner().unwrap().finish().unwrap();
        let digest = Digest::of(&archive);
        self.images.blobs().put_bytes(&content_path(&digest), archive.into()).await.unwrap();
        Source::Upload { digest, origin: folder.display().to_string(), commit: None, dir: String::new() }
    }

    pub(crate) async fn component(&self, name: &str, spec: ComponentSpec) -> ComponentId {
        let component = Component {
            id: clock::fresh(),
            application_id: clock::fresh(),
            application: "demo".parse().unwrap(),
            name: name.parse().unwrap(),
            spec,
            created_at: clock::now(),
            ..sample::component()
        };
        self.metadata.insert(&component).await.unwrap();
        component.id
    }

    pub(crate) async fn set_source(&self, id: &ComponentId, source: Source) {
        self.metadata
            .modify::<Component>(id.as_str(), |it| {
                it.spec.source = source.clone();
                true
            })
            .await
            .unwrap();
    }

    /// Asks for a deploy; returns its operation.
    pub(crate) async fn ask(&self, id: &ComponentId) -> OperationId {
        let component = self.metadata.get::<Component>(id.as_str()).await.unwrap().unwrap().value;
        let operation = Operation {
            id: clock::fresh(),
            status: OperationStatus::Pending,
            topic: Topic::Builder,
            created_at: clock::now(),
            deadline: clock::now().plus_ms(PATIENCE.as_millis() as u64),
            ..sample::operation(&component, OperationKind::Deploy)
        };
        self.metadata.insert(&operation).await.unwrap();
        let request = JobRequest { topic: Topic::Builder, key: id.to_string(), dedup_id: operation.id.to_string() };
        self.queue.enqueue(request, None).await.unwrap();
        operation.id
    }

    /// Waits until the builder has done its part.
    pub(crate) async fn wait(&self, id: &OperationId) -> Operation {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let operation = self.metadata.get::<Operation>(id.as_str()).await.unwrap().unwrap().value;
            if operation.status.is_final() || operation.status == OperationStatus::RollingOut {
                return operation;
            }
            assert!(tokio::time::Instant::now() < end, "the build did not end: {:?}", self.log.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn deploy(&self, id: &ComponentId) -> Operation {
        let operation = self.ask(id).await;
        self.wait(&operation).await
    }

    /// Deploys a folder as a new component; it must be built.
    pub(crate) async fn built(&self, name: &str, folder: &Path) -> (ComponentId, Revision, u64) {
        let id = self.component(name, ComponentSpec::new(self.upload(folder).await)).await;
        let operation = self.deploy(&id).await;
        assert_eq!(
            operation.status,
            OperationStatus::RollingOut,
            "{name}: {:?}\n{}",
            operation.problem,
            self.log.lock().unwrap().join("\n")
        );
        let revision =
            self.metadata.get::<Revision>(operation.revision.unwrap().as_str()).await.unwrap().unwrap().value;
        (id, revision, operation.build_ms.unwrap())
    }

    pub(crate) async fn stop(self) {
        assert!(self.supervisor.shutdown(Duration::from_secs(300)).await, "the builder did not stop");
    }
}
