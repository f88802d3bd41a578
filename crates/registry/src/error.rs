//! What can go wrong with the registry as a whole; what a request gets is a refusal of its own.

use arco_store::blob::BlobError;
use arco_store::images::ImageError;
use arco_store::sql::SqlError;
use std::path::{Path, PathBuf};

/// Why the registry cannot start or clear away.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file cannot be used.
    #[error("failed to {step} `{}`: {source}", .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The token key is damaged.
    #[error("the token key `{}` is not 64 hex digits: put the old file back, or remove it and issue every credential again", .0.display())]
    Key(PathBuf),
    /// Rows.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Blobs.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Images.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl RegistryError {
    pub(crate) fn io(step: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { step, path: path.to_owned(), source }
    }
}
