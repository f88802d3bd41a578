//! `arco credential`: what the server fetches private Git repositories with. Values go in and are never shown again.

use super::failure::Failure;
use super::secret;
use super::session::Session;
use super::text;
use arco_api::wire::{CredentialQuery, CredentialRequest, SecretText};
use arco_model::credential::CredentialKind;
use clap::Subcommand;
use std::path::PathBuf;

/// What to do with credentials.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Keep a credential for the repositories below a URL
    #[command(
        after_help = "Examples:\n  arco credential set https://git.example.com/team --token @token.txt\n  pass show git | arco credential set https://git.example.com --user ada --token - --app shop\n  arco credential set git@git.example.com:team --ssh-key @deploy_key --host-key @known_hosts\n\nOnly the step that fetches such a repository gets it. Without --host-key the first key that the host shows is kept."
    )]
    Set {
        /// Beginning of the repositories' URLs
        #[arg(value_name = "URL")]
        url: String,
        /// Password or access token, for https
        #[arg(long, value_name = "@FILE|-", conflicts_with = "ssh_key", required_unless_present = "ssh_key")]
        token: Option<String>,
        /// Private key without a passphrase, for ssh
        #[arg(long, value_name = "@FILE|-")]
        ssh_key: Option<String>,
        /// User name [default: the one in the URL, else git]
        #[arg(long)]
        user: Option<String>,
        /// Keys that the host may show, as in known_hosts
        #[arg(long, value_name = "@FILE", requires = "ssh_key")]
        host_key: Option<String>,
        /// Only for this application [default: every application of the tenant]
        #[arg(long, value_name = "APP")]
        app: Option<String>,
    },
    /// Forget a credential
    #[command(after_help = "Example:\n  arco credential unset https://git.example.com/team")]
    Unset {
        /// As `arco credential list` shows it
        #[arg(value_name = "URL")]
        url: String,
        /// Its application
        #[arg(long, value_name = "APP")]
        app: Option<String>,
    },
    /// List where credentials hold
    #[command(visible_alias = "ls", after_help = "Example:\n  arco credential list")]
    List,
}

/// Runs.
pub(crate) async fn run(command: &CredentialCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        CredentialCommand::Set { url, token, ssh_key, user, host_key, app } => {
            let value = |name: &str, given: &Option<String>| -> Result<Option<SecretText>, Failure> {
                let Some(given) = given else { return Ok(None) };
                Ok(secret::read(&[format!("{name}={given}")], session.ui)?.remove(name).flatten())
            };
            let host_keys = host_key.as_deref().map(read_host_keys).transpose()?;
            let request = CredentialRequest {
                url: url.clone(),
                application: app.clone(),
                user: user.clone(),
                token: value("--token", token)?,
                ssh_key: value("--ssh-key", ssh_key)?,
                host_keys,
            };
            let kept = session.client.set_credential(&session.tenant, &request).await?;
            session.ui.document(&kept, |ui| {
                let whose = kept.application.as_ref().map_or_else(String::new, |it| format!(" of `{it}`"));
                ui.line(&format!("kept for repositories{whose} below {}", text::clean(&kept.scope)));
            });
        }
        CredentialCommand::Unset { url, app } => {
            let query = CredentialQuery { url: url.clone(), application: app.clone() };
            session.client.delete_credential(&session.tenant, &query).await?;
            session.ui.document(&serde_json::json!({"deleted": url}), |ui| ui.line("forgotten"));
        }
        CredentialCommand::List => {
            let found = session.client.credentials(&session.tenant).await?;
            session.ui.list(&found, |ui| {
                let rows = found.iter().map(|it| {
                    let kind = match it.kind {
                        CredentialKind::Token => "token",
                        CredentialKind::SshKey if it.host_keys.is_empty() => "ssh key, host not seen yet",
                        CredentialKind::SshKey => "ssh key, host key kept",
                    };
                    let application = it.application.clone().unwrap_or_else(|| "all".to_owned());
                    let age = text::age(Some(&it.created_at));
                    vec![it.scope.clone(), application, kind.to_owned(), it.user.clone(), age]
                });
                ui.table(&["SCOPE", "APPLICATION", "KIND", "USER", "AGE"], rows);
            });
        }
    }
    Ok(())
}

/// Host keys are no secret: `@FILE`, or the line itself.
fn read_host_keys(given: &str) -> Result<String, Failure> {
    let Some(path) = given.strip_prefix('@') else { return Ok(given.to_owned()) };
    std::fs::read_to_string(PathBuf::from(path)).map_err(|error| {
        let message = format!("the file `{path}` for --host-key cannot be read: {error}");
        Failure::usage("credential_invalid", message, "check its path")
    })
}
