//! A store before another one.

use super::{Kv, KvError, LeaseId, Range, RangeResult, Txn, TxnResult, Watch};
use async_trait::async_trait;

/// A store that passes on what it does not do otherwise. Whatever is one is a [`Kv`].
#[async_trait]
pub trait KvLayer: Send + Sync + 'static {
    /// The store behind it.
    fn inner(&self) -> &dyn Kv;
    /// As [`Kv::range`].
    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        self.inner().range(range, limit, at).await
    }
    /// As [`Kv::txn`].
    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        self.inner().txn(txn).await
    }
    /// As [`Kv::watch`].
    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        self.inner().watch(range, from).await
    }
    /// As [`Kv::lease_grant`].
    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        self.inner().lease_grant(ttl_s).await
    }
    /// As [`Kv::lease_keep_alive`].
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        self.inner().lease_keep_alive(lease).await
    }
    /// As [`Kv::lease_revoke`].
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        self.inner().lease_revoke(lease).await
    }
    /// As [`Kv::compact`].
    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        self.inner().compact(revision).await
    }
}

#[async_trait]
impl<L: KvLayer> Kv for L {
    fn name(&self) -> &'static str {
        self.inner().name()
    }
    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        KvLayer::range(self, range, limit, at).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        KvLayer::txn(self, txn).await
    }
    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        KvLayer::watch(self, range, from).await
    }
    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        KvLayer::lease_grant(self, ttl_s).await
    }
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        KvLayer::lease_keep_alive(self, lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        KvLayer::lease_revoke(self, lease).await
    }
    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        KvLayer::compact(self, revision).await
    }
}
