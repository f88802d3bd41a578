//! Stores that only the present leader writes to.
//!
//! A lock ends while its holder is paused, and the holder does not know. So each leader *raises a fence* in both stores
//! when its time begins: a key of the coordination store and a row of the metadata, which it writes anew. Every write
//! through [`Fence::kv`] and [`Fence::metadata`] has the condition that they are still as this leader left them; the store
//! decides, in the same transaction. A write that is refused for that changes nothing and breaks the fence for good.
//!
//! What must hold: after somebody raised the fence anew, no write of those before happens. Raise first, then make sure
//! that the lock is still there, then work: a leader who lost it in between breaks the fence of its successor, who then
//! begins anew, but never writes itself.

use crate::clock;
use crate::kv::{Compare, Kv, KvError, KvLayer, Operation, Range, SharedKv, Txn, TxnResult};
use crate::leader::LEADERS;
use crate::sql::{Batch, Entity, Kind, Metadata, Page, Query, Row, SharedMetadata, SqlError, Write};
use arco_model::time::Timestamp;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Attempts to write the row while others do so as well.
const ATTEMPTS: usize = 20;

/// Who raised the fence last: the row.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LeaderRow {
    /// What is led, as `controller`.
    pub name: String,
    /// Who leads, in its own words.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
}

impl Entity for LeaderRow {
    const KIND: Kind = Kind::Leader;
    fn key(&self) -> String {
        self.name.clone()
    }
    fn parent(&self) -> String {
        String::new()
    }
    fn name(&self) -> String {
        self.name.clone()
    }
    fn created_at(&self) -> Timestamp {
        Timestamp(0) // one row for ever
    }
}

/// Why a fence could not be raised; trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The coordination store.
    #[error("failed to raise the leader's fence")]
    Kv(#[from] KvError),
    /// The metadata.
    #[error("failed to raise the leader's fence")]
    Sql(#[from] SqlError),
}

/// The stores of one leader's time.
#[derive(Clone)]
pub struct Fence {
    kv: Arc<FencedKv>,
    metadata: Arc<FencedMetadata>,
    broken: CancellationToken,
}

impl Fence {
    /// Shuts out every leader of `name` before this one.
    pub async fn raise(kv: &SharedKv, metadata: &SharedMetadata, name: &str, by: &str) -> Result<Self, FenceError> {
        let broken = CancellationToken::new();
        let key = format!("{LEADERS}fence/{name}");
        let revision = kv.put(&key, by.as_bytes().to_vec(), None).await?;
        let version = raise_row(metadata, name, by).await?;
        let kv = FencedKv { kv: kv.clone(), key: key.into_bytes(), revision, broken: broken.clone() };
        let metadata =
            FencedMetadata { metadata: metadata.clone(), row: name.to_owned(), version, broken: broken.clone() };
        Ok(Self { kv: Arc::new(kv), metadata: Arc::new(metadata), broken })
    }

    /// The coordination store, which refuses writes once the fence is broken.
    pub fn kv(&self) -> SharedKv {
        self.kv.clone()
    }

    /// The metadata, which refuses writes once the fence is broken.
    pub fn metadata(&self) -> SharedMetadata {
        self.metadata.clone()
    }

    /// Cancelled when a write was refused because somebody else leads.
    pub fn broken(&self) -> &CancellationToken {
        &self.broken
    }
}

/// The metadata alone, for who leads for the time of one change: shuts out everybody who raised `name` before.
pub async fn raise_metadata(metadata: &SharedMetadata, name: &str, by: &str) -> Result<SharedMetadata, SqlError> {
    let version = raise_row(metadata, name, by).await?;
    let (metadata, broken) = (metadata.clone(), CancellationToken::new());
    Ok(Arc::new(FencedMetadata { metadata, row: name.to_owned(), version, broken }))
}

/// Whether a write was refused because somebody else raised the fence.
pub fn is_overtaken(error: &SqlError) -> bool {
    matches!(error, SqlError::Unavailable { cause, .. } if cause == OTHER)
}

/// Writes the row anew; returns its version.
async fn raise_row(metadata: &SharedMetadata, name: &str, by: &str) -> Result<u64, SqlError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let fresh = LeaderRow { name: name.to_owned(), by: by.to_owned(), at: clock::now() };
        let outcome = match metadata.get::<LeaderRow>(name).await? {
            None => metadata.insert(&fresh).await.map(|()| 1),
            Some(mut found) => {
                found.value = fresh;
                metadata.update(&found).await.map(|()| found.version + 1)
            }
        };
        match outcome {
            Err(SqlError::Conflict { .. } | SqlError::Exists { .. }) if attempt < ATTEMPTS => {}
            outcome => return outcome,
        }
    }
}

const OTHER: &str = "another server leads now";

struct FencedKv {
    kv: SharedKv,
    key: Vec<u8>,
    revision: u64,
    broken: CancellationToken,
}

#[async_trait]
impl KvLayer for FencedKv {
    fn inner(&self) -> &dyn Kv {
        &*self.kv
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResult, KvError> {
        let writes = |steps: &[Operation]| steps.iter().any(|it| !matches!(it, Operation::Get(_)));
        if writes(&txn.failure) {
            return Err(KvError::Refused("a leader writes only when its conditions hold".to_owned()));
        }
        if !writes(&txn.success) {
            return self.kv.txn(txn).await;
        }
        txn.compare.push(Compare::ModRevision(self.key.clone(), self.revision));
        txn.failure.push(Operation::Get(Range::Key(self.key.clone())));
        let mut done = self.kv.txn(txn).await?;
        if done.succeeded {
            return Ok(done);
        }
        let fence = done.results.pop().unwrap_or_default();
        if fence.first().is_none_or(|it| it.mod_revision != self.revision) {
            self.broken.cancel();
            return Err(KvError::Unavailable { step: "write", cause: OTHER.to_owned() });
        }
        Ok(done)
    }
}

struct FencedMetadata {
    metadata: SharedMetadata,
    row: String,
    version: u64,
    broken: CancellationToken,
}

#[async_trait]
impl Metadata for FencedMetadata {
    fn name(&self) -> &'static str {
        self.metadata.name()
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        self.metadata.get_row(kind, key).await
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        self.metadata.list_rows(kind, query).await
    }

    async fn commit(&self, mut batch: Batch) -> Result<(), SqlError> {
        if batch.writes.is_empty() {
            return Ok(());
        }
        // First: it locks the row, so that all of a leader's transactions lock in one order.
        batch.writes.insert(0, Write::Check(Kind::Leader, self.row.clone(), self.version));
        match self.metadata.commit(batch).await {
            Err(SqlError::Conflict { kind: Kind::Leader, .. }) => {
                self.broken.cancel();
                Err(SqlError::Unavailable { step: "write", cause: OTHER.to_owned() })
            }
            outcome => outcome,
        }
    }

    async fn ping(&self) -> Result<(), SqlError> {
        self.metadata.ping().await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kv::{EmbeddedKv, real_etcd};
    use crate::sql::MemoryMetadata;
    use arco_model::application::Tenant;

    fn tenant(name: &str) -> Tenant {
        Tenant { name: name.parse().unwrap(), memory_quota_mb: 0, created_at: Timestamp(1) }
    }

    /// Two leaders, one after the other, on these stores; also part of the metadata's contract.
    pub(crate) async fn a_leader_that_was_followed_writes_nothing(kv: SharedKv, metadata: SharedMetadata) {
        let area = format!("test-{:016x}", clock::random());
        let key = |it: &str| format!("/{area}/{it}");
        let first = Fence::raise(&kv, &metadata, &area, "first").await.unwrap();
        first.kv().put(&key("a"), b"1".to_vec(), None).await.unwrap();
        first.metadata().insert(&tenant("one")).await.unwrap();
        // A condition of its own that fails is no broken fence.
        let absent = Txn {
            compare: vec![Compare::Absent(key("a").into_bytes())],
            success: vec![Operation::Put { key: key("a").into_bytes(), value: b"2".to_vec(), lease: None }],
            failure: vec![Operation::Get(Range::Key(key("a").into_bytes()))],
        };
        let done = first.kv().txn(absent.clone()).await.unwrap();
        assert!(!done.succeeded);
        assert_eq!((done.results.len(), done.results[0][0].value.as_slice()), (1, b"1".as_slice()));
        assert!(matches!(first.metadata().insert(&tenant("one")).await, Err(SqlError::Exists { .. })));
        assert!(!first.broken().is_cancelled());

        let second = Fence::raise(&kv, &metadata, &area, "second").await.unwrap();
        for refused in [
            first.kv().put(&key("a"), b"3".to_vec(), None).await.is_err(),
            first.kv().delete(&key("a")).await.is_err(),
            first.kv().txn(absent).await.is_err(),
            first.metadata().insert(&tenant("two")).await.is_err(),
        ] {
            assert!(refused);
        }
        assert!(first.broken().is_cancelled());
        assert_eq!(first.kv().get(&key("a")).await.unwrap().unwrap().value, b"1", "reading goes on");
        assert!(metadata.get::<Tenant>("two").await.unwrap().is_none());
        let row = metadata.get::<LeaderRow>(&area).await.unwrap().unwrap();
        assert_eq!((row.value.by.as_str(), row.version), ("second", 2));
        second.kv().put(&key("a"), b"4".to_vec(), None).await.unwrap();
        let one = second.metadata().get::<Tenant>("one").await.unwrap().unwrap();
        second.metadata().update(&one).await.unwrap();
        assert!(!second.broken().is_cancelled());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn on_etcd() {
        let Some((kv, _turn)) = real_etcd().await else { return };
        a_leader_that_was_followed_writes_nothing(kv, Arc::new(MemoryMetadata::default())).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn on_the_embedded_store() {
        let folder = tempfile::tempdir().unwrap();
        let kv = Arc::new(EmbeddedKv::open(&folder.path().join("kv.db")).unwrap());
        a_leader_that_was_followed_writes_nothing(kv, Arc::new(MemoryMetadata::default())).await;
    }
}
