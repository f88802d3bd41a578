//! Taking jobs and giving them back.

use crate::{nothing, request, soon, take};
use arco_model::job::Topic;
use arco_mq::{Depth, Fate, MAX_FAILURES, Queue, QueueError};
use arco_store::clock;
use arco_store::kv::{EmbeddedKv, MemoryKv, SharedKv};
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

/// What never passes in a test.
const LONG: Duration = Duration::from_secs(3600);
/// What passes in every test.
const SHORT: Duration = Duration::from_millis(300);

fn memory() -> Queue {
    Queue::new(Arc::new(MemoryKv::new()))
}

#[tokio::test]
async fn the_same_job_is_accepted_once() {
    let queue = memory();
    let first = queue.enqueue(request("a", "op1"), None).await.unwrap();
    assert_eq!(queue.enqueue(request("a", "op1"), None).await.unwrap(), first);
    let other = arco_model::job::JobRequest { topic: Topic::Controller, ..request("a", "op1") };
    assert_ne!(queue.enqueue(other, None).await.unwrap(), first, "each topic for itself");
    let leased = take(&queue).await;
    assert_eq!((leased.job().id.clone(), leased.job().attempts), (first.clone(), 1));
    assert_eq!(queue.enqueue(request("a", "op1"), None).await.unwrap(), first, "also while it is with a worker");
    assert_eq!(queue.depth(Topic::Builder).await.unwrap(), Depth { waiting: 0, running: 1, dead: 0 });
    leased.ack().await.unwrap();
    assert_eq!(queue.depth(Topic::Builder).await.unwrap(), Depth::default());
    assert_ne!(queue.enqueue(request("a", "op1"), None).await.unwrap(), first, "done is gone");
}

#[tokio::test]
async fn who_waits_for_jobs_waits_for_those_that_were_there() {
    let queue = memory();
    soon(queue.passed(Topic::Builder)).await.unwrap();
    for (key, id) in [("a", "a1"), ("b", "b1")] {
        queue.enqueue(request(key, id), None).await.unwrap();
    }
    let mut passed = Box::pin(queue.passed(Topic::Builder));
    let (first, second) = (take(&queue).await, take(&queue).await);
    assert!(poll_fn(|at| Poll::Ready(passed.as_mut().poll(at).is_pending())).await);
    first.ack().await.unwrap();
    assert!(poll_fn(|at| Poll::Ready(passed.as_mut().poll(at).is_pending())).await);
    second.ack().await.unwrap();
    soon(passed).await.unwrap();
    soon(queue.passed(Topic::Controller)).await.unwrap();
}

#[tokio::test]
async fn a_key_is_worked_on_in_order_and_by_one_and_others_beside_it() {
    let queue = memory();
    for (key, id) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")] {
        queue.enqueue(request(key, id), None).await.unwrap();
    }
    let (a1, b1) = (take(&queue).await, take(&queue).await);
    assert_eq!([&a1, &b1].map(|it| it.job().request.dedup_id.as_str()), ["a1", "b1"]);
    assert!(nothing(&queue).await);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { take(&queue).await }
    });
    a1.ack().await.unwrap();
    let a2 = soon(waiting).await.unwrap();
    assert_eq!(a2.job().request.dedup_id, "a2");
    // A retried job keeps its place, and holds back its own key only.
    let b2 = queue.enqueue(request("b", "b2"), None);
    b2.await.unwrap();
    assert!(matches!(a2.retry("not yet", Some(LONG)).await.unwrap(), Fate::Retried(_)));
    b1.ack().await.unwrap();
    let b2 = take(&queue).await;
    assert_eq!(b2.job().request.dedup_id, "b2");
    assert!(nothing(&queue).await);
}

#[tokio::test]
async fn a_retried_job_comes_back_before_those_behind_it() {
    let queue = memory();
    for id in ["a1", "a2"] {
        queue.enqueue(request("a", id), None).await.unwrap();
    }
    let Fate::Retried(at) = take(&queue).await.retry("not yet", Some(SHORT)).await.unwrap() else { panic!("dead") };
    let a1 = take(&queue).await;
    assert!(clock::now() >= at);
    assert_eq!((a1.job().request.dedup_id.as_str(), a1.job().attempts), ("a1", 2));
    assert_eq!(a1.job().last_error.as_deref(), Some("not yet"));
}

#[tokio::test]
async fn a_job_for_later_waits_and_holds_back_nobody() {
    let queue = memory();
    let after = |wait: Duration| clock::now().plus_ms(wait.as_millis() as u64);
    queue.enqueue(request("a", "later"), Some(after(LONG))).await.unwrap();
    queue.enqueue(request("a", "now"), None).await.unwrap();
    let now = take(&queue).await;
    assert_eq!(now.job().request.dedup_id, "now");
    now.ack().await.unwrap();
    assert!(nothing(&queue).await);
    let at = after(SHORT);
    queue.enqueue(request("b", "soon"), Some(at)).await.unwrap();
    let job = take(&queue).await;
    assert_eq!(job.job().request.dedup_id, "soon");
    assert!(clock::now() >= at);
}

#[tokio::test]
async fn who_fails_too_often_is_dead_lettered_with_the_reason() {
    let queue = memory();
    let id = queue.enqueue(request("a", "op"), None).await.unwrap();
    for attempt in 1..=MAX_FAILURES {
        let leased = take(&queue).await;
        assert_eq!(leased.job().attempts, attempt);
        let fate = leased.retry(format!("no {attempt}"), Some(Duration::ZERO)).await.unwrap();
        assert_eq!(fate == Fate::Dead, attempt == MAX_FAILURES);
    }
    assert!(nothing(&queue).await);
    let dead = queue.dead(Topic::Builder).await.unwrap();
    assert_eq!((dead.len(), dead[0].reason.as_str(), &dead[0].job.id), (1, "no 5", &id));
    assert_eq!(queue.depth(Topic::Builder).await.unwrap(), Depth { waiting: 0, running: 0, dead: 1 });
    queue.discard(Topic::Builder, &id).await.unwrap();
    let again = queue.enqueue(request("a", "op"), None).await.unwrap();
    let leased = take(&queue).await;
    assert_eq!((leased.job().id.clone(), leased.job().attempts), (again.clone(), 1));
    leased.dead("hopeless").await.unwrap();
    assert_eq!(queue.dead(Topic::Builder).await.unwrap()[0].reason, "hopeless");
    queue.discard(Topic::Builder, &again).await.unwrap();
    assert!(queue.dead(Topic::Builder).await.unwrap().is_empty());
}

#[tokio::test]
async fn waits_grow_and_postponing_is_no_failure() {
    let queue = memory();
    queue.enqueue(request("a", "op"), None).await.unwrap();
    for _ in 0..MAX_FAILURES + 2 {
        take(&queue).await.postpone(Duration::ZERO).await.unwrap();
    }
    for (reason, least, most) in [("first", 900, 2_000), ("second", 1_900, 3_000)] {
        let leased = take(&queue).await;
        let before = clock::now();
        let Fate::Retried(at) = leased.retry(reason, None).await.unwrap() else { panic!("dead") };
        let after = clock::now();
        assert!(at.since_ms(before) >= least && at.since_ms(after) <= most, "{reason}: {before:?} {at:?} {after:?}");
    }
}

#[tokio::test]
async fn a_job_that_is_dropped_comes_back_after_a_pause() {
    let queue = memory();
    queue.enqueue(request("a", "op"), None).await.unwrap();
    let leased = take(&queue).await;
    let begun = Instant::now();
    let panicked = tokio::spawn(async move {
        assert_eq!(leased.job().attempts, 2, "a handler with a bug");
    });
    assert!(panicked.await.is_err());
    let leased = take(&queue).await;
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(leased.job().last_error.as_deref(), Some("the worker panicked"));
    drop(leased);
    let leased = take(&queue).await;
    assert_eq!(leased.job().last_error.as_deref(), Some("the worker went away"));
    leased.ack().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_is_told_and_the_job_goes_to_another() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let (first, second) = (Queue::new(kv.clone()), Queue::new(kv.clone()));
    first.enqueue(request("a", "op"), None).await.unwrap();
    let leased = take(&first).await;
    assert!(nothing(&second).await);
    let claim = kv.list("/mq/builder/claims/").await.unwrap().items.remove(0);
    kv.lease_revoke(claim.lease.expect("a claim hangs on a lease")).await.unwrap();
    let again = take(&second).await;
    assert_eq!(again.job().attempts, 2);
    soon(leased.lost()).await;
    assert!(matches!(leased.ack().await, Err(QueueError::Lost(_))));
    again.ack().await.unwrap();
    // The first worker goes on with a new session.
    first.enqueue(request("a", "next"), None).await.unwrap();
    take(&first).await.ack().await.unwrap();
}

#[test]
fn the_job_of_a_dead_process_goes_to_another() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dying, living) = (runtime(), runtime());
    let taken = Instant::now();
    let leased = dying.block_on(async {
        let queue = Queue::new(kv.clone());
        queue.enqueue(request("a", "op"), None).await.unwrap();
        (take(&queue).await, queue)
    });
    // As a killed process: nobody renews, nobody says good-bye.
    dying.shutdown_background();
    std::mem::forget(leased);
    living.block_on(async {
        let queue = Queue::new(kv);
        // A claim outlives its process by 10 s, unless this machine stood still for them.
        assert!(nothing(&queue).await || taken.elapsed() >= Duration::from_secs(10));
        take(&queue).await.ack().await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_those_who_wait_go_away() {
    let queue = memory();
    let mut taken = 0;
    for number in 0..40u64 {
        queue.enqueue(request(&format!("k{number}"), &format!("op{number}")), None).await.unwrap();
        // Cut off at all kinds of moments.
        let cut = Duration::from_micros(number * 25);
        if let Ok(leased) = tokio::time::timeout(cut, queue.lease(Topic::Builder, "hasty")).await {
            leased.unwrap().ack().await.unwrap();
            taken += 1;
        }
    }
    for _ in taken..40 {
        take(&queue).await.ack().await.unwrap();
    }
    assert_eq!(queue.depth(Topic::Builder).await.unwrap(), Depth::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_workers_keep_the_order_of_each_key() {
    const KEYS: u64 = 12;
    const JOBS: u64 = 240;
    let folder = tempfile::tempdir().unwrap();
    let kv: SharedKv = Arc::new(EmbeddedKv::open(&folder.path().join("kv.db")).unwrap());
    let queues = [Queue::new(kv.clone()), Queue::new(kv)];
    let done: Arc<Mutex<HashMap<String, Vec<u64>>>> = Arc::default();
    let busy: Arc<Mutex<Vec<String>>> = Arc::default();
    let (acked, mut acks) = tokio::sync::mpsc::unbounded_channel();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..6 {
        let (queue, done, busy, acked) = (queues[worker % 2].clone(), done.clone(), busy.clone(), acked.clone());
        workers.spawn(async move {
            loop {
                let leased = queue.lease(Topic::Builder, &format!("w{worker}")).await.unwrap();
                let request = leased.job().request.clone();
                let number: u64 = request.dedup_id.parse().unwrap();
                {
                    let mut busy = busy.lock().unwrap();
                    assert!(!busy.contains(&request.key), "{} is with two workers", request.key);
                    busy.push(request.key.clone());
                }
                tokio::task::yield_now().await;
                let failed = number.is_multiple_of(7) && leased.job().attempts == 1;
                if !failed {
                    done.lock().unwrap().entry(request.key.clone()).or_default().push(number);
                }
                busy.lock().unwrap().retain(|it| *it != request.key);
                if failed {
                    leased.retry("again", Some(Duration::from_millis(5))).await.unwrap();
                } else {
                    leased.ack().await.unwrap();
                    acked.send(()).unwrap();
                }
            }
        });
    }
    for number in 0..JOBS {
        queues[0].enqueue(request(&format!("k{}", number % KEYS), &number.to_string()), None).await.unwrap();
    }
    let all = async {
        for _ in 0..JOBS {
            acks.recv().await;
        }
    };
    tokio::select! {
        () = soon(all) => {}
        ended = workers.join_next() => panic!("a worker ended: {ended:?}"),
    }
    assert_eq!(queues[0].depth(Topic::Builder).await.unwrap(), Depth::default());
    let done = done.lock().unwrap();
    for key in 0..KEYS {
        let expected: Vec<u64> = (0..JOBS).filter(|it| it % KEYS == key).collect();
        assert_eq!(done[&format!("k{key}")], expected);
    }
}
