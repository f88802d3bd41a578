//! Finds the process that listens on a TCP address: `/proc/net/tcp{,6}` names the socket's inode, `/proc/*/fd` its owner.
//!
//! Best effort: without the right to look into other processes the answer is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of its program, at most 15 characters.
    pub name: String,
}

/// The process that keeps `address` from being bound.
pub fn holder(address: SocketAddr) -> Option<Holder> {
    let mut sockets = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        sockets.extend(listening(&std::fs::read_to_string(path).unwrap_or_default()));
    }
    let overlaps = |other: &SocketAddr| {
        let (ours, theirs) = (address.ip().to_canonical(), other.ip().to_canonical());
        other.port() == address.port() && (ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
    };
    let inodes: Vec<u64> = sockets.into_iter().filter(|(other, _)| overlaps(other)).map(|(_, inode)| inode).collect();
    inodes.into_iter().find_map(owner)
}

/// Addresses and inodes of the listening sockets in the format of `/proc/net/tcp` (proc_pid_net(5)): the second word
/// is `ADDRESS:PORT` in hex, the fourth the state (`0A`: listening), the tenth the inode.
fn listening(table: &str) -> Vec<(SocketAddr, u64)> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        if *words.get(3)? != "0A" {
            return None;
        }
        let (ip, port) = words.get(1)?.split_once(':')?;
        Some((SocketAddr::new(parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?), words.get(9)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The kernel prints each 32-bit word of an address in the machine's byte order.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for at in (0..hex.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|it| Ipv4Addr::from(it).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|it| Ipv6Addr::from(it).into()),
        _ => None,
    }
}

fn owner(inode: u64) -> Option<Holder> {
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|it| it.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = |it: std::fs::DirEntry| {
            std::fs::read_link(it.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        };
        if descriptors.flatten().any(holds) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n   \
                     1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0 0 10 0\n";
        assert_eq!(listening(table), vec![("127.0.0.1:8080".parse().unwrap(), 4242)]);
        assert_eq!(parse_ip("00000000000000000000000001000000"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = holder(listener.local_addr().unwrap()).unwrap();
        assert_eq!(found.pid, std::process::id());
    }
}
