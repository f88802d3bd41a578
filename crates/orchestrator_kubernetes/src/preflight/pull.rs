//! Pulls one image on each node, by a pod that ends at once; the truth about how nodes reach and trust a registry.

use super::{Finding, PullTrial, is_usable};
use crate::cluster::words;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use std::collections::BTreeMap;

/// Nodes that pull at the same time.
const AT_ONCE: usize = 16;

/// What became of one pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Pulled {
    /// The image is there.
    Yes,
    /// It is not, and why.
    No(String),
}

/// One finding for the nodes that can, and one for each reason why others cannot.
pub(super) async fn pull(client: &Client, trial: &PullTrial) -> Vec<Finding> {
    let nodes = match Api::<Node>::all(client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => nodes.items.into_iter().filter(is_usable).filter_map(|it| it.metadata.name).collect::<Vec<_>>(),
        Err(error) => return vec![Finding::bad("registry", words(&error), "let this account list nodes")],
    };
    let tried = stream::iter(nodes).map(|node| async move {
        let pulled = on_node(client, trial, &node).await;
        (node, pulled)
    });
    let tried: Vec<(String, Pulled)> = tried.buffered(AT_ONCE).collect().await;
    judge(&trial.image, &tried)
}

fn judge(image: &str, tried: &[(String, Pulled)]) -> Vec<Finding> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, pulled) in tried {
        if let Pulled::No(why) = pulled {
            reasons.entry(why).or_default().push(node);
        }
    }
    let able = tried.len() - reasons.values().map(Vec::len).sum::<usize>();
    let advice = "`arco cluster manifest --trust-registry` lets containerd on the nodes find and trust our registry; for another \
                  registry give its login with `--image-pull-secret`, and its authority to the nodes";
    let mut findings: Vec<Finding> = reasons
        .iter()
        .map(|(why, nodes)| {
            Finding::bad("registry", format!("{} cannot pull {image}: {why}", nodes.join(", ")), advice)
        })
        .collect();
    if able > 0 {
        findings.insert(0, Finding::good("registry", format!("{able} of {} nodes pulled {image}", tried.len())));
    }
    findings
}

/// Tries it on one node; the pod is removed in any case.
async fn on_node(client: &Client, trial: &PullTrial, node: &str) -> Pulled {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &trial.namespace);
    let made = match pods.create(&PostParams::default(), &pod(trial, node)).await {
        Ok(made) => made.metadata.name.unwrap_or_default(),
        Err(error) => return Pulled::No(format!("the pod was refused: {}", words(&error))),
    };
    let decided = await_condition(pods.clone(), &made, |pod: Option<&Pod>| pod.is_none_or(|it| outcome(it).is_some()));
    let pulled = match tokio::time::timeout(trial.deadline, decided).await {
        Ok(Ok(Some(pod))) => outcome(&pod).unwrap_or(Pulled::No("the pod was removed by somebody".to_owned())),
        Ok(Ok(None)) => Pulled::No("the pod was removed by somebody".to_owned()),
        Ok(Err(error)) => Pulled::No(format!("the watch ended: {error}")),
        Err(_) => Pulled::No(format!("nothing was decided within {} s", trial.deadline.as_secs())),
    };
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    if let Err(error) = pods.delete(&made, &now).await {
        tracing::warn!(pod = made, error = words(&error), "a pod of the preflight stays");
    }
    pulled
}

fn pod(trial: &PullTrial, node: &str) -> Pod {
    let mut spec = json!({
        "nodeName": node,
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{ "operator": "Exists" }],
        "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "pull", "image": trial.image, "imagePullPolicy": "Always", "args": ["--version"],
            "resources": { "requests": { "cpu": "1m", "memory": "16Mi" }, "limits": { "memory": "128Mi" } },
            "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
        }],
    });
    if !trial.secret.is_empty() {
        spec["imagePullSecrets"] = json!([{ "name": trial.secret }]);
    }
    let meta = json!({ "generateName": "arco-preflight-", "labels": { "app.kubernetes.io/name": "arco", "app.kubernetes.io/component": "preflight" } });
    serde_json::from_value(json!({ "metadata": meta, "spec": spec })).unwrap_or_default()
}

/// What a pod's state says about the pull; nothing while it is under way. Whatever the program then does is no matter.
fn outcome(pod: &Pod) -> Option<Pulled> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed") && status.container_statuses.is_none() {
        let why = status.message.clone().or_else(|| status.reason.clone());
        return Some(Pulled::No(why.unwrap_or_else(|| "the node refused the pod".to_owned())));
    }
    let container = status.container_statuses.as_ref()?.first()?;
    let state = container.state.as_ref()?;
    if state.running.is_some() || state.terminated.is_some() {
        return Some(Pulled::Yes);
    }
    let waiting = state.waiting.as_ref()?;
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "RegistryUnavailable" => {
            let why = waiting.message.clone().or_else(|| waiting.reason.clone());
            Some(Pulled::No(why.unwrap_or_default()))
        }
        // The image is there; the rest is the container's own trouble.
        "CreateContainerError" | "RunContainerError" | "CrashLoopBackOff" => Some(Pulled::Yes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(reason: &str) -> Pod {
        let state = json!({ "waiting": { "reason": reason, "message": "why" } });
        let status =
            json!({ "name": "pull", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        serde_json::from_value(json!({ "status": { "phase": "Pending", "containerStatuses": [status] } })).unwrap()
    }

    #[test]
    fn a_pull_is_decided_by_what_the_node_says() {
        let why = || Some(Pulled::No("why".to_owned()));
        for (reason, wanted) in [
            ("ContainerCreating", None),
            ("ErrImagePull", why()),
            ("ImagePullBackOff", why()),
            ("InvalidImageName", why()),
            ("RunContainerError", Some(Pulled::Yes)),
        ] {
            assert_eq!(outcome(&waiting(reason)), wanted, "{reason}");
        }
        assert_eq!(outcome(&Pod::default()), None);
        let refused: Pod =
            serde_json::from_value(json!({ "status": { "phase": "Failed", "message": "full" } })).unwrap();
        assert_eq!(outcome(&refused), Some(Pulled::No("full".to_owned())));
    }

    #[test]
    fn nodes_with_the_same_trouble_are_named_together() {
        let no = |why: &str| Pulled::No(why.to_owned());
        let tried = [("a", no("x")), ("b", Pulled::Yes), ("c", no("x")), ("d", no("y"))]
            .map(|(node, it)| (node.to_owned(), it));
        let found: Vec<String> = judge("i", &tried).into_iter().map(|it| it.found).collect();
        assert_eq!(found, ["1 of 4 nodes pulled i", "a, c cannot pull i: x", "d cannot pull i: y"]);
    }

    #[test]
    fn the_pod_says_where_it_runs_and_with_which_login() {
        let trial = PullTrial {
            image: "r.test/a".into(),
            namespace: "n".into(),
            secret: "s".into(),
            deadline: std::time::Duration::ZERO,
        };
        let spec = pod(&trial, "node-7").spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("node-7"));
        assert_eq!(spec.containers[0].image.as_deref(), Some("r.test/a"));
        assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "s");
    }
}
