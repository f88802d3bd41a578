//! HTTP/2 clients that mean harm, frame by frame: what they ask for ends with their connection, and others are served.

use crate::kit::*;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field whose name is an entry of HPACK's static table, not indexed.
fn field(name: u8, value: &str) -> Vec<u8> {
    [&[name, u8::try_from(value.len()).unwrap()], value.as_bytes()].concat()
}

/// `GET https://a.test` of `path`.
pub(crate) fn get_block(path: &str) -> Vec<u8> {
    [vec![0x82, 0x87], field(4, path), field(1, "a.test")].concat()
}

/// A gateway with TLS for `a.test`, and how many requests its endpoint saw.
async fn gateway() -> (Gateway, Arc<rustls::ClientConfig>, Arc<AtomicUsize>) {
    let (address, seen) = counted_origin(OK).await;
    let (gateway, client) = gateway_to(address).await;
    (gateway, client, seen)
}

/// A gateway with TLS for `a.test`, whose upstream is at `address`.
async fn gateway_to(address: SocketAddr) -> (Gateway, Arc<rustls::ClientConfig>) {
    gateway_by(address, |it| it).await
}

/// The same with a file that differs.
pub(crate) async fn gateway_by(
    address: SocketAddr,
    change: fn(String) -> String,
) -> (Gateway, Arc<rustls::ClientConfig>) {
    let (folder, mut client) = certified(&["a.test"]);
    let yaml = file(&[address])
        .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
        .replace("routes: [", "routes: [{hosts: [a.test], paths: [{prefix: /general}], methods: [GET, HEAD, PUT, POST], targets: [{upstream: a}]}, ")
        + "certificates: [{hosts: [a.test], certificate_file: c.pem, key_file: c.key}]\n";
    let gateway = Gateway::start_in(folder, &change(yaml)).await;
    client.alpn_protocols = vec![b"h2".to_vec()];
    (gateway, Arc::new(client))
}

/// Sends the preface and then `frames` for as long as the gateway takes them. Returns the code of its GOAWAY, if one
/// came before it closed.
async fn attack(
    gateway: &Gateway,
    client: &Arc<rustls::ClientConfig>,
    frames: impl Iterator<Item = Vec<u8>>,
) -> Option<u32> {
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let tls = connector.connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(tls);
    let reading = async {
        let mut head = [0u8; 9];
        let mut code = None;
        while reader.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            if reader.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    };
    let writing = async {
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
        let mut open = writer.write_all(&hello).await.is_ok();
        for frame in frames {
            open = open && writer.write_all(&frame).await.is_ok();
            if !open {
                break;
            }
        }
        let _ = writer.flush().await;
    };
    let both = async { tokio::join!(reading, writing).0 };
    tokio::time::timeout(PATIENCE, both).await.expect("the connection ends")
}

/// Others are served as if nothing had happened.
async fn assert_serves(gateway: &Gateway) {
    assert_eq!(get(gateway.web(), "a.test", "/").await.status(), 200);
}

fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|it| it * 2 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset_ends_the_connection() {
    let (gateway, client, seen) = gateway().await;
    let frames = streams(100_000).map(|id| {
        let ask = frame(HEADERS, END_HEADERS | END_STREAM, id, &get_block("/"));
        [ask, frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
    });
    assert_eq!(attack(&gateway, &client, frames).await.unwrap_or(ENHANCE_YOUR_CALM), ENHANCE_YOUR_CALM);
    let reached = seen.load(Ordering::SeqCst);
    assert!(reached < 1000, "{reached} requests reached the endpoint");
    assert_serves(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_the_gateway_must_reset_end_the_connection() {
    let (gateway, client, seen) = gateway().await;
    // A window that grows beyond all bounds is an error of its stream, which the gateway has to reset.
    let frames = streams(100_000).map(|id| {
        let ask = frame(HEADERS, END_HEADERS | END_STREAM, id, &get_block("/"));
        [ask, frame(WINDOW_UPDATE, 0, id, &[0x7f, 0xff, 0xff, 0xff])].concat()
    });
    assert_eq!(attack(&gateway, &client, frames).await.unwrap_or(ENHANCE_YOUR_CALM), ENHANCE_YOUR_CALM);
    let reached = seen.load(Ordering::SeqCst);
    assert!(reached < 5000, "{reached} requests reached the endpoint");
    assert_serves(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_without_end_ends_the_connection() {
    if !in_a_process_of_its_own("http2::a_header_without_end_ends_the_connection") {
        return;
    }
    let (gateway, client, seen) = gateway().await;
    let before = resident();
    let junk: Vec<u8> = std::iter::repeat_with(|| [&[0, 1, b'x'][..], &field(0, &"y".repeat(100))[1..]].concat())
        .take(150)
        .flatten()
        .collect();
    for piece in [&junk[..], &[]] {
        let first = frame(HEADERS, END_STREAM, 1, &get_block("/"));
        let frames = std::iter::once(first).chain((0..100_000).map(|_| frame(CONTINUATION, 0, 1, piece)));
        attack(&gateway, &client, frames).await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 48 << 20, "memory grew by {grown} bytes");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    assert_serves(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_header_that_unpacks_to_a_large_one_reaches_nobody() {
    if !in_a_process_of_its_own("http2::a_small_header_that_unpacks_to_a_large_one_reaches_nobody") {
        return;
    }
    let (gateway, client, seen) = gateway().await;
    let before = resident();
    // A field of 100 bytes is put into the table once, then named again and again by one byte each.
    let large = [&[0x40, 1, b'x'][..], &field(0, &"y".repeat(100))[1..], &[0xbe; 15_000]].concat();
    let frames =
        streams(200).map(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, &[get_block("/"), large.clone()].concat()));
    attack(&gateway, &client, frames.chain([frame(DATA, 0, 0, &[])])).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 48 << 20, "memory grew by {grown} bytes");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    assert_serves(&gateway).await;
}

/// Bytes that this process has in files below `folder`, with names or without.
fn kept(folder: &Path) -> u64 {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|it| it.path());
    let inside = files.filter(|it| std::fs::read_link(it).is_ok_and(|it| it.starts_with(folder)));
    inside.filter_map(|it| std::fs::metadata(it).ok()).map(|it| it.len()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_a_stream_without_a_window_is_given_up() {
    let taken = Arc::new(Notify::new());
    let tell = Arc::clone(&taken);
    let address = origin(move |mut wire| {
        let taken = Arc::clone(&tell);
        async move {
            wire.message().await;
            let piece = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = wire.stream.write_all(format!("{head}{piece}{piece}0\r\n\r\n").as_bytes()).await;
            // It has all of it when it closes.
            wire.rest().await;
            taken.notify_one();
        }
    })
    .await;
    let (gateway, client) = gateway_by(address, |it| {
        it.replace("methods: [GET, HEAD, PUT, POST]", "buffer: {response: true}")
            .replace("idle_ms: 600000", "idle_ms: 1500")
            + "buffer_folder: .\n"
    })
    .await;
    let folder = gateway.folder.path().canonicalize().unwrap();
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(client).connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (mut reader, writer) = tokio::io::split(tls);
    let writer = tokio::sync::Mutex::new(writer);
    let say = async |bytes: Vec<u8>| {
        let mut writer = writer.lock().await;
        writer.write_all(&bytes).await.unwrap();
        writer.flush().await.unwrap();
    };
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get_block("/general"));
    say([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, ask].concat()).await;
    let reading = async {
        loop {
            let mut head = [0u8; 9];
            reader.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            reader.read_exact(&mut payload).await.unwrap();
            match (head[3], head[4]) {
                // It is there, only not willing to take anything.
                (PING, 0) => say(frame(PING, ACK, 0, &payload)).await,
                (SETTINGS, 0) => say(frame(SETTINGS, ACK, 0, &[])).await,
                (RST_STREAM, _) => break,
                (GOAWAY, _) => panic!("the connection ends"),
                (DATA | HEADERS, flags) => assert_eq!(flags & END_STREAM, 0, "it looks whole"),
                _ => {}
            }
        }
    };
    let waiting = async {
        taken.notified().await;
        eventually("it is given up", || async { kept(&folder) == 0 }).await;
        let window = |stream| frame(WINDOW_UPDATE, 0, stream, &(1u32 << 24).to_be_bytes());
        say([window(0), window(1)].concat()).await;
    };
    let both = async { tokio::join!(reading, waiting) };
    tokio::time::timeout(PATIENCE, both).await.expect("the stream is reset");
}

/// Asks for `path` and takes nothing of the answer, but is there and answers as it must; returns when its stream is reset.
async fn take_nothing(gateway: &Gateway, client: &Arc<rustls::ClientConfig>, path: &str) {
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let tls = connector.connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(tls);
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get_block(path));
    let mut answer = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, ask].concat();
    loop {
        writer.write_all(&answer).await.unwrap();
        writer.flush().await.unwrap();
        let mut head = [0u8; 9];
        reader.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        reader.read_exact(&mut payload).await.unwrap();
        answer = match (head[3], head[4]) {
            (PING, 0) => frame(PING, ACK, 0, &payload),
            (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
            (RST_STREAM, _) => return,
            (GOAWAY, _) => panic!("the connection ends"),
            (DATA, _) => panic!("it has no window"),
            (HEADERS, flags) if flags & END_STREAM > 0 => panic!("it looks whole"),
            _ => Vec::new(),
        };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_window_lets_go_of_its_endpoint() {
    let free = Arc::new(AtomicUsize::new(0));
    let tell = Arc::clone(&free);
    let address = origin(move |mut wire| {
        let free = Arc::clone(&tell);
        async move {
            while let Some(request) = wire.message().await {
                if request.head.contains("/small") {
                    wire.send(OK).await;
                    continue;
                }
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n";
                let _ = wire.stream.write_all(format!("{head}{}", "x".repeat(50_000)).as_bytes()).await;
                // The rest never comes: this ends when the gateway lets go.
                wire.rest().await;
                free.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    })
    .await;
    let (gateway, client) = gateway_by(address, |it| it.replace("idle_ms: 600000", "idle_ms: 1500")).await;
    for (path, ended) in [("/", 1), ("/general", 2), ("/small", 2), ("/general/small", 2)] {
        let reset = take_nothing(&gateway, &client, path);
        tokio::time::timeout(PATIENCE, reset).await.unwrap_or_else(|_| panic!("the stream of {path} is reset"));
        eventually("its endpoint is free", || async { free.load(Ordering::SeqCst) == ended }).await;
    }
}

/// Answers as the path says; each answer names the connection that it came by.
async fn framer() -> SocketAddr {
    let connections = Arc::new(AtomicUsize::new(0));
    origin(move |mut wire| {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        async move {
            while let Some(request) = wire.message().await {
                let path = request.head.split(' ').nth(1).unwrap().to_owned();
                let head = format!("HTTP/1.1 200 Fine\r\nX-Connection: {number}\r\n");
                let pieces: &[&str] = match path.as_str() {
                    "/length" => &["Content-Length: 5\r\n\r\nhello"],
                    "/slow-length" => &["Content-Length: 5\r\n", "\r\nhe", "llo"],
                    "/chunks" => &[
                        "Transfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n2\r\nhe\r\n3\r",
                        "\nllo\r\n0\r\nX-T: 1\r\n\r\n",
                    ],
                    "/until-end" => &["\r\nhel", "lo"],
                    "/more" => &["Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n"],
                    "/cut" => &["Content-Length: 9\r\n\r\nhello"],
                    "/twice" => &["Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"],
                    _ => &["Content-Length: 0\r\n\r\n"],
                };
                match path.as_str() {
                    "/hints" => wire.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await,
                    "/silent" => return,
                    _ => {}
                }
                wire.send(&head).await;
                for piece in pieces {
                    wire.send(piece).await;
                    // As the network may have it: not everything at once.
                    tokio::task::yield_now().await;
                }
                if ["/until-end", "/cut"].contains(&path.as_str()) {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_every_framing_reach_a_client_whole() {
    let (gateway, client) = gateway_to(framer().await).await;
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(client).connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    // Method, path, status and body; then whether the endpoint's connection must not be used again.
    let mut left = None;
    for (method, path, status, body, ends) in [
        ("GET", "/length", 200, "hello", false),
        ("GET", "/slow-length", 200, "hello", false),
        ("GET", "/chunks", 200, "hello x-t=1", false),
        ("HEAD", "/none", 200, "", false),
        ("POST", "/none", 200, "", false),
        ("GET", "/hints", 200, "", false),
        ("GET", "/until-end", 200, "hello", true),
        ("GET", "/length", 200, "hello", false),
        ("GET", "/more", 200, "hello", true),
        ("GET", "/length", 200, "hello", false),
        ("GET", "/cut", 200, "broken", true),
        ("GET", "/twice", 502, "", false),
        ("GET", "/length", 200, "hello", false),
        ("GET", "/silent", 502, "", false),
    ] {
        let request = http::Request::builder().method(method).uri(format!("https://a.test{path}"));
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            // The reset of a broken answer may overtake its head.
            Err(_) if body == "broken" => continue,
            Err(error) => panic!("{method} {path}: {error}"),
        };
        let connection = response.headers().get("x-connection").map_or("", |it| it.to_str().unwrap()).to_owned();
        assert_eq!(response.status(), status, "{method} {path}");
        if status != 200 {
            continue;
        }
        assert_ne!(Some(&connection), left.as_ref(), "{method} {path}");
        left = ends.then_some(connection);
        let seen = match response.into_body().collect().await {
            Err(_) => "broken".to_owned(),
            Ok(whole) => {
                let trailer = whole.trailers().map(|it| format!(" x-t={}", it["x-t"].to_str().unwrap()));
                let text = String::from_utf8(whole.to_bytes().to_vec()).unwrap();
                text + &trailer.unwrap_or_default()
            }
        };
        assert_eq!(seen, body, "{method} {path}");
    }
}

/// On the ordinary path and on the general one, which the route with conditions takes, and a request with a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_once_to_stay_with_tls() {
    let answer = "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nStrict-Transport-Security: max-age=2\r\n\
         Content-Length: 2\r\n\r\nok";
    let (address, _) = counted_origin(answer).await;
    for (part, expected) in
        [("redirect: true", &["max-age=1", "max-age=2"][..]), ("redirect: true, hsts_max_age_s: 60", &["max-age=60"])]
    {
        let (folder, mut client) = certified(&["a.test"]);
        let route = format!("targets: [{{upstream: a}}], tls: {{{part}}}");
        let yaml = file(&[address])
            .replace("listeners: [", "listeners: [{name: tls, address: \"127.0.0.1:0\", protocol: https}, ")
            .replace("targets: [{upstream: a}]", &route)
            .replace(
                "routes: [",
                &format!(
                    "routes: [{{hosts: [a.test], paths: [{{prefix: /general}}], methods: [GET, POST], {route}}}, "
                ),
            )
            + "certificates: [{hosts: [a.test], certificate_file: c.pem, key_file: c.key}]\n";
        let gateway = Gateway::start_in(folder, &yaml).await;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let tls = connector.connect("a.test".try_into().unwrap(), stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        for (method, path, body) in [("GET", "/", ""), ("GET", "/general", ""), ("POST", "/", "body")] {
            let request = http::Request::builder().method(method).uri(format!("https://a.test{path}"));
            let response =
                sender.send_request(request.body(Full::new(bytes::Bytes::from(body))).unwrap()).await.unwrap();
            let told = response.headers().get_all("strict-transport-security").iter();
            let told: Vec<_> = told.map(|it| it.to_str().unwrap()).collect();
            assert_eq!((response.status().as_u16(), told.as_slice()), (200, expected), "{method} {path} {part}");
        }
    }
}

/// An endpoint switches to another protocol, and nobody has asked it to: with and without a body, on each path.
#[tokio::test(flavor = "multi_thread")]
async fn who_switches_unasked_is_not_believed() {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let hints =
                if request.head.contains("hinted") { "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" } else { "" };
            // As if it were informational, the answer comes after it.
            wire.send(format!("{hints}{SWITCH}{OK}")).await;
        }
    })
    .await;
    let (gateway, client) = gateway_to(address).await;
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(client).connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    for path in ["/", "/hinted", "/general", "/general/hinted"] {
        for (method, body) in [("GET", ""), ("POST", ""), ("POST", "body")] {
            let request = http::Request::builder().method(method).uri(format!("https://a.test{path}"));
            let request = request.body(Full::new(bytes::Bytes::from(body))).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), 502, "{method} {path} {body:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_request_reaches_its_endpoint_as_one_of_the_general_path() {
    let address = origin(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let seen = request.head;
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len())).await;
        }
    })
    .await;
    let (gateway, client) = gateway_to(address).await;
    let stream = TcpStream::connect(gateway.addresses["tls"]).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(client).connect("a.test".try_into().unwrap(), stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    // What the endpoint saw: its lines in order, ids that were made here without their digits.
    let seen = async |method: &str, uri: &str, fields: &[(&str, &str)]| {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let response = sender.clone().send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{method} {uri} {fields:?}");
        let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let made = |id: &str| id.len() == 32 && id.bytes().all(|it| it.is_ascii_hexdigit());
        let mut lines: Vec<String> = text
            .to_lowercase()
            .lines()
            .map(|it| match it.strip_prefix("x-request-id: ") {
                Some(id) if made(id) => "x-request-id: made".to_owned(),
                _ => it.replace("/general/", "/plain/"),
            })
            .collect();
        lines.sort();
        lines
    };
    for (method, fields) in [
        ("GET", &[][..]),
        ("GET", &[("cookie", "a=1"), ("cookie", "b=2"), ("accept", "text/html")]),
        ("PUT", &[("te", "trailers"), ("expect", "100-continue"), ("content-length", "0")]),
        ("POST", &[("x-forwarded-for", "9.9.9.9"), ("x_forwarded_for", "8.8.8.8"), ("forwarded", "for=7.7.7.7")]),
        ("GET", &[("x-request-id", "known-1234"), ("x-real-ip", "6.6.6.6"), ("proxy-authorization", "x")]),
        ("GET", &[("x-request-id", "known-1234"), ("x-request-id", "other-1234"), ("x-request-id", "a b")]),
        ("GET", &[("x-forwarded-prefix", "/evil"), ("x-forwarded-ssl", "on"), ("x_forwarded_user", "root")]),
        (
            "GET",
            &[("x-request-id", "a b"), ("host", "other.test"), ("x-empty", ""), ("x-twice", "1"), ("x-twice", "2")],
        ),
    ] {
        for authority in ["a.test", "A.test:8443"] {
            let ordinary = seen(method, &format!("https://{authority}/plain/x?q=%20&r"), fields).await;
            let general = seen(method, &format!("https://{authority}/general/x?q=%20&r"), fields).await;
            assert_eq!(ordinary, general, "{method} {authority} {fields:?}");
            assert_eq!(ordinary.iter().filter(|it| it.starts_with("x-request-id:")).count(), 1, "{ordinary:?}");
            assert!(ordinary.contains(&format!("host: {}", authority.to_lowercase())), "{ordinary:?}");
            assert_eq!(
                ordinary.iter().filter(|it| it.starts_with("x-forwarded-for: 127.0.0.1")).count(),
                1,
                "{ordinary:?}"
            );
        }
    }
}
