//! What is refused on the wire, and that nothing of it reaches an endpoint.

use crate::kit::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A gateway whose endpoint counts the requests that it sees.
async fn counted(limits: fn(&str) -> String) -> (Gateway, Arc<AtomicUsize>) {
    let (address, seen) = counted_origin(OK).await;
    (Gateway::start(&limits(&file(&[address]))).await, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_get_an_answer_and_reach_nobody() {
    let (gateway, seen) = counted(str::to_owned).await;
    for (request, status) in [
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nX: y\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nX : y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nX: \0\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a.test\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a.test\r\n\r\n", 505),
        ("CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n", 405),
    ] {
        let mut wire = Wire::connect(gateway.web()).await;
        let answer = wire.ask(request).await;
        assert_eq!(answer.status(), status, "{request:?}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(wire.rest().await.is_empty());
    }
    let many = "X: y\r\n".repeat(20_000);
    let mut wire = Wire::connect(gateway.web()).await;
    wire.offer(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{many}\r\n")).await;
    assert_eq!(wire.message().await.unwrap().status(), 431);
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_after_good_ones_ends_the_connection_after_their_answers() {
    let (gateway, seen) = counted(str::to_owned).await;
    let good = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send(format!("{good}{good}GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: x\r\n\r\n{good}")).await;
    for status in [200, 200, 400] {
        assert_eq!(wire.message().await.unwrap().status(), status);
    }
    assert!(wire.rest().await.is_empty());
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_bad_chunks_is_refused() {
    let (gateway, _) = counted(str::to_owned).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = wire.ask(&format!("{head}5\r\nhelloX\n0\r\n\r\n")).await;
    assert_eq!(answer.status(), 400, "{answer:?}");
    assert!(wire.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_are_let_go() {
    let (gateway, _) = counted(|it| hasty(it, "request_header_ms")).await;
    // One that begins late, because this thread was held up, is as silent as the next one.
    let answer = at_last("a head that began in time", || async {
        let mut slow = Wire::connect(gateway.web()).await;
        slow.offer("GET / HTTP/1.1\r\nHost: a.te").await;
        slow.message().await
    });
    assert_eq!(answer.await.status(), 408);
    let mut silent = Wire::connect(gateway.web()).await;
    assert!(silent.rest().await.is_empty());
    let (gateway, _) = counted(|it| hasty(it, "idle_ms")).await;
    let mut idle = Wire::connect(gateway.web()).await;
    assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.status(), 200);
    assert!(idle.rest().await.is_empty());
    let (gateway, _) = counted(|it| hasty(it, "request_body_ms")).await;
    let mut stuck = Wire::connect(gateway.web()).await;
    let answer = stuck.ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc").await;
    assert_eq!(answer.status(), 408, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_breaks_framing_poisons_nothing() {
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            if request.head.contains("/extra") {
                wire.send(
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
                )
                .await;
            } else if request.head.contains("/garbage") {
                wire.send("this is not HTTP\r\n\r\n").await;
            } else if request.head.contains("/short") {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort").await;
                return;
            } else if request.head.contains("/reset") {
                return;
            } else {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean").await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    for (path, status) in
        [("/extra", 200), ("/clean", 200), ("/garbage", 502), ("/clean", 200), ("/reset", 502), ("/clean", 200)]
    {
        for _ in 0..5 {
            let answer = get(gateway.web(), "a.test", path).await;
            assert_eq!(answer.status(), status, "{path}: {answer:?}");
            assert!(!answer.text().contains("poison"), "{path}: {answer:?}");
        }
    }
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("GET /short HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(wire.message().await.is_none(), "a short body must not look whole");
}
