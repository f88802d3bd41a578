//! Endpoints that speak HTTP/2: how many connections they get, and what becomes of one on which nothing comes.

use crate::http2::*;
use crate::kit::*;
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// What an endpoint saw, and when it answers.
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Of requests for `/waits`.
    answers: Semaphore,
}

/// An endpoint that takes two requests at once on a connection.
async fn endpoint() -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, requests, answers) = (AtomicUsize::new(0), AtomicUsize::new(0), Semaphore::new(0));
    let seen = Arc::new(Seen { connections, requests, answers });
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            kept.connections.fetch_add(1, Ordering::SeqCst);
            let seen = Arc::clone(&kept);
            let service = service_fn(move |request: http::Request<Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    if request.uri().path() == "/waits" {
                        seen.answers.acquire().await.unwrap().forget();
                    }
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"ok"))))
                }
            });
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.max_concurrent_streams(2u32);
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, seen)
}

/// A file for one thread, whose upstream speaks HTTP/2. Requests for `hasty.test` have two seconds.
fn by_http2(endpoint: SocketAddr) -> String {
    let hasty = "routes: [{hosts: [hasty.test], targets: [{upstream: a}], timeouts: {response_ms: 2000}}, ";
    file(&[endpoint]).replace("name: a, ", "name: a, protocol: http2, ").replace("routes: [", hasty) + "threads: 1\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_what_a_connection_takes_get_another_one() {
    const OPEN: usize = 5;
    let (address, seen) = endpoint().await;
    let gateway = Gateway::start(&by_http2(address)).await;
    let web = gateway.web();
    // What the endpoint takes is known from here on.
    assert_eq!(get(web, "a.test", "/").await.status(), 200);
    let mut open = Vec::new();
    for number in 1..=OPEN {
        open.push(tokio::spawn(get(web, "a.test", "/waits")));
        eventually("the request arrives", || async { seen.requests.load(Ordering::SeqCst) == 1 + number }).await;
    }
    let connections = seen.connections.load(Ordering::SeqCst);
    assert!((3..=OPEN).contains(&connections), "{connections} connections");
    seen.answers.add_permits(OPEN);
    for answer in open {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    // There is room on those that are there.
    for _ in 0..3 {
        assert_eq!(get(web, "a.test", "/").await.status(), 200);
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), connections);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_share_what_connections_there_may_be() {
    // Far more than one connection for each would be.
    const ASKED: usize = 200;
    let (address, seen) = endpoint().await;
    let gateway = Gateway::start(&by_http2(address)).await;
    let web = gateway.web();
    let answers = tokio::spawn(join_all((0..ASKED).map(move |_| get(web, "a.test", "/waits"))));
    // All that fit on 32 connections.
    eventually("requests arrive", || async { seen.requests.load(Ordering::SeqCst) >= 64 }).await;
    seen.answers.add_permits(ASKED);
    for answer in answers.await.unwrap() {
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 32);
}

/// An endpoint whose first connection does nothing any more after one answer; and how many connections it had.
async fn freezing() -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let address = origin(move |mut wire| {
        let is_first = counter.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            // The preface.
            if wire.exactly(24).await.is_none() {
                return;
            }
            wire.send(frame(SETTINGS, 0, 0, &[])).await;
            while let Some(head) = wire.exactly(9).await {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let Some(payload) = wire.exactly(length).await else { return };
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                match (head[3], head[4]) {
                    (SETTINGS, 0) => wire.send(frame(SETTINGS, ACK, 0, &[])).await,
                    (PING, 0) => wire.send(frame(PING, ACK, 0, &payload)).await,
                    (HEADERS, _) => {
                        // `:status: 200`, of HPACK's static table.
                        wire.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88])).await;
                        if is_first {
                            // The socket stays open, and nobody reads.
                            std::future::pending::<()>().await;
                        }
                    }
                    _ => {}
                }
            }
        }
    })
    .await;
    (address, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_comes_gets_no_further_request() {
    let (address, connections) = freezing().await;
    let gateway = Gateway::start(&by_http2(address)).await;
    let web = gateway.web();
    assert_eq!(get(web, "a.test", "/").await.status(), 200);
    assert_eq!(get(web, "hasty.test", "/").await.status(), 504, "its endpoint is frozen");
    assert_eq!(connections.load(Ordering::SeqCst), 1, "on the one connection that there was");
    for _ in 0..2 {
        assert_eq!(get(web, "a.test", "/").await.status(), 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_slow_request_stays() {
    let (address, seen) = endpoint().await;
    let gateway = Gateway::start(&by_http2(address)).await;
    let web = gateway.web();
    assert_eq!(get(web, "a.test", "/").await.status(), 200);
    let slow = tokio::spawn(get(web, "hasty.test", "/waits"));
    eventually("the request arrives", || async { seen.requests.load(Ordering::SeqCst) == 2 }).await;
    // Beside it, until its time is over.
    while !slow.is_finished() {
        assert_eq!(get(web, "a.test", "/").await.status(), 200);
    }
    assert_eq!(slow.await.unwrap().status(), 504);
    assert_eq!(get(web, "a.test", "/").await.status(), 200);
    assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
}
