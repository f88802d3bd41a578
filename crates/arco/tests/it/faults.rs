//! `kill -9` of the server at random moments while it works: applications answer all the while, every operation ends with
//! the truth, nothing is left over.

use arco_testkit::{Platform, Random, get, is_root, until};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_arco");
const ROUNDS: u64 = 4;

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Asks one host again and again; counts answers that are not 200.
struct Load {
    stop: Arc<AtomicBool>,
    bad: Arc<AtomicUsize>,
    good: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(platform: &Platform, host: &'static str) -> Self {
        let gateway = platform.address("http").unwrap();
        let (stop, bad, good) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let thread = std::thread::spawn({
            let (stop, bad, good) = (stop.clone(), bad.clone(), good.clone());
            move || {
                let mut complaints = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match get(gateway, host, "/") {
                        Ok(answer) if answer.status == 200 => drop(good.fetch_add(1, Ordering::Relaxed)),
                        other => {
                            bad.fetch_add(1, Ordering::Relaxed);
                            complaints.push(format!("{other:?}").chars().take(200).collect());
                        }
                    }
                    std::thread::sleep(Duration::from_millis(20)); // the pace of a client
                }
                complaints
            }
        });
        Self { stop, bad, good, thread: Some(thread) }
    }

    fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.good.load(Ordering::Relaxed) > 0 || self.bad.load(Ordering::Relaxed) > 0);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn open_operations(platform: &Platform) -> Vec<Value> {
    let listed = platform.json(&["operations"]);
    let items = listed["items"].as_array().or(listed["operations"].as_array()).cloned();
    let Some(items) = items else { return vec![listed] };
    items
        .into_iter()
        .filter(|it| !["succeeded", "failed", "cancelled"].contains(&it["status"].as_str().unwrap_or("")))
        .collect()
}

#[test]
fn faults_a_killed_server_loses_nothing() {
    if !is_root() {
        return;
    }
    let rounds = std::env::var("ARCO_FAULT_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(ROUNDS);
    let mut random = Random::seeded();
    let mut platform = Platform::start(EXECUTABLE);
    let deployed = platform.arco(&["deploy", &example("static-site"), "--app", "calm", "--component", "site"]);
    assert_eq!(deployed.status, 0, "{deployed:?}");
    // Answers only when its own name resolves.
    let named = crate::behave::source(&platform);
    let words = ["deploy", named.to_str().unwrap(), "--app", "calm", "--component", "named", "--env", "BEHAVE=names"];
    crate::behave::good(&platform, &words);
    let load = Load::start(&platform, "site.calm.test.localhost");
    let names = Load::start(&platform, "named.calm.test.localhost");
    let calm = platform.status("calm/site")["instances"].clone();
    for round in 0..rounds {
        let changes: [&[&str]; 5] = [
            &["deploy", &example("static-site"), "--app", "busy", "--component", "site", "--detach"],
            &["scale", "busy/site", "--replicas", "3", "--detach"],
            &["env", "set", "busy/site", &format!("ROUND={round}"), "--detach"],
            &["restart", "busy/site", "--detach"],
            &["delete", "busy", "--yes", "--detach"],
        ];
        let there = platform.arco(&["status", "busy/site"]).status == 0;
        let change = changes[if there { random.below(5) as usize } else { 0 }];
        let began = Instant::now();
        let outcome = platform.arco(change); // may be refused: there may be nothing to change yet
        let moment = Duration::from_millis(random.below(1500));
        std::thread::sleep(moment.saturating_sub(began.elapsed())); // the moment of the fault
        platform.kill();
        platform.boot();
        let what = format!(
            "round {round}: every operation ends after {change:?} (exit {}) and kill -9 at {moment:?}",
            outcome.status
        );
        until(&what, 120, || open_operations(&platform).is_empty().then_some(()));
        until("nothing of the busy one is doubled", 60, || {
            let status = platform.status("busy/site");
            let instances = status["instances"].as_array().map_or(0, Vec::len) as u64;
            (status["replicas"].as_u64().is_none_or(|it| it == instances) || status["status"] == "undeployed")
                .then_some(())
        });
        let now = until("the calm application is as it was", 60, || {
            let status = platform.status("calm/site");
            (status["status"] == "running").then(|| status["instances"].clone())
        });
        for (before, after) in calm.as_array().unwrap().iter().zip(now.as_array().unwrap()) {
            assert_eq!((&before["id"], &before["restarts"]), (&after["id"], &after["restarts"]), "round {round}");
        }
    }
    let mut complaints = load.end();
    complaints.extend(names.end());
    assert!(
        complaints.is_empty(),
        "{} requests were lost: {:?}",
        complaints.len(),
        &complaints[..complaints.len().min(5)]
    );
    for application in ["busy", "calm"] {
        let _ = platform.arco(&["delete", application, "--yes"]);
    }
    until("both applications are gone", 120, || {
        (platform.arco(&["status", "calm"]).status == 5 && platform.arco(&["status", "busy"]).status == 5).then_some(())
    });
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}
