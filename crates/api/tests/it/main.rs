//! The API as its clients see it: real mutual TLS on a free port, the typed client, rows in memory.
#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod apply;
mod components;
mod document;
mod identity;
mod platform;
mod settings;
mod stacks;
mod streams;
mod transfer;
mod turns;
mod uploads;
