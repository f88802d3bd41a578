//! Which job comes next, case by case.

use super::{Next, View};
use crate::keys::{self, Stored};
use arco_model::id::JobId;
use arco_model::job::{Job, JobRequest, Topic};
use arco_model::time::Timestamp;
use arco_store::kv::{Event, KeyValue};

const NOW: Timestamp = Timestamp(1_000);

fn kv(key: String, value: Vec<u8>, create_revision: u64) -> KeyValue {
    let key = key.into_bytes();
    KeyValue { key, value, create_revision, mod_revision: create_revision, version: 1, lease: None }
}

/// A job made at a revision.
fn job(revision: u64, key: &str, attempts: u32, not_before: u64) -> KeyValue {
    let job = Job {
        id: JobId::from_parts(1, revision),
        request: JobRequest { topic: Topic::Builder, key: key.to_owned(), dedup_id: revision.to_string() },
        attempts,
        not_before: Timestamp(not_before),
        created_at: Timestamp(0),
        last_error: None,
    };
    let name = keys::job(Topic::Builder, &job.id);
    let stored = Stored { job, failures: 0, losses: 0, running: false };
    kv(name.clone(), keys::encode(&name, &stored).unwrap(), revision)
}

fn claim(key: &str) -> KeyValue {
    kv(keys::claim(Topic::Builder, key), vec![], 90)
}

/// The revision of the job that comes next, or when to look again.
fn next(view: &View, reserved: &[&str]) -> Result<u64, Option<u64>> {
    match view.next(NOW, |key| reserved.contains(&key)) {
        Next::Claim(entry) => Ok(entry.mod_revision),
        Next::Wait(until) => Err(until.map(|it| it.0)),
    }
}

#[test]
fn the_next_job() {
    let of = |items: &[KeyValue]| View::of(Topic::Builder, items, 99);
    for (what, items, expected) in [
        ("none", vec![], Err(None)),
        ("the oldest, whatever its key", vec![job(3, "a", 0, 0), job(2, "b", 0, 0)], Ok(2)),
        (
            "a claimed key is passed over",
            vec![job(2, "a", 0, 0), job(3, "a", 0, 0), claim("a"), job(4, "b", 0, 0)],
            Ok(4),
        ),
        ("a claimed key is no reason to wake", vec![job(2, "a", 0, 1_500), claim("a")], Err(None)),
        ("a job for later lets others of its key pass", vec![job(2, "a", 0, 1_500), job(3, "a", 0, 0)], Ok(3)),
        ("a retried job holds its key", vec![job(2, "a", 1, 1_500), job(3, "a", 0, 0)], Err(Some(1_500))),
        ("and no other key", vec![job(2, "a", 1, 1_500), job(3, "b", 0, 0)], Ok(3)),
        ("a retried job that is due", vec![job(2, "a", 0, 0), job(3, "a", 1, 1_000)], Ok(3)),
        ("the earliest wake", vec![job(2, "a", 0, 1_700), job(3, "b", 2, 1_600)], Err(Some(1_600))),
        (
            "a foreign key below the topic",
            vec![kv("/mq/builder/jobs/x".into(), b"{".to_vec(), 2), job(3, "a", 0, 0)],
            Ok(3),
        ),
    ] {
        assert_eq!(next(&of(&items), &[]), expected, "{what}");
    }
    let view = of(&[job(2, "a", 0, 0), job(3, "b", 0, 0)]);
    assert_eq!(next(&view, &["a"]), Ok(3));
    assert_eq!(next(&view, &["a", "b"]), Err(None));
}

#[test]
fn changes_are_taken_in() {
    let mut view = View::new(Topic::Builder);
    let first = job(2, "a/b", 0, 0);
    view.apply(2, &[Event::Put(first.clone())]);
    view.apply(3, &[Event::Put(claim("a/b"))]);
    assert_eq!((next(&view, &[]), view.counts(), view.revision), (Err(None), (0, 1), 3));
    let gone = |kv: &KeyValue, revision| Event::Delete { key: kv.key.clone(), revision };
    view.apply(4, &[gone(&claim("a/b"), 4)]);
    assert_eq!((next(&view, &[]), view.counts()), (Ok(2), (1, 0)));
    view.apply(5, &[gone(&first, 5)]);
    assert_eq!((next(&view, &[]), view.counts(), view.revision), (Err(None), (0, 0), 5));
}
