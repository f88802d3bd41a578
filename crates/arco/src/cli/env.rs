//! `arco env`: variables of the running instances.

use super::args::WaitArgs;
use super::failure::{Failure, exit};
use super::operations;
use super::reference::Reference;
use super::session::Session;
use super::spec_flags::pair;
use super::text;
use super::wait::{self, Show};
use arco_api::wire::SpecPatch;
use clap::Subcommand;

/// What to do with variables.
#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// Set variables and roll them out
    #[command(after_help = "Example:\n  arco env set demo/web GREETING=hello LEVEL=2")]
    Set {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Variables
        #[arg(required = true, value_name = "K=V", value_parser = pair)]
        variables: Vec<(String, String)>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove variables and roll that out
    #[command(after_help = "Example:\n  arco env unset demo/web GREETING")]
    Unset {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Names
        #[arg(required = true, value_name = "K")]
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List variables
    #[command(after_help = "Example:\n  arco env list demo/web")]
    List {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
    },
}

/// Runs.
pub(crate) async fn run(command: &EnvCommand, session: &Session<'_>) -> Result<(), Failure> {
    let (reference, env, wait) = match command {
        EnvCommand::List { reference } => return list(reference, session).await,
        EnvCommand::Set { reference, variables, wait } => {
            (reference, variables.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect(), wait)
        }
        EnvCommand::Unset { reference, names, wait } => {
            (reference, names.iter().map(|it| (it.clone(), None)).collect(), wait)
        }
    };
    let named = session.component(reference).await?;
    if let EnvCommand::Unset { names, .. } = command {
        let there = session.client.component(&session.tenant, named.pair()).await?.spec.env;
        if let Some(missing) = names.iter().find(|it| !there.contains_key(*it)) {
            let message = format!("{named} has no variable `{}`; nothing was changed", text::clean(missing));
            return Err(Failure::new(exit::NOT_FOUND, "not_found", message, format!("see `arco env list {named}`")));
        }
    }
    let patch = SpecPatch { env, ..SpecPatch::default() };
    let started = session.client.patch(&session.tenant, named.pair(), &patch).await?;
    let ended = wait::operation(started, wait, Show::Progress, session).await?;
    operations::done(&ended, "changed", session);
    Ok(())
}

async fn list(reference: &Reference, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(reference).await?;
    let component = session.client.component(&session.tenant, named.pair()).await?;
    let env = component.spec.env;
    session.ui.document(&env, |ui| env.iter().for_each(|(key, value)| ui.line(&format!("{key}={value}"))));
    Ok(())
}
