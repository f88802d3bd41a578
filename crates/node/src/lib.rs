//! The role on each machine of a cluster: it reads the output of the platform's pods from the files of its node and hands
//! it to the platform's servers.
//!
//! What must hold: a line counts as handed over when its keeper has it on disk, and until then it is read again; after a
//! break of any kind reading goes on after the last line that is kept, so nothing is lost or told twice; a flood of one pod
//! takes its turn with the others, and memory is bounded. It asks nothing of the cluster and writes no file. Not here:
//! whose pod it is and who keeps its lines (servers know).

mod client;
mod cri;
mod output;
pub mod wire;

pub use client::Servers;

use async_trait::async_trait;
use output::{Reader, Resume};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::{Cursor, Kept, Line, Output, PODS_MAX, Pod};

/// Name of the container of every pod of the platform.
const CONTAINER: &str = "app";
/// Pause when nothing new is there.
const IDLE: Duration = Duration::from_millis(250);
/// How often it is looked which pods there are.
const SCAN: Duration = Duration::from_secs(1);
/// Bytes of lines of one pod, and of all, that are handed over together.
const OF_ONE: usize = 64 << 10;
const OF_ALL: usize = 1 << 20;
/// How long lines that another process handed over may take until they are kept.
const LEAVING: Duration = Duration::from_secs(4);
/// Pauses before a pod that nobody knows is asked for again: it may be new, or none of the platform's.
const UNKNOWN_FIRST: Duration = Duration::from_millis(500);
const UNKNOWN_MOST: Duration = Duration::from_secs(60);
/// Pause before servers that did not answer are asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who keeps output.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// How far the output of these pods is kept, in the same order.
    async fn cursors(&self, pods: &[Pod]) -> Result<Vec<Cursor>, String>;
    /// Keeps output; returns when it is on disk. After an error nobody knows whether it is.
    async fn keep(&self, output: &[Output]) -> Result<Vec<Kept>, String>;
}

/// What is read.
#[derive(Clone, Debug)]
pub struct Source {
    /// The node's folder with a folder for each pod: `NAMESPACE_NAME_UID`.
    pub folder: PathBuf,
    /// What the namespaces of the platform's tenants begin with.
    pub prefix: String,
}

/// When it is to be asked how far the output of a pod is kept, and the pause after that if nobody knows the pod.
#[derive(Clone, Copy)]
struct Ask {
    at: Instant,
    pause: Duration,
}

impl Ask {
    fn after(pause: Duration) -> Option<Self> {
        Some(Self { at: Instant::now() + pause, pause: UNKNOWN_FIRST })
    }
}

struct Followed {
    pod: Pod,
    /// Nothing is read while this is to be asked.
    ask: Option<Ask>,
    reader: Option<Reader>,
    /// Lines of which nobody knows whether they are kept; they come before what the reader has.
    unsure: Vec<Line>,
    /// Its folder is gone: it is forgotten when it is read to its end.
    gone: bool,
}

/// Reads and hands over until it is told to stop.
pub async fn run(source: &Source, keeper: &dyn Keeper, stop: CancellationToken) {
    let mut node = Node { pods: BTreeMap::new(), next: PathBuf::new(), said: Said::default() };
    // Another process read these until a moment ago, and its last lines may be on their way.
    node.scan(source, LEAVING);
    let mut scanned = Instant::now();
    while !stop.is_cancelled() {
        if scanned.elapsed() >= SCAN {
            node.scan(source, Duration::ZERO);
            scanned = Instant::now();
        }
        node.ask(keeper).await;
        let output = node.read();
        if output.is_empty() {
            stop.run_until_cancelled(tokio::time::sleep(IDLE)).await;
        } else {
            node.hand_over(keeper, output).await;
        }
    }
}

/// What is tried again and again.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Step {
    Scan,
    Ask,
    Keep,
}

/// Why steps do not work, as it was said last; of those that work, nothing.
#[derive(Default)]
struct Said(BTreeMap<Step, String>);

impl Said {
    /// Takes how a step went; whether that is new.
    fn is_news(&mut self, step: Step, why: Option<&str>) -> bool {
        let before = self.0.remove(&step);
        self.0.extend(why.map(|it| (step, it.to_owned())));
        before.as_deref() != why
    }
}

struct Node {
    /// By their folder.
    pods: BTreeMap<PathBuf, Followed>,
    /// Whose turn it is.
    next: PathBuf,
    said: Said,
}

impl Node {
    /// Says once why a step fails, and when it works again.
    fn say<T>(&mut self, step: Step, tried: &Result<T, String>) {
        let why = tried.as_ref().err().map(String::as_str);
        if !self.said.is_news(step, why) {
            return;
        }
        match why {
            None => tracing::info!(?step, "output is handed over again"),
            Some(why) => tracing::warn!(?step, why, "output is not handed over; it is tried again"),
        }
    }

    /// Looks which pods there are; output of new ones is read after so long.
    fn scan(&mut self, source: &Source, after: Duration) {
        let entries = std::fs::read_dir(&source.folder)
            .map_err(|it| format!("the folder `{}` of the pods' output cannot be read: {it}", source.folder.display()));
        self.say(Step::Scan, &entries);
        let Ok(entries) = entries else { return };
        let mut there = BTreeSet::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(pod) = name.to_str().and_then(|it| pod_of(it, &source.prefix)) else { continue };
            let folder = entry.path().join(CONTAINER);
            there.insert(folder.clone());
            let new = || Followed { pod, ask: Ask::after(after), reader: None, unsure: Vec::new(), gone: false };
            self.pods.entry(folder).or_insert_with(new);
        }
        for (folder, it) in &mut self.pods {
            it.gone = !there.contains(folder);
        }
        // Nothing of these was opened, and nothing is there to open.
        self.pods.retain(|_, it| !it.gone || it.reader.is_some());
    }

    /// Asks how far output is kept where that is not known.
    async fn ask(&mut self, keeper: &dyn Keeper) {
        let now = Instant::now();
        // Without a file there is nothing to ask for.
        let is_due = |folder: &PathBuf, it: &Followed| {
            it.ask.is_some_and(|it| it.at <= now) && (it.reader.is_some() || folder.exists())
        };
        let due = self.pods.iter().filter(|(folder, it)| is_due(folder, it)).take(PODS_MAX);
        let (folders, pods): (Vec<_>, Vec<_>) = due.map(|(folder, it)| (folder.clone(), it.pod.clone())).unzip();
        if pods.is_empty() {
            return;
        }
        let answered = keeper.cursors(&pods).await;
        self.say(Step::Ask, &answered);
        let mut cursors = answered.unwrap_or_default().into_iter();
        for folder in folders {
            let Some(followed) = self.pods.get_mut(&folder) else { continue };
            let pause = followed.ask.map_or(UNKNOWN_FIRST, |it| it.pause);
            match cursors.next() {
                Some(Cursor::After { at, texts, seal }) => {
                    followed.pod.seal = seal.or(followed.pod.seal.take());
                    let mut kept = Resume { at, texts };
                    followed.unsure.retain(|it| !kept.holds(it));
                    if followed.reader.is_none() {
                        followed.reader = Some(Reader::new(folder, kept));
                    }
                    followed.ask = None;
                }
                // It went, and nobody remembers it any more.
                Some(Cursor::Unknown) if followed.gone && pause >= UNKNOWN_MOST => followed.reader = None,
                Some(Cursor::Unknown) => {
                    followed.ask = Some(Ask { at: Instant::now() + pause, pause: (pause * 2).min(UNKNOWN_MOST) });
                }
                Some(Cursor::Later) | None => followed.ask = Ask::after(AGAIN),
            }
        }
    }

    /// What is new, a share of each pod, beginning with the one whose turn it is.
    fn read(&mut self) -> Vec<(PathBuf, Output)> {
        let (before, after) = (self.pods.range(..self.next.clone()), self.pods.range(self.next.clone()..));
        let order: Vec<PathBuf> = after.chain(before).map(|it| it.0.clone()).collect();
        let (mut output, mut size) = (Vec::new(), 0);
        for folder in order {
            if size >= OF_ALL || output.len() >= PODS_MAX {
                self.next = folder;
                break;
            }
            let Some(followed) = self.pods.get_mut(&folder) else { continue };
            let (None, Some(reader)) = (&followed.ask, &mut followed.reader) else { continue };
            let read = match followed.unsure.is_empty() {
                true => reader.read(OF_ONE),
                false => Ok(std::mem::take(&mut followed.unsure)),
            };
            match read {
                Ok(lines) if !lines.is_empty() => {
                    size += lines.iter().map(|it| it.text.len() + 64).sum::<usize>();
                    output.push((folder, Output { pod: followed.pod.clone(), lines }));
                }
                Ok(_) if followed.gone => drop(self.pods.remove(&folder)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "output cannot be read; it is tried again");
                    (followed.reader, followed.ask) = (None, Ask::after(UNKNOWN_MOST));
                }
            }
        }
        output
    }

    /// Hands lines over; of those that may not be kept it is asked later.
    async fn hand_over(&mut self, keeper: &dyn Keeper, output: Vec<(PathBuf, Output)>) {
        let (folders, output): (Vec<_>, Vec<_>) = output.into_iter().unzip();
        let answered = keeper.keep(&output).await;
        self.say(Step::Keep, &answered);
        let mut kept = answered.unwrap_or_default().into_iter();
        for (folder, output) in folders.iter().zip(output) {
            let kept = kept.next();
            let Some(followed) = self.pods.get_mut(folder) else { continue };
            let pause = match kept {
                Some(Kept::Yes) => continue,
                Some(Kept::Unknown) => UNKNOWN_FIRST,
                Some(Kept::No) | None => LEAVING,
            };
            (followed.unsure, followed.ask) = (output.lines, Ask::after(pause));
        }
    }
}

/// The pod of a folder `NAMESPACE_NAME_UID`.
fn pod_of(folder: &str, prefix: &str) -> Option<Pod> {
    let mut words = folder.split('_');
    let (namespace, _name, uid) = (words.next()?, words.next()?, words.next()?);
    let ours = namespace.starts_with(prefix) && !uid.is_empty() && words.next().is_none();
    ours.then(|| Pod { namespace: namespace.to_owned(), uid: uid.to_owned(), seal: None })
}

#[cfg(test)]
mod tests;
