//! `arco detect`: what a deploy would do, without doing it.

use super::failure::Failure;
use super::source::{self, Asked};
use super::text;
use super::ui::Ui;
use arco_builder::detect::{Detection, detect_folder};
use clap::Args;

/// Flags of `detect`.
#[derive(Args, Debug)]
pub(crate) struct DetectArgs {
    /// Folder or `file:` URL
    source: String,
    /// Branch, tag or commit of a `file:` URL
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Folder inside the source that would be built
    #[arg(long, value_name = "SUBDIR", default_value = "", hide_default_value = true)]
    dir: String,
}

/// Detects.
pub(crate) fn run(args: &DetectArgs, ui: &Ui) -> Result<(), Failure> {
    let asked = Asked::parse(&args.source, args.reference.as_deref())?;
    let detection = source::with_folder(&asked, |folder| detect_folder(folder, &args.dir).map_err(Failure::from))?;
    ui.document(&detection, |ui| show(&detection, ui));
    Ok(())
}

fn show(detection: &Detection, ui: &Ui) {
    let field = |name: &str, value: &str| ui.line(&format!("{:<11}{}", format!("{name}:"), text::one_line(value)));
    let version = detection.version.as_deref().map(|it| format!(" {it}")).unwrap_or_default();
    field("language", &format!("{}{version}", detection.language));
    for (name, value) in [("framework", &detection.framework), ("packages", &detection.package_manager)] {
        if let Some(value) = value {
            field(name, value);
        }
    }
    detection.build_steps.iter().for_each(|it| field("build", it));
    match &detection.command {
        Some(command) => field("command", &words(command)),
        None => field("command", "none"),
    }
    detection.commands.iter().for_each(|(name, command)| field(&format!("  {name}"), &words(command)));
    for port in &detection.ports {
        field("port", &port.port.to_string());
    }
    detection.hints.iter().for_each(|it| field("hint", it));
}

fn words(command: &arco_model::spec::Command) -> String {
    match command {
        arco_model::spec::Command::Shell(line) => line.clone(),
        arco_model::spec::Command::Exec(argv) => argv.join(" "),
    }
}
