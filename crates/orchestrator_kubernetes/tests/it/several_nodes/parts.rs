//! The installation with pods for each role on three nodes: they are spread, a drain waits for them, and what a silent node
//! had is made elsewhere. Where pods are put is shown, not that they serve: nodes are fake.

use super::{Nodes, eventually, restoring};
use crate::installation::{apply, cleared, spread};
use arco_orchestrator_kubernetes::manifest::{Installation, manifest};
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, EvictParams, ListParams};
use std::collections::BTreeSet;

/// Those that are made elsewhere at once, and how many of each there are; the logs of `eventlog` lie on a volume.
const MOVING: [(&str, usize); 4] = [("api", 2), ("builder", 3), ("controller", 2), ("gateway", 2)];

/// The pods of a part that serve and are to stay.
async fn of(pods: &Api<Pod>, part: &str) -> Vec<Pod> {
    let wanted = ListParams::default().labels(&format!("app.kubernetes.io/component={part}"));
    let is_ready = |it: &Pod| {
        let mut conditions = it.status.iter().flat_map(|it| it.conditions.iter().flatten());
        it.metadata.deletion_timestamp.is_none() && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
    };
    pods.list(&wanted).await.unwrap().items.into_iter().filter(is_ready).collect()
}

fn nodes_of(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().filter_map(|it| it.spec.as_ref()?.node_name.clone()).collect()
}

async fn lived(nodes: &Nodes, it: &Installation) {
    for document in &manifest(it) {
        apply(&nodes.client, document).await;
    }
    let pods: Api<Pod> = Api::namespaced(nodes.client.clone(), &it.namespace);
    for (part, count) in MOVING.into_iter().chain([("eventlog", 2)]) {
        eventually(&format!("{count} pods of {part}"), async || of(&pods, part).await.len() == count).await;
        let on = nodes_of(&of(&pods, part).await);
        assert_eq!(on.len(), count, "{part} is on {on:?}");
    }

    // A drain of both nodes of the API: the second pod stays until another one serves, which takes as long as it is told.
    let names: Vec<String> = of(&pods, "api").await.into_iter().filter_map(|it| it.metadata.name).collect();
    for node in &nodes.names {
        nodes.tell(node, "manual").await;
    }
    let evicting: Api<Pod> = Api::namespaced(nodes.asks_once.clone(), &it.namespace);
    let leaves = async |name: &str| evicting.evict(name, &EvictParams::default()).await;
    eventually("the first may leave", async || leaves(&names[0]).await.is_ok()).await;
    let kept = leaves(&names[1]).await.unwrap_err();
    assert!(matches!(&kept, kube::Error::Api(it) if it.code == 429), "the second must stay: {kept}");
    for node in &nodes.names {
        nodes.tell(node, "ready").await;
    }
    eventually("the second may leave when another one serves", async || leaves(&names[1]).await.is_ok()).await;
    eventually("both are made again", async || of(&pods, "api").await.len() == 2).await;

    let silent = nodes_of(&of(&pods, "builder").await).pop_first().expect("a builder is somewhere");
    nodes.tell(&silent, "silent").await;
    for (part, count) in MOVING {
        eventually(&format!("{part} does without {silent}"), async || {
            let pods = of(&pods, part).await;
            pods.len() == count && !nodes_of(&pods).contains(&silent)
        })
        .await;
    }
    nodes.tell(&silent, "ready").await;
    for (part, count) in MOVING {
        let wanted = ListParams::default().labels(&format!("app.kubernetes.io/component={part}"));
        eventually(&format!("{part} is there once"), async || pods.list(&wanted).await.unwrap().items.len() == count)
            .await;
    }
}

#[tokio::test]
async fn parts_are_spread_leave_one_by_one_and_are_made_elsewhere_when_a_node_is_lost() {
    let Some(nodes) = Nodes::found().await else { return };
    // A class of routes of its own: other tests remove theirs. No controller runs that could provide storage.
    let it = Installation { route_class: "arco-test-nodes".to_owned(), local_storage: None, ..spread() };

    let outcome = std::panic::AssertUnwindSafe(restoring(&nodes, Box::pin(lived(&nodes, &it)))).catch_unwind().await;
    cleared(&nodes.client, &it).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
