//! Real sockets and real TLS: who is refused, who is known, what a stop does to open connections.
#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

use arco_daemon::listener::{self, Peer};
use arco_daemon::pki::{Leaf, Pki, Subject};
use arco_daemon::tls::{self, ClientAuth, HotCertificate};
use arco_daemon::{OnExit, Supervisor};
use axum::{Extension, Router, routing::get};
use rustls_pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(60);

async fn whoami(Extension(peer): Extension<Peer>) -> String {
    peer.certificate.map_or_else(|| "nobody".to_owned(), |it| Subject::of(&it).unwrap().name)
}

struct Server {
    address: SocketAddr,
    pki: Pki,
    certificate: HotCertificate,
    supervisor: Supervisor,
    _folder: tempfile::TempDir,
}

async fn server(router: Router) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(folder.path()).unwrap();
    let certificate = HotCertificate::new(&pki.server(&["localhost".to_owned()]).unwrap()).unwrap();
    let config = tls::server_config(certificate.clone(), pki.authority_pem(), ClientAuth::Required).unwrap();
    let listener = listener::bind("127.0.0.1:0".parse().unwrap(), "test", "--listen").await.unwrap();
    let address = listener.local_addr().unwrap();
    let supervisor = Supervisor::new();
    supervisor.spawn("test", OnExit::Continue, listener::serve(listener, Some(config), router, supervisor.clone()));
    Server { address, pki, certificate, supervisor, _folder: folder }
}

async fn connect(server: &Server, leaf: Option<&Leaf>) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = tls::client_config(server.pki.authority_pem(), leaf).unwrap();
    let stream = TcpStream::connect(server.address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

async fn ask(server: &Server, leaf: Option<&Leaf>) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = connect(server, leaf).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate_and_refused_without_ours() {
    let server = server(Router::new().route("/", get(whoami))).await;
    let subject = Subject { name: "ann".into(), role: "viewer".into(), tenants: vec![] };
    let answer = ask(&server, Some(&server.pki.client(&subject).unwrap())).await.unwrap();
    assert!(answer.ends_with("ann"), "{answer}");
    assert!(ask(&server, None).await.is_err());
    let foreign = tempfile::tempdir().unwrap();
    let stranger = Pki::open(foreign.path()).unwrap().client(&subject).unwrap();
    assert!(ask(&server, Some(&stranger)).await.is_err());
    assert!(server.supervisor.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn a_swapped_certificate_is_shown_to_the_next_client() {
    let server = server(Router::new().route("/", get(whoami))).await;
    let admin = server.pki.client(&Subject::admin()).unwrap();
    let shown = |stream: tokio_rustls::client::TlsStream<TcpStream>| {
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown(connect(&server, Some(&admin)).await.unwrap());
    server.certificate.swap(&server.pki.server(&["localhost".to_owned()]).unwrap()).unwrap();
    assert_ne!(before, shown(connect(&server, Some(&admin)).await.unwrap()));
    assert!(server.supervisor.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn a_stop_lets_an_open_request_finish() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
    let gate = Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let slow = move || async move {
        entered.send(()).await.unwrap();
        held.notified().await;
        "finished"
    };
    let server = server(Router::new().route("/", get(slow))).await;
    let admin = server.pki.client(&Subject::admin()).unwrap();
    let (answer, stopped) = tokio::join!(ask(&server, Some(&admin)), async {
        is_in.recv().await.unwrap();
        server.supervisor.token().cancel();
        gate.notify_one();
        server.supervisor.shutdown(PATIENCE).await
    });
    assert!(answer.unwrap().ends_with("finished") && stopped);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_hold_up_a_stop() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
    let endless = move || async move {
        entered.send(()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let server = server(Router::new().route("/", get(endless))).await;
    let admin = server.pki.client(&Subject::admin()).unwrap();
    let (_, stopped) = tokio::join!(ask(&server, Some(&admin)), async {
        is_in.recv().await.unwrap();
        server.supervisor.shutdown(PATIENCE).await
    });
    assert!(stopped);
}

#[tokio::test]
async fn a_busy_address_names_its_holder_and_the_way_out() {
    let first = listener::bind("127.0.0.1:0".parse().unwrap(), "api", "--api-listen").await.unwrap();
    let error = listener::bind(first.local_addr().unwrap(), "api", "--api-listen").await.unwrap_err();
    assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
    assert!(error.advice.contains("--api-listen"), "{error}");
}
