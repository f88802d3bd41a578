//! Follows a stream: what is there, then what comes, each line once.
//!
//! A follower holds a number and a few lines, never a queue that grows: the log itself is the buffer. Who is so slow that
//! lines were deleted before they were read is told how many.

use crate::Eventlog;
use crate::query::{Filter, Found, Gaps, LINES_MAX, forward, last};
use crate::stream::{StreamLog, Tip};
use arco_model::log::{LogLine, LogStream};
use futures_util::Stream;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Lines and bytes that a follower reads at once.
const STEP_LINES: usize = 500;
const STEP_BYTES: usize = 1 << 20;

/// What a follower is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A line.
    Line {
        /// Its number in the stream; following again from the next one leaves nothing out.
        number: u64,
        /// The line.
        line: LogLine,
    },
    /// So many lines were deleted or are damaged before they could be read.
    Missed(u64),
    /// Nothing more will come: the stream was removed, `until` has passed, or following was not asked. When the server
    /// stops, the events just end, so that a client asks again later.
    End,
}

impl Eventlog {
    /// The lines of a stream from number `from` on that match, then those that come.
    ///
    /// `filter.tail` and `filter.limit` do not count here: [`Eventlog::watch`] begins with a tail.
    pub fn follow(&self, stream: &LogStream, from: u64, filter: Filter) -> impl Stream<Item = Event> + Send + use<> {
        self.events(stream, Filter { from, tail: None, ..filter }, true)
    }

    /// The lines that match (with `filter.tail` only the last of them); then, with `follow`, those that come.
    pub fn watch(&self, stream: &LogStream, filter: Filter, follow: bool) -> impl Stream<Item = Event> + Send + use<> {
        self.events(stream, filter, follow)
    }

    fn events(&self, stream: &LogStream, filter: Filter, follow: bool) -> impl Stream<Item = Event> + Send + use<> {
        let stream = self.stream(stream);
        let (tip, left) = (stream.tip(), if filter.limit == 0 || follow { usize::MAX } else { filter.limit });
        self.0.metrics.followers.inc();
        let follower = Follower {
            log: self.clone(),
            stream,
            tip,
            filter,
            follow,
            left,
            stop: None,
            queue: VecDeque::new(),
            done: false,
        };
        futures_util::stream::unfold(follower, async |mut it| it.next().await.map(|event| (event, it)))
    }
}

struct Follower {
    log: Eventlog,
    stream: Arc<StreamLog>,
    tip: watch::Receiver<Tip>,
    /// `from` is the number that was reached.
    filter: Filter,
    follow: bool,
    /// Lines that may still be given, when not following.
    left: usize,
    /// Number at which a reader that does not follow ends.
    stop: Option<u64>,
    queue: VecDeque<Event>,
    done: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.0.metrics.followers.dec();
    }
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.done {
                return None;
            }
            let tip = *self.tip.borrow_and_update();
            let first = self.stop.is_none();
            if self.log.0.closing.is_cancelled() && !first {
                self.done = true;
            } else if tip.removed {
                self.end();
            } else if first || self.filter.from < tip.next {
                self.step(first).await;
            } else {
                self.wait().await;
            }
        }
    }

    fn end(&mut self) {
        self.done = true;
        self.queue.push_back(Event::End);
    }

    async fn step(&mut self, first: bool) {
        let filter = self.filter.clone();
        let found = self.log.read(self.stream.clone(), move |stream| match filter.tail {
            Some(tail) if first => last(stream, &filter, tail.min(LINES_MAX)),
            _ => forward(stream, &filter, STEP_LINES, STEP_BYTES, Gaps::End),
        });
        match found.await {
            Ok(found) => self.take(found, first),
            Err(error) => {
                tracing::warn!(error = %error, "a reader of a log is ended");
                self.end();
            }
        }
    }

    fn take(&mut self, found: Found, first: bool) {
        if first {
            self.stop = Some(self.tip.borrow().next.max(found.next));
        }
        if found.missed > 0 {
            self.queue.push_back(Event::Missed(found.missed));
        }
        self.filter.from = found.next;
        for (number, line) in found.lines.into_iter().take(self.left) {
            self.left -= usize::from(!self.follow);
            self.queue.push_back(Event::Line { number, line });
        }
        if !self.follow && (self.left == 0 || self.stop.is_some_and(|it| found.next >= it)) {
            self.end();
        }
    }

    async fn wait(&mut self) {
        let until = self.filter.until.map(|it| Duration::from_millis(it.since_ms(arco_store::clock::now()) + 1));
        let passed = async {
            match until {
                Some(until) => tokio::time::sleep(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.tip.changed() => if changed.is_err() {
                self.end();
            },
            () = self.log.0.closing.cancelled() => self.done = true,
            () = passed => self.end(),
        }
    }
}
