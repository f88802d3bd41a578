//! What the role does with an operation besides building: failing, cancelling, images as sources, quick redeploys.

use crate::harness::{Harness, PATIENCE, can_run, examples};
use arco_model::component::{Component, Revision};
use arco_model::id::OperationId;
use arco_model::job::Topic;
use arco_model::operation::{Operation, OperationStatus};
use arco_model::source::Source;
use arco_model::spec::ComponentSpec;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_leaves_the_component_and_says_why() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    let source = tempfile::tempdir().unwrap();
    std::fs::write(
        source.path().join("package.json"),
        r#"{"scripts":{"build":"echo broken >&2; exit 7","start":"x"}}"#,
    )
    .unwrap();
    let id = harness.component("fails", ComponentSpec::new(harness.upload(source.path()).await)).await;
    let operation = harness.deploy(&id).await;
    let problem = operation.problem.unwrap();
    assert_eq!((operation.status, problem.code.as_str()), (OperationStatus::Failed, "step_failed"));
    assert!(problem.message.contains("\"build\"") && problem.message.contains("status 7"), "{problem:?}");
    let component = harness.metadata.get::<Component>(id.as_str()).await.unwrap().unwrap().value;
    assert_eq!((component.generation, component.desired_revision), (1, None));
    harness.stop().await;
}

/// Begins one, and waits until its step runs.
async fn a_build_that_never_ends(harness: &Harness) -> OperationId {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(
        source.path().join("package.json"),
        r#"{"scripts":{"build":"echo begun; sleep 100000","start":"x"}}"#,
    )
    .unwrap();
    let id = harness.component("long", ComponentSpec::new(harness.upload(source.path()).await)).await;
    let operation = harness.ask(&id).await;
    let end = tokio::time::Instant::now() + PATIENCE;
    while !harness.log.lock().unwrap().iter().any(|it| it == "begun") {
        assert!(tokio::time::Instant::now() < end, "{:?}", harness.log.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    operation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_ends_soon() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    let operation = a_build_that_never_ends(&harness).await;
    harness
        .metadata
        .modify::<Operation>(operation.as_str(), |it| {
            it.cancel_asked = true;
            true
        })
        .await
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(300), harness.wait(&operation)).await;
    assert_eq!(ended.expect("what ran is ended").status, OperationStatus::Cancelled);
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_builder_has_built_meanwhile_is_not_ended() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    let operation = a_build_that_never_ends(&harness).await;
    // As the one that got the job when this one had been silent; the request to cancel is what ends the build here.
    harness
        .metadata
        .modify::<Operation>(operation.as_str(), |it| {
            (it.status, it.cancel_asked) = (OperationStatus::RollingOut, true);
            true
        })
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(300), harness.queue.passed(Topic::Builder)).await.unwrap().unwrap();
    let left = harness.metadata.get::<Operation>(operation.as_str()).await.unwrap().unwrap().value;
    assert_eq!((left.status, left.problem), (OperationStatus::RollingOut, None));
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_line_keeps_the_dependencies_and_an_image_can_be_deployed() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    let source = tempfile::tempdir().unwrap();
    for name in ["app.py", "requirements.txt"] {
        std::fs::copy(examples().join("python-flask").join(name), source.path().join(name)).unwrap();
    }
    let (id, first, _) = harness.built("flask", source.path()).await;
    let ran = harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst);
    let text = std::fs::read_to_string(source.path().join("app.py")).unwrap();
    std::fs::write(source.path().join("app.py"), format!("{text}\n# changed\n")).unwrap();
    harness.set_source(&id, harness.upload(source.path()).await).await;
    let operation = harness.deploy(&id).await;
    assert_eq!((operation.status, operation.revision_number), (OperationStatus::RollingOut, Some(2)));
    assert_eq!(ran, harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst), "nothing is installed again");
    eprintln!("one changed line: {} ms", operation.build_ms.unwrap());

    let again =
        harness.component("copy", ComponentSpec::new(Source::Image { reference: "demo/flask:r1".into() })).await;
    let operation = harness.deploy(&again).await;
    assert_eq!(operation.status, OperationStatus::RollingOut, "{:?}", operation.problem);
    let revision = harness.metadata.get::<Revision>(operation.revision.unwrap().as_str()).await.unwrap().unwrap().value;
    assert_eq!(revision.artifact, first.artifact);
    assert_eq!(revision.defaults.ports, first.defaults.ports);

    let missing =
        harness.component("missing", ComponentSpec::new(Source::Image { reference: "demo/none:1".into() })).await;
    assert_eq!(harness.deploy(&missing).await.problem.unwrap().code, "image_unknown");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_urls_of_the_server_itself_are_refused() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    for (at, url) in ["ext::sh -c id", "file:///etc", "--upload-pack=id"].into_iter().enumerate() {
        let source = Source::Git { url: url.into(), reference: String::new(), dir: String::new() };
        let id = harness.component(&format!("git-{at}"), ComponentSpec::new(source)).await;
        assert_eq!(harness.deploy(&id).await.problem.unwrap().code, "git_url_refused", "{url}");
    }
    assert_eq!(harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst), 0);
    harness.stop().await;
}
