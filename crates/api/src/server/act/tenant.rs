//! What changes of a tenant, and its end: only one in which nothing is left that somebody could miss. What it has around its
//! components, as a namespace of a cluster, the controller removes when its row is gone.

use super::super::Api;
use super::super::error::ApiError;
use super::super::rules;
use crate::wire::{ChangeTenant, TenantRemoval};
use arco_model::application::{Application, Tenant};
use arco_model::component::Component;
use arco_model::credential::GitCredential;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::RowId;
use arco_model::job::{JobRequest, Topic};
use arco_model::name::TenantName;
use arco_mq::QueueError;
use arco_store::clock;
use arco_store::sql::{Batch, CertificateRow, Query, VolumeRow};
use std::time::Duration;

/// How long a deletion waits until the controller has removed what it can.
const PATIENCE: Duration = Duration::from_secs(20);

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
    pub(in super::super) async fn delete_tenant(&self, tenant: &TenantName) -> Result<TenantRemoval, ApiError> {
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
            let message =
                format!("tenant `{tenant}` has {}", shown(applications.len(), components.len(), volumes.len()));
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
        // One that is made anew under this name is not this one.
        self.deps.images.forget_sent(tenant).await?;
        turn.metadata().commit(batch).await?;
        drop(turn);
        Ok(TenantRemoval { left: self.left_of(tenant).await })
    }

    /// What stays of a deleted tenant around its components, and why. It is deleted whatever happens here: the controller looks
    /// by itself, too.
    async fn left_of(&self, tenant: &TenantName) -> Option<String> {
        match self.deps.orchestrator.tenants().await {
            Ok(there) if !there.contains(tenant) => return None,
            Ok(_) => {}
            Err(error) => return Some(format!("what runs around its components is removed later: {error}")),
        }
        match tokio::time::timeout(PATIENCE, self.removed(tenant)).await {
            Ok(Ok(left)) => left,
            Ok(Err(error)) => Some(format!("what runs around its components is removed later: {error}")),
            Err(_) => Some("what runs around its components is removed when the controller comes to it".to_owned()),
        }
    }

    /// Lets the controller remove what it can; returns what it says of the rest.
    async fn removed(&self, tenant: &TenantName) -> Result<Option<String>, QueueError> {
        let (queue, unique) = (&self.deps.queue, clock::fresh::<RowId>());
        let (key, dedup_id) = (Tenant::removal_key(tenant), unique.to_string());
        queue.enqueue(JobRequest { topic: Topic::Controller, key, dedup_id }, None).await?;
        queue.passed(Topic::Controller).await?;
        let found = queue.kv().get(&format!("{}{tenant}", Tenant::LEFT)).await;
        let found = found.map_err(|source| QueueError::Store { step: "read what is left of a tenant", source })?;
        Ok(found.map(|it| String::from_utf8_lossy(&it.value).into_owned()))
    }
}

/// What is in a tenant, in words. Components stand for themselves only where their application is gone.
fn shown(applications: usize, components: usize, volumes: usize) -> String {
    let counted = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    };
    let components = if applications == 0 { components } else { 0 };
    let parts = [counted(applications, "application"), counted(components, "component"), counted(volumes, "volume")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_tenant_is_named_as_it_is() {
        for ((applications, components, volumes), wanted) in [
            ((1, 2, 0), "1 application"),
            ((2, 0, 1), "2 applications and 1 volume"),
            ((0, 1, 0), "1 component"),
            ((0, 0, 3), "3 volumes"),
        ] {
            assert_eq!(shown(applications, components, volumes), wanted);
        }
    }
}
