//! The gateway's own file (YAML): everything that it needs without a control plane. Unknown keys are errors.

pub(crate) mod upstream;

use super::route::{Kept, Prepared, networks};
use crate::engine::{CertificateEntry, Certificates, Limits, Protocol};
use crate::metrics::Metrics;
use crate::snapshot::{Host, Rule, Snapshot, Timeouts};
use crate::tickets::Tickets;
use crate::upstream::{Endpoint, EndpointState, Upstream, UpstreamSettings};
use arco_config::{AccessLogConfig, VirtualAddress};
use arco_model::route::{Route, check_host};
use arco_model::traffic::UpstreamState;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use upstream::UpstreamFile;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// It is not what a gateway's file looks like.
    #[error("{path} is not valid: {cause}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with line and column.
        cause: String,
    },
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] crate::engine::CertificateError),
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) driver: DriverKind,
    pub(crate) listeners: Vec<ListenerFile>,
    pub(crate) certificates: Vec<CertificateFile>,
    pub(crate) upstreams: Vec<UpstreamFile>,
    pub(crate) routes: Vec<Route<String>>,
    pub(crate) timeouts: TimeoutsFile,
    pub(crate) limits: LimitsFile,
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,
    pub(crate) admin: Option<AdminFile>,
    pub(crate) threads: usize,
    pub(crate) ignore_interfaces: Vec<String>,
    pub(crate) buffer_folder: Option<PathBuf>,
    pub(crate) virtual_address: Option<VirtualAddress>,
    pub(crate) access_log: AccessLogConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenerFile {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) protocol: ProtocolFile,
    pub(crate) upstream: Option<String>,
    #[serde(default)]
    pub(crate) proxy_protocol: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProtocolFile {
    Http,
    Https,
    Tcp,
    Udp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateFile {
    pub(crate) hosts: Vec<String>,
    pub(crate) certificate_file: PathBuf,
    pub(crate) key_file: PathBuf,
    pub(crate) client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TimeoutsFile {
    pub(crate) request_header_ms: Option<u64>,
    pub(crate) request_body_ms: Option<u64>,
    pub(crate) connect_ms: Option<u64>,
    pub(crate) response_ms: Option<u64>,
    pub(crate) total_ms: Option<u64>,
    pub(crate) idle_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsFile {
    pub(crate) max_header_bytes: usize,
    pub(crate) max_uri_bytes: usize,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_connections_per_address: Option<u32>,
    pub(crate) max_buffered_bytes: Option<u64>,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            max_header_bytes: 65_536,
            max_uri_bytes: 16_384,
            max_connections: None,
            max_connections_per_address: None,
            max_buffered_bytes: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdminFile {
    pub(crate) address: SocketAddr,
}

/// Who serves a file.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// The engine of this process.
    #[default]
    Builtin,
    /// nginx, for what it can do of a file.
    Nginx,
}

/// One listener that the file asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenerSpec {
    /// Its name.
    pub name: String,
    /// Address; port 0 picks a free port.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
}

impl ListenerSpec {
    /// Whether it takes datagrams.
    pub fn is_udp(&self) -> bool {
        matches!(self.protocol, Protocol::Udp(_))
    }
}

/// What a valid file says.
#[derive(Debug)]
pub struct Loaded {
    /// The file itself.
    pub(crate) written: File,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Who serves it.
    pub driver: DriverKind,
    /// Routing table.
    pub snapshot: Snapshot,
    /// Certificates.
    pub certificates: Certificates,
    /// Listeners.
    pub listeners: Vec<ListenerSpec>,
    /// Limits of client connections.
    pub limits: Limits,
    /// Where `/healthz` and `/metrics` answer.
    pub admin: Option<SocketAddr>,
    /// Threads; 0 means one per processor.
    pub threads: usize,
    /// Interfaces whose addresses do not count.
    pub ignore_interfaces: Vec<String>,
    /// Where bodies that wait are kept, if it says so.
    pub buffer_folder: Option<PathBuf>,
    /// The address that this machine shares with others.
    pub virtual_address: Option<VirtualAddress>,
    /// The access log; its file is a path from here.
    pub access_log: AccessLogConfig,
}

/// Reads one file again and again; counters and turns live on.
pub struct FileSource {
    path: PathBuf,
    metrics: Metrics,
    revision: u64,
    states: HashMap<(String, SocketAddr), Arc<EndpointState>>,
    turns: HashMap<String, Arc<AtomicUsize>>,
    kept: Kept,
    tickets: Tickets,
}

impl FileSource {
    /// A source of `path`; nothing is read yet. TLS sessions are not resumed, but see [`FileSource::with_tickets`].
    pub fn new(path: &Path, metrics: Metrics) -> Self {
        Self {
            path: path.to_owned(),
            metrics,
            revision: 0,
            states: HashMap::new(),
            turns: HashMap::new(),
            kept: Kept::default(),
            tickets: Tickets::default(),
        }
    }

    /// The same, for sessions that are resumed with these keys.
    pub(crate) fn with_tickets(self, tickets: Tickets) -> Self {
        Self { tickets, ..self }
    }

    /// Reads and checks the file. After an error the source is as before.
    pub fn load(&mut self) -> Result<Loaded, FileError> {
        let path = &self.path;
        let text = std::fs::read_to_string(path).map_err(|cause| FileError::Read { path: path.clone(), cause })?;
        let syntax = |cause: String| FileError::Syntax { path: path.clone(), cause };
        // A choice with a value is `{choice: value}`, as in JSON.
        let written = serde_yaml_ng::Deserializer::from_str(&text);
        let file: File = match serde_yaml_ng::with::singleton_map_recursive::deserialize::<Option<File>, _>(written) {
            Ok(file) => file.unwrap_or_default(),
            Err(error) => return Err(syntax(error.to_string())),
        };
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        let parts = check(&file, &folder, &self.kept).map_err(syntax)?;
        let entries = file
            .certificates
            .iter()
            .map(|it| {
                let client_ca = it.client_ca_file.as_ref().map(|it| folder.join(it));
                let (certificate, key) = (folder.join(&it.certificate_file), folder.join(&it.key_file));
                CertificateEntry::read(&it.hosts, &certificate, &key, client_ca.as_deref(), &self.tickets)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let base = merged(Timeouts::default(), &file.timeouts);
        let snapshot = self.snapshot(&file, base, parts);
        let listeners = file.listeners.iter().map(|it| ListenerSpec {
            name: it.name.clone(),
            address: it.address,
            protocol: {
                let protocol = match it.protocol {
                    ProtocolFile::Http => Protocol::Http,
                    ProtocolFile::Https => Protocol::Https,
                    ProtocolFile::Tcp => Protocol::Tcp(it.upstream.as_deref().unwrap_or_default().into()),
                    ProtocolFile::Udp => Protocol::Udp(it.upstream.as_deref().unwrap_or_default().into()),
                };
                if it.proxy_protocol { Protocol::Proxied(Box::new(protocol)) } else { protocol }
            },
        });
        let millis = |value: Option<u64>, default| Duration::from_millis(value.unwrap_or(default));
        let mut limits = Limits::new(
            file.limits.max_header_bytes,
            millis(file.timeouts.request_header_ms, 10_000),
            millis(file.timeouts.idle_ms, 60_000),
        );
        limits.max_uri_bytes = file.limits.max_uri_bytes;
        limits.max_connections = file.limits.max_connections.filter(|it| *it > 0);
        limits.max_connections_per_address = file.limits.max_connections_per_address.filter(|it| *it > 0);
        limits.max_buffered_bytes = file.limits.max_buffered_bytes.unwrap_or(limits.max_buffered_bytes);
        let mut access_log = file.access_log.clone();
        if let Some(path) = file.access_log.file() {
            access_log.destination = folder.join(path).to_string_lossy().into_owned();
        }
        let (listeners, admin) = (listeners.collect(), file.admin.as_ref().map(|it| it.address));
        Ok(Loaded {
            driver: file.driver,
            buffer_folder: file.buffer_folder.as_ref().map(|it| folder.join(it)),
            folder,
            snapshot,
            certificates: Certificates::new(entries),
            listeners,
            limits,
            admin,
            threads: file.threads,
            ignore_interfaces: file.ignore_interfaces.clone(),
            virtual_address: file.virtual_address.clone(),
            access_log,
            written: file,
        })
    }

    fn snapshot(&mut self, file: &File, base: Timeouts, parts: Parts) -> Snapshot {
        self.revision += 1;
        let mut snapshot = Snapshot { revision: self.revision, ..Snapshot::default() };
        let (mut states, mut turns, mut upstreams) = (HashMap::new(), HashMap::new(), HashMap::new());
        snapshot.trusted_proxies = networks(&file.trusted_proxies);
        for (it, settings) in file.upstreams.iter().zip(parts.settings) {
            let endpoints = it.endpoints.iter().enumerate().map(|(at, address)| {
                let key = (it.name.clone(), *address);
                let fresh = || Arc::new(EndpointState::new(Arc::default()));
                let state = self.states.remove(&key).unwrap_or_else(fresh);
                states.insert(key, Arc::clone(&state));
                Endpoint { address: *address, state, weight: it.weights.get(at).copied().unwrap_or(1) }
            });
            let turn = self.turns.remove(&it.name).unwrap_or_default();
            turns.insert(it.name.clone(), Arc::clone(&turn));
            let name: Arc<str> = it.name.as_str().into();
            let upstream = Upstream {
                name: Arc::clone(&name),
                reference: Arc::clone(&name),
                state: UpstreamState::Up,
                endpoints: endpoints.collect(),
                timeouts: merged(base, &it.timeouts),
                settings: Arc::new(settings),
                metrics: self.metrics.upstream(&it.name),
                turn,
            };
            let upstream = Arc::new(upstream);
            if upstream.settings.check.is_some() {
                snapshot.checked.push(Arc::clone(&upstream));
            }
            upstreams.insert(name, upstream);
        }
        (self.states, self.turns) = (states, turns);
        snapshot.upstreams = Arc::new(upstreams);
        let mut hosts: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for (route, prepared) in file.routes.iter().zip(&parts.routes) {
            self.kept.keep(prepared);
            let known = |name: String| match snapshot.upstreams.get_key_value(name.as_str()) {
                Some((name, upstream)) => (Arc::clone(name), upstream.timeouts),
                None => (name.into(), base),
            };
            for host in &route.hosts {
                if let Some(target) = route.targets.first().filter(|_| route.passes_through()) {
                    snapshot.passthrough.insert(host.to_ascii_lowercase().into(), target.to.as_str().into());
                    continue;
                }
                let (rules, made) = (hosts.entry(host.to_ascii_lowercase()).or_default(), prepared.rules(route, known));
                if rules.is_empty() {
                    // Most hosts have one rule, not room for four.
                    rules.reserve_exact(made.len());
                }
                rules.extend(made);
            }
        }
        self.kept.prune();
        for (name, rules) in hosts {
            snapshot.wildcards |= name.starts_with('*');
            let metrics = self.metrics.route(&name);
            snapshot.hosts.insert(Arc::new(Host::new(name.into(), rules, metrics)));
        }
        snapshot
    }
}

fn merged(base: Timeouts, file: &TimeoutsFile) -> Timeouts {
    let or = |value: Option<u64>, base: Duration| value.map_or(base, Duration::from_millis);
    Timeouts {
        request_body: or(file.request_body_ms, base.request_body),
        connect: or(file.connect_ms, base.connect),
        response: or(file.response_ms, base.response),
        total: file.total_ms.map(Duration::from_millis).or(base.total),
    }
}

/// What can fail while a file becomes a snapshot, done in advance.
struct Parts {
    /// In the order of the upstreams.
    settings: Vec<UpstreamSettings>,
    /// In the order of the routes.
    routes: Vec<Prepared>,
}

/// What the types cannot say.
fn check(file: &File, folder: &Path, kept: &Kept) -> Result<Parts, String> {
    let mut parts = Parts { settings: Vec::new(), routes: Vec::new() };
    file.access_log.check()?;
    let mut upstreams = HashSet::new();
    for it in &file.upstreams {
        if !upstreams.insert(it.name.as_str()) {
            return Err(format!("two upstreams are named `{}`", it.name));
        }
        let settings = it.settings(folder).map_err(|error| format!("upstream `{}`: {error}", it.name))?;
        parts.settings.push(settings);
    }
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    for it in &file.listeners {
        let name = &it.name;
        if !names.insert(name.as_str()) {
            return Err(format!("two listeners are named `{name}`"));
        }
        if it.address.port() != 0 && !addresses.insert((it.protocol == ProtocolFile::Udp, it.address)) {
            return Err(format!("two listeners have the address {}", it.address));
        }
        match (it.protocol, &it.upstream) {
            (ProtocolFile::Tcp | ProtocolFile::Udp, None) => {
                return Err(format!("the tcp or udp listener `{name}` needs an `upstream`"));
            }
            (ProtocolFile::Tcp | ProtocolFile::Udp, Some(upstream)) if !upstreams.contains(upstream.as_str()) => {
                return Err(format!("the listener `{name}` names the upstream `{upstream}`, which does not exist"));
            }
            (ProtocolFile::Http | ProtocolFile::Https, Some(_)) => {
                return Err(format!("the listener `{name}` has an `upstream`; that is for tcp and udp: use `routes`"));
            }
            _ => {}
        }
        if it.proxy_protocol && file.trusted_proxies.is_empty() {
            return Err(format!("the listener `{name}` has `proxy_protocol`: name the proxies in `trusted_proxies`"));
        }
        if it.proxy_protocol && it.protocol == ProtocolFile::Udp {
            return Err(format!("the udp listener `{name}` cannot take the PROXY protocol: it has no connections"));
        }
        let passes = file.routes.iter().any(Route::passes_through);
        if it.protocol == ProtocolFile::Https && file.certificates.is_empty() && !passes {
            return Err(format!("the https listener `{name}` has no certificate to show: add `certificates`"));
        }
    }
    for certificate in &file.certificates {
        if certificate.hosts.is_empty() {
            return Err(format!("the certificate {} names no `hosts`", certificate.certificate_file.display()));
        }
        certificate.hosts.iter().try_for_each(|it| check_host(it)).map_err(|it| it.to_string())?;
    }
    let mut rules = HashSet::new();
    let https = file.listeners.iter().find(|it| it.protocol == ProtocolFile::Https).map(|it| it.address.port());
    for (number, route) in file.routes.iter().enumerate() {
        let fail = |it: String| format!("route {}: {it}", number + 1);
        if route.hosts.is_empty() {
            return Err(fail("it needs `hosts`".to_owned()));
        }
        if route.tls.certificate.is_some() && !route.passes_through() || route.tls.client_ca.is_some() {
            return Err(fail(
                "`tls` takes `certificate: passthrough`, `redirect` and `hsts_max_age_s` here; the rest is in `certificates`"
                    .to_owned(),
            ));
        }
        if route.balance.is_some()
            || route.circuit.is_some()
            || route.health_check.is_some()
            || route.upstream_tls.is_some()
        {
            let why = "`balance`, `circuit`, `health_check` and `upstream_tls` are set at the upstream: `balance`, `ejection`, `max_open`, `check`, `tls`";
            return Err(fail(why.to_owned()));
        }
        if let Some(name) = route.callees().find(|it| !upstreams.contains(it.as_str())) {
            return Err(fail(format!("it names the upstream `{name}`, which does not exist")));
        }
        let prepared = Prepared::new(route, &route.hosts, Some(folder), https, kept).map_err(fail)?;
        for host in &route.hosts {
            let meanings: Vec<String> =
                if route.passes_through() { vec![route.meaning()] } else { prepared.meanings().collect() };
            for meaning in meanings {
                if !rules.insert((host.to_ascii_lowercase(), meaning.clone())) {
                    return Err(format!("the host `{host}` has two routes for {meaning} with the same conditions"));
                }
            }
        }
        parts.routes.push(prepared);
    }
    if let Some(address) = &file.virtual_address {
        address.check()?;
        if !file.listeners.iter().any(|it| it.protocol == ProtocolFile::Http) {
            return Err("`virtual_address` needs an http listener: it is asked whether the gateway is well".to_owned());
        }
    }
    if file.limits.max_header_bytes < 1024 {
        return Err("`limits.max_header_bytes` is below 1024".to_owned());
    }
    Ok(parts)
}

fn check_timeouts(whose: &str, timeouts: &TimeoutsFile) -> Result<(), String> {
    if timeouts.request_header_ms.is_some() || timeouts.idle_ms.is_some() {
        return Err(format!(
            "{whose} sets request_header_ms or idle_ms; these belong to a connection: set them in the top `timeouts`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::PathMatch;

    const GOOD: &str = r#"
listeners:    [{name: web, address: "127.0.0.1:8080", protocol: http}, {name: db, address: "127.0.0.1:5432", protocol: tcp, upstream: db}]
upstreams:    [{name: a, endpoints: ["127.0.0.1:9000", "127.0.0.1:9001"], balance: round_robin, timeouts: {connect_ms: 5}}, {name: db, endpoints: ["127.0.0.1:5433"]}]
routes:       [{hosts: ["A.example.com", "*.b.com"], paths: [{prefix: /}, {exact: /x}], targets: [{upstream: a, weight: 100}], timeouts: {response_ms: 7}}]
timeouts:     {request_header_ms: 10000, request_body_ms: 30000, connect_ms: 3000, response_ms: 60000, idle_ms: 60000}
admin:        {address: "127.0.0.1:9901"}
"#;

    fn load(text: &str) -> Result<Loaded, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, text).unwrap();
        FileSource::new(&path, Metrics::new()).load()
    }

    #[test]
    fn the_documented_file_is_read() {
        let loaded = load(GOOD).unwrap();
        assert_eq!(loaded.listeners.len(), 2);
        assert_eq!(loaded.listeners[1].protocol, Protocol::Tcp("db".into()));
        assert_eq!(loaded.admin.unwrap().port(), 9901);
        let host = loaded.snapshot.host("a.example.com").unwrap();
        let rule = host.rule("/x").unwrap();
        assert_eq!(rule.path, PathMatch::Exact("/x".to_owned()));
        let timeouts = rule.timeouts.unwrap();
        assert_eq!((timeouts.response.as_millis(), timeouts.connect.as_millis()), (7, 5));
        assert!(loaded.snapshot.host("q.b.com").is_some() && loaded.snapshot.host("b.com").is_none());
        assert!(load("").is_ok());
        for (written, all, each) in [(0, None, None), (7, Some(7), Some(7))] {
            let limits = format!("limits: {{max_connections: {written}, max_connections_per_address: {written}}}\n");
            let limits = load(&(GOOD.to_owned() + &limits)).unwrap().limits;
            assert_eq!((limits.max_connections, limits.max_connections_per_address), (all, each), "{written}");
        }
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_place() {
        for (from, to, part) in [
            ("admin:", "adnim:", "adnim"),
            ("balance: round_robin", "balance: best", "line 3"),
            ("weight: 100", "wait: 100", "wait"),
            ("upstream: a,", "upstream: c,", "`c`, which does not exist"),
            ("upstream: db}", "upstream: dc}", "`dc`, which does not exist"),
            ("name: db, endpoints", "name: a, endpoints", "two upstreams"),
            ("protocol: http}", "protocol: https}", "certificate"),
            ("prefix: /}", "prefix: x}", "begin with /"),
            ("\"*.b.com\"", "\"a.example.com\"", "two routes"),
            ("\"*.b.com\"", "\"a b\"", "not a host"),
            ("connect_ms: 5", "idle_ms: 5", "top `timeouts`"),
            ("127.0.0.1:9000", "localhost:9000", "line 3"),
            ("address: \"127.0.0.1:5432\"", "address: \"127.0.0.1:8080\"", "two listeners"),
        ] {
            let error = load(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(part), "{from} -> {to}: {error}");
        }
    }
}
