//! Ports of the gateway that lead to components of a whole platform without HTTP.

use crate::behave::{EXECUTABLE, good};
use arco_testkit::servers::free_ports;
use arco_testkit::{Options, Platform, until};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

pub(crate) const DOCKERFILE: &str = "FROM debian:12\nCOPY echo.pl /echo.pl\nCMD [\"perl\", \"/echo.pl\"]\n";
/// Gives back what it gets, with its name, over TCP and UDP.
pub(crate) const PROGRAM: &str = r#"use strict; use IO::Socket::INET;
my $name = $ENV{ARCO_COMPONENT};
if (!fork) {
  my $socket = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 9001, Proto => 'udp') or die "udp: $!";
  while (my $from = $socket->recv(my $data, 65536)) { $socket->send("$name $data", 0, $from) }
  exit 1;
}
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 9000, Listen => 128, ReuseAddr => 1) or die "tcp: $!";
for (;;) {
  my $client = $server->accept or next;
  if (!fork) { while (sysread($client, my $data, 8192)) { syswrite($client, "$name $data") } exit 0 }
  close $client;
}
"#;

/// Says `z` to a port of the machine that an instance runs on, and prints the answer.
const FROM_INSIDE: &str = r#"use strict; use IO::Socket::INET;
open my $routes, '<', '/proc/net/route' or die "routes: $!";
my ($way) = map { (split)[2] } grep { (split)[1] eq '00000000' } <$routes>;
my $gateway = join '.', reverse map { hex } $way =~ /../g;
my $socket = IO::Socket::INET->new(PeerAddr => $gateway, PeerPort => $ARGV[0], Timeout => 5) or die "connect $gateway: $!";
syswrite($socket, 'z'); sysread($socket, my $answer, 100) or die "read: $!"; print $answer;
"#;

pub(crate) fn said(port: u16, word: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(word.as_bytes())?;
    let mut answer = vec![0; 100];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn said_by_udp(port: u16, word: &str) -> std::io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(word.as_bytes(), (Ipv4Addr::LOCALHOST, port))?;
    let mut answer = vec![0; 100];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn port_of(document: &serde_json::Value) -> u16 {
    u16::try_from(document["port"].as_u64().unwrap()).unwrap()
}

#[test]
fn tcp_and_udp_ports_lead_to_components() {
    if !arco_testkit::is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let first = free_ports(3);
    let env = vec![
        ("ARCO_GATEWAY__STREAM_LISTEN", "0.0.0.0".to_owned()),
        ("ARCO_GATEWAY__STREAM_PORTS", format!("{first}-{}", first + 2)),
    ];
    let mut platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });
    let source = platform.folder("echo", &[("Dockerfile", DOCKERFILE), ("echo.pl", PROGRAM)]);
    for component in ["db", "other"] {
        let words = ["deploy", source.to_str().unwrap(), "--app", "shop", "--component", component];
        good(&platform, &[&words[..], &["--port", "9000/tcp", "--port", "9001/udp"]].concat());
    }

    // A free port of the pool; the same one when asked for again; another one by its number.
    let one = good(&platform, &["route", "add", "shop/db", "--tcp"]);
    assert_eq!((port_of(&one), &one["target_port"]), (first, &serde_json::json!(9000)));
    assert_eq!(until("an answer by TCP", 60, || said(first, "a").ok()), "db a");
    assert_eq!(good(&platform, &["route", "add", "shop/db", "--tcp"])["id"], one["id"]);
    good(&platform, &["route", "add", "shop/db", "--tcp", &(first + 1).to_string()]);
    assert_eq!(until("an answer of the second port", 60, || said(first + 1, "b").ok()), "db b");

    // No port leads to two, none beyond the pool, none that another program has.
    let refused = |words: &[&str], status: i32, code: &str| {
        let outcome = platform.arco(&[&["route", "add", "shop/other"], words, &["-o", "json"]].concat());
        assert!(outcome.status == status && outcome.stdout.contains(code), "{words:?}: {outcome:?}");
    };
    refused(&["--tcp", &first.to_string()], 6, "port_taken");
    refused(&["--tcp", "80"], 2, "port_not_in_pool");
    refused(&["--tcp", "--port", "9001"], 2, "port_not_routable");
    let held = TcpListener::bind((Ipv4Addr::LOCALHOST, first + 2)).unwrap();
    refused(&["--tcp", &(first + 2).to_string()], 6, "port_busy");
    refused(&["--tcp"], 6, "ports_exhausted");
    drop(held);
    // A program that another test starts in this moment has it for as long as its start takes.
    let again = until("the port is nobody's", 60, || {
        let outcome = platform.arco(&["route", "add", "shop/other", "--tcp", "-o", "json"]);
        assert!(outcome.status == 0 || outcome.stdout.contains("ports_exhausted"), "{outcome:?}");
        (outcome.status == 0).then(|| serde_json::from_str(&outcome.stdout).unwrap())
    });
    assert_eq!(port_of(&again), first + 2);
    assert_eq!(until("an answer of the other component", 60, || said(first + 2, "c").ok()), "other c");

    // Instances reach it by the gateway's address, as they reach its HTTP ports; other ports of the machine they do not.
    let from_inside = |port: u16| {
        let outcome = platform.arco(&["exec", "shop/other", "--", "perl", "-e", FROM_INSIDE, &port.to_string()]);
        (outcome.status == 0).then_some(outcome.stdout)
    };
    assert_eq!(until("an answer to an instance", 30, || from_inside(first)), "db z");
    let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    assert_eq!(from_inside(other.local_addr().unwrap().port()), None);
    drop(other);

    // Datagrams have ports of their own.
    let udp = port_of(&good(&platform, &["route", "add", "shop/db", "--udp"]));
    assert_eq!(until("an answer by UDP", 60, || said_by_udp(udp, "d").ok()), "db d");
    let listed = good(&platform, &["route", "list", "shop/db"]);
    let streams: Vec<_> = listed["items"].as_array().unwrap().iter().filter(|it| it["protocol"].is_string()).collect();
    assert_eq!(streams.len(), 3, "{listed}");
    assert!(streams.iter().all(|it| it["problem"] == ""), "{listed}");

    // A connection outlives the server; ports are there while it is gone, and after it came back.
    let mut open = TcpStream::connect((Ipv4Addr::LOCALHOST, first)).unwrap();
    platform.kill();
    assert_eq!(said(first, "e").unwrap(), "db e");
    assert_eq!(until("an answer by UDP", 60, || said_by_udp(udp, "f").ok()), "db f");
    platform.boot();
    open.write_all(b"g").unwrap();
    let mut answer = [0; 4];
    open.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"db g");
    drop(open);

    // Taken away one by one, and with the component.
    good(&platform, &["route", "delete", "shop/db", "--tcp", &first.to_string()]);
    let closed = |port: u16| TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).err();
    until("the port is closed", 60, || closed(first));
    assert_eq!(said(first + 1, "h").unwrap(), "db h");

    // A file says all of them, and what it leaves out goes.
    let ports = "[{port: 9000, protocol: tcp}, {port: 9001, protocol: udp}]";
    let streams = format!("[{{protocol: tcp, port: {first}}}, {{protocol: tcp, port: {}}}]", first + 1);
    let routes = "[{hosts: [db.test], answer: {status: 200, body: fixed}}]";
    let text = format!(
        "application: shop\ncomponents:\n  db: {{source: {}, ports: {ports}, streams: {streams}, routes: {routes}}}\n",
        source.display()
    );
    let file = platform.folder("file", &[("arco.yaml", &text)]).join("arco.yaml");
    let apply = ["apply", "-f", file.to_str().unwrap()];
    let changes = |document: &serde_json::Value| {
        let fields = document["changes"].as_array().unwrap().iter().map(|it| it["field"].as_str().unwrap().to_owned());
        fields.filter(|it| it.contains('[')).collect::<Vec<_>>()
    };
    let expected =
        ["routes[db.test prefix /]".to_owned(), format!("streams[tcp {first}]"), format!("streams[udp {udp}]")];
    assert_eq!(changes(&good(&platform, &[&apply[..], &["--dry-run"]].concat())), expected);
    assert_eq!(changes(&good(&platform, &apply)), expected);
    assert_eq!(until("the port of the file", 60, || said(first, "i").ok()), "db i");
    assert_eq!(changes(&good(&platform, &apply)), Vec::<String>::new(), "nothing is left to do");
    let told = platform.arco(&apply);
    assert!(told.status == 0 && told.stdout.contains("shop/db is running (revision "), "{told:?}");
    let listed = good(&platform, &["route", "list", "shop/db"]);
    assert!(listed["items"].as_array().unwrap().iter().any(|it| it["host"] == "db.test"), "{listed}");
    assert!(!listed["items"].as_array().unwrap().iter().any(|it| it["protocol"] == "udp"), "{listed}");

    good(&platform, &["delete", "shop", "--yes"]);
    for port in [first + 1, first + 2] {
        until("the port is closed with its component", 60, || closed(port));
    }
    assert!(platform.stop(), "the server stops by itself");
}
