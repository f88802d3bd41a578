//! Takes away what a deleted tenant has beside its components: on a cluster, its namespace.
//!
//! What must hold: only rows say which tenants there are, and they are read again right before something goes; a removal that
//! was cut off, also by the end of this process, is done by the next look. What stays, and why, is told under
//! [`Tenant::LEFT`] before the job that asked for it is done. Not here: what may go (the driver knows what of it is others').

use crate::{Controller, ReconcileError, pause};
use arco_daemon::{BoxError, CancellationToken};
use arco_model::application::Tenant;
use arco_model::name::TenantName;
use std::time::Duration;

/// How often to look although no job said so; the first time at once.
const PERIOD: Duration = Duration::from_secs(60);

impl Controller {
    /// Looks from time to time.
    pub(crate) async fn forget_tenants(self, token: CancellationToken) -> Result<(), BoxError> {
        while !token.is_cancelled() {
            let look = token.run_until_cancelled(self.forget_left_tenants()).await;
            if let Some(Err(error)) = look {
                tracing::warn!(error = %error.chain(), "what deleted tenants left is looked for again");
            }
            pause(&token, PERIOD).await;
        }
        Ok(())
    }

    async fn forget_left_tenants(&self) -> Result<(), ReconcileError> {
        for tenant in self.deps.orchestrator.tenants().await? {
            self.forget_tenant(&tenant).await;
        }
        Ok(())
    }

    /// Removes what is left of a tenant, if it is deleted, and tells what stays.
    pub(crate) async fn forget_tenant(&self, tenant: &TenantName) {
        if let Err(error) = self.try_forget_tenant(tenant).await {
            tracing::warn!(%tenant, error = %error.chain(), "what a deleted tenant left is not removed now; it is tried again");
        }
    }

    async fn try_forget_tenant(&self, tenant: &TenantName) -> Result<(), ReconcileError> {
        let there = self.deps.metadata.get::<Tenant>(tenant.as_str()).await?.is_some();
        if there || *tenant == TenantName::default_tenant() {
            return Ok(());
        }
        let key = format!("{}{tenant}", Tenant::LEFT);
        let removed = self.deps.orchestrator.remove_tenant(tenant).await;
        let left = match &removed {
            Ok(left) => left.clone(),
            Err(error) => Some(format!("{error}; it is tried again")),
        };
        match left {
            Some(left) => {
                self.deps.kv.put(&key, left.into_bytes(), None).await?;
            }
            None => self.deps.kv.delete(&key).await?,
        }
        let left = removed?;
        tracing::info!(%tenant, left, "what a deleted tenant had is removed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::World;
    use arco_model::time::Timestamp;
    use arco_orchestrator::Orchestrator as _;

    #[tokio::test]
    async fn only_what_has_no_row_goes_and_what_stays_is_told() {
        let world = World::new();
        let (controller, orchestrator) = (&world.controller, &world.orchestrator);
        let name = |it: &str| it.parse::<TenantName>().unwrap();
        let tenant = Tenant { name: name("there"), memory_quota_mb: 0, created_at: Timestamp(1) };
        controller.deps.metadata.insert(&tenant).await.unwrap();
        for (tenant, stays) in
            [("there", None), ("default", None), ("gone", None), ("half", Some("the namespace stays"))]
        {
            orchestrator.has_tenant(&name(tenant), stays);
        }
        let left = async |tenant: &str| {
            let found = controller.deps.kv.get(&format!("{}{tenant}", Tenant::LEFT)).await.unwrap();
            found.map(|it| String::from_utf8(it.value).unwrap())
        };

        world.rows.take_away(true);
        controller.forget_left_tenants().await.unwrap();
        assert_eq!(orchestrator.tenants().await.unwrap().len(), 4, "nobody knows which have rows");

        world.rows.take_away(false);
        controller.forget_left_tenants().await.unwrap();
        let there: Vec<TenantName> = orchestrator.tenants().await.unwrap().into_iter().collect();
        assert_eq!(there, [name("default"), name("there")]);
        assert_eq!((left("gone").await, left("half").await), (None, Some("the namespace stays".to_owned())));

        // Made again and deleted again, without anything of others.
        orchestrator.has_tenant(&name("half"), None);
        controller.forget_tenant(&name("half")).await;
        assert_eq!(left("half").await, None);
    }
}
