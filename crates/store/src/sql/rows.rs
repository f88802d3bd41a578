//! Which columns each kind of value has, and typed calls on top of the seam.

use super::{Batch, Cursor, Entity, Kind, Metadata, Page, Query, Row, SqlError, Versioned, Write};
use crate::clock;
use arco_model::application::{Application, Tenant};
use arco_model::component::{Component, Revision};
use arco_model::credential::GitCredential;
use arco_model::id::{ApplicationId, ComponentId, RowId};
use arco_model::name::{ApplicationName, ComponentName, TenantName, VolumeName};
use arco_model::operation::Operation;
use arco_model::route::{Route, UpstreamTarget};
use arco_model::secret::SecretVersion;
use arco_model::time::Timestamp;
use arco_model::traffic::StreamEntry;
use serde::{Deserialize, Serialize};

impl Entity for Tenant {
    const KIND: Kind = Kind::Tenant;
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn parent(&self) -> String {
        String::new()
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Entity for Application {
    const KIND: Kind = Kind::Application;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.tenant.to_string()
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Entity for Component {
    const KIND: Kind = Kind::Component;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.application_id.to_string()
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn tag(&self) -> String {
        self.tenant.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Entity for Revision {
    const KIND: Kind = Kind::Revision;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.component_id.to_string()
    }
    fn name(&self) -> String {
        self.number.to_string()
    }
    fn tag(&self) -> String {
        self.build_key.clone()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Entity for Operation {
    const KIND: Kind = Kind::Operation;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.component_id.to_string()
    }
    fn name(&self) -> String {
        self.id.to_string()
    }
    /// `open` until it is final, then its final status; what is not yet with `mq` is `outbox`.
    fn tag(&self) -> String {
        if self.status.is_final() {
            "final".to_owned()
        } else if !self.enqueued {
            "outbox".to_owned()
        } else {
            "open".to_owned()
        }
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Entity for SecretVersion {
    const KIND: Kind = Kind::Secret;
    fn key(&self) -> String {
        Self::row_key(&self.component_id, &self.name, self.version)
    }
    fn parent(&self) -> String {
        self.component_id.to_string()
    }
    fn name(&self) -> String {
        format!("{}/{}", crate::images::short_hash(&self.name), self.version)
    }
    fn tag(&self) -> String {
        self.name.chars().take(100).collect()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// A route that a person added for one host. (The default host is derived, it has no row.)
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Id.
    pub id: RowId,
    /// Tenant.
    pub tenant: TenantName,
    /// Application.
    pub application: ApplicationName,
    /// Component that it belongs to, and goes with.
    pub component: ComponentName,
    /// Its id.
    pub component_id: ComponentId,
    /// Host in lower case; `*.suffix` for a wildcard.
    pub host: String,
    /// Everything else; its `hosts` are empty. Its meaning is unique among the routes of the host.
    pub route: Route<UpstreamTarget>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl RouteRow {
    /// What rows of one host have as parent.
    pub fn host_parent(host: &str) -> String {
        crate::images::short_hash(host)
    }
}

impl Entity for RouteRow {
    const KIND: Kind = Kind::Route;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        Self::host_parent(&self.host)
    }
    fn name(&self) -> String {
        crate::images::short_hash(&self.route.meaning())
    }
    fn tag(&self) -> String {
        self.component_id.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// A port of the gateway that leads to a component without HTTP.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StreamRow {
    /// Id.
    pub id: RowId,
    /// Tenant.
    pub tenant: TenantName,
    /// Application.
    pub application: ApplicationName,
    /// Component that it leads to, and goes with.
    pub component: ComponentName,
    /// Ports of both ends.
    pub stream: StreamEntry,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Entity for StreamRow {
    const KIND: Kind = Kind::Stream;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.stream.protocol.to_string()
    }
    /// A port leads to one component.
    fn name(&self) -> String {
        self.stream.port.to_string()
    }
    fn tag(&self) -> String {
        self.stream.target.component.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// A certificate for hosts, with its sealed key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// Id.
    pub id: RowId,
    /// Tenant.
    pub tenant: TenantName,
    /// Name in its tenant; [`CertificateRow::automatic_name`] for one that is issued automatically.
    pub name: String,
    /// Whether it is issued and renewed automatically.
    #[serde(default)]
    pub automatic: bool,
    /// DNS names that it is for.
    pub hosts: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// The chain (PEM).
    pub chain_pem: String,
    /// Which key sealed the private key.
    pub key_id: String,
    /// The sealed private key (PEM); its context is [`CertificateRow::key_context`].
    pub sealed_key: String,
    /// When it was first made.
    pub created_at: Timestamp,
    /// When chain and key came; tells two of one id apart.
    pub issued_at: Timestamp,
    /// How issuing it goes, when that is automatic.
    #[serde(default)]
    pub renewal: Renewal,
}

/// How issuing and renewing a certificate goes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Renewal {
    /// Why it was not issued or renewed, when that failed last.
    pub problem: String,
    /// What to do about it.
    pub advice: String,
    /// How often that failed in a row.
    pub failures: u32,
    /// When the authority is asked next: for a certificate after failures, else when to renew.
    pub next_at: Timestamp,
    /// When it is renewed.
    pub renew_at: Timestamp,
}

impl CertificateRow {
    /// Name of the certificate that is issued automatically for a host. No person can choose it.
    pub fn automatic_name(host: &str) -> String {
        format!("auto:{host}")
    }

    /// What stands for a name in the store. Hosts can be longer than a column; what is too long is hashed.
    pub fn stored_name(name: &str) -> String {
        if name.len() <= 100 { name.to_owned() } else { format!("auto#{}", crate::images::short_hash(name)) }
    }

    /// The context that the private key of a row is sealed in.
    pub fn key_context(id: &RowId) -> String {
        format!("certificate {id}")
    }
}

impl Entity for CertificateRow {
    const KIND: Kind = Kind::Certificate;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.tenant.to_string()
    }
    fn name(&self) -> String {
        Self::stored_name(&self.name)
    }
    fn tag(&self) -> String {
        if self.automatic { "automatic".to_owned() } else { String::new() }
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// A volume that exists, whether or not its component still asks for it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// Id.
    pub id: RowId,
    /// Tenant.
    pub tenant: TenantName,
    /// Its application.
    pub application_id: ApplicationId,
    /// Its application's name.
    pub application: ApplicationName,
    /// Component.
    pub component: ComponentName,
    /// Its component (which may be deleted when volumes were kept).
    pub component_id: ComponentId,
    /// Name.
    pub name: VolumeName,
    /// Size in MiB.
    pub size_mb: u32,
    /// When it was made.
    pub created_at: Timestamp,
}

impl VolumeRow {
    /// A new one of a component.
    pub fn new(component: &Component, name: VolumeName, size_mb: u32) -> Self {
        Self {
            id: clock::fresh(),
            tenant: component.tenant.clone(),
            application_id: component.application_id.clone(),
            application: component.application.clone(),
            component: component.name.clone(),
            component_id: component.id.clone(),
            name,
            size_mb,
            created_at: clock::now(),
        }
    }
}

impl Entity for VolumeRow {
    const KIND: Kind = Kind::Volume;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.component_id.to_string()
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn tag(&self) -> String {
        self.tenant.to_string()
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Entity for GitCredential {
    const KIND: Kind = Kind::Credential;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.tenant.to_string()
    }
    /// One for each scope of a tenant or application.
    fn name(&self) -> String {
        crate::images::short_hash(&self.context())
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// A client certificate that was made for a person. The certificate itself is not kept.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ContextRow {
    /// SHA-256 of the certificate (DER), in hex.
    pub fingerprint: String,
    /// Name of the person.
    pub name: String,
    /// What the person may do.
    pub role: String,
    /// Tenants that the person may see.
    pub tenants: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the certificate ends by itself.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl Entity for ContextRow {
    const KIND: Kind = Kind::Context;
    fn key(&self) -> String {
        self.fingerprint.clone()
    }
    fn parent(&self) -> String {
        self.name.clone()
    }
    fn name(&self) -> String {
        self.fingerprint.clone()
    }
    fn tag(&self) -> String {
        if self.revoked_at.is_some() { "revoked".to_owned() } else { "good".to_owned() }
    }
    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// The row of a value.
pub fn row<T: Entity>(value: &T, version: u64) -> Result<Row, SqlError> {
    let body = serde_json::to_string(value).map_err(|it| corrupt::<T>(&value.key(), &it))?;
    let (key, parent, name, tag) = (value.key(), value.parent(), value.name(), value.tag());
    Ok(Row { key, parent, name, tag, created_at: value.created_at(), version, body })
}

fn value<T: Entity>(row: &Row) -> Result<Versioned<T>, SqlError> {
    let value = serde_json::from_str(&row.body).map_err(|it| corrupt::<T>(&row.key, &it))?;
    Ok(Versioned { value, version: row.version })
}

fn corrupt<T: Entity>(key: &str, error: &serde_json::Error) -> SqlError {
    SqlError::Corrupt { kind: T::KIND, key: key.to_owned(), cause: error.to_string() }
}

impl Batch {
    /// Adds a new row.
    pub fn insert<T: Entity>(&mut self, value: &T) -> Result<&mut Self, SqlError> {
        self.writes.push(Write::Insert(T::KIND, row(value, 1)?));
        Ok(self)
    }

    /// Adds a change of the row that was read at `value.version`.
    pub fn update<T: Entity>(&mut self, value: &Versioned<T>) -> Result<&mut Self, SqlError> {
        self.writes.push(Write::Update(T::KIND, row(&value.value, value.version)?));
        Ok(self)
    }

    /// Adds a deletion.
    pub fn delete<T: Entity>(&mut self, value: &Versioned<T>) -> &mut Self {
        self.writes.push(Write::Delete(T::KIND, value.value.key(), value.version));
        self
    }

    /// Adds a condition: the row is still as it was read.
    pub fn check<T: Entity>(&mut self, value: &Versioned<T>) -> &mut Self {
        self.writes.push(Write::Check(T::KIND, value.value.key(), value.version));
        self
    }
}

/// Typed calls; the trait suffices for them.
impl dyn Metadata {
    /// One value by key.
    pub async fn get<T: Entity>(&self, key: &str) -> Result<Option<Versioned<T>>, SqlError> {
        self.get_row(T::KIND, key).await?.as_ref().map(value).transpose()
    }

    /// One value by parent and name.
    pub async fn find<T: Entity>(&self, parent: &str, name: &str) -> Result<Option<Versioned<T>>, SqlError> {
        let query = Query { names: vec![name.to_owned()], limit: 1, ..Query::parent(parent) };
        self.list_rows(T::KIND, &query).await?.items.first().map(value).transpose()
    }

    /// Values of a kind.
    pub async fn list<T: Entity>(&self, query: &Query) -> Result<Page<Versioned<T>>, SqlError> {
        let page = self.list_rows(T::KIND, query).await?;
        let items = page.items.iter().map(value).collect::<Result<_, _>>()?;
        Ok(Page { items, next: page.next })
    }

    /// Writes one new value.
    pub async fn insert<T: Entity>(&self, value: &T) -> Result<(), SqlError> {
        let mut batch = Batch::default();
        batch.insert(value)?;
        self.commit(batch).await
    }

    /// Writes one changed value.
    pub async fn update<T: Entity>(&self, value: &Versioned<T>) -> Result<(), SqlError> {
        let mut batch = Batch::default();
        batch.update(value)?;
        self.commit(batch).await
    }

    /// Reads, changes and writes a value, again when another writer was faster. `change` returns whether to write.
    /// `None` when the row does not exist.
    pub async fn modify<T: Entity>(
        &self,
        key: &str,
        mut change: impl FnMut(&mut T) -> bool + Send,
    ) -> Result<Option<T>, SqlError> {
        let mut attempts = 0;
        loop {
            let Some(mut found) = self.get::<T>(key).await? else { return Ok(None) };
            if !change(&mut found.value) {
                return Ok(Some(found.value));
            }
            match self.update(&found).await {
                Ok(()) => return Ok(Some(found.value)),
                Err(SqlError::Conflict { .. }) if attempts < MODIFY_ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// How often other writers may be faster; more means that reading and writing do not see the same rows.
const MODIFY_ATTEMPTS: u32 = 1000;

impl Query {
    /// All rows of one parent.
    pub fn parent(parent: impl Into<String>) -> Self {
        Self { parents: vec![parent.into()], ..Self::default() }
    }

    /// All rows with one tag.
    pub fn tag(tag: impl Into<String>) -> Self {
        Self { tags: vec![tag.into()], ..Self::default() }
    }

    /// The rest of a list.
    pub fn after(mut self, cursor: Option<Cursor>) -> Self {
        self.after = cursor;
        self
    }
}
