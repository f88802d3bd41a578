//! Requests whose body is still on its way while they are answered, as in gRPC streams and early answers to long uploads:
//! who may be silent for how long, on each path and towards each kind of endpoint.

use crate::kit::*;
use arco_daemon::CancellationToken;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Notify, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// HTTP/1.1 endpoints, by a rule that our codec serves (for clients of HTTP/1.1) and by one of the general path; and
/// endpoints that speak HTTP/2, in the clear and over TLS.
const HOSTS: [&str; 4] = ["own.test", "general.test", "h2c.test", "grpcs.test"];
/// The limit that a test is about; the others are far beyond its patience. Longer than a busy machine holds a thread up.
const LIMIT_MS: u32 = 4000;

/// What a client says, when it says it.
struct Said(mpsc::Receiver<Bytes>);

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|it| it.map(|it| Ok(Frame::data(it))))
    }
}

/// A body that begins with `first` and goes on with what is sent.
fn saying(first: &'static str) -> (mpsc::Sender<Bytes>, Said) {
    let (say, said) = mpsc::channel(1);
    say.try_send(Bytes::from_static(first.as_bytes())).unwrap();
    (say, Said(said))
}

/// What is said, as it comes, or nothing of it; and at the end that all went well.
struct Answer {
    said: Incoming,
    gives_back: bool,
    ended: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        while !self.ended {
            match ready!(Pin::new(&mut self.said).poll_frame(cx)) {
                Some(Ok(frame)) if self.gives_back && frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.ended = true;
                    let trailers =
                        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Answers at once: at `/talk` with each piece as it comes, at `/upload` with nothing until the end; at `/silent` never.
async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/silent" {
        std::future::pending::<()>().await;
    }
    let gives_back = path == "/talk";
    Ok(Response::new(Answer { said: request.into_body(), gives_back, ended: false }))
}

async fn speak_http2<S>(stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// The same by HTTP/1.1, without trailers.
async fn speak_http1(mut wire: Wire) {
    while let Some(head) = wire.until("\r\n\r\n").await {
        if head.contains(" /silent ") {
            wire.rest().await;
            return;
        }
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        loop {
            let Some(size) = wire.until("\r\n").await else { return };
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let Some(piece) = wire.exactly(size + 2).await else { return };
            if size == 0 || head.contains(" /talk ") {
                wire.send([format!("{size:x}\r\n").as_bytes(), &piece].concat()).await;
            }
            if size == 0 {
                break;
            }
        }
    }
}

/// Shows a certificate for `inner.test`, which is in `folder` for whoever is to trust it.
fn certified_endpoint(folder: &Path) -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(vec!["inner.test".to_owned()]).unwrap();
    std::fs::write(folder.join("inner.pem"), made.cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A gateway for [`HOSTS`] with `limit`, and a client that trusts it and speaks HTTP/2.
async fn gateway(limit: &str) -> (Gateway, Arc<rustls::ClientConfig>) {
    let (folder, mut client) = certified(&HOSTS);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let plain = origin(speak_http1).await;
    let h2c = origin(|wire| speak_http2(wire.stream)).await;
    let acceptor = certified_endpoint(folder.path());
    let grpcs = origin(move |wire| {
        let acceptor = acceptor.clone();
        async move { speak_http2(acceptor.accept(wire.stream).await.unwrap()).await }
    })
    .await;
    let upstreams = format!(
        "{{name: h2c, endpoints: [\"{h2c}\"], protocol: http2}}, \
         {{name: grpcs, endpoints: [\"{grpcs}\"], protocol: http2, tls: {{name: inner.test, ca_file: inner.pem}}}}, "
    );
    let routes = "{hosts: [general.test], targets: [{upstream: a}], request_headers: {remove: [x-never]}}, \
         {hosts: [h2c.test], targets: [{upstream: h2c}]}, {hosts: [grpcs.test], targets: [{upstream: grpcs}]}, ";
    let listener = "{name: tls, address: \"127.0.0.1:0\", protocol: https}, ";
    let yaml = file(&[plain])
        .replace("a.test", "own.test")
        .replace("listeners: [", &format!("listeners: [{listener}"))
        .replace("upstreams: [", &format!("upstreams: [{upstreams}"))
        .replace("routes: [", &format!("routes: [{routes}"))
        .replace(&format!("{limit}: 600000"), &format!("{limit}: {LIMIT_MS}"))
        + &format!("certificates: [{{hosts: [{}], certificate_file: c.pem, key_file: c.key}}]\n", HOSTS.join(", "));
    (Gateway::start_in(folder, &yaml).await, Arc::new(client))
}

async fn connect(gateway: &Gateway, client: &Arc<rustls::ClientConfig>, host: &'static str) -> SendRequest<Said> {
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let connector = TlsConnector::from(Arc::clone(client));
    let tls = connector.connect(host.try_into().unwrap(), stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request by HTTP/1.1 whose answer has begun.
async fn begin_by_http1(gateway: &Gateway, host: &str, path: &str) -> Wire {
    let mut wire = Wire::connect(gateway.web()).await;
    wire.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")).await;
    let head = wire.until("\r\n\r\n").await.unwrap_or_else(|| panic!("{host}: no answer"));
    assert!(head.starts_with("HTTP/1.1 200"), "{host}: {head}");
    wire
}

/// A request by HTTP/2 whose answer has begun, and who sends more of it.
async fn begin_by_http2(sender: &mut SendRequest<Said>, host: &str, path: &str) -> (mpsc::Sender<Bytes>, Incoming) {
    let (say, said) = saying("one");
    let request = Request::post(format!("https://{host}{path}")).body(said).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200, "{host}");
    (say, response.into_body())
}

async fn hear(body: &mut Incoming, host: &str, expected: &str) {
    let mut heard = Vec::new();
    while heard.len() < expected.len() {
        let frame = body.frame().await.unwrap_or_else(|| panic!("{host}: it ended before {expected:?}"));
        let frame = frame.unwrap_or_else(|error| panic!("{host}: {error} before {expected:?}"));
        heard.extend_from_slice(&frame.into_data().unwrap());
    }
    assert_eq!(heard, expected.as_bytes(), "{host}");
}

/// Reads to the end; the trailers.
async fn hear_the_end(mut body: Incoming, host: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap_or_else(|error| panic!("{host}: {error}"));
        trailers.extend(frame.into_trailers().into_iter().flatten());
    }
    trailers
}

/// Sends a part of a body of which nobody takes notice, and then nothing, for as long as the gateway has patience.
async fn fall_silent(gateway: &Gateway, client: &Arc<rustls::ClientConfig>, host: &'static str) {
    let mut wire = Wire::connect(gateway.web()).await;
    let request = format!("POST /silent HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\nabc");
    let (mut sender, (_say, said)) = (connect(gateway, client, host).await, saying("abc"));
    let other = Request::post(format!("https://{host}/silent")).body(said).unwrap();
    let (answer, response) = tokio::join!(wire.ask(&request), sender.send_request(other));
    assert_eq!((answer.status(), response.unwrap().status().as_u16()), (408, 408), "{host}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_be_silent_once_it_is_answered_and_not_before() {
    let (gateway, client) = gateway("request_body_ms").await;
    let turn = Barrier::new(2 * HOSTS.len() + 1);
    let (gateway, client, turn) = (&gateway, &client, &turn);
    let by_http1 = HOSTS.map(|host| {
        Box::pin(async move {
            let mut wire = begin_by_http1(gateway, host, "/talk").await;
            assert!(wire.until("one").await.is_some(), "{host}");
            turn.wait().await;
            turn.wait().await;
            wire.send("3\r\ntwo\r\n").await;
            assert!(wire.until("two").await.is_some(), "{host}: it was cut off while its client was silent");
            wire.send("0\r\n\r\n").await;
            assert!(wire.until("0\r\n").await.is_some(), "{host}");
        })
    });
    let by_http2 = HOSTS.map(|host| {
        Box::pin(async move {
            let mut sender = connect(gateway, client, host).await;
            let (say, mut body) = begin_by_http2(&mut sender, host, "/talk").await;
            hear(&mut body, host, "one").await;
            turn.wait().await;
            turn.wait().await;
            say.send(Bytes::from_static(b"two")).await.unwrap();
            hear(&mut body, host, "two").await;
            drop(say);
            let trailers = hear_the_end(body, host).await;
            let expected = ["h2c.test", "grpcs.test"].contains(&host).then_some("0");
            assert_eq!(trailers.get("grpc-status").map(|it| it.to_str().unwrap()), expected, "{host}");
        })
    });
    let silence = async {
        turn.wait().await;
        // Others begin to be silent later, and the gateway's patience with them is over before those go on.
        for _ in 0..2 {
            join_all(HOSTS.map(|host| Box::pin(fall_silent(gateway, client, host)))).await;
        }
        turn.wait().await;
    };
    let all = async { tokio::join!(join_all(by_http1), join_all(by_http2), silence) };
    tokio::time::timeout(PATIENCE, all).await.expect("all of it in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_upload_that_was_answered_early_is_not_silence() {
    let (gateway, client) = gateway("response_ms").await;
    let (begun, over) = (Barrier::new(2 * HOSTS.len() + 1), CancellationToken::new());
    let (gateway, client, begun, over) = (&gateway, &client, &begun, &over);
    // As a slow network has it.
    let pause = || tokio::time::sleep(Duration::from_millis(50));
    let by_http1 = HOSTS.map(|host| {
        Box::pin(async move {
            let mut wire = begin_by_http1(gateway, host, "/upload").await;
            begun.wait().await;
            while !over.is_cancelled() {
                wire.send("1\r\nx\r\n").await;
                pause().await;
            }
            wire.send("0\r\n\r\n").await;
            assert!(wire.until("0\r\n").await.is_some(), "{host}: it was cut off while its client sent");
        })
    });
    let by_http2 = HOSTS.map(|host| {
        Box::pin(async move {
            let mut sender = connect(gateway, client, host).await;
            let (say, body) = begin_by_http2(&mut sender, host, "/upload").await;
            begun.wait().await;
            while !over.is_cancelled() {
                say.send(Bytes::from_static(b"x")).await.unwrap();
                pause().await;
            }
            drop(say);
            hear_the_end(body, host).await;
        })
    });
    let silence = async {
        begun.wait().await;
        // Endpoints that are silent have as much time, and less of it is left to those that are sent something.
        for _ in 0..2 {
            let silent = join_all(HOSTS.map(|host| get(gateway.web(), host, "/silent"))).await;
            silent.iter().for_each(|it| assert_eq!(it.status(), 504, "{it:?}"));
        }
        over.cancel();
    };
    let all = async { tokio::join!(join_all(by_http1), join_all(by_http2), silence) };
    tokio::time::timeout(PATIENCE, all).await.expect("all of it in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_neither_side_goes_on_with_ends() {
    let (gateway, client) = gateway("response_ms").await;
    let (gateway, client) = (&gateway, &client);
    let by_http1 = HOSTS.map(|host| {
        Box::pin(async move {
            let mut wire = begin_by_http1(gateway, host, "/talk").await;
            assert!(wire.until("one").await.is_some(), "{host}");
            assert!(!wire.rest().await.ends_with(b"0\r\n\r\n"), "{host}: it looks whole");
        })
    });
    let by_http2 = HOSTS.map(|host| {
        Box::pin(async move {
            let mut sender = connect(gateway, client, host).await;
            let (_say, mut body) = begin_by_http2(&mut sender, host, "/talk").await;
            hear(&mut body, host, "one").await;
            while let Ok(frame) = body.frame().await.unwrap_or_else(|| panic!("{host}: it looks whole")) {
                assert_eq!(frame.data_ref().map(Bytes::len), Some(0), "{host}: {frame:?}");
            }
        })
    });
    let all = async { tokio::join!(join_all(by_http1), join_all(by_http2)) };
    tokio::time::timeout(PATIENCE, all).await.expect("all of them end");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_after_the_whole_answer_holds_no_endpoint() {
    let freed = Arc::new(Notify::new());
    let tell = Arc::clone(&freed);
    let address: SocketAddr = origin(move |mut wire| {
        let freed = Arc::clone(&tell);
        async move {
            wire.until("\r\n\r\n").await;
            wire.send(OK).await;
            // The rest of the request never comes: this ends when the gateway lets go.
            wire.rest().await;
            freed.notify_one();
        }
    })
    .await;
    let hasty = |it: String| it.replace("request_body_ms: 600000", "request_body_ms: 1500");
    let (gateway, client) = crate::http2::gateway_by(address, hasty).await;
    let mut sender = connect(&gateway, &client, "a.test").await;
    let (_say, body) = begin_by_http2(&mut sender, "a.test", "/").await;
    hear_the_end(body, "a.test").await;
    tokio::time::timeout(PATIENCE, freed.notified()).await.expect("the endpoint is free");
}
