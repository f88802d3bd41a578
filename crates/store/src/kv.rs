//! Coordination: an ordered key-value store with revisions, compare-and-set, watches and leases (etcd's semantics).
//!
//! What must hold on every driver (checked by [`contract`]):
//! - every transaction that writes raises the store's revision by exactly one; its keys carry it as `mod_revision`;
//! - a watch from revision `r` sees every later change of its prefix exactly once, in order, or ends with
//!   [`KvError::Compacted`];
//! - etcd's limits: at most [`MAX_OPERATIONS`] operations and [`MAX_BYTES`] bytes per transaction, no key twice;
//! - keys of a lease that ends are deleted, each visible to watchers as a deletion.

#[cfg(test)]
mod contract;
mod embedded;
mod engine;
mod etcd;
pub mod front;
mod layer;
mod limits;
mod memory;
pub mod mirror;
mod state;
mod swap;
mod tls;

#[cfg(test)]
pub(crate) use contract::real_etcd;
pub use embedded::EmbeddedKv;
pub use etcd::EtcdKv;
pub use layer::KvLayer;
pub use memory::MemoryKv;
pub use swap::SwapKv;
pub use tls::EtcdTls;

use async_trait::async_trait;
use std::sync::Arc;

/// Most operations of one transaction (etcd's default `--max-txn-ops`).
pub const MAX_OPERATIONS: usize = 128;
/// Most bytes of one transaction (etcd's default `--max-request-bytes`).
pub const MAX_BYTES: usize = 1_572_864;

/// A shared store.
pub type SharedKv = Arc<dyn Kv>;

/// A lease; 0 stands for "none" on the wire and is never a lease.
pub type LeaseId = i64;

/// One key with its value and history numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyValue {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Store revision at which the key was made.
    pub create_revision: u64,
    /// Store revision of the last change.
    pub mod_revision: u64,
    /// 1 after creation, raised by each change.
    pub version: u64,
    /// Lease that the key hangs on.
    pub lease: Option<LeaseId>,
}

/// Which keys a read or a watch means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Range {
    /// One key.
    Key(Vec<u8>),
    /// All keys that begin so; empty means all.
    Prefix(Vec<u8>),
    /// From the first (inclusive) to the second (exclusive); an empty second means no end.
    Between(Vec<u8>, Vec<u8>),
}

/// A page of keys, in order, as of `revision`.
#[derive(Clone, Debug, Default)]
pub struct RangeResult {
    /// The keys.
    pub items: Vec<KeyValue>,
    /// Whether more keys follow.
    pub more: bool,
    /// How many keys the range holds in all.
    pub count: u64,
    /// Store revision of this answer.
    pub revision: u64,
}

/// A condition of a transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Vec<u8>),
    /// The key exists.
    Present(Vec<u8>),
    /// The key's last change was at this revision.
    ModRevision(Vec<u8>, u64),
    /// The key has this value.
    Value(Vec<u8>, Vec<u8>),
}

/// A step of a transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Writes a key.
    Put {
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
        /// Lease to hang it on.
        lease: Option<LeaseId>,
    },
    /// Deletes keys.
    Delete(Range),
    /// Reads keys.
    Get(Range),
}

/// If all of `compare` hold, `success` is done, else `failure`; atomically.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// Conditions.
    pub compare: Vec<Compare>,
    /// Steps when all hold.
    pub success: Vec<Operation>,
    /// Steps otherwise.
    pub failure: Vec<Operation>,
}

/// What a transaction did.
#[derive(Clone, Debug, Default)]
pub struct TxnResult {
    /// Whether all conditions held.
    pub succeeded: bool,
    /// Store revision after it.
    pub revision: u64,
    /// One result for each step: what was read, or what a deletion removed (previous values), or empty for a put.
    pub results: Vec<Vec<KeyValue>>,
}

/// One change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A key was made or changed.
    Put(KeyValue),
    /// A key was deleted at this revision.
    Delete {
        /// Key.
        key: Vec<u8>,
        /// Store revision.
        revision: u64,
    },
}

/// All changes of one revision that a watch is interested in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WatchBatch {
    /// Store revision.
    pub revision: u64,
    /// Changes.
    pub events: Vec<Event>,
}

/// Receives batches until the watch ends.
pub struct Watch {
    /// Batches; `None` after the end.
    pub receiver: tokio::sync::mpsc::Receiver<Result<WatchBatch, KvError>>,
}

impl Watch {
    /// The next batch; `None` when the store is closed.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, KvError>> {
        self.receiver.recv().await
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KvError {
    /// The asked revision is gone; read the present state and watch from there.
    #[error("revision {asked} was compacted; the oldest is {oldest}")]
    Compacted {
        /// What was asked.
        asked: u64,
        /// The oldest that is still there.
        oldest: u64,
    },
    /// More than etcd's limits, or a key twice in one transaction.
    #[error("the transaction is refused: {0}")]
    Refused(String),
    /// The lease is unknown or has ended.
    #[error("lease {0:x} does not exist")]
    NoLease(LeaseId),
    /// The store cannot be reached or cannot write.
    #[error("the coordination store failed to {step}: {cause}")]
    Unavailable {
        /// What was tried.
        step: &'static str,
        /// Why not.
        cause: String,
    },
}

/// The seam. Drivers: embedded (SQLite), etcd; fake: memory.
#[async_trait]
pub trait Kv: Send + Sync + 'static {
    /// Name of the driver.
    fn name(&self) -> &'static str;
    /// Keys of a range, at most `limit` (0: all), as of `at` (`None`: now).
    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError>;
    /// Compare, then write.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError>;
    /// Changes of `range` from revision `from` on (inclusive); `None`: from the next change on.
    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError>;
    /// A new lease of `ttl_s` seconds.
    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError>;
    /// Gives a lease its full time again; returns that time in seconds.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError>;
    /// Ends a lease and deletes its keys. Ending one that is gone is no error.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError>;
    /// Forgets history before `revision`.
    async fn compact(&self, revision: u64) -> Result<(), KvError>;
}

/// Calls that every driver has because the trait suffices for them.
impl dyn Kv {
    /// The value of one key.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, KvError> {
        Ok(self.range(Range::Key(key.as_bytes().to_vec()), 1, None).await?.items.pop())
    }

    /// All keys that begin with `prefix`, and the revision that this is true for.
    pub async fn list(&self, prefix: &str) -> Result<RangeResult, KvError> {
        self.range(Range::Prefix(prefix.as_bytes().to_vec()), 0, None).await
    }

    /// Writes one key without a condition; returns the store's revision.
    pub async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<u64, KvError> {
        let success = vec![Operation::Put { key: key.as_bytes().to_vec(), value, lease }];
        Ok(self.txn(Txn { success, ..Txn::default() }).await?.revision)
    }

    /// Deletes one key; no error when it is not there.
    pub async fn delete(&self, key: &str) -> Result<(), KvError> {
        let success = vec![Operation::Delete(Range::Key(key.as_bytes().to_vec()))];
        self.txn(Txn { success, ..Txn::default() }).await.map(drop)
    }
}
