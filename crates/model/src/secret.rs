//! Versioned secret values, encrypted at rest.

use crate::id::ComponentId;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// One version of one secret of a component; revisions name versions, never values.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SecretVersion {
    /// Owner.
    pub component_id: ComponentId,
    /// Name of the variable.
    pub name: String,
    /// 1, 2, 3, …
    pub version: u64,
    /// Which key sealed it.
    pub key_id: String,
    /// Nonce and AES-256-GCM ciphertext, base64.
    pub sealed: String,
    /// When it was set.
    pub created_at: Timestamp,
}

impl SecretVersion {
    /// Key of the row of one version.
    pub fn row_key(component: &ComponentId, name: &str, version: u64) -> String {
        format!("{component}/{}/{version}", &crate::artifact::Digest::of(name.as_bytes()).hex()[..32])
    }

    /// What the value is sealed for: it opens only as this variable of this component.
    pub fn context(&self) -> String {
        format!("{}/{}", self.component_id, self.name)
    }
}
