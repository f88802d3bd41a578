//! Role: turns sources into images and revisions.
//!
//! Fetch → clean → detect → build → revision. Everything that runs code of a source runs as a one-shot workload of the
//! orchestrator; this process itself only reads tar archives, with limits and without following anything. A job is
//! redone from the start when its worker died, and finds what was finished in the caches. Not here: running
//! instances, keeping logs, serving images.

mod access;
mod cache;
pub mod detect;
mod dockerfile;
mod egress;
mod layer;
mod names;
mod pipeline;
mod role;
mod runner;
mod source;
mod stack;
pub mod tree;

pub use egress::BuildProxy;
pub use role::{Builder, BuilderDeps};
pub use stack::save::{MachineStack, USUAL_STACKS, make_stacks, stack_edition};

use arco_model::error::Problem;

/// Runs blocking work beside the async tasks.
async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(step, error = %error, "blocking work panicked");
        Problem::internal(step)
    })
}

/// A fault of storage as people see it; the cause goes to the log.
fn storage(step: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Problem {
    move |error| {
        tracing::error!(step, error = %error, "a build met a storage fault");
        let text = error.to_string();
        if arco_store::says_full(&text) {
            let message = format!("the platform failed to {step}: the disk is full");
            return Problem::new(
                arco_model::error::ErrorKind::LimitReached,
                "disk_full",
                message,
                "free space on the platform's disk, then deploy again",
            );
        }
        let message = format!("the platform failed to {step}: its storage does not work");
        let advice = "deploy again in a moment; the server's log has the cause";
        Problem::new(arco_model::error::ErrorKind::Unavailable, "storage_failed", message, advice)
    }
}
