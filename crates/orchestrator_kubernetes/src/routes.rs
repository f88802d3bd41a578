//! Routes that objects of a cluster ask for: Ingress and Gateway API, with the services, endpoints and certificates that
//! they name, as the model's types that gateways are given ([`RouteTable`]).
//!
//! What must hold: the translation is pure (`World` in, [`RouteTable`] and statuses out), so that equal objects give equal
//! tables; nothing is told before every kind was listed once, but for those that cannot be, and a watch that is cut leaves
//! what is known; an object that cannot be served says so in its own status and takes nothing from others; another
//! namespace is reached only where a ReferenceGrant there lets it. Not here: how the table gets to the gateways (the executable publishes it).

mod annotations;
mod attach;
mod backend;
mod filter;
mod follow;
mod gateway;
mod http;
mod ingress;
mod kind;
mod object;
mod settle;
mod status;
mod stream;
mod table;
mod translate;
mod world;

#[cfg(test)]
mod tests;

use crate::cluster::Cluster;
use arco_config::KubernetesConfig;
use arco_model::id::{ComponentId, RowId};
use arco_model::traffic::{HostEntry, StreamEntry, UpstreamEntry};
use arco_orchestrator::Error;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A certificate that hosts are served with.
#[derive(Clone, Eq, PartialEq)]
pub struct ServedCertificate {
    /// Its chain (PEM), the certificate of the host first.
    pub chain_pem: String,
    /// Its private key (PEM).
    pub key_pem: String,
}

/// Without the key.
impl std::fmt::Debug for ServedCertificate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ServedCertificate").field("chain_pem", &self.chain_pem.len()).finish_non_exhaustive()
    }
}

/// Everything that objects of the cluster ask of gateways.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RouteTable {
    /// By host.
    pub hosts: BTreeMap<String, HostEntry>,
    /// Ports of services, by an id that follows from their names.
    pub upstreams: BTreeMap<ComponentId, UpstreamEntry>,
    /// By an id that follows from the content.
    pub certificates: BTreeMap<RowId, ServedCertificate>,
    /// By protocol and port of the gateway.
    pub streams: BTreeMap<String, StreamEntry>,
    /// Some kinds could not be listed: what is not here may be asked for nevertheless, and stays as it was.
    pub partial: bool,
}

/// What the gateway can be asked for.
#[derive(Clone, Debug)]
pub struct GatewayPorts {
    /// Ports that plain HTTP is served on, as objects may name them.
    pub http: Vec<u16>,
    /// Ports that TLS is served on, as objects may name them.
    pub https: Vec<u16>,
    /// Ports that may lead to services without HTTP.
    pub streams: RangeInclusive<u16>,
}

/// Prepares to follow the cluster. The receiver holds the newest table, `None` until everything was listed once; the future does
/// the work, statuses included, until `stop`. Of several processes on a cluster one does it.
pub async fn follow(
    config: &KubernetesConfig,
    ports: GatewayPorts,
    stop: CancellationToken,
) -> Result<(watch::Receiver<Option<Arc<RouteTable>>>, BoxFuture<'static, ()>), Error> {
    let cluster = Cluster::connect(config).await?;
    let terms = translate::Terms {
        class: config.route_class.clone(),
        controller: format!("arco.internal/{}", config.route_class),
        addresses: config.route_addresses.clone(),
        service: world::Name::parse(&config.route_service),
        ports,
    };
    if !config.route_service.is_empty() && terms.service.is_none() {
        let text = format!("`kubernetes.route_service` is NAMESPACE/NAME of a service, not `{}`", config.route_service);
        return Err(Error::Refused(text));
    }
    let (tell, told) = watch::channel(None);
    Ok((told, settle::run(cluster, terms, tell, stop).boxed()))
}
