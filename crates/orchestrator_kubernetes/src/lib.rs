//! Runs workloads on a Kubernetes cluster: a driver of the orchestrator's seam.
//!
//! `render` turns a plan into objects, `seen` keeps what the cluster says of them, `facts` and `decide` translate it (all
//! of these pure); `watch`, `component`, `run_once` and `driver` act. `routes` is apart: what Ingress and Gateway API ask of
//! gateways; and `local_storage`: volumes that are made of the nodes' folders. Only this crate knows Kubernetes; nothing
//! here judges how a component is: `model::status` does.

mod access;
pub mod adopt;
mod cluster;
mod component;
mod decide;
mod driver;
mod exec;
mod facts;
mod features;
mod forward;
mod lease;
mod lines;
mod local_storage;
mod logs;
pub mod manifest;
mod names;
pub mod preflight;
mod render;
pub mod routes;
mod run_once;
mod scale;
mod seen;
mod storage;
mod tenant;
mod trimmed;
mod usage;
mod watch;

pub use component::Leads;
pub use driver::{KubernetesOptions, KubernetesOrchestrator};
pub use lease::LeaseLock;
pub use logs::KeptLines;
pub use tenant::PullCredentials;
