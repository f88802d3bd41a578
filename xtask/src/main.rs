//! Chores of the house: `cargo xtask tidy` (its rules), `cargo xtask gen` (generated code).

mod error_codes;
mod generate;
mod tidy;

use anyhow::bail;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy::run(),
        Some("gen") => generate::run(&root()),
        _ => bail!("usage: cargo xtask tidy|gen"),
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
