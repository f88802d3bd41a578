//! Who may do what, over real certificates.

use crate::platform::{Platform, WEB, code};
use arco_api::client::{Client, Context};
use arco_api::wire::{CertificateRequest, ChangeTenant, CreateTenant, SpecPatch};
use arco_model::application::Tenant;
use arco_model::job::Topic;
use arco_model::name::TenantName;
use arco_mq::Queue;

#[tokio::test]
async fn roles_and_tenants_limit_what_a_certificate_can_do() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let me = platform.client.whoami().await.unwrap();
    assert_eq!((me.name.as_str(), me.role.as_str(), me.domain.as_str()), ("admin", "admin", "example.test"));
    let viewer = platform.client_of("vic", "viewer", &["default"]);
    assert_eq!(viewer.whoami().await.unwrap().tenants, ["default"]);
    viewer.component("default", WEB).await.unwrap();
    assert_eq!(code(viewer.power("default", WEB, "stop").await), "role_denied");
    let developer = platform.client_of("dee", "developer", &["default"]);
    developer.power("default", WEB, "restart").await.unwrap();
    assert_eq!(code(developer.delete_application("default", "shop", false).await), "role_denied");
    assert_eq!(
        code(developer.create_tenant(&CreateTenant { name: "x".into(), memory_quota_mb: 0 }).await),
        "role_denied"
    );
    let operator = platform.client_of("opa", "operator", &["default"]);
    operator.delete_application("default", "shop", false).await.unwrap();
}

#[tokio::test]
async fn another_tenant_does_not_exist() {
    let platform = Platform::start().await;
    let operation = platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    platform.client.create_tenant(&CreateTenant { name: "other".into(), memory_quota_mb: 0 }).await.unwrap();
    let outsider = platform.client_of("out", "operator", &["other"]);
    assert_eq!(code(outsider.applications("default").await), "not_found");
    assert_eq!(code(outsider.operation(&operation.id).await), "not_found");
    assert_eq!(code(outsider.cancel(&operation.id).await), "not_found");
    let seen: Vec<_> = outsider.tenants().await.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(seen, ["other"]);
    outsider.applications("other").await.unwrap();
}

#[tokio::test]
async fn certificates_of_processes_and_without_tenants_are_refused() {
    let platform = Platform::start().await;
    assert_eq!(code(platform.client_of("gateway", "gateway", &["default"]).whoami().await), "certificate_refused");
    assert_eq!(code(platform.client_of("ann", "viewer", &[]).whoami().await), "certificate_refused");
}

#[tokio::test]
async fn an_administrator_makes_contexts_for_others() {
    let platform = Platform::start().await;
    let request = |name: &str, role: &str, tenants: &[&str]| CertificateRequest {
        name: name.into(),
        role: role.into(),
        tenants: tenants.iter().map(|it| (*it).to_owned()).collect(),
    };
    let answer = platform.client.create_certificate(&request("ann", "developer", &["default"])).await.unwrap();
    let context = Context {
        api: platform.api.clone(),
        tenant: None,
        ca: answer.ca,
        certificate: answer.certificate,
        key: answer.key,
    };
    let ann = Client::new(&context).unwrap();
    assert_eq!(ann.whoami().await.unwrap().role, "developer");
    assert_eq!(code(ann.create_certificate(&request("bob", "viewer", &["default"])).await), "role_denied");
    for bad in [
        request("ann", "admin", &["default"]),
        request("ann", "viewer", &[]),
        request("A b", "viewer", &["default"]),
        request("ann", "king", &["a"]),
        request("ann", "viewer", &["A,b"]),
    ] {
        assert_eq!(code(platform.client.create_certificate(&bad).await), "certificate_invalid", "{bad:?}");
    }
    // A tenant that nobody made: with what makes it.
    let refused = platform.client.create_certificate(&request("ann", "viewer", &["default", "team-b"])).await;
    let refused = format!("{:?}", refused.unwrap_err());
    assert!(refused.contains("team-b") && refused.contains("arco tenant create team-b"), "{refused}");
}

#[tokio::test]
async fn a_tenant_goes_when_nothing_is_left_in_it() {
    let platform = Platform::start().await;
    let make = || CreateTenant { name: "team-b".into(), memory_quota_mb: 0 };
    platform.client.create_tenant(&make()).await.unwrap();
    let source = arco_model::source::Source::Image { reference: "stack/base".into() };
    let request = arco_api::wire::DeployRequest { source, patch: SpecPatch::default(), no_cache: false };
    platform.client.deploy("team-b", WEB, &request).await.unwrap();
    let operator = platform.client_of("opa", "operator", &["team-b"]);
    assert_eq!(code(operator.delete_tenant("team-b").await), "role_denied");
    assert_eq!(code(platform.client.delete_tenant("team-b").await), "tenant_in_use");
    assert_eq!(code(platform.client.delete_tenant("default").await), "tenant_in_use");
    platform.client.create_tenant(&CreateTenant { name: "empty".into(), memory_quota_mb: 0 }).await.unwrap();
    platform.client.delete_tenant("empty").await.unwrap();
    assert_eq!(code(platform.client.delete_tenant("empty").await), "not_found");
    let there: Vec<_> = platform.client.tenants().await.unwrap().into_iter().map(|it| it.name).collect();
    assert!(there.iter().any(|it| it == "team-b") && !there.iter().any(|it| it == "empty"), "{there:?}");
}

#[tokio::test]
async fn what_stays_of_a_deleted_tenant_is_told() {
    let platform = Platform::start().await;
    platform.client.create_tenant(&CreateTenant { name: "team-b".into(), memory_quota_mb: 0 }).await.unwrap();
    let name: TenantName = "team-b".parse().unwrap();
    platform.orchestrator.tenants.lock().unwrap().insert(name.clone());
    let queue = Queue::new(platform.kv.clone());
    let controller = async {
        let job = queue.lease(Topic::Controller, "controller").await.unwrap();
        assert_eq!(Tenant::of_removal_key(&job.job().request.key), Some(name));
        assert!(platform.metadata.get::<Tenant>("team-b").await.unwrap().is_none(), "its row goes first");
        let key = format!("{}team-b", Tenant::LEFT);
        platform.kv.put(&key, b"the namespace stays".to_vec(), None).await.unwrap();
        job.ack().await.unwrap();
    };
    let (removal, ()) = tokio::join!(platform.client.delete_tenant("team-b"), controller);
    assert_eq!(removal.unwrap().left.as_deref(), Some("the namespace stays"));
}

#[tokio::test]
async fn a_revoked_context_is_refused_at_once_and_a_new_one_is_not() {
    let platform = Platform::start().await;
    let make = async || {
        let request =
            CertificateRequest { name: "ann".into(), role: "viewer".into(), tenants: vec!["default".to_owned()] };
        let answer = platform.client.create_certificate(&request).await.unwrap();
        let (api, tenant) = (platform.api.clone(), None);
        let context = Context { api, tenant, ca: answer.ca, certificate: answer.certificate, key: answer.key };
        Client::new(&context).unwrap()
    };
    let (first, second) = (make().await, make().await);
    first.whoami().await.unwrap();
    assert_eq!(code(first.contexts().await), "role_denied");
    assert_eq!(code(platform.client.revoke_context("bob").await), "not_found");

    let revoked = platform.client.revoke_context("ann").await.unwrap();
    assert_eq!((revoked.len(), revoked[0].revoked_at.is_some()), (2, true));
    for client in [&first, &second] {
        // The connection that is open and a new one.
        assert_eq!(code(client.whoami().await), "certificate_revoked");
    }
    let third = make().await;
    third.whoami().await.unwrap();
    platform.client.whoami().await.unwrap();
    let listed = platform.client.contexts().await.unwrap();
    assert_eq!(listed.iter().filter(|it| it.revoked_at.is_none()).count(), 1);
    assert!(listed.iter().all(|it| it.name == "ann" && it.fingerprint.len() == 64), "{listed:?}");
}

#[tokio::test]
async fn a_quota_is_kept() {
    let platform = Platform::start().await;
    platform.client.create_tenant(&CreateTenant { name: "small".into(), memory_quota_mb: 600 }).await.unwrap();
    assert_eq!(
        code(platform.client.create_tenant(&CreateTenant { name: "small".into(), memory_quota_mb: 0 }).await),
        "exists"
    );
    assert_eq!(
        code(platform.client.create_tenant(&CreateTenant { name: "S".into(), memory_quota_mb: 0 }).await),
        "name_invalid"
    );
    let source = arco_model::source::Source::Image { reference: "stack/base".into() };
    let request = |replicas| arco_api::wire::DeployRequest {
        source: source.clone(),
        patch: SpecPatch { replicas: Some(replicas), ..SpecPatch::default() },
        no_cache: false,
    };
    assert_eq!(code(platform.client.deploy("small", WEB, &request(2)).await), "quota_reached");
    platform.client.deploy("small", WEB, &request(1)).await.unwrap();

    // It can be changed, by administrators; less than what is asked already ends nothing.
    let to = |memory_quota_mb| ChangeTenant { memory_quota_mb: Some(memory_quota_mb) };
    let operator = platform.client_of("opa", "operator", &["small"]);
    assert_eq!(code(operator.change_tenant("small", &to(0)).await), "role_denied");
    assert_eq!(code(platform.client.change_tenant("nobody", &to(0)).await), "not_found");
    let changed = platform.client.change_tenant("small", &to(100)).await.unwrap();
    assert_eq!((changed.memory_quota_mb, changed.memory_asked_mb), (100, 512));
    let other = ("shop", "other");
    assert_eq!(code(platform.client.deploy("small", other, &request(1)).await), "quota_reached");
    let changed = platform.client.change_tenant("small", &to(1024)).await.unwrap();
    assert_eq!(platform.client.tenants().await.unwrap().iter().find(|it| it.name == "small"), Some(&changed));
    platform.client.deploy("small", other, &request(1)).await.unwrap();
    let untouched = platform.client.change_tenant("small", &ChangeTenant::default()).await.unwrap();
    assert_eq!((untouched.memory_quota_mb, untouched.memory_asked_mb), (1024, 1024));
}
