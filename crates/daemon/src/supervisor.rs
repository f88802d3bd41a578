//! The only place that spawns tasks: each has a name and says what its end means.

use std::future::Future;
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

    /// Cancelled when the process is to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs `task` until it ends. A panic counts as an error. Tasks watch [`Supervisor::token`] themselves.
    pub fn spawn<F>(&self, name: &'static str, on_exit: OnExit, task: F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            let outcome = tokio::spawn(task).await.map_err(BoxError::from).and_then(|it| it);
            if let Err(error) = &outcome {
                tracing::error!(task = name, error = %error, "task failed");
            }
            if on_exit == OnExit::Shutdown && !token.is_cancelled() {
                tracing::info!(task = name, "task ended, the process stops");
                token.cancel();
            }
        });
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
            let run = std::panic::AssertUnwindSafe(|| runtime.block_on(make()));
            match std::panic::catch_unwind(run) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(task, %error, "task failed"),
                Err(_) => tracing::error!(task, "task panicked"),
            }
            if on_exit == OnExit::Shutdown && !token.is_cancelled() {
                tracing::info!(task, "task ended, the process stops");
                token.cancel();
            }
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
