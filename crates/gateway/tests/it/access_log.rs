//! The access log and what is counted by route: what there is of each path that a request can take; that nobody waits for
//! the log, and that it goes on when its file does not.

use crate::http2::gateway_by;
use crate::kit::*;
use arco_config::AccessLogConfig;
use arco_daemon::Supervisor;
use arco_gateway::access_log::{AccessLog, Place};
use arco_gateway::alone::Alone;
use arco_gateway::engine::{Engine, Limits, Protocol, Shared};
use arco_gateway::metrics::Metrics;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt as _;

const ADMIN: &str = "admin: {address: \"127.0.0.1:0\"}\n";

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits for so many lines; they by their paths.
async fn lines(path: &Path, count: usize) -> HashMap<String, Value> {
    // The last one may be there in part.
    let whole = || async { Some(text(path)).filter(|it| it.matches('\n').count() >= count) };
    let all = at_last(&format!("{count} lines"), whole).await;
    let lines = all.lines().map(|it| serde_json::from_str::<Value>(it).unwrap());
    let by_path: HashMap<String, Value> = lines.map(|it| (it["path"].as_str().unwrap().to_owned(), it)).collect();
    assert_eq!((all.lines().count(), by_path.len()), (count, count), "{all}");
    by_path
}

async fn metric(admin: SocketAddr, name: &str) -> Option<f64> {
    let text = get(admin, "admin", "/metrics").await.text();
    let value = text.lines().find_map(|it| it.strip_prefix("arco_gateway_")?.strip_prefix(name)?.strip_prefix(' '));
    value.map(|it| it.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_a_request_has_a_line_and_is_counted() {
    let yaml = file(&[echo().await])
        .replace("upstreams: [", "upstreams: [{name: dead, endpoints: [\"127.0.0.1:1\"]}, ")
        .replace(
            "routes: [",
            "routes: [{hosts: [\"*.b.test\"], answer: {status: 200, body: tea}}, \
             {hosts: [dead.test], targets: [{upstream: dead}]}, ",
        )
        + ADMIN
        + "access_log: {destination: a.log}\n";
    let gateway = Gateway::start(&yaml).await;
    let log = gateway.folder.path().join("a.log");
    let mut wire = Wire::connect(gateway.web()).await;
    let whole = "POST /whole?token=secret HTTP/1.1\r\nHost: A.test:80\r\nContent-Length: 5\r\nUser-Agent: t/1 \"x\"\r\n\
                 Referer: http://r.test/from?key=secret\r\nX-Request-Id: known-1234\r\nAuthorization: Bearer secret\r\n\
                 Cookie: a=secret\r\n\r\nhello";
    let echoed = wire.ask(whole).await.body.len();
    let chunked =
        "PUT /chunked HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
    let unchunked = wire.ask(chunked).await.body.len();
    wire.send("HEAD /head HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(wire.head_only().await.unwrap().status(), 200);
    // Older versions take the general path.
    let old = "POST /old HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello";
    let aged = Wire::connect(gateway.web()).await.ask(old).await.body.len();
    let dead = get(gateway.web(), "dead.test", "/dead").await;
    let unknown = get(gateway.web(), "c.test", "/unknown").await;
    assert_eq!((dead.status(), unknown.status()), (502, 404));
    assert_eq!(get(gateway.web(), "x.b.test", "/own").await.text(), "tea");

    let by_path = lines(&log, 7).await;
    for (path, method, status, received, sent, route) in [
        ("/whole", "POST", 200, 5, echoed, Some("a.test")),
        ("/chunked", "PUT", 200, 5, unchunked, Some("a.test")),
        ("/head", "HEAD", 200, 0, 0, Some("a.test")),
        ("/old", "POST", 200, 5, aged, Some("a.test")),
        ("/dead", "GET", 502, 0, dead.body.len(), Some("dead.test")),
        ("/unknown", "GET", 404, 0, unknown.body.len(), None),
        ("/own", "GET", 200, 0, 3, Some("*.b.test")),
    ] {
        let line = &by_path[path];
        assert_eq!((line["method"].as_str(), line["status"].as_u64()), (Some(method), Some(status)), "{line}");
        let bytes = (line["received_bytes"].as_u64(), line["sent_bytes"].as_u64());
        assert_eq!(bytes, (Some(received), Some(sent as u64)), "{line}");
        assert_eq!(line.get("route").and_then(Value::as_str), route, "{line}");
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        // Whoever was not asked did not answer.
        let asked = route == Some("a.test");
        assert_eq!((line.get("endpoint").is_some(), line.get("upstream_ms").is_some()), (asked, asked), "{line}");
        let id = line.get("request_id").and_then(Value::as_str).map_or(0, str::len);
        assert_eq!(
            id,
            if path == "/whole" {
                10
            } else if route.is_some() {
                32
            } else {
                0
            },
            "{line}"
        );
    }
    let line = &by_path["/whole"];
    for (field, value) in [
        ("host", "A.test:80"),
        ("upstream", "a"),
        ("request_id", "known-1234"),
        ("referer", "http://r.test/from"),
        ("user_agent", "t/1 \"x\""),
        ("protocol", "HTTP/1.1"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!(by_path["/old"]["protocol"], "HTTP/1.0");
    assert!(!text(&log).contains("secret"), "{}", text(&log));

    let admin = gateway.admin.unwrap();
    for (name, expected) in [
        ("request_seconds_count{host=\"a.test\"}", 4.0),
        ("request_seconds_bucket{le=\"+Inf\",host=\"dead.test\"}", 1.0),
        ("received_bytes_total{host=\"a.test\"}", 15.0),
        ("sent_bytes_total{host=\"a.test\"}", (echoed + unchunked + aged) as f64),
        ("sent_bytes_total{host=\"*.b.test\"}", 3.0),
        ("open_requests{host=\"a.test\"}", 0.0),
        ("open_requests{host=\"dead.test\"}", 0.0),
        ("access_log_lines_total", 7.0),
        ("access_log_dropped_total", 0.0),
    ] {
        eventually(name, || async { metric(admin, name).await == Some(expected) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_has_its_line_when_it_ends() {
    let address = origin(|mut wire| async move {
        wire.message().await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi").await;
        while let Some(byte) = wire.exactly(1).await {
            wire.send(byte).await;
        }
    })
    .await;
    let yaml = file(&[address]) + ADMIN + "access_log: {destination: a.log}\n";
    let gateway = Gateway::start(&yaml).await;
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send("GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert!(wire.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 101"));
    assert_eq!(wire.exactly(2).await.unwrap(), b"hi");
    wire.send("abc").await;
    assert_eq!(wire.exactly(3).await.unwrap(), b"abc");
    let admin = gateway.admin.unwrap();
    assert_eq!(metric(admin, "open_requests{host=\"a.test\"}").await, Some(1.0));
    wire.stream.shutdown().await.unwrap();
    wire.rest().await;
    let log = gateway.folder.path().join("a.log");
    let by_path = lines(&log, 1).await;
    let line = &by_path["/ws"];
    let found = ["status", "received_bytes", "sent_bytes"].map(|it| line[it].as_u64().unwrap());
    assert_eq!(found, [101, 3, 5], "{line}");
    assert_eq!(metric(admin, "open_requests{host=\"a.test\"}").await, Some(0.0));
}

/// An endpoint that never answers, and what tells when a request has arrived there.
async fn silent() -> (SocketAddr, Arc<tokio::sync::Notify>) {
    let arrived = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&arrived);
    let address = origin(move |mut wire| {
        let tell = Arc::clone(&tell);
        async move {
            wire.message().await;
            tell.notify_one();
            wire.rest().await;
        }
    })
    .await;
    (address, arrived)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_has_its_line() {
    let (address, arrived) = silent().await;
    let yaml = file(&[address]) + ADMIN + "access_log: {destination: a.log}\n";
    let gateway = Gateway::start(&yaml).await;
    for request in ["/ordinary HTTP/1.1", "/general HTTP/1.0"] {
        let mut wire = Wire::connect(gateway.web()).await;
        wire.send(format!("GET {request}\r\nHost: a.test\r\n\r\n")).await;
        tokio::time::timeout(PATIENCE, arrived.notified()).await.unwrap();
    }
    let by_path = lines(&gateway.folder.path().join("a.log"), 2).await;
    for path in ["/ordinary", "/general"] {
        let found = ["status", "received_bytes", "sent_bytes"].map(|it| by_path[path][it].as_u64().unwrap());
        assert_eq!(found, [499, 0, 0], "{}", by_path[path]);
    }
    let open = async || metric(gateway.admin.unwrap(), "open_requests{host=\"a.test\"}").await;
    eventually("no open request", || async { open().await == Some(0.0) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_a_proxy_is_known_whatever_is_answered() {
    let yaml = file(&[echo().await]) + "trusted_proxies: [127.0.0.0/8]\naccess_log: {destination: a.log}\n";
    let gateway = Gateway::start(&yaml).await;
    for (host, path, status) in [("a.test", "/here", 200), ("nobody.test", "/nowhere", 404)] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n");
        assert_eq!(Wire::connect(gateway.web()).await.ask(&request).await.status(), status);
    }
    let by_path = lines(&gateway.folder.path().join("a.log"), 2).await;
    for path in ["/here", "/nowhere"] {
        assert_eq!(by_path[path]["client"], "192.0.2.7", "{}", by_path[path]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_has_its_lines_and_handshakes_are_counted() {
    let change = |yaml: String| yaml + ADMIN + "access_log: {destination: a.log, query: true}\n";
    let (gateway, client) = gateway_by(echo().await, change).await;
    let admin = gateway.admin.unwrap();
    let connector = tokio_rustls::TlsConnector::from(client);
    let connect = async |name: &str| {
        let stream = tokio::net::TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
        connector.connect(name.to_owned().try_into().unwrap(), stream).await
    };
    let tls = connect("a.test").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let mut sent = HashMap::new();
    // The second one by a rule with conditions, so by the general path.
    for path in ["/plain?a=b", "/general?a=b"] {
        let request = http::Request::get(format!("https://a.test{path}")).header("user-agent", "h2");
        let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        sent.insert(path, response.into_body().collect().await.unwrap().to_bytes().len() as u64);
    }
    let by_path = lines(&gateway.folder.path().join("a.log"), 2).await;
    for (path, sent) in sent {
        let line = &by_path[path];
        for (field, value) in [
            ("protocol", "HTTP/2.0"),
            ("tls", "1.3"),
            ("host", "a.test"),
            ("route", "a.test"),
            ("upstream", "a"),
            ("user_agent", "h2"),
        ] {
            assert_eq!(line[field], value, "{line}");
        }
        let found = ["status", "received_bytes", "sent_bytes"].map(|it| line[it].as_u64().unwrap());
        assert_eq!(found, [200, 0, sent], "{line}");
        assert_eq!(line["request_id"].as_str().unwrap().len(), 32, "{line}");
    }
    assert!(connect("nobody.test").await.is_err());
    let mut plain = Wire::connect(gateway.addresses["tls"]).await;
    plain.send("GET / HTTP/1.1\r\n\r\n").await;
    plain.rest().await;
    for (name, expected) in [
        ("tls_handshakes_total{version=\"1.3\",resumed=\"false\"}", 1.0),
        ("tls_failures_total{reason=\"unknown_name\"}", 1.0),
        ("tls_failures_total{reason=\"not_tls\"}", 1.0),
        ("request_seconds_count{host=\"a.test\"}", 2.0),
        ("open_requests{host=\"a.test\"}", 0.0),
    ] {
        eventually(name, || async { metric(admin, name).await == Some(expected) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_at_the_end_has_its_line() {
    let (address, arrived) = silent().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, file(&[address]) + "access_log: {destination: a.log}\n").unwrap();
    let supervisor = Supervisor::new();
    let gateway = Alone::build(&supervisor, &path).await.unwrap();
    let (shared, web) = (gateway.shared(), gateway.addresses()["web"]);
    let mut wires = Vec::new();
    for request in ["/ordinary HTTP/1.1", "/general HTTP/1.0"] {
        let mut wire = Wire::connect(web).await;
        wire.send(format!("GET {request}\r\nHost: a.test\r\n\r\n")).await;
        tokio::time::timeout(PATIENCE, arrived.notified()).await.unwrap();
        wires.push(wire);
    }
    assert!(supervisor.shutdown(PATIENCE).await);
    shared.access_log.flush(PATIENCE).await;
    let by_path = lines(&folder.path().join("a.log"), 2).await;
    for path in ["/ordinary", "/general"] {
        assert_eq!(by_path[path]["status"], 499, "{}", by_path[path]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_there_whatever_the_sample_is() {
    let yaml = file(&[echo().await])
        .replace("upstreams: [", "upstreams: [{name: dead, endpoints: [\"127.0.0.1:1\"]}, ")
        .replace("routes: [", "routes: [{hosts: [dead.test], targets: [{upstream: dead}]}, ");
    for (errors, expected) in [("always", 1), ("sampled", 0)] {
        let log = format!("access_log: {{destination: a.log, format: combined, sample: 0, errors: {errors}}}\n");
        let gateway = Gateway::start(&(yaml.clone() + &log)).await;
        for _ in 0..20 {
            assert_eq!(get(gateway.web(), "a.test", "/").await.status(), 200);
        }
        assert_eq!(get(gateway.web(), "dead.test", "/dead").await.status(), 502);
        // It writes its last lines when it ends, but waits for them only so long.
        gateway.stop.cancel();
        tokio::time::timeout(PATIENCE, gateway.supervisor.token().cancelled()).await.unwrap();
        gateway.shared.access_log.flush(PATIENCE).await;
        let text = text(&gateway.folder.path().join("a.log"));
        assert_eq!(text.lines().count(), expected, "{text}");
        assert!(text.lines().all(|it| it.contains("\"GET /dead HTTP/1.1\" 502 ")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_nobody_reads_holds_up_no_request() {
    const REQUESTS: usize = 600;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    // Somebody has it open, and does not read.
    let mut reader = File::options().read(true).write(true).open(&path).unwrap();
    let (address, _) = counted_origin(OK).await;
    let yaml = file(&[address]) + ADMIN + "threads: 1\naccess_log: {destination: pipe, query: true}\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let admin = gateway.admin.unwrap();
    let mut wire = Wire::connect(gateway.web()).await;
    // More than the pipe, what is being written and what waits can hold together.
    let request = format!("GET /?{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "q".repeat(8000));
    for _ in 0..REQUESTS {
        assert_eq!(wire.ask(&request).await.status(), 200);
    }
    assert!(metric(admin, "access_log_dropped_total").await.unwrap() > 0.0);
    // Once somebody reads, it goes on by itself.
    let read = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&read);
    let reading = std::thread::spawn(move || {
        let mut piece = vec![0; 64 * 1024];
        while !all.lock().unwrap().windows(6).any(|it| it == b"/last\"") {
            let count = reader.read(&mut piece).unwrap();
            let mut all = all.lock().unwrap();
            // Only the end matters for what is looked for.
            let keep = all.len().saturating_sub(4096);
            all.drain(..keep);
            all.extend_from_slice(&piece[..count]);
        }
    });
    eventually("every line is written or dropped", || async {
        let written = metric(admin, "access_log_lines_total").await.unwrap();
        written + metric(admin, "access_log_dropped_total").await.unwrap() == REQUESTS as f64
    })
    .await;
    assert_eq!(get(gateway.web(), "a.test", "/last").await.status(), 200);
    eventually("the last line", || async { reading.is_finished() }).await;
    reading.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_rotated_is_made_anew() {
    let yaml = file(&[echo().await]) + "access_log: {destination: a.log}\n";
    let gateway = Gateway::start(&yaml).await;
    let (log, old) = (gateway.folder.path().join("a.log"), gateway.folder.path().join("a.log.1"));
    assert_eq!(get(gateway.web(), "a.test", "/one").await.status(), 200);
    lines(&log, 1).await;
    std::fs::rename(&log, &old).unwrap();
    eventually("another file of that name", || async { log.exists() }).await;
    assert_eq!(get(gateway.web(), "a.test", "/two").await.status(), 200);
    assert!(lines(&log, 1).await.contains_key("/two"));
    assert!(lines(&old, 1).await.contains_key("/one"));
    // Another place, by a changed file.
    gateway.rewrite(&yaml.replace("a.log", "b.log"));
    let other = gateway.folder.path().join("b.log");
    eventually("a line in the other file", || async {
        assert_eq!(get(gateway.web(), "a.test", "/three").await.status(), 200);
        text(&other).contains("\"/three\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_opened_is_refused_by_its_name() {
    let yaml = file(&[echo().await]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    for (log, problem) in [("{destination: no/such/a.log}", "no/such/a.log"), ("{destination: a, sample: 3}", "sample")]
    {
        std::fs::write(&path, format!("{yaml}access_log: {log}\n")).unwrap();
        let supervisor = Supervisor::new();
        let error = Alone::build(&supervisor, &path).await.err().unwrap().to_string();
        assert!(error.contains(problem), "{error}");
        assert!(supervisor.shutdown(PATIENCE).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_cannot_be_written_are_dropped_until_they_can() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let shared = Shared::new(Limits::new(65_536, PATIENCE, PATIENCE), Metrics::new());
    let supervisor = Supervisor::new();
    let engine = Engine::start(&supervisor, Arc::clone(&shared), 1).unwrap();
    let web = engine.listen("127.0.0.1:0".parse().unwrap(), &Protocol::Http).unwrap();
    let config = AccessLogConfig { destination: first.display().to_string(), ..AccessLogConfig::default() };
    let log: &AccessLog = &shared.access_log;
    // Nobody could open it at first; then its disk is full.
    log.set(&config, Place::Handed(None), 1, &shared.metrics).unwrap();
    let counts = || {
        let text = shared.metrics.text();
        ["lines", "dropped"].map(|it| {
            let name = format!("arco_gateway_access_log_{it}_total ");
            text.lines().find_map(|it| it.strip_prefix(&*name)?.parse::<u64>().ok()).unwrap()
        })
    };
    for (path, file, expected) in [
        ("/lost", None, [0, 1]),
        ("/full", Some(File::options().write(true).open("/dev/full").unwrap()), [0, 2]),
        ("/first", Some(File::create(&first).unwrap()), [1, 2]),
        ("/second", Some(File::create(&second).unwrap()), [2, 2]),
    ] {
        if let Some(file) = file {
            log.hand(file);
            // From here on it is the file.
            log.flush(PATIENCE).await;
        }
        assert_eq!(get(web.address, "a.test", path).await.status(), 404);
        eventually(path, || async { counts() == expected }).await;
    }
    assert!(lines(&first, 1).await.contains_key("/first"));
    assert!(lines(&second, 1).await.contains_key("/second"));
    drop(web);
    assert!(supervisor.shutdown(PATIENCE).await);
}
