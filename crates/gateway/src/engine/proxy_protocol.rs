//! The PROXY protocol, versions 1 and 2: who connected to the proxy before us, and who connected to us.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1.
const MAX_LINE: usize = 107;
/// Longest addresses and extensions of version 2 that are read.
const MAX_BLOCK: usize = 4096;

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads exactly one header. `None` when it names nobody (a check of the proxy itself).
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<SocketAddr>> {
    let mut start = [0u8; 12];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        let mut head = [0u8; 4];
        stream.read_exact(&mut head).await?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if head[0] >> 4 != 2 || length > MAX_BLOCK {
            return Err(broken("the PROXY header has an unknown version or is too long"));
        }
        let mut block = vec![0u8; length];
        stream.read_exact(&mut block).await?;
        return version_2(head[0] & 15, head[1], &block);
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\n") {
        if line.len() >= MAX_LINE {
            return Err(broken("the connection does not begin with a PROXY header"));
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line)
}

fn version_1(line: &[u8]) -> io::Result<Option<SocketAddr>> {
    let text = std::str::from_utf8(line).ok().and_then(|it| it.strip_suffix("\r\n"));
    let parts: Vec<&str> = text.unwrap_or_default().split(' ').collect();
    match parts[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, _, port, _] => {
            let address: Option<IpAddr> = source.parse().ok().filter(|it: &IpAddr| it.is_ipv4() == (family == "TCP4"));
            let address = address.zip(port.parse::<u16>().ok()).map(SocketAddr::from);
            address.map(Some).ok_or_else(|| broken("the PROXY header has a malformed address"))
        }
        _ => Err(broken("the connection does not begin with a PROXY header")),
    }
}

fn version_2(command: u8, family: u8, block: &[u8]) -> io::Result<Option<SocketAddr>> {
    if command == 0 {
        return Ok(None);
    }
    let short = || broken("the PROXY header is too short");
    let port = |at: usize| block.get(at..at + 2).map(|it| u16::from_be_bytes([it[0], it[1]])).ok_or_else(short);
    match (command, family) {
        (1, 0x11) => {
            let octets: [u8; 4] = block.get(..4).and_then(|it| it.try_into().ok()).ok_or_else(short)?;
            Ok(Some((Ipv4Addr::from(octets), port(8)?).into()))
        }
        (1, 0x21) => {
            let octets: [u8; 16] = block.get(..16).and_then(|it| it.try_into().ok()).ok_or_else(short)?;
            Ok(Some((Ipv6Addr::from(octets), port(32)?).into()))
        }
        (1, _) => Ok(None),
        _ => Err(broken("the PROXY header has an unknown command")),
    }
}

/// The header that tells an endpoint who connected to us, and where.
pub(super) fn write(version: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let canonical = |it: SocketAddr| SocketAddr::new(it.ip().to_canonical(), it.port());
    let (source, destination) = (canonical(source), canonical(destination));
    let ports = (source.port(), destination.port());
    if version == 1 {
        let (from, to) = (source.ip(), destination.ip());
        return match (from, to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                format!("PROXY TCP4 {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
            }
            (IpAddr::V6(_), IpAddr::V6(_)) => {
                format!("PROXY TCP6 {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
            }
            _ => b"PROXY UNKNOWN\r\n".to_vec(),
        };
    }
    let mut out = SIGNATURE.to_vec();
    let (family, addresses) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
        (IpAddr::V6(from), IpAddr::V6(to)) => (0x21, [from.octets(), to.octets()].concat()),
        _ => {
            out.extend([0x21, 0, 0, 0]);
            return out;
        }
    };
    out.extend([0x21, family]);
    out.extend((addresses.len() as u16 + 4).to_be_bytes());
    out.extend(addresses);
    out.extend(ports.0.to_be_bytes());
    out.extend(ports.1.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_nothing_more() {
        for (source, destination) in [("192.0.2.1:5", "192.0.2.2:80"), ("[2001:db8::1]:5", "[2001:db8::2]:80")] {
            for version in [1, 2] {
                let bytes = [write(version, source.parse().unwrap(), destination.parse().unwrap()), b"rest".to_vec()];
                let bytes = bytes.concat();
                let mut left = bytes.as_slice();
                assert_eq!(read(&mut left).await.unwrap(), Some(source.parse().unwrap()));
                assert_eq!(left, b"rest");
            }
        }
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(read(&mut local.as_slice()).await.unwrap(), None);
        assert_eq!(read(&mut &b"PROXY UNKNOWN\r\n"[..]).await.unwrap(), None);
        for bad in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n"[..],
            b"PROXY TCP4 2001:db8::1 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.1 99999 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.1 1 2\n",
            &[&SIGNATURE[..], &[0x21, 0x11, 0, 2, 1, 1]].concat(),
            &[&SIGNATURE[..], &[0x11, 0x11, 0, 0]].concat(),
            &[&SIGNATURE[..], &[0x21, 0x11, 255, 255]].concat(),
        ] {
            assert!(read(&mut &bad[..]).await.is_err(), "{bad:?}");
        }
    }
}
