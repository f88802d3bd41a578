//! The routing table from the coordination store: decodes what changed since the last time, keeps the rest.

use super::certificate::CertificateSource;
use super::route::{EndpointRules, Kept, Prepared, upstream_name};
use crate::engine::Certificates;
use crate::metrics::Metrics;
use crate::snapshot::{Host, PathMatch, Rule, Snapshot, Table, Timeouts};
use crate::upstream::{Endpoint, EndpointState, InstanceState, Upstream, UpstreamSettings};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::route::{Balance, Circuit, HealthCheck, UpstreamTarget, UpstreamTls};
use arco_model::traffic::{
    CLUSTER_HOSTS, CLUSTER_STREAMS, CLUSTER_UPSTREAMS, HOSTS, HostEntry, HostTls, STREAMS, StreamEntry, UPSTREAMS,
    UpstreamEntry,
};
use arco_store::kv::mirror::{Entry, View};
use arco_store::secrets::SecretBox;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::sync::Notify;

/// A host, and what of its entry is needed further on. There are thousands: entries themselves are not kept.
struct Known {
    revision: u64,
    host: Arc<Host>,
    tls: HostTls,
    is_wildcard: bool,
    /// The upstream that its TLS connections are passed to unread.
    passes_to: Option<Arc<str>>,
    /// What keeps its upstreams.
    needs: Box<[Arc<Need>]>,
}

/// An upstream that something leads to.
struct Need {
    name: Arc<str>,
    component: ComponentId,
    port: u16,
    balance: Option<Balance>,
    circuit: Option<Circuit>,
    check: Option<HealthCheck>,
    tls: Option<UpstreamTls>,
}

impl Need {
    fn rules(&self) -> EndpointRules<'_> {
        let (balance, circuit, check) = (self.balance.as_ref(), self.circuit.as_ref(), self.check.as_ref());
        EndpointRules { balance, circuit, check, tls: self.tls.as_ref() }
    }
}

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
    hosts: BTreeMap<Vec<u8>, Known>,
    components: HashMap<ComponentId, (u64, UpstreamEntry)>,
    streams: BTreeMap<Vec<u8>, (u64, StreamEntry, Arc<Need>)>,
    /// By name, what any host or port leads to.
    needs: HashMap<Arc<str>, Arc<Need>>,
    instances: HashMap<InstanceId, Arc<InstanceState>>,
    turns: HashMap<Arc<str>, Arc<AtomicUsize>>,
    /// Whether the last snapshot was made of changes that no certificate depends on.
    same_certificates: bool,
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
            needs: HashMap::new(),
            instances: HashMap::new(),
            turns: HashMap::new(),
            same_certificates: false,
        }
    }

    /// Where HTTPS is served for people: redirects lead there.
    pub fn serve_https_on(&mut self, port: u16) {
        self.https_port = Some(port);
    }

    /// Peers whose word about addresses and schemes is believed.
    pub fn trust(&mut self, proxies: &[ipnet::IpNet]) {
        self.trusted_proxies = super::route::networks(proxies);
    }

    /// The routing table for `view`, made on the one before. `changed` are the keys that differ from the view that it was
    /// made of, if that is known: when these are hosts alone, nothing else is looked at, however many there are.
    pub fn snapshot(&mut self, view: &View, before: &Snapshot, changed: Option<&BTreeSet<Vec<u8>>>) -> Snapshot {
        if let Some(snapshot) = changed.and_then(|it| self.with_changed_hosts(view, before, it)) {
            return snapshot;
        }
        self.same_certificates = false;
        let changed = self.read_components(view);
        let hosts = self.read_hosts(view, before);
        self.read_streams(view);
        let trusted_proxies = self.trusted_proxies.clone();
        let mut snapshot = Snapshot { revision: view.revision, hosts, trusted_proxies, ..Snapshot::default() };
        for known in self.hosts.values() {
            snapshot.wildcards |= known.is_wildcard;
            if let Some(to) = &known.passes_to {
                snapshot.passthrough.insert(Arc::clone(known.host.name()), Arc::clone(to));
            }
        }
        self.lead(&mut snapshot, before, &changed);
        snapshot
    }

    /// The same when `changed` are hosts alone that were set; otherwise `None`, and nothing has happened.
    fn with_changed_hosts(&mut self, view: &View, before: &Snapshot, changed: &BTreeSet<Vec<u8>>) -> Option<Snapshot> {
        // Every table but the first holds exactly the known hosts.
        if before.hosts.len() != self.hosts.len() || self.hosts.is_empty() {
            return None;
        }
        let mut entries = Vec::with_capacity(changed.len());
        for key in changed {
            let name = key.strip_prefix(HOSTS.as_bytes())?;
            if view.entries.contains_key(&[CLUSTER_HOSTS.as_bytes(), name].concat()) {
                return None;
            }
            entries.push((key, view.entries.get(key)?));
        }
        let mut snapshot = Snapshot {
            revision: view.revision,
            hosts: before.hosts.clone(),
            upstreams: Arc::clone(&before.upstreams),
            wildcards: before.wildcards,
            checked: before.checked.clone(),
            trusted_proxies: self.trusted_proxies.clone(),
            passthrough: before.passthrough.clone(),
        };
        self.same_certificates = true;
        let upstreams = self.needs.len();
        let mut left = false;
        for (key, entry) in entries {
            let Some(decoded) = decode::<HostEntry>(key, entry) else { continue };
            let known = self.known(entry.mod_revision, decoded);
            snapshot.wildcards |= known.is_wildcard;
            match &known.passes_to {
                Some(to) => drop(snapshot.passthrough.insert(Arc::clone(known.host.name()), Arc::clone(to))),
                None => drop(snapshot.passthrough.remove(known.host.name())),
            }
            snapshot.hosts.insert(Arc::clone(&known.host));
            let old = self.hosts.get(key);
            self.same_certificates &= old.map_or(known.tls.is_off(), |it| it.tls == known.tls);
            left |= old.is_some_and(|it| !it.needs.iter().all(|it| known.needs.iter().any(|new| Arc::ptr_eq(it, new))));
            self.hosts.insert(key.clone(), known);
        }
        if left || self.needs.len() != upstreams {
            self.lead(&mut snapshot, before, &HashSet::new());
        }
        Some(snapshot)
    }

    /// Sets the upstreams that hosts and ports lead to; those of `changed` components are made anew.
    fn lead(&mut self, snapshot: &mut Snapshot, before: &Snapshot, changed: &HashSet<ComponentId>) {
        // What nothing leads to any more is held by this table alone.
        self.needs.retain(|_, it| Arc::strong_count(it) > 1);
        let (mut turns, mut upstreams) = (HashMap::new(), HashMap::new());
        snapshot.checked.clear();
        for need in self.needs.values() {
            let Some((_, component)) = self.components.get(&need.component) else { continue };
            let known = before.upstreams.get(&need.name);
            let turn = self.turns.get(&need.name).cloned().unwrap_or_default();
            turns.insert(Arc::clone(&need.name), Arc::clone(&turn));
            let upstream = match known {
                Some(known) if !changed.contains(&need.component) => Arc::clone(known),
                known => Arc::new(self.upstream(need, component, known, turn)),
            };
            if upstream.settings.check.is_some() {
                snapshot.checked.push(Arc::clone(&upstream));
            }
            upstreams.insert(Arc::clone(&need.name), upstream);
        }
        snapshot.upstreams = Arc::new(upstreams);
        self.turns = turns;
        self.kept.prune();
    }

    /// The certificates for `view`, after [`StoreSource::snapshot`]; `None` while they are as before.
    pub fn certificates(&mut self, view: &View) -> Option<Certificates> {
        if self.same_certificates {
            return None;
        }
        let served = self.hosts.iter().filter(|(_, it)| !it.tls.is_off());
        let served = served.map(|(key, it)| (key.as_slice(), it.revision, it.host.name(), &it.tls));
        self.certificates.table(view, served)
    }

    /// Everything that requests are counted by.
    pub fn rates(&self) -> Vec<Arc<crate::protect::RateLimit>> {
        self.kept.rates()
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
            let state = self.instances.entry(endpoint.instance.clone());
            let state = state.or_insert_with(|| Arc::new(InstanceState::new(Arc::clone(&self.idle))));
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

    /// Takes over changed hosts; the table of all, made on the one before.
    fn read_hosts(&mut self, view: &View, before: &Snapshot) -> Table<Arc<Host>> {
        // Both sides are in order: one walk finds the difference, and nothing is made for what stays.
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        let mut known = self.hosts.iter().peekable();
        // In the order of their keys.
        for (key, entry) in unless_ours(view, CLUSTER_HOSTS, HOSTS).chain(below(view, HOSTS)) {
            while let Some((old, _)) = known.next_if(|it| it.0 < key) {
                gone.push(old.clone());
            }
            let same = known.next_if(|it| it.0 == key).is_some_and(|it| it.1.revision == entry.mod_revision);
            if !same {
                changed.push((key, entry));
            }
        }
        gone.extend(known.map(|it| it.0.clone()));
        // Every table but the first holds exactly the known hosts.
        let mut table = if gone.is_empty() && before.hosts.len() == self.hosts.len() {
            before.hosts.clone()
        } else {
            gone.iter().for_each(|it| drop(self.hosts.remove(it)));
            self.hosts.values().map(|it| Arc::clone(&it.host)).collect()
        };
        for (key, entry) in changed {
            // A value that cannot be read does not take a working route away.
            let Some(decoded) = decode::<HostEntry>(key, entry) else { continue };
            let known = self.known(entry.mod_revision, decoded);
            table.insert(Arc::clone(&known.host));
            self.hosts.insert(key.clone(), known);
        }
        table
    }

    fn known(&mut self, revision: u64, entry: HostEntry) -> Known {
        let mut needs: Vec<_> = entry.callees().map(|it| self.need(it, EndpointRules::default())).collect();
        for (rule, rules) in entry.rules.iter().map(|it| (it, EndpointRules::of(it))) {
            let treated = rule.targets.iter().filter(|_| !rules.is_empty());
            needs.extend(treated.map(|it| self.need(&it.to, rules)));
        }
        let host = Arc::new(self.host(&entry));
        let passed = entry.rules.iter().find(|it| it.passes_through()).and_then(|it| it.targets.first());
        let passes_to = passed.map(|it| it.to.to_string().into());
        let (tls, is_wildcard) = (entry.tls, host.name().starts_with('*'));
        Known { revision, host, tls, is_wildcard, passes_to, needs: needs.into() }
    }

    /// A name of an upstream, as it is kept already.
    fn name(&self, name: String) -> Arc<str> {
        self.needs.get_key_value(name.as_str()).map_or_else(|| name.as_str().into(), |it| Arc::clone(it.0))
    }

    fn need(&mut self, target: &UpstreamTarget, rules: EndpointRules<'_>) -> Arc<Need> {
        let name = upstream_name(target, rules);
        if let Some(known) = self.needs.get(name.as_str()) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        let need = Arc::new(Need {
            name: Arc::clone(&name),
            component: target.component.clone(),
            port: target.port,
            balance: rules.balance.cloned(),
            circuit: rules.circuit.cloned(),
            check: rules.check.cloned(),
            tls: rules.tls.cloned(),
        });
        self.needs.insert(name, Arc::clone(&need));
        need
    }

    /// Ports that lead to components, as of the last snapshot.
    pub fn streams(&self) -> impl Iterator<Item = &StreamEntry> {
        self.streams.values().map(|it| &it.1)
    }

    fn read_streams(&mut self, view: &View) {
        let mut streams = BTreeMap::new();
        for (key, entry) in below(view, STREAMS).chain(unless_ours(view, CLUSTER_STREAMS, STREAMS)) {
            let known = self.streams.remove(key).filter(|it| it.0 == entry.mod_revision);
            let made = known.or_else(|| {
                let decoded = decode::<StreamEntry>(key, entry)?;
                let need = self.need(&decoded.target, EndpointRules::default());
                Some((entry.mod_revision, decoded, need))
            });
            streams.extend(made.map(|it| (key.clone(), it)));
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
                    rules.extend(prepared.rules(route, |it| (self.name(it), self.timeouts)));
                }
                Err(why) => tracing::error!(host = name, why, "a route cannot be served; the others of its host can"),
            }
        }
        // Last, so that a route for all paths wins over it.
        rules.extend(entry.default.as_ref().map(|it: &UpstreamTarget| {
            Rule::new(PathMatch::Prefix("/".to_owned()), [(self.name(it.to_string()), 1)], None)
        }));
        let metrics = self.metrics.route(&name);
        Host::new(name.into(), rules, metrics)
    }

    /// The upstream as `entry` has it now; what `before` has found out about an endpoint that is still there stays known.
    fn upstream(
        &self,
        need: &Need,
        entry: &UpstreamEntry,
        before: Option<&Arc<Upstream>>,
        turn: Arc<AtomicUsize>,
    ) -> Upstream {
        let (name, port, rules) = (&need.name, need.port, need.rules());
        let before: &[Endpoint] = before.map_or(&[], |it| it.endpoints.as_slice());
        let known: HashMap<SocketAddr, &Arc<EndpointState>> = before.iter().map(|it| (it.address, &it.state)).collect();
        let endpoints = entry.endpoints.iter().filter(|it| !it.draining).filter_map(|it| {
            let instance = self.instances.get(&it.instance)?;
            let address = SocketAddr::from((it.address, it.port.unwrap_or(port)));
            // An address that another instance has now is not the same endpoint.
            let state = known.get(&address).copied().filter(|it| it.is_of(instance)).cloned();
            let state = state.unwrap_or_else(|| Arc::new(EndpointState::new(Arc::clone(instance))));
            Some(Endpoint { address, state, weight: 1 })
        });
        let (over_tls, http2) = (entry.tls_ports.contains(&port), entry.http2_ports.contains(&port));
        let settings = Arc::new(UpstreamSettings {
            transport: super::route::transport(rules.tls, over_tls, http2),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::mixed;
    use arco_model::traffic::UpstreamState;

    fn source() -> StoreSource {
        let keys = SecretBox::parse(&format!("k1 {}", "11".repeat(32))).unwrap();
        StoreSource::new(Metrics::new(), Timeouts::default(), Arc::default(), Arc::new(keys))
    }

    fn set(view: &mut View, key: String, value: Vec<u8>) {
        view.revision += 1;
        view.entries.insert(key.into_bytes(), Entry { value: value.into(), mod_revision: view.revision });
    }

    fn set_host(view: &mut View, host: &str, component: u64, port: u16) {
        let target = UpstreamTarget { component: ComponentId::from_parts(component, 1), port };
        let entry = HostEntry { host: host.to_owned(), default: Some(target), ..HostEntry::default() };
        set(view, format!("{HOSTS}{host}"), serde_json::to_vec(&entry).unwrap());
    }

    fn set_component(view: &mut View, component: u64) {
        let component = ComponentId::from_parts(component, 1);
        let entry = UpstreamEntry {
            component: component.clone(),
            reference: "a/b".to_owned(),
            state: UpstreamState::Up,
            endpoints: Vec::new(),
            http2_ports: Vec::new(),
            tls_ports: Vec::new(),
        };
        set(view, format!("{UPSTREAMS}{component}"), serde_json::to_vec(&entry).unwrap());
    }

    /// What a table routes by, in words.
    fn shown(snapshot: &Snapshot) -> Vec<String> {
        let target = |host: &Host| host.rules().iter().map(|it| it.next_target().to_string()).collect::<Vec<_>>();
        let hosts = snapshot.hosts.iter().map(|it| format!("{} {:?}", it.name(), target(it)));
        let mut all: Vec<_> = hosts.chain(snapshot.upstreams.keys().map(|it| format!("to {it}"))).collect();
        all.push(format!("{} {}", snapshot.revision, snapshot.wildcards));
        all.sort();
        all
    }

    #[test]
    fn a_table_made_on_the_one_before_is_that_made_anew() {
        let (mut view, mut source, mut last) = (View::default(), source(), Snapshot::default());
        let names: Vec<_> = (0..8u64).map(|it| format!("{}h{it}.test", if it < 2 { "*." } else { "" })).collect();
        for step in 0..600u64 {
            let random = mixed(step + 1);
            let entries = view.entries.clone();
            let name = &names[random as usize % names.len()];
            match random >> 8 & 7 {
                0..3 => drop(view.entries.remove(format!("{HOSTS}{name}").as_bytes())),
                3 => set_component(&mut view, random >> 16 & 1),
                4 => {
                    let component = ComponentId::from_parts(random >> 16 & 1, 1);
                    view.entries.remove(format!("{UPSTREAMS}{component}").as_bytes());
                }
                _ => set_host(&mut view, name, random >> 16 & 1, 8000 + (random >> 17 & 1) as u16),
            }
            view.revision += 1;
            let differs = |it: &&Vec<u8>| view.entries.get(*it) != entries.get(*it);
            let changed: BTreeSet<_> = view.entries.keys().chain(entries.keys()).filter(differs).cloned().collect();
            last = source.snapshot(&view, &last, Some(&changed).filter(|_| random >> 20 & 3 > 0));
            let anew = super::tests::source().snapshot(&view, &Snapshot::default(), None);
            assert_eq!(shown(&last), shown(&anew), "step {step}");
        }
        assert!(last.hosts.len() > 2 && !last.upstreams.is_empty(), "{:?}", shown(&last));
    }

    #[test]
    fn a_host_that_cannot_be_read_stays_as_it_was() {
        let (mut view, mut source) = (View::default(), source());
        set_host(&mut view, "a.test", 1, 8000);
        let first = source.snapshot(&view, &Snapshot::default(), None);
        set(&mut view, format!("{HOSTS}a.test"), b"nonsense".to_vec());
        set_host(&mut view, "b.test", 1, 8000);
        let second = source.snapshot(&view, &first, None);
        assert!(Arc::ptr_eq(first.hosts.get("a.test").unwrap(), second.hosts.get("a.test").unwrap()));
        assert_eq!(second.hosts.len(), 2);
        set(&mut view, format!("{HOSTS}a.test"), b"{}".to_vec());
        let changed = BTreeSet::from([format!("{HOSTS}a.test").into_bytes()]);
        let third = source.snapshot(&view, &second, Some(&changed));
        assert!(Arc::ptr_eq(first.hosts.get("a.test").unwrap(), third.hosts.get("a.test").unwrap()));
        assert!(Arc::ptr_eq(&second.upstreams, &third.upstreams));
    }
}
