//! `arco data-plane`: the holder that the server starts, and the worker that the holder starts.
//!
//! What must hold: the worker has given up root before it reads a byte from outside; what it could not do then (bind the
//! addresses, look who holds a busy one) it does before.

use super::link::{self, Link};
use crate::server::{DataPlaneArgs, shared};
use anyhow::Context as _;
use arco_daemon::confine::{confine, forbid};
use arco_daemon::handover::{Sockets, Start};
use arco_daemon::{CancellationToken, OnExit, Supervisor, telemetry, tls};
use arco_gateway::access_log;
use arco_gateway::data_plane::Listeners;
use arco_gateway::process::{self, HoldArgs, Process};
use arco_mesh::dns::Dns;
use arco_store::kv::SwapKv;
use arco_store::secrets::SecretBox;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the data plane looks at the link.
const LOOK: Duration = Duration::from_secs(1);

/// `arco data-plane --data-dir DIR`: gateway and DNS; started by the server.
pub(crate) fn main(args: &DataPlaneArgs) -> ExitCode {
    let outcome = match args {
        DataPlaneArgs { worker: true, .. } => worker(&args.data_dir),
        DataPlaneArgs { hand_over: true, .. } => renew(&args.data_dir),
        _ => hold(&args.data_dir, args.resumed),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn command(executable: &Path, data_dir: &Path, flag: &str) -> Command {
    let mut command = Command::new(executable);
    command.args(["data-plane", flag, "--data-dir"]).arg(data_dir);
    command
}

fn hold(data_dir: &Path, resumed: bool) -> anyhow::Result<ExitCode> {
    let link = Link::read(&link::folder(data_dir))?;
    telemetry::init(&link.log, telemetry::LogFormat::Text)?;
    let _ = nix::sys::prctl::set_name(c"arco-holder");
    let (workers, renewed, folder) = (data_dir.to_owned(), data_dir.to_owned(), link::folder(data_dir));
    let logged = folder.clone();
    let status = process::hold(HoldArgs {
        data_dir: data_dir.to_owned(),
        resumed,
        worker: Box::new(move |executable| command(executable, &workers, "--worker")),
        renewed: Box::new(move |executable| command(executable, &renewed, "--resumed")),
        next: Box::new(move || Link::read(&folder).map(|it| it.executable).map_err(std::io::Error::other)),
        access_log: Box::new(move || {
            let link = Link::read(&logged).inspect_err(|it| tracing::error!("{it:#}")).ok()?;
            let config = link.gateway.access_log;
            let opened = access_log::open(&config)?;
            let destination = config.destination;
            opened.inspect_err(|error| tracing::error!(destination, %error, "the access log cannot be opened")).ok()
        }),
    })?;
    Ok(ExitCode::from(status))
}

/// `--hand-over`: a new worker of this executable takes over from the one that runs.
fn renew(data_dir: &Path) -> anyhow::Result<ExitCode> {
    let data_dir = &std::path::absolute(data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (before, after) = runtime.block_on(async {
        let running = process::find(data_dir, process::PATIENCE).await.with_context(|| {
            format!("no gateway of the data dir `{}` runs; `arco server --data-dir` starts one", data_dir.display())
        })?;
        let mut link = Link::read(&link::folder(data_dir))?;
        link.executable = std::env::current_exe().context("failed to find this executable")?;
        link.write(data_dir)?;
        let fresh = running.hand_over(&process::build_of(&link.executable), process::PATIENCE).await?;
        anyhow::Ok((running.status, fresh.status))
    })?;
    eprintln!(
        "gateway {} (process {}) took over from {} (process {}), which finishes what is open",
        after.version, after.pid, before.version, before.pid
    );
    Ok(ExitCode::SUCCESS)
}

fn worker(data_dir: &Path) -> anyhow::Result<ExitCode> {
    let (sockets, start) = Sockets::from_holder().context("`--worker` is for the data plane's own use")?;
    let served = serve(data_dir, &sockets, start);
    if let Err(error) = &served {
        sockets.failed(&format!("{error:#}"));
    }
    served.map(|()| ExitCode::SUCCESS)
}

fn serve(data_dir: &Path, sockets: &Sockets, start: Start) -> anyhow::Result<()> {
    let mut folder = link::folder(data_dir);
    let link = Link::read(&folder)?;
    // A machine may have several, and machines may have one name; what is confined below cannot read it.
    let id = shared::name_of_server(data_dir)?;
    telemetry::init(&link.log, telemetry::LogFormat::Text)?;
    tls::install_provider();
    let _ = nix::sys::prctl::set_name(c"arco-gateway");
    let build = process::build_of(Path::new("/proc/self/exe"));
    let listeners = Listeners::bind(&link.gateway, sockets)?;
    let (control, _control) = process::inherited_control(sockets)?;
    if let Some(user) = link.user(data_dir) {
        confine(user, &folder)?;
        folder = PathBuf::from("/");
    }
    forbid()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let supervisor = Supervisor::new();
        let keys = SecretBox::parse(&link.certificate_keys).map_err(|it| {
            anyhow::anyhow!("failed to read the keys of certificates: {it}; start `arco server` again")
        })?;
        let args = process::DataPlaneArgs {
            keys: Arc::new(keys),
            journal: link::journal(&folder),
            config: link.gateway.clone(),
            id,
            build,
            settings: link.settings(),
        };
        let process = Process::start(&supervisor, &args, listeners, control, sockets, start)?;
        let kv = Arc::new(SwapKv::new(link.store().await?));
        let (follow, token) = (kv.clone(), supervisor.token().clone());
        supervisor.spawn("store link", OnExit::Continue, async move {
            follow_link(&follow, &folder, token).await;
            Ok(())
        });
        let dns = Dns::build(process.mirror(), sockets.clone());
        // Names resolve as long as requests are open, unless another process answers: DNS ends after the drain.
        let over = process.over();
        supervisor.spawn("dns", OnExit::Continue, async move { dns.run(over).await });
        let shared = process.shared();
        process.run(kv).await?;
        // What the drain time was too short for is cut off, and has its line as well.
        supervisor.shutdown(Duration::from_secs(2)).await;
        shared.access_log.flush(access_log::LAST_LINES).await;
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Exchanges the store's client whenever the link is written anew.
async fn follow_link(kv: &SwapKv, folder: &Path, token: CancellationToken) {
    let written = |path: &Path| std::fs::metadata(path).and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let path = link::file(folder);
    let mut seen = written(&path);
    while tokio::time::timeout(LOOK, token.cancelled()).await.is_err() {
        let now = written(&path);
        if now == seen {
            continue;
        }
        seen = now;
        let fresh = async { Link::read(folder)?.store().await };
        match fresh.await {
            Ok(fresh) => kv.swap(fresh),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "the new link to the store is not usable, the old one stays"
            ),
        }
    }
}
