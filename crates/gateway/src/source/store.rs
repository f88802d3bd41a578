//! The routing table from the coordination store: decodes what changed since the last time, keeps the rest.

use super::certificate::CertificateSource;
use super::route::{EndpointRules, Kept, Prepared, upstream_name};
use crate::engine::Certificates;
use crate::metrics::Metrics;
use crate::snapshot::{Host, PathMatch, Rule, Snapshot, Timeouts};
use crate::upstream::{Endpoint, EndpointState, Transport, Upstream, UpstreamSettings};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::route::UpstreamTarget;
use arco_model::traffic::{
    CLUSTER_HOSTS, CLUSTER_STREAMS, CLUSTER_UPSTREAMS, HOSTS, HostEntry, STREAMS, StreamEntry, UPSTREAMS, UpstreamEntry,
};
use arco_store::kv::mirror::{Entry, View};
use arco_store::secrets::SecretBox;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::sync::Notify;

/// Builds snapshots from views of the store.
pub struct StoreSource {
    metrics: Metrics,
    timeouts: Timeouts,
    https_port: Option<u16>,
    trusted_proxies: Vec<ipnet::IpNet>,
    kept: Kept,
    certificates: CertificateSource,
    /// Rung when a draining instance has no open request any more.
    idle: Arc<Notify>,
    hosts: BTreeMap<Vec<u8>, (u64, HostEntry, Arc<Host>)>,
    components: HashMap<ComponentId, (u64, UpstreamEntry)>,
    streams: BTreeMap<Vec<u8>, (u64, StreamEntry)>,
    instances: HashMap<InstanceId, Arc<EndpointState>>,
    turns: HashMap<Arc<str>, Arc<AtomicUsize>>,
}

impl StoreSource {
    /// A source that knows nothing yet. `keys` open the private keys of certificates.
    pub fn new(metrics: Metrics, timeouts: Timeouts, idle: Arc<Notify>, keys: Arc<SecretBox>) -> Self {
        Self {
            metrics,
            timeouts,
            https_port: None,
            trusted_proxies: Vec::new(),
            kept: Kept::default(),
            certificates: CertificateSource::new(keys),
            idle,
            hosts: BTreeMap::new(),
            components: HashMap::new(),
            streams: BTreeMap::new(),
            instances: HashMap::new(),
            turns: HashMap::new(),
        }
    }

    /// Where HTTPS is served: redirects lead there.
    pub fn serve_https_on(&mut self, port: u16) {
        self.https_port = Some(port);
    }

    /// Peers whose word about addresses and schemes is believed.
    pub fn trust(&mut self, proxies: &[ipnet::IpNet]) {
        self.trusted_proxies = proxies.to_vec();
    }

    /// The routing table for `view`, made on the one before.
    pub fn snapshot(&mut self, view: &View, before: &Snapshot) -> Snapshot {
        let changed = self.read_components(view);
        self.read_hosts(view);
        self.read_streams(view);
        let trusted_proxies = self.trusted_proxies.clone();
        let mut snapshot = Snapshot { revision: view.revision, trusted_proxies, ..Snapshot::default() };
        let mut turns = HashMap::new();
        for (_, entry, host) in self.hosts.values() {
            snapshot.wildcards |= host.name.starts_with('*');
            snapshot.hosts.insert(Arc::clone(&host.name), Arc::clone(host));
            let passed = entry.rules.iter().find(|it| it.passes_through()).and_then(|it| it.targets.first());
            if let Some(target) = passed {
                snapshot.passthrough.insert(Arc::clone(&host.name), target.to.to_string().into());
            }
        }
        let plain = |target| (target, EndpointRules::default());
        let of_hosts = self.hosts.values().flat_map(|it| it.1.callees()).map(plain);
        let rules = self.hosts.values().flat_map(|it| &it.1.rules).filter(|it| !EndpointRules::of(it).is_empty());
        let treated = rules.flat_map(|rule| rule.targets.iter().map(|it| (&it.to, EndpointRules::of(rule))));
        let of_streams = self.streams.values().map(|it| &it.1.target).map(plain);
        for (target, rules) in of_hosts.chain(treated).chain(of_streams) {
            let name = upstream_name(target, rules);
            if snapshot.upstreams.contains_key(name.as_str()) {
                continue;
            }
            let Some((_, component)) = self.components.get(&target.component) else { continue };
            let known = before.upstreams.get(name.as_str()).filter(|_| !changed.contains(&target.component));
            let name: Arc<str> = name.into();
            let turn = self.turns.get(&name).cloned().unwrap_or_default();
            turns.insert(Arc::clone(&name), Arc::clone(&turn));
            let upstream = match known {
                Some(known) => Arc::clone(known),
                None => Arc::new(self.upstream(&name, component, (target.port, rules), turn)),
            };
            if upstream.settings.check.is_some() {
                snapshot.checked.push(Arc::clone(&upstream));
            }
            snapshot.upstreams.insert(name, upstream);
        }
        self.turns = turns;
        self.kept.prune();
        snapshot
    }

    /// The certificates for `view`, after [`StoreSource::snapshot`]; `None` while they are as before.
    pub fn certificates(&mut self, view: &View) -> Option<Certificates> {
        let served = self.hosts.iter().filter(|(_, it)| !it.1.tls.is_off());
        let served = served.map(|(key, (revision, entry, host))| (key.as_slice(), *revision, &host.name, &entry.tls));
        self.certificates.table(view, served)
    }

    /// Instances that are draining and have open requests.
    pub fn busy_draining(&self) -> Vec<InstanceId> {
        let mut busy: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, state)| state.is_draining() && state.open() > 0)
            .map(|(instance, _)| instance.clone())
            .collect();
        busy.sort();
        busy
    }

    /// Takes over changed components; returns them. Draining marks take effect here, before the new table is in place.
    fn read_components(&mut self, view: &View) -> HashSet<ComponentId> {
        let mut changed = HashSet::new();
        let mut seen = HashSet::new();
        let known = [UPSTREAMS, CLUSTER_UPSTREAMS].into_iter().flat_map(|it| below(view, it).map(move |at| (it, at)));
        for (prefix, (key, entry)) in known {
            let Some(id) = suffix(key, prefix).and_then(|it| it.parse::<ComponentId>().ok()) else { continue };
            seen.insert(id.clone());
            if self.components.get(&id).is_some_and(|it| it.0 == entry.mod_revision) {
                continue;
            }
            if let Some(decoded) = decode::<UpstreamEntry>(key, entry) {
                changed.insert(id.clone());
                self.components.insert(id, (entry.mod_revision, decoded));
            }
        }
        self.components.retain(|id, _| {
            let stays = seen.contains(id);
            if !stays {
                changed.insert(id.clone());
            }
            stays
        });
        if !changed.is_empty() {
            self.mark_instances();
        }
        changed
    }

    fn mark_instances(&mut self) {
        let mut present = HashSet::new();
        for endpoint in self.components.values().flat_map(|it| &it.1.endpoints) {
            present.insert(&endpoint.instance);
            let state = self.instances.entry(endpoint.instance.clone()).or_insert_with(|| {
                Arc::new(EndpointState::new(Some(endpoint.instance.clone()), Arc::clone(&self.idle)))
            });
            state.drain(endpoint.draining);
        }
        self.instances.retain(|instance, state| {
            if present.contains(instance) {
                return true;
            }
            // Gone from the store: no new requests; remembered while old ones are open.
            state.drain(true);
            state.open() > 0
        });
    }

    fn read_hosts(&mut self, view: &View) {
        let mut hosts = BTreeMap::new();
        for (key, entry) in below(view, HOSTS).chain(unless_ours(view, CLUSTER_HOSTS, HOSTS)) {
            let known = self.hosts.remove(key);
            if known.as_ref().is_some_and(|it| it.0 == entry.mod_revision) {
                known.into_iter().for_each(|it| drop(hosts.insert(key.to_vec(), it)));
                continue;
            }
            match decode::<HostEntry>(key, entry) {
                Some(decoded) => {
                    let host = Arc::new(self.host(&decoded));
                    hosts.insert(key.to_vec(), (entry.mod_revision, decoded, host));
                }
                // A value that cannot be read does not take a working route away.
                None => known.into_iter().for_each(|it| drop(hosts.insert(key.to_vec(), it))),
            }
        }
        self.hosts = hosts;
    }

    /// Ports that lead to components, as of the last snapshot.
    pub fn streams(&self) -> impl Iterator<Item = &StreamEntry> {
        self.streams.values().map(|it| &it.1)
    }

    fn read_streams(&mut self, view: &View) {
        let mut streams = BTreeMap::new();
        for (key, entry) in below(view, STREAMS).chain(unless_ours(view, CLUSTER_STREAMS, STREAMS)) {
            let known = self.streams.remove(key).filter(|it| it.0 == entry.mod_revision);
            let read = || decode::<StreamEntry>(key, entry).map(|it| (entry.mod_revision, it));
            streams.extend(known.or_else(read).map(|it| (key.clone(), it)));
        }
        self.streams = streams;
    }

    fn host(&mut self, entry: &HostEntry) -> Host {
        let name = entry.host.to_ascii_lowercase();
        let mut rules = Vec::new();
        for route in entry.rules.iter().filter(|it| !it.passes_through()) {
            match Prepared::new(route, std::slice::from_ref(&name), None, self.https_port, &self.kept) {
                Ok(prepared) => {
                    self.kept.keep(&prepared);
                    rules.extend(prepared.rules(route, |_| self.timeouts));
                }
                Err(why) => tracing::error!(host = name, why, "a route cannot be served; the others of its host can"),
            }
        }
        // Last, so that a route for all paths wins over it.
        rules.extend(entry.default.as_ref().map(|it: &UpstreamTarget| {
            Rule::new(PathMatch::Prefix("/".to_owned()), vec![(it.to_string().into(), 1)], None)
        }));
        let metrics = self.metrics.route(&name);
        Host::new(name.into(), rules, metrics)
    }

    fn upstream(
        &self,
        name: &Arc<str>,
        entry: &UpstreamEntry,
        (port, rules): (u16, EndpointRules<'_>),
        turn: Arc<AtomicUsize>,
    ) -> Upstream {
        let endpoints = entry.endpoints.iter().filter(|it| !it.draining).filter_map(|it| {
            let state = Arc::clone(self.instances.get(&it.instance)?);
            Some(Endpoint { address: SocketAddr::from((it.address, it.port.unwrap_or(port))), state, weight: 1 })
        });
        let http2 = entry.http2_ports.contains(&port);
        let transport = Transport { id: u64::from(http2), http2, tls: None };
        let settings = Arc::new(UpstreamSettings {
            transport,
            balance: super::route::balance(rules.balance),
            ejection: rules.circuit.and_then(super::route::ejection),
            max_open: rules.circuit.and_then(|it| it.max_open).map(|it| it as usize),
            // Checked with the route.
            check: rules.check.and_then(|it| super::route::check(it).ok()),
            proxy_protocol: None,
        });
        Upstream {
            name: Arc::clone(name),
            reference: entry.reference.as_str().into(),
            state: entry.state,
            endpoints: endpoints.collect(),
            timeouts: self.timeouts,
            settings,
            metrics: self.metrics.upstream(&entry.reference),
            turn,
        }
    }
}

pub(super) fn below<'a>(view: &'a View, prefix: &'static str) -> impl Iterator<Item = (&'a Vec<u8>, &'a Entry)> {
    view.entries.range(prefix.as_bytes().to_vec()..).take_while(move |(key, _)| key.starts_with(prefix.as_bytes()))
}

/// What objects of a cluster ask for below `prefix`, but for what the platform has below `ours`: nobody takes a host or a port
/// from it by an object.
fn unless_ours<'a>(
    view: &'a View,
    prefix: &'static str,
    ours: &'static str,
) -> impl Iterator<Item = (&'a Vec<u8>, &'a Entry)> {
    below(view, prefix).filter(move |(key, _)| {
        let name = key.strip_prefix(prefix.as_bytes()).unwrap_or_default();
        !view.entries.contains_key(&[ours.as_bytes(), name].concat())
    })
}

fn suffix<'a>(key: &'a [u8], prefix: &str) -> Option<&'a str> {
    std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()
}

fn decode<T: serde::de::DeserializeOwned>(key: &[u8], entry: &Entry) -> Option<T> {
    match serde_json::from_slice(&entry.value) {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            let (key, revision) = (String::from_utf8_lossy(key), entry.mod_revision);
            tracing::error!(%key, revision, %error, "a routing entry cannot be read; the one before stays");
            None
        }
    }
}
