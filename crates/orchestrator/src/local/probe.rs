//! Asks an instance whether it is ready, and reads from the kernel where its program listens.

mod tls;

use super::container::Containers;
use crate::ExecRequest;
use arco_model::id::InstanceId;
use arco_model::spec::{Port, Probe, Protocol};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// One attempt.
pub(super) async fn ask(
    probe: &Probe,
    ports: &[Port],
    address: Ipv4Addr,
    containers: &Containers,
    id: &InstanceId,
) -> bool {
    let first = ports.iter().find(|it| it.protocol != Protocol::Udp).map(|it| it.port);
    let attempt = async {
        match probe {
            Probe::Tcp { port } => match port.or(first) {
                Some(port) => TcpStream::connect((address, port)).await.is_ok(),
                None => true,
            },
            Probe::Http { path, port } => match port.or(first) {
                Some(port) => {
                    let over_tls = ports.iter().any(|it| it.port == port && it.protocol.is_over_tls());
                    get(address, port, path, over_tls).await.is_some_and(|it| (200..400).contains(&it))
                }
                None => false,
            },
            Probe::Exec { argv } => {
                let request = ExecRequest { argv: argv.clone(), terminal: None };
                match containers.exec(id, request).await {
                    Ok(session) => {
                        let (mut out, mut err) = (session.stdout, session.stderr);
                        let (mut one, mut two) = (tokio::io::sink(), tokio::io::sink());
                        let drain = async {
                            tokio::join!(tokio::io::copy(&mut out, &mut one), tokio::io::copy(&mut err, &mut two))
                        };
                        let (status, _) = tokio::join!(session.exit, drain);
                        status == Ok(0)
                    }
                    Err(_) => false,
                }
            }
        }
    };
    tokio::time::timeout(ATTEMPT, attempt).await.unwrap_or(false)
}

/// Status of a GET.
async fn get(address: Ipv4Addr, port: u16, path: &str, over_tls: bool) -> Option<u16> {
    let stream = TcpStream::connect((address, port)).await.ok()?;
    if over_tls {
        return get_on(tls::begin(stream, address).await?, address, port, path).await;
    }
    get_on(stream, address, port, path).await
}

async fn get_on<S>(stream: S, address: Ipv4Addr, port: u16, path: &str) -> Option<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let request =
        hyper::Request::get(path).header("host", format!("{address}:{port}")).header("user-agent", "arco-probe");
    let request = request.header("connection", "close").body(Empty::<bytes::Bytes>::new()).ok()?;
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        // A short page is read to its end so that the program does not see a reset.
        let _ = tokio::time::timeout(Duration::from_millis(100), response.into_body().collect()).await;
        Some(status)
    };
    tokio::pin!(exchange);
    tokio::select! {
        status = &mut exchange => status,
        // The answer may have come with the end.
        _ = connection => exchange.await,
    }
}

/// Where programs in the network namespace of a process listen.
pub(super) fn listens_on(pid: i32) -> Vec<SocketAddr> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let mut found: Vec<_> = parse(&read("tcp")).into_iter().chain(parse(&read("tcp6"))).collect();
    found.sort();
    found.dedup();
    found.truncate(16);
    found
}

fn parse(table: &str) -> Vec<SocketAddr> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        if state != "0A" {
            return None;
        }
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        // Words of 32 bits in the machine's byte order.
        let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
        let ip = match address.len() {
            8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
            _ => {
                let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
                let ip = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
                ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
            }
        };
        Some(SocketAddr::new(ip, port))
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn an_instance_that_speaks_tls_is_asked_over_it() {
        let made = rcgen::generate_simple_self_signed(vec!["inner.test".to_owned()]).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Whoever does not speak TLS gets an alert.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
                stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await.unwrap();
                let _ = stream.shutdown().await;
            }
        });
        assert_eq!(get(Ipv4Addr::LOCALHOST, port, "/healthz", true).await, Some(204));
        assert_eq!(get(Ipv4Addr::LOCALHOST, port, "/healthz", false).await, None);
    }

    #[test]
    fn listening_sockets_are_read_from_the_kernels_tables() {
        let text = "  sl  local_address rem_address   st\n\
             0: 0100007F:0BB8 00000000:0000 0A 0 0\n\
             1: 0200400A:0050 0300400A:D431 01 0 0\n";
        assert_eq!(parse(text), ["127.0.0.1:3000".parse().unwrap()]);
        let text = "  sl  local_address rem_address st\n   0: 00000000000000000000000001000000:1F90 0:0 0A\n";
        assert_eq!(parse(text), ["[::1]:8080".parse().unwrap()]);
    }
}
