//! Settings of the instances' network: `[network]`.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Network of the instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Addresses of bridge, instances and components; absent means the first free /20 of 10.64.0.0/10, then kept.
    pub pool: Option<Ipv4Net>,
    /// Name servers for foreign names; empty means those of `/etc/resolv.conf`.
    pub forwarders: Vec<std::net::IpAddr>,
}
