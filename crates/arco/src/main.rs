//! The executable: command line, role table, wiring, and the entry points of its child processes.
//!
//! `shim` must be dispatched before any thread exists: it forks.

mod cli;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|it| it == "shim") {
        return server::shim(&args[2..]);
    }
    cli::main(args)
}
