//! Routes without HTTP: a port of the gateway that leads to a port of a component.

use super::super::failure::{Failure, exit};
use super::super::reference::Reference;
use super::super::session::Session;
use super::super::text;
use arco_api::wire::{StreamDocument, StreamRequest};
use arco_model::traffic::StreamProtocol;
use clap::Args;
use std::net::IpAddr;

/// Which port of the gateway.
#[derive(Args, Debug, Default)]
pub(crate) struct StreamFlags {
    /// A TCP port of the gateway leads to the component [default: a free one]
    #[arg(long, value_name = "PORT", num_args = 0..=1, conflicts_with_all = ["udp", "domain", "host"], help_heading = "Ports")]
    tcp: Option<Option<u16>>,
    /// A UDP port of the gateway leads to the component [default: a free one]
    #[arg(long, value_name = "PORT", num_args = 0..=1, conflicts_with_all = ["domain", "host"], help_heading = "Ports")]
    udp: Option<Option<u16>>,
    /// Only on this address of the gateway's machine, while it has it
    #[arg(long, value_name = "ADDRESS", help_heading = "Ports")]
    address: Option<IpAddr>,
}

/// Protocol and, if one is named, port of the gateway.
pub(super) type Asked = (StreamProtocol, Option<u16>);

impl StreamFlags {
    /// The only address that is asked for.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// What is asked for, if anything is.
    pub(super) fn asked(&self) -> Option<Asked> {
        let tcp = self.tcp.map(|port| (StreamProtocol::Tcp, port));
        tcp.or(self.udp.map(|port| (StreamProtocol::Udp, port)))
    }
}

/// Gives a component a port of the gateway.
pub(super) async fn add(
    reference: &Reference,
    (protocol, port): Asked,
    (target_port, address): (Option<u16>, Option<IpAddr>),
    session: &Session<'_>,
) -> Result<(), Failure> {
    let named = session.component(reference).await?;
    let request = StreamRequest { protocol, port, target_port, address };
    let added = session.client.add_stream(&session.tenant, named.pair(), &request).await?;
    session.gateways_follow().await;
    session.ui.document(&added, |ui| ui.line(&format!("{} leads to {}", added.url, answer(&added))));
    Ok(())
}

/// Takes a port of the gateway from a component.
pub(super) async fn delete(
    reference: &Reference,
    (protocol, port): Asked,
    session: &Session<'_>,
) -> Result<(), Failure> {
    let named = session.component(reference).await?;
    let streams = session.client.streams(&session.tenant, named.pair()).await?;
    let mut meant = streams.iter().filter(|it| it.protocol == protocol && port.is_none_or(|port| port == it.port));
    let Some(one) = meant.next() else {
        let which = port.map(|it| format!(" {it}")).unwrap_or_default();
        return Err(Failure::new(
            exit::NOT_FOUND,
            "not_found",
            format!("no {protocol} port{which} of the gateway leads to `{named}`"),
            format!("`arco route list {named}` shows which there are"),
        ));
    };
    if meant.next().is_some() {
        let advice = format!("name one: `arco route delete {named} --{protocol} {}`", one.port);
        return Err(Failure::usage("route_ambiguous", format!("several {protocol} ports lead to `{named}`"), advice));
    }
    session.client.delete_stream(&session.tenant, named.pair(), &one.id).await?;
    session.gateways_follow().await;
    let document = serde_json::json!({"deleted": one.url, "id": one.id});
    session.ui.document(&document, |ui| ui.line(&format!("{} does not lead to {named} any more", one.url)));
    Ok(())
}

/// Ports of the gateway that lead to what is named.
pub(super) async fn list(reference: Option<&Reference>, session: &Session<'_>) -> Result<Vec<StreamDocument>, Failure> {
    let Some(reference) = reference else { return Ok(session.client.tenant_streams(&session.tenant).await?) };
    let mut streams = Vec::new();
    for named in session.components(reference).await? {
        streams.extend(session.client.streams(&session.tenant, named.pair()).await?);
    }
    Ok(streams)
}

fn answer(it: &StreamDocument) -> String {
    let leads = format!("{}/{}:{}", it.application, it.component, it.target_port);
    match (it.problem.is_empty(), it.open_elsewhere) {
        (true, _) => leads,
        (false, true) => format!("{leads}, but not at {}", text::one_line(&it.problem)),
        (false, false) => format!("nothing: {}", text::one_line(&it.problem)),
    }
}

/// A row of the list of routes.
pub(super) fn row(it: &StreamDocument) -> Vec<String> {
    let mut row = vec![format!("{}/{}", it.application, it.component), it.url.clone(), "all".to_owned(), answer(it)];
    row.resize(5, String::new());
    row.resize(9, "-".to_owned());
    row
}
