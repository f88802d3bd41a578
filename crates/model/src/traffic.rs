//! What the data plane knows: hosts, upstreams, names. Values of KV keys below `/gateway/`.
//!
//! One key per host, per upstream and per name, so that a change touches little. Only the controller writes them, but for [`MARK`].

use crate::id::{ComponentId, InstanceId, RowId};
use crate::name::{ApplicationName, ComponentName, TenantName};
use crate::route::{Route, UpstreamTarget};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// Key prefix of everything that a gateway reads.
pub const GATEWAY_PREFIX: &str = "/gateway/";
/// `/gateway/hosts/<host>` → [`HostEntry`].
pub const HOSTS: &str = "/gateway/hosts/";
/// `/gateway/upstreams/<component id>` → [`UpstreamEntry`].
pub const UPSTREAMS: &str = "/gateway/upstreams/";
/// `/gateway/certificates/<row id>` → [`CertificateEntry`].
pub const CERTIFICATES: &str = "/gateway/certificates/";
/// `/gateway/challenges/<host>` → [`CertificateEntry`]: answers to ACME's TLS-ALPN-01, sealed as for the host's name.
pub const CHALLENGES: &str = "/gateway/challenges/";
/// `/gateway/cluster/hosts/<host>` → [`HostEntry`] that objects of a cluster ask for. One of [`HOSTS`] wins over it.
pub const CLUSTER_HOSTS: &str = "/gateway/cluster/hosts/";
/// `/gateway/cluster/upstreams/<id>` → [`UpstreamEntry`] of a port of a service.
pub const CLUSTER_UPSTREAMS: &str = "/gateway/cluster/upstreams/";
/// `/gateway/cluster/certificates/<id>` → [`CertificateEntry`].
pub const CLUSTER_CERTIFICATES: &str = "/gateway/cluster/certificates/";
/// `/gateway/cluster/streams/<protocol>:<port>` → [`StreamEntry`]. One of [`STREAMS`] wins over it.
pub const CLUSTER_STREAMS: &str = "/gateway/cluster/streams/";
/// Key prefix of everything that objects of a cluster ask for.
pub const CLUSTER_PREFIX: &str = "/gateway/cluster/";
/// `/gateway/streams/<protocol>:<port>` → [`StreamEntry`].
pub const STREAMS: &str = "/gateway/streams/";
/// `/gateway/names/<component id>` → [`NameEntry`].
pub const NAMES: &str = "/gateway/names/";
/// `/gateway/settings` → [`DataPlaneSettings`].
pub const SETTINGS: &str = "/gateway/settings";
/// Holds nothing. Whoever writes it learns a revision that every gateway comes to, after all that was published before.
pub const MARK: &str = "/gateway/mark";
/// `/gateway-status/<gateway id>` → [`GatewayStatus`], on a lease. A gateway writes this prefix and [`RATES_PREFIX`] only.
pub const STATUS_PREFIX: &str = "/gateway-status/";
/// `/gateway-rates/<gateway id>` → [`RatesSeen`], sealed with the gateways' keys for this key of the store; on a lease,
/// while there are several gateways.
pub const RATES_PREFIX: &str = "/gateway-rates/";

/// Where requests for one host go.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Host in lower case, without port; `*.suffix` for a wildcard.
    pub host: String,
    /// Its routes, oldest first; which of them is for a request is the gateway's business (`snapshot`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Route<UpstreamTarget>>,
    /// Whose host it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// Who answers what no rule is for: the component that has its name from this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<UpstreamTarget>,
    /// How it is served over TLS.
    #[serde(default, skip_serializing_if = "HostTls::is_off")]
    pub tls: HostTls,
}

impl HostEntry {
    /// Everything that its rules call.
    pub fn callees(&self) -> impl Iterator<Item = &UpstreamTarget> {
        self.rules.iter().flat_map(Route::callees).chain(&self.default)
    }
}

/// How a host is served over TLS.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostTls {
    /// Which certificate ([`CERTIFICATES`]); without one, the host is not served over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<RowId>,
    /// Clients must show a certificate of one of these authorities (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<String>,
}

impl HostTls {
    /// Whether the host is not served over TLS.
    pub fn is_off(&self) -> bool {
        self.certificate.is_none()
    }
}

/// A certificate for clients, its key sealed for the gateways.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CertificateEntry {
    /// When chain and key came; a republished one is told apart by it.
    pub issued_at: Timestamp,
    /// Its chain (PEM), the certificate of the host first.
    pub chain_pem: String,
    /// Which key sealed the private key.
    pub key_id: String,
    /// The sealed private key (PEM); its context is [`certificate_context`].
    pub sealed_key: String,
}

/// Purpose of the keys that seal private keys for gateways.
pub const GATEWAY_KEYS: &str = "gateways";

/// The context that a certificate's private key is sealed in for the gateways.
pub fn certificate_context(id: &str) -> String {
    format!("gateway certificate {id}")
}

/// What a stream speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamProtocol {
    /// Connections of bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

impl StreamProtocol {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl std::fmt::Display for StreamProtocol {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

/// A port of the gateway that leads to a port of a component, without HTTP.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StreamEntry {
    /// What it speaks.
    pub protocol: StreamProtocol,
    /// Port of the gateway.
    pub port: u16,
    /// Where it leads.
    pub target: UpstreamTarget,
    /// The only address that it is served on, by the gateway whose machine has it; when absent, by every gateway on the
    /// address of its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl StreamEntry {
    /// Its key below [`STREAMS`].
    pub fn key(&self) -> String {
        format!("{STREAMS}{}:{}", self.protocol, self.port)
    }
}

/// The instances of a component that may get requests.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct UpstreamEntry {
    /// The component.
    pub component: ComponentId,
    /// `application/component`, for the page that people see when nothing answers.
    pub reference: String,
    /// Why there is no endpoint, when there is none.
    pub state: UpstreamState,
    /// Instances, ready and draining.
    pub endpoints: Vec<Endpoint>,
    /// Inner ports that speak HTTP/2 (h2c, gRPC), over TLS where they are among `tls_ports` as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http2_ports: Vec<u16>,
    /// Inner ports that speak TLS. Whose certificate they show counts only where a route says so (`upstream_tls`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls_ports: Vec<u16>,
}

/// Whether a component is meant to answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamState {
    /// It is meant to answer.
    #[default]
    Up,
    /// A person stopped it.
    Stopped,
    /// It has not been built yet, or is starting.
    Starting,
    /// It is not well.
    Abnormal,
    /// A route names it in vain: it is not there, or not for that route. Its requests fail (500) instead of being put off.
    Missing,
}

/// One instance as an upstream.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port; that of the rule's target when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Draining: open requests go on, new ones go elsewhere.
    pub draining: bool,
}

/// A component's name for DNS.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct NameEntry {
    /// Tenant; only its instances (and those that are bound) get an answer.
    pub tenant: TenantName,
    /// Application.
    pub application: ApplicationName,
    /// Component.
    pub component: ComponentName,
    /// The component's stable address.
    pub address: Ipv4Addr,
    /// Addresses of its own instances: who asks from there belongs to this tenant and application.
    pub instances: Vec<Ipv4Addr>,
    /// Components of other tenants that it is bound to, and may therefore resolve.
    pub may_call: Vec<ComponentId>,
}

/// What the data plane needs beside routes.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DataPlaneSettings {
    /// Where DNS listens: the bridge address, when there is one.
    pub dns_listen: Option<SocketAddrV4>,
    /// Where names that are not ours are asked.
    pub dns_forwarders: Vec<IpAddr>,
    /// Suffix of default hosts.
    pub domain: String,
}

/// What a gateway tells about itself.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// KV revision of the snapshot that it routes by.
    pub applied_revision: u64,
    /// Instances that are draining and have open requests here.
    pub busy_draining: Vec<InstanceId>,
}

/// What a gateway let through lately by limits that all gateways hold together.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RatesSeen {
    /// Another one for each process: numbers begin anew with it.
    pub epoch: u64,
    /// The last few, the oldest first.
    pub notes: Vec<RatesNote>,
}

/// What was let through between two notes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RatesNote {
    /// Counted from 1.
    pub number: u64,
    /// Limit, hash of the key, requests.
    pub counts: Vec<(u64, u64, u32)>,
}

/// What passed through one host in the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostRates {
    /// Answered requests per second.
    pub requests_per_s: f64,
    /// Of these, answered with 500 or above, per second.
    pub errors_per_s: f64,
    /// Half of the requests were answered within so many ms; absent without requests.
    pub p50_ms: Option<f64>,
    /// 99 of 100 requests were answered within so many ms.
    pub p99_ms: Option<f64>,
}

/// A request that nobody sends: which route would it take?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteQuestion {
    /// `http://…` or `https://…`.
    pub url: String,
    /// Method; `GET` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Header fields as `NAME: VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Address of who asks; this machine when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
}
