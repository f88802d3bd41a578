//! Every example is built; what did not change is not built again.

use crate::harness::{Harness, can_run, examples};

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_built() {
    if !can_run() {
        return;
    }
    let harness = Harness::start().await;
    let only = std::env::var("ARCO_TEST_EXAMPLE").ok();
    let mut folders: Vec<_> =
        std::fs::read_dir(examples()).unwrap().map(|it| it.unwrap().path()).filter(|it| it.is_dir()).collect();
    folders.sort();
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if only.as_ref().is_some_and(|it| !name.contains(it)) {
            continue;
        }
        let (id, revision, first_ms) = harness.built(&name, &folder).await;
        let image = harness.images.read(&revision.artifact).await.unwrap();
        assert!(
            image.layers.len() > 1 && !revision.ports().is_empty() && revision.defaults.command.is_some(),
            "{name}: {revision:?}"
        );
        let ran = harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst);
        let again = harness.deploy(&id).await;
        assert_eq!(again.revision, Some(revision.id), "{name}: the same source makes no new revision");
        assert_eq!(ran, harness.orchestrator.ran.load(std::sync::atomic::Ordering::SeqCst), "{name}: nothing ran");
        eprintln!("{name}: {first_ms} ms, again {} ms, runs {:?}", again.build_ms.unwrap(), revision.defaults.command);
    }
    harness.stop().await;
}
