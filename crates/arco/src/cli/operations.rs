//! `arco operations`, `arco operation`, and how the end of any operation is told.

use super::failure::Failure;
use super::reference::Reference;
use super::session::Session;
use super::text;
use arco_api::wire::OperationDocument;
use arco_model::operation::{OperationKind, OperationStatus};
use clap::{Args, Subcommand};

/// Flags of `operations`.
#[derive(Args, Debug)]
pub(crate) struct OperationsArgs {
    /// APP or APP/COMPONENT
    #[arg(value_name = "APP[/COMPONENT]")]
    reference: Option<Reference>,
    /// Only those that failed
    #[arg(long)]
    failed: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// What to do with one operation.
#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Show one operation
    #[command(after_help = "Example:\n  arco operation show 01jz0000000000000000 -o json")]
    Show {
        /// Id
        id: String,
    },
    /// Ask an operation to end
    #[command(after_help = "Example:\n  arco operation cancel 01jz0000000000000000")]
    Cancel {
        /// Id
        id: String,
    },
}

/// Lists operations, newest first.
pub(crate) async fn list(args: &OperationsArgs, session: &Session<'_>) -> Result<(), Failure> {
    let application = args.reference.as_ref().map(|it| it.application.as_str());
    let component = args.reference.as_ref().and_then(|it| it.component.as_deref());
    let operations =
        session.client.operations(&session.tenant, application, component, args.failed, args.limit).await?;
    session.ui.list(&operations, |ui| {
        ui.table(&["OPERATION", "COMPONENT", "KIND", "STATUS", "AGE", "REASON"], operations.iter().map(row));
    });
    Ok(())
}

/// Runs.
pub(crate) async fn run(command: &OperationCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        OperationCommand::Show { id } => {
            let operation = session.client.operation(id).await?;
            session.ui.document(&operation, |ui| {
                ui.table(&["OPERATION", "COMPONENT", "KIND", "STATUS", "AGE", "REASON"], [row(&operation)]);
                if let Some(problem) = &operation.problem {
                    ui.line(&format!("advice: {}", text::one_line(&problem.advice)));
                }
            });
        }
        OperationCommand::Cancel { id } => {
            let operation = session.client.cancel(id).await?;
            session.ui.document(&operation, |ui| ui.line(&format!("operation {id} was asked to end")));
        }
    }
    Ok(())
}

fn row(operation: &OperationDocument) -> Vec<String> {
    let reason = operation.problem.as_ref().map_or(String::new(), |it| text::one_line(&it.message));
    vec![
        operation.id.clone(),
        format!("{}/{}", operation.application, operation.component),
        kind_word(operation.kind).to_owned(),
        status_word(operation.status).to_owned(),
        text::age(Some(&operation.created_at)),
        reason,
    ]
}

fn kind_word(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Deploy => "deploy",
        OperationKind::Configure => "configure",
        OperationKind::Scale => "scale",
        OperationKind::Start => "start",
        OperationKind::Stop => "stop",
        OperationKind::Restart => "restart",
        OperationKind::Rollback => "rollback",
        OperationKind::Delete => "delete",
    }
}

fn status_word(status: OperationStatus) -> &'static str {
    match status {
        OperationStatus::Pending => "pending",
        OperationStatus::Building => "building",
        OperationStatus::RollingOut => "rolling_out",
        OperationStatus::Succeeded => "succeeded",
        OperationStatus::Failed => "failed",
        OperationStatus::Cancelled => "cancelled",
    }
}

/// Tells how an operation ended: the operation as JSON, or a sentence.
pub(crate) fn done(operation: &OperationDocument, word: &str, session: &Session<'_>) {
    session.ui.document(operation, |ui| {
        let what = format!("{}/{}", operation.application, operation.component);
        if operation.status.is_final() {
            ui.line(&format!("{what} {word}"));
        } else {
            ui.line(&format!("{what}  operation {}", operation.id));
        }
    });
}
