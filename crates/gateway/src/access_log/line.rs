//! What a line of the access log says, and how. Pure.
//!
//! What must hold: a request is one line, whatever its client wrote: nothing of it ends a line or a field. Queries, also
//! those of the address that led here, are shown only where that was asked for; fields that carry secrets never are.

use crate::calendar::Moment;
use arco_config::AccessLogFormat;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One request that was answered, or whose client left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    /// When its answer ended.
    pub(crate) time: SystemTime,
    pub(crate) client: IpAddr,
    pub(crate) method: &'a [u8],
    /// Path and query as the client wrote them.
    pub(crate) target: &'a [u8],
    pub(crate) protocol: &'static str,
    pub(crate) host: &'a [u8],
    pub(crate) referer: &'a [u8],
    pub(crate) user_agent: &'a [u8],
    pub(crate) request_id: &'a [u8],
    /// Version of TLS, if it came by TLS.
    pub(crate) tls: Option<&'static str>,
    pub(crate) status: u16,
    /// Bytes of its body.
    pub(crate) received: u64,
    /// Bytes of its answer's body.
    pub(crate) sent: u64,
    /// From its head to the end of its answer.
    pub(crate) took: Duration,
    /// The host of the routes that it was answered by.
    pub(crate) route: Option<&'a str>,
    /// Whose instances answered, which of them, and when they began to.
    pub(crate) upstream: Option<(&'a str, SocketAddr, Duration)>,
}

impl Line<'_> {
    /// Appends it with its end; `query`: whether queries are shown.
    pub(crate) fn push(&self, out: &mut Vec<u8>, format: AccessLogFormat, query: bool) {
        match format {
            AccessLogFormat::Json => self.push_json(out, query),
            AccessLogFormat::Combined => self.push_combined(out, query),
        }
        out.push(b'\n');
    }

    fn moment(&self) -> (Moment, u32) {
        let since = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        (Moment::of(since.as_secs()), since.subsec_millis())
    }

    // Writing into memory cannot fail.
    fn push_json(&self, out: &mut Vec<u8>, query: bool) {
        let (Moment { year, month, day, hour, minute, second }, ms) = self.moment();
        let _ = write!(out, "{{\"time\":\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z\"");
        let _ = write!(out, ",\"client\":\"{}\"", self.client);
        push_field(out, "method", self.method);
        push_field(out, "host", self.host);
        push_field(out, "path", shown(self.target, query));
        let _ = write!(out, ",\"protocol\":\"{}\",\"status\":{}", self.protocol, self.status);
        let _ = write!(out, ",\"received_bytes\":{},\"sent_bytes\":{}", self.received, self.sent);
        push_ms(out, "duration_ms", self.took);
        push_field(out, "route", self.route.unwrap_or_default().as_bytes());
        if let Some((upstream, endpoint, took)) = self.upstream {
            push_field(out, "upstream", upstream.as_bytes());
            let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
            push_ms(out, "upstream_ms", took);
        }
        push_field(out, "tls", self.tls.unwrap_or_default().as_bytes());
        push_field(out, "request_id", self.request_id);
        push_field(out, "referer", shown(self.referer, query));
        push_field(out, "user_agent", self.user_agent);
        out.push(b'}');
    }

    fn push_combined(&self, out: &mut Vec<u8>, query: bool) {
        let (moment, _) = self.moment();
        let Moment { year, day, hour, minute, second, .. } = moment;
        let month = moment.month_name();
        let _ =
            write!(out, "{} - - [{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000] \"", self.client);
        push_escaped(out, self.method);
        out.push(b' ');
        push_escaped(out, shown(self.target, query));
        let _ = write!(out, " {}\" {} {} \"", self.protocol, self.status, self.sent);
        push_or_dash(out, shown(self.referer, query));
        out.extend_from_slice(b"\" \"");
        push_or_dash(out, self.user_agent);
        out.push(b'"');
    }
}

/// An address as it may be shown.
fn shown(address: &[u8], query: bool) -> &[u8] {
    let end = address.iter().position(|it| *it == b'?' && !query);
    &address[..end.unwrap_or(address.len())]
}

/// Whether this is the same in every form, and no byte of it does anything to a terminal.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|it| matches!(it, b' '..=b'~') && !matches!(it, b'"' | b'\\'))
}

/// Appends a field of a JSON object that is not the first; one without a value is left out.
fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    let _ = write!(out, ",\"{name}\":\"");
    if is_plain(value) {
        out.extend_from_slice(value);
    } else {
        for part in value.utf8_chunks() {
            for it in part.valid().chars() {
                match it {
                    '"' | '\\' => out.extend_from_slice(&[b'\\', it as u8]),
                    it if it.is_control() => drop(write!(out, "\\u{:04x}", u32::from(it))),
                    it => out.extend_from_slice(it.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            if !part.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    out.push(b'"');
}

fn push_ms(out: &mut Vec<u8>, name: &str, time: Duration) {
    let us = time.as_micros();
    let _ = write!(out, ",\"{name}\":{}.{:03}", us / 1000, us % 1000);
}

/// Appends text between quotes as nginx does.
fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        return out.extend_from_slice(text);
    }
    for it in text {
        match it {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => drop(write!(out, "\\x{it:02X}")),
            _ => out.push(*it),
        }
    }
}

fn push_or_dash(out: &mut Vec<u8>, text: &[u8]) {
    push_escaped(out, if text.is_empty() { b"-" } else { text });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line<'static> {
        Line {
            time: UNIX_EPOCH + Duration::from_millis(784_111_777_042),
            client: [192, 0, 2, 7].into(),
            method: b"GET",
            target: b"/a/b?token=secret",
            protocol: "HTTP/1.1",
            host: b"a.example.com",
            referer: b"https://b.example.com/from?key=secret",
            user_agent: b"curl/8",
            request_id: b"0123456789abcdef",
            tls: Some("1.3"),
            status: 200,
            received: 5,
            sent: 1234,
            took: Duration::from_micros(12_345),
            route: Some("*.example.com"),
            upstream: Some(("shop/web", ([10, 0, 0, 1], 80).into(), Duration::from_micros(9))),
        }
    }

    fn text(line: &Line<'_>, format: AccessLogFormat, query: bool) -> String {
        let mut out = b"before\n".to_vec();
        line.push(&mut out, format, query);
        String::from_utf8(out).unwrap().strip_prefix("before\n").unwrap().to_owned()
    }

    #[test]
    fn a_request_is_an_object_of_json() {
        let found: serde_json::Value = serde_json::from_str(&text(&line(), AccessLogFormat::Json, false)).unwrap();
        let expected = serde_json::json!({
            "time": "1994-11-06T08:49:37.042Z",
            "client": "192.0.2.7",
            "method": "GET",
            "host": "a.example.com",
            "path": "/a/b",
            "protocol": "HTTP/1.1",
            "status": 200,
            "received_bytes": 5,
            "sent_bytes": 1234,
            "duration_ms": 12.345,
            "route": "*.example.com",
            "upstream": "shop/web",
            "endpoint": "10.0.0.1:80",
            "upstream_ms": 0.009,
            "tls": "1.3",
            "request_id": "0123456789abcdef",
            "referer": "https://b.example.com/from",
            "user_agent": "curl/8",
        });
        assert_eq!(found, expected);
        let bare =
            Line { referer: b"", user_agent: b"", request_id: b"", tls: None, route: None, upstream: None, ..line() };
        let found: serde_json::Value = serde_json::from_str(&text(&bare, AccessLogFormat::Json, true)).unwrap();
        assert_eq!((found.as_object().unwrap().len(), &found["path"]), (10, &"/a/b?token=secret".into()));
    }

    #[test]
    fn a_request_is_a_line_of_the_combined_form() {
        let head = "192.0.2.7 - - [06/Nov/1994:08:49:37 +0000]";
        for (query, expected) in [
            (false, "\"GET /a/b HTTP/1.1\" 200 1234 \"https://b.example.com/from\" \"curl/8\"\n"),
            (
                true,
                "\"GET /a/b?token=secret HTTP/1.1\" 200 1234 \"https://b.example.com/from?key=secret\" \"curl/8\"\n",
            ),
        ] {
            assert_eq!(text(&line(), AccessLogFormat::Combined, query), format!("{head} {expected}"));
        }
        let bare = Line { referer: b"", user_agent: b"", client: "2001:db8::1".parse().unwrap(), ..line() };
        let found = text(&bare, AccessLogFormat::Combined, false);
        assert!(found.starts_with("2001:db8::1 - - [") && found.ends_with("1234 \"-\" \"-\"\n"), "{found}");
    }

    #[test]
    fn nothing_that_a_client_writes_ends_a_line_or_a_field() {
        for (written, json, combined) in [
            (&b"a\"b\\c"[..], "a\"b\\c", "a\\x22b\\x5Cc"),
            (&b"a\r\nb\0c\td"[..], "a\r\nb\0c\td", "a\\x0D\\x0Ab\\x00c\\x09d"),
            (&b"\x1b[31m\x7f"[..], "\x1b[31m\x7f", "\\x1B[31m\\x7F"),
            ("ü\u{9b}€".as_bytes(), "ü\u{9b}€", "\\xC3\\xBC\\xC2\\x9B\\xE2\\x82\\xAC"),
            (&b"\xff\xc3x"[..], "\u{fffd}\u{fffd}x", "\\xFF\\xC3x"),
        ] {
            let line = Line { host: written, target: written, referer: written, user_agent: written, ..line() };
            let as_json = text(&line, AccessLogFormat::Json, false);
            let object: serde_json::Value = serde_json::from_str(&as_json).unwrap();
            for field in ["host", "path", "referer", "user_agent"] {
                assert_eq!(object[field], json, "{as_json}");
            }
            let as_combined = text(&line, AccessLogFormat::Combined, false);
            assert!(as_combined.ends_with(&format!("\"{combined}\" \"{combined}\"\n")), "{as_combined}");
            for text in [&as_json, &as_combined] {
                assert!(text.chars().rev().skip(1).all(|it| !it.is_control()), "{text:?}");
            }
        }
    }
}
