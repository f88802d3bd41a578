//! Layers of earlier builds of a component, by a key over everything that made them.

use arco_model::artifact::{Digest, Layer};
use arco_model::id::ComponentId;
use arco_model::plan::CacheFolder;
use arco_store::blob::{builds_path, content_path};
use arco_store::images::Images;
use std::path::{Path, PathBuf};

/// Raised when steps are run in another way, so that what older versions made is not used.
const EDITION: &str = "1";

/// Largest note of a layer, in bytes.
const NOTE_MAX: usize = 64 << 10;

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

    /// A kept folder for package clients, which steps see at `path`. Steps run as another user than this process, so it is open to all; the
    /// folder above it is not.
    pub(crate) fn folder(&self, name: &str, path: &str) -> std::io::Result<CacheFolder> {
        use std::os::unix::fs::PermissionsExt as _;
        let host_path = self.folder.join("folders").join(name);
        if !host_path.is_dir() {
            std::fs::create_dir_all(&host_path)?;
            std::fs::set_permissions(&host_path, std::fs::Permissions::from_mode(0o777))?;
        }
        Ok(CacheFolder { name: name.to_owned(), path: path.to_owned(), host_path })
    }

    fn note(&self, key: &Key) -> String {
        format!("{}layers/{}.json", self.path, key.text())
    }

    /// The layer of a key, if it is known and still in the store.
    pub(crate) async fn get(&self, key: &Key, images: &Images) -> Option<Layer> {
        let text = images.blobs().get_bytes(&self.note(key), NOTE_MAX).await.ok()?;
        let layer: Layer = serde_json::from_slice(&text).ok()?;
        let there = images.blobs().stat(&content_path(&layer.blob.digest)).await.ok()?.is_some();
        there.then_some(layer)
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

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::artifact::Descriptor;
    use arco_store::blob::MemoryBlobs;
    use arco_store::clock;
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
}
