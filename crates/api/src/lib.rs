//! The REST API: [`wire`] types, the typed [`client`] that the command line uses, and the [`server`] role.

pub mod client;
pub mod server;
pub mod wire;
