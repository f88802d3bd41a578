//! A node that reads real files and hands them to a keeper that loses requests and answers, and is itself ended and begun
//! again.

use super::*;
use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::Line;

fn seal(pod: &Pod) -> String {
    format!("seal of {}", pod.uid)
}

/// Keeps lines in memory.
#[derive(Default)]
struct Memory {
    lines: Mutex<HashMap<String, Vec<Line>>>,
    /// Pods that it knows; `None` means all. It always knows one by its seal.
    known: Mutex<Option<BTreeSet<String>>>,
    /// How many calls there were. Every third one breaks: before anything is kept, or after.
    calls: AtomicU64,
    breaks: bool,
}

impl Memory {
    fn breaks(&self) -> (bool, bool) {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        (self.breaks && call % 6 == 2, self.breaks && call % 6 == 5)
    }

    fn knows(&self, pod: &Pod) -> bool {
        let known = self.known.lock().unwrap().as_ref().is_none_or(|it| it.contains(&pod.uid));
        known || pod.seal == Some(seal(pod))
    }

    fn texts(&self, uid: &str) -> Vec<String> {
        self.lines.lock().unwrap().get(uid).into_iter().flatten().map(|it| it.text.clone()).collect()
    }
}

#[async_trait]
impl Keeper for Memory {
    async fn cursors(&self, pods: &[Pod]) -> Result<Vec<Cursor>, String> {
        if self.breaks().0 {
            return Err("it broke".to_owned());
        }
        let lines = self.lines.lock().unwrap();
        let cursor = |pod: &Pod| {
            if !self.knows(pod) {
                return Cursor::Unknown;
            }
            let of = lines.get(&pod.uid).map_or(&[][..], Vec::as_slice);
            let at = of.last().map(|it| it.at).unwrap_or_default();
            let texts = of.iter().filter(|it| it.at == at).map(|it| it.text.clone()).collect();
            Cursor::After { at, texts, seal: Some(seal(pod)) }
        };
        Ok(pods.iter().map(cursor).collect())
    }

    async fn keep(&self, output: &[Output]) -> Result<Vec<Kept>, String> {
        tokio::time::sleep(Duration::from_millis(20)).await; // the disk
        let (before, after) = self.breaks();
        if before {
            return Err("it broke before".to_owned());
        }
        let mut lines = self.lines.lock().unwrap();
        let mut kept = Vec::new();
        for it in output {
            if !self.knows(&it.pod) {
                kept.push(Kept::Unknown);
                continue;
            }
            lines.entry(it.pod.uid.clone()).or_default().extend(it.lines.iter().cloned());
            kept.push(Kept::Yes);
        }
        if after { Err("it broke after".to_owned()) } else { Ok(kept) }
    }
}

struct Pods {
    folder: tempfile::TempDir,
}

impl Pods {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn source(&self) -> Source {
        Source { folder: self.folder.path().to_owned(), prefix: "arco-".to_owned() }
    }

    fn of(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, numbers: std::ops::Range<u64>) {
        let folder = self.of(name).join(CONTAINER);
        std::fs::create_dir_all(&folder).unwrap();
        let mut file = std::fs::File::options().create(true).append(true).open(folder.join("0.log")).unwrap();
        for it in numbers {
            writeln!(file, "2026-01-31T09:05:{:02}.{:03}Z stdout F line {it}", it / 3000, it / 3 % 1000).unwrap();
        }
    }
}

/// Goes on, in a time of its own, until a condition holds.
async fn until(wanted: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if wanted() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not come");
}

fn lines(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|it| format!("line {it}")).collect()
}

#[test]
fn pods_are_told_by_their_folders() {
    let pod = |text: &str| pod_of(text, "arco-").map(|it| (it.namespace, it.uid));
    assert_eq!(pod("arco-default_web-1_u-1"), Some(("arco-default".to_owned(), "u-1".to_owned())));
    for other in ["kube-system_a_u", "arco-default_web", "arco-default_web_", "arco-default_web_u_x", "x", ""] {
        assert_eq!(pod(other), None, "{other}");
    }
}

#[test]
fn what_fails_is_said_once_whatever_else_works() {
    let mut said = Said::default();
    let (scan, ask, keep) = (Step::Scan, Step::Ask, Step::Keep);
    for (step, why, wanted) in [
        (ask, None, false),
        (scan, Some("denied"), true),
        (ask, None, false),
        (keep, None, false),
        (scan, Some("denied"), false),
        (keep, Some("away"), true),
        (scan, Some("gone"), true),
        (keep, Some("away"), false),
        (scan, None, true),
        (scan, None, false),
        (keep, None, true),
    ] {
        assert_eq!(said.is_news(step, why), wanted, "{step:?} {why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_line_is_kept_once_whatever_breaks() {
    let (pods, keeper) = (Pods::new(), Memory { breaks: true, ..Memory::default() });
    pods.write("arco-a_web_one", 0..2000);
    pods.write("arco-b_web_two", 0..10);
    pods.write("kube-system_dns_other", 0..10);
    let source = pods.source();
    for round in 1..=5 {
        // A process of its own that ends in the middle of anything.
        tokio::select! {
            () = run(&source, &keeper, CancellationToken::new()) => unreachable!("it is not told to stop"),
            () = until(|| keeper.texts("one").len() as u64 >= 2000 * round) => {}
        }
        pods.write("arco-a_web_one", 2000 * round..2000 * (round + 1));
    }
    let stop = CancellationToken::new();
    tokio::join!(run(&source, &keeper, stop.clone()), async {
        until(|| keeper.texts("one").len() >= 12_000 && keeper.texts("two").len() >= 10).await;
        pods.write("arco-b_web_two", 10..20);
        until(|| keeper.texts("two").len() >= 20).await;
        stop.cancel();
    });
    assert_eq!(keeper.texts("one"), lines(0..12_000));
    assert_eq!(keeper.texts("two"), lines(0..20));
    assert!(keeper.texts("other").is_empty(), "a namespace of somebody else");
}

#[tokio::test(start_paused = true)]
async fn a_flood_takes_its_turn_and_a_pod_that_goes_is_read_to_its_end() {
    let (pods, keeper) = (Pods::new(), Memory::default());
    *keeper.known.lock().unwrap() = Some(BTreeSet::new());
    pods.write("arco-a_flood_one", 0..60_000);
    pods.write("arco-b_calm_two", 0..5);
    let (source, stop) = (pods.source(), CancellationToken::new());
    tokio::join!(run(&source, &keeper, stop.clone()), async {
        // Known only after a while, as when files are there before the cluster says so.
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(keeper.texts("one").is_empty());
        *keeper.known.lock().unwrap() = None;
        until(|| keeper.texts("two").len() == 5).await;
        assert!(keeper.texts("one").len() < 60_000, "the calm one did not wait for the flood");
        pods.write("arco-b_calm_two", 5..9);
        std::fs::remove_dir_all(pods.of("arco-b_calm_two")).unwrap();
        until(|| keeper.texts("one").len() == 60_000 && keeper.texts("two").len() == 9).await;
        stop.cancel();
    });
    assert_eq!(keeper.texts("one"), lines(0..60_000));
    assert_eq!(keeper.texts("two"), lines(0..9));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_went_is_read_to_its_end_by_servers_that_never_saw_it() {
    let (pods, keeper) = (Pods::new(), Memory { breaks: true, ..Memory::default() });
    pods.write("arco-a_web_one", 0..5);
    let (source, stop) = (pods.source(), CancellationToken::new());
    tokio::join!(run(&source, &keeper, stop.clone()), async {
        until(|| keeper.texts("one").len() == 5).await;
        *keeper.known.lock().unwrap() = Some(BTreeSet::new());
        pods.write("arco-a_web_one", 5..9);
        std::fs::remove_dir_all(pods.of("arco-a_web_one")).unwrap();
        until(|| keeper.texts("one").len() == 9).await;
        stop.cancel();
    });
    assert_eq!(keeper.texts("one"), lines(0..9));
}
