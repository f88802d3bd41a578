//! What every driver must do, as one suite: `suite!(make)` makes a test of each of these functions, on a store that
//! `make` gives. They hold on a store that others filled before (a real etcd), as long as nobody writes meanwhile.

use super::{
    Compare, EtcdKv, Event, KeyValue, KvError, LeaseId, MAX_BYTES, Operation, Range, SharedKv, Txn, Watch, WatchBatch,
};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Lives of leases that are tried, in seconds. A test that waits for the end of one wants it short; where the machine stood
/// still for so long that it ended in between, the next one is tried.
pub(super) const LIVES_S: [u64; 4] = [2, 6, 18, 54];
/// How long the tests wait for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// A store, and what must live as long as it does.
pub(super) struct Fixture {
    pub kv: SharedKv,
    pub _keep: Box<dyn Any + Send>,
}

macro_rules! suite {
    ($make:path: $($name:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if let Some(fixture) = $make().await {
                $crate::kv::contract::$name(fixture.kv.clone()).await;
            }
        }
    )*};
    ($make:path) => {
        $crate::kv::contract::suite! { $make:
            each_writing_transaction_is_one_revision
            conditions_choose_the_branch
            ranges_are_ordered_paged_and_counted
            old_revisions_can_be_read_until_compacted
            a_watch_sees_every_change_once_and_in_order
            a_watch_of_compacted_history_says_so
            a_slow_watcher_misses_nothing
            leases_take_their_keys_along
            a_renewed_lease_stays
            limits_are_those_of_etcd
            writers_race_and_one_wins
        }
    };
}
pub(super) use suite;

/// The real etcd of this test program, and the turn to use it: tests count revisions, so one at a time.
pub(crate) async fn real_etcd() -> Option<(SharedKv, OwnedMutexGuard<()>)> {
    static TURN: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);
    let url = arco_testkit::servers::etcd()?;
    let turn = TURN.clone().lock_owned().await;
    let kv: SharedKv = Arc::new(EtcdKv::connect(&[url], None).await.unwrap());
    Some((kv, turn))
}

/// A prefix that no other test uses.
fn area() -> String {
    format!("/contract/{:016x}/", crate::clock::random())
}

fn put(key: impl Into<String>, value: &str) -> Operation {
    Operation::Put { key: key.into().into_bytes(), value: value.as_bytes().to_vec(), lease: None }
}

fn prefix(text: &str) -> Range {
    Range::Prefix(text.as_bytes().to_vec())
}

fn key(text: impl Into<String>) -> Vec<u8> {
    text.into().into_bytes()
}

fn write(success: Vec<Operation>) -> Txn {
    Txn { success, ..Txn::default() }
}

/// The next batch, waited for at most as long as [`PATIENCE`].
pub(super) async fn next(watch: &mut Watch) -> Result<WatchBatch, KvError> {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await;
    next.expect("a batch comes").expect("the watch goes on")
}

fn shown(batch: &WatchBatch, area: &str) -> (u64, Vec<String>) {
    let word = |event: &Event| {
        let (key, rest) = match event {
            Event::Put(it) => (&it.key, format!("={}", String::from_utf8_lossy(&it.value))),
            Event::Delete { key, .. } => (key, " gone".to_owned()),
        };
        format!("{}{rest}", String::from_utf8_lossy(key).trim_start_matches(area))
    };
    (batch.revision, batch.events.iter().map(word).collect())
}

pub(super) async fn each_writing_transaction_is_one_revision(kv: SharedKv) {
    let a = area();
    let start = kv.list(&a).await.unwrap().revision;
    let done = kv.txn(write(vec![put(format!("{a}x"), "1"), put(format!("{a}y"), "2")])).await.unwrap();
    assert!(done.succeeded);
    assert_eq!(done.revision, start + 1);
    assert_eq!(done.results, [vec![], vec![]]);
    assert_eq!(kv.put(&format!("{a}x"), b"3".to_vec(), None).await.unwrap(), start + 2);
    // What changes nothing makes no revision.
    let read =
        kv.txn(write(vec![Operation::Get(prefix(&a)), Operation::Delete(Range::Key(key("/none")))])).await.unwrap();
    assert_eq!(read.revision, start + 2);
    assert_eq!(read.results[0].len(), 2);
    let x = kv.get(&format!("{a}x")).await.unwrap().unwrap();
    assert_eq!((x.create_revision, x.mod_revision, x.version, x.lease), (start + 1, start + 2, 2, None));
    kv.delete(&format!("{a}x")).await.unwrap();
    kv.put(&format!("{a}x"), b"4".to_vec(), None).await.unwrap();
    let x = kv.get(&format!("{a}x")).await.unwrap().unwrap();
    assert_eq!((x.create_revision, x.mod_revision, x.version), (start + 4, start + 4, 1), "a new life");
    // A transaction sees its own writes.
    let own =
        kv.txn(write(vec![put(format!("{a}z"), "5"), Operation::Get(Range::Key(key(format!("{a}z"))))])).await.unwrap();
    assert_eq!(own.results[1][0].value, b"5");
    assert_eq!(own.results[1][0].mod_revision, own.revision);
}

pub(super) async fn conditions_choose_the_branch(kv: SharedKv) {
    let a = area();
    let (x, none) = (key(format!("{a}x")), key(format!("{a}none")));
    let at = kv.put(&format!("{a}x"), b"1".to_vec(), None).await.unwrap();
    for (compare, holds) in [
        (vec![], true),
        (vec![Compare::Absent(none.clone())], true),
        (vec![Compare::Absent(x.clone())], false),
        (vec![Compare::Present(x.clone())], true),
        (vec![Compare::Present(none.clone())], false),
        (vec![Compare::ModRevision(x.clone(), at)], true),
        (vec![Compare::ModRevision(x.clone(), at - 1)], false),
        (vec![Compare::ModRevision(none.clone(), at)], false),
        (vec![Compare::Value(x.clone(), b"1".to_vec())], true),
        (vec![Compare::Value(x.clone(), b"2".to_vec())], false),
        (vec![Compare::Value(none.clone(), vec![])], false),
        (vec![Compare::Present(x.clone()), Compare::Present(none.clone())], false),
    ] {
        let text = format!("{compare:?}");
        let success = vec![Operation::Get(Range::Key(x.clone()))];
        let done = kv.txn(Txn { compare, success, failure: vec![] }).await.unwrap();
        assert_eq!(done.succeeded, holds, "{text}");
        assert_eq!(done.results.len(), usize::from(holds), "{text}");
    }
    let failure = vec![Operation::Delete(prefix(&a))];
    let done = kv.txn(Txn { compare: vec![Compare::Absent(x)], success: vec![], failure }).await.unwrap();
    assert_eq!(done.results[0][0].value, b"1", "a deletion tells what it removed");
    assert!(kv.get(&format!("{a}x")).await.unwrap().is_none());
}

pub(super) async fn ranges_are_ordered_paged_and_counted(kv: SharedKv) {
    let a = area();
    let names = ["a", "a/1", "a/2", "b", "c"];
    kv.txn(write(names.iter().rev().map(|it| put(format!("{a}{it}"), it)).collect())).await.unwrap();
    let found = |items: &[KeyValue]| -> Vec<String> {
        items.iter().map(|it| String::from_utf8(it.value.clone()).unwrap()).collect()
    };
    let all = kv.list(&a).await.unwrap();
    assert_eq!(found(&all.items), names);
    assert_eq!((all.count, all.more), (5, false));
    let page = kv.range(prefix(&a), 2, None).await.unwrap();
    assert_eq!((found(&page.items), page.count, page.more), (vec!["a".to_owned(), "a/1".to_owned()], 5, true));
    for (range, expected) in [
        (Range::Key(key(format!("{a}a"))), vec!["a"]),
        (prefix(&format!("{a}a/")), vec!["a/1", "a/2"]),
        (Range::Between(key(format!("{a}a/2")), key(format!("{a}c"))), vec!["a/2", "b"]),
        (Range::Between(key(format!("{a}c")), key(format!("{a}a"))), vec![]),
        (prefix(&format!("{a}x")), vec![]),
    ] {
        assert_eq!(found(&kv.range(range.clone(), 0, None).await.unwrap().items), expected, "{range:?}");
    }
    let rest = kv.range(Range::Between(key(format!("{a}b")), vec![]), 2, None).await.unwrap();
    assert_eq!(found(&rest.items), ["b", "c"], "an empty end is no end");
}

pub(super) async fn old_revisions_can_be_read_until_compacted(kv: SharedKv) {
    let a = area();
    let x = format!("{a}x");
    let first = kv.put(&x, b"1".to_vec(), None).await.unwrap();
    let second = kv.put(&x, b"2".to_vec(), None).await.unwrap();
    kv.delete(&x).await.unwrap();
    let at = |at: u64| kv.range(Range::Key(key(&x)), 0, Some(at));
    assert_eq!(at(first).await.unwrap().items[0].value, b"1");
    assert_eq!(at(second).await.unwrap().items[0].value, b"2");
    assert!(at(second + 1).await.unwrap().items.is_empty());
    assert!(matches!(at(second + 9).await, Err(KvError::Refused(_))), "the future cannot be read");
    kv.compact(second).await.unwrap();
    assert!(matches!(at(first).await, Err(KvError::Compacted { asked, oldest }) if asked == first && oldest > first));
    assert_eq!(at(second).await.unwrap().items[0].value, b"2", "the oldest revision itself stays");
    assert!(matches!(kv.compact(first).await, Err(KvError::Compacted { .. })));
    assert!(matches!(kv.compact(second + 9).await, Err(KvError::Refused(_))));
}

pub(super) async fn a_watch_sees_every_change_once_and_in_order(kv: SharedKv) {
    let a = area();
    let start = kv.put(&format!("{a}old"), b"0".to_vec(), None).await.unwrap();
    let mut live = kv.watch(prefix(&a), None).await.unwrap();
    kv.txn(write(vec![put(format!("{a}x"), "1"), put(format!("{a}y"), "1")])).await.unwrap();
    kv.put("/elsewhere", b"".to_vec(), None).await.unwrap();
    kv.put(&format!("{a}x"), b"2".to_vec(), None).await.unwrap();
    kv.txn(write(vec![Operation::Delete(prefix(&a))])).await.unwrap();
    let expected = [
        (start + 1, vec!["x=1".to_owned(), "y=1".to_owned()]),
        (start + 3, vec!["x=2".to_owned()]),
        (start + 4, vec!["old gone".to_owned(), "x gone".to_owned(), "y gone".to_owned()]),
    ];
    for batch in &expected {
        assert_eq!(shown(&next(&mut live).await.unwrap(), &a), *batch);
    }
    let mut late = kv.watch(prefix(&a), Some(start)).await.unwrap();
    assert_eq!(shown(&next(&mut late).await.unwrap(), &a), (start, vec!["old=0".to_owned()]));
    for batch in &expected {
        assert_eq!(shown(&next(&mut late).await.unwrap(), &a), *batch);
    }
    // From the future: what lies before is not seen.
    let mut future = kv.watch(prefix(&a), Some(start + 6)).await.unwrap();
    let mut one = kv.watch(Range::Key(key(format!("{a}k"))), Some(start + 5)).await.unwrap();
    kv.put(&format!("{a}k"), b"5".to_vec(), None).await.unwrap();
    kv.put(&format!("{a}k2"), b"6".to_vec(), None).await.unwrap();
    assert_eq!(shown(&next(&mut future).await.unwrap(), &a), (start + 6, vec!["k2=6".to_owned()]));
    assert_eq!(shown(&next(&mut one).await.unwrap(), &a), (start + 5, vec!["k=5".to_owned()]));
}

pub(super) async fn a_watch_of_compacted_history_says_so(kv: SharedKv) {
    let a = area();
    let first = kv.put(&format!("{a}x"), b"1".to_vec(), None).await.unwrap();
    kv.put(&format!("{a}x"), b"2".to_vec(), None).await.unwrap();
    let last = kv.put(&format!("{a}x"), b"3".to_vec(), None).await.unwrap();
    kv.compact(last).await.unwrap();
    let mut gone = kv.watch(prefix(&a), Some(first)).await.unwrap();
    let error = next(&mut gone).await.unwrap_err();
    assert!(matches!(error, KvError::Compacted { asked, oldest } if asked == first && oldest == last), "{error}");
    let mut kept = kv.watch(prefix(&a), Some(last)).await.unwrap();
    assert_eq!(shown(&next(&mut kept).await.unwrap(), &a), (last, vec!["x=3".to_owned()]));
}

pub(super) async fn a_slow_watcher_misses_nothing(kv: SharedKv) {
    let a = area();
    let mut slow = kv.watch(prefix(&a), None).await.unwrap();
    for number in 0..500 {
        kv.put(&format!("{a}n"), number.to_string().into_bytes(), None).await.unwrap();
    }
    let mut last = 0;
    for number in 0..500 {
        let batch = next(&mut slow).await.unwrap();
        assert!(batch.revision > last);
        last = batch.revision;
        assert_eq!(shown(&batch, &a).1, [format!("n={number}")]);
    }
}

/// The key hangs on the lease, or stands for itself; `false` when the lease is over.
async fn hang(kv: &SharedKv, key: String, lease: Option<LeaseId>) -> bool {
    match kv.put(&key, b"".to_vec(), lease).await {
        Ok(_) => true,
        Err(KvError::NoLease(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

pub(super) async fn leases_take_their_keys_along(kv: SharedKv) {
    for life_s in LIVES_S {
        if leases_of(&kv, life_s).await {
            return;
        }
    }
    panic!("leases end while they are used");
}

/// `false` when the machine was too slow for leases of such a life.
async fn leases_of(kv: &SharedKv, life_s: u64) -> bool {
    let (a, began) = (area(), Instant::now());
    let (short, long) = (kv.lease_grant(life_s).await.unwrap(), kv.lease_grant(3600).await.unwrap());
    assert!(short > 0 && long > 0 && short != long);
    for (name, lease) in [
        ("moved", Some(short)),
        ("freed", Some(short)),
        ("moved", Some(long)),
        ("freed", None),
        ("s1", Some(short)),
        ("s2", Some(short)),
    ] {
        if !hang(kv, format!("{a}{name}"), lease).await {
            assert!(began.elapsed() >= Duration::from_secs(life_s), "it ended too early");
            return false;
        }
    }
    let at = kv.list(&a).await.unwrap();
    let Some(last) = at.items.iter().find(|it| it.key == key(format!("{a}s2"))) else {
        assert!(began.elapsed() >= Duration::from_secs(life_s), "it ended too early");
        return false;
    };
    assert_eq!(last.lease, Some(short));
    let mut watch = kv.watch(prefix(&a), Some(last.mod_revision + 1)).await.unwrap();
    let mut gone = shown(&next(&mut watch).await.unwrap(), &a).1;
    gone.sort();
    assert_eq!(gone, ["s1 gone", "s2 gone"], "both in one revision");
    let error = kv.put(&format!("{a}x"), b"".to_vec(), Some(short)).await.unwrap_err();
    assert!(matches!(error, KvError::NoLease(lease) if lease == short), "{error}");
    assert!(matches!(kv.lease_keep_alive(short).await, Err(KvError::NoLease(lease)) if lease == short));
    kv.lease_revoke(long).await.unwrap();
    kv.lease_revoke(long).await.unwrap();
    assert_eq!(shown(&next(&mut watch).await.unwrap(), &a).1, ["moved gone"]);
    assert_eq!(kv.list(&a).await.unwrap().count, 1, "only the freed key stays");
    true
}

pub(super) async fn a_renewed_lease_stays(kv: SharedKv) {
    for life_s in LIVES_S {
        if renewed_for(&kv, life_s).await {
            return;
        }
    }
    panic!("leases end between two renewals");
}

/// `false` when the machine stood still between two renewals for longer than such a lease lives.
async fn renewed_for(kv: &SharedKv, life_s: u64) -> bool {
    let (a, life) = (area(), Duration::from_secs(life_s));
    // Since when it has its full time at least: a renewal counts from its beginning.
    let mut since = Instant::now();
    let (renewed, witness) = (kv.lease_grant(life_s).await.unwrap(), kv.lease_grant(2 * life_s).await.unwrap());
    let hung =
        hang(kv, format!("{a}renewed"), Some(renewed)).await && hang(kv, format!("{a}witness"), Some(witness)).await;
    let found = kv.list(&a).await.unwrap();
    if !hung || found.count != 2 {
        assert!(since.elapsed() >= life, "a lease ended too early");
        return false;
    }
    let mut watch = kv.watch(prefix(&a), Some(found.revision + 1)).await.unwrap();
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    let first = loop {
        tokio::select! {
            batch = next(&mut watch) => break batch.unwrap(),
            _ = beat.tick() => {
                let asked = Instant::now();
                match kv.lease_keep_alive(renewed).await {
                    Ok(left_s) => assert_eq!(left_s, life_s),
                    Err(KvError::NoLease(_)) if since.elapsed() >= life => return false,
                    Err(error) => panic!("{error}"),
                }
                since = asked;
            }
        }
    };
    let first = shown(&first, &a).1;
    if first == ["renewed gone"] && since.elapsed() >= life {
        return false;
    }
    assert_eq!(first, ["witness gone"], "twice as long, but it was not renewed");
    assert_eq!(shown(&next(&mut watch).await.unwrap(), &a).1, ["renewed gone"], "and then nobody renewed it");
    true
}

pub(super) async fn limits_are_those_of_etcd(kv: SharedKv) {
    let a = area();
    let many = |count: usize| write((0..count).map(|it| put(format!("{a}{it}"), "")).collect());
    kv.txn(many(128)).await.unwrap();
    let overlap = vec![put(format!("{a}x"), ""), Operation::Delete(prefix(&a))];
    let big = vec![0; MAX_BYTES + 1];
    for (what, txn) in [
        ("129 operations", many(129)),
        ("twice", write(vec![put(format!("{a}x"), ""), put(format!("{a}x"), "")])),
        ("written and deleted", write(overlap)),
        ("no key", write(vec![put("", "")])),
        ("big", write(vec![Operation::Put { key: key(format!("{a}big")), value: big, lease: None }])),
    ] {
        let error = kv.txn(txn).await.unwrap_err();
        assert!(matches!(error, KvError::Refused(_)), "{what}: {error}");
    }
    kv.put(&format!("{a}fits"), vec![0; MAX_BYTES - 100_000], None).await.unwrap();
    let length = kv.get(&format!("{a}fits")).await.unwrap().unwrap().value.len();
    assert_eq!(length, MAX_BYTES - 100_000);
}

pub(super) async fn writers_race_and_one_wins(kv: SharedKv) {
    let counter = format!("{}counter", area());
    kv.put(&counter, b"0".to_vec(), None).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (kv, counter) = (kv.clone(), counter.clone());
        writers.spawn(async move {
            for _ in 0..10 {
                loop {
                    let found = kv.get(&counter).await.unwrap().unwrap();
                    let number: u64 = String::from_utf8(found.value).unwrap().parse().unwrap();
                    let txn = Txn {
                        compare: vec![Compare::ModRevision(key(&counter), found.mod_revision)],
                        success: vec![put(counter.clone(), &(number + 1).to_string())],
                        failure: vec![],
                    };
                    if kv.txn(txn).await.unwrap().succeeded {
                        break;
                    }
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert_eq!(kv.get(&counter).await.unwrap().unwrap().value, b"80");
}

/// All keys below a prefix with their values, for tests of drivers.
pub(super) async fn contents(kv: &SharedKv, prefix: &str) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    kv.list(prefix).await.unwrap().items.iter().map(|it| (text(&it.key), text(&it.value))).collect()
}
