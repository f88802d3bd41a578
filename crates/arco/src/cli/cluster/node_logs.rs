//! `arco cluster node-logs`: reads the output of the platform's pods on this node and hands it to the platform's servers.
//! Run by a DaemonSet; asks nothing of the cluster.

use super::{Failure, end_of_pod};
use arco_daemon::telemetry;
use arco_node::{Servers, Source};
use clap::Args;
use std::path::PathBuf;

/// Flags.
#[derive(Args, Debug)]
pub(crate) struct NodeLogsArgs {
    /// The node's folder of its pods' output, as it is mounted here
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// What the tenants' namespaces begin with
    #[arg(long, value_name = "PREFIX")]
    namespace_prefix: String,
    /// Where servers of the platform answer nodes
    #[arg(long, value_name = "HOST:PORT")]
    servers: String,
    /// Folder with ca.pem, node.pem and node.key
    #[arg(long, value_name = "FOLDER")]
    credentials: PathBuf,
}

/// Runs until it is told to end.
pub(super) async fn run(args: &NodeLogsArgs) -> Result<(), Failure> {
    telemetry::init("info", telemetry::LogFormat::Text)
        .map_err(|it| Failure::local(format!("the log of this process cannot begin: {it}"), "report this"))?;
    let mut terminate = end_of_pod()?;
    let stop = arco_daemon::CancellationToken::new();
    let told = async {
        terminate.recv().await;
        stop.cancel();
    };
    let source = Source { folder: args.folder.clone(), prefix: args.namespace_prefix.clone() };
    let servers = Servers::new(args.servers.clone(), args.credentials.clone());
    tokio::join!(told, arco_node::run(&source, &servers, stop.clone()));
    Ok(())
}
