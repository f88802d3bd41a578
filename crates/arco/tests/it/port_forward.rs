//! `arco port-forward`: ports inside an instance from this machine.

use crate::behave::{EXECUTABLE, good, source};
use arco_testkit::{Killed, Platform, is_root, until};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Gives everything back, and a last word when it has seen the end; on loopback of the instance only.
const ECHO: &str = r#"use strict; use IO::Socket::INET; $SIG{CHLD} = 'IGNORE'; $| = 1;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 7000, Listen => 128) or die "listen: $!";
print "listens\n";
while (my $client = $server->accept) {
  next if fork;
  while (sysread($client, my $piece, 65536)) { print $client $piece; $client->flush }
  print $client "end\n"; exit 0;
}"#;

fn spawn(platform: &Platform, words: &[&str]) -> Killed {
    let mut command = Command::new(EXECUTABLE);
    command.args(words).env("ARCO_CONTEXT", platform.data_dir().join("admin.toml"));
    Killed(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

/// Sends while it reads, ends its own direction, and reads to the end.
fn there_and_back(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(to);
    let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.to_vec());
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    back
}

#[test]
fn ports_inside_an_instance_are_reached_from_here() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let folder = source(&platform);
    good(&platform, &["deploy", folder.to_str().unwrap(), "--app", "demo", "--component", "web"]);
    let mut echo = spawn(&platform, &["exec", "demo/web", "--", "perl", "-e", ECHO]);
    let mut line = String::new();
    BufReader::new(echo.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "listens\n");

    let mut forward = spawn(&platform, &["port-forward", "demo/web", ":7000", ":8080", ":7999", "-o", "json"]);
    let mut line = String::new();
    BufReader::new(forward.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    let local = |at: usize| told["forwards"][at]["local"].as_str().unwrap().parse::<SocketAddr>().unwrap();
    assert_eq!((told["forwards"][1]["remote"].as_u64(), local(1).ip().is_loopback()), (Some(8080), true));

    // Many at once, each with bytes of its own, more than any buffer on the way holds; the end of one direction is told.
    let (port, count) = (local(0), 16_u32);
    let all: Vec<_> = (0..count)
        .map(|at| {
            let bytes: Vec<u8> = (0..500_000_u32).map(|it| (it.wrapping_mul(7).wrapping_add(at) % 251) as u8).collect();
            std::thread::spawn(move || (there_and_back(port, &bytes), bytes))
        })
        .collect();
    for one in all {
        let (back, mut sent) = one.join().unwrap();
        sent.extend_from_slice(b"end\n");
        assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    }

    let mut web = connect(local(1));
    web.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    web.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer:?}");

    // Where nothing listens the connection ends, the reason is told, and the others go on.
    let mut nothing = connect(local(2));
    let ended = nothing.read(&mut [0; 16]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let mut told = BufReader::new(forward.0.stderr.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains("nothing listens on port 7999") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "it ended before it told why");
    }
    assert_eq!(there_and_back(port, b"still"), b"stillend\n");

    let _ = Command::new("kill").args(["-INT", &forward.0.id().to_string()]).status();
    let status = until("it ends when it is interrupted", 60, || forward.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));

    let missing = platform.arco(&["port-forward", "demo/none", "80"]);
    assert_eq!(missing.status, 5, "{missing:?}");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("{}:80", held.local_addr().unwrap().port());
    let refused = platform.arco(&["port-forward", "demo/web", &taken]);
    assert!(refused.status == 2 && refused.stderr.contains("cannot be listened on"), "{refused:?}");

    drop(echo);
    good(&platform, &["delete", "demo", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}
