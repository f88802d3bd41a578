//! Added hosts of a component. They are published by the controller, which is rung after each change.

use super::super::Api;
use super::super::error::ApiError;
use super::Target;
use crate::wire::{RouteDocument, RouteRequest};
use arco_model::component::{Component, INTERNAL_DOMAIN};
use arco_model::error::{ErrorKind, Problem};
use arco_model::spec::Port;
use arco_store::clock;
use arco_store::sql::{Query, RouteRow, Versioned};

impl Api {
    /// Adds a host, or changes the port of one that is the component's own.
    pub(in super::super) async fn add_route(
        &self,
        target: &Target,
        request: &RouteRequest,
    ) -> Result<RouteDocument, ApiError> {
        let _one_at_a_time = self.changing.lock().await;
        let component = self.component(target).await?;
        let (host, prefix) = (host(&request.host)?, prefix(request.path.as_deref())?);
        let port = port(&component, &self.ports(&component).await?, request.port)?;
        let taken = |by: &str| {
            Problem::new(
                ErrorKind::Conflict,
                "host_taken",
                format!("`{host}{prefix}` already leads to `{by}`"),
                "choose another host or path, or delete that route first",
            )
        };
        let everything = self.deps.metadata.list::<Component>(&Query::default()).await?.items;
        let domain = &self.deps.config.server.domain;
        if let Some(other) = everything.iter().find(|it| it.value.default_hosts(domain).contains(&host)) {
            return Err(taken(&other.value.reference()).into());
        }
        let routes = self.deps.metadata.list::<RouteRow>(&Query::default()).await?.items;
        match routes.into_iter().find(|it| it.value.host == host && it.value.prefix == prefix) {
            Some(other) if other.value.component_id != component.id => {
                return Err(taken(&format!("{}/{}", other.value.application, other.value.component)).into());
            }
            Some(mut own) => {
                own.value.port = port;
                self.deps.metadata.update(&own).await?;
            }
            None => self.deps.metadata.insert(&row(&component, &host, &prefix, port)).await?,
        }
        self.wake(&component.id).await?;
        Ok(self.route_document(&host, &prefix, port, false))
    }

    /// Takes a host away.
    pub(in super::super) async fn delete_route(&self, target: &Target, request: &RouteRequest) -> Result<(), ApiError> {
        let component = self.component(target).await?;
        let (host, prefix) = (host(&request.host)?, prefix(request.path.as_deref())?);
        if component.default_hosts(&self.deps.config.server.domain).contains(&host) {
            let message = format!("`{host}` is the default host of `{}`", component.reference());
            return Err(Problem::new(
                ErrorKind::Conflict,
                "route_is_default",
                message,
                "it goes with the component; `arco stop` ends what answers there",
            )
            .into());
        }
        let routes = self.deps.metadata.list::<RouteRow>(&Query::tag(component.id.as_str())).await?.items;
        let found: Option<Versioned<RouteRow>> =
            routes.into_iter().find(|it| it.value.host == host && it.value.prefix == prefix);
        let found = found.ok_or_else(|| Problem::not_found("route", format!("{host}{prefix}")))?;
        let mut batch = arco_store::sql::Batch::default();
        batch.delete(&found);
        self.deps.metadata.commit(batch).await?;
        self.wake(&component.id).await
    }
}

fn row(component: &Component, host: &str, prefix: &str, port: u16) -> RouteRow {
    RouteRow {
        id: clock::fresh(),
        tenant: component.tenant.clone(),
        application: component.application.clone(),
        component: component.name.clone(),
        component_id: component.id.clone(),
        host: host.to_owned(),
        prefix: prefix.to_owned(),
        port,
        created_at: clock::now(),
    }
}

/// A host name in lower case (RFC 1123 §2.1, at most 253 characters), or `*.` and one.
fn host(text: &str) -> Result<String, Problem> {
    let host = text.to_ascii_lowercase();
    let bad = |why: &str| {
        Problem::invalid(
            "host_invalid",
            format!("`{}` is not a host: {why}", text.chars().take(80).collect::<String>()),
            "give a name as `www.example.com` or `*.example.com`, without port",
        )
    };
    let name = host.strip_prefix("*.").unwrap_or(&host);
    let label = |it: &str| {
        !it.is_empty()
            && it.len() <= 63
            && !it.starts_with('-')
            && !it.ends_with('-')
            && it.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.is_empty() || host.len() > 253 {
        Err(bad("it is empty or too long"))
    } else if !name.split('.').all(label) {
        Err(bad("each part has 1 to 63 of a-z, 0-9 and -"))
    } else if name == INTERNAL_DOMAIN || name.ends_with(&format!(".{INTERNAL_DOMAIN}")) {
        Err(bad("names below it are those of components inside the platform"))
    } else {
        Ok(host)
    }
}

/// A path prefix without query, dots or an end slash.
fn prefix(text: Option<&str>) -> Result<String, Problem> {
    let text = text.filter(|it| !it.is_empty()).unwrap_or("/");
    let good = text.starts_with('/')
        && text.len() <= 1024
        && text.bytes().all(|it| it.is_ascii_graphic() && !matches!(it, b'?' | b'#' | b'\\'))
        && !text.split('/').any(|it| it == "." || it == "..")
        && !text.contains("//");
    if !good {
        let message = format!("`{}` is not a path prefix", text.chars().take(80).collect::<String>());
        return Err(Problem::invalid("path_invalid", message, "give an absolute path, as `/api`"));
    }
    Ok(if text == "/" { text.to_owned() } else { text.trim_end_matches('/').to_owned() })
}

/// The asked port, which must be one that the gateway can route by host; else the first such port.
fn port(component: &Component, ports: &[Port], asked: Option<u16>) -> Result<u16, Problem> {
    let reference = component.reference();
    let routable = || ports.iter().filter(|it| it.outer && it.protocol.is_http());
    let found = match asked {
        Some(asked) => routable().find(|it| it.port == asked),
        None => routable().next(),
    };
    let advice = "`--port` names one; the first deploy finds out which there are";
    found.map(|it| it.port).ok_or_else(|| match asked {
        Some(asked) => {
            Problem::invalid("port_not_routable", format!("`{reference}` has no outer HTTP port {asked}"), advice)
        }
        None => Problem::invalid("port_not_routable", format!("`{reference}` has no outer HTTP port"), advice),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_prefixes_are_checked() {
        for (text, good) in [
            ("www.Example.com", true),
            ("*.example.com", true),
            ("localhost", true),
            ("", false),
            ("a..b", false),
            ("*", false),
            ("a b", false),
            ("x.arco.internal", false),
            ("h:80", false),
            ("-a.b", false),
            ("a/*", false),
            ("*.*.a", false),
        ] {
            assert_eq!(host(text).is_ok(), good, "{text}");
        }
        for (text, expected) in [
            (None, Some("/")),
            (Some("/api/"), Some("/api")),
            (Some("/a/../b"), None),
            (Some("a"), None),
            (Some("/a?b"), None),
            (Some("//"), None),
        ] {
            assert_eq!(prefix(text).ok().as_deref(), expected, "{text:?}");
        }
    }
}
