//! One table of requests through both drivers: nginx answers what the built-in engine answers, or refuses the file.

use crate::kit::*;
use arco_gateway::addresses::Addresses;
use arco_gateway::driver::Driver as _;
use arco_gateway::metrics::Metrics;
use arco_gateway::snapshot::StickyCookie;
use arco_gateway::source::file::FileSource;
use arco_testkit::servers::free_port;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

const ROUTES: &str = r#"
routes:
  - {hosts: [a.test], targets: [{upstream: a}]}
  - {hosts: [a.test], paths: [{prefix: /api}], rewrite: {prefix: /}, targets: [{upstream: a}]}
  - {hosts: [a.test], paths: [{prefix: /v1}], rewrite: {prefix: /new/}, targets: [{upstream: a}]}
  - {hosts: [a.test], paths: [{exact: /api/exact}], rewrite: {path: /whole}, targets: [{upstream: a}]}
  - {hosts: [a.test], paths: [{regex: '^/r[0-9]+$'}], request_headers: {set: {x-tier: 'gold "$1"'}, remove: [x-drop]}, targets: [{upstream: a}]}
  - {hosts: [a.test], paths: [{prefix: /edit}], rewrite: {host: inner.test}, response_headers: {set: {x-text: '100 $ \'}, remove: [x-origin]}, targets: [{upstream: a}]}
  - {hosts: [paths.test], targets: [{upstream: a}]}
  - {hosts: [paths.test], paths: [{prefix: /admin}, {prefix: /a/b}, {exact: /e/}, {prefix: '/m;v=1'}], targets: [{upstream: a}]}
  - {hosts: ['*.w.test'], redirect: {scheme: https, host: a.test, status: 308}}
  - {hosts: [moved.test], redirect: {path: /new, status: 301}}
  - {hosts: [port.test], redirect: {port: 8443}}
  - {hosts: [fixed.test], paths: [{exact: /robots.txt}], answer: {status: 200, body: "User-agent: *\n\"$\\\n"}}
  - {hosts: [away.test], maintenance: {message: Back at noon., retry_after_s: 600}, targets: [{upstream: a}]}
  - {hosts: [closed.test], deny: [127.0.0.0/8], targets: [{upstream: a}]}
  - {hosts: [open.test], allow: [127.0.0.1/32], max_body_bytes: 4, targets: [{upstream: a}]}
  - {hosts: [whole.test], buffer: {request: true}, max_body_bytes: 100000, targets: [{upstream: a}]}
  - {hosts: [down.test], targets: [{upstream: down}]}
  - {hosts: [shares.test], targets: [{upstream: one, weight: 1}, {upstream: two, weight: 3}]}
  - {hosts: [safe.test], tls: {redirect: true, hsts_max_age_s: 60}, targets: [{upstream: a}]}
"#;

/// What a client and an endpoint saw of one request.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    fields: BTreeMap<&'static str, Option<String>>,
    endpoint: Option<Vec<String>>,
    text: Option<String>,
}

fn seen(answer: &Message) -> Seen {
    let fields = ["location", "x-text", "x-origin", "retry-after", "strict-transport-security", "content-type"];
    let fields = fields.map(|it| (it, answer.header(it).map(str::to_owned)));
    let text = answer.text();
    let echoed = text.contains("HTTP/1.1\r\n");
    let told = ["host:", "forwarded:", "x-forwarded-", "proxy-", "x-tier:", "x-drop:", "x-keep:"];
    let endpoint = echoed.then(|| {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().to_owned();
        let mut rest: Vec<String> = lines
            .map(|it| it.split_once(": ").map_or(it.to_owned(), |(k, v)| format!("{}: {v}", k.to_ascii_lowercase())))
            .collect();
        rest.retain(|it| told.iter().any(|name| it.starts_with(name)));
        rest.sort();
        [vec![first], rest].concat()
    });
    // Pages of errors are each driver's own.
    let own = answer.status() >= 300;
    let mut fields: BTreeMap<_, _> = fields.into();
    if own {
        fields.remove("content-type");
    }
    Seen { status: answer.status(), fields, endpoint, text: (!echoed && !own).then_some(text) }
}

/// Ends nginx and takes its folder away, also when the test fails.
struct Nginx(PathBuf);

impl Nginx {
    fn of(gateway: &Gateway) -> Self {
        let file = gateway.folder.path().join("gateway.yaml");
        Self(PathBuf::from("/run/arco-gateway").join(StickyCookie::token(&file.to_string_lossy())))
    }

    fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.0.join("nginx").join("nginx.pid")).ok()?.trim().parse().ok()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(pid) = self.pid().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How many workers an nginx has.
fn workers(pid: i32) -> usize {
    let parent = format!("PPid:\t{pid}\n");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let status = processes.filter_map(|it| std::fs::read_to_string(it.path().join("status")).ok());
    status.filter(|it| it.contains(&parent)).count()
}

struct World {
    gateway: Gateway,
    web: SocketAddr,
    tls: SocketAddr,
    client: Arc<rustls::ClientConfig>,
}

fn free() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

async fn named(name: &'static str) -> SocketAddr {
    origin(move |mut wire| async move {
        while wire.message().await.is_some() {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len())).await;
        }
    })
    .await
}

fn skipped() -> bool {
    let there = std::process::Command::new("nginx").arg("-v").output().is_ok_and(|it| it.status.success());
    if !there {
        eprintln!("SKIPPED: the driver `nginx`: it is not installed (`apt install nginx-light`)");
    }
    !there
}

/// A gateway by this driver, on ports of its own.
async fn start(driver: &str, upstreams: &str) -> (World, Nginx) {
    let (folder, client) = certified(&["a.test", "safe.test"]);
    std::fs::create_dir(folder.path().join("bodies")).unwrap();
    // Its workers are not root, and keep bodies there.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (web, tls) = (free(), free());
    let yaml = format!(
        "driver: {driver}\nthreads: 1\nbuffer_folder: bodies\n\
         listeners: [{{name: web, address: \"{web}\", protocol: http}}, {{name: tls, address: \"{tls}\", protocol: https}}]\n\
         certificates: [{{hosts: [a.test, safe.test], certificate_file: c.pem, key_file: c.key}}]\n{upstreams}{ROUTES}"
    );
    let gateway = Gateway::start_in(folder, &yaml).await;
    let nginx = Nginx::of(&gateway);
    (World { gateway, web, tls, client: Arc::new(client) }, nginx)
}

/// The upstreams of a file, and what keeps others from listening where one of them does not.
async fn upstreams() -> (String, TcpSocket) {
    let (echo, one, two, (down, kept)) = (echo().await, named("1").await, named("2").await, closed());
    let text = format!(
        "upstreams: [{{name: a, endpoints: [\"{echo}\"]}}, {{name: one, endpoints: [\"{one}\"]}}, \
         {{name: two, endpoints: [\"{two}\"]}}, {{name: down, endpoints: [\"{down}\"]}}]\n"
    );
    (text, kept)
}

impl World {
    async fn ask(&self, request: &str) -> Message {
        Wire::connect(self.web).await.ask(request).await
    }

    async fn ask_over_tls(&self, name: &'static str) -> std::io::Result<Message> {
        let stream = tokio::net::TcpStream::connect(self.tls).await?;
        let server = rustls::pki_types::ServerName::try_from(name).unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(self.client.clone()).connect(server, stream).await?;
        stream.write_all(format!("GET /t HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        // Whoever closes without a word at the end has said everything before.
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Ok(Message { head: format!("{head}\r\n\r\n"), body: body.as_bytes().to_vec() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_drivers_answer_alike() {
    if skipped() {
        return;
    }
    let (upstreams, _kept) = upstreams().await;
    let ((ours, _none), (theirs, nginx)) = (start("builtin", &upstreams).await, start("nginx", &upstreams).await);
    // More than nginx keeps in memory.
    let large = format!("Content-Length: 50000\r\n\r\n{}", "x".repeat(50_000));
    for (line, host, more, status) in [
        ("GET /", "a.test", "X-Keep: 1\r\n", 200),
        ("GET /x%20y?q=1&r", "A.Test", "", 200),
        ("HEAD /", "a.test", "", 200),
        ("DELETE /thing", "a.test", "", 200),
        ("GET /api", "a.test", "", 200),
        ("GET /api/", "a.test", "", 200),
        ("GET /api/items?x=/api", "a.test", "", 200),
        ("GET /apis", "a.test", "", 200),
        ("GET /api/exact?q", "a.test", "", 200),
        ("GET /v1", "a.test", "", 200),
        ("GET /v1/a/b", "a.test", "", 200),
        ("GET /r12", "a.test", "X-Drop: 1\r\nX-Tier: none\r\n", 200),
        ("GET /r12x", "a.test", "X-Drop: 1\r\n", 200),
        ("GET /", "a.test", "Forwarded: for=9.9.9.9\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Ssl: on\r\n", 200),
        ("GET /", "a.test", "X-Forwarded-Prefix: /x\r\nX-Forwarded-User: root\r\nProxy-Authorization: x\r\n", 200),
        ("GET /api/x%2f..%2F..", "a.test", "", 400),
        ("GET /x/.%2E/api?q", "a.test", "", 400),
        ("GET /x\\api", "a.test", "", 400),
        ("GET /x/..y?/../x", "a.test", "", 200),
        ("GET /api;x/items", "a.test", "", 400),
        ("GET /;/api", "a.test", "", 400),
        ("GET /admin;x/users", "paths.test", "", 400),
        ("GET /.;x/admin%3by", "paths.test", "", 400),
        ("GET /a//;x/b", "paths.test", "", 400),
        ("GET /e/;x", "paths.test", "", 400),
        ("GET /a;%2fx/b", "paths.test", "", 400),
        ("GET /admin/users;x", "paths.test", "", 200),
        ("GET /shop;jsessionid=1/admin?a;b", "paths.test", "", 200),
        ("GET /m;v=1/x", "paths.test", "", 200),
        ("GET /admin;x", "closed.test", "", 403),
        ("GET /robots.txt;x", "fixed.test", "", 400),
        ("GET /edit/x", "a.test", "", 200),
        ("GET /q?x=1", "deep.x.w.test", "", 308),
        ("GET /q", "w.test", "", 404),
        ("GET /old?x=1", "moved.test", "", 301),
        ("GET /p?x", "port.test:80", "", 302),
        ("GET /robots.txt", "fixed.test", "", 200),
        ("GET /other", "fixed.test", "", 404),
        ("GET /", "away.test", "", 503),
        ("GET /", "closed.test", "", 403),
        ("GET /", "open.test", "", 200),
        ("GET /", "down.test", "", 502),
        ("GET /", "nobody.test", "", 404),
        ("GET /s?x", "safe.test", "", 308),
        ("POST /", "open.test", "Content-Length: 4\r\n\r\nbody", 200),
        ("POST /", "open.test", "Content-Length: 5\r\n\r\nbody!", 413),
        ("POST /", "whole.test", "Content-Length: 4\r\n\r\nbody", 200),
        ("POST /", "whole.test", large.as_str(), 200),
    ] {
        let end = if more.contains("\r\n\r\n") { "" } else { "\r\n" };
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{more}{end}");
        let mut answers = Vec::new();
        for (world, name) in [(&ours, "builtin"), (&theirs, "nginx")] {
            let mut wire = Wire::connect(world.web).await;
            wire.send(&request).await;
            let answer = if line.starts_with("HEAD") { wire.head_only().await } else { wire.message().await };
            let answer = answer.unwrap_or_else(|| panic!("{name} does not answer {request}"));
            let mut seen = seen(&answer);
            // Its own port is in what each leads to.
            for it in seen.fields.values_mut().flatten() {
                *it = it.replace(&format!(":{}", world.tls.port()), ":TLS");
            }
            answers.push(seen);
        }
        assert_eq!(answers[0].status, status, "{request} {answers:?}");
        assert_eq!(answers[0], answers[1], "{request}");
    }
    // Bodies wait on the disk that the file names, not in what lies in memory.
    assert!(theirs.gateway.folder.path().join("bodies").join("client_body_temp").exists());
    assert!(!nginx.0.join("nginx").join("client_body_temp").exists());
    for name in ["a.test", "safe.test"] {
        let (one, two) = (ours.ask_over_tls(name).await.unwrap(), theirs.ask_over_tls(name).await.unwrap());
        assert_eq!(seen(&one), seen(&two), "{name}");
    }
    assert!(ours.ask_over_tls("nobody.test").await.is_err() && theirs.ask_over_tls("nobody.test").await.is_err());
    // Shares are exact over each round.
    for world in [&ours, &theirs] {
        let mut counts = BTreeMap::new();
        for _ in 0..40 {
            let answer = world.ask("GET / HTTP/1.1\r\nHost: shares.test\r\n\r\n").await;
            *counts.entry(answer.text()).or_insert(0) += 1;
        }
        assert_eq!(counts, BTreeMap::from([("1".to_owned(), 10), ("2".to_owned(), 30)]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_follows_its_file_and_refuses_what_it_cannot_do() {
    if skipped() {
        return;
    }
    let (upstreams, _kept) = upstreams().await;
    let (world, nginx) = start("nginx", &upstreams).await;
    let status = async |host: &str| world.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.status();
    let pid = nginx.pid().expect("it runs");
    let path = world.gateway.folder.path().join("gateway.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    world.gateway.rewrite(&before.replace("hosts: [fixed.test], paths: [{exact: /robots.txt}]", "hosts: [fresh.test]"));
    eventually("the new host", || async { status("fresh.test").await == 200 }).await;
    // Until the workers with the file before have ended, they may still answer.
    let settled = || async { workers(pid) == 1 };
    eventually("the workers before are gone", settled).await;
    // A file that it cannot serve changes nothing; one after it does.
    world.gateway.rewrite(&before.replace("hosts: [a.test], targets", "hosts: [a.test], methods: [GET], targets"));
    let problem = arco_gateway::alone::check(&path).unwrap_err().to_string();
    assert!(problem.contains("route 1 (a.test): `methods`"), "{problem}");
    assert_eq!(status("fresh.test").await, 200);
    world.gateway.rewrite(&before);
    eventually("the first file", || async { status("fixed.test").await == 404 && status("fresh.test").await == 404 })
        .await;
    assert_eq!(nginx.pid(), Some(pid), "reloaded, not restarted");
    // It is started again when it ends, and ends with the gateway.
    let dead = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(dead, rustix::process::Signal::TERM).unwrap();
    let fresh =
        || async { nginx.pid().is_some_and(|it| it != pid) && tokio::net::TcpStream::connect(world.web).await.is_ok() };
    eventually("another nginx", fresh).await;
    world.gateway.stop.cancel();
    eventually("nobody listens", || async { tokio::net::TcpStream::connect(world.web).await.is_err() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_is_not_told_an_address_that_is_taken() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let _nginx = Nginx(folder.path().to_owned());
    let mut driver = arco_gateway::driver::Nginx::new(&folder.path().join("nginx"), Addresses::fixed(&[]));
    let mut source = FileSource::new(&path, Metrics::new());
    let mut put = async |listeners: &[String]| {
        let routes = "routes: [{hosts: [a.test], answer: {status: 200}}]\n";
        let text = format!("driver: nginx\nthreads: 1\nlisteners: [{}]\n{routes}", listeners.join(", "));
        std::fs::write(&path, text).unwrap();
        driver.put(source.load().unwrap()).await
    };
    let (first, second) = (free(), free());
    let taken = std::net::TcpListener::bind(second).unwrap();
    let listener = |name: &str, it: SocketAddr| format!("{{name: {name}, address: \"{it}\", protocol: http}}");
    let (one, two) = (listener("one", first), listener("two", second));
    put(std::slice::from_ref(&one)).await.unwrap();
    let problem = put(&[one.clone(), two.clone()]).await.unwrap_err().to_string();
    assert!(problem.contains(&second.to_string()), "{problem}");
    assert_eq!(get(first, "a.test", "/").await.status(), 200, "what was served goes on");
    // The same file is tried again, not taken for what is in effect.
    drop(taken);
    put(&[one, two]).await.unwrap();
    eventually("it listens there, too", || async { tokio::net::TcpStream::connect(second).await.is_ok() }).await;
}
