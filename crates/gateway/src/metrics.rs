//! Counters of the data plane, in the Prometheus text format. Handles are taken when a snapshot is built, so that a
//! request only adds to atomics. At most [`MAX_SERIES`] routes and upstreams have series of their own; the rest count
//! under `other`.

mod durations;

use crate::virtual_address::Standing;
pub use durations::Durations;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Most routes, and most upstreams, that are counted on their own.
pub const MAX_SERIES: usize = 2_000;

const BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Of routes there are more.
const ROUTE_BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Where the rest is counted.
const OTHER: &str = "other";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    host: String,
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HostLabels {
    host: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AddressLabels {
    address: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusalLabels {
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HandshakeLabels {
    version: &'static str,
    resumed: bool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Counters of one route (host).
#[derive(Debug)]
pub struct RouteMetrics {
    classes: [Counter; 5],
    seconds: Durations,
    received: Counter,
    sent: Counter,
    open: Gauge,
    own: bool,
}

impl RouteMetrics {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        self.classes[usize::from(status / 100).clamp(1, 5) - 1].inc();
    }

    /// Counts a request as open until [`RouteMetrics::over`].
    pub fn begun(&self) {
        self.open.inc();
    }

    /// Counts the end of a request that had begun: how long it took, and the bytes of its body and of its answer's.
    pub fn over(&self, took: Duration, received: u64, sent: u64) {
        self.open.dec();
        self.seconds.observe(took);
        // Most requests have no body: nobody else's cache is troubled for nothing.
        if received > 0 {
            self.received.inc_by(received);
        }
        if sent > 0 {
            self.sent.inc_by(sent);
        }
    }

    /// Answers since the start, and how many of them were 500 and above.
    pub fn answers(&self) -> (u64, u64) {
        (self.classes.iter().map(Counter::get).sum(), self.classes[4].get())
    }

    /// Whether these count one host, not all beyond [`MAX_SERIES`].
    pub fn is_own(&self) -> bool {
        self.own
    }
}

/// Counters of one upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    /// Time from the request's arrival to the end of the response.
    pub seconds: Durations,
    /// Attempts that failed before a response.
    pub failures: Counter,
    /// Attempts beyond the first.
    pub retries: Counter,
    /// How often an endpoint was left out for a while because of its answers.
    pub ejections: Counter,
    /// Requests that are open.
    pub open: Gauge,
    /// The same times as `seconds`, finer, to be read here.
    pub times: Times,
}

impl UpstreamMetrics {
    /// Counts one finished request.
    pub fn finished(&self, took: Duration) {
        self.seconds.observe(took);
        self.times.add(took);
    }
}

/// Times in buckets that grow by the square root of two, from 0.125 ms to about six minutes.
#[derive(Debug)]
pub struct Times([AtomicU64; Times::BUCKETS]);

impl Default for Times {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Times {
    /// How many buckets there are.
    pub const BUCKETS: usize = 44;

    fn add(&self, took: Duration) {
        // Bucket `2k` ends at `125 µs · 2^k`, bucket `2k + 1` at √2 of that.
        let units = took.as_micros().max(1) as f64 / 125.0;
        let at = (units.log2() * 2.0).ceil().max(0.0) as usize;
        self.0[at.min(Self::BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// What is counted in each bucket.
    pub fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|it| it.load(Ordering::Relaxed)).collect()
    }

    /// The time within which `share` of what is counted was, in ms; `None` when nothing is.
    pub fn quantile_ms(counts: &[u64], share: f64) -> Option<f64> {
        let total: u64 = counts.iter().sum();
        let wanted = (total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let end = |at: usize| 0.125 * (at as f64 / 2.0).exp2();
        for (at, count) in counts.iter().enumerate() {
            if seen + count >= wanted && *count > 0 {
                let begin = if at == 0 { 0.0 } else { end(at - 1) };
                return Some(begin + (end(at) - begin) * (wanted - seen) as f64 / *count as f64);
            }
            seen += count;
        }
        None
    }
}

/// All counters; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    requests: Family<RouteLabels, Counter>,
    request_seconds: Family<HostLabels, Durations, fn() -> Durations>,
    received: Family<HostLabels, Counter>,
    sent: Family<HostLabels, Counter>,
    open_requests: Family<HostLabels, Gauge>,
    seconds: Family<UpstreamLabels, Durations, fn() -> Durations>,
    failures: Family<UpstreamLabels, Counter>,
    retries: Family<UpstreamLabels, Counter>,
    ejections: Family<UpstreamLabels, Counter>,
    open: Family<UpstreamLabels, Gauge>,
    refusals: Family<RefusalLabels, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    handshake_failures: Family<ReasonLabels, Counter>,
    log_lines: Counter,
    log_dropped: Counter,
    connections: Gauge,
    accepted: Counter,
    revision: Gauge,
    virtual_address: Family<AddressLabels, Gauge>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    routes: HashMap<String, Weak<RouteMetrics>>,
    upstreams: HashMap<String, Weak<UpstreamMetrics>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counters at zero.
    pub fn new() -> Self {
        let of_upstream: fn() -> Durations = || Durations::new(BUCKETS);
        let of_route: fn() -> Durations = || Durations::new(ROUTE_BUCKETS);
        let mut registry = Registry::with_prefix("arco_gateway");
        let inner = Inner {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(of_route),
            received: Family::default(),
            sent: Family::default(),
            open_requests: Family::default(),
            seconds: Family::new_with_constructor(of_upstream),
            failures: Family::default(),
            retries: Family::default(),
            ejections: Family::default(),
            open: Family::default(),
            refusals: Family::default(),
            handshakes: Family::default(),
            handshake_failures: Family::default(),
            log_lines: Counter::default(),
            log_dropped: Counter::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            revision: Gauge::default(),
            virtual_address: Family::default(),
            known: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests by route and class of the answer", inner.requests.clone());
        let seconds = "Time from a request's head to the end of its answer, by route";
        registry.register("request_seconds", seconds, inner.request_seconds.clone());
        registry.register("received_bytes", "Bytes of requests' bodies by route", inner.received.clone());
        registry.register("sent_bytes", "Bytes of answers' bodies by route", inner.sent.clone());
        registry.register("open_requests", "Requests that are open by route", inner.open_requests.clone());
        registry.register("upstream_seconds", "Time from request to the end of the response", inner.seconds.clone());
        registry.register("upstream_failures", "Attempts without a response", inner.failures.clone());
        registry.register("upstream_retries", "Attempts beyond the first", inner.retries.clone());
        let ejections = "How often an endpoint was left out for a while because of its answers";
        registry.register("upstream_ejections", ejections, inner.ejections.clone());
        registry.register("upstream_open", "Requests that are open by upstream", inner.open.clone());
        registry.register("refused", "Requests refused before routing", inner.refusals.clone());
        registry.register("tls_handshakes", "Handshakes of clients that succeeded", inner.handshakes.clone());
        registry.register("tls_failures", "Handshakes of clients that failed", inner.handshake_failures.clone());
        registry.register("access_log_lines", "Lines of the access log that were written", inner.log_lines.clone());
        registry.register("access_log_dropped", "Lines of the access log that were dropped", inner.log_dropped.clone());
        registry.register("connections", "Client connections that are open", inner.connections.clone());
        registry.register("accepted", "Client connections accepted", inner.accepted.clone());
        registry.register("revision", "Revision of the routing snapshot", inner.revision.clone());
        let standing = "How the shared address stands: 0 keepalived is down, 1 standby, 2 active here";
        registry.register("virtual_address", standing, inner.virtual_address.clone());
        Self { inner: Arc::new(Inner { registry, ..inner }) }
    }

    /// Counters of a route; the same ones for the same host while any handle lives.
    pub fn route(&self, host: &str) -> Arc<RouteMetrics> {
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        handle(&mut known.routes, host, |host| {
            let counter = |class| self.inner.requests.get_or_create_owned(&RouteLabels { host: host.clone(), class });
            let (own, classes) = (host != OTHER, CLASSES.map(counter));
            let labels = HostLabels { host };
            RouteMetrics {
                classes,
                seconds: self.inner.request_seconds.get_or_create_owned(&labels),
                received: self.inner.received.get_or_create_owned(&labels),
                sent: self.inner.sent.get_or_create_owned(&labels),
                open: self.inner.open_requests.get_or_create_owned(&labels),
                own,
            }
        })
    }

    /// Counters of an upstream; the same ones for the same name while any handle lives.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        handle(&mut known.upstreams, name, |upstream| {
            let labels = UpstreamLabels { upstream };
            UpstreamMetrics {
                seconds: self.inner.seconds.get_or_create_owned(&labels),
                failures: self.inner.failures.get_or_create_owned(&labels),
                retries: self.inner.retries.get_or_create_owned(&labels),
                ejections: self.inner.ejections.get_or_create_owned(&labels),
                open: self.inner.open.get_or_create_owned(&labels),
                times: Times::default(),
            }
        })
    }

    /// Removes the series of routes and upstreams that no snapshot holds any more.
    pub fn prune(&self) {
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.routes.retain(|host, handle| {
            let alive = handle.strong_count() > 0;
            if !alive {
                for class in CLASSES {
                    self.inner.requests.remove(&RouteLabels { host: host.clone(), class });
                }
                let labels = HostLabels { host: host.clone() };
                self.inner.request_seconds.remove(&labels);
                self.inner.received.remove(&labels);
                self.inner.sent.remove(&labels);
                self.inner.open_requests.remove(&labels);
            }
            alive
        });
        known.upstreams.retain(|upstream, handle| {
            let alive = handle.strong_count() > 0;
            if !alive {
                let labels = UpstreamLabels { upstream: upstream.clone() };
                self.inner.seconds.remove(&labels);
                self.inner.failures.remove(&labels);
                self.inner.retries.remove(&labels);
                self.inner.ejections.remove(&labels);
                self.inner.open.remove(&labels);
            }
            alive
        });
    }

    /// Counts a request that was refused before it could be routed.
    pub fn refused(&self, status: u16) {
        self.inner.refusals.get_or_create(&RefusalLabels { status }).inc();
    }

    /// Counts a client's handshake: the version that was agreed on, and whether it goes on with an earlier session.
    pub fn handshake(&self, version: &'static str, resumed: bool) {
        self.inner.handshakes.get_or_create(&HandshakeLabels { version, resumed }).inc();
    }

    /// Counts a client's handshake that failed for one of a few reasons.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.inner.handshake_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a connection until the guard is dropped.
    pub fn connection(&self) -> ConnectionGuard {
        self.inner.accepted.inc();
        self.inner.connections.inc();
        ConnectionGuard { open: self.inner.connections.clone() }
    }

    /// Counters of the lines of the access log: those that were written, and those that were dropped.
    pub fn access_log(&self) -> (Counter, Counter) {
        (self.inner.log_lines.clone(), self.inner.log_dropped.clone())
    }

    /// Says which revision is routed by.
    pub fn applied(&self, revision: u64) {
        self.inner.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
    }

    /// Says how a shared address stands on this machine.
    pub fn virtual_address(&self, address: IpAddr, standing: Standing) {
        let labels = AddressLabels { address: address.to_string() };
        self.inner.virtual_address.get_or_create(&labels).set(standing as i64);
    }

    /// Everything, as `/metrics` answers it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.inner.registry);
        text
    }
}

/// One open connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    open: Gauge,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.open.dec();
    }
}

fn handle<T>(known: &mut HashMap<String, Weak<T>>, name: &str, make: impl FnOnce(String) -> T) -> Arc<T> {
    if let Some(found) = known.get(name).and_then(Weak::upgrade) {
        return found;
    }
    let name = if known.len() >= MAX_SERIES && !known.contains_key(name) { OTHER } else { name };
    if let Some(found) = known.get(name).and_then(Weak::upgrade) {
        return found;
    }
    let made = Arc::new(make(name.to_owned()));
    known.insert(name.to_owned(), Arc::downgrade(&made));
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_come_go_and_are_bounded() {
        let metrics = Metrics::new();
        let (route, upstream) = (metrics.route("a.example.com"), metrics.upstream("demo/web"));
        route.answered(204);
        route.begun();
        route.begun();
        route.over(Duration::from_millis(2), 7, 0);
        upstream.ejections.inc();
        metrics.handshake("1.3", true);
        upstream.finished(Duration::from_millis(3));
        let text = metrics.text();
        assert!(text.contains("arco_gateway_requests_total{host=\"a.example.com\",class=\"2xx\"} 1"), "{text}");
        for line in [
            "request_seconds_bucket{le=\"0.005\",host=\"a.example.com\"} 1",
            "received_bytes_total{host=\"a.example.com\"} 7",
            "sent_bytes_total{host=\"a.example.com\"} 0",
            "open_requests{host=\"a.example.com\"} 1",
            "upstream_ejections_total{upstream=\"demo/web\"} 1",
            "tls_handshakes_total{version=\"1.3\",resumed=\"true\"} 1",
        ] {
            assert!(text.contains(&format!("arco_gateway_{line}")), "{line} in {text}");
        }
        assert!(text.contains("demo/web"));
        drop((route, upstream));
        metrics.prune();
        assert!(!metrics.text().contains("demo/web") && !metrics.text().contains("a.example.com"));
        let many: Vec<_> = (0..MAX_SERIES + 100).map(|it| metrics.route(&format!("h{it}"))).collect();
        many.iter().for_each(|it| it.answered(200));
        let text = metrics.text();
        assert!(text.contains("host=\"other\",class=\"2xx\"} 100"));
        assert!(text.lines().count() < MAX_SERIES * 20 + 100);
    }

    #[test]
    fn quantiles_of_times() {
        let times = Times::default();
        assert_eq!(Times::quantile_ms(&times.counts(), 0.5), None);
        (0..98).for_each(|_| times.add(Duration::from_millis(3)));
        times.add(Duration::from_millis(200));
        times.add(Duration::from_secs(100_000));
        let counts = times.counts();
        for (share, from, to) in [(0.5, 2.0, 4.0), (0.99, 140.0, 260.0), (1.0, 200_000.0, 400_000.0)] {
            let found = Times::quantile_ms(&counts, share).unwrap();
            assert!((from..to).contains(&found), "{share}: {found}");
        }
    }
}
