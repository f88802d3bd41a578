//! Queries of calls that have few, and the small answer of the registry.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How something is deleted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Whether volumes stay; a component of the same name gets them back.
    pub keep_volumes: bool,
}

/// How an application is applied.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ApplyQuery {
    /// Whether only the difference is told.
    pub dry_run: bool,
}

/// Which operations.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct OperationQuery {
    /// Only of this application.
    pub application: Option<String>,
    /// Only of this component.
    pub component: Option<String>,
    /// Only failed ones.
    pub failed: bool,
}

/// What runs in an instance.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ExecQuery {
    /// Program and arguments, one parameter each.
    pub argv: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether standard input is sent; true when absent.
    pub input: Option<bool>,
    /// Characters in a line of the terminal; 80 when absent.
    pub columns: Option<u16>,
    /// Lines of the terminal; 24 when absent.
    pub rows: Option<u16>,
    /// A certain instance.
    pub instance: Option<String>,
    /// The place of a stateful component whose own volumes an instance of its own gets; 0 when absent.
    pub place: Option<u32>,
}

/// Which port of an instance.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ForwardQuery {
    /// TCP port inside the instance.
    pub port: u16,
    /// A certain instance.
    #[serde(default)]
    pub instance: Option<String>,
}

/// Which repository of the registry.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RegistryTokenQuery {
    /// `<tenant>/<application>/<component>`.
    pub repository: String,
}

/// A token of the registry.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegistryToken {
    /// What it is for.
    pub repository: String,
    /// The token; a secret.
    pub token: String,
}
