//! An application on its way from one platform to another: everything that is asked of it, by value.
//!
//! What must hold: secrets, private keys and password hashes stand here sealed with the key of the archive and in no
//! other way. Images, sources and the content of volumes are not here; they travel beside it, named by digest.

use super::{RouteRequest, SecretText, StreamRequest};
use arco_model::artifact::{Descriptor, Digest};
use arco_model::component::RunDefaults;
use arco_model::name::{ApplicationName, ComponentName};
use arco_model::spec::{ComponentKind, ComponentSpec, VolumeKind, VolumeSpec};
use arco_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Asks for an application as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExportRequest {
    /// Key of the archive, `ID HEX`; needed when there is something to seal.
    pub key: Option<SecretText>,
}

/// Makes an application as it was elsewhere. Its blobs must be here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Digest of the archive's manifest: what is half made goes on only from the same archive.
    #[schema(value_type = String)]
    pub archive: Digest,
    /// Key of the archive; needed when something in it is sealed.
    #[serde(default)]
    pub key: Option<SecretText>,
    /// The application.
    pub application: CarriedApplication,
}

/// Query of an import.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// Only say what would be done.
    pub dry_run: bool,
}

/// An application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarriedApplication {
    /// Name.
    #[schema(value_type = String)]
    pub name: ApplicationName,
    /// What ran it: `local`, `kubernetes`.
    pub driver: String,
    /// Suffix of its default hosts.
    pub domain: String,
    /// Its components.
    pub components: Vec<CarriedComponent>,
    /// Certificates that its routes are served with.
    pub certificates: Vec<CarriedCertificate>,
}

/// A component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarriedComponent {
    /// Name.
    #[schema(value_type = String)]
    pub name: ComponentName,
    /// What is asked.
    #[schema(value_type = Object)]
    pub spec: ComponentSpec,
    /// How often that was changed.
    pub generation: u64,
    /// Whether it was meant to run.
    pub runs: bool,
    /// What was meant to serve; none before the first build.
    pub revision: Option<CarriedRevision>,
    /// Every version of a secret that is named above.
    pub secrets: Vec<CarriedSecret>,
    /// Its routes but its own host, one host each.
    pub routes: Vec<CarriedRoute>,
    /// Its ports of the gateway.
    pub streams: Vec<StreamRequest>,
    /// Blobs of its image and its source, the image's manifest first.
    #[schema(value_type = Vec<Object>)]
    pub blobs: Vec<Descriptor>,
    /// How many places of a stateful component there were, each with volumes of its own; also those it was scaled down from.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub places: u32,
}

fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

impl CarriedComponent {
    /// Volumes whose content travels; those of memory have none.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeSpec> {
        self.revision.iter().flat_map(|it| &it.spec.volumes).filter(|it| it.kind != VolumeKind::Memory)
    }

    /// How many contents a volume has: one, or one for each place.
    pub fn contents_of(&self, volume: &VolumeSpec) -> u32 {
        let stateful = self.revision.as_ref().is_some_and(|it| it.spec.kind == ComponentKind::Stateful);
        if stateful && volume.kind == VolumeKind::Local { self.places.max(1) } else { 1 }
    }

    /// Volumes whose content travels, with the place whose content it is.
    pub fn contents(&self) -> impl Iterator<Item = (&VolumeSpec, u32)> {
        self.volumes().flat_map(move |it| (0..self.contents_of(it)).map(move |place| (it, place)))
    }
}

/// A revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarriedRevision {
    /// Number in its component.
    pub number: u64,
    /// Digest of the image's manifest.
    #[schema(value_type = String)]
    pub artifact: Digest,
    /// Media type of that manifest.
    pub media_type: String,
    /// Processor that it was built for, as `amd64`; empty when it does not say.
    pub architecture: String,
    /// What the build found out.
    #[schema(value_type = Object)]
    pub defaults: RunDefaults,
    /// The spec that runs with it.
    #[schema(value_type = Object)]
    pub spec: ComponentSpec,
    /// Digest over source and build settings.
    pub build_key: String,
    /// Commit of the source.
    pub commit: Option<String>,
    /// What made it.
    pub cause: String,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Timestamp,
}

/// A version of a secret, sealed with the key of the archive.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarriedSecret {
    /// Name of the variable.
    pub name: String,
    /// Version.
    pub version: u64,
    /// The value.
    pub sealed: String,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarriedRoute {
    /// Everything that it says; password hashes are left out.
    #[schema(value_type = Object)]
    pub route: RouteRequest,
    /// Names and password hashes of its basic authentication (JSON), sealed with the key of the archive.
    pub sealed_users: Option<String>,
}

/// A certificate that a person brought.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarriedCertificate {
    /// Name in its tenant.
    pub name: String,
    /// The chain (PEM).
    pub chain: String,
    /// The private key (PEM), sealed with the key of the archive.
    pub sealed_key: String,
}

/// What an import did, or (dry run) would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImportResult {
    /// Component by component.
    pub components: Vec<ImportedComponent>,
    /// What is not as it was, or could not be made, as sentences.
    pub notes: Vec<String>,
}

/// What became of a component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImportedComponent {
    /// Application.
    pub application: String,
    /// Component.
    pub component: String,
    /// What is done with it.
    pub action: ImportAction,
    /// Fields of the spec that differ, for `differs`.
    pub fields: Vec<String>,
}

/// What is done with a component.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportAction {
    /// It is made.
    Create,
    /// An import of this archive was broken off: it goes on.
    Resume,
    /// It is here as the archive has it.
    Same,
    /// Another one of this name is here; nothing is overwritten.
    Differs,
}
