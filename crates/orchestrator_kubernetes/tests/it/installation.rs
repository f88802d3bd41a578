//! The manifest on a real API server: every document is accepted, its account may do what preflight asks for, and another
//! account is told what it lacks.

use crate::cluster::place::kubeconfig;
use arco_config::KubernetesConfig;
use arco_orchestrator_kubernetes::manifest::{Exposure, Installation, Replicas, Stores, manifest};
use arco_orchestrator_kubernetes::preflight::{Finding, Weight, preflight};
use arco_store::clock;
use futures_util::FutureExt as _;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod, ServiceAccount};
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, discovery};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

fn installation() -> Installation {
    let id = clock::fresh::<arco_model::id::InstanceId>();
    Installation {
        namespace: format!("arco-test-{}", &id.as_str()[10..]),
        image: "registry.test/arco:1".to_owned(),
        image_pull_secret: String::new(),
        domain: "apps.test".to_owned(),
        gateway: Exposure::NodePort,
        public_ports: [80, 443],
        stream_ports: vec![("TCP", 10432), ("UDP", 10432)],
        replicas: None,
        registry: String::new(),
        registry_node_port: 0,
        containerd_hosts: Some("/etc/containerd/certs.d".into()),
        node_logs: None,
        storage_class: String::new(),
        local_storage: None,
        server_node: String::new(),
        volume_gb: 1,
        namespace_prefix: format!("t{}-", &id.as_str()[10..]),
        route_class: "arco-test".to_owned(),
        user_namespaces: false,
        stores: Stores { secret: "stores".to_owned(), ..Stores::default() },
        credentials: vec!["metadata-password".to_owned()],
        further: std::collections::BTreeMap::new(),
    }
}

pub(crate) async fn connect(file: &Kubeconfig) -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = kube::Config::from_custom_kubeconfig(file.clone(), &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

pub(crate) async fn apply(client: &Client, document: &Value) {
    let (version, kind) = (document["apiVersion"].as_str().unwrap(), document["kind"].as_str().unwrap());
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let (resource, _) = discovery::pinned_kind(client, &GroupVersionKind::gvk(group, version, kind)).await.unwrap();
    let name = document["metadata"]["name"].as_str().unwrap();
    let api: Api<DynamicObject> = match document["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let mut how = PatchParams::apply("arco-test").force();
    how.field_validation = Some(ValidationDirective::Strict);
    let applied = api.patch(name, &how, &Patch::Apply(document)).await;
    applied.unwrap_or_else(|it| panic!("{kind} {name}: {it}"));
}

/// The kubeconfig of an account of the cluster.
async fn account(client: &Client, admin: &Kubeconfig, namespace: &str, name: &str) -> Kubeconfig {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();
    let token = answer.status.unwrap().token.unwrap();
    let mut file = admin.clone();
    for it in &mut file.auth_infos {
        it.auth_info = Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
    }
    file
}

async fn look(file: &Kubeconfig, folder: &Path, it: &Installation) -> Vec<Finding> {
    let path = folder.join("kubeconfig");
    std::fs::write(&path, serde_json::to_string(file).unwrap()).unwrap();
    let config = KubernetesConfig {
        kubeconfig: path,
        user_namespaces: false,
        route_class: "arco-test".to_owned(),
        local_storage_class: it.local_storage.as_ref().map(|_| local_class(it)).unwrap_or_default(),
        ..KubernetesConfig::default()
    };
    preflight(&config, None).await
}

/// The class that the manifest makes.
fn local_class(it: &Installation) -> String {
    format!("{}local", it.namespace_prefix)
}

fn weight(findings: &[Finding], check: &str) -> Weight {
    findings.iter().find(|it| it.check == check).unwrap_or_else(|| panic!("{check} is not in {findings:?}")).weight
}

async fn installed(client: &Client, admin: &Kubeconfig, it: &Installation) {
    let documents = manifest(it);
    for _ in 0..2 {
        // The second time is the upgrade: nothing that is applied may be refused as immutable.
        for document in &documents {
            apply(client, document).await;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let platform = account(client, admin, &it.namespace, "arco").await;
    until_permitted(&platform, folder.path(), it).await;
    let findings = look(&platform, folder.path(), it).await;
    for check in ["version", "clock", "APIs", "permissions"] {
        assert_eq!(weight(&findings, check), Weight::Good, "{findings:?}");
    }
    // Nodes of another cluster may be able to give user namespaces, which these settings do not ask for.
    assert_ne!(weight(&findings, "nodes"), Weight::Bad, "{findings:?}");
    let nobody = account(client, admin, &it.namespace, "default").await;
    let findings = look(&nobody, folder.path(), it).await;
    assert_eq!(weight(&findings, "permissions"), Weight::Bad);
    let text = &findings.iter().find(|it| it.check == "permissions").unwrap().found;
    assert!(text.contains("get/list/watch/create/patch/delete deployments.apps"), "{text}");

    let mut gone = admin.clone();
    for it in &mut gone.clusters {
        it.cluster.as_mut().unwrap().server = Some("https://127.0.0.1:1".to_owned());
    }
    let findings = look(&gone, folder.path(), it).await;
    assert!(findings.len() == 1 && findings[0].weight == Weight::Bad && !findings[0].advice.is_empty(), "{findings:?}");
}

/// Waits until an account has its rights: the API server follows its own rules by a watch.
async fn until_permitted(file: &Kubeconfig, folder: &Path, it: &Installation) {
    let is_good = |it: &Finding| it.check == "permissions" && it.weight == Weight::Good;
    until("the account may do what it needs", async || look(file, folder, it).await.iter().any(is_good)).await;
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The same with pods of its own for each role; its stores need not be there.
pub(crate) fn spread() -> Installation {
    let shared = |text: &str| text.to_owned();
    Installation {
        local_storage: Some("/var/lib/arco/volumes".into()),
        replicas: Some(Replicas { builder: 3, ..Replicas::default() }),
        stores: Stores {
            metadata: shared("postgres://arco@db.invalid/arco"),
            coordination: shared("etcd://etcd.invalid:2379"),
            blobs: shared("s3://arco/x?endpoint=https://s3.invalid&region=r"),
            secret: "stores".to_owned(),
        },
        credentials: vec!["secret.key".to_owned()],
        ..installation()
    }
}

/// Whether an account may do something, by the API server's own word.
async fn may(client: &Client, namespace: &str, verb: &str, group: &str, resource: &str, name: &str) -> bool {
    let (resource, part) = resource.split_once('/').map_or((resource, None), |(it, part)| (it, Some(part.to_owned())));
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: part,
        name: Some(name.to_owned()).filter(|it| !it.is_empty()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let asked = SelfSubjectAccessReview { spec, ..Default::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &asked).await.unwrap();
    answer.status.unwrap().allowed
}

async fn installed_in_parts(client: &Client, admin: &Kubeconfig, it: &Installation) {
    let documents = manifest(it);
    for _ in 0..2 {
        for document in &documents {
            apply(client, document).await;
        }
    }
    // Their pods pass what the namespace enforces: the cluster makes them.
    let pods: Api<Pod> = Api::namespaced(client.clone(), &it.namespace);
    for (part, count) in [("api", 2), ("builder", 3), ("controller", 2), ("eventlog", 2), ("gateway", 2)] {
        let wanted = ListParams::default().labels(&format!("app.kubernetes.io/component={part}"));
        until(&format!("{count} pods of {part}"), async || pods.list(&wanted).await.unwrap().items.len() == count)
            .await;
    }

    let folder = tempfile::tempdir().unwrap();
    let controller = account(client, admin, &it.namespace, "arco-controller").await;
    until_permitted(&controller, folder.path(), it).await;
    let (own, tenant) = (it.namespace.as_str(), "arco-default");
    let leases = "coordination.k8s.io";
    let rows = [
        ("arco-controller", own, "create", leases, "leases", "", true),
        ("arco-controller", own, "update", leases, "leases", "arco-controller", true),
        ("arco-controller", own, "update", leases, "leases", "another", false),
        ("arco-controller", tenant, "get", leases, "leases", "arco-controller", false),
        ("arco-controller", own, "create", "", "persistentvolumes", "", true),
        ("arco-controller", tenant, "create", "", "events", "", true),
        ("arco-api", own, "get", "", "persistentvolumes", "", false),
        ("arco-api", tenant, "create", "", "pods/exec", "", true),
        ("arco-api", tenant, "patch", "", "pods", "", true),
        ("arco-api", tenant, "patch", "apps", "deployments", "", false),
        ("arco-api", tenant, "patch", "", "services", "", false),
        ("arco-api", own, "update", leases, "leases", "arco-controller", false),
        ("arco-builder", tenant, "create", "", "pods", "", true),
        ("arco-builder", tenant, "watch", "apps", "statefulsets", "", true),
        ("arco-builder", tenant, "delete", "apps", "statefulsets", "", false),
        ("arco-eventlog", tenant, "get", "", "pods/log", "", false),
        ("arco-gateway", tenant, "list", "", "pods", "", false),
        ("arco-gateway", own, "get", "", "secrets", "stores", false),
    ];
    // First what each may: that is waited for, and by then what it may not is known as well.
    let (given, refused): (Vec<_>, Vec<_>) = rows.into_iter().partition(|it| it.6);
    for (name, namespace, verb, group, resource, object, wanted) in given.into_iter().chain(refused) {
        let who = connect(&account(client, admin, own, name).await).await;
        let what = format!("{name} {verb} {resource} {object} in {namespace}");
        if wanted {
            until(&what, async || may(&who, namespace, verb, group, resource, object).await).await;
        } else {
            assert!(!may(&who, namespace, verb, group, resource, object).await, "{what}");
        }
    }
}

pub(crate) async fn cleared(client: &Client, it: &Installation) {
    let now = DeleteParams::default();
    for name in [it.namespace.clone(), format!("{}-nodes", it.namespace)] {
        let _ = Api::<Namespace>::all(client.clone()).delete(&name, &now).await;
    }
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let _ = volumes.delete(&format!("{}-state", it.namespace), &now).await;
    let _ = Api::<StorageClass>::all(client.clone()).delete(&local_class(it), &now).await;
    let _ = Api::<IngressClass>::all(client.clone()).delete(&it.route_class, &now).await;
    for name in [it.namespace.clone(), format!("{}-runners", it.namespace)] {
        let _ = Api::<ClusterRole>::all(client.clone()).delete(&name, &now).await;
        let _ = Api::<ClusterRoleBinding>::all(client.clone()).delete(&name, &now).await;
    }
}

#[tokio::test]
async fn the_manifest_is_accepted_and_gives_the_rights_that_preflight_asks_for() {
    let Some(file) = kubeconfig() else { return };
    let admin = Kubeconfig::read_from(file).unwrap();
    let client = connect(&admin).await;
    // Its own volume is made by hand, those of others by itself.
    let it = Installation {
        local_storage: Some("/var/lib/arco/volumes".into()),
        server_node: "n1".to_owned(),
        ..installation()
    };
    let outcome = std::panic::AssertUnwindSafe(installed(&client, &admin, &it)).catch_unwind().await;
    cleared(&client, &it).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[tokio::test]
async fn parts_are_accepted_and_each_may_only_what_it_does() {
    let Some(file) = kubeconfig() else { return };
    let admin = Kubeconfig::read_from(file).unwrap();
    let client = connect(&admin).await;
    // A class of its own: the other test removes its own meanwhile.
    let it = Installation { route_class: "arco-test-parts".to_owned(), ..spread() };
    let outcome = std::panic::AssertUnwindSafe(installed_in_parts(&client, &admin, &it)).catch_unwind().await;
    cleared(&client, &it).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
