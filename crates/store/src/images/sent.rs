//! Which tenant has sent which content. Contents are shared by all; what a tenant builds from is what was sent for it.
//!
//! A note is an empty blob. What must hold: it is written when all of the content has come for its tenant, not before, and
//! goes after the content, never before. Not here: what a tenant has without a note (the sources of its components).

use super::Images;
use crate::blob::{BlobError, BlobStat};
use arco_model::artifact::Digest;
use arco_model::name::TenantName;
use bytes::Bytes;

/// Folder of all notes in the blob store.
const FOLDER: &str = "sent/";

fn notes_of(tenant: &TenantName) -> String {
    format!("{FOLDER}{tenant}/")
}

impl Images {
    /// Notes that a tenant has sent content which is there.
    pub async fn note_sent(&self, tenant: &TenantName, digest: &Digest) -> Result<(), BlobError> {
        let path = format!("{}{}", notes_of(tenant), digest.hex());
        self.blobs.put_bytes(&path, Bytes::new()).await.map(drop)
    }

    /// Whether a tenant has sent content. It may be gone since: who relies on it claims it.
    pub async fn was_sent(&self, tenant: &TenantName, digest: &Digest) -> Result<bool, BlobError> {
        let path = format!("{}{}", notes_of(tenant), digest.hex());
        Ok(self.blobs.stat(&path).await?.is_some())
    }

    /// Forgets all that a tenant has sent; the content stays until it is collected.
    pub async fn forget_sent(&self, tenant: &TenantName) -> Result<(), BlobError> {
        self.blobs.delete_below(&notes_of(tenant)).await
    }

    /// All notes; the last word of a path is the hex digest of the content.
    pub async fn sent(&self) -> Result<Vec<BlobStat>, BlobError> {
        self.blobs.list(FOLDER).await
    }
}
