//! The lock of a leader: of several processes that could do the same work, one holds it and works.
//!
//! What must hold on every driver (see `contract`): of those who want the lock at most one has it; who is silent for
//! longer than [`LeaderLock::life`] has lost it, and learns so at the next renewal; who gives it back frees it at once.
//!
//! A lock alone stops nobody who lost it without knowing: writes of a leader carry a [`crate::fence::Fence`]. Not here:
//! who keeps the lock alive and what begins and ends with it (`daemon::leader`); the driver on a Kubernetes Lease
//! (`orchestrator_kubernetes`).

#[cfg(any(test, feature = "contract"))]
pub mod contract;

use crate::kv::{Compare, Event, KeyValue, KvError, LeaseId, Operation, Range, SharedKv, Txn};
use async_trait::async_trait;
use std::time::Duration;
use tokio::sync::Mutex;

/// Where the locks lie in the store.
pub const LEADERS: &str = "/leaders/";
/// Pause before the store is asked again when it cannot be followed.
const AGAIN: Duration = Duration::from_millis(500);

/// What came of an attempt to take a lock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Taken {
    /// It is ours, for [`LeaderLock::life`] from before the attempt began.
    Ours,
    /// Somebody else has it.
    Held {
        /// Who, in its own words.
        by: String,
    },
}

/// Why a lock cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It is not ours any more.
    #[error("the lock is not ours any more")]
    Lost,
    /// Where it lies does not answer; nothing is known to have changed.
    #[error("failed to {step}: {cause}")]
    Unavailable {
        /// What was tried.
        step: &'static str,
        /// Why not.
        cause: String,
    },
}

/// A lock that one of several processes has. Drivers: [`KvLock`], a Lease of Kubernetes.
#[async_trait]
pub trait LeaderLock: Send + Sync + 'static {
    /// How long it stays with somebody who is silent.
    fn life(&self) -> Duration;
    /// Takes it if nobody has it. Whoever had it and lost it may take it again.
    async fn take(&self) -> Result<Taken, LockError>;
    /// Gives it its full time again, from before the call began.
    async fn renew(&self) -> Result<(), LockError>;
    /// Frees it if it is ours.
    async fn give_back(&self) -> Result<(), LockError>;
    /// Returns when another attempt to take it makes sense; never later than [`LeaderLock::life`].
    async fn moved(&self);
}

/// A lock in a coordination store: a key that hangs on a lease of its holder.
pub struct KvLock {
    kv: SharedKv,
    key: String,
    me: String,
    life_s: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lease: Option<LeaseId>,
    /// Revision of the store when the lock was last looked at.
    seen: u64,
}

impl KvLock {
    /// The lock `name`, wanted by `me` (what others are told), for `life_s` seconds at a time.
    pub fn new(kv: SharedKv, name: &str, me: &str, life_s: u64) -> Self {
        Self { kv, key: format!("{LEADERS}{name}"), me: me.to_owned(), life_s: life_s.max(1), state: Mutex::default() }
    }

    /// Takes the lock away from a holder that is known to be dead, because the caller has what only one process can have.
    pub async fn clear(&self, is_dead: impl Fn(&str) -> bool + Send) -> Result<(), LockError> {
        let failed = unavailable("free the leader's lock");
        let Some(found) = self.kv.get(&self.key).await.map_err(&failed)? else { return Ok(()) };
        if !is_dead(&String::from_utf8_lossy(&found.value)) {
            return Ok(());
        }
        let unchanged = Compare::ModRevision(self.key(), found.mod_revision);
        let success = vec![Operation::Delete(Range::Key(self.key()))];
        self.kv.txn(Txn { compare: vec![unchanged], success, failure: Vec::new() }).await.map(drop).map_err(failed)
    }

    fn key(&self) -> Vec<u8> {
        self.key.clone().into_bytes()
    }

    /// Revokes the lease. Best effort: what is not revoked ends by itself.
    async fn free(&self, state: &mut State) {
        if let Some(lease) = state.lease
            && let Err(error) = self.kv.lease_revoke(lease).await
        {
            tracing::debug!(key = self.key, %error, "a lease was not revoked, it ends by itself");
        }
        state.lease = None;
    }
}

fn unavailable(step: &'static str) -> impl Fn(KvError) -> LockError {
    move |it| LockError::Unavailable { step, cause: it.to_string() }
}

fn held(found: &KeyValue) -> Taken {
    Taken::Held { by: String::from_utf8_lossy(&found.value).into_owned() }
}

#[async_trait]
impl LeaderLock for KvLock {
    fn life(&self) -> Duration {
        Duration::from_secs(self.life_s)
    }

    async fn take(&self) -> Result<Taken, LockError> {
        let failed = unavailable("take the leader's lock");
        let mut state = self.state.lock().await;
        self.free(&mut state).await;
        let found = self.kv.range(Range::Key(self.key()), 1, None).await.map_err(&failed)?;
        state.seen = found.revision;
        if let Some(found) = found.items.first() {
            return Ok(held(found));
        }
        let lease = self.kv.lease_grant(self.life_s).await.map_err(&failed)?;
        let put = Operation::Put { key: self.key(), value: self.me.clone().into_bytes(), lease: Some(lease) };
        let txn = Txn {
            compare: vec![Compare::Absent(self.key())],
            success: vec![put],
            failure: vec![Operation::Get(Range::Key(self.key()))],
        };
        // Noted before: whoever stops waiting for the answer can still give it back.
        state.lease = Some(lease);
        let done = match self.kv.txn(txn).await {
            Ok(done) => done,
            Err(error) => {
                // It may have been written: without its lease it goes.
                self.free(&mut state).await;
                return Err(failed(error));
            }
        };
        state.seen = done.revision;
        if done.succeeded {
            return Ok(Taken::Ours);
        }
        self.free(&mut state).await;
        let other = done.results.iter().flatten().next();
        Ok(other.map_or_else(|| Taken::Held { by: String::new() }, held))
    }

    async fn renew(&self) -> Result<(), LockError> {
        let failed = unavailable("renew the leader's lock");
        let state = self.state.lock().await;
        let lease = state.lease.ok_or(LockError::Lost)?;
        match self.kv.lease_keep_alive(lease).await {
            Ok(_) => {}
            Err(KvError::NoLease(_)) => return Err(LockError::Lost),
            Err(error) => return Err(failed(error)),
        }
        // The key may have been taken away although the lease lives.
        let found = self.kv.get(&self.key).await.map_err(failed)?;
        if found.is_some_and(|it| it.lease == Some(lease)) { Ok(()) } else { Err(LockError::Lost) }
    }

    async fn give_back(&self) -> Result<(), LockError> {
        let Some(lease) = self.state.lock().await.lease.take() else { return Ok(()) };
        self.kv.lease_revoke(lease).await.map_err(unavailable("give the leader's lock back"))
    }

    async fn moved(&self) {
        let seen = self.state.lock().await.seen;
        let freed = async {
            let mut watch = self.kv.watch(Range::Key(self.key()), Some(seen + 1)).await?;
            while let Some(batch) = watch.next().await {
                if batch?.events.iter().any(|it| matches!(it, Event::Delete { .. })) {
                    return Ok(());
                }
            }
            Err(KvError::Unavailable { step: "follow the leader's lock", cause: "the watch ended".to_owned() })
        };
        if let Ok(Err(_)) = tokio::time::timeout(self.life(), freed).await {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{EmbeddedKv, MemoryKv, real_etcd};
    use std::sync::Arc;

    async fn run(kv: SharedKv) {
        // A name of its own: the store may be one that others use.
        let make = |area: &str| {
            let (kv, name) = (kv.clone(), format!("{area}-{:016x}", crate::clock::random()));
            move |me: &str, life_s| Arc::new(KvLock::new(kv.clone(), &name, me, life_s)) as Arc<dyn LeaderLock>
        };
        contract::suite(make).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_lock_in_memory() {
        run(Arc::new(MemoryKv::new())).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_lock_on_the_embedded_store() {
        let folder = tempfile::tempdir().unwrap();
        run(Arc::new(EmbeddedKv::open(&folder.path().join("kv.db")).unwrap())).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_lock_on_etcd() {
        let Some((kv, _turn)) = real_etcd().await else { return };
        run(kv).await;
    }

    #[tokio::test]
    async fn a_successor_of_a_dead_holder_waits_for_nobody() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let (dead, next) = (KvLock::new(kv.clone(), "c", "dead", 3600), KvLock::new(kv.clone(), "c", "next", 3600));
        assert_eq!(dead.take().await.unwrap(), Taken::Ours);
        next.clear(|by| by == "somebody").await.unwrap();
        assert_eq!(next.take().await.unwrap(), Taken::Held { by: "dead".to_owned() });
        next.clear(|by| by == "dead").await.unwrap();
        assert_eq!(next.take().await.unwrap(), Taken::Ours);
        assert!(matches!(dead.renew().await, Err(LockError::Lost)), "its lease lives, its key does not");
    }
}
