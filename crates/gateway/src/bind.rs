//! Opens listening addresses: finds conflicts before sharing an address among cores, and says who holds it.
//!
//! What must hold: two gateways never share an address by accident. Each address is bound once without `SO_REUSEPORT`,
//! and a lock per address (an abstract socket, gone with the process, one name space per network namespace) is held. With
//! a holder ([`bind_kept`]), sockets and lock outlive this process.

use arco_daemon::handover::{Claim, Sockets};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixListener;

/// Connections that may wait for a core.
const BACKLOG: i32 = 4096;
/// A free port may be taken between finding and sharing it.
const PORT_ATTEMPTS: usize = 10;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}{holder}; {advice}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    cause: String,
    holder: String,
    advice: &'static str,
}

impl BindError {
    pub(crate) fn new(address: SocketAddr, error: &std::io::Error) -> Self {
        Self::of(&TCP, address, error)
    }

    fn of(table: &Table, address: SocketAddr, error: &std::io::Error) -> Self {
        let holder = if error.kind() == std::io::ErrorKind::AddrInUse { holder(table, address) } else { None };
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "stop it, or choose another address",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
            std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address",
            _ => "choose another address",
        };
        let holder = holder.map(|it| format!(" (held by {it})")).unwrap_or_default();
        Self { address, cause: error.to_string(), holder, advice }
    }
}

/// An address that is ours, with a listener for each core.
#[derive(Debug)]
pub struct Bound {
    /// The address as really bound.
    pub address: SocketAddr,
    /// One listener for each core, non-blocking.
    pub listeners: Vec<TcpListener>,
    /// Held as long as the address is ours.
    pub lock: AddressLock,
}

/// An address for datagrams that is ours, with a socket for each core.
#[derive(Debug)]
pub struct BoundUdp {
    /// The address as really bound.
    pub address: SocketAddr,
    /// One socket for each core, non-blocking.
    pub sockets: Vec<UdpSocket>,
    /// Held as long as the address is ours.
    pub lock: AddressLock,
}

/// Keeps other gateways of this machine from sharing an address.
#[derive(Debug)]
pub struct AddressLock {
    socket: UnixListener,
    /// Keeps sockets and lock beyond this process.
    _claim: Option<Claim>,
}

/// Binds `address` for `cores` cores. Port 0 picks a free port.
pub fn bind(address: SocketAddr, cores: usize) -> Result<Bound, BindError> {
    let fail = |error: std::io::Error| BindError::new(address, &error);
    let attempts = if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
    let mut last = None;
    for _ in 0..attempts {
        let exact = probe(address).map_err(fail)?;
        match share(exact, cores) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(fail(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

/// The same with sockets that outlive this process: takes what is kept under `name` if it is for `address`, else binds and
/// asks to keep it. What is kept may be for another number of cores.
pub fn bind_kept(sockets: &Sockets, name: &str, address: SocketAddr, cores: usize) -> Result<Bound, BindError> {
    let bound_to = |it: &OwnedFd| socket2::SockRef::from(it).local_addr().ok().and_then(|it| it.as_socket());
    let fits = |kept: &[OwnedFd]| {
        // The lock is the last one.
        kept.len() >= 2 && kept.first().and_then(bound_to).is_some_and(|it| answers(address, it))
    };
    if let Some((mut kept, claim)) = sockets.take(name, fits)
        && let Some(lock) = kept.pop()
        && let Some(address) = kept.first().and_then(bound_to)
    {
        let lock = AddressLock { socket: lock.into(), _claim: Some(claim) };
        return Ok(Bound { address, listeners: kept.into_iter().map(TcpListener::from).collect(), lock });
    }
    let mut bound = bind(address, cores)?;
    let mut all: Vec<BorrowedFd<'_>> = bound.listeners.iter().map(|it| it.as_fd()).collect();
    all.push(bound.lock.socket.as_fd());
    let claim = sockets.keep(name, &all);
    bound.lock._claim = Some(claim);
    Ok(bound)
}

/// The same as [`bind_kept`] for datagrams.
pub fn bind_udp_kept(sockets: &Sockets, name: &str, address: SocketAddr, cores: usize) -> Result<BoundUdp, BindError> {
    let bound_to = |it: &OwnedFd| socket2::SockRef::from(it).local_addr().ok().and_then(|it| it.as_socket());
    let fits =
        |kept: &[OwnedFd]| kept.len() >= 2 && kept.first().and_then(bound_to).is_some_and(|it| answers(address, it));
    if let Some((mut kept, claim)) = sockets.take(name, fits)
        && let Some(lock) = kept.pop()
        && let Some(address) = kept.first().and_then(bound_to)
    {
        let lock = AddressLock { socket: lock.into(), _claim: Some(claim) };
        return Ok(BoundUdp { address, sockets: kept.into_iter().map(UdpSocket::from).collect(), lock });
    }
    let mut bound = bind_udp(address, cores).map_err(|it| BindError::of(&UDP, address, &it))?;
    let mut all: Vec<BorrowedFd<'_>> = bound.sockets.iter().map(|it| it.as_fd()).collect();
    all.push(bound.lock.socket.as_fd());
    let claim = sockets.keep(name, &all);
    bound.lock._claim = Some(claim);
    Ok(bound)
}

fn bind_udp(address: SocketAddr, cores: usize) -> std::io::Result<BoundUdp> {
    let open = |address: SocketAddr, shared: bool| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        std::io::Result::Ok(socket)
    };
    // Alone first, so that whoever is there already is found.
    let alone = open(address, false)?.local_addr()?;
    let address = alone.as_socket().ok_or_else(|| std::io::Error::other("not an internet address"))?;
    let name = std::os::unix::net::SocketAddr::from_abstract_name(format!("arco-listen-udp-{address}"))?;
    let lock = AddressLock { socket: UnixListener::bind_addr(&name)?, _claim: None };
    let sockets = (0..cores.max(1)).map(|_| open(address, true).map(Into::into)).collect::<std::io::Result<_>>()?;
    Ok(BoundUdp { address, sockets, lock })
}

/// Whether a listener on `bound` is what was asked for with `asked`.
pub fn answers(asked: SocketAddr, bound: SocketAddr) -> bool {
    asked == bound || asked.port() == 0 && asked.ip() == bound.ip()
}

/// Binds alone, so that whoever is there already is found, and lets go again.
fn probe(address: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = open(address, false)?;
    socket.listen(1)?;
    socket.local_addr()?.as_socket().ok_or_else(|| std::io::Error::other("not an internet address"))
}

/// Fails when another program that listens on `address` would fail now; an IPv6 address is for IPv6 alone there.
pub(crate) fn check_free(address: SocketAddr) -> Result<(), BindError> {
    let free = || -> std::io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    free().map_err(|it| BindError::new(address, &it))
}

fn share(address: SocketAddr, cores: usize) -> std::io::Result<Bound> {
    let name = format!("arco-listen-{address}");
    let name = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let lock = AddressLock { socket: UnixListener::bind_addr(&name)?, _claim: None };
    let listeners = (0..cores.max(1))
        .map(|_| {
            let socket = open(address, true)?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect::<std::io::Result<Vec<TcpListener>>>()?;
    Ok(Bound { address, listeners, lock })
}

fn open(address: SocketAddr, shared: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Without it an address stays unusable for a minute after the last connection was closed.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The kernel's sockets of a protocol, and the state of those that take from anybody.
struct Table {
    files: [&'static str; 2],
    state: &'static str,
}

const TCP: Table = Table { files: ["/proc/net/tcp", "/proc/net/tcp6"], state: "0A" };
const UDP: Table = Table { files: ["/proc/net/udp", "/proc/net/udp6"], state: "07" };

/// Which process listens there, as `nginx (pid 1234)`; only what this user may see.
fn holder(table: &Table, address: SocketAddr) -> Option<String> {
    let inode = table.files.iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().skip(1).find_map(|line| listening_inode(line, table.state, address.port()))
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|it| it.parse::<u32>().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds =
            files.flatten().any(|it| std::fs::read_link(it.path()).is_ok_and(|it| it.as_os_str() == wanted.as_str()));
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// The inode of a socket on `port` in this state, in a line of `/proc/net/tcp` and the like.
fn listening_inode(line: &str, state: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
    let listening = *fields.get(3)? == state;
    (listening && local == port).then(|| fields.get(9)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_names_its_holder() {
        let any = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        assert_eq!(any.listeners.len(), 2);
        assert_ne!(any.address.port(), 0);
        // One that the kernel gives nobody else when it is let go of.
        let address = SocketAddr::from(([127, 0, 0, 1], arco_testkit::servers::free_port()));
        let first = bind(address, 2).unwrap();
        let error = bind(address, 1).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains(&format!("pid {}", std::process::id())) && error.contains("another address"), "{error}");
        drop(first);
        bind(address, 1).unwrap();
        let error = bind("192.0.2.1:80".parse().unwrap(), 1).unwrap_err().to_string();
        assert!(error.contains("no interface"), "{error}");
    }

    #[test]
    fn a_busy_udp_port_names_who_takes_datagrams_there() {
        let address = SocketAddr::from(([127, 0, 0, 1], arco_testkit::servers::free_port()));
        let taken = UdpSocket::bind(address).unwrap();
        let error = bind_udp_kept(&Sockets::alone(), "test", address, 1).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(taken);
        bind_udp_kept(&Sockets::alone(), "test", address, 1).unwrap();
    }
}
