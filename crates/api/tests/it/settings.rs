//! Secrets, routes, volumes, operations, pages.

use crate::platform::{Platform, WEB, code};
use arco_api::wire::{CredentialQuery, CredentialRequest, RouteRequest, SecretText, SetSecret, SpecPatch};
use arco_model::id::RowId;
use arco_model::name::TenantName;
use arco_model::secret::SecretVersion;
use arco_model::spec::{VolumeKind, VolumeSpec};
use arco_store::clock;
use arco_store::sql::{Query, VolumeRow};

fn route(host: &str, path: Option<&str>, port: Option<u16>) -> RouteRequest {
    RouteRequest { host: host.to_owned(), path: path.map(str::to_owned), port }
}

#[tokio::test]
async fn secrets_are_sealed_versioned_and_never_shown() {
    let platform = Platform::start().await;
    let secret = |value: Option<&str>| SpecPatch {
        secrets: [("KEY".to_owned(), value.map(|it| SecretText(it.to_owned())))].into(),
        ..SpecPatch::default()
    };
    platform.running(WEB, secret(Some("hunter2"))).await;
    let operation = platform.client.patch("default", WEB, &secret(Some("hunter3"))).await.unwrap();
    assert_eq!(operation.revision, Some(2));
    let shown = platform.client.secrets("default", WEB).await.unwrap();
    assert_eq!(shown.iter().map(|it| (it.name.as_str(), it.version)).collect::<Vec<_>>(), [("KEY", 2)]);
    let component = platform.component(WEB).await;
    let rows = platform.metadata.list::<SecretVersion>(&Query::parent(component.id.as_str())).await.unwrap().items;
    assert_eq!(rows.len(), 2);
    let everything =
        format!("{rows:?}{component:?}{:?}{:?}", platform.client.component("default", WEB).await, operation);
    assert!(!everything.contains("hunter"), "{everything}");
    platform.client.patch("default", WEB, &secret(None)).await.unwrap();
    assert!(platform.client.secrets("default", WEB).await.unwrap().is_empty());
    platform.client.patch("default", WEB, &secret(Some("again"))).await.unwrap();
    assert_eq!(platform.client.secrets("default", WEB).await.unwrap()[0].version, 3, "versions are never used twice");
    let both = SpecPatch { env: [("KEY".to_owned(), Some("x".to_owned()))].into(), ..SpecPatch::default() };
    assert_eq!(code(platform.client.patch("default", WEB, &both).await), "env_duplicate");
    assert!(serde_json::to_string(&SetSecret { value: SecretText("x".into()) }).unwrap().contains("x"));
}

#[tokio::test]
async fn hosts_are_added_and_belong_to_one_component() {
    let platform = Platform::start().await;
    platform.deploy(("other", "web"), SpecPatch::default()).await.unwrap();
    platform.running(WEB, SpecPatch::default()).await;
    let add = async |request: &RouteRequest| platform.client.add_route("default", WEB, request).await;
    let added = add(&route("WWW.example.com", Some("/api/"), None)).await.unwrap();
    assert_eq!((added.host.as_str(), added.path.as_str(), added.port), ("www.example.com", "/api", 8080));
    assert_eq!(added.url, "http://www.example.com:8080/api");
    let shown = platform.client.routes("default", WEB).await.unwrap();
    assert_eq!(shown.iter().map(|it| it.default).collect::<Vec<_>>(), [true, true, false]);
    let urls = platform.client.component("default", WEB).await.unwrap().urls;
    let [default, short] = platform.component(WEB).await.default_hosts("example.test");
    assert_eq!(urls, [format!("http://{default}:8080"), format!("http://{short}:8080"), added.url.clone()]);
    let [other, _] = platform.component(("other", "web")).await.default_hosts("example.test");
    assert_eq!(code(add(&route(&other, None, None)).await), "host_taken");
    assert_eq!(code(add(&route("a b", None, None)).await), "host_invalid");
    assert_eq!(code(add(&route("a.test", Some("x"), None)).await), "path_invalid");
    assert_eq!(code(add(&route("a.test", None, Some(9))).await), "port_not_routable");
    assert_eq!(
        code(platform.client.add_route("default", ("other", "web"), &route("b.test", None, None)).await),
        "port_not_routable"
    );
    add(&route("www.example.com", Some("/api"), Some(8080))).await.unwrap();
    assert_eq!(code(platform.client.delete_route("default", WEB, &default, "/").await), "route_is_default");
    platform.client.delete_route("default", WEB, "www.example.com", "/api").await.unwrap();
    assert_eq!(code(platform.client.delete_route("default", WEB, "www.example.com", "/api").await), "not_found");
}

#[tokio::test]
async fn kept_volumes_come_back_to_a_component_of_the_same_name() {
    let platform = Platform::start().await;
    let first = platform.running(("shop", "x"), SpecPatch::default()).await;
    let kept = VolumeRow {
        id: clock::fresh::<RowId>(),
        tenant: first.tenant.clone(),
        application_id: first.application_id.clone(),
        application: first.application.clone(),
        component: "web".parse().unwrap(),
        component_id: clock::fresh(),
        name: "files".parse().unwrap(),
        size_mb: 10,
        created_at: clock::now(),
    };
    platform.metadata.insert(&kept).await.unwrap();
    let listed = platform.client.tenant_volumes("default").await.unwrap();
    assert_eq!((listed[0].kept, listed[0].name.as_str()), (true, "files"));
    let volume =
        VolumeSpec { name: "files".parse().unwrap(), path: "/files".into(), size_mb: 10, kind: VolumeKind::Shared };
    let patch = SpecPatch { volumes: [("files".to_owned(), Some(volume))].into(), ..SpecPatch::default() };
    let component = platform.running(WEB, patch).await;
    assert_eq!(component.id, kept.component_id);
    let listed = platform.client.volumes("default", WEB).await.unwrap();
    assert_eq!((listed.len(), listed[0].kept, listed[0].path.as_str()), (1, false, "/files"));
    assert_eq!(code(platform.client.delete_volume("default", kept.id.as_str()).await), "volume_in_use");
    let row =
        VolumeRow { id: clock::fresh(), component_id: clock::fresh(), component: "gone".parse().unwrap(), ..kept };
    platform.metadata.insert(&row).await.unwrap();
    platform.client.delete_volume("default", row.id.as_str()).await.unwrap();
    assert_eq!(*platform.orchestrator.removed.lock().unwrap(), [(row.component_id.clone(), false)]);
    assert_eq!(code(platform.client.delete_volume("default", row.id.as_str()).await), "not_found");
}

#[tokio::test]
async fn one_of_several_kept_volumes_goes_alone() {
    let platform = Platform::start().await;
    let row = |name: &str, component_id: &arco_model::id::ComponentId| VolumeRow {
        id: clock::fresh(),
        tenant: TenantName::default_tenant(),
        application_id: clock::fresh(),
        application: "shop".parse().unwrap(),
        component: "web".parse().unwrap(),
        component_id: component_id.clone(),
        name: name.parse().unwrap(),
        size_mb: 10,
        created_at: clock::now(),
    };
    let owner = clock::fresh();
    let (files, rest) = (row("files", &owner), row("rest", &owner));
    platform.metadata.insert(&files).await.unwrap();
    platform.metadata.insert(&rest).await.unwrap();
    platform.client.delete_volume("default", files.id.as_str()).await.unwrap();
    assert_eq!(*platform.orchestrator.removed_volumes.lock().unwrap(), [(owner.clone(), "files".to_owned())]);
    assert!(platform.orchestrator.removed.lock().unwrap().is_empty());
    platform.client.delete_volume("default", rest.id.as_str()).await.unwrap();
    assert_eq!(*platform.orchestrator.removed.lock().unwrap(), [(owner, false)]);
}

#[tokio::test]
async fn credentials_are_kept_sealed_by_their_scope() {
    let platform = Platform::start().await;
    let request = |url: &str| CredentialRequest {
        url: url.to_owned(),
        application: None,
        user: None,
        token: Some(SecretText("hunter2".into())),
        ssh_key: None,
        host_keys: None,
    };
    let kept = platform.client.set_credential("default", &request("https://Git.example.com:443/team/")).await.unwrap();
    assert_eq!((kept.scope.as_str(), kept.user.as_str()), ("https://git.example.com/team", "git"));
    // The same place again replaces; another application's is another one.
    let again = CredentialRequest { user: Some("ada".into()), ..request("https://git.example.com/team") };
    platform.client.set_credential("default", &again).await.unwrap();
    let own = CredentialRequest { application: Some("shop".into()), ..again.clone() };
    platform.client.set_credential("default", &own).await.unwrap();
    let listed = platform.client.credentials("default").await.unwrap();
    assert_eq!(
        listed.iter().map(|it| (it.user.as_str(), it.application.as_deref())).collect::<Vec<_>>(),
        [("ada", None), ("ada", Some("shop"))]
    );
    let rows = platform.metadata.list_rows(arco_store::sql::Kind::Credential, &Default::default()).await.unwrap();
    assert!(rows.items.iter().all(|it| !it.body.contains("hunter2")), "{rows:?}");

    let key = CredentialRequest {
        token: None,
        ssh_key: Some(SecretText("hunter2".into())),
        ..request("git@git.example.com:a")
    };
    for bad in [
        request("http://git.example.com/team"),
        request("git@git.example.com:team"),
        CredentialRequest { token: Some(SecretText("a b".into())), ..again.clone() },
        CredentialRequest { user: Some("a\nProxyCommand x".into()), ..again.clone() },
        CredentialRequest { token: None, ..again.clone() },
        key.clone(),
    ] {
        let error = platform.client.set_credential("default", &bad).await.unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!(code(platform.client.set_credential("default", &bad).await), "credential_invalid", "{bad:?}");
    }
    assert_eq!(code(platform.client.set_credential("default", &request("team")).await), "git_url_refused");
    assert_eq!(code(platform.client.set_credential("none", &again).await), "not_found");
    let query = CredentialQuery { url: "https://git.example.com/team".into(), application: None };
    platform.client.delete_credential("default", &query).await.unwrap();
    assert_eq!(code(platform.client.delete_credential("default", &query).await), "not_found");
    assert_eq!(platform.client.credentials("default").await.unwrap().len(), 1);
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let platform = Platform::start().await;
    for number in 0..7 {
        platform.deploy((&format!("app{}", number % 3), &format!("c{number}")), SpecPatch::default()).await.unwrap();
    }
    assert_eq!(platform.client.applications("default").await.unwrap().len(), 3);
    // Operations of one millisecond have no order among themselves.
    let all = platform.client.operations("default", None, None, false, 10).await.unwrap();
    assert!(all.len() == 7 && all.is_sorted_by(|a, b| a.created_at >= b.created_at), "newest first: {all:?}");
    assert_eq!(platform.client.operations("default", None, None, false, 2).await.unwrap(), all[..2]);
    let filtered = platform.client.operations("default", Some("app0"), None, false, 10).await.unwrap();
    assert_eq!(filtered.len(), 3);
    assert_eq!(platform.client.operations("default", Some("app0"), Some("c3"), false, 10).await.unwrap().len(), 1);
    assert_eq!(platform.client.operations("default", None, None, true, 10).await.unwrap().len(), 0);
    assert_eq!(code(platform.client.operations("default", None, None, false, 0).await), "limit_invalid");
    assert_eq!(code(platform.client.operation("nonsense").await), "not_found");
}

/// Prints how long a list of 200 components takes on the real database.
#[tokio::test]
#[ignore = "a measurement: cargo test --release -p arco-api -- --ignored --nocapture list_of_200"]
async fn a_list_of_200_components() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = arco_store::sql::SeaOrmMetadata::open(&folder.path().join("metadata.db")).await.unwrap();
    let platform = Platform::over(std::sync::Arc::new(metadata), |_| {}).await;
    for number in 0..200 {
        platform.running((&format!("app{}", number % 20), &format!("c{number}")), SpecPatch::default()).await;
    }
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = std::time::Instant::now();
        assert_eq!(platform.client.applications("default").await.unwrap().len(), 20);
        times.push(began.elapsed());
    }
    times.sort();
    eprintln!("a list of 200 components: median {:?}, slowest {:?}", times[10], times[19]);
    let began = std::time::Instant::now();
    platform
        .client
        .patch("default", ("app0", "c0"), &SpecPatch { memory_mb: Some(64), ..SpecPatch::default() })
        .await
        .unwrap();
    eprintln!("one change among 200 components: {:?}", began.elapsed());
}
