//! What every installation must hold, whatever is chosen.

use super::*;
use crate::access::{OF_RUNNERS, RULES};
use serde_json::json;
use std::collections::BTreeSet;

fn plain() -> Installation {
    Installation {
        namespace: "arco-system".into(),
        image: "registry.test/arco:1".into(),
        image_pull_secret: String::new(),
        domain: "apps.test".into(),
        gateway: Exposure::LoadBalancer,
        public_ports: [80, 443],
        stream_ports: Vec::new(),
        replicas: None,
        registry: String::new(),
        registry_node_port: 0,
        containerd_hosts: Some("/etc/containerd/certs.d".into()),
        node_logs: None,
        storage_class: String::new(),
        local_storage: None,
        server_node: String::new(),
        volume_gb: 20,
        namespace_prefix: "arco-".into(),
        route_class: String::new(),
        user_namespaces: true,
        stores: Stores::default(),
        credentials: Vec::new(),
        further: std::collections::BTreeMap::new(),
    }
}

fn shared() -> Installation {
    Installation {
        image_pull_secret: "login".into(),
        gateway: Exposure::NodePort,
        registry: "registry.test:443".into(),
        registry_node_port: 30500,
        containerd_hosts: None,
        storage_class: "fast \"disks\"".into(),
        stores: Stores {
            metadata: "postgres://arco@db.test:5432/arco".into(),
            coordination: "etcd://a:2379,b:2379".into(),
            blobs: "s3://arco/x?endpoint=https://s3.test&region=r".into(),
            secret: "stores".into(),
        },
        credentials: vec!["metadata-password".into(), "coordination-ca.pem".into(), "secret.key".into()],
        ..plain()
    }
}

/// Each role in pods of its own.
fn spread() -> Installation {
    Installation {
        public_ports: [30080, 443],
        replicas: Some(Replicas { builder: 3, ..Replicas::default() }),
        node_logs: Some("/var/log/pods".into()),
        route_class: "arco".into(),
        ..shared()
    }
}

/// All pod templates of an installation.
fn pods(documents: &[Value]) -> Vec<&Value> {
    documents.iter().map(|it| &it["spec"]["template"]["spec"]).filter(|it| !it.is_null()).collect()
}

fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|it| texts(it, found)),
        Value::Object(fields) => fields.values().for_each(|it| texts(it, found)),
        _ => {}
    }
}

#[test]
fn the_settings_are_settings() {
    let folder = tempfile::tempdir().unwrap();
    for it in [plain(), shared(), spread()] {
        let file = folder.path().join("arco.toml");
        std::fs::write(&file, it.settings()).unwrap();
        let config = arco_config::from_sources(Some(&file), std::iter::empty(), Vec::new()).unwrap();
        assert_eq!(config.server.domain, "apps.test");
        assert_eq!(config.kubernetes.registry, it.registry_host());
        assert_eq!(config.kubernetes.storage_class, it.storage_class);
        assert_eq!(config.store.metadata, it.stores.metadata);
        assert_eq!(config.store.secret_key.as_os_str().is_empty(), it.credentials.is_empty());
        assert_eq!(config.gateway.http_listen.port(), objects::HTTP_PORT);
        let shown = [config.gateway.http_port(1), config.gateway.https_port(1)];
        assert_eq!(shown, it.public_ports);
        let spread = it.replicas.is_some();
        assert_eq!(config.server.leader_lock == arco_config::LeaderLockPlace::Kubernetes, spread);
        assert_eq!(config.server.peer_listen.ip().is_unspecified(), spread, "others reach it on its pod's address");
    }
}

#[test]
fn rights_have_no_wildcard_and_reach_no_further_than_the_table() {
    let documents = manifest(&plain());
    let roles: Vec<&Value> =
        documents.iter().filter(|it| it["kind"] == "ClusterRole" || it["kind"] == "Role").collect();
    assert_eq!(roles.len(), 1);
    assert_eq!(roles[0]["rules"].as_array().unwrap().len(), RULES.len());
    let mut found = Vec::new();
    texts(&roles[0]["rules"], &mut found);
    assert!(found.iter().all(|it| it != "*" && it != "escalate" && it != "bind" && it != "impersonate"), "{found:?}");
}

#[test]
fn every_pod_is_as_confined_as_it_can_be() {
    for it in [plain(), shared(), spread(), local(), on_a_node()] {
        let documents = manifest(&it);
        let all = pods(&documents);
        let servers = if it.replicas.is_some() { 5 } else { 1 } + usize::from(!it.server_node.is_empty());
        assert_eq!(all.len(), servers + [&it.containerd_hosts, &it.node_logs].into_iter().flatten().count());
        for pod in all {
            assert_eq!(pod["automountServiceAccountToken"], false);
            for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[forbidden].is_null(), "{forbidden}");
            }
            for container in pod["containers"].as_array().unwrap() {
                let confined = &container["securityContext"];
                assert_eq!(confined["allowPrivilegeEscalation"], false);
                assert_eq!(confined["readOnlyRootFilesystem"], true);
                assert_eq!(confined["capabilities"]["drop"][0], "ALL");
                assert!(confined["privileged"].is_null());
                assert_eq!(container["terminationMessagePolicy"], "FallbackToLogsOnError", "why it ended is seen");
                assert!(!container["resources"]["limits"]["memory"].is_null());
            }
        }
        for server in documents.iter().filter(|it| it["kind"] == "StatefulSet" || it["kind"] == "Deployment") {
            let pod = &server["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert!(pod["volumes"].as_array().unwrap().iter().all(|it| it["hostPath"].is_null()));
        }
    }
}

#[test]
fn containerds_settings_are_read_and_nothing_else_of_the_node() {
    for (hosts, settings) in [
        ("/etc/containerd/certs.d", "/etc/containerd"),
        ("/var/lib/rancher/k3s/agent/etc/containerd/certs.d", "/var/lib/rancher/k3s/agent/etc/containerd"),
        ("/srv/hosts", "/etc/containerd"),
        ("/hosts", "/etc/containerd"),
        ("/containerd", "/etc/containerd"),
    ] {
        let documents = manifest(&Installation { containerd_hosts: Some(hosts.into()), ..plain() });
        let pod = &of_kind(&documents, "DaemonSet")[0]["spec"]["template"]["spec"];
        let paths: Vec<&Value> = pod["volumes"].as_array().unwrap().iter().map(|it| &it["hostPath"]["path"]).collect();
        assert_eq!(paths, [hosts, settings], "{hosts}");
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let writable: Vec<&Value> = mounts.iter().filter(|it| it["readOnly"] != true).map(|it| &it["name"]).collect();
        assert_eq!(writable, ["hosts"], "{hosts}");
        let update = &of_kind(&documents, "DaemonSet")[0]["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!(update["maxUnavailable"], 0, "who comes takes the file over from whom leaves");
    }
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|it| it["kind"] == kind).collect()
}

fn name(document: &Value) -> &str {
    document["metadata"]["name"].as_str().unwrap()
}

#[test]
fn each_role_runs_in_one_part_and_may_only_what_it_does() {
    let documents = manifest(&spread());
    let workloads: Vec<&Value> =
        documents.iter().filter(|it| it["kind"] == "StatefulSet" || it["kind"] == "Deployment").collect();
    let mut roles = Vec::new();
    let mut shown = Vec::new();
    for it in &workloads {
        let pod = &it["spec"]["template"]["spec"];
        let args: Vec<_> = pod["containers"][0]["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(args[3], "--role");
        roles.extend(args[4].split(',').filter(|it| *it != "console").map(str::to_owned));
        assert!(args[4].ends_with("console"), "its health is asked there");
        let token = pod["volumes"].as_array().unwrap().iter().any(|it| it["name"] == "account");
        let account = pod["serviceAccountName"].as_str().unwrap();
        shown.push(format!("{} {} {} token={token} account={account}", it["kind"], name(it), it["spec"]["replicas"]));
    }
    roles.sort_unstable();
    assert_eq!(roles, ["api", "builder", "controller", "eventlog", "gateway", "registry"]);
    assert_eq!(
        shown,
        [
            "\"Deployment\" arco-api 2 token=true account=arco-api",
            "\"Deployment\" arco-builder 3 token=true account=arco-builder",
            "\"Deployment\" arco-controller 2 token=true account=arco-controller",
            "\"StatefulSet\" arco-eventlog 2 token=false account=arco-eventlog",
            "\"Deployment\" arco-gateway 2 token=false account=arco-gateway",
        ]
    );
    let mut bound = Vec::new();
    for it in documents.iter().filter(|it| it["kind"] == "ClusterRoleBinding" || it["kind"] == "RoleBinding") {
        for subject in it["subjects"].as_array().unwrap() {
            bound.push(format!("{} {}", subject["name"].as_str().unwrap(), it["roleRef"]["name"].as_str().unwrap()));
        }
    }
    assert_eq!(
        bound,
        [
            "arco-controller arco-system",
            "arco-api arco-system-runners",
            "arco-builder arco-system-runners",
            "arco-controller arco-controller",
        ]
    );
    // Who only runs programs may nothing that the controller may not, and changes no workload.
    for runner in OF_RUNNERS {
        for resource in runner.resources {
            let whole = RULES.iter().find(|it| it.group == runner.group && it.resources.contains(resource)).unwrap();
            assert!(runner.verbs.iter().all(|it| whole.verbs.contains(it)), "{resource}");
            let changes = runner.verbs.iter().any(|it| !["get", "list", "watch"].contains(it));
            assert!(!changes || !["deployments", "statefulsets", "services", "jobs"].contains(resource), "{resource}");
        }
    }
    let leases = of_kind(&documents, "Role")[0];
    assert_eq!(leases["rules"][1]["resourceNames"], serde_json::json!(["arco-controller"]), "the name in the server");
}

#[test]
fn what_reads_output_on_nodes_sees_that_and_nothing_else() {
    let it = spread();
    let documents = manifest(&it);
    let reader = of_kind(&documents, "DaemonSet")[0];
    assert_eq!(reader["metadata"]["namespace"], "arco-system-nodes");
    let pod = &reader["spec"]["template"]["spec"];
    assert!(pod["serviceAccountName"].is_null(), "it has no account");
    let volumes = pod["volumes"].as_array().unwrap();
    assert_eq!(volumes[0]["hostPath"]["path"], "/var/log/pods");
    assert_eq!(volumes[1]["secret"]["secretName"], NODE_CREDENTIALS);
    assert_eq!(volumes.len(), 2);
    let container = &pod["containers"][0];
    assert!(container["volumeMounts"].as_array().unwrap().iter().all(|it| it["readOnly"] == true));
    let peers = documents.iter().find(|it| it["kind"] == "NetworkPolicy").unwrap()["spec"]["ingress"][2].clone();
    let from = &peers["from"][1];
    assert_eq!(from["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "arco-system-nodes");
    assert_eq!(from["podSelector"]["matchLabels"], reader["spec"]["selector"]["matchLabels"]);
    let service = documents.iter().find(|it| it["kind"] == "Service" && name(it) == "arco-api").unwrap();
    let port = service["spec"]["ports"].as_array().unwrap().iter().find(|it| it["name"] == "peers").unwrap();
    let args: Vec<_> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let at = args.iter().position(|it| *it == "--servers").unwrap();
    assert_eq!(args[at + 1], format!("arco-api.arco-system.svc:{}", port["port"]));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("arco.toml"), it.settings()).unwrap();
    let file = folder.path().join("arco.toml");
    let config = arco_config::from_sources(Some(&file), std::iter::empty(), Vec::new()).unwrap();
    assert_eq!(config.kubernetes.node_namespace, "arco-system-nodes");
}

/// With volumes of the nodes' folders.
fn local() -> Installation {
    let folder = Some("/disk/volumes".into());
    Installation { storage_class: String::new(), node_logs: None, local_storage: folder, ..spread() }
}

#[test]
fn local_storage_has_a_class_rights_a_namespace_and_settings() {
    let it = local();
    let documents = manifest(&it);
    let wanted = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "arco-local", "labels": objects::labels("nodes") },
        "provisioner": "arco.internal/local",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": false,
    });
    assert_eq!(of_kind(&documents, "StorageClass"), [&wanted]);
    let nodes = of_kind(&documents, "Namespace").into_iter().find(|it| name(it) == "arco-system-nodes").unwrap();
    assert_eq!(nodes["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    let keeper = of_kind(&documents, "StatefulSet")[0];
    assert_eq!(keeper["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"], "arco-local");
    let volumes = |it: &Installation| {
        let mut rules = Vec::new();
        of_kind(&manifest(it), "ClusterRole").iter().for_each(|role| texts(&role["rules"], &mut rules));
        rules.iter().filter(|it| *it == "persistentvolumes").count()
    };
    assert_eq!((volumes(&it), volumes(&spread())), (1, 0), "the controller alone, and only then");

    let folder = tempfile::tempdir().unwrap();
    let read = |it: &Installation| {
        let file = folder.path().join("arco.toml");
        std::fs::write(&file, it.settings()).unwrap();
        arco_config::from_sources(Some(&file), std::iter::empty(), Vec::new()).unwrap().kubernetes
    };
    let config = read(&it);
    assert_eq!((config.storage_class.as_str(), config.local_storage_class.as_str()), ("arco-local", "arco-local"));
    assert_eq!(config.local_storage_folder, std::path::Path::new("/disk/volumes"));
    assert_eq!(
        (config.local_storage_namespace.as_str(), &config.local_storage_image),
        ("arco-system-nodes", &it.image)
    );
    assert_eq!(config.local_storage_image_pull_secret, "login");
    let beside = read(&Installation { storage_class: "fast".into(), ..it });
    assert_eq!((beside.storage_class.as_str(), beside.local_storage_class.as_str()), ("fast", "arco-local"));
}

/// One server whose own volume is a folder, too.
fn on_a_node() -> Installation {
    Installation { local_storage: Some("/disk/volumes".into()), server_node: "n1".into(), ..plain() }
}

#[test]
fn one_server_has_its_own_volume_on_its_node_before_it_can_make_others() {
    let documents = manifest(&on_a_node());
    let volume = of_kind(&documents, "PersistentVolume")[0];
    let claim = &of_kind(&documents, "StatefulSet")[0]["spec"]["volumeClaimTemplates"][0];
    let wanted = json!({
        "capacity": claim["spec"]["resources"]["requests"],
        "accessModes": claim["spec"]["accessModes"],
        "volumeMode": "Filesystem",
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "claimRef": {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "arco-system", "name": "state-arco-0",
        },
        "local": { "path": "/disk/volumes/arco-system-state" },
        "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"] },
        ]}]}},
    });
    assert_eq!(volume["spec"], wanted);
    assert_eq!(claim["spec"]["storageClassName"], "", "made by nobody, bound to that one");
    let sets = of_kind(&documents, "DaemonSet");
    let makes = sets.iter().find(|it| name(it) == "arco-server-volume").unwrap();
    let pod = &makes["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"], json!({ "kubernetes.io/hostname": "n1" }));
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/disk/volumes");
    let args = json!(["cluster", "volume-folder", "make", "--stay", "--folder", "/volumes", "arco-system-state"]);
    assert_eq!(pod["containers"][0]["args"], args);
    for (other, sets) in [(local(), 0), (Installation { server_node: String::new(), ..on_a_node() }, 1)] {
        let documents = manifest(&other);
        let found = (of_kind(&documents, "PersistentVolume").len(), of_kind(&documents, "DaemonSet").len());
        assert_eq!(found, (0, sets));
    }
}

#[test]
fn the_whole_installation_with_parts() {
    insta::assert_json_snapshot!(manifest(&spread()));
}

#[test]
fn any_node_may_go_and_pods_leave_one_by_one() {
    let documents = manifest(&spread());
    let budgets = of_kind(&documents, "PodDisruptionBudget");
    let services = of_kind(&documents, "Service");
    for it in documents.iter().filter(|it| it["kind"] == "StatefulSet" || it["kind"] == "Deployment") {
        let labels = &it["spec"]["template"]["metadata"]["labels"];
        let chosen = |selector: &Value| {
            selector.as_object().is_some_and(|it| it.iter().all(|(key, value)| labels[key] == *value))
        };
        assert!(chosen(&it["spec"]["selector"]["matchLabels"]), "{}", name(it));
        let own = budgets.iter().filter(|it| chosen(&it["spec"]["selector"]["matchLabels"]));
        assert_eq!(own.clone().count(), 1, "{}", name(it));
        assert!(own.clone().all(|it| it["spec"]["maxUnavailable"] == 1));
        let pod = &it["spec"]["template"]["spec"];
        let apart = &pod["topologySpreadConstraints"][0];
        assert_eq!(
            (&apart["topologyKey"], &apart["whenUnsatisfiable"]),
            (&"kubernetes.io/hostname".into(), &"DoNotSchedule".into())
        );
        assert!(chosen(&apart["labelSelector"]["matchLabels"]), "{}", name(it));
        let container = &pod["containers"][0];
        for (probe, kind) in
            [("readinessProbe", "httpGet"), ("startupProbe", "httpGet"), ("livenessProbe", "tcpSocket")]
        {
            assert_eq!(container[probe][kind]["port"], "console", "{}", name(it));
        }
        // Told to stop once nothing comes any more, with time for what is open.
        let leaving: u64 = container["lifecycle"]["preStop"]["exec"]["command"][3].as_str().unwrap().parse().unwrap();
        let drain = arco_config::ServerConfig::default().shutdown_timeout_ms / 1000;
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > leaving + drain);
        let ports: Vec<_> = container["ports"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
        for service in services.iter().filter(|it| chosen(&it["spec"]["selector"])) {
            for port in service["spec"]["ports"].as_array().unwrap() {
                let target = if port["targetPort"].is_null() { &port["name"] } else { &port["targetPort"] };
                assert!(ports.contains(target), "{} asks {} for {target}", name(service), name(it));
            }
        }
    }
    for (service, part) in [("arco-gateway", "gateway"), ("arco-api", "api"), ("arco-registry", "api")] {
        let found = services.iter().find(|it| name(it) == service).unwrap();
        assert_eq!(found["spec"]["selector"]["app.kubernetes.io/component"], part);
    }
}

#[test]
fn the_service_of_the_gateway_has_the_ports_that_people_see() {
    for (how, ports, wanted) in [
        (Exposure::LoadBalancer, [80, 443], [(80, None), (443, None)]),
        (Exposure::LoadBalancer, [30080, 8443], [(30080, None), (8443, None)]),
        (Exposure::NodePort, [80, 443], [(80, None), (443, None)]),
        (Exposure::NodePort, [30080, 30443], [(30080, Some(30080)), (30443, Some(30443))]),
    ] {
        let documents = manifest(&Installation { gateway: how, public_ports: ports, ..plain() });
        let gateway = documents.iter().find(|it| it["kind"] == "Service" && name(it) == "arco-gateway").unwrap();
        let port = |it: &Value| (it["port"].as_u64().unwrap(), it["nodePort"].as_u64());
        let found: Vec<_> = gateway["spec"]["ports"].as_array().unwrap().iter().map(port).collect();
        assert_eq!(found, wanted, "{how:?} {ports:?}");
    }
}

#[test]
fn documents_lie_in_a_namespace_that_came_before_and_are_there_once() {
    for it in [plain(), shared(), spread(), local(), on_a_node()] {
        let mut namespaces = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for document in manifest(&it) {
            let (kind, name) = (
                document["kind"].as_str().unwrap().to_owned(),
                document["metadata"]["name"].as_str().unwrap().to_owned(),
            );
            let namespace = document["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
            assert!(namespace.is_empty() || namespaces.contains(&namespace), "{kind} {name}");
            assert_eq!(document["metadata"]["labels"]["app.kubernetes.io/name"], "arco", "{kind} {name}");
            assert!(seen.insert((kind.clone(), namespace, name.clone())), "{kind} {name} twice");
            if kind == "Namespace" {
                namespaces.insert(name);
            }
        }
    }
}

#[test]
fn changed_settings_start_the_server_anew() {
    let template = |it: &Installation| {
        let documents = manifest(it);
        documents.iter().find(|it| it["kind"] == "StatefulSet").unwrap()["spec"]["template"].clone()
    };
    let other = Installation { domain: "other.test".into(), ..plain() };
    assert_eq!(template(&plain()), template(&plain()));
    assert_ne!(template(&plain()), template(&other));
}

#[test]
fn texts_are_quoted_as_toml_wants_them() {
    for text in ["", "a\"b\\c", "x\n[server]\ndomain = \"y\"", "\u{7f}ü"] {
        let table: toml::Table = format!("v = {}", toml_text(text)).parse().unwrap();
        assert_eq!(table["v"].as_str(), Some(text));
    }
}

#[test]
fn ports_without_http_are_opened_by_service_and_policy() {
    for base in [plain(), spread()] {
        let documents = manifest(&Installation { stream_ports: vec![("TCP", 10432), ("UDP", 10432)], ..base });
        let of = |kind: &str, name: &str| {
            let found = documents.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
            found.unwrap_or_else(|| panic!("{kind} {name}"))["spec"].clone()
        };
        let ports = of("Service", "arco-gateway")["ports"].clone();
        let wanted = json!({ "name": "udp-10432", "protocol": "UDP", "port": 10432, "targetPort": 10432 });
        assert!(ports.as_array().unwrap().contains(&wanted), "{ports}");
        let open = of("NetworkPolicy", "arco")["ingress"][0]["ports"].clone();
        for protocol in ["TCP", "UDP"] {
            assert!(open.as_array().unwrap().contains(&json!({ "protocol": protocol, "port": 10432 })), "{open}");
        }
    }
}
