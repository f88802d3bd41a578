//! History: publishing, taking back, watching, forgetting, and loading.

use super::{Change, Record, State, Version};
use crate::kv::{Event, KvError, LeaseId, Range, WatchBatch, limits};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Most revisions that one call of [`State::changes`] looks at, so that readers do not hold the lock for long.
const SCAN: usize = 512;

impl State {
    /// Everything applied may be seen from now on. Returns the revision.
    pub(in crate::kv) fn publish(&mut self) -> u64 {
        self.visible = self.applied;
        self.visible
    }

    /// Takes away what was applied since the last [`State::publish`]; `marks` are the leases of then.
    pub(in crate::kv) fn roll_back(&mut self, marks: Vec<(LeaseId, u64, Instant)>) {
        for changes in self.log.split_off(&(self.visible + 1)).into_values() {
            for change in changes {
                let key = change.key();
                if let Some(versions) = self.keys.get_mut(key) {
                    versions.retain(|it| it.revision <= self.visible);
                    if versions.is_empty() {
                        self.keys.remove(key);
                    }
                }
            }
        }
        self.applied = self.visible;
        self.restore_leases(marks);
    }

    /// Changes of a range from revision `next` on, as far as one look reaches, and where to look next.
    pub(in crate::kv) fn changes(&self, range: &Range, next: u64) -> Result<(Vec<WatchBatch>, u64), KvError> {
        if next < self.oldest {
            return Err(KvError::Compacted { asked: next, oldest: self.oldest });
        }
        if next > self.visible {
            return Ok((Vec::new(), next));
        }
        let mut batches = Vec::new();
        let mut after = self.visible + 1;
        for (seen, (revision, changes)) in self.log.range(next..=self.visible).enumerate() {
            if seen == SCAN {
                after = *revision;
                break;
            }
            let events: Vec<Event> =
                changes.iter().filter(|it| limits::contains(range, it.key())).map(|it| it.event(*revision)).collect();
            if !events.is_empty() {
                batches.push(WatchBatch { revision: *revision, events });
            }
        }
        Ok((batches, after))
    }

    /// What forgetting all history before `oldest` would remove. Fails when that is gone already or in the future.
    pub(in crate::kv) fn plan_compaction(&self, oldest: u64) -> Result<Record, KvError> {
        if oldest <= self.oldest && self.oldest > 1 {
            return Err(KvError::Compacted { asked: oldest, oldest: self.oldest });
        }
        self.check_revision(oldest.max(1))?;
        let mut gone = Vec::new();
        for versions in self.keys.values() {
            let dead = &versions[..superseded(versions, oldest)];
            gone.extend(dead.iter().map(|it| (it.revision, it.place)));
        }
        Ok(Record::Compacted { oldest, gone })
    }

    /// Forgets what [`State::plan_compaction`] named.
    pub(in crate::kv) fn compact(&mut self, oldest: u64) {
        self.oldest = self.oldest.max(oldest);
        self.log = self.log.split_off(&oldest);
        self.keys.retain(|_, versions| {
            versions.drain(..superseded(versions, oldest));
            !versions.is_empty()
        });
    }

    /// How many revisions of history there are.
    pub(in crate::kv) fn history(&self) -> u64 {
        self.visible.saturating_sub(self.oldest)
    }

    /// Takes in one stored change while loading; they come in order.
    pub(in crate::kv) fn load(&mut self, revision: u64, place: u32, change: Change) {
        let key: Arc<[u8]> = change.key().into();
        let value = match &change {
            Change::Put(value) => Some(value.clone()),
            Change::Delete(_) => None,
        };
        self.keys.entry(key).or_default().push(Version { revision, place, value });
        if revision >= self.oldest {
            self.log.entry(revision).or_default().push(change);
        }
        self.applied = self.applied.max(revision);
    }

    /// Ends loading: everything is visible, and each lease has its full time from `now` on.
    pub(in crate::kv) fn loaded(&mut self, leases: Vec<(LeaseId, u64)>, now: Instant) {
        let marks = leases.into_iter().map(|(id, ttl_s)| (id, ttl_s, now + std::time::Duration::from_secs(ttl_s)));
        self.restore_leases(marks.collect());
        self.publish();
    }

    /// Begins loading a store whose history begins at `oldest`.
    pub(in crate::kv) fn begin_loading(oldest: u64) -> Self {
        let oldest = oldest.max(1);
        Self { oldest, applied: oldest, ..Self::new() }
    }

    /// Leases that keys name but that do not exist: a sign of a damaged file.
    pub(in crate::kv) fn lost_leases(&self) -> BTreeSet<LeaseId> {
        let named = self.keys.values().filter_map(|it| it.last()?.value.as_ref()?.lease);
        named.filter(|it| !self.leases.contains_key(it)).collect()
    }
}

/// How many of the first versions are not needed to read at `oldest` or later, nor to watch from there.
fn superseded(versions: &[Version], oldest: u64) -> usize {
    let seen = versions.partition_point(|it| it.revision <= oldest);
    match versions[..seen].last() {
        Some(last) if last.value.is_none() && last.revision < oldest => seen,
        Some(_) => seen - 1,
        None => 0,
    }
}

impl Change {
    /// The key it is about.
    pub(in crate::kv) fn key(&self) -> &[u8] {
        match self {
            Change::Put(value) => &value.key,
            Change::Delete(key) => key,
        }
    }

    fn event(&self, revision: u64) -> Event {
        match self {
            Change::Put(value) => Event::Put(value.as_ref().clone()),
            Change::Delete(key) => Event::Delete { key: key.to_vec(), revision },
        }
    }
}
