//! This process's lease in the store. Every claim hangs on it: when the process dies, all its claims end together.

use crate::QueueError;
use crate::queue::store;
use arco_store::kv::{KvError, LeaseId, SharedKv};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long a dead process keeps its claims.
const TTL_S: u64 = 10;

/// Makes sessions; there is at most one at a time.
pub(crate) struct Session {
    kv: SharedKv,
    current: Mutex<Option<Arc<Live>>>,
}

/// A lease that is kept alive while this value lives.
pub(crate) struct Live {
    kv: SharedKv,
    pub lease: LeaseId,
    /// Cancelled when the lease ended against our will: all claims on it are gone.
    pub lost: CancellationToken,
    _keeper: AbortOnDropHandle<()>,
}

impl Session {
    pub(crate) fn new(kv: SharedKv) -> Self {
        Self { kv, current: Mutex::new(None) }
    }

    /// The session, a new one when there is none or it was lost.
    pub(crate) async fn current(&self) -> Result<Arc<Live>, QueueError> {
        let mut current = self.current.lock().await;
        if let Some(live) = current.as_ref().filter(|it| !it.lost.is_cancelled()) {
            return Ok(live.clone());
        }
        let lease = self.kv.lease_grant(TTL_S).await.map_err(store("begin a session"))?;
        let lost = CancellationToken::new();
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep(self.kv.clone(), lease, lost.clone())));
        let live = Arc::new(Live { kv: self.kv.clone(), lease, lost, _keeper: keeper });
        *current = Some(live.clone());
        Ok(live)
    }
}

async fn keep(kv: SharedKv, lease: LeaseId, lost: CancellationToken) {
    let ttl = Duration::from_secs(TTL_S);
    let mut kept = Instant::now();
    while kept.elapsed() < ttl {
        tokio::time::sleep(ttl / 4).await;
        let begun = Instant::now();
        match tokio::time::timeout(ttl / 4, kv.lease_keep_alive(lease)).await {
            Ok(Ok(_)) => kept = begun,
            Ok(Err(KvError::NoLease(_))) => break,
            Ok(Err(error)) => tracing::warn!(error = %error, "the queue's lease was not renewed, trying again"),
            Err(_) => tracing::warn!("the queue's lease was not renewed in time, trying again"),
        }
    }
    tracing::warn!("the queue's lease ended; jobs under way are given out again");
    lost.cancel();
}

impl Drop for Live {
    fn drop(&mut self) {
        let (kv, lease) = (self.kv.clone(), self.lease);
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.lost.is_cancelled()
        {
            // Best effort: without it the lease ends by itself.
            runtime.spawn(async move { kv.lease_revoke(lease).await });
        }
    }
}
