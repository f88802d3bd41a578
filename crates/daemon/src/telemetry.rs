//! The log of the process: lines on standard error, for people on a terminal and for a journal alike.
//!
//! Secrets, request bodies and variables of instances are never logged; a caller that has one at hand logs its name.

use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Form of the lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// Text, with colours on a terminal.
    #[default]
    Text,
    /// One JSON object each.
    Json,
}

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log filter `{filter}` is not valid: {cause}; give a level (`info`) or targets (`info,arco_builder=debug`) in `server.log`"
)]
pub struct TelemetryError {
    filter: String,
    cause: String,
}

/// Sends the log of this process to standard error. A second call in one process does nothing.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let parsed =
        EnvFilter::try_new(filter).map_err(|it| TelemetryError { filter: filter.to_owned(), cause: it.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
