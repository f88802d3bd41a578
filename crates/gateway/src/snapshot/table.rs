//! A table by name in shards that snapshots share: a table that differs from the one before by an entry costs the shard of
//! that entry, however many there are. Pure.

use std::collections::HashMap;
use std::sync::Arc;

/// How many shards there are, a power of two: of ten thousand entries, each holds about eighty.
const SHARDS: usize = 128;

type Shard<V> = HashMap<Arc<str>, V>;

/// See the module. Cloning it copies no entry.
#[derive(Clone, Debug)]
pub struct Table<V> {
    shards: Box<[Arc<Shard<V>>]>,
    length: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        let empty = Arc::<Shard<V>>::default();
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(), length: 0 }
    }
}

impl<V> Table<V> {
    /// The entry of `name`.
    pub fn get(&self, name: &str) -> Option<&V> {
        self.shards[shard_of(name)].get(name)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.shards.iter().flat_map(|it| it.iter())
    }
}

impl<V: Clone> Table<V> {
    /// Sets the entry of `name`.
    pub fn insert(&mut self, name: Arc<str>, value: V) {
        let shard = Arc::make_mut(&mut self.shards[shard_of(&name)]);
        self.length += usize::from(shard.insert(name, value).is_none());
    }
}

impl<V: Clone> FromIterator<(Arc<str>, V)> for Table<V> {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, V)>>(entries: I) -> Self {
        let mut table = Self::default();
        entries.into_iter().for_each(|(name, value)| table.insert(name, value));
        table
    }
}

/// Which shard holds `name`. Names that somebody chooses so that they meet in one shard make changes of it slower, and
/// nothing else: within a shard they are spread by a secret.
fn shard_of(name: &str) -> usize {
    let mut mixed = 0u64;
    for piece in name.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        mixed = (mixed.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (mixed >> (u64::BITS - SHARDS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_what_does_not_change() {
        let name = |number: usize| -> Arc<str> { format!("h{number}.bench.example").into() };
        let first: Table<usize> = (0..10_000).map(|it| (name(it), it)).collect();
        let largest = first.shards.iter().map(|it| it.len()).max().unwrap();
        assert!(largest < 160, "{largest} in one shard");
        let mut second = first.clone();
        second.insert(name(7), 70);
        second.insert(name(20_000), 1);
        assert_eq!(
            (first.len(), first.get("h7.bench.example"), first.get("h20000.bench.example")),
            (10_000, Some(&7), None)
        );
        assert_eq!((second.len(), second.get("h7.bench.example")), (10_001, Some(&70)));
        let copied = first.shards.iter().zip(&second.shards).filter(|(one, other)| !Arc::ptr_eq(one, other)).count();
        assert!((1..=2).contains(&copied), "{copied}");
        assert_eq!(second.iter().count(), 10_001);
        assert!(Table::<()>::default().is_empty() && Table::<()>::default().get("").is_none());
    }
}
