//! Nouns and rules of the platform: typed ids, specs, plans, statuses.
//!
//! Pure values and pure functions. No I/O, no clock, no randomness, no tokio: everything here can be tested from a
//! table. Wire status codes, SQL and file layouts are other crates' business.

pub mod application;
pub mod artifact;
pub mod component;
pub mod credential;
pub mod error;
pub mod id;
pub mod job;
pub mod log;
pub mod manifest;
pub mod name;
pub mod observed;
pub mod operation;
pub mod plan;
pub mod route;
pub mod sample;
pub mod secret;
pub mod source;
pub mod spec;
pub mod status;
pub mod storage;
pub mod ticket;
pub mod time;
pub mod traffic;
