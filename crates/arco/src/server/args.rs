//! Flags of `arco server`, and how they become settings.

use arco_config::Config;
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Value;

/// Runs the platform on this machine.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "Example:\n  arco server --data-dir /var/lib/arco --domain apps.example.com")]
pub(crate) struct ServerArgs {
    /// Configuration file (TOML); `arco config template` prints one
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Everything that the platform keeps [default: /var/lib/arco]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Roles that run here, separated by commas [default: all]
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    role: Vec<String>,
    /// Gateway, HTTP [default: 0.0.0.0:80]
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<SocketAddr>,
    /// Gateway, HTTPS [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDRESS")]
    https_listen: Option<SocketAddr>,
    /// Console [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS")]
    console_listen: Option<SocketAddr>,
    /// REST API [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDRESS")]
    api_listen: Option<SocketAddr>,
    /// Image registry [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDRESS")]
    registry_listen: Option<SocketAddr>,
    /// Suffix of the applications' hosts [default: localhost]
    #[arg(long, value_name = "SUFFIX")]
    domain: Option<String>,
    /// Addresses of the instances [default: the first free /20 of 10.64.0.0/10]
    #[arg(long, value_name = "CIDR")]
    network_pool: Option<String>,
    /// Stop the instances when the server stops
    #[arg(long)]
    stop_instances: bool,
    /// Let gateway and DNS go on when the server stops
    #[arg(long)]
    keep_data_plane: bool,
}

impl ServerArgs {
    /// Settings from file, environment and these flags.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        let text = |it: &dyn ToString| Value::String(it.to_string());
        let mut flags: Vec<(&str, Value)> = Vec::new();
        let addresses = [
            ("gateway.http_listen", &self.http_listen),
            ("gateway.https_listen", &self.https_listen),
            ("console.listen", &self.console_listen),
            ("api.listen", &self.api_listen),
            ("registry.listen", &self.registry_listen),
        ];
        for (key, address) in addresses {
            if let Some(address) = address {
                flags.push((key, text(address)));
            }
        }
        if let Some(folder) = &self.data_dir {
            flags.push(("server.data_dir", text(&std::path::absolute(folder)?.display())));
        }
        if let Some(domain) = &self.domain {
            flags.push(("server.domain", text(&domain.trim_matches('.').to_ascii_lowercase())));
        }
        if let Some(pool) = &self.network_pool {
            flags.push(("network.pool", text(pool)));
        }
        if !self.role.is_empty() {
            flags.push(("server.roles", Value::Array(self.role.iter().map(|it| text(it)).collect())));
        }
        if self.stop_instances {
            flags.push(("server.stop_instances", Value::Boolean(true)));
        }
        if self.keep_data_plane {
            flags.push(("server.keep_data_plane", Value::Boolean(true)));
        }
        Ok(arco_config::from_sources(self.config.as_deref(), arco_config::environment()?, flags)?)
    }
}

/// The gateway without a control plane, from one YAML file.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct GatewayArgs {
    /// Listeners, certificates, upstreams and routes (YAML); read again on SIGHUP and when it changes
    #[arg(long, value_name = "FILE", required_unless_present = "probe")]
    config: Option<PathBuf>,
    /// Only check the file
    #[arg(long)]
    pub(crate) check: bool,
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
    #[arg(long, hide = true)]
    pub(crate) resumed: bool,
    /// Whether a gateway answers at this address: asked by keepalived
    #[arg(long, hide = true, value_name = "ADDRESS", conflicts_with = "config")]
    pub(crate) probe: Option<std::net::SocketAddr>,
    /// A PROXY header goes first
    #[arg(long, hide = true, requires = "probe")]
    pub(crate) proxied: bool,
    /// Something else than to run it
    #[command(subcommand)]
    pub(crate) command: Option<GatewayCommand>,
}

impl GatewayArgs {
    /// The file.
    pub(crate) fn file(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(""))
    }
}

/// What to do with a gateway beside running it.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum GatewayCommand {
    /// Say which route, change and instance a request would take, and why
    Explain(crate::cli::ExplainArgs),
}

/// Gateway and DNS of a server; started by it.
#[derive(Args, Clone, Debug)]
pub(crate) struct DataPlaneArgs {
    /// The server's data dir
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Let this executable take over from the one that runs; what is open there is finished
    #[arg(long)]
    pub(crate) hand_over: bool,
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
    #[arg(long, hide = true)]
    pub(crate) resumed: bool,
}
