//! The head of an endpoint's response: what frames its body, and the head that the client gets instead. Pure but for the
//! date.
//!
//! What must hold: an endpoint that is ambiguous about where its response ends is not believed.

use super::half::Left;
use crate::engine::{date, headers};
use crate::framing::{MAX_HEADERS, length};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;
use std::mem::MaybeUninit;

/// Largest head of a response, in bytes.
pub(super) const MAX_HEAD: usize = 128 * 1024;

/// A response whose head is complete.
#[derive(Debug)]
pub(super) struct Reply {
    /// Status; below 200 the response itself is still to come.
    pub(super) status: StatusCode,
    /// How many bytes the head has.
    pub(super) length: usize,
    /// The head for the client.
    pub(super) head: Vec<u8>,
    /// What body follows.
    pub(super) left: Left,
    /// Whether the endpoint keeps the connection.
    pub(super) keeps: bool,
    /// Whether it is a stream of events or messages, which may be silent for any time.
    pub(super) events: bool,
}

/// What is known of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Whether it was HEAD.
    pub(super) head: bool,
    /// Whether the client's connection ends after the response.
    pub(super) close: bool,
    /// What the client is told in place of the endpoint's own `Strict-Transport-Security`.
    pub(super) hsts: Option<&'a HeaderValue>,
}

const HSTS: &str = "strict-transport-security";

#[derive(Default)]
struct Found<'b> {
    length: Option<&'b [u8]>,
    /// Whether it was said more than once.
    repeated: bool,
    chunked: bool,
    close: bool,
    names: bool,
    date: bool,
    events: bool,
}

/// What a head says, but for the fields that only pass.
struct Judged<'b> {
    status: StatusCode,
    left: Left,
    keeps: bool,
    found: Found<'b>,
}

/// Whether a field passes to the client.
fn passes(field: &httparse::Header<'_>, judged: &Judged<'_>, all: &[httparse::Header<'_>]) -> bool {
    let name = field.name.as_bytes();
    let is_length = |it: &httparse::Header<'_>| it.name.eq_ignore_ascii_case("content-length");
    let useless_length = matches!(judged.status.as_u16(), 204 | 304) && is_length(field);
    // One of several that say the same is enough (RFC 9110 §8.6).
    let first = || all.iter().find(|it| is_length(it)).is_some_and(|it| std::ptr::eq(it, field));
    let again = judged.found.repeated && is_length(field) && !first();
    !(headers::ends_here(name) || useless_length || again || judged.found.names && is_named(name, all))
}

/// Parses a head into `response`; how long it is, `None` while it is not complete.
fn parse<'h, 'b>(
    response: &mut httparse::Response<'h, 'b>,
    bytes: &'b [u8],
    storage: &'h mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<usize>, &'static str> {
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(response, bytes, storage) {
        Ok(httparse::Status::Complete(length)) => Ok(Some(length)),
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => Err("its head is larger than 128 KiB"),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err("its head is malformed"),
    }
}

/// What frames the body of a response to a request that was HEAD or not.
fn judge<'b>(response: &httparse::Response<'_, 'b>, head: bool) -> Result<Judged<'b>, &'static str> {
    let status = StatusCode::from_u16(response.code.unwrap_or(0)).map_err(|_| "its status is malformed")?;
    let http_11 = response.version == Some(1);
    let mut found = Found::default();
    for field in response.headers.iter() {
        found.field(field)?;
    }
    if found.chunked && (found.length.is_some() || !http_11) {
        return Err("it has Transfer-Encoding beside Content-Length or in HTTP/1.0");
    }
    let bodiless = head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    let known = found.length.map(length).transpose().map_err(|_| "its Content-Length is malformed")?;
    let left = match known {
        _ if bodiless => Left::Length(0),
        Some(length) => Left::Length(length),
        None if found.chunked => Left::Chunked(Box::default()),
        None => Left::UntilEnd,
    };
    // Who speaks of a body that there cannot be may send it: it would be read as the next response.
    let is_doubtful = status == StatusCode::NO_CONTENT && (found.chunked || known.is_some_and(|it| it > 0));
    let keeps = http_11 && !found.close && !is_doubtful && !matches!(left, Left::UntilEnd);
    Ok(Judged { status, left, keeps, found })
}

/// Reads the head that `bytes` begin with, into a head that is written to `out`; `None` while it is not complete.
pub(super) fn read(bytes: &[u8], asked: Asked<'_>, mut out: Vec<u8>) -> Result<Option<Reply>, &'static str> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let Some(head_length) = parse(&mut response, bytes, &mut storage)? else { return Ok(None) };
    let judged = judge(&response, asked.head)?;
    let status = judged.status;
    out.clear();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(response.reason.unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    let is_ours = |it: &httparse::Header<'_>| asked.hsts.is_some() && it.name.eq_ignore_ascii_case(HSTS);
    for field in response.headers.iter().filter(|it| passes(it, &judged, response.headers) && !is_ours(it)) {
        push_field(&mut out, field.name.as_bytes(), field.value);
    }
    let Judged { left, keeps, found, .. } = judged;
    if !status.is_informational() {
        if let Some(hsts) = asked.hsts {
            push_field(&mut out, HSTS.as_bytes(), hsts.as_bytes());
        }
        if !found.date {
            date::push(&mut out);
        }
        if !matches!(left, Left::Length(_)) {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if asked.close {
            out.extend_from_slice(b"connection: close\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(Some(Reply { status, length: head_length, head: out, left, keeps, events: found.events }))
}

/// A response whose head is complete, for the general path.
#[derive(Debug)]
pub(super) struct Parsed {
    /// As in [`Reply`].
    pub(super) status: StatusCode,
    /// As in [`Reply`].
    pub(super) length: usize,
    /// Its reason, when it is not the usual one.
    pub(super) reason: Option<ReasonPhrase>,
    /// The fields for the client.
    pub(super) fields: HeaderMap,
    /// As in [`Reply`].
    pub(super) left: Left,
    /// As in [`Reply`].
    pub(super) keeps: bool,
}

/// Reads the head that `bytes` begin with, by the same rules; `None` while it is not complete.
pub(super) fn fields(bytes: &[u8], head: bool) -> Result<Option<Parsed>, &'static str> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let Some(length) = parse(&mut response, bytes, &mut storage)? else { return Ok(None) };
    let judged = judge(&response, head)?;
    let mut fields = HeaderMap::with_capacity(response.headers.len());
    // One copy that all values share.
    let copy = Bytes::copy_from_slice(&bytes[..length]);
    for field in response.headers.iter().filter(|it| passes(it, &judged, response.headers)) {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "a field's name is malformed")?;
        let value = HeaderValue::from_maybe_shared(copy.slice(place(bytes, field.value)));
        fields.append(name, value.map_err(|_| "a field's value is malformed")?);
    }
    let Judged { status, left, keeps, .. } = judged;
    let unusual = response.reason.filter(|it| status.canonical_reason() != Some(it) && !it.is_empty());
    let reason = unusual.and_then(|it| ReasonPhrase::try_from(it.as_bytes()).ok());
    Ok(Some(Parsed { status, length, reason, fields, left, keeps }))
}

/// Where in `whole` its part `part` is.
fn place(whole: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    // An empty part may lie anywhere.
    let begin = if part.is_empty() { 0 } else { part.as_ptr() as usize - whole.as_ptr() as usize };
    begin..begin + part.len()
}

impl<'b> Found<'b> {
    fn field(&mut self, field: &httparse::Header<'b>) -> Result<(), &'static str> {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            4 if is("date") => self.date = true,
            10 if is("connection") => {
                for option in field.value.split(|it| *it == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        self.close = true;
                    } else if !option.is_empty() && !option.eq_ignore_ascii_case(b"keep-alive") {
                        self.names = true;
                    }
                }
            }
            12 if is("content-type") => self.events = headers::is_events(field.value),
            14 if is("content-length") => {
                let before = self.length.replace(field.value);
                self.repeated = before.is_some();
                if before.is_some_and(|it| it != field.value) {
                    return Err("it has several Content-Length fields");
                }
            }
            17 if is("transfer-encoding") => {
                let again = std::mem::replace(&mut self.chunked, true);
                if again || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err("its Transfer-Encoding is not `chunked`");
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a `Connection` field names `name`.
fn is_named(name: &[u8], fields: &[httparse::Header<'_>]) -> bool {
    let connections = fields.iter().filter(|it| it.name.eq_ignore_ascii_case("connection"));
    !name.eq_ignore_ascii_case(b"content-length")
        && connections
            .flat_map(|it| it.value.split(|it| *it == b','))
            .any(|it| it.trim_ascii().eq_ignore_ascii_case(name))
}

/// Appends a field with its name in lower case.
pub(super) fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let at = out.len();
    out.extend_from_slice(name);
    out[at..].make_ascii_lowercase();
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str, head: bool) -> Result<Option<String>, &'static str> {
        let reply = read(text.as_bytes(), Asked { head, close: false, hsts: None }, Vec::new())?;
        Ok(reply.map(|it| {
            let head = String::from_utf8(it.head).unwrap().replace("\r\n", "|");
            let (before, date) = head.split_once("date: ").unwrap_or((&head, ""));
            let after = date.split_once('|').map_or("", |it| it.1);
            let left = match it.left {
                Left::Length(length) => format!("{length}"),
                Left::Chunked(_) => "chunked".to_owned(),
                Left::UntilEnd => "end".to_owned(),
            };
            format!("{before}{after} {left} {}", if it.keeps { "keeps" } else { "ends" })
        }))
    }

    #[test]
    fn heads_are_judged_and_made_anew() {
        for (text, expected) in [
            (
                "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok",
                "HTTP/1.1 200 Fine|content-length: 2|x-a: b|| 2 keeps",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "HTTP/1.1 200 OK|transfer-encoding: chunked|| chunked keeps",
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK|transfer-encoding: chunked|| end ends"),
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 200 OK|content-length: 2|| 2 ends"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, X-Drop, content-length\r\nx-drop: 1\r\nKeep-Alive: 5\r\n\r\n",
                "HTTP/1.1 200 OK|content-length: 2|| 2 ends",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\ncontent-length: 2\r\n\r\nok",
                "HTTP/1.1 200 OK|content-length: 2|x-a: b|| 2 keeps",
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content|| 0 keeps"),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 No Content|| 0 keeps"),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 204 No Content|| 0 ends"),
            ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 204 No Content|| 0 ends"),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 304 Not Modified|| 0 keeps"),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "HTTP/1.1 103 Early Hints|link: x|| 0 keeps"),
            ("HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 299 |content-length: 0|| 0 keeps"),
        ] {
            assert_eq!(outcome(text, false), Ok(Some(expected.to_owned())), "{text:?}");
        }
        let head = outcome("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n", true);
        assert_eq!(head, Ok(Some("HTTP/1.1 200 OK|content-length: 200|| 0 keeps".to_owned())));
        assert_eq!(outcome("HTTP/1.1 200 OK\r\nContent-Le", false), Ok(None));
    }

    #[test]
    fn a_client_is_told_once_to_stay_with_tls() {
        let hsts = HeaderValue::from_static("max-age=60");
        let asked = Asked { head: false, close: false, hsts: Some(&hsts) };
        let made = |text: String| {
            let head = read(text.as_bytes(), asked, Vec::new()).unwrap().unwrap().head;
            String::from_utf8(head).unwrap().replace("\r\n", "|")
        };
        for own in [
            "",
            "Strict-Transport-Security: max-age=1\r\nstrict-transport-security: max-age=2\r\n",
            "Connection: Strict-Transport-Security\r\nStrict-Transport-Security: max-age=1\r\n",
        ] {
            let answer = made(format!("HTTP/1.1 200 OK\r\nDate: x\r\n{own}Content-Length: 0\r\n\r\n"));
            let expected = "HTTP/1.1 200 OK|date: x|content-length: 0|strict-transport-security: max-age=60||";
            assert_eq!(answer, expected, "{own:?}");
            // What comes before the answer says nothing of it.
            assert_eq!(made(format!("HTTP/1.1 103 Early Hints\r\n{own}\r\n")), "HTTP/1.1 103 Early Hints||");
        }
        let kept = outcome("HTTP/1.1 200 OK\r\nStrict-Transport-Security: a\r\nContent-Length: 0\r\n\r\n", false);
        let expected = "HTTP/1.1 200 OK|strict-transport-security: a|content-length: 0|| 0 keeps";
        assert_eq!(kept, Ok(Some(expected.to_owned())), "without a word of ours the endpoint's counts");
    }

    #[test]
    fn what_is_ambiguous_is_not_believed() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX y: 1\r\n\r\n",
            "this is not HTTP\r\n\r\n",
        ] {
            assert!(outcome(text, false).is_err(), "{text:?}");
        }
    }
}
