//! The way out of builds with `builder.egress = "allowlist"`: a proxy on the build network that reaches the listed hosts.
//!
//! What must hold: a host is checked by name, and the address that its name has *now* by the rule for addresses, and that
//! very address is connected to; what a build is refused, its log says, with the name of the setting. The firewall lets
//! builds reach this proxy and nothing else, so that what does not use it gets nowhere. TLS is not opened: a tunnel
//! carries bytes. Clients show which build they belong to by a password that is good for one build.

mod rules;

use crate::access::PROXY;
use arco_config::BuilderConfig;
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_store::clock;
use arco_store::logs::LogSink;
use rules::{Asked, Exceptions, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Where the proxy of builds listens.
pub struct BuildProxy {
    /// On an address that builds reach.
    pub listener: TcpListener,
    /// Single private addresses that builds may reach.
    pub endpoints: Vec<SocketAddrV4>,
}

/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Longest wait for the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for a server's name and connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Connections at the same time.
const CONNECTIONS: usize = 1024;

/// The proxy, shared by all builds of this process.
#[derive(Clone)]
pub(crate) struct Proxy(Arc<Shared>);

struct Shared {
    address: SocketAddr,
    rules: Vec<Rule>,
    exceptions: Exceptions,
    logs: LogSink,
    /// Builds by their password.
    builds: Mutex<BTreeMap<String, Build>>,
}

struct Build {
    stream: LogStream,
    refused: BTreeSet<String>,
}

/// The pass of one build; it ends with this value.
pub(crate) struct Pass {
    proxy: Proxy,
    token: String,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Checks the settings; [`Proxy::run`] serves.
    pub(crate) fn new(proxy: &BuildProxy, config: &BuilderConfig, logs: LogSink) -> Result<Self, String> {
        let exceptions = Exceptions { networks: config.allowed_networks.clone(), endpoints: proxy.endpoints.clone() };
        let rules = rules::rules(&config.allowed_hosts)?;
        let address = proxy.listener.local_addr().map_err(|it| it.to_string())?;
        Ok(Self(Arc::new(Shared { address, rules, exceptions, logs, builds: Mutex::default() })))
    }

    /// A pass for a build; what it is refused goes to `stream`.
    pub(crate) fn pass(&self, stream: LogStream) -> Pass {
        let token = format!("{:016x}{:016x}", clock::random(), clock::random());
        lock(&self.0.builds).insert(token.clone(), Build { stream, refused: BTreeSet::new() });
        Pass { proxy: self.clone(), token }
    }

    /// Serves until `token` fires.
    pub(crate) async fn run(&self, listener: TcpListener, token: &CancellationToken) {
        let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        let tasks = tokio_util::task::TaskTracker::new();
        loop {
            let Ok(turn) = room.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = token.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((client, _)) = accepted else {
                // Too many open files, or the client is gone: whoever waits is served when one ends.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (this, token) = (self.clone(), token.clone());
            tasks.spawn(async move {
                let _ = token.run_until_cancelled(this.serve(client)).await;
                drop(turn);
            });
        }
    }

    async fn serve(&self, mut client: TcpStream) {
        let Ok(Some((head, rest))) = tokio::time::timeout(HEAD_LIMIT, read_head(&mut client)).await else { return };
        let asked = match rules::asked(&head) {
            Ok(asked) => asked,
            Err(why) => return answer(&mut client, "400 Bad Request", &format!("the request is refused: {why}")).await,
        };
        let place = format!("{}:{}", asked.host, asked.port);
        if !rules::allows(&self.0.rules, &asked.host, asked.port) {
            let status = if self.note(&asked, &place).await { "403" } else { "407" };
            return answer(&mut client, &format!("{status} {PROXY}: {place}"), &advice(&place)).await;
        }
        match self.connect(&asked).await {
            Ok(server) => carry(client, server, asked, rest).await,
            Err(why) => {
                let text = format!("{place} cannot be reached: {why}");
                self.say(asked.token.as_deref(), format!("note: {text}")).await;
                answer(&mut client, "502 Bad Gateway", &text).await;
            }
        }
    }

    async fn connect(&self, asked: &Asked) -> Result<TcpStream, String> {
        let work = async {
            let found = tokio::net::lookup_host((asked.host.as_str(), asked.port)).await;
            let found: Vec<SocketAddr> = found.map_err(|it| it.to_string())?.collect();
            let mut why =
                "its name has only private addresses; `builder.allowed_networks` says which of them builds may reach"
                    .to_owned();
            for address in found.into_iter().filter(|it| rules::reachable(it, &self.0.exceptions)) {
                match TcpStream::connect(address).await {
                    Ok(server) => return Ok(server),
                    Err(error) => why = error.to_string(),
                }
            }
            Err(why)
        };
        tokio::time::timeout(CONNECT_LIMIT, work).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
    }

    /// Notes a refused host with its build, and says so once in its log. Whether the build is known: a client that has
    /// not said who it is, is asked.
    async fn note(&self, asked: &Asked, place: &str) -> bool {
        let first = {
            let mut builds = lock(&self.0.builds);
            let Some(build) = asked.token.as_ref().and_then(|it| builds.get_mut(it)) else { return false };
            build.refused.insert(place.to_owned())
        };
        if first {
            self.say(asked.token.as_deref(), format!("{PROXY}: {}", advice(place))).await;
        }
        true
    }

    async fn say(&self, token: Option<&str>, text: String) {
        let stream = token.and_then(|it| lock(&self.0.builds).get(it).map(|it| it.stream.clone()));
        let Some(stream) = stream else { return };
        let line = LogLine { at: clock::now(), instance: None, origin: LogOrigin::Platform, text };
        self.0.logs.append(stream, vec![line]).await;
    }
}

fn advice(place: &str) -> String {
    let host = place.strip_suffix(":443").or_else(|| place.strip_suffix(":80")).unwrap_or(place);
    format!("builds may not reach {place}; add \"{host}\" to the setting `builder.allowed_hosts` if they may")
}

impl Pass {
    /// As package clients take it.
    pub(crate) fn url(&self) -> String {
        format!("http://build:{}@{}", self.token, self.proxy.0.address)
    }

    /// Hosts that were refused so far.
    pub(crate) fn refused(&self) -> BTreeSet<String> {
        lock(&self.proxy.0.builds).get(&self.token).map(|it| it.refused.clone()).unwrap_or_default()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.proxy.0.builds).remove(&self.token);
    }
}

/// The head of a request, and what came behind it.
async fn read_head(client: &mut TcpStream) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut head = Vec::with_capacity(1024);
    loop {
        if let Some(end) = head.windows(4).position(|it| it == b"\r\n\r\n") {
            let rest = head.split_off(end + 4);
            return Some((head, rest));
        }
        if head.len() > HEAD_MAX || client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
}

async fn answer(client: &mut TcpStream, status: &str, text: &str) {
    let who = if status.starts_with("407") { "Proxy-Authenticate: Basic realm=\"builds\"\r\n" } else { "" };
    let answer = format!(
        "HTTP/1.1 {status}\r\n{who}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    let _ = client.write_all(answer.as_bytes()).await;
    let _ = client.shutdown().await;
}

/// A tunnel, or one request and its answer: what a client sends behind it was meant for another server perhaps.
async fn carry(mut client: TcpStream, mut server: TcpStream, asked: Asked, rest: Vec<u8>) {
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let Some((head, length)) = asked.plain else {
        let begun = async {
            client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
            server.write_all(&rest).await
        };
        if begun.await.is_ok() {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let body = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    let ask = async {
        to_server.write_all(&head).await?;
        to_server.write_all(&rest[..body]).await?;
        tokio::io::copy(&mut (&mut from_client).take(length - body as u64), &mut to_server).await
    };
    let (_, _) = tokio::join!(ask, tokio::io::copy(&mut from_server, &mut to_client));
    let _ = to_client.shutdown().await;
}

/// Variables that lead package clients to the proxy.
pub(crate) fn variables(pass: &Pass) -> BTreeMap<String, String> {
    let url = pass.url();
    let names = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "npm_config_proxy",
        "npm_config_https_proxy",
        "YARN_HTTP_PROXY",
        "YARN_HTTPS_PROXY",
        "CARGO_HTTP_PROXY",
        "ARCO_PROXY",
    ];
    let mut variables: BTreeMap<_, _> = names.into_iter().map(|it| (it.to_owned(), url.clone())).collect();
    for name in ["NO_PROXY", "no_proxy"] {
        variables.insert(name.to_owned(), "localhost,127.0.0.1,::1".to_owned());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that comes back.
    async fn ask(address: SocketAddr, text: String) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn listed_hosts_are_reached_and_the_log_names_the_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (logs, mut batches) = LogSink::channel(16);
        let config = BuilderConfig {
            allowed_hosts: vec!["localhost:1".into(), "good.example".into()],
            ..BuilderConfig::default()
        };
        let place = BuildProxy { listener, endpoints: Vec::new() };
        let proxy = Proxy::new(&place, &config, logs).unwrap();
        let stop = CancellationToken::new();
        let (served, token) = (proxy.clone(), stop.clone());
        let serving = tokio::spawn(async move { served.run(place.listener, &token).await });
        let pass = proxy.pass(LogStream::Operation { id: clock::fresh() });
        let login = |it: &str| {
            use base64::Engine as _;
            format!("Proxy-Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(it))
        };
        let known = login(&format!("build:{}", pass.token));

        let refused = ask(address, format!("CONNECT evil.example:443 HTTP/1.1\r\n{known}\r\n")).await;
        assert!(
            refused.starts_with("HTTP/1.1 403 refused by builder.allowed_hosts: evil.example:443\r\n"),
            "{refused}"
        );
        assert!(refused.contains("add \"evil.example\" to the setting `builder.allowed_hosts`"), "{refused}");
        let said = batches.recv().await.unwrap().lines.remove(0).text;
        assert!(said.contains("evil.example:443") && said.contains("builder.allowed_hosts"), "{said}");
        assert_eq!(pass.refused().into_iter().collect::<Vec<_>>(), ["evil.example:443"]);

        // Who has not said which build it is, is asked, and still told why.
        let unknown = ask(address, "CONNECT evil.example:443 HTTP/1.1\r\n\r\n".to_owned()).await;
        assert!(unknown.starts_with("HTTP/1.1 407 refused by builder.allowed_hosts"), "{unknown}");
        assert!(unknown.contains("Proxy-Authenticate: Basic"), "{unknown}");

        // A listed name does not lead to this machine.
        let private = ask(address, format!("CONNECT localhost:1 HTTP/1.1\r\n{known}\r\n")).await;
        assert!(private.starts_with("HTTP/1.1 502") && private.contains("builder.allowed_networks"), "{private}");
        drop(pass);
        assert!(lock(&proxy.0.builds).is_empty());
        stop.cancel();
        serving.await.unwrap();
    }
}
