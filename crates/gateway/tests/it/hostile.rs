//! Clients and endpoints that mean harm, on a route that our codec serves (`a.test`) and on one that hyper serves
//! (`b.test`): requests that two readers would cut differently, everything slow, everything too large, endpoints that lie.

use crate::kit::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

const HOSTS: [&str; 2] = ["a.test", "b.test"];

/// A file whose second host has a rule of its own, which makes it the general path's.
fn both(endpoints: &[std::net::SocketAddr]) -> String {
    file(endpoints).replace(
        "routes: [",
        "routes: [{hosts: [b.test], targets: [{upstream: a}], request_headers: {remove: [x-never]}}, ",
    )
}

/// A gateway, and what its endpoint took for whole requests.
async fn watched(limits: fn(&str) -> String) -> (Gateway, Arc<Mutex<Vec<Message>>>) {
    let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
    let writer = Arc::clone(&seen);
    let address = origin(move |mut wire| {
        let seen = Arc::clone(&writer);
        async move {
            while let Some(request) = wire.message().await {
                seen.lock().unwrap().push(request);
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (Gateway::start(&limits(&both(&[address]))).await, seen)
}

/// Nothing but what we sent on purpose was seen, and each in a form that every reader cuts alike.
fn assert_canonical(seen: &[Message], sent: &str) {
    for request in seen {
        let fields = |name: &str| {
            let lines = request.head.lines().filter_map(|it| it.split_once(':'));
            lines
                .filter(|it| it.0.trim().eq_ignore_ascii_case(name))
                .map(|it| it.1.trim().to_owned())
                .collect::<Vec<_>>()
        };
        assert!(!request.head.contains("/smuggled"), "{sent:?} smuggled: {request:?}");
        assert_eq!(fields("host").len(), 1, "{sent:?}: {request:?}");
        let (lengths, codings) = (fields("content-length"), fields("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "{sent:?}: {request:?}");
        assert!(lengths.iter().all(|it| it.bytes().all(|it| it.is_ascii_digit())), "{sent:?}: {request:?}");
        assert!(codings.iter().all(|it| it == "chunked"), "{sent:?}: {request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_shape_of_a_request_smuggles_another() {
    let (gateway, seen) = watched(str::to_owned).await;
    for host in HOSTS {
        let inner = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let length = inner.len() + 5;
        let both_ways = [
            "Transfer-Encoding: chunked",
            "Transfer-Encoding : chunked",
            " Transfer-Encoding: chunked",
            "Transfer-Encoding\t: chunked",
            "Transfer-Encoding:\tchunked",
            "Transfer-Encoding:\x0bchunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: chunked;a=b",
            "Transfer-Encoding: chunked\0",
            "Transfer-Encoding: chun\u{212a}ed",
            "X: y\nTransfer-Encoding: chunked",
            "X: y\rTransfer-Encoding: chunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
            "Transfer-Encoding\0: chunked",
            "Transfer_Encoding: chunked",
            "TE: chunked",
            "Connection: Content-Length",
            "Connection: Transfer-Encoding, close",
            "Content-Length: 5",
            "Content-Length: 0",
            "Content_Length: 0",
            "Content-Length:\x0b5",
            "Content-Length\0: 5",
            "Expect: 100-continue\r\nExpect: x",
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
            "Upgrade: websocket\r\nConnection: Upgrade",
        ];
        let mut shapes: Vec<String> = both_ways
            .iter()
            .map(|it| {
                format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{it}\r\n\r\n0\r\n\r\n{inner}")
            })
            .collect();
        for value in ["+5", "-0", "0x5", "5, 5", "5 5", "", "5\0", "\u{ff15}", "18446744073709551621", "5;a", "5.0"] {
            shapes.push(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {value}\r\n\r\nhello{inner}"));
        }
        for line in [
            format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: b.test\r\n\r\n"),
            format!("GET http://b.example/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            format!("GET / HTTP/1.1\nHost: {host}\nContent-Length: 5\n\nhello"),
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\n"),
            format!("GET / HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("GET /\u{a0} HTTP/1.1\r\nHost: {host}\r\nContent-Length : 5\r\n\r\nhello"),
            format!("GET / HTTP/1.1 \r\nHost: {host}\r\n\r\n"),
            format!("GET  / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n: x\r\n\r\n"),
        ] {
            shapes.push(format!("{line}{inner}"));
        }
        for body in [
            "1;\nA\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n",
            "5\r\nhelloXX",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "0_5\r\nhello\r\n",
            "fffffffffffffff5\r\nhello\r\n",
            "\r\n",
            "5;\r\r\nhello\r\n",
            "5;a=\0\r\nhello\r\n",
            "0\n\n",
            "0\r\n X: y\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\nX y: z\r\n\r\n",
        ] {
            shapes.push(format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{inner}"));
        }
        for shape in &shapes {
            let mut wire = Wire::connect(gateway.web()).await;
            // What follows ends the connection in any case: at once, or as a request of its own.
            wire.send(format!("{shape}GET /end HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            wire.rest().await;
            assert_canonical(&std::mem::take(&mut *seen.lock().unwrap()), shape);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_reach_an_endpoint_unchanged_or_not_at_all() {
    let (gateway, seen) = watched(str::to_owned).await;
    for host in HOSTS.map(str::as_bytes) {
        for (line, status) in [
            (&b"GET /\xff\xfe HTTP/1.1"[..], 400),
            (b"GET /%ff%00%c0%ae HTTP/1.1", 200),
            (b"GET /\0 HTTP/1.1", 400),
            (b"G\xffT / HTTP/1.1", 400),
            (b"GET / HTTP/1.1\r\nX-A: caf\xe9 \xff\xfe", 200),
            (b"GET / HTTP/1.1\r\nX-A: a\0b", 400),
            (b"GET / HTTP/1.1\r\nX-A: a\x7fb", 400),
            (b"GET / HTTP/1.1\r\nX-\xe9: a", 400),
        ] {
            let mut wire = Wire::connect(gateway.web()).await;
            wire.send([line, b"\r\nConnection: close\r\nHost: ", host, b"\r\n\r\n"].concat()).await;
            let answer = wire.message().await.unwrap();
            assert_eq!(answer.status(), status, "{}: {answer:?}", line.escape_ascii());
            assert_eq!(std::mem::take(&mut *seen.lock().unwrap()).len(), usize::from(status == 200));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused() {
    let (gateway, seen) = watched(str::to_owned).await;
    let repeated = |what: &str, count: usize| what.repeat(count);
    for host in HOSTS {
        let chunked = format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n");
        for (request, statuses) in [
            (format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", repeated("x", 100_000)), [414, 431]),
            (format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", repeated("x", 100_000)), [431, 431]),
            (format!("GET / HTTP/1.1\r\nHost: {host}\r\n{}\r\n", repeated("X: y\r\n", 129)), [431, 431]),
            (format!("{chunked}1;{}\r\nx\r\n0\r\n\r\n", repeated("x", 10_000)), [400, 400]),
            (format!("{chunked}0\r\n{}\r\n", repeated("X: y\r\n", 10_000)), [431, 400]),
        ] {
            let mut wire = Wire::connect(gateway.web()).await;
            wire.offer(&request).await;
            let answer = wire.message().await.expect("an answer");
            assert!(statuses.contains(&answer.status()), "{host} {:.80}: {answer:?}", request);
            wire.rest().await;
        }
    }
    assert!(seen.lock().unwrap().is_empty(), "{:?}", seen.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_trickles_in_is_given_up() {
    let (gateway, _) = watched(|it| hasty(it, "request_header_ms")).await;
    for host in HOSTS {
        // Whose first byte comes late is not answered: then this thread was held up, and it begins anew.
        let answer = at_last("an answer", || async {
            let answer = trickle(&gateway, host).await;
            Some(answer).filter(|it| !it.is_empty())
        })
        .await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{host}: {answer}");
    }
}

/// Sends a head byte by byte; what comes back until the connection ends.
async fn trickle(gateway: &Gateway, host: &str) -> String {
    let mut wire = Wire::connect(gateway.web()).await;
    let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}", "x".repeat(2000));
    // Each byte is in time; all of them together are not.
    let (mut reader, mut writer) = wire.stream.split();
    let mut answer = Vec::new();
    let trickling = async {
        for byte in head.bytes() {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    // It may be reset when it goes on after the end.
    let reading = async { while reader.read_buf(&mut answer).await.is_ok_and(|it| it > 0) {} };
    tokio::select! {
        read = tokio::time::timeout(PATIENCE, reading) => read.unwrap_or_else(|_| panic!("{host}: nobody answers")),
        () = trickling => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_let_go_and_frees_the_endpoint() {
    let gone = Arc::new(Notify::new());
    let tell = Arc::clone(&gone);
    let address = origin(move |mut wire| {
        let gone = Arc::clone(&tell);
        async move {
            wire.until("\r\n\r\n").await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").await;
            let piece = vec![b'x'; 1 << 20];
            while wire.stream.write_all(&piece).await.is_ok() {}
            gone.notify_one();
        }
    })
    .await;
    let (folder, client) = certified(&HOSTS);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let yaml = hasty(&both(&[address]), "idle_ms")
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        + "certificates: [{hosts: [a.test, b.test], certificate_file: c.pem, key_file: c.key}]\n"
        + "admin: {address: \"127.0.0.1:0\"}\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    for (host, listener) in HOSTS.iter().flat_map(|it| [(*it, "web"), (*it, "tls")]) {
        let stream = TcpStream::connect(gateway.addresses[listener]).await.unwrap();
        // It is kept open, and nothing is read from it.
        let mut client: Box<dyn AsyncWrite + Unpin + Send> = match listener {
            "tls" => Box::new(connector.connect(host.try_into().unwrap(), stream).await.unwrap()),
            _ => Box::new(stream),
        };
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        let freed = tokio::time::timeout(PATIENCE, gone.notified()).await;
        freed.unwrap_or_else(|_| panic!("{host} {listener}: the endpoint is freed"));
        eventually("the connection is closed", || has_metric(&gateway, "connections 0")).await;
        drop(client);
    }
}

/// Whether `/metrics` says this.
async fn has_metric(gateway: &Gateway, line: &str) -> bool {
    let text = get(gateway.admin.unwrap(), "admin", "/metrics").await.text();
    text.lines().any(|it| it.strip_prefix("arco_gateway_") == Some(line))
}

/// An endpoint switches to another protocol, and nobody has asked it to.
#[tokio::test(flavor = "multi_thread")]
async fn who_switches_unasked_leaves_no_request_open() {
    let address = origin(|mut wire| async move {
        while wire.message().await.is_some() {
            wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
        }
    })
    .await;
    let gateway = Gateway::start(&(both(&[address]) + "admin: {address: \"127.0.0.1:0\"}\n")).await;
    for host in HOSTS {
        let mut wire = Wire::connect(gateway.web()).await;
        let request = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(wire.ask(&request).await.status(), 502, "{host}");
    }
    eventually("nothing is open", || has_metric(&gateway, "upstream_open{upstream=\"a\"} 0")).await;
}

/// The one protocol that is not passed on as an upgrade: for the endpoint it is an ordinary request.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_was_not_passed_on_is_not_agreed_to() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let address = origin(move |mut wire| async move {
        while let Some(request) = wire.message().await {
            wire.send(if request.header("upgrade").is_none() { switch } else { OK }).await;
        }
    })
    .await;
    let gateway = Gateway::start(&both(&[address])).await;
    for host in HOSTS {
        let mut wire = Wire::connect(gateway.web()).await;
        let fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
        let answer = wire.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
        assert_eq!(answer.status(), 502, "{host}: {answer:?}");
    }
}

/// How an endpoint answers, and what the client may see: a status, or 0 for an answer that breaks off.
const LIES: [(&str, &str, &[u16]); 21] = [
    ("two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\npoison", &[502]),
    (
        "both",
        "HTTP/1.1 200 OK\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\npoison",
        &[502, 200, 0],
    ),
    ("negative", "HTTP/1.1 200 OK\r\nContent-Length: -6\r\n\r\npoison", &[502]),
    ("coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\npoison", &[502, 0]),
    ("old", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\npoison", &[502, 0, 200]),
    ("nul", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", &[502]),
    ("folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", &[502]),
    ("space", "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n", &[502]),
    ("version", "HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n", &[502]),
    ("status", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", &[502]),
    ("switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\npoison", &[502]),
    ("garbage", "220 mail.example ESMTP\r\n", &[502]),
    ("chunk-size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\npoison", &[0, 502]),
    ("chunk-end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokpoison\r\n0\r\n\r\n", &[0, 502]),
    (
        "chunk-large",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n",
        &[0, 502],
    ),
    ("short", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", &[0]),
    ("short-chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", &[0]),
    ("half-head", "HTTP/1.1 200 OK\r\nContent-Le", &[502]),
    ("long", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokpoison", &[200]),
    (
        "twice",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        &[200],
    ),
    ("nothing", "", &[502]),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_lies_harms_its_own_answer_only() {
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let lie = LIES.iter().find(|it| request.head.contains(&format!("/{} ", it.0)));
            let Some((_, answer, _)) = lie else {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean").await;
                continue;
            };
            wire.send(answer).await;
            // A reset where that is asked for, the end where the answer needs one; else the connection stays.
            if request.head.contains("x-reset") {
                wire.stream.set_zero_linger().unwrap();
                return;
            }
            if ["short", "short-chunked", "half-head", "nothing", "garbage"]
                .iter()
                .any(|it| request.head.contains(&format!("/{it} ")))
            {
                return;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&both(&[address])).await;
    for host in HOSTS {
        for (name, _, statuses) in LIES {
            for reset in ["", "X-Reset: 1\r\n"] {
                let mut wire = Wire::connect(gateway.web()).await;
                wire.send(format!("GET /{name} HTTP/1.1\r\nHost: {host}\r\n{reset}\r\n")).await;
                let answer = wire.message().await;
                let status = answer.as_ref().map_or(0, Message::status);
                // A reset may come before what was said.
                let may = statuses.contains(&status) || (!reset.is_empty() && [0, 502].contains(&status));
                assert!(may, "{host} {name} {reset:?}: {answer:?}");
                assert!(!answer.is_some_and(|it| it.text().contains("poison")), "{host} {name}");
                let clean = get(gateway.web(), host, "/clean").await;
                assert_eq!((clean.status(), clean.text().as_str()), (200, "clean"), "{host} after {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_without_end_is_given_up() {
    let address = origin(|mut wire| async move {
        if let Some(request) = wire.message().await {
            let piece = if request.head.contains("/informs") {
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            } else {
                "X-More: and more\r\n"
            };
            if request.head.contains("/head") {
                wire.send("HTTP/1.1 200 OK\r\n").await;
            }
            if request.head.contains("/stalls") {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nand").await;
                wire.rest().await;
                return;
            }
            while wire.stream.write_all(piece.repeat(100).as_bytes()).await.is_ok() {}
        }
    })
    .await;
    let endless = Gateway::start(&both(&[address])).await;
    let stalling = Gateway::start(&hasty(&both(&[address]), "response_ms")).await;
    for (host, path, status) in [
        ("a.test", "/informs", Some(502)),
        ("a.test", "/head", Some(502)),
        ("b.test", "/head", Some(502)),
        ("a.test", "/stalls", None),
        ("b.test", "/stalls", None),
    ] {
        let gateway = if status.is_some() { &endless } else { &stalling };
        let asked = || async {
            let mut wire = Wire::connect(gateway.web()).await;
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let answer = loop {
                match wire.message().await {
                    Some(it) if it.status() == 103 => {}
                    other => break other,
                }
            };
            // An endpoint that was held up before it began has not stalled.
            Some(answer).filter(|it| status.is_some() || it.as_ref().map(Message::status) != Some(504))
        };
        let answer = at_last("an endpoint that begins in time", asked).await;
        assert_eq!(answer.as_ref().map(Message::status), status, "{host}{path}: {answer:?}");
    }
}

/// Whether the kernel of the other side has all that was sent. Before that, nobody can know of it.
fn is_delivered(stream: &TcpStream) -> bool {
    let port = |it: std::net::SocketAddr| format!(":{:04X}", it.port());
    // It may have answered by a reset.
    let Ok(peer) = stream.peer_addr() else { return true };
    let (local, peer) = (port(stream.local_addr().unwrap()), port(peer));
    std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, from, to, _, queues, ..] if from.ends_with(&local) && to.ends_with(&peer) && queues.starts_with("00000000:"))
    })
}

/// An endpoint says more when nobody has asked, after its answer: the next request must not get it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_asked_for_is_dropped() {
    let (answered, poisoned) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (hears, tells) = (Arc::clone(&answered), Arc::clone(&poisoned));
    let address = origin(move |mut wire| {
        let (answered, poisoned) = (Arc::clone(&hears), Arc::clone(&tells));
        async move {
            while let Some(request) = wire.message().await {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean").await;
                if request.head.contains("/first") {
                    answered.notified().await;
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison").await;
                    eventually("it is there", || async { is_delivered(&wire.stream) }).await;
                    poisoned.notify_one();
                }
            }
        }
    })
    .await;
    let gateway = Gateway::start(&both(&[address])).await;
    for host in HOSTS {
        let mut wire = Wire::connect(gateway.web()).await;
        for _ in 0..20 {
            assert_eq!(wire.ask(&format!("GET /first HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.text(), "clean");
            answered.notify_one();
            tokio::time::timeout(PATIENCE, poisoned.notified()).await.unwrap();
            let second = wire.ask(&format!("GET /second HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(second.text(), "clean", "{host}");
        }
    }
}
