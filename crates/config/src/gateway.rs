//! Settings of the gateway: `[gateway]`.

use crate::{AccessLogConfig, PortRange, VirtualAddress};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where and how the gateway accepts traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Address for plain HTTP. Port 0 picks a free port.
    pub http_listen: SocketAddr,
    /// Address for HTTPS. Port 0 picks a free port.
    pub https_listen: SocketAddr,
    /// Port of plain HTTP as people see it, where something in front leads from it to `http_listen`; absent: the listener's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_http_port: Option<u16>,
    /// Port of HTTPS as people see it: printed URLs and redirects to HTTPS name it; absent: the listener's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_https_port: Option<u16>,
    /// Address of the ports that lead to components without HTTP (`arco route add APP/COMPONENT --tcp`).
    pub stream_listen: IpAddr,
    /// Which ports these may be, as `10000-10999`.
    pub stream_ports: PortRange,
    /// Interfaces whose addresses are not the gateway's, as `docker0` or `veth*`: routes with an address do not apply there.
    pub ignore_interfaces: Vec<String>,
    /// User and group that gateway and DNS run as, by number; no account is needed. 0: a number of its own from the range of
    /// systemd's dynamic users, by the data dir.
    pub user_id: u32,
    /// How long open requests may finish after a stop or an upgrade is asked for, in ms.
    pub drain_timeout_ms: u64,
    /// Largest accepted request header, in bytes.
    pub max_header_bytes: usize,
    /// Longest accepted path with query, in bytes.
    pub max_uri_bytes: usize,
    /// Most connections of clients in all; more are closed at once. 0: as many as there are file descriptors for.
    pub max_connections: usize,
    /// Most connections of one client address (of IPv6 its /64). 0: no limit.
    pub max_connections_per_address: u32,
    /// Most bytes that bodies of routes with `buffer` take on disk together, in the data dir.
    pub max_buffered_bytes: u64,
    /// Networks of proxies in front of the gateway: their word about a client's address, scheme and host is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether each connection begins with a PROXY header (version 1 or 2); only `trusted_proxies` may connect then, and this
    /// machine for itself.
    pub proxy_protocol: bool,
    /// How long a client may take to send its request header (on HTTP/2: the first of a connection), in ms.
    pub request_header_ms: u64,
    /// Longest pause of a client between two pieces of a request body until its response begins, in ms.
    pub request_body_ms: u64,
    /// How long a connect to an instance may take, in ms.
    pub connect_ms: u64,
    /// How long an instance may take until its response begins, and how long neither side may send anything then (but for
    /// event streams), in ms.
    pub response_ms: u64,
    /// How long a connection may be idle (on HTTP/2: without an open request), in ms.
    pub idle_ms: u64,
    /// A line for each request that was answered.
    pub access_log: AccessLogConfig,
    /// An address that this machine shares with other gateway machines, one at a time (needs keepalived).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<VirtualAddress>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            http_listen: SocketAddr::new(any, 80),
            https_listen: SocketAddr::new(any, 443),
            public_http_port: None,
            public_https_port: None,
            stream_listen: any,
            stream_ports: PortRange { first: 10_000, last: 10_999 },
            ignore_interfaces: Vec::new(),
            user_id: 0,
            drain_timeout_ms: 10_000,
            max_header_bytes: 65_536,
            max_uri_bytes: 16_384,
            max_connections: 0,
            max_connections_per_address: 0,
            max_buffered_bytes: 1 << 30,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            request_header_ms: 10_000,
            request_body_ms: 30_000,
            connect_ms: 3_000,
            response_ms: 60_000,
            idle_ms: 60_000,
            access_log: AccessLogConfig::default(),
            virtual_address: None,
        }
    }
}

impl GatewayConfig {
    /// Whether requests can be served so; the reason why not.
    pub fn check(&self) -> Result<(), String> {
        if self.max_header_bytes < 1024 {
            return Err(format!("`max_header_bytes` is at least 1024, not {}", self.max_header_bytes));
        }
        let times = [
            ("request_header_ms", self.request_header_ms),
            ("request_body_ms", self.request_body_ms),
            ("connect_ms", self.connect_ms),
            ("response_ms", self.response_ms),
            ("idle_ms", self.idle_ms),
        ];
        if let Some((name, _)) = times.iter().find(|it| it.1 == 0) {
            return Err(format!("`{name}` is at least 1: with 0, no request has any time"));
        }
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            return Err("`proxy_protocol` lets nobody in: name the proxies in `trusted_proxies`".to_owned());
        }
        if let Some(address) = &self.virtual_address {
            address.check()?;
        }
        self.access_log.check()
    }

    /// The port of plain HTTP in URLs for people, when the listener has the port `bound`.
    pub fn http_port(&self, bound: u16) -> u16 {
        self.public_http_port.unwrap_or(bound)
    }

    /// The port of HTTPS in URLs and redirects for people, when the listener has the port `bound`.
    pub fn https_port(&self, bound: u16) -> u16 {
        self.public_https_port.unwrap_or(bound)
    }
}
