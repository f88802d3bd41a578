//! Persistence: metadata ([`sql`]), coordination ([`kv`]), blobs ([`blob`]), and the clock; and, because nobody below has TLS, the
//! one client that verifies nobody ([`unverified`]).
//!
//! Three of the four seams of the platform live here, each a trait in plain `model` types with one contract suite that
//! runs on every driver and on the fake. No other crate knows SQL, etcd or S3, or reads the wall clock for ids.

pub mod blob;
pub mod clock;
pub mod fence;
pub mod images;
pub mod kv;
pub mod leader;
pub mod logs;
pub mod secrets;
pub mod sql;
pub mod unverified;

/// Whether an error text means that the disk is full, in the words of the kernel or of SQLite. Drivers hand causes up as
/// text; this is the one place that reads it.
pub fn says_full(text: &str) -> bool {
    ["No space left", "no space left", "disk is full", "disk full"].iter().any(|it| text.contains(it))
}
