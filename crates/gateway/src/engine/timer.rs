//! One timer for all deadlines of a connection. It is moved only when it fires early, so that most requests never touch
//! the runtime's timers.

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep};

/// See the module. One task polls it.
#[derive(Debug)]
pub(super) struct Timer {
    deadline: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Timer {
    /// A timer that fires at `deadline`.
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline, sleep: None, armed: false }
    }

    /// Moves the deadline.
    pub(super) fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Ready when the deadline is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
            self.armed = false;
        }
        if self.armed && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.armed = false;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        self.armed = true;
        Poll::Pending
    }
}
