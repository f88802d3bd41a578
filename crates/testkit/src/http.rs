//! The least HTTP client: one request, one connection, the whole answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status.
    pub status: u16,
    /// Header block as it came.
    pub head: String,
    /// Body as it came (chunked bodies are not decoded).
    pub body: String,
}

/// `GET path` with a Host header; an error when there is no whole answer within 60 s.
pub fn get(address: SocketAddr, host: &str, path: &str) -> std::io::Result<Response> {
    asked(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// `POST path` of a JSON document; otherwise as [`get`].
pub(crate) fn post(address: SocketAddr, path: &str, document: &str) -> std::io::Result<Response> {
    let length = document.len();
    let head =
        format!("Host: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close");
    asked(address, &format!("POST {path} HTTP/1.1\r\n{head}\r\n\r\n{document}"))
}

fn asked(address: SocketAddr, request: &str) -> std::io::Result<Response> {
    let limit = Duration::from_secs(60);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    // In one piece: who reads once has all of it.
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let cut = || std::io::Error::other(format!("no whole answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).ok_or_else(cut)?;
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}
