//! When a call has waited for too long: one clock for all calls of a driver.
//!
//! What must hold: no call waits for ever, and none is given up before [`CALL`] is over. A timer for each call would
//! mostly be the next one that the runtime waits for, and setting such a one wakes the thread that waits for sockets: a
//! system call and a change of threads at every call, for nothing.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How long a call may take, at least; at most one [`TICK`] more.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Ticks that a call may see: the first one can come right after it began.
pub(super) const TICKS: u64 = CALL.as_secs() / TICK.as_secs() + 1;

/// The clock; it stands still once nobody holds it.
pub(super) struct Patience {
    ticks: watch::Receiver<()>,
}

impl Patience {
    /// Starts it on the runtime of the caller. `look` is called at each tick, before those who wait are told.
    pub(super) fn start(mut look: impl FnMut() + Send + 'static) -> Self {
        let (passed, ticks) = watch::channel(());
        tokio::spawn(async move {
            let mut clock = tokio::time::interval(TICK);
            // A process that was stopped for a while gives its calls the time to be answered.
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                clock.tick().await;
                look();
                if passed.send(()).is_err() {
                    return;
                }
            }
        });
        Self { ticks }
    }

    /// Returns when whoever called it has seen the ticks that are `left`, or when at one of them it is better
    /// `elsewhere`.
    pub(super) async fn over(&self, left: &mut u64, elsewhere: impl Fn() -> bool) {
        let mut ticks = self.ticks.clone();
        ticks.mark_unchanged();
        while *left > 0 {
            // The clock's task ends before its holder only with the runtime, and so do the connections.
            if ticks.changed().await.is_err() {
                *left = 0;
                return;
            }
            *left -= 1;
            if elsewhere() {
                return;
            }
        }
    }
}
