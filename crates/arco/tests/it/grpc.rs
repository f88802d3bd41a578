//! Components that speak HTTP/2 without TLS, on a whole platform: a gRPC call from a client over TLS to an instance and back,
//! with its trailers, and both ways at the same time.

use crate::behave::{EXECUTABLE, good};
use crate::routes::{certificate, trusting};
use arco_testkit::{Platform, until};
use axum::body::Body;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body as _, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const DOCKERFILE: &str = "FROM debian:12\nCOPY echo.pl /echo.pl\nCMD [\"perl\", \"/echo.pl\"]\n";
/// Answers every call at once, gives back each piece as it comes, and says in trailers how it ended. It speaks nothing but
/// HTTP/2, frame by frame: 0 is data, 1 headers, 4 settings, 6 a ping.
const PROGRAM: &str = r#"use strict; use warnings; use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 50051, Listen => 128, ReuseAddr => 1) or die "listen: $!";
$SIG{CHLD} = 'IGNORE';
sub take {
  my ($from, $length) = @_;
  my $got = '';
  while (length($got) < $length) { read($from, $got, $length - length($got), length($got)) or exit }
  return $got;
}
sub give {
  my ($to, $kind, $flags, $stream, $payload) = @_;
  print $to substr(pack('N', length($payload)), 1), pack('CCN', $kind, $flags, $stream), $payload;
}
sub text { my ($it) = @_; return pack('C', length($it)) . $it }
for (;;) {
  my $client = $server->accept or next;
  next if fork;
  binmode $client;
  $client->autoflush(1);
  take($client, 24) eq "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" or die "this is not HTTP/2";
  give($client, 4, 0, 0, '');
  for (;;) {
    my ($high, $low, $kind, $flags, $stream) = unpack('CnCCN', take($client, 9));
    my $payload = take($client, ($high << 16) | $low);
    give($client, $kind, 1, 0, $kind == 6 ? $payload : '') if ($kind == 4 || $kind == 6) && !($flags & 1);
    give($client, 1, 4, $stream, "\x88\x0f\x10" . text('application/grpc')) if $kind == 1;
    give($client, 0, 0, $stream, $payload) if $kind == 0 && length($payload);
    my $end = "\x00" . text('grpc-status') . text('0') . "\x00" . text('grpc-message') . text("from $ENV{ARCO_COMPONENT}");
    give($client, 1, 5, $stream, $end) if $kind < 2 && ($flags & 1);
  }
}
"#;

/// A message as gRPC frames it: not compressed, its length, its bytes.
fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0][..], &length, text.as_bytes()].concat().into()
}

async fn next(mut body: Pin<&mut Incoming>) -> Option<Frame<Bytes>> {
    std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await.map(|it| it.unwrap())
}

/// Calls a method of `host` that takes and gives a stream of messages, and sees each of them before the next one is sent.
async fn converse(https: SocketAddr, host: &'static str, root: &str) {
    let mut config = trusting(root);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(https).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(host).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);

    let (say, said) = mpsc::channel::<Bytes>(1);
    let said = futures_util::stream::unfold(said, |mut said| async move {
        let it = said.recv().await?;
        Some((Ok::<_, Infallible>(it), said))
    });
    let request = Request::post(format!("https://{host}/demo.Echo/Converse"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::from_stream(said))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut body = pin!(response.into_body());
    for word in ["one", "and another"] {
        let sent = message(word);
        say.send(sent.clone()).await.unwrap();
        let mut echoed = Vec::new();
        while echoed.len() < sent.len() {
            let frame = next(body.as_mut()).await.expect("the message comes back before the next one is sent");
            echoed.extend_from_slice(&frame.into_data().expect("a message"));
        }
        assert_eq!(echoed, sent);
    }
    drop(say);
    let frame = next(body.as_mut()).await.expect("trailers");
    let trailers = frame.into_trailers().expect("trailers after the last message");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["grpc-message"], "from echo");
    assert!(next(body.as_mut()).await.is_none());
}

#[test]
fn grpc_passes_from_client_to_instance() {
    if !arco_testkit::is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let source = platform.folder("echo", &[("Dockerfile", DOCKERFILE), ("echo.pl", PROGRAM)]).display().to_string();
    for (component, port) in [("echo", "50051/grpc"), ("plain", "50051/h2c")] {
        good(&platform, &["deploy", &source, "--app", "rpc", "--component", component, "--port", port]);
    }
    let (cert, key, root) = certificate(&platform, "tls", &["rpc.test"]);
    let (cert, key) = (format!("@{}", cert.display()), format!("@{}", key.display()));
    good(&platform, &["certificate", "add", "rpc", "--cert", &cert, "--key", &key]);
    good(&platform, &["route", "add", "rpc/echo", "rpc.test"]);

    let https = platform.address("https").unwrap();
    until("the certificate is served", 60, || {
        crate::routes::get_over_tls(https, "rpc.test", "rpc.test", "/", &root).ok().filter(|it| it.contains(" 200 "))
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let call = async { tokio::time::timeout(Duration::from_secs(240), converse(https, "rpc.test", &root)).await };
    runtime.block_on(call).expect("the call ends");

    // Clients that speak HTTP/1.1 reach a component that does not.
    let answer = until("an answer of HTTP/2 to HTTP/1.1", 60, || {
        platform.get("plain.rpc.test.localhost", "/").ok().filter(|it| it.status == 200)
    });
    assert!(answer.head.to_lowercase().contains("content-type: application/grpc"), "{answer:?}");
    good(&platform, &["delete", "rpc", "--yes"]);
    assert!(platform.stop(), "{}", platform.log());
}
