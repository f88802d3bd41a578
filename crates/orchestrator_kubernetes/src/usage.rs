//! What instances use now, from the statistics of their node (the kubelet's summary, which needs no further server).
//!
//! One answer of a node serves everybody who asks within a second.

use crate::cluster::failed;
use crate::driver::Inner;
use crate::seen::Whereabouts;
use arco_model::id::ComponentId;
use arco_orchestrator::{Error, Usage};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);

/// What is used on a node, by namespace and name.
#[derive(Default)]
struct OfNode {
    pods: BTreeMap<(String, String), Usage>,
    /// Claims of volumes, in bytes.
    claims: BTreeMap<(String, String), u64>,
}

type Answer = (Instant, Arc<OfNode>);

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 8;

/// How long a node has to tell how full its volumes are.
const ANSWER: Duration = Duration::from_secs(5);

/// Last answers of the nodes.
#[derive(Default)]
pub(crate) struct Nodes(Mutex<BTreeMap<String, Arc<Mutex<Option<Answer>>>>>);

#[derive(Deserialize)]
struct Summary {
    #[serde(default)]
    pods: Vec<PodStats>,
}

#[derive(Deserialize)]
struct PodStats {
    #[serde(rename = "podRef")]
    pod: PodRef,
    #[serde(default)]
    cpu: Cpu,
    #[serde(default)]
    memory: Memory,
    #[serde(default)]
    process_stats: Processes,
    #[serde(default)]
    volume: Vec<VolumeStats>,
}

#[derive(Deserialize)]
struct VolumeStats {
    #[serde(default, rename = "pvcRef")]
    claim: Option<PodRef>,
    /// Absent where the node's driver cannot tell.
    #[serde(default, rename = "usedBytes")]
    used_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct PodRef {
    name: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Cpu {
    usage_core_nano_seconds: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Memory {
    working_set_bytes: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Processes {
    process_count: u32,
}

/// What the pod uses.
pub(crate) async fn of(inner: &Inner, at: &Whereabouts) -> Result<Usage, Error> {
    if at.node.is_empty() {
        return Err(Error::Refused(format!("{} does not run on any node yet", at.pod)));
    }
    let pod = (at.namespace.clone(), at.pod.clone());
    // A pod younger than the kubelet's last look has used nothing that is known.
    Ok(of_node(inner, &at.node).await?.pods.get(&pod).copied().unwrap_or_default())
}

/// How much of each claim is used, in bytes, as far as nodes tell: those with instances, or with instances of one component.
pub(crate) async fn of_claims(inner: &Arc<Inner>, of: Option<&ComponentId>) -> BTreeMap<(String, String), u64> {
    let mut used = BTreeMap::new();
    let nodes = stream::iter(inner.seen().nodes(of)).map(|node| {
        let inner = inner.clone();
        async move {
            let answer = tokio::time::timeout(ANSWER, of_node(&inner, &node)).await;
            answer
                .unwrap_or_else(|_| Err(Error::failed(format!("ask node {node} what its volumes use"), "it is silent")))
        }
    });
    let mut answers = pin!(nodes.buffer_unordered(AT_ONCE));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => used.extend(answer.claims.iter().map(|(claim, used)| (claim.clone(), *used))),
            Err(Error::Refused(_)) => break, // this account may not ask nodes: the others say the same
            Err(error) => tracing::debug!(%error, "a node does not tell how full its volumes are"),
        }
    }
    used
}

async fn of_node(inner: &Inner, node: &str) -> Result<Arc<OfNode>, Error> {
    let of_node = inner.nodes.0.lock().await.entry(node.to_owned()).or_default().clone();
    let mut answer = of_node.lock().await;
    match &*answer {
        Some((at, known)) if at.elapsed() <= FRESH => Ok(known.clone()),
        _ => {
            let asked = Arc::new(ask(inner, node).await?);
            *answer = Some((Instant::now(), asked.clone()));
            Ok(asked)
        }
    }
}

async fn ask(inner: &Inner, node: &str) -> Result<OfNode, Error> {
    let step = || format!("ask node {node} what its instances use");
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let request = http::Request::get(path).body(Vec::new()).map_err(|it| Error::failed(step(), it))?;
    let text = inner.cluster().client.request_text(request).await.map_err(|it| failed(step(), &it))?;
    let summary: Summary = serde_json::from_str(&text).map_err(|it| Error::failed(step(), it))?;
    Ok(told(summary))
}

fn told(summary: Summary) -> OfNode {
    let usage = |it: &PodStats| Usage {
        cpu_ms: it.cpu.usage_core_nano_seconds / 1_000_000,
        memory_bytes: it.memory.working_set_bytes,
        pids: it.process_stats.process_count,
    };
    let mut found = OfNode::default();
    for it in summary.pods {
        for (claim, used) in it.volume.iter().filter_map(|it| Some((it.claim.as_ref()?, it.used_bytes?))) {
            found.claims.insert((claim.namespace.clone(), claim.name.clone()), used);
        }
        let usage = usage(&it);
        found.pods.insert((it.pod.namespace, it.pod.name), usage);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let text = r#"{"node":{},"pods":[{"podRef":{"name":"a","namespace":"n","uid":"u"},"cpu":{"usageCoreNanoSeconds":2000000},
            "memory":{"workingSetBytes":4096},"process_stats":{"process_count":3},"volume":[{"name":"data","usedBytes":7,"capacityBytes":9,
            "pvcRef":{"name":"c","namespace":"n"}},{"name":"token","usedBytes":1},
            {"name":"silent","pvcRef":{"name":"s","namespace":"n"}}]},{"podRef":{"name":"b","namespace":"n"}}]}"#;
        let summary: Summary = serde_json::from_str(text).unwrap();
        assert_eq!(summary.pods[0].cpu.usage_core_nano_seconds, 2_000_000);
        assert_eq!((summary.pods[0].memory.working_set_bytes, summary.pods[0].process_stats.process_count), (4096, 3));
        assert_eq!(summary.pods[1].cpu.usage_core_nano_seconds, 0);
        let told = told(summary);
        assert_eq!(
            told.claims,
            [(("n".to_owned(), "c".to_owned()), 7)].into(),
            "of what is no claim, or silent, nothing"
        );
        assert_eq!(told.pods.len(), 2);
    }
}
