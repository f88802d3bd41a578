//! Responses whose endpoint is silent for long: streams of gRPC pass whole, whatever way they take through the gateway, and
//! others break off.

use crate::http2::gateway_by;
use crate::kit::*;
use arco_daemon::CancellationToken;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Our codec's, and the general path's.
const WAYS: [&str; 2] = ["/", "/general/"];

/// Begins each answer; goes on with those to `messages` when told to, with others never.
async fn endpoint(go: &CancellationToken) -> SocketAddr {
    let go = go.clone();
    origin(move |mut wire| {
        let go = go.clone();
        async move {
            while let Some(request) = wire.message().await {
                let is_grpc = request.head.contains("/messages ");
                let kind = if is_grpc { "application/grpc+proto" } else { "application/json" };
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 9\r\n\r\nfirst")).await;
                if !is_grpc {
                    wire.rest().await;
                    return;
                }
                go.cancelled().await;
                wire.send("last").await;
            }
        }
    })
    .await
}

async fn asked(web: SocketAddr, path: &str) -> Wire {
    let mut wire = Wire::connect(web).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
    assert!(wire.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200 "), "{path}");
    assert_eq!(wire.exactly(5).await.as_deref(), Some(&b"first"[..]), "{path}");
    wire
}

async fn asked_by_http2(sender: &SendRequest<Empty<bytes::Bytes>>, path: &str) -> Incoming {
    let request = http::Request::get(format!("https://a.test{path}")).body(Empty::new()).unwrap();
    let answer = tokio::time::timeout(PATIENCE, sender.clone().send_request(request)).await.expect("a head").unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    let mut body = answer.into_body();
    assert_eq!(taken(&mut body, 5).await, Ok("first".to_owned()), "{path}");
    body
}

/// As many bytes of a body, or how far it came.
async fn taken(body: &mut Incoming, length: usize) -> Result<String, String> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("a piece in time");
        match frame {
            Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
            Some(Err(_)) | None => return Err(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_response_may_be_silent_and_others_may_not() {
    let go = CancellationToken::new();
    let (gateway, client) =
        gateway_by(endpoint(&go).await, |it| it.replace("response_ms: 600000", "response_ms: 4000")).await;
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(client).connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let (web, sender) = (gateway.web(), &sender);
    let (mut wires, mut bodies) = (Vec::new(), Vec::new());
    for way in WAYS {
        wires.push(asked(web, &format!("{way}messages")).await);
        bodies.push(asked_by_http2(sender, &format!("{way}messages")).await);
    }
    // What stalls tells the time: twice as long as a pause may be.
    for _ in 0..2 {
        join_all(WAYS.map(|way| async move {
            let path = format!("{way}stalls");
            assert_eq!(asked(web, &path).await.rest().await, b"", "{path} breaks off");
        }))
        .await;
    }
    join_all(WAYS.map(|way| async move {
        let path = format!("{way}stalls");
        let mut body = asked_by_http2(sender, &path).await;
        assert_eq!(taken(&mut body, 4).await, Err(String::new()), "{path} breaks off");
    }))
    .await;
    go.cancel();
    for (mut wire, way) in wires.into_iter().zip(WAYS) {
        assert_eq!(wire.exactly(4).await.as_deref(), Some(&b"last"[..]), "{way}");
    }
    for (mut body, way) in bodies.into_iter().zip(WAYS) {
        assert_eq!(taken(&mut body, 4).await, Ok("last".to_owned()), "{way} by HTTP/2");
    }
}
