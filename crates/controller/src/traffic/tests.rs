//! What gateways read after components, routes and certificates changed.

use super::*;
use arco_model::component::RunDefaults;
use arco_model::id::{InstanceId, RevisionId, RowId};
use arco_model::observed::InstanceFacts;
use arco_model::route::{Route, TLS_AUTO, Target};
use arco_model::sample;
use arco_model::spec::Port;
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::kv::{Kv, KvLayer, MemoryKv, TxnResult};
use arco_store::sql::{Batch, Kind, MemoryMetadata, Metadata, Page, Row};
use async_trait::async_trait;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

struct World {
    publisher: Publisher,
    secrets: Arc<SecretBox>,
}

impl World {
    fn new() -> Self {
        let secrets = Arc::new(SecretBox::parse(&format!("k {}", "22".repeat(32))).unwrap());
        let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let publisher = Publisher::new(kv, metadata, secrets.clone(), "test".to_owned());
        Self { publisher, secrets }
    }

    /// A component with an HTTP port, kept and published.
    async fn component(&self, number: u64, name: &str) -> Component {
        let component = Component {
            id: ComponentId::from_parts(1, number),
            name: name.parse().unwrap(),
            created_at: Timestamp(number),
            ..sample::component()
        };
        self.publisher.metadata.insert(&component).await.unwrap();
        self.publish(&component).await;
        component
    }

    async fn publish(&self, component: &Component) {
        let port = |port, protocol| Port { port, protocol, outer: true };
        let defaults = RunDefaults {
            ports: vec![
                port(8080, Protocol::Http),
                port(9090, Protocol::Grpc),
                port(8443, Protocol::Https),
                port(9443, Protocol::Grpcs),
            ],
            ..RunDefaults::default()
        };
        let revision = Revision { defaults, ..sample::revision(component) };
        let published = self.publisher.publish(component, Some(&revision), &Observed::default(), Status::Running).await;
        assert!(published.unwrap() > 0);
    }

    async fn route(&self, of: &Component, host: &str, targets: &[&Component], tls: Option<&str>) -> RowId {
        let target =
            |it: &&Component| Target { to: UpstreamTarget { component: it.id.clone(), port: 8080 }, weight: 100 };
        let mut route = Route { targets: targets.iter().map(target).collect(), ..Route::default() };
        route.tls.certificate = tls.map(str::to_owned);
        let row = RouteRow {
            id: clock::fresh(),
            tenant: of.tenant.clone(),
            application: of.application.clone(),
            component: of.name.clone(),
            component_id: of.id.clone(),
            host: host.to_owned(),
            route,
            created_at: clock::now(),
        };
        self.publisher.metadata.insert(&row).await.unwrap();
        row.id
    }

    async fn entry(&self, host: &str) -> Option<HostEntry> {
        let found = self.publisher.kv.get(&format!("{HOSTS}{host}")).await.unwrap()?;
        Some(serde_json::from_slice(&found.value).unwrap())
    }

    async fn names(&self, host: &str) -> Vec<u64> {
        let callees: Vec<_> = self.entry(host).await.unwrap().callees().map(|it| it.component.clone()).collect();
        callees.iter().map(|it| (1..9).find(|n| ComponentId::from_parts(1, *n) == *it).unwrap()).collect()
    }
}

#[test]
fn instances_on_a_silent_node_are_asked_when_there_are_no_others() {
    let component = sample::component();
    let of = |number: u64, phase, node_silent| InstanceFacts {
        id: InstanceId::from_parts(1, number),
        revision: RevisionId::from_parts(1, 1),
        template: String::new(),
        place: 0,
        phase,
        address: Some([10, 0, 0, number as u8].into()),
        node: String::new(),
        restarts: 0,
        started_at: None,
        last_exit: None,
        listens_on: Vec::new(),
        fault: None,
        node_silent,
    };
    let (ready, unready) = (of(1, InstancePhase::Ready, false), of(2, InstancePhase::Unready, false));
    let (silent, gone) = (of(3, InstancePhase::Unready, true), of(4, InstancePhase::Stopping, true));
    let draining = of(5, InstancePhase::Draining, false);
    for (instances, asked) in [
        (vec![&ready, &unready, &silent], vec![(1, false)]),
        (vec![&unready, &silent, &gone], vec![(3, false)]),
        (vec![&silent, &draining], vec![(3, false), (5, true)]),
        (vec![&unready, &gone], vec![]),
    ] {
        let observed = Observed { instances: instances.into_iter().cloned().collect(), ..Observed::default() };
        let entry = upstream(&component, None, &observed, Status::Degraded);
        let found: Vec<_> = entry.endpoints.iter().map(|it| (it.address.octets()[3], it.draining)).collect();
        assert_eq!(found, asked);
    }
}

#[tokio::test]
async fn hosts_follow_routes_and_components() {
    let world = World::new();
    let web = world.component(1, "web").await;
    let other = world.component(2, "other").await;
    assert_eq!(world.names("web.shop.test").await, [1]);
    let upstream = world.publisher.kv.get(&format!("{UPSTREAMS}{}", web.id)).await.unwrap().unwrap();
    let upstream: UpstreamEntry = serde_json::from_slice(&upstream.value).unwrap();
    assert_eq!((upstream.http2_ports, upstream.tls_ports), (vec![9090, 9443], vec![8443, 9443]));
    world.route(&web, "w.test", &[&web, &other], None).await;
    let id = world.route(&web, "web.shop.test", &[&other], None).await;
    world.publish(&web).await;
    assert_eq!(world.names("w.test").await, [1, 2]);
    assert_eq!(world.names("web.shop.test").await, [2, 1], "the route before the default");
    // A second process knows what the first one published.
    let again = Publisher::new(
        world.publisher.kv.clone(),
        world.publisher.metadata.clone(),
        world.secrets.clone(),
        "test".to_owned(),
    );
    let world = World { publisher: again, secrets: world.secrets };
    world.publisher.load().await.unwrap();
    let revision = world.publisher.kv.list(HOSTS).await.unwrap().revision;
    world.publish(&other).await;
    assert_eq!(world.names("web.shop.test").await, [2, 1], "the default of another component stays");
    assert_eq!(world.publisher.kv.list(HOSTS).await.unwrap().revision, revision, "nothing is written anew");
    // A target that leaves takes its share with it; the last one takes the rule.
    world.publisher.withdraw(&other.id).await.unwrap();
    assert_eq!(world.names("w.test").await, [1]);
    assert_eq!(world.names("web.shop.test").await, [1]);
    let row = world.publisher.metadata.get::<RouteRow>(id.as_str()).await.unwrap().unwrap();
    let mut batch = Batch::default();
    batch.delete(&row);
    world.publisher.metadata.commit(batch).await.unwrap();
    world.publisher.withdraw(&web.id).await.unwrap();
    assert!(world.entry("w.test").await.is_none() && world.entry("web.shop.test").await.is_none());
}

#[tokio::test]
async fn a_host_that_leads_to_none_of_its_own_goes_with_its_route() {
    let world = World::new();
    let web = world.component(1, "web").await;
    let other = world.component(2, "other").await;
    let delete = async |id: &RowId| {
        let row = world.publisher.metadata.get::<RouteRow>(id.as_str()).await.unwrap().unwrap();
        let mut batch = Batch::default();
        batch.delete(&row);
        world.publisher.metadata.commit(batch).await.unwrap();
    };
    let redirect = async |host: &str| {
        let id = world.route(&web, host, &[], None).await;
        let mut row = world.publisher.metadata.get::<RouteRow>(id.as_str()).await.unwrap().unwrap();
        row.value.route.redirect = Some(serde_json::from_str(r#"{"path": "/new"}"#).unwrap());
        world.publisher.metadata.update(&row).await.unwrap();
        id
    };
    let ids =
        [redirect("one.test").await, redirect("two.test").await, world.route(&web, "far.test", &[&other], None).await];
    world.publish(&web).await;
    for host in ["one.test", "two.test", "far.test"] {
        assert!(world.entry(host).await.is_some(), "{host}");
    }
    delete(&ids[0]).await;
    delete(&ids[2]).await;
    world.publish(&web).await;
    assert!(world.entry("one.test").await.is_none() && world.entry("far.test").await.is_none());
    assert!(world.entry("two.test").await.is_some());
    // One that went while no controller ran.
    delete(&ids[1]).await;
    let (kv, metadata) = (world.publisher.kv.clone(), world.publisher.metadata.clone());
    let next = Publisher::new(kv, metadata, world.secrets.clone(), "test".to_owned());
    next.load().await.unwrap();
    assert!(world.entry("two.test").await.is_none());
}

async fn certificate(world: &World, number: u64, name: &str, hosts: &[&str], not_after: u64) -> RowId {
    let id = RowId::from_parts(5, number);
    let sealed = world.secrets.seal(&CertificateRow::key_context(&id), format!("key of {name}").as_bytes()).unwrap();
    let row = CertificateRow {
        id: id.clone(),
        tenant: TenantName::default_tenant(),
        name: name.to_owned(),
        automatic: false,
        hosts: hosts.iter().map(|it| (*it).to_owned()).collect(),
        issuer: String::new(),
        not_before: Timestamp(0),
        not_after: Timestamp(not_after),
        chain_pem: format!("chain of {name}"),
        key_id: sealed.key_id,
        sealed_key: sealed.text,
        created_at: Timestamp(number),
        issued_at: Timestamp(number),
        renewal: Default::default(),
    };
    world.publisher.metadata.insert(&row).await.unwrap();
    id
}

#[tokio::test]
async fn certificates_are_chosen_sealed_for_gateways_and_taken_away() {
    let world = World::new();
    let wide = certificate(&world, 1, "wide", &["*.a.test"], 900).await;
    let exact = certificate(&world, 2, "exact", &["x.a.test"], 500).await;
    certificate(&world, 3, "old", &["x.a.test"], 100).await;
    let web = world.component(1, "web").await;
    for (host, tls) in [("x.a.test", None), ("y.a.test", None), ("z.a.test", Some("off")), ("v.a.test", Some("wide"))] {
        world.route(&web, host, &[&web], tls).await;
    }
    world.route(&web, "b.test", &[&web], None).await;
    world.publish(&web).await;
    for (host, expected) in [
        ("x.a.test", Some(&exact)),
        ("y.a.test", Some(&wide)),
        ("z.a.test", None),
        ("v.a.test", Some(&wide)),
        ("b.test", None),
    ] {
        assert_eq!(world.entry(host).await.unwrap().tls.certificate.as_ref(), expected, "{host}");
    }
    let key = format!("{CERTIFICATES}{wide}");
    let found = world.publisher.kv.get(&key).await.unwrap().unwrap();
    let entry: CertificateEntry = serde_json::from_slice(&found.value).unwrap();
    assert!(!String::from_utf8_lossy(&found.value).contains("key of"));
    let gateways = SecretBox::parse(&world.secrets.derive(GATEWAY_KEYS)).unwrap();
    let sealed = Sealed { key_id: entry.key_id, text: entry.sealed_key };
    assert_eq!(gateways.unseal(&certificate_context(wide.as_str()), &sealed).unwrap(), b"key of wide");
    assert!(world.secrets.unseal(&certificate_context(wide.as_str()), &sealed).is_err());
    // Looked at again, nothing is sealed anew; what serves nobody goes.
    world.publish(&web).await;
    assert_eq!(world.publisher.kv.get(&key).await.unwrap().unwrap().mod_revision, found.mod_revision);
    world.publisher.withdraw(&web.id).await.unwrap();
    assert!(world.publisher.kv.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn what_proves_a_host_is_published_by_every_controller() {
    let world = World::new();
    let web = world.component(1, "web").await;
    let id = world.route(&web, "auto.test", &[&web], Some(TLS_AUTO)).await;
    world.publish(&web).await;
    let proof = Proof::Http { token: "token".to_owned(), answer: "answer".to_owned() };
    let first = Publisher::new(
        world.publisher.kv.clone(),
        world.publisher.metadata.clone(),
        world.secrets.clone(),
        "test".to_owned(),
    );
    first.prove("auto.test", Some(proof)).await.unwrap();
    let answers = async || {
        let rules = world.entry("auto.test").await.unwrap().rules;
        let paths = rules.iter().filter(|it| it.answer.is_some()).map(|it| it.paths[0].text().to_owned());
        paths.collect::<Vec<_>>()
    };
    let asked = ["/.well-known/acme-challenge/token"];
    assert_eq!(answers().await, asked);
    // Another controller that knows nothing of the order publishes the host anew.
    let mut row = world.publisher.metadata.get::<RouteRow>(id.as_str()).await.unwrap().unwrap();
    row.value.route.max_body_bytes = Some(1);
    world.publisher.metadata.update(&row).await.unwrap();
    world.publish(&web).await;
    assert!(world.entry("auto.test").await.unwrap().rules.iter().any(|it| it.max_body_bytes.is_some()));
    assert_eq!(answers().await, asked);
    // And takes away what a controller that ended left.
    world.publisher.prove("auto.test", None).await.unwrap();
    assert!(answers().await.is_empty());
    assert!(world.publisher.kv.list("/acme/").await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_host_with_client_certificates_is_served_over_tls_alone() {
    let world = World::new();
    certificate(&world, 1, "wide", &["*.shop.test", "vip.test"], 900).await;
    let web = world.component(1, "web").await;
    let rules = async |host: &str| world.entry(host).await.unwrap().rules;
    world.route(&web, "open.test", &[&web], None).await;
    for (host, second) in [("vip.test", true), ("web.shop.test", false)] {
        let id = world.route(&web, host, &[&web], Some(if second { TLS_AUTO } else { "wide" })).await;
        let mut row = world.publisher.metadata.get::<RouteRow>(id.as_str()).await.unwrap().unwrap();
        row.value.route.paths = vec![PathMatch::exact("/admin")];
        row.value.route.tls.client_ca = Some("authority".to_owned());
        world.publisher.metadata.update(&row).await.unwrap();
        if second {
            // A route that says nothing of it: the whole host asks for certificates.
            world.route(&web, host, &[&web], None).await;
        }
    }
    let proof = Proof::Http { token: "token".to_owned(), answer: "answer".to_owned() };
    world.publisher.prove("vip.test", Some(proof)).await.unwrap();
    world.publish(&web).await;
    assert!(rules("open.test").await.iter().all(|it| !it.tls.redirect));
    let vip = rules("vip.test").await;
    assert_eq!(vip.iter().map(|it| it.tls.redirect).collect::<Vec<_>>(), [false, true, true], "but for the proof");
    assert!(vip[0].answer.is_some());
    // The default host: what no rule is for leads to the component, over TLS, too.
    let entry = world.entry("web.shop.test").await.unwrap();
    assert!(entry.default.is_some() && entry.rules.iter().all(|it| it.tls.redirect), "{entry:?}");
    assert!(entry.rules.iter().any(|it| it.paths.is_empty()), "{entry:?}");
}

/// Metadata that count what they are asked for.
#[derive(Default)]
struct Counted {
    metadata: MemoryMetadata,
    calls: AtomicUsize,
}

#[async_trait]
impl Metadata for Counted {
    fn name(&self) -> &'static str {
        "counted"
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.metadata.get_row(kind, key).await
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.metadata.list_rows(kind, query).await
    }

    async fn commit(&self, batch: Batch) -> Result<(), SqlError> {
        self.metadata.commit(batch).await
    }

    async fn ping(&self) -> Result<(), SqlError> {
        self.metadata.ping().await
    }
}

#[tokio::test]
async fn a_component_with_many_hosts_costs_the_store_few_calls() {
    let mut world = World::new();
    let metadata = Arc::new(Counted::default());
    world.publisher.metadata = metadata.clone();
    let wide = certificate(&world, 1, "wide", &["*.many.test"], 900).await;
    let web = world.component(1, "web").await;
    let other = world.component(2, "other").await;
    let id = world.route(&web, "first.many.test", &[&web, &other], Some(TLS_AUTO)).await;
    let first = world.publisher.metadata.get::<RouteRow>(id.as_str()).await.unwrap().unwrap().value;
    let mut batch = Batch::default();
    for number in 0..2 * rows::AT_ONCE {
        // Of some the name is longer than a column of the store, and each is different.
        let host = format!("h{number}.{}many.test", "long.".repeat(number % 40));
        batch.insert(&RouteRow { id: clock::fresh(), host, ..first.clone() }).unwrap();
    }
    world.publisher.metadata.commit(batch).await.unwrap();
    let row = world.publisher.metadata.get::<CertificateRow>(wide.as_str()).await.unwrap().unwrap().value;
    let long = format!("h39.{}many.test", "long.".repeat(39));
    let own = CertificateRow {
        id: RowId::from_parts(5, 2),
        name: CertificateRow::automatic_name(&long),
        automatic: true,
        hosts: vec![long.clone()],
        not_after: Timestamp(u64::MAX / 4),
        ..row
    };
    let sealed = world.secrets.seal(&CertificateRow::key_context(&own.id), b"key").unwrap();
    let own = CertificateRow { key_id: sealed.key_id, sealed_key: sealed.text, ..own };
    world.publisher.metadata.insert(&own).await.unwrap();
    metadata.calls.store(0, Ordering::SeqCst);
    world.publish(&web).await;
    let calls = metadata.calls.load(Ordering::SeqCst);
    assert!(calls < 40, "{calls} calls");
    let there = world.publisher.kv.list(HOSTS).await.unwrap().items;
    assert_eq!(there.iter().filter(|it| it.key.ends_with(b"many.test")).count(), 2 * rows::AT_ONCE + 1);
    for (host, expected) in [("first.many.test", &wide), ("h0.many.test", &wide), (&long, &own.id)] {
        assert_eq!(world.names(host).await, [1, 2], "{host}");
        assert_eq!(world.entry(host).await.unwrap().tls.certificate.as_ref(), Some(expected), "{host}");
    }
}

/// A store of which one answer is lost after what was asked is done.
struct LosesAnAnswer {
    kv: MemoryKv,
    lose: AtomicBool,
}

#[async_trait]
impl KvLayer for LosesAnAnswer {
    fn inner(&self) -> &dyn Kv {
        &self.kv
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        let done = self.kv.txn(txn).await;
        match self.lose.swap(false, Ordering::SeqCst) {
            true => Err(KvError::Unavailable { step: "answer", cause: "the answer was lost on purpose".to_owned() }),
            false => done,
        }
    }
}

#[tokio::test]
async fn what_is_there_after_a_lost_answer_is_written_anew() {
    let mut world = World::new();
    let kv = Arc::new(LosesAnAnswer { kv: MemoryKv::new(), lose: false.into() });
    world.publisher.kv = kv.clone();
    let mut published = Published::default();
    let publisher = &world.publisher;
    let key = || "/gateway/test".to_owned();
    publisher.put(&mut published, key(), &1).await.unwrap();
    kv.lose.store(true, Ordering::SeqCst);
    publisher.put(&mut published, key(), &2).await.unwrap_err();
    publisher.put(&mut published, key(), &1).await.unwrap();
    assert_eq!(publisher.kv.get(&key()).await.unwrap().unwrap().value, b"1");
    kv.lose.store(true, Ordering::SeqCst);
    publisher.delete(&mut published, &key()).await.unwrap_err();
    publisher.put(&mut published, key(), &1).await.unwrap();
    assert_eq!(publisher.kv.get(&key()).await.unwrap().unwrap().value, b"1");
}
