//! The role: takes jobs of topic `builder`, builds, and commits the revision.
//!
//! What must hold: an operation always ends; its component changes only together with its new revision; a job that is
//! given out again finds by its operation's row how far it came. A build that another process began and did not end
//! is begun anew and finds finished steps in the cache.

mod letters;

use crate::access::Access;
use crate::cache::{self, Cache};
use crate::egress::{BuildProxy, Proxy};
use crate::pipeline::{self, Built};
use crate::runner::Runner;
use crate::stack::Stacks;
use arco_config::{BuilderConfig, Egress, WithoutUserNamespace};
use arco_daemon::BoxError;
use arco_model::component::{Component, Power, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::job::{JobRequest, Topic};
use arco_model::log::LogStream;
use arco_model::operation::{Operation, OperationStatus};
use arco_mq::{Fate, Leased, Queue};
use arco_orchestrator::SharedOrchestrator;
use arco_store::clock;
use arco_store::images::Images;
use arco_store::logs::LogSink;
use arco_store::secrets::SecretBox;
use arco_store::sql::{Batch, Query, SharedMetadata, SqlError, Versioned};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the role needs.
pub struct BuilderDeps {
    /// Settings.
    pub config: BuilderConfig,
    /// Below it: caches of components and temporary files.
    pub data_dir: PathBuf,
    /// Shared by all servers of this machine: stacks.
    pub cache_dir: PathBuf,
    /// Whether this process may make stacks on its machine: it is root. Else steps make them, on a base that was loaded.
    pub makes_stacks: bool,
    /// Whether root in a step is nobody on its node: steps have a user namespace. Else `builder.without_user_namespace` decides.
    pub confined: bool,
    /// Rows.
    pub metadata: SharedMetadata,
    /// Where images go.
    pub images: Images,
    /// Runs the steps.
    pub orchestrator: SharedOrchestrator,
    /// Jobs.
    pub queue: Queue,
    /// Opens credentials for private repositories.
    pub secrets: Arc<SecretBox>,
    /// Logs of operations.
    pub logs: LogSink,
    /// Where builds reach out; needed when `builder.egress` is an allow-list.
    pub proxy: Option<BuildProxy>,
}

/// What every build shares.
pub(crate) struct Inner {
    pub(crate) config: BuilderConfig,
    /// Whether steps have a user namespace.
    pub(crate) confined: bool,
    pub(crate) data_dir: PathBuf,
    /// Temporary files.
    pub(crate) work: PathBuf,
    pub(crate) images: Images,
    pub(crate) orchestrator: SharedOrchestrator,
    pub(crate) logs: LogSink,
    /// With an allow-list: the only way out of builds.
    pub(crate) proxy: Option<Proxy>,
    access: tokio::sync::OnceCell<Access>,
    pub(crate) stacks: Stacks,
    pub(crate) metadata: SharedMetadata,
    pub(crate) secrets: Arc<SecretBox>,
    queue: Queue,
    /// Rings when a job was given up.
    given_up: tokio::sync::Notify,
}

/// The role.
pub struct Builder {
    inner: Inner,
    listener: Option<TcpListener>,
}

/// How handling a job ended.
enum Outcome {
    /// Nothing is left to do.
    Done,
    /// Try again: a store did not answer.
    Again(String),
    /// The process stops; somebody else goes on.
    Left,
}

impl From<SqlError> for Outcome {
    fn from(error: SqlError) -> Self {
        Self::Again(error.to_string())
    }
}

/// How often the row of a running operation is looked at for a wish to end it.
const LOOK: Duration = Duration::from_millis(500);

impl Builder {
    /// Prepares its folders.
    pub async fn new(deps: BuilderDeps) -> Result<Self, BoxError> {
        let work = deps.data_dir.join("cache/work");
        if work.exists() {
            tokio::fs::remove_dir_all(&work).await?;
        }
        tokio::fs::create_dir_all(&work).await?;
        let builds = deps.data_dir.join("cache/builds");
        tokio::fs::create_dir_all(&builds).await?;
        {
            use std::os::unix::fs::PermissionsExt as _;
            tokio::fs::set_permissions(&builds, std::fs::Permissions::from_mode(0o711)).await?;
        }
        let stacks = Stacks::new(&deps.cache_dir, deps.config.clone(), deps.makes_stacks);
        let BuilderDeps {
            config, confined, data_dir, metadata, images, orchestrator, queue, logs, secrets, proxy, ..
        } = deps;
        if !confined && config.without_user_namespace == WithoutUserNamespace::Allow {
            tracing::warn!("steps of builds run as root of their nodes: `builder.without_user_namespace` allows it");
        }
        let (proxy, listener) = match (config.egress, proxy) {
            (Egress::Public, _) => (None, None),
            (Egress::Allowlist, Some(place)) => {
                (Some(Proxy::new(&place, &config, logs.clone())?), Some(place.listener))
            }
            (Egress::Allowlist, None) => {
                return Err("`builder.egress = \"allowlist\"` needs the local orchestrator: elsewhere the platform has no firewall around builds".into());
            }
        };
        Ok(Self {
            listener,
            inner: Inner {
                config,
                confined,
                data_dir,
                work,
                images,
                orchestrator,
                logs,
                proxy,
                access: tokio::sync::OnceCell::new(),
                stacks,
                metadata,
                secrets,
                queue,
                given_up: tokio::sync::Notify::new(),
            },
        })
    }

    /// Works until `token` fires; what is being built then is given up and taken up again after the next start.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), BoxError> {
        let listener = self.listener.take();
        let asked = self.inner.config.concurrency;
        let workers = if asked > 0 { asked } else { std::thread::available_parallelism().map_or(2, usize::from) };
        let all = (0..workers).map(|number| self.worker(number, &token));
        let work = futures_util::future::join_all(all);
        let proxy = async {
            if let (Some(proxy), Some(listener)) = (&self.inner.proxy, listener) {
                proxy.run(listener, &token).await;
            }
        };
        tokio::join!(work, self.inner.read_letters(&token), cache::drop_unused(&self.inner.images, &token), proxy);
        Ok(())
    }

    async fn worker(&self, number: usize, token: &CancellationToken) {
        let name = format!("builder-{number}");
        loop {
            let leased = tokio::select! {
                () = token.cancelled() => return,
                leased = self.inner.queue.lease(Topic::Builder, &name) => leased,
            };
            match leased {
                Ok(leased) => Box::pin(self.handle(leased, token)).await,
                Err(error) => {
                    tracing::warn!(error = %error, "no job can be taken; trying again in 1 s");
                    tokio::select! {
                        () = token.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        }
    }

    async fn handle(&self, leased: Leased, token: &CancellationToken) {
        let stop = token.child_token();
        let outcome = {
            let work = self.inner.operation(&leased.job().request.dedup_id, &stop, token);
            tokio::pin!(work);
            tokio::select! {
                outcome = &mut work => outcome,
                () = leased.lost() => {
                    // Somebody else has the job; ours must have ended before theirs matters.
                    stop.cancel();
                    let _ = work.await;
                    Outcome::Left
                }
            }
        };
        let settled = match outcome {
            Outcome::Done => leased.ack().await,
            Outcome::Left => return,
            Outcome::Again(reason) => {
                tracing::warn!(reason, "a build could not go on; it is tried again");
                leased.retry(reason, None).await.map(|fate| {
                    if fate == Fate::Dead {
                        self.inner.given_up.notify_one();
                    }
                })
            }
        };
        if let Err(error) = settled {
            tracing::warn!(error = %error, "a build job could not be settled; it is given out again");
        }
    }
}

impl Inner {
    /// What package clients get; read from the machine at the first build, because that may ask the network.
    pub(crate) async fn access(&self) -> Result<&Access, Problem> {
        let folder = self.data_dir.join("cache/access");
        let made = self.access.get_or_try_init(|| Access::prepare(&folder, &self.config)).await;
        made.map_err(|it| crate::storage("prepare the settings of package clients")(&it))
    }

    /// Brings the operation as far as the builder can.
    async fn operation(&self, id: &str, stop: &CancellationToken, process: &CancellationToken) -> Outcome {
        match Box::pin(self.try_operation(id, stop, process)).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn try_operation(
        &self,
        id: &str,
        stop: &CancellationToken,
        process: &CancellationToken,
    ) -> Result<Outcome, Outcome> {
        let Some(found) = self.metadata.get::<Operation>(id).await? else { return Ok(Outcome::Done) };
        let operation = found.value;
        if operation.status.is_final() {
            return Ok(Outcome::Done);
        }
        if operation.status == OperationStatus::RollingOut {
            return self.ring(&operation).await;
        }
        let component = self.metadata.get::<Component>(operation.component_id.as_str()).await?;
        let component = component.map(|it| it.value).filter(|it| !matches!(it.power, Power::Deleting { .. }));
        let Some(component) = component else {
            let problem = Problem::not_found("component", format!("{}/{}", operation.application, operation.component));
            return self.fail(&operation, problem).await;
        };
        if operation.cancel_asked {
            return self.cancelled(&operation).await;
        }
        self.metadata
            .modify::<Operation>(id, |it| {
                let begin = it.status == OperationStatus::Pending;
                it.status = if begin { OperationStatus::Building } else { it.status };
                begin
            })
            .await?;
        let began = tokio::time::Instant::now();
        let left = Duration::from_millis(operation.deadline.since_ms(clock::now()).min(self.config.timeout_ms));
        let runner = Runner {
            inner: self,
            tenant: component.tenant.clone(),
            component: component.id.clone(),
            operation: operation.id.clone(),
            stop: stop.clone(),
            ends: began + left,
            cache: Cache::new(&self.data_dir, &component.id),
            pass: self.proxy.as_ref().map(|it| it.pass(LogStream::Operation { id: operation.id.clone() })),
        };
        let work = self.build(&runner, &component, &operation);
        tokio::pin!(work);
        let mut ended = None;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                end = self.watch(&operation, runner.ends), if ended.is_none() => {
                    ended = Some(end);
                    stop.cancel();
                }
            }
        };
        let made = match (result, ended) {
            (_, Some(End::Cancelled)) => return self.cancelled(&operation).await,
            (_, Some(End::Gone)) => return Ok(Outcome::Done),
            (Err(_), Some(End::Late)) => {
                let message = format!("the build took longer than the {} s that it may take", left.as_secs());
                let problem = Problem::new(
                    ErrorKind::Failed,
                    "build_timeout",
                    message,
                    "make the build shorter, or raise `builder.timeout_ms`",
                );
                return self.fail(&operation, problem).await;
            }
            (Err(_), None) if process.is_cancelled() || stop.is_cancelled() => return Ok(Outcome::Left),
            (Err(problem), None) => {
                runner.say(format!("failed: {}", problem.message)).await;
                return self.fail(&operation, problem).await;
            }
            (Ok(made), _) => made,
        };
        let build_ms = began.elapsed().as_millis() as u64;
        self.commit(&operation, &component, made, build_ms).await
    }

    /// Returns when the operation is to end early.
    async fn watch(&self, operation: &Operation, ends: tokio::time::Instant) -> End {
        loop {
            if tokio::time::Instant::now() >= ends {
                return End::Late;
            }
            tokio::time::sleep(LOOK).await;
            match self.metadata.get::<Operation>(operation.id.as_str()).await {
                Ok(None) => return End::Gone,
                Ok(Some(it)) if it.value.status.is_final() => return End::Gone,
                Ok(Some(it)) if it.value.cancel_asked => return End::Cancelled,
                _ => {}
            }
        }
    }

    /// Reads the source and builds it, unless an earlier revision was built from the same.
    async fn build(&self, runner: &Runner<'_>, component: &Component, operation: &Operation) -> Result<Made, Problem> {
        if operation.no_cache {
            runner.cache.empty(&self.images).await?;
        }
        let (subject, build_key) = pipeline::prepare(runner, component).await?;
        let commit = match &subject {
            pipeline::Subject::Files(it) => it.commit.clone(),
            pipeline::Subject::Image(..) => None,
        };
        let rows = crate::storage("look for an earlier revision");
        if !operation.no_cache {
            let query = Query {
                tags: vec![build_key.clone()],
                newest_first: true,
                limit: 1,
                ..Query::parent(component.id.as_str())
            };
            let page = self.metadata.list::<Revision>(&query).await.map_err(|it| rows(&it))?;
            if let Some(Versioned { value: earlier, .. }) = page.items.into_iter().next()
                && self
                    .images
                    .manifest(&earlier.artifact.repository, &earlier.artifact.digest)
                    .await
                    .map_err(|it| rows(&it))?
                    .is_some()
            {
                runner
                    .say(format!(
                        "source and build settings are those of revision {}; nothing to build",
                        earlier.number
                    ))
                    .await;
                let built = Built { image: earlier.artifact.clone(), defaults: earlier.defaults.clone() };
                return Ok(Made { built, build_key, commit, earlier: Some(earlier) });
            }
        }
        let built = pipeline::build(runner, component, subject, operation.no_cache).await?;
        Ok(Made { built, build_key, commit, earlier: None })
    }

    /// Writes revision with its tag, component and operation together, then wakes the controller.
    async fn commit(
        &self,
        operation: &Operation,
        started: &Component,
        made: Made,
        build_ms: u64,
    ) -> Result<Outcome, Outcome> {
        loop {
            let Some(mut row) = self.metadata.get::<Operation>(operation.id.as_str()).await? else {
                return Ok(Outcome::Done);
            };
            if row.value.status.is_final() {
                return Ok(Outcome::Done);
            }
            // Another builder was faster, which had the job while this process was silent.
            if row.value.status == OperationStatus::RollingOut {
                return self.ring(&row.value).await;
            }
            // Asked for since it was looked at last.
            if row.value.cancel_asked {
                return self.cancelled(&row.value).await;
            }
            let Some(mut component) = self.metadata.get::<Component>(operation.component_id.as_str()).await? else {
                return Ok(Outcome::Done);
            };
            let now = clock::now();
            // Settings that changed meanwhile hold; what was built is what this operation read.
            let mut spec = component.value.spec.clone();
            spec.source = started.spec.source.clone();
            spec.build = started.spec.build.clone();
            let same = made
                .earlier
                .as_ref()
                .filter(|it| component.value.desired_revision.as_ref() == Some(&it.id) && it.spec == spec);
            let mut batch = Batch::default();
            let (revision, number) = match same {
                Some(earlier) => (earlier.id.clone(), earlier.number),
                None => {
                    let revision = Revision {
                        id: clock::fresh(),
                        component_id: component.value.id.clone(),
                        number: component.value.last_revision_number + 1,
                        artifact: made.built.image.clone(),
                        defaults: made.built.defaults.clone(),
                        spec,
                        build_key: made.build_key.clone(),
                        commit: made.commit.clone(),
                        cause: "deploy".to_owned(),
                        operation_id: operation.id.clone(),
                        created_at: now,
                    };
                    // An image that nothing has named for long may be collected right now.
                    let held = self.images.hold_with(&mut batch, &revision.artifact).await;
                    held.map_err(|it| Outcome::Again(it.to_string()))?;
                    batch.insert(&revision)?;
                    component.value.last_revision_number = revision.number;
                    (revision.id, revision.number)
                }
            };
            component.value.desired_revision = Some(revision.clone());
            component.value.generation += 1;
            row.value.revision = Some(revision);
            row.value.revision_number = Some(number);
            row.value.generation = component.value.generation;
            row.value.build_ms = Some(build_ms);
            row.value.status = OperationStatus::RollingOut;
            row.value.rollout_at = Some(now);
            let image = &made.built.image;
            if image.repository.starts_with(&format!("{}/{}/{}", started.tenant, started.application, started.name)) {
                let tag = format!("r{number}");
                let tagged = self.images.tag_with(&mut batch, &image.repository, &tag, &image.digest).await;
                tagged.map_err(|it| Outcome::Again(it.to_string()))?;
            }
            batch.update(&component)?;
            batch.update(&row)?;
            match self.metadata.commit(batch).await {
                Ok(()) => return self.ring(&row.value).await,
                Err(SqlError::Conflict { .. } | SqlError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Wakes the controller for the operation's component.
    async fn ring(&self, operation: &Operation) -> Result<Outcome, Outcome> {
        let request = JobRequest {
            topic: Topic::Controller,
            key: operation.component_id.to_string(),
            dedup_id: operation.id.to_string(),
        };
        self.queue.enqueue(request, None).await.map_err(|it| Outcome::Again(it.to_string()))?;
        Ok(Outcome::Done)
    }

    async fn fail(&self, operation: &Operation, problem: Problem) -> Result<Outcome, Outcome> {
        self.end(operation, OperationStatus::Failed, Some(problem)).await
    }

    async fn cancelled(&self, operation: &Operation) -> Result<Outcome, Outcome> {
        let problem = Problem::new(
            ErrorKind::Failed,
            "cancelled",
            "the deploy was cancelled while it was built",
            "deploy again when you want it",
        );
        self.end(operation, OperationStatus::Cancelled, Some(problem)).await
    }

    async fn end(
        &self,
        operation: &Operation,
        status: OperationStatus,
        problem: Option<Problem>,
    ) -> Result<Outcome, Outcome> {
        let now = clock::now();
        self.metadata
            .modify::<Operation>(operation.id.as_str(), |it| {
                // What is rolled out was built, by another builder that had the job meanwhile.
                if it.status.is_final() || it.status == OperationStatus::RollingOut {
                    return false;
                }
                it.status = status;
                it.problem.clone_from(&problem);
                it.ended_at = Some(now);
                true
            })
            .await?;
        // The status of a component that never ran speaks of its failed build.
        self.ring(operation).await
    }
}

/// Why a build is ended early.
enum End {
    Cancelled,
    Gone,
    Late,
}

/// What a build made, or found made.
struct Made {
    built: Built,
    build_key: String,
    commit: Option<String>,
    earlier: Option<Revision>,
}
