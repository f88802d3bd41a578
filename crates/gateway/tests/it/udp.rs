//! UDP ports of the gateway, as clients and endpoints see them.

use crate::kit::*;
use crate::rolling::{Plane, acknowledged, put};
use arco_config::GatewayConfig;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::route::UpstreamTarget;
use arco_model::traffic::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;

/// An endpoint that answers each datagram with what `answer` makes of it and of its sender.
async fn endpoint(answer: impl Fn(&[u8], SocketAddr) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&answer(&buffer[..length], from), from).await.unwrap();
        }
    });
    address
}

/// One that gives back what it gets, behind its name.
pub(crate) async fn echo_of(name: &'static str) -> SocketAddr {
    endpoint(move |word, _| [name.as_bytes(), word].concat()).await
}

/// One that refuses (ICMP) whatever the gateway sends, for as long as this lives: it is connected to somebody else.
async fn refusing() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, 9)).await.unwrap();
    socket
}

/// One thread with a UDP port on `address`, which leads to these endpoints, and a host without any.
fn port_on(address: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|it| format!("\"{it}\"")).collect();
    format!(
        "threads: 1\n\
         listeners: [{{name: web, address: \"127.0.0.1:0\", protocol: http}}, \
         {{name: udp, address: \"{address}\", protocol: udp, upstream: u}}]\n\
         upstreams: [{{name: u, endpoints: [{}]}}]\n\
         routes: [{{hosts: [a.test], answer: {{status: 200, body: here}}}}]\n",
        endpoints.join(", ")
    )
}

async fn gateway_on(address: &str, endpoints: &[SocketAddr]) -> Gateway {
    Gateway::start(&port_on(address, endpoints)).await
}

/// A client that takes nothing from anybody but `port` at `address`.
async fn client_of(address: &str, port: u16) -> UdpSocket {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let client = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await.unwrap();
    client.connect(to).await.unwrap();
    client
}

/// The answer to one datagram.
async fn asked(client: &UdpSocket, word: &[u8]) -> Vec<u8> {
    answered(client, word, PATIENCE).await.expect("an answer in time")
}

/// The same; `None` when there is none in this time.
async fn answered(client: &UdpSocket, word: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let mut answer = vec![0; 65_536];
    client.send(word).await.unwrap();
    let length = tokio::time::timeout(patience, client.recv(&mut answer)).await.ok()?.unwrap();
    answer.truncate(length);
    Some(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_from_the_address_that_was_asked() {
    let echo = echo_of("e").await;
    let ipv6 = UdpSocket::bind("[::1]:0").await.is_ok();
    if !ipv6 {
        eprintln!("SKIPPED: UDP by IPv6: this machine has none");
    }
    for (address, asked_at) in
        [("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.0.0.3"][..]), ("[::]:0", &["127.0.0.2", "::1"])]
    {
        if address.starts_with('[') && !ipv6 {
            continue;
        }
        let gateway = gateway_on(address, &[echo]).await;
        for at in asked_at {
            let client = client_of(at, gateway.addresses["udp"].port()).await;
            for word in [&b"hello"[..], b"again"] {
                assert_eq!(asked(&client, word).await, [&b"e"[..], word].concat(), "{address} {at}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_that_asks_at_two_addresses_is_answered_from_each() {
    let gateway = gateway_on("0.0.0.0:0", &[echo_of("e").await]).await;
    let (client, port) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), gateway.addresses["udp"].port());
    let mut answer = [0; 10];
    for at in [1, 2, 1, 2] {
        let to = SocketAddr::from(([127, 0, 0, at], port));
        client.send_to(&[at], to).await.unwrap();
        let received = tokio::time::timeout(PATIENCE, client.recv_from(&mut answer)).await.expect("an answer in time");
        assert_eq!((received.unwrap(), answer[1]), ((2, to), at));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_and_the_largest_datagram_pass() {
    let gateway = gateway_on("127.0.0.1:0", &[echo_of("").await]).await;
    let client = client_of("127.0.0.1", gateway.addresses["udp"].port()).await;
    for length in [0, 1, 65_507, 0] {
        let word = vec![b'x'; length];
        assert!(asked(&client, &word).await == word, "{length} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_keeps_no_client() {
    let (refusing, echo) = (refusing().await, echo_of("e").await);
    let gateway = gateway_on("127.0.0.1:0", &[refusing.local_addr().unwrap(), echo]).await;
    for _ in 0..10 {
        let client = client_of("127.0.0.1", gateway.addresses["udp"].port()).await;
        // What goes to the first endpoint is lost; the client goes on asking.
        eventually("an answer of the other endpoint", || async {
            answered(&client, b"x", Duration::from_secs(1)).await.is_some_and(|it| it == b"ex")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_its_upstream_does_not_name_any_more_keeps_no_client() {
    let endpoints = [echo_of("1").await, echo_of("2").await];
    let gateway = gateway_on("127.0.0.1:0", &endpoints[..1]).await;
    let client = client_of("127.0.0.1", gateway.addresses["udp"].port()).await;
    assert_eq!(asked(&client, b"x").await, b"1x");
    gateway.rewrite(&port_on("127.0.0.1:0", &endpoints[1..]));
    eventually("an answer of the other endpoint", || async { asked(&client, b"x").await == b"2x" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_never_stops_keeps_nobody_waiting() {
    /// Ends what it is shown to.
    struct Ends(Arc<AtomicBool>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let gateway = gateway_on("127.0.0.1:0", &[socket.local_addr().unwrap()]).await;
    let client = client_of("127.0.0.1", gateway.addresses["udp"].port()).await;
    client.send(b"go").await.unwrap();
    let over = Ends(Arc::default());
    let ended = Arc::clone(&over.0);
    std::thread::spawn(move || {
        let (_, from) = socket.recv_from(&mut [0; 2]).unwrap();
        while !ended.load(Ordering::SeqCst) {
            // A full buffer refuses some, and the end of the flow all.
            let _ = socket.send_to(&[0; 1200], from);
        }
    });
    let mut answer = [0; 1200];
    tokio::time::timeout(PATIENCE, client.recv(&mut answer)).await.expect("it has begun").unwrap();
    for _ in 0..10 {
        assert_eq!(get(gateway.web(), "a.test", "/").await.text(), "here");
    }
    tokio::time::timeout(PATIENCE, client.recv(&mut answer)).await.expect("it goes on").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_goes_on_keeps_the_place_that_thousands_want() {
    // Tells by which port of the gateway it was asked: each flow has its own.
    let teller = endpoint(|_, from| from.port().to_string().into_bytes()).await;
    let gateway = gateway_on("127.0.0.1:0", &[teller]).await;
    let port = gateway.addresses["udp"].port();
    let faithful = client_of("127.0.0.1", port).await;
    let first = asked(&faithful, b"x").await;
    assert_eq!(asked(&faithful, b"x").await, first);
    let once = client_of("127.0.0.1", port).await;
    asked(&once, b"x").await;
    // More than there are places.
    for number in 0..4200 {
        let client = client_of("127.0.0.1", port).await;
        assert!(!asked(&client, b"x").await.is_empty(), "client {number}");
        // However long this takes, it is no minute without a datagram.
        if number % 100 == 0 {
            assert_eq!(asked(&faithful, b"x").await, first);
        }
    }
    assert_eq!(asked(&faithful, b"x").await, first);
    // One that gave way is served again.
    assert!(!asked(&once, b"x").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_drains_is_let_go_of_when_its_clients_are_silent() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let config = GatewayConfig {
        http_listen: "127.0.0.1:0".parse().unwrap(),
        https_listen: "127.0.0.1:0".parse().unwrap(),
        stream_listen: Ipv4Addr::LOCALHOST.into(),
        ..GatewayConfig::default()
    };
    let _plane = Plane::start_as(&store, &folder.path().join("routes.journal"), "gw", config);
    let (echo, component) = (echo_of("e").await, ComponentId::from_parts(17, 1));
    let mut entry = UpstreamEntry {
        component: component.clone(),
        reference: "demo/udp".to_owned(),
        state: UpstreamState::Up,
        endpoints: vec![Endpoint {
            instance: InstanceId::from_parts(18, 1),
            address: Ipv4Addr::LOCALHOST,
            port: None,
            draining: false,
        }],
        http2_ports: Vec::new(),
        tls_ports: Vec::new(),
    };
    let key = format!("{UPSTREAMS}{component}");
    put(&store, key.clone(), &entry).await;
    let (port, target) = (arco_testkit::servers::free_port(), UpstreamTarget { component, port: echo.port() });
    let stream = StreamEntry { protocol: StreamProtocol::Udp, port, target, address: None };
    let revision = put(&store, stream.key(), &stream).await;
    acknowledged(&store, revision).await;
    let client = client_of("127.0.0.1", port).await;
    assert_eq!(asked(&client, b"x").await, b"ex");
    entry.endpoints[0].draining = true;
    let revision = put(&store, key, &entry).await;
    acknowledged(&store, revision).await;
    let let_go = eventually("the instance is let go of", || async {
        let status = store.value::<GatewayStatus>("/gateway-status/gw").await;
        status.is_some_and(|it| it.applied_revision >= revision && it.busy_draining.is_empty())
    });
    tokio::time::timeout(PATIENCE / 2, let_go).await.expect("before a minute without datagrams is over");
}
