//! One change at a time: rules that span rows (hosts, quotas, bindings) are checked by nothing else.
//!
//! What must hold: from reading to writing nobody else is between the two, neither in this process nor, where several
//! serve the API, in another one.

use arco_model::error::{ErrorKind, Problem};
use arco_store::leader::{LeaderLock, Taken};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How long a change waits for others.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whose turn it is.
pub(super) struct Turn {
    here: Arc<Mutex<()>>,
    /// Among several processes.
    everywhere: Option<Arc<dyn LeaderLock>>,
}

/// Our turn, until it is dropped.
pub(super) struct OurTurn {
    here: Option<OwnedMutexGuard<()>>,
    everywhere: Option<Arc<dyn LeaderLock>>,
}

impl Turn {
    pub(super) fn new(everywhere: Option<Arc<dyn LeaderLock>>) -> Self {
        Self { here: Arc::default(), everywhere }
    }

    /// Waits for our turn.
    pub(super) async fn lock(&self) -> Result<OurTurn, Problem> {
        let here = Some(self.here.clone().lock_owned().await);
        let Some(lock) = &self.everywhere else { return Ok(OurTurn { here, everywhere: None }) };
        let taken = async {
            loop {
                match lock.take().await {
                    Ok(Taken::Ours) => return Ok(()),
                    Ok(Taken::Held { .. }) => lock.moved().await,
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let why = match tokio::time::timeout(PATIENCE, taken).await {
            Ok(Ok(())) => return Ok(OurTurn { here, everywhere: Some(lock.clone()) }),
            Ok(Err(why)) => why,
            Err(_) => format!("other changes took longer than {} s", PATIENCE.as_secs()),
        };
        let message = format!("the change could not get its turn among those of other servers: {why}");
        let advice = "try again; if it stays so, look whether the coordination store (`store.coordination`) answers";
        Err(Problem::new(ErrorKind::Unavailable, "no_turn", message, advice))
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
    use arco_store::kv::{MemoryKv, SharedKv};
    use arco_store::leader::KvLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_at_a_time_among_several_processes() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let process = |name: &str| Arc::new(Turn::new(Some(Arc::new(KvLock::new(kv.clone(), "turn", name, 30)))));
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
}
