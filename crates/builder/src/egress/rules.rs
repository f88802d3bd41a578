//! Which hosts and addresses a build reaches through the proxy, and what a request asks for. Pure.

use arco_config::PRIVATE_NETWORKS;
use base64::Engine as _;
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4};

/// One entry of `builder.allowed_hosts`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    suffix: bool,
    host: String,
    port: Option<u16>,
}

/// Reads `builder.allowed_hosts`.
pub(super) fn rules(entries: &[String]) -> Result<Vec<Rule>, String> {
    entries.iter().map(|it| rule(it)).collect()
}

fn rule(entry: &str) -> Result<Rule, String> {
    let bad = |why: &str| Err(format!("`builder.allowed_hosts` holds `{entry}`, {why}"));
    let text = entry.trim().to_ascii_lowercase();
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => return bad("whose port is no number"),
        },
        None => (text.as_str(), None),
    };
    let (suffix, host) = name.strip_prefix("*.").map_or((false, name), |it| (true, it));
    if host.is_empty() || !host.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'-' | b'_')) {
        return bad("which is not a host name: write `name`, `*.suffix` or `name:port`, without `https://` and path");
    }
    Ok(Rule { suffix, host: host.to_owned(), port })
}

/// Whether a host may be reached on a port.
pub(super) fn allows(rules: &[Rule], host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    rules.iter().any(|it| {
        let named = if it.suffix {
            host.strip_suffix(&it.host).is_some_and(|it| it.ends_with('.') && it.len() > 1)
        } else {
            host == it.host
        };
        named && it.port.map_or(port == 80 || port == 443, |it| it == port)
    })
}

/// The private addresses that builds may reach nevertheless.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exceptions {
    pub(crate) networks: Vec<Ipv4Net>,
    pub(crate) endpoints: Vec<SocketAddrV4>,
}

/// Whether an address may be reached: the same rule as that of the firewall for builds that reach out by themselves.
pub(super) fn reachable(address: &SocketAddr, exceptions: &Exceptions) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => {
            let private = PRIVATE_NETWORKS.iter().any(|it| it.parse::<Ipv4Net>().is_ok_and(|it| it.contains(&ip)));
            let loopback = ip.is_loopback() || ip.is_unspecified() || ip.is_link_local();
            let excepted = exceptions.networks.iter().any(|it| it.contains(&ip))
                || exceptions.endpoints.contains(&SocketAddrV4::new(ip, address.port()));
            !private || excepted && !loopback
        }
        // Global unicast without the ranges that embed or stand for IPv4 addresses.
        IpAddr::V6(ip) => {
            let within = |net: &str| net.parse::<IpNet>().is_ok_and(|it| it.contains(&IpAddr::V6(ip)));
            let embedding = ["2001::/32", "2002::/16"].iter().any(|it| within(it));
            within("2000::/3") && !embedding && ip != Ipv6Addr::UNSPECIFIED
        }
    }
}

/// What a client asks the proxy for.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Asked {
    pub(super) host: String,
    pub(super) port: u16,
    /// `None`: a tunnel. Otherwise the request as the server gets it, and how many bytes of body follow.
    pub(super) plain: Option<(Vec<u8>, u64)>,
    /// What the client says who it is: the password of basic authentication.
    pub(super) token: Option<String>,
}

/// Reads the head of a request.
pub(super) fn asked(head: &[u8]) -> Result<Asked, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err("it is not HTTP/1.1"),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let value = |name: &str| {
        let found = request.headers.iter().find(|it| it.name.eq_ignore_ascii_case(name));
        found.and_then(|it| std::str::from_utf8(it.value).ok())
    };
    let token = value("proxy-authorization").and_then(|it| it.strip_prefix("Basic ")).and_then(|it| {
        let text = base64::engine::general_purpose::STANDARD.decode(it.trim()).ok()?;
        String::from_utf8(text).ok()?.split_once(':').map(|it| it.1.to_owned())
    });
    if method == "CONNECT" {
        let (host, port) = target.rsplit_once(':').ok_or("its target has no port")?;
        let port = port.parse().map_err(|_| "its target has no port")?;
        return Ok(Asked { host: host.trim_matches(['[', ']']).to_owned(), port, plain: None, token });
    }
    let rest = target.strip_prefix("http://").ok_or("it is neither CONNECT nor for an http:// URL")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| "its port is no number")?),
        None => (authority, 80),
    };
    if value("transfer-encoding").is_some() {
        return Err("its body has no length");
    }
    let length = value("content-length").map_or(Ok(0), str::parse).map_err(|_| "its length is no number")?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut plain =
        format!("{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n").into_bytes();
    let dropped = ["host", "connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade"];
    for header in request.headers.iter().filter(|it| !dropped.iter().any(|name| it.name.eq_ignore_ascii_case(name))) {
        plain.extend_from_slice(header.name.as_bytes());
        plain.extend_from_slice(b": ");
        plain.extend_from_slice(header.value);
        plain.extend_from_slice(b"\r\n");
    }
    plain.extend_from_slice(b"\r\n");
    Ok(Asked { host: host.to_owned(), port, plain: Some((plain, length)), token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_allowed_by_name_and_port() {
        let rules =
            rules(&["a.example".into(), "*.b.example".into(), "c.example:22".into(), "Git.D.Example ".into()]).unwrap();
        for (host, port, expected) in [
            ("a.example", 443, true),
            ("A.Example.", 80, true),
            ("a.example", 22, false),
            ("x.a.example", 443, false),
            ("xa.example", 443, false),
            ("b.example", 443, false),
            ("x.b.example", 443, true),
            ("x.y.b.example", 443, true),
            (".b.example", 443, false),
            ("xb.example", 443, false),
            ("c.example", 22, true),
            ("c.example", 443, false),
            ("git.d.example", 443, true),
            ("", 443, false),
        ] {
            assert_eq!(allows(&rules, host, port), expected, "{host}:{port}");
        }
        for bad in ["https://a.example", "a.example/x", "", "*.", "a:b", "a b"] {
            assert!(super::rules(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_public_or_excepted() {
        let exceptions = Exceptions {
            networks: vec!["10.1.0.0/16".parse().unwrap(), "127.0.0.0/8".parse().unwrap()],
            endpoints: vec!["10.2.0.1:3128".parse().unwrap()],
        };
        for (address, expected) in [
            ("1.1.1.1:443", true),
            ("10.0.0.1:443", false),
            ("10.1.2.3:443", true),
            ("10.2.0.1:3128", true),
            ("10.2.0.1:443", false),
            ("127.0.0.1:443", false),
            ("169.254.169.254:80", false),
            ("100.64.0.1:443", false),
            ("[2606:4700::1]:443", true),
            ("[::1]:443", false),
            ("[::ffff:127.0.0.1]:443", false),
            ("[fd00::1]:443", false),
            ("[2002:7f00:1::]:443", false),
        ] {
            assert_eq!(reachable(&address.parse().unwrap(), &exceptions), expected, "{address}");
        }
    }

    #[test]
    fn requests_are_read() {
        let tunnel = asked(
            b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic YnVpbGQ6dG9r\r\n\r\n",
        )
        .unwrap();
        assert_eq!(tunnel, Asked { host: "a.example".into(), port: 443, plain: None, token: Some("tok".into()) });
        let plain = asked(b"GET http://a.example:8080/x?y HTTP/1.1\r\nHost: evil\r\nProxy-Connection: keep-alive\r\nAccept: */*\r\n\r\n").unwrap();
        let sent = "GET /x?y HTTP/1.1\r\nHost: a.example:8080\r\nConnection: close\r\nAccept: */*\r\n\r\n";
        assert_eq!((plain.host.as_str(), plain.port, plain.plain), ("a.example", 8080, Some((sent.into(), 0))));
        let root = asked(b"GET http://a.example?q HTTP/1.1\r\n\r\n").unwrap().plain.unwrap().0;
        assert!(root.starts_with(b"GET /?q HTTP/1.1\r\nHost: a.example\r\n"));
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT a HTTP/1.1\r\n\r\n",
            "hello\r\n\r\n",
            "POST http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(asked(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
