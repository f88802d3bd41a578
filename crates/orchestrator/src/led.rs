//! An orchestrator that acts only while its user leads.
//!
//! What must hold: nothing is begun, changed or ended once the user does not lead any more; looking is always allowed.
//! What is under way then goes on until whoever began it ends it, as the controller does with the runs of cron components.

use crate::{
    Connection, Error, ExecRequest, ExecSession, OneShotResult, Orchestrator, OutputLine, Removal, SharedOrchestrator,
    Usage,
};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::TenantName;
use arco_model::observed::Observed;
use arco_model::plan::{OneShot, WorkloadPlan};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot};

/// The orchestrator as a leader sees it.
pub struct LedOrchestrator {
    inner: SharedOrchestrator,
    leads: Box<dyn Fn() -> bool + Send + Sync>,
}

impl LedOrchestrator {
    /// Acts through `inner` as long as `leads` says so.
    pub fn new(inner: SharedOrchestrator, leads: impl Fn() -> bool + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { inner, leads: Box::new(leads) })
    }

    fn acting(&self, step: &str) -> Result<&SharedOrchestrator, Error> {
        match (self.leads)() {
            true => Ok(&self.inner),
            false => Err(Error::failed(step, "another server leads now")),
        }
    }
}

#[async_trait]
impl Orchestrator for LedOrchestrator {
    async fn apply(&self, plan: &WorkloadPlan) -> Result<(), Error> {
        self.acting("apply a plan")?.apply(plan).await
    }

    async fn remove(&self, component: &ComponentId, what: &Removal) -> Result<(), Error> {
        self.acting("remove a component")?.remove(component, what).await
    }

    async fn observe(&self, component: &ComponentId) -> Result<Observed, Error> {
        self.inner.observe(component).await
    }

    async fn components(&self) -> Result<Vec<ComponentId>, Error> {
        self.inner.components().await
    }

    fn changes(&self) -> broadcast::Receiver<ComponentId> {
        self.inner.changes()
    }

    async fn release(&self, instance: &InstanceId) -> Result<(), Error> {
        self.acting("let go of an instance")?.release(instance).await
    }

    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error> {
        self.acting("run a one-shot workload")?.run(workload, output, cancel).await
    }

    async fn attach(&self, workload: &OneShot, terminal: Option<(u16, u16)>) -> Result<ExecSession, Error> {
        self.acting("run a one-off instance")?.attach(workload, terminal).await
    }

    async fn exec(&self, instance: &InstanceId, request: ExecRequest) -> Result<ExecSession, Error> {
        self.inner.exec(instance, request).await
    }

    async fn connect(&self, instance: &InstanceId, port: u16) -> Result<Connection, Error> {
        self.inner.connect(instance, port).await
    }

    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error> {
        self.inner.usage(instance).await
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantName>, Error> {
        self.inner.tenants().await
    }

    async fn remove_tenant(&self, tenant: &TenantName) -> Result<Option<String>, Error> {
        self.acting("remove a tenant")?.remove_tenant(tenant).await
    }

    async fn shutdown(&self, stop_instances: bool) -> Result<(), Error> {
        self.inner.shutdown(stop_instances).await
    }
}
