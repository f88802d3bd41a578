//! Leaders that die, pause, or cannot reach their lock.

use super::*;
use crate::OnExit;
use arco_store::kv::{Kv, KvError, LeaseId, MemoryKv, Range, RangeResult, SharedKv, Txn, TxnResult, Watch};
use arco_store::leader::KvLock;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(180);
/// What a lock's life is where it must not end by itself, and where it must.
const LONG_S: u64 = 3600;
const SHORT_S: u64 = 2;

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

fn candidate(kv: SharedKv, me: &str, life_s: u64) -> Candidate {
    Candidate::new(Arc::new(KvLock::new(kv, "test", me, life_s)))
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

/// Every time in which one of several processes led.
type Terms = Arc<Mutex<Vec<Term>>>;

/// What is said by processes: who begins or ends to lead, and whether nobody else led when it began.
#[derive(Clone, Copy, Debug)]
struct Said {
    me: &'static str,
    leads: bool,
    alone: bool,
}

struct Processes {
    terms: Terms,
    says: mpsc::UnboundedSender<Said>,
    heard: mpsc::UnboundedReceiver<Said>,
    leads: BTreeMap<&'static str, bool>,
}

impl Processes {
    fn new() -> Self {
        let (says, heard) = mpsc::unbounded_channel();
        Self { terms: Terms::default(), says, heard, leads: BTreeMap::new() }
    }

    /// A process that says when it begins and ends to lead.
    fn start(&self, kv: SharedKv, me: &'static str) -> Supervisor {
        let supervisor = Supervisor::new();
        let (candidate, tasks) = (candidate(kv, me, SHORT_S), supervisor.clone());
        let (says, terms) = (self.says.clone(), self.terms.clone());
        supervisor.spawn("lead", OnExit::Shutdown, async move {
            let work = move |term: Term, tasks: Supervisor| {
                let (says, terms) = (says.clone(), terms.clone());
                async move {
                    if !term.verify().await {
                        return Err("its time is over already: this machine stood still".into());
                    }
                    let others_lead = terms.lock().unwrap().iter().any(Term::holds);
                    // Asked after that: who still holds the lock has held it then.
                    let alone = !(others_lead && term.holds());
                    terms.lock().unwrap().push(term);
                    says.send(Said { me, leads: true, alone }).unwrap();
                    let token = tasks.token().clone();
                    tasks.spawn("work", OnExit::Shutdown, async move {
                        token.cancelled().await;
                        says.send(Said { me, leads: false, alone: true })?;
                        Ok(())
                    });
                    Ok(())
                }
            };
            lead(candidate, tasks, work).await
        });
        supervisor
    }

    /// Listens until the work of exactly this one goes on.
    async fn until(&mut self, leader: &'static str) {
        let leads = |it: &BTreeMap<&'static str, bool>| it.iter().filter(|it| *it.1).map(|it| *it.0).eq([leader]);
        while !leads(&self.leads) {
            let said = soon(self.heard.recv()).await.unwrap();
            assert!(said.alone, "{said:?} while another one led");
            self.leads.insert(said.me, said.leads);
        }
    }
}

#[tokio::test]
async fn who_is_cut_off_stops_before_the_next_one_begins() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let mut processes = Processes::new();
    let near = Cut::new(&kv);
    let a = processes.start(near.clone(), "a");
    processes.until("a").await;
    let b = processes.start(kv.clone(), "b");
    near.cut.store(true, Ordering::SeqCst);
    processes.until("b").await;
    // The first one is back, and follows; a stop gives the lock to it.
    near.cut.store(false, Ordering::SeqCst);
    assert!(b.shutdown(PATIENCE).await);
    processes.until("a").await;
    assert!(a.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn a_candidate_says_how_it_stands() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let (a, b) = (candidate(kv.clone(), "a", LONG_S), candidate(kv.clone(), "b", LONG_S));
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
    let candidate = candidate(Arc::new(MemoryKv::new()), "a", LONG_S);
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
    let term = soon(candidate(near.clone(), "a", LONG_S).campaign()).await;
    near.cut.store(true, Ordering::SeqCst);
    assert!(!term.verify().await);
    near.cut.store(false, Ordering::SeqCst);
    assert!(term.lost().is_cancelled() && !term.holds());
    term.end().await;
    soon(candidate(kv, "b", LONG_S).campaign()).await.end().await;
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
    supervisor.spawn("lead", OnExit::Shutdown, lead(candidate(kv, "a", LONG_S), supervisor.clone(), work));
    assert_eq!(soon(told.recv()).await, Some(false));
    assert!(supervisor.shutdown(PATIENCE).await);
}
