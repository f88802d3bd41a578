//! The driver for one machine: the state in memory, every change first in a SQLite file.
//!
//! The file is this process's alone while it is open. After opening, each lease has its full time again before it may
//! end: whoever would have renewed it could not while the process was away.

mod journal;
#[cfg(test)]
mod tests;

use super::engine::Engine;
use super::{Kv, KvError, LeaseId, Range, RangeResult, Txn, TxnResult, Watch};
use async_trait::async_trait;
use std::path::Path;

/// A store in one file.
pub struct EmbeddedKv {
    engine: Engine,
}

impl EmbeddedKv {
    /// Opens the file, makes it when it is not there (mode 0600). Blocks while it reads it. Fails when another process
    /// has it open, or when it was written by a newer version.
    pub fn open(path: &Path) -> Result<Self, KvError> {
        let failed = |cause: String| KvError::Unavailable {
            step: "open its file",
            cause: format!("{}: {cause}", path.display()),
        };
        let (state, journal) = journal::open(path).map_err(failed)?;
        let engine = Engine::start(state, journal).map_err(|it| failed(it.to_string()))?;
        Ok(Self { engine })
    }
}

#[async_trait]
impl Kv for EmbeddedKv {
    fn name(&self) -> &'static str {
        "embedded"
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
