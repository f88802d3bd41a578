//! What builds of a component leave for its next ones: layers, by a key over everything that made them, and folders of
//! package clients.
//!
//! What must hold: no component sees what another one left. Not here: folders while a step runs (drivers).

use crate::storage;
use arco_model::artifact::{Digest, Layer};
use arco_model::error::Problem;
use arco_model::id::ComponentId;
use arco_model::plan::CacheFolder;
use arco_model::time::Timestamp;
use arco_store::blob::{BUILD_FOLDERS, BUILDS, BlobError, BlobStat, builds_path};
use arco_store::clock;
use arco_store::images::Images;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Raised when steps are run in another way, so that what older versions made is not used.
const EDITION: &str = "1";

/// Largest note of a layer, in bytes.
const NOTE_MAX: usize = 64 << 10;
/// Age from which a folder of package clients in the blob store is dropped, in ms: no build has written it for 30 days.
const UNUSED_MS: u64 = 30 * 24 * 3_600_000;
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(6 * 3600);

/// Puts a key together; parts cannot run into each other.
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn new(kind: &str) -> Self {
        Self(Vec::new()).with(EDITION).with(kind)
    }

    pub(crate) fn with(mut self, part: &str) -> Self {
        self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
        self.0.extend_from_slice(part.as_bytes());
        self
    }

    pub(crate) fn all<'a>(self, parts: impl IntoIterator<Item = &'a str>) -> Self {
        parts.into_iter().fold(self, Self::with)
    }

    /// 64 hex digits.
    pub(crate) fn text(&self) -> String {
        Digest::of(&self.0).hex().to_owned()
    }
}

/// What is kept of a component's builds: in the blob store, and, where steps run on this machine, in a folder of it.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    /// Beginning of the blobs.
    path: String,
}

impl Cache {
    pub(crate) fn new(data_dir: &Path, component: &ComponentId) -> Self {
        Self { folder: data_dir.join("cache/builds").join(component.as_str()), path: builds_path(component) }
    }

    /// A kept folder for package clients, which steps see at `path`. Steps run as another user than this process, so it
    /// is open to all; the folder above it is not.
    pub(crate) fn folder(&self, name: &str, path: &str) -> std::io::Result<CacheFolder> {
        use std::os::unix::fs::PermissionsExt as _;
        let host_path = self.folder.join("folders").join(name);
        if !host_path.is_dir() {
            std::fs::create_dir_all(&host_path)?;
            std::fs::set_permissions(&host_path, std::fs::Permissions::from_mode(0o777))?;
        }
        Ok(CacheFolder { name: name.to_owned(), path: path.to_owned(), host_path })
    }

    /// Empties the kept folders, for a build without caches.
    pub(crate) async fn empty(&self, images: &Images) -> Result<(), Problem> {
        let fault = storage("empty the caches of the component");
        match tokio::fs::remove_dir_all(self.folder.join("folders")).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fault(&error)),
            _ => {}
        }
        images.blobs().delete_below(&format!("{}{BUILD_FOLDERS}", self.path)).await.map_err(|it| fault(&it))
    }

    fn note(&self, key: &Key) -> String {
        format!("{}layers/{}.json", self.path, key.text())
    }

    /// The layer of a key, if it is known and still in the store.
    pub(crate) async fn get(&self, key: &Key, images: &Images) -> Option<Layer> {
        let text = images.blobs().get_bytes(&self.note(key), NOTE_MAX).await.ok()?;
        let layer: Layer = serde_json::from_slice(&text).ok()?;
        images.claim(&layer.blob.digest).await.ok()?.map(|_| layer)
    }

    /// Keeps a layer under a key. Failing only costs time later.
    pub(crate) async fn put(&self, key: &Key, layer: &Layer, images: &Images) {
        let note = self.note(key);
        let Ok(text) = serde_json::to_vec(layer) else { return };
        if let Err(error) = images.blobs().put_bytes(&note, text.into()).await {
            tracing::warn!(note, %error, "a built layer could not be noted; the next build makes it again");
        }
    }
}

/// Drops folders that no build uses any more, now and then, until `token` fires. Every builder may do it.
pub(crate) async fn drop_unused(images: &Images, token: &CancellationToken) {
    loop {
        if let Err(error) = drop_unused_at(images, clock::now()).await {
            tracing::warn!(%error, "caches that no build uses stay for now");
        }
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn drop_unused_at(images: &Images, now: Timestamp) -> Result<(), BlobError> {
    let unused = |it: &BlobStat| {
        let inside = it.path.strip_prefix(BUILDS).and_then(|it| it.split_once('/'));
        inside.is_some_and(|it| it.1.starts_with(BUILD_FOLDERS)) && now.since_ms(it.modified) > UNUSED_MS
    };
    for found in images.blobs().list(BUILDS).await?.iter().filter(|it| unused(it)) {
        images.blobs().delete(&found.path).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::artifact::Descriptor;
    use arco_store::blob::{MemoryBlobs, content_path};
    use arco_store::images::LAYER_ZSTD_TYPE;
    use arco_store::sql::MemoryMetadata;
    use std::sync::Arc;

    /// A builder of its own: it shares the stores with others and nothing else.
    fn builder(component: &ComponentId) -> Cache {
        Cache::new(Path::new("/nowhere"), component)
    }

    #[tokio::test]
    async fn layers_are_found_by_every_builder_of_the_component_while_they_are_there() {
        let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
        let (component, other): (ComponentId, ComponentId) = (clock::fresh(), clock::fresh());
        let key = Key::new("step").with("install");
        let digest = Digest::of(b"a layer");
        let blob = Descriptor { media_type: LAYER_ZSTD_TYPE.to_owned(), digest: digest.clone(), size: 7 };
        let layer = Layer { blob, diff_id: digest.clone() };
        builder(&component).put(&key, &layer, &images).await;
        assert_eq!(builder(&component).get(&key, &images).await, None, "its content is not in the store");
        images.blobs().put_bytes(&content_path(&digest), "a layer".into()).await.unwrap();
        assert_eq!(builder(&component).get(&key, &images).await, Some(layer));
        assert_eq!(builder(&component).get(&Key::new("step").with("other"), &images).await, None);
        assert_eq!(builder(&other).get(&key, &images).await, None, "of another component");
    }

    #[tokio::test]
    async fn folders_go_when_they_are_not_used_and_when_a_build_begins_without_them() {
        let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
        let (component, other): (ComponentId, ComponentId) = (clock::fresh(), clock::fresh());
        let data = tempfile::tempdir().unwrap();
        let cache = Cache::new(data.path(), &component);
        let paths =
            async || -> Vec<String> { images.blobs().list("").await.unwrap().into_iter().map(|it| it.path).collect() };
        let [note, folder, others] = [
            format!("builds/{component}/layers/{}.json", Key::new("a").text()),
            format!("builds/{component}/folders/npm.tar.zst"),
            format!("builds/{other}/folders/npm.tar.zst"),
        ];
        for path in [&note, &folder, &others] {
            images.blobs().put_bytes(path, "x".into()).await.unwrap();
        }
        let written = async |path: &str| images.blobs().stat(path).await.unwrap().unwrap().modified;
        let (first, last) = (written(&folder).await, written(&others).await);
        let here = cache.folder("npm", "/cache/npm").unwrap().host_path;
        std::fs::write(here.join("package"), "x").unwrap();

        drop_unused_at(&images, first.plus_ms(UNUSED_MS)).await.unwrap();
        assert_eq!(paths().await.len(), 3);
        cache.empty(&images).await.unwrap();
        cache.empty(&images).await.unwrap();
        let mut left = [note.clone(), others];
        left.sort();
        assert_eq!((paths().await, here.exists()), (left.to_vec(), false));
        drop_unused_at(&images, last.plus_ms(UNUSED_MS + 1)).await.unwrap();
        assert_eq!(paths().await, [note], "layers go when nothing runs them");
    }
}
