//! Routes as people write and see them.

use arco_model::route::{ComponentTarget, Route};
use arco_model::traffic::HostRates;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A route as it is asked for: `arco_model::route::Route`, its targets named `APP/COMPONENT[:PORT]`. Without targets it
/// leads to the component that it is added to.
pub type RouteRequest = Route<ComponentTarget>;

/// A route of a component: one host, and which of its requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RouteDocument {
    /// Id; none for the default host.
    pub id: Option<String>,
    /// Application.
    pub application: String,
    /// Component that it belongs to, and goes with.
    pub component: String,
    /// Host in lower case.
    pub host: String,
    /// The first of its paths; the others are in `route`.
    pub path: String,
    /// Inner port of the first target.
    pub port: Option<u16>,
    /// Whether this is the default host, which cannot be deleted.
    #[serde(default)]
    pub default: bool,
    /// Full URL.
    pub url: String,
    /// Everything that it says; password hashes are left out.
    #[schema(value_type = Object)]
    pub route: RouteRequest,
    /// What passed through its host in the last seconds; `null` while the gateway does not tell.
    #[schema(value_type = Option<Object>)]
    pub rates: Option<HostRates>,
}

/// Whether every live gateway routes by what was changed before it was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// `false` when one had not come to it in time; it goes on.
    pub applied: bool,
}

/// The way of a request through the gateway.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// What was asked.
    pub url: String,
    /// One line per decision, in order: `host: …`, `rule 1: …`, `rewrite: …`, `target: …`, `endpoint: …`.
    pub steps: Vec<String>,
}
