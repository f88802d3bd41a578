//! Layers of earlier builds of a component, by a key over everything that made them.

use arco_model::artifact::{Digest, Layer};
use arco_model::id::ComponentId;
use arco_store::blob::content_path;
use arco_store::images::Images;
use std::path::{Path, PathBuf};

/// Raised when steps are run in another way, so that what older versions made is not used.
const EDITION: &str = "1";

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

/// What is kept of a component's builds.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(crate) fn new(data_dir: &Path, component: &ComponentId) -> Self {
        Self { folder: data_dir.join("cache/builds").join(component.as_str()) }
    }

    /// A kept folder for package clients. Steps run as another user than this process, so it is open to all; the
    /// folder above it is not.
    pub(crate) fn folder(&self, name: &str) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = self.folder.join("folders").join(name);
        if !folder.is_dir() {
            std::fs::create_dir_all(&folder)?;
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        }
        Ok(folder)
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.folder.join("layers").join(format!("{}.json", key.text()))
    }

    /// The layer of a key, if it is known and still in the store.
    pub(crate) async fn get(&self, key: &Key, images: &Images) -> Option<Layer> {
        let text = tokio::fs::read(self.file(key)).await.ok()?;
        let layer: Layer = serde_json::from_slice(&text).ok()?;
        let there = images.blobs().stat(&content_path(&layer.blob.digest)).await.ok()?.is_some();
        there.then_some(layer)
    }

    /// Keeps a layer under a key. Failing only costs time later.
    pub(crate) async fn put(&self, key: &Key, layer: &Layer) {
        let file = self.file(key);
        let write = async {
            let folder = file.parent().unwrap_or(&self.folder);
            tokio::fs::create_dir_all(folder).await?;
            let partial = file.with_extension("partial");
            tokio::fs::write(&partial, serde_json::to_vec(layer)?).await?;
            tokio::fs::rename(&partial, &file).await
        };
        if let Err(error) = write.await {
            tracing::warn!(file = %file.display(), error = %error, "a built layer could not be noted; the next build makes it again");
        }
    }
}
