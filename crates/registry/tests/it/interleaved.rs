//! Two servers on the same stores: one pushes what the other is about to collect. Who collects halts where the test says.

use super::*;
use crate::chores::{NOW, age};
use arco_model::artifact::{Descriptor, Layer};
use arco_model::time::Timestamp;
use arco_registry::garbage::{Collected, collect};
use arco_store::blob::{BlobError, BlobStat, Blobs, ByteStream, MemoryBlobs};
use arco_store::clock;
use arco_store::images::{CondemnedRow, Image, ImageError, LAYER_GZIP_TYPE};
use arco_store::sql::{Batch, Kind, Metadata, Page, Query, Row, SharedMetadata, SqlError, Write};
use async_trait::async_trait;
use std::collections::HashSet;
use tokio::sync::Notify;

const LAYER: &[u8] = b"a layer";

/// A point that somebody comes to, and does not go past before the test says so.
#[derive(Default)]
struct Halt {
    reached: Notify,
    go: Notify,
}

impl Halt {
    async fn here(&self) {
        self.reached.notify_one();
        self.go.notified().await;
    }
}

/// Rows that halt before such a write, and tell who looks at what is condemned.
struct Rows {
    kept: Arc<MemoryMetadata>,
    before: fn(&Write) -> bool,
    halt: Arc<Halt>,
    looked: Arc<Notify>,
}

impl Rows {
    fn of(kept: &Arc<MemoryMetadata>, before: fn(&Write) -> bool) -> (Arc<Self>, Arc<Halt>) {
        let halt = Arc::new(Halt::default());
        (Arc::new(Self { kept: kept.clone(), before, halt: halt.clone(), looked: Arc::default() }), halt)
    }
}

#[async_trait]
impl Metadata for Rows {
    fn name(&self) -> &'static str {
        self.kept.name()
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        self.kept.get_row(kind, key).await
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        let page = self.kept.list_rows(kind, query).await;
        if kind == Kind::Condemned {
            self.looked.notify_one();
        }
        page
    }

    async fn commit(&self, batch: Batch) -> Result<(), SqlError> {
        if batch.writes.iter().any(self.before) {
            self.halt.here().await;
        }
        self.kept.commit(batch).await
    }

    async fn ping(&self) -> Result<(), SqlError> {
        self.kept.ping().await
    }
}

/// Blobs that halt before content is deleted.
struct Halting {
    kept: Arc<MemoryBlobs>,
    halt: Arc<Halt>,
}

#[async_trait]
impl Blobs for Halting {
    fn name(&self) -> &'static str {
        self.kept.name()
    }

    async fn put(&self, path: &str, content: ByteStream) -> Result<u64, BlobError> {
        self.kept.put(path, content).await
    }

    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError> {
        self.kept.get(path, offset).await
    }

    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError> {
        self.kept.stat(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError> {
        self.kept.list(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.halt.here().await;
        self.kept.delete(path).await
    }

    fn local_file(&self, path: &str) -> Option<std::path::PathBuf> {
        self.kept.local_file(path)
    }
}

/// Stores with a layer that nothing names, and the server that pushes.
struct World {
    rows: Arc<MemoryMetadata>,
    blobs: Arc<MemoryBlobs>,
    pushes: Images,
}

impl World {
    async fn new() -> Self {
        let (rows, blobs) = (Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
        let pushes = Images::new(rows.clone(), blobs.clone());
        pushes.put_content_bytes(LAYER.into()).await.unwrap();
        age().await;
        Self { rows, blobs, pushes }
    }

    /// As [`Self::new`], after a first collection.
    async fn condemned() -> Self {
        let it = Self::new().await;
        assert_eq!(collect(&it.pushes, &HashSet::new(), NOW).await.unwrap(), Collected::default());
        assert_eq!(it.pushes.condemned().await.unwrap().len(), 1);
        age().await;
        it
    }

    /// Another server collects.
    fn collects(&self, rows: SharedMetadata, blobs: Arc<dyn Blobs>) -> tokio::task::JoinHandle<Collected> {
        let images = Images::new(rows, blobs);
        tokio::spawn(async move { collect(&images, &HashSet::new(), NOW).await.unwrap() })
    }

    async fn has_layer(&self) -> bool {
        self.pushes.claim(&Digest::of(LAYER)).await.unwrap().is_some()
    }
}

/// An image with the layer.
fn image() -> Image {
    let digest = Digest::of(LAYER);
    let blob = Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest: digest.clone(), size: LAYER.len() as u64 };
    Image { layers: vec![Layer { blob, diff_id: digest }], ..Image::default() }
}

fn begins_a_deletion(write: &Write) -> bool {
    matches!(write, Write::Update(Kind::Condemned, _))
}

#[tokio::test]
async fn what_is_named_again_after_the_names_were_read_stays() {
    let it = World::condemned().await;
    let (rows, halt) = Rows::of(&it.rows, begins_a_deletion);
    let collecting = it.collects(rows, it.blobs.clone());
    halt.reached.notified().await;
    let pushed = it.pushes.write(REPOSITORY, &image()).await.unwrap();
    halt.go.notify_one();
    assert_eq!(collecting.await.unwrap(), Collected::default());
    assert!(it.has_layer().await && it.pushes.read(&pushed).await.is_ok());
    assert!(it.pushes.condemned().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_pusher_was_told_of_stays_although_it_names_it_later() {
    let it = World::condemned().await;
    assert!(it.has_layer().await, "a claim");
    assert_eq!(collect(&it.pushes, &HashSet::new(), NOW).await.unwrap(), Collected::default(), "condemned anew");
    it.pushes.write(REPOSITORY, &image()).await.unwrap();
    assert!(it.pushes.condemned().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_being_deleted_is_gone_for_who_names_it_and_can_be_pushed_again() {
    let it = World::condemned().await;
    let halt = Arc::new(Halt::default());
    let collecting = it.collects(it.rows.clone(), Arc::new(Halting { kept: it.blobs.clone(), halt: halt.clone() }));
    halt.reached.notified().await;
    let (rows, _) = Rows::of(&it.rows, |_| false);
    let looked = rows.looked.clone();
    let pushes = Images::new(rows, it.blobs.clone());
    let pushing = tokio::spawn(async move { pushes.write(REPOSITORY, &image()).await });
    // Its configuration is claimed first, then that again, then the layer.
    for _ in 0..3 {
        looked.notified().await;
    }
    halt.go.notify_one();
    assert_eq!(collecting.await.unwrap().blobs, 1);
    let refused = pushing.await.unwrap().unwrap_err();
    assert!(matches!(&refused, ImageError::Invalid { why, .. } if why.contains("push it first")), "{refused}");

    it.pushes.put_content_bytes(LAYER.into()).await.unwrap();
    it.pushes.write(REPOSITORY, &image()).await.unwrap();
    assert!(it.has_layer().await && it.pushes.condemned().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_deletion_that_was_cut_off_holds_nobody_up_for_ever() {
    let it = World::new().await;
    let cut = CondemnedRow {
        id: clock::fresh(),
        digest: Digest::of(LAYER),
        since: Timestamp(1),
        deleting: Some(Timestamp(1)),
    };
    let rows: SharedMetadata = it.rows.clone();
    rows.insert(&cut).await.unwrap();
    it.pushes.put_content_bytes(LAYER.into()).await.unwrap();
    assert!(it.has_layer().await && it.pushes.condemned().await.unwrap().is_empty());
    // Without anybody who pushes, the next collection ends it.
    rows.insert(&cut).await.unwrap();
    age().await;
    assert_eq!(collect(&it.pushes, &HashSet::new(), NOW).await.unwrap().blobs, 1);
    assert!(!it.has_layer().await);
}

#[tokio::test]
async fn a_manifest_that_an_index_names_meanwhile_stays() {
    let it = World::new().await;
    let child = it.pushes.write(REPOSITORY, &image()).await.unwrap().digest;
    age().await;
    let (rows, halt) = Rows::of(&it.rows, |write| matches!(write, Write::Delete(Kind::Manifest, ..)));
    let collecting = it.collects(rows, it.blobs.clone());
    halt.reached.notified().await;
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": arco_store::images::MANIFEST_TYPE, "digest": child, "size": 1 },
    ]});
    let media_type = "application/vnd.oci.image.index.v1+json";
    it.pushes.put_manifest(REPOSITORY, media_type, index.to_string().into()).await.unwrap();
    halt.go.notify_one();
    assert_eq!(collecting.await.unwrap(), Collected::default());
    assert!(it.pushes.manifest(REPOSITORY, &child).await.unwrap().is_some() && it.has_layer().await);
}

#[tokio::test]
async fn an_image_that_a_batch_names_meanwhile_stays() {
    let it = World::new().await;
    let old = it.pushes.write(REPOSITORY, &image()).await.unwrap();
    age().await;
    let (rows, halt) = Rows::of(&it.rows, |write| matches!(write, Write::Delete(Kind::Manifest, ..)));
    let collecting = it.collects(rows, it.blobs.clone());
    halt.reached.notified().await;
    let mut batch = Batch::default();
    it.pushes.hold_with(&mut batch, &old).await.unwrap();
    it.rows.commit(batch).await.unwrap();
    halt.go.notify_one();
    assert_eq!(collecting.await.unwrap(), Collected::default());
    assert!(it.pushes.read(&old).await.is_ok() && it.has_layer().await);
    // Named by nobody again, it goes, and nobody can name it any more.
    age().await;
    assert_eq!(collect(&it.pushes, &HashSet::new(), NOW).await.unwrap().manifests, 1);
    let gone = it.pushes.hold_with(&mut Batch::default(), &old).await;
    assert!(matches!(gone, Err(ImageError::NotFound(_))), "{gone:?}");
}
