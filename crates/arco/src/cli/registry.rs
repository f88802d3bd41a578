//! `arco registry`: the way into the platform's image registry for clients that push and pull images.
//!
//! The token is a secret: it goes to standard output, for a client to read from its standard input, and nowhere else.

use super::failure::Failure;
use super::reference::Reference;
use super::session::Session;
use clap::Subcommand;

/// What to do with the registry.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Print a token that pushes and pulls images of one component for an hour
    #[command(
        after_help = "Examples:\n  arco registry token demo/web | skopeo login --username t --password-stdin registry.example.com\n  arco registry token demo/web | docker login --username t --password-stdin registry.example.com\n  docker push registry.example.com/default/demo/web:1\n\nThe user name does not matter. The repository is TENANT/APP/COMPONENT; the component need not be there yet. What was pushed is deployed\nby `arco deploy image:default/demo/web:1 --app demo --component web`."
    )]
    Token {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
    },
}

/// Runs.
pub(crate) async fn run(command: &RegistryCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        RegistryCommand::Token { reference } => {
            let named = session.component(reference).await?;
            let repository = format!("{}/{named}", session.tenant);
            let issued = session.client.registry_token(&repository).await?;
            session.ui.document(&issued, |ui| ui.line(&issued.token));
            session.ui.note(&format!("for the repository {}, one hour; any user name", issued.repository));
        }
    }
    Ok(())
}
