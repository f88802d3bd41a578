//! Publishes what the data plane knows: hosts, upstreams and names, one KV key each.
//!
//! Only what changed is written, so that a look at a healthy component costs no write.

use arco_model::component::{Component, Revision};
use arco_model::id::ComponentId;
use arco_model::observed::{InstancePhase, Observed};
use arco_model::status::Status;
use arco_model::traffic::{
    Endpoint, HOSTS, HostEntry, NAMES, NameEntry, PathRule, UPSTREAMS, UpstreamEntry, UpstreamState,
};
use arco_store::kv::{KvError, Operation, Range, SharedKv, Txn};
use arco_store::sql::{Query, RouteRow, SharedMetadata, SqlError};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::Mutex;

/// Why publishing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("failed to write a routing entry as JSON")]
    Json(#[from] serde_json::Error),
}

#[derive(Default)]
struct Published {
    /// Every key below `/gateway/` with its value and the revision that it was written at.
    keys: BTreeMap<String, (Vec<u8>, u64)>,
    /// Hosts that lead to each component, by default host or by a route.
    default_hosts: BTreeMap<String, PathRule>,
}

/// The only writer of the data plane's keys.
pub(crate) struct Publisher {
    kv: SharedKv,
    metadata: SharedMetadata,
    domain: String,
    published: Mutex<Published>,
}

impl Publisher {
    pub(crate) fn new(kv: SharedKv, metadata: SharedMetadata, domain: String) -> Self {
        Self { kv, metadata, domain, published: Mutex::default() }
    }

    /// Reads what was published before this process began.
    pub(crate) async fn load(&self) -> Result<(), PublishError> {
        let mut published = self.published.lock().await;
        for prefix in [HOSTS, UPSTREAMS, NAMES] {
            for item in self.kv.list(prefix).await?.items {
                let key = String::from_utf8_lossy(&item.key).into_owned();
                published.keys.insert(key, (item.value, item.mod_revision));
            }
        }
        Ok(())
    }

    /// Publishes a component as it is now. Returns the KV revision that says so to the gateways.
    pub(crate) async fn publish(
        &self,
        component: &Component,
        revision: Option<&Revision>,
        observed: &Observed,
        status: Status,
    ) -> Result<u64, PublishError> {
        let mut published = self.published.lock().await;
        let upstream = upstream(component, observed, status);
        let mut newest = self.put(&mut published, format!("{UPSTREAMS}{}", component.id), &upstream).await?;
        let name_key = format!("{NAMES}{}", component.id);
        match observed.address {
            Some(address) => {
                let name = NameEntry {
                    tenant: component.tenant.clone(),
                    application: component.application.clone(),
                    component: component.name.clone(),
                    address,
                    instances: observed.instances.iter().filter_map(|it| it.address).collect(),
                    may_call: Vec::new(),
                };
                newest = newest.max(self.put(&mut published, name_key, &name).await?);
            }
            None => self.delete(&mut published, &name_key).await?,
        }
        let hosts = component.default_hosts(&self.domain);
        match revision.and_then(|it| it.first_outer_http_port()) {
            Some(port) => {
                let rule = PathRule { prefix: "/".to_owned(), component: component.id.clone(), port: port.port };
                published.default_hosts.extend(hosts.iter().map(|it| (it.clone(), rule.clone())));
            }
            None => hosts.iter().for_each(|it| drop(published.default_hosts.remove(it))),
        }
        newest = newest.max(self.hosts(&mut published, &component.id, hosts.into()).await?);
        Ok(newest)
    }

    /// Takes everything of a component away.
    pub(crate) async fn withdraw(&self, component: &ComponentId) -> Result<(), PublishError> {
        let mut published = self.published.lock().await;
        self.delete(&mut published, &format!("{UPSTREAMS}{component}")).await?;
        self.delete(&mut published, &format!("{NAMES}{component}")).await?;
        published.default_hosts.retain(|_, rule| rule.component != *component);
        self.hosts(&mut published, component, Vec::new()).await.map(drop)
    }

    /// Writes every host that leads, or led, to a component.
    async fn hosts(
        &self,
        published: &mut Published,
        component: &ComponentId,
        defaults: Vec<String>,
    ) -> Result<u64, PublishError> {
        let routes = self.metadata.list::<RouteRow>(&Query::default()).await?.items;
        let mut hosts: BTreeSet<String> = defaults.into_iter().collect();
        hosts.extend(routes.iter().filter(|it| it.value.component_id == *component).map(|it| it.value.host.clone()));
        for (key, (value, _)) in published.keys.range(HOSTS.to_owned()..).take_while(|(key, _)| key.starts_with(HOSTS))
        {
            let names_it = serde_json::from_slice::<HostEntry>(value)
                .is_ok_and(|it| it.rules.iter().any(|rule| rule.component == *component));
            if names_it {
                hosts.insert(key[HOSTS.len()..].to_owned());
            }
        }
        let mut newest = 0;
        for host in hosts {
            let mut rules: Vec<PathRule> = routes
                .iter()
                .filter(|it| it.value.host == host)
                .map(|it| PathRule {
                    prefix: it.value.prefix.clone(),
                    component: it.value.component_id.clone(),
                    port: it.value.port,
                })
                .collect();
            // A route that a person wrote for `/` wins over the default host.
            if let Some(default) = published.default_hosts.get(&host)
                && rules.iter().all(|it| it.prefix != "/")
            {
                rules.push(default.clone());
            }
            rules.sort_by(|a, b| a.prefix.cmp(&b.prefix));
            let key = format!("{HOSTS}{host}");
            if rules.is_empty() {
                self.delete(published, &key).await?;
            } else {
                newest = newest.max(self.put(published, key, &HostEntry { host, rules }).await?);
            }
        }
        Ok(newest)
    }

    async fn put(&self, published: &mut Published, key: String, value: &impl Serialize) -> Result<u64, PublishError> {
        let value = serde_json::to_vec(value)?;
        if let Some((old, revision)) = published.keys.get(&key)
            && *old == value
        {
            return Ok(*revision);
        }
        let revision = self.kv.put(&key, value.clone(), None).await?;
        published.keys.insert(key, (value, revision));
        Ok(revision)
    }

    async fn delete(&self, published: &mut Published, key: &str) -> Result<(), PublishError> {
        if published.keys.contains_key(key) {
            let success = vec![Operation::Delete(Range::Key(key.as_bytes().to_vec()))];
            self.kv.txn(Txn { success, ..Txn::default() }).await?;
            published.keys.remove(key);
        }
        Ok(())
    }
}

/// The upstream of a component. Pure.
fn upstream(component: &Component, observed: &Observed, status: Status) -> UpstreamEntry {
    let state = match status {
        Status::Stopped | Status::Stopping => UpstreamState::Stopped,
        Status::Undeployed | Status::Building | Status::Starting => UpstreamState::Starting,
        Status::Abnormal | Status::BuildFailed => UpstreamState::Abnormal,
        Status::Running | Status::Degraded | Status::Upgrading | Status::Succeeded => UpstreamState::Up,
    };
    let endpoint = |it: &arco_model::observed::InstanceFacts| {
        let draining = match it.phase {
            InstancePhase::Ready => false,
            InstancePhase::Draining => true,
            _ => return None,
        };
        it.address.map(|address| Endpoint { instance: it.id.clone(), address, draining })
    };
    let mut endpoints: Vec<_> = observed.instances.iter().filter_map(endpoint).collect();
    endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
    UpstreamEntry { component: component.id.clone(), reference: component.reference(), state, endpoints }
}
