//! The store as values in memory: keys with their versions, the history of changes, and leases. Pure: it is told the time
//! and does no I/O; memory and embedded drivers share it.
//!
//! What must hold: changes are applied in order, one revision each; what was applied but not yet made durable is
//! invisible to reads until [`State::publish`], and [`State::roll_back`] takes it away without a trace.

mod history;
mod leases;
#[cfg(test)]
mod tests;

use super::{Compare, KeyValue, KvError, LeaseId, Operation, Range, RangeResult, Txn, TxnResult, limits};
use leases::Lease;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// One key's fate in one revision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// Made or changed.
    Put(Arc<KeyValue>),
    /// Deleted.
    Delete(Arc<[u8]>),
}

/// What must be made durable before it may be seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Record {
    /// The changes of one revision, in order.
    Changes { revision: u64, changes: Vec<Change> },
    /// A new lease.
    Granted { lease: LeaseId, ttl_s: u64 },
    /// A lease that ended; its keys' deletions are `Changes` of their own.
    Revoked { lease: LeaseId },
    /// History before `oldest` is gone: these changes by revision and place in it.
    Compacted { oldest: u64, gone: Vec<(u64, u32)> },
}

/// A key at one revision; `None`: deleted.
#[derive(Clone, Debug)]
struct Version {
    revision: u64,
    /// Place in its revision.
    place: u32,
    value: Option<Arc<KeyValue>>,
}

/// The store.
#[derive(Debug)]
pub(super) struct State {
    /// Last revision that was applied. A new store is at 1, as etcd's.
    applied: u64,
    /// Last revision that reads may see.
    visible: u64,
    /// Oldest revision that can still be read and watched.
    oldest: u64,
    keys: BTreeMap<Arc<[u8]>, Vec<Version>>,
    /// Revision → its changes, from `oldest` on.
    log: BTreeMap<u64, Vec<Change>>,
    leases: HashMap<LeaseId, Lease>,
}

impl State {
    pub(super) fn new() -> Self {
        Self { applied: 1, visible: 1, oldest: 1, keys: BTreeMap::new(), log: BTreeMap::new(), leases: HashMap::new() }
    }

    /// Last revision that reads may see.
    pub(super) fn visible(&self) -> u64 {
        self.visible
    }

    /// Reads a range as of `at`, by default of the last visible revision.
    pub(super) fn range(&self, range: &Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        let at = at.map_or(self.visible, |it| it.max(1));
        self.check_revision(at)?;
        let mut result = RangeResult { revision: self.visible, ..RangeResult::default() };
        for value in self.live(range, at) {
            result.count += 1;
            if limit == 0 || result.items.len() < limit {
                result.items.push(KeyValue::clone(value));
            }
        }
        result.more = result.count > result.items.len() as u64;
        Ok(result)
    }

    /// Applies a transaction; what it wrote is returned as a record. Not visible before [`State::publish`].
    pub(super) fn apply(&mut self, txn: &Txn) -> Result<(TxnResult, Option<Record>), KvError> {
        limits::check(txn)?;
        self.check_leases(txn)?;
        let succeeded = txn.compare.iter().all(|it| self.holds(it));
        let operations = if succeeded { &txn.success } else { &txn.failure };
        let revision = self.applied + 1;
        let mut changes = Vec::new();
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            results.push(match operation {
                Operation::Put { key, value, lease } => {
                    self.put(key, value, *lease, revision, &mut changes);
                    Vec::new()
                }
                Operation::Delete(range) => self.delete(range, revision, &mut changes),
                // The transaction sees its own writes.
                Operation::Get(range) => self.live(range, revision).map(|it| KeyValue::clone(it)).collect(),
            });
        }
        let record = self.finish(revision, changes);
        Ok((TxnResult { succeeded, revision: self.applied, results }, record))
    }

    /// Makes a revision of changes, if there are any.
    fn finish(&mut self, revision: u64, changes: Vec<Change>) -> Option<Record> {
        if changes.is_empty() {
            return None;
        }
        self.applied = revision;
        self.log.insert(revision, changes.clone());
        Some(Record::Changes { revision, changes })
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: Option<LeaseId>, revision: u64, changes: &mut Vec<Change>) {
        let lease = lease.filter(|it| *it != 0);
        let before = self.latest(key).cloned();
        let after = Arc::new(KeyValue {
            key: key.to_vec(),
            value: value.to_vec(),
            create_revision: before.as_ref().map_or(revision, |it| it.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(1, |it| it.version + 1),
            lease,
        });
        self.detach(before.as_deref());
        self.attach(&after);
        let version = Version { revision, place: changes.len() as u32, value: Some(after.clone()) };
        match self.keys.get_mut(key) {
            Some(versions) => versions.push(version),
            None => drop(self.keys.insert(key.into(), vec![version])),
        }
        changes.push(Change::Put(after));
    }

    fn delete(&mut self, range: &Range, revision: u64, changes: &mut Vec<Change>) -> Vec<KeyValue> {
        let found: Vec<Arc<KeyValue>> = self.live(range, revision).cloned().collect();
        for before in &found {
            self.detach(Some(before));
            if let Some((key, versions)) = self.keys.range_mut::<[u8], _>(single(&before.key)).next() {
                versions.push(Version { revision, place: changes.len() as u32, value: None });
                changes.push(Change::Delete(key.clone()));
            }
        }
        found.iter().map(|it| KeyValue::clone(it)).collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.latest(limits::compare_key(compare));
        match compare {
            Compare::Absent(_) => found.is_none(),
            Compare::Present(_) => found.is_some(),
            Compare::ModRevision(_, revision) => found.map_or(0, |it| it.mod_revision) == *revision,
            Compare::Value(_, value) => found.is_some_and(|it| it.value == *value),
        }
    }

    /// The key as of the last applied change.
    fn latest(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key)?.last()?.value.as_ref()
    }

    /// The keys of a range that existed at a revision, in order.
    fn live(&self, range: &Range, at: u64) -> impl Iterator<Item = &Arc<KeyValue>> {
        let (from, to) = limits::bounds(range);
        let empty = to.as_ref().is_some_and(|it| *it <= from);
        let end = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        // A range that ends before it begins holds nothing; the map would panic over it.
        let bounds = if empty { single_empty() } else { (Bound::Included(from.as_slice()), end) };
        self.keys.range::<[u8], _>(bounds).filter_map(move |(_, versions)| {
            let seen = versions.partition_point(|it| it.revision <= at);
            versions[..seen].last()?.value.as_ref()
        })
    }

    fn check_revision(&self, at: u64) -> Result<(), KvError> {
        if at < self.oldest {
            return Err(KvError::Compacted { asked: at, oldest: self.oldest });
        }
        if at > self.visible {
            let cause = format!("revision {at} is in the future, the store is at {}", self.visible);
            return Err(KvError::Refused(cause));
        }
        Ok(())
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

fn single(key: &[u8]) -> Bounds<'_> {
    (Bound::Included(key), Bound::Included(key))
}

fn single_empty() -> Bounds<'static> {
    (Bound::Included(&[]), Bound::Excluded(&[0]))
}
