//! Where a request ends, decided strictly: what RFC 9112 calls ambiguous is refused, not guessed.
//!
//! A [`Tracker`] follows the bytes of a client connection without changing them, so that whatever parses them behind
//! it cannot disagree about message borders. Pure: no I/O, no clock.
//!
//! What must hold: no byte of a head that is refused completes that head for the reader behind; lines end with CR LF;
//! exactly one framing per message; nothing is passed on after an upgrade request until it is answered.

mod chunked;
mod head;
#[cfg(test)]
mod tests;

pub(crate) use chunked::Chunked;
pub(crate) use head::length;
pub use head::{Framing, Head, MAX_HEADERS, Request, Storage, storage};

/// Why a message is refused: the status to answer, and the reason in words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// HTTP status code.
    pub status: u16,
    /// One sentence.
    pub why: &'static str,
}

pub(crate) const fn refuse<T>(status: u16, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

#[derive(Debug)]
enum State {
    Head,
    Body(u64),
    Chunked(Chunked),
    /// An upgrade was asked for: nothing more is read until [`Tracker::decide`].
    Undecided,
    Tunnel,
    Refused(Refusal),
}

/// Follows one connection.
#[derive(Debug)]
pub struct Tracker {
    state: State,
    head: Vec<u8>,
    max_head: usize,
    refused_in_body: bool,
    heads: u64,
}

impl Tracker {
    /// A tracker at the beginning of a connection; heads are limited to `max_head` bytes.
    pub fn new(max_head: usize) -> Self {
        Self { state: State::Head, head: Vec::new(), max_head, refused_in_body: false, heads: 0 }
    }

    /// Looks at bytes that arrived; returns how many of them may be passed on. The rest waits: for
    /// [`Tracker::decide`], or for ever when [`Tracker::refusal`] says so.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.step(&bytes[passed..]) {
                Ok(0) => break,
                Ok(taken) => passed += taken,
                Err(refusal) => {
                    self.refuse(refusal);
                    break;
                }
            }
        }
        passed
    }

    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match &mut self.state {
            State::Head => self.head(bytes),
            State::Body(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::Head;
                }
                Ok(taken)
            }
            State::Chunked(chunked) => {
                let taken = chunked.advance(bytes)?;
                if chunked.is_done() {
                    self.state = State::Head;
                }
                Ok(taken)
            }
            State::Tunnel => Ok(bytes.len()),
            State::Undecided | State::Refused(_) => Ok(0),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        if self.head.is_empty() {
            // RFC 9112 §2.2: an empty line before a request is ignored; only in its whole form.
            if bytes[0] == b'\r' || bytes[0] == b'\n' {
                if bytes.starts_with(b"\r\n") {
                    return Ok(2);
                }
                if bytes != b"\r" {
                    return refuse(400, "a line ends without CR LF");
                }
            }
        } else if self.head == b"\r" {
            if bytes[0] != b'\n' {
                return refuse(400, "a line ends without CR LF");
            }
            self.head.clear();
            return Ok(1);
        }
        let known = self.head.len();
        let from = known.saturating_sub(3);
        let room = (self.max_head + 1).saturating_sub(known).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        let Some(end) = self.head[from..].windows(4).position(|it| it == b"\r\n\r\n").map(|it| from + it + 4) else {
            if self.head.len() > self.max_head {
                return refuse(431, "the request header is larger than this gateway accepts");
            }
            head::check_bytes(&self.head, known)?;
            return Ok(room);
        };
        self.head.truncate(end);
        let framing = Head::parse(&self.head)?.framing;
        self.heads += 1;
        self.head.clear();
        self.head.shrink_to(1024);
        self.state = match framing {
            Framing::Length(0) => State::Head,
            Framing::Length(length) => State::Body(length),
            Framing::Chunked => State::Chunked(Chunked::default()),
            Framing::Upgrade => State::Undecided,
        };
        Ok(end - known)
    }

    /// The answer to an upgrade request: a tunnel, or the next request.
    pub fn decide(&mut self, tunnel: bool) {
        if matches!(self.state, State::Undecided) {
            self.state = if tunnel { State::Tunnel } else { State::Head };
        }
    }

    /// Refuses whatever comes next.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refused_in_body = matches!(self.state, State::Chunked(_) | State::Body(_));
        self.state = State::Refused(refusal);
    }

    /// Whether the refusal came inside of a message that had been passed on already.
    pub fn is_refused_in_body(&self) -> bool {
        self.refused_in_body
    }

    /// Why nothing more is passed on.
    pub fn refusal(&self) -> Option<Refusal> {
        if let State::Refused(refusal) = self.state { Some(refusal) } else { None }
    }

    /// How many whole heads were passed on.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether an upgrade waits for its answer.
    pub fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// Whether the connection is between two messages.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Head) && self.head.is_empty()
    }

    /// Whether a body has begun and is not complete.
    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body(_) | State::Chunked(_))
    }

    /// Whether a head has begun and is not complete.
    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head) && !self.head.is_empty()
    }
}
