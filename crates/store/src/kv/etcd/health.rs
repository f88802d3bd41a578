//! What the driver knows of one member: whether it answers, and until when it is left out.
//!
//! What must hold: while all is well a call costs two writes to memory here. Whoever answers is not left out any more.
//! A call that its caller gave up counts like one that waits: callers with less patience than we have would hide a dead
//! member. Not here: which member is asked (`members`), and what an error says of one (`verdict`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a member that failed is left out, as long as there is another one.
const LEFT_OUT: Duration = Duration::from_secs(10);
/// A member is silent when so many looks in a row, one each second, find calls waiting for it and no answer since the
/// last look.
const LOOKS: u32 = 3;

/// One member's.
pub(super) struct Health {
    began: Instant,
    /// Calls so far.
    asked: AtomicU64,
    /// How many of them were made before it answered last, or was left out: none of these is waited for.
    heard: AtomicU64,
    /// In ms after `began`; 0: it is not left out.
    out_until_ms: AtomicU64,
    /// Whether it is left out because no connection came about in time.
    dark: AtomicBool,
    why: Mutex<String>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            asked: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            out_until_ms: AtomicU64::new(0),
            dark: AtomicBool::new(false),
            why: Mutex::default(),
        }
    }

    /// A call is made.
    pub(super) fn asks(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// It answered.
    pub(super) fn answers(&self) {
        self.heard.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
        if self.out_until_ms.load(Ordering::Relaxed) != 0 {
            self.take_back();
        }
    }

    /// It failed.
    pub(super) fn leave_out(&self, why: &str) {
        self.heard.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why.to_owned();
        self.out_until_ms.store(self.now_ms() + LEFT_OUT.as_millis() as u64, Ordering::Relaxed);
    }

    /// Nothing comes from where it is, not even a refusal.
    pub(super) fn leave_in_the_dark(&self, why: &str) {
        self.leave_out(why);
        self.dark.store(true, Ordering::Relaxed);
    }

    /// It may be asked again.
    pub(super) fn take_back(&self) {
        self.out_until_ms.store(0, Ordering::Relaxed);
        self.dark.store(false, Ordering::Relaxed);
    }

    /// Whether waiting for a connection to it was in vain a moment ago.
    pub(super) fn is_dark(&self) -> bool {
        self.dark.load(Ordering::Relaxed) && self.out_until_ms().is_some()
    }

    /// Until when it is left out; `None` when it is not.
    pub(super) fn out_until_ms(&self) -> Option<u64> {
        Some(self.out_until_ms.load(Ordering::Relaxed)).filter(|it| *it != 0 && self.now_ms() < *it)
    }

    /// Why it was left out last.
    pub(super) fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

/// What the clock remembers of a member between two looks.
#[derive(Default)]
pub(super) struct Quiet {
    heard: u64,
    looks: u32,
}

impl Quiet {
    /// A look; leaves a member out that was silent for too long.
    pub(super) fn look(&mut self, at: &Health) {
        if self.is_too_long(at.asked.load(Ordering::Relaxed), at.heard.load(Ordering::Relaxed)) {
            at.leave_out(&format!("no answer for {LOOKS} s"));
        }
    }

    fn is_too_long(&mut self, asked: u64, heard: u64) -> bool {
        let silent = asked != heard && heard == self.heard;
        self.looks = if silent { self.looks + 1 } else { 0 };
        self.heard = heard;
        self.looks >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_that_somebody_waits_and_nothing_is_said() {
        for (what, looks, wanted) in [
            ("nobody asks", [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], [false; 5]),
            ("all is answered", [(9, 9), (9, 9), (9, 9), (9, 9), (9, 9)], [false; 5]),
            ("one waits", [(1, 0), (1, 0), (1, 0), (1, 1), (1, 1)], [false, false, true, false, false]),
            (
                "callers give up and ask again",
                [(1, 0), (2, 0), (3, 0), (3, 3), (3, 3)],
                [false, false, true, false, false],
            ),
            ("some are answered", [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5)], [false; 5]),
            ("late, but answered", [(1, 0), (1, 0), (2, 1), (2, 1), (2, 2)], [false; 5]),
            ("answers stop", [(5, 4), (6, 4), (7, 4), (7, 4), (7, 7)], [false, false, false, true, false]),
        ] {
            let mut quiet = Quiet::default();
            assert_eq!(looks.map(|(asked, heard)| quiet.is_too_long(asked, heard)), wanted, "{what}");
        }
    }

    #[test]
    fn who_is_silent_is_left_out_until_it_answers() {
        let (health, mut quiet) = (Health::new(), Quiet::default());
        health.asks();
        for _ in 0..LOOKS {
            assert!(health.out_until_ms().is_none());
            quiet.look(&health);
        }
        assert!(health.out_until_ms().is_some());
        assert_eq!(health.why(), "no answer for 3 s");
        // It was told once; whoever asks it again waits as long.
        quiet.look(&health);
        health.take_back();
        quiet.look(&health);
        assert!(health.out_until_ms().is_none());
        health.leave_out("refused");
        assert_eq!((health.out_until_ms().is_some(), health.why().as_str()), (true, "refused"));
        assert!(!health.is_dark());
        health.leave_in_the_dark("nothing");
        assert!(health.is_dark());
        health.answers();
        assert!(health.out_until_ms().is_none() && !health.is_dark());
    }
}
