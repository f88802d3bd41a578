//! A node that is drained: it takes nothing new, and what runs there is asked to leave by the Eviction API, as `kubectl drain`
//! does. What must hold: every drain comes to its end, and no component loses more than one instance at a time by it.

use super::{Nodes, PATIENCE, eventually, on_three_nodes};
use crate::cluster::control_plane::of_components;
use arco_model::observed::{Observed, RolloutFacts};
use arco_model::plan::WorkloadPlan;
use arco_model::spec::{APP_CONTAINER, ComponentKind};
use arco_orchestrator::contract::{plan, reached, ready, until_within};
use arco_orchestrator::{Orchestrator as _, Removal};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, EvictParams, ListParams, Patch, PatchParams};
use serde_json::json;

impl Nodes {
    /// From now on a node takes new pods, or takes none.
    pub(super) async fn cordon(&self, name: &str, closed: bool) {
        let fields = Patch::Merge(json!({ "spec": { "unschedulable": closed.then_some(true) } }));
        self.api.patch(name, &PatchParams::default(), &fields).await.unwrap();
    }
}

/// Names of the pods of a component that are on a node and were not told to end.
async fn on(pods: &Api<Pod>, asked: &WorkloadPlan, node: &str) -> Vec<String> {
    let selector = format!("arco.internal/component={}", asked.component);
    let wanted = ListParams::default().labels(&selector).fields(&format!("spec.nodeName={node}"));
    let found = pods.list(&wanted).await.unwrap().items.into_iter().map(|it| it.metadata);
    found.filter(|it| it.deletion_timestamp.is_none()).filter_map(|it| it.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_comes_to_its_end_and_takes_one_instance_of_a_component_at_a_time() {
    on_three_nodes(|place, nodes| async move {
        let driver = place.driver.as_ref();
        let pods: Api<Pod> = place.api();
        let (here, others) = nodes.names.split_first().unwrap();
        let of = |name: &str, kind: ComponentKind, replicas: u32| {
            let mut asked = plan(place.image.clone(), &["serve"]);
            asked.name = name.parse().unwrap();
            (asked.kind, asked.replicas) = (kind, replicas);
            asked
        };
        let (web, single) = (of("web", ComponentKind::Stateless, 2), of("single", ComponentKind::Stateless, 1));
        let (db, ill) = (of("db", ComponentKind::Stateful, 2), of("ill", ComponentKind::Stateless, 2));

        // All of it runs on one node; one component is never ready there.
        for node in others {
            nodes.cordon(node, true).await;
        }
        for asked in [&web, &single, &db] {
            driver.apply(asked).await.unwrap();
            let seen = reached(driver, asked).await;
            assert!(seen.instances.iter().all(|it| it.node == *here), "{seen:#?}");
        }
        nodes.tell(here, "manual").await;
        driver.apply(&ill).await.unwrap();
        eventually("both of them are on the node", async || on(&pods, &ill, here).await.len() == 2).await;
        let running = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
        let container = json!({ "name": APP_CONTAINER, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": running });
        let status = json!({ "status": { "phase": "Running", "containerStatuses": [container] } });
        for name in on(&pods, &ill, here).await {
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        }

        // The drain begins; what comes to the other nodes is not ready yet.
        nodes.cordon(here, true).await;
        for node in others {
            nodes.cordon(node, false).await;
            nodes.tell(node, "manual").await;
        }
        let evicting: Api<Pod> = Api::namespaced(nodes.asks_once.clone(), &place.namespace());
        let leaves = async |name: &str| evicting.evict(name, &EvictParams::default()).await;
        for name in on(&pods, &ill, here).await {
            leaves(&name).await.expect("nobody misses one that does not serve");
        }
        let alone = on(&pods, &single, here).await.remove(0);
        leaves(&alone).await.expect("a single instance has no budget: its node could never be drained");
        let mut stay = Vec::new();
        for asked in [&web, &db] {
            let both = on(&pods, asked, here).await;
            eventually("the first may leave", async || leaves(&both[0]).await.is_ok()).await;
            let kept = leaves(&both[1]).await.unwrap_err();
            assert!(matches!(&kept, kube::Error::Api(it) if it.code == 429), "the second must stay: {kept}");
            assert_eq!(on(&pods, asked, here).await, both[1..]);
            stay.push(both[1].clone());
        }

        // When the first is ready elsewhere, the second may leave.
        for node in others {
            nodes.tell(node, "ready").await;
        }
        for name in &stay {
            eventually("the second may leave as well", async || leaves(name).await.is_ok()).await;
        }
        for asked in [&web, &single, &db] {
            let count = asked.replicas as usize;
            let has_moved = |it: &Observed| {
                let away = it.instances.iter().all(|it| it.node != *here);
                away && it.instances.len() == count && ready(it).len() == count && it.rollout == RolloutFacts::Done
            };
            let seen = until_within(PATIENCE, driver, &asked.component, "it runs elsewhere, once", has_moved).await;
            if asked.kind == ComponentKind::Stateful {
                let mut places: Vec<u32> = seen.instances.iter().map(|it| it.place).collect();
                places.sort_unstable();
                assert_eq!(places, [0, 1]);
            }
        }
        let there = ListParams::default().fields(&format!("spec.nodeName={here}"));
        eventually("nothing is left on the node", async || pods.list(&there).await.unwrap().items.is_empty()).await;
        for asked in [&web, &single, &db, &ill] {
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        }
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}
