//! The lock of a leader on a Lease of Kubernetes.
//!
//! What must hold: clocks of machines are never compared. A Lease is over when it did not change for its whole duration
//! by the watcher's own clock; each change names the version that was read, so that of two that take it one fails.

use crate::cluster::{Cluster, words};
use crate::seen::convert::instant;
use arco_config::KubernetesConfig;
use arco_orchestrator::Error;
use arco_store::clock;
use arco_store::leader::{LeaderLock, LockError, Taken};
use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How often one who does not lead looks.
const LOOK: Duration = Duration::from_millis(500);

/// A Lease that one of several processes holds.
pub struct LeaseLock {
    api: Api<Lease>,
    name: String,
    me: String,
    life_s: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The Lease as we wrote it last, while it is ours.
    ours: Option<Lease>,
    /// Which version of another one's Lease was seen, and when first.
    seen: Option<(String, Instant)>,
}

impl LeaseLock {
    /// The Lease `name` in the namespace of the settings' credential, wanted by `me`, for `life_s` seconds at a time.
    pub async fn new(config: &KubernetesConfig, name: &str, me: &str, life_s: u32) -> Result<Self, Error> {
        let cluster = Cluster::connect(config).await?;
        let (api, state) = (Api::default_namespaced(cluster.client), Mutex::default());
        Ok(Self { api, name: name.to_owned(), me: me.to_owned(), life_s: life_s.max(1), state })
    }

    /// The Lease as it should be while it is ours.
    fn ours(&self, before: Option<Lease>) -> Lease {
        let now = micro_time();
        let mut lease = before.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            ..Lease::default()
        });
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.me) {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(self.life_s).ok();
        spec.renew_time = Some(now);
        lease
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        self.api.replace(&self.name, &PostParams::default(), lease).await
    }
}

fn micro_time() -> MicroTime {
    MicroTime(instant(clock::now()))
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|it| it.holder_identity.as_deref()).unwrap_or_default()
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn unavailable(step: &'static str) -> impl Fn(kube::Error) -> LockError {
    move |it| LockError::Unavailable { step, cause: words(&it) }
}

/// Whether it did not change for its whole duration.
fn is_over(spec: Option<&LeaseSpec>, unchanged: Duration) -> bool {
    let seconds = spec.and_then(|it| it.lease_duration_seconds).and_then(|it| u64::try_from(it).ok());
    unchanged >= Duration::from_secs(seconds.unwrap_or(0))
}

#[async_trait]
impl LeaderLock for LeaseLock {
    fn life(&self) -> Duration {
        Duration::from_secs(self.life_s.into())
    }

    async fn take(&self) -> Result<Taken, LockError> {
        let failed = unavailable("take the leader's Lease");
        let mut state = self.state.lock().await;
        state.ours = None;
        let found = self.api.get_opt(&self.name).await.map_err(&failed)?;
        if let Some(lease) = &found {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let by = holder(lease);
            let since = match &state.seen {
                Some((seen, since)) if *seen == version => *since,
                _ => Instant::now(),
            };
            state.seen = Some((version, since));
            if !by.is_empty() && by != self.me && !is_over(lease.spec.as_ref(), since.elapsed()) {
                return Ok(Taken::Held { by: by.to_owned() });
            }
        }
        let made = match found {
            Some(lease) => self.replace(&self.ours(Some(lease))).await,
            None => self.api.create(&PostParams::default(), &self.ours(None)).await,
        };
        match made {
            Ok(made) => {
                state.ours = Some(made);
                Ok(Taken::Ours)
            }
            Err(error) if is(&error, 409) => Ok(Taken::Held { by: String::new() }), // somebody was faster
            Err(error) => Err(failed(error)),
        }
    }

    async fn renew(&self) -> Result<(), LockError> {
        let failed = unavailable("renew the leader's Lease");
        let mut state = self.state.lock().await;
        let ours = state.ours.clone().ok_or(LockError::Lost)?;
        let renewed = match self.replace(&self.ours(Some(ours))).await {
            // The answer to our last write may have been lost, or somebody noted something on the Lease.
            Err(error) if is(&error, 409) => match self.api.get_opt(&self.name).await.map_err(&failed)? {
                Some(now) if holder(&now) == self.me => self.replace(&self.ours(Some(now))).await,
                _ => return Err(LockError::Lost),
            },
            other => other,
        };
        match renewed {
            Ok(lease) => {
                state.ours = Some(lease);
                Ok(())
            }
            Err(error) if is(&error, 404) || is(&error, 409) => Err(LockError::Lost),
            Err(error) => Err(failed(error)),
        }
    }

    async fn give_back(&self) -> Result<(), LockError> {
        let mut state = self.state.lock().await;
        let Some(mut ours) = state.ours.take() else { return Ok(()) };
        let spec = ours.spec.get_or_insert_default();
        (spec.holder_identity, spec.lease_duration_seconds) = (Some(String::new()), Some(1));
        match self.replace(&ours).await {
            Err(error) if !is(&error, 409) && !is(&error, 404) => {
                Err(unavailable("give the leader's Lease back")(error))
            }
            _ => Ok(()), // what is not ours any more is another one's
        }
    }

    async fn moved(&self) {
        tokio::time::sleep(LOOK.min(self.life())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_over_when_it_did_not_change_for_its_duration() {
        let spec = |seconds| LeaseSpec { lease_duration_seconds: seconds, ..LeaseSpec::default() };
        for (seconds, unchanged_ms, over) in
            [(Some(10), 9_999, false), (Some(10), 10_000, true), (None, 0, true), (Some(-1), 0, true)]
        {
            let found = is_over(Some(&spec(seconds)), Duration::from_millis(unchanged_ms));
            assert_eq!(found, over, "{seconds:?} {unchanged_ms}");
        }
    }
}
