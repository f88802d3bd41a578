//! One request head: what is malformed or ambiguous is refused here.

use super::{Refusal, refuse};

/// Most header fields of a request.
pub const MAX_HEADERS: usize = 128;

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// So many bytes; 0 means no body.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// No body, and the connection may become a tunnel.
    Upgrade,
}

/// What a valid head says about its message.
#[derive(Debug, Eq, PartialEq)]
pub struct Head {
    /// How its body is delimited.
    pub framing: Framing,
}

/// Refuses bytes that no head may hold, from `from` on: NUL, and CR or LF outside of a CR LF pair.
pub(super) fn check_bytes(bytes: &[u8], from: usize) -> Result<(), Refusal> {
    for at in from..bytes.len() {
        match bytes[at] {
            0 => return refuse(400, "the header holds a NUL"),
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return refuse(400, "a line ends without CR LF"),
            b'\r' => {}
            _ if at > 0 && bytes[at - 1] == b'\r' && bytes[at] != b'\n' => {
                return refuse(400, "a CR stands alone in the header");
            }
            _ => {}
        }
        if bytes[at] == b'\r' && at > 0 && bytes[at - 1] == b'\r' {
            return refuse(400, "a CR stands alone in the header");
        }
    }
    Ok(())
}

/// The same question without branches, so that the compiler makes wide instructions of it.
fn has_bad_bytes(bytes: &[u8]) -> bool {
    let nul = bytes.iter().fold(false, |found, it| found | (*it == 0));
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    let split = pairs.fold(false, |found, (first, second)| found | ((*first == b'\r') != (*second == b'\n')));
    nul | split | (bytes.first() == Some(&b'\n')) | (bytes.last() == Some(&b'\r'))
}

/// Room for the fields of one head.
pub type Storage<'b> = [std::mem::MaybeUninit<httparse::Header<'b>>; MAX_HEADERS];

/// An empty [`Storage`]; it costs nothing to make.
pub const fn storage<'b>() -> Storage<'b> {
    [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS]
}

/// A request head that was found valid.
#[derive(Debug)]
pub struct Request<'s, 'b> {
    /// Method.
    pub method: &'b str,
    /// Target, as written.
    pub target: &'b str,
    /// Whether the version is 1.1 and not 1.0.
    pub http_11: bool,
    /// Fields in their order.
    pub fields: &'s [httparse::Header<'b>],
    /// How many bytes the head has.
    pub length: usize,
    /// The `Host` field.
    pub host: Option<&'b [u8]>,
    /// How the body is delimited.
    pub framing: Framing,
}

impl<'s, 'b> Request<'s, 'b> {
    /// Judges the head that `bytes` begin with; `None` while it is not complete.
    pub fn read(bytes: &'b [u8], storage: &'s mut Storage<'b>) -> Result<Option<Self>, Refusal> {
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, storage) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return refuse(431, "the request has more than 128 header fields"),
            Err(httparse::Error::Version) => return refuse(505, "the HTTP version is not 1.0 or 1.1"),
            Err(httparse::Error::HeaderName) => return refuse(400, "a header field's name is malformed or folded"),
            Err(httparse::Error::HeaderValue) => return refuse(400, "a header field's value is malformed"),
            Err(_) => return refuse(400, "the request line is malformed"),
        };
        if has_bad_bytes(&bytes[..length]) {
            check_bytes(&bytes[..length], 0)?;
        }
        let http_11 = request.version == Some(1);
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        let fields: &'s [httparse::Header<'b>] = request.headers;
        let target_host = check_target(method, target)?;
        let mut found = Found::default();
        for field in fields {
            found.field(field, http_11)?;
        }
        let host = found.host;
        let framing = found.judge(http_11, target_host)?;
        Ok(Some(Self { method, target, http_11, fields, length, host, framing }))
    }
}

impl Head {
    /// Judges a head, from its request line to its empty line.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        check_bytes(bytes, 0)?;
        let mut storage = storage();
        match Request::read(bytes, &mut storage)? {
            Some(request) if request.length == bytes.len() => Ok(Self { framing: request.framing }),
            _ => refuse(400, "the header is not complete"),
        }
    }
}

/// Refuses targets that a proxy must not pass on; returns the host of an absolute one.
fn check_target<'a>(method: &str, target: &'a str) -> Result<Option<&'a str>, Refusal> {
    if target.bytes().any(|it| !(0x21..=0x7e).contains(&it) || it == b'#') {
        return refuse(400, "the request target holds characters that must be percent-encoded");
    }
    if method == "CONNECT" {
        return refuse(405, "CONNECT is not served here");
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(None);
    }
    let Some((scheme, rest)) = target.split_once("://") else { return refuse(400, "the request target is malformed") };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return refuse(400, "the request target has a foreign scheme");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return refuse(400, "the request target has a malformed host");
    }
    Ok(Some(authority))
}

#[derive(Default)]
struct Found<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    connection_upgrade: bool,
    upgrade: bool,
}

impl<'a> Found<'a> {
    fn field(&mut self, field: &httparse::Header<'a>, http_11: bool) -> Result<(), Refusal> {
        let (name, value) = (field.name, field.value);
        if name.eq_ignore_ascii_case("host") {
            if self.host.replace(value).is_some() {
                return refuse(400, "the request has several Host fields");
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            if self.length.is_some() {
                return refuse(400, "the request has several Content-Length fields");
            }
            self.length = Some(length(value)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !http_11 {
                return refuse(400, "HTTP/1.0 has no Transfer-Encoding");
            }
            if self.chunked {
                return refuse(400, "the request has several Transfer-Encoding fields");
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return refuse(501, "the only transfer coding that is served here is `chunked`, alone");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            self.connection_upgrade |=
                value.split(|it| *it == b',').any(|it| it.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        } else if name.eq_ignore_ascii_case("upgrade") {
            self.upgrade = true;
        }
        Ok(())
    }

    fn judge(self, http_11: bool, target_host: Option<&str>) -> Result<Framing, Refusal> {
        match self.host {
            None if http_11 => return refuse(400, "the request has no Host field"),
            Some(host) => {
                if !is_host(host) {
                    return refuse(400, "the Host field is malformed");
                }
                if target_host.is_some_and(|it| !it.as_bytes().eq_ignore_ascii_case(host)) {
                    return refuse(400, "the request target and the Host field name different hosts");
                }
            }
            None => {}
        }
        if self.chunked && self.length.is_some() {
            return refuse(400, "the request has both Transfer-Encoding and Content-Length");
        }
        let framing = if self.chunked {
            Framing::Chunked
        } else if let Some(length @ 1..) = self.length {
            Framing::Length(length)
        } else if http_11 && self.upgrade && self.connection_upgrade {
            Framing::Upgrade
        } else {
            Framing::Length(0)
        };
        Ok(framing)
    }
}

/// Digits alone: no sign, no list, no space.
pub(crate) fn length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return refuse(400, "the Content-Length is not a plain number");
    }
    Ok(value.iter().fold(0, |sum, it| sum * 10 + u64::from(it - b'0')))
}

/// A name or an address, with or without a port; nothing that a URL parser could read in two ways.
fn is_host(value: &[u8]) -> bool {
    let (name, port) = if value.first() == Some(&b'[') {
        match value.iter().position(|it| *it == b']') {
            Some(end) => (&value[1..end], &value[end + 1..]),
            None => return false,
        }
    } else {
        value.split_at(value.iter().position(|it| *it == b':').unwrap_or(value.len()))
    };
    let bracketed = value.first() == Some(&b'[');
    let name_byte =
        |it: &u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.' | b'_') || (bracketed && *it == b':');
    let port_digits = port.strip_prefix(b":").unwrap_or_default();
    (1..=253).contains(&name.len())
        && name.iter().all(name_byte)
        && (port.is_empty()
            || (port[0] == b':' && port_digits.len() <= 5 && port_digits.iter().all(u8::is_ascii_digit)))
}
