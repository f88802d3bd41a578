//! Which repository has which blob. Contents are shared by all; a link says that a repository may read one.
//!
//! A link is an empty blob, made by a push or a mount. What a manifest of the repository names needs none, so links may
//! be forgotten once they are old.

use crate::Registry;
use crate::refusal::Refusal;
use arco_model::artifact::Digest;
use arco_store::blob::BlobStat;
use arco_store::images::{ManifestRow, short_hash};
use arco_store::sql::Query;

/// Folder of all links in the blob store.
pub(crate) const LINKS: &str = "registry/links";

pub(crate) fn link_path(repository: &str, digest: &Digest) -> String {
    format!("{LINKS}/{}/{}", short_hash(repository), digest.hex())
}

impl Registry {
    /// Lets a repository have a blob.
    pub(crate) async fn link(&self, repository: &str, digest: &Digest) -> Result<(), Refusal> {
        self.0.images.blobs().put_bytes(&link_path(repository, digest), bytes::Bytes::new()).await?;
        Ok(())
    }

    /// The blob, if the repository has it; it stays for whoever was told so.
    pub(crate) async fn find_blob(&self, repository: &str, digest: &Digest) -> Result<Option<BlobStat>, Refusal> {
        let blobs = self.0.images.blobs();
        let Some(found) = self.0.images.claim(digest).await? else { return Ok(None) };
        let has =
            blobs.stat(&link_path(repository, digest)).await?.is_some() || self.is_named(repository, digest).await?;
        Ok(has.then_some(found))
    }

    /// Whether a manifest of the repository names a blob, or is it.
    pub(crate) async fn is_named(&self, repository: &str, digest: &Digest) -> Result<bool, Refusal> {
        let rows = self.0.images.metadata().list::<ManifestRow>(&Query::parent(short_hash(repository))).await?;
        Ok(rows.items.iter().any(|it| it.value.digest == *digest || it.value.references.contains(digest)))
    }
}
