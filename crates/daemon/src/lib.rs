//! What each role needs to live in a process: supervisor, shutdown, telemetry, listeners, health, certificates.
//!
//! Nothing here knows what a role does. A process makes one [`Supervisor`], one [`health::Health`], one
//! [`metrics::Metrics`] and, where it serves others, one [`pki::Pki`].

pub mod certificate;
pub mod confine;
pub mod descriptors;
pub mod discovery;
pub mod handover;
pub mod health;
pub mod leader;
pub mod listener;
pub mod metrics;
pub mod pki;
pub mod supervisor;
pub mod telemetry;
pub mod tls;

pub use supervisor::{BoxError, OnExit, Supervisor};
pub use tokio_util::sync::CancellationToken;
