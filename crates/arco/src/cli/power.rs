//! `arco start`, `stop`, `restart`, `scale`.

use super::args::WaitArgs;
use super::failure::Failure;
use super::operations;
use super::reference::Reference;
use super::session::Session;
use super::wait::{self, Show};
use arco_api::wire::ScaleRequest;
use clap::Args;

/// Flags of `start`, `stop` and `restart`.
#[derive(Args, Debug)]
pub(crate) struct PowerArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `verb` is the call of the API.
pub(crate) async fn power(verb: &str, args: &PowerArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let started = session.client.power(&session.tenant, named.pair(), verb).await?;
    let ended = wait::operation(started, &args.wait, Show::Progress, session).await?;
    let word = match verb {
        "start" => "started",
        "stop" => "stopped",
        _ => "restarted",
    };
    operations::done(&ended, word, session);
    Ok(())
}

/// Flags of `scale`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("size").required(true).multiple(true).args(["replicas", "memory_mb", "cpu_milli"])))]
pub(crate) struct ScaleArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Instances, 0 to 100
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Memory of one instance in MiB
    #[arg(long, value_name = "N")]
    memory_mb: Option<u32>,
    /// Thousandths of a core of one instance; 0 for no limit
    #[arg(long, value_name = "N")]
    cpu_milli: Option<u32>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Changes size.
pub(crate) async fn scale(args: &ScaleArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let request = ScaleRequest { replicas: args.replicas, memory_mb: args.memory_mb, cpu_milli: args.cpu_milli };
    let started = session.client.scale(&session.tenant, named.pair(), &request).await?;
    let ended = wait::operation(started, &args.wait, Show::Progress, session).await?;
    operations::done(&ended, "scaled", session);
    Ok(())
}
