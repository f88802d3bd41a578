//! Certificates of hosts. (Client certificates of people are in `request.rs`.)

use super::SecretText;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A certificate that a person brings.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetHostCertificate {
    /// The chain (PEM), the certificate of the host first.
    pub chain: String,
    /// The private key (PEM), without a password.
    pub key: SecretText,
}

/// A certificate as people see it; the key never comes back.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostCertificateDocument {
    /// Name in its tenant; `auto:HOST` when it is issued automatically.
    pub name: String,
    /// Whether it is issued and renewed automatically.
    pub automatic: bool,
    /// DNS names that it is for.
    pub hosts: Vec<String>,
    /// Who signed it; empty while it is being issued.
    pub issuer: String,
    /// Valid until (RFC 3339); empty while it is being issued.
    pub not_after: String,
    /// Whole days until then; negative when it is over.
    pub days_left: i64,
    /// Hosts with routes that are served with it.
    pub used_by: Vec<String>,
    /// Why it is not there or not renewed, when that is so.
    pub problem: String,
    /// What to do about it.
    #[serde(default)]
    pub advice: String,
    /// When it is renewed by itself (RFC 3339); empty when it is not.
    #[serde(default)]
    pub renews_at: String,
}
