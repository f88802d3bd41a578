//! What proxies in front say about a request: who asked, how, and for which host. Pure.
//!
//! What must hold: only what a trusted proxy wrote is believed. Each one adds at the end, so everything is read from the end,
//! and never past the first address that is not a trusted proxy's: what stands before it, anybody may have written.
//!
//! `X-Forwarded-For` wins over `Forwarded` (RFC 7239), with all that goes with it: nearly every proxy writes the former, and
//! passes on unread whatever a client sends as the latter.

use http::HeaderMap;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const FORWARDED: &str = "forwarded";
const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";

/// What is believed of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    /// Who asked the first of the trusted proxies; the last address that is known, when they do not say.
    pub(crate) client: IpAddr,
    /// `http` or `https`: how it was asked.
    pub(crate) scheme: Option<&'static str>,
    /// The host that it was asked for.
    pub(crate) host: Option<String>,
    /// The way so far, as `X-Forwarded-For` has it, with the proxy that speaks to us.
    pub(crate) chain: String,
}

/// What the trusted proxy at `peer` says.
pub(crate) fn told(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Told {
    let way = Way { at: peer.to_canonical(), trusted };
    if headers.contains_key(FOR) || !headers.contains_key(FORWARDED) {
        way.by_fields(headers)
    } else {
        way.by_elements(headers)
    }
}

/// How far back it is known who asked.
struct Way<'a> {
    at: IpAddr,
    trusted: &'a [IpNet],
}

impl Way<'_> {
    fn is_trusted(&self) -> bool {
        self.trusted.iter().any(|it| it.contains(&self.at))
    }

    fn by_fields(mut self, headers: &HeaderMap) -> Told {
        let peer = self.at.to_string();
        let mut chain = list(headers, FOR);
        let mut hops = 0;
        for written in chain.iter().rev() {
            if !self.is_trusted() {
                break;
            }
            let Some(before) = node(written) else { break };
            self.at = before;
            hops += 1;
        }
        chain.push(&peer);
        let scheme = text_at(headers, PROTO, hops).and_then(scheme_of);
        let host = text_at(headers, HOST, hops).and_then(host_of);
        Told { client: self.at, scheme, host, chain: chain.join(", ") }
    }

    fn by_elements(mut self, headers: &HeaderMap) -> Told {
        let mut chain = vec![self.at.to_string()];
        let (mut scheme, mut host) = (None, None);
        let lines = headers.get_all(FORWARDED).iter().rev();
        for part in lines.flat_map(|it| parts_from_end(it.as_bytes())) {
            if !self.is_trusted() {
                break;
            }
            let Some(element) = part.and_then(Element::read) else { break };
            (scheme, host) = (element.proto.and_then(scheme_of), element.host.and_then(host_of));
            let Some(before) = element.node.and_then(node) else { break };
            self.at = before;
            chain.push(before.to_string());
        }
        chain.reverse();
        Told { client: self.at, scheme, host, chain: chain.join(", ") }
    }
}

/// All of a list that may stand in several fields; what is no visible ASCII is `unknown`.
fn list<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    let parts = headers.get_all(name).iter().flat_map(|it| it.as_bytes().split(|it| *it == b','));
    let parts = parts.map(<[u8]>::trim_ascii).filter(|it| !it.is_empty());
    parts.map(|it| visible(it).unwrap_or("unknown")).collect()
}

fn visible(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|it| it.bytes().all(|it| (b' '..127).contains(&it)))
}

/// What the proxy `hops` before us wrote into a list: who adds to one list adds to all; who sets a field has one text there.
fn text_at<'h>(headers: &'h HeaderMap, name: &str, hops: usize) -> Option<&'h str> {
    let list = list(headers, name);
    list.len().checked_sub(hops.max(1)).map_or(list.last(), |it| list.get(it)).copied()
}

/// The elements of a line of `Forwarded`, the last one first. What a client wrote stands before what proxies added, so no
/// quote that it left open takes anything away from these; `None` is what such a quote leaves.
fn parts_from_end(line: &[u8]) -> Vec<Option<&[u8]>> {
    let (mut parts, mut end, mut quoted) = (Vec::new(), line.len(), false);
    for at in (0..line.len()).rev() {
        match line[at] {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(Some(&line[at + 1..end]));
                end = at;
            }
            _ => {}
        }
    }
    parts.push((!quoted).then_some(&line[..end]));
    parts.retain(|it| it.is_none_or(|it| !it.trim_ascii().is_empty()));
    parts
}

/// What one proxy says (RFC 7239 §4).
#[derive(Debug, Default)]
struct Element<'t> {
    node: Option<&'t str>,
    proto: Option<&'t str>,
    host: Option<&'t str>,
}

impl<'t> Element<'t> {
    /// `None` when it is malformed, says a thing twice, or has escapes, which nothing that counts here needs.
    fn read(part: &'t [u8]) -> Option<Self> {
        let mut rest = visible(part.trim_ascii()).filter(|it| !it.contains('\\'))?;
        let mut element = Self::default();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(';').unwrap_or(after.len())),
            };
            rest = match after.trim_start() {
                "" => "",
                more => more.strip_prefix(';')?.trim_start(),
            };
            let place = match name.trim().to_ascii_lowercase().as_str() {
                "for" => &mut element.node,
                "proto" => &mut element.proto,
                "host" => &mut element.host,
                _ => continue,
            };
            if place.replace(value.trim()).is_some() {
                return None;
            }
        }
        Some(element)
    }
}

/// An address, with or without a port; `unknown` and names that hide one are none.
fn node(text: &str) -> Option<IpAddr> {
    let (address, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']')?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), rest)
        }
        None => match text.parse() {
            Ok(address) => (address, ""),
            Err(_) => {
                let at = text.find(':')?;
                (IpAddr::V4(text[..at].parse::<Ipv4Addr>().ok()?), &text[at..])
            }
        },
    };
    is_port(port).then(|| address.to_canonical())
}

/// Nothing, or `:` with a number or a name that hides one.
fn is_port(text: &str) -> bool {
    let Some(port) = text.strip_prefix(':') else { return text.is_empty() };
    match port.strip_prefix('_') {
        Some(hidden) => {
            !hidden.is_empty() && hidden.bytes().all(|it| it.is_ascii_alphanumeric() || b"._-".contains(&it))
        }
        None => (1..=5).contains(&port.len()) && port.bytes().all(|it| it.is_ascii_digit()),
    }
}

fn scheme_of(text: &str) -> Option<&'static str> {
    ["http", "https"].into_iter().find(|it| text.eq_ignore_ascii_case(it))
}

/// A host, with or without a port.
fn host_of(text: &str) -> Option<String> {
    let fine = text.len() <= 261 && !text.contains('@') && http::uri::Authority::try_from(text).is_ok();
    fine.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn tell(peer: &str, fields: &[(&'static str, &str)]) -> Told {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:aaaa::/48".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        told(&headers, peer.parse().unwrap(), &trusted)
    }

    #[test]
    fn addresses_count_up_to_the_first_that_is_not_trusted() {
        for (peer, lines, client, chain) in [
            ("10.0.0.1", &[][..], "10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1", "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1"], "1.1.1.1", "9.9.9.9, 1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1, 10.0.0.7"], "1.1.1.1", "9.9.9.9, 1.1.1.1, 10.0.0.7, 10.0.0.1"),
            ("::ffff:10.0.0.1", &["9.9.9.9", "2001:db8::1"], "2001:db8::1", "9.9.9.9, 2001:db8::1, 10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, nonsense"], "10.0.0.1", "1.1.1.1, nonsense, 10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1", "1.1.1.1:4711, 10.0.0.1"),
            (
                "10.0.0.1",
                &["[2001:db8::1]:80, ::ffff:10.0.0.2"],
                "2001:db8::1",
                "[2001:db8::1]:80, ::ffff:10.0.0.2, 10.0.0.1",
            ),
            // What is no text takes nothing away from what stands behind it.
            ("10.0.0.1", &["\u{fc},, 1.1.1.1"], "1.1.1.1", "unknown, 1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3,10.0.0.2"], "10.0.0.3", "10.0.0.3, 10.0.0.2, 10.0.0.1"),
        ] {
            let fields: Vec<_> = lines.iter().map(|it| ("x-forwarded-for", *it)).collect();
            let told = tell(peer, &fields);
            assert_eq!((told.client.to_string().as_str(), told.chain.as_str()), (client, chain), "{peer} {lines:?}");
        }
    }

    #[test]
    fn elements_count_up_to_the_first_that_is_not_trusted() {
        for (lines, client, scheme, host) in [
            (&["for=1.1.1.1"][..], "1.1.1.1", None, None),
            (&["For=1.1.1.1;Proto=HTTPS;Host=a.test:8443;by=10.0.0.1"], "1.1.1.1", Some("https"), Some("a.test:8443")),
            (&["for=\"1.1.1.1:80\" ; proto=\"http\""], "1.1.1.1", Some("http"), None),
            (&["for=\"[2001:db8::1]\""], "2001:db8::1", None, None),
            (&["for=\"[2001:db8::1]:_p\";host=\"a.test\""], "2001:db8::1", None, Some("a.test")),
            // The first trusted proxy says how it was asked; those behind it speak of the way between them.
            (
                &["for=1.1.1.1;proto=https;host=a.test, for=10.0.0.2;proto=http;host=in"],
                "1.1.1.1",
                Some("https"),
                Some("a.test"),
            ),
            (&["for=1.1.1.1;proto=https", "for=10.0.0.2;proto=http"], "1.1.1.1", Some("https"), None),
            (&["for=9.9.9.9;proto=https;host=evil, for=1.1.1.1;proto=http"], "1.1.1.1", Some("http"), None),
            // Who is hidden is not known; what is before that is not believed.
            (&["for=9.9.9.9, for=unknown;proto=https"], "10.0.0.1", Some("https"), None),
            (&["for=9.9.9.9, for=_secret"], "10.0.0.1", None, None),
            (&["for=9.9.9.9, proto=https"], "10.0.0.1", Some("https"), None),
            (&["for=9.9.9.9, for=_x, for=10.0.0.2"], "10.0.0.2", None, None),
            // A quote that is left open, a second word, escapes: nothing of it, and nothing before it.
            (&["for=\"9.9.9.9, for=1.1.1.1;proto=https"], "1.1.1.1", Some("https"), None),
            (&["x=\", for=\"[2001:db8::1]\";proto=https"], "2001:db8::1", Some("https"), None),
            (&["for=\"9.9.9.9, for=10.0.0.2"], "10.0.0.2", None, None),
            (&["for=9.9.9.9;for=8.8.8.8"], "10.0.0.1", None, None),
            (&["for=\"9.9.9\\.9\""], "10.0.0.1", None, None),
            (&["for=9.9.9.9 proto=https"], "10.0.0.1", None, None),
            (&["for=9.9.9.9;proto=\"https\"x"], "10.0.0.1", None, None),
            (&["for=9.9.9.9:123456"], "10.0.0.1", None, None),
            (&["for=[2001:db8::1"], "10.0.0.1", None, None),
            (&["for"], "10.0.0.1", None, None),
            (&["\u{fc}, for=1.1.1.1"], "1.1.1.1", None, None),
            (&[" , ,"], "10.0.0.1", None, None),
            // What is no scheme and no host is not passed on.
            (&["for=1.1.1.1;proto=gopher;host=\"a b\""], "1.1.1.1", None, None),
            (&["for=1.1.1.1;host=\"u@a.test\""], "1.1.1.1", None, None),
        ] {
            let fields: Vec<_> = lines.iter().map(|it| ("forwarded", *it)).collect();
            let told = tell("10.0.0.1", &fields);
            let seen = (told.client.to_string(), told.scheme, told.host.as_deref());
            assert_eq!(seen, (client.to_owned(), scheme, host), "{lines:?}");
        }
        let told = tell("2001:db8:aaaa::1", &[("forwarded", "for=9.9.9.9, for=1.1.1.1, for=10.0.0.2")]);
        assert_eq!(told.chain, "1.1.1.1, 10.0.0.2, 2001:db8:aaaa::1", "only what is believed");
    }

    #[test]
    fn schemes_and_hosts_are_of_the_hop_that_the_client_asked() {
        let fields = |way: &'static str, proto: &'static str, host: &'static str| {
            let told = tell("10.0.0.1", &[(FOR, way), (PROTO, proto), (HOST, host)]);
            (told.scheme, told.host)
        };
        for (way, proto, host, told) in [
            ("1.1.1.1", "https", "a.test", (Some("https"), Some("a.test"))),
            ("1.1.1.1", "HTTPS", "[::1]:8080", (Some("https"), Some("[::1]:8080"))),
            // Set by the first proxy, kept by the second.
            ("1.1.1.1, 10.0.0.2", "https", "a.test", (Some("https"), Some("a.test"))),
            // Added to by both, and by a client before them.
            ("1.1.1.1, 10.0.0.2", "https, http", "a.test, in.test", (Some("https"), Some("a.test"))),
            ("9.9.9.9, 1.1.1.1, 10.0.0.2", "http, https, http", "evil, a.test, in", (Some("https"), Some("a.test"))),
            ("1.1.1.1", "http, https", "evil.test, a.test", (Some("https"), Some("a.test"))),
            ("1.1.1.1", "gopher", "a/b", (None, None)),
            ("1.1.1.1", "https;", "u@a.test", (None, None)),
        ] {
            let seen = fields(way, proto, host);
            assert_eq!((seen.0, seen.1.as_deref()), told, "{way} {proto} {host}");
        }
        assert_eq!(tell("10.0.0.1", &[(PROTO, "https")]).scheme, Some("https"), "also without addresses");
    }

    #[test]
    fn fields_win_over_elements() {
        let both = [(FOR, "1.1.1.1"), (FORWARDED, "for=9.9.9.9;proto=https;host=evil.test")];
        let told = tell("10.0.0.1", &both);
        assert_eq!((told.client.to_string().as_str(), told.scheme, told.host), ("1.1.1.1", None, None));
        let told = tell("10.0.0.1", &[(FORWARDED, "for=1.1.1.1"), (PROTO, "https"), (HOST, "evil.test")]);
        assert_eq!((told.client.to_string().as_str(), told.scheme, told.host), ("1.1.1.1", None, None));
    }
}
