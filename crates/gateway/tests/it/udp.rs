//! UDP ports of the gateway, as clients and endpoints see them.

use crate::kit::*;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::UdpSocket;

/// An endpoint that gives back what it gets, behind its name.
async fn echo_of(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    address
}

/// A gateway on one thread with a UDP port on `address`, which leads to these endpoints, and a host without any.
async fn gateway_on(address: &str, endpoints: &[SocketAddr]) -> Gateway {
    let endpoints: Vec<String> = endpoints.iter().map(|it| format!("\"{it}\"")).collect();
    Gateway::start(&format!(
        "threads: 1\n\
         listeners: [{{name: web, address: \"127.0.0.1:0\", protocol: http}}, \
         {{name: udp, address: \"{address}\", protocol: udp, upstream: u}}]\n\
         upstreams: [{{name: u, endpoints: [{}]}}]\n\
         routes: [{{hosts: [a.test], answer: {{status: 200, body: here}}}}]\n",
        endpoints.join(", ")
    ))
    .await
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
    let mut answer = vec![0; 65_536];
    client.send(word).await.unwrap();
    let length = tokio::time::timeout(PATIENCE, client.recv(&mut answer)).await.expect("an answer in time").unwrap();
    answer.truncate(length);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_from_the_address_that_was_asked() {
    let endpoint = echo_of("e").await;
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
        let gateway = gateway_on(address, &[endpoint]).await;
        for at in asked_at {
            let client = client_of(at, gateway.addresses["udp"].port()).await;
            for word in [&b"hello"[..], b"again"] {
                assert_eq!(asked(&client, word).await, [b"e", word].concat(), "{address} {at}");
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
