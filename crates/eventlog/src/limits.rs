//! Every bound of the logs in one place. People set three of them ([`EventlogConfig`]); the others are ours.

use arco_config::EventlogConfig;
use std::time::Duration;

/// Bounds of the logs.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most of one stream on disk, in bytes.
    pub stream_bytes: u64,
    /// Most of all streams on disk, in bytes.
    pub total_bytes: u64,
    /// Oldest kept line.
    pub age: Duration,
    /// Size at which a segment is closed and compressed, in bytes.
    pub segment_bytes: u64,
    /// Span of time after which a segment is closed although it is small.
    pub segment_age: Duration,
    /// What a stream may write all the time, in bytes per second.
    pub stream_rate: u64,
    /// What a stream may write at once after a pause, in bytes.
    pub stream_burst: u64,
    /// Lines of a stream that wait for the disk, in bytes; more are dropped.
    pub waiting_bytes: usize,
    /// Waiting lines of all streams that start a flush at once, in bytes.
    pub flush_bytes: usize,
    /// Longest time from a line to the disk.
    pub flush_after: Duration,
    /// The same when a sender waits for the acknowledgement.
    pub flush_acknowledged_after: Duration,
    /// Free space of the disk below which only logs of operations are kept, in bytes; a twentieth of a small disk.
    pub free_bytes: u64,
    /// Files that are kept open for writing.
    pub open_files: usize,
}

impl From<&EventlogConfig> for Limits {
    fn from(config: &EventlogConfig) -> Self {
        let stream_bytes = u64::from(config.component_mb.max(1)) << 20;
        Self {
            stream_bytes,
            total_bytes: u64::from(config.total_mb.max(1)) << 20,
            age: Duration::from_secs(u64::from(config.days.max(1)) * 86_400),
            segment_bytes: (stream_bytes / 8).clamp(256 << 10, 8 << 20),
            segment_age: Duration::from_secs(86_400),
            stream_rate: 8 << 20,
            stream_burst: 32 << 20,
            waiting_bytes: 8 << 20,
            flush_bytes: 1 << 20,
            flush_after: Duration::from_millis(200),
            flush_acknowledged_after: Duration::from_millis(20),
            free_bytes: 512 << 20,
            open_files: 64,
        }
    }
}
