//! Bodies and queries of requests, and the small answers.

use super::SpecPatch;
use arco_model::log::LogLine;
use arco_model::source::Source;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A secret value on its way; never printed.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Build a source and roll it out; tenant's application and component are made as needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// What to build.
    #[schema(value_type = Object)]
    pub source: Source,
    /// What changes beside the source; all else keeps its value.
    #[serde(default)]
    pub patch: SpecPatch,
    /// Whether the build must not use caches.
    #[serde(default)]
    pub no_cache: bool,
}

/// Change size. What is absent stays.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScaleRequest {
    /// Instances; 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Memory of one instance in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Thousandths of a core of one instance; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
    /// `true`: the number of instances follows load, by what follows and else as before; `false`: it stays as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<bool>,
    /// Fewest instances by load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u32>,
    /// Most instances by load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<u32>,
    /// CPU that is asked of an instance on average, in percent of its limit, or of one core; 0: CPU does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Memory that is asked of an instance on average, in percent of its limit; 0: memory does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
    /// How long fewer instances must have been enough before there are fewer, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_after_s: Option<u32>,
}

/// Serve an older revision again.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RollbackRequest {
    /// Number of the revision; the one before the desired when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// A new version of a secret.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecret {
    /// The value.
    pub value: SecretText,
}

/// A new tenant.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Name.
    pub name: String,
    /// Memory that all instances together may ask for, in MiB; 0 means no limit.
    #[serde(default)]
    pub memory_quota_mb: u64,
}

/// What changes of a tenant. What is absent stays.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChangeTenant {
    /// Memory that all instances together may ask for, in MiB; 0 means no limit. What runs goes on when it is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_quota_mb: Option<u64>,
}

/// A tenant.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantDocument {
    /// Name.
    pub name: String,
    /// Memory that all instances together may ask for, in MiB; 0 means no limit.
    pub memory_quota_mb: u64,
    /// Memory that they ask for now, in MiB, as the quota counts it.
    #[serde(default)]
    pub memory_asked_mb: u64,
    /// When it was made (RFC 3339).
    pub created_at: String,
}

/// A tenant was deleted.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantRemoval {
    /// What of it stays, and why; on a cluster, its namespace when others have something in it.
    pub left: Option<String>,
}

/// What became of an upload.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadReceipt {
    /// Digest of the archive, `sha256:…`.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Who asks.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WhoAmI {
    /// Name in the certificate.
    pub name: String,
    /// `admin`, `operator`, `developer`, `viewer`.
    pub role: String,
    /// Tenants that it may see; empty means all.
    pub tenants: Vec<String>,
    /// Version of the platform.
    pub version: String,
    /// Suffix of default hosts.
    pub domain: String,
}

/// `POST /v1/certificates`: a client certificate for a person.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateRequest {
    /// Name of the person.
    pub name: String,
    /// `operator`, `developer`, `viewer`.
    pub role: String,
    /// Tenants that the person may see.
    pub tenants: Vec<String>,
}

/// A client certificate with its key. It is not kept by the platform and never shown again.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CertificateAnswer {
    /// Certificate of the platform's authority, PEM.
    pub ca: String,
    /// Client certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

impl std::fmt::Debug for CertificateAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateAnswer(…)")
    }
}

/// Which lines of a log.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Whether to go on with new lines (server-sent events, WebSocket).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// Only lines from this time on, in ms since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Only lines before this time, in ms since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Only the last so many lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Only lines of this instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Only lines that hold this text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grep: Option<String>,
    /// At most so many lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Only from this line on, as `next` of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// Lines of a log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct LogAnswer {
    /// In the order of time.
    #[schema(value_type = Vec<Object>)]
    pub lines: Vec<LogLine>,
    /// Whether there are more than `limit`.
    pub more: bool,
    /// What `from` of the next request should be.
    pub next: u64,
}
