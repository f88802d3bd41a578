//! Rate limits that several gateways hold together, approximately: each notes what it let through, tells the others once a
//! second through the coordination store, and counts what they told as if it had come here.
//!
//! What must hold: nothing of this is on the way of a request; while the store is silent each gateway goes on by what it
//! sees itself. Between two notes each gateway counts for itself, so of N gateways a client that asks all of them gets at most
//! N bursts and N times a second or two of its rate at once; then it waits until that is paid back, so that over time it
//! gets what the limit says. What is long past is not told and not counted: it is paid back already. What is told is sealed
//! with the gateways' keys: keys of limits are hashes of what may be a secret.
//!
//! Not here: how a request is counted (`protect`).

use crate::protect::RateLimit;
use arco_model::traffic::{RATES_PREFIX, RatesNote, RatesSeen, STATUS_PREFIX};
use arco_store::kv::{KvError, LeaseId, SharedKv};
use arco_store::secrets::{Sealed, SecretBox};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

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
/// Notes of a gateway that is new here that count: the others are of a time that is over.
const NEW: u64 = 3;
/// Gateways that are remembered when they are gone.
const REMEMBERED: usize = 100;
/// Most keys of a note, the busiest; the others are not told.
const MOST: usize = 500;

/// [`RatesSeen`] as it is in the store; its context is its key there.
#[derive(Serialize, Deserialize)]
struct SealedRates {
    key_id: String,
    text: String,
}

/// One gateway's part in it.
pub(crate) struct RateExchange {
    key: String,
    keys: Arc<SecretBox>,
    seen: RatesSeen,
    told: bool,
    /// When there was last something to tell.
    noted: Instant,
    lease: Option<(LeaseId, Instant)>,
    /// Process and number of the last note of each other gateway that was counted.
    counted: HashMap<Vec<u8>, (u64, u64)>,
    others: bool,
}

impl RateExchange {
    /// For the gateway `id`; all gateways have the same `keys`.
    pub(crate) fn new(id: &str, keys: Arc<SecretBox>) -> Self {
        let (key, seen, noted) = (format!("{RATES_PREFIX}{id}"), nothing(), Instant::now());
        Self { key, keys, seen, told: true, noted, lease: None, counted: HashMap::new(), others: false }
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
                // What was let through while nobody was there is of a time that is over, and so are the last notes.
                self.seen = nothing();
                for limit in limits {
                    limit.note();
                    limit.untold().for_each(drop);
                }
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
            let Some(seen) = opened(&self.keys, &other.key, &other.value) else { continue };
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
        // More than that was gathered while the store was silent, and is paid back already.
        let counts = limits.iter().flat_map(|limit| {
            let most = limit.most_in(2 * PAUSE);
            limit.untold().map(move |(key, count)| (limit.id(), key, count.min(most)))
        });
        let counts = busiest(counts.collect());
        if counts.is_empty() {
            // Whoever starts later would count what is long past.
            if !self.seen.notes.is_empty() && self.noted.elapsed() > PAUSE * NOTES as u32 {
                (self.seen, self.told) = (nothing(), false);
            }
        } else {
            self.noted = Instant::now();
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
            // Without randomness nothing is told: the others are only laxer.
            let Some(value) = sealed(&self.keys, &self.key, &self.seen) else { return Ok(()) };
            kv.put(&self.key, value, Some(lease)).await?;
            self.told = true;
        }
        Ok(())
    }
}

/// Notes of somebody who has told nothing yet.
fn nothing() -> RatesSeen {
    let mut epoch = [0u8; 8];
    // Without randomness it is taken for the one before: its first notes are missed.
    let _ = aws_lc_rs::rand::fill(&mut epoch);
    RatesSeen { epoch: u64::from_le_bytes(epoch), notes: Vec::new() }
}

fn sealed(keys: &SecretBox, key: &str, seen: &RatesSeen) -> Option<Vec<u8>> {
    let Sealed { key_id, text } = keys.seal(key, &serde_json::to_vec(seen).ok()?).ok()?;
    serde_json::to_vec(&SealedRates { key_id, text }).ok()
}

fn opened(keys: &SecretBox, key: &[u8], value: &[u8]) -> Option<RatesSeen> {
    let SealedRates { key_id, text } = serde_json::from_slice(value).ok()?;
    let seen = keys.unseal(std::str::from_utf8(key).ok()?, &Sealed { key_id, text }).ok()?;
    serde_json::from_slice(&seen).ok()
}

/// What of another gateway's notes has not been counted, when the last one that was is `before` (process, number).
fn fresh(seen: &RatesSeen, before: Option<(u64, u64)>) -> impl Iterator<Item = (u64, u64, u32)> {
    let after = match before {
        Some((epoch, number)) if epoch == seen.epoch => number,
        Some(_) => 0,
        None => seen.notes.last().map_or(0, |it| it.number.saturating_sub(NEW)),
    };
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
    use crate::protect::RateKey;
    use arco_store::kv::MemoryKv;

    fn keys() -> Arc<SecretBox> {
        Arc::new(SecretBox::parse(&format!("k1 {}", "11".repeat(32))).unwrap())
    }

    /// What the gateway `id` has told: the counts of each note.
    async fn told(kv: &SharedKv, id: &str) -> Vec<Vec<(u64, u64, u32)>> {
        let key = format!("{RATES_PREFIX}{id}");
        let seen = kv.get(&key).await.unwrap().and_then(|it| opened(&keys(), key.as_bytes(), &it.value));
        seen.unwrap_or_default().notes.into_iter().map(|it| it.counts).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_past_is_not_told() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let limit = RateLimit::new(RateKey::Address, 1000, Duration::from_secs(3600), 1000).named("one limit");
        let (id, limits) = (limit.id(), [Arc::new(limit)]);
        let let_through = |key: u64, count: u32| (0..count).for_each(|_| limits[0].take(key).unwrap());
        let mut one = RateExchange::new("one", keys());
        let other = format!("{STATUS_PREFIX}two");
        kv.put(&other, b"{}".to_vec(), None).await.unwrap();
        one.exchange(&kv, &limits).await.unwrap();
        let_through(1, 3);
        one.exchange(&kv, &limits).await.unwrap();
        assert_eq!(told(&kv, "one").await, [[(id, 1, 3)]]);
        let (own, stolen) = (format!("{RATES_PREFIX}one"), format!("{RATES_PREFIX}three"));
        let value = kv.get(&own).await.unwrap().unwrap().value;
        assert!(opened(&keys(), stolen.as_bytes(), &value).is_none(), "nobody tells it as his own");
        assert!(serde_json::from_slice::<RatesSeen>(&value).is_err(), "it is sealed");

        // Alone for a while, then not any more: only what comes from now on is told.
        kv.delete(&other).await.unwrap();
        one.exchange(&kv, &limits).await.unwrap();
        assert!(!one.others);
        let_through(2, 10);
        one.exchange(&kv, &limits).await.unwrap();
        kv.put(&other, b"{}".to_vec(), None).await.unwrap();
        one.exchange(&kv, &limits).await.unwrap();
        assert!(one.others);
        let_through(3, 2);
        one.exchange(&kv, &limits).await.unwrap();
        assert_eq!(told(&kv, "one").await, [[(id, 3, 2)]]);

        // A note does not stay for ever, either.
        tokio::time::advance(PAUSE * NOTES as u32).await;
        one.exchange(&kv, &limits).await.unwrap();
        assert_eq!(told(&kv, "one").await, [[(id, 3, 2)]]);
        tokio::time::advance(PAUSE).await;
        one.exchange(&kv, &limits).await.unwrap();
        assert!(told(&kv, "one").await.is_empty());
    }

    #[test]
    fn each_note_counts_once() {
        let note = |number: u64| RatesNote { number, counts: vec![(1, number, 5)] };
        let seen = RatesSeen { epoch: 7, notes: vec![note(2), note(3), note(4), note(5)] };
        for (before, keys) in [
            // What a gateway told before this one was there counts as far as it is of late.
            (None, &[3, 4, 5][..]),
            (Some((7, 3)), &[4, 5]),
            (Some((7, 5)), &[]),
            // A process that began anew counts from one.
            (Some((6, 9)), &[2, 3, 4, 5]),
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
        // Sealed it is twice as long.
        assert!(2 * text.unwrap().len() * NOTES < 1024 * 1024, "far from the store's limit of a value");
    }
}
