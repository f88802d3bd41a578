//! `arco server`: puts the roles of this process together, starts them, and stops them in order.
//!
//! Every port is bound before anything else; the data plane is a process of its own (see [`data_plane`]) that survives
//! this one. Nothing here decides anything about applications.

mod args;
mod ask_gateway;
mod cluster_routes;
mod console;
pub(crate) mod data_plane;
mod files;
mod gateway;
mod history;
mod instances;
mod keepers;
mod keeping;
mod kept;
mod lead;
mod lock;
mod logs;
mod node_logs;
mod peers;
mod roles;
mod shared;
mod shared_address;
mod storage_use;
pub(crate) mod stores;
mod tickets;

use anyhow::Context as _;
use arco_config::{Config, OrchestratorDriver, Role};
use arco_daemon::health::Health;
use arco_daemon::{Supervisor, listener, telemetry, tls};
pub(crate) use args::{DataPlaneArgs, GatewayArgs, GatewayCommand, ServerArgs};
pub(crate) use gateway::gateway;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// `arco shim …`: owns one instance. Called before any thread exists.
pub(crate) fn shim(args: &[OsString]) -> ExitCode {
    ExitCode::from(u8::try_from(arco_orchestrator::local::shim_main(args)).unwrap_or(1))
}

/// Runs the server until it is told to stop.
pub(crate) fn main(args: &ServerArgs) -> ExitCode {
    let began = Instant::now();
    match run(args, began) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &ServerArgs, began: Instant) -> anyhow::Result<()> {
    let config = args.load()?;
    telemetry::init(&config.server.log, telemetry::LogFormat::Text)?;
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |it| it.get().clamp(2, 4)))
        .max_blocking_threads(16)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let outcome = runtime.block_on(serve(config, began));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Listeners of this process, bound before anything else happens.
pub(crate) struct Listeners {
    pub(crate) api: Option<TcpListener>,
    pub(crate) console: Option<TcpListener>,
    pub(crate) registry: Option<TcpListener>,
    /// The registry with TLS, for the nodes of a cluster.
    pub(crate) nodes_registry: Option<TcpListener>,
    /// Where other servers on the same stores ask this one.
    pub(crate) peers: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let problem = |it: listener::ListenError| anyhow::anyhow!("{}\n  {}", it.message, it.advice);
        let mut bound = Self { api: None, console: None, registry: None, nodes_registry: None, peers: None };
        if config.server.has(Role::Api) {
            bound.api = Some(listener::bind(config.api.listen, "API", "--api-listen").await.map_err(problem)?);
        }
        if config.store.coordination.starts_with("etcd:") {
            let address = config.server.peer_listen;
            bound.peers = Some(listener::bind(address, "server's", "server.peer_listen").await.map_err(problem)?);
        }
        if config.server.has(Role::Console) {
            bound.console =
                Some(listener::bind(config.console.listen, "console", "--console-listen").await.map_err(problem)?);
        }
        if config.server.has(Role::Registry) {
            bound.registry =
                Some(listener::bind(config.registry.listen, "registry", "--registry-listen").await.map_err(problem)?);
            let for_nodes = config.kubernetes.registry_listen;
            if let Some(address) = for_nodes.filter(|_| config.orchestrator.driver == OrchestratorDriver::Kubernetes) {
                let bind = listener::bind(address, "registry of nodes", "kubernetes.registry_listen");
                bound.nodes_registry = Some(bind.await.map_err(problem)?);
            }
        }
        Ok(bound)
    }
}

async fn serve(config: Config, began: Instant) -> anyhow::Result<()> {
    files::make_folders(&config.server.data_dir)?;
    let _lock = lock::take(&config.server.data_dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listeners = Listeners::bind(&config).await?;
    let supervisor = Supervisor::new();
    let health = Health::new();
    let platform = roles::start(&config, listeners, &supervisor, &health).await?;
    files::write_server_json(&config, &platform.addresses)?;
    // The one line that people and scripts wait for.
    #[expect(clippy::print_stdout, reason = "promised by the command line's contract")]
    {
        println!("ready in {} ms", began.elapsed().as_millis());
    }
    tracing::info!(data_dir = %config.server.data_dir.display(), "{}", platform.welcome(&config));

    let token = supervisor.token().clone();
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM, stopping"),
        _ = interrupt.recv() => tracing::info!("interrupt, stopping"),
        () = token.cancelled() => tracing::error!("a role ended, stopping"),
    }
    let failed = token.is_cancelled();
    health.drain();
    let grace = Duration::from_millis(config.server.shutdown_timeout_ms);
    let stop = platform.stop(&config, &supervisor, grace);
    tokio::select! {
        () = stop => {}
        _ = terminate.recv() => tracing::warn!("second signal, ending at once"),
        _ = interrupt.recv() => tracing::warn!("second signal, ending at once"),
    }
    anyhow::ensure!(!failed, "a role ended unexpectedly; the log above says which");
    Ok(())
}
