//! A journal that fails: nobody sees what was not kept, and afterwards the store goes on.

use super::{Engine, Journal};
use crate::kv::state::{Record, State};
use crate::kv::{KvError, Operation, Range, Txn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

struct Failing(Arc<AtomicBool>);

impl Journal for Failing {
    fn keep(&mut self, _: &[Record]) -> Result<(), String> {
        if self.0.load(Ordering::SeqCst) { Err("the disk is full".to_owned()) } else { Ok(()) }
    }
}

fn put(key: &str, lease: Option<i64>) -> Txn {
    let success = vec![Operation::Put { key: key.as_bytes().to_vec(), value: vec![], lease }];
    Txn { success, ..Txn::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_kept_did_not_happen() {
    let full = Arc::new(AtomicBool::new(false));
    let engine = Engine::start(State::new(), Failing(full.clone())).unwrap();
    let all = || engine.read().range(&Range::Prefix(vec![]), 0, None).unwrap();
    let mut watch = engine.watch(Range::Prefix(vec![]), Some(2));
    let lease = engine.grant(3).await.unwrap();
    engine.txn(put("/kept", Some(lease))).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 2);

    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = engine.txn(put("/lost", Some(lease))).await.unwrap_err();
        assert!(matches!(&error, KvError::Unavailable { cause, .. } if cause == "the disk is full"), "{error}");
    }
    assert!(engine.grant(60).await.is_err());
    assert!(engine.revoke(lease).await.is_err());
    assert!(matches!(engine.compact(2).await, Err(KvError::Unavailable { .. })));
    let found = all();
    assert_eq!((found.revision, found.items.len(), found.items[0].lease), (2, 1, Some(lease)));
    assert_eq!(engine.keep_alive(lease).unwrap(), 3, "it did not end");

    full.store(false, Ordering::SeqCst);
    assert_eq!(engine.txn(put("/again", None)).await.unwrap().revision, 3);
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 3, "no revision of what was refused");
    let ended = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
    assert_eq!(ended.expect("the lease ends at last").unwrap().unwrap().revision, 4);
    assert_eq!(all().items[0].key, b"/again");
}
