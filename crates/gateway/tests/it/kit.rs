//! An endpoint and a client that speak raw bytes, a gateway on free ports, and a store in memory.

use arco_daemon::{CancellationToken, Supervisor};
use arco_gateway::alone::Alone;
use arco_gateway::engine::Shared;
use arco_store::kv::{Kv, KvError, LeaseId, MemoryKv, Range, RangeResult, Txn, TxnResult, Watch};
use arco_store::secrets::SecretBox;
use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Nothing here takes longer; a test that waits for it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A message as it came: its head, and its body without framing.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|it| it.split_once(':'));
        lines.filter(|it| it.0.eq_ignore_ascii_case(name)).map(|it| it.1.trim()).next()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection with what was read too far.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends as much as the other side takes: who refuses may close before all of it is there.
    pub(crate) async fn offer(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    async fn more(&mut self) -> bool {
        self.buffer.reserve(64 * 1024);
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        read.expect("bytes in time").unwrap_or(0) > 0
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    pub(crate) async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|it| it == end.as_bytes()) {
                let bytes: Vec<u8> = self.buffer.drain(..at + end.len()).collect();
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// What is left until the other side closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    /// The next message; `None` when the connection ends before it is whole.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        let head = self.until("\r\n\r\n").await?;
        self.body_of(head).await
    }

    /// The answer to HEAD: without a body, whatever its head says.
    pub(crate) async fn head_only(&mut self) -> Option<Message> {
        Some(Message { head: self.until("\r\n\r\n").await?, body: Vec::new() })
    }

    pub(crate) async fn body_of(&mut self, head: String) -> Option<Message> {
        let mut message = Message { head, body: Vec::new() };
        let bodiless = matches!(message.status(), 100..200 | 204 | 304);
        if message.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(self.until("\r\n").await?.trim(), 16).unwrap();
                if size == 0 {
                    self.until("\r\n").await?;
                    break;
                }
                message.body.extend(self.exactly(size).await?);
                self.exactly(2).await?;
            }
        } else if let Some(length) = message.header("content-length").map(|it| it.parse().unwrap()) {
            message.body = self.exactly(length).await?;
        } else if message.head.starts_with("HTTP/") && !bodiless {
            message.body = self.rest().await;
        }
        Some(message)
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&mut self, request: &str) -> Message {
        self.send(request).await;
        self.message().await.expect("an answer")
    }
}

pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Message {
    let mut wire = Wire::connect(address).await;
    wire.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
}

/// An endpoint: each connection goes to `serve` until that returns.
pub(crate) async fn origin<F, S>(serve: S) -> SocketAddr
where
    S: Fn(Wire) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    origin_at("127.0.0.1:0", serve).await
}

pub(crate) async fn origin_at<F, S>(address: &str, serve: S) -> SocketAddr
where
    S: Fn(Wire) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(Wire::new(stream)));
        }
    });
    address
}

/// An endpoint that answers each request with this, and how many it saw.
pub(crate) async fn counted_origin(answer: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let (counter, answer): (_, Arc<str>) = (Arc::clone(&seen), answer.into());
    let address = origin(move |mut wire| {
        let (counter, answer) = (Arc::clone(&counter), Arc::clone(&answer));
        async move {
            while wire.message().await.is_some() {
                counter.fetch_add(1, Ordering::SeqCst);
                wire.send(answer.as_bytes()).await;
            }
        }
    })
    .await;
    (address, seen)
}

/// An address that nobody listens on, and what keeps it from others: a port that is let go of is soon somebody else's.
pub(crate) fn closed() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// What an endpoint answers when nothing about it matters.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An endpoint that answers each request with its own head and body, and counts connections.
pub(crate) async fn echo() -> SocketAddr {
    origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let body = [request.head.as_bytes(), &request.body].concat();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Origin: echo\r\n\r\n", body.len());
            let answer = if request.head.starts_with("HEAD ") { vec![] } else { body };
            wire.send([head.as_bytes(), &answer].concat()).await;
        }
    })
    .await
}

/// A gateway that serves one file.
pub(crate) struct Gateway {
    pub(crate) supervisor: Supervisor,
    pub(crate) stop: CancellationToken,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) shared: Arc<Shared>,
    pub(crate) addresses: std::collections::HashMap<String, SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

impl Gateway {
    pub(crate) async fn start(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, yaml).await
    }

    pub(crate) async fn start_in(folder: tempfile::TempDir, yaml: &str) -> Self {
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, yaml).unwrap();
        let supervisor = Supervisor::new();
        let alone = Alone::build(&supervisor, &path).await.unwrap();
        let (shared, addresses, admin) = (alone.shared(), alone.addresses(), alone.admin());
        let stop = supervisor.token().child_token();
        let stopped = stop.clone();
        supervisor.spawn("gateway", arco_daemon::OnExit::Shutdown, async move { Ok(alone.run(stopped).await?) });
        Self { supervisor, stop, folder, shared, addresses, admin }
    }

    pub(crate) fn web(&self) -> SocketAddr {
        self.addresses["web"]
    }

    pub(crate) fn rewrite(&self, yaml: &str) {
        let path = self.folder.path().join("gateway.yaml");
        std::fs::write(path.with_extension("new"), yaml).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.supervisor.token().cancel();
    }
}

/// The usual file: one plain listener, one host `a.test` to these endpoints; no limit of time that a busy machine could
/// reach.
pub(crate) fn file(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|it| format!("\"{it}\"")).collect();
    format!(
        "listeners: [{{name: web, address: \"127.0.0.1:0\", protocol: http}}]\n\
         upstreams: [{{name: a, endpoints: [{}]}}]\n\
         routes: [{{hosts: [a.test], targets: [{{upstream: a}}]}}]\n\
         timeouts: {{request_header_ms: 600000, request_body_ms: 600000, connect_ms: 600000, response_ms: 600000, idle_ms: 600000}}\n",
        endpoints.join(", ")
    )
}

/// The same with one limit of time that is soon over. It is the only one: another could end what is asked of this one when
/// a thread is held up.
pub(crate) fn hasty(file: &str, limit: &str) -> String {
    let long = format!("{limit}: 600000");
    assert!(file.contains(&long), "{file} has no {limit}");
    file.replace(&long, &format!("{limit}: 1500"))
}

/// A folder with `c.pem` and `c.key`, a certificate for these hosts, and a client that trusts nobody else.
pub(crate) fn certified(hosts: &[&str]) -> (tempfile::TempDir, rustls::ClientConfig) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(hosts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).unwrap();
    std::fs::write(folder.path().join("c.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("c.key"), made.signing_key.serialize_pem()).unwrap();
    (folder, trusting([made.cert.der().clone()]).with_no_client_auth())
}

/// A client that trusts these and nobody else; whether it shows a certificate of its own is still to be said.
pub(crate) fn trusting(
    authorities: impl IntoIterator<Item = CertificateDer<'static>>,
) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    authorities.into_iter().for_each(|it| roots.add(it).unwrap());
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

/// An address from where plain bytes reach `gateway` over TLS, by a connection for `host`.
pub(crate) async fn over_tls(gateway: SocketAddr, host: &str, client: &rustls::ClientConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut plain, _) = listener.accept().await.unwrap();
            let (connector, name) = (connector.clone(), name.clone());
            tokio::spawn(async move {
                let stream = TcpStream::connect(gateway).await.unwrap();
                let mut secure = connector.connect(name, stream).await.unwrap();
                // Whichever side breaks it off, both end with this.
                let _ = tokio::io::copy_bidirectional(&mut plain, &mut secure).await;
            });
        }
    });
    address
}

/// Whether this is a process with no other test: another one's memory must not count. If not, runs `test` in such a one.
pub(crate) fn in_a_process_of_its_own(test: &str) -> bool {
    const ALONE: &str = "ARCO_TEST_ALONE";
    if std::env::var(ALONE).is_ok() {
        return true;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let ended = child.args(["--exact", test]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Memory of this process, in bytes.
pub(crate) fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Waits until `ready` says so.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut ready: impl FnMut() -> F) {
    at_last(what, || {
        let ready = ready();
        async move { ready.await.then_some(()) }
    })
    .await;
}

/// Waits for what `ask` finds.
pub(crate) async fn at_last<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A store in memory that can fall silent. It waits long for those who hold leases: they are threads of this process, and a
/// busy machine holds them up.
pub(crate) struct Store {
    inner: MemoryKv,
    silence: Mutex<(bool, CancellationToken)>,
}

impl Store {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: MemoryKv::new(), silence: Mutex::default() })
    }

    /// While silent, every call fails and every watch has ended.
    pub(crate) fn silence(&self, silent: bool) {
        let before = std::mem::replace(&mut *self.silence.lock().unwrap(), (silent, CancellationToken::new()));
        before.1.cancel();
    }

    pub(crate) async fn value<T: serde::de::DeserializeOwned>(&self, key: &str) -> Option<T> {
        let found = self.inner.range(Range::Key(key.as_bytes().to_vec()), 1, None).await.unwrap();
        serde_json::from_slice(&found.items.first()?.value).ok()
    }

    fn check(&self) -> Result<CancellationToken, KvError> {
        let silence = self.silence.lock().unwrap();
        if silence.0 {
            return Err(KvError::Unavailable { step: "answer", cause: "silent".to_owned() });
        }
        Ok(silence.1.clone())
    }
}

#[async_trait]
impl Kv for Store {
    fn name(&self) -> &'static str {
        "silenceable"
    }

    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        self.check()?;
        self.inner.range(range, limit, at).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        self.check()?;
        self.inner.txn(txn).await
    }

    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        let silenced = self.check()?;
        let mut watch = self.inner.watch(range, from).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(silenced.run_until_cancelled_owned(async move {
            while let Some(batch) = watch.next().await {
                if sender.send(batch).await.is_err() {
                    return;
                }
            }
        }));
        Ok(Watch { receiver })
    }

    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        self.check()?;
        self.inner.lease_grant(60 * ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        self.check()?;
        self.inner.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        self.check()?;
        self.inner.lease_revoke(lease).await
    }

    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        self.check()?;
        self.inner.compact(revision).await
    }
}

/// What opens the private keys of certificates in the store.
pub(crate) fn keys() -> Arc<SecretBox> {
    Arc::new(SecretBox::parse(&format!("k1 {}", "11".repeat(32))).unwrap())
}
