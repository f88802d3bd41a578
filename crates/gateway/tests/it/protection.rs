//! Limits, trusted proxies, health of endpoints, HTTP/2 and the PROXY protocol, seen from outside.

use crate::kit::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt;

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

async fn with_route(part: &str) -> Gateway {
    let yaml =
        file(&[echo().await]).replace("targets: [{upstream: a}]", &format!("targets: [{{upstream: a}}], {part}"));
    Gateway::start(&yaml).await
}

/// An endpoint that answers with what `status` holds, and counts.
async fn moody(status: &Arc<AtomicU16>, count: &Arc<AtomicUsize>) -> SocketAddr {
    let (status, count) = (Arc::clone(status), Arc::clone(count));
    origin(move |mut wire| {
        let (status, count) = (Arc::clone(&status), Arc::clone(&count));
        async move {
            while let Some(request) = wire.message().await {
                if !request.head.contains("/check") {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                let status = status.load(Ordering::SeqCst);
                wire.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")).await;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_addresses_and_sizes_are_limited() {
    // A turn each 10,000 s: whatever this takes is little of that.
    let gateway = with_route("rate_limits: [{requests: 3, per_ms: 30000000}]").await;
    let mut wire = Wire::connect(gateway.web()).await;
    for _ in 0..3 {
        assert_eq!(wire.ask(GET).await.status(), 200);
    }
    let answer = wire.ask(GET).await;
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(answer.status() == 429 && (9_000..=10_000).contains(&wait), "{answer:?}");
    for (part, status) in [
        ("deny: [127.0.0.0/8]", 403),
        ("deny: ['::ffff:127.0.0.0/104']", 403),
        ("allow: [10.0.0.0/8]", 403),
        ("allow: [127.0.0.1/32]", 200),
        ("allow: ['::ffff:127.0.0.1/128']", 200),
    ] {
        let gateway = with_route(part).await;
        assert_eq!(get(gateway.web(), "a.test", "/").await.status(), status, "{part}");
    }
    let gateway = with_route("max_body_bytes: 4").await;
    for (body, status) in [
        ("Content-Length: 4\r\n\r\nabcd", 200),
        ("Content-Length: 5\r\n\r\nabcde", 413),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", 200),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n1\r\ne\r\n0\r\n\r\n", 413),
    ] {
        let mut wire = Wire::connect(gateway.web()).await;
        let answer = wire.ask(&format!("POST / HTTP/1.1\r\nHost: a.test\r\n{body}")).await;
        assert_eq!(answer.status(), status, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_addresses_of_requests_are_limited() {
    let yaml = file(&[echo().await]) + "limits: {max_connections_per_address: 2, max_uri_bytes: 100}\n";
    let gateway = Gateway::start(&yaml).await;
    let mut first = Wire::connect(gateway.web()).await;
    assert_eq!(first.ask(GET).await.status(), 200);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "x".repeat(100));
    assert_eq!(first.ask(&long).await.status(), 414);
    let mut second = Wire::connect(gateway.web()).await;
    assert_eq!(second.ask(GET).await.status(), 200);
    assert!(Wire::connect(gateway.web()).await.rest().await.is_empty(), "a third is closed");
    drop(first);
    eventually("room for another", || async {
        let mut wire = Wire::connect(gateway.web()).await;
        wire.stream.write_all(GET.as_bytes()).await.is_ok() && wire.message().await.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_is_believed() {
    let yaml = file(&[echo().await])
        .replace("routes: [", "routes: [{hosts: [moved.test], redirect: {path: /new, status: 301}}, ")
        + "trusted_proxies: [127.0.0.0/8]\n";
    let gateway = Gateway::start(&yaml).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let request =
        "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 6.6.6.6, 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n";
    let seen = wire.ask(request).await.text();
    for part in
        ["x-forwarded-for: 6.6.6.6, 1.2.3.4, 127.0.0.1\r\n", "x-real-ip: 1.2.3.4\r\n", "x-forwarded-proto: https\r\n"]
    {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    // Routed by `Host`; who answers learns the host that the proxy was asked for.
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\
         Forwarded: for=6.6.6.6;host=evil.test, for=\"1.2.3.4:99\";proto=https;host=shop.test\r\n\r\n";
    let seen = wire.ask(request).await.text();
    for part in [
        "host: a.test\r\n",
        "x-forwarded-for: 1.2.3.4, 127.0.0.1\r\n",
        "x-real-ip: 1.2.3.4\r\n",
        "x-forwarded-proto: https\r\n",
        "x-forwarded-host: shop.test\r\n",
    ] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    assert!(!seen.contains("\r\nforwarded:"), "{seen}");
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Host: shop.test:8443\r\n\r\n";
    let seen = wire.ask(request).await.text();
    assert!(seen.contains("x-forwarded-host: shop.test:8443\r\n"), "{seen}");
    // Nobody is led away by it: many proxies pass on what a client writes there.
    let request = "GET /old HTTP/1.1\r\nHost: moved.test\r\nX-Forwarded-Host: evil.test\r\n\r\n";
    let moved = wire.ask(request).await;
    assert_eq!(moved.status(), 301);
    assert!(moved.head.contains("://moved.test/") && !moved.head.contains("evil.test"), "{}", moved.head);
    // Nobody else is.
    let strangers = Gateway::start(&yaml.replace("127.0.0.0/8", "10.0.0.0/8")).await;
    let mut wire = Wire::connect(strangers.web()).await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nForwarded: for=1.2.3.4;host=shop.test\r\nX-Forwarded-Host: shop.test\r\n\r\n";
    let seen = wire.ask(request).await.text();
    assert!(seen.contains("x-forwarded-host: a.test\r\n") && !seen.contains("1.2.3.4"), "{seen}");
}

/// Behind a proxy that ends TLS, where every request comes in the clear.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_trusted_proxy_over_tls_is_treated_so() {
    let endpoint = echo().await;
    let upstreams = format!(
        "upstreams: [{{name: at, endpoints: [\"{endpoint}\"], balance: sticky, sticky: {{cookie: at}}}}, \
         {{name: b, endpoints: [\"{endpoint}\"]}}, "
    );
    let routes = "routes: [{hosts: [at.test], targets: [{upstream: at}]}, \
         {hosts: [side.test], targets: [{upstream: a}, {upstream: b}], sticky: {cookie: side}}, \
         {hosts: [led.test], targets: [{upstream: a}], tls: {redirect: true, hsts_max_age_s: 60}}, \
         {hosts: [split.test], scheme: http, redirect: {scheme: https}}, \
         {hosts: [split.test], scheme: https, targets: [{upstream: a}]}, ";
    let yaml = file(&[endpoint]).replace("upstreams: [", &upstreams).replace("routes: [", routes)
        + "trusted_proxies: [127.0.0.0/8]\n";
    let trusting = Gateway::start(&yaml).await;
    let others = Gateway::start(&yaml.replace("127.0.0.0/8", "10.0.0.0/8")).await;
    for (fields, secure) in [
        ("X-Forwarded-Proto: https\r\n", true),
        ("X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n", true),
        ("Forwarded: for=1.2.3.4;proto=https\r\n", true),
        ("X-Forwarded-Proto: http\r\n", false),
        ("Forwarded: for=1.2.3.4\r\n", false),
        ("", false),
    ] {
        for (gateway, secure) in [(&trusting, secure), (&others, false)] {
            let mut wire = Wire::connect(gateway.web()).await;
            for host in ["at.test", "side.test"] {
                let answer = wire.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
                let cookie = answer.header("set-cookie").unwrap();
                assert_eq!((answer.status(), cookie.contains("; Secure")), (200, secure), "{fields:?}: {cookie}");
            }
            for (host, hsts, redirect) in [("led.test", Some("max-age=60"), 308), ("split.test", None, 302)] {
                let answer = wire.ask(&format!("GET /x HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
                let seen = (answer.status(), answer.header("strict-transport-security"), answer.header("location"));
                let to = format!("https://{host}/x");
                let expected = if secure { (200, hsts, None) } else { (redirect, None, Some(to.as_str())) };
                assert_eq!(seen, expected, "{host} {fields:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_is_read_and_written() {
    let endpoint = origin(|mut wire| async move {
        let line = wire.until("\r\n").await.unwrap();
        wire.send(line).await;
    })
    .await;
    let yaml = file(&[echo().await])
        .replace(
            "listeners: [",
            "listeners: [{name: p, address: \"127.0.0.1:0\", protocol: http, proxy_protocol: true}, \
             {name: t, address: \"127.0.0.1:0\", protocol: tcp, upstream: t}, ",
        )
        .replace("upstreams: [", &format!("upstreams: [{{name: t, endpoints: [\"{endpoint}\"], proxy_protocol: 1}}, "))
        + "trusted_proxies: [127.0.0.0/8]\n";
    let gateway = Gateway::start(&yaml).await;
    let mut wire = Wire::connect(gateway.addresses["p"]).await;
    let seen = wire.ask(&format!("PROXY TCP4 192.0.2.9 192.0.2.1 1 80\r\n{GET}")).await.text();
    assert!(seen.contains("x-real-ip: 192.0.2.9"), "{seen}");
    let mut wire = Wire::connect(gateway.addresses["p"]).await;
    wire.send(GET).await;
    assert!(wire.rest().await.is_empty());
    let mut wire = Wire::connect(gateway.addresses["t"]).await;
    let port = wire.stream.local_addr().unwrap().port();
    let line = String::from_utf8(wire.rest().await).unwrap();
    assert!(line.starts_with(&format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} ")), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_are_not_well_are_left_out() {
    // What is left out for its answers does not come back here, and who answers a check late is no worse for it.
    for part in [
        "ejection: {failures: 3, base_ms: 3600000}",
        "check: {path: /check, interval_ms: 50, timeout_ms: 600000, healthy: 1, unhealthy: 2}",
    ] {
        let status = [Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200))];
        let count: [Arc<AtomicUsize>; 2] = Default::default();
        let endpoints = [moody(&status[0], &count[0]).await, moody(&status[1], &count[1]).await];
        let gateway = Gateway::start(&file(&endpoints).replace("name: a, ", &format!("name: a, {part}, "))).await;
        let mut wire = Wire::connect(gateway.web()).await;
        status[0].store(500, Ordering::SeqCst);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut well = 0;
        while well < 20 {
            well = if wire.ask(GET).await.status() == 200 { well + 1 } else { 0 };
            assert!(tokio::time::Instant::now() < deadline, "{part}: {count:?}");
        }
        let before = count[0].load(Ordering::SeqCst);
        for _ in 0..20 {
            assert_eq!(wire.ask(GET).await.status(), 200);
        }
        assert_eq!(count[0].load(Ordering::SeqCst), before, "{part}");
        if part.starts_with("check") {
            status[0].store(200, Ordering::SeqCst);
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while count[0].load(Ordering::SeqCst) == before {
                assert_eq!(wire.ask(GET).await.status(), 200);
                assert!(tokio::time::Instant::now() < deadline, "it does not come back");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_left_out_for_what_clients_send() {
    let yaml = file(&[echo().await])
        .replace("name: a, ", "name: a, ejection: {failures: 1, base_ms: 3600000}, ")
        .replace("targets: [{upstream: a}]", "targets: [{upstream: a}], max_body_bytes: 4");
    let gateway = Gateway::start(&yaml).await;
    let large = "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
    for _ in 0..3 {
        assert_eq!(Wire::connect(gateway.web()).await.ask(large).await.status(), 413);
    }
    let snapshot = gateway.shared.snapshot.load_full();
    assert_eq!(snapshot.upstreams["a"].metrics.ejections.get(), 0);
    assert_eq!(get(gateway.web(), "a.test", "/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_at_its_endpoint_and_full_ones_refuse() {
    let (ok, held) = (Arc::new(AtomicU16::new(200)), Arc::default());
    let endpoints = [moody(&ok, &held).await, moody(&ok, &Arc::default()).await];
    let sticky = file(&endpoints).replace("name: a, ", "name: a, balance: sticky, sticky: {cookie: at}, ");
    let gateway = Gateway::start(&sticky).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let first = wire.ask(GET).await;
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let before = held.load(Ordering::SeqCst);
    for _ in 0..10 {
        let again = wire.ask(&format!("GET / HTTP/1.1\r\nHost: a.test\r\nCookie: {cookie}\r\n\r\n")).await;
        assert_eq!((again.status(), again.header("set-cookie")), (200, None));
    }
    assert!([before, before + 10].contains(&held.load(Ordering::SeqCst)));
    let stalls = origin(|mut wire| async move { drop(wire.rest().await) }).await;
    let full = file(&[stalls]).replace("name: a, ", "name: a, max_open: 1, ");
    let gateway = Gateway::start(&full).await;
    let (mut one, mut other) = (Wire::connect(gateway.web()).await, Wire::connect(gateway.web()).await);
    one.send(GET).await;
    other.send(GET).await;
    // Whichever came first waits.
    let refused = tokio::select! {
        answer = one.message() => answer,
        answer = other.message() => answer,
    };
    assert_eq!(refused.unwrap().header("x-arco-gateway"), Some("overloaded"));
}

/// HTTP/2 from client to gateway over TLS, and from gateway to an endpoint in the clear, with trailers both ways.
#[tokio::test(flavor = "multi_thread")]
async fn http_2_passes_with_trailers() {
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.version(), http::Version::HTTP_2);
                let seen = format!("{} {:?} {:?}", request.uri(), request.headers()["te"], request.headers()["cookie"]);
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let text = bytes::Bytes::from(format!("{seen} {}", String::from_utf8_lossy(&body)));
                let frames = [
                    Ok::<_, std::convert::Infallible>(http_body::Frame::data(text)),
                    Ok(http_body::Frame::trailers(trailers)),
                ];
                Ok::<_, std::convert::Infallible>(http::Response::new(StreamBody::new(futures_util::stream::iter(
                    frames,
                ))))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    let (folder, mut client) = certified(&["a.test"]);
    let yaml = file(&[endpoint])
        .replace("name: a, ", "name: a, protocol: http2, ")
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        + "certificates: [{hosts: [a.test], certificate_file: c.pem, key_file: c.key}]\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    client.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let tls = connector.connect("a.test".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let asking = (0..20).map(|number| {
        let mut sender = sender.clone();
        async move {
            let request = http::Request::post(format!("https://a.test/x/{number}"))
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .body(Full::new(bytes::Bytes::from(format!("body {number}"))))
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
            assert_eq!(text, format!("http://a.test/x/{number} \"trailers\" \"a=1; b=2\" body {number}"));
        }
    });
    futures_util::future::join_all(asking).await;
    let mut sender = sender;
    let other = http::Request::get("https://b.test/").body(Full::default()).unwrap();
    assert_eq!(sender.send_request(other).await.unwrap().status(), 421);
    // The same endpoint for a client that speaks HTTP/1.1.
    let mut wire = Wire::connect(gateway.web()).await;
    let answer = wire.ask("GET /y HTTP/1.1\r\nHost: a.test\r\nCookie: a=1\r\n\r\n").await;
    assert_eq!((answer.status(), answer.text().contains("/y")), (200, true));
}

/// Somebody who lets `Authorization: good` in, says who that is, and sends others away.
async fn judge() -> SocketAddr {
    origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            assert!(request.body.is_empty() && request.head.starts_with("GET /check?a HTTP/1.1"), "{}", request.head);
            assert_eq!(request.header("x-forwarded-method"), Some("POST"));
            assert_eq!(request.header("x-forwarded-uri"), Some("/x?y"));
            // Also when a proxy passes on another one.
            assert_eq!(request.header("x-forwarded-host"), Some("a.test"));
            // It is asked about the client, not about what the client has of the resource.
            assert_eq!((request.header("if-match"), request.header("range")), (None, None));
            let answer = match request.header("authorization") {
                Some("good") => "HTTP/1.1 200 OK\r\nX-User: ann\r\nContent-Length: 4\r\n\r\nfine",
                _ => "HTTP/1.1 302 Found\r\nLocation: /login\r\nSet-Cookie: back=1\r\nContent-Length: 5\r\n\r\nlogin",
            };
            wire.send(answer).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_decides_who_comes_in() {
    let route = "forward_auth: {upstream: judge, path: \"/check?a\", copy_headers: [x-user]}";
    let (target, judge) = (echo().await, judge().await);
    let yaml = |judge: SocketAddr| {
        file(&[target])
            .replace("targets: [{upstream: a}]", &format!("targets: [{{upstream: a}}], {route}"))
            .replace("upstreams: [", &format!("upstreams: [{{name: judge, endpoints: [\"{judge}\"]}}, "))
            + "trusted_proxies: [127.0.0.0/8]\n"
    };
    let gateway = Gateway::start(&yaml(judge)).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let ask = "POST /x?y HTTP/1.1\r\nHost: a.test\r\nX-User: root\r\nX_User: root\r\nX-Forwarded-Uri: /open\r\n\
         If-Match: \"kept\"\r\nRange: bytes=0-1\r\n\
         X-Forwarded-Host: open.test\r\nContent-Length: 2\r\n";
    for _ in 0..3 {
        let answer = wire.ask(&format!("{ask}Authorization: good\r\n\r\nhi")).await;
        assert_eq!((answer.status(), answer.text().contains("\r\n\r\nhi")), (200, true), "{}", answer.head);
        let seen = answer.text().to_ascii_lowercase();
        assert!(seen.contains("x-user: ann\r\n") && !seen.contains("root"), "{seen}");
        assert!(seen.contains("if-match: \"kept\"\r\n") && seen.contains("range: bytes=0-1\r\n"), "{seen}");
    }
    let mut wire = Wire::connect(gateway.web()).await;
    let answer = wire.ask(&format!("{ask}\r\nhi")).await;
    assert_eq!(
        (answer.status(), answer.header("location"), answer.header("set-cookie")),
        (302, Some("/login"), Some("back=1"))
    );
    assert_eq!(answer.text(), "login");
    // Whoever decides is not there: nobody comes in.
    let (nobody, _kept) = closed();
    let gateway = Gateway::start(&yaml(nobody)).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let answer = wire.ask(&format!("{ask}Authorization: good\r\n\r\nhi")).await;
    assert_eq!(answer.status(), 503);
}
