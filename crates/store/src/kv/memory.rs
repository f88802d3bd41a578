//! The fake: a store that forgets everything when it is dropped. The same state and rules as the embedded driver.

#[cfg(test)]
mod tests;

use super::engine::{Engine, Journal};
use super::state::{Record, State};
use super::{Kv, KvError, LeaseId, Range, RangeResult, Txn, TxnResult, Watch};
use async_trait::async_trait;

/// A store in memory.
pub struct MemoryKv {
    engine: Engine,
}

struct Nothing;

impl Journal for Nothing {
    fn keep(&mut self, _: &[Record]) -> Result<(), String> {
        Ok(())
    }
}

impl MemoryKv {
    /// An empty store.
    ///
    /// # Panics
    /// When the system has no thread left.
    pub fn new() -> Self {
        match Engine::start(State::new(), Nothing) {
            Ok(engine) => Self { engine },
            Err(error) => panic!("the store in memory needs a thread: {error}"),
        }
    }
}

impl Default for MemoryKv {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Kv for MemoryKv {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        self.engine.read().range(&range, limit, at)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        self.engine.txn(txn).await
    }

    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        Ok(self.engine.watch(range, from))
    }

    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        self.engine.grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        self.engine.keep_alive(lease)
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        self.engine.revoke(lease).await
    }

    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        self.engine.compact(revision).await
    }
}
