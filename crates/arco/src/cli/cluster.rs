//! `arco cluster`: the platform on a Kubernetes cluster: its image, and what is applied there.

mod image;
mod manifest;
mod node_logs;
mod trust_registry;
mod volume_folder;

use super::failure::Failure;
use super::ui::Ui;
use clap::Subcommand;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
    VolumeFolder(volume_folder::VolumeFolderCommand),
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
        ClusterCommand::VolumeFolder(command) => volume_folder::run(command).await,
        ClusterCommand::NodeLogs(args) => node_logs::run(args).await,
        ClusterCommand::Linger { seconds } => {
            tokio::time::sleep(Duration::from_secs(*seconds)).await;
            Ok(())
        }
    }
}

/// What tells a pod that it is to end.
fn end_of_pod() -> Result<Signal, Failure> {
    signal(SignalKind::terminate()).map_err(|it| {
        let message = format!("when this pod is to end cannot be heard: {it}");
        Failure::local(message, "check its limits of memory and open files")
    })
}
