//! Routes and certificates as the control plane writes them into the store.

use crate::kit::*;
use crate::rolling::{Plane, acknowledged, address, put};
use arco_model::id::{ComponentId, InstanceId, RowId};
use arco_model::route::{Route, UpstreamTarget};
use arco_model::time::Timestamp;
use arco_model::traffic::*;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::client::TlsStream;

const PORT: u16 = 18_081;

fn component(number: u64) -> ComponentId {
    ComponentId::from_parts(3, number)
}

/// A component with one instance at [`address`] that answers with its number.
async fn component_at(store: &Arc<Store>, number: u8) -> u64 {
    let address = address(number);
    origin_at(&format!("{address}:{PORT}"), move |mut wire: Wire| async move {
        while let Some(message) = wire.message().await {
            let seen = message.head.lines().next().unwrap_or_default().to_owned();
            let body = format!("{number} {seen}");
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        }
    })
    .await;
    let entry = UpstreamEntry {
        component: component(number.into()),
        reference: format!("demo/c{number}"),
        state: UpstreamState::Up,
        endpoints: vec![Endpoint {
            instance: InstanceId::from_parts(4, number.into()),
            address,
            port: None,
            draining: false,
        }],
        http2_ports: Vec::new(),
        tls_ports: Vec::new(),
    };
    put(store, format!("{UPSTREAMS}{}", component(number.into())), &entry).await
}

fn target(number: u64) -> UpstreamTarget {
    UpstreamTarget { component: component(number), port: PORT }
}

fn rule(number: u64, more: serde_json::Value) -> Route<UpstreamTarget> {
    let mut document = serde_json::json!({"targets": [{"to": target(number)}]});
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(document).unwrap()
}

async fn put_host(store: &Arc<Store>, entry: HostEntry) -> u64 {
    put(store, format!("{HOSTS}{}", entry.host), &entry).await
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_of_the_store_do_what_routes_of_the_file_do() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    for number in 1..=2 {
        component_at(&store, number).await;
    }
    let shares = serde_json::json!({"paths": [{"prefix": "/ab"}], "targets": [{"to": target(1), "weight": 9}, {"to": target(2), "weight": 1}], "sticky": {"cookie": "side"}});
    let rules = vec![
        rule(1, shares),
        rule(2, serde_json::json!({"cookies": [{"name": "beta", "equals": "yes"}]})),
        rule(2, serde_json::json!({"paths": [{"prefix": "/api"}], "methods": ["GET"], "rewrite": {"prefix": "/"}})),
        rule(
            1,
            serde_json::json!({"paths": [{"exact": "/gone"}], "targets": [], "redirect": {"path": "/new", "status": 308}}),
        ),
        rule(1, serde_json::json!({"paths": [{"exact": "/old"}], "tls": {"redirect": true}})),
    ];
    let entry = HostEntry { host: "web.test".to_owned(), rules, default: Some(target(1)), ..HostEntry::default() };
    let revision = put_host(&store, entry).await;
    acknowledged(&store, revision).await;
    let mut wire = Wire::connect(plane.http).await;
    let mut ask = async |head: &str| wire.ask(&format!("{head}\r\nHost: web.test\r\n\r\n")).await;
    assert_eq!(ask("GET / HTTP/1.1").await.text(), "1 GET / HTTP/1.1", "the default answers last");
    assert_eq!(ask("GET / HTTP/1.1\r\nCookie: beta=yes").await.text(), "2 GET / HTTP/1.1");
    assert_eq!(ask("GET /api/x?q HTTP/1.1").await.text(), "2 GET /x?q HTTP/1.1");
    assert_eq!(ask("PUT /api/x HTTP/1.1\r\nContent-Length: 0").await.text(), "1 PUT /api/x HTTP/1.1");
    let moved = ask("GET /gone?q HTTP/1.1").await;
    assert_eq!((moved.status(), moved.header("location")), (308, Some("http://web.test/new?q")));
    let secure = ask("GET /old HTTP/1.1").await;
    let location = format!("https://web.test:{}/old", plane.https.port());
    assert_eq!((secure.status(), secure.header("location")), (308, Some(location.as_str())));
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut cookies: HashMap<String, String> = HashMap::new();
    for _ in 0..200 {
        let answer = ask("GET /ab HTTP/1.1").await;
        let who = answer.text().chars().next().unwrap().to_string();
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        assert_eq!(cookies.entry(who.clone()).or_insert_with(|| cookie.clone()), &cookie);
        *counts.entry(who).or_default() += 1;
    }
    assert_eq!((counts["1"], counts["2"]), (180, 20), "shares are exact");
    for (who, cookie) in &cookies {
        for _ in 0..10 {
            assert!(ask(&format!("GET /ab HTTP/1.1\r\nCookie: {cookie}")).await.text().starts_with(who.as_str()));
        }
    }
    // A value that cannot be served takes nothing else away.
    let rules = vec![rule(2, serde_json::json!({"paths": [{"regex": "("}]})), rule(2, serde_json::json!({}))];
    let entry = HostEntry { host: "web.test".to_owned(), rules, ..HostEntry::default() };
    let revision = put_host(&store, entry).await;
    acknowledged(&store, revision).await;
    assert_eq!(ask("GET / HTTP/1.1").await.text(), "2 GET / HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_objects_of_a_cluster_ask_for_takes_nothing_from_the_platform() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    for number in [11, 12] {
        component_at(&store, number).await;
    }
    // An upstream of the cluster has a port for each endpoint.
    let mut upstream: UpstreamEntry = store.value(&format!("{UPSTREAMS}{}", component(12))).await.unwrap();
    (upstream.component, upstream.reference) = (component(13), "shop/web:80".to_owned());
    upstream.endpoints[0].port = Some(PORT);
    put(&store, format!("{CLUSTER_UPSTREAMS}{}", component(13)), &upstream).await;
    let to_cluster = UpstreamTarget { component: component(13), port: 80 };
    let of_cluster = |host: &str, more: serde_json::Value| {
        let mut entry = HostEntry { host: host.to_owned(), rules: vec![rule(13, more)], ..HostEntry::default() };
        entry.rules.iter_mut().flat_map(|it| &mut it.targets).for_each(|it| it.to = to_cluster.clone());
        entry
    };
    let passed = serde_json::json!({"tls": {"certificate": "passthrough"}});
    for entry in [
        of_cluster("ours.test", serde_json::json!({})),
        of_cluster("theirs.test", serde_json::json!({})),
        of_cluster("plain.test", serde_json::json!({"scheme": "http"})),
        of_cluster("*.test", passed),
    ] {
        put(&store, format!("{CLUSTER_HOSTS}{}", entry.host), &entry).await;
    }
    let ours = Authority::new();
    let id = RowId::from_parts(7, 1);
    put_certificate(&store, &id, &ours.leaf(&["ours.test", "plain.test"])).await;
    let tls = HostTls { certificate: Some(id.clone()), client_ca: None };
    let entry = HostEntry {
        host: "ours.test".to_owned(),
        rules: vec![rule(11, serde_json::json!({}))],
        tls: tls.clone(),
        ..HostEntry::default()
    };
    let mut plain = of_cluster("plain.test", serde_json::json!({"scheme": "http"}));
    plain.tls = tls;
    put(&store, format!("{CLUSTER_HOSTS}plain.test"), &plain).await;
    let revision = put_host(&store, entry).await;
    acknowledged(&store, revision).await;
    assert_eq!(get(plane.http, "ours.test", "/").await.text(), "11 GET / HTTP/1.1");
    assert_eq!(get(plane.http, "theirs.test", "/").await.text(), "12 GET / HTTP/1.1");
    // A wildcard that passes connections on does not get those of hosts that are named more closely.
    let mut secure = connect(plane.https, &ours, "ours.test", None, b"http/1.1").await.unwrap();
    assert!(ask(&mut secure, "ours.test").await.unwrap().starts_with("HTTP/1.1 200 "));
    // A route for one scheme is not there for the other.
    assert_eq!(get(plane.http, "plain.test", "/").await.status(), 200);
    let mut secure = connect(plane.https, &ours, "plain.test", None, b"http/1.1").await.unwrap();
    assert!(ask(&mut secure, "plain.test").await.unwrap().starts_with("HTTP/1.1 404 "));
    // When the platform lets its host go, the cluster's is served.
    let kv: arco_store::kv::SharedKv = store.clone();
    kv.delete(&format!("{HOSTS}ours.test")).await.unwrap();
    eventually("the cluster's route takes over", || async {
        get(plane.http, "ours.test", "/").await.text() == "12 GET / HTTP/1.1"
    })
    .await;
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Chain and key in PEM.
    fn leaf(&self, hosts: &[&str]) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|it| (*it).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(hosts).unwrap().signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }
}

async fn put_certificate(store: &Arc<Store>, id: &RowId, (chain_pem, key): &(String, String)) -> u64 {
    let sealed = keys().seal(&certificate_context(id.as_str()), key.as_bytes()).unwrap();
    let entry = CertificateEntry {
        issued_at: Timestamp(1),
        chain_pem: chain_pem.clone(),
        key_id: sealed.key_id,
        sealed_key: sealed.text,
    };
    put(store, format!("{CERTIFICATES}{id}"), &entry).await
}

/// Connects with a server name, and with a certificate when one is given.
async fn connect(
    address: SocketAddr,
    authority: &Authority,
    sni: &str,
    own: Option<&(String, String)>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let builder = trusting([authority.issuer.der().clone()]);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(sni.to_owned().try_into().unwrap(), stream).await
}

/// One exchange on a connection that goes on.
async fn ask(stream: &mut TlsStream<tokio::net::TcpStream>, host: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let fields = head.lines().filter_map(|it| it.split_once(": "));
            let length =
                fields.filter(|it| it.0.eq_ignore_ascii_case("content-length")).find_map(|it| it.1.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Ok(text);
            }
        }
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("an answer in time")?;
        if read == 0 {
            return Ok(text);
        }
    }
}

/// Status of an answer by HTTP/2.
async fn ask_by_http2(stream: TlsStream<tokio::net::TcpStream>, host: &str) -> u16 {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://{host}/")).body(Empty::<bytes::Bytes>::new()).unwrap();
    let asking = tokio::time::timeout(PATIENCE, sender.send_request(request));
    asking.await.expect("an answer in time").unwrap().status().as_u16()
}

fn shown(stream: &TlsStream<tokio::net::TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_come_from_the_store_and_change_without_a_reconnect() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let journal = folder.path().join("routes.journal");
    let plane = Plane::start(&store, &journal);
    component_at(&store, 3).await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ids = [RowId::from_parts(1, 1), RowId::from_parts(1, 2)];
    let first = ours.leaf(&["*.one.test"]);
    put_certificate(&store, &ids[0], &first).await;
    put_certificate(&store, &ids[1], &ours.leaf(&["two.test", "closed.test"])).await;
    let host = |host: &str, id: &RowId, client_ca: Option<String>| HostEntry {
        host: host.to_owned(),
        rules: vec![rule(3, serde_json::json!({"tls": {"hsts_max_age_s": 60}}))],
        tls: HostTls { certificate: Some(id.clone()), client_ca },
        ..HostEntry::default()
    };
    put_host(&store, host("a.one.test", &ids[0], None)).await;
    put_host(&store, host("b.one.test", &ids[0], None)).await;
    put_host(&store, host("two.test", &ids[1], None)).await;
    put_host(&store, HostEntry { tls: HostTls::default(), ..host("plain.test", &ids[1], None) }).await;
    // As the controller writes it: nothing of such a host is served in the clear.
    let mut entry = host("closed.test", &ids[1], Some(theirs.issuer.pem()));
    entry.rules[0].tls.redirect = true;
    let revision = put_host(&store, entry).await;
    acknowledged(&store, revision).await;
    let h1 = b"http/1.1";
    let mut old = connect(plane.https, &ours, "a.one.test", None, h1).await.unwrap();
    let answer = ask(&mut old, "a.one.test").await.unwrap().to_ascii_lowercase();
    assert!(
        answer.starts_with("http/1.1 200 ") && answer.contains("strict-transport-security: max-age=60"),
        "{answer}"
    );
    assert!(!get(plane.http, "a.one.test", "/").await.head.to_ascii_lowercase().contains("strict-transport"));
    // Another host of the same certificate may share the connection; others, and those without TLS, may not.
    for (host, status) in [("b.one.test", 200), ("two.test", 421), ("plain.test", 421), ("nobody.test", 421)] {
        let answer = ask(&mut old, host).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
    for unknown in ["nobody.test", "plain.test", "c.one.test"] {
        let error = connect(plane.https, &ours, unknown, None, h1).await.unwrap_err().to_string();
        assert!(error.contains("UnrecognisedName") || error.contains("nrecogni"), "{unknown}: {error}");
    }
    // A host that asks for client certificates: none, a stranger's, a good one; never by a connection of another host.
    let (stranger, known) = (ours.leaf(&["c"]), theirs.leaf(&["c"]));
    for own in [None, Some(&stranger)] {
        let refused = match connect(plane.https, &ours, "closed.test", own, h1).await {
            Err(_) => true,
            // In TLS 1.3 the client learns of it only after its part of the handshake.
            Ok(mut stream) => ask(&mut stream, "closed.test").await.map_or(true, |it| it.is_empty()),
        };
        assert!(refused);
    }
    let mut closed = connect(plane.https, &ours, "closed.test", Some(&known), h1).await.unwrap();
    assert!(ask(&mut closed, "closed.test").await.unwrap().starts_with("HTTP/1.1 200 "));
    // Its requests take the shortest way there is, as those of any other host: it is asked on that way, too.
    for (sni, own, host, status) in [
        ("two.test", None, "closed.test", 421),
        ("two.test", None, "two.test", 200),
        ("closed.test", Some(&known), "closed.test", 200),
        ("closed.test", Some(&known), "two.test", 421),
    ] {
        let mut stream = connect(plane.https, &ours, sni, own, h1).await.unwrap();
        let answer = ask(&mut stream, host).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{sni} {host}: {answer}");
        let stream = connect(plane.https, &ours, sni, own, b"h2").await.unwrap();
        assert_eq!(ask_by_http2(stream, host).await, status, "{sni} {host}");
    }
    assert_eq!(get(plane.http, "closed.test", "/").await.status(), 308);
    // Renewed: new connections see it, the old one goes on.
    let before = shown(&old);
    let revision = put_certificate(&store, &ids[0], &ours.leaf(&["*.one.test"])).await;
    acknowledged(&store, revision).await;
    let renewed = connect(plane.https, &ours, "b.one.test", None, h1).await.unwrap();
    assert_ne!(shown(&renewed), before);
    assert!(ask(&mut old, "a.one.test").await.unwrap().starts_with("HTTP/1.1 200 "));
    // ACME's question by TLS-ALPN is answered with the challenge's certificate, and with nothing else.
    let proof = ours.leaf(&["a.one.test"]);
    let sealed = keys().seal(&certificate_context("a.one.test"), proof.1.as_bytes()).unwrap();
    let entry = CertificateEntry {
        issued_at: Timestamp(1),
        chain_pem: proof.0,
        key_id: sealed.key_id,
        sealed_key: sealed.text,
    };
    let revision = put(&store, format!("{CHALLENGES}a.one.test"), &entry).await;
    acknowledged(&store, revision).await;
    let asked = connect(plane.https, &ours, "a.one.test", None, b"acme-tls/1").await.unwrap();
    assert_ne!(shown(&asked), shown(&renewed));
    // A key that cannot be opened leaves what was there.
    let mut broken: CertificateEntry = store.value(&format!("{CERTIFICATES}{}", ids[0])).await.unwrap();
    broken.sealed_key = "00".repeat(40);
    let revision = put(&store, format!("{CERTIFICATES}{}", ids[0]), &broken).await;
    acknowledged(&store, revision).await;
    assert_eq!(shown(&connect(plane.https, &ours, "b.one.test", None, h1).await.unwrap()), shown(&renewed));
    // The private key lies nowhere in clear.
    drop(plane);
    let kept = std::fs::read(&journal).unwrap();
    let secret = first.1.lines().nth(1).unwrap().as_bytes().to_vec();
    assert!(!kept.windows(secret.len()).any(|it| it == secret));
}

/// A component with two instances, the first of which answers 500 where `bad` says.
async fn with_a_bad_instance(store: &Arc<Store>, number: u64, port: u16, bad: fn(&str) -> bool) {
    let mut endpoints = Vec::new();
    for instance in 1..=2u8 {
        let address = address(instance);
        origin_at(&format!("{address}:{port}"), move |mut wire: Wire| async move {
            while let Some(message) = wire.message().await {
                let path = message.head.split(' ').nth(1).unwrap_or_default();
                let status = if instance == 1 && bad(path) { 500 } else { 200 };
                wire.send(format!("HTTP/1.1 {status} Status\r\nContent-Length: 1\r\n\r\n{instance}")).await;
            }
        })
        .await;
        let instance = InstanceId::from_parts(5, number * 10 + u64::from(instance));
        endpoints.push(Endpoint { instance, address, port: None, draining: false });
    }
    let entry = UpstreamEntry {
        component: component(number),
        reference: format!("demo/c{number}"),
        state: UpstreamState::Up,
        endpoints,
        http2_ports: Vec::new(),
        tls_ports: Vec::new(),
    };
    put(store, format!("{UPSTREAMS}{}", component(number)), &entry).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_fails_is_left_out_as_its_route_says() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    with_a_bad_instance(&store, 21, 18_082, |_| true).await;
    with_a_bad_instance(&store, 22, 18_083, |path| path == "/healthz").await;
    let target = |number, port| UpstreamTarget { component: component(number), port };
    let to = |number, port, more: serde_json::Value| {
        let mut document = serde_json::json!({"targets": [{"to": target(number, port)}]});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<Route<UpstreamTarget>>(document).unwrap()
    };
    let circuit = serde_json::json!({"circuit": {"failures": 2, "base_ms": 600_000}});
    let check = serde_json::json!({"health_check": {"path": "/healthz", "interval_ms": 50, "unhealthy": 1}});
    let rules = [
        ("circuit.test", to(21, 18_082, circuit)),
        ("check.test", to(22, 18_083, check)),
        ("plain.test", to(22, 18_083, serde_json::json!({}))),
    ];
    let mut revision = 0;
    for (host, rule) in rules {
        let entry = HostEntry { host: host.to_owned(), rules: vec![rule], ..HostEntry::default() };
        revision = put_host(&store, entry).await;
    }
    acknowledged(&store, revision).await;
    let mut wire = Wire::connect(plane.http).await;
    let mut bad = 0;
    for _ in 0..40 {
        bad += usize::from(wire.ask("GET / HTTP/1.1\r\nHost: circuit.test\r\n\r\n").await.status() == 500);
    }
    assert_eq!(bad, 2, "two failures in a row leave it out");
    // Nobody asks for it: the checks alone find out.
    eventually("the bad instance is left out", || async {
        let mut wire = Wire::connect(plane.http).await;
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(wire.ask("GET / HTTP/1.1\r\nHost: check.test\r\n\r\n").await.text());
        }
        answers.iter().all(|it| it == "2")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_route_finds_out_about_an_instance_holds_for_that_route() {
    static CHECKED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    let port = 18_084;
    with_a_bad_instance(&store, 23, port, |path| {
        if let Some(check) = ["/well", "/ill"].iter().position(|it| *it == path) {
            CHECKED[check].fetch_add(1, Ordering::SeqCst);
        }
        path == "/ill" || path == "/a"
    })
    .await;
    let to = |more: serde_json::Value| {
        let target = UpstreamTarget { component: component(23), port };
        let mut document = serde_json::json!({"targets": [{"to": target}]});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<Route<UpstreamTarget>>(document).unwrap()
    };
    let checked = |path: &str| {
        let check = serde_json::json!({"path": path, "interval_ms": 50, "timeout_ms": 60_000, "unhealthy": 1});
        to(serde_json::json!({"health_check": check}))
    };
    let circuit = |path: &str, failures: u32| {
        let circuit = serde_json::json!({"failures": failures, "base_ms": 600_000});
        to(serde_json::json!({"paths": [{"prefix": path}], "circuit": circuit}))
    };
    let hosts = [
        ("well.test", vec![checked("/well")]),
        ("ill.test", vec![checked("/ill")]),
        ("plain.test", vec![to(serde_json::json!({}))]),
        ("circuit.test", vec![circuit("/a", 2), circuit("/b", 3)]),
    ];
    let mut revision = 0;
    for (host, rules) in hosts {
        revision = put_host(&store, HostEntry { host: host.to_owned(), rules, ..HostEntry::default() }).await;
    }
    acknowledged(&store, revision).await;
    // Who answers six requests.
    let answers = async |host: &str, path: &str| {
        let mut wire = Wire::connect(plane.http).await;
        let mut all = String::new();
        for _ in 0..6 {
            all += &wire.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.text();
        }
        all
    };
    eventually("the route whose check fails avoids the instance", || async {
        answers("ill.test", "/").await == "222222"
    })
    .await;
    let before = CHECKED.each_ref().map(|it| it.load(Ordering::SeqCst));
    eventually("both paths are asked again and again", || async {
        CHECKED.iter().zip(before).all(|(it, before)| it.load(Ordering::SeqCst) >= before + 2)
    })
    .await;
    assert_eq!(answers("ill.test", "/").await, "222222");
    for host in ["well.test", "plain.test"] {
        let all = answers(host, "/").await;
        assert!(all.contains('1') && all.contains('2'), "{host}: {all}");
    }

    // Answers that fail, and those that do not, are counted for the route that got them.
    let mut wire = Wire::connect(plane.http).await;
    let mut bad = 0;
    for _ in 0..20 {
        bad += usize::from(wire.ask("GET /a HTTP/1.1\r\nHost: circuit.test\r\n\r\n").await.status() == 500);
        assert_eq!(wire.ask("GET /b HTTP/1.1\r\nHost: circuit.test\r\n\r\n").await.status(), 200);
    }
    assert_eq!(bad, 2, "two failures in a row leave it out");
    let all = answers("circuit.test", "/b").await;
    assert!(all.contains('1') && all.contains('2'), "{all}");
}
