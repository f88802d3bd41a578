//! HTTP/2 clients that ask for nothing, nothing more, or nothing whole: their connections end. Those that wait for an answer
//! are left alone.

use crate::http2::*;
use crate::kit::*;
use arco_daemon::CancellationToken;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn connect(gateway: &Gateway, client: &Arc<rustls::ClientConfig>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    connector.connect("a.test".try_into().unwrap(), stream).await.unwrap()
}

/// Preface and settings.
fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A request on this stream.
fn ask(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &get_block("/"))
}

/// Sends `bytes` and nothing more, but, if it is `polite`, what an HTTP/2 client has to answer. Returns the codes of each
/// GOAWAY that came before the gateway ended the connection.
async fn until_end(gateway: &Gateway, client: &Arc<rustls::ClientConfig>, bytes: &[u8], polite: bool) -> Vec<u32> {
    let (mut reader, mut writer) = tokio::io::split(connect(gateway, client).await);
    writer.write_all(bytes).await.unwrap();
    writer.flush().await.unwrap();
    let reading = async {
        let (mut codes, mut head) = (Vec::new(), [0u8; 9]);
        while reader.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if reader.read_exact(&mut payload).await.is_err() {
                break;
            }
            let answer = match (head[3], head[4]) {
                (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
                (PING, 0) => frame(PING, ACK, 0, &payload),
                (GOAWAY, _) => {
                    codes.push(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
                    continue;
                }
                _ => continue,
            };
            // Who has been left sees it with the next frame.
            if polite && writer.write_all(&answer).await.is_ok() {
                let _ = writer.flush().await;
            }
        }
        codes
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the connection ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_nothing_is_let_go() {
    let (address, seen) = counted_origin(OK).await;
    let (gateway, client) =
        gateway_by(address, |it| it.replace("request_header_ms: 600000", "request_header_ms: 3000")).await;
    let half = [hello(), ask(1)[..20].to_vec()].concat();
    // CONTINUATION is to follow, and nothing else may.
    let open = [hello(), frame(HEADERS, END_STREAM, 1, &get_block("/"))].concat();
    let cases = [
        ("nothing", Vec::new(), false, false),
        ("half a preface", PREFACE[..12].to_vec(), false, false),
        ("no request", hello(), true, true),
        ("no request and no answer", hello(), false, true),
        ("half a frame", half, false, true),
        ("a header without end", open, false, true),
    ];
    let (at, client) = (&gateway, &client);
    join_all(cases.map(|(name, bytes, polite, is_told)| async move {
        let codes = until_end(at, client, &bytes, polite).await;
        assert_eq!(codes.first(), is_told.then_some(&0), "{name}");
    }))
    .await;
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    assert_eq!(get(gateway.web(), "a.test", "/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_nothing_more_is_let_go() {
    let (address, seen) = counted_origin(OK).await;
    // Only its idle time ends this one.
    let (gateway, client) = gateway_by(address, |it| it.replace("idle_ms: 600000", "idle_ms: 1500")).await;
    for _ in 0..2 {
        let codes = until_end(&gateway, &client, &[hello(), ask(1)].concat(), true).await;
        assert_eq!(codes.first(), Some(&0));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    // Who does not go is cut off.
    let (gateway, client) = gateway_by(address, |it| {
        it.replace("idle_ms: 600000", "idle_ms: 1500").replace("request_header_ms: 600000", "request_header_ms: 3000")
    })
    .await;
    let half = [hello(), ask(1), ask(3)[..20].to_vec()].concat();
    for (name, bytes) in [("it is silent", [hello(), ask(1)].concat()), ("it is in a request", half)] {
        assert_eq!(until_end(&gateway, &client, &bytes, false).await.first(), Some(&0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_an_answer_is_left_alone() {
    let (arrived, go) = (CancellationToken::new(), CancellationToken::new());
    let (tell, wait) = (arrived.clone(), go.clone());
    let address = origin(move |mut wire| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            while let Some(request) = wire.message().await {
                if request.head.contains("/slow") {
                    tell.cancel();
                    wait.cancelled().await;
                }
                wire.send(OK).await;
            }
        }
    })
    .await;
    let (gateway, client) = gateway_by(address, |it| it.replace("idle_ms: 600000", "idle_ms: 1500")).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connect(&gateway, &client).await))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request =
        |path: &str| http::Request::get(format!("https://a.test{path}")).body(Empty::<bytes::Bytes>::new()).unwrap();
    let slow = tokio::spawn(sender.send_request(request("/slow")));
    tokio::time::timeout(PATIENCE, arrived.cancelled()).await.expect("the request arrives");
    // One after the other these take twice the idle time.
    for _ in 0..2 {
        until_end(&gateway, &client, &[hello(), ask(1)].concat(), true).await;
    }
    let beside = tokio::time::timeout(PATIENCE, sender.send_request(request("/"))).await.expect("an answer").unwrap();
    assert_eq!(beside.status(), 200, "its connection takes requests");
    go.cancel();
    let answer = tokio::time::timeout(PATIENCE, slow).await.expect("the answer").unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
}
