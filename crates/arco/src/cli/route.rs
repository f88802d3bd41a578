//! `arco route`: hosts that lead to a component.

use super::failure::Failure;
use super::reference::Reference;
use super::session::Session;
use arco_api::wire::{RouteDocument, RouteRequest};
use clap::{Args, Subcommand};

/// What to do with routes.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// List hosts
    #[command(after_help = "Example:\n  arco route list demo/web")]
    List {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
    },
    /// Add a host
    #[command(
        after_help = "Examples:\n  arco route add demo/web shop.example.com\n  arco route add demo/api shop.example.com --path /api --port 9000"
    )]
    Add(RouteArgs),
    /// Change the port of a host
    #[command(after_help = "Example:\n  arco route set demo/web shop.example.com --port 9000")]
    Set(RouteArgs),
    /// Delete a host
    #[command(visible_alias = "remove", after_help = "Example:\n  arco route delete demo/web shop.example.com")]
    Delete {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Host
        host: String,
        /// Path prefix
        #[arg(long, default_value = "/")]
        path: String,
    },
}

/// A host, a path and a port.
#[derive(Args, Debug)]
pub(crate) struct RouteArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Host; `*.example.com` for all below it
    host: String,
    /// Path prefix
    #[arg(long, default_value = "/")]
    path: String,
    /// Inner port [default: the first outer HTTP port]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// Runs.
pub(crate) async fn run(command: &RouteCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        RouteCommand::List { reference } => {
            let named = session.component(reference).await?;
            let routes = session.client.routes(&session.tenant, named.pair()).await?;
            session.ui.list(&routes, |ui| ui.table(&["HOST", "PATH", "PORT", "URL"], routes.iter().map(row)));
        }
        RouteCommand::Add(args) | RouteCommand::Set(args) => {
            let named = session.component(&args.reference).await?;
            let request = RouteRequest { host: args.host.clone(), path: Some(args.path.clone()), port: args.port };
            let route = session.client.add_route(&session.tenant, named.pair(), &request).await?;
            session.ui.document(&route, |ui| ui.line(&format!("{} leads to {named}", route.url)));
        }
        RouteCommand::Delete { reference, host, path } => {
            let named = session.component(reference).await?;
            session.client.delete_route(&session.tenant, named.pair(), host, path).await?;
            let document = serde_json::json!({"deleted": host, "path": path});
            session.ui.document(&document, |ui| ui.line(&format!("{host} does not lead to {named} any more")));
        }
    }
    Ok(())
}

fn row(route: &RouteDocument) -> Vec<String> {
    vec![route.host.clone(), route.path.clone(), route.port.to_string(), route.url.clone()]
}
