//! Tenant and application.

use crate::id::ApplicationId;
use crate::name::{ApplicationName, TenantName};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Isolation and quota boundary.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// Name.
    pub name: TenantName,
    /// Memory that all instances together may ask for, in MiB; 0 means no limit.
    pub memory_quota_mb: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A named group of components.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Application {
    /// Id.
    pub id: ApplicationId,
    /// Tenant.
    pub tenant: TenantName,
    /// Name, unique in the tenant.
    pub name: ApplicationName,
    /// When it was made.
    pub created_at: Timestamp,
}
