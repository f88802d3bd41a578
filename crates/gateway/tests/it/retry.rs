//! Requests that are sent to another endpoint: when, how often, and when never.

use crate::kit::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An endpoint that counts its requests and answers each with this status.
async fn answering(status: u16) -> (SocketAddr, Arc<AtomicUsize>) {
    counted_origin(&format!("HTTP/1.1 {status} Status\r\nContent-Length: 3\r\n\r\n{status}")).await
}

/// An endpoint that reads requests and never answers.
async fn silent() -> SocketAddr {
    origin(|mut wire| async move { while wire.message().await.is_some() {} }).await
}

/// An endpoint that reads a request and breaks off.
async fn broken() -> SocketAddr {
    origin(|mut wire| async move { drop(wire.message().await) }).await
}

/// A gateway whose route to these endpoints retries like this.
async fn gateway(endpoints: &[SocketAddr], retry: &str) -> Gateway {
    let yaml =
        file(endpoints).replace("targets: [{upstream: a}]", &format!("targets: [{{upstream: a}}], retry: {retry}"));
    Gateway::start(&yaml).await
}

async fn statuses(gateway: &Gateway, method: &str, count: usize) -> Vec<u16> {
    let mut wire = Wire::connect(gateway.web()).await;
    let mut statuses = Vec::new();
    for _ in 0..count {
        let request = match method {
            "POST" => "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
            method => format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        };
        statuses.push(wire.ask(&request).await.status());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_route_names_are_asked_for_elsewhere() {
    let ((bad, asked), (good, _)) = (answering(503).await, answering(200).await);
    let gateway = gateway(&[bad, good], "{statuses: [503], budget_percent: 100}").await;
    assert_eq!(statuses(&gateway, "GET", 10).await, [200; 10]);
    assert!(asked.load(Ordering::SeqCst) >= 5, "it had its turns, and was not believed");
    // What has a body may have done something: its answer counts.
    let posted = statuses(&gateway, "POST", 10).await;
    assert_eq!(posted.iter().filter(|it| **it == 503).count(), 5, "{posted:?}");
    // The last endpoint's answer is the answer.
    let ((one, _), (two, _)) = (answering(503).await, answering(502).await);
    let gateway = gateway_of_bad(&[one, two]).await;
    assert!(statuses(&gateway, "GET", 4).await.iter().all(|it| [502, 503].contains(it)));
}

async fn gateway_of_bad(endpoints: &[SocketAddr]) -> Gateway {
    gateway(endpoints, "{statuses: [502, 503], budget_percent: 100}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_a_share_of_the_requests() {
    let ((bad, asked), (good, _)) = (answering(503).await, answering(200).await);
    let gateway = gateway(&[bad, good], "{statuses: [503], budget_percent: 10}").await;
    let answers = statuses(&gateway, "GET", 200).await;
    let failed = answers.iter().filter(|it| **it == 503).count();
    // Ten are saved up, and a tenth of what comes; each retry takes a turn of the good one as well.
    let retried = asked.load(Ordering::SeqCst) - failed;
    assert!((20..=31).contains(&retried), "{retried} retries, {failed} failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_says_after_what_and_how_often() {
    let (nobody, _kept) = closed();
    for (first, retry, post, expected) in [
        (nobody, "{}", true, 200),
        (nobody, "{on: [broken]}", false, 502),
        (nobody, "{attempts: 1}", false, 502),
        (broken().await, "{}", false, 200),
        (broken().await, "{}", true, 502),
        (broken().await, "{on: [connect]}", false, 502),
        // Of the three that answer, one does so in time also when threads are held up.
        (silent().await, "{attempts: 4, on: [timeout], attempt_ms: 2000}", false, 200),
    ] {
        let (one, two, three) = (answering(200).await.0, answering(200).await.0, answering(200).await.0);
        let gateway = gateway(&[first, one, two, three], retry).await;
        let method = if post { "POST" } else { "GET" };
        // The first request goes to the first endpoint.
        assert_eq!(statuses(&gateway, method, 1).await, [expected], "{method} {retry}");
    }
    // Whoever is slow with a body is waited for: nobody knows what it has done.
    let yaml = hasty(&file(&[silent().await, answering(200).await.0]), "response_ms")
        .replace("targets: [{upstream: a}]", "targets: [{upstream: a}], retry: {on: [timeout], attempt_ms: 1}");
    assert_eq!(statuses(&Gateway::start(&yaml).await, "POST", 1).await, [504]);
}
