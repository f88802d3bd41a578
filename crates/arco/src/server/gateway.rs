//! `arco gateway --config FILE`: the gateway without a control plane. The process that is started keeps the sockets; a
//! worker of it serves. SIGHUP rereads the file, SIGUSR2 lets the executable that is now at the same place take over.
//!
//! It has the rights of whoever starts it: it reads certificates wherever the file says they are.

use super::GatewayArgs;
use anyhow::Context as _;
use arco_daemon::handover::{Holding, Sockets, hold, resume};
use arco_daemon::{CancellationToken, Supervisor, telemetry, tls};
use arco_gateway::access_log::LAST_LINES;
use arco_gateway::alone::{Alone, check};
use arco_gateway::virtual_address::probe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn gateway(args: &GatewayArgs) -> ExitCode {
    let outcome = match args {
        GatewayArgs { probe: Some(address), proxied, .. } => {
            probe(*address, *proxied).map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from)
        }
        GatewayArgs { check: true, .. } => check(args.file()).map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from),
        GatewayArgs { worker: true, .. } => worker(args.file()).map(|()| ExitCode::SUCCESS),
        _ => keep(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn command(executable: &Path, config: &Path, flag: &str) -> Command {
    let mut command = Command::new(executable);
    command.args(["gateway", flag, "--config"]).arg(config);
    command
}

fn keep(args: &GatewayArgs) -> anyhow::Result<ExitCode> {
    telemetry::init("info", telemetry::LogFormat::Text)?;
    // Where this executable is now; a newer one will be at the same place.
    let executable: PathBuf = std::env::current_exe().context("failed to find this executable")?;
    let (workers, renewed) = (args.file().to_owned(), args.file().to_owned());
    let holding = Holding {
        worker: Box::new(move |executable| command(executable, &workers, "--worker")),
        renewed: Box::new(move |executable| command(executable, &renewed, "--resumed")),
        next: Box::new(move || Ok(executable.clone())),
        // The worker has said it already.
        failed: Box::new(|_| {}),
        // Its workers may open them themselves.
        files: Box::new(Vec::new),
        lock: None,
        sockets: Vec::new(),
    };
    let status = if args.resumed { resume(holding) } else { hold(holding) }?;
    Ok(ExitCode::from(status))
}

fn worker(config: &Path) -> anyhow::Result<()> {
    let (sockets, _) = Sockets::from_holder().context("`--worker` is for the gateway's own use")?;
    telemetry::init("info", telemetry::LogFormat::Text)?;
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let supervisor = Supervisor::new();
        // The process that keeps the sockets decides when this one ends; Ctrl-C goes to both.
        let _ignored = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let gateway = Alone::build_on(&supervisor, config, sockets).await?;
        for (name, address) in gateway.addresses() {
            tracing::info!(listener = name, %address, "listening");
        }
        let shared = gateway.shared();
        gateway.run(CancellationToken::new()).await?;
        // What the drain time was too short for is cut off, and has its line as well.
        supervisor.shutdown(LAST_LINES).await;
        shared.access_log.flush(LAST_LINES).await;
        anyhow::Ok(())
    })
}
