//! Which header fields end here and which are added. Pure.
//!
//! Nothing that a client says about addresses, protocol or host of other hops is believed; what trusted proxies say about
//! them is read before (`forwarded`).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;

/// Fields that speak about one hop.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Fields that only this gateway may set.
const OURS: [HeaderName; 7] = [
    header::FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    X_REAL_IP,
    HeaderName::from_static("http2-settings"),
];

/// What proxies tell begins like this: `-Prefix`, `-Ssl`, `-User` and more. Frameworks believe it, so nobody may tell it but
/// trusted proxies.
const FORWARDED: &str = "x-forwarded-";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whether a body of this type is a stream of events or of gRPC's messages: it may pause for long, and is never held back.
pub(super) fn is_events(content_type: &[u8]) -> bool {
    // Of gRPC there are `application/grpc+proto`, `application/grpc-web` and more.
    const KINDS: [&[u8]; 2] = [b"text/event-stream", b"application/grpc"];
    KINDS.iter().any(|kind| content_type.get(..kind.len()).is_some_and(|it| it.eq_ignore_ascii_case(kind)))
}

/// Whether the field `name`, in any case, is one of [`HOP_BY_HOP`] or `Upgrade`.
pub(super) fn ends_here(name: &[u8]) -> bool {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 => is(b"te"),
        7 => is(b"trailer") || is(b"upgrade"),
        10 => is(b"connection") || is(b"keep-alive"),
        16 => is(b"proxy-connection"),
        17 => is(b"transfer-encoding"),
        18 => is(b"proxy-authenticate"),
        19 => is(b"proxy-authorization"),
        _ => false,
    }
}

/// Whether a client's field `name`, in any case, is not passed on to an endpoint, whatever `Connection` names.
pub(super) fn stays_here(name: &[u8]) -> bool {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    let ours = match name.len() {
        6 => is(b"expect"),
        9 => is(b"forwarded") || is(b"x-real-ip"),
        14 => is(b"http2-settings"),
        15 => is(b"x-forwarded-for"),
        16 => is(b"x-forwarded-host") || is(b"x-forwarded-port"),
        17 => is(b"x-forwarded-proto"),
        _ => false,
    };
    let told = name.get(..FORWARDED.len()).is_some_and(|it| it.eq_ignore_ascii_case(FORWARDED.as_bytes()));
    let lookalike = || std::str::from_utf8(name).is_ok_and(|it| is_lookalike(&it.to_ascii_lowercase()));
    ours || told || ends_here(name) || (name.contains(&b'_') && lookalike())
}

/// Whether `Connection` asks for `option`.
pub(super) fn connection_has(headers: &HeaderMap, option: &str) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .any(|it| it.trim().eq_ignore_ascii_case(option))
}

/// Removes what ends at this hop, with everything that `Connection` names.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(|it| ends_here(it.as_str().as_bytes())) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .filter_map(|it| HeaderName::try_from(it.trim()).ok())
        // A sender cannot make us drop what frames or routes the message.
        .filter(|it| !matches!(*it, header::HOST | header::CONTENT_LENGTH | header::COOKIE | header::AUTHORIZATION))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What a request brings along to an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// Who connected to us.
    pub(super) client: IpAddr,
    /// `X-Forwarded-For` when a trusted proxy is in between.
    pub(super) chain: Option<&'a str>,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// Host as the client wrote it; what is answered here leads nowhere else.
    pub(super) host: &'a str,
    /// Which host a trusted proxy says it was asked for. Many pass on what a client claims, so only endpoints hear of it,
    /// not who decides about access.
    pub(super) told_host: Option<&'a str>,
    /// Used when the request has no id yet.
    pub(super) fresh_id: u128,
}

/// Turns a client's fields into those for an endpoint. `upgrade` keeps the upgrade that was asked for.
pub(super) fn for_endpoint(headers: &mut HeaderMap, origin: Origin<'_>, upgrade: bool) {
    // Most requests have nothing of that: one look at the names is enough.
    if headers.keys().any(|it| stays_here(it.as_str().as_bytes())) {
        let protocol = headers.remove(header::UPGRADE).filter(|_| upgrade);
        strip_hop_by_hop(headers);
        // Answered here: the endpoint is only asked when the body is on its way.
        headers.remove(header::EXPECT);
        for name in &OURS {
            headers.remove(name);
        }
        let is_told = |it: &str| origin.chain.is_none() && it.starts_with(FORWARDED);
        let is_false = |it: &&HeaderName| is_lookalike(it.as_str()) || is_told(it.as_str());
        let others: Vec<HeaderName> = headers.keys().filter(is_false).cloned().collect();
        for name in others {
            headers.remove(name);
        }
        if let Some(protocol) = protocol {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol);
        }
    }
    let client = origin.client.to_canonical().to_string();
    if let Ok(client) = HeaderValue::from_str(&client) {
        let chain = origin.chain.and_then(|it| HeaderValue::from_str(it).ok());
        headers.insert(X_FORWARDED_FOR, chain.unwrap_or_else(|| client.clone()));
        headers.insert(X_REAL_IP, client);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
    if let Ok(host) = HeaderValue::from_str(origin.told_host.unwrap_or(origin.host)) {
        headers.insert(X_FORWARDED_HOST, host);
    }
    // Of several there is the first one left, which the access log has.
    let known = headers.get(X_REQUEST_ID).filter(|it| is_request_id(it.as_bytes())).cloned();
    let fresh = || HeaderValue::from_str(&format!("{:032x}", origin.fresh_id)).ok();
    if let Some(id) = known.or_else(fresh) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1.1 has one (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_some() && crumbs.next().is_some() {
        let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

/// `x_forwarded_for` and the like become the real field in CGI-like servers.
fn is_lookalike(name: &str) -> bool {
    name.contains('_') && {
        let dashed = name.replace('_', "-");
        OURS.iter().chain(&HOP_BY_HOP).any(|it| it.as_str() == dashed)
            || dashed.starts_with(FORWARDED)
            || matches!(dashed.as_str(), "content-length" | "host" | "x-request-id" | "proxy")
    }
}

/// Removes the field `name`, and each that CGI-like servers take for it: to them `x_user` is `x-user`.
pub(super) fn remove_all_spellings(headers: &mut HeaderMap, name: &HeaderName) {
    let alike = |(one, other): (u8, u8)| one == other || (b"-_".contains(&one) && b"-_".contains(&other));
    let is_one = |it: &&HeaderName| {
        let (it, name) = (it.as_str(), name.as_str());
        it.len() == name.len() && it.bytes().zip(name.bytes()).all(alike)
    };
    let found: Vec<HeaderName> = headers.keys().filter(is_one).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

pub(super) fn is_request_id(bytes: &[u8]) -> bool {
    (8..=128).contains(&bytes.len()) && bytes.iter().all(|it| it.is_ascii_alphanumeric() || b"-_.:".contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rows: &[(&'static str, &'static str)]) -> HeaderMap {
        rows.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn events_are_known_in_any_case() {
        for (kind, events) in [
            ("text/event-stream", true),
            ("Text/Event-Stream;charset=utf-8", true),
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC-Web-Text+proto", true),
            ("application/json", false),
            ("text/event", false),
            ("text/plain; text/event-stream", false),
            ("", false),
        ] {
            assert_eq!(is_events(kind.as_bytes()), events, "{kind}");
        }
    }

    #[test]
    fn a_client_is_not_believed_and_hops_end_here() {
        let mut headers = map(&[
            ("host", "a.example.com:8080"),
            ("connection", "keep-alive, x-drop, host, authorization"),
            ("x-drop", "1"),
            ("authorization", "kept"),
            ("x-keep", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "x"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("expect", "100-continue"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-forwarded-prefix", "/evil"),
            ("x_forwarded_ssl", "on"),
            ("content_length", "9"),
            ("x-request-id", "good-id-1234"),
        ]);
        for other in ["other-id-1234", "a b"] {
            headers.append(X_REQUEST_ID, HeaderValue::from_static(other));
        }
        let client = "::ffff:192.0.2.7".parse().unwrap();
        let host = "a.example.com:8080";
        let origin = Origin { client, chain: None, scheme: "http", host, told_host: None, fresh_id: 7 };
        for_endpoint(&mut headers, origin, false);
        let mut rows: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        rows.sort();
        assert_eq!(
            rows,
            [
                "authorization: kept",
                "host: a.example.com:8080",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: a.example.com:8080",
                "x-forwarded-proto: http",
                "x-keep: 1",
                "x-real-ip: 192.0.2.7",
                "x-request-id: good-id-1234",
            ]
        );
    }

    #[test]
    fn both_spellings_of_the_lists_agree() {
        let other = ["host", "cookie", "x-request-id", "tea", "x-forwarding-for", "x_tea"].map(HeaderName::from_static);
        let lookalikes = ["x_forwarded_for", "content_length", "X_Request_ID", "X-Forwarded-Server", "x_forwarded_ssl"];
        for name in HOP_BY_HOP.iter().chain(&OURS).chain(&[header::UPGRADE, header::EXPECT]).chain(&other) {
            let (hop, ours) = (HOP_BY_HOP.contains(name) || *name == header::UPGRADE, OURS.contains(name));
            for written in [name.as_str().to_owned(), name.as_str().to_ascii_uppercase()] {
                assert_eq!(ends_here(written.as_bytes()), hop, "{written}");
                assert_eq!(stays_here(written.as_bytes()), hop || ours || *name == header::EXPECT, "{written}");
            }
        }
        assert!(lookalikes.iter().all(|it| stays_here(it.as_bytes())));
    }

    #[test]
    fn what_a_trusted_proxy_tells_beyond_the_way_passes() {
        let mut headers =
            map(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-prefix", "/shop"), ("x-forwarded-port", "1")]);
        let (client, chain) = ([192, 0, 2, 7].into(), Some("192.0.2.7, 10.0.0.1"));
        for_endpoint(
            &mut headers,
            Origin { client, chain, scheme: "http", host: "a", told_host: None, fresh_id: 1 },
            false,
        );
        assert_eq!(
            (&headers["x-forwarded-prefix"], headers.get("x-forwarded-port")),
            (&HeaderValue::from_static("/shop"), None)
        );
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7, 10.0.0.1");
    }

    #[test]
    fn a_field_goes_with_what_is_taken_for_it() {
        let mut headers =
            map(&[("x-user-id", "1"), ("x_user_id", "2"), ("x_user-id", "3"), ("x-userid", "4"), ("x.user.id", "5")]);
        remove_all_spellings(&mut headers, &HeaderName::from_static("x-user-id"));
        let mut left: Vec<&str> = headers.values().map(|it| it.to_str().unwrap()).collect();
        left.sort_unstable();
        assert_eq!(left, ["4", "5"]);
    }

    #[test]
    fn an_upgrade_is_kept_and_a_bad_id_replaced() {
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("x-request-id", "a b")]);
        assert!(connection_has(&headers, "upgrade"));
        let client = [192, 0, 2, 7].into();
        let origin = Origin { client, chain: None, scheme: "https", host: "a", told_host: None, fresh_id: 255 };
        for_endpoint(&mut headers, origin, true);
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["x-request-id"], format!("{:032x}", 255).as_str());
    }
}
