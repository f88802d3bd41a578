//! Images: manifests and tags as rows, layers and configurations as blobs.
//!
//! Registry, builder and orchestrator meet here: what the builder writes, the registry serves and the orchestrator
//! runs. Manifests follow the OCI image spec 1.1; Docker's media types are understood when they are pushed.

mod condemned;
mod sent;
mod stacks;

pub use condemned::CondemnedRow;
pub use stacks::{KeptStack, stack_repository};

use crate::blob::{BlobError, SharedBlobs, content_path};
use crate::clock;
use crate::sql::{Batch, Entity, Kind, Query, SharedMetadata, SqlError, Versioned};
use arco_model::artifact::{Descriptor, Digest, ImageConfig, ImageRef, Layer};
use arco_model::time::Timestamp;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Media type of an OCI manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image configuration.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a gzip-compressed layer.
pub const LAYER_GZIP_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a zstd-compressed layer.
pub const LAYER_ZSTD_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Largest manifest or configuration, in bytes.
pub const MANIFEST_MAX: usize = 4 << 20;

/// 32 hex digits that stand for a text of any length in a key.
pub fn short_hash(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()[..32].to_owned()
}

/// A manifest of a repository.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ManifestRow {
    /// Repository.
    pub repository: String,
    /// Digest of the document, which lies in the blob store.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Bytes of the document.
    pub size: u64,
    /// Every blob that it names: configuration, layers, other manifests.
    pub references: Vec<Digest>,
    /// The manifest that it says something about (a signature, a bill of materials); it need not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// When it was put last.
    pub created_at: Timestamp,
}

impl Entity for ManifestRow {
    const KIND: Kind = Kind::Manifest;
    fn key(&self) -> String {
        manifest_key(&self.repository, &self.digest)
    }
    fn parent(&self) -> String {
        short_hash(&self.repository)
    }
    fn name(&self) -> String {
        self.digest.to_string()
    }
    fn tag(&self) -> String {
        self.repository.chars().take(100).collect()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

fn manifest_key(repository: &str, digest: &Digest) -> String {
    format!("{}/{}", short_hash(repository), digest.hex())
}

/// A tag of a repository.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TagRow {
    /// Repository.
    pub repository: String,
    /// Tag.
    pub tag: String,
    /// Manifest that it points at.
    pub digest: Digest,
    /// A person set it: it holds its manifest. Other tags of components only name what a revision holds.
    #[serde(default)]
    pub pinned: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Entity for TagRow {
    const KIND: Kind = Kind::Tag;
    fn key(&self) -> String {
        format!("{}/{}", short_hash(&self.repository), short_hash(&self.tag))
    }
    fn parent(&self) -> String {
        short_hash(&self.repository)
    }
    fn name(&self) -> String {
        self.tag.clone()
    }
    fn tag(&self) -> String {
        self.digest.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// Why an image cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such manifest or tag.
    #[error("image `{0}` does not exist")]
    NotFound(String),
    /// A document is not what it should be.
    #[error("image `{image}` is not usable: {why}")]
    Invalid {
        /// Which image.
        image: String,
        /// Why.
        why: String,
    },
    /// Rows.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Blobs.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// What runs an image: its layers and how it is started.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Image {
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// How it is started.
    pub config: ImageConfig,
}

/// Images over metadata and blobs.
#[derive(Clone)]
pub struct Images {
    metadata: SharedMetadata,
    blobs: SharedBlobs,
}

impl Images {
    /// Images over these stores.
    pub fn new(metadata: SharedMetadata, blobs: SharedBlobs) -> Self {
        Self { metadata, blobs }
    }

    /// The blob store below.
    pub fn blobs(&self) -> &SharedBlobs {
        &self.blobs
    }

    /// The metadata store below.
    pub fn metadata(&self) -> &SharedMetadata {
        &self.metadata
    }

    /// Writes configuration and manifest for layers that are in the blob store already; returns the reference.
    /// The same image gives the same digest.
    pub async fn write(&self, repository: &str, image: &Image) -> Result<ImageRef, ImageError> {
        let invalid = |it: serde_json::Error| ImageError::Invalid { image: repository.to_owned(), why: it.to_string() };
        let Documents { config, manifest } = documents(image).map_err(invalid)?;
        self.put_content_bytes(config).await?;
        let digest = self.put_manifest(repository, MANIFEST_TYPE, manifest).await?;
        Ok(ImageRef { repository: repository.to_owned(), digest })
    }

    /// Keeps a manifest document; every blob that it names must be there. Returns its digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        media_type: &str,
        document: Bytes,
    ) -> Result<Digest, ImageError> {
        let digest = Digest::of(&document);
        let invalid = |why: String| ImageError::Invalid { image: format!("{repository}@{digest}"), why };
        let parsed: WireManifest = serde_json::from_slice(&document).map_err(|it| invalid(it.to_string()))?;
        let mut references = Vec::new();
        for named in parsed.config.iter().chain(&parsed.layers) {
            if self.claim(&named.digest).await?.is_none() {
                return Err(invalid(format!("blob {} is missing; push it first", named.digest)));
            }
            references.push(named.digest.clone());
        }
        let now = clock::now();
        let touch = |found: &mut ManifestRow| {
            found.created_at = now;
            true
        };
        for named in &parsed.manifests {
            // Young again, so that no collection that has seen nothing name it takes it meanwhile.
            if self.metadata.modify(&manifest_key(repository, &named.digest), touch).await?.is_none() {
                return Err(invalid(format!("manifest {} is missing; push it first", named.digest)));
            }
            references.push(named.digest.clone());
        }
        let size = document.len() as u64;
        self.put_content_bytes(document).await?;
        let row = ManifestRow {
            repository: repository.to_owned(),
            digest: digest.clone(),
            media_type: media_type.to_owned(),
            size,
            references,
            subject: parsed.subject.map(|it| it.digest),
            created_at: now,
        };
        // One that is there becomes young again: what was put just now is not garbage, although nothing points at it yet.
        loop {
            match self.metadata.insert(&row).await {
                Ok(()) => return Ok(digest),
                Err(SqlError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if self.metadata.modify(&row.key(), touch).await?.is_some() {
                return Ok(digest);
            }
        }
    }

    /// The row of a manifest.
    pub async fn manifest(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<Versioned<ManifestRow>>, ImageError> {
        Ok(self.metadata.get(&manifest_key(repository, digest)).await?)
    }

    /// Lets a tag of the platform's own point at a manifest that is there. In the repository of a component it goes
    /// when no revision holds the manifest any longer.
    pub async fn tag(&self, repository: &str, tag: &str, digest: &Digest) -> Result<(), ImageError> {
        self.set_tag(repository, tag, digest, false).await
    }

    /// The same as a part of `batch`: whoever sees what is written with it finds the tag. The batch is refused when somebody
    /// else changes the tag before.
    pub async fn tag_with(
        &self,
        batch: &mut Batch,
        repository: &str,
        tag: &str,
        digest: &Digest,
    ) -> Result<(), ImageError> {
        let row = TagRow {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: digest.clone(),
            pinned: false,
            created_at: clock::now(),
        };
        let found = self.metadata.get::<TagRow>(&row.key()).await?;
        match found {
            None => {
                batch.insert(&row)?;
            }
            Some(mut found) if found.value.pinned || found.value.digest != row.digest => {
                (found.value.pinned, found.value.digest) = (false, row.digest);
                batch.update(&found)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Makes a manifest young again as a part of `batch`: who names it in what is written with it has it, whatever is collected
    /// meanwhile. The batch is refused when it went before.
    pub async fn hold_with(&self, batch: &mut Batch, image: &ImageRef) -> Result<(), ImageError> {
        let Some(mut found) = self.manifest(&image.repository, &image.digest).await? else {
            return Err(ImageError::NotFound(format!("{}@{}", image.repository, image.digest)));
        };
        found.value.created_at = clock::now();
        batch.update(&found)?;
        Ok(())
    }

    /// Lets a tag that a person chose point at a manifest that is there, and holds the manifest.
    pub async fn pin(&self, repository: &str, tag: &str, digest: &Digest) -> Result<(), ImageError> {
        self.set_tag(repository, tag, digest, true).await
    }

    async fn set_tag(&self, repository: &str, tag: &str, digest: &Digest, pinned: bool) -> Result<(), ImageError> {
        let row = TagRow {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: digest.clone(),
            pinned,
            created_at: clock::now(),
        };
        let key = row.key();
        loop {
            let moved = self.metadata.modify::<TagRow>(&key, |found| {
                let change = found.digest != row.digest || found.pinned != row.pinned;
                found.digest = row.digest.clone();
                found.pinned = row.pinned;
                change
            });
            if moved.await?.is_some() {
                return Ok(());
            }
            match self.metadata.insert(&row).await {
                Ok(()) => return Ok(()),
                Err(SqlError::Exists { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The manifest that `reference` (a tag or a digest) of a repository means.
    pub async fn resolve(&self, repository: &str, reference: &str) -> Result<ImageRef, ImageError> {
        let missing = || ImageError::NotFound(format!("{repository}:{reference}"));
        let digest = match reference.parse::<Digest>() {
            Ok(digest) => self.manifest(repository, &digest).await?.ok_or_else(missing)?.value.digest,
            Err(_) => {
                self.metadata
                    .find::<TagRow>(&short_hash(repository), reference)
                    .await?
                    .ok_or_else(missing)?
                    .value
                    .digest
            }
        };
        Ok(ImageRef { repository: repository.to_owned(), digest })
    }

    /// Tags of a repository in order of name.
    pub async fn tags(&self, repository: &str) -> Result<Vec<TagRow>, ImageError> {
        let page = self.metadata.list::<TagRow>(&Query::parent(short_hash(repository))).await?;
        let mut tags: Vec<_> = page.items.into_iter().map(|it| it.value).collect();
        tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        Ok(tags)
    }

    /// Layers and configuration of an image.
    pub async fn read(&self, image: &ImageRef) -> Result<Image, ImageError> {
        let name = format!("{}@{}", image.repository, image.digest);
        let invalid = |why: String| ImageError::Invalid { image: name.clone(), why };
        if self.manifest(&image.repository, &image.digest).await?.is_none() {
            return Err(ImageError::NotFound(name));
        }
        let document = self.blobs.get_bytes(&content_path(&image.digest), MANIFEST_MAX).await?;
        let manifest: WireManifest = serde_json::from_slice(&document).map_err(|it| invalid(it.to_string()))?;
        let Some(config) = manifest.config else {
            return Err(invalid(
                "it is an index of several images; name the one for this machine by digest".to_owned(),
            ));
        };
        let document = self.blobs.get_bytes(&content_path(&config.digest), MANIFEST_MAX).await?;
        let config: WireImage = serde_json::from_slice(&document).map_err(|it| invalid(it.to_string()))?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(invalid("its configuration names another number of layers than its manifest".to_owned()));
        }
        let layers = manifest.layers.into_iter().zip(config.rootfs.diff_ids).map(|(layer, diff_id)| Layer {
            blob: Descriptor { media_type: layer.media_type, digest: layer.digest, size: layer.size },
            diff_id,
        });
        let it = config.config.unwrap_or_default();
        Ok(Image {
            layers: layers.collect(),
            config: ImageConfig {
                env: it.env.unwrap_or_default(),
                entrypoint: it.entrypoint.unwrap_or_default(),
                cmd: it.cmd.unwrap_or_default(),
                working_dir: it.working_dir.unwrap_or_default(),
                user: it.user.unwrap_or_default(),
                exposed_ports: it.exposed_ports.unwrap_or_default().into_keys().collect(),
                stop_signal: it.stop_signal.unwrap_or_default(),
            },
        })
    }
}

/// The documents of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Documents {
    /// Its configuration.
    pub config: Bytes,
    /// Its manifest, which names configuration and layers.
    pub manifest: Bytes,
}

/// Configuration and manifest of an image; equal images have equal documents.
pub fn documents(image: &Image) -> Result<Documents, serde_json::Error> {
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": wire_config(&image.config),
        "rootfs": { "type": "layers", "diff_ids": image.layers.iter().map(|it| it.diff_id.as_str()).collect::<Vec<_>>() },
    });
    let config = Bytes::from(serde_json::to_vec(&config)?);
    let descriptor =
        |it: &Descriptor| serde_json::json!({ "mediaType": it.media_type, "digest": it.digest, "size": it.size });
    let named =
        Descriptor { media_type: CONFIG_TYPE.to_owned(), digest: Digest::of(&config), size: config.len() as u64 };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(&named),
        "layers": image.layers.iter().map(|it| descriptor(&it.blob)).collect::<Vec<_>>(),
    });
    Ok(Documents { config, manifest: Bytes::from(serde_json::to_vec(&manifest)?) })
}

fn wire_config(config: &ImageConfig) -> serde_json::Value {
    let ports: serde_json::Map<_, _> =
        config.exposed_ports.iter().map(|it| (it.clone(), serde_json::json!({}))).collect();
    serde_json::json!({
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "WorkingDir": config.working_dir,
        "User": config.user,
        "ExposedPorts": ports,
        "StopSignal": config.stop_signal,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

#[derive(Deserialize)]
struct WireManifest {
    config: Option<WireDescriptor>,
    #[serde(default)]
    layers: Vec<WireDescriptor>,
    #[serde(default)]
    manifests: Vec<WireDescriptor>,
    subject: Option<WireDescriptor>,
}

#[derive(Deserialize)]
struct WireImage {
    config: Option<WireConfig>,
    rootfs: WireRootfs,
}

#[derive(Deserialize)]
struct WireRootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireConfig {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::MemoryBlobs;
    use crate::sql::MemoryMetadata;
    use std::sync::Arc;

    const REPOSITORY: &str = "default/shop/web";

    #[tokio::test]
    async fn a_tag_comes_with_its_batch_or_not_at_all() {
        let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
        let mut written = Vec::new();
        for cmd in ["a", "b"] {
            let mut image = Image::default();
            image.config.cmd = vec![cmd.to_owned()];
            written.push(images.write(REPOSITORY, &image).await.unwrap());
        }
        for image in &written {
            let mut batch = Batch::default();
            images.tag_with(&mut batch, REPOSITORY, "r1", &image.digest).await.unwrap();
            assert_ne!(images.resolve(REPOSITORY, "r1").await.ok().as_ref(), Some(image));
            images.metadata().commit(batch).await.unwrap();
            assert_eq!(images.resolve(REPOSITORY, "r1").await.unwrap(), *image);
        }
        // Somebody is faster with it.
        let mut late = Batch::default();
        images.tag_with(&mut late, REPOSITORY, "r1", &written[0].digest).await.unwrap();
        images.pin(REPOSITORY, "r1", &written[1].digest).await.unwrap();
        assert!(matches!(images.metadata().commit(late).await, Err(SqlError::Conflict { .. })));
    }
}
