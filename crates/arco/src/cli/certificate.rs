//! `arco certificate`: certificates of hosts.

use super::failure::Failure;
use super::session::Session;
use super::text;
use arco_api::wire::{HostCertificateDocument, SecretText, SetHostCertificate};
use clap::Subcommand;

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// List certificates with expiry and use
    #[command(after_help = "Example:\n  arco certificate list")]
    List,
    /// Add a certificate, or put a new one in place of the one of that name
    #[command(
        after_help = "Examples:\n  arco certificate add example --cert @fullchain.pem --key @privkey.pem\n  pass show key | arco certificate add example --cert @fullchain.pem --key -"
    )]
    Add {
        /// Its name: a-z, 0-9, -, . and _
        name: String,
        /// The chain in PEM, the certificate of the host first
        #[arg(long, value_name = "@FILE")]
        cert: String,
        /// Its private key in PEM, from a file or standard input
        #[arg(long, value_name = "@FILE|-")]
        key: String,
    },
    /// Have an automatic certificate issued anew at once
    #[command(after_help = "Example:\n  arco certificate renew auto:shop.example.com")]
    Renew {
        /// Its name, as `arco certificate list` shows it
        name: String,
    },
    /// Delete a certificate that no route names
    #[command(visible_alias = "remove", after_help = "Example:\n  arco certificate delete example --yes")]
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Runs.
pub(crate) async fn run(command: &CertificateCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        CertificateCommand::List => {
            let items = session.client.certificates(&session.tenant).await?;
            let header = ["NAME", "HOSTS", "ISSUER", "EXPIRES", "DAYS", "USED BY", "PROBLEM"];
            session.ui.list(&items, |ui| {
                ui.table(&header, items.iter().map(row));
                for it in items.iter().filter(|it| !it.advice.is_empty()) {
                    ui.line(&format!("{}: {}", it.name, text::one_line(&it.advice)));
                }
            });
        }
        CertificateCommand::Add { name, cert, key } => {
            let request = SetHostCertificate { chain: read(cert)?, key: SecretText(read(key)?) };
            let added = session.client.set_certificate(&session.tenant, name, &request).await?;
            session.gateways_follow().await;
            let shown = format!("{} is for {}, until {}", added.name, added.hosts.join(", "), added.not_after);
            session.ui.document(&added, |ui| ui.line(&shown));
        }
        CertificateCommand::Renew { name } => {
            let asked = session.client.renew_certificate(&session.tenant, name).await?;
            session.ui.document(&asked, |ui| {
                ui.line(&format!("{name} is issued anew; `arco certificate list` shows when it is there"))
            });
        }
        CertificateCommand::Delete { name, yes } => {
            super::delete::confirm(&format!("the certificate {name} with its private key"), *yes, session.ui)?;
            session.client.delete_certificate(&session.tenant, name).await?;
            session.gateways_follow().await;
            session.ui.document(&serde_json::json!({"deleted": name}), |ui| ui.line(&format!("{name} is deleted")));
        }
    }
    Ok(())
}

/// The text of `@FILE`, `FILE` or `-`. A key never stands on the command line itself.
fn read(from: &str) -> Result<String, Failure> {
    let path = from.strip_prefix('@').unwrap_or(from);
    let text = match from {
        "-" => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    text.map_err(|it| {
        // What cannot be opened may be the key itself: it is not shown.
        let shown = if path.len() > 200 || path.contains('\n') { "what was given" } else { path };
        Failure::usage(
            "file_unreadable",
            format!("`{shown}` cannot be read: {it}"),
            "give a file as @FILE, or - for standard input",
        )
    })
}

fn row(it: &HostCertificateDocument) -> Vec<String> {
    vec![
        it.name.clone(),
        it.hosts.join(" "),
        it.issuer.clone(),
        it.not_after.split('T').next().unwrap_or_default().to_owned(),
        it.days_left.to_string(),
        it.used_by.join(" "),
        text::one_line(&it.problem),
    ]
}
