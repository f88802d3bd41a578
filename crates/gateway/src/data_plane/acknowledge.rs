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
    use arco_store::kv::{Kv, KvLayer, MemoryKv};
    use async_trait::async_trait;
    use std::sync::Arc;

    /// A store that tells which lease was renewed last, and how often one after the other.
    struct Renewed {
        inner: MemoryKv,
        last: watch::Sender<(LeaseId, usize)>,
    }

    #[async_trait]
    impl KvLayer for Renewed {
        fn inner(&self) -> &dyn Kv {
            &self.inner
        }

        async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
            let ttl_s = self.inner.lease_keep_alive(lease).await?;
            self.last.send_modify(|it| *it = (lease, if it.0 == lease { it.1 + 1 } else { 1 }));
            Ok(ttl_s)
        }
    }

    /// It is listed for as long as its lease is renewed, which must not wait for a pause between changes.
    #[tokio::test]
    async fn a_gateway_stays_listed_while_its_routes_change_without_a_pause() {
        let last = watch::Sender::new((0, 0));
        let mut renewed = last.subscribe();
        let kv: SharedKv = Arc::new(Renewed { inner: MemoryKv::new(), last });
        let times = Times { lease_s: 600, renewal: Duration::from_millis(500) };
        let gateway = format!("{STATUS_PREFIX}g");
        let (applied, idle) = (watch::Sender::new(1_u64), Notify::new());
        let status = || GatewayStatus { applied_revision: *applied.borrow(), busy_draining: Vec::new() };
        let changes = async {
            let mut clock = tokio::time::interval(times.renewal / 25);
            loop {
                clock.tick().await;
                applied.send_modify(|it| *it += 1);
            }
        };
        let often = renewed.wait_for(|it| it.1 >= 3);
        tokio::select! {
            often = tokio::time::timeout(Duration::from_secs(60), often) => drop(often.expect("its lease is renewed")),
            () = acknowledge(&kv, &gateway, times, applied.subscribe(), &idle, status) => panic!("it goes on for ever"),
            () = changes => panic!("it goes on for ever"),
        }
        let told = kv.get(&gateway).await.unwrap().expect("it is listed");
        let told: GatewayStatus = serde_json::from_slice(&told.value).unwrap();
        assert!(told.applied_revision > 1, "nothing changed");
    }
}
