//! Blobs: uploads, image layers, log segments, by path.
//!
//! Paths are `/`-separated words of `[A-Za-z0-9._-]`, never `.` or `..`. A put appears whole or not at all.

#[cfg(test)]
mod contract;
mod disk;
mod memory;
mod s3;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::sync::Arc;

pub use disk::DiskBlobs;
pub use memory::MemoryBlobs;
pub use s3::{S3Access, S3Blobs};

/// A shared store.
pub type SharedBlobs = Arc<dyn Blobs>;

/// Content in pieces.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// Path of a content-addressed blob.
pub fn content_path(digest: &arco_model::artifact::Digest) -> String {
    format!("content/sha256/{}/{}", &digest.hex()[..2], digest.hex())
}

/// Beginning of [`builds_path`].
pub const BUILDS: &str = "builds/";
/// Where below [`builds_path`] drivers without a disk of their own keep the folders of package clients, each as an
/// archive.
pub const BUILD_FOLDERS: &str = "folders/";

/// Beginning of the blobs that the builds of a component leave for the next ones. Nothing else holds them, and they may
/// go at any time.
pub fn builds_path(component: &arco_model::id::ComponentId) -> String {
    format!("{BUILDS}{component}/")
}

/// Size and age of a blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlobStat {
    /// Path.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Last written.
    pub modified: arco_model::time::Timestamp,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No blob of this path.
    #[error("blob `{0}` does not exist")]
    NotFound(String),
    /// The path is not allowed.
    #[error("`{0}` is not a blob path")]
    Path(String),
    /// The store has no room left.
    #[error("no space left to write blob `{0}`")]
    Full(String),
    /// Reading or writing failed.
    #[error("failed to {step} blob `{path}`")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which blob.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The seam. Drivers: disk, S3; fake: memory.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Name of the driver.
    fn name(&self) -> &'static str;
    /// Writes a blob from a stream, whole or not at all; returns its size. An error of the stream aborts it.
    async fn put(&self, path: &str, content: ByteStream) -> Result<u64, BlobError>;
    /// Reads a blob from byte `offset` on.
    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError>;
    /// Size and age; `None` when it is not there.
    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError>;
    /// All blobs below a path prefix that ends at a `/` (or is empty), in order.
    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError>;
    /// Deletes a blob; no error when it is not there.
    async fn delete(&self, path: &str) -> Result<(), BlobError>;
    /// A local file that holds the blob, if the driver has one (saves a copy when unpacking).
    fn local_file(&self, path: &str) -> Option<std::path::PathBuf>;
}

/// Calls that every driver has because the trait suffices for them.
impl dyn Blobs {
    /// Writes a blob from memory.
    pub async fn put_bytes(&self, path: &str, content: Bytes) -> Result<u64, BlobError> {
        self.put(path, Box::pin(futures_util::stream::once(async move { Ok(content) }))).await
    }

    /// Deletes every blob below a path prefix that ends at a `/`.
    pub async fn delete_below(&self, prefix: &str) -> Result<(), BlobError> {
        for blob in self.list(prefix).await? {
            self.delete(&blob.path).await?;
        }
        Ok(())
    }

    /// Reads a whole blob of at most `limit` bytes into memory.
    pub async fn get_bytes(&self, path: &str, limit: usize) -> Result<Bytes, BlobError> {
        use futures_util::StreamExt as _;
        let io = |source| BlobError::Io { step: "read", path: path.to_owned(), source };
        let mut stream = self.get(path, 0).await?;
        let mut out = bytes::BytesMut::new();
        while let Some(piece) = stream.next().await {
            out.extend_from_slice(&piece.map_err(io)?);
            if out.len() > limit {
                return Err(io(std::io::Error::other(format!("it is larger than {limit} bytes"))));
            }
        }
        Ok(out.freeze())
    }
}

/// Whether a path is allowed.
fn check_path(path: &str) -> Result<(), BlobError> {
    let word = |it: &str| {
        !it.is_empty()
            && !it.starts_with('.')
            && it.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if path.len() <= 500 && path.split('/').all(word) {
        Ok(())
    } else {
        Err(BlobError::Path(path.chars().take(200).collect()))
    }
}
