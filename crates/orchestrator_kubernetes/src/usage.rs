//! What instances use now, from the statistics of their node (the kubelet's summary, which needs no further server).
//!
//! One answer of a node serves everybody who asks within a second.

use crate::cluster::failed;
use crate::driver::Inner;
use crate::seen::Whereabouts;
use arco_orchestrator::{Error, Usage};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);

type Answer = (Instant, BTreeMap<(String, String), Usage>);

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
    let of_node = inner.nodes.0.lock().await.entry(at.node.clone()).or_default().clone();
    let mut answer = of_node.lock().await;
    if answer.as_ref().is_none_or(|it| it.0.elapsed() > FRESH) {
        *answer = Some((Instant::now(), ask(inner, &at.node).await?));
    }
    let pod = (at.namespace.clone(), at.pod.clone());
    // A pod younger than the kubelet's last look has used nothing that is known.
    Ok(answer.as_ref().and_then(|it| it.1.get(&pod)).copied().unwrap_or_default())
}

async fn ask(inner: &Inner, node: &str) -> Result<BTreeMap<(String, String), Usage>, Error> {
    let step = || format!("ask node {node} what its instances use");
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let request = http::Request::get(path).body(Vec::new()).map_err(|it| Error::failed(step(), it))?;
    let text = inner.cluster().client.request_text(request).await.map_err(|it| failed(step(), &it))?;
    let summary: Summary = serde_json::from_str(&text).map_err(|it| Error::failed(step(), it))?;
    let usage = |it: &PodStats| Usage {
        cpu_ms: it.cpu.usage_core_nano_seconds / 1_000_000,
        memory_bytes: it.memory.working_set_bytes,
        pids: it.process_stats.process_count,
    };
    Ok(summary
        .pods
        .into_iter()
        .map(|it| {
            let usage = usage(&it);
            ((it.pod.namespace, it.pod.name), usage)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let text = r#"{"node":{},"pods":[{"podRef":{"name":"a","namespace":"n","uid":"u"},"cpu":{"usageCoreNanoSeconds":2000000},
            "memory":{"workingSetBytes":4096},"process_stats":{"process_count":3}},{"podRef":{"name":"b","namespace":"n"}}]}"#;
        let summary: Summary = serde_json::from_str(text).unwrap();
        assert_eq!(summary.pods[0].cpu.usage_core_nano_seconds, 2_000_000);
        assert_eq!((summary.pods[0].memory.working_set_bytes, summary.pods[0].process_stats.process_count), (4096, 3));
        assert_eq!(summary.pods[1].cpu.usage_core_nano_seconds, 0);
    }
}
