//! Who a route leads to, and how that is called: by people, by gateways.

use crate::id::ComponentId;
use crate::name::{ApplicationName, ComponentName};
use serde::{Deserialize, Serialize};

/// One of those who answer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target<T> {
    /// Who. (`upstream` in the gateway's own file.)
    #[serde(alias = "upstream")]
    pub to: T,
    /// Share of the requests: this of the sum of all weights. 0 gets none, unless all are 0.
    #[serde(default = "hundred")]
    pub weight: u32,
}

/// Who gets copies; its answers are thrown away.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror<T> {
    /// Who. (`upstream` in the gateway's own file.)
    #[serde(alias = "upstream")]
    pub to: T,
    /// Share of the requests, in percent.
    #[serde(default = "hundred")]
    pub percent: u32,
}

/// Who is asked whether a request may come in.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardAuth<T> {
    /// Who. (`upstream` in the gateway's own file.)
    #[serde(alias = "upstream")]
    pub to: T,
    /// What it is asked, by GET with the fields of the request and `X-Forwarded-Method` and `-Uri`.
    #[serde(default = "root")]
    pub path: String,
    /// Fields of its answer that take the place of the request's.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub copy_headers: Vec<String>,
}

fn root() -> String {
    "/".to_owned()
}

fn hundred() -> u32 {
    100
}

/// A text that does not name a target.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` does not name a target: write APP/COMPONENT or APP/COMPONENT:PORT")]
pub struct TargetError(String);

macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = TargetError;
            fn try_from(text: String) -> Result<Self, TargetError> {
                Self::parse(&text).ok_or_else(|| TargetError(text.chars().take(80).collect()))
            }
        }
        impl std::str::FromStr for $name {
            type Err = TargetError;
            fn from_str(text: &str) -> Result<Self, TargetError> {
                Self::try_from(text.to_owned())
            }
        }
        impl From<$name> for String {
            fn from(it: $name) -> String {
                it.to_string()
            }
        }
    };
}

/// A component of the route's tenant as people name it: `APP/COMPONENT` or `APP/COMPONENT:PORT`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComponentTarget {
    /// Application.
    pub application: ApplicationName,
    /// Component.
    pub component: ComponentName,
    /// Inner port; its first outer HTTP port when absent.
    pub port: Option<u16>,
}

impl ComponentTarget {
    fn parse(text: &str) -> Option<Self> {
        let (reference, port) = match text.split_once(':') {
            Some((reference, port)) => (reference, Some(port.parse().ok().filter(|it| *it > 0)?)),
            None => (text, None),
        };
        let (application, component) = reference.split_once('/')?;
        Some(Self { application: application.parse().ok()?, component: component.parse().ok()?, port })
    }
}

impl std::fmt::Display for ComponentTarget {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.application, self.component)?;
        self.port.map_or(Ok(()), |it| write!(out, ":{it}"))
    }
}

as_text!(ComponentTarget);

/// A port of a component as gateways name it: `ID:PORT`.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamTarget {
    /// The component.
    pub component: ComponentId,
    /// Its inner port.
    pub port: u16,
}

impl UpstreamTarget {
    fn parse(text: &str) -> Option<Self> {
        let (component, port) = text.split_once(':')?;
        Some(Self { component: component.parse().ok()?, port: port.parse().ok()? })
    }
}

impl std::fmt::Display for UpstreamTarget {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.component, self.port)
    }
}

as_text!(UpstreamTarget);
