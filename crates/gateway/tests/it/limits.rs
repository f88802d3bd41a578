//! Limits that end what takes too long, or is too much, on a route that our codec serves (`a.test`) and on one that hyper
//! serves (`b.test`). What a limit is not meant for has none, so that only the one that is meant can end it.

use crate::kit::*;
use crate::log;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const HOSTS: [&str; 2] = ["a.test", "b.test"];

/// A file whose second host has a rule of its own, which makes it the general path's; `limit` is one of its times in ms.
fn both(endpoints: &[SocketAddr], limit: &str, ms: u32) -> String {
    let times = "timeouts: {";
    let file = file(endpoints)
        .replace(
            "routes: [",
            "routes: [{hosts: [b.test], targets: [{upstream: a}], request_headers: {remove: [x-never]}}, ",
        )
        .replace(&format!(", {limit}: 600000"), "")
        .replace(times, &format!("{times}{limit}: {ms}, "));
    format!("{file}admin: {{address: \"127.0.0.1:0\"}}\n")
}

/// What `/metrics` counts under this name for the upstream `a`.
async fn counted(gateway: &Gateway, name: &str) -> u64 {
    let text = get(gateway.admin.unwrap(), "admin", "/metrics").await.text();
    let start = format!("arco_gateway_{name}{{upstream=\"a\"}} ");
    let line = text.lines().find_map(|it| it.strip_prefix(&start)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_no_more_than_its_total_time() {
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            if request.head.contains("/begins") {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nand").await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&both(&[address], "total_ms", 500)).await;
    for host in HOSTS {
        assert_eq!(get(gateway.web(), host, "/silent").await.status(), 504, "{host}");
        // On a busy machine an answer may come too late to begin.
        eventually("an answer that begins in time breaks off", || async {
            let mut wire = Wire::connect(gateway.web()).await;
            wire.send(format!("GET /begins HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let head = wire.until("\r\n\r\n").await.unwrap_or_default();
            let began = head.starts_with("HTTP/1.1 200");
            if !began {
                assert!(head.is_empty() || head.starts_with("HTTP/1.1 504"), "{host}: {head}");
                return false;
            }
            let rest = wire.rest().await;
            assert!(b"and".starts_with(&rest), "{host}: {}", rest.escape_ascii());
            !rest.is_empty()
        })
        .await;
    }
}

/// A listener that takes no connection any more, and what keeps it so.
async fn full() -> (SocketAddr, (TcpListener, TcpStream)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = TcpStream::connect(address).await.unwrap();
    // Of a listener the kernel tells how many connections wait to be accepted: with one, this one drops all others.
    let row = format!(" 0100007F:{:04X} 00000000:0000 0A 00000000:00000001 ", address.port());
    eventually("the listener is full", || async {
        std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(|it| it.contains(&row))
    })
    .await;
    (address, (listener, waiting))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_take_connections_is_passed_over_in_time() {
    let (address, _full) = full().await;
    let (fine, _) = counted_origin(OK).await;
    for host in HOSTS {
        let gateway = Gateway::start(&both(&[address, fine], "connect_ms", 300)).await;
        for _ in 0..2 {
            assert_eq!(get(gateway.web(), host, "/").await.status(), 200, "{host}");
        }
        assert!(counted(&gateway, "upstream_failures_total").await > 0, "{host}: it was asked");
        let gateway = Gateway::start(&both(&[address], "connect_ms", 300)).await;
        assert_eq!(get(gateway.web(), host, "/").await.status(), 504, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_read_has_the_time_of_a_response() {
    let address = origin(|mut wire| async move {
        if wire.until("\r\n\r\n").await.is_some_and(|it| it.starts_with("POST")) {
            // As long as the gateway holds the connection, without reading.
            std::future::pending::<()>().await;
        }
    })
    .await;
    let gateway = Gateway::start(&both(&[address], "response_ms", 500)).await;
    for host in HOSTS {
        let (mut reader, mut writer) = TcpStream::connect(gateway.web()).await.unwrap().into_split();
        let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", 1u64 << 40);
        let writing = tokio::spawn(async move {
            let piece = vec![b'x'; 64 * 1024];
            let mut open = writer.write_all(head.as_bytes()).await.is_ok();
            while open {
                open = writer.write_all(&piece).await.is_ok();
            }
        });
        let mut answer = Vec::new();
        let reading = async {
            while !answer.windows(4).any(|it| it == b"\r\n\r\n")
                && reader.read_buf(&mut answer).await.is_ok_and(|it| it > 0)
            {}
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time");
        writing.abort();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 504 "), "{host}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_in_all_are_limited() {
    let yaml = file(&[echo().await]) + "limits: {max_connections: 2}\n";
    let gateway = Gateway::start(&yaml).await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let (mut first, mut second) = (Wire::connect(gateway.web()).await, Wire::connect(gateway.web()).await);
    assert_eq!((first.ask(request).await.status(), second.ask(request).await.status()), (200, 200));
    assert!(Wire::connect(gateway.web()).await.rest().await.is_empty(), "a third is closed");
    assert_eq!(second.ask(request).await.status(), 200, "the others go on");
    drop(first);
    eventually("room for another", || async {
        let mut wire = Wire::connect(gateway.web()).await;
        wire.stream.write_all(request.as_bytes()).await.is_ok() && wire.message().await.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_without_a_path_connects() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let well = origin(move |mut wire| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            while wire.message().await.is_some() {
                wire.send(OK).await;
            }
        }
    })
    .await;
    log::keep();
    let (address, socket) = closed();
    let yaml = both(&[well, address], "response_ms", 600_000)
        .replace("name: a, ", "name: a, check: {interval_ms: 50, timeout_ms: 600000, unhealthy: 1, healthy: 1}, ");
    let gateway = Gateway::start(&yaml).await;
    let place = format!("address={address} ");
    let told = |well: &str| log::with(&place).iter().any(|it| it.contains("changed its health") && it.contains(well));
    eventually("it is left out", || async { told("well=false") }).await;
    eventually("several checks", || async { connections.load(Ordering::SeqCst) >= 20 }).await;
    for host in HOSTS {
        for _ in 0..10 {
            assert_eq!(get(gateway.web(), host, "/").await.status(), 200);
        }
    }
    assert_eq!(counted(&gateway, "upstream_failures_total").await, 0, "no request found out");
    let listener = socket.listen(16).unwrap();
    let (mut stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.expect("a check").unwrap();
    let mut sent = Vec::new();
    stream.read_to_end(&mut sent).await.unwrap();
    assert!(sent.is_empty(), "nothing is sent");
    eventually("it is asked again", || async { told("well=true") }).await;
}
