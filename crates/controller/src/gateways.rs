//! What the gateways have applied, and which draining instances they have let go of.

use crate::Controller;
use arco_daemon::{BoxError, CancellationToken};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::traffic::{GatewayStatus, STATUS_PREFIX};
use arco_store::kv::{Event, KeyValue, Range};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Default)]
struct State {
    live: BTreeMap<Vec<u8>, GatewayStatus>,
    /// Draining instances and the KV revision that told the gateways so.
    draining: HashMap<InstanceId, u64>,
    /// Components that wait until a revision is applied everywhere.
    waiting: Vec<(ComponentId, u64)>,
}

/// The live gateways, by their leased status keys.
#[derive(Default)]
pub(crate) struct Gateways(Mutex<State>);

impl Gateways {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a live gateway.
    pub(crate) fn any(&self) -> bool {
        !self.lock().live.is_empty()
    }

    /// Whether every live gateway routes by `revision` or a later one.
    pub(crate) fn applied(&self, revision: u64) -> bool {
        self.lock().live.values().all(|it| it.applied_revision >= revision)
    }

    /// Looks at a component again when every gateway has applied `revision`.
    pub(crate) fn wait_for(&self, component: &ComponentId, revision: u64) {
        self.lock().waiting.push((component.clone(), revision));
    }

    /// Remembers instances that gateways were told to let go of.
    pub(crate) fn drain(&self, instance: &InstanceId, revision: u64) {
        self.lock().draining.entry(instance.clone()).or_insert(revision);
    }

    /// Instances that no gateway needs any more; each is told once.
    pub(crate) fn let_go(&self) -> Vec<InstanceId> {
        let mut state = self.lock();
        let State { live, draining, .. } = &mut *state;
        let free = |id: &InstanceId, revision: u64| {
            live.values().all(|it| it.applied_revision >= revision && !it.busy_draining.contains(id))
        };
        draining.extract_if(|id, revision| free(id, *revision)).map(|(id, _)| id).collect()
    }

    fn due(&self) -> Vec<ComponentId> {
        let mut state = self.lock();
        let State { live, waiting, .. } = &mut *state;
        let applied = |revision: u64| live.values().all(|it| it.applied_revision >= revision);
        waiting.extract_if(.., |(_, revision)| applied(*revision)).map(|(id, _)| id).collect()
    }

    /// Exactly these are live; at once, because in between none may seem to be gone.
    pub(crate) fn replace(&self, items: &[KeyValue]) {
        let fresh = Self::default();
        items.iter().for_each(|it| fresh.put(&it.key, &it.value));
        let live = std::mem::take(&mut fresh.lock().live);
        self.lock().live = live;
    }

    fn put(&self, key: &[u8], value: &[u8]) {
        match serde_json::from_slice(value) {
            Ok(status) => drop(self.lock().live.insert(key.to_vec(), status)),
            Err(error) => tracing::warn!(%error, "a gateway's status is not readable"),
        }
    }
}

impl Controller {
    /// Follows the gateways' statuses; starts again when the watch is cut.
    pub(crate) async fn follow_gateways(self, token: CancellationToken) -> Result<(), BoxError> {
        while !token.is_cancelled() {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                outcome = self.follow_gateways_once() => if let Err(error) = outcome {
                    tracing::warn!(%error, "following the gateways was cut, it starts again");
                    crate::pause(&token, Duration::from_millis(500)).await;
                },
            }
        }
        Ok(())
    }

    async fn follow_gateways_once(&self) -> Result<(), BoxError> {
        let now = self.deps.kv.list(STATUS_PREFIX).await?;
        self.gateways.replace(&now.items);
        self.gateways_changed().await;
        let range = Range::Prefix(STATUS_PREFIX.as_bytes().to_vec());
        let mut watch = self.deps.kv.watch(range, Some(now.revision + 1)).await?;
        while let Some(batch) = watch.next().await {
            for event in batch?.events {
                match event {
                    Event::Put(item) => self.gateways.put(&item.key, &item.value),
                    Event::Delete { key, .. } => drop(self.gateways.lock().live.remove(&key)),
                }
            }
            self.gateways_changed().await;
        }
        Ok(())
    }

    /// Ends what the gateways let go of, and wakes who waited for them.
    pub(crate) async fn gateways_changed(&self) {
        for instance in self.gateways.let_go() {
            if let Err(error) = self.deps.orchestrator.release(&instance).await {
                tracing::debug!(%instance, %error, "a draining instance was gone before it was released");
            }
        }
        for component in self.gateways.due() {
            self.work.look(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(applied_revision: u64, busy: &[&InstanceId]) -> Vec<u8> {
        let busy_draining = busy.iter().map(|it| (*it).clone()).collect();
        serde_json::to_vec(&GatewayStatus { applied_revision, busy_draining }).unwrap()
    }

    #[test]
    fn an_instance_goes_when_every_live_gateway_let_go() {
        let gateways = Gateways::default();
        let instance = InstanceId::from_parts(1, 1);
        gateways.put(b"a", &status(9, &[]));
        gateways.put(b"b", &status(10, &[&instance]));
        gateways.drain(&instance, 10);
        assert!(gateways.let_go().is_empty(), "a is behind, b is busy");
        gateways.put(b"a", &status(10, &[]));
        assert!(gateways.let_go().is_empty(), "b is busy");
        gateways.put(b"b", &status(10, &[]));
        assert_eq!(gateways.let_go(), [instance]);
        assert!(gateways.let_go().is_empty(), "told once");
    }

    #[test]
    fn those_of_a_list_are_live_and_no_others() {
        let gateways = Gateways::default();
        let item = |key: &[u8], value| {
            let key = key.to_vec();
            KeyValue { key, value, create_revision: 1, mod_revision: 1, version: 1, lease: None }
        };
        gateways.put(b"gone", &status(1, &[]));
        gateways.replace(&[item(b"a", status(9, &[])), item(b"b", b"no status".to_vec())]);
        assert!(gateways.any() && gateways.applied(9) && !gateways.applied(10));
        gateways.replace(&[]);
        assert!(!gateways.any());
    }

    #[test]
    fn without_gateways_nothing_is_waited_for() {
        let gateways = Gateways::default();
        gateways.drain(&InstanceId::from_parts(1, 1), 10);
        assert!(gateways.applied(99));
        assert_eq!(gateways.let_go().len(), 1);
    }
}
