//! The only place that spawns tasks: each has a name and says what its end means.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the process does when a task ends although nobody asked it to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnExit {
    /// Nothing: one connection, one build.
    Continue,
    /// Stop: a listener, a role's loop.
    Shutdown,
}

/// Spawns and stops the tasks of a process; cheap to clone.
#[derive(Clone, Default)]
pub struct Supervisor {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose tasks are stopped with this one's, and can be stopped before: what ends one of them unasked ends the
    /// others of the child, not of the parent. Whoever makes it waits for its tasks.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new() }
    }

    /// Cancelled when the process is to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs `task` until it ends. A panic counts as an error. Tasks watch [`Supervisor::token`] themselves.
    pub fn spawn<F>(&self, name: &'static str, on_exit: OnExit, task: F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        // On the heap: what tracks it would have room for all of it a second time.
        let watched = Watched { name, on_exit, token: self.token.clone(), task: Box::pin(task) };
        self.tracker.spawn(watched);
    }

    /// Runs the future that `make` gives on a thread of its own with a single-threaded runtime: for loops that share
    /// nothing with other cores. Tasks spawned inside stay on that thread and end with it.
    pub fn spawn_thread<M, F>(&self, name: &str, on_exit: OnExit, make: M) -> std::io::Result<()>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<(), BoxError>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (token, tracked, task) = (self.token.clone(), self.tracker.token(), name.to_owned());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _tracked = tracked;
            let run = AssertUnwindSafe(|| runtime.block_on(make()));
            ended(&task, on_exit, &token, catch_unwind(run));
        })?;
        Ok(())
    }

    /// Asks every task to stop and waits at most `grace`. Returns whether all did.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// A task that runs, and what its end means.
struct Watched<F> {
    name: &'static str,
    on_exit: OnExit,
    token: CancellationToken,
    task: Pin<Box<F>>,
}

impl<F: Future<Output = Result<(), BoxError>>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let outcome = match catch_unwind(AssertUnwindSafe(|| self.task.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(outcome)) => Ok(outcome),
            Err(panic) => Err(panic),
        };
        ended(self.name, self.on_exit, &self.token, outcome);
        Poll::Ready(())
    }
}

fn ended(task: &str, on_exit: OnExit, token: &CancellationToken, outcome: std::thread::Result<Result<(), BoxError>>) {
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(task, %error, "task failed"),
        // The panic hook has said where and why.
        Err(_) => tracing::error!(task, "task panicked"),
    }
    if on_exit == OnExit::Shutdown && !token.is_cancelled() {
        tracing::info!(task, "task ended, the process stops");
        token.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_or_a_panic_of_what_must_run_stops_the_process() {
        for (on_exit, stops) in [(OnExit::Continue, false), (OnExit::Shutdown, true)] {
            for panics in [false, true] {
                let supervisor = Supervisor::new();
                supervisor.spawn("test", on_exit, async move {
                    tokio::task::yield_now().await;
                    assert!(!panics, "on purpose");
                    Err("on purpose".into())
                });
                supervisor.tracker.close();
                supervisor.tracker.wait().await;
                assert_eq!(supervisor.token().is_cancelled(), stops, "{on_exit:?} {panics}");
            }
        }
    }
}
