//! What the logs count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of the logs; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Lines taken.
    pub lines: Counter,
    /// Bytes taken.
    pub bytes: Counter,
    /// Lines dropped: floods, a disk that is nearly full, removed streams.
    pub dropped_lines: Counter,
    /// Rounds of writing to the disk.
    pub flushes: Counter,
    /// Rounds that failed and are tried again.
    pub flush_errors: Counter,
    /// Bytes of all logs on disk, as of the last look.
    pub disk_bytes: Gauge,
    /// Streams in memory.
    pub streams: Gauge,
    /// Readers that follow a stream now.
    pub followers: Gauge,
}

impl Metrics {
    /// Adds them to a registry; the caller gives the prefix of the role.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("lines", "Lines taken", self.lines.clone());
        registry.register("bytes", "Bytes taken", self.bytes.clone());
        registry.register("dropped_lines", "Lines dropped (flood, disk nearly full)", self.dropped_lines.clone());
        registry.register("flushes", "Rounds of writing to the disk", self.flushes.clone());
        registry.register("flush_errors", "Rounds of writing that failed", self.flush_errors.clone());
        registry.register("disk_bytes", "Bytes of all logs on disk", self.disk_bytes.clone());
        registry.register("streams", "Streams in memory", self.streams.clone());
        registry.register("followers", "Readers that follow a stream now", self.followers.clone());
    }
}
