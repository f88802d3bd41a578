//! The gateway against raw sockets: what clients and endpoints really see.

#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking.

mod differential;
mod framing;
mod hostile;
mod http2;
mod kit;
mod process;
mod protection;
mod rolling;
mod routing;
mod stored;
mod streams;
mod traffic;
