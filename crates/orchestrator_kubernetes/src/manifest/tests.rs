//! What every installation must hold, whatever is chosen.

use super::*;
use crate::access::RULES;
use std::collections::BTreeSet;

fn plain() -> Installation {
    Installation {
        namespace: "arco-system".into(),
        image: "registry.test/arco:1".into(),
        image_pull_secret: String::new(),
        domain: "apps.test".into(),
        gateway: Exposure::LoadBalancer,
        registry: String::new(),
        registry_node_port: 0,
        containerd_hosts: Some("/etc/containerd/certs.d".into()),
        storage_class: String::new(),
        volume_gb: 20,
        namespace_prefix: "arco-".into(),
        route_class: String::new(),
        user_namespaces: true,
        stores: Stores::default(),
        credentials: Vec::new(),
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
    for it in [plain(), shared()] {
        let file = folder.path().join("arco.toml");
        std::fs::write(&file, it.settings()).unwrap();
        let config = arco_config::from_sources(Some(&file), std::iter::empty(), Vec::new()).unwrap();
        assert_eq!(config.server.domain, "apps.test");
        assert_eq!(config.kubernetes.registry, it.registry_host());
        assert_eq!(config.kubernetes.storage_class, it.storage_class);
        assert_eq!(config.store.metadata, it.stores.metadata);
        assert_eq!(config.store.secret_key.as_os_str().is_empty(), it.credentials.is_empty());
        assert_eq!(config.gateway.http_listen.port(), objects::HTTP_PORT);
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
    for it in [plain(), shared()] {
        let documents = manifest(&it);
        let all = pods(&documents);
        assert_eq!(all.len(), 1 + usize::from(it.containerd_hosts.is_some()));
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
                assert!(!container["resources"]["limits"]["memory"].is_null());
            }
        }
        let server = documents.iter().find(|it| it["kind"] == "StatefulSet").unwrap();
        let pod = &server["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert!(pod["volumes"].as_array().unwrap().iter().all(|it| it["hostPath"].is_null()));
    }
}

#[test]
fn documents_lie_in_a_namespace_that_came_before_and_are_there_once() {
    for it in [plain(), shared()] {
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
