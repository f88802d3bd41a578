//! Bodies that are taken whole: a slow client holds no endpoint, a body can be sent again, and what has no place is told.

use crate::kit::*;
use arco_daemon::Supervisor;
use arco_gateway::alone::Alone;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

const BOTH: &str = "buffer: {request: true, response: true}";
/// More than a body may take of memory, and than the sockets on the way hold.
const LARGE: usize = 24 << 20;

async fn gateway(endpoints: &[SocketAddr], part: &str, more: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    let route = format!("targets: [{{upstream: a}}], {part}");
    let yaml = file(endpoints).replace("targets: [{upstream: a}]", &route);
    Gateway::start_in(folder, &format!("{yaml}buffer_folder: .\n{more}")).await
}

/// An endpoint that answers with the length and the sum of what it was sent, and counts who connects.
async fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let address = origin(move |mut wire| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            while let Some(request) = wire.message().await {
                let sum: u64 = request.body.iter().map(|it| u64::from(*it)).sum();
                let known = request.header("content-length").is_some();
                let text = format!("{} {sum} {known}", request.body.len());
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())).await;
            }
        }
    })
    .await;
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_asked_when_the_request_is_whole() {
    let (whole, early) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_whole, was_early) = (Arc::clone(&whole), Arc::clone(&early));
    let endpoint = origin(move |mut wire| {
        let (whole, early) = (Arc::clone(&is_whole), Arc::clone(&was_early));
        async move {
            while let Some(head) = wire.until("\r\n\r\n").await {
                early.fetch_or(head.starts_with("POST") && !whole.load(Ordering::SeqCst), Ordering::SeqCst);
                let length = Message { head, body: Vec::new() }.header("content-length").map(|it| it.parse().unwrap());
                let body = wire.exactly(length.unwrap_or(0)).await.unwrap();
                let text = format!("{} {}", body.len(), body.iter().map(|it| u64::from(*it)).sum::<u64>());
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())).await;
            }
        }
    })
    .await;
    let gateway = gateway(&[endpoint], BOTH, "").await;
    for (head, pieces, end, seen) in [
        ("Content-Length: 600000", [vec![1u8; 300_000], vec![2; 300_000]], "", "600000 900000"),
        ("Transfer-Encoding: chunked", [b"2\r\nab\r\n".to_vec(), b"1\r\nc\r\n".to_vec()], "0\r\n\r\n", "3 294"),
        ("Content-Length: 4\r\nExpect: 100-continue", [b"ab".to_vec(), b"cd".to_vec()], "", "4 394"),
    ] {
        whole.store(false, Ordering::SeqCst);
        let mut wire = Wire::connect(gateway.web()).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{head}\r\n\r\n")).await;
        if head.contains("Expect") {
            assert!(wire.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 100"));
        }
        wire.send(&pieces[0]).await;
        // Others go all the way meanwhile: this one could have, too.
        for _ in 0..4 {
            assert_eq!(get(gateway.web(), "a.test", "/").await.text(), "0 0");
        }
        whole.store(true, Ordering::SeqCst);
        wire.send(&pieces[1]).await;
        wire.send(end).await;
        assert_eq!(wire.message().await.unwrap().text(), seen, "{head}");
    }
    assert!(!early.load(Ordering::SeqCst), "a request came before it was whole");
    let left: Vec<_> = std::fs::read_dir(gateway.folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["gateway.yaml"], "no file has a name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_body_is_sent_to_another_endpoint() {
    let broken = || origin(|mut wire| async move { drop(wire.message().await) });
    let (endpoint, connections) = counting().await;
    let endpoints = [broken().await, broken().await, endpoint];
    for (part, method, answered) in [
        (BOTH, "PUT", true),
        // It may have arrived.
        (BOTH, "POST", false),
        ("buffer: {response: true}", "PUT", false),
    ] {
        let gateway = gateway(&endpoints, part, "").await;
        let before = connections.load(Ordering::SeqCst);
        for _ in 0..3 {
            let mut wire = Wire::connect(gateway.web()).await;
            wire.send(format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 400000\r\n\r\n")).await;
            // The endpoint may break off before all of it was sent.
            let _ = wire.stream.write_all(&vec![3; 400_000]).await;
            let answer = wire.message().await;
            if answered {
                assert_eq!(answer.unwrap().text(), "400000 1200000 true");
            }
        }
        let asked = connections.load(Ordering::SeqCst) - before;
        assert!(if answered { asked >= 1 } else { asked <= 1 }, "{part} {method}: {asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_free_while_a_slow_client_reads() {
    if !in_a_process_of_its_own("buffering::an_endpoint_is_free_while_a_slow_client_reads") {
        return;
    }
    let sent = Arc::new(Notify::new());
    let told = Arc::clone(&sent);
    let endpoint = origin(move |mut wire| {
        let sent = Arc::clone(&told);
        async move {
            while let Some(request) = wire.message().await {
                let chunked = request.head.contains("/chunked");
                let head =
                    if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {LARGE}") };
                wire.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).await;
                for number in 0..LARGE >> 20 {
                    if chunked {
                        wire.send("100000\r\n").await;
                    }
                    wire.send(vec![number as u8; 1 << 20]).await;
                    if chunked {
                        wire.send("\r\n").await;
                    }
                }
                if chunked {
                    wire.send("0\r\n\r\n").await;
                }
                sent.notify_one();
            }
        }
    })
    .await;
    let gateway = gateway(&[endpoint], BOTH, "").await;
    for path in ["/length", "/chunked"] {
        let before = resident();
        let mut wire = Wire::connect(gateway.web()).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        // Nothing is read yet, and it is more than the sockets hold.
        tokio::time::timeout(PATIENCE, sent.notified()).await.expect("the endpoint is free");
        let grown = resident().saturating_sub(before);
        assert!(grown < 12 << 20, "memory grew by {grown} bytes");
        let answer = wire.message().await.unwrap();
        assert_eq!(answer.body.len(), LARGE);
        assert!(answer.body.chunks(1 << 20).zip(0..).all(|(it, number)| it.iter().all(|byte| *byte == number)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_place_is_told_and_responses_go_on() {
    let (endpoint, _) = counting().await;
    let limits = "limits: {max_buffered_bytes: 1000000}\n";
    let gateway = gateway(&[endpoint], &format!("{BOTH}, max_body_bytes: 5000000"), limits).await;
    let ask = |length: usize| {
        let web = gateway.web();
        async move {
            let mut wire = Wire::connect(web).await;
            let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
            wire.send(head).await;
            // It is refused before all of it is sent: both at once.
            let (mut from, mut to) = wire.stream.split();
            let (body, mut answer) = (vec![1; length], vec![0; 12]);
            let (_, read) = tokio::join!(to.write_all(&body), from.read_exact(&mut answer));
            read.map_or("none".to_owned(), |_| String::from_utf8_lossy(&answer[9..]).into_owned())
        }
    };
    assert_eq!(ask(900_000).await, "200");
    assert_eq!(ask(5_000_001).await, "413");
    assert_eq!(ask(1_300_000).await, "507");
    assert_eq!(ask(900_000).await, "200", "what the refused one took is free again");

    let large = origin(|mut wire| async move {
        while wire.message().await.is_some() {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
            wire.send(vec![5; LARGE]).await;
        }
    })
    .await;
    let gateway = self::gateway(&[large], BOTH, limits).await;
    let answer = get(gateway.web(), "a.test", "/").await;
    assert!(answer.body.len() == LARGE && answer.body.iter().all(|it| *it == 5), "only not ahead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_bodies_cannot_be_kept_in_is_refused() {
    let (folder, endpoint) = (tempfile::tempdir().unwrap(), echo().await);
    let path = folder.path().join("gateway.yaml");
    let write = |place: &str, host: &str| {
        let yaml = file(&[endpoint]).replace("a.test", host) + &format!("buffer_folder: {place}\n");
        std::fs::write(&path, yaml).unwrap();
    };
    let supervisor = Supervisor::new();
    write("nowhere", "a.test");
    let problem = Alone::build(&supervisor, &path).await.err().unwrap().to_string();
    assert!(problem.contains("`buffer_folder`") && problem.contains("nowhere"), "{problem}");
    write(".", "a.test");
    let mut alone = Alone::build(&supervisor, &path).await.unwrap();
    let web = alone.addresses()["web"];
    for (place, status) in [("nowhere", 404), (".", 200)] {
        write(place, "b.test");
        alone.reload().await;
        assert_eq!(get(web, "b.test", "/").await.status(), status, "{place}");
    }
    supervisor.token().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_looks_broken() {
    let endpoint = origin(|mut wire| async move {
        wire.message().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
    })
    .await;
    let gateway = gateway(&[endpoint], BOTH, "").await;
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(wire.until("\r\n\r\n").await.unwrap().contains("content-length: 10"));
    assert_eq!(wire.rest().await, b"hello");
    // Events are not held back, and HEAD has no body.
    let endpoint = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            if request.head.starts_with("HEAD") {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
                continue;
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            wire.send(format!("{head}5\r\nfirst\r\n")).await;
            wire.message().await;
        }
    })
    .await;
    let gateway = self::gateway(&[endpoint], BOTH, "").await;
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.head_only().await.unwrap().header("content-length"), Some("10"));
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(wire.until("first").await.is_some());
}
