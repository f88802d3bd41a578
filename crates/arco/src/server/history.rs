//! Forgets the past of the coordination store. An etcd keeps every change for ever unless it is told otherwise, and takes no
//! write any more when it is full of them.
//!
//! What must hold: whoever follows the store, and was away for less than [`PERIOD`], misses nothing; whoever was away for longer
//! reads anew. Not here: the embedded store, which forgets by itself.

use arco_store::kv::{KvError, Range, SharedKv};
use std::time::Duration;

/// How old the past is at least that is forgotten, and how often.
const PERIOD: Duration = Duration::from_secs(600);

/// Forgets from time to time; to be done by one server, though it does no harm by several.
pub(super) async fn forget(kv: SharedKv) {
    let mut mark = None;
    loop {
        match step(&kv, mark).await {
            Ok(now) => mark = Some(now),
            Err(error) => tracing::warn!(%error, "the coordination store keeps its past for now"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Forgets what was before `mark`; returns the store's revision.
async fn step(kv: &SharedKv, mark: Option<u64>) -> Result<u64, KvError> {
    if let Some(mark) = mark {
        match kv.compact(mark).await {
            // Nothing changed since, or it was told to forget by itself.
            Ok(()) | Err(KvError::Compacted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(kv.range(Range::Key(b"/".to_vec()), 1, None).await?.revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::kv::MemoryKv;
    use std::sync::Arc;

    #[tokio::test]
    async fn what_was_before_the_last_look_is_forgotten() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        for value in ["1", "2"] {
            kv.put("a", value.into(), None).await.unwrap();
        }
        let first = step(&kv, None).await.unwrap();
        kv.put("a", "3".into(), None).await.unwrap();
        let second = step(&kv, Some(first)).await.unwrap();
        assert_eq!(second, first + 1);
        let at = async |revision| kv.range(Range::Key(b"a".to_vec()), 1, Some(revision)).await;
        assert!(matches!(at(first - 1).await, Err(KvError::Compacted { .. })));
        assert_eq!(at(first).await.unwrap().items[0].value, b"2");
        assert_eq!(step(&kv, Some(first)).await.unwrap(), second, "once more is no error");
    }
}
