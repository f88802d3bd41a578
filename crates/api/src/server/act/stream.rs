//! Ports of the gateway for components: chosen from a pool, one component each. They are published by the controller,
//! which is rung after each change.
//!
//! What must hold: a port of the gateway leads to one component, whoever asks at the same time (a unique row).

use super::super::error::ApiError;
use super::super::{Api, ClosedStream};
use super::Target;
use crate::wire::{StreamDocument, StreamRequest};
use arco_config::PortRange;
use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::RowId;
use arco_model::name::TenantName;
use arco_model::route::UpstreamTarget;
use arco_model::spec::{Port, Protocol};
use arco_model::traffic::{StreamEntry, StreamProtocol};
use arco_store::clock;
use arco_store::sql::{Batch, Query, StreamRow};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// How often another server may take a free port first.
const ATTEMPTS: usize = 20;

impl Api {
    /// Gives a component a port of the gateway; the one that it has, when it has one for the same.
    pub(in super::super) async fn add_stream(
        &self,
        target: &Target,
        request: StreamRequest,
    ) -> Result<StreamDocument, ApiError> {
        let turn = self.changing.lock().await?;
        let component = self.component(target).await?;
        let inner = inner_port(&component, &self.ports(&component).await?, request.protocol, request.target_port)?;
        let lead = UpstreamTarget { component: component.id.clone(), port: inner };
        for _ in 0..ATTEMPTS {
            let rows = self.deps.metadata.list::<StreamRow>(&Query::parent(request.protocol.as_str())).await?.items;
            let taken: BTreeMap<u16, StreamRow> = rows.into_iter().map(|it| (it.value.stream.port, it.value)).collect();
            let own = |it: &&StreamRow| {
                it.stream.target == lead
                    && it.stream.address == request.address
                    && request.port.is_none_or(|port| port == it.stream.port)
            };
            if let Some(known) = taken.values().find(own) {
                self.wake(&component.id).await?;
                return Ok(self.stream_document(&component, known, &[]));
            }
            let port = self.gateway_port(&component, &request, &taken)?;
            let row = StreamRow {
                id: clock::fresh(),
                tenant: component.tenant.clone(),
                application: component.application.clone(),
                component: component.name.clone(),
                stream: StreamEntry {
                    protocol: request.protocol,
                    port,
                    target: lead.clone(),
                    address: request.address,
                },
                created_at: clock::now(),
            };
            let mut batch = Batch::default();
            batch.insert(&row)?;
            match self.commit_for(&turn, &component, batch).await {
                Ok(()) => {
                    self.wake(&component.id).await?;
                    return Ok(self.stream_document(&component, &row, &[]));
                }
                Err(error) if error.is_stale() => {} // another server was faster
                Err(error) => return Err(error),
            }
        }
        let message = "others took every free port of the gateway first".to_owned();
        Err(Problem::new(ErrorKind::Conflict, "ports_busy", message, "try again").into())
    }

    /// Ports of the gateway that lead to a component.
    pub(in super::super) async fn streams(&self, component: &Component) -> Result<Vec<StreamDocument>, ApiError> {
        let rows = self.deps.metadata.list::<StreamRow>(&Query::tag(component.id.as_str())).await?.items;
        let closed = self.closed_streams(!rows.is_empty()).await;
        let mut items: Vec<_> = rows.iter().map(|it| self.stream_document(component, &it.value, &closed)).collect();
        items.sort_by_key(|it| (it.protocol, it.port));
        Ok(items)
    }

    /// Ports of the gateway that lead to components of a tenant.
    pub(in super::super) async fn tenant_streams(&self, tenant: &TenantName) -> Result<Vec<StreamDocument>, ApiError> {
        self.tenant_exists(tenant).await?;
        let mut items = Vec::new();
        for component in self.deps.metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items {
            items.extend(self.streams(&component.value).await?);
        }
        items.sort_by_key(|it| (it.protocol, it.port));
        Ok(items)
    }

    /// Takes a port of the gateway from a component.
    pub(in super::super) async fn delete_stream(&self, target: &Target, id: &RowId) -> Result<(), ApiError> {
        let turn = self.changing.lock().await?;
        let component = self.component(target).await?;
        let found = self.deps.metadata.get::<StreamRow>(id.as_str()).await?;
        let found = found.filter(|it| it.value.stream.target.component == component.id);
        let row = found.ok_or_else(|| Problem::not_found("stream", id))?;
        let mut batch = Batch::default();
        batch.delete(&row);
        turn.metadata().commit(batch).await?;
        self.wake(&component.id).await
    }

    /// The asked port of the gateway, or a free one.
    fn gateway_port(
        &self,
        component: &Component,
        request: &StreamRequest,
        taken: &BTreeMap<u16, StreamRow>,
    ) -> Result<u16, Problem> {
        let config = &self.deps.config.gateway;
        // On the gateway's machine a port that another program has is seen before the gateway fails on it.
        let here = self.deps.gateway.as_ref().is_some_and(|it| it.is_here());
        // An address of another machine is that one's to look at.
        let listen = request.address.unwrap_or(config.stream_listen);
        let free = |port: u16| !here || can_bind(request.protocol, listen, port);
        let pool = config.stream_ports;
        let Some(asked) = request.port else {
            let found = pool.ports().find(|it| !taken.contains_key(it) && free(*it));
            return found.ok_or_else(|| exhausted(pool));
        };
        let (protocol, conflict) = (request.protocol, |code: &str, message: String, advice: &str| {
            Problem::new(ErrorKind::Conflict, code, message, advice)
        });
        if !pool.holds(asked) {
            let message = format!("port {asked} is not one of the gateway's ports for components ({pool})");
            let advice = "leave the port out to get a free one, or have `gateway.stream_ports` of the settings changed";
            return Err(Problem::invalid("port_not_in_pool", message, advice));
        }
        if let Some(row) = taken.get(&asked) {
            let by = if row.tenant == component.tenant {
                format!("`{}/{}`", row.application, row.component)
            } else {
                "another tenant".to_owned()
            };
            let message = format!("{protocol} port {asked} of the gateway already leads to {by}");
            return Err(conflict("port_taken", message, "leave the port out to get a free one"));
        }
        if !free(asked) {
            let message = format!("{protocol} port {asked} of this machine is used by another program");
            return Err(conflict("port_busy", message, "leave the port out to get a free one, or stop that program"));
        }
        Ok(asked)
    }

    /// What the gateways say about streams that they cannot serve.
    async fn closed_streams(&self, any: bool) -> Vec<ClosedStream> {
        let Some(gateway) = self.deps.gateway.as_ref().filter(|_| any) else { return Vec::new() };
        gateway.closed_streams().await.unwrap_or_else(|problem| {
            tracing::debug!(%problem, "the gateway does not tell how its ports are");
            Vec::new()
        })
    }

    fn stream_document(&self, component: &Component, row: &StreamRow, closed: &[ClosedStream]) -> StreamDocument {
        let StreamEntry { protocol, port, target, address } = &row.stream;
        let [host, _] = component.default_hosts(&self.deps.config.server.domain);
        let closed = closed.iter().find(|it| (it.protocol, it.port) == (*protocol, *port));
        StreamDocument {
            id: row.id.to_string(),
            application: row.application.to_string(),
            component: row.component.to_string(),
            protocol: *protocol,
            port: *port,
            target_port: target.port,
            address: *address,
            url: match address {
                Some(address) => format!("{protocol}://{}", SocketAddr::new(*address, *port)),
                None => format!("{protocol}://{host}:{port}"),
            },
            problem: closed.map(|it| it.why.clone()).unwrap_or_default(),
            open_elsewhere: closed.is_some_and(|it| it.open_elsewhere),
        }
    }
}

fn exhausted(pool: PortRange) -> Problem {
    let message = format!("every port of the gateway for components is taken ({pool})");
    let advice = "delete a route that is not needed, or have `gateway.stream_ports` of the settings widened";
    Problem::new(ErrorKind::Conflict, "ports_exhausted", message, advice)
}

/// Whether nobody on this machine has the port.
fn can_bind(protocol: StreamProtocol, ip: IpAddr, port: u16) -> bool {
    let address = SocketAddr::new(ip, port);
    let bound = match protocol {
        StreamProtocol::Tcp => std::net::TcpListener::bind(address).map(drop),
        StreamProtocol::Udp => std::net::UdpSocket::bind(address).map(drop),
    };
    // An address that is not here (yet) is nobody's.
    bound.err().is_none_or(|it| it.kind() == std::io::ErrorKind::AddrNotAvailable)
}

/// The asked port of the component, which must speak the protocol; else its first outer one that speaks nothing else,
/// else its first outer one.
pub(super) fn inner_port(
    component: &Component,
    ports: &[Port],
    protocol: StreamProtocol,
    asked: Option<u16>,
) -> Result<u16, Problem> {
    let udp = protocol == StreamProtocol::Udp;
    let fits = |it: &&Port| it.outer && (it.protocol == Protocol::Udp) == udp;
    let plain = |it: &&Port| !it.protocol.is_http();
    let found = match asked {
        Some(asked) => ports.iter().filter(fits).find(|it| it.port == asked),
        None => ports.iter().filter(fits).find(plain).or_else(|| ports.iter().find(fits)),
    };
    found.map(|it| it.port).ok_or_else(|| {
        let reference = component.reference();
        let which = asked.map(|it| format!(" {it}")).unwrap_or_default();
        let message = format!("`{reference}` has no outer {protocol} port{which}");
        let advice = format!("`--port` names an inner one; `arco deploy … --port PORT/{protocol}` declares it");
        Problem::invalid("port_not_routable", message, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_another_program_has_is_seen() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let tcp = std::net::TcpListener::bind((ip, 0)).unwrap();
        let udp = std::net::UdpSocket::bind((ip, 0)).unwrap();
        let port = |it: std::io::Result<SocketAddr>| it.unwrap().port();
        assert!(!can_bind(StreamProtocol::Tcp, ip, port(tcp.local_addr())));
        assert!(!can_bind(StreamProtocol::Udp, ip, port(udp.local_addr())));
        let (tcp_port, udp_port) = (port(tcp.local_addr()), port(udp.local_addr()));
        drop((tcp, udp));
        assert!(can_bind(StreamProtocol::Tcp, ip, tcp_port) && can_bind(StreamProtocol::Udp, ip, udp_port));
    }
}
