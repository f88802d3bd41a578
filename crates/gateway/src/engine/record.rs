//! One request from its head to the end of its answer: counted for its route, and written to the access log.
//!
//! What must hold: each is counted once and has at most one line, whichever way it ends. While there is no access log,
//! nothing is kept of a request but a few numbers.

use super::Core;
use super::body::BodyWatch;
use crate::access_log::{Line, Log};
use crate::metrics::RouteMetrics;
use crate::upstream::Upstream;
use http::HeaderMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Status of a request whose client left before it was answered, as nginx has it.
const LEFT: u16 = 499;
/// The field that names a request.
const REQUEST_ID: &str = "x-request-id";

/// See the module: counts and writes when it is dropped.
pub(super) struct Recording {
    /// `None` while it is for no route.
    route: Option<Arc<RouteMetrics>>,
    began: Instant,
    /// `None`: it is over when this is dropped.
    took: Option<Duration>,
    /// 0 while it is not answered.
    status: u16,
    received: u64,
    sent: u64,
    /// Counts what else is received.
    watch: Option<Arc<BodyWatch>>,
    /// `None` when there will be no line.
    draft: Option<Box<Draft>>,
}

impl Recording {
    /// Of a request whose head is here since `began`.
    pub(super) fn new(began: Instant, draft: Option<Box<Draft>>) -> Self {
        Self { route: None, began, took: None, status: 0, received: 0, sent: 0, watch: None, draft }
    }

    /// Of a request that is answered by these routes.
    pub(super) fn of(route: Arc<RouteMetrics>, began: Instant, draft: Option<Box<Draft>>) -> Self {
        route.begun();
        let mut this = Self::new(began, draft);
        this.route = Some(route);
        this
    }

    /// When the head was here.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// It is answered by the routes of the host `name`.
    pub(super) fn routed(&mut self, route: &Arc<RouteMetrics>, name: &Arc<str>) {
        route.begun();
        self.route = Some(Arc::clone(route));
        if let Some(draft) = &mut self.draft {
            draft.route = Some(Arc::clone(name));
        }
    }

    /// Who asked, as a trusted proxy says.
    pub(super) fn asked_by(&mut self, client: IpAddr) {
        if let Some(draft) = &mut self.draft {
            draft.client = client;
        }
    }

    /// The id that the request gets here when its client gave none.
    pub(super) fn gets(&mut self, fresh_id: u128) {
        if let Some(draft) = &mut self.draft
            && draft.part(Part::RequestId).is_empty()
        {
            draft.fresh_id = Some(fresh_id);
        }
    }

    /// Its body is counted there.
    pub(super) fn watched(&mut self, watch: Option<&Arc<BodyWatch>>) {
        self.watch = watch.map(Arc::clone);
    }

    /// This endpoint has begun to answer.
    pub(super) fn reached(&mut self, upstream: &Upstream, endpoint: SocketAddr) {
        if let Some(draft) = &mut self.draft {
            draft.upstream = Some((Arc::clone(&upstream.reference), endpoint, self.began.elapsed()));
        }
    }

    /// It is answered so; counts the answer for its route.
    pub(super) fn answered(&mut self, status: u16) {
        if let Some(route) = &self.route {
            route.answered(status);
        }
        self.status = status;
    }

    /// It is answered so, which is counted already.
    pub(super) fn has_status(&mut self, status: u16) {
        self.status = status;
    }

    /// It is over and took so long.
    pub(super) fn took(&mut self, took: Duration) {
        self.took = Some(took);
    }

    /// So many bytes more of both bodies have passed.
    pub(super) fn passed(&mut self, received: u64, sent: u64) {
        self.received += received;
        self.sent += sent;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.route.is_none() && self.draft.is_none() {
            return;
        }
        let took = self.took.unwrap_or_else(|| self.began.elapsed());
        let received = self.received + self.watch.as_ref().map_or(0, |it| it.received());
        if let Some(route) = &self.route {
            route.over(took, received, self.sent);
        }
        if let Some(draft) = &self.draft {
            draft.write(if self.status == 0 { LEFT } else { self.status }, took, received, self.sent);
        }
    }
}

/// The right to a line, which a request may have.
pub(super) struct Ticket {
    log: Arc<Log>,
    core: usize,
    sampled: bool,
}

/// What a line says of the head of a request.
pub(super) struct Head<'a> {
    pub(super) client: IpAddr,
    pub(super) tls: Option<&'static str>,
    pub(super) protocol: &'static str,
    pub(super) method: &'a str,
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) host: &'a str,
    pub(super) referer: &'a [u8],
    pub(super) user_agent: &'a [u8],
    /// Empty when the client gave none that can be passed on.
    pub(super) request_id: &'a [u8],
}

/// What is kept of a request for its line.
pub(super) struct Draft {
    ticket: Ticket,
    client: IpAddr,
    tls: Option<&'static str>,
    protocol: &'static str,
    /// The parts, one behind the other, and where each ends.
    text: Vec<u8>,
    ends: [usize; Part::COUNT],
    fresh_id: Option<u128>,
    route: Option<Arc<str>>,
    upstream: Option<(Arc<str>, SocketAddr, Duration)>,
}

/// A part of a head.
#[derive(Clone, Copy, Debug)]
enum Part {
    Method,
    Target,
    Host,
    Referer,
    UserAgent,
    RequestId,
}

impl Part {
    const COUNT: usize = Self::RequestId as usize + 1;
}

impl Ticket {
    /// For the next request of a core, when it may have a line.
    pub(super) fn take(core: &Core) -> Option<Self> {
        let log = core.shared.access_log.current()?;
        let sampled = log.takes(core.number)?;
        Some(Self { log, core: core.number, sampled })
    }

    /// Keeps what its line says of a request's head.
    pub(super) fn draft(self, head: &Head<'_>) -> Box<Draft> {
        let parts: [&[u8]; Part::COUNT] = [
            head.method.as_bytes(),
            head.target.as_bytes(),
            head.host.as_bytes(),
            head.referer,
            head.user_agent,
            head.request_id,
        ];
        let mut text = Vec::with_capacity(parts.iter().map(|it| it.len()).sum());
        let ends = parts.map(|it| {
            text.extend_from_slice(it);
            text.len()
        });
        let &Head { client, tls, protocol, .. } = head;
        Box::new(Draft { ticket: self, client, tls, protocol, text, ends, fresh_id: None, route: None, upstream: None })
    }
}

impl Draft {
    /// Keeps the id that the request gets here, and the host of the routes that answer it.
    pub(super) fn named(&mut self, fresh_id: Option<u128>, route: Option<&Arc<str>>) {
        (self.fresh_id, self.route) = (fresh_id, route.map(Arc::clone));
    }

    fn part(&self, part: Part) -> &[u8] {
        let at = part as usize;
        let begin = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.text[begin..self.ends[at]]
    }

    fn write(&self, status: u16, took: Duration, received: u64, sent: u64) {
        let fresh_id = self.fresh_id.map(|it| format!("{it:032x}"));
        let request_id = fresh_id.as_ref().map_or_else(|| self.part(Part::RequestId), |it| it.as_bytes());
        let line = Line {
            time: SystemTime::now(),
            client: self.client,
            method: self.part(Part::Method),
            target: self.part(Part::Target),
            protocol: self.protocol,
            host: self.part(Part::Host),
            referer: self.part(Part::Referer),
            user_agent: self.part(Part::UserAgent),
            request_id,
            tls: self.tls,
            status,
            received,
            sent,
            took,
            route: self.route.as_deref(),
            upstream: self.upstream.as_ref().map(|it| (&*it.0, it.1, it.2)),
        };
        self.ticket.log.write(self.ticket.core, self.ticket.sampled, &line);
    }
}

/// A field of a head as a line has it.
pub(super) fn field<'a>(headers: &'a HeaderMap, name: &str) -> &'a [u8] {
    headers.get(name).map_or(&b""[..], |it| it.as_bytes())
}

/// The id that a client gave its request, when it can be passed on.
pub(super) fn request_id(headers: &HeaderMap) -> &[u8] {
    let id = field(headers, REQUEST_ID);
    if super::headers::is_request_id(id) { id } else { b"" }
}

/// Bytes that pass through a tunnel, for as long as it goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Passed {
    /// Counts what is read from a client's stream, and what is written to it.
    pub(super) fn count<S>(&self, stream: S) -> Counting<S> {
        Counting { stream, passed: self.clone() }
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(super) struct Counting<S> {
    stream: S,
    passed: Passed,
}

impl<S> Counting<S> {
    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &written {
            self.passed.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.passed.received.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
