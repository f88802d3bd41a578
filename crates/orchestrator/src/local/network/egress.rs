//! Which single private addresses the machine's own package clients are configured to use: builds may reach those.
//!
//! Only the platform's own environment counts, never a user's variables. Loopback addresses cannot be reached from a
//! namespace and are left out.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};

/// Variables that name a proxy or mirror.
const VARIABLES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
    "GOPROXY",
    "UV_INDEX_URL",
];

/// Host and port of every URL in the variables.
fn named(variables: impl Iterator<Item = (String, String)>) -> BTreeSet<(String, u16)> {
    let mut found = BTreeSet::new();
    for (name, value) in variables {
        if !VARIABLES.iter().any(|it| it.eq_ignore_ascii_case(&name)) {
            continue;
        }
        for url in value.split([',', '|', ' ']) {
            let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
            let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
            let place = authority.rsplit('@').next().unwrap_or("");
            let (host, port) = match place.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().ok()),
                None => (place, Some(if scheme == "https" { 443 } else { 80 })),
            };
            if let Some(port) = port.filter(|_| host.contains('.')) {
                found.insert((host.to_owned(), port));
            }
        }
    }
    found
}

/// The addresses that the environment's proxies and mirrors have now. Asks the resolver: call it off the runtime.
pub fn detect() -> Vec<SocketAddrV4> {
    let resolve =
        |(host, port): (String, u16)| (host.as_str(), port).to_socket_addrs().into_iter().flatten().collect::<Vec<_>>();
    let mut found = BTreeSet::new();
    // What is not text names neither.
    let texts = std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
    for address in named(texts).into_iter().flat_map(resolve) {
        if let SocketAddr::V4(it) = address
            && !it.ip().is_loopback()
        {
            found.insert(it);
        }
    }
    found.into_iter().collect()
}

/// The machine's own name servers that are not on its loopback.
pub fn resolvers() -> Vec<Ipv4Addr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|it| it.trim().strip_prefix("nameserver"));
    servers.filter_map(|it| it.trim().parse().ok()).filter(|it: &Ipv4Addr| !it.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_and_mirrors_of_the_environment_are_found() {
        let variables = [
            ("https_proxy", "http://user:secret@10.0.0.5:3128"),
            ("PIP_INDEX_URL", "https://mirror.example.com/simple"),
            ("GOPROXY", "https://go.example.com|direct"),
            ("OTHER", "http://10.0.0.9:1"),
            ("HTTP_PROXY", "localhost:8080"),
        ];
        let found = named(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        let expected = [("10.0.0.5", 3128), ("go.example.com", 443), ("mirror.example.com", 443)];
        assert_eq!(found, expected.into_iter().map(|(host, port)| (host.to_owned(), port)).collect());
    }
}
