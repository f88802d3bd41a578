//! One-off programs with their input and output connected, as every driver begins and ends them.
//!
//! What must hold: the workload goes with its program, with whoever asked for it, with its time and with the server; the
//! exit status is told when nothing is left. Not here: how a workload is made and cleared.

use crate::{Error, ExecSession};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What `beginning` comes to, unless the server stops or the time is over before.
pub async fn begun<T>(
    beginning: impl Future<Output = Result<T, Error>>,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<T, Error> {
    tokio::select! {
        begun = beginning => begun,
        () = stop.cancelled() => Err(Error::Refused("the server stops".to_owned())),
        () = tokio::time::sleep_until(deadline) => Err(Error::Refused("its time was over before it could start".to_owned())),
    }
}

/// The session for whoever asked, and what is to run beside it: when the program has ended or is to end, it calls `leave`,
/// which clears the workload.
pub fn tied(
    session: ExecSession,
    deadline: Instant,
    stop: CancellationToken,
    leave: impl Future<Output = ()> + Send,
) -> (ExecSession, impl Future<Output = ()> + Send) {
    let ExecSession { stdin, stdout, stderr, resize, exit: mut ended } = session;
    let (mut told, exit) = oneshot::channel();
    let beside = async move {
        let status = tokio::select! {
            status = &mut ended => status.ok(),
            () = told.closed() => None,
            () = tokio::time::sleep_until(deadline) => None,
            () = stop.cancelled() => None,
        };
        drop(ended); // ends the program, or the connection to it
        leave.await;
        if let Some(status) = status {
            let _ = told.send(status); // the session may be gone
        }
    };
    (ExecSession { stdin, stdout, stderr, resize, exit }, beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use tokio::sync::mpsc;

    fn session() -> (oneshot::Sender<i32>, ExecSession) {
        let (end, exit) = oneshot::channel();
        let (stdin, stdout, stderr) =
            (Box::new(tokio::io::sink()), Box::new(tokio::io::empty()), Box::new(tokio::io::empty()));
        (end, ExecSession { stdin, stdout, stderr, resize: mpsc::channel(1).0, exit })
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_goes_with_everything_that_it_is_for() {
        for way in ["it ended", "nobody asks any more", "its time is over", "the server stops"] {
            let ((end, session), stop) = (session(), CancellationToken::new());
            let seconds = if way == "its time is over" { 5 } else { 1 << 20 };
            let cleared = Arc::new(AtomicBool::new(false));
            let clear = cleared.clone();
            let leave = async move { clear.store(true, Ordering::SeqCst) };
            let deadline = Instant::now() + Duration::from_secs(seconds);
            let (session, beside) = tied(session, deadline, stop.clone(), leave);
            let (mut end, mut exit) = (Some(end), Some(session.exit));
            match way {
                "it ended" => assert!(end.take().unwrap().send(7).is_ok()),
                "nobody asks any more" => drop(exit.take()),
                "the server stops" => stop.cancel(),
                _ => {}
            }
            assert!(!cleared.load(Ordering::SeqCst), "{way}");
            beside.await;
            assert!(cleared.load(Ordering::SeqCst), "{way}");
            assert!(end.is_none_or(|it| it.is_closed()), "{way}: the program is told to end");
            let told = match exit {
                Some(exit) => exit.await.ok(),
                None => None,
            };
            assert_eq!(told, (way == "it ended").then_some(7), "{way}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_beginning_that_takes_for_ever_ends() {
        let soon = Instant::now() + Duration::from_secs(5);
        let (stop, never) = (CancellationToken::new(), std::future::pending::<Result<(), Error>>);
        let late = begun(never(), soon, &stop).await.unwrap_err().to_string();
        assert!(late.contains("time was over"), "{late}");
        stop.cancel();
        let stopped = begun(never(), Instant::now() + Duration::from_secs(5), &stop).await.unwrap_err().to_string();
        assert!(stopped.contains("server stops"), "{stopped}");
        let later = Instant::now() + Duration::from_secs(5);
        assert_eq!(begun(async { Ok(3) }, later, &CancellationToken::new()).await.ok(), Some(3));
    }
}
