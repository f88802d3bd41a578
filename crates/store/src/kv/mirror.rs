//! A local mirror of one key prefix: follows the store, survives its silence, and is kept on disk, encrypted.
//!
//! What must hold:
//! - what the mirror shows is always some past state of the store, whole: never half of a change;
//! - silence or failure of the store never removes a key; only an answer of the store does;
//! - the file is a cache: when it is truncated or corrupt, what is whole at its beginning counts, the rest is dropped;
//! - a disk that cannot be written never stops the mirror: it says so once and goes on in memory;
//! - of several processes that mirror into one file, only the one that owns it writes ([`Mirror::own`]).
//!
//! Not here: what the values mean. Readers decode them and compare [`Entry::mod_revision`] to skip what they know.

mod journal;
#[cfg(test)]
mod tests;

use super::{Event, KeyValue, KvError, Range, SharedKv, WatchBatch};
use journal::{Change, Journal};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Keys that one read fetches, so that a large prefix does not make one large message.
const PAGE: usize = 1_000;
/// First and longest pause between attempts to reach the store.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest time to read all keys.
const PATIENCE: Duration = Duration::from_secs(20);

/// One key's value as last seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Value.
    pub value: Arc<[u8]>,
    /// Store revision of the last change of the key.
    pub mod_revision: u64,
}

/// The mirrored keys at one revision.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct View {
    /// Store revision that this is true for; 0 before anything was seen.
    pub revision: u64,
    /// Whether the store itself has answered since this process began; `false` means "as read from disk".
    pub live: bool,
    /// Keys, in order.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

/// How far somebody has read; the default has read nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mark(u64);

/// Which keys changed lately, numbered one by one.
#[derive(Debug)]
struct Recent {
    /// The last ones.
    keys: VecDeque<Vec<u8>>,
    /// Number of the next one.
    next: u64,
}

impl Recent {
    /// Keys that are remembered.
    const MOST: usize = 1_000;

    /// The view is another one: nobody knows what changed.
    fn forget(&mut self) {
        self.keys.clear();
        self.next += 1;
    }

    fn add(&mut self, key: &[u8]) {
        if self.keys.len() == Self::MOST {
            self.keys.pop_front();
        }
        self.keys.push_back(key.to_vec());
        self.next += 1;
    }

    /// What changed since `mark`; `None` when that is not known any more.
    fn since(&self, mark: Mark) -> Option<BTreeSet<Vec<u8>>> {
        let first = self.next - self.keys.len() as u64;
        let known = usize::try_from(mark.0.checked_sub(first)?).ok()?;
        Some(self.keys.iter().skip(known).cloned().collect())
    }
}

/// Why a mirror cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The key of the file cannot be read or made.
    #[error("cannot {step} the key file {path} of the last snapshot: {cause}; check the folder's owner and free space")]
    Key {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
}

/// See the module.
pub struct Mirror {
    prefix: String,
    view: RwLock<View>,
    /// Changed while the view is locked.
    recent: Mutex<Recent>,
    journal: Option<Mutex<Journal>>,
    generation: watch::Sender<u64>,
}

impl Mirror {
    /// Opens the mirror of `prefix` kept in `path`, with its key beside it (`<path>.key`, mode 0600, made when absent),
    /// and reads what was last known.
    pub fn open(prefix: &str, path: &Path) -> Result<Arc<Self>, MirrorError> {
        Self::open_as(prefix, path, true)
    }

    /// The same, but the file is only read until [`Mirror::own`]: another process may still write it.
    pub fn open_shared(prefix: &str, path: &Path) -> Result<Arc<Self>, MirrorError> {
        Self::open_as(prefix, path, false)
    }

    fn open_as(prefix: &str, path: &Path, owned: bool) -> Result<Arc<Self>, MirrorError> {
        let (journal, view) = Journal::open(path, owned)?;
        Ok(Arc::new(Self {
            prefix: prefix.to_owned(),
            view: RwLock::new(view),
            recent: Mutex::new(Recent { keys: VecDeque::new(), next: 1 }),
            journal: Some(Mutex::new(journal)),
            generation: watch::Sender::new(0),
        }))
    }

    /// A mirror that is not kept on disk.
    pub fn in_memory(prefix: &str) -> Arc<Self> {
        Arc::new(Self {
            prefix: prefix.to_owned(),
            view: RwLock::default(),
            recent: Mutex::new(Recent { keys: VecDeque::new(), next: 1 }),
            journal: None,
            generation: watch::Sender::new(0),
        })
    }

    /// From now on the file is this process's: writes it anew, then every change.
    pub async fn own(self: &Arc<Self>) {
        self.persist(|journal, view| {
            journal.owned = true;
            journal.compact(view);
        })
        .await;
    }

    /// From now on the file is another process's: when this returns, it holds all that was seen, and nothing is written any
    /// more.
    pub async fn release(self: &Arc<Self>) {
        self.persist(|journal, view| {
            journal.compact(view);
            journal.owned = false;
        })
        .await;
    }

    /// Reads the present view. Keep `read` short: it holds back the follower.
    pub fn read<R>(&self, read: impl FnOnce(&View) -> R) -> R {
        read(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same with the keys that changed since `mark`, as far as that is known; from now on `mark` is here. Whoever looks
    /// at these keys alone sees the difference, however large the view is.
    pub fn read_since<R>(&self, mark: &mut Mark, read: impl FnOnce(&View, Option<BTreeSet<Vec<u8>>>) -> R) -> R {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let changed = {
            let recent = self.recent();
            let changed = recent.since(*mark);
            *mark = Mark(recent.next);
            changed
        };
        read(&view, changed)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever the view changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Follows the store until `stop`; failures are waited out. When it ends, all that was seen is on disk.
    pub async fn run(self: Arc<Self>, kv: SharedKv, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        let mut silent = false;
        loop {
            match self.follow(&kv, &stop, &mut pause, &mut silent).await {
                _ if stop.is_cancelled() => return,
                Err(error @ KvError::Compacted { .. }) => tracing::info!(prefix = self.prefix, %error, "reading anew"),
                Err(error) if !silent => {
                    silent = true;
                    tracing::warn!(prefix = self.prefix, %error, "the store is silent; the last known state stays");
                }
                Err(_) => {}
                Ok(()) => tracing::debug!(prefix = self.prefix, "the watch ended"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE.1),
            }
        }
    }

    /// Reads all keys, then applies changes until the watch ends, or until `stop`, which ends no change in its middle.
    async fn follow(
        self: &Arc<Self>,
        kv: &SharedKv,
        stop: &CancellationToken,
        pause: &mut Duration,
        silent: &mut bool,
    ) -> Result<(), KvError> {
        let begun = async {
            let listed = tokio::time::timeout(PATIENCE, self.list(kv)).await;
            let (revision, items) = listed.unwrap_or_else(|_| {
                Err(KvError::Unavailable { step: "list the keys", cause: "no answer in time".to_owned() })
            })?;
            let watch = kv.watch(Range::Prefix(self.prefix.clone().into_bytes()), Some(revision + 1)).await?;
            Ok::<_, KvError>((revision, items, watch))
        };
        let (revision, items, mut watch) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            begun = begun => begun?,
        };
        if std::mem::take(silent) {
            tracing::info!(prefix = self.prefix, revision, "the store answers again");
        }
        *pause = PAUSE.0;
        self.reset(revision, items).await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                batch = watch.next() => match batch {
                    Some(batch) => self.apply(batch?).await,
                    None => return Ok(()),
                },
            }
        }
    }

    /// All keys at one revision, page by page.
    async fn list(&self, kv: &SharedKv) -> Result<(u64, Vec<KeyValue>), KvError> {
        let mut page = kv.range(Range::Prefix(self.prefix.clone().into_bytes()), PAGE, None).await?;
        let revision = page.revision;
        let mut items = std::mem::take(&mut page.items);
        let end = super::limits::prefix_end(self.prefix.as_bytes()).unwrap_or_default();
        while page.more {
            let Some(last) = items.last() else { break };
            let after = [last.key.as_slice(), &[0]].concat();
            page = kv.range(Range::Between(after, end.clone()), PAGE, Some(revision)).await?;
            items.append(&mut page.items);
        }
        Ok((revision, items))
    }

    async fn reset(self: &Arc<Self>, revision: u64, items: Vec<KeyValue>) {
        let entries: BTreeMap<_, _> = items
            .into_iter()
            .map(|it| (it.key, Entry { value: it.value.into(), mod_revision: it.mod_revision }))
            .collect();
        let same = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let same = view.entries == entries;
            *view = View { revision, live: true, entries };
            self.recent().forget();
            same
        };
        self.generation.send_modify(|it| *it += 1);
        if !same {
            self.persist(|journal, view| journal.compact(view)).await;
        }
    }

    async fn apply(self: &Arc<Self>, batch: WatchBatch) {
        let changes: Vec<Change> = batch.events.into_iter().map(change).collect();
        {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            view.revision = batch.revision;
            let mut recent = self.recent();
            for it in &changes {
                recent.add(&it.key);
                it.apply(&mut view.entries);
            }
        }
        self.generation.send_modify(|it| *it += 1);
        self.persist(move |journal, view| journal.append(view, &changes)).await;
    }

    /// Writes to disk away from the async threads.
    async fn persist(self: &Arc<Self>, write: impl FnOnce(&mut Journal, &View) + Send + 'static) {
        if self.journal.is_none() {
            return;
        }
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let Some(journal) = &this.journal else { return };
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            this.read(|view| write(&mut journal, view));
        });
        if let Err(error) = done.await {
            tracing::error!(prefix = self.prefix, %error, "writing the last snapshot ended early");
        }
    }
}

fn change(event: Event) -> Change {
    match event {
        Event::Put(it) => {
            Change { key: it.key, entry: Some(Entry { value: it.value.into(), mod_revision: it.mod_revision }) }
        }
        Event::Delete { key, .. } => Change { key, entry: None },
    }
}
