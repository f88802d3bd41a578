//! The embedded driver: the contract, and what a file must survive.

use super::EmbeddedKv;
use crate::kv::contract::{Fixture, LIVES_S, contents, next, suite};
use crate::kv::{KvError, Operation, Range, SharedKv, Txn};
use arco_testkit::Killed;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn make() -> Option<Fixture> {
    let folder = tempfile::tempdir().unwrap();
    let kv: SharedKv = Arc::new(EmbeddedKv::open(&folder.path().join("kv.db")).unwrap());
    Some(Fixture { kv, _keep: Box::new(folder) })
}

suite!(make);

fn open(path: &Path) -> SharedKv {
    Arc::new(EmbeddedKv::open(path).unwrap())
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    for life_s in LIVES_S {
        if reopened(life_s).await {
            return;
        }
    }
    panic!("leases end while they are used");
}

/// `false` when the machine was too slow for a lease of such a life.
async fn reopened(life_s: u64) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let (kv, life) = (open(&path), Duration::from_secs(life_s));
    let began = Instant::now();
    let lease = kv.lease_grant(life_s).await.unwrap();
    let gone = kv.lease_grant(3600).await.unwrap();
    kv.put("/a", b"1".to_vec(), None).await.unwrap();
    let second = kv.put("/a", b"2".to_vec(), None).await.unwrap();
    let leased = kv.put("/b", b"".to_vec(), Some(lease)).await;
    kv.put("/c", b"".to_vec(), Some(gone)).await.unwrap();
    kv.lease_revoke(gone).await.unwrap();
    kv.compact(second).await.unwrap();
    let before = kv.list("").await.unwrap();
    drop(kv);
    if began.elapsed() >= life {
        return false;
    }
    leased.unwrap();

    let opened = Instant::now();
    let kv = open(&path);
    let after = kv.list("").await.unwrap();
    if opened.elapsed() >= life {
        return false;
    }
    assert_eq!((&after.items, after.revision), (&before.items, before.revision));
    assert!(matches!(kv.watch(Range::Prefix(vec![]), Some(second - 1)).await.unwrap().next().await,
        Some(Err(KvError::Compacted { oldest, .. })) if oldest == second));
    let mut watch = kv.watch(Range::Prefix(vec![]), Some(second)).await.unwrap();
    for _ in 0..4 {
        next(&mut watch).await.unwrap();
    }
    assert!(matches!(kv.lease_keep_alive(gone).await, Err(KvError::NoLease(_))));
    // The other lease has its full time again, and then ends.
    let last = next(&mut watch).await.unwrap();
    assert!(opened.elapsed() >= life, "{:?}", opened.elapsed());
    assert_eq!(last.revision, before.revision + 1);
    assert_eq!(contents(&kv, "").await.into_keys().collect::<Vec<_>>(), ["/a"]);
    drop(kv);
    let kv = open(&path);
    assert_eq!(contents(&kv, "").await.len(), 1);
    assert_eq!(kv.put("/d", vec![], None).await.unwrap(), last.revision + 1, "revisions go on");
    true
}

#[tokio::test]
async fn a_file_has_one_owner_and_only_its_user_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let first = open(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = EmbeddedKv::open(&path).err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(first);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&path));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "it came from a backup");
    std::fs::write(folder.path().join("text"), "not a database, but long enough to be looked at as one".repeat(100))
        .unwrap();
    let error = EmbeddedKv::open(&folder.path().join("text")).err().unwrap().to_string();
    assert!(error.contains("damaged"), "{error}");
    let error = EmbeddedKv::open(&folder.path().join("none/kv.db")).err().unwrap().to_string();
    assert!(error.contains("folder"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_history_is_forgotten_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let kv = open(&path);
    kv.put("/kept", b"once".to_vec(), None).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let kv = kv.clone();
        writers.spawn(async move {
            for number in 0..180 {
                kv.put(&format!("/w/{writer}"), vec![0; number], None).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let last = kv.list("/w/").await.unwrap().revision;
    assert_eq!(last, 1 + 1 + 64 * 180);
    let asked = kv.range(Range::Prefix(vec![]), 1, Some(100)).await;
    assert!(matches!(asked, Err(KvError::Compacted { .. })), "{asked:?}");
    drop(kv);
    let kv = open(&path);
    assert_eq!(kv.get("/kept").await.unwrap().unwrap().value, b"once");
    assert_eq!(kv.list("").await.unwrap().count, 65);
    assert_eq!(kv.list("").await.unwrap().revision, last);
}

/// Not a test of its own: writes until it is killed, and says what was accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by `what_was_accepted_survives_kill`"]
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn writer_to_be_killed() {
    let Ok(path) = std::env::var("KV_TEST_FILE") else { return };
    let kv = open(Path::new(&path));
    let start: u64 = std::env::var("KV_TEST_START").unwrap().parse().unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let kv = kv.clone();
        writers.spawn(async move {
            for number in start.. {
                // Two keys that always change together, and one that is deleted and made again.
                let value = number.to_string().into_bytes();
                let pair = ["left", "right"].map(|side| Operation::Put {
                    key: format!("/{side}/{writer}").into_bytes(),
                    value: value.clone(),
                    lease: None,
                });
                let done = kv.txn(Txn { success: pair.to_vec(), ..Txn::default() }).await.unwrap();
                println!("accepted {writer} {number} {}", done.revision);
                kv.delete(&format!("/once/{writer}")).await.unwrap();
                kv.put(&format!("/once/{writer}"), value, None).await.unwrap();
            }
        });
    }
    writers.join_next().await;
}

#[tokio::test]
async fn what_was_accepted_survives_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let (mut start, mut revision) = (0, 0);
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "kv::embedded::tests::writer_to_be_killed", "--nocapture"]);
        child.env("KV_TEST_FILE", &path).env("KV_TEST_START", start.to_string());
        let mut child = Killed(child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut accepted = [None::<u64>; 4];
        let mut take = |line: &str| {
            if let Some(words) = line.split("accepted ").nth(1).map(|it| it.split(' ').collect::<Vec<_>>())
                && let [writer, number, at] = words[..]
                && let Ok(at) = at.parse::<u64>()
            {
                accepted[writer.parse::<usize>().unwrap()] = Some(number.parse().unwrap());
                revision = revision.max(at);
            }
        };
        for _ in 0..100 + round * 37 {
            take(&lines.next().unwrap().unwrap());
        }
        child.0.kill().unwrap();
        lines.map_while(Result::ok).for_each(|it| take(&it));
        drop(child);

        let kv = open(&path);
        let (left, right) = (contents(&kv, "/left/").await, contents(&kv, "/right/").await);
        assert_eq!(left.values().collect::<Vec<_>>(), right.values().collect::<Vec<_>>(), "half a transaction");
        for (writer, number) in accepted.iter().enumerate() {
            let found = left.get(&format!("/left/{writer}")).map(|it| it.parse::<u64>().unwrap());
            assert!(found >= *number, "writer {writer}: {number:?} was accepted, {found:?} is there");
        }
        assert!(kv.list("").await.unwrap().revision >= revision);
        start = left.values().map(|it| it.parse::<u64>().unwrap()).max().unwrap() + 1;
    }
}

/// `cargo test -p arco-store durable_put -- --ignored --nocapture` prints what a durable write costs here.
#[tokio::test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement")]
async fn durable_put_takes() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let kv = open(&folder.path().join("kv.db"));
    let mut times = Vec::new();
    for number in 0..2000 {
        let begun = Instant::now();
        kv.put(&format!("/k/{number}"), vec![0; 256], None).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort();
    println!("durable put: p50 {:?}, p99 {:?}", times[1000], times[1980]);
}
