//! `arco tenant`: who shares the platform without seeing each other.

use super::failure::Failure;
use super::session::Session;
use super::text;
use arco_api::wire::{CreateTenant, TenantDocument};
use clap::Subcommand;

/// What to do with tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant (administrators)
    #[command(
        after_help = "Examples:\n  arco tenant create team-b --memory-quota-mb 4096\n  arco context create --name bob --tenants team-b --file bob.toml\n  arco --tenant team-b deploy . --app shop"
    )]
    Create {
        /// Its name: a-z, 0-9 and -
        name: String,
        /// Memory that all of its instances together may ask for [default: no limit]
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        memory_quota_mb: u64,
    },
    /// List the tenants that one may see, with their quota
    #[command(visible_alias = "ls", after_help = "Example:\n  arco tenant list")]
    List,
    /// Delete a tenant in which no application and no volume is left (administrators)
    #[command(
        visible_alias = "remove",
        after_help = "Example:\n  arco tenant delete team-b --yes\n\nIts credentials and certificates of hosts go with it. Contexts that were made for it stay: `arco context revoke NAME`."
    )]
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Runs.
pub(crate) async fn run(command: &TenantCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { name, memory_quota_mb } => {
            let request = CreateTenant { name: name.clone(), memory_quota_mb: *memory_quota_mb };
            let made = session.client.create_tenant(&request).await?;
            let quota = quota(&made);
            session.ui.document(&made, |ui| {
                ui.line(&format!("tenant {} is made, memory: {quota}", made.name));
                ui.line(&format!(
                    "`--tenant {0}` means it; `arco context create --tenants {0}` lets people in",
                    made.name
                ));
            });
        }
        TenantCommand::List => {
            let items = session.client.tenants().await?;
            session.ui.list(&items, |ui| {
                let rows = items.iter().map(|it| vec![it.name.clone(), quota(it), text::age(Some(&it.created_at))]);
                ui.table(&["TENANT", "MEMORY", "AGE"], rows);
            });
        }
        TenantCommand::Delete { name, yes } => {
            let what = format!("the tenant {name} with its credentials and certificates");
            super::delete::confirm(&what, *yes, session.ui)?;
            session.client.delete_tenant(name).await?;
            let document = serde_json::json!({"deleted": name});
            session.ui.document(&document, |ui| ui.line(&format!("tenant {name} is deleted")));
        }
    }
    Ok(())
}

fn quota(tenant: &TenantDocument) -> String {
    match tenant.memory_quota_mb {
        0 => "no limit".to_owned(),
        quota => format!("{quota} MB"),
    }
}
