//! Leases: grants, renewals, ends, and which keys hang on which.

use super::{Change, Operation, Record, State};
use crate::kv::{KeyValue, KvError, LeaseId, Txn};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A lease.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub ttl_s: u64,
    pub deadline: Instant,
    pub keys: BTreeSet<Vec<u8>>,
}

impl State {
    /// Takes in a new lease. `false` when the id is taken (or 0).
    pub(in crate::kv) fn grant(&mut self, lease: LeaseId, ttl_s: u64, now: Instant) -> bool {
        if lease <= 0 || self.leases.contains_key(&lease) {
            return false;
        }
        let deadline = now + Duration::from_secs(ttl_s);
        self.leases.insert(lease, Lease { ttl_s, deadline, keys: BTreeSet::new() });
        true
    }

    /// Gives a lease its full time again; returns that time in seconds.
    pub(in crate::kv) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<u64, KvError> {
        let found = self.leases.get_mut(&lease).ok_or(KvError::NoLease(lease))?;
        found.deadline = now + Duration::from_secs(found.ttl_s);
        Ok(found.ttl_s)
    }

    /// Ends a lease and deletes its keys in one revision. Nothing when there is no such lease.
    pub(in crate::kv) fn revoke(&mut self, lease: LeaseId) -> Vec<Record> {
        let Some(found) = self.leases.get(&lease) else { return Vec::new() };
        let revision = self.applied + 1;
        let mut changes: Vec<Change> = Vec::new();
        for key in found.keys.clone() {
            self.delete(&crate::kv::Range::Key(key), revision, &mut changes);
        }
        self.leases.remove(&lease);
        let changes = self.finish(revision, changes);
        changes.into_iter().chain([Record::Revoked { lease }]).collect()
    }

    /// Leases whose time is over.
    pub(in crate::kv) fn expired(&self, now: Instant) -> Vec<LeaseId> {
        self.leases.iter().filter(|(_, it)| it.deadline <= now).map(|(id, _)| *id).collect()
    }

    /// When the next lease ends.
    pub(in crate::kv) fn next_deadline(&self) -> Option<Instant> {
        self.leases.values().map(|it| it.deadline).min()
    }

    /// Nobody could renew from some moment after `begun` until `now`: each lease has again what was left to it at `begun`,
    /// and never more than its full time.
    pub(in crate::kv) fn stood_still(&mut self, begun: Instant, now: Instant) {
        let by = now.saturating_duration_since(begun);
        for lease in self.leases.values_mut() {
            let full = now + Duration::from_secs(lease.ttl_s);
            lease.deadline = (lease.deadline + by).min(full);
        }
    }

    /// Moves every deadline.
    pub(in crate::kv) fn postpone_deadlines(&mut self, by: Duration) {
        self.leases.values_mut().for_each(|it| it.deadline += by);
    }

    /// Ids, times to live and deadlines, for [`State::roll_back`].
    pub(in crate::kv) fn lease_marks(&self) -> Vec<(LeaseId, u64, Instant)> {
        self.leases.iter().map(|(id, it)| (*id, it.ttl_s, it.deadline)).collect()
    }

    /// The leases again as they were marked, but those that were renewed since stay so; which keys they hold is read from
    /// the keys.
    pub(super) fn restore_leases(&mut self, marks: Vec<(LeaseId, u64, Instant)>) {
        let renewed = std::mem::take(&mut self.leases);
        self.leases = marks
            .into_iter()
            .map(|(id, ttl_s, marked)| {
                let deadline = renewed.get(&id).map_or(marked, |it| it.deadline.max(marked));
                (id, Lease { ttl_s, deadline, keys: BTreeSet::new() })
            })
            .collect();
        let live: Vec<_> = self.keys.values().filter_map(|it| it.last()?.value.clone()).collect();
        live.iter().for_each(|it| self.attach(it));
    }

    pub(super) fn attach(&mut self, value: &KeyValue) {
        if let Some(lease) = value.lease.and_then(|it| self.leases.get_mut(&it)) {
            lease.keys.insert(value.key.clone());
        }
    }

    pub(super) fn detach(&mut self, value: Option<&KeyValue>) {
        if let Some(value) = value
            && let Some(lease) = value.lease.and_then(|it| self.leases.get_mut(&it))
        {
            lease.keys.remove(&value.key);
        }
    }

    /// Every lease that the transaction names exists, whichever branch is taken.
    pub(super) fn check_leases(&self, txn: &Txn) -> Result<(), KvError> {
        for operation in txn.success.iter().chain(&txn.failure) {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && *lease != 0
                && !self.leases.contains_key(lease)
            {
                return Err(KvError::NoLease(*lease));
            }
        }
        Ok(())
    }
}
