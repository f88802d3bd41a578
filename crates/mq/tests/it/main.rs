//! The queue on the store in memory and on the embedded one: order, exclusion, failure, loss, the outbox.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod doubt;
mod kill;
mod outbox;
mod work;

use arco_model::job::{JobRequest, Topic};
use arco_mq::{Leased, Queue};
use std::future::Future;
use std::time::Duration;

/// A job for a key.
fn request(key: &str, dedup_id: &str) -> JobRequest {
    JobRequest { topic: Topic::Builder, key: key.to_owned(), dedup_id: dedup_id.to_owned() }
}

/// Waits for something that must happen.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(180), what).await.expect("it happens within 180 s")
}

/// The next job.
async fn take(queue: &Queue) -> Leased {
    soon(queue.lease(Topic::Builder, "worker")).await.unwrap()
}

/// Whether there is no job to take now. (A job that could be taken would be there at once.)
async fn nothing(queue: &Queue) -> bool {
    tokio::time::timeout(Duration::from_millis(150), queue.lease(Topic::Builder, "worker")).await.is_err()
}
