//! Files that the command line names to be read.

use super::failure::Failure;
use std::fmt::Display;
use std::io;
use std::path::Path;

/// The text of a file; `-` is standard input.
pub(crate) fn text(file: &Path) -> Result<String, Failure> {
    let read = match file == Path::new("-") {
        true => io::read_to_string(io::stdin().lock()),
        false => std::fs::read_to_string(file),
    };
    read.map_err(|it| unreadable(file.display(), &it))
}

/// What was named cannot be read.
pub(crate) fn unreadable(file: impl Display, why: &io::Error) -> Failure {
    Failure::usage("file_unreadable", format!("`{file}` cannot be read: {why}"), "check its path")
}
