//! Bytes that are passed on, on ports for TCP and as TLS unread: clients and endpoints that end, refuse or vanish.

use crate::kit::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A gateway on one thread with a TCP port, which leads to this endpoint.
async fn port_to(endpoint: SocketAddr) -> Gateway {
    Gateway::start(&format!(
        "threads: 1\n\
         listeners: [{{name: tcp, address: \"127.0.0.1:0\", protocol: tcp, upstream: t}}]\n\
         upstreams: [{{name: t, endpoints: [\"{endpoint}\"]}}]\n"
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_within_the_first_message_holds_nobody_up() {
    let yaml = format!(
        "threads: 1\n\
         listeners: [{{name: web, address: \"127.0.0.1:0\", protocol: http}}, \
         {{name: tls, address: \"127.0.0.1:0\", protocol: https}}]\n\
         upstreams: [{{name: t, endpoints: [\"{}\"]}}]\n\
         routes: [{{hosts: [t.test], targets: [{{upstream: t}}], tls: {{certificate: passthrough}}}}, \
         {{hosts: [a.test], answer: {{status: 200, body: here}}}}]\n",
        echo().await
    );
    let gateway = Gateway::start(&yaml).await;
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", b"GET"] {
        let mut wire = Wire::connect(gateway.addresses["tls"]).await;
        wire.send(begun).await;
        wire.stream.shutdown().await.unwrap();
        assert_eq!(get(gateway.web(), "a.test", "/").await.text(), "here", "{begun:?}");
        // It is let go, with an alert or without one.
        wire.rest().await;
        assert_eq!(get(gateway.web(), "a.test", "/").await.text(), "here", "{begun:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_says_before_it_refuses_arrives() {
    // It reads the beginning alone: what else has come by then ends the connection by a reset.
    let endpoint = origin(|mut wire| async move {
        wire.exactly(1).await;
        wire.send("too many").await;
    })
    .await;
    let gateway = port_to(endpoint).await;
    for _ in 0..20 {
        let client = TcpStream::connect(gateway.addresses["tcp"]).await.unwrap();
        let (mut read, mut write) = client.into_split();
        let sending = tokio::spawn(async move {
            // More than all buffers on the way hold.
            let _ = write.write_all(&vec![b'x'; 32 << 20]).await;
        });
        let mut answer = vec![0; 8];
        let heard = tokio::time::timeout(PATIENCE, read.read_exact(&mut answer)).await.expect("an answer in time");
        assert!(heard.is_ok() && answer == b"too many", "{heard:?} {}", String::from_utf8_lossy(&answer));
        tokio::time::timeout(PATIENCE, sending).await.expect("the end in time").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_may_end_its_half_first() {
    let patient = origin(|mut wire| async move {
        let question = wire.rest().await;
        wire.send(format!("{} bytes", question.len())).await;
    })
    .await;
    let (tells, mut told) = tokio::sync::mpsc::unbounded_channel();
    let first = origin(move |mut wire| {
        let tells = tells.clone();
        async move {
            wire.send("no more from here").await;
            wire.stream.shutdown().await.unwrap();
            let _ = tells.send(wire.rest().await);
        }
    })
    .await;
    let gateway = port_to(patient).await;
    let mut wire = Wire::connect(gateway.addresses["tcp"]).await;
    wire.send(vec![b'x'; 3 << 20]).await;
    wire.stream.shutdown().await.unwrap();
    assert_eq!(wire.rest().await, format!("{} bytes", 3 << 20).into_bytes());
    let gateway = port_to(first).await;
    let mut wire = Wire::connect(gateway.addresses["tcp"]).await;
    assert_eq!(wire.rest().await, b"no more from here");
    wire.send("still heard").await;
    drop(wire);
    let heard = tokio::time::timeout(PATIENCE, told.recv()).await.expect("the end in time").unwrap();
    assert_eq!(heard, b"still heard");
}
