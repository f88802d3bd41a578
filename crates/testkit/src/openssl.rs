//! TLS by another program than ours: openssl's client, for sessions that are resumed.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// Whether there is openssl; says loudly what is not tested without it.
pub fn has_openssl(what: &str) -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: {what}: there is no openssl");
    }
    there
}

/// Asks for `/` of the host `web.test` over TLS; what the client says about the session, and the answer. `more`: its flags.
pub fn openssl(address: SocketAddr, more: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-ign_eof", "-servername", "web.test", "-connect", &address.to_string()])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";
    child.stdin.take().unwrap().write_all(request).unwrap();
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}
