//! What this gateway tells the store of itself: the revision that it routes by, and which instances that drain are busy here.
//!
//! What must hold: it is told on a lease that is renewed by the clock, also while something changes all the time. A gateway
//! that is not listed is not waited for, neither by who changes a route nor by who ends an instance.

use arco_model::traffic::GatewayStatus;
use arco_store::kv::{KvError, LeaseId, SharedKv};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Pause after the store did not take the status.
const PAUSE: Duration = Duration::from_millis(500);

/// How long it is believed, and how often it is told again.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// A gateway that does not renew its lease for so long counts as gone, in seconds.
    pub(super) lease_s: u64,
    /// Between two renewals, and how long the store may take for an answer.
    pub(super) renewal: Duration,
}

/// Those of every gateway.
pub(super) const TIMES: Times = Times { lease_s: 10, renewal: Duration::from_secs(3) };

/// Keeps the status in the store up to date, for ever; `applied` and `idle` tell when to look at it.
pub(super) async fn acknowledge(
    kv: &SharedKv,
    key: &str,
    times: Times,
    mut applied: watch::Receiver<u64>,
    idle: &Notify,
    status: impl Fn() -> GatewayStatus,
) {
    let mut lease = None;
    let mut told: Option<GatewayStatus> = None;
    // By the clock, not after a pause: where something changes all the time there is none.
    let mut renew_at = Instant::now() + times.renewal;
    loop {
        let telling = tell(kv, key, times.lease_s, &mut lease, &mut told, status());
        let telling = tokio::time::timeout(times.renewal, telling).await.unwrap_or_else(|_| {
            Err(KvError::Unavailable { step: "take the gateway's status", cause: "no answer".to_owned() })
        });
        if let Err(error) = telling {
            tracing::debug!(%error, "the store did not take the gateway's status");
            (lease, told) = (None, None);
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        tokio::select! {
            _ = applied.changed() => {}
            () = idle.notified() => {}
            () = tokio::time::sleep_until(renew_at) => {
                renew_at = Instant::now() + times.renewal;
                let Some(known) = lease else { continue };
                let renewed = tokio::time::timeout(times.renewal, kv.lease_keep_alive(known)).await;
                if !matches!(renewed, Ok(Ok(_))) {
                    (lease, told) = (None, None);
                }
            }
        }
    }
}

async fn tell(
    kv: &SharedKv,
    key: &str,
    lease_s: u64,
    lease: &mut Option<LeaseId>,
    told: &mut Option<GatewayStatus>,
    status: GatewayStatus,
) -> Result<(), KvError> {
    if told.as_ref() == Some(&status) {
        return Ok(());
    }
    let id = match *lease {
        Some(id) => id,
        None => *lease.insert(kv.lease_grant(lease_s).await?),
    };
    let value = serde_json::to_vec(&status).unwrap_or_default();
    kv.put(key, value, Some(id)).await?;
    *told = Some(status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::traffic::STATUS_PREFIX;
    use arco_store::kv::{Event, MemoryKv, Range};
    use std::sync::Arc;

    /// The store's own clock says when it is over: by a key whose lease nobody renews.
    #[tokio::test]
    async fn a_gateway_stays_listed_while_its_routes_change_without_a_pause() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let times = Times { lease_s: 5, renewal: Duration::from_millis(500) };
        let (gateway, witness) = (format!("{STATUS_PREFIX}g"), format!("{STATUS_PREFIX}witness"));
        let mut listed = kv.watch(Range::Prefix(STATUS_PREFIX.as_bytes().to_vec()), None).await.unwrap();
        let longer = kv.lease_grant(times.lease_s + 2).await.unwrap();
        kv.put(&witness, Vec::new(), Some(longer)).await.unwrap();
        let (applied, idle) = (watch::Sender::new(1_u64), Notify::new());
        let status = || GatewayStatus { applied_revision: *applied.borrow(), busy_draining: Vec::new() };
        let changes = async {
            let mut clock = tokio::time::interval(times.renewal / 25);
            loop {
                clock.tick().await;
                applied.send_modify(|it| *it += 1);
            }
        };
        let mut told = 0;
        let first_gone = async {
            loop {
                for event in listed.next().await.unwrap().unwrap().events {
                    match event {
                        Event::Put(it) => told += usize::from(it.key == gateway.as_bytes()),
                        Event::Delete { key, .. } => return String::from_utf8(key).unwrap(),
                    }
                }
            }
        };
        let gone = tokio::select! {
            gone = tokio::time::timeout(Duration::from_secs(60), first_gone) => gone.expect("a lease ends"),
            () = acknowledge(&kv, &gateway, times, applied.subscribe(), &idle, status) => panic!("it goes on for ever"),
            () = changes => panic!("it goes on for ever"),
        };
        assert_eq!(gone, witness, "the gateway was forgotten after it had told {told} changes");
        assert!(told > 1, "nothing changed");
        assert!(kv.get(&gateway).await.unwrap().is_some());
    }
}
