//! Wrong usage: exit 2, in at most three lines, and as a document when JSON was asked for.

use super::failure::{Failure, exit};
use super::ui::{Format, Ui};
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::process::ExitCode;

/// Prints what the parser says: help and version on standard output, errors in our own form.
pub(crate) fn report(name: &str, args: &[OsString], error: &clap::Error) -> ExitCode {
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
    let message: Vec<&str> = body.lines().take_while(|it| !it.starts_with("Usage:")).collect();
    let usage = body.lines().find_map(|it| it.strip_prefix("Usage: ")).unwrap_or(name);
    Ui::new(format).failure(&Failure::usage("usage", super::text::one_line(&message.join("\n")), advice(usage)))
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
