//! The gateway against raw sockets: what clients and endpoints really see.

#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking.

mod access_log;
mod buffering;
mod descriptors;
mod differential;
mod drivers;
mod framing;
mod hostile;
mod http2;
mod http2_conformance;
mod http2_endpoints;
mod http2_life;
mod kit;
mod limits;
mod log;
mod mutated;
mod process;
mod protection;
mod proxy_protocol;
mod quiet_streams;
mod retry;
mod rolling;
mod routing;
mod shared_rates;
mod stored;
mod streams;
mod tcp;
mod traffic;
mod two_way;
mod udp;
mod upstream_tls;
