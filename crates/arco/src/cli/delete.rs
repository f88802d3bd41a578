//! `arco delete`: asks first, then waits until nothing is left.

use super::args::WaitArgs;
use super::failure::Failure;
use super::reference::{Named, Reference};
use super::session::Session;
use super::ui::Ui;
use super::wait::{self, Show};
use clap::Args;
use serde::Serialize;
use std::io::{BufRead as _, IsTerminal as _};
use std::time::{Duration, Instant};

/// Flags of `delete`.
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// APP (with all its components) or APP/COMPONENT
    #[arg(value_name = "APP[/COMPONENT]")]
    reference: Reference,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Keep the volumes; `arco volume list` shows them
    #[arg(long)]
    keep_volumes: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Serialize)]
struct Deleted {
    deleted: String,
    operations: Vec<String>,
}

/// Deletes.
pub(crate) async fn run(args: &DeleteArgs, session: &Session<'_>) -> Result<(), Failure> {
    let Reference { application, component } = &args.reference;
    let what = match component {
        Some(_) => format!(
            "{} and its {}",
            args.reference,
            if args.keep_volumes { "revisions" } else { "revisions and volumes" }
        ),
        None => {
            let document = session.client.application(&session.tenant, application).await?;
            let names: Vec<&str> = document.components.iter().map(|it| it.component.as_str()).collect();
            let volumes = if args.keep_volumes { "" } else { " with their volumes" };
            format!("application {application} and its components ({}){volumes}", names.join(", "))
        }
    };
    confirm(&what, args.yes, session.ui)?;
    let started = match component {
        Some(component) => {
            let named = Named { application: application.clone(), component: component.clone() };
            vec![session.client.delete_component(&session.tenant, named.pair(), args.keep_volumes).await?]
        }
        None => session.client.delete_application(&session.tenant, application, args.keep_volumes).await?,
    };
    let operations = started.iter().map(|it| it.id.clone()).collect();
    for operation in started {
        wait::operation(operation, &args.wait, Show::Progress, session).await?;
    }
    if component.is_none() && !args.wait.detach {
        gone(application, session).await?;
    }
    let deleted = Deleted { deleted: args.reference.to_string(), operations };
    let word = if args.wait.detach { "is being deleted" } else { "deleted" };
    session.ui.document(&deleted, |ui| ui.line(&format!("{} {word}", deleted.deleted)));
    Ok(())
}

/// Waits until an application is not there any more: it goes with its last component.
async fn gone(application: &str, session: &Session<'_>) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        match session.client.application(&session.tenant, application).await {
            Err(error) if error.is_not_found() => return Ok(()),
            // Somebody deployed anew meanwhile: that is not ours to judge.
            Ok(document) if !document.components.is_empty() => return Ok(()),
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Asks at the terminal, unless `yes`.
pub(crate) fn confirm(what: &str, yes: bool, ui: &Ui) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let message = format!("deleting {what} needs a yes, and there is no terminal to ask at");
        return Err(Failure::usage("confirmation_missing", message, "add `--yes`"));
    }
    ui.error_bytes(format!("delete {}? [y/N] ", super::text::one_line(what)).as_bytes());
    let mut answer = String::new();
    let _ = stdin.lock().read_line(&mut answer);
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(
            super::failure::exit::FAILED,
            "not_confirmed",
            "nothing was deleted",
            "answer `y`, or add `--yes`",
        ))
    }
}
