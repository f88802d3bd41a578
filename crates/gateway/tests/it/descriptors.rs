//! Without file descriptors: idle clients make room for others whatever they speak, and what is open goes on. The gateway is
//! a process of its own here, so that no descriptor of a client counts.

use crate::kit::*;
use arco_daemon::CancellationToken;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tokio::net::TcpStream;

/// The folder where the process that is the gateway finds its file and says where it listens.
const FOLDER: &str = "ARCO_TEST_DESCRIPTORS";
/// Descriptors of that process; and clients, far more than it has descriptors for.
const DESCRIPTORS: u32 = 256;
const CLIENTS: usize = 300;

type Body = Empty<bytes::Bytes>;

/// Serves the file in `folder` until its standard input ends.
async fn be_the_gateway(folder: &Path) {
    let gateway = Gateway::start(&std::fs::read_to_string(folder.join("file.yaml")).unwrap()).await;
    let said = format!("{} {}", gateway.web(), gateway.addresses["tls"]);
    std::fs::write(folder.join("new"), said).unwrap();
    std::fs::rename(folder.join("new"), folder.join("addresses")).unwrap();
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await.unwrap().unwrap();
}

/// Ends with what has it.
struct Process {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gateway of `be_the_gateway`, where it listens in the clear and by TLS, and a client that trusts it.
async fn gateway(test: &str, endpoint: SocketAddr) -> (Process, SocketAddr, SocketAddr, Arc<rustls::ClientConfig>) {
    let (folder, mut client) = certified(&["a.test"]);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let at = |name: &str| folder.path().join(name).display().to_string();
    // Its second route has a rule of its own, which makes it the general path's.
    let file = file(&[endpoint])
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        .replace(
            "routes: [",
            "routes: [{hosts: [a.test], paths: [{prefix: /general}], methods: [GET], targets: [{upstream: a}]}, ",
        )
        + &format!(
            "certificates: [{{hosts: [a.test], certificate_file: {}, key_file: {}}}]\n",
            at("c.pem"),
            at("c.key")
        )
        + "threads: 2\n";
    std::fs::write(folder.path().join("file.yaml"), file).unwrap();
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}")).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env(FOLDER, folder.path()).stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    let said = folder.path().join("addresses");
    let process = Process { child, _folder: folder };
    eventually("the gateway listens", || async { said.exists() }).await;
    let said = std::fs::read_to_string(&said).unwrap();
    let (web, tls) = said.split_once(' ').unwrap();
    (process, web.parse().unwrap(), tls.parse().unwrap(), Arc::new(client))
}

/// A client that speaks HTTP/2.
async fn speaks_http2(tls: SocketAddr, client: &Arc<rustls::ClientConfig>) -> SendRequest<Body> {
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let stream = TcpStream::connect(tls).await.unwrap();
    let stream = connector.connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> http::Request<Body> {
    http::Request::get(format!("https://a.test{path}")).body(Body::new()).unwrap()
}

fn written(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_clients_make_room_whatever_they_speak() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return be_the_gateway(Path::new(&folder)).await;
    }
    let go = CancellationToken::new();
    let wait = go.clone();
    let endpoint = origin(move |mut wire| {
        let wait = wait.clone();
        async move {
            while let Some(request) = wire.message().await {
                if request.head.contains("/slow") {
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbe").await;
                    wait.cancelled().await;
                    wire.send("gun").await;
                    return;
                }
                wire.send(OK).await;
            }
        }
    })
    .await;
    let test = "descriptors::idle_clients_make_room_whatever_they_speak";
    let (_process, web, tls, client) = gateway(test, endpoint).await;
    let mut open = speaks_http2(tls, &client).await;
    let mut open = open.send_request(request("/slow")).await.unwrap().into_body();
    let mut plain = Wire::connect(web).await;
    plain.send(written("/general/slow")).await;
    assert_eq!(plain.until("\r\n\r\nbe").await.map(|it| it.starts_with("HTTP/1.1 200")), Some(true));

    let mut kept = Vec::new();
    for number in 0..CLIENTS {
        let asking = async {
            let mut sender = speaks_http2(tls, &client).await;
            let answer = sender.send_request(request("/")).await.unwrap();
            assert_eq!(answer.status(), 200);
            kept.push(sender);
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("there is no room for client {number}"));
    }
    drop(kept);
    let mut kept = Vec::new();
    for number in 0..CLIENTS {
        let asking = async {
            let mut wire = Wire::connect(web).await;
            assert_eq!(wire.ask(&written("/general")).await.status(), 200);
            kept.push(wire);
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("there is no room for client {number}"));
    }

    go.cancel();
    let mut rest = Vec::new();
    while let Some(frame) = tokio::time::timeout(PATIENCE, open.frame()).await.expect("the answer goes on") {
        rest.extend(frame.unwrap().into_data().unwrap_or_default());
    }
    assert_eq!(String::from_utf8_lossy(&rest), "begun");
    assert_eq!(plain.exactly(3).await.as_deref(), Some(&b"gun"[..]));
}
