//! Which addresses a server uses: the asked pool, the one it had, or the first free one. Pure but for two readers.

use super::NetworkError;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// A line of the route table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// Interface.
    pub device: String,
    /// Where it leads to; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
}

/// Longest prefix that a pool may have: 64 addresses, half for instances, half for components.
const LONGEST_PREFIX: u8 = 26;

/// How long another server may take to choose its pool and to make its bridge, also on a machine that is very busy.
pub(super) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Decides the pool. `foreign` are the routes that are not ours.
pub fn choose(asked: Option<Ipv4Net>, kept: Option<Ipv4Net>, foreign: &[Ipv4Net]) -> Result<Ipv4Net, NetworkError> {
    let overlaps = |pool: &Ipv4Net| {
        let hit = |it: &&Ipv4Net| it.prefix_len() > 0 && (it.contains(pool) || pool.contains(*it));
        foreign.iter().find(hit).copied()
    };
    if let Some(pool) = asked {
        let pool = pool.trunc();
        if pool.prefix_len() > LONGEST_PREFIX || pool.prefix_len() < 8 {
            let why = format!(
                "`network.pool` {pool} does not serve: give a range from /8 to /{LONGEST_PREFIX}, as 10.64.0.0/20"
            );
            return Err(NetworkError::Pool(why));
        }
        return match overlaps(&pool) {
            Some(route) => Err(NetworkError::Pool(format!(
                "`network.pool` {pool} overlaps {route}, which this machine routes elsewhere"
            ))),
            None => Ok(pool),
        };
    }
    if let Some(kept) = kept.filter(|it| overlaps(it).is_none()) {
        return Ok(kept);
    }
    let range = Ipv4Net::new_assert(Ipv4Addr::new(10, 64, 0, 0), 10);
    let free = range.subnets(20).into_iter().flatten().find(|it| overlaps(it).is_none());
    free.ok_or_else(|| {
        NetworkError::Pool(
            "10.64.0.0/10 is routed elsewhere: set `network.pool` to a private range that is free".to_owned(),
        )
    })
}

/// Held while a pool is chosen and its bridge is made: two servers that start at once must not take the same range.
pub(super) struct Turn {
    _socket: Option<std::os::unix::net::UnixListener>,
}

/// Waits for the turn. An abstract socket is of one network namespace, as routes are, and ends with its process; whoever
/// holds it longer than `patience` is not waited for, so that nobody can keep servers from starting.
pub(super) async fn turn(patience: std::time::Duration) -> Turn {
    use std::os::linux::net::SocketAddrExt as _;
    let end = tokio::time::Instant::now() + patience;
    loop {
        let bound = std::os::unix::net::SocketAddr::from_abstract_name("arco-network-pool")
            .and_then(|it| std::os::unix::net::UnixListener::bind_addr(&it));
        match bound {
            Ok(socket) => return Turn { _socket: Some(socket) },
            Err(error) if tokio::time::Instant::now() >= end => {
                tracing::warn!(%error, "another server seems to choose its address range all the time; going on beside it");
                return Turn { _socket: None };
            }
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

/// The machine's IPv4 routes.
pub fn routes() -> std::io::Result<Vec<Route>> {
    // The calling thread's namespace counts: /proc/net is that of the process' first thread.
    Ok(parse_routes(&std::fs::read_to_string("/proc/thread-self/net/route")?))
}

fn parse_routes(text: &str) -> Vec<Route> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|it| Ipv4Addr::from(it.swap_bytes()));
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (device, to, mask) = (fields.first()?, address(fields.get(1)?)?, address(fields.get(7)?)?);
        Some(Route { device: (*device).to_owned(), destination: Ipv4Net::with_netmask(to, mask).ok()? })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// MTU of the link that the default route uses; 1500 without one.
pub fn default_mtu(routes: &[Route]) -> u32 {
    let default = routes.iter().find(|it| it.destination.prefix_len() == 0);
    let read =
        |it: &Route| std::fs::read_to_string(format!("/sys/class/net/{}/mtu", it.device)).ok()?.trim().parse().ok();
    default.and_then(read).filter(|it| (576..=9000).contains(it)).unwrap_or(1500)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn the_pool_is_the_asked_the_kept_or_the_first_free_one() {
        let foreign = [net("0.0.0.0/0"), net("10.64.0.0/20"), net("192.168.0.0/16")];
        assert_eq!(choose(None, None, &foreign).unwrap(), net("10.64.16.0/20"));
        assert_eq!(choose(None, Some(net("10.64.32.0/20")), &foreign).unwrap(), net("10.64.32.0/20"));
        assert_eq!(choose(None, Some(net("10.64.0.0/20")), &foreign).unwrap(), net("10.64.16.0/20"));
        assert_eq!(
            choose(Some(net("172.20.0.9/24")), Some(net("10.64.32.0/20")), &foreign).unwrap(),
            net("172.20.0.0/24")
        );
        assert!(
            choose(Some(net("192.168.5.0/24")), None, &foreign).unwrap_err().to_string().contains("192.168.0.0/16")
        );
        assert!(choose(Some(net("10.1.0.0/28")), None, &foreign).is_err());
        assert!(choose(None, None, &[net("10.0.0.0/8")]).is_err());
    }

    #[test]
    fn the_route_table_is_read() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let routes = parse_routes(text);
        assert_eq!(routes[0].destination, net("0.0.0.0/0"));
        assert_eq!(routes[1], Route { device: "eth0".to_owned(), destination: net("192.0.2.0/24") });
    }
}
