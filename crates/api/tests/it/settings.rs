//! Secrets, routes, volumes, operations, pages.

use crate::platform::{Platform, WEB, code};
use arco_api::wire::{
    ApplyRequest, CredentialQuery, CredentialRequest, RouteRequest, SecretText, SetSecret, SpecPatch,
};
use arco_model::job::Topic;
use arco_model::secret::SecretVersion;
use arco_model::source::Source;
use arco_model::spec::{VolumeKind, VolumeSpec};
use arco_model::storage::{AccessMode, VolumeFacts};
use arco_model::traffic::{GatewayStatus, MARK, STATUS_PREFIX};
use arco_mq::Queue;
use arco_orchestrator::Removal;
use arco_store::clock;
use arco_store::kv::Range;
use arco_store::sql::{Query, RouteRow, VolumeRow};
use serde_json::json;

fn route(host: &str, more: serde_json::Value) -> RouteRequest {
    let mut document = serde_json::json!({"hosts": [host]});
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(document).unwrap()
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
async fn files_are_part_of_what_is_asked_and_of_its_revisions() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let patch = |it: serde_json::Value| serde_json::from_value::<SpecPatch>(it).unwrap();
    let set = |content: &str| patch(json!({"files": {"/etc/a": {"path": "/etc/a", "content": content}}}));
    let ask = async |it: &SpecPatch| platform.client.patch("default", WEB, it).await;
    assert_eq!(ask(&set("1")).await.unwrap().revision, Some(2));
    assert_eq!(ask(&set("1")).await.unwrap().revision, None, "nothing changed");
    assert_eq!(ask(&set("2")).await.unwrap().revision, Some(3));
    let revisions = platform.client.revisions("default", WEB).await.unwrap();
    assert_eq!(revisions[0].cause, "file set");
    let key = json!({"/etc/key": {"path": "/etc/key", "secret": "KEY", "mode": "0400"}});
    assert_eq!(code(ask(&patch(json!({"files": key}))).await), "file_secret_missing");
    ask(&patch(json!({"files": key, "secrets": {"KEY": "hunter2"}}))).await.unwrap();
    let shown = platform.client.component("default", WEB).await.unwrap();
    let files: Vec<_> = shown.spec.files.iter().map(|it| (it.path.as_str(), it.content.as_deref())).collect();
    assert_eq!(files, [("/etc/a", Some("2")), ("/etc/key", None)]);
    assert!(!format!("{shown:?}").contains("hunter2"));
    assert_eq!(code(ask(&patch(json!({"secrets": {"KEY": null}}))).await), "file_secret_missing", "it is in use");
    for (wrong, expected) in [
        (json!({"/b": {"path": "/a", "content": "x"}}), "patch_invalid"),
        (json!({"/etc/hosts": {"path": "/etc/hosts", "content": "x"}}), "file_path_invalid"),
        (json!({"/etc/a/b": {"path": "/etc/a/b", "content": "x"}}), "file_path_taken"),
        (json!({"/b": {"path": "/b", "content": "x".repeat(1 << 20)}}), "files_too_large"),
    ] {
        assert_eq!(code(ask(&patch(json!({"files": wrong}))).await), expected);
    }
    platform.client.rollback("default", WEB, Some(2)).await.unwrap();
    assert_eq!(platform.component(WEB).await.spec.files[0].content.as_deref(), Some("1"));
    ask(&patch(json!({"files": {"/etc/a": null}}))).await.unwrap();
    assert!(platform.component(WEB).await.spec.files.is_empty());
    assert_eq!(platform.client.revisions("default", WEB).await.unwrap()[0].cause, "file unset");
}

#[tokio::test]
async fn routes_are_added_changed_and_belong_to_one_component() {
    let platform = Platform::start().await;
    platform.deploy(("other", "web"), SpecPatch::default()).await.unwrap();
    platform.running(WEB, SpecPatch::default()).await;
    platform.running(("shop", "canary"), SpecPatch::default()).await;
    let add = async |request: &RouteRequest| platform.client.add_route("default", WEB, request).await;
    let plain = |host: &str| route(host, json!({}));
    let at = |host: &str, path: &str| route(host, json!({"paths": [{"prefix": path}]}));
    let added = add(&at("WWW.example.com", "/api/")).await.unwrap().remove(0);
    assert_eq!((added.host.as_str(), added.path.as_str(), added.port), ("www.example.com", "/api", Some(8080)));
    assert_eq!(added.url, "http://www.example.com:8080/api");
    let shown = platform.client.routes("default", WEB).await.unwrap();
    assert_eq!(shown.iter().map(|it| it.default).collect::<Vec<_>>(), [true, true, false]);
    let urls = platform.client.component("default", WEB).await.unwrap().urls;
    let [default, short] = platform.component(WEB).await.default_hosts("example.test");
    assert_eq!(urls, [format!("http://{default}:8080"), format!("http://{short}:8080"), added.url.clone()]);
    let [other, short] = platform.component(("other", "web")).await.default_hosts("example.test");
    assert_eq!(code(add(&plain(&other)).await), "host_reserved");
    assert_eq!(code(add(&plain(&short)).await), "host_taken");
    let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (request, expected) in [
        (plain("a b"), "host_invalid"),
        (at("a.test", "x"), "path_invalid"),
        (route("a.test", json!({"targets": [{"to": "shop/web:9"}]})), "port_not_routable"),
        (route("a.test", json!({"targets": [{"to": "shop/gone"}]})), "not_found"),
        (route("a.test", json!({"redirect": {"status": 302}})), "route_invalid"),
        (route("a.test", json!({"basic_auth": {"users_file": "/etc/passwd"}})), "route_invalid"),
        (route("a.test", json!({"upstream_tls": {"name": "in.test", "ca": cut}})), "route_invalid"),
        (route("a.test", json!({"tls": {"client_ca": cut}})), "route_invalid"),
    ] {
        assert_eq!(code(add(&request).await), expected, "{request:?}");
    }
    let pattern = add(&route("a.test", json!({"paths": [{"regex": "("}]}))).await;
    let said = format!("{:?}", pattern.unwrap_err());
    assert!(said.contains("path_invalid") && said.contains("give a regular expression"), "{said}");
    let other = platform.client.add_route("default", ("other", "web"), &plain("b.test")).await;
    assert_eq!(code(other), "port_not_routable");
    // The same requests again: the route is replaced and stays the same one.
    let shared = route(
        "www.example.com",
        json!({"paths": [{"prefix": "/api"}], "targets": [{"to": "shop/web", "weight": 9}, {"to": "shop/canary", "weight": 1}]}),
    );
    let again = add(&shared).await.unwrap().remove(0);
    assert_eq!(again.id, added.id);
    assert_eq!(again.route.targets[1].to.to_string(), "shop/canary:8080");
    let canary = ("shop", "canary");
    assert_eq!(code(platform.client.add_route("default", canary, &at("www.example.com", "/api")).await), "host_taken");
    // Other requests of the same host.
    let posts = route(
        "www.example.com",
        json!({"paths": [{"prefix": "/api"}], "methods": ["POST"], "answer": {"status": 405}}),
    );
    add(&posts).await.unwrap();
    // The default host takes routes of its own component.
    let hash = format!("pbkdf2-sha256$1000${}${}", "0".repeat(16), "0".repeat(64));
    let own = add(&route(&default, json!({"basic_auth": {"users": {"ann": hash}}}))).await.unwrap().remove(0);
    assert_eq!(own.route.basic_auth.as_ref().unwrap().users["ann"], "…");
    let mut changed = own.route.clone();
    changed.max_body_bytes = Some(7);
    let id = own.id.clone().unwrap();
    platform.client.set_route("default", WEB, &id, &changed).await.unwrap();
    let row = platform.metadata.get::<RouteRow>(&id).await.unwrap().unwrap().value;
    assert_eq!(
        (row.route.basic_auth.unwrap().users["ann"].as_str(), row.route.max_body_bytes),
        (hash.as_str(), Some(7))
    );
    assert_eq!(code(platform.client.set_route("default", canary, &id, &changed).await), "not_found");
    platform.client.delete_route("default", WEB, &id).await.unwrap();
    assert_eq!(code(platform.client.delete_route("default", WEB, &id).await), "not_found");
    assert_eq!(platform.client.tenant_routes("default").await.unwrap().len(), 2 + 2 + 2);
}

#[tokio::test]
async fn a_change_is_waited_for_until_every_live_gateway_has_it() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    platform.client.add_route("default", WEB, &route("a.test", json!({}))).await.unwrap();
    assert!(platform.client.gateways_follow().await.unwrap(), "nobody is there who could be waited for");
    let told = async |name: &str, applied_revision: u64| {
        let status = GatewayStatus { applied_revision, busy_draining: Vec::new() };
        let key = format!("{STATUS_PREFIX}{name}");
        platform.kv.put(&key, serde_json::to_vec(&status).unwrap(), None).await.unwrap();
    };
    told("first", 1).await;
    told("second", 1).await;
    let mut marks = platform.kv.watch(Range::Key(MARK.as_bytes().to_vec()), None).await.unwrap();
    let client = platform.client_of("ada", "developer", &["default"]);
    let asked = tokio::spawn(async move { client.gateways_follow().await.unwrap() });
    // The controller's part: a look at the component.
    let queue = Queue::new(platform.kv.clone());
    let look = queue.lease(Topic::Controller, "controller").await.unwrap();
    assert!(platform.kv.get(MARK).await.unwrap().is_none(), "what is not published yet is not asked for");
    look.ack().await.unwrap();
    let looks = tokio::spawn(async move {
        loop {
            queue.lease(Topic::Controller, "controller").await.unwrap().ack().await.unwrap();
        }
    });
    let mark = marks.next().await.unwrap().unwrap().revision;
    told("first", mark).await;
    assert!(!asked.is_finished(), "another one is behind");
    told("second", mark + 1).await;
    assert!(asked.await.unwrap());
    looks.abort();
}

#[tokio::test]
async fn a_host_belongs_to_one_tenant() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let add = async |host: &str| platform.client.add_route("default", WEB, &route(host, json!({}))).await;
    let stranger = platform.component(WEB).await;
    for host in ["*.theirs.test", "one.test"] {
        let theirs = RouteRow {
            id: clock::fresh(),
            tenant: "theirs".parse().unwrap(),
            application: stranger.application.clone(),
            component: stranger.name.clone(),
            component_id: clock::fresh(),
            host: host.to_owned(),
            route: arco_model::route::Route::default(),
            created_at: clock::now(),
        };
        platform.metadata.insert(&theirs).await.unwrap();
    }
    for host in ["*.theirs.test", "a.theirs.test", "*.b.theirs.test", "one.test"] {
        assert_eq!(code(add(host).await), "host_taken", "{host}");
    }
    // Whose it is stays unsaid, and nothing is quoted twice.
    let said = add("a.theirs.test").await.unwrap_err().to_string();
    assert!(said.ends_with("already leads to another tenant by `*.theirs.test`"), "{said}");
    for host in ["theirs.test", "*.one.test"] {
        add(host).await.unwrap();
    }
    let developer = platform.client_of("ada", "developer", &["default"]);
    assert_eq!(code(developer.add_route("default", WEB, &route("*", json!({}))).await), "host_invalid");
    add("*").await.unwrap();
    // Names of the platform's own domain are those of applications; all of them at once are an administrator's.
    for host in ["example.test", "*.example.test", "*.test", "web.future.example.test", "*.shop.team.example.test"] {
        let added = developer.add_route("default", WEB, &route(host, json!({}))).await;
        assert_eq!(code(added), "host_reserved", "{host}");
    }
    for host in ["www.shop.example.test", "*.shop.example.test", "brand.example.test"] {
        developer.add_route("default", WEB, &route(host, json!({}))).await.unwrap();
    }
    add("*.example.test").await.unwrap();
    assert_eq!(code(add("web.future.example.test").await), "host_reserved");
    let question =
        arco_model::traffic::RouteQuestion { url: "http://a/".into(), method: None, headers: vec![], client: None };
    assert_eq!(code(developer.explain(&question).await), "role_denied");
    assert_eq!(code(platform.client.explain(&question).await), "role_missing");
}

#[tokio::test]
async fn kept_volumes_come_back_to_a_component_of_the_same_name() {
    let platform = Platform::start().await;
    let first = platform.running(("shop", "x"), SpecPatch::default()).await;
    let of = |component: &str| VolumeRow {
        component: component.parse().unwrap(),
        component_id: clock::fresh(),
        ..VolumeRow::new(&first, "files".parse().unwrap(), 10)
    };
    let kept = of("web");
    platform.metadata.insert(&kept).await.unwrap();
    let listed = platform.client.tenant_volumes("default").await.unwrap();
    assert_eq!((listed[0].kept, listed[0].name.as_str()), (true, "files"));
    let volume = VolumeSpec {
        name: "files".parse().unwrap(),
        path: "/files".into(),
        size_mb: 10,
        kind: VolumeKind::Shared,
        class: None,
    };
    let patch = SpecPatch { volumes: [("files".to_owned(), Some(volume))].into(), ..SpecPatch::default() };
    let component = platform.running(WEB, patch).await;
    assert_eq!(component.id, kept.component_id);
    let listed = platform.client.volumes("default", WEB).await.unwrap();
    assert_eq!((listed.len(), listed[0].kept, listed[0].path.as_str()), (1, false, "/files"));
    assert_eq!(code(platform.client.delete_volume("default", kept.id.as_str()).await), "volume_in_use");
    let row = of("gone");
    platform.metadata.insert(&row).await.unwrap();
    platform.client.delete_volume("default", row.id.as_str()).await.unwrap();
    assert_eq!(*platform.orchestrator.removed.lock().unwrap(), [(row.component_id.clone(), Removal::Everything)]);
    assert_eq!(code(platform.client.delete_volume("default", row.id.as_str()).await), "not_found");
}

#[tokio::test]
async fn volumes_grow_and_go_when_nothing_names_them() {
    let platform = Platform::start().await;
    let patch = |size: Option<u32>| {
        let volume = size.map(|size_mb| VolumeSpec {
            name: "files".parse().unwrap(),
            path: "/files".into(),
            size_mb,
            kind: VolumeKind::Shared,
            class: None,
        });
        SpecPatch { volumes: [("files".to_owned(), volume)].into(), ..SpecPatch::default() }
    };
    let component = platform.running(WEB, patch(Some(10))).await;
    let row = VolumeRow::new(&component, "files".parse().unwrap(), 10);
    platform.metadata.insert(&row).await.unwrap();
    assert_eq!(code(platform.client.patch("default", WEB, &patch(Some(9))).await), "volume_smaller");
    platform.client.patch("default", WEB, &patch(Some(20))).await.unwrap();
    assert_eq!(code(platform.client.delete_volume("default", row.id.as_str()).await), "volume_in_use");
    let operation = platform.client.patch("default", WEB, &patch(None)).await.unwrap();
    let early = platform.client.delete_volume("default", row.id.as_str()).await;
    assert_eq!(code(early), "volume_in_use", "an instance of the revision before has it");
    platform.built(&operation.id).await;
    let of_component = platform.client.volumes("default", WEB).await.unwrap();
    let of_tenant = platform.client.tenant_volumes("default").await.unwrap();
    for listed in [&of_component, &of_tenant] {
        assert_eq!((listed[0].kept, listed[0].path.as_str()), (true, ""));
    }
    platform.client.delete_volume("default", row.id.as_str()).await.unwrap();
    // What the component has beside it stays.
    let one = (component.id, Removal::Volume("files".parse().unwrap()));
    assert_eq!(*platform.orchestrator.removed.lock().unwrap(), [one]);
}

#[tokio::test]
async fn one_of_several_kept_volumes_goes_alone() {
    let platform = Platform::start().await;
    let gone = arco_model::sample::component();
    let row = |name: &str| VolumeRow::new(&gone, name.parse().unwrap(), 10);
    let (owner, files, rest) = (gone.id.clone(), row("files"), row("rest"));
    platform.metadata.insert(&files).await.unwrap();
    platform.metadata.insert(&rest).await.unwrap();
    platform.client.delete_volume("default", files.id.as_str()).await.unwrap();
    let one = (owner.clone(), Removal::Volume("files".parse().unwrap()));
    assert_eq!(*platform.orchestrator.removed.lock().unwrap(), std::slice::from_ref(&one));
    platform.client.delete_volume("default", rest.id.as_str()).await.unwrap();
    assert_eq!(*platform.orchestrator.removed.lock().unwrap(), [one, (owner, Removal::Everything)]);
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
    let platform = Platform::over(std::sync::Arc::new(metadata)).await;
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

#[tokio::test]
async fn volumes_say_what_they_are_made_of_and_grow_only_where_they_can() {
    let platform = Platform::start().await;
    let classes = platform.client.volume_classes().await.unwrap();
    let shown: Vec<_> = classes.iter().map(|it| (it.class.as_str(), it.grows, it.access.join(","))).collect();
    assert_eq!(shown, [("fast", true, "RWO".to_owned()), ("slow", false, "RWO".to_owned())]);

    let volume = |size_mb: u32, class: Option<&str>| {
        let it = serde_json::json!({ "name": "files", "path": "/files", "size_mb": size_mb, "class": class });
        let it: VolumeSpec = serde_json::from_value(it).unwrap();
        SpecPatch { volumes: [("files".to_owned(), Some(it))].into(), ..SpecPatch::default() }
    };
    assert_eq!(code(platform.deploy(WEB, volume(10, Some("none"))).await), "class_unknown");
    assert_eq!(code(platform.deploy(WEB, volume(10, Some("No!"))).await), "class_unknown");
    let component = platform.running(WEB, volume(10, Some("slow"))).await;
    let row = VolumeRow::new(&component, "files".parse().unwrap(), 10);
    platform.metadata.insert(&row).await.unwrap();
    let made_of = |class: &str| VolumeFacts {
        component: component.id.clone(),
        volume: "files".parse().unwrap(),
        place: None,
        class: class.to_owned(),
        access: vec![AccessMode::ReadWriteOnce],
        size_bytes: 10 << 20,
        used_bytes: Some(1 << 20),
    };
    *platform.orchestrator.volumes.lock().unwrap() = vec![made_of("slow")];
    let listed = platform.client.tenant_volumes("default").await.unwrap();
    assert_eq!((listed[0].class.as_str(), listed[0].used_bytes), ("slow", Some(1 << 20)));
    let storage = platform.client.storage("default").await.unwrap();
    assert_eq!((storage.volumes, storage.components["shop/web"].used_bytes), (1, Some(1 << 20)));

    let sizes = async || {
        let component = platform.client.component("default", WEB).await.unwrap();
        component.spec.volumes.iter().map(|it| (it.size_mb, it.class.clone().unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(code(platform.client.patch("default", WEB, &volume(20, Some("slow"))).await), "volume_keeps_size");
    assert_eq!(code(platform.client.patch("default", WEB, &volume(10, Some("fast"))).await), "class_fixed");
    let manifest = serde_json::json!({ "volumes": [{ "name": "files", "path": "/files", "size_mb": 20 }] });
    let whole = serde_json::json!({ "components": { "web": {
        "source": Source::Image { reference: "stack/base".to_owned() }, "manifest": manifest,
    }}});
    let whole: ApplyRequest = serde_json::from_value(whole).unwrap();
    assert_eq!(code(platform.client.apply("default", "shop", &whole, true).await), "volume_keeps_size");
    assert_eq!(sizes().await, [(10, "slow".to_owned())], "nothing was changed");
    *platform.orchestrator.volumes.lock().unwrap() = vec![made_of("fast")];
    platform.client.patch("default", WEB, &volume(20, None)).await.unwrap();
    assert_eq!(sizes().await, [(20, "slow".to_owned())]);
    platform.client.apply("default", "shop", &whole, true).await.unwrap();
}
