//! A datagram with both its ends: who sent it, and which address of this machine it came to. What answers it leaves from
//! there: a client drops what comes from another address.
//!
//! What must hold: on a socket for all addresses the kernel chooses the address of an answer only where it did not say
//! which one was asked.

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::RawFd;

/// A client, and how it came here.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Peer {
    /// Its address.
    pub(super) client: SocketAddr,
    /// The address that it asked; unspecified where the socket has no other one.
    local: IpAddr,
    /// Where that address is, when other interfaces may have the same (link-local); else 0.
    interface: u32,
}

#[cfg(test)]
impl Peer {
    pub(super) fn of(client: SocketAddr) -> Self {
        Self { client, local: IpAddr::V4(Ipv4Addr::UNSPECIFIED), interface: 0 }
    }
}

/// Has the kernel say to which address each datagram came, on a socket that is for all of them.
pub(in crate::engine) fn prepare(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()? {
        it if !it.ip().is_unspecified() => {}
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        // Of IPv4 as well: its addresses are mapped ones here.
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Room for what [`receive`] is told beside the bytes.
pub(super) fn room() -> Vec<u8> {
    nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo)
}

/// Takes a datagram that is there already: its length, and who sent it.
pub(super) fn receive(socket: RawFd, bytes: &mut [u8], room: &mut [u8]) -> io::Result<(usize, Peer)> {
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<SockaddrStorage>(socket, &mut parts, Some(room), MsgFlags::MSG_DONTWAIT)?;
    let client = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    let told = message.cmsgs().ok().into_iter().flatten().find_map(|it| asked(&it));
    let (local, interface) = told.unwrap_or((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    Ok((message.bytes, Peer { client, local, interface }))
}

fn address(of: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = of.as_sockaddr_in().map(|it| SocketAddr::from(*it));
    v4.or_else(|| of.as_sockaddr_in6().map(|it| SocketAddr::from(*it)))
}

/// The address that was asked, and its interface where that matters.
fn asked(told: &ControlMessageOwned) -> Option<(IpAddr, u32)> {
    match told {
        // Of a broadcast this is the address that this machine has there.
        ControlMessageOwned::Ipv4PacketInfo(it) => {
            Some((Ipv4Addr::from(it.ipi_spec_dst.s_addr.to_ne_bytes()).into(), 0))
        }
        ControlMessageOwned::Ipv6PacketInfo(it) => {
            let address = Ipv6Addr::from(it.ipi6_addr.s6_addr);
            let interface = if address.is_unicast_link_local() { it.ipi6_ifindex } else { 0 };
            (!address.is_multicast()).then_some((address.into(), interface))
        }
        _ => None,
    }
}

/// Sends a datagram from the address that was asked; never waits.
pub(super) fn send(socket: RawFd, bytes: &[u8], to: &Peer) -> io::Result<usize> {
    match to.local {
        it if it.is_unspecified() => send_with(socket, bytes, to, &[]),
        IpAddr::V4(it) => {
            let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(it.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
            send_with(socket, bytes, to, &[ControlMessage::Ipv4PacketInfo(&info)])
        }
        IpAddr::V6(it) => {
            let ipi6_addr = libc::in6_addr { s6_addr: it.octets() };
            let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: to.interface };
            send_with(socket, bytes, to, &[ControlMessage::Ipv6PacketInfo(&info)])
        }
    }
}

fn send_with(socket: RawFd, bytes: &[u8], to: &Peer, told: &[ControlMessage<'_>]) -> io::Result<usize> {
    let client = SockaddrStorage::from(to.client);
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], told, MsgFlags::MSG_DONTWAIT, Some(&client))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::time::Duration;

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let patience = Some(Duration::from_secs(60));
        for (bound, asked, local) in [
            ("0.0.0.0:0", "127.0.0.2", "127.0.0.2"),
            ("127.0.0.3:0", "127.0.0.3", "0.0.0.0"),
            ("[::]:0", "127.0.0.2", "::ffff:127.0.0.2"),
            ("[::]:0", "::1", "::1"),
        ] {
            let socket = match UdpSocket::bind(bound) {
                Ok(socket) => socket,
                Err(error) => {
                    assert!(bound.starts_with('['), "{bound}: {error}");
                    eprintln!("SKIPPED: answers from {asked}: this machine has no IPv6: {error}");
                    continue;
                }
            };
            prepare(&socket).unwrap();
            let asked = SocketAddr::new(asked.parse().unwrap(), socket.local_addr().unwrap().port());
            let any = if asked.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = UdpSocket::bind(any).unwrap();
            // Takes nothing from another address.
            client.connect(asked).unwrap();
            let (mut bytes, mut room) = ([0; 100], room());
            for word in [&b"hello"[..], b""] {
                client.send(word).unwrap();
                socket.set_read_timeout(patience).unwrap();
                socket.peek_from(&mut bytes).unwrap();
                let (length, peer) = receive(socket.as_raw_fd(), &mut bytes, &mut room).unwrap();
                let from = (peer.client.ip().to_canonical(), peer.client.port());
                let is = client.local_addr().unwrap();
                assert_eq!((&bytes[..length], from), (word, (is.ip(), is.port())), "{bound}");
                assert_eq!(peer.local, local.parse::<IpAddr>().unwrap(), "{bound}");
                assert_eq!(send(socket.as_raw_fd(), word, &peer).unwrap(), word.len());
                client.set_read_timeout(patience).unwrap();
                let length = client.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[..length], word, "{bound}");
            }
        }
    }
}
