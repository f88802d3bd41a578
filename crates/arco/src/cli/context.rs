//! `arco context`: who we are at which platform, and contexts for other people.

use super::failure::Failure;
use super::session::Session;
use super::text;
use arco_api::client::Context;
use arco_api::wire::CertificateRequest;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What a person may do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PersonRole {
    /// See everything of the tenant
    Viewer,
    /// Deploy and change
    Developer,
    /// Delete as well
    Operator,
}

impl PersonRole {
    fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Developer => "developer",
            Self::Operator => "operator",
        }
    }
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Write a context for another person: an own certificate with a limited role
    #[command(
        after_help = "Example:\n  arco context create --name ada --role developer --file ada.toml\n\nThe file is a key: hand it over as one. Its place is ~/.config/arco/context.toml."
    )]
    Create {
        /// Name of the person
        #[arg(long)]
        name: String,
        /// What the person may do
        #[arg(
            long,
            value_enum,
            default_value = "developer",
            hide_possible_values = true,
            value_name = "viewer|developer|operator"
        )]
        role: PersonRole,
        /// Tenants that the person may see [default: the tenant of this command]
        #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
        tenants: Vec<String>,
        /// Where to write it; `-` is standard output [default: NAME.toml]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// How that person reaches the API [default: as this command does]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Write the context in use, for another machine
    #[command(
        after_help = "Example:\n  kubectl -n arco-system exec arco-0 -- /usr/bin/arco --context /var/lib/arco/admin.toml \\\n    context export --file - --address 127.0.0.1:8443 >admin.toml\n\nThe file is a key with all rights of this context, until its certificate ends."
    )]
    Export {
        /// Where to write it; `-` is standard output
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// How the API is reached from there [default: as this command does]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// List the contexts that were made for people
    #[command(visible_alias = "ls", after_help = "Example:\n  arco context list")]
    List,
    /// Refuse a person's contexts from now on
    #[command(
        after_help = "Example:\n  arco context revoke ada\n\nEvery context made for that name so far is refused at once; a new one can be made."
    )]
    Revoke {
        /// Name of the person
        name: String,
    },
    /// Show who we are, and where
    #[command(after_help = "Example:\n  arco context show")]
    Show,
}

#[derive(Serialize)]
struct Here<'a> {
    api: &'a str,
    tenant: &'a str,
    name: &'a str,
    role: &'a str,
    version: &'a str,
    domain: &'a str,
}

/// Runs.
pub(crate) async fn run(command: &ContextCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        ContextCommand::Show => {
            let me = session.client.whoami().await?;
            let here = Here {
                api: session.client.api(),
                tenant: &session.tenant,
                name: &me.name,
                role: &me.role,
                version: &me.version,
                domain: &me.domain,
            };
            session.ui.document(&here, |ui| {
                ui.line(&format!("{} ({}) at {}, tenant {}", here.name, here.role, here.api, here.tenant));
                ui.line(&format!("platform {}, domain {}", here.version, here.domain));
            });
        }
        ContextCommand::List => {
            let found = session.client.contexts().await?;
            session.ui.list(&found, |ui| {
                let rows = found.iter().map(|it| {
                    let state = match &it.revoked_at {
                        Some(at) => format!("revoked {} ago", text::age(Some(at))),
                        None if arco_store::clock::now().rfc3339() >= it.expires_at => "expired".to_owned(),
                        None => format!("until {}", it.expires_at),
                    };
                    vec![it.name.clone(), it.role.clone(), it.tenants.join(","), state, it.fingerprint[..12].to_owned()]
                });
                ui.table(&["NAME", "ROLE", "TENANTS", "STATE", "FINGERPRINT"], rows);
            });
        }
        ContextCommand::Revoke { name } => {
            let revoked = session.client.revoke_context(name).await?;
            session
                .ui
                .list(&revoked, |ui| ui.line(&format!("{} contexts of {name} are refused from now on", revoked.len())));
        }
        ContextCommand::Export { file, address } => {
            free(file)?;
            let api = address.clone().unwrap_or_else(|| session.context.api.clone());
            let context = Context { api, ..session.context.clone() };
            if written(&context, file, session)? {
                let document = serde_json::json!({"file": file, "api": context.api});
                session.ui.document(&document, |ui| ui.line(&format!("{} is the context in use", file.display())));
            }
        }
        ContextCommand::Create { name, role, tenants, file, address } => {
            let file = file.clone().unwrap_or_else(|| {
                PathBuf::from(format!(
                    "{}.toml",
                    arco_model::name::nearest(name).unwrap_or_else(|| "context".to_owned())
                ))
            });
            free(&file)?;
            let tenants = if tenants.is_empty() { vec![session.tenant.clone()] } else { tenants.clone() };
            let tenant = tenants.first().cloned();
            let request = CertificateRequest { name: name.clone(), role: role.as_str().to_owned(), tenants };
            let answer = session.client.create_certificate(&request).await?;
            let api = address.clone().unwrap_or_else(|| session.context.api.clone());
            let context = Context { api, tenant, ca: answer.ca, certificate: answer.certificate, key: answer.key };
            if !written(&context, &file, session)? {
                return Ok(());
            }
            let document = serde_json::json!({"name": name, "role": role.as_str(), "file": file});
            session.ui.document(&document, |ui| {
                ui.line(&format!(
                    "{} is the context of {name} ({}); its place is ~/.config/arco/context.toml",
                    file.display(),
                    role.as_str()
                ));
            });
        }
    }
    Ok(())
}

/// Nothing is overwritten.
fn free(file: &Path) -> Result<(), Failure> {
    match file.exists() {
        false => Ok(()),
        true => {
            let message = format!("`{}` exists already", file.display());
            Err(Failure::usage("file_exists", message, "give another `--file`"))
        }
    }
}

/// Writes a context; whether it went into a file and not to standard output.
fn written(context: &Context, file: &Path, session: &Session<'_>) -> Result<bool, Failure> {
    if file == Path::new("-") {
        session.ui.bytes(context.to_toml()?.as_bytes());
        return Ok(false);
    }
    context.save(file)?;
    Ok(true)
}
