//! Keeps the keys of TLS session tickets that all gateways share: makes them, seals them for the gateways, rotates them.
//!
//! What must hold: of several servers on one store, one makes a key, the others find it (compare-and-set).

use arco_daemon::{OnExit, Supervisor};
use arco_model::ticket::{SealedRing, TICKETS, TICKETS_CONTEXT, TicketRing};
use arco_model::traffic::GATEWAY_KEYS;
use arco_store::clock;
use arco_store::kv::{Compare, Operation, SharedKv, Txn};
use arco_store::secrets::{Sealed, SecretBox};
use std::time::Duration;

/// How often it is looked whether a key is due; well below the time by which keys are told before they are used.
const LOOK: Duration = Duration::from_secs(120);

/// Rotates the keys for as long as the platform runs.
pub(super) fn keep(kv: SharedKv, secrets: &SecretBox, supervisor: &Supervisor) -> anyhow::Result<()> {
    let keys = SecretBox::parse(&secrets.derive(GATEWAY_KEYS))
        .map_err(|it| anyhow::anyhow!("failed to derive the keys of the gateways: {it}"))?;
    let token = supervisor.token().clone();
    supervisor.spawn("ticket keys", OnExit::Continue, async move {
        loop {
            if let Err(error) = rotate(&kv, &keys).await {
                let error = format!("{error:#}");
                tracing::warn!(error, "the keys of session tickets were not looked after; those that are known stay");
            }
            if tokio::time::timeout(LOOK, token.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
    Ok(())
}

/// Puts the ring that there should be now in the place of the one that there is.
async fn rotate(kv: &SharedKv, keys: &SecretBox) -> anyhow::Result<()> {
    let found = kv.get(TICKETS).await?;
    // What cannot be opened is made anew: sessions begin with a whole handshake once.
    let ring = found.as_ref().and_then(|it| open(&it.value, keys)).unwrap_or_default();
    let Some(next) = ring.rotated(clock::now(), || (random::<16>(), random::<32>())) else { return Ok(()) };
    let sealed = keys.seal(TICKETS_CONTEXT, &serde_json::to_vec(&next)?)?;
    let value = serde_json::to_vec(&SealedRing { key_id: sealed.key_id, text: sealed.text })?;
    let key = TICKETS.as_bytes().to_vec();
    let unchanged = match &found {
        Some(it) => Compare::ModRevision(key.clone(), it.mod_revision),
        None => Compare::Absent(key.clone()),
    };
    let success = vec![Operation::Put { key, value, lease: None }];
    // When another server was faster, its key counts.
    kv.txn(Txn { compare: vec![unchanged], success, failure: Vec::new() }).await?;
    Ok(())
}

fn open(value: &[u8], keys: &SecretBox) -> Option<TicketRing> {
    let sealed: SealedRing = serde_json::from_slice(value).ok()?;
    let text = keys.unseal(TICKETS_CONTEXT, &Sealed { key_id: sealed.key_id, text: sealed.text }).ok()?;
    serde_json::from_slice(&text).ok()
}

/// So many random bytes, hex.
fn random<const BYTES: usize>() -> String {
    (0..BYTES.div_ceil(8)).map(|_| format!("{:016x}", clock::random())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::kv::MemoryKv;
    use std::sync::Arc;

    #[tokio::test]
    async fn keys_are_made_once_and_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = SecretBox::open(&folder.path().join("secret.key")).unwrap();
        let keys = SecretBox::parse(&secrets.derive(GATEWAY_KEYS)).unwrap();
        let kv: SharedKv = Arc::new(MemoryKv::new());
        rotate(&kv, &keys).await.unwrap();
        let first = kv.get(TICKETS).await.unwrap().unwrap();
        let ring = open(&first.value, &keys).unwrap();
        assert_eq!((ring.keys[0].id.len(), ring.keys[0].secret.len()), (32, 64));
        assert!(!String::from_utf8_lossy(&first.value).contains(&ring.keys[0].secret));
        rotate(&kv, &keys).await.unwrap();
        assert_eq!(kv.get(TICKETS).await.unwrap().unwrap().mod_revision, first.mod_revision, "nothing is due");
        kv.put(TICKETS, b"broken".to_vec(), None).await.unwrap();
        rotate(&kv, &keys).await.unwrap();
        assert_eq!(open(&kv.get(TICKETS).await.unwrap().unwrap().value, &keys).unwrap().keys.len(), 1);
    }
}
