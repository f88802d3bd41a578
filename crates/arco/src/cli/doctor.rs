//! `arco doctor`: looks at this machine, and says for each finding how to mend it. Changes nothing.
//!
//! Exit status 1 when something must be mended before `arco server` can work.

mod checks;
mod programs;

use super::failure::Failure;
use super::ui::Ui;
use serde::Serialize;
use std::process::ExitCode;

/// How a finding matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// As it should be.
    Good,
    /// It works, but not everything or not as well.
    Warning,
    /// Must be mended.
    Bad,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    advice: String,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Good, found: found.into(), advice: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, found: found.into(), advice: advice.into() }
    }

    fn bad(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Bad, found: found.into(), advice: advice.into() }
    }
}

#[derive(Serialize)]
struct Report {
    healthy: bool,
    findings: Vec<Finding>,
}

/// Looks at everything.
pub(crate) fn run(ui: &Ui) -> Result<ExitCode, Failure> {
    let config = arco_config::from_sources(None, std::env::vars(), Vec::new());
    let config = config.map_err(|it| Failure::usage("config_invalid", it.to_string(), "see `arco config template`"))?;
    let mut findings = checks::machine();
    findings.extend(checks::disk(&config.server.data_dir));
    findings.extend(checks::ports(&config));
    findings.extend(programs::all());
    let report = Report { healthy: findings.iter().all(|it| it.level != Level::Bad), findings };
    ui.document(&report, |ui| {
        for finding in &report.findings {
            let mark = match finding.level {
                Level::Good => ui.paint("32", "ok  "),
                Level::Warning => ui.paint("33", "warn"),
                Level::Bad => ui.paint("31", "BAD "),
            };
            ui.line(&format!("{mark} {}: {}", finding.check, finding.found));
            if !finding.advice.is_empty() {
                ui.line(&format!("       {}", finding.advice));
            }
        }
        ui.line(if report.healthy {
            "this machine can run the platform"
        } else {
            "mend what is marked BAD, then try again"
        });
    });
    Ok(if report.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
