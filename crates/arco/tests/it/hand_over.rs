//! The gateway alone, as a real process: a new executable takes over under load without a refused or cut request, what is
//! open is finished by the old one, a worker that is killed is replaced while clients wait.

use crate::behave::EXECUTABLE;
use crate::load::Load;
use arco_testkit::servers::free_port;
use arco_testkit::until;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Nothing here takes longer; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(240);
/// A client that was held up for longer than this may find its connection closed: after 3 s when another process has taken
/// over, after 1 s when descriptors are used up.
const SILENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(500));

/// Answers `/` at once, `/slow` with a byte every 50 ms until `finish`, and an upgrade with an echo.
fn origin(finish: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let finish = Arc::clone(&finish);
            std::thread::spawn(move || serve(stream, &finish));
        }
    });
    address
}

fn serve(mut stream: TcpStream, finish: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.to_ascii_lowercase());
        }
        if head.iter().any(|it| it.starts_with("upgrade:")) {
            stream.write_all(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").ok()?;
            std::io::copy(&mut reader, &mut stream).ok()?;
            return None;
        }
        if head[0].contains("/slow") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
            while !finish.load(Ordering::SeqCst) {
                stream.write_all(b"1\r\nx\r\n").ok()?;
                std::thread::sleep(Duration::from_millis(50)); // the pace of a slow endpoint
            }
            stream.write_all(b"4\r\ndone\r\n0\r\n\r\n").ok()?;
            continue;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").ok()?;
    }
}

/// Reads an answer with a length; whether the connection goes on.
fn answer(stream: &mut TcpStream) -> std::io::Result<bool> {
    let mut answer = Vec::new();
    let mut buffer = [0u8; 4096];
    while !answer.ends_with(b"\r\n\r\nok\n") {
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => answer.extend_from_slice(&buffer[..length]),
            end if answer.is_empty() => return Err(end.err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into())),
            end => {
                let text = String::from_utf8_lossy(&answer);
                return Err(std::io::Error::other(format!("{end:?} after {text:?}")));
            }
        }
    }
    let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    if !text.starts_with("http/1.1 200") {
        return Err(std::io::Error::other(text));
    }
    Ok(!text.contains("connection: close"))
}

/// A client that keeps its connection for as long as the gateway does.
struct Client {
    gateway: SocketAddr,
    silence: Duration,
    /// And since when it has said nothing on it.
    kept: Option<(TcpStream, Instant)>,
}

impl Client {
    fn new(gateway: SocketAddr, silence: Duration) -> Self {
        Self { gateway, silence, kept: None }
    }

    fn connect(&self) -> std::io::Result<(TcpStream, Instant)> {
        let began = Instant::now();
        let stream = TcpStream::connect_timeout(&self.gateway, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok((stream, began))
    }

    /// One answer. Connects anew only when the gateway said so, or when this very client was silent for too long.
    fn ask(&mut self) -> std::io::Result<()> {
        loop {
            let (mut stream, began) = self.kept.take().map_or_else(|| self.connect(), Ok)?;
            let said = stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
            let silent = began.elapsed() > self.silence;
            match said.and_then(|()| answer(&mut stream)) {
                Ok(goes_on) => {
                    self.kept = goes_on.then(|| (stream, Instant::now()));
                    return Ok(());
                }
                Err(error) if silent && is_closed(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the connection was closed before an answer began.
fn is_closed(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn load(gateway: SocketAddr, clients: usize) -> Load {
    Load::start(clients, || {
        let mut client = Client::new(gateway, SILENCE.0);
        move || client.ask().map_err(|it| it.to_string())
    })
}

/// `arco gateway --config FILE`.
struct Gateway {
    folder: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
}

impl Gateway {
    fn start(origin: SocketAddr) -> Self {
        Self::start_by(origin, Command::new(EXECUTABLE))
    }

    fn start_by(origin: SocketAddr, command: Command) -> Self {
        Self::start_with(origin, command, "")
    }

    fn start_with(origin: SocketAddr, mut command: Command, settings: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("arco-hand-over-").tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        std::fs::write(folder.path().join("gateway.yaml"), file(address, origin, "web.test") + settings).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.args(["gateway", "--config"]).arg(folder.path().join("gateway.yaml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let gateway = Self { folder, child, address };
        until("the gateway listens", 60, || gateway.log().contains("listening").then_some(()));
        gateway
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    fn workers(&self) -> BTreeSet<u32> {
        children(self.child.id())
    }

    fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    fn only_worker(&self) -> u32 {
        until("one worker", 60, || {
            let workers = self.workers();
            (workers.len() == 1).then(|| *workers.first().unwrap())
        })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
        for pid in self.workers() {
            signal("KILL", pid);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file(address: SocketAddr, origin: SocketAddr, host: &str) -> String {
    format!(
        "listeners: [{{name: web, address: \"{address}\", protocol: http}}]\n\
         upstreams: [{{name: a, endpoints: [\"{origin}\"]}}]\n\
         routes: [{{hosts: [\"{host}\"], paths: [{{prefix: /}}], targets: [{{upstream: a, weight: 100}}]}}]\n"
    )
}

pub(crate) fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
}

/// Whether none of its threads runs any more.
pub(crate) fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|it| it.is_empty() || it.starts_with(['Z', 'X']))
}

/// Children of a process with one thread.
pub(crate) fn children(pid: u32) -> BTreeSet<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|it| it.parse().ok()).collect()
}

fn open(gateway: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn exactly(stream: &mut TcpStream, wanted: &[u8]) {
    let mut read = vec![0u8; wanted.len()];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(wanted));
}

fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0u8; 1];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[test]
fn an_upgrade_under_load_loses_no_request_and_finishes_what_is_open() {
    let finish = Arc::new(AtomicBool::new(false));
    let gateway = Gateway::start(origin(Arc::clone(&finish)));
    let old = gateway.only_worker();
    let mut slow = open(gateway.address, "GET /slow HTTP/1.1\r\nHost: web.test\r\n\r\n");
    assert!(head(&mut slow).starts_with("HTTP/1.1 200"));
    let upgrade = "GET /echo HTTP/1.1\r\nHost: web.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut tunnel = open(gateway.address, upgrade);
    assert!(head(&mut tunnel).starts_with("HTTP/1.1 101"));
    let load = load(gateway.address, 8);
    load.goes_on(100);

    gateway.signal("USR2");
    let new = until("a second worker", 60, || gateway.workers().into_iter().find(|it| *it != old));
    until("the old one leaves", 60, || gateway.log().contains("another process has taken over").then_some(()));
    load.goes_on(200);
    tunnel.write_all(b"still here").unwrap();
    exactly(&mut tunnel, b"still here");
    assert!(gateway.workers().contains(&old), "the old one has open requests");
    finish.store(true, Ordering::SeqCst);
    let mut rest = Vec::new();
    while !rest.ends_with(b"done\r\n0\r\n\r\n") {
        let mut buffer = [0u8; 4096];
        let length = slow.read(&mut buffer).unwrap();
        assert!(length > 0, "the slow answer was cut: {:?}", String::from_utf8_lossy(&rest));
        rest.extend_from_slice(&buffer[..length]);
    }
    drop((slow, tunnel));
    until("the old one ends", 60, || (!gateway.workers().contains(&old)).then_some(()));
    assert_eq!(gateway.only_worker(), new);

    // Once more: the keeper of the sockets is a new one by now.
    gateway.signal("USR2");
    until("a third worker alone", 60, || {
        let workers = gateway.workers();
        (workers.len() == 1 && !workers.contains(&new)).then_some(())
    });
    load.goes_on(100);
    let complaints = load.end();
    assert!(
        complaints.is_empty(),
        "{} requests failed: {:?}",
        complaints.len(),
        &complaints[..complaints.len().min(5)]
    );

    let mut gateway = gateway;
    gateway.signal("TERM");
    let status = until("the gateway ends", 60, || gateway.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert!(TcpStream::connect(gateway.address).is_err());
}

#[test]
fn a_killed_worker_is_replaced_while_clients_wait() {
    let origin = origin(Arc::default());
    let gateway = Gateway::start(origin);
    for _ in 0..3 {
        let old = gateway.only_worker();
        signal("KILL", old);
        // What it takes while it dies is lost with it.
        until("the end of the worker", 60, || has_ended(old).then_some(()));
        Client::new(gateway.address, SILENCE.0).ask().expect("nothing is refused");
        assert_ne!(gateway.only_worker(), old);
        // Long enough alive: the next death is again the first one.
    }
    // A changed file counts for the one that serves, by signal.
    std::fs::write(gateway.config(), file(gateway.address, origin, "other.test")).unwrap();
    gateway.signal("HUP");
    until("the new file", 60, || {
        arco_testkit::get(gateway.address, "other.test", "/").ok().filter(|it| it.status == 200)
    });
    // A file that is not valid does not take over, and nothing is lost.
    let before = gateway.only_worker();
    std::fs::write(gateway.config(), "listeners: 5\n").unwrap();
    gateway.signal("USR2");
    until("the upgrade fails", 60, || gateway.log().contains("the upgrade failed").then_some(()));
    assert_eq!(gateway.only_worker(), before);
    assert_eq!(arco_testkit::get(gateway.address, "other.test", "/").unwrap().status, 200);
}

/// Asks over TLS; whether its session was resumed.
fn resumes(address: SocketAddr, more: &[&str]) -> bool {
    let said = arco_testkit::openssl(address, more);
    assert!(said.contains("200 OK") && (said.contains("Reused, TLSv1") || said.contains("New, TLSv1")), "{said}");
    said.contains("Reused, TLSv1")
}

#[test]
fn sessions_are_resumed_by_the_worker_after_and_by_the_next_executable() {
    if !arco_testkit::has_openssl("sessions of TLS over a hand-over") {
        return;
    }
    let origin = origin(Arc::default());
    let gateway = Gateway::start(origin);
    let at = |name: &str| gateway.folder.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["web.test".to_owned()]).unwrap();
    std::fs::write(at("c.pem"), made.cert.pem()).unwrap();
    std::fs::write(at("c.key"), made.signing_key.serialize_pem()).unwrap();
    let port = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let tls = format!("listeners: [{{name: tls, address: \"{port}\", protocol: https}}, ");
    let file = file(gateway.address, origin, "web.test").replace("listeners: [", &tls)
        + "certificates: [{hosts: [web.test], certificate_file: c.pem, key_file: c.key}]\n";
    std::fs::write(gateway.config(), file).unwrap();
    gateway.signal("HUP");
    until("the TLS listener", 60, || TcpStream::connect(port).ok());
    let session = at("session.pem");
    assert!(!resumes(port, &["-sess_out", &session]));
    assert!(resumes(port, &["-sess_in", &session]));

    let killed = gateway.only_worker();
    signal("KILL", killed);
    // What it takes while it dies is lost with it.
    until("the end of the worker", 60, || has_ended(killed).then_some(()));
    assert!(resumes(port, &["-sess_in", &session]), "by the worker after one that was killed");

    let old = until("another worker", 60, || gateway.workers().into_iter().find(|it| *it != killed));
    // Twice: after the first upgrade the keeper of the sockets is another executable as well.
    let mut before = old;
    for _ in 0..2 {
        gateway.signal("USR2");
        before = until("the next executable's worker alone", 60, || {
            let workers = gateway.workers();
            (workers.len() == 1).then(|| *workers.first().unwrap()).filter(|it| *it != before)
        });
        assert!(resumes(port, &["-sess_in", &session]), "after an upgrade");
    }
}

/// For this process: other tests in it need descriptors as well.
fn raise_limit() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard).unwrap();
}

#[test]
fn without_descriptors_it_serves_what_is_open_says_so_and_recovers() {
    raise_limit();
    let finish = Arc::new(AtomicBool::new(false));
    let mut command = Command::new("prlimit");
    command.arg("--nofile=256:256").arg(EXECUTABLE);
    let gateway = Gateway::start_by(origin(Arc::clone(&finish)), command);
    let slow = "GET /slow HTTP/1.1\r\nHost: web.test\r\n\r\n";
    let mut open_requests: Vec<TcpStream> = (0..10).map(|_| open(gateway.address, slow)).collect();
    open_requests.iter_mut().for_each(|it| assert!(head(it).starts_with("HTTP/1.1 200")));
    // More than there are descriptors; the kernel takes those that the gateway does not.
    let idle: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    // Who says nothing is handed over by the kernel after a while.
    until("they are used up", 60, || gateway.log().contains("file descriptors are used up").then_some(()));
    for _ in 0..20 {
        Client::new(gateway.address, SILENCE.1).ask().unwrap();
    }
    // Not once for each of them.
    let log = gateway.log();
    assert!(log.lines().count() < 100, "{log}");
    for stream in &mut open_requests {
        // How many bytes make a chunk is the gateway's business: one that was busy has read several at once.
        let mut byte = [0u8];
        while byte != *b"x" {
            stream.read_exact(&mut byte).unwrap();
        }
    }
    finish.store(true, Ordering::SeqCst);
    drop((idle, open_requests));
    for _ in 0..300 {
        Client::new(gateway.address, SILENCE.1).ask().unwrap();
    }
}

#[test]
fn idle_connections_to_endpoints_make_room_for_clients() {
    raise_limit();
    let finish = Arc::new(AtomicBool::new(false));
    let mut command = Command::new("prlimit");
    command.arg("--nofile=256:256").arg(EXECUTABLE);
    let gateway = Gateway::start_with(origin(Arc::clone(&finish)), command, "threads: 1\n");
    let slow = "GET /slow HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";
    let mut burst: Vec<TcpStream> = (0..90).map(|_| open(gateway.address, slow)).collect();
    burst.iter_mut().for_each(|it| assert!(head(it).starts_with("HTTP/1.1 200")));
    finish.store(true, Ordering::SeqCst);
    let mut rest = Vec::new();
    burst.iter_mut().for_each(|it| assert!(it.read_to_end(&mut rest).is_ok()));
    drop(burst);
    // With those that the burst has opened to its endpoint they are more than there is room for.
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";
    let mut clients: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    for _ in 0..2 {
        for client in &mut clients {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            assert!(answer(client).unwrap(), "each keeps its connection");
        }
    }
    assert!(!gateway.log().contains("file descriptors are used up"), "{}", gateway.log());
}

#[test]
fn a_gateway_that_cannot_start_says_why_and_ends() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gateway.yaml");
    let address = holder.local_addr().unwrap();
    std::fs::write(&config, format!("listeners: [{{name: web, address: \"{address}\", protocol: http}}]\n")).unwrap();
    let output = Command::new(EXECUTABLE).args(["gateway", "--config"]).arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address.to_string()) && said.contains("choose another address"), "{said}");
}
