//! A controller over fakes with one component, for unit tests: nothing of it runs by itself.

use crate::{Controller, ControllerDeps, Retention};
use arco_config::AcmeConfig;
use arco_model::component::Component;
use arco_model::sample;
use arco_model::spec::ComponentKind;
use arco_mq::Queue;
use arco_orchestrator::fake::FakeOrchestrator;
use arco_store::kv::{MemoryKv, SharedKv};
use arco_store::logs::{LogBatch, LogSink};
use arco_store::secrets::SecretBox;
use arco_store::sql::{Batch, Kind, MemoryMetadata, Metadata, Page, Query, Row, SharedMetadata, SqlError};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Rows in memory that a test can take away.
#[derive(Default)]
pub(crate) struct Rows {
    kept: MemoryMetadata,
    away: AtomicBool,
}

impl Rows {
    /// From now on nothing can be read or written, or again.
    pub(crate) fn take_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn here(&self, step: &'static str) -> Result<&MemoryMetadata, SqlError> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(SqlError::Unavailable { step, cause: "taken away by a test".to_owned() }),
            false => Ok(&self.kept),
        }
    }
}

#[async_trait]
impl Metadata for Rows {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        self.here("read")?.get_row(kind, key).await
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        self.here("list")?.list_rows(kind, query).await
    }

    async fn commit(&self, batch: Batch) -> Result<(), SqlError> {
        self.here("write")?.commit(batch).await
    }

    async fn ping(&self) -> Result<(), SqlError> {
        self.here("ask")?.ping().await
    }
}

/// The controller and what it stands on.
pub(crate) struct World {
    pub(crate) controller: Controller,
    pub(crate) rows: Arc<Rows>,
    pub(crate) orchestrator: Arc<FakeOrchestrator>,
    pub(crate) lines: mpsc::Receiver<LogBatch>,
}

impl World {
    pub(crate) fn new() -> Self {
        let (rows, orchestrator, kv) = (Arc::new(Rows::default()), FakeOrchestrator::new(), MemoryKv::new());
        let (kv, metadata): (SharedKv, SharedMetadata) = (Arc::new(kv), rows.clone());
        let (logs, lines) = LogSink::channel(64);
        let controller = Controller::new(ControllerDeps {
            metadata,
            queue: Queue::new(kv.clone()),
            kv,
            orchestrator: orchestrator.clone(),
            leads: Arc::new(|| true),
            one_machine: true,
            secrets: Arc::new(SecretBox::parse(&format!("k {}", "22".repeat(32))).unwrap()),
            logs,
            acme: AcmeConfig::default(),
            domain: "test".to_owned(),
            retention: Retention { days: 1, count: 100 },
            gone: mpsc::channel(1).0,
        });
        Self { controller, rows, orchestrator, lines }
    }

    /// A component of this kind with a revision.
    pub(crate) async fn component(&self, kind: ComponentKind) -> Component {
        let metadata: SharedMetadata = self.rows.clone();
        let mut component = sample::component();
        component.spec.kind = kind;
        component.spec.schedule = (kind == ComponentKind::Cron).then(|| "* * * * *".to_owned());
        let revision = sample::revision(&component);
        (component.desired_revision, component.last_revision_number) = (Some(revision.id.clone()), revision.number);
        metadata.insert(&component).await.unwrap();
        metadata.insert(&revision).await.unwrap();
        component
    }

    /// The row of the component as it is now.
    pub(crate) async fn row(&self, component: &Component) -> Component {
        let metadata: SharedMetadata = self.rows.clone();
        metadata.get::<Component>(component.id.as_str()).await.unwrap().unwrap().value
    }

    /// The texts of all lines that were written so far.
    pub(crate) fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(batch) = self.lines.try_recv() {
            said.extend(batch.lines.into_iter().map(|it| it.text));
        }
        said
    }
}
