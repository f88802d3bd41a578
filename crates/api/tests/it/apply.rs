//! A whole application as one document.

use crate::platform::{Platform, WEB, code};
use arco_api::wire::{ApplyRequest, ComponentApply};
use arco_model::manifest::ComponentManifest;
use arco_model::operation::OperationKind;
use arco_model::source::Source;

fn wanted(components: &[(&str, ComponentManifest)]) -> ApplyRequest {
    let component = |manifest: &ComponentManifest| ComponentApply {
        source: Source::Image { reference: "stack/base".into() },
        manifest: manifest.clone(),
    };
    let components = components.iter().map(|(name, manifest)| (name.parse().unwrap(), component(manifest))).collect();
    ApplyRequest { components, prune: false }
}

#[tokio::test]
async fn an_application_is_made_changed_and_pruned() {
    let platform = Platform::start().await;
    let db = ComponentManifest::default();
    let mut web = ComponentManifest { bind: vec!["db".into()], ..ComponentManifest::default() };
    let request = wanted(&[("web", web.clone()), ("db", db.clone())]);
    let dry = platform.client.apply("default", "shop", &request, true).await.unwrap();
    assert_eq!(dry.changes.iter().map(|it| it.action.as_str()).collect::<Vec<_>>(), ["create", "create"]);
    assert!(dry.operations.is_empty());
    assert_eq!(code(platform.client.application("default", "shop").await), "not_found");
    let made = platform.client.apply("default", "shop", &request, false).await.unwrap();
    assert_eq!(made.operations.len(), 2);
    for operation in &made.operations {
        platform.built(&operation.id).await;
    }
    let same = platform.client.apply("default", "shop", &request, false).await.unwrap();
    assert_eq!((same.changes.len(), same.operations.len()), (0, 0));
    web.env.insert("A".into(), "1".into());
    let changed = platform
        .client
        .apply("default", "shop", &wanted(&[("web", web.clone()), ("db", db.clone())]), false)
        .await
        .unwrap();
    assert_eq!(changed.changes.iter().map(|it| it.field.as_str()).collect::<Vec<_>>(), ["env.A"]);
    assert_eq!(changed.operations[0].kind, OperationKind::Configure);
    web.env.clear();
    web.replicas = Some(2);
    let both = platform
        .client
        .apply("default", "shop", &wanted(&[("web", web.clone()), ("db", db.clone())]), false)
        .await
        .unwrap();
    assert_eq!(both.changes.iter().map(|it| it.field.as_str()).collect::<Vec<_>>(), ["env.A", "replicas"]);
    web.bind.clear();
    let request = ApplyRequest { prune: true, ..wanted(&[("web", web)]) };
    let pruned = platform.client.apply("default", "shop", &request, false).await.unwrap();
    assert!(pruned.operations.iter().any(|it| it.kind == OperationKind::Delete && it.component == "db"));
}

#[tokio::test]
async fn all_of_it_or_nothing() {
    let platform = Platform::start().await;
    let apply = async |components: &[(&str, ComponentManifest)]| {
        let code = code(platform.client.apply("default", "shop", &wanted(components), false).await);
        assert!(platform.client.component("default", WEB).await.is_err(), "nothing was made");
        code
    };
    let bind = |to: &str| ComponentManifest { bind: vec![to.to_owned()], ..ComponentManifest::default() };
    assert_eq!(apply(&[("web", bind("db"))]).await, "binding_target_missing");
    assert_eq!(apply(&[("web", bind("db")), ("db", bind("web"))]).await, "binding_cycle");
    assert_eq!(apply(&[("web", bind("a/b/c"))]).await, "binding_invalid");
    let secret = ComponentManifest { secrets: vec!["KEY".into()], ..ComponentManifest::default() };
    assert_eq!(apply(&[("web", secret)]).await, "secret_missing");
    let bad = ComponentManifest { replicas: Some(1000), ..ComponentManifest::default() };
    assert_eq!(apply(&[("web", ComponentManifest::default()), ("x", bad)]).await, "replicas_invalid");
}
