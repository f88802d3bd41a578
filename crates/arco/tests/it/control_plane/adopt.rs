//! `arco adopt` from a namespace of a real cluster to components that run: shown without a change, made on command, and said
//! when they are there.

use super::{Cleanup, cluster};
use crate::behave::{EXECUTABLE, good};
use arco_testkit::{Platform, until};
use serde_json::{Value, json};

#[test]
fn workloads_are_shown_made_and_then_there() {
    let Some((cluster, kubeconfig)) = cluster() else { return };
    let name = format!("arco-it-adopt-{}", std::process::id());
    let namespace = format!("/api/v1/namespaces/{name}");
    let _cleanup = Cleanup(&cluster, vec![namespace.clone()]);
    cluster.apply(&namespace, &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
    let deployment = format!("/apis/apps/v1/namespaces/{name}/deployments/web");
    let labels = json!({ "app": "web" });
    let container = json!({
        "name": "web", "image": "nginx", "ports": [{ "containerPort": 80, "name": "http", "protocol": "TCP" }],
        "env": [
            { "name": "LEVEL", "value": "info" },
            { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
        ],
        "resources": { "limits": { "memory": "128Mi" } },
    });
    let document = |replicas: u32| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
            "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": {
                "metadata": { "labels": labels }, "spec": { "containers": [container] },
            }},
        })
    };
    cluster.apply(&deployment, &document(1));
    cluster.apply(
        &format!("{namespace}/services/web"),
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
            "spec": { "type": "LoadBalancer", "selector": labels,
                "ports": [{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" }] },
        }),
    );
    let before = cluster.get(&deployment)["spec"].clone();
    let mut platform = Platform::start(EXECUTABLE);
    let shown = ["adopt", "--namespace", &name, "--app", "shop", "--kubeconfig", &kubeconfig];
    let made = [&shown[..], &["--yes"]].concat();
    let count = |words: &[&str]| good(&platform, words)["items"].as_array().map(Vec::len);

    // Shown: the component with what it would not have; nothing is made.
    let found = good(&platform, &shown);
    let web = &found["components"]["web"];
    assert_eq!((&web["from"], &web["component"]["env"]), (&json!("Deployment/web"), &json!({ "LEVEL": "info" })));
    assert!(web["lost"].as_array().unwrap().iter().any(|it| it.as_str().unwrap().contains("`KEY`")), "{web}");
    assert_eq!((count(&["list"]), count(&["operations"])), (Some(0), Some(0)));

    // Made: it runs beside what it was made after, which stays as it was.
    let ended = good(&platform, &made);
    let operations: Vec<(&Value, &Value)> =
        ended.as_array().unwrap().iter().map(|it| (&it["component"], &it["status"])).collect();
    assert_eq!(operations, [(&json!("web"), &json!("succeeded"))]);
    until("the component answers", 60, || {
        platform.get("web.shop.test.localhost", "/").ok().filter(|it| it.body.contains("Welcome to nginx"))
    });
    assert_eq!(cluster.get(&deployment)["spec"], before);

    // Once more: it is there, and nothing is done.
    let again = platform.arco(&made);
    assert!(again.status == 0 && again.stdout.contains("already"), "{again:?}");
    assert_eq!(count(&["operations"]), Some(1));

    // Another one of that name is not put in its place.
    cluster.apply(&deployment, &document(3));
    let other = platform.arco(&[&made[..], &["-o", "json"]].concat());
    assert!(other.status == 6 && other.stdout.contains("\"exists\""), "{other:?}");
    assert_eq!(platform.status("shop/web")["replicas"], 1);
    good(&platform, &["delete", "shop", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
}
