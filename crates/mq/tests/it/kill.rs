//! What was accepted is worked on, however often the process is killed.

use crate::{request, soon};
use arco_model::job::Topic;
use arco_mq::{Depth, Queue};
use arco_store::kv::EmbeddedKv;
use arco_testkit::Killed;
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

fn open(path: &Path) -> Queue {
    Queue::new(Arc::new(EmbeddedKv::open(path).unwrap()))
}

/// Not a test of its own: accepts and works until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by `nothing_accepted_is_lost`"]
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn server_to_be_killed() {
    let Ok(path) = std::env::var("MQ_TEST_FILE") else { return };
    let round = std::env::var("MQ_TEST_ROUND").unwrap();
    let queue = open(Path::new(&path));
    queue.release_claims().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..3 {
        let queue = queue.clone();
        tasks.spawn(async move {
            loop {
                let leased = queue.lease(Topic::Builder, &format!("w{worker}")).await.unwrap();
                println!("worked {}", leased.job().request.dedup_id);
                leased.ack().await.unwrap();
            }
        });
    }
    tasks.spawn(async move {
        for number in 0.. {
            let id = format!("{round}-{number}");
            queue.enqueue(request(&format!("k{}", number % 5), &id), None).await.unwrap();
            println!("accepted {id}");
        }
    });
    tasks.join_next().await;
}

#[tokio::test]
async fn nothing_accepted_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let (mut accepted, mut worked) = (HashSet::new(), HashSet::new());
    let mut take = |line: &str| {
        for (word, set) in [("accepted ", &mut accepted), ("worked ", &mut worked)] {
            set.extend(line.split_once(word).map(|(_, id)| id.trim().to_owned()));
        }
    };
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "kill::server_to_be_killed", "--nocapture"]);
        child.env("MQ_TEST_FILE", &path).env("MQ_TEST_ROUND", round.to_string());
        let mut child = Killed(child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        for _ in 0..60 + round * 31 {
            take(&lines.next().unwrap().unwrap());
        }
        child.0.kill().unwrap();
        lines.map_while(Result::ok).for_each(|it| take(&it));
    }
    let queue = open(&path);
    queue.release_claims().await.unwrap();
    while queue.depth(Topic::Builder).await.unwrap() != Depth::default() {
        // At once: what the dead process had is not waited for.
        let leased = tokio::time::timeout(Duration::from_secs(180), queue.lease(Topic::Builder, "last")).await;
        let leased = leased.expect("a job at once").unwrap();
        worked.insert(leased.job().request.dedup_id.clone());
        soon(leased.ack()).await.unwrap();
    }
    let lost: Vec<_> = accepted.difference(&worked).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(accepted.len() > 50);
}
