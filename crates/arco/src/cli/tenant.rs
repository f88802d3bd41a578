//! `arco tenant`: who shares the platform without seeing each other.

use super::failure::Failure;
use super::session::Session;
use super::text;
use arco_api::wire::{ChangeTenant, CreateTenant, TenantDocument, TenantRemoval};
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
    /// Change the quota of a tenant (administrators); what runs goes on when it asks for more
    #[command(after_help = "Example:\n  arco tenant set team-b --memory-quota-mb 8192")]
    Set {
        /// Its name
        name: String,
        /// Memory that all of its instances together may ask for; 0: no limit
        #[arg(long, value_name = "N")]
        memory_quota_mb: u64,
    },
    /// List the tenants that one may see, with their quota and what their instances ask for
    #[command(visible_alias = "ls", after_help = "Example:\n  arco tenant list")]
    List,
    /// Delete a tenant in which no application and no volume is left (administrators)
    #[command(
        visible_alias = "remove",
        after_help = "Example:\n  arco tenant delete team-b --yes\n\nIts credentials and certificates of hosts go with it, and on Kubernetes its namespace, unless others have something in there: that is told then. Contexts that were made for it stay: `arco context revoke NAME`."
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
        TenantCommand::Set { name, memory_quota_mb } => {
            let request = ChangeTenant { memory_quota_mb: Some(*memory_quota_mb) };
            let changed = session.client.change_tenant(name, &request).await?;
            if let Some(warning) = over(&changed) {
                session.ui.warn(&warning);
            }
            session.ui.document(&changed, |ui| ui.line(&format!("tenant {name}, memory: {}", quota(&changed))));
        }
        TenantCommand::List => {
            let items = session.client.tenants().await?;
            session.ui.list(&items, |ui| {
                let row = |it: &TenantDocument| {
                    let asked = format!("{} MB", it.memory_asked_mb);
                    vec![it.name.clone(), asked, quota(it), text::age(Some(&it.created_at))]
                };
                ui.table(&["TENANT", "MEMORY", "QUOTA", "AGE"], items.iter().map(row));
            });
        }
        TenantCommand::Delete { name, yes } => {
            let what = format!("the tenant {name} with its credentials and certificates");
            super::delete::confirm(&what, *yes, session.ui)?;
            let TenantRemoval { left } = session.client.delete_tenant(name).await?;
            if let Some(left) = &left {
                session.ui.warn(left);
            }
            let document = serde_json::json!({"deleted": name, "left": left});
            session.ui.document(&document, |ui| ui.line(&format!("tenant {name} is deleted")));
        }
    }
    Ok(())
}

/// Said when a quota is below what its tenant asks for already.
fn over(tenant: &TenantDocument) -> Option<String> {
    let TenantDocument { name, memory_quota_mb: quota, memory_asked_mb: asked, .. } = tenant;
    (*quota > 0 && asked > quota).then(|| {
        format!("{name} asks for {asked} MB already: it goes on, and only what makes that less can be changed")
    })
}

fn quota(tenant: &TenantDocument) -> String {
    match tenant.memory_quota_mb {
        0 => "no limit".to_owned(),
        quota => format!("{quota} MB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_below_what_is_asked_is_told() {
        for (memory_quota_mb, memory_asked_mb, told) in
            [(0, 4096, false), (4096, 4096, false), (4096, 0, false), (4095, 4096, true)]
        {
            let name = "team-b".to_owned();
            let tenant = TenantDocument { name, memory_quota_mb, memory_asked_mb, created_at: String::new() };
            assert_eq!(over(&tenant).is_some(), told, "{tenant:?}");
        }
    }
}
