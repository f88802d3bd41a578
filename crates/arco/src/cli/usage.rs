//! Wrong usage: exit 2, in at most three lines, and as a document when JSON was asked for.

use super::args::Cli;
use super::failure::{Failure, exit};
use super::ui::{Format, Ui};
use clap::CommandFactory as _;
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::process::ExitCode;

/// Prints what the parser says: help and version on standard output, errors in our own form.
pub(crate) fn report(name: &'static str, args: &[OsString], error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(exit::USAGE);
        }
        _ => {}
    }
    let format = if wants_json(args) { Format::Json } else { Format::Table };
    let text = error.to_string();
    let body = text.strip_prefix("error: ").unwrap_or(&text);
    let end = |it: &str| it.starts_with("Usage:") || it.starts_with("For more information");
    let message: Vec<&str> = body.lines().take_while(|it| !end(it)).collect();
    // The parser leaves it out where a value is wrong.
    let usage = body.lines().find_map(|it| it.strip_prefix("Usage: ")).map(str::to_owned);
    let usage = usage.unwrap_or_else(|| usage_of(name, args));
    Ui::new(format).failure(&Failure::usage("usage", super::text::one_line(&message.join("\n")), advice(&usage)))
}

/// How the subcommand is used that `args` name.
fn usage_of(name: &'static str, args: &[OsString]) -> String {
    let mut command = Cli::command().name(name).bin_name(name);
    command.build();
    let mut at = &command;
    for word in args.iter().skip(1).take_while(|it| *it != "--") {
        // What is none is a flag, its value, or an argument.
        at = at.find_subcommand(word).unwrap_or(at);
    }
    let usage = at.clone().render_usage().to_string();
    usage.lines().next().unwrap_or_default().trim_start_matches("Usage: ").to_owned()
}

/// How it is used. The parser counts what came by the environment as given, and would name it.
fn advice(usage: &str) -> String {
    let usage = usage.replace(" --context <FILE>", "").replace(" --tenant <NAME>", "");
    let command: Vec<_> = usage.split(' ').take_while(|it| !it.starts_with(['<', '[', '-'])).collect();
    format!("usage: {usage} (see `{} --help`)", command.join(" "))
}

fn wants_json(args: &[OsString]) -> bool {
    let args: Vec<_> = args.iter().take_while(|it| *it != "--").filter_map(|it| it.to_str()).collect();
    args.iter().any(|it| matches!(*it, "-ojson" | "-o=json" | "--output=json"))
        || args.windows(2).any(|it| matches!(it, ["-o" | "--output", "json"]))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_wrong_value_is_answered_with_the_usage_of_its_command() {
        for (words, usage) in [
            (&["arco", "--tenant", "a", "context", "create", "--role", "king"][..], "arco context create "),
            (&["arco", "route", "add", "list", "a.test", "--port", "99999"], "arco route add "),
            (&["arco", "logs", "demo", "--since", "10x"], "arco logs "),
            (&["arco", "--output", "x"], "arco "),
        ] {
            let args: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
            let told = super::usage_of("arco", &args);
            assert!(told.starts_with(usage), "{words:?}: {told}");
        }
    }

    #[test]
    fn the_advice_names_the_command_and_nothing_of_the_environment() {
        for (usage, advice) in [
            (
                "arco route list <APP/COMPONENT>",
                "usage: arco route list <APP/COMPONENT> (see `arco route list --help`)",
            ),
            ("arco route list --context <FILE> <REF>", "usage: arco route list <REF> (see `arco route list --help`)"),
            ("arco [OPTIONS] <COMMAND>", "usage: arco [OPTIONS] <COMMAND> (see `arco --help`)"),
            ("arco deploy --app <APP> <SOURCE>", "usage: arco deploy --app <APP> <SOURCE> (see `arco deploy --help`)"),
        ] {
            assert_eq!(super::advice(usage), advice);
        }
    }
}
