//! Rate limits that several gateways hold together, approximately: each notes what it let through, tells the others once a
//! second through the coordination store, and counts what they told as if it had come here.
//!
//! What must hold: nothing of this is on the way of a request; while the store is silent each gateway goes on by what it
//! sees itself. Between two notes each gateway counts for itself, so of N gateways a client that asks all of them gets at most
//! N bursts and N times a second or two of its rate at once; then it waits until that is paid back, so that over time it
//! gets what the limit says.
//!
//! Not here: how a request is counted (`protect`).

use crate::protect::RateLimit;
use arco_model::traffic::{RATES_PREFIX, RatesNote, RatesSeen, STATUS_PREFIX};
use arco_store::kv::{KvError, LeaseId, SharedKv};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause between two exchanges.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause between two looks whether there is another gateway.
const LOOK: Duration = Duration::from_secs(2);
/// Longest wait for the store.
const PATIENCE: Duration = Duration::from_secs(3);
/// What is not renewed for so long is gone, in seconds.
const LEASE_S: u64 = 10;
const RENEWAL: Duration = Duration::from_secs(3);
/// Notes that stay: whoever looks less often than that misses some, and is laxer by them.
const NOTES: usize = 16;
/// Gateways that are remembered when they are gone.
const REMEMBERED: usize = 100;
/// Most keys of a note, the busiest; the others are not told.
const MOST: usize = 500;

/// One gateway's part in it.
pub(crate) struct RateExchange {
    key: String,
    seen: RatesSeen,
    told: bool,
    lease: Option<(LeaseId, Instant)>,
    /// Process and number of the last note of each other gateway that was counted.
    counted: HashMap<Vec<u8>, (u64, u64)>,
    others: bool,
}

impl RateExchange {
    /// For the gateway `id`.
    pub(crate) fn new(id: &str) -> Self {
        let mut epoch = [0u8; 8];
        // Without randomness a restarted process is taken for the one before: its first notes are missed.
        let _ = aws_lc_rs::rand::fill(&mut epoch);
        let seen = RatesSeen { epoch: u64::from_le_bytes(epoch), notes: Vec::new() };
        let key = format!("{RATES_PREFIX}{id}");
        Self { key, seen, told: true, lease: None, counted: HashMap::new(), others: false }
    }

    /// Exchanges for ever what is counted by `limits`.
    pub(crate) async fn run(mut self, kv: &SharedKv, limits: impl Fn() -> Vec<Arc<RateLimit>>) {
        loop {
            tokio::time::sleep(if self.others { PAUSE } else { LOOK }).await;
            let limits = limits();
            if limits.is_empty() {
                continue;
            }
            match tokio::time::timeout(PATIENCE, self.exchange(kv, &limits)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "rates are not told to other gateways");
                    self.lease = None;
                }
                Err(_) => self.lease = None,
            }
        }
    }

    async fn exchange(&mut self, kv: &SharedKv, limits: &[Arc<RateLimit>]) -> Result<(), KvError> {
        if !self.others {
            self.others = self.has_others(kv).await?;
            if self.others {
                limits.iter().for_each(|it| it.note());
            }
            return Ok(());
        }
        limits.iter().for_each(|it| it.note());
        let others = kv.list(RATES_PREFIX).await?.items;
        if others.iter().all(|it| it.key == self.key.as_bytes()) {
            self.others = self.has_others(kv).await?;
        }
        let limits_by_id: HashMap<u64, &Arc<RateLimit>> = limits.iter().map(|it| (it.id(), it)).collect();
        for other in others.iter().filter(|it| it.key != self.key.as_bytes()) {
            // What another version writes is skipped: it is only laxer.
            let Ok(seen) = serde_json::from_slice::<RatesSeen>(&other.value) else { continue };
            let before = self.counted.get(&other.key).copied();
            for (limit, key, count) in fresh(&seen, before) {
                if let Some(limit) = limits_by_id.get(&limit) {
                    limit.count(key, count);
                }
            }
            let last = seen.notes.last().map_or(0, |it| it.number);
            self.counted.insert(other.key.clone(), (seen.epoch, last));
        }
        // One whose lease ended may come back with notes that are counted already.
        if self.counted.len() > REMEMBERED {
            let there: HashSet<&[u8]> = others.iter().map(|it| it.key.as_slice()).collect();
            self.counted.retain(|key, _| there.contains(key.as_slice()));
        }
        self.tell(kv, limits).await
    }

    /// Whether another gateway says that it is there.
    async fn has_others(&self, kv: &SharedKv) -> Result<bool, KvError> {
        let own = self.key.strip_prefix(RATES_PREFIX).unwrap_or_default();
        let gateways = kv.list(STATUS_PREFIX).await?.items;
        Ok(gateways.iter().any(|it| it.key.strip_prefix(STATUS_PREFIX.as_bytes()) != Some(own.as_bytes())))
    }

    async fn tell(&mut self, kv: &SharedKv, limits: &[Arc<RateLimit>]) -> Result<(), KvError> {
        let counts = limits.iter().flat_map(|limit| limit.untold().map(|(key, count)| (limit.id(), key, count)));
        let counts = busiest(counts.collect());
        if !counts.is_empty() {
            let number = self.seen.notes.last().map_or(0, |it| it.number) + 1;
            self.seen.notes.push(RatesNote { number, counts });
            let surplus = self.seen.notes.len().saturating_sub(NOTES);
            self.seen.notes.drain(..surplus);
            self.told = false;
        }
        let lease = match self.lease {
            Some((lease, renewed)) if renewed.elapsed() < RENEWAL => lease,
            Some((lease, _)) => {
                kv.lease_keep_alive(lease).await?;
                lease
            }
            None => {
                self.told = false;
                kv.lease_grant(LEASE_S).await?
            }
        };
        if self.lease.is_none_or(|it| it.0 != lease || it.1.elapsed() >= RENEWAL) {
            self.lease = Some((lease, Instant::now()));
        }
        if !self.told {
            let value = serde_json::to_vec(&self.seen).unwrap_or_default();
            kv.put(&self.key, value, Some(lease)).await?;
            self.told = true;
        }
        Ok(())
    }
}

/// What of another gateway's notes has not been counted, when the last one that was is `before` (process, number).
fn fresh(seen: &RatesSeen, before: Option<(u64, u64)>) -> impl Iterator<Item = (u64, u64, u32)> {
    let after = before.filter(|it| it.0 == seen.epoch).map_or(0, |it| it.1);
    seen.notes.iter().filter(move |it| it.number > after).flat_map(|it| it.counts.iter().copied())
}

/// The largest counts, as many as are told.
fn busiest(mut counts: Vec<(u64, u64, u32)>) -> Vec<(u64, u64, u32)> {
    counts.sort_unstable_by_key(|it| std::cmp::Reverse(it.2));
    counts.truncate(MOST);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_note_counts_once() {
        let note = |number: u64| RatesNote { number, counts: vec![(1, number, 5)] };
        let seen = RatesSeen { epoch: 7, notes: vec![note(3), note(4), note(5)] };
        for (before, keys) in [
            (None, &[3, 4, 5][..]),
            (Some((7, 3)), &[4, 5]),
            (Some((7, 5)), &[]),
            // A process that began anew counts from one.
            (Some((6, 9)), &[3, 4, 5]),
        ] {
            assert_eq!(fresh(&seen, before).map(|it| it.1).collect::<Vec<_>>(), keys, "{before:?}");
        }
    }

    #[test]
    fn the_busiest_are_told() {
        let counts = busiest((0..2000u32).map(|it| (1, it.into(), it)).collect());
        assert_eq!((counts.len(), counts.iter().map(|it| it.2).min()), (MOST, Some(1500)));
        let text =
            serde_json::to_vec(&RatesNote { number: u64::MAX, counts: vec![(u64::MAX, u64::MAX, u32::MAX); MOST] });
        assert!(text.unwrap().len() * NOTES < 768 * 1024, "far from the store's limit of a value");
    }
}
