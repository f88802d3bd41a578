//! The addresses of this machine, followed as they come and go: what is bound to one of them is served only while it is
//! here.
//!
//! What must hold: a message of the kernel only says *look*; every look reads all addresses anew. When the kernel does not
//! tell them, every address counts as here, and binding it decides.

use arco_daemon::{BoxError, OnExit, Supervisor};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Messages about links, IPv4 and IPv6 addresses (`RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`).
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Pause before the kernel is asked again after it refused.
const PAUSE: Duration = Duration::from_secs(2);

/// What is known of this machine's addresses; cheap to clone.
#[derive(Clone, Debug)]
pub struct Addresses(watch::Receiver<Option<Arc<BTreeSet<IpAddr>>>>);

impl Addresses {
    /// Follows them until the supervisor stops. Those of interfaces named in `ignored` do not count; a name that ends in
    /// `*` stands for all that begin so.
    pub fn follow(supervisor: &Supervisor, ignored: &[String]) -> Self {
        let (sender, receiver) = watch::channel(read(ignored).ok().map(Arc::new));
        let (token, ignored) = (supervisor.token().clone(), ignored.to_vec());
        supervisor.spawn("addresses", OnExit::Continue, async move {
            let follow = async {
                loop {
                    if let Err(error) = look(&sender, &ignored).await {
                        tracing::warn!(%error, "the kernel does not tell this machine's addresses, it is asked again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            tokio::select! {
                () = token.cancelled() => {}
                () = follow => {}
            }
            Ok(())
        });
        Self(receiver)
    }

    /// These and no others.
    pub fn fixed(addresses: &[IpAddr]) -> Self {
        Self(watch::channel(Some(Arc::new(addresses.iter().copied().collect()))).1)
    }

    /// Whether something bound to `address` can be reached here.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_unspecified()
            || address.is_loopback()
            || self.0.borrow().as_ref().is_none_or(|it| it.contains(&address))
    }

    /// Whether this machine is known to have `address`.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.0.borrow().as_ref().is_some_and(|it| it.contains(&address.to_canonical()))
    }

    /// Returns when they have changed since the last call; never when nobody looks any more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads all addresses again after each change, until the kernel refuses something.
async fn look(sender: &watch::Sender<Option<Arc<BTreeSet<IpAddr>>>>, ignored: &[String]) -> Result<(), BoxError> {
    // Before the look: what changes after it rings.
    let bell = bell()?;
    loop {
        let found = read(ignored)?;
        sender.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&found);
            if changed {
                *known = Some(Arc::new(found));
            }
            changed
        });
        let mut rung = bell.readable().await?;
        // All that is there already is one change. What was too much for the socket's buffer is a change as well.
        let mut message = [0; 4096];
        loop {
            match nix::sys::socket::recv(bell.get_ref().as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(1..) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Ok(0) => return Err("the kernel closed its messages".into()),
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        rung.clear_ready();
    }
}

/// A socket that the kernel writes to when links or addresses change (rtnetlink(7)).
fn bell() -> Result<AsyncFd<OwnedFd>, BoxError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    // SAFETY: the descriptor is owned by what watches it, and is always the same one.
    let watched = unsafe { AsyncFd::register_with_interest(socket, tokio::io::Interest::READABLE) };
    Ok(watched.map_err(|it| it.to_string())?)
}

/// The addresses of every interface that is not ignored.
fn read(ignored: &[String]) -> nix::Result<BTreeSet<IpAddr>> {
    let ours = interfaces()?.into_iter().filter(|it| !is_ignored(&it.0, ignored));
    Ok(ours.map(|it| it.1).collect())
}

/// Every interface with each of its addresses.
pub fn interfaces() -> nix::Result<Vec<(String, IpAddr)>> {
    let address = |it: nix::ifaddrs::InterfaceAddress| {
        let address = it.address?;
        let four = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        let any = four.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())));
        Some((it.interface_name, any?))
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(address).collect())
}

/// Whether a list of ignored interfaces names this one.
pub fn is_ignored(name: &str, ignored: &[String]) -> bool {
    ignored.iter().any(|it| match it.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == it,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_ignored_by_name() {
        let ignored = ["docker0".to_owned(), "veth*".to_owned()];
        for (name, expected) in [("docker0", true), ("docker01", false), ("veth12", true), ("eth0", false), ("", false)]
        {
            assert_eq!(is_ignored(name, &ignored), expected, "{name}");
        }
    }

    #[test]
    fn what_is_bound_to_an_address_is_here_or_not() {
        let here = Addresses::fixed(&["192.0.2.1".parse().unwrap()]);
        for (address, expected) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.2", false),
            ("0.0.0.0", true),
            ("127.0.0.9", true),
            ("::", true),
        ] {
            assert_eq!(here.has(address.parse().unwrap()), expected, "{address}");
        }
    }
}
