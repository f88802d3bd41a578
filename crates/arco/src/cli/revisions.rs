//! `arco revisions`, `arco rollback`.

use super::args::WaitArgs;
use super::failure::Failure;
use super::operations;
use super::reference::Reference;
use super::session::Session;
use super::text;
use super::wait::{self, Show};
use arco_api::wire::RevisionDocument;
use clap::Args;

/// Lists revisions, newest first.
pub(crate) async fn list(reference: &Reference, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(reference).await?;
    let revisions = session.client.revisions(&session.tenant, named.pair()).await?;
    session.ui.list(&revisions, |ui| {
        ui.table(&["REVISION", "STATE", "CAUSE", "LANGUAGE", "COMMIT", "AGE"], revisions.iter().map(row))
    });
    Ok(())
}

fn row(revision: &RevisionDocument) -> Vec<String> {
    let state = match (revision.serving, revision.desired) {
        (true, _) => "serving",
        (false, true) => "rolling out",
        (false, false) => "-",
    };
    let commit = revision.commit.as_deref().map_or("-", |it| it.get(..12).unwrap_or(it));
    let language = if revision.language.is_empty() { "-" } else { &revision.language };
    vec![
        revision.number.to_string(),
        state.to_owned(),
        revision.cause.clone(),
        language.to_owned(),
        commit.to_owned(),
        text::age(Some(&revision.created_at)),
    ]
}

/// Flags of `rollback`.
#[derive(Args, Debug)]
pub(crate) struct RollbackArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Number of the revision [default: the one before]
    revision: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Serves an older revision again.
pub(crate) async fn rollback(args: &RollbackArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let started = session.client.rollback(&session.tenant, named.pair(), args.revision).await?;
    let ended = wait::operation(started, &args.wait, Show::Progress, session).await?;
    let revision =
        ended.revision.map_or_else(|| "rolled back".to_owned(), |it| format!("rolled back to revision {it}"));
    operations::done(&ended, &revision, session);
    Ok(())
}
