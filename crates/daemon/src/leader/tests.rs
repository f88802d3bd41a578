//! Leaders that die, pause, or cannot reach their lock.

use super::*;
use crate::OnExit;
use arco_store::kv::{Kv, KvError, LeaseId, MemoryKv, Range, RangeResult, SharedKv, Txn, TxnResult, Watch};
use arco_store::leader::KvLock;
use async_trait::async_trait;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);
const LIFE_S: u64 = 2;

/// A store that can be cut off from one process.
struct Cut {
    kv: SharedKv,
    cut: AtomicBool,
}

impl Cut {
    fn new(kv: &SharedKv) -> Arc<Self> {
        Arc::new(Self { kv: kv.clone(), cut: AtomicBool::new(false) })
    }

    fn through(&self) -> Result<&SharedKv, KvError> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(KvError::Unavailable { step: "answer", cause: "cut off on purpose".to_owned() }),
            false => Ok(&self.kv),
        }
    }
}

#[async_trait]
impl Kv for Cut {
    fn name(&self) -> &'static str {
        "cut"
    }
    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        self.through()?.range(range, limit, at).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResult, KvError> {
        self.through()?.txn(txn).await
    }
    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        self.through()?.watch(range, from).await
    }
    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        self.through()?.lease_grant(ttl_s).await
    }
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        self.through()?.lease_keep_alive(lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        self.through()?.lease_revoke(lease).await
    }
    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        self.through()?.compact(revision).await
    }
}

fn candidate(kv: SharedKv, me: &str) -> Candidate {
    Candidate::new(Arc::new(KvLock::new(kv, "test", me, LIFE_S)))
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

/// A process that says when it begins and ends to lead.
fn process(kv: SharedKv, me: &'static str, says: mpsc::UnboundedSender<(&'static str, bool)>) -> Supervisor {
    let supervisor = Supervisor::new();
    let (candidate, tasks) = (candidate(kv, me), supervisor.clone());
    supervisor.spawn("lead", OnExit::Shutdown, async move {
        let work = move |term: Term, tasks: Supervisor| {
            let says = says.clone();
            async move {
                assert!(term.verify().await);
                says.send((me, true)).unwrap();
                let token = tasks.token().clone();
                tasks.spawn("work", OnExit::Shutdown, async move {
                    token.cancelled().await;
                    says.send((me, false))?;
                    Ok(())
                });
                Ok(())
            }
        };
        lead(candidate, tasks, work).await
    });
    supervisor
}

#[tokio::test]
async fn who_is_cut_off_stops_before_the_next_one_begins() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let (says, mut heard) = mpsc::unbounded_channel();
    let near = Cut::new(&kv);
    let a = process(near.clone(), "a", says.clone());
    assert_eq!(soon(heard.recv()).await, Some(("a", true)));
    let b = process(kv.clone(), "b", says);
    near.cut.store(true, Ordering::SeqCst);
    assert_eq!(soon(heard.recv()).await, Some(("a", false)));
    assert_eq!(soon(heard.recv()).await, Some(("b", true)));
    // The first one is back, and follows.
    near.cut.store(false, Ordering::SeqCst);
    assert!(b.shutdown(PATIENCE).await);
    assert_eq!(soon(heard.recv()).await, Some(("b", false)));
    assert_eq!(soon(heard.recv()).await, Some(("a", true)), "a stop gives the lock to the next one");
    assert!(a.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn a_candidate_says_how_it_stands() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let (a, b) = (candidate(kv.clone(), "a"), candidate(kv.clone(), "b"));
    let (mut of_a, mut of_b) = (a.standing(), b.standing());
    assert_eq!(*of_a.borrow(), Standing::Unknown);
    let term = soon(a.campaign()).await;
    assert!(term.holds() && term.verify().await);
    soon(of_a.wait_for(|it| *it == Standing::Leads)).await.unwrap();
    let second = tokio::spawn(async move { b.campaign().await });
    soon(of_b.wait_for(|it| *it == Standing::Follows("a".to_owned()))).await.unwrap();
    term.lose();
    assert!(!term.holds() && !term.verify().await);
    term.end().await;
    let second = soon(second).await.unwrap();
    assert_eq!(*of_b.borrow(), Standing::Leads);
    second.end().await;
}

#[tokio::test]
async fn work_that_cannot_begin_is_tried_again_and_work_that_ends_stops_the_process() {
    let supervisor = Supervisor::new();
    let candidate = candidate(Arc::new(MemoryKv::new()), "a");
    let failed = Arc::new(AtomicBool::new(false));
    let work = {
        let failed = failed.clone();
        move |_: Term, tasks: Supervisor| {
            let first = !failed.swap(true, Ordering::SeqCst);
            async move {
                if first {
                    return Err("on purpose".into());
                }
                tasks.spawn("work", OnExit::Shutdown, async { Ok(()) });
                Ok(())
            }
        }
    };
    soon(lead(candidate, supervisor.clone(), work)).await.unwrap();
    assert!(supervisor.token().is_cancelled());
}

#[tokio::test]
async fn who_cannot_make_sure_does_not_lead() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let near = Cut::new(&kv);
    let term = soon(candidate(near.clone(), "a").campaign()).await;
    near.cut.store(true, Ordering::SeqCst);
    assert!(!term.verify().await);
    near.cut.store(false, Ordering::SeqCst);
    assert!(term.lost().is_cancelled() && !term.holds());
    term.end().await;
    soon(candidate(kv, "b").campaign()).await.end().await;
}

#[tokio::test]
async fn what_began_does_not_lead_while_it_ends() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let supervisor = Supervisor::new();
    let (tell, mut told) = mpsc::channel(1);
    let work = move |term: Term, tasks: Supervisor| {
        let tell = tell.clone();
        async move {
            let token = tasks.token().clone();
            tasks.spawn("part of the work", OnExit::Continue, async move {
                token.cancelled().await;
                let _ = tell.try_send(term.holds());
                Ok(())
            });
            Err("the rest cannot begin".into())
        }
    };
    supervisor.spawn("lead", OnExit::Shutdown, lead(candidate(kv, "a"), supervisor.clone(), work));
    assert_eq!(soon(told.recv()).await, Some(false));
    assert!(supervisor.shutdown(PATIENCE).await);
}
