//! `arco doctor`: looks at this machine, or with `--cluster` at a Kubernetes cluster, and says for each finding how to mend
//! it. Changes nothing.
//!
//! Exit status 1 when something must be mended before the platform can work there.

mod addresses;
mod checks;
mod programs;

use super::config;
use super::failure::Failure;
use super::ui::Ui;
use arco_orchestrator_kubernetes::preflight::{self, PullTrial, Weight};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where to look.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Check a Kubernetes cluster instead of this machine
    #[arg(long)]
    pub(crate) cluster: bool,
    /// Settings that count, as `arco server --config` reads them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pull this image once on each node, with a pod that ends at once
    #[arg(long, value_name = "REF", requires = "cluster")]
    image: Option<String>,
    /// Namespace of those pods
    #[arg(long, value_name = "NAME", default_value = "default", requires = "image")]
    namespace: String,
    /// Secret in that namespace with the login for the image
    #[arg(long, value_name = "SECRET", default_value = "", requires = "image", hide_default_value = true)]
    image_pull_secret: String,
    /// How long the nodes may take to pull, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "image")]
    timeout: u64,
}

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
pub(crate) fn run(args: &DoctorArgs, ui: &Ui) -> Result<ExitCode, Failure> {
    let config = config::read(args.config.as_deref())?;
    let mut findings = checks::machine();
    findings.extend(checks::disk(&config.server.data_dir));
    findings.extend(addresses::all(&config));
    findings.extend(checks::ports(&config));
    findings.extend(programs::all());
    Ok(report(findings, "this machine", ui))
}

/// Looks at a cluster.
pub(crate) async fn cluster(args: &DoctorArgs, ui: &Ui) -> Result<ExitCode, Failure> {
    let config = config::read(args.config.as_deref())?;
    let trial = args.image.as_ref().map(|image| PullTrial {
        image: image.clone(),
        namespace: args.namespace.clone(),
        secret: args.image_pull_secret.clone(),
        deadline: Duration::from_secs(args.timeout),
    });
    ui.progress("asking the cluster");
    let found = preflight::preflight(&config.kubernetes, trial.as_ref()).await;
    let of_stores = stores(&config.store).await;
    ui.progress_done();
    let level = |it| match it {
        Weight::Good => Level::Good,
        Weight::Warning => Level::Warning,
        Weight::Bad => Level::Bad,
    };
    let of_cluster = found.into_iter().map(|it| Finding {
        check: it.check,
        level: level(it.weight),
        found: it.found,
        advice: it.advice,
    });
    Ok(report(of_cluster.chain(of_stores).collect(), "this cluster", ui))
}

/// The shared stores, tried from here.
async fn stores(config: &arco_config::StoreConfig) -> Vec<Finding> {
    let advice = |store| match store {
        "metadata" => "check URL, password, network and grants: docs/operations/stores.md has the statements",
        "coordination" => {
            "check the addresses, the three certificate files, and that the certificate may write every key"
        }
        _ => "check bucket, endpoint and credentials, and that they may put, get and delete",
    };
    let looked = crate::server::stores::look(config).await;
    let finding = |(store, outcome): (&'static str, anyhow::Result<String>)| match outcome {
        Ok(found) => Finding::good(store, found),
        Err(error) => Finding::bad(store, format!("{error:#}"), advice(store)),
    };
    looked.into_iter().map(finding).collect()
}

/// Prints what was found about `place`.
fn report(findings: Vec<Finding>, place: &str, ui: &Ui) -> ExitCode {
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
        match report.healthy {
            true => ui.line(&format!("{place} can run the platform")),
            false => ui.line("mend what is marked BAD, then try again"),
        }
    });
    if report.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
