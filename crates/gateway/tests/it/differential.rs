//! The codec of our own against hyper: the same requests on a connection of each, and the same must arrive at the
//! endpoint and come back. A route with a rule of its own takes the general path, which runs on hyper.

use crate::kit::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::net::SocketAddr;

/// What an endpoint answers, by number.
const ANSWERS: usize = 10;

/// An endpoint that answers as `X-Answer` says; where there is a body, it is what the endpoint saw.
async fn actor() -> SocketAddr {
    origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let kind: usize = request.header("x-answer").and_then(|it| it.parse().ok()).unwrap_or(0);
            let mut lines: Vec<&str> = request.head.lines().filter(|it| !it.is_empty()).collect();
            lines.retain(|it| !it.starts_with("x-request-id"));
            lines[1..].sort_unstable();
            let seen = format!("{}\n\n{}", lines.join("\n"), request.text());
            let length = format!("Content-Length: {}\r\n", seen.len());
            let is_head = request.head.starts_with("HEAD ");
            let body = if is_head { "" } else { &seen };
            let chunks = |then: &str| {
                let chunks: String = seen.as_bytes().chunks(7).fold(String::new(), |all, it| {
                    all + &format!("{:X};x=y\r\n{}\r\n", it.len(), String::from_utf8_lossy(it))
                });
                if is_head { String::new() } else { format!("{chunks}0\r\n{then}\r\n") }
            };
            let answer = match kind {
                1 => format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunks("")),
                2 => format!("HTTP/1.1 404 Gone Fishing\r\nTrailer: x-t\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunks("")),
                3 => format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
                4 => "HTTP/1.1 204 No Content\r\nX-Origin: a\r\n\r\n".to_owned(),
                5 => "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n\r\n".to_owned(),
                6 => format!("HTTP/1.0 200 OK\r\n{length}\r\n{body}"),
                7 => format!(
                    "HTTP/1.1 503 Busy\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2\r\n\
                     Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n{length}\r\n{body}"
                ),
                8 => format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n{length}\r\n{body}"),
                9 => format!(
                    "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nstrict-transport-security: max-age=2\r\n\
                     {length}\r\n{body}"
                ),
                _ => format!("HTTP/1.1 200 OK\r\nServer: x\r\n{length}\r\n{body}"),
            };
            wire.send(answer).await;
            if matches!(kind, 3 | 6 | 7) {
                return;
            }
        }
    })
    .await
}

#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    target: String,
    fields: Vec<(&'static str, String)>,
    body: Option<(bool, Vec<u8>)>,
    answer: usize,
    /// Where the bytes are cut into pieces.
    cut: usize,
}

impl Asked {
    fn bytes(&self, host: &str) -> Vec<u8> {
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: {host}\r\nX-Answer: {}\r\n", self.method, self.target, self.answer);
        for (name, value) in &self.fields {
            head += &format!("{name}: {value}\r\n");
        }
        let mut body = Vec::new();
        match &self.body {
            None => {}
            Some((false, content)) => {
                head += &format!("Content-Length: {}\r\n", content.len());
                body.clone_from(content);
            }
            Some((true, content)) => {
                head += "Transfer-Encoding: chunked\r\n";
                for chunk in content.chunks(5) {
                    body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    body.extend(chunk);
                    body.extend(b"\r\n");
                }
                body.extend(b"0\r\n\r\n");
            }
        }
        [head.as_bytes(), b"\r\n", &body].concat()
    }
}

fn requests() -> impl Strategy<Value = Vec<Asked>> {
    let method = prop::sample::select(vec!["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"]);
    let target = "(/[a-zA-Z0-9._~%-]{0,6}){1,3}(\\?[a-z]=[a-z0-9&=]{0,8})?".prop_map(|it| it.replace('%', "%41"));
    let name = prop::sample::select(vec![
        "X-A",
        "x-forwarded-for",
        "X_Forwarded_For",
        "Cookie",
        "TE",
        "Keep-Alive",
        "Proxy-Authorization",
        "Forwarded",
        "Authorization",
        "accept",
        "X-Real-IP",
        "Trailer",
        "Upgrade",
        "Connection",
        "X-Drop",
    ]);
    let value = prop_oneof!["[a-zA-Z0-9,;= ]{0,12}", Just("keep-alive".to_owned()), Just("X-Drop".to_owned())];
    let field = (name, value).prop_map(|(name, value)| (name, value.trim().to_owned()));
    let body = prop::option::of((any::<bool>(), prop::collection::vec(b'a'..=b'z', 0..40)));
    let asked = (method, target, prop::collection::vec(field, 0..5), body, 0..ANSWERS, 0..60usize).prop_map(
        |(method, target, fields, body, answer, cut)| {
            let body = body.filter(|_| matches!(method, "POST" | "PUT" | "PATCH" | "BREW"));
            Asked { method, target, fields, body, answer, cut }
        },
    );
    prop::collection::vec(asked, 1..5)
}

/// What a client sees of each answer: its status line, its fields in order of their names, its body.
async fn seen(gateway: SocketAddr, host: &str, requests: &[Asked]) -> Vec<String> {
    let mut wire = Wire::connect(gateway).await;
    let mut all = Vec::new();
    for asked in requests {
        let bytes = asked.bytes(host);
        let (first, second) = bytes.split_at(asked.cut.min(bytes.len()));
        wire.send(first).await;
        tokio::task::yield_now().await;
        wire.send(second).await;
        let message = if asked.method == "HEAD" { wire.head_only().await } else { wire.message().await };
        let Some(message) = message else {
            all.push("ended".to_owned());
            break;
        };
        let mut lines: Vec<&str> = message.head.lines().filter(|it| !it.is_empty()).collect();
        lines[1..].sort_unstable();
        let date = |it: &&str| it.starts_with("date: ");
        assert_eq!(lines.iter().filter(|it| date(it)).count(), 1, "{message:?}");
        lines.retain(|it| !date(it) || it.ends_with("1994 08:49:37 GMT"));
        all.push(format!("{}\n\n{}", lines.join("\n"), message.text()).replace(host, "HOST"));
        if message.header("connection") == Some("close") {
            assert!(wire.rest().await.is_empty());
            break;
        }
    }
    all
}

#[test]
fn both_paths_give_endpoints_and_clients_the_same() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let gateway = runtime.block_on(async {
        let yaml = file(&[actor().await]).replace(
            "routes: [",
            "routes: [{hosts: [b.test], targets: [{upstream: a}], request_headers: {remove: [x-never]}}, ",
        );
        Gateway::start(&yaml).await
    });
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    // The same requests each time: what fails here fails again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let checked = runner.run(&requests(), |requests| {
        let (own, general) = runtime.block_on(async {
            (seen(gateway.web(), "a.test", &requests).await, seen(gateway.web(), "b.test", &requests).await)
        });
        prop_assert_eq!(own, general);
        Ok(())
    });
    checked.unwrap_or_else(|it| panic!("{it}"));
}

/// What a host says about plain HTTP: the requests that it leads to HTTPS, and those that come over TLS.
#[test]
fn both_paths_lead_to_https_and_tell_clients_to_stay_there() {
    // As long as each other: an answer tells the request.
    const HOSTS: [&str; 2] = ["own.test", "gen.test"];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (gateway, secure) = runtime.block_on(async {
        let (folder, client) = certified(&HOSTS);
        let route = "targets: [{upstream: a}], tls: {redirect: true, hsts_max_age_s: 60}";
        let routes = format!(
            "routes: [{{hosts: [own.test], {route}}}, \
             {{hosts: [gen.test], {route}, request_headers: {{remove: [x-never]}}}}, "
        );
        let yaml = file(&[actor().await])
            .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
            .replace("routes: [", &routes)
            + "certificates: [{hosts: [own.test, gen.test], certificate_file: c.pem, key_file: c.key}]\n";
        let gateway = Gateway::start_in(folder, &yaml).await;
        let tls = gateway.addresses["tls"];
        let secure = [over_tls(tls, HOSTS[0], &client).await, over_tls(tls, HOSTS[1], &client).await];
        (gateway, secure)
    });
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let checked = runner.run(&requests(), |requests| {
        let (own, general) = runtime.block_on(async {
            (seen(secure[0], HOSTS[0], &requests).await, seen(secure[1], HOSTS[1], &requests).await)
        });
        for answer in own.iter().filter(|it| *it != "ended" && !it.contains("x-arco-gateway: ")) {
            let told: Vec<_> = answer.lines().filter(|it| it.starts_with("strict-transport-security: ")).collect();
            prop_assert_eq!(told, ["strict-transport-security: max-age=60"]);
        }
        prop_assert_eq!(own, general);
        // When a body is read that nobody wants is not told: these have none.
        let requests: Vec<_> = requests.into_iter().map(|it| Asked { body: None, ..it }).collect();
        let (own, general) = runtime.block_on(async {
            (seen(gateway.web(), HOSTS[0], &requests).await, seen(gateway.web(), HOSTS[1], &requests).await)
        });
        for answer in &own {
            prop_assert!(answer.starts_with("HTTP/1.1 308 ") && !answer.contains("strict-transport"), "{}", answer);
        }
        prop_assert_eq!(own, general);
        Ok(())
    });
    checked.unwrap_or_else(|it| panic!("{it}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let address = origin(|mut wire| async move {
        wire.until("\r\n\r\n").await.unwrap();
        wire.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\n\r\nlarge").await;
        // The rest of the request is read, so that the answer is not lost by a reset.
        wire.rest().await;
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    let mut wire = Wire::connect(gateway.web()).await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n";
    let answer = wire.ask(&format!("{head}{}", "x".repeat(1000))).await;
    assert_eq!((answer.status(), answer.text().as_str()), (413, "large"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(wire.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_response_passes_in_bounded_memory() {
    if !in_a_process_of_its_own("differential::a_large_response_passes_in_bounded_memory") {
        return;
    }
    const SIZE: usize = 64 << 20;
    let address = origin(|mut wire| async move {
        // The second request may come on the connection of the first.
        while let Some(request) = wire.message().await {
            let chunked = request.head.contains("/chunked");
            let framing =
                if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {SIZE}") };
            wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n")).await;
            let piece = vec![b'z'; 1 << 20];
            for _ in 0..SIZE >> 20 {
                if chunked {
                    wire.send(format!("{:x}\r\n", piece.len())).await;
                }
                wire.send(&piece).await;
                if chunked {
                    wire.send("\r\n").await;
                }
            }
            wire.send(if chunked { "0\r\n\r\n" } else { "" }).await;
        }
    })
    .await;
    let gateway = Gateway::start(&file(&[address])).await;
    for path in ["/length", "/chunked"] {
        let mut wire = Wire::connect(gateway.web()).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        wire.until("\r\n\r\n").await.unwrap();
        let before = resident();
        let (mut seen, mut most) = (0, 0);
        while seen < SIZE {
            // Only contents have this letter.
            seen += wire.exactly(64 * 1024).await.unwrap().iter().filter(|it| **it == b'z').count();
            most = most.max(resident().saturating_sub(before));
            if SIZE - seen < 64 * 1024 {
                seen += wire.exactly(SIZE - seen).await.unwrap().len();
            }
        }
        assert!(most < 48 << 20, "{path}: memory grew by {most} bytes");
    }
}
