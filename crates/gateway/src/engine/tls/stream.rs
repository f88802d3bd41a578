//! A client's TLS connection on buffers of its core: rustls without buffers of its own.
//!
//! What must hold: a connection on which nothing moves holds no buffer; rustls sees all bytes of the client, in order, and
//! alone decides what they mean; a client without `close_notify` has not ended but broken off; memory of one client is
//! bounded, whatever it sends.

use crate::engine::buffers::{SIZE, Span, put, take};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes of a client that rustls cannot do anything with yet: a message of a handshake.
const MOST_HELD: usize = 64 * 1024;
/// Least room for a read.
const LEAST_READ: usize = 4096;
/// Most bytes that are encrypted at once: with what each record adds they fit into a buffer.
const MOST_AT_ONCE: usize = SIZE - 256;
/// Most bytes that wait for the next write to go with it: session tickets.
const MOST_BEFORE: usize = 4096;
/// More than a record adds.
const RECORD: usize = 64;
/// Most bytes of a record.
const IN_RECORD: usize = 16 * 1024;

/// See the module.
pub(in crate::engine) struct TlsStream<S> {
    io: S,
    tls: UnbufferedServerConnection,
    /// Records from the client.
    incoming: Span,
    /// Records for the client.
    outgoing: Span,
    /// Records that go before all others, in no more room than they need: session tickets, which wait for the first
    /// answer and are sent with it. A client that asks nothing needs none.
    tickets: Box<[u8]>,
    /// What the client has said and nobody has read.
    said: Span,
    /// Nobody has said anything yet.
    early: bool,
    /// The client has said that no more will come.
    ended: bool,
    /// So it has, and we have said nothing since.
    parting: bool,
    /// We have said so.
    closed: bool,
    /// Somebody broke the protocol: rustls must not be asked again.
    failed: bool,
}

/// What is to be said to the client.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Close,
}

/// Reads more of a client, at most [`MOST_HELD`] altogether; 0 at its end.
pub(super) fn poll_fill<S: AsyncRead + Unpin>(
    incoming: &mut Span,
    cx: &mut Context<'_>,
    io: &mut S,
) -> Poll<io::Result<usize>> {
    if incoming.len() >= MOST_HELD {
        return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, "a message of TLS is too long")));
    }
    let mut room = ReadBuf::new(incoming.room(LEAST_READ));
    let read = Pin::new(io).poll_read(cx, &mut room);
    let count = room.filled().len();
    match read {
        Poll::Ready(Ok(())) if count > 0 => incoming.add(count),
        _ => incoming.rest(),
    }
    read.map_ok(|()| count)
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// Takes what rustls says by itself.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, outgoing: &mut Span) -> io::Result<()> {
    let mut wanted = RECORD;
    loop {
        match data.encode(outgoing.room(wanted)) {
            Ok(count) => {
                outgoing.add(count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => wanted = required_size,
            Err(error @ EncodeError::AlreadyEncoded) => return Err(io::Error::other(error)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Completes the handshake of a client that has sent `incoming` already. On the heap from the beginning: whoever might
    /// serve TLS has room for what this returns.
    pub(super) async fn accept(io: S, incoming: Span, config: Arc<ServerConfig>) -> io::Result<Box<Self>> {
        let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let (outgoing, said) = (Span::default(), Span::default());
        let (early, ended, parting, closed, failed) = (true, false, false, false, false);
        let tickets = Box::default();
        let mut this =
            Box::new(Self { io, tls, incoming, outgoing, tickets, said, early, ended, parting, closed, failed });
        poll_fn(|cx| this.poll_handshake(cx)).await?;
        Ok(this)
    }

    /// The protocol that was agreed on.
    pub(in crate::engine) fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// The version of the protocol, and whether an earlier session goes on; for a handshake that is complete.
    pub(super) fn agreed(&self) -> (&'static str, bool) {
        let version = match self.tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            _ => "1.2",
        };
        (version, self.tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.work(cx, &mut ReadBuf::new(&mut []))?;
            if !self.tls.is_handshaking() && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                // What is left are tickets. Nobody waits for them: they go with the first answer.
                return Poll::Ready(Ok(()));
            }
            let drained = self.poll_drain(cx)?;
            if !self.tls.is_handshaking() {
                return drained.map(Ok);
            }
            // Also while there is more to write: a client may want to be read first.
            if self.ended || ready!(poll_fill(&mut self.incoming, cx, &mut self.io))? == 0 {
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Looks at all that came. When that is not TLS, the client is told as far as it listens.
    fn work(&mut self, cx: &mut Context<'_>, heard: &mut ReadBuf<'_>) -> io::Result<()> {
        let outcome = self.turn(heard, Say::Nothing);
        if outcome.is_err() {
            self.take_up();
            let _ = self.poll_drain(cx);
        }
        outcome
    }

    /// Lets rustls work on all that is there, and says something then. What the client says goes to `heard`; what has
    /// no room there is kept.
    fn turn(&mut self, heard: &mut ReadBuf<'_>, say: Say<'_>) -> io::Result<()> {
        if self.failed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let outcome = self.ask(heard, say);
        if outcome.is_err() {
            self.failed = true;
            // What rustls has still to say: an alert.
            while self.tls.wants_write() {
                match self.tls.process_tls_records(&mut []).state {
                    Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.outgoing)?,
                    Ok(ConnectionState::ReadTraffic(mut traffic)) => while traffic.next_record().is_some() {},
                    _ => break,
                }
            }
        }
        outcome
    }

    fn ask(&mut self, heard: &mut ReadBuf<'_>, say: Say<'_>) -> io::Result<()> {
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(self.incoming.filled());
            let mut goes_on = true;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        let now = if self.said.is_empty() { heard.remaining().min(record.payload.len()) } else { 0 };
                        heard.put_slice(&record.payload[..now]);
                        self.said.push(&record.payload[now..]);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.outgoing)?,
                // It is ours now, and goes before everything that follows.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => (self.ended, self.parting) = (true, true),
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    goes_on = false;
                    let mut wanted = RECORD;
                    loop {
                        let written = match say {
                            Say::Nothing => break,
                            Say::Bytes(bytes) => {
                                wanted = wanted.max(bytes.len() + (bytes.len() / IN_RECORD + 1) * RECORD);
                                traffic.encrypt(bytes, self.outgoing.room(wanted))
                            }
                            Say::Close => traffic.queue_close_notify(self.outgoing.room(wanted)),
                        };
                        match written {
                            Ok(count) => break self.outgoing.add(count),
                            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                                wanted = required_size;
                            }
                            Err(error @ EncryptError::EncryptExhausted) => return Err(io::Error::other(error)),
                        }
                    }
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    goes_on = false;
                    if !matches!(say, Say::Nothing) {
                        return Err(ErrorKind::NotConnected.into());
                    }
                }
                // Nobody is told that it may be sent.
                Ok(_) => return Err(io::Error::new(ErrorKind::InvalidData, "the client has sent early data")),
                Err(error) => return Err(invalid(error)),
            }
            self.incoming.skip(discard);
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Keeps what waits without its buffer.
    fn put_by(&mut self) {
        self.tickets = (&*self.outgoing.filled()).into();
        self.outgoing.skip(self.tickets.len());
    }

    /// Puts it before everything that is to be said.
    fn take_up(&mut self) {
        if !self.tickets.is_empty() {
            let later = self.outgoing.filled().to_vec();
            self.outgoing.skip(later.len());
            self.outgoing.push(&std::mem::take(&mut self.tickets));
            self.outgoing.push(&later);
        }
    }

    /// Whether the client's connection has ended as well: after its last word nobody hears ours.
    fn is_hung_up(&mut self, cx: &mut Context<'_>) -> bool {
        let mut room = [0];
        let mut room = ReadBuf::new(&mut room);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut room);
        read.is_ready() && room.filled().is_empty()
    }

    /// Writes what was encrypted.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.outgoing.filled()))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                count => self.outgoing.skip(count),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            if !this.said.is_empty() {
                let step = this.said.len().min(buffer.remaining());
                buffer.put_slice(&this.said.filled()[..step]);
                this.said.skip(step);
                this.early = false;
                return Poll::Ready(Ok(()));
            }
            if buffer.filled().len() > before || this.ended || buffer.remaining() == 0 {
                this.early = false;
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(filled) = poll_fill(&mut this.incoming, cx, &mut this.io) else {
                if this.early && !this.outgoing.is_empty() {
                    this.put_by(); // nothing else is there: an idle connection holds no buffer
                }
                return Poll::Pending;
            };
            if filled? == 0 {
                // Without a word: what came may not be all.
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
            let known = this.outgoing.len();
            this.work(cx, buffer)?;
            // What rustls has answered by itself.
            if this.outgoing.len() > known {
                this.take_up();
                if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        this.take_up();
        // One buffer at a time.
        if this.outgoing.len() > MOST_BEFORE {
            ready!(this.poll_drain(cx))?;
        }
        let bytes = &bytes[..bytes.len().min(MOST_AT_ONCE - this.outgoing.len())];
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.turn(&mut ReadBuf::new(&mut []), Say::Bytes(bytes))?;
        (this.early, this.parting) = (false, false);
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is left goes with the next write, or when it is flushed.
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut there = pieces.iter().filter(|it| !it.is_empty());
        if let (Some(only), None) = (there.next(), there.next()) {
            return self.poll_write(cx, only);
        }
        // A head and its body are one record.
        let mut all = take();
        for piece in pieces {
            let step = piece.len().min(MOST_AT_ONCE - all.len());
            all.extend_from_slice(&piece[..step]);
        }
        let written = self.poll_write(cx, &all);
        put(all);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.closed, true) {
            if this.parting && this.outgoing.is_empty() && this.is_hung_up(cx) {
                return Poll::Ready(Ok(()));
            }
            this.take_up();
            // After a failure there is nothing to say any more.
            let _ = this.turn(&mut ReadBuf::new(&mut []), Say::Close);
        }
        ready!(this.poll_drain(cx))?;
        if this.ended {
            // Both have said it: the connection is closed next, which ends our side as well.
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
