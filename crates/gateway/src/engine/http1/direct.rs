//! A request without a body, asked by the general path (`http.rs`) or by HTTP/2 (`http2/ordinary.rs`) on a plain HTTP/1.1
//! connection: written and read by the task of the request itself.
//!
//! What must hold: a connection is used again only after a whole response with nothing left over; while nothing comes,
//! no buffer is held.

use super::endpoint::Endpoint;
use super::half::Left;
use super::response::{self, Parsed};
use crate::engine::Core;
use crate::engine::body::BodyError;
use crate::engine::buffers;
use crate::engine::pool::Key;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::poll_read_buf;

/// Most informational responses before the response itself.
const MAX_INFORMATIONAL: usize = 16;
/// Most fields among trailers.
const MAX_TRAILERS: usize = 64;

/// There is no response.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Broken {
    /// Whether any byte of the request was sent.
    pub(in crate::engine) began: bool,
    /// Whether any byte of a response came.
    pub(in crate::engine) heard: bool,
    /// Whether what came is not HTTP.
    pub(in crate::engine) invalid: bool,
}

/// Whether this request can be asked here, but for its body.
pub(in crate::engine) fn is_for(headers: &HeaderMap) -> bool {
    let none = headers.get(header::CONTENT_LENGTH).is_none_or(|it| it.as_bytes() == b"0");
    none && !headers.contains_key(header::UPGRADE) && !headers.contains_key(header::TRANSFER_ENCODING)
}

/// The head of a request as it is sent.
pub(in crate::engine) fn head<B>(request: &Request<B>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let target = request.uri().path_and_query().map_or("/", |it| it.as_str());
    for part in [request.method().as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in request.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Sends a head and waits for that of the response. A block and no async function, which would have room for what it takes
/// twice.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub(in crate::engine) fn ask(
    core: &Arc<Core>,
    (key, mut endpoint): (Key, Endpoint),
    head: &[u8],
    is_head: bool,
) -> impl Future<Output = Result<Response<DirectBody>, Broken>> + Send {
    async move {
        let mut sent = 0;
        while sent < head.len() {
            match endpoint.0.write(&head[sent..]).await {
                Ok(count @ 1..) => sent += count,
                Ok(_) | Err(_) => return Err(Broken { began: sent > 0, heard: false, invalid: false }),
            }
        }
        let mut bytes = Vec::new();
        let parsed = poll_fn(|cx| poll_head(cx, &mut endpoint, &mut bytes, is_head)).await?;
        let Parsed { status, length, reason, fields, left, keeps } = parsed;
        let is_sized = matches!(left, Left::Length(_));
        let mut rest = Rest { core: Arc::clone(core), key, endpoint, left, keeps };
        let taken = rest.take(&mut bytes[length..]);
        buffers::put(bytes);
        let Taken { there, trailers, is_over, clean } =
            taken.map_err(|_| Broken { began: true, heard: true, invalid: true })?;
        let rest = if is_over {
            rest.end(clean);
            None
        } else {
            Some(Box::new(rest))
        };
        let body = DirectBody { there, rest, trailers, is_sized, was_polled: false };
        let mut response = Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (status, fields);
        reason.map(|it| response.extensions_mut().insert(it));
        Ok(response)
    }
}

fn poll_head(
    cx: &mut Context<'_>,
    endpoint: &mut Endpoint,
    bytes: &mut Vec<u8>,
    is_head: bool,
) -> Poll<Result<Parsed, Broken>> {
    let mut informational = 0;
    loop {
        if bytes.capacity() == 0 {
            *bytes = buffers::take();
        } else if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        let broken = |bytes: &[u8], invalid| Broken { began: true, heard: !bytes.is_empty(), invalid };
        match poll_read_buf(Pin::new(&mut endpoint.0), cx, bytes) {
            Poll::Ready(Ok(1..)) => {}
            Poll::Ready(_) => return Poll::Ready(Err(broken(bytes, false))),
            Poll::Pending => {
                if bytes.is_empty() {
                    buffers::put(std::mem::take(bytes));
                }
                return Poll::Pending;
            }
        }
        while !bytes.is_empty() {
            match response::fields(bytes, is_head) {
                Ok(None) => break,
                Ok(Some(it)) if !it.status.is_informational() => return Poll::Ready(Ok(it)),
                // The client did not ask to be told.
                Ok(Some(it)) if it.status != StatusCode::SWITCHING_PROTOCOLS && informational < MAX_INFORMATIONAL => {
                    informational += 1;
                    bytes.drain(..it.length);
                }
                Ok(Some(_)) => return Poll::Ready(Err(broken(bytes, true))),
                Err(why) => {
                    tracing::debug!(why, "a response is not valid");
                    return Poll::Ready(Err(broken(bytes, true)));
                }
            }
        }
    }
}

/// The body of a response.
pub(in crate::engine) struct DirectBody {
    /// What was read and not given on.
    there: Bytes,
    /// Where more comes from.
    rest: Option<Box<Rest>>,
    trailers: Option<Box<HeaderMap>>,
    /// Whether its length was told; one that was not is passed on without one, also when it is there already.
    is_sized: bool,
    was_polled: bool,
}

struct Rest {
    core: Arc<Core>,
    key: Key,
    endpoint: Endpoint,
    left: Left,
    keeps: bool,
}

/// What was taken of what was read.
struct Taken {
    there: Bytes,
    trailers: Option<Box<HeaderMap>>,
    /// Whether the response is over.
    is_over: bool,
    /// Whether nothing is left over.
    clean: bool,
}

impl Rest {
    fn take(&mut self, bytes: &mut [u8]) -> Result<Taken, BodyError> {
        let (taken, kept) = match &mut self.left {
            Left::Length(left) => {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= step as u64;
                (step, step)
            }
            Left::Chunked(chunked) => chunked.decode(bytes).map_err(|it| it.why)?,
            Left::UntilEnd => (bytes.len(), bytes.len()),
        };
        let (is_over, trailers) = match &self.left {
            Left::Length(left) => (*left == 0, None),
            Left::Chunked(chunked) if chunked.is_done() => (true, trailers(chunked.trailers())?),
            Left::Chunked(_) | Left::UntilEnd => (false, None),
        };
        let there = if kept > 0 { Bytes::copy_from_slice(&bytes[..kept]) } else { Bytes::new() };
        Ok(Taken { there, trailers: trailers.map(Box::new), is_over, clean: taken == bytes.len() })
    }

    /// The connection goes back. Who sends more than a response is not asked again.
    fn end(self, clean: bool) {
        if self.keeps && clean {
            self.core.endpoints.put(self.key, self.endpoint);
        }
    }
}

impl DirectBody {
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while let Some(rest) = self.rest.as_mut().filter(|_| self.there.is_empty()) {
            let mut bytes = buffers::take();
            let read = poll_read_buf(Pin::new(&mut rest.endpoint.0), cx, &mut bytes);
            let taken = match read {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(1..)) => Poll::Ready(rest.take(&mut bytes)),
                Poll::Ready(Ok(_)) if matches!(rest.left, Left::UntilEnd) => {
                    Poll::Ready(Ok(Taken { there: Bytes::new(), trailers: None, is_over: true, clean: false }))
                }
                Poll::Ready(Ok(_)) => Poll::Ready(Err("the response broke off".into())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            };
            buffers::put(bytes);
            let Taken { there, trailers, is_over, clean } = ready!(taken)?;
            (self.there, self.trailers) = (there, trailers);
            if is_over && let Some(rest) = self.rest.take() {
                rest.end(clean);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Body for DirectBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.was_polled = true;
        if let Err(error) = ready!(self.poll_more(cx)) {
            self.rest = None;
            return Poll::Ready(Some(Err(error)));
        }
        if !self.there.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.there)))));
        }
        Poll::Ready(self.trailers.take().map(|it| Ok(Frame::trailers(*it))))
    }

    fn is_end_stream(&self) -> bool {
        let known = self.is_sized || self.was_polled;
        known && self.there.is_empty() && self.rest.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let there = self.there.len() as u64;
        match self.rest.as_ref().map(|it| &it.left) {
            None if self.is_sized => SizeHint::with_exact(there),
            Some(Left::Length(left)) => SizeHint::with_exact(there.saturating_add(*left)),
            _ => SizeHint::default(),
        }
    }
}

/// A trailer section with its empty line.
fn trailers(text: &[u8]) -> Result<Option<HeaderMap>, &'static str> {
    const MALFORMED: &str = "its trailers are malformed";
    let mut storage = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let Ok(httparse::Status::Complete((_, found))) = httparse::parse_headers(text, &mut storage) else {
        return Err(MALFORMED);
    };
    let mut fields = HeaderMap::new();
    for field in found {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| MALFORMED)?;
        fields.append(name, HeaderValue::from_bytes(field.value).map_err(|_| MALFORMED)?);
    }
    Ok(Some(fields).filter(|it| !it.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_and_chosen() {
        let request = Request::get("/a?b=c").header("Host", "a.test").header("X-Y", "z").body(()).unwrap();
        assert_eq!(head(&request), b"GET /a?b=c HTTP/1.1\r\nhost: a.test\r\nx-y: z\r\n\r\n");
        for (name, value, is_one) in [
            ("host", "a.test", true),
            ("content-length", "0", true),
            ("content-length", "1", false),
            ("transfer-encoding", "chunked", false),
            ("upgrade", "websocket", false),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            assert_eq!(is_for(&headers), is_one, "{name}: {value}");
        }
    }

    #[test]
    fn trailers_are_fields_or_an_error() {
        assert_eq!(trailers(b"\r\n"), Ok(None));
        assert_eq!(trailers(b"X-T: 1\r\n\r\n").unwrap().unwrap()["x-t"], "1");
        assert!(trailers(b"X T: 1\r\n\r\n").is_err() && trailers(b"X: 1\r\n").is_err());
    }
}
