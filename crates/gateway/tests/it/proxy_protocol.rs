//! The PROXY protocol over the wire: bytes as its specification has them, and nginx as who writes and reads it.

use crate::kit::*;
use arco_testkit::Killed;
use arco_testkit::servers::free_port;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
/// Where Debian's `libnginx-mod-stream` puts it.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Version 2 for TCP over IPv4 from 192.0.2.9:4711 to 192.0.2.1:443, and a further field (`PP2_TYPE_NOOP`).
fn version_2() -> Vec<u8> {
    let addresses = [192, 0, 2, 9, 192, 0, 2, 1, 0x12, 0x67, 0x01, 0xbb];
    [SIGNATURE, &[0x21, 0x11, 0, 17], &addresses, &[4, 0, 2, 0, 0]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_stands_before_tls() {
    let (folder, client) = certified(&["a.test"]);
    let yaml = file(&[echo().await]).replace(
        "listeners: [",
        "listeners: [{name: p, address: \"127.0.0.1:0\", protocol: https, proxy_protocol: true}, ",
    ) + "certificates: [{hosts: [a.test], certificate_file: c.pem, key_file: c.key}]\ntrusted_proxies: [127.0.0.0/8]\n";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
    for (header, client) in [(version_2(), "192.0.2.9"), (local, "127.0.0.1")] {
        let mut stream = TcpStream::connect(gateway.addresses["p"]).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let mut tls = connector.connect("a.test".try_into().unwrap(), stream).await.unwrap();
        tls.write_all(GET.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Whoever closes without a word at the end has said everything before.
        let _ = tokio::time::timeout(PATIENCE, tls.read_to_end(&mut answer)).await.expect("an answer in time");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(&format!("x-real-ip: {client}\r\n")), "{answer}");
        assert!(answer.contains("x-forwarded-proto: https\r\n"), "{answer}");
    }
}

/// keepalived asks from the machine itself whether the gateway is well, and speaks for nobody: that is all it may do.
#[tokio::test(flavor = "multi_thread")]
async fn this_machine_may_ask_for_itself() {
    let yaml = file(&[echo().await]).replace(
        "listeners: [",
        "listeners: [{name: p, address: \"127.0.0.1:0\", protocol: http, proxy_protocol: true}, ",
    ) + "trusted_proxies: [192.0.2.0/24]\n";
    let gateway = Gateway::start(&yaml).await;
    let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
    let named = b"PROXY TCP4 192.0.2.9 192.0.2.1 1 80\r\n".to_vec();
    for (header, answered) in [
        (b"PROXY UNKNOWN\r\n".to_vec(), true),
        (local, true),
        (named, false),
        (version_2(), false),
        (Vec::new(), false),
    ] {
        let mut wire = Wire::connect(gateway.addresses["p"]).await;
        wire.send([&header[..], GET.as_bytes()].concat()).await;
        let answer = String::from_utf8(wire.rest().await).unwrap();
        assert_eq!(answer.contains("x-real-ip: 127.0.0.1\r\n"), answered, "{header:?}: {answer}");
        assert!(answered || answer.is_empty(), "{header:?}: {answer}");
    }
    let (plain, proxied) = (gateway.web(), gateway.addresses["p"]);
    let probing = tokio::task::spawn_blocking(move || {
        use arco_gateway::virtual_address::probe;
        [probe(plain, false), probe(proxied, true), probe(proxied, false)].map(|it| it.is_ok())
    });
    assert_eq!(probing.await.unwrap(), [true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_reads_version_2_as_it_is_specified() {
    let endpoint = origin(|mut wire| async move {
        let seen = wire.exactly(28).await.unwrap();
        wire.send(seen).await;
    })
    .await;
    let yaml = file(&[endpoint])
        .replace("listeners: [", "listeners: [{name: t, address: \"127.0.0.1:0\", protocol: tcp, upstream: a}, ")
        .replace("name: a, ", "name: a, proxy_protocol: 2, ");
    let gateway = Gateway::start(&yaml).await;
    let mut wire = Wire::connect(gateway.addresses["t"]).await;
    let ports = [wire.stream.local_addr().unwrap().port(), gateway.addresses["t"].port()];
    let ports: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
    let expected = [SIGNATURE, &[0x21, 0x11, 0, 12], &[127, 0, 0, 1, 127, 0, 0, 1], &ports[..]].concat();
    assert_eq!(wire.rest().await, expected);
}

/// An nginx of our own: it reads the protocol at `reads`, and writes it to `gateway` for whoever connects to `writes`.
fn nginx(folder: &Path, reads: SocketAddr, writes: SocketAddr, gateway: SocketAddr) -> Killed {
    let at = folder.display();
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = places.iter().map(|it| format!("{it}_temp_path {at}/{it}; ")).collect();
    let text = format!(
        "load_module {STREAM};\ndaemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log {at}/error.log;\n\
         events {{}}\n\
         http {{ access_log off; {places}\n\
         server {{ listen {reads} proxy_protocol;\n\
         location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port\"; }} }} }}\n\
         stream {{ server {{ listen {writes}; proxy_pass {gateway}; proxy_protocol on; }} }}\n"
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(path).args(["-e", &format!("{at}/error.log")]);
    Killed(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reads_what_is_written_and_writes_what_is_read() {
    if !Path::new(STREAM).exists() || Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        eprintln!(
            "SKIPPED: the PROXY protocol with nginx: it is not installed (`apt install nginx-light libnginx-mod-stream`)"
        );
        return;
    }
    let [reads, writes] = [free_port(), free_port()].map(|it| SocketAddr::from((Ipv4Addr::LOCALHOST, it)));
    let endpoints =
        |version: u8| format!("{{name: v{version}, endpoints: [\"{reads}\"], proxy_protocol: {version}}}, ");
    let listeners =
        |version: u8| format!("{{name: v{version}, address: \"127.0.0.1:0\", protocol: tcp, upstream: v{version}}}, ");
    let own = "{name: p, address: \"127.0.0.1:0\", protocol: http, proxy_protocol: true}, ";
    let yaml = file(&[echo().await])
        .replace("listeners: [", &format!("listeners: [{own}{}{}", listeners(1), listeners(2)))
        .replace("upstreams: [", &format!("upstreams: [{}{}", endpoints(1), endpoints(2)))
        + "trusted_proxies: [127.0.0.0/8]\n";
    let gateway = Gateway::start(&yaml).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let _nginx = nginx(folder.path(), reads, writes, gateway.addresses["p"]);
    for address in [reads, writes] {
        let log = folder.path().join("error.log");
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        eventually("nginx listens", || async {
            let there = TcpStream::connect(address).await.is_ok();
            assert!(there || !told().contains("[emerg]"), "{}", told());
            there
        })
        .await;
    }
    for version in ["v1", "v2"] {
        let listener = gateway.addresses[version];
        let mut wire = Wire::connect(listener).await;
        let port = wire.stream.local_addr().unwrap().port();
        let answer = wire.ask(GET).await;
        assert_eq!(answer.text(), format!("127.0.0.1 {port} {}", listener.port()), "{version}: {answer:?}");
    }
    let stream = tokio::net::TcpSocket::new_v4().unwrap();
    stream.bind("127.0.0.77:0".parse().unwrap()).unwrap();
    let mut wire = Wire::new(stream.connect(writes).await.unwrap());
    let seen = wire.ask(GET).await.text();
    assert!(seen.contains("x-real-ip: 127.0.0.77\r\n"), "{seen}");
}
