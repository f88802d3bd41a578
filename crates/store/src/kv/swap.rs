//! A store that can be exchanged while it is used: for clients whose certificate or address changes.
//!
//! A watch ends when the store is exchanged, so that its owner reads anew from the new one; calls under way go on.

use super::{Kv, KvError, LeaseId, Range, RangeResult, SharedKv, Txn, TxnResult, Watch};
use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

/// Room of a watch, in batches.
const BATCHES: usize = 64;

/// A store behind which another can be put.
pub struct SwapKv(watch::Sender<SharedKv>);

impl SwapKv {
    /// Begins with `kv`.
    pub fn new(kv: SharedKv) -> Self {
        Self(watch::Sender::new(kv))
    }

    /// From now on calls go to `kv`, and watches of the old one end.
    pub fn swap(&self, kv: SharedKv) {
        self.0.send_replace(kv);
    }

    fn current(&self) -> SharedKv {
        self.0.borrow().clone()
    }
}

#[async_trait]
impl Kv for SwapKv {
    fn name(&self) -> &'static str {
        "swap"
    }

    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        self.current().range(range, limit, at).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        self.current().txn(txn).await
    }

    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        let mut exchanged = self.0.subscribe();
        let kv = exchanged.borrow_and_update().clone();
        let mut inner = kv.watch(range, from).await?;
        let (sender, receiver) = mpsc::channel(BATCHES);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    _ = exchanged.changed() => return,
                    () = sender.closed() => return,
                    batch = inner.next() => match batch {
                        Some(batch) => if sender.send(batch).await.is_err() { return },
                        None => return,
                    },
                }
            }
        });
        Ok(Watch { receiver })
    }

    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        self.current().lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        self.current().lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        self.current().lease_revoke(lease).await
    }

    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        self.current().compact(revision).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::MemoryKv;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_watch_ends_when_the_store_is_exchanged() {
        let (old, new): (SharedKv, SharedKv) = (Arc::new(MemoryKv::new()), Arc::new(MemoryKv::new()));
        let swap = Arc::new(SwapKv::new(old.clone()));
        let kv: SharedKv = swap.clone();
        let mut watch = kv.watch(Range::Prefix(Vec::new()), None).await.unwrap();
        old.put("a", b"1".to_vec(), None).await.unwrap();
        assert!(watch.next().await.unwrap().is_ok());
        swap.swap(new.clone());
        assert!(watch.next().await.is_none());
        kv.put("b", b"2".to_vec(), None).await.unwrap();
        assert!(new.get("b").await.unwrap().is_some() && old.get("b").await.unwrap().is_none());
    }
}
