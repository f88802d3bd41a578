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

impl Tenant {
    /// `/tenants/left/<name>` → text for people: what stays of a tenant that was deleted, and why. The controller writes it before
    /// its job is done ([`Self::removal_key`]), or takes it away.
    pub const LEFT: &str = "/tenants/left/";

    /// Key of the controller's job that removes what runs around the components of a tenant that has no row.
    pub fn removal_key(name: &TenantName) -> String {
        format!("tenant.{name}")
    }

    /// The tenant whose removal a job of the controller is, by its key.
    pub fn of_removal_key(key: &str) -> Option<TenantName> {
        key.strip_prefix("tenant.")?.parse().ok()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ComponentId;

    #[test]
    fn jobs_of_tenants_and_of_components_are_told_apart() {
        let name: TenantName = "01h00000000000000000".parse().unwrap();
        assert!(name.as_str().parse::<ComponentId>().is_ok(), "a tenant may be called as a component's id");
        let key = Tenant::removal_key(&name);
        assert!(key.parse::<ComponentId>().is_err());
        assert_eq!(Tenant::of_removal_key(&key), Some(name));
        assert_eq!(Tenant::of_removal_key("01h00000000000000000"), None);
    }
}
