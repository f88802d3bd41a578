//! When a call has waited for too long: one clock for all calls of a driver.
//!
//! What must hold: no call waits for ever, and none is given up before [`CALL`] is over. Not here: opening a watch, which is
//! rare and has a timer of its own. A timer for each call would mostly be the next one that the runtime waits for, and setting
//! such a one wakes the thread that waits for sockets: a system call and a change of threads at every call, for nothing.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How long a call may take, at least; at most one [`TICK`] more.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Ticks that a call may see: the first one can come right after it began.
const TICKS: u64 = CALL.as_secs() / TICK.as_secs() + 1;

/// The clock; it stands still once nobody holds it.
pub(super) struct Patience {
    ticks: watch::Receiver<()>,
}

impl Patience {
    /// Starts it on the runtime of the caller.
    pub(super) fn start() -> Self {
        let (passed, ticks) = watch::channel(());
        tokio::spawn(async move {
            let mut clock = tokio::time::interval(TICK);
            // A process that was stopped for a while gives its calls the time to be answered.
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                clock.tick().await;
                if passed.send(()).is_err() {
                    return;
                }
            }
        });
        Self { ticks }
    }

    /// Returns when whoever called it now has waited for too long.
    pub(super) async fn over(&self) {
        let mut ticks = self.ticks.clone();
        ticks.mark_unchanged();
        for _ in 0..TICKS {
            // The clock's task ends before its holder only with the runtime, and so do the connections.
            if ticks.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kv::{EtcdKv, Kv as _, Range};
    use std::net::TcpListener;
    use std::time::Duration;

    #[tokio::test]
    async fn a_call_that_is_not_answered_ends() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let kv = EtcdKv::connect(&[silent.local_addr().unwrap().to_string()], None).await.unwrap();
        let read = kv.range(Range::Key(b"/a".to_vec()), 1, None);
        let error = tokio::time::timeout(Duration::from_secs(60), read).await.expect("it ends").unwrap_err();
        assert_eq!(error.to_string(), "the coordination store failed to read: no answer within 5 s");
    }
}
