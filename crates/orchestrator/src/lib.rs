//! Runs workloads: the fourth seam. Drivers: [`local`] (our own OCI containers), and the crate `orchestrator_kubernetes`;
//! fake: [`fake`].
//!
//! An orchestrator is asked declaratively: [`Orchestrator::apply`] hands over a plan, the driver works until what runs
//! is as asked, and [`Orchestrator::observe`] tells facts. It judges nothing; `model::status` does.

#[cfg(feature = "contract")]
pub mod contract;
pub mod fake;
pub mod layer;
mod led;
pub mod local;
pub mod one_off;
mod storage;

pub use led::LedOrchestrator;
pub use storage::{SharedStorage, Storage, Telling};

use arco_model::artifact::Layer;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::{TenantName, VolumeName};
use arco_model::observed::{ExitFacts, Observed};
use arco_model::plan::{OneShot, WorkloadPlan};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

/// A shared orchestrator.
pub type SharedOrchestrator = Arc<dyn Orchestrator>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The component or instance is not known.
    #[error("{0} is not known to the orchestrator")]
    NotFound(String),
    /// The machine or cluster cannot do it; the text says what to do.
    #[error("{0}")]
    Refused(String),
    /// This driver has no such ability.
    #[error("the orchestrator cannot {0}")]
    Unsupported(&'static str),
    /// A step failed.
    #[error("failed to {step}: {cause}")]
    Failed {
        /// What was tried.
        step: String,
        /// Why not.
        cause: String,
    },
}

impl Error {
    /// A failed step with its cause.
    pub fn failed(step: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Failed { step: step.into(), cause: cause.to_string() }
    }
}

/// A line that a one-shot workload wrote, without its line end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutputLine {
    /// Whether it came from standard error.
    pub stderr: bool,
    /// Text; bytes that are not UTF-8 were replaced, very long lines cut at 16 KiB.
    pub text: String,
}

/// How a one-shot workload ended.
#[derive(Clone, Debug)]
pub struct OneShotResult {
    /// Exit status and why.
    pub exit: ExitFacts,
    /// Whether its time limit ended it.
    pub timed_out: bool,
    /// What it wrote, when an export was asked and it ended with 0.
    pub layer: Option<Layer>,
}

/// What to run inside an instance.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whether it gets a terminal, and its size (columns, rows).
    pub terminal: Option<(u16, u16)>,
}

/// A program that runs inside an instance.
pub struct ExecSession {
    /// Its standard input.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its standard output (with a terminal: all output).
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; empty with a terminal.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// New sizes of the terminal (columns, rows).
    pub resize: mpsc::Sender<(u16, u16)>,
    /// Exit status, once. Dropping the session ends the program.
    pub exit: oneshot::Receiver<i32>,
}

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a port inside an instance; dropping it ends it.
pub struct Connection {
    /// Its bytes.
    pub stream: Box<dyn Duplex>,
    /// Why it ended, when it did not end by itself.
    pub failure: oneshot::Receiver<String>,
}

/// What an instance uses now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// CPU time since its start, in ms.
    pub cpu_ms: u64,
    /// Memory, in bytes (without page cache that can be dropped).
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// What of a component is to go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Removal {
    /// Its instances and its volumes with their content.
    Everything,
    /// Its instances; volumes stay.
    KeepVolumes,
    /// One volume with its content, of a component that has no instances any more.
    Volume(VolumeName),
}

impl Removal {
    /// The removal of a component whose volumes are to stay or not.
    pub fn of_component(keep_volumes: bool) -> Self {
        if keep_volumes { Self::KeepVolumes } else { Self::Everything }
    }
}

/// The seam.
#[async_trait]
pub trait Orchestrator: Send + Sync + 'static {
    /// Asks for a plan; returns when it is taken over, not when it is reached. The same plan again does nothing. Facts speak of
    /// it at once; the bell need not ring for that.
    async fn apply(&self, plan: &WorkloadPlan) -> Result<(), Error>;
    /// Ends and deletes of a component what is asked; returns when it is gone, and without an error when it was not
    /// there. Rings only when something was there. Who waits no longer drops the call and asks again later: what is ending ends.
    async fn remove(&self, component: &ComponentId, what: &Removal) -> Result<(), Error>;
    /// Facts about one component; empty facts when it is not known.
    async fn observe(&self, component: &ComponentId) -> Result<Observed, Error>;
    /// Every component of which something exists.
    async fn components(&self) -> Result<Vec<ComponentId>, Error>;
    /// A bell: components whose facts changed. A receiver that lagged must look at all.
    fn changes(&self) -> broadcast::Receiver<ComponentId>;
    /// Every gateway has let go of a draining instance: it may be ended now, before its drain time is over.
    async fn release(&self, instance: &InstanceId) -> Result<(), Error>;
    /// Runs a workload to its end. Output goes to `output`; when `cancel` is dropped or fires, the workload is ended.
    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error>;
    /// Runs a workload with its input and output connected, at a terminal (columns, rows) when one is given; neither
    /// `export` nor the lines of [`Orchestrator::run`]. Dropping the session ends it; its exit is told when nothing of it
    /// is left.
    async fn attach(&self, _workload: &OneShot, _terminal: Option<(u16, u16)>) -> Result<ExecSession, Error> {
        Err(Error::Unsupported("connect the input of a program that runs in an instance of its own"))
    }
    /// Runs a program inside an instance.
    async fn exec(&self, instance: &InstanceId, request: ExecRequest) -> Result<ExecSession, Error>;
    /// Connects to a TCP port inside an instance, where its programs see `127.0.0.1`.
    async fn connect(&self, instance: &InstanceId, port: u16) -> Result<Connection, Error>;
    /// What an instance uses now.
    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error>;
    /// Tenants that have something here beside their components.
    async fn tenants(&self) -> Result<BTreeSet<TenantName>, Error> {
        Ok(BTreeSet::new())
    }
    /// Removes what a tenant has here beside its components, which are gone; may be done again. Says what stays, and why.
    async fn remove_tenant(&self, _tenant: &TenantName) -> Result<Option<String>, Error> {
        Ok(None)
    }
    /// Ends everything: instances too when `stop_instances`. Afterwards nothing of this driver runs in this process.
    async fn shutdown(&self, stop_instances: bool) -> Result<(), Error>;
}
