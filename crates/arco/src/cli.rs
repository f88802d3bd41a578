//! The command line: one file per group of commands.
//!
//! Results go to standard output, everything else to standard error; only [`ui::Ui`] prints. A command returns a
//! [`Failure`] with the exit status of the contract: 0 done, 1 the operation failed, 2 wrong usage, 3 the platform cannot
//! be reached, 4 not allowed, 5 not found, 6 conflict.

mod adopt;
mod apply;
mod archive;
mod args;
mod bind;
mod certificate;
mod cluster;
mod config;
mod context;
mod credential;
mod delete;
mod deploy;
mod detect;
mod doctor;
mod env;
mod exec;
mod export;
mod failure;
mod file;
mod gateway;
mod given_file;
mod import;
mod list;
mod logs;
mod operations;
mod port_forward;
mod power;
mod reference;
mod registry;
mod revisions;
mod route;
mod secret;
mod session;
mod source;
mod spec_flags;
mod stack;
mod tenant;
mod text;
mod ui;
mod usage;
mod volume;
mod volume_content;
mod wait;
mod whole_file;

use crate::server::GatewayCommand;
use args::{Cli, Command};
use clap::{CommandFactory as _, FromArgMatches as _};
use failure::Failure;
pub(crate) use gateway::ExplainArgs;
use session::Session;
use stack::StackCommand;
use std::ffi::OsString;
use std::process::ExitCode;
use ui::Ui;

/// Runs a command line; `args[0]` is the name that we were called by.
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let name = called_as(&args);
    let matches = match Cli::command().name(name).bin_name(name).try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(error) => return usage::report(name, &args, &error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage::report(name, &args, &error),
    };
    let ui = Ui::new(cli.global.output);
    match dispatch(cli, &ui, name) {
        Ok(code) => code,
        Err(failure) => ui.failure(&failure),
    }
}

/// `grctl` when called by the operators' old name.
fn called_as(args: &[OsString]) -> &'static str {
    let file = args.first().map(std::path::Path::new).and_then(std::path::Path::file_name);
    if file.is_some_and(|it| it == "grctl") { "grctl" } else { "arco" }
}

fn dispatch(cli: Cli, ui: &Ui, name: &'static str) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Server(args) => return Ok(crate::server::main(args)),
        Command::Gateway(args) => match &args.command {
            None => return Ok(crate::server::gateway(args)),
            Some(GatewayCommand::Explain(asked)) => {
                if let Some(file) = &asked.file {
                    return gateway::explain_file(asked, file, ui).map(|()| ExitCode::SUCCESS);
                }
            }
        },
        Command::DataPlane(args) => return Ok(crate::server::data_plane::main(args)),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), name, &mut script);
            ui.bytes(&script);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Config(command) => return config::run(command, ui),
        Command::Doctor(args) if !args.cluster => return doctor::run(args, ui),
        Command::Detect(args) => return detect::run(args, ui).map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|it| {
        Failure::local(format!("failed to start: {it}"), "check the limits of this process (`ulimit -a`)")
    })?;
    let result = runtime.block_on(async {
        if let Command::Cluster(command) = &cli.command {
            return cluster::run(command, ui).await.map(|()| ExitCode::SUCCESS);
        }
        if let Command::Stack(StackCommand::Save(args)) = &cli.command {
            return stack::save(args, ui).await.map(|()| ExitCode::SUCCESS);
        }
        if let Command::Doctor(args) = &cli.command {
            return doctor::cluster(args, ui).await;
        }
        let session = Session::open(&cli.global, ui)?;
        connected(cli.command, &session).await
    });
    // A read of standard input may still wait in its thread; nobody needs it any more.
    runtime.shutdown_background();
    result
}

/// Commands that need a platform.
async fn connected(command: Command, session: &Session<'_>) -> Result<ExitCode, Failure> {
    match command {
        Command::Deploy(args) => deploy::run(&args, session).await?,
        Command::Apply(args) => apply::run(&args, session).await?,
        Command::List => list::list(session).await?,
        Command::Status { reference } => list::status(&reference, session).await?,
        Command::Ps { reference } => list::ps(&reference, session).await?,
        Command::Logs(args) => logs::run(&args, session).await?,
        Command::Exec(args) => return exec::run(&args, false, session).await,
        Command::PortForward(args) => port_forward::run(&args, session).await?,
        Command::Run(args) => return exec::run(&args.call(), true, session).await,
        Command::Start(args) => power::power("start", &args, session).await?,
        Command::Stop(args) => power::power("stop", &args, session).await?,
        Command::Restart(args) => power::power("restart", &args, session).await?,
        Command::Scale(args) => power::scale(&args, session).await?,
        Command::Revisions { reference } => revisions::list(&reference, session).await?,
        Command::Rollback(args) => revisions::rollback(&args, session).await?,
        Command::Env(command) => env::run(&command, session).await?,
        Command::Secret(command) => secret::run(&command, session).await?,
        Command::File(command) => file::run(&command, session).await?,
        Command::Credential(command) => credential::run(&command, session).await?,
        Command::Adopt(args) => adopt::run(&args, session).await?,
        Command::Export(args) => export::run(&args, session).await?,
        Command::Import(args) => import::run(&args, session).await?,
        Command::Volume(command) => volume::run(&command, session).await?,
        Command::Bind(args) => bind::bind(&args, session).await?,
        Command::Unbind(args) => bind::unbind(&args, session).await?,
        Command::Route(command) => route::run(&command, session).await?,
        Command::Certificate(command) => certificate::run(&command, session).await?,
        Command::Delete(args) => delete::run(&args, session).await?,
        Command::Operations(args) => operations::list(&args, session).await?,
        Command::Operation(command) => operations::run(&command, session).await?,
        Command::Tenant(command) => tenant::run(&command, session).await?,
        Command::Context(command) => context::run(&command, session).await?,
        Command::Registry(command) => registry::run(&command, session).await?,
        Command::Stack(command) => stack::run(&command, session).await?,
        Command::Gateway(args) => {
            if let Some(GatewayCommand::Explain(asked)) = &args.command {
                gateway::explain(asked, session).await?;
            }
        }
        Command::Server(_) | Command::DataPlane(_) => {}
        Command::Completion { .. }
        | Command::Config(_)
        | Command::Doctor(_)
        | Command::Detect(_)
        | Command::Cluster(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}
