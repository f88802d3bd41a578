//! What the data plane knows: hosts, upstreams, names. Values of KV keys below `/gateway/`.
//!
//! One key per host, per upstream and per name, so that a change touches little. Only the controller writes them.

use crate::id::{ComponentId, InstanceId};
use crate::name::{ApplicationName, ComponentName, TenantName};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Key prefix of everything that a gateway reads.
pub const GATEWAY_PREFIX: &str = "/gateway/";
/// `/gateway/hosts/<host>` → [`HostEntry`].
pub const HOSTS: &str = "/gateway/hosts/";
/// `/gateway/upstreams/<component id>` → [`UpstreamEntry`].
pub const UPSTREAMS: &str = "/gateway/upstreams/";
/// `/gateway/names/<component id>` → [`NameEntry`].
pub const NAMES: &str = "/gateway/names/";
/// `/gateway/settings` → [`DataPlaneSettings`].
pub const SETTINGS: &str = "/gateway/settings";
/// `/gateway-status/<gateway id>` → [`GatewayStatus`], on a lease. The only prefix that a gateway writes.
pub const STATUS_PREFIX: &str = "/gateway-status/";

/// Where requests for one host go.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Host in lower case, without port; `*.suffix` for a wildcard.
    pub host: String,
    /// Rules; the longest matching path prefix wins.
    pub rules: Vec<PathRule>,
}

/// One rule of a host.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PathRule {
    /// Path prefix, matched by whole segments; `/` matches all.
    pub prefix: String,
    /// The component that answers.
    pub component: ComponentId,
    /// Its inner port.
    pub port: u16,
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
}

/// One instance as an upstream.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Its address; the port comes from the rule.
    pub address: Ipv4Addr,
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
    pub dns_forwarders: Vec<std::net::IpAddr>,
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
