//! Hands log lines over to whoever keeps them, across roles that must not know each other.
//!
//! Builder, controller and orchestrator send; eventlog receives. The channel is bounded: a flood slows its own source.

use arco_model::log::{LogLine, LogStream};
use tokio::sync::{mpsc, oneshot};

/// Lines of one stream.
#[derive(Debug)]
pub struct LogBatch {
    /// Whose log.
    pub stream: LogStream,
    /// In order.
    pub lines: Vec<LogLine>,
    /// Told when the lines are durable, for senders that keep a cursor.
    pub written: Option<oneshot::Sender<()>>,
    /// Never sent a second time: when nobody knows whether the lines are kept, the sender looks and says them again.
    pub once: bool,
}

impl LogBatch {
    /// Whether its sender waits no more, and will say again what is not kept: then nobody may keep it.
    pub fn is_abandoned(&self) -> bool {
        self.once && self.written.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// The sending end; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogSink(mpsc::Sender<LogBatch>);

impl LogSink {
    /// Both ends, with room for `capacity` batches.
    pub fn channel(capacity: usize) -> (LogSink, mpsc::Receiver<LogBatch>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (LogSink(sender), receiver)
    }

    /// Sends lines; waits while the receiver is behind. Lines are dropped when there is no receiver any more.
    pub async fn append(&self, stream: LogStream, lines: Vec<LogLine>) {
        let _ = self.0.send(LogBatch { stream, lines, written: None, once: false }).await;
    }

    /// Hands on what came from another sender, with its word about durability. Waits while the receiver is behind.
    pub async fn hand_on(&self, batch: LogBatch) {
        let _ = self.0.send(batch).await;
    }

    /// Whether there is no receiver any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends lines and waits until they are durable. Returns whether they are.
    pub async fn append_durably(&self, stream: LogStream, lines: Vec<LogLine>) -> bool {
        self.durably(stream, lines, false).await
    }

    /// As [`Self::append_durably`], for a sender that can look what is kept: lines of which it is not known whether they
    /// are (`false`), or whose sender waits no more, are not sent again.
    pub async fn append_once(&self, stream: LogStream, lines: Vec<LogLine>) -> bool {
        self.durably(stream, lines, true).await
    }

    async fn durably(&self, stream: LogStream, lines: Vec<LogLine>, once: bool) -> bool {
        let (written, done) = oneshot::channel();
        self.0.send(LogBatch { stream, lines, written: Some(written), once }).await.is_ok() && done.await.is_ok()
    }
}
