//! The driver on a real S3 server whose answers get lost, are refused or break off on the way.
//!
//! What must hold: what passes by itself is not seen; what is told as written is there whole; what failed is told with step
//! and path, and leaves nothing.

use super::{PART_BYTES, S3Blobs};
use crate::blob::SharedBlobs;
use crate::blob::contract::s3_folder;
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request on the way.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server is busy.
    Busy,
    /// The connection ends before an answer.
    Cut,
    /// The connection ends after so many bytes of the answer.
    Short(usize),
    /// It is not allowed, and will not be.
    Denied,
}

/// Which requests, by the beginning of their first line and a part of it; how often; and what happens.
type Plan = Arc<Mutex<Vec<(&'static str, &'static str, usize, Fault)>>>;

/// Stands before a server; each connection carries one request.
async fn in_front_of(server: SocketAddr, plan: Plan) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let plan = plan.clone();
            tokio::spawn(async move {
                let _ = carry(client, server, &plan).await; // either side may go at any time
            });
        }
    });
    address
}

async fn carry(mut client: TcpStream, server: SocketAddr, plan: &Plan) -> std::io::Result<()> {
    let mut head = vec![0; 16 << 10];
    let mut filled = 0;
    while !head[..filled].windows(4).any(|it| it == b"\r\n\r\n") {
        match client.read(&mut head[filled..]).await? {
            0 => return Ok(()),
            count => filled += count,
        }
    }
    let line = String::from_utf8_lossy(&head[..filled]).lines().next().unwrap_or_default().to_owned();
    let fault = {
        let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
        let found = plan.iter_mut().find(|it| it.2 > 0 && line.starts_with(it.0) && line.contains(it.1));
        found.map(|it| {
            it.2 -= 1;
            it.3
        })
    };
    let refused = |status: &str, code: &str| {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    if matches!(fault, Some(Fault::Busy | Fault::Denied)) {
        // As servers do: an answer before the end of the body would reset the connection.
        let end = head[..filled].windows(4).position(|it| it == b"\r\n\r\n").unwrap_or(0) + 4;
        let fields = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        let length = fields.lines().find_map(|it| it.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let mut left = length.unwrap_or(0).saturating_sub(filled - end);
        let mut piece = vec![0; 64 << 10];
        while left > 0 {
            match client.read(&mut piece).await? {
                0 => return Ok(()),
                count => left = left.saturating_sub(count),
            }
        }
    }
    let most = match fault {
        Some(Fault::Cut) => return Ok(()),
        Some(Fault::Busy) => return client.write_all(refused("503 Slow Down", "SlowDown").as_bytes()).await,
        Some(Fault::Denied) => return client.write_all(refused("403 Forbidden", "AccessDenied").as_bytes()).await,
        Some(Fault::Short(bytes)) => bytes,
        None => usize::MAX,
    };
    // One request for each connection: the answer says that it is the last.
    let head = &head[..filled];
    let end = head.windows(2).position(|it| it == b"\r\n").unwrap_or(0) + 2;
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(&[&head[..end], b"Connection: close\r\n", &head[end..]].concat()).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = upstream.split();
    let answer = async {
        let mut left = most;
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = from_server.read(&mut piece).await?.min(left);
            to_client.write_all(&piece[..count]).await?;
            left -= count;
            if count == 0 || left == 0 {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    tokio::select! {
        done = answer => done,
        Err(error) = tokio::io::copy(&mut from_client, &mut to_server) => Err(error),
    }
}

/// A driver behind the faults, one that sees what is there, and where the server is.
async fn behind(plan: &Plan) -> Option<(SharedBlobs, SharedBlobs, String)> {
    let (url, access) = s3_folder().await?;
    let endpoint = url.query_pairs().find(|(key, _)| key == "endpoint").map(|it| it.1.into_owned())?;
    let Some(Ok(server)) = endpoint.strip_prefix("http://").map(str::parse) else {
        eprintln!("SKIPPED: faults on the way need a server without TLS, by its address");
        return None;
    };
    let front = in_front_of(server, plan.clone()).await;
    let faulty = url.as_str().replace(&server.to_string(), &front.to_string());
    // The URL is written encoded or plain.
    let faulty = faulty.replace(&server.to_string().replace(':', "%3A"), &front.to_string().replace(':', "%3A"));
    assert_ne!(faulty, url.as_str());
    let open = async |url: &str| Arc::new(S3Blobs::open(url, &access).await.unwrap()) as SharedBlobs;
    Some((open(&faulty).await, open(url.as_str()).await, endpoint))
}

fn plan(faults: &[(&'static str, &'static str, usize, Fault)]) -> Plan {
    Arc::new(Mutex::new(faults.to_vec()))
}

fn large() -> Bytes {
    (0..PART_BYTES as u32 * 2 + 17).map(|it| (it / 251) as u8).collect::<Vec<u8>>().into()
}

fn stream(content: Bytes) -> super::ByteStream {
    let pieces: Vec<_> = content.chunks(1 << 20).map(|it| Ok(Bytes::copy_from_slice(it))).collect();
    Box::pin(futures_util::stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_not_seen() {
    let faults = plan(&[]);
    let Some((blobs, straight, _)) = behind(&faults).await else { return };
    let set = |rows: &[(&'static str, &'static str, usize, Fault)]| *faults.lock().unwrap() = rows.to_vec();
    set(&[("PUT", "small", 2, Fault::Busy), ("GET", "small", 1, Fault::Busy), ("HEAD", "small", 1, Fault::Cut)]);
    blobs.put_bytes("a/small", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(blobs.stat("a/small").await.unwrap().unwrap().size, 1);
    assert_eq!(blobs.get_bytes("a/small", 16).await.unwrap().as_ref(), b"x");

    set(&[
        ("POST", "uploads", 1, Fault::Busy),
        ("PUT", "partNumber=2", 2, Fault::Busy),
        ("POST", "uploadId", 1, Fault::Busy),
    ]);
    assert_eq!(blobs.put("a/large", stream(large())).await.unwrap(), large().len() as u64);
    assert_eq!(straight.get_bytes("a/large", 1 << 30).await.unwrap(), large());
    assert!(faults.lock().unwrap().iter().all(|it| it.2 == 0), "every fault happened: {faults:?}");

    // An answer that breaks off is taken up again, or said: never taken for the whole.
    set(&[("GET", "large", 1, Fault::Short(PART_BYTES))]);
    let (mut read, mut whole) = (blobs.get("a/large", 0).await.unwrap(), true);
    let mut found = Vec::new();
    while let Some(piece) = read.next().await {
        match piece {
            Ok(piece) => found.extend_from_slice(&piece),
            Err(_) => whole = false,
        }
    }
    assert!(!whole || found == large(), "{} of {} bytes, and no error", found.len(), large().len());
    assert_eq!(faults.lock().unwrap()[0].2, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_and_leaves_nothing() {
    let faults = plan(&[]);
    let Some((blobs, straight, endpoint)) = behind(&faults).await else { return };
    *faults.lock().unwrap() = vec![("PUT", "partNumber=2", usize::MAX, Fault::Denied)];
    let error = blobs.put("b/large", stream(large())).await.unwrap_err().to_string();
    assert!(error.contains("b/large") && (error.contains("part") || error.contains("finish")), "{error}");
    assert!(straight.stat("b/large").await.unwrap().is_none());
    let uploads = reqwest::get(format!("{endpoint}/arco-test?uploads")).await.unwrap().text().await.unwrap();
    assert!(!uploads.contains("b/large"), "no parts are left: {uploads}");

    *faults.lock().unwrap() =
        vec![("PUT", "small", usize::MAX, Fault::Denied), ("DELETE", "", usize::MAX, Fault::Denied)];
    straight.put_bytes("b/kept", Bytes::from_static(b"k")).await.unwrap();
    for (step, done) in [
        ("write", blobs.put_bytes("b/small", Bytes::from_static(b"x")).await.map(|_| ())),
        ("delete", blobs.delete("b/kept").await),
    ] {
        let error = done.unwrap_err().to_string();
        assert!(error.contains(step) && error.contains("b/"), "{error}");
    }
    assert!(straight.stat("b/small").await.unwrap().is_none());
    assert_eq!(straight.get_bytes("b/kept", 16).await.unwrap().as_ref(), b"k");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_while_writing_leaves_no_parts() {
    let faults = plan(&[]);
    let Some((blobs, straight, endpoint)) = behind(&faults).await else { return };
    let begun = Arc::new(tokio::sync::Notify::new());
    let waits = begun.clone();
    // What comes after the first parts never comes.
    let rest = futures_util::stream::once(async move {
        waits.notify_one();
        std::future::pending().await
    });
    let content: super::ByteStream = Box::pin(stream(large()).chain(rest));
    tokio::select! {
        done = blobs.put("c/large", content) => panic!("{done:?}"),
        () = begun.notified() => {} // as when a client ends its connection
    }
    let gone = async {
        loop {
            let uploads = reqwest::get(format!("{endpoint}/arco-test?uploads")).await.unwrap().text().await.unwrap();
            if !uploads.contains("c/large") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(180), gone).await.expect("its parts go");
    assert!(straight.stat("c/large").await.unwrap().is_none());
}
