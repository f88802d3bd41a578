//! What a route does with a request, seen from both sides.

use crate::kit::*;
use std::sync::Arc;
use tokio::sync::mpsc;

/// An endpoint that answers with its name.
async fn named(name: &'static str) -> std::net::SocketAddr {
    origin(move |mut wire| async move {
        while wire.message().await.is_some() {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Old: 1\r\n\r\n{name}", name.len())).await;
        }
    })
    .await
}

/// A gateway with two upstreams, `a` that echoes and `b`, and these routes.
async fn gateway(routes: &str, b: std::net::SocketAddr) -> Gateway {
    let yaml = file(&[echo().await]);
    let at = yaml.find("routes:").unwrap();
    let end = yaml[at..].find('\n').unwrap() + at;
    let yaml = format!("{}routes:\n{routes}{}", &yaml[..at], &yaml[end..])
        .replace("upstreams: [", &format!("upstreams: [{{name: b, endpoints: [\"{b}\"]}}, "));
    Gateway::start(&yaml).await
}

async fn ask(gateway: &Gateway, request: &str) -> Message {
    Wire::connect(gateway.web()).await.ask(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_the_target() {
    let gateway = gateway(
        "  - {hosts: [a.test], targets: [{upstream: a}]}\n\
         \x20 - {hosts: [a.test], headers: [{name: X-Version, equals: '2'}], targets: [{upstream: b}]}\n\
         \x20 - {hosts: [a.test], cookies: [{name: beta, present: true}], targets: [{upstream: b}]}\n\
         \x20 - {hosts: [a.test], query: [{name: v, matches: '^2'}], targets: [{upstream: b}]}\n\
         \x20 - {hosts: [a.test], paths: [{regex: '^/v[2-9]/'}], methods: [GET], targets: [{upstream: b}]}\n",
        named("b").await,
    )
    .await;
    for (line, field, is_b) in [
        ("GET /", "X: 1", false),
        ("GET /", "x-version: 2", true),
        ("GET /", "x-version: 3", false),
        ("GET /", "Cookie: x=1; beta=", true),
        ("GET /?v=21", "X: 1", true),
        ("GET /?v=12", "X: 1", false),
        ("GET /v3/x", "X: 1", true),
        ("GET /%763/x", "X: 1", true),
        ("DELETE /v3/x", "X: 1", false),
    ] {
        let answer = ask(&gateway, &format!("{line} HTTP/1.1\r\nHost: a.test\r\n{field}\r\n\r\n")).await;
        assert_eq!(answer.text() == "b", is_b, "{line} {field}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_is_open_by_one_rule_and_closed_by_another() {
    let gateway = gateway(
        "  - {hosts: [a.test], targets: [{upstream: a}]}\n\
         \x20 - {hosts: [a.test], paths: [{prefix: /admin}], deny: [127.0.0.0/8], targets: [{upstream: a}]}\n\
         \x20 - {hosts: [b.test], targets: [{upstream: a}]}\n",
        named("b").await,
    )
    .await;
    for (path, status) in [
        ("/x/y", 200),
        ("/admin/x", 403),
        ("//admin", 403),
        ("/%61dmin", 403),
        // A server that does not resolve these finds them below `/admin`, one that does would not.
        ("/admin/x/..%2f..%2f", 400),
        ("/admin/%2e%2e/", 400),
        ("/admin/../x", 400),
        // And here it is the other way round.
        ("/x/..;/admin", 400),
        ("/x\\..\\admin", 400),
        ("/x/.../y", 200),
        // Tomcat and Spring leave out what stands behind a `;`, and find these below `/admin`.
        ("/admin;x/users", 400),
        ("/;/admin", 400),
        ("/admin/x;y", 403),
        ("/x;y=1/admin", 200),
    ] {
        let answer = ask(&gateway, &format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        assert_eq!(answer.status(), status, "{path}");
    }
    // Where one rule is for all paths, they pass as they are written.
    let answer = ask(&gateway, "GET /x;/..%2f..%2f/../y HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
    assert!(answer.text().starts_with("GET /x;/..%2f..%2f/../y HTTP/1.1\r\n"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_responses_are_changed() {
    let gateway = gateway(
        "  - hosts: [a.test]\n    paths: [{prefix: /old}]\n    targets: [{upstream: a}]\n\
         \x20   rewrite: {prefix: /new, host: inner.test}\n\
         \x20   request_headers: {set: {x-set: '1'}, add: {x-add: '2'}, remove: [x-gone]}\n\
         \x20   response_headers: {set: {Strict-Transport-Security: max-age=60}, remove: [x-origin]}\n\
         \x20 - {hosts: [r.test], redirect: {scheme: https, status: 308}}\n\
         \x20 - {hosts: [f.test], answer: {status: 418, body: short}}\n\
         \x20 - {hosts: [m.test], targets: [{upstream: a}], maintenance: {message: Back soon, retry_after_s: 9}}\n\
         \x20 - {hosts: [n.test], targets: [{upstream: a}], maintenance: {allow: [127.0.0.0/8]}}\n",
        named("b").await,
    )
    .await;
    let answer = ask(
        &gateway,
        "GET /old/x?q=1 HTTP/1.1\r\nHost: a.test\r\nX-Gone: 1\r\nX_Gone: 2\r\nX-Set: 0\r\nX_Set: 3\r\nX-Add: 1\r\n\r\n",
    )
    .await;
    let seen = answer.text();
    assert!(seen.starts_with("GET /new/x?q=1 HTTP/1.1\r\n"), "{seen}");
    for part in ["host: inner.test\r\n", "x-forwarded-host: a.test\r\n", "x-set: 1\r\n", "x-add: 1\r\nx-add: 2\r\n"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    assert!(!seen.contains("x-gone") && !seen.contains("x-set: 0"), "{seen}");
    assert!(!seen.contains("x_gone") && !seen.contains("x_set"), "a server may take them for the others: {seen}");
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=60"));
    assert_eq!(answer.header("x-origin"), None);
    let answer = ask(&gateway, "GET /x?y HTTP/1.1\r\nHost: r.test:8080\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("location")), (308, Some("https://r.test/x?y")));
    let answer = ask(&gateway, "POST / HTTP/1.1\r\nHost: f.test\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!((answer.status(), answer.text().as_str()), (418, "short"));
    let answer = ask(&gateway, "GET / HTTP/1.1\r\nHost: m.test\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("9")));
    assert!(answer.text().contains("Back soon"));
    assert_eq!(ask(&gateway, "GET / HTTP/1.1\r\nHost: n.test\r\n\r\n").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_get_their_cross_origin_answers() {
    // An endpoint that lets everybody in, by all that such answers may hold.
    let generous = origin(|mut wire| async move {
        while wire.message().await.is_some() {
            let says = "Access-Control-Allow-Origin: *\r\nAccess-Control-Max-Age: 600\r\nContent-Length: 0";
            wire.send(format!("HTTP/1.1 200 OK\r\n{says}\r\n\r\n")).await;
        }
    })
    .await;
    let gateway = gateway(
        "  - {hosts: [a.test], targets: [{upstream: a}], cors: {origins: ['https://web.test'], credentials: true, max_age_s: 7}}\n\
         \x20 - {hosts: [b.test], targets: [{upstream: b}], cors: {origins: ['https://web.test']}}\n",
        generous,
    )
    .await;
    let preflight = |origin: &str| {
        format!("OPTIONS / HTTP/1.1\r\nHost: a.test\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\n\r\n")
    };
    let answer = ask(&gateway, &preflight("https://web.test")).await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (204, Some("https://web.test")));
    assert_eq!(answer.header("access-control-max-age"), Some("7"));
    let answer = ask(&gateway, &preflight("https://evil.test")).await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (204, None));
    let answer = ask(&gateway, "GET / HTTP/1.1\r\nHost: a.test\r\nOrigin: https://web.test\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (200, Some("https://web.test")));
    assert_eq!(
        (answer.header("access-control-allow-credentials"), answer.header("vary")),
        (Some("true"), Some("Origin"))
    );
    // The route's word counts, whatever the endpoint says.
    for (origin, shown) in [("https://evil.test", None), ("https://web.test", Some("https://web.test"))] {
        let answer = ask(&gateway, &format!("GET / HTTP/1.1\r\nHost: b.test\r\nOrigin: {origin}\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (200, shown), "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_hold_and_a_client_may_stay() {
    let gateway = gateway(
        "  - {hosts: [a.test], targets: [{upstream: a, weight: 3}, {upstream: b, weight: 1}]}\n\
         \x20 - {hosts: [s.test], targets: [{upstream: a, weight: 1}, {upstream: b, weight: 1}], sticky: {cookie: side, max_age_s: 60}}\n",
        named("b").await,
    )
    .await;
    let mut wire = Wire::connect(gateway.web()).await;
    let mut b = 0;
    for _ in 0..40 {
        b += usize::from(wire.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.text() == "b");
    }
    assert_eq!(b, 10);
    for _ in 0..2 {
        let first = wire.ask("GET / HTTP/1.1\r\nHost: s.test\r\n\r\n").await;
        let cookie = first.header("set-cookie").unwrap().to_owned();
        assert!(cookie.starts_with("side=") && cookie.contains("HttpOnly; SameSite=Lax; Max-Age=60"), "{cookie}");
        let cookie = cookie.split(';').next().unwrap();
        for _ in 0..5 {
            let again = wire.ask(&format!("GET / HTTP/1.1\r\nHost: s.test\r\nCookie: {cookie}\r\n\r\n")).await;
            assert_eq!((again.text() == "b", again.header("set-cookie")), (first.text() == "b", None));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_a_copy_and_changes_nothing() {
    let (tell, mut seen) = mpsc::unbounded_channel();
    let tell = Arc::new(tell);
    let copies = origin(move |mut wire| {
        let tell = Arc::clone(&tell);
        async move {
            while let Some(request) = wire.message().await {
                tell.send(request).unwrap();
                wire.send("HTTP/1.1 500 Oh No\r\nContent-Length: 3\r\n\r\nbad").await;
            }
        }
    })
    .await;
    let gateway = gateway("  - {hosts: [a.test], targets: [{upstream: a}], mirror: {upstream: b}}\n", copies).await;
    let mut wire = Wire::connect(gateway.web()).await;
    for framing in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let answer = wire.ask(&format!("POST /x HTTP/1.1\r\nHost: a.test\r\n{framing}")).await;
        assert_eq!((answer.status(), answer.text().ends_with("hello")), (200, true));
        let copy = tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
        assert!(copy.head.starts_with("POST /x ") && copy.body == b"hello", "{copy:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_does_not_look_whole() {
    let (tell, mut seen) = mpsc::unbounded_channel();
    let tell = Arc::new(tell);
    let copies = origin(move |mut wire| {
        let tell = Arc::clone(&tell);
        async move {
            if let Some(begun) = wire.until("hello").await {
                tell.send(begun.into_bytes()).unwrap();
                tell.send(wire.rest().await).unwrap();
            }
        }
    })
    .await;
    let gateway = gateway("  - {hosts: [a.test], targets: [{upstream: a}], mirror: {upstream: b}}\n", copies).await;
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let begun = tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
    assert!(begun.starts_with(b"POST /x "), "{begun:?}");
    // The client leaves in the middle of its request.
    drop(wire);
    let rest = tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
}
