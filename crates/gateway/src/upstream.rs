//! Upstreams and their endpoints: what outlives a snapshot (counters, failures, open requests) and how one is picked.
//!
//! What must hold: after [`InstanceState::drain`] returned and [`InstanceState::open`] was read as 0, no request is ever
//! sent to that instance again. Hence a request is counted *before* the draining mark is looked at.
//!
//! An instance is let go of as a whole, so that is counted for all that leads to it. What was found out about it (checks,
//! answers, failed connects) is of one upstream: routes ask other paths and ports by rules of their own, and one that
//! fails says nothing about another.

mod transport;

use crate::balance::{Balance, Check, Choice, Ejection, affinity, mixed};
use crate::metrics::UpstreamMetrics;
use crate::snapshot::{StickyCookie, Timeouts};
use arco_model::traffic::UpstreamState;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
pub use transport::{Transport, UpstreamTls};

/// An endpoint that failed to connect is asked last for so long.
const SHUN: Duration = Duration::from_secs(2);

/// What all upstreams of an instance share, whatever the snapshot.
#[derive(Debug, Default)]
pub struct InstanceState {
    draining: AtomicBool,
    open: AtomicUsize,
    idle: Arc<Notify>,
}

impl InstanceState {
    /// A state without requests; `idle` is rung when a draining instance has no open request any more.
    pub fn new(idle: Arc<Notify>) -> Self {
        Self { idle, ..Self::default() }
    }

    /// Whether new requests go elsewhere (`true`) or may come here.
    pub fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }

    /// Requests that are open here.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Whether new requests go elsewhere.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// What one upstream has found out about an endpoint, kept from snapshot to snapshot.
#[derive(Debug)]
pub struct EndpointState {
    /// The instance that is behind it.
    instance: Arc<InstanceState>,
    /// Milliseconds since `born` of the last failed connect, plus 1; 0 for none.
    failed_at: AtomicU64,
    /// Failures one after the other, and how often it was left out in a row.
    failures: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds since `born`; 0 for never.
    ejected_until: AtomicU64,
    /// Moving average of the time to a response, in microseconds.
    ewma: AtomicU64,
    unhealthy: AtomicBool,
    /// Checks with the same result one after the other.
    checks: AtomicU32,
    check_due: AtomicU64,
    checking: AtomicBool,
    born: Instant,
}

impl EndpointState {
    /// A state in which nothing is known of an endpoint of `instance`.
    pub fn new(instance: Arc<InstanceState>) -> Self {
        Self {
            instance,
            failed_at: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ewma: AtomicU64::new(0),
            unhealthy: AtomicBool::new(false),
            checks: AtomicU32::new(0),
            check_due: AtomicU64::new(0),
            checking: AtomicBool::new(false),
            born: Instant::now(),
        }
    }

    /// Whether it is an endpoint of this instance.
    pub fn is_of(&self, instance: &Arc<InstanceState>) -> bool {
        Arc::ptr_eq(&self.instance, instance)
    }

    /// Requests that are open at its instance.
    pub fn open(&self) -> usize {
        self.instance.open()
    }

    /// Whether new requests go elsewhere.
    pub fn is_draining(&self) -> bool {
        self.instance.is_draining()
    }

    /// Remembers a failed connect.
    pub fn failed(&self) {
        self.failed_at.store(self.born.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Forgets failed connects.
    pub fn answered(&self) {
        if self.failed_at.load(Ordering::Relaxed) != 0 {
            self.failed_at.store(0, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    /// Remembers how a request ended. Returns whether that leaves the endpoint out for a while.
    pub fn ended(&self, well: bool, ejection: &Ejection) -> bool {
        if well {
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
            let until = self.ejected_until.load(Ordering::Relaxed);
            if until != 0 && self.now() > until + ejection.slow_return.as_millis() as u64 {
                self.ejected_until.store(0, Ordering::Relaxed);
                self.ejections.store(0, Ordering::Relaxed);
            }
            return false;
        }
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 < ejection.failures {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        let times = self.ejections.fetch_add(1, Ordering::Relaxed).min(5);
        let until = self.now() + (ejection.base.as_millis() as u64) * (1 << times);
        self.ejected_until.store(until, Ordering::Relaxed);
        true
    }

    /// Remembers how long a response took.
    pub fn took(&self, time: Duration) {
        let (sample, old) = (time.as_micros() as u64, self.ewma.load(Ordering::Relaxed));
        let new = if old == 0 { sample } else { (old * 7 + sample) / 8 };
        self.ewma.store(new.max(1), Ordering::Relaxed);
    }

    /// The right to a check, once per `interval` and not beside another one: a late answer must not undo a younger one.
    pub fn begin_check(self: &Arc<Self>, interval: Duration) -> Option<Checking> {
        let (now, due) = (self.now(), self.check_due.load(Ordering::Relaxed));
        if now < due || self.checking.swap(true, Ordering::Acquire) {
            return None;
        }
        self.check_due.store(now + interval.as_millis() as u64, Ordering::Relaxed);
        Some(Checking { state: Arc::clone(self) })
    }

    /// Remembers a check. Returns whether the endpoint's health changed.
    pub fn checked(&self, well: bool, check: &Check) -> bool {
        if well != self.unhealthy.load(Ordering::Relaxed) {
            self.checks.store(0, Ordering::Relaxed);
            return false;
        }
        let needed = if well { check.healthy } else { check.unhealthy };
        if self.checks.fetch_add(1, Ordering::Relaxed) + 1 < needed {
            return false;
        }
        self.checks.store(0, Ordering::Relaxed);
        self.unhealthy.store(!well, Ordering::Relaxed);
        true
    }

    /// Whether others are asked first; while it returns slowly, `turn` decides.
    fn is_out(&self, turn: usize, ejection: Option<&Ejection>) -> bool {
        if self.unhealthy.load(Ordering::Relaxed) || self.is_shunned() {
            return true;
        }
        let until = self.ejected_until.load(Ordering::Relaxed);
        ejection.is_some_and(|it| until != 0 && is_ejected(turn, it, until, self.now()))
    }

    fn is_shunned(&self) -> bool {
        let failed_at = self.failed_at.load(Ordering::Relaxed);
        failed_at != 0 && self.born.elapsed() < Duration::from_millis(failed_at) + SHUN
    }
}

/// Whether an endpoint that is left out `until` then, for its answers, is so `now`, or not back with all of its share.
fn is_ejected(turn: usize, ejection: &Ejection, until: u64, now: u64) -> bool {
    let ramp = ejection.slow_return.as_millis() as u64;
    now < until || (now - until < ramp && mixed(turn as u64) % ramp >= now - until)
}

/// A check that goes on until this is dropped.
#[derive(Debug)]
pub struct Checking {
    state: Arc<EndpointState>,
}

impl Drop for Checking {
    fn drop(&mut self) {
        self.state.checking.store(false, Ordering::Release);
    }
}

/// One address of an upstream.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is known of it.
    pub state: Arc<EndpointState>,
    /// Its share beside the others.
    pub weight: u32,
}

/// What an upstream does beyond asking its endpoints in turn.
#[derive(Clone, Debug, Default)]
pub struct UpstreamSettings {
    /// How endpoints are chosen.
    pub balance: Balance,
    /// When one is left out because of its answers.
    pub ejection: Option<Ejection>,
    /// How they are checked.
    pub check: Option<Check>,
    /// Most open requests per endpoint; beyond that 503.
    pub max_open: Option<usize>,
    /// How they are spoken to.
    pub transport: Transport,
    /// Version of the PROXY protocol by which TCP endpoints learn who connected.
    pub proxy_protocol: Option<u8>,
}

/// One request that counts as open at an endpoint until this is dropped.
#[derive(Debug)]
pub struct OpenRequest {
    endpoint: Endpoint,
}

impl OpenRequest {
    /// Counts a request, unless the endpoint drains.
    fn begin(endpoint: &Endpoint, max: Option<usize>) -> Option<Self> {
        let before = endpoint.state.instance.open.fetch_add(1, Ordering::SeqCst);
        let open = Self { endpoint: endpoint.clone() };
        (!endpoint.state.is_draining() && max.is_none_or(|it| before < it)).then_some(open)
    }

    /// Its endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let instance = &self.endpoint.state.instance;
        if instance.open.fetch_sub(1, Ordering::SeqCst) == 1 && instance.is_draining() {
            instance.idle.notify_one();
        }
    }
}

/// A set of endpoints that answer alike.
#[derive(Debug)]
pub struct Upstream {
    /// Name in the source.
    pub name: Arc<str>,
    /// What people call it: `application/component`, or its name in the file.
    pub reference: Arc<str>,
    /// Whether it is meant to answer.
    pub state: UpstreamState,
    /// Endpoints that may get requests.
    pub endpoints: Vec<Endpoint>,
    /// Limits.
    pub timeouts: Timeouts,
    /// Everything else.
    pub settings: Arc<UpstreamSettings>,
    /// Counters.
    pub metrics: Arc<UpstreamMetrics>,
    /// Turn of the round robin; kept from snapshot to snapshot.
    pub turn: Arc<AtomicUsize>,
}

impl Upstream {
    /// Picks the next endpoint that is not in `tried`; those that are not well come last.
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<OpenRequest> {
        self.pick_for(tried, &Choice::default())
    }

    /// The same, for a request with this key.
    pub fn pick_for(&self, tried: &[SocketAddr], choice: &Choice) -> Option<OpenRequest> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.search(turn, tried, choice, |it| OpenRequest::begin(it, self.settings.max_open))
    }

    /// The endpoint that the next request with this key gets. Nothing is counted, and nobody's turn is taken.
    pub fn next_for(&self, choice: &Choice) -> Option<&Endpoint> {
        let has_room = |it: &Endpoint| self.settings.max_open.is_none_or(|max| it.state.open() < max);
        let turn = self.turn.load(Ordering::Relaxed);
        self.search(turn, &[], choice, |it| (!it.state.is_draining() && has_room(it)).then_some(it))
    }

    /// What the first one gives that `take` gives anything for, in the order of this `turn`.
    fn search<'a, T>(
        &'a self,
        turn: usize,
        tried: &[SocketAddr],
        choice: &Choice,
        take: impl Fn(&'a Endpoint) -> Option<T>,
    ) -> Option<T> {
        let count = self.endpoints.len();
        if count == 0 {
            return None;
        }
        let ejection = self.settings.ejection.as_ref();
        for out in [false, true] {
            let fits = |it: &Endpoint| it.state.is_out(turn, ejection) == out && !tried.contains(&it.address);
            let start = self.start(turn, choice, &fits);
            for at in 0..count {
                let endpoint = &self.endpoints[(start.wrapping_add(at)) % count];
                if fits(endpoint)
                    && let Some(taken) = take(endpoint)
                {
                    return Some(taken);
                }
            }
        }
        None
    }

    /// Where the search begins: the endpoint that is preferred among those that fit.
    fn start(&self, turn: usize, choice: &Choice, fits: &dyn Fn(&Endpoint) -> bool) -> usize {
        let all = &self.endpoints;
        let any_of_two = |cost: &dyn Fn(&Endpoint) -> u64| {
            let random = mixed(turn as u64);
            let next = |from: u64| {
                let from = from as usize % all.len();
                (from..from + all.len()).map(|it| it % all.len()).find(|it| fits(&all[*it])).unwrap_or(from)
            };
            let first = next(random >> 32);
            let second = next(first as u64 + 1 + (random & 0xffff_ffff) % (all.len() as u64).max(2).saturating_sub(1));
            if cost(&all[second]) < cost(&all[first]) { second } else { first }
        };
        match &self.settings.balance {
            Balance::RoundRobin => turn,
            Balance::Weighted => {
                let total: usize = all.iter().map(|it| it.weight as usize).sum::<usize>().max(1);
                let mut at = turn % total * crate::snapshot::spread(total) % total;
                let found = all.iter().position(|it| match at.checked_sub(it.weight as usize) {
                    Some(left) => {
                        at = left;
                        false
                    }
                    None => true,
                });
                found.unwrap_or(turn)
            }
            Balance::LeastRequests => any_of_two(&|it| it.state.open() as u64 * 1000 / u64::from(it.weight.max(1))),
            Balance::Ewma => any_of_two(&|it| it.state.ewma.load(Ordering::Relaxed) * (it.state.open() as u64 + 1)),
            Balance::Hash(_) => {
                let key = choice.hash.unwrap_or(turn as u64);
                let worth = |at: &usize| affinity(key, all[*at].address, all[*at].weight);
                let best = (0..all.len()).filter(|it| fits(&all[*it])).max_by(|a, b| worth(a).total_cmp(&worth(b)));
                best.unwrap_or(turn)
            }
            Balance::Sticky(_) => {
                let known = choice.token.as_ref().and_then(|it| all.iter().position(|at| at.token() == *it));
                known.unwrap_or(turn)
            }
        }
    }

    /// Whether it is a limit of open requests that keeps a request, for which nobody could be picked, from all.
    ///
    /// What is open now does not matter: it may have changed since.
    pub fn is_limited(&self) -> bool {
        self.settings.max_open.is_some() && self.endpoints.iter().any(|it| !it.state.is_draining())
    }
}

impl Endpoint {
    /// What stands for it in the cookie of [`Balance::Sticky`].
    pub fn token(&self) -> String {
        StickyCookie::token(&self.address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn upstream(count: u16) -> Upstream {
        let endpoint = |port| Endpoint {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            state: Arc::new(EndpointState::new(Arc::default())),
            weight: u32::from(port),
        };
        Upstream {
            name: "u".into(),
            reference: "u".into(),
            state: UpstreamState::Up,
            endpoints: (1..=count).map(endpoint).collect(),
            timeouts: Timeouts::default(),
            settings: Arc::default(),
            metrics: Metrics::new().upstream("u"),
            turn: Arc::default(),
        }
    }

    /// Fails a connect that is remembered for as long as a test goes on.
    fn shun(endpoint: &Endpoint) {
        endpoint.state.failed();
        endpoint.state.failed_at.fetch_add(3_600_000, Ordering::Relaxed);
    }

    fn port(open: &Option<OpenRequest>) -> Option<u16> {
        open.as_ref().map(|it| it.endpoint().address.port())
    }

    #[test]
    fn requests_go_round_and_avoid_what_failed_drains_or_was_tried() {
        let upstream = upstream(3);
        let ports: Vec<_> = (0..6).filter_map(|_| port(&upstream.pick(&[]))).collect();
        assert_eq!(ports, [1, 2, 3, 1, 2, 3]);
        upstream.endpoints[0].state.instance.drain(true);
        shun(&upstream.endpoints[1]);
        for _ in 0..4 {
            assert_eq!(port(&upstream.pick(&[])), Some(3));
        }
        assert_eq!(port(&upstream.pick(&[upstream.endpoints[2].address])), Some(2), "failed ones are the last resort");
        upstream.endpoints[1].state.instance.drain(true);
        upstream.endpoints[2].state.instance.drain(true);
        assert!(upstream.pick(&[]).is_none());
        assert!(upstream.endpoints.iter().all(|it| it.state.open() == 0));
    }

    #[test]
    fn who_looks_ahead_takes_nobodys_turn() {
        let upstream = upstream(3);
        for expected in [1, 2, 3, 1] {
            let next = || upstream.next_for(&Choice::default()).map(|it| it.address.port());
            assert_eq!((next(), next()), (Some(expected), Some(expected)));
            assert!(upstream.endpoints.iter().all(|it| it.state.open() == 0));
            assert_eq!(port(&upstream.pick(&[])), Some(expected));
        }
        let full = balanced(1, Balance::RoundRobin);
        let open: Vec<_> = (0..50).filter_map(|_| full.pick(&[])).collect();
        assert!(open.len() == 50 && full.next_for(&Choice::default()).is_none());
        upstream.endpoints.iter().for_each(|it| it.state.instance.drain(true));
        assert!(upstream.next_for(&Choice::default()).is_none());
    }

    #[tokio::test]
    async fn the_last_request_of_a_draining_endpoint_rings() {
        let upstream = upstream(1);
        let instance = Arc::clone(&upstream.endpoints[0].state.instance);
        let (first, second) = (upstream.pick(&[]), upstream.pick(&[]));
        instance.drain(true);
        assert_eq!(instance.open(), 2);
        drop((first, second));
        assert_eq!(instance.open(), 0);
        instance.idle.notified().await;
    }

    fn balanced(count: u16, balance: Balance) -> Upstream {
        let settings = UpstreamSettings { balance, max_open: Some(50), ..UpstreamSettings::default() };
        Upstream { settings: Arc::new(settings), ..upstream(count) }
    }

    #[test]
    fn weights_keys_cookies_and_loads_decide() {
        let weighted = balanced(3, Balance::Weighted);
        let mut seen = [0; 4];
        for _ in 0..60 {
            seen[usize::from(port(&weighted.pick(&[])).unwrap())] += 1;
        }
        assert_eq!(seen, [0, 10, 20, 30]);
        let hashed = balanced(3, Balance::Hash(crate::balance::HashKey::Source));
        for key in 0..20 {
            let choice = Choice { hash: Some(key), token: None };
            let first = port(&hashed.pick_for(&[], &choice));
            assert_eq!(port(&hashed.pick_for(&[], &choice)), first);
        }
        let sticky = balanced(3, Balance::Sticky(StickyCookie { name: "c".into(), max_age_s: None }));
        let choice = Choice { hash: None, token: Some(sticky.endpoints[1].token()) };
        for _ in 0..5 {
            assert_eq!(port(&sticky.pick_for(&[], &choice)), Some(2));
        }
        shun(&sticky.endpoints[1]);
        assert_ne!(port(&sticky.pick_for(&[], &choice)), Some(2), "not to one that cannot be reached");
        let least = balanced(2, Balance::LeastRequests);
        let held: Vec<_> = (0..10).filter_map(|_| OpenRequest::begin(&least.endpoints[0], None)).collect();
        for _ in 0..10 {
            assert_eq!(port(&least.pick(&[])), Some(2));
        }
        drop(held);
        let ewma = balanced(2, Balance::Ewma);
        ewma.endpoints[0].state.took(Duration::from_millis(5));
        ewma.endpoints[1].state.took(Duration::from_millis(50));
        assert!((0..10).all(|_| port(&ewma.pick(&[])) == Some(1)));
        let open: Vec<_> = (0..200).filter_map(|_| ewma.pick(&[])).collect();
        assert_eq!((open.len(), ewma.is_limited()), (100, true));
        ewma.endpoints.iter().for_each(|it| it.state.instance.drain(true));
        assert!(!ewma.is_limited(), "those that are left take no more at any rate");
    }

    #[test]
    fn failures_leave_an_endpoint_out_and_it_returns_slowly() {
        let ejection = Ejection { failures: 3, base: Duration::from_secs(3600), slow_return: Duration::from_secs(100) };
        let state = EndpointState::new(Arc::default());
        assert!(!state.ended(false, &ejection) && !state.ended(false, &ejection));
        assert!(!state.ended(true, &ejection), "a success begins the count anew");
        assert!(!state.ended(false, &ejection) && !state.ended(false, &ejection) && state.ended(false, &ejection));
        assert!(state.is_out(0, Some(&ejection)) && !state.is_out(0, None));
        // When a quarter of its slow return is over, and all of it.
        let until = state.ejected_until.load(Ordering::Relaxed);
        let out = |now| (0..1000).filter(|it| is_ejected(*it, &ejection, until, now)).count();
        let quarter = out(until + 25_000);
        assert!((700..800).contains(&quarter), "{quarter}");
        assert_eq!((out(until - 1), out(until + 100_000)), (1000, 0));
        let check = Check {
            http: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 2,
        };
        let results = [false, true, false, false, true, false, true, true].map(|it| state.checked(it, &check));
        assert_eq!(results, [false, false, false, true, false, false, false, true]);
    }

    #[test]
    fn an_endpoint_is_checked_once_at_a_time() {
        let state = Arc::new(EndpointState::new(Arc::default()));
        let first = state.begin_check(Duration::ZERO);
        assert!(first.is_some() && state.begin_check(Duration::ZERO).is_none(), "one goes on");
        drop(first);
        assert!(state.begin_check(Duration::from_secs(3600)).is_some());
        assert!(state.begin_check(Duration::ZERO).is_none(), "the next one is not due");
    }
}
