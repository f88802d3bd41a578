//! Overlays, from tables: what is merged, and what is refused by which name.

use super::super::component;
use super::super::tests::{around, config, plan};
use super::*;
use arco_model::artifact::ImageConfig;
use std::collections::BTreeMap;

/// The pod of a component with an overlay.
fn pod(overlay: Value, config: &KubernetesConfig) -> Result<Value, String> {
    let mut plan = plan();
    plan.template.overlay = Some(overlay);
    let (image, hosts) = (ImageConfig::default(), BTreeMap::new());
    let rendered = component(&plan, &around(config, &image, &hosts))?;
    Ok(rendered.workload(1).body["spec"]["template"].clone())
}

#[test]
fn fields_are_merged_and_lists_by_their_keys() {
    let overlay = json!({
        "metadata": {"labels": {"team": "blue"}, "annotations": {"example.com/scrape": "true"}},
        "spec": {
            "enableServiceLinks": null,
            "hostname": "web",
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
            "containers": [
                {"name": "app", "env": [{"name": "MORE", "value": "1"}], "envFrom": [{"configMapRef": {"name": "mine"}}],
                 "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                 "resources": {"limits": {"nvidia.com/gpu": 1}},
                 "livenessProbe": {"httpGet": {"path": "/alive", "port": 8080}}},
                {"name": "proxy", "image": "registry.example:5000/proxy:1", "securityContext": {"runAsUser": 7},
                 "resources": {"limits": {"memory": "64Mi"}}}
            ]
        }
    });
    let pod = pod(overlay, &config()).unwrap();
    super::super::tests::known::<PodTemplateSpec>(&pod);
    let (labels, spec) = (&pod["metadata"]["labels"], &pod["spec"]);
    assert_eq!((&labels["team"], &labels[names::SERVING]), (&json!("blue"), &json!("true")));
    assert_eq!((spec.get("enableServiceLinks"), &spec["hostname"]), (None, &json!("web")));
    let names_of = |it: &Value| it.as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names_of(&spec["volumes"]), ["cache", "files", "scratch"]);
    assert_eq!(names_of(&spec["containers"]), ["app", "proxy"]);
    let app = &spec["containers"][0];
    assert_eq!(names_of(&app["env"]), ["ARCO_INSTANCE", "MORE"]);
    assert_eq!(app["volumeMounts"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&app["resources"]["limits"]["nvidia.com/gpu"], &app["resources"]["limits"]["memory"]),
        (&json!("1"), &json!("256Mi"))
    );
    assert_eq!(app["livenessProbe"]["httpGet"]["path"], "/alive");
    assert_eq!(app["readinessProbe"]["httpGet"]["path"], "/healthz", "what is not named stays");
    // The platform's variables come last: they win.
    assert_eq!(app["envFrom"][0]["configMapRef"]["name"], "mine");
    assert!(app["envFrom"][1]["secretRef"]["name"].is_string());
    let proxy = &spec["containers"][1]["securityContext"];
    assert_eq!((&proxy["allowPrivilegeEscalation"], &proxy["runAsUser"]), (&json!(false), &json!(7)));
    assert_eq!(proxy["capabilities"]["drop"], json!(["ALL"]));
}

#[test]
fn what_is_the_platforms_is_refused_by_its_path_whatever_the_operator_allows() {
    let mut any = config();
    any.any_overlay = true;
    any.node_selector = [("pool".to_owned(), "apps".to_owned())].into();
    let app = |fields: Value| {
        let mut app = json!({"name": "app"});
        app.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"spec": {"containers": [app]}})
    };
    for (overlay, wanted) in [
        (json!({"metadata": {"name": "x"}}), "`overlay.metadata.name`"),
        (json!({"metadata": {"labels": {"arco.internal/key": "x"}}}), "`overlay.metadata.labels.arco.internal/key`"),
        (json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}), "managed-by`"),
        (json!({"metadata": {"labels": null}}), "`overlay.metadata.labels` cannot be taken away"),
        (json!({"spec": {"containers": null}}), "`overlay.spec.containers` cannot be taken away"),
        (json!({"spec": {"securityContext": null}}), "`overlay.spec.securityContext` cannot be taken away"),
        (json!({"spec": {"restartPolicy": "Never"}}), "`overlay.spec.restartPolicy`"),
        (json!({"spec": {"nodeSelector": {"pool": "mine"}}}), "`overlay.spec.nodeSelector.pool`"),
        (json!({"spec": {"volumes": [{"name": "files", "emptyDir": {}}]}}), "`overlay.spec.volumes[files]`"),
        (json!({"spec": {"imagePullSecrets": [{"name": "arco-registry"}]}}), "[arco-registry]`"),
        (app(json!({"image": "x"})), "`overlay.spec.containers[app].image`"),
        (app(json!({"command": ["x"]})), "`overlay.spec.containers[app].command`"),
        (
            app(json!({"env": [{"name": "ARCO_INSTANCE", "value": "x"}]})),
            "`overlay.spec.containers[app].env[ARCO_INSTANCE]`",
        ),
        (app(json!({"volumeMounts": [{"name": "x", "mountPath": "/var/files"}]})), "volumeMounts[/var/files]`"),
        (app(json!({"resources": {"limits": {"memory": "9Gi"}}})), "resources.limits.memory`"),
        (json!({"spec": {"containers": [{"image": "x"}]}}), "`overlay.spec.containers`[0] has no `name`"),
        (json!({"spec": {"$patch": "replace"}}), "`overlay.spec.$patch`"),
        (json!({"spec": {"hostNam": "x"}}), "`overlay.spec.hostNam` is not a field"),
        (
            app(json!({"lifecycle": {"preStopp": {"exec": {"command": ["x"]}}}})),
            "[app].lifecycle.preStopp` is not a field",
        ),
        (json!({"spec": {"tolerations": "all"}}), "is not a part of a pod template"),
        // What a further container begins with stays, too.
        (
            json!({"spec": {"containers": [{"name": "x", "image": "x", "securityContext": null}]}}),
            "containers[x].securityContext` cannot be taken away",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "x", "image": "x"}, {"name": "x", "securityContext": null}]}}),
            "initContainers[x].securityContext` cannot be taken away",
        ),
    ] {
        let why = pod(overlay.clone(), &any).expect_err(&overlay.to_string());
        assert!(why.contains(wanted), "{overlay}: {why}");
    }
}

#[test]
fn what_loosens_confinement_needs_the_operator() {
    let mut any = config();
    any.any_overlay = true;
    let container = |fields: Value| {
        let mut it = json!({"name": "x", "image": "x"});
        it.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"spec": {"initContainers": [it]}})
    };
    for (overlay, path) in [
        (
            json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "a"}}}),
            "annotations.k8s.v1.cni.cncf.io/networks",
        ),
        (
            json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": {}}
            ]}}}}),
            "requiredDuringSchedulingIgnoredDuringExecution[0].namespaceSelector",
        ),
        (json!({"spec": {"hostNetwork": true}}), "spec.hostNetwork"),
        (json!({"spec": {"hostPID": true}}), "spec.hostPID"),
        (json!({"spec": {"hostUsers": true}}), "spec.hostUsers"),
        (json!({"spec": {"nodeName": "a"}}), "spec.nodeName"),
        (json!({"spec": {"priorityClassName": "a"}}), "spec.priorityClassName"),
        (json!({"spec": {"runtimeClassName": "a"}}), "spec.runtimeClassName"),
        (json!({"spec": {"serviceAccountName": "a"}}), "spec.serviceAccountName"),
        (json!({"spec": {"automountServiceAccountToken": true}}), "spec.automountServiceAccountToken"),
        (
            json!({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}),
            "spec.securityContext.seccompProfile",
        ),
        (json!({"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}}), "spec.volumes[h].hostPath"),
        (json!({"spec": {"volumes": [{"name": "s", "secret": {"secretName": "x"}}]}}), "spec.volumes[s].secret"),
        (json!({"spec": {"volumes": [{"name": "p", "projected": {"sources": []}}]}}), "spec.volumes[p].projected"),
        (container(json!({"securityContext": {"privileged": true}})), "[x].securityContext.privileged"),
        (
            container(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            "[x].securityContext.capabilities",
        ),
        (container(json!({"ports": [{"containerPort": 1, "hostPort": 1}]})), "[x].ports[1].hostPort"),
        (container(json!({"envFrom": [{"secretRef": {"name": "x"}}]})), "[x].envFrom[0].secretRef"),
        (
            container(json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}]})),
            "env[A].valueFrom.secretKeyRef",
        ),
        (
            container(json!({"livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 80}}})),
            "livenessProbe.httpGet.host",
        ),
    ] {
        let why = pod(overlay.clone(), &config()).expect_err(&overlay.to_string());
        assert!(why.contains(&format!("{path}`")) && why.contains("`kubernetes.any_overlay"), "{overlay}: {why}");
        pod(overlay.clone(), &any).unwrap_or_else(|why| panic!("{overlay}: {why}"));
    }
}

#[test]
fn a_further_container_says_how_much_memory_it_may_use() {
    let mut any = config();
    any.any_overlay = true;
    let with = |list: &str, containers: Value| json!({"spec": {list: containers}});
    let of = |resources: Value| json!([{"name": "x", "image": "x", "resources": resources}]);
    let limit = |memory: &str| of(json!({"limits": {"memory": memory}}));
    let taken_back = json!([
        {"name": "x", "image": "x", "resources": {"limits": {"memory": "64Mi"}}},
        {"name": "x", "resources": {"limits": {"memory": null}}}
    ]);
    for list in LISTS {
        for (containers, fits) in [
            (limit("64Mi"), true),
            (of(json!({"limits": {"memory": 67_108_864}})), true),
            (of(json!({})), false),
            (of(json!({"limits": {"cpu": "1"}})), false),
            (limit("1.5Gi"), false),
            (taken_back.clone(), false),
        ] {
            let overlay = with(list, containers);
            pod(overlay.clone(), &any).unwrap_or_else(|why| panic!("{overlay}: {why}"));
            match pod(overlay.clone(), &config()) {
                Ok(_) => assert!(fits, "{overlay}"),
                Err(why) => {
                    assert!(!fits && why.contains(&format!("{list}[x].resources.limits.memory`")), "{overlay}: {why}");
                }
            }
        }
    }
}

#[test]
fn a_one_off_run_takes_over_what_is_not_about_serving() {
    let overlay = json!({"metadata": {"labels": {"team": "blue"}}, "spec": {
        "hostname": "web", "initContainers": [{"name": "i"}], "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "app", "env": [], "livenessProbe": {}}, {"name": "proxy"}]
    }});
    let wanted = json!({"metadata": {"labels": {"team": "blue"}}, "spec": {
        "hostname": "web", "containers": [{"name": "app", "env": []}]
    }});
    assert_eq!(of_run(&overlay), wanted);
    assert_eq!(of_run(&json!({})), json!({}));
}
