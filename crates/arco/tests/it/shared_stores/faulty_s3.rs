//! A bucket behind a way that fails as it is told to. Each connection carries one request.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// What happens to requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// They arrive.
    Good,
    /// The server is busy: 503.
    Busy,
    /// The server is broken: 500.
    Broken,
    /// They take two seconds.
    Slow,
    /// The connection ends in the middle of the answer's body.
    CutBody,
    /// The connection ends before an answer.
    Cut,
}

/// A bucket of its own.
pub(super) struct FaultyS3 {
    address: SocketAddr,
    way: Arc<Mutex<Way>>,
}

impl FaultyS3 {
    /// In front of the server of an URL as `arco_testkit::servers::s3` gives it.
    pub(super) fn before(url: &str) -> Self {
        let endpoint =
            url.split("endpoint=http://").nth(1).and_then(|it| it.split('&').next()).expect("a plain server");
        let server: SocketAddr = endpoint.parse().expect("an address");
        make_bucket(server);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let made = Self { address: listener.local_addr().unwrap(), way: Arc::new(Mutex::new(Way::Good)) };
        let way = made.way.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let way = way.clone();
                std::thread::spawn(move || {
                    let now = *way.lock().unwrap();
                    let _ = carry(client, server, now); // either side may go at any time
                });
            }
        });
        made
    }

    /// Its URL for `store.blobs`.
    pub(super) fn url(&self) -> String {
        let folder = std::process::id();
        format!(
            "s3://arco-test/platform-{folder}-{}?endpoint=http://{}&region=us-east-1",
            self.address.port(),
            self.address
        )
    }

    /// From now on.
    pub(super) fn set(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }
}

fn make_bucket(server: SocketAddr) {
    let mut stream = TcpStream::connect(server).unwrap();
    let credential = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request";
    let request = format!(
        "PUT /arco-test HTTP/1.1\r\nHost: {server}\r\nAuthorization: {credential}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 ") || answer.contains("BucketAlreadyOwnedByYou"), "{answer}");
}

fn carry(mut client: TcpStream, server: SocketAddr, way: Way) -> io::Result<()> {
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = head.windows(4).position(|it| it == b"\r\n\r\n") {
            break at + 4;
        }
        let mut piece = [0; 8 << 10];
        let count = client.read(&mut piece)?;
        if count == 0 || head.len() > HEAD_MAX {
            return Ok(());
        }
        head.extend_from_slice(&piece[..count]);
    };
    match way {
        Way::Cut => return Ok(()),
        Way::Busy => return refuse(&mut client, &head, end, "503 Slow Down", "SlowDown"),
        Way::Broken => return refuse(&mut client, &head, end, "500 Internal Server Error", "InternalError"),
        Way::Slow => std::thread::sleep(Duration::from_secs(2)), // this is the fault
        Way::CutBody | Way::Good => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    let line = head.windows(2).position(|it| it == b"\r\n").unwrap_or(0) + 2;
    // The answer says that it is the last on this connection.
    upstream.write_all(&[&head[..line], b"Connection: close\r\n", &head[line..]].concat())?;
    let (mut from_client, mut to_server) = (client.try_clone()?, upstream.try_clone()?);
    let feed = std::thread::spawn(move || drop(io::copy(&mut from_client, &mut to_server)));
    let answered = answer(&mut upstream, &mut client, way);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upstream.shutdown(Shutdown::Both);
    let _ = feed.join();
    answered
}

/// Hands on the answer, or with a cut body the head and half of what came with it.
fn answer(from: &mut TcpStream, to: &mut TcpStream, way: Way) -> io::Result<()> {
    if way != Way::CutBody {
        return io::copy(from, to).map(drop);
    }
    let mut all = Vec::new();
    from.read_to_end(&mut all)?;
    let body = all.windows(4).position(|it| it == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    to.write_all(&all[..body + (all.len() - body) / 2])
}

/// Answers without the server, after the whole request, as servers do.
fn refuse(client: &mut TcpStream, head: &[u8], end: usize, status: &str, code: &str) -> io::Result<()> {
    let fields = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
    let length = fields.lines().find_map(|it| it.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
    let left = length.unwrap_or(0).saturating_sub((head.len() - end) as u64);
    io::copy(&mut Read::by_ref(client).take(left), &mut io::sink())?;
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    let length = body.len();
    client.write_all(
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes(),
    )
}
