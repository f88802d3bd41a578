//! The state against a model that is too simple to be wrong: a copy of everything at each revision.

use super::State;
use crate::kv::{Event, KvError, Operation, Range, Txn};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

type Copy = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<Operation>),
    Publish,
    RollBack,
    Compact(u64),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0xff)], 1..3)
}

fn range() -> impl Strategy<Value = Range> {
    prop_oneof![
        name().prop_map(Range::Key),
        name().prop_map(Range::Prefix),
        (name(), name()).prop_map(|(a, b)| Range::Between(a, b)),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => (name(), any::<u8>()).prop_map(|(key, value)| Operation::Put { key, value: vec![value], lease: None }),
        1 => range().prop_map(Operation::Delete),
        1 => range().prop_map(Operation::Get),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec(operation(), 1..4).prop_map(Step::Txn),
        4 => Just(Step::Publish),
        1 => Just(Step::RollBack),
        1 => (0u64..30).prop_map(Step::Compact),
    ]
}

fn within(range: &Range, key: &[u8]) -> bool {
    match range {
        Range::Key(it) => it == key,
        Range::Prefix(it) => key.starts_with(it),
        Range::Between(from, to) => key >= from.as_slice() && key < to.as_slice(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_state_is_what_a_copy_of_each_revision_says(steps in proptest::collection::vec(step(), 1..60), probe in range()) {
        let mut state = State::new();
        // copies[i] is the store at revision i + 1.
        let mut copies: Vec<Copy> = vec![Copy::new()];
        let (mut visible, mut oldest) = (1u64, 1u64);
        for step in steps {
            match step {
                Step::Txn(success) => {
                    let mut copy = copies.last().unwrap().clone();
                    let txn = Txn { success: success.clone(), ..Txn::default() };
                    match state.apply(&txn) {
                        Err(KvError::Refused(_)) => continue,
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                        Ok((result, record)) => {
                            let mut wrote = false;
                            for (operation, found) in success.iter().zip(&result.results) {
                                let keys: Vec<_> = found.iter().map(|it| (it.key.clone(), it.value.clone())).collect();
                                match operation {
                                    Operation::Put { key, value, .. } => {
                                        wrote = true;
                                        copy.insert(key.clone(), value.clone());
                                    }
                                    Operation::Delete(range) | Operation::Get(range) => {
                                        let expected: Vec<_> = copy.iter().filter(|(key, _)| within(range, key))
                                            .map(|(key, value)| (key.clone(), value.clone())).collect();
                                        prop_assert_eq!(&keys, &expected);
                                        if matches!(operation, Operation::Delete(_)) {
                                            wrote |= !keys.is_empty();
                                            keys.iter().for_each(|(key, _)| drop(copy.remove(key)));
                                        }
                                    }
                                }
                            }
                            prop_assert_eq!(record.is_some(), wrote);
                            if wrote {
                                copies.push(copy);
                            }
                            prop_assert_eq!(result.revision, copies.len() as u64);
                        }
                    }
                }
                Step::Publish => {
                    visible = copies.len() as u64;
                    prop_assert_eq!(state.publish(), visible);
                }
                Step::RollBack => {
                    copies.truncate(visible as usize);
                    state.roll_back(vec![]);
                }
                Step::Compact(at) => {
                    let planned = state.plan_compaction(at);
                    prop_assert_eq!(planned.is_ok(), at <= visible && (at > oldest || oldest == 1), "{} {} {}", at, oldest, visible);
                    // The engine compacts only between groups, when everything is visible.
                    if planned.is_ok() && visible == copies.len() as u64 {
                        state.compact(at);
                        oldest = oldest.max(at);
                    }
                }
            }
            for at in 1..=copies.len() as u64 + 1 {
                let found = state.range(&probe, 0, Some(at));
                if at < oldest {
                    let compacted = matches!(found, Err(KvError::Compacted { .. }));
                    prop_assert!(compacted);
                } else if at > visible {
                    prop_assert!(matches!(found, Err(KvError::Refused(_))));
                } else {
                    let found: Copy = found.unwrap().items.into_iter().map(|it| (it.key, it.value)).collect();
                    let mut expected = copies[at as usize - 1].clone();
                    expected.retain(|key, _| within(&probe, key));
                    prop_assert_eq!(found, expected);
                }
            }
            // Replaying what a watch says, from the oldest copy on, gives the newest visible one.
            let mut replayed = copies[oldest as usize - 1].clone();
            let mut next = oldest + 1;
            while next <= visible {
                let (batches, after) = state.changes(&Range::Prefix(vec![]), next).unwrap();
                for event in batches.into_iter().flat_map(|it| it.events) {
                    match event {
                        Event::Put(it) => drop(replayed.insert(it.key, it.value)),
                        Event::Delete { key, .. } => drop(replayed.remove(&key)),
                    }
                }
                next = after;
            }
            prop_assert_eq!(&replayed, &copies[visible as usize - 1]);
        }
    }
}

#[test]
fn standing_still_takes_nothing_from_a_lease() {
    let (mut state, start) = (State::new(), Instant::now());
    let at = |s: u64| start + Duration::from_secs(s);
    for (lease, ttl_s) in [(1, 10), (2, 60), (3, 10)] {
        assert!(state.grant(lease, ttl_s, start));
    }
    // The writer begins to wait at 4, the third lease is renewed at 6, and all stand still until 100.
    state.keep_alive(3, at(6)).unwrap();
    state.stood_still(at(4), at(100));
    assert!(state.expired(at(100)).is_empty(), "nobody could renew");
    assert_eq!(state.next_deadline(), Some(at(106)));
    let mut ended = state.expired(at(110));
    ended.sort_unstable();
    assert_eq!(ended, [1, 3], "none has more than its full time");
}

#[test]
fn what_was_renewed_while_a_write_failed_stays_renewed() {
    let (mut state, start) = (State::new(), Instant::now());
    assert!(state.grant(1, 10, start));
    let marks = state.lease_marks();
    state.keep_alive(1, start + Duration::from_secs(8)).unwrap();
    state.roll_back(marks);
    assert_eq!(state.next_deadline(), Some(start + Duration::from_secs(18)));
}
