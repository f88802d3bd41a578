//! Secrets of a component that comes: opened with the archive's key, and compared with those that are here.
//!
//! What must hold: no value leaves here but towards the seal of this platform; what differs is told by name alone.

use super::super::super::Api;
use super::super::super::error::ApiError;
use super::{ArchiveKey, secret_of};
use crate::wire::CarriedComponent;
use arco_model::application::Application;
use arco_model::component::Component;
use arco_model::error::Problem;
use arco_model::name::{ApplicationName, TenantName};
use arco_model::secret::SecretVersion;
use arco_store::secrets::Sealed;
use arco_store::sql::Query;
use std::collections::BTreeSet;

/// Opened secrets of a component.
#[derive(Default)]
pub(super) struct OpenedSecrets {
    /// Name, version, value.
    pub(super) values: Vec<(String, u64, String)>,
    /// Those that are here in the same version with another value, as fields of a spec (`secrets.NAME`).
    pub(super) differing: Vec<String>,
}

impl OpenedSecrets {
    /// Opens every secret that the specs name.
    pub(super) fn open(
        application: &ApplicationName,
        component: &CarriedComponent,
        key: &ArchiveKey,
    ) -> Result<Self, ApiError> {
        let mut values = Vec::new();
        let specs = std::iter::once(&component.spec).chain(component.revision.iter().map(|it| &it.spec));
        let named: BTreeSet<(&String, u64)> = specs.flat_map(|it| &it.secrets).map(|(name, it)| (name, *it)).collect();
        for (name, version) in named {
            let what = secret_of(application.as_str(), component.name.as_str(), name, version);
            let carried = component.secrets.iter().find(|it| it.name == *name && it.version == version);
            let missing = || Problem::invalid("archive_invalid", format!("{what} is missing"), "export it again");
            let value = key.open(&what, &carried.ok_or_else(missing)?.sealed)?;
            values.push((name.clone(), version, value));
        }
        Ok(Self { values, differing: Vec::new() })
    }

    /// Notes which of them a component that is here has with another value. A version never changes its value, so this
    /// may be looked at before the change that it counts for.
    pub(super) async fn compare(
        &mut self,
        api: &Api,
        tenant: &TenantName,
        application: &ApplicationName,
        component: &CarriedComponent,
    ) -> Result<(), ApiError> {
        let metadata = &api.deps.metadata;
        let Some(found) = metadata.find::<Application>(tenant.as_str(), application.as_str()).await? else {
            return Ok(());
        };
        let found = metadata.find::<Component>(found.value.id.as_str(), component.name.as_str()).await?;
        let Some(found) = found else { return Ok(()) };
        let rows = metadata.list::<SecretVersion>(&Query::parent(found.value.id.as_str())).await?.items;
        for (name, version, value) in &self.values {
            let here = rows.iter().map(|it| &it.value).find(|it| it.name == *name && it.version == *version);
            let Some(row) = here else { continue };
            let sealed = Sealed { key_id: row.key_id.clone(), text: row.sealed.clone() };
            let field = format!("secrets.{name}");
            if api.deps.secrets.unseal(&row.context(), &sealed)? != value.as_bytes() && !self.differing.contains(&field)
            {
                self.differing.push(field);
            }
        }
        Ok(())
    }
}
