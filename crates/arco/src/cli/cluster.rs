//! `arco cluster`: the platform on a Kubernetes cluster: its image, and what is applied there.

mod image;
mod local_volume;
mod manifest;
mod node_logs;
mod trust_registry;

use super::failure::Failure;
use super::ui::Ui;
use clap::Subcommand;
use std::time::Duration;

/// What to do for a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make the platform's own container image from this program
    #[command(
        subcommand,
        after_help = "Examples:\n  arco cluster image save arco.tar\n  arco cluster image push registry.example.com/platform/arco:1"
    )]
    Image(image::ImageCommand),
    /// Print everything that installs the platform, for `kubectl apply`
    #[command(after_help = manifest::EXAMPLES)]
    Manifest(Box<manifest::ManifestArgs>),
    /// Let containerd on this node find the platform's registry (run by the manifest's DaemonSet)
    #[command(hide = true)]
    TrustRegistry(trust_registry::TrustArgs),
    /// Make or remove the folder of a volume on this node (run by pods that the controller starts)
    #[command(subcommand, hide = true)]
    LocalVolume(local_volume::LocalVolumeCommand),
    /// Read the output of the platform's pods on this node (run by the manifest's DaemonSet)
    #[command(hide = true)]
    NodeLogs(node_logs::NodeLogsArgs),
    /// Wait, while the cluster hears that this pod leaves (run by pods of the manifest before they end)
    #[command(hide = true)]
    Linger {
        /// How long
        #[arg(value_name = "SECONDS")]
        seconds: u64,
    },
}

/// Runs.
pub(crate) async fn run(command: &ClusterCommand, ui: &Ui) -> Result<(), Failure> {
    match command {
        ClusterCommand::Image(command) => image::run(command, ui).await,
        ClusterCommand::Manifest(args) => manifest::run(args, ui),
        ClusterCommand::TrustRegistry(args) => trust_registry::run(args).await,
        ClusterCommand::LocalVolume(command) => local_volume::run(command).await,
        ClusterCommand::NodeLogs(args) => node_logs::run(args).await,
        ClusterCommand::Linger { seconds } => {
            tokio::time::sleep(Duration::from_secs(*seconds)).await;
            Ok(())
        }
    }
}
