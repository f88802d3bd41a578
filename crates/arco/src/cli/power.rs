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
    started.warnings.iter().for_each(|it| session.ui.warn(it));
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
#[command(group(clap::ArgGroup::new("size").required(true).multiple(true).args(
    ["replicas", "memory_mb", "cpu_milli", "min", "max", "cpu", "memory", "down_after", "off"]
)))]
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
    /// Fewest instances; their number follows load [default: 1]
    #[arg(long, value_name = "N", help_heading = "By load")]
    min: Option<u32>,
    /// Most instances; their number follows load
    #[arg(long, value_name = "N", help_heading = "By load")]
    max: Option<u32>,
    /// CPU that an instance is to use on average, in percent of its limit, or of one core without one; 0: does not count [default: 80]
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = "By load")]
    cpu: Option<u32>,
    /// Memory that an instance is to use on average, in percent of its limit; 0: does not count
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = "By load")]
    memory: Option<u32>,
    /// Seconds that fewer instances must have been enough before there are fewer [default: 300]
    #[arg(long, value_name = "SECONDS", help_heading = "By load")]
    down_after: Option<u32>,
    /// Load does not count any more: as many as there are, or as `--replicas` says
    #[arg(long, conflicts_with_all = ["min", "max", "cpu", "memory", "down_after"], help_heading = "By load")]
    off: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `70` or `70%`.
fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|it| *it <= 100);
    number.ok_or_else(|| "give 0 to 100; `--memory-mb` and `--cpu-milli` say how large an instance is".to_owned())
}

/// Changes size.
pub(crate) async fn scale(args: &ScaleArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let request = ScaleRequest {
        replicas: args.replicas,
        memory_mb: args.memory_mb,
        cpu_milli: args.cpu_milli,
        autoscaling: args.off.then_some(false),
        min_replicas: args.min,
        max_replicas: args.max,
        cpu_percent: args.cpu,
        memory_percent: args.memory,
        down_after_s: args.down_after,
    };
    let started = session.client.scale(&session.tenant, named.pair(), &request).await?;
    let ended = wait::operation(started, &args.wait, Show::Progress, session).await?;
    operations::done(&ended, "scaled", session);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn percentages_are_not_sizes() {
        assert_eq!((percent("70"), percent("70%"), percent("0")), (Ok(70), Ok(70), Ok(0)));
        for bad in ["512", "-1", "x", "", "%"] {
            assert!(percent(bad).unwrap_err().contains("--memory-mb"), "{bad}");
        }
    }
}
