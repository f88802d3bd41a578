//! What changes of a tenant, and its end: only one in which nothing is left that somebody could miss.

use super::super::Api;
use super::super::error::ApiError;
use super::super::rules;
use crate::wire::ChangeTenant;
use arco_model::application::{Application, Tenant};
use arco_model::component::Component;
use arco_model::credential::GitCredential;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::TenantName;
use arco_store::sql::{Batch, CertificateRow, Query, VolumeRow};

impl Api {
    /// Changes the quota. What runs goes on when it asks for more; it only cannot grow any more.
    pub(in super::super) async fn change_tenant(
        &self,
        tenant: &TenantName,
        request: &ChangeTenant,
    ) -> Result<Tenant, ApiError> {
        let turn = self.changing.lock().await?;
        let quota = |it: &mut Tenant| match request.memory_quota_mb {
            Some(asked) if asked != it.memory_quota_mb => {
                it.memory_quota_mb = asked;
                true
            }
            _ => false,
        };
        let changed = turn.metadata().modify::<Tenant>(tenant.as_str(), quota).await?;
        changed.ok_or_else(|| Problem::not_found("tenant", tenant).into())
    }

    /// Memory that all instances of a tenant ask for now, in MiB, as its quota counts it.
    pub(in super::super) async fn memory_asked_mb(&self, tenant: &TenantName) -> Result<u64, ApiError> {
        let components = self.deps.metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items;
        Ok(components.iter().map(|it| rules::memory_asked_mb(&it.value)).sum())
    }

    /// Deletes a tenant without applications and volumes, with its credentials and certificates.
    pub(in super::super) async fn delete_tenant(&self, tenant: &TenantName) -> Result<(), ApiError> {
        let turn = self.changing.lock().await?;
        let metadata = &self.deps.metadata;
        let found = metadata.get::<Tenant>(tenant.as_str()).await?;
        let found = found.ok_or_else(|| Problem::not_found("tenant", tenant))?;
        if *tenant == TenantName::default_tenant() {
            let message = format!("tenant `{tenant}` is the platform's own");
            return Err(Problem::new(ErrorKind::Conflict, "tenant_in_use", message, "it stays; delete others").into());
        }
        let applications = metadata.list::<Application>(&Query::parent(tenant.as_str())).await?.items;
        let components = metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items;
        let volumes = metadata.list::<VolumeRow>(&Query::tag(tenant.as_str())).await?.items;
        if !applications.is_empty() || !components.is_empty() || !volumes.is_empty() {
            let (applications, volumes) = (applications.len(), volumes.len());
            let message = format!("tenant `{tenant}` has {applications} applications and {volumes} volumes");
            let advice = format!(
                "`arco --tenant {tenant} list` and `volume list` show them; `delete` and `volume delete` delete them first"
            );
            return Err(Problem::new(ErrorKind::Conflict, "tenant_in_use", message, advice).into());
        }
        let mut batch = Batch::default();
        for credential in metadata.list::<GitCredential>(&Query::parent(tenant.as_str())).await?.items {
            batch.delete(&credential);
        }
        for certificate in metadata.list::<CertificateRow>(&Query::parent(tenant.as_str())).await?.items {
            batch.delete(&certificate);
        }
        batch.delete(&found);
        Ok(turn.metadata().commit(batch).await?)
    }
}
