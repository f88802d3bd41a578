//! Ports of the gateway without HTTP: TCP, UDP, TLS that is passed through unread; and session tickets.

use crate::kit::*;
use crate::rolling::{Plane, acknowledged, patient, put};
use crate::udp::echo_of;
use arco_config::GatewayConfig;
use arco_model::id::{ComponentId, InstanceId, RowId};
use arco_model::route::{Route, UpstreamTarget};
use arco_model::ticket::{SealedRing, TICKETS, TICKETS_CONTEXT, TicketKey, TicketRing};
use arco_model::time::Timestamp;
use arco_model::traffic::*;
use arco_store::kv::SharedKv;
use arco_testkit::servers::free_port;
use rcgen::{CertificateParams, KeyPair};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

fn component(number: u64) -> ComponentId {
    ComponentId::from_parts(7, number)
}

fn ready(number: u64, address: Ipv4Addr) -> UpstreamEntry {
    UpstreamEntry {
        component: component(number),
        reference: format!("demo/c{number}"),
        state: UpstreamState::Up,
        endpoints: vec![Endpoint { instance: InstanceId::from_parts(8, number), address, port: None, draining: false }],
        http2_ports: Vec::new(),
        tls_ports: Vec::new(),
    }
}

/// A TCP endpoint that greets with `word` and then gives back what it gets.
async fn greeter(word: &'static str) -> SocketAddr {
    origin(move |mut wire: Wire| async move {
        wire.send(word).await;
        let (mut read, mut write) = wire.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

async fn put_stream(store: &Arc<Store>, protocol: StreamProtocol, port: u16, number: u64, inner: u16) -> u64 {
    let target = UpstreamTarget { component: component(number), port: inner };
    let entry = StreamEntry { protocol, port, target, address: None };
    put(store, entry.key(), &entry).await
}

/// What a TCP port greets with; empty when it refuses.
async fn greeting(port: u16) -> String {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return String::new() };
    let mut word = [0; 3];
    match tokio::time::timeout(PATIENCE, stream.read_exact(&mut word)).await {
        Ok(Ok(_)) => String::from_utf8_lossy(&word).into_owned(),
        _ => String::new(),
    }
}

fn local() -> GatewayConfig {
    GatewayConfig { stream_listen: Ipv4Addr::LOCALHOST.into(), ..patient() }
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_ports_come_move_and_go_while_connections_stay() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let journal = folder.path().join("routes.journal");
    let plane = Plane::start_as(&store, &journal, "gw", local());
    let (one, two) = (greeter("one").await, greeter("two").await);
    for number in [1, 2] {
        put(&store, format!("{UPSTREAMS}{}", component(number)), &ready(number, Ipv4Addr::LOCALHOST)).await;
    }
    let (port, held) = (free_port(), free_port());
    let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, held)).await.unwrap();
    put_stream(&store, StreamProtocol::Tcp, held, 1, one.port()).await;
    let revision = put_stream(&store, StreamProtocol::Tcp, port, 1, one.port()).await;
    acknowledged(&store, revision).await;
    assert_eq!(greeting(port).await, "one");
    let problems = plane.stream_problems();
    assert_eq!((problems.len(), problems[0].0, problems[0].1), (1, StreamProtocol::Tcp, held));
    assert!(problems[0].2.contains(&format!("pid {}", std::process::id())), "{problems:?}");

    // Another component behind the same port: new connections go there, the open one goes on.
    let mut open = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut word = [0; 3];
    open.read_exact(&mut word).await.unwrap();
    let revision = put_stream(&store, StreamProtocol::Tcp, port, 2, two.port()).await;
    acknowledged(&store, revision).await;
    eventually("the other component", || async { greeting(port).await == "two" }).await;
    open.write_all(b"abc").await.unwrap();
    open.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"abc");

    // Who held the other port lets go of it: it is opened by itself.
    drop(busy);
    eventually("the port that was held", || async { greeting(held).await == "one" }).await;
    assert!(plane.stream_problems().is_empty());

    // Taken away: refused; the open connection goes on.
    let kv: SharedKv = Arc::clone(&store) as SharedKv;
    kv.delete(&format!("{STREAMS}tcp:{port}")).await.unwrap();
    eventually("the port is closed", || async { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() }).await;
    open.write_all(b"xyz").await.unwrap();
    open.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"xyz");

    // The next process knows its ports before the store answers.
    drop((open, plane));
    eventually("the gateway has ended", || async { greeting(held).await.is_empty() }).await;
    let silent = Store::new();
    silent.silence(true);
    let _plane = Plane::start_as(&silent, &journal, "gw", local());
    eventually("the port is there again", || async { greeting(held).await == "one" }).await;
}

/// The answer to one datagram.
async fn asked(socket: &UdpSocket, port: u16, word: &[u8]) -> Vec<u8> {
    answered(socket, port, word, PATIENCE).await.expect("an answer in time")
}

/// The same; `None` when there is none in this time.
async fn answered(socket: &UdpSocket, port: u16, word: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    socket.send_to(word, (Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let received = tokio::time::timeout(patience, socket.recv_from(&mut buffer)).await.ok()?;
    let (length, _) = received.unwrap();
    Some(buffer[..length].to_vec())
}

/// Asks on this socket until the answer is another one. An answer that is on its way while a port changes may be lost.
async fn asked_until(what: &str, socket: &UdpSocket, port: u16, word: &[u8], wanted: &[u8]) {
    eventually(what, || async {
        answered(socket, port, word, Duration::from_secs(1)).await.is_some_and(|it| it == wanted)
    })
    .await;
}

async fn udp_socket() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_ports_keep_each_client_with_its_endpoint() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start_as(&store, &folder.path().join("routes.journal"), "gw", local());
    let (one, two) = (echo_of("1").await, echo_of("2").await);
    for number in [1, 2] {
        put(&store, format!("{UPSTREAMS}{}", component(number)), &ready(number, Ipv4Addr::LOCALHOST)).await;
    }
    let port = free_port();
    let revision = put_stream(&store, StreamProtocol::Udp, port, 1, one.port()).await;
    acknowledged(&store, revision).await;
    assert!(plane.stream_problems().is_empty(), "{:?}", plane.stream_problems());
    let clients = [udp_socket().await, udp_socket().await, udp_socket().await];
    for (number, client) in clients.iter().enumerate() {
        let word = format!("hello {number}");
        assert_eq!(asked(client, port, word.as_bytes()).await, format!("1{word}").into_bytes());
    }
    // An instance that is to go keeps no client, not even one that goes on asking.
    let third = Ipv4Addr::new(127, 0, 0, 3);
    let moved = UdpSocket::bind((third, one.port())).await.unwrap();
    let mut entry = ready(1, Ipv4Addr::LOCALHOST);
    entry.endpoints[0].draining = true;
    entry.endpoints.push(Endpoint {
        instance: InstanceId::from_parts(8, 9),
        address: third,
        port: None,
        draining: false,
    });
    let revision = put(&store, format!("{UPSTREAMS}{}", component(1)), &entry).await;
    acknowledged(&store, revision).await;
    clients[0].send_to(b"moved", (Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut word = [0; 5];
    let (_, from) = tokio::time::timeout(PATIENCE, moved.recv_from(&mut word)).await.unwrap().unwrap();
    moved.send_to(b"third", from).await.unwrap();
    let mut answer = [0; 5];
    tokio::time::timeout(PATIENCE, clients[0].recv_from(&mut answer)).await.unwrap().unwrap();
    assert_eq!((&word, &answer), (b"moved", b"third"));
    put(&store, format!("{UPSTREAMS}{}", component(1)), &ready(1, Ipv4Addr::LOCALHOST)).await;
    drop(moved);
    asked_until("the first instance is back", &udp_socket().await, port, b"y", b"1y").await;
    let clients = [udp_socket().await];
    let large = vec![b'x'; 60_000];
    assert_eq!(asked(&clients[0], port, &large).await.len(), 60_001);
    // From now on the new component answers, those that are known as well.
    let revision = put_stream(&store, StreamProtocol::Udp, port, 2, two.port()).await;
    acknowledged(&store, revision).await;
    asked_until("the other component", &udp_socket().await, port, b"new", b"2new").await;
    asked_until("the other component for who is known", &clients[0], port, b"x", b"2x").await;
    // Taken away: nobody has the port.
    let kv: SharedKv = Arc::clone(&store) as SharedKv;
    kv.delete(&format!("{STREAMS}udp:{port}")).await.unwrap();
    eventually("the port is closed", || async { UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_listeners_of_the_file() {
    let endpoint = echo_of("f").await;
    let port = free_port();
    let yaml = format!(
        "listeners: [{{name: dns, address: \"127.0.0.1:{port}\", protocol: udp, upstream: d}}]\n\
         upstreams: [{{name: d, endpoints: [\"{endpoint}\"]}}]\n"
    );
    let gateway = Gateway::start(&yaml).await;
    let client = udp_socket().await;
    assert_eq!(asked(&client, port, b"a").await, b"fa");
    let other = echo_of("g").await;
    gateway.rewrite(&yaml.replace(&endpoint.to_string(), &other.to_string()));
    eventually("the other endpoint", || async { asked(&udp_socket().await, port, b"b").await == b"gb" }).await;
}

/// A TLS server of its own, with a certificate of its own; its root in PEM.
async fn tls_origin(name: &'static str) -> (SocketAddr, rustls::pki_types::CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    let root = made.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.write_all(name.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    (address, root)
}

/// What a host says over TLS to somebody who trusts `root`, and sends its first message in two pieces.
async fn said(gateway: SocketAddr, host: &str, root: rustls::pki_types::CertificateDer<'static>) -> String {
    let config = trusting([root]).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let (begin, rest) = hello.split_at(hello.len() / 2);
    stream.write_all(begin).await.unwrap();
    tokio::task::yield_now().await;
    stream.write_all(rest).await.unwrap();
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let read = match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("bytes in time") {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            let Ok(state) = client.process_new_packets() else { return "no".to_owned() };
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            std::io::Read::read_exact(&mut client.reader(), &mut plain).unwrap();
            all.extend(plain);
        }
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        if !out.is_empty() && stream.write_all(&out).await.is_err() {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_passed_through_by_name() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start_as(&store, &folder.path().join("routes.journal"), "gw", local());
    let (one, one_root) = tls_origin("one.test").await;
    let (two, two_root) = tls_origin("x.two.test").await;
    for number in [1, 2] {
        put(&store, format!("{UPSTREAMS}{}", component(number)), &ready(number, Ipv4Addr::LOCALHOST)).await;
    }
    let mut revision = 0;
    for (host, number, port) in [("one.test", 1, one.port()), ("*.two.test", 2, two.port())] {
        let target = UpstreamTarget { component: component(number), port };
        let route = serde_json::json!({"targets": [{"to": target}], "tls": {"certificate": "passthrough"}});
        let rules: Vec<Route<UpstreamTarget>> = vec![serde_json::from_value(route).unwrap()];
        let entry = HostEntry { host: host.to_owned(), rules, ..HostEntry::default() };
        revision = put(&store, format!("{HOSTS}{host}"), &entry).await;
    }
    acknowledged(&store, revision).await;
    assert_eq!(said(plane.https, "one.test", one_root.clone()).await, "one.test");
    assert_eq!(said(plane.https, "x.two.test", two_root).await, "x.two.test");
    // A name that is not passed on gets the alert as before; nothing of HTTP is served for one that is.
    assert_eq!(said(plane.https, "other.test", one_root).await, "no");
    assert_eq!(get(plane.http, "one.test", "/").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_gateway_goes_on_at_another() {
    if !arco_testkit::has_openssl("sessions of TLS between gateways") {
        return;
    }
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let at = |name: &str| folder.path().join(name);
    let planes = ["gw", "gw2"].map(|id| Plane::start_as(&store, &at(id), id, local()));
    let key = KeyPair::generate().unwrap();
    let chain_pem = CertificateParams::new(vec!["web.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let id = RowId::from_parts(1, 1);
    let sealed = keys().seal(&certificate_context(id.as_str()), key.serialize_pem().as_bytes()).unwrap();
    let (key_id, sealed_key) = (sealed.key_id, sealed.text);
    let certificate = CertificateEntry { issued_at: Timestamp(1), chain_pem, key_id, sealed_key };
    put(&store, format!("{CERTIFICATES}{id}"), &certificate).await;
    let ring = |secret: &str| TicketRing {
        keys: vec![TicketKey { id: secret.repeat(16), secret: secret.repeat(32), from: Timestamp(0) }],
    };
    let put_ring = async |ring: &TicketRing| {
        let sealed = keys().seal(TICKETS_CONTEXT, &serde_json::to_vec(ring).unwrap()).unwrap();
        put(&store, TICKETS.to_owned(), &SealedRing { key_id: sealed.key_id, text: sealed.text }).await
    };
    put_ring(&ring("ab")).await;
    let rules: Vec<Route<UpstreamTarget>> =
        vec![serde_json::from_value(serde_json::json!({"answer": {"status": 200, "body": "fine"}})).unwrap()];
    let tls = HostTls { certificate: Some(id), client_ca: None };
    let entry = HostEntry { host: "web.test".to_owned(), rules, tls, ..HostEntry::default() };
    let revision = put(&store, format!("{HOSTS}web.test"), &entry).await;
    acknowledged(&store, revision).await;
    eventually("the second gateway", || async {
        let told = store.value::<GatewayStatus>("/gateway-status/gw2").await;
        told.is_some_and(|it| it.applied_revision >= revision)
    })
    .await;
    for version in ["-tls1_3", "-tls1_2"] {
        let session = at("session.pem").display().to_string();
        let addresses = [planes[0].https, planes[1].https];
        let asked = |address, more: Vec<String>| async move {
            let more: Vec<String> = more;
            tokio::task::spawn_blocking(move || {
                arco_testkit::openssl(address, &more.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .await
            .unwrap()
        };
        let words = |flag: &str| vec![version.to_owned(), flag.to_owned(), session.clone()];
        let first = asked(addresses[0], words("-sess_out")).await;
        assert!(first.contains("New, TLSv1") && first.contains("fine"), "{version}: {first}");
        let second = asked(addresses[1], words("-sess_in")).await;
        assert!(second.contains("Reused, TLSv1") && second.contains("fine"), "{version}: {second}");
        // Other keys: a whole handshake.
        let revision = put_ring(&ring(if version == "-tls1_3" { "cd" } else { "ef" })).await;
        eventually("the other keys", || async {
            let told = store.value::<GatewayStatus>("/gateway-status/gw2").await;
            told.is_some_and(|it| it.applied_revision >= revision)
        })
        .await;
        let third = asked(addresses[1], words("-sess_in")).await;
        assert!(third.contains("New, TLSv1") && third.contains("fine"), "{version}: {third}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_a_store_resumes_its_sessions() {
    if !arco_testkit::has_openssl("sessions of TLS of a gateway alone") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let shown = CertificateParams::new(vec!["web.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.path().join("c.pem"), shown.pem()).unwrap();
    std::fs::write(folder.path().join("c.key"), key.serialize_pem()).unwrap();
    let yaml = "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}]\n\
         certificates: [{hosts: [web.test], certificate_file: c.pem, key_file: c.key}]\n\
         routes: [{hosts: [web.test], answer: {status: 200, body: first}}]\n";
    let gateway = Gateway::start_in(folder, yaml).await;
    let session = gateway.folder.path().join("session.pem").display().to_string();
    let address = gateway.addresses["tls"];
    let asked = async |words: [&str; 3]| {
        let words = words.map(str::to_owned);
        tokio::task::spawn_blocking(move || arco_testkit::openssl(address, &words.each_ref().map(String::as_str)))
            .await
            .unwrap()
    };
    for (version, before, after) in [("-tls1_3", "first", "second"), ("-tls1_2", "second", "third")] {
        let first = asked([version, "-sess_out", &session]).await;
        assert!(first.contains("New, TLSv1") && first.contains(before), "{version}: {first}");
        let second = asked([version, "-sess_in", &session]).await;
        assert!(second.contains("Reused, TLSv1") && second.contains(before), "{version}: {second}");
        // A file that was read again is served with the same keys.
        gateway.rewrite(&yaml.replace("first", after));
        eventually("the changed file", || async {
            let third = asked([version, "-sess_in", &session]).await;
            assert!(third.contains("Reused, TLSv1"), "{version}: {third}");
            third.contains(after)
        })
        .await;
    }
}
