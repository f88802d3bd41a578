//! How long a client's HTTP/2 connection may be without an open request. hyper keeps one for as long as its client answers
//! pings.
//!
//! What must hold: a client that has asked for nothing within the time of a request's header, or that asks for nothing more
//! within the idle time, is told to go (GOAWAY), and is cut off when it does not. A request counts from the end of its
//! header: one that is begun and never ended holds nothing up. While a request is open nothing is ended here.
//!
//! Not here: a header that is begun beside an open request. Nothing may come between its pieces, so that its client cannot
//! answer a ping any more, and hyper ends the connection.

use super::taking::times;
use crate::engine::guard::ClientLimits;
use std::time::{Duration, Instant};

/// How long a client may take to go that has asked for nothing yet, or whose place others need.
pub(super) const SHORT: Duration = Duration::from_secs(1);

/// See the module. It is told what happens, and acts by nothing itself.
pub(super) struct Life {
    limits: ClientLimits,
    /// Since when no request is open; `None` while one is.
    since: Option<Instant>,
    /// Whether there was one.
    asked: bool,
    /// How long the client may take to go, when it was told to.
    grace: Option<Duration>,
    /// How many bytes of answers may still be on their way.
    left: usize,
}

impl Life {
    /// A connection that begins now.
    pub(super) fn new(limits: ClientLimits, now: Instant) -> Self {
        Self { limits, since: Some(now), asked: false, grace: None, left: 0 }
    }

    /// A request is open.
    pub(super) fn begins(&mut self) {
        if self.since.take().is_some() {
            self.left = 0;
        }
        self.asked = true;
    }

    /// A request has ended; so many bytes of its answer may still be on their way.
    pub(super) fn ended(&mut self, left: usize) {
        self.left = self.left.max(left);
    }

    /// No request is open. Returns since when.
    pub(super) fn rests(&mut self, now: impl FnOnce() -> Instant) -> Instant {
        *self.since.get_or_insert_with(now)
    }

    /// Until when that may be so, when it is since then.
    pub(super) fn until(&self, since: Instant) -> Instant {
        let patience = match self.grace {
            // Who is told to go has all that is on its way first.
            Some(grace) => grace.saturating_mul(times(self.left)),
            None if self.asked => self.limits.idle,
            None => self.limits.request_header,
        };
        since + patience
    }

    /// How long the client may take to go when its time is over.
    pub(super) fn grace(&self) -> Duration {
        if self.asked { self.limits.request_header } else { SHORT }
    }

    /// The client is told to go, and has `grace` for that.
    pub(super) fn tell(&mut self, grace: Duration, now: Instant) {
        self.grace = Some(grace);
        if let Some(since) = &mut self.since {
            *since = now;
        }
    }

    /// Whether it was.
    pub(super) fn is_told(&self) -> bool {
        self.grace.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(60);

    /// What happens to a connection, and how many seconds after its beginning.
    enum Step {
        Begins,
        Ends(u64, usize),
        Told(u64),
    }

    #[test]
    fn a_connection_without_a_request_has_a_time() {
        use Step::{Begins, Ends, Told};
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        // The last thing is when it has to go, in seconds; none while a request is open.
        for (name, steps, until) in [
            ("no request", &[][..], Some(10)),
            ("a request", &[Begins], None),
            ("an answer", &[Begins, Ends(5, 100)], Some(65)),
            ("a large answer", &[Begins, Ends(5, 1 << 20)], Some(65)),
            ("two answers", &[Begins, Ends(5, 0), Begins, Ends(40, 0)], Some(100)),
            ("told before it asked", &[Told(10)], Some(11)),
            ("told when idle", &[Begins, Ends(5, 0), Told(65)], Some(75)),
            ("told while the end of an answer is on its way", &[Begins, Ends(5, 8192), Told(65)], Some(95)),
            ("told while it is served", &[Begins, Told(20)], None),
            ("served after it was told", &[Begins, Told(20), Ends(300, 0)], Some(310)),
            ("only what is on its way counts", &[Begins, Ends(5, 8192), Begins, Ends(9, 0), Told(70)], Some(80)),
        ] {
            let limits = ClientLimits { max_header_bytes: 0, request_header: HEADER, idle: IDLE };
            let mut life = Life::new(limits, begin);
            let mut open = false;
            for step in steps {
                match step {
                    Begins => {
                        life.begins();
                        open = true;
                    }
                    Ends(when, left) => {
                        life.ended(*left);
                        life.rests(|| at(*when));
                        open = false;
                    }
                    Told(when) => life.tell(life.grace(), at(*when)),
                }
            }
            let ends = (!open).then(|| life.until(life.since.unwrap()));
            assert_eq!(ends, until.map(at), "{name}");
        }
    }
}
