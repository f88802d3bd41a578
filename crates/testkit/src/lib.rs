//! For tests only: a whole platform as people run it, and ways to hurt it.
//!
//! [`Platform`] starts the real executable on free ports with its own data dir, drives it by the command line and by
//! HTTP, and removes whatever is left of it when dropped, also when a test fails.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod http;
mod killed;
mod leftovers;
mod openssl;
mod platform;
mod random;
pub mod servers;

pub use http::{Response, get};
pub use killed::Killed;
pub use openssl::{has_openssl, openssl};
pub use platform::{Options, Outcome, Platform};
pub use random::Random;

use std::time::{Duration, Instant};

/// How much longer than it should take a machine may take that has much else to do.
const BUSY: u64 = 4;

/// Asks until the answer is `Some`, at most four times the `seconds` that it should take; says what was waited for when time
/// is up.
pub fn until<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Option<T>) -> T {
    let seconds = seconds * BUSY;
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(10)); // the pace of asking, not a wait for something to be over
    }
}

/// Whether this test may make containers and networks; says so loudly when not.
pub fn is_root() -> bool {
    // The owner of our own process folder is our effective user.
    let root = std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    if !root {
        eprintln!("SKIPPED: this test makes containers and needs root");
    }
    root
}
