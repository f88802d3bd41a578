//! Stacks that a platform keeps: the images that sources are built and run on.

use arco_model::artifact::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Keeps a stack. Manifest, configuration and layers must be here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StackRequest {
    /// Edition: only a server that makes the same one uses it.
    pub edition: u32,
    /// Digest of its manifest.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// A stack.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StackDocument {
    /// Its name, as `node-22`.
    pub name: String,
    /// Its edition.
    pub edition: u32,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of its layers.
    pub size_bytes: u64,
    /// When this edition was first kept.
    pub created_at: String,
}
