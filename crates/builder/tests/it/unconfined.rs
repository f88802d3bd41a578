//! A builder whose steps have no user namespace: what must be root is refused before anything of it runs, steps of a language
//! are users without rights, and the rest is built.

use crate::harness::{Harness, can_run, examples};
use arco_config::WithoutUserNamespace;
use arco_model::operation::OperationStatus;
use arco_model::spec::ComponentSpec;
use std::path::Path;
use std::sync::atomic::Ordering;

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        std::fs::write(folder.join(path), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_root_of_the_node_is_refused_before_it_runs() {
    if !can_run() {
        return;
    }
    let harness = Harness::start_unconfined(WithoutUserNamespace::Refuse).await;
    let copied = "FROM debian:12 AS unused\nRUN exit 1\nFROM debian:12\nCOPY a.txt /a.txt\nCMD [\"cat\", \"/a.txt\"]\n";
    let run =
        "FROM debian:12 AS first\nCOPY a.txt /a.txt\nRUN touch /made\nFROM debian:12\nCOPY --from=first /made /\n";
    let user = "FROM debian:12\nUSER 1000\nRUN id\n";
    for (name, files, part) in [
        ("run", &[("Dockerfile", run), ("a.txt", "a")][..], "Dockerfile line 3: RUN would run as root"),
        ("user", &[("Dockerfile", user)][..], "Dockerfile line 3: RUN would run as root"),
    ] {
        let source = tempfile::tempdir().unwrap();
        write(source.path(), files);
        let id = harness.component(name, ComponentSpec::new(harness.upload(source.path()).await)).await;
        let operation = harness.deploy(&id).await;
        let problem = operation.problem.unwrap();
        assert_eq!(
            (operation.status, problem.code.as_str()),
            (OperationStatus::Failed, "build_unconfined"),
            "{problem:?}"
        );
        assert!(problem.message.contains(part), "{name}: {problem:?}");
        assert!(problem.advice.contains("`builder.without_user_namespace = \"allow\"`"), "{name}: {problem:?}");
    }
    let source = tempfile::tempdir().unwrap();
    write(source.path(), &[("Dockerfile", copied), ("a.txt", "a")]);
    harness.built("copied", source.path()).await;
    harness.built("site", &examples().join("static-site")).await;
    let counts = || [&harness.orchestrator.ran, &harness.orchestrator.unprivileged].map(|it| it.load(Ordering::SeqCst));
    assert_eq!(counts(), [0, 0], "nothing of anybody ran");
    // Steps of a language need no root.
    harness.built("script", &examples().join("python-flask")).await;
    let [ran, unprivileged] = counts();
    assert!(ran > 0 && unprivileged == ran, "{unprivileged} of {ran} steps ran as a user without rights");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_can_allow_it() {
    if !can_run() {
        return;
    }
    let harness = Harness::start_unconfined(WithoutUserNamespace::Allow).await;
    let source = tempfile::tempdir().unwrap();
    write(source.path(), &[("Dockerfile", "FROM debian:12\nRUN touch /made\n")]);
    let id = harness.component("allowed", ComponentSpec::new(harness.upload(source.path()).await)).await;
    let operation = harness.deploy(&id).await;
    assert_eq!(operation.status, OperationStatus::RollingOut, "{:?}", operation.problem);
    harness.built("script", &examples().join("python-flask")).await;
    assert!(harness.orchestrator.ran.load(Ordering::SeqCst) > 1);
    assert_eq!(harness.orchestrator.unprivileged.load(Ordering::SeqCst), 0, "they are root, as it is allowed");
    harness.stop().await;
}
