//! The gateway against raw sockets: what clients and endpoints really see.

#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking.

mod framing;
mod kit;
mod process;
mod protection;
mod rolling;
mod routing;
mod stored;
mod streams;
mod traffic;
