//! etcd's rules for one transaction, kept by every driver of ours so that what works on one machine works on a cluster.

use super::{Compare, KvError, MAX_BYTES, MAX_OPERATIONS, Operation, Range, Txn};
use std::collections::BTreeSet;

/// Refuses what etcd would refuse before it looks at any state.
pub(super) fn check(txn: &Txn) -> Result<(), KvError> {
    let most = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if most > MAX_OPERATIONS {
        return refused(format!("{most} operations, at most {MAX_OPERATIONS} are allowed: use several transactions"));
    }
    let bytes: usize = txn.compare.iter().map(compare_bytes).sum::<usize>()
        + txn.success.iter().chain(&txn.failure).map(operation_bytes).sum::<usize>();
    if bytes > MAX_BYTES {
        return refused(format!("{bytes} bytes, at most {MAX_BYTES} are allowed: use smaller values"));
    }
    for compare in &txn.compare {
        not_empty(compare_key(compare))?;
    }
    branch(&txn.success)?;
    branch(&txn.failure)
}

/// The first key of a range and the first one after it (`None`: no end).
pub(super) fn bounds(range: &Range) -> (Vec<u8>, Option<Vec<u8>>) {
    match range {
        Range::Key(key) => {
            let mut end = key.clone();
            end.push(0);
            (key.clone(), Some(end))
        }
        Range::Prefix(prefix) => (prefix.clone(), prefix_end(prefix)),
        Range::Between(from, to) => (from.clone(), (!to.is_empty()).then(|| to.clone())),
    }
}

/// The first key after all that begin with `prefix`; `None` when there is no such key.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Whether a key lies in a range.
pub(super) fn contains(range: &Range, key: &[u8]) -> bool {
    match range {
        Range::Key(one) => one == key,
        Range::Prefix(prefix) => key.starts_with(prefix),
        Range::Between(from, to) => key >= from.as_slice() && (to.is_empty() || key < to.as_slice()),
    }
}

/// The key that a condition is about.
pub(super) fn compare_key(compare: &Compare) -> &[u8] {
    match compare {
        Compare::Absent(key) | Compare::Present(key) | Compare::ModRevision(key, _) | Compare::Value(key, _) => key,
    }
}

/// No key is written twice, and none is both written and deleted.
fn branch(operations: &[Operation]) -> Result<(), KvError> {
    let mut puts = BTreeSet::new();
    for operation in operations {
        match operation {
            Operation::Put { key, .. } => {
                not_empty(key)?;
                if !puts.insert(key.as_slice()) {
                    return refused(format!("key `{}` is written twice", String::from_utf8_lossy(key)));
                }
            }
            Operation::Delete(Range::Key(key)) | Operation::Get(Range::Key(key)) => not_empty(key)?,
            Operation::Delete(_) | Operation::Get(_) => {}
        }
    }
    for operation in operations {
        if let Operation::Delete(range) = operation
            && let Some(key) = puts.iter().find(|it| contains(range, it))
        {
            return refused(format!("key `{}` is both written and deleted", String::from_utf8_lossy(key)));
        }
    }
    Ok(())
}

fn not_empty(key: &[u8]) -> Result<(), KvError> {
    if key.is_empty() { refused("a key is empty".to_owned()) } else { Ok(()) }
}

fn refused(cause: String) -> Result<(), KvError> {
    Err(KvError::Refused(cause))
}

fn compare_bytes(compare: &Compare) -> usize {
    let value = if let Compare::Value(_, value) = compare { value.len() } else { 0 };
    compare_key(compare).len() + value
}

fn operation_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Put { key, value, .. } => key.len() + value.len(),
        Operation::Delete(range) | Operation::Get(range) => match range {
            Range::Key(key) | Range::Prefix(key) => key.len(),
            Range::Between(from, to) => from.len() + to.len(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        for (prefix, end) in [
            (&b"a"[..], Some(&b"b"[..])),
            (b"/x/", Some(b"/x0")),
            (b"a\xff", Some(b"b")),
            (b"a\xff\xff", Some(b"b")),
            (b"\xff\xff", None),
            (b"", None),
        ] {
            assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
