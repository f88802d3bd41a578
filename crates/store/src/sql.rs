//! Metadata: rows of every kind, with versions, unique names and atomic commits.
//!
//! A row is a `model` value with a few columns beside it that can be asked for. Each [`Kind`] has a table of the same
//! shape, so that a new kind is one line here and one migration. What must hold on every driver (see [`contract`]):
//! - a [`Batch`] happens whole or not at all;
//! - an update or delete names the version that it read and fails with [`SqlError::Conflict`] when it is another;
//! - two rows of a kind with the same parent and name cannot both exist.

#[cfg(test)]
mod contract;
mod memory;
mod migrations;
mod rows;
mod seaorm;

use arco_model::time::Timestamp;
use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

pub use memory::MemoryMetadata;
pub use rows::{CertificateRow, ContextRow, Renewal, RouteRow, StreamRow, VolumeRow, row};
pub use seaorm::{Looked, SeaOrmMetadata};

/// A shared store.
pub type SharedMetadata = Arc<dyn Metadata>;

/// A kind of row; each has a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Kind {
    /// `arco_model::application::Tenant`
    Tenant,
    /// `arco_model::application::Application`
    Application,
    /// `arco_model::component::Component`
    Component,
    /// `arco_model::component::Revision`
    Revision,
    /// `arco_model::operation::Operation`
    Operation,
    /// `arco_model::secret::SecretVersion`
    Secret,
    /// A host that a person added to a component ([`RouteRow`]).
    Route,
    /// A volume that exists ([`VolumeRow`]).
    Volume,
    /// A manifest of the registry ([`crate::images::ManifestRow`]).
    Manifest,
    /// A tag of the registry ([`crate::images::TagRow`]).
    Tag,
    /// `arco_model::credential::GitCredential`
    Credential,
    /// A context that was made for a person ([`ContextRow`]).
    Context,
    /// A certificate for hosts ([`CertificateRow`]).
    Certificate,
    /// A port of the gateway for a component ([`StreamRow`]).
    Stream,
    /// Who leads ([`crate::fence::LeaderRow`]).
    Leader,
    /// Content that is to be deleted ([`crate::images::CondemnedRow`]).
    Condemned,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 16] = [
        Kind::Tenant,
        Kind::Application,
        Kind::Component,
        Kind::Revision,
        Kind::Operation,
        Kind::Secret,
        Kind::Route,
        Kind::Volume,
        Kind::Manifest,
        Kind::Tag,
        Kind::Credential,
        Kind::Context,
        Kind::Certificate,
        Kind::Stream,
        Kind::Leader,
        Kind::Condemned,
    ];

    /// Name of the table.
    pub fn table(self) -> &'static str {
        match self {
            Kind::Tenant => "tenants",
            Kind::Application => "applications",
            Kind::Component => "components",
            Kind::Revision => "revisions",
            Kind::Operation => "operations",
            Kind::Secret => "secrets",
            Kind::Route => "routes",
            Kind::Volume => "volumes",
            Kind::Manifest => "manifests",
            Kind::Tag => "tags",
            Kind::Credential => "credentials",
            Kind::Context => "contexts",
            Kind::Certificate => "certificates",
            Kind::Stream => "streams",
            Kind::Leader => "leaders",
            Kind::Condemned => "condemned",
        }
    }

    /// Name for people.
    pub fn word(self) -> &'static str {
        self.table().trim_end_matches('s')
    }
}

/// A value that is kept as a row.
pub trait Entity: Serialize + DeserializeOwned + Send + Sync {
    /// Its table.
    const KIND: Kind;
    /// Primary key, at most 100 bytes.
    fn key(&self) -> String;
    /// What it belongs to (at most 100 bytes); with `name`, unique in its kind.
    fn parent(&self) -> String;
    /// Its name in its parent, at most 200 bytes.
    fn name(&self) -> String;
    /// A word that lists can be narrowed by (a status, a component).
    fn tag(&self) -> String {
        String::new()
    }
    /// When it was made; lists are ordered by it, then by key.
    fn created_at(&self) -> Timestamp;
}

/// A value with the version that it was read at.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Raised by each update; 1 after creation.
    pub version: u64,
}

/// A row as drivers see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// Primary key.
    pub key: String,
    /// What it belongs to.
    pub parent: String,
    /// Name in its parent.
    pub name: String,
    /// Word to narrow lists by.
    pub tag: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Raised by each update.
    pub version: u64,
    /// The value as JSON.
    pub body: String,
}

/// Which rows of a kind.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Query {
    /// Only of one of these parents, if there are any here.
    pub parents: Vec<String>,
    /// Only with one of these names, if there are any here.
    pub names: Vec<String>,
    /// Only with one of these tags, if there are any here.
    pub tags: Vec<String>,
    /// Newest first instead of oldest first.
    pub newest_first: bool,
    /// Only after this row in the order of the list (as [`Page::next`] gave it).
    pub after: Option<Cursor>,
    /// At most so many; 0 means all.
    pub limit: usize,
}

/// A place in a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cursor {
    /// Time of the last row.
    pub created_at: Timestamp,
    /// Key of the last row.
    pub key: String,
}

/// A page of rows.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page begins; `None` when this is the last.
    pub next: Option<Cursor>,
}

impl Page<Row> {
    /// The first `limit` of these rows, of which there are more when there is another page; a limit of 0 is none.
    fn of(mut rows: Vec<Row>, limit: usize) -> Self {
        let more = limit > 0 && rows.len() > limit;
        if more {
            rows.truncate(limit);
        }
        let next = rows.last().filter(|_| more).map(|row| Cursor { created_at: row.created_at, key: row.key.clone() });
        Self { items: rows, next }
    }
}

/// One write.
#[derive(Clone, Debug)]
pub enum Write {
    /// A new row; fails with `Exists` when key or (parent, name) is taken.
    Insert(Kind, Row),
    /// Replaces the row whose version is `row.version`; the version is raised by the store.
    Update(Kind, Row),
    /// Deletes the row whose version is the second.
    Delete(Kind, String, u64),
    /// Fails with `Conflict` unless the row still has this version.
    Check(Kind, String, u64),
}

/// Writes that happen together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In order.
    pub writes: Vec<Write>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The key or name is taken.
    #[error("{} `{name}` exists already", .kind.word())]
    Exists {
        /// Kind.
        kind: Kind,
        /// Name.
        name: String,
    },
    /// Somebody else changed it.
    #[error("{} `{key}` was changed by another writer", .kind.word())]
    Conflict {
        /// Kind.
        kind: Kind,
        /// Key.
        key: String,
    },
    /// A row cannot be read as its type.
    #[error("{} `{key}` is not readable: {cause}", .kind.word())]
    Corrupt {
        /// Kind.
        kind: Kind,
        /// Key.
        key: String,
        /// Why not.
        cause: String,
    },
    /// The database's schema is newer than this program.
    #[error(
        "the metadata database has schema {found}, this version knows up to {known}: install the newer version again"
    )]
    Newer {
        /// What it has.
        found: u32,
        /// What we know.
        known: u32,
    },
    /// The database cannot be reached or cannot write.
    #[error("the metadata database failed to {step}: {cause}")]
    Unavailable {
        /// What was tried.
        step: &'static str,
        /// Why not.
        cause: String,
    },
}

/// The seam. Drivers: sea-orm on SQLite, MySQL and PostgreSQL; fake: memory.
#[async_trait]
pub trait Metadata: Send + Sync + 'static {
    /// Name of the driver.
    fn name(&self) -> &'static str;
    /// One row by key.
    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError>;
    /// Rows of a kind.
    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError>;
    /// Writes together.
    async fn commit(&self, batch: Batch) -> Result<(), SqlError>;
    /// Whether it answers.
    async fn ping(&self) -> Result<(), SqlError>;
}
