//! Integration tests of the orchestrator. Those that need root or a tool say so when they skip.
#![allow(clippy::unwrap_used, reason = "the lint knows test functions, not what they call")]

mod container_life;
mod container_rights;
mod driver_contract;
mod driver_local;
mod host_root;
mod network_reach;
