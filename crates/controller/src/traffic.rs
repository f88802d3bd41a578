//! Publishes what the data plane knows: hosts, upstreams and names, one KV key each.
//!
//! Only what changed is written, so that a look at a healthy component costs no write.

mod rows;
mod stream;

use crate::acme::{Next, next};
use arco_daemon::certificate::covers;
use arco_model::component::{Component, Revision};
use arco_model::id::{ComponentId, RowId};
use arco_model::name::TenantName;
use arco_model::observed::{InstancePhase, Observed};
use arco_model::route::{Answer, CHALLENGE_PREFIX, PathMatch, Route, Target, UpstreamTarget};
use arco_model::spec::Protocol;
use arco_model::status::Status;
use arco_model::time::Timestamp;
use arco_model::traffic::{
    CERTIFICATES, CHALLENGES, CertificateEntry, Endpoint, GATEWAY_KEYS, HOSTS, HostEntry, HostTls, NAMES, NameEntry,
    STREAMS, UPSTREAMS, UpstreamEntry, UpstreamState, certificate_context,
};
use arco_store::clock;
use arco_store::kv::{KvError, Operation, Range, SharedKv, Txn};
use arco_store::secrets::{Sealed, SecretBox, SecretError};
use arco_store::sql::{CertificateRow, Query, RouteRow, SharedMetadata, SqlError};
use rows::{Rows, Wanted, wanted};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::{Mutex, Notify};

/// Why publishing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("failed to write a routing entry as JSON")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("failed to make the gateways' keys: {0}")]
    Keys(&'static str),
}

#[derive(Default)]
struct Published {
    /// Every key below `/gateway/` with its value and the revision that it was written at.
    keys: BTreeMap<String, (Vec<u8>, u64)>,
    /// Hosts that lead to a component by their name.
    default_hosts: BTreeMap<String, (TenantName, UpstreamTarget)>,
    /// Hosts whose entry names a component.
    leads: HashMap<ComponentId, BTreeSet<String>>,
    /// Hosts that have a route of a component, whomever that leads to.
    owns: HashMap<ComponentId, BTreeSet<String>>,
    /// Hosts that are served with a certificate.
    serves: HashMap<RowId, BTreeSet<String>>,
    /// Where each host stands in the three above.
    named: HashMap<String, Named>,
}

/// Whom the entry of a host names.
#[derive(Default)]
struct Named {
    leads: Vec<ComponentId>,
    owns: Vec<ComponentId>,
    serves: Option<RowId>,
}

impl Published {
    /// Whose a host is that has these routes.
    fn tenant<'a>(&'a self, host: &str, routes: &'a [RouteRow]) -> Option<&'a TenantName> {
        routes.first().map(|it| &it.tenant).or_else(|| self.default_hosts.get(host).map(|it| &it.0))
    }

    /// Remembers whom the entry of a host names; `None` when it has none any more.
    fn note(&mut self, host: &str, entry: Option<&HostEntry>, owners: &[ComponentId]) {
        let before = self.named.remove(host).unwrap_or_default();
        before.leads.iter().for_each(|id| take_out(&mut self.leads, id, host));
        before.owns.iter().for_each(|id| take_out(&mut self.owns, id, host));
        // A certificate stays though no host is served with it any more: its entry goes with the next change.
        if let Some(hosts) = before.serves.and_then(|id| self.serves.get_mut(&id)) {
            hosts.remove(host);
        }
        let now = Named {
            leads: entry.iter().flat_map(|it| it.callees()).map(|it| it.component.clone()).collect(),
            owns: owners.to_vec(),
            serves: entry.and_then(|it| it.tls.certificate.clone()),
        };
        if now.leads.is_empty() && now.owns.is_empty() && now.serves.is_none() {
            return;
        }
        for id in &now.leads {
            self.leads.entry(id.clone()).or_default().insert(host.to_owned());
        }
        for id in &now.owns {
            self.owns.entry(id.clone()).or_default().insert(host.to_owned());
        }
        if let Some(id) = &now.serves {
            self.serves.entry(id.clone()).or_default().insert(host.to_owned());
        }
        self.named.insert(host.to_owned(), now);
    }
}

fn take_out(places: &mut HashMap<ComponentId, BTreeSet<String>>, id: &ComponentId, host: &str) {
    if let Some(hosts) = places.get_mut(id) {
        hosts.remove(host);
        if hosts.is_empty() {
            places.remove(id);
        }
    }
}

/// `/acme/proofs/<host>` → what proves it over plain HTTP, [`HttpProof`]: whichever controller publishes the host, its
/// gateways answer.
const PROOFS: &str = "/acme/proofs/";

#[derive(Serialize, Deserialize)]
struct HttpProof {
    path: String,
    answer: String,
}

/// What proves a host to the authority that issues certificates.
pub(crate) enum Proof {
    /// HTTP-01 (RFC 8555 §8.3).
    Http {
        /// Last part of the path that is asked for.
        token: String,
        /// What is answered.
        answer: String,
    },
    /// TLS-ALPN-01 (RFC 8737): a certificate that says it.
    Tls {
        /// The certificate (PEM).
        chain_pem: String,
        /// Its key (PEM).
        key_pem: String,
    },
}

/// The only writer of the data plane's keys.
pub(crate) struct Publisher {
    kv: SharedKv,
    metadata: SharedMetadata,
    secrets: Arc<SecretBox>,
    domain: String,
    published: Mutex<Published>,
    /// Rung when a host wants a certificate that is not there, or is to be renewed.
    wanted: Notify,
}

impl Publisher {
    pub(crate) fn new(kv: SharedKv, metadata: SharedMetadata, secrets: Arc<SecretBox>, domain: String) -> Self {
        Self { kv, metadata, secrets, domain, published: Mutex::default(), wanted: Notify::new() }
    }

    /// Reads what was published before this process began.
    pub(crate) async fn load(&self) -> Result<(), PublishError> {
        let mut published = self.published.lock().await;
        let mut leads_nowhere = Vec::new();
        for prefix in [HOSTS, UPSTREAMS, NAMES, CERTIFICATES, CHALLENGES, STREAMS] {
            for item in self.kv.list(prefix).await?.items {
                let key = String::from_utf8_lossy(&item.key).into_owned();
                if let Some(host) = key.strip_prefix(HOSTS)
                    && let Ok(entry) = serde_json::from_slice::<HostEntry>(&item.value)
                {
                    published.note(host, Some(&entry), &[]);
                    if entry.callees().next().is_none() {
                        leads_nowhere.push(host.to_owned());
                    }
                    if let (Some(tenant), Some(target)) = (entry.tenant, entry.default) {
                        published.default_hosts.insert(host.to_owned(), (tenant, target));
                    }
                }
                // One that no host is served with any more goes with the next change.
                if let Some(id) = key.strip_prefix(CERTIFICATES).and_then(|it| it.parse::<RowId>().ok()) {
                    published.serves.entry(id).or_default();
                }
                published.keys.insert(key, (item.value, item.mod_revision));
            }
        }
        // No component would bring these up when their last route is gone.
        self.write_hosts(&mut published, &leads_nowhere, None).await.map(drop)
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
        let upstream = upstream(component, revision, observed, status);
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
                let target = UpstreamTarget { component: component.id.clone(), port: port.port };
                let target = (component.tenant.clone(), target);
                published.default_hosts.extend(hosts.iter().map(|it| (it.clone(), target.clone())));
            }
            None => hosts.iter().for_each(|it| drop(published.default_hosts.remove(it))),
        }
        newest = newest.max(self.hosts(&mut published, &component.id, hosts.into(), false).await?);
        newest = newest.max(self.streams(&mut published, &component.id, false).await?);
        Ok(newest)
    }

    /// Returns when a host wants an automatic certificate.
    pub(crate) async fn certificate_wanted(&self) {
        self.wanted.notified().await;
    }

    /// Publishes what proves `host`, or takes it away. Returns the KV revision that gateways must have applied.
    pub(crate) async fn prove(&self, host: &str, proof: Option<Proof>) -> Result<u64, PublishError> {
        let mut published = self.published.lock().await;
        let tls_key = format!("{CHALLENGES}{host}");
        match proof {
            Some(Proof::Tls { chain_pem, key_pem }) => {
                let sealed = self.gateway_keys()?.seal(&certificate_context(host), key_pem.as_bytes())?;
                let (key_id, sealed_key) = (sealed.key_id, sealed.text);
                let entry = CertificateEntry { issued_at: Timestamp::default(), chain_pem, key_id, sealed_key };
                return self.put(&mut published, tls_key, &entry).await;
            }
            Some(Proof::Http { token, answer }) => {
                let proof = HttpProof { path: format!("{CHALLENGE_PREFIX}{token}"), answer };
                self.kv.put(&format!("{PROOFS}{host}"), serde_json::to_vec(&proof)?, None).await?;
            }
            None => {
                // Also what another controller left.
                published.keys.remove(&tls_key);
                let gone = [tls_key, format!("{PROOFS}{host}")];
                let gone = gone.map(|it| Operation::Delete(Range::Key(it.into_bytes())));
                self.kv.txn(Txn { success: gone.into(), ..Txn::default() }).await?;
            }
        }
        self.write_hosts(&mut published, &[host.to_owned()], None).await
    }

    fn gateway_keys(&self) -> Result<SecretBox, PublishError> {
        SecretBox::parse(&self.secrets.derive(GATEWAY_KEYS)).map_err(PublishError::Keys)
    }

    /// Takes everything of a component away.
    pub(crate) async fn withdraw(&self, component: &ComponentId) -> Result<(), PublishError> {
        let mut published = self.published.lock().await;
        self.delete(&mut published, &format!("{UPSTREAMS}{component}")).await?;
        self.delete(&mut published, &format!("{NAMES}{component}")).await?;
        published.default_hosts.retain(|_, it| it.1.component != *component);
        self.streams(&mut published, component, true).await?;
        self.hosts(&mut published, component, Vec::new(), true).await.map(drop)
    }

    /// Writes every host that leads, or led, to a component. One that is `leaving` counts as gone.
    async fn hosts(
        &self,
        published: &mut Published,
        component: &ComponentId,
        defaults: Vec<String>,
        leaving: bool,
    ) -> Result<u64, PublishError> {
        let own = self.metadata.list::<RouteRow>(&Query::tag(component.as_str())).await?.items;
        let mut hosts: BTreeSet<String> = defaults.into_iter().collect();
        hosts.extend(own.into_iter().map(|it| it.value.host));
        hosts.extend(published.leads.get(component).into_iter().flatten().cloned());
        hosts.extend(published.owns.get(component).into_iter().flatten().cloned());
        let hosts: Vec<String> = hosts.into_iter().collect();
        let newest = self.write_hosts(published, &hosts, leaving.then_some(component)).await?;
        let unused: Vec<_> = published.serves.iter().filter(|it| it.1.is_empty()).map(|it| it.0.clone()).collect();
        for id in unused {
            self.delete(published, &format!("{CERTIFICATES}{id}")).await?;
            published.serves.remove(&id);
        }
        Ok(newest)
    }

    /// Writes hosts as they are now, each after its certificate.
    async fn write_hosts(
        &self,
        published: &mut Published,
        hosts: &[String],
        leaving: Option<&ComponentId>,
    ) -> Result<u64, PublishError> {
        let mut newest = 0;
        for some in hosts.chunks(rows::AT_ONCE) {
            let rows = self.read(published, some, leaving).await?;
            for host in some {
                let (entry, certificate) = self.host(published, host, &rows);
                if let Some(certificate) = certificate {
                    newest = newest.max(self.certificate(published, certificate).await?);
                }
                let owners: Vec<_> = rows.routes(host).iter().map(|it| it.component_id.clone()).collect();
                let key = format!("{HOSTS}{host}");
                if entry.rules.is_empty() && entry.default.is_none() {
                    published.note(host, None, &owners);
                    self.delete(published, &key).await?;
                } else {
                    published.note(host, Some(&entry), &owners);
                    newest = newest.max(self.put(published, key, &entry).await?);
                }
            }
        }
        Ok(newest)
    }

    /// Gives the gateways a certificate, its key sealed for them.
    async fn certificate(&self, published: &mut Published, row: &CertificateRow) -> Result<u64, PublishError> {
        let key = format!("{CERTIFICATES}{}", row.id);
        if let Some((value, revision)) = published.keys.get(&key)
            && serde_json::from_slice::<CertificateEntry>(value).is_ok_and(|it| it.issued_at == row.issued_at)
        {
            return Ok(*revision);
        }
        let sealed = Sealed { key_id: row.key_id.clone(), text: row.sealed_key.clone() };
        let plain = self.secrets.unseal(&CertificateRow::key_context(&row.id), &sealed)?;
        let sealed = self.gateway_keys()?.seal(&certificate_context(row.id.as_str()), &plain)?;
        let entry = CertificateEntry {
            issued_at: row.issued_at,
            chain_pem: row.chain_pem.clone(),
            key_id: sealed.key_id,
            sealed_key: sealed.text,
        };
        self.put(published, key, &entry).await
    }

    /// Which certificate serves a host: the one that its routes name, else the best that covers it, of its tenant before
    /// those of the default tenant, which are the platform's. So it is also while an automatic one is not there yet.
    fn choose<'a>(
        &self,
        host: &str,
        tenant: &TenantName,
        wanted: &Wanted,
        rows: &'a Rows,
    ) -> Option<&'a CertificateRow> {
        match wanted {
            Wanted::None => return None,
            Wanted::Named { name, automatic } => {
                let found = rows.named(tenant, name);
                if *automatic && next(found, clock::now()) == Next::Order {
                    self.wanted.notify_one();
                }
                let there = found.filter(|it| !it.chain_pem.is_empty());
                if there.is_some() || !automatic {
                    return there;
                }
            }
            Wanted::Best => {}
        }
        [tenant, &TenantName::default_tenant()].into_iter().find_map(|it| {
            let covering = rows.unnamed(it).iter().filter(|it| covers(&it.hosts, host));
            covering.max_by_key(|it| (it.hosts.iter().any(|name| name == host), it.not_after))
        })
    }

    /// The entry of a host and its certificate.
    fn host<'a>(&self, published: &Published, host: &str, rows: &'a Rows) -> (HostEntry, Option<&'a CertificateRow>) {
        let routes = rows.routes(host);
        let (tenant, wanted) = (published.tenant(host, routes).cloned(), wanted(host, routes));
        let default = published.default_hosts.get(host).map(|it| it.1.clone());
        let certificate = tenant.as_ref().and_then(|it| self.choose(host, it, &wanted, rows));
        let client_ca = routes.iter().find_map(|it| it.route.tls.client_ca.clone());
        let tls = HostTls { certificate: certificate.map(|it| it.id.clone()), client_ca };
        let mut rules = Vec::new();
        // Before whatever its routes do with such a path, and without the redirect to an HTTPS that is not there yet.
        if matches!(wanted, Wanted::Named { automatic: true, .. })
            && let Some(HttpProof { path, answer }) = rows.proof(host)
        {
            let content_type = Some("application/octet-stream".to_owned());
            let answer = Answer { status: 200, body: answer.clone(), content_type };
            rules.push(Route { paths: vec![PathMatch::exact(path)], answer: Some(answer), ..Route::default() });
        }
        let proofs = rules.len();
        for row in routes {
            // A target that is gone gets no share; with its last target a rule goes.
            let Ok(rule) = row.route.clone().rename(|it| {
                let there = routes.iter().any(|row| row.component_id == it.component) || rows.is_there(&it.component);
                Ok::<_, std::convert::Infallible>(there.then_some(it))
            });
            if rule.answers_itself() || !rule.targets.is_empty() {
                rules.push(rule);
            }
        }
        if tls.client_ca.is_some() {
            // Over plain HTTP no client shows a certificate: nothing is served there but the proof. The default has no rule
            // that could say so; this one is for the same requests and comes before it.
            rules.extend(default.clone().map(|to| {
                let target = Target { to, weight: 100 };
                Route { targets: vec![target], ..Route::default() }
            }));
            rules.iter_mut().skip(proofs).for_each(|it| it.tls.redirect = true);
        }
        (HostEntry { tenant, default, rules, host: host.to_owned(), tls }, certificate)
    }

    async fn put(&self, published: &mut Published, key: String, value: &impl Serialize) -> Result<u64, PublishError> {
        let value = serde_json::to_vec(value)?;
        if let Some((old, revision)) = published.keys.get(&key)
            && *old == value
        {
            return Ok(*revision);
        }
        // Until it is answered neither the old value nor the new one is known to be there: this one equals none.
        published.keys.insert(key.clone(), UNKNOWN);
        let revision = self.kv.put(&key, value.clone(), None).await?;
        published.keys.insert(key, (value, revision));
        Ok(revision)
    }

    async fn delete(&self, published: &mut Published, key: &str) -> Result<(), PublishError> {
        if let Some(there) = published.keys.get_mut(key) {
            *there = UNKNOWN;
            let success = vec![Operation::Delete(Range::Key(key.as_bytes().to_vec()))];
            self.kv.txn(Txn { success, ..Txn::default() }).await?;
            published.keys.remove(key);
        }
        Ok(())
    }
}

/// A key whose value in the store is not known: a write to it was not answered.
const UNKNOWN: (Vec<u8>, u64) = (Vec::new(), 0);

/// The upstream of a component. Pure.
fn upstream(component: &Component, revision: Option<&Revision>, observed: &Observed, status: Status) -> UpstreamEntry {
    let state = match status {
        Status::Stopped | Status::Stopping => UpstreamState::Stopped,
        Status::Undeployed | Status::Building | Status::Starting => UpstreamState::Starting,
        Status::Abnormal | Status::BuildFailed => UpstreamState::Abnormal,
        Status::Running | Status::Degraded | Status::Upgrading | Status::Succeeded => UpstreamState::Up,
    };
    // A node that says nothing may still serve: its instances are asked when there are no others.
    let only_silent = !observed.instances.iter().any(|it| it.phase == InstancePhase::Ready);
    let endpoint = |it: &arco_model::observed::InstanceFacts| {
        let draining = match it.phase {
            InstancePhase::Ready => false,
            InstancePhase::Unready if it.node_silent && only_silent => false,
            InstancePhase::Draining => true,
            _ => return None,
        };
        it.address.map(|address| Endpoint { instance: it.id.clone(), address, port: None, draining })
    };
    let mut endpoints: Vec<_> = observed.instances.iter().filter_map(endpoint).collect();
    endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
    let ports = revision.map(Revision::ports).unwrap_or_default();
    let speaking =
        |so: fn(Protocol) -> bool| ports.iter().filter(|it| so(it.protocol)).map(|it| it.port).collect::<Vec<_>>();
    UpstreamEntry {
        component: component.id.clone(),
        reference: component.reference(),
        state,
        endpoints,
        http2_ports: speaking(Protocol::is_http2),
        tls_ports: speaking(Protocol::is_over_tls),
    }
}

#[cfg(test)]
mod tests;
