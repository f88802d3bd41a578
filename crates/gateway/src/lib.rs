//! The gateway: the way of all outside traffic to the instances.
//!
//! A source ([`source`]) makes an immutable [`snapshot::Snapshot`]; the [`engine`] routes by it. What must hold: a change of
//! routes never breaks a request; the last known routes stay when their source is silent; a request is never sent to an
//! instance after this gateway has acknowledged that it drains.
//!
//! Not here: certificates' issuing, DNS (`mesh`), and who decides about routes (the controller).

pub mod access_log;
pub mod addresses;
pub mod admin;
pub mod alone;
pub mod balance;
pub mod bind;
mod calendar;
pub mod data_plane;
pub mod driver;
pub mod engine;
mod explain;
mod forwarded;
pub mod framing;
pub mod metrics;
pub mod pages;
pub mod process;
pub mod protect;
mod rate_exchange;
pub mod rates;
pub mod snapshot;
pub mod source;
mod streams;
pub mod tickets;
pub mod upstream;
pub mod virtual_address;

pub use data_plane::{DataPlane, GatewayError};
pub use explain::{Question, explain};
