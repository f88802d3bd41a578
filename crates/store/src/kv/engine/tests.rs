//! A journal that fails: nobody sees what was not kept, and afterwards the store goes on.

use super::{Engine, Journal};
use crate::kv::contract::{LIVES_S, PATIENCE, next};
use crate::kv::state::{Record, State};
use crate::kv::{KvError, Operation, Range, Txn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whether the disk is full, and how often that was met.
#[derive(Default)]
struct Disk {
    full: AtomicBool,
    met: AtomicU64,
}

struct Failing(Arc<Disk>);

impl Journal for Failing {
    fn keep(&mut self, _: &[Record]) -> Result<(), String> {
        if self.0.full.load(Ordering::SeqCst) {
            self.0.met.fetch_add(1, Ordering::SeqCst);
            return Err("the disk is full".to_owned());
        }
        Ok(())
    }
}

fn put(key: &str, lease: Option<i64>) -> Txn {
    let success = vec![Operation::Put { key: key.as_bytes().to_vec(), value: vec![], lease }];
    Txn { success, ..Txn::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_kept_did_not_happen() {
    let disk = Arc::new(Disk::default());
    let engine = Engine::start(State::new(), Failing(disk.clone())).unwrap();
    let all = || engine.read().range(&Range::Prefix(vec![]), 0, None).unwrap();
    let mut watch = engine.watch(Range::Prefix(vec![]), Some(2));
    let lease = engine.grant(3600).await.unwrap();
    engine.txn(put("/kept", Some(lease))).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 2);

    disk.full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = engine.txn(put("/lost", Some(lease))).await.unwrap_err();
        assert!(matches!(&error, KvError::Unavailable { cause, .. } if cause == "the disk is full"), "{error}");
    }
    assert!(engine.grant(60).await.is_err());
    assert!(engine.revoke(lease).await.is_err());
    assert!(matches!(engine.compact(2).await, Err(KvError::Unavailable { .. })));
    let found = all();
    assert_eq!((found.revision, found.items.len(), found.items[0].lease), (2, 1, Some(lease)));
    assert_eq!(engine.keep_alive(lease).unwrap(), 3600, "it did not end");

    disk.full.store(false, Ordering::SeqCst);
    assert_eq!(engine.txn(put("/again", None)).await.unwrap().revision, 3);
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 3, "no revision of what was refused");
    engine.revoke(lease).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 4);
    assert_eq!(all().items[0].key, b"/again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_end_was_not_kept_ends_later() {
    for life_s in LIVES_S {
        let disk = Arc::new(Disk::default());
        let engine = Engine::start(State::new(), Failing(disk.clone())).unwrap();
        let began = Instant::now();
        let lease = engine.grant(life_s).await.unwrap();
        let made = engine.txn(put("/leased", Some(lease))).await;
        disk.full.store(true, Ordering::SeqCst);
        if began.elapsed() >= Duration::from_secs(life_s) {
            continue; // the machine stood still, and it may have ended before the disk was full
        }
        assert_eq!(made.unwrap().revision, 2);
        let deadline = Instant::now() + PATIENCE;
        while disk.met.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "the lease does not end");
            tokio::time::sleep(Duration::from_millis(20)).await; // the pace of looking
        }
        assert_eq!(engine.read().range(&Range::Prefix(vec![]), 0, None).unwrap().items.len(), 1);
        let mut watch = engine.watch(Range::Prefix(vec![]), Some(3));
        disk.full.store(false, Ordering::SeqCst);
        assert_eq!(next(&mut watch).await.unwrap().revision, 3, "it ends at last");
        assert!(engine.read().range(&Range::Prefix(vec![]), 0, None).unwrap().items.is_empty());
        return;
    }
    panic!("leases end while they are used");
}
