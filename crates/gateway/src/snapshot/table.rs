//! A table of named things in shards that snapshots share: a table that differs from the one before by an entry costs the
//! shard of that entry, however many there are. Pure.
//!
//! With ten thousand entries each place that a request looks at is a wait for memory, a hundred nanoseconds and more. So a shard is
//! one array, in which an entry lies where its hash says, or behind that (linear probing); the name is compared where the rest
//! of the entry is read from next, and only when the whole hash is the same. (A `HashMap` by `Arc<str>` has four places before
//! the entry: itself, its tags, its buckets, the name.)

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

/// How many shards there are, a power of two: of ten thousand entries, each holds about eighty.
const SHARDS: usize = 128;
/// Slots of a shard with its first entry; always a power of two.
const SLOTS: usize = 2;

/// What lies in a table.
pub trait Named {
    /// Its name there, which never changes.
    fn name(&self) -> &[u8];
}

/// At least half of its slots are empty, so that each search ends.
type Shard<V> = Arc<[Option<(u64, V)>]>;

/// See the module. Cloning it copies no entry.
#[derive(Clone, Debug)]
pub struct Table<V> {
    shards: Box<[Shard<V>]>,
    length: usize,
    /// Hashes names by a secret: nobody can choose some that meet.
    secret: RandomState,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        let empty = Shard::default();
        let shards = (0..SHARDS).map(|_| Arc::clone(&empty)).collect();
        Self { shards, length: 0, secret: RandomState::new() }
    }
}

impl<V> Table<V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|it| it.iter().flatten().map(|it| &it.1))
    }
}

impl<V: Named> Table<V> {
    /// The entry of `name`.
    pub fn get(&self, name: &str) -> Option<&V> {
        let hash = self.hash(name.as_bytes());
        let slots = &self.shards[shard_of(hash)];
        slots.get(place(slots, hash, name.as_bytes())?)?.as_ref().map(|it| &it.1)
    }

    fn hash(&self, name: &[u8]) -> u64 {
        self.secret.hash_one(name)
    }
}

impl<V: Clone + Named> Table<V> {
    /// Sets the entry of its name.
    pub fn insert(&mut self, entry: V) {
        let hash = self.hash(entry.name());
        let shard = &mut self.shards[shard_of(hash)];
        let known = place(shard, hash, entry.name()).is_some_and(|it| shard[it].is_some());
        if !known {
            self.length += 1;
            let wanted = (2 * (shard.iter().flatten().count() + 1)).next_power_of_two().max(SLOTS);
            if wanted > shard.len() {
                *shard = spread(shard, wanted);
            }
        }
        if let Some(at) = place(shard, hash, entry.name()) {
            Arc::make_mut(shard)[at] = Some((hash, entry));
        }
    }
}

impl<V: Clone + Named> FromIterator<V> for Table<V> {
    fn from_iter<I: IntoIterator<Item = V>>(entries: I) -> Self {
        let mut table = Self::default();
        entries.into_iter().for_each(|it| table.insert(it));
        table
    }
}

/// By the high bits; the low ones say where in the shard.
fn shard_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SHARDS.ilog2())) as usize
}

/// The slot of an entry, or the empty one that it would get; `None` in a shard without slots.
fn place<V: Named>(slots: &[Option<(u64, V)>], hash: u64, name: &[u8]) -> Option<usize> {
    let mask = slots.len().checked_sub(1)?;
    let mut at = hash as usize & mask;
    while let Some((other, entry)) = &slots[at] {
        if *other == hash && entry.name() == name {
            break;
        }
        at = (at + 1) & mask;
    }
    Some(at)
}

/// The same entries in more slots.
fn spread<V: Clone + Named>(slots: &[Option<(u64, V)>], wanted: usize) -> Shard<V> {
    let mut wider = vec![None; wanted];
    for (hash, entry) in slots.iter().flatten() {
        if let Some(at) = place(&wider, *hash, entry.name()) {
            wider[at] = Some((*hash, entry.clone()));
        }
    }
    wider.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Eq, PartialEq)]
    struct Thing(String, usize);

    impl Named for Thing {
        fn name(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    #[test]
    fn entries_whose_hashes_meet_are_all_found() {
        let thing = |name: &str| Some((5, Thing(name.to_owned(), 0)));
        let slots = [None, thing("b"), None, None, None, thing("a"), Some((6, Thing("c".to_owned(), 0))), None];
        // Those that begin at the same place lie behind each other, and the search goes on at the front.
        let full = [thing("x"), None, None, thing("y")];
        for (slots, hash, name, expected) in [
            (&slots[..], 5, "a", 5),
            (&slots, 6, "c", 6),
            (&slots, 5, "c", 7),
            (&slots, 13, "a", 7),
            (&slots, 2, "b", 2),
            (&full, 7, "z", 1),
            (&full, 5, "x", 1),
        ] {
            assert_eq!(place(slots, hash, name.as_bytes()), Some(expected), "{name}");
        }
        assert_eq!(place::<Thing>(&[], 1, b"a"), None);
        let spread = spread(&slots, 16);
        assert!(["a", "b"].iter().all(|it| place(&spread, 5, it.as_bytes()).is_some_and(|it| spread[it].is_some())));
    }

    #[test]
    fn a_copy_shares_what_does_not_change() {
        let thing = |number: usize, value| Thing(format!("h{number}.bench.example"), value);
        let of = |table: &Table<Thing>, number: usize| table.get(&thing(number, 0).0).map(|it| it.1);
        let first: Table<Thing> = (0..10_000).map(|it| thing(it, it)).collect();
        let largest = first.shards.iter().map(|it| it.iter().flatten().count()).max().unwrap();
        assert!(largest < 160, "{largest} in one shard");
        assert!((0..10_000).all(|it| of(&first, it) == Some(it)));
        let mut second = first.clone();
        second.insert(thing(7, 70));
        second.insert(thing(20_000, 1));
        assert_eq!((first.len(), of(&first, 7), of(&first, 20_000)), (10_000, Some(7), None));
        assert_eq!((second.len(), of(&second, 7), of(&second, 20_000)), (10_001, Some(70), Some(1)));
        let copied = first.shards.iter().zip(&second.shards).filter(|(one, other)| !Arc::ptr_eq(one, other)).count();
        assert!((1..=2).contains(&copied), "{copied}");
        assert_eq!(second.iter().filter(|it| it.1 == 70).count(), 2);
        assert_eq!(second.iter().count(), 10_001);
        assert!(Table::<Thing>::default().is_empty() && Table::<Thing>::default().get("").is_none());
    }
}
