//! What the API server was asked, by its own audit log: one call makes an object, and a look that finds nothing to do asks
//! for none.

use super::on_fake_nodes;
use crate::cluster::place::{Place, kubeconfig};
use arco_orchestrator::contract::{in_time, plan, reached};
use arco_orchestrator::{Orchestrator as _, Removal};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The audit log of a cluster that `tests/kubernetes/cluster.py` made.
fn audit_log() -> Option<PathBuf> {
    let log = kubeconfig()?.parent()?.join("log/audit.log");
    if !log.exists() {
        eprintln!("SKIPPED: only a cluster of tests/kubernetes/cluster.py has an audit log to read");
        return None;
    }
    Some(log)
}

/// Calls about objects in the namespace of a test, as `VERB RESOURCE/NAME`; not those of fake nodes, reads of output, and
/// what is of the tenant, nor those that a server without time for them answered with a request to come again.
fn calls(log: &Path, namespace: &str) -> Vec<String> {
    let text = std::fs::read(log).unwrap();
    let whole = text.iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
    let lines = text[..whole].split(|it| *it == b'\n').filter(|it| !it.is_empty());
    let call = |line: &[u8]| {
        let event: Value = serde_json::from_slice(line).unwrap();
        let (about, word) = (&event["objectRef"], |of: &Value| of.as_str().unwrap_or_default().to_owned());
        let (name, resource) = (word(&about["name"]), word(&about["resource"]));
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        let counts = word(&about["namespace"]) == namespace
            && code != 429
            && code < 500
            && !["kubetest/", "fake-node/"].iter().any(|it| word(&event["userAgent"]).starts_with(it))
            && word(&about["subresource"]) != "log"
            && resource != "namespaces"
            && name != "arco" // the tenant's own
            && !name.starts_with("arco-");
        counts.then(|| format!("{} {resource}/{name}", word(&event["verb"])))
    };
    lines.filter_map(call).collect()
}

/// The calls until now: a call of our own ends them.
async fn calls_until(log: &Path, place: &Place, mark: &str) -> Vec<String> {
    let marks: Api<ConfigMap> = place.api();
    let object = serde_json::from_value(json!({ "metadata": { "name": mark } })).unwrap();
    marks.create(&PostParams::default(), &object).await.unwrap();
    let deadline = Instant::now() + in_time(Duration::from_secs(120));
    loop {
        let mut found = calls(log, &place.namespace());
        if found.iter().any(|it| it.ends_with(&format!(" configmaps/{mark}"))) {
            found.retain(|it| !it.contains(" configmaps/"));
            return found;
        }
        assert!(Instant::now() < deadline, "the audit log does not have our own call: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await; // the pace of looking
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_makes_an_object_and_a_look_without_a_change_makes_none() {
    on_fake_nodes(|place| async move {
        let Some(log) = audit_log() else { return };
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        asked.replicas = 2;
        driver.apply(&asked).await.unwrap();
        reached(driver, &asked).await;
        let mut made = calls_until(&log, &place, "made").await;
        made.sort();
        let kinds: Vec<&str> = made.iter().filter_map(|it| it.split('/').next()).collect();
        let wanted = ["deployments", "networkpolicies", "poddisruptionbudgets", "secrets", "services"];
        assert_eq!(kinds, wanted.map(|it| format!("patch {it}")), "{made:#?}");

        // The same plan again, and another process that takes over.
        driver.apply(&asked).await.unwrap();
        let again = place.restarted().await;
        again.apply(&asked).await.unwrap();
        reached(again.as_ref(), &asked).await;
        again.shutdown(false).await.unwrap();
        let mut later = calls_until(&log, &place, "later").await;
        later.sort();
        assert_eq!(later, made);
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}
