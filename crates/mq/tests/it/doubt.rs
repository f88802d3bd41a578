//! A store whose answers get lost while jobs are taken: it may have done what it was asked for, or not.

use crate::{request, soon, take};
use arco_model::job::Topic;
use arco_mq::{Depth, Queue};
use arco_store::kv::{Compare, Kv, KvError, KvLayer, MemoryKv, SharedKv, Txn, TxnResult};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// What happens to a transaction about a claim; its answer is lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// It was done.
    Done,
    /// It never came to the store.
    Undone,
}

/// A store that loses these answers, one after the other, and no others.
struct Loses {
    kv: SharedKv,
    plan: Mutex<VecDeque<Lost>>,
}

#[async_trait]
impl KvLayer for Loses {
    fn inner(&self) -> &dyn Kv {
        &*self.kv
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        let of_claim = |it: &Compare| matches!(it, Compare::Absent(key) if key.starts_with(b"/mq/builder/claims/"));
        let lost = if txn.compare.iter().any(of_claim) { self.plan.lock().unwrap().pop_front() } else { None };
        match lost {
            None => return self.kv.txn(txn).await,
            Some(Lost::Done) => drop(self.kv.txn(txn).await?),
            Some(Lost::Undone) => {}
        }
        Err(KvError::Unavailable { step: "write", cause: "the answer was lost".to_owned() })
    }
}

#[tokio::test]
async fn a_job_whose_taking_is_in_doubt_is_neither_lost_nor_taken_twice() {
    use Lost::{Done, Undone};
    let plans: [&[Lost]; 6] = [&[Done], &[Undone], &[Done, Done], &[Done, Undone], &[Undone, Done], &[Undone, Undone]];
    for plan in plans {
        let plan_of = plan.iter().copied().collect();
        let queue = Queue::new(Arc::new(Loses { kv: Arc::new(MemoryKv::new()), plan: Mutex::new(plan_of) }));
        for id in ["a1", "a2"] {
            queue.enqueue(request("a", id), None).await.unwrap();
        }
        for id in ["a1", "a2"] {
            let leased = take(&queue).await;
            assert_eq!((leased.job().request.dedup_id.as_str(), leased.job().attempts), (id, 1), "{plan:?}");
            assert_eq!(queue.depth(Topic::Builder).await.unwrap().running, 1, "{plan:?}");
            soon(leased.ack()).await.unwrap();
        }
        assert_eq!(queue.depth(Topic::Builder).await.unwrap(), Depth::default(), "{plan:?}");
    }
}
