//! One change at a time: rules that span rows (hosts, quotas, bindings) are checked by nothing else.
//!
//! What must hold: from reading to writing nobody else is between the two, neither in this process nor, where several
//! serve the API, in another one. The lock among several ends by itself when its holder is silent; whoever is overtaken so
//! can write nothing any more, as long as it writes through [`OurTurn::metadata`].

use super::error::ApiError;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::RowId;
use arco_store::leader::{LeaderLock, Taken};
use arco_store::sql::SharedMetadata;
use arco_store::{clock, fence};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How long a change waits for others.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is fenced: the row that each turn raises anew.
const FENCE: &str = "changes";

/// Whose turn it is.
pub(super) struct Turn {
    here: Arc<Mutex<()>>,
    metadata: SharedMetadata,
    /// Among several processes.
    everywhere: Option<Arc<dyn LeaderLock>>,
}

/// Our turn, until it is dropped.
pub(super) struct OurTurn {
    here: Option<OwnedMutexGuard<()>>,
    metadata: SharedMetadata,
    everywhere: Option<Arc<dyn LeaderLock>>,
}

impl OurTurn {
    /// Where to write: refuses once the turn is somebody else's.
    pub(super) fn metadata(&self) -> &SharedMetadata {
        &self.metadata
    }
}

impl Turn {
    pub(super) fn new(metadata: SharedMetadata, everywhere: Option<Arc<dyn LeaderLock>>) -> Self {
        Self { here: Arc::default(), metadata, everywhere }
    }

    /// Waits for our turn.
    pub(super) async fn lock(&self) -> Result<OurTurn, ApiError> {
        let here = Some(self.here.clone().lock_owned().await);
        let mut ours = OurTurn { here, metadata: self.metadata.clone(), everywhere: None };
        let Some(lock) = &self.everywhere else { return Ok(ours) };
        // From here on it is given back however this goes on: also when who asked goes away before the store has answered.
        ours.everywhere = Some(lock.clone());
        let taken = async {
            loop {
                match lock.take().await {
                    Ok(Taken::Ours) => return Ok(()),
                    Ok(Taken::Held { .. }) => lock.moved().await,
                    Err(error) => return Err(error),
                }
            }
        };
        let message = "the change could not get its turn among those of other servers";
        match tokio::time::timeout(PATIENCE, taken).await {
            Ok(Ok(())) => {
                let by: RowId = clock::fresh();
                ours.metadata = fence::raise_metadata(&self.metadata, FENCE, by.as_str()).await?;
                Ok(ours)
            }
            Ok(Err(error)) => {
                let message = format!("{message}: the coordination store does not answer");
                Err(ApiError::unavailable("no_turn", &message, "store.coordination", error))
            }
            Err(_) => {
                let message = format!("{message}: these took longer than {} s", PATIENCE.as_secs());
                let advice = "try again; `arco operations` shows what is under way";
                Err(Problem::new(ErrorKind::Unavailable, "no_turn", message, advice).into())
            }
        }
    }
}

impl Drop for OurTurn {
    fn drop(&mut self) {
        let (here, Some(lock)) = (self.here.take(), self.everywhere.take()) else { return };
        tokio::spawn(async move {
            // Nobody here takes the lock again before it was given back: giving back would take it from them.
            let _here = here;
            if let Err(error) = lock.give_back().await {
                tracing::warn!(%error, "other servers wait until the turn of this one ends by itself");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::application::Tenant;
    use arco_model::time::Timestamp;
    use arco_store::kv::{EtcdKv, Kv, KvError, KvLayer, MemoryKv, SharedKv, Txn, TxnResult};
    use arco_store::leader::KvLock;
    use arco_store::sql::MemoryMetadata;
    use async_trait::async_trait;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    /// A store that does every transaction and answers none.
    struct Mute {
        kv: SharedKv,
        done: Notify,
    }

    #[async_trait]
    impl KvLayer for Mute {
        fn inner(&self) -> &dyn Kv {
            &*self.kv
        }

        async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
            self.kv.txn(txn).await?;
            self.done.notify_one();
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_turn_that_nobody_waits_for_any_more_is_given_back() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
        let mute = Arc::new(Mute { kv: kv.clone(), done: Notify::new() });
        let lock = |kv: SharedKv, name: &str| Arc::new(KvLock::new(kv, "turn", name, 3600));
        let behind: SharedKv = mute.clone();
        let turn = Turn::new(metadata.clone(), Some(lock(behind, "gone")));
        tokio::select! {
            _ = turn.lock() => panic!("the store answers nothing"),
            () = mute.done.notified() => {} // as when a client ends its connection
        }
        Turn::new(metadata, Some(lock(kv, "next"))).lock().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_at_a_time_among_several_processes() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
        let lock = |name: &str| Arc::new(KvLock::new(kv.clone(), "turn", name, 30));
        let process = |name: &str| Arc::new(Turn::new(metadata.clone(), Some(lock(name))));
        let (inside, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for process in [process("a"), process("b")] {
            for _ in 0..3 {
                let (process, inside, done) = (process.clone(), inside.clone(), done.clone());
                tasks.spawn(async move {
                    for _ in 0..5 {
                        let turn = process.lock().await.unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        assert_eq!(done.load(Ordering::SeqCst), 30);
    }

    #[tokio::test]
    async fn a_store_that_does_not_answer_is_named_and_its_addresses_stay_in_the_log() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let kv: SharedKv = Arc::new(EtcdKv::connect(std::slice::from_ref(&address), None).await.unwrap());
        let lock = Arc::new(KvLock::new(kv, "turn", "a", 30));
        let turn = Turn::new(Arc::new(MemoryMetadata::default()), Some(lock));
        let Err(error) = turn.lock().await else { panic!("nobody listens at {address}") };
        let body = error.body();
        let told = format!("{} {}", body.message, body.advice);
        assert!(body.code == "no_turn" && told.contains("store.coordination") && !told.contains(&address), "{told}");
    }

    #[tokio::test]
    async fn who_was_overtaken_writes_nothing() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
        let lock = |name: &str| Arc::new(KvLock::new(kv.clone(), "turn", name, 30));
        let (slow, quick) = (lock("slow"), lock("quick"));
        let tenant = |name: &str| Tenant { name: name.parse().unwrap(), memory_quota_mb: 0, created_at: Timestamp(1) };
        let first = Turn::new(metadata.clone(), Some(slow.clone())).lock().await.unwrap();
        first.metadata().insert(&tenant("one")).await.unwrap();
        // As when it was silent for longer than the lock stays with it.
        slow.give_back().await.unwrap();
        let second = Turn::new(metadata.clone(), Some(quick)).lock().await.unwrap();
        let refused = first.metadata().insert(&tenant("two")).await.map_err(ApiError::from).unwrap_err();
        assert_eq!(refused.body().code, "no_turn");
        second.metadata().insert(&tenant("three")).await.unwrap();
        assert!(metadata.get::<Tenant>("two").await.unwrap().is_none());
    }
}
