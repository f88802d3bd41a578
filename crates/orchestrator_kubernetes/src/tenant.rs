//! Namespaces of tenants: made once, with quota, policies and pull credential; the credential is renewed in time. Their end:
//! [`removal`].

pub(crate) mod removal;

use crate::cluster::{Cluster, Verdict, verdict};
use crate::names;
use crate::render::{self, Kind};
use arco_config::KubernetesConfig;
use arco_model::name::TenantName;
use arco_store::clock;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Who gives the credentials by which nodes pull.
pub trait PullCredentials: Send + Sync {
    /// A credential for a tenant's images, good for the given time.
    fn issue(&self, tenant: &TenantName, life: Duration) -> String;
    /// Whether the registry still takes a credential: one of a registry that was set up anew is of no use.
    fn takes(&self, credential: &str) -> bool;
}

/// Life of a pull credential; it is renewed at half of it.
const CREDENTIAL_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// The tenants that have their namespace.
pub(crate) struct Tenants {
    cluster: Cluster,
    config: KubernetesConfig,
    allowed_networks: Vec<Ipv4Net>,
    credentials: Option<Arc<dyn PullCredentials>>,
    /// When each is looked at again.
    known: Mutex<BTreeMap<TenantName, tokio::time::Instant>>,
    making: tokio::sync::Mutex<()>,
}

impl Tenants {
    pub(crate) fn new(
        cluster: Cluster,
        config: KubernetesConfig,
        allowed_networks: Vec<Ipv4Net>,
        credentials: Option<Arc<dyn PullCredentials>>,
    ) -> Self {
        let (known, making) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { cluster, config, allowed_networks, credentials, known, making }
    }

    /// Whether nodes need a credential to pull.
    pub(crate) fn have_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    fn is_known(&self, tenant: &TenantName) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(tenant).is_some_and(|it| *it > tokio::time::Instant::now())
    }

    /// Looks at every tenant again at its next use.
    pub(crate) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Makes what a tenant needs, once. A namespace of that name that is not ours is left alone and refused.
    pub(crate) async fn ensure(&self, tenant: &TenantName) -> Result<(), kube::Error> {
        if self.is_known(tenant) {
            return Ok(());
        }
        let _making = self.making.lock().await;
        if self.is_known(tenant) {
            return Ok(());
        }
        let namespace = names::namespace(&self.config.namespace_prefix, tenant);
        if let Some(found) = self.cluster.get(Kind::Namespace, "", &namespace).await?
            && !self.cluster.is_ours(&found.metadata)
        {
            return Err(foreign(&namespace));
        }
        for object in render::tenant(tenant, &self.config, &self.allowed_networks) {
            let there = match object.kind {
                Kind::Namespace => self.cluster.get(object.kind, "", &object.name).await?,
                kind => self.cluster.get(kind, &namespace, &object.name).await?,
            };
            let applied = there.as_ref().map(|it| crate::seen::convert::word(&it.metadata.annotations, names::APPLIED));
            if applied != Some(object.applied()) {
                self.cluster.apply(&object).await?;
            }
        }
        self.renew(tenant, &namespace).await?;
        let again = tokio::time::Instant::now() + Duration::from_secs(24 * 3600);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), again);
        Ok(())
    }

    async fn renew(&self, tenant: &TenantName, namespace: &str) -> Result<(), kube::Error> {
        let Some(credentials) = &self.credentials else { return Ok(()) };
        let now = clock::now();
        let found = self.cluster.get(Kind::Secret, namespace, names::PULL_SECRET).await?;
        if let Some(found) = found {
            let renew_at: u64 =
                crate::seen::convert::word(&found.metadata.annotations, names::RENEW_AT).parse().unwrap_or_default();
            let held = render::held_credential(&found.data, &self.config.registry);
            if renew_at > now.0 && held.is_some_and(|it| credentials.takes(&it)) {
                return Ok(());
            }
        }
        let half = (CREDENTIAL_LIFE / 2).as_millis() as u64;
        let credential = credentials.issue(tenant, CREDENTIAL_LIFE);
        self.cluster.apply(&render::pull_secret(tenant, &self.config, &credential, now.plus_ms(half))).await?;
        Ok(())
    }
}

fn foreign(namespace: &str) -> kube::Error {
    let message = format!(
        "the namespace `{namespace}` exists and is not of this platform: delete or rename it, or set another `kubernetes.namespace_prefix`"
    );
    let status = kube::core::Status::failure(&message, "Forbidden").with_code(403);
    debug_assert_eq!(verdict(&kube::Error::Api(Box::new(status.clone()))), Verdict::Refused);
    kube::Error::Api(Box::new(status))
}
