//! How far the packing and sending of a source is, for who waits at a terminal.
//!
//! What passes is counted where it is read; the words are made by a pure function. Not here: where they are shown.

use crate::cli::text;
use crate::cli::ui::Ui;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

/// What is done sooner needs no word.
const FIRST: Duration = Duration::from_secs(1);
/// How often the words change.
const EVERY: Duration = Duration::from_millis(500);

/// Bytes that passed; clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passed(Arc<AtomicU64>);

impl Passed {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts what is read.
pub(crate) struct Counted<R> {
    inner: R,
    passed: Passed,
}

impl<R> Counted<R> {
    pub(crate) fn new(inner: R, passed: Passed) -> Self {
        Self { inner, passed }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.passed.add(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

/// Does `work`, and from its second second on says how far it is.
pub(crate) async fn shown<T>(ui: &Ui, words: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut turns = tokio::time::interval_at(Instant::now() + FIRST, EVERY);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = turns.tick() => ui.progress(words()),
        }
    }
}

/// How far the sending of `size` bytes is, `after` so long.
pub(crate) fn sending(passed: u64, size: u64, after: Duration) -> String {
    if passed >= size {
        return format!("{} are sent, the platform keeps them", text::megabytes(size));
    }
    let each_second = (u128::from(passed) * 1000 / after.as_millis().max(1)) as u64;
    let left = match (size - passed).checked_div(each_second) {
        Some(seconds) => format!(", {} left", text::short_duration(seconds)),
        None => String::new(),
    };
    let percent = u128::from(passed) * 100 / u128::from(size);
    format!(
        "sending {} of {} ({percent} %), {}/s{left}",
        text::megabytes(passed),
        text::megabytes(size),
        text::megabytes(each_second)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[test]
    fn how_far_it_is_in_words() {
        const MB: u64 = 1 << 20;
        for (passed, size, seconds, words) in [
            (0, 700 * MB, 1, "sending 0.0 MB of 700 MB (0 %), 0.0 MB/s"),
            (70 * MB, 700 * MB, 7, "sending 70 MB of 700 MB (10 %), 10 MB/s, 63s left"),
            (0, 700 * MB, 0, "sending 0.0 MB of 700 MB (0 %), 0.0 MB/s"),
            (700 * MB, 700 * MB, 70, "700 MB are sent, the platform keeps them"),
            (0, 0, 0, "0.0 MB are sent, the platform keeps them"),
        ] {
            assert_eq!(sending(passed, size, Duration::from_secs(seconds)), words);
        }
    }

    #[tokio::test]
    async fn what_is_read_is_counted() {
        let passed = Passed::default();
        let mut counted = Counted::new(&b"twelve bytes"[..], passed.clone());
        let mut read = Vec::new();
        counted.read_to_end(&mut read).await.unwrap();
        assert_eq!((read.as_slice(), passed.bytes()), (&b"twelve bytes"[..], 12));
    }
}
