//! One direction of an exchange: a message that is read on one side and written on the other, piece by piece. The next
//! piece is read only when the one before is written, so an exchange never holds more than one buffer per direction.
//!
//! What must hold: exactly the bytes of the message are passed on; what follows it stays in the buffer.

use crate::engine::buffers;
use crate::framing::{Chunked, Refusal};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// What of a body is still to come.
#[derive(Debug)]
pub(super) enum Left {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Box<Chunked>),
    /// Everything until the connection ends; passed on in chunks.
    UntilEnd,
}

/// Why a half ended before its message.
#[derive(Debug)]
pub(super) enum Broken {
    /// The side that is read from ended or failed.
    Source,
    /// The side that is written to failed.
    Sink,
    /// The body breaks its framing.
    Framing(Refusal),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Half {
    /// What was read: a piece that is being written, then what nobody has looked at.
    pub(super) bytes: Vec<u8>,
    /// Where the unseen bytes begin.
    at: usize,
    left: Left,
    /// The piece that is being written: this, then a part of `bytes`, then `after`.
    before: Vec<u8>,
    body: (usize, usize),
    after: Vec<u8>,
    written: usize,
    /// How many bytes of the body were taken to be written.
    taken: u64,
    /// Whether any byte has moved since this was last cleared.
    pub(super) moved: bool,
    /// Whether any byte was ever written.
    pub(super) began: bool,
    /// Whether it is the reader's turn.
    pub(super) reads: bool,
    /// Whether the head is set and nothing of the body was looked at.
    fresh: bool,
    done: bool,
}

impl Half {
    /// A half that has read `bytes`; see [`Half::begin`].
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            at: 0,
            left: Left::Length(0),
            before: Vec::new(),
            body: (0, 0),
            after: Vec::new(),
            written: 0,
            taken: 0,
            moved: false,
            began: false,
            reads: false,
            fresh: false,
            done: false,
        }
    }

    /// Sets the head to be written in place of the next `length` unseen bytes, and how the body goes on behind them. With
    /// the head goes what is there of the body.
    pub(super) fn begin(&mut self, length: usize, head: Vec<u8>, left: Left) {
        self.at += length;
        (self.before, self.left, self.written, self.done) = (head, left, 0, false);
        self.after.clear();
        self.body = (self.at, self.at);
        self.fresh = !matches!(self.left, Left::Length(_));
        if let Left::Length(length) = self.left {
            self.plain(length);
        }
    }

    /// Bytes that nobody has looked at.
    pub(super) fn unseen(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// How many bytes of the body were written.
    pub(super) fn passed(&self) -> u64 {
        let length = self.body.1 - self.body.0;
        let written = self.written.saturating_sub(self.before.len()).min(length);
        self.taken - (length - written) as u64
    }

    /// Whether all of the message was read and written.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Writes the piece again from its beginning: only while nothing was written, or for a head without a body.
    pub(super) fn rewind(&mut self) {
        (self.written, self.done, self.began) = (0, false, false);
    }

    /// Skips `length` unseen bytes.
    pub(super) fn skip(&mut self, length: usize) {
        self.at += length;
    }

    /// The buffer of a head that was written, for the next one.
    pub(super) fn spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.before)
    }

    /// Ends it; what follows the message is left.
    pub(super) fn into_unseen(mut self) -> Vec<u8> {
        if self.at == self.bytes.len() {
            return Vec::new();
        }
        self.bytes.drain(..self.at);
        std::mem::take(&mut self.bytes)
    }

    fn plain(&mut self, length: u64) {
        let step = usize::try_from(length).unwrap_or(usize::MAX).min(self.bytes.len() - self.at);
        self.body = (self.at, self.at + step);
        self.at += step;
        self.taken += step as u64;
        self.left = Left::Length(length - step as u64);
    }

    /// Passes on what can be passed on; ready when the message is over or broken.
    pub(super) fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if std::mem::take(&mut self.fresh) && !self.unseen().is_empty() && !self.is_read() {
            // What is there of the body goes with the head.
            self.next_piece()?;
        }
        loop {
            self.reads = false;
            ready!(self.poll_write(cx, to)).map_err(|_| Broken::Sink)?;
            if self.is_read() {
                self.done = true;
                if self.at == self.bytes.len() {
                    self.release();
                }
                return Poll::Ready(Ok(()));
            }
            if self.at == self.bytes.len() {
                self.bytes.clear();
                (self.at, self.body) = (0, (0, 0));
                match ready!(self.poll_more(cx, from)) {
                    Ok(1..) => {}
                    Ok(0) if matches!(self.left, Left::UntilEnd) => {
                        self.piece(0, 0, b"0\r\n\r\n");
                        self.left = Left::Length(0);
                        continue;
                    }
                    Ok(_) | Err(_) => return Poll::Ready(Err(Broken::Source)),
                }
            }
            self.next_piece()?;
        }
    }

    /// Whether all of the message was read.
    pub(super) fn is_read(&self) -> bool {
        match &self.left {
            Left::Length(left) => *left == 0,
            Left::Chunked(chunked) => chunked.is_done(),
            Left::UntilEnd => false,
        }
    }

    fn next_piece(&mut self) -> Result<(), Broken> {
        match &mut self.left {
            Left::Length(left) => {
                let left = *left;
                self.before.clear();
                self.after.clear();
                self.written = 0;
                self.plain(left);
            }
            Left::Chunked(chunked) => {
                let at = self.at;
                let (taken, kept) = chunked.decode(&mut self.bytes[at..]).map_err(Broken::Framing)?;
                self.at += taken;
                let trailers = chunked.is_done().then(|| [b"0\r\n", chunked.trailers()].concat());
                self.piece(at, kept, trailers.as_deref().unwrap_or_default());
            }
            Left::UntilEnd => {
                let (at, length) = (self.at, self.bytes.len() - self.at);
                self.at += length;
                self.piece(at, length, b"");
            }
        }
        Ok(())
    }

    /// Makes a chunk of `length` bytes at `at`, and what follows it.
    fn piece(&mut self, at: usize, length: usize, then: &[u8]) {
        if self.written > 0 {
            self.before.clear();
        }
        self.after.clear();
        self.written = 0;
        self.body = (at, at + length);
        self.taken += length as u64;
        if length > 0 {
            push_hex(&mut self.before, length);
            self.before.extend_from_slice(b"\r\n");
            self.after.extend_from_slice(b"\r\n");
        }
        self.after.extend_from_slice(then);
    }

    /// Reads into the buffer; `Ok(0)` at the end of the connection.
    pub(super) fn poll_more<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() == 0 {
            self.bytes = buffers::take();
        } else if self.bytes.len() == self.bytes.capacity() {
            self.bytes.reserve(self.bytes.len());
        }
        let read = poll_read_buf(Pin::new(from), cx, &mut self.bytes);
        match &read {
            Poll::Pending => {
                self.reads = true;
                if self.bytes.is_empty() {
                    self.release();
                }
            }
            Poll::Ready(_) => self.moved = true,
        }
        read
    }

    fn release(&mut self) {
        buffers::put(std::mem::take(&mut self.bytes));
        (self.at, self.body) = (0, (0, 0));
    }

    fn poll_write<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        loop {
            let body = &self.bytes[self.body.0..self.body.1];
            let parts = [&self.before[..], body, &self.after[..]];
            let total: usize = parts.iter().map(|it| it.len()).sum();
            if self.written >= total {
                // TLS may hold bytes back until it is asked for them.
                return Pin::new(to).poll_flush(cx);
            }
            let mut slices = [IoSlice::new(b""), IoSlice::new(b""), IoSlice::new(b"")];
            let (mut skip, mut used) = (self.written, 0);
            for part in parts {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    slices[used] = IoSlice::new(&part[skipped..]);
                    used += 1;
                }
            }
            let written = if used == 1 {
                Pin::new(&mut *to).poll_write(cx, &slices[0])
            } else {
                Pin::new(&mut *to).poll_write_vectored(cx, &slices[..used])
            };
            match ready!(written) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.written += count;
                    (self.moved, self.began) = (true, true);
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        buffers::put(std::mem::take(&mut self.bytes));
    }
}

fn push_hex(out: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(number >> (place * 4)) & 15]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use tokio::io::ReadBuf;

    /// Gives at most so many bytes at a time, then the end.
    struct Pieces<'a>(&'a [u8], usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let step = self.0.len().min(self.1).min(buffer.remaining());
            let (piece, rest) = self.0.split_at(step);
            buffer.put_slice(piece);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    /// What is written, and what stays unseen; `None` when it broke.
    fn passed(there: &[u8], then: &[u8], piece: usize, left: Left) -> Option<(String, String)> {
        let mut half = Half::new([b"HEAD", there].concat());
        half.begin(4, b"head|".to_vec(), left);
        let (mut source, mut out) = (Pieces(then, piece), Vec::new());
        match half.poll(&mut Context::from_waker(Waker::noop()), &mut source, &mut out) {
            Poll::Ready(Ok(())) => {}
            _ => return None,
        }
        let unseen = [&half.into_unseen()[..], source.0].concat();
        Some((String::from_utf8(out).unwrap(), String::from_utf8(unseen).unwrap()))
    }

    /// The contents of chunks, with `#` for the last one and what follows it.
    fn contents(text: &str) -> String {
        let (head, mut rest) = text.split_once('|').unwrap();
        let mut all = format!("{head}|");
        loop {
            let (size, after) = rest.split_once("\r\n").unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                return format!("{all}#{after}");
            }
            all += &after[..size];
            rest = after[size..].strip_prefix("\r\n").unwrap();
        }
    }

    /// Takes so many bytes, then none for now.
    struct Narrow(usize);

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let step = self.0.min(bytes.len());
            self.0 -= step;
            if step == 0 { Poll::Pending } else { Poll::Ready(Ok(step)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_has_passed_is_known_at_any_time() {
        let chunks = || Left::Chunked(Box::default());
        // What is there, what follows, how much the other side takes, and how much of the body that was.
        for (there, then, takes, left, expected) in [
            ("abcdefgh", "ij", 3, Left::Length(10), 0),
            ("abcdefgh", "ij", 7, Left::Length(10), 2),
            ("abcdefgh", "ij", 14, Left::Length(10), 9),
            ("abcdefgh", "ij", 100, Left::Length(10), 10),
            ("", "", 100, Left::Length(0), 0),
            ("3\r\nabc\r\n0\r\n\r\n", "", 10, chunks(), 2),
            ("3\r\nabc\r\n0\r\n\r\n", "", 100, chunks(), 3),
            ("abc", "de", 100, Left::UntilEnd, 5),
        ] {
            let mut half = Half::new([b"HEAD", there.as_bytes()].concat());
            half.begin(4, b"head|".to_vec(), left);
            let mut source = Pieces(then.as_bytes(), 100);
            // Whether it is over is not asked here.
            let _ = half.poll(&mut Context::from_waker(Waker::noop()), &mut source, &mut Narrow(takes));
            assert_eq!(half.passed(), expected, "{there:?} {then:?} {takes}");
        }
    }

    #[test]
    fn exactly_the_message_passes() {
        let chunked = b"3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\nnext";
        let trailers = b"1\r\na\r\n0\r\nX-T: 1\r\n\r\nnext";
        for piece in [1, 2, 3, 7, 100] {
            for split in 0..=chunked.len() {
                let (there, then) = chunked.split_at(split);
                let (out, unseen) = passed(there, then, piece, Left::Chunked(Box::default())).unwrap();
                assert_eq!(
                    (contents(&out).as_str(), unseen.as_str()),
                    ("head|abc0123456789#\r\n", "next"),
                    "{piece} {split}"
                );
            }
            for split in 0..=trailers.len() {
                let (there, then) = trailers.split_at(split);
                let (out, _) = passed(there, then, piece, Left::Chunked(Box::default())).unwrap();
                assert_eq!(contents(&out), "head|a#X-T: 1\r\n\r\n");
            }
            for split in 0..=9 {
                let (there, then) = b"bodynext!".split_at(split);
                let plain = passed(there, then, piece, Left::Length(4)).unwrap();
                assert_eq!(plain, ("head|body".to_owned(), "next!".to_owned()));
                let (out, unseen) = passed(there, then, piece, Left::UntilEnd).unwrap();
                assert_eq!((contents(&out).as_str(), unseen.as_str()), ("head|bodynext!#\r\n", ""));
                assert!(passed(there, then, piece, Left::Length(10)).is_none(), "short");
            }
        }
        assert_eq!(passed(b"next", b"", 1, Left::Length(0)).unwrap(), ("head|".to_owned(), "next".to_owned()));
        assert!(passed(b"x", b"", 1, Left::Chunked(Box::default())).is_none());
    }
}
