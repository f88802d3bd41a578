//! What passes through: headers, bodies both ways, upgrades, TLS, TCP, pages, a changed file.

use crate::kit::*;
use crate::log;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_endpoints_with_our_headers_and_keep_their_connection() {
    let gateway = Gateway::start(&file(&[echo().await])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    for number in 0..3 {
        let answer = wire
            .ask(&format!(
                "POST /x/{number}?q=1 HTTP/1.1\r\nHost: A.test:80\r\nContent-Length: 5\r\nX-Forwarded-For: 9.9.9.9\r\n\
                 Connection: X-Drop\r\nX-Drop: 1\r\nX-Keep: 1\r\n\r\nhello"
            ))
            .await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("x-origin"), Some("echo"));
        let seen = answer.text();
        assert!(seen.starts_with(&format!("POST /x/{number}?q=1 HTTP/1.1\r\n")) && seen.ends_with("hello"), "{seen}");
        for part in
            ["host: A.test:80", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-keep: 1", "x-request-id: "]
        {
            assert!(seen.contains(part), "{part} in {seen}");
        }
        assert!(!seen.contains("9.9.9.9") && !seen.contains("x-drop"), "{seen}");
    }
    // Of several ids the first one counts, if it is one.
    for (first, second, kept) in
        [("first-1234", "other-1234", true), ("first-1234", "a b", true), ("a b", "other-1234", false)]
    {
        let mut wire = Wire::connect(gateway.web()).await;
        let ids = format!("X-Request-Id: {first}\r\nX-Request-Id: {second}\r\n");
        let seen = wire.ask(&format!("GET / HTTP/1.1\r\nHost: a.test\r\n{ids}\r\n")).await.text().to_lowercase();
        assert_eq!(seen.matches("x-request-id: ").count(), 1, "{seen}");
        assert_eq!((seen.contains(first), seen.contains(second)), (kept, false), "{seen}");
    }
    wire.send("HEAD /h HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let head = wire.head_only().await.unwrap();
    assert_eq!(head.status(), 200);
    assert!(head.header("content-length").is_some());
    assert_eq!(wire.ask("GET /after HTTP/1.0\r\nHost: a.test\r\n\r\n").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_in_both_directions_at_once() {
    let address = origin(|mut wire| async move {
        // Answers each piece before the next one is sent: nothing may be collected on the way.
        wire.until("\r\n\r\n").await.unwrap();
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        loop {
            let size = usize::from_str_radix(wire.until("\r\n").await.unwrap().trim(), 16).unwrap();
            let piece = wire.exactly(size + 2).await.unwrap();
            wire.send(format!("{size:x}\r\n")).await;
            wire.send(&piece).await;
            if size == 0 {
                return;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    assert!(wire.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(wire.until("first\r\n").await.unwrap(), "5\r\nfirst\r\n");
    wire.send("6\r\nsecond\r\n").await;
    assert_eq!(wire.until("second\r\n").await.unwrap(), "6\r\nsecond\r\n");
    wire.send("0\r\n\r\n").await;
    assert_eq!(wire.until("0\r\n\r\n").await.unwrap(), "0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_passes_in_bounded_memory() {
    if !in_a_process_of_its_own("traffic::a_large_body_passes_in_bounded_memory") {
        return;
    }
    const SIZE: usize = 96 << 20;
    let address = origin(|mut wire| async move {
        wire.until("\r\n\r\n").await.unwrap();
        let left = SIZE;
        let mut sum = 0usize;
        while sum < left {
            let piece = wire.exactly((left - sum).min(1 << 20)).await.unwrap();
            sum += piece.len();
        }
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{sum}", sum.to_string().len())).await;
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send(format!("PUT / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: {SIZE}\r\n\r\n"))
        .await;
    assert!(wire.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 100"));
    let before = resident();
    let piece = vec![7u8; 1 << 20];
    for _ in 0..SIZE >> 20 {
        wire.send(&piece).await;
    }
    assert_eq!(wire.message().await.unwrap().text(), SIZE.to_string());
    let grown = resident().saturating_sub(before);
    assert!(grown < 48 << 20, "memory grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_becomes_a_tunnel_and_a_refused_one_does_not() {
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            if request.head.contains("/ws") {
                assert!(request.head.contains("upgrade: websocket") && request.head.contains("connection: upgrade"));
                wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
                    .await;
                while let Some(byte) = wire.exactly(1).await {
                    wire.send(byte.to_ascii_uppercase()).await;
                }
                return;
            }
            assert!(request.head.contains("/refused") || !request.head.contains("upgrade:"), "{}", request.head);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
        }
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let upgrade = |path: &str, to: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {to}\r\n\r\n")
    };
    assert_eq!(wire.ask(&upgrade("/refused", "websocket")).await.status(), 200);
    assert_eq!(wire.ask(&upgrade("/h2c", "h2c")).await.status(), 200);
    wire.send(upgrade("/ws", "websocket")).await;
    let head = wire.until("\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    assert_eq!(wire.exactly(2).await.unwrap(), b"hi");
    for word in ["get / http/1.1\r\n\r\n", "more"] {
        wire.send(word).await;
        assert_eq!(wire.exactly(word.len()).await.unwrap(), word.to_ascii_uppercase().as_bytes());
    }
    wire.stream.shutdown().await.unwrap();
    assert!(wire.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_take_turns_and_dead_ones_are_passed_over() {
    let (mut counts, mut endpoints) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (endpoint, count) = counted_origin("HTTP/1.1 204 No Content\r\n\r\n").await;
        counts.push(count);
        endpoints.push(endpoint);
    }
    let (dead, _kept) = closed();
    endpoints.push(dead);
    let gateway = Gateway::start(&file(&endpoints)).await;
    for _ in 0..60 {
        let mut wire = Wire::connect(gateway.web()).await;
        let answer = wire.ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc").await;
        assert_eq!(answer.status(), 204, "{answer:?}");
    }
    for count in &counts {
        assert!((20..=40).contains(&count.load(Ordering::SeqCst)), "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_an_endpoint_closed_cost_no_request() {
    // Closes each connection after one answer without saying so: every pooled connection is stale.
    let address = origin(|mut wire| async move {
        wire.message().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    for _ in 0..200 {
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_have_been_done_is_not_sent_twice() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let serve = move |mut wire: Wire| {
        let counter = Arc::clone(&counter);
        async move {
            if wire.message().await.is_some() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let endpoints = [origin(serve.clone()).await, origin(serve).await];
    let gateway = Gateway::start(&file(&endpoints)).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let answer = wire.ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(answer.status(), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(get(gateway.web(), "a.test", "/").await.status(), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 3, "a GET goes to the other endpoint, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answers_gets_a_page() {
    let stalls = origin(|mut wire| async move {
        wire.message().await;
        wire.rest().await;
    })
    .await;
    let (dead, _kept) = closed();
    let yaml = hasty(&file(&[stalls]), "response_ms").replace(
        "routes: [",
        "routes: [{hosts: [dead.test], targets: [{upstream: dead}]}, \
         {hosts: [part.test], paths: [{prefix: /only}], targets: [{upstream: a}]}, ",
    );
    let yaml = yaml.replace("upstreams: [", &format!("upstreams: [{{name: dead, endpoints: [\"{dead}\"]}}, "));
    let gateway = Gateway::start(&yaml).await;
    for (host, path, status, code) in [
        ("nobody.test", "/", 404, "unknown_host"),
        ("part.test", "/", 404, "unknown_path"),
        ("a.test", "/", 504, "upstream_timeout"),
        ("dead.test", "/", 502, "upstream_failed"),
    ] {
        let mut wire = Wire::connect(gateway.web()).await;
        let answer =
            wire.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n")).await;
        assert_eq!(answer.status(), status, "{host}: {answer:?}");
        assert!(answer.text().contains(code), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_and_until_the_end() {
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            if request.head.contains("/304") {
                wire.send("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 100\r\n\r\n").await;
            } else if request.head.contains("/103") {
                wire.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
            } else {
                wire.send("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
                return;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    for _ in 0..3 {
        let answer = wire.ask("GET /304 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!((answer.status(), answer.header("etag")), (304, Some("\"x\"")));
        let answer = wire.ask("GET /end HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(answer.text(), "until the end");
        let mut answer = wire.ask("GET /103 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        if answer.status() == 103 {
            answer = wire.message().await.unwrap();
        }
        assert_eq!(answer.text(), "ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_reach_a_client_before_the_answer_is_there() {
    let seen = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&seen);
    let address = origin(move |mut wire| {
        let seen = Arc::clone(&tell);
        async move {
            while let Some(request) = wire.message().await {
                wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n").await;
                if request.head.contains("/waits") {
                    seen.notified().await;
                }
                wire.send(OK).await;
            }
        }
    })
    .await;
    let general = "routes: [{hosts: [b.test], targets: [{upstream: a}], request_headers: {remove: [x-never]}}, ";
    let gateway = Gateway::start(&file(&[address]).replace("routes: [", general)).await;
    let mut wire = Wire::connect(gateway.web()).await;
    for _ in 0..2 {
        let hints = wire.ask("GET /waits HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!((hints.status(), hints.header("link")), (103, Some("</a.css>; rel=preload")));
        seen.notify_one();
        assert_eq!(wire.message().await.unwrap().text(), "ok");
    }
    // Where they cannot pass, with and without a body, they are not taken for the answer.
    for body in ["\r\n", "Content-Length: 4\r\n\r\nbody"] {
        let answer = wire.ask(&format!("POST / HTTP/1.1\r\nHost: b.test\r\n{body}")).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{body:?}");
    }
}

/// Hints pass on our own codec alone: where they arrive, a connection has not been handed over.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_says_about_plain_http_hands_no_connection_over() {
    let address = origin(|mut wire| async move {
        while wire.message().await.is_some() {
            wire.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await;
            wire.send(OK).await;
        }
    })
    .await;
    let (folder, client) = certified(&["led.test"]);
    let led = "routes: [{hosts: [led.test], targets: [{upstream: a}], tls: {redirect: true, hsts_max_age_s: 60}}, ";
    let yaml = file(&[address])
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        .replace("routes: [", led)
        + "certificates: [{hosts: [led.test], certificate_file: c.pem, key_file: c.key}]\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let mut secure = Wire::connect(over_tls(gateway.addresses["tls"], "led.test", &client).await).await;
    for _ in 0..2 {
        let hints = secure.ask("GET / HTTP/1.1\r\nHost: led.test\r\n\r\n").await;
        assert_eq!((hints.status(), hints.header("strict-transport-security")), (103, None));
        let answer = secure.message().await.unwrap();
        assert_eq!((answer.text().as_str(), answer.header("strict-transport-security")), ("ok", Some("max-age=60")));
    }
    let mut plain = Wire::connect(gateway.web()).await;
    for method in ["GET", "DELETE"] {
        let moved = plain.ask(&format!("{method} /x?y HTTP/1.1\r\nHost: led.test\r\n\r\n")).await;
        assert_eq!((moved.status(), moved.header("strict-transport-security")), (308, None));
        let to = moved.header("location").unwrap();
        assert!(to.starts_with("https://led.test") && to.ends_with("/x?y"), "{to}");
    }
    // Two at once, the second for a host that is served in the clear.
    plain.send("HEAD / HTTP/1.1\r\nHost: led.test\r\n\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(plain.head_only().await.unwrap().status(), 308);
    assert_eq!(plain.message().await.unwrap().status(), 103);
    assert_eq!(plain.message().await.unwrap().text(), "ok");
    let last = plain.ask("GET / HTTP/1.1\r\nHost: led.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((last.status(), last.header("connection")), (308, Some("close")));
    assert!(plain.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_listeners_pass_bytes_both_ways() {
    let address = origin(|mut wire| async move {
        wire.send("hello ").await;
        let rest = wire.rest().await;
        wire.send(rest).await;
    })
    .await;
    let yaml = file(&[address])
        .replace("listeners: [", "listeners: [{name: db, address: \"127.0.0.1:0\", protocol: tcp, upstream: a}, ");
    let gateway = Gateway::start(&yaml).await;
    let mut wire = Wire::connect(gateway.addresses["db"]).await;
    let sent = vec![42u8; 3 << 20];
    wire.send(&sent).await;
    wire.stream.shutdown().await.unwrap();
    let got = wire.rest().await;
    assert!(got.starts_with(b"hello ") && got[6..] == sent[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_picks_the_certificate_and_keeps_hosts_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut authorities = Vec::new();
    for (name, hosts) in
        [("one", vec!["one.test".to_owned(), "*.one.test".to_owned()]), ("two", vec!["two.test".to_owned()])]
    {
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        std::fs::write(folder.path().join(format!("{name}.pem")), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        authorities.push(made.cert.der().clone());
    }
    let yaml = file(&[echo().await])
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        .replace("hosts: [a.test]", "hosts: [one.test, \"*.one.test\", two.test]")
        .replace(
            "routes: [",
            "routes: [{hosts: [db.one.test], targets: [{upstream: a}], tls: {certificate: passthrough}}, ",
        )
        + "certificates: [{hosts: [one.test, \"*.one.test\"], certificate_file: one.pem, key_file: one.key}, \
           {hosts: [two.test], certificate_file: two.pem, key_file: two.key}]\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let client = trusting(authorities).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    for (sni, host, status) in [
        ("one.test", "one.test", 200),
        ("x.one.test", "x.one.test", 200),
        ("x.one.test", "one.test", 200),
        ("two.test", "two.test", 200),
        ("one.test", "two.test", 421),
        ("one.test", "nobody.test", 421),
        // The wildcard covers it, but it is served by another certificate that is not here.
        ("x.one.test", "db.one.test", 421),
    ] {
        let stream = tokio::net::TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
        let mut tls = connector.connect(sni.to_owned().try_into().unwrap(), stream).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{sni} {host}: {answer}");
        assert_eq!(status == 200, answer.contains("x-forwarded-proto: https"), "{answer}");
    }
    let stream = tokio::net::TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let error = connector.connect("nobody.test".try_into().unwrap(), stream).await.unwrap_err().to_string();
    assert!(error.contains("UnrecognisedName") || error.contains("unrecogni"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_takes_effect_and_a_bad_one_does_not() {
    log::keep();
    let first = file(&[echo().await]) + "admin: {address: \"127.0.0.1:0\"}\n";
    let gateway = Gateway::start(&first).await;
    assert_eq!(get(gateway.web(), "b.test", "/").await.status(), 404);
    gateway.rewrite(&first.replace("a.test", "b.test"));
    eventually("the new host", || async { get(gateway.web(), "b.test", "/").await.status() == 200 }).await;
    assert_eq!(get(gateway.web(), "a.test", "/").await.status(), 404);
    gateway.rewrite("routes: nonsense\n");
    let path = gateway.folder.path().display().to_string();
    eventually("the bad file is refused", || async {
        log::with(&path).iter().any(|it| it.contains("the file is refused"))
    })
    .await;
    assert_eq!(get(gateway.web(), "b.test", "/").await.status(), 200);
    let admin = gateway.admin.unwrap();
    assert_eq!(get(admin, "admin", "/healthz").await.text(), "ok\n");
    // A valid one after it counts.
    gateway.rewrite(&first.replace("a.test", "b.test, c.test"));
    eventually("the third file", || async {
        assert_eq!(get(gateway.web(), "b.test", "/").await.status(), 200);
        get(gateway.web(), "c.test", "/").await.status() == 200
    })
    .await;
    let metrics = get(admin, "admin", "/metrics").await.text();
    assert!(metrics.contains("arco_gateway_requests_total{host=\"b.test\",class=\"2xx\"}"), "{metrics}");
    assert_eq!(get(admin, "admin", "/hold").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_endpoint() {
    let (arrived, left) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (tell_arrived, tell_left) = (Arc::clone(&arrived), Arc::clone(&left));
    let address = origin(move |mut wire| {
        let (arrived, left) = (Arc::clone(&tell_arrived), Arc::clone(&tell_left));
        async move {
            let request = wire.message().await.unwrap();
            if request.head.contains("/stream") {
                wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
            }
            arrived.notify_one();
            wire.rest().await;
            left.notify_one();
        }
    })
    .await;
    // Far beyond the patience of this test: only the client's leaving may end the request.
    let gateway = Gateway::start(&file(&[address])).await;
    for path in ["/waits", "/stream"] {
        let mut wire = Wire::connect(gateway.web()).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        arrived.notified().await;
        if path == "/stream" {
            assert!(wire.until("data: 1").await.is_some());
        }
        drop(wire);
        tokio::time::timeout(PATIENCE, left.notified()).await.unwrap_or_else(|_| panic!("{path} was not ended"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_open_requests_finish_and_refuses_new_connections() {
    let (arrived, release) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (tell, held) = (Arc::clone(&arrived), Arc::clone(&release));
    let address = origin(move |mut wire| {
        let (arrived, held) = (Arc::clone(&tell), Arc::clone(&held));
        async move {
            while let Some(request) = wire.message().await {
                if request.head.contains("/held") {
                    arrived.notify_one();
                    held.notified().await;
                }
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    // The kernel keeps those that have said nothing yet.
    let mut idle = Wire::connect(gateway.web()).await;
    let answer = idle.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("connection")), (200, None));
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("GET /held HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    arrived.notified().await;
    gateway.stop.cancel();
    assert!(idle.rest().await.is_empty(), "an idle connection ends at once");
    eventually("no new connection", || async { tokio::net::TcpStream::connect(gateway.web()).await.is_err() }).await;
    release.notify_one();
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("late", Some("close")));
}
