//! Ports of the gateway that lead to a component without HTTP.

use arco_model::traffic::StreamProtocol;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// Asks for a port of the gateway.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamRequest {
    /// `tcp` or `udp`.
    #[schema(value_type = String)]
    pub protocol: StreamProtocol,
    /// Port of the gateway; a free one of the pool when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Inner port of the component; its first outer port of the protocol when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// The only address that it is served on, where a gateway's machine has it; every one of the settings when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// A port of the gateway that leads to a component.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StreamDocument {
    /// Id.
    pub id: String,
    /// Application.
    pub application: String,
    /// Component.
    pub component: String,
    /// `tcp` or `udp`.
    #[schema(value_type = String)]
    pub protocol: StreamProtocol,
    /// Port of the gateway.
    pub port: u16,
    /// Inner port of the component.
    pub target_port: u16,
    /// The only address that it is served on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Where clients connect, as `tcp://web.shop.example.com:10000`.
    pub url: String,
    /// Why a gateway does not serve it, when that is so.
    pub problem: String,
    /// Whether another gateway serves it when one has a `problem`.
    #[serde(default)]
    pub open_elsewhere: bool,
}
