//! The role: the platform's REST API under `/v1`, with mutual TLS, its OpenAPI document, health and metrics.
//!
//! A request goes `identity → handler → act (decide, pure) → one metadata batch`. What must hold: a mutating call
//! writes component, revision and operation in one batch and then rings the outbox; nobody but [`identity`] decides who
//! may do what; nobody but [`error`] knows status codes.

mod act;
mod change;
mod error;
mod exec;
mod extract;
mod forward;
mod identity;
mod read;
mod routes;
mod rules;
mod turn;
mod upload;
mod volumes;
mod world;

use arco_config::Config;
use arco_daemon::health::Health;
use arco_daemon::listener;
use arco_daemon::metrics::Metrics;
use arco_daemon::pki::Pki;
use arco_daemon::{BoxError, Supervisor};
use arco_model::application::Tenant;
use arco_model::error::Problem;
use arco_model::name::TenantName;
use arco_model::traffic::{HostRates, RouteQuestion, StreamProtocol};
use arco_mq::Queue;
use arco_orchestrator::{SharedOrchestrator, SharedStorage};
use arco_store::blob::SharedBlobs;
use arco_store::clock;
use arco_store::images::Images;
use arco_store::leader::LeaderLock;
use arco_store::logs::LogSink;
use arco_store::secrets::SecretBox;
use arco_store::sql::{SharedMetadata, SqlError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Notify;

pub use identity::{Permission, Role};
pub use routes::openapi;

/// Gives a token for pulling from and pushing to one repository.
pub type TokenIssuer = Arc<dyn Fn(&str) -> Result<String, Problem> + Send + Sync>;

/// A port for components that gateways cannot open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClosedStream {
    /// What it would speak.
    pub protocol: StreamProtocol,
    /// Which port.
    pub port: u16,
    /// Why, with the gateway's server where there are several.
    pub why: String,
    /// Whether another gateway serves it.
    pub open_elsewhere: bool,
}

/// What the running gateways can be asked.
#[async_trait::async_trait]
pub trait AskGateway: Send + Sync {
    /// Whether one of them runs on this machine.
    fn is_here(&self) -> bool;
    /// What passed through these hosts in the last seconds, at all of them; hosts that none knows are left out.
    async fn rates(&self, hosts: &[String]) -> Result<BTreeMap<String, HostRates>, Problem>;
    /// The way of a request, a line per decision.
    async fn explain(&self, question: &RouteQuestion) -> Result<Vec<String>, Problem>;
    /// Ports for components that one of them cannot open, and why.
    async fn closed_streams(&self) -> Result<Vec<ClosedStream>, Problem>;
}

/// What the API works with.
#[derive(Clone)]
pub struct ApiDeps {
    /// Settings.
    pub config: Config,
    /// Rows.
    pub metadata: SharedMetadata,
    /// Uploads.
    pub blobs: SharedBlobs,
    /// Images that are carried from other platforms; the same value as the registry's.
    pub images: Images,
    /// Running instances: usage, `exec`, `run`, volumes.
    pub orchestrator: SharedOrchestrator,
    /// What volumes are made of, and how full they are.
    pub storage: SharedStorage,
    /// Wakes the controller where no operation does.
    pub queue: Queue,
    /// Where several processes that serve the API on the same stores take turns; without it this one is alone.
    pub turn: Option<Arc<dyn LeaderLock>>,
    /// Rung after an operation was written (`mq::outbox::Relay::bell`).
    pub outbox: Arc<Notify>,
    /// Seals secrets.
    pub secrets: Arc<SecretBox>,
    /// First line of each operation's log.
    pub logs: LogSink,
    /// Answers `/streams/operation/{id}` and `/streams/component/{id}`.
    pub eventlog: axum::Router,
    /// Where the gateway really listens for HTTP; `None` while that is not known.
    pub gateway_http: Arc<dyn Fn() -> Option<SocketAddr> + Send + Sync>,
    /// Where the gateway really listens for HTTPS; `None` while that is not known.
    pub gateway_https: Arc<dyn Fn() -> Option<SocketAddr> + Send + Sync>,
    /// The running gateway, when it can be asked from here.
    pub gateway: Option<Arc<dyn AskGateway>>,
    /// Signs certificates of people; without it `/v1/certificates` is not available here.
    pub pki: Option<Arc<Pki>>,
    /// Readiness of this process.
    pub health: Health,
    /// Metrics of this process.
    pub metrics: Metrics,
    /// Tokens of the registry; without it `/v1/registry/token` is not available here.
    pub registry_token: Option<TokenIssuer>,
}

/// What handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

pub(crate) struct Shared {
    deps: ApiDeps,
    revisions: read::RevisionCache,
    requests: identity::Requests,
    revoked: act::Revoked,
    /// Held from reading to writing: rules that span rows (hosts, quotas, bindings) are checked by nothing else.
    changing: turn::Turn,
}

impl std::ops::Deref for Api {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The role.
pub struct ApiRole {
    api: Api,
}

/// The role over its parts; nothing runs yet.
pub fn build(deps: ApiDeps) -> ApiRole {
    let requests = identity::Requests::new(&deps.metrics);
    let changing = turn::Turn::new(deps.metadata.clone(), deps.turn.clone());
    let shared = Shared {
        deps,
        revisions: read::RevisionCache::default(),
        requests,
        revoked: act::Revoked::default(),
        changing,
    };
    ApiRole { api: Api(Arc::new(shared)) }
}

impl ApiRole {
    /// The routes. Every request needs the [`listener::Peer`] extension that [`listener::serve`] gives it.
    pub fn router(&self) -> axum::Router {
        routes::router(self.api.clone())
    }

    /// Makes the default tenant if it is missing, then serves until the supervisor's token is cancelled.
    pub async fn run(
        self,
        listener: tokio::net::TcpListener,
        tls: Arc<rustls::ServerConfig>,
        supervisor: Supervisor,
    ) -> Result<(), BoxError> {
        self.prepare().await?;
        let ready = self.api.deps.health.role("api");
        ready.ready();
        listener::serve(listener, Some(tls), self.router(), supervisor).await
    }

    /// Makes the default tenant if it is missing.
    pub async fn prepare(&self) -> Result<(), SqlError> {
        let tenant = Tenant { name: TenantName::default_tenant(), memory_quota_mb: 0, created_at: clock::now() };
        match self.api.deps.metadata.insert(&tenant).await {
            Ok(()) | Err(SqlError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
