//! The only place that prints: results on standard output, everything else on standard error.
//!
//! Colour only on a terminal (and not with NO_COLOR). A reader that went away ends us silently.

use super::failure::Failure;
use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

/// How results are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

/// Prints.
pub(crate) struct Ui {
    format: Format,
    colour: bool,
    terminal: bool,
    bar: ProgressBar,
}

impl Ui {
    /// For this process.
    pub(crate) fn new(format: Format) -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|it| it != "dumb");
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        Self { format, colour, terminal, bar }
    }

    /// Whether one JSON document is asked for.
    pub(crate) fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// A document: as JSON, or as `table` writes it.
    pub(crate) fn document<T: Serialize>(&self, document: &T, table: impl FnOnce(&Self)) {
        if self.json() {
            self.json_line(document);
        } else {
            table(self);
        }
    }

    /// A list: as JSON `{"items": […]}`, or as `table` writes it.
    pub(crate) fn list<T: Serialize>(&self, items: &[T], table: impl FnOnce(&Self)) {
        self.document(&serde_json::json!({"items": items}), table);
    }

    /// One JSON document on a line of its own.
    pub(crate) fn json_line<T: Serialize>(&self, document: &T) {
        let mut text = serde_json::to_string(document).unwrap_or_default();
        text.push('\n');
        self.bytes(text.as_bytes());
    }

    /// A line of a result.
    pub(crate) fn line(&self, text: &str) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Bytes of a result.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }

    /// Bytes on standard error, as they are.
    pub(crate) fn error_bytes(&self, bytes: &[u8]) {
        let _ = std::io::stderr().lock().write_all(bytes);
    }

    /// A table of a result.
    pub(crate) fn table(&self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        let mut table = Table::new();
        table.force_no_tty().load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.to_vec());
        for row in rows {
            table.add_row(row.iter().map(|it| super::text::clean(it)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(&table.trim_fmt());
    }

    /// A line for the person who waits.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| self.error_bytes(format!("{text}\n").as_bytes()));
    }

    /// A warning.
    pub(crate) fn warn(&self, text: &str) {
        let head = self.paint("33", "warning:");
        self.note(&format!("{head} {text}"));
    }

    /// What is being waited for; shown on a terminal until [`Ui::progress_done`].
    pub(crate) fn progress(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
        if self.terminal {
            self.bar.enable_steady_tick(Duration::from_millis(120));
        }
    }

    /// Nothing is being waited for any more.
    pub(crate) fn progress_done(&self) {
        self.bar.finish_and_clear();
    }

    /// A failure: at most three lines on standard error, and with JSON the one document on standard output.
    pub(crate) fn failure(&self, failure: &Failure) -> ExitCode {
        self.progress_done();
        if self.json() {
            self.json_line(&failure.body);
        }
        let mut text = format!("{} {}\n", self.paint("31", "error:"), super::text::one_line(&failure.body.message));
        if !failure.body.advice.is_empty() {
            text.push_str(&format!(
                "{} {}\n",
                self.paint("36", "advice:"),
                super::text::one_line(&failure.body.advice)
            ));
        }
        if let Some(operation) = &failure.body.operation {
            text.push_str(&format!("operation: {operation} (`arco logs --operation {operation}`)\n"));
        }
        self.error_bytes(text.as_bytes());
        ExitCode::from(failure.status)
    }

    /// A word in a status colour, when standard error may have colour.
    pub(crate) fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
