//! A builder that is not root of its machine: it takes stacks that were loaded, and has steps make others on the base.

use crate::harness::{Harness, cache, can_run};
use arco_builder::{make_stacks, stack_edition};
use arco_config::BuilderConfig;
use arco_model::operation::OperationStatus;
use arco_model::spec::ComponentSpec;
use arco_store::blob::content_path;
use std::sync::atomic::Ordering;

/// Keeps a stack of this machine in the platform, as `arco stack load` does.
async fn load(harness: &Harness, name: &str) {
    let say = |line: String| eprintln!("{line}");
    let made = make_stacks(&cache(), &BuilderConfig::default(), &[name.to_owned()], &say).await.unwrap();
    for (digest, file) in &made[0].files {
        harness.images.blobs().put_bytes(&content_path(digest), std::fs::read(file).unwrap().into()).await.unwrap();
    }
    let image = harness.images.write(&format!("stack/{name}"), &made[0].image).await.unwrap();
    harness.images.keep_stack(name, made[0].edition, &image.digest).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_stacks_are_loaded_or_made_by_steps() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let harness = Harness::start_with(folder.path().join("cache"), false).await;
    let source = tempfile::tempdir().unwrap();
    std::fs::write(
        source.path().join("Dockerfile"),
        "FROM debian:12\nRUN echo made > /made\nCMD [\"cat\", \"/made\"]\n",
    )
    .unwrap();
    let id = harness.component("own", ComponentSpec::new(harness.upload(source.path()).await)).await;
    let operation = harness.deploy(&id).await;
    let problem = operation.problem.unwrap();
    assert_eq!((operation.status, problem.code.as_str()), (OperationStatus::Failed, "stack_missing"));
    let edition = stack_edition("base").unwrap();
    assert!(problem.message.contains(&format!("`base` (edition {edition})")), "{problem:?}");
    assert!(problem.advice.contains("arco stack save") && problem.advice.contains("arco stack load"), "{problem:?}");

    load(&harness, "base").await;
    let operation = harness.deploy(&id).await;
    assert_eq!(operation.status, OperationStatus::RollingOut, "{:?}", operation.problem);

    // The web server comes from Debian's packages: a step installs it on the base, once.
    let (_, revision, _) = harness.built("site", &crate::harness::examples().join("static-site")).await;
    let image = harness.images.read(&revision.artifact).await.unwrap();
    let kept: Vec<String> = harness.images.stacks().await.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(kept, ["base", "web"]);
    let stack = harness.images.stack("web", stack_edition("web").unwrap()).await.unwrap().unwrap();
    let layers = harness.images.read(&stack).await.unwrap().layers;
    assert!(layers.len() == 3 && image.layers.starts_with(&layers), "{layers:?} below {:?}", image.layers);
    let ran = harness.orchestrator.ran.load(Ordering::SeqCst);
    harness.built("other", &crate::harness::examples().join("static-site")).await;
    assert_eq!(harness.orchestrator.ran.load(Ordering::SeqCst), ran, "the stack is made once");
    harness.stop().await;
}
