//! When a request is sent to another endpoint, and how often that may be. Whether it may be sent twice at all is decided
//! where it is sent (`engine/forward.rs`).

use arco_model::route::RetryOn;
use http::StatusCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Retries that are always saved up at first, in hundredths.
const RESERVE: u32 = 10 * 100;

/// A rule's retries. What is saved up begins anew with a change of the route.
#[derive(Debug)]
pub struct Retry {
    /// Most endpoints that one request is sent to, the first one included.
    pub attempts: usize,
    /// Longest wait for the answer of one endpoint.
    pub attempt: Option<Duration>,
    on: [bool; 3],
    statuses: Vec<StatusCode>,
    percent: u32,
    /// Retries that may be made, in hundredths.
    saved: AtomicU32,
}

impl Retry {
    /// Retries after these outcomes; each request saves up `percent` hundredths of one.
    pub fn new(
        attempts: usize,
        on: &[RetryOn],
        statuses: Vec<StatusCode>,
        attempt: Option<Duration>,
        percent: u32,
    ) -> Self {
        let has = |it| on.contains(&it);
        let on = [has(RetryOn::Connect), has(RetryOn::Broken), has(RetryOn::Timeout)];
        let saved = AtomicU32::new(if percent == 0 { 0 } else { RESERVE });
        Self { attempts, attempt, on, statuses, percent, saved }
    }

    /// Whether a request is sent again after this.
    pub fn wants(&self, outcome: RetryOn) -> bool {
        self.on[outcome as usize]
    }

    /// Whether it is sent again after this answer.
    pub fn wants_status(&self, status: StatusCode) -> bool {
        self.statuses.contains(&status)
    }

    /// Whether any answer has it sent again.
    pub fn wants_any_status(&self) -> bool {
        !self.statuses.is_empty()
    }

    /// Counts a request.
    pub fn earn(&self) {
        let more = |it: u32| (it < RESERVE).then(|| (it + self.percent).min(RESERVE));
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes one retry of what is saved up; false when there is none.
    pub fn spend(&self) -> bool {
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(100)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_the_requests() {
        for (percent, requests, retries) in [(20, 0, 10), (20, 1000, 210), (100, 50, 60), (0, 1000, 0), (7, 100, 17)] {
            let retry = Retry::new(3, &[RetryOn::Connect], Vec::new(), None, percent);
            let mut made = 0;
            for _ in 0..10 {
                made += u32::from(retry.spend());
            }
            for _ in 0..requests {
                retry.earn();
                made += u32::from(retry.spend());
            }
            assert_eq!(made, retries, "{percent} % of {requests}");
        }
        let retry = Retry::new(3, &[RetryOn::Timeout], vec![StatusCode::BAD_GATEWAY], None, 20);
        (0..10_000).for_each(|_| retry.earn());
        assert_eq!((0..100).filter(|_| retry.spend()).count(), 10, "no more than ten at once");
        assert!(retry.wants(RetryOn::Timeout) && !retry.wants(RetryOn::Connect) && !retry.wants(RetryOn::Broken));
        assert!(retry.wants_status(StatusCode::BAD_GATEWAY) && !retry.wants_status(StatusCode::OK));
    }
}
