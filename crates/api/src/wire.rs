//! What goes over the wire: requests and answers of the REST API, for server and client alike.
//!
//! Times are RFC 3339 texts in UTC, fields `snake_case`, absent values `null`. Values of `model` that travel as they
//! are (sources, specs, manifests) keep their `serde` form and appear as objects in the OpenAPI document. Nothing here
//! knows HTTP, and nothing here decides.

mod application;
mod certificate;
mod component;
mod credential;
mod error;
mod exec;
mod operation;
mod page;
mod patch;
mod query;
mod request;
mod route;
mod stack;
mod stream;
mod transfer;

pub use application::{ApplicationDocument, ApplyChange, ApplyRequest, ApplyResult, ComponentApply, ComponentSummary};
pub use certificate::{HostCertificateDocument, SetHostCertificate};
pub use component::{
    ComponentDocument, ComponentStorage, InstanceDocument, InstanceUsage, RevisionDocument, RunsDocument,
    SecretDocument, StorageDocument, UsageDocument, VolumeClassDocument, VolumeDocument,
};
pub use credential::{ContextDocument, CredentialDocument, CredentialQuery, CredentialRequest};
pub use error::ErrorBody;
pub use exec::{Channel, ExecControl, Frame, FrameError};
pub use operation::OperationDocument;
pub use page::{Page, PageQuery};
pub use patch::SpecPatch;
pub use query::{ApplyQuery, DeleteQuery, ExecQuery, ForwardQuery, OperationQuery, RegistryToken, RegistryTokenQuery};
pub use request::{
    CertificateAnswer, CertificateRequest, ChangeTenant, CreateTenant, DeployRequest, LogAnswer, LogQuery,
    RollbackRequest, ScaleRequest, SecretText, SetSecret, TenantDocument, TenantRemoval, UploadReceipt, WhoAmI,
};
pub use route::{Applied, Explanation, RouteDocument, RouteRequest};
pub use stack::{StackDocument, StackRequest};
pub use stream::{StreamDocument, StreamRequest};
pub use transfer::{
    CarriedApplication, CarriedCertificate, CarriedComponent, CarriedRevision, CarriedRoute, CarriedSecret,
    ExportRequest, ImportAction, ImportQuery, ImportRequest, ImportResult, ImportedComponent,
};
