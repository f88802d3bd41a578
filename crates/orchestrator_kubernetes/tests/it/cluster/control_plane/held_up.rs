//! A plan whose image cannot be read for a moment: it is held up as long as that lasts, with the reason, and no longer.

use super::{let_go, on_fake_nodes_with};
use arco_model::observed::{Observed, RolloutFacts};
use arco_orchestrator::contract::{plan, reached, ready};
use arco_orchestrator::{Error, Orchestrator as _, Removal};
use arco_store::blob::{BlobError, BlobStat, Blobs, ByteStream, MemoryBlobs};
use arco_store::images::{Image, Images};
use arco_store::sql::MemoryMetadata;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Blobs of which none can be read while the store is away.
#[derive(Default)]
struct Blinking {
    kept: MemoryBlobs,
    away: AtomicBool,
}

impl Blinking {
    fn go_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

#[async_trait]
impl Blobs for Blinking {
    fn name(&self) -> &'static str {
        self.kept.name()
    }

    async fn put(&self, path: &str, content: ByteStream) -> Result<u64, BlobError> {
        self.kept.put(path, content).await
    }

    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError> {
        if self.away.load(Ordering::SeqCst) {
            let source = std::io::Error::other("the store is away");
            return Err(BlobError::Io { step: "read", path: path.to_owned(), source });
        }
        self.kept.get(path, offset).await
    }

    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError> {
        self.kept.stat(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError> {
        self.kept.list(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.kept.delete(path).await
    }

    fn local_file(&self, path: &str) -> Option<std::path::PathBuf> {
        self.kept.local_file(path)
    }
}

/// What facts say is wrong.
fn faults(it: &Observed) -> Vec<&str> {
    it.instances.iter().filter_map(|it| it.fault.as_deref()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_be_read_for_a_moment_holds_a_plan_up_no_longer() {
    let blobs = Arc::new(Blinking::default());
    let images = Images::new(Arc::new(MemoryMetadata::default()), blobs.clone());
    let image = images.write("default/demo/web", &Image::default()).await.unwrap();
    on_fake_nodes_with((images, image), |place| async move {
        let driver = place.driver.as_ref();
        let first = plan(place.image.clone(), &["serve"]);
        let id = first.component.clone();
        driver.apply(&first).await.unwrap();
        let before = reached(driver, &first).await;

        // Of a component that serves: it goes on by the plan from before, and facts say what is the matter.
        blobs.go_away(true);
        let mut second = first.clone();
        second.replicas = 2;
        let error = driver.apply(&second).await.unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error:?}");
        let told = driver.observe(&id).await.unwrap();
        let said = faults(&told);
        assert!(said.len() == 1 && said[0].contains("read the image default/demo/web"), "{told:#?}");
        assert!(said[0].contains("the store is away"), "{said:?}");
        assert_eq!((told.plan.as_str(), &told.rollout), ("", &RolloutFacts::Progressing), "it is given again");
        assert_eq!((ready(&told), told.address), (ready(&before), before.address));
        // It is not asked for any more: nothing is the matter.
        driver.apply(&first).await.unwrap();
        let told = driver.observe(&id).await.unwrap();
        assert_eq!((told.plan.as_str(), faults(&told).len()), (first.fingerprint().as_str(), 0));
        driver.apply(&second).await.unwrap_err();
        blobs.go_away(false);
        driver.apply(&second).await.unwrap();
        let two = reached(driver, &second).await;
        assert_eq!((ready(&two).len(), faults(&two).len()), (2, 0));

        // Another process takes over meanwhile: nothing of what runs is touched, and then it is followed again.
        driver.shutdown(false).await.unwrap();
        blobs.go_away(true);
        let next = place.restarted().await;
        next.apply(&second).await.unwrap_err();
        let told = next.observe(&id).await.unwrap();
        assert_eq!((ready(&told), faults(&told).len()), (ready(&two), 1));
        blobs.go_away(false);
        next.apply(&second).await.unwrap();
        assert_eq!(ready(&reached(next.as_ref(), &second).await), ready(&two));
        second.replicas = 1;
        next.apply(&second).await.unwrap();
        let_go(next.as_ref(), &second).await;

        // What is no image is refused with the plan, as what else is wrong with it.
        let mut third = second.clone();
        third.template.image.repository = "default/demo/none".to_owned();
        next.apply(&third).await.unwrap();
        let told = next.observe(&id).await.unwrap();
        assert!(matches!(told.rollout, RolloutFacts::Halted { .. }), "{told:#?}");
        assert_eq!(told.plan, third.fingerprint());
        next.remove(&id, &Removal::Everything).await.unwrap();
        next.shutdown(false).await.unwrap();
    })
    .await;
}
