//! `arco volume`: storage that outlives instances.

use super::args::WaitArgs;
use super::failure::{Failure, exit};
use super::operations;
use super::reference::Reference;
use super::session::Session;
use super::spec_flags::volume;
use super::text;
use super::wait::{self, Show};
use arco_api::wire::{SpecPatch, VolumeDocument};
use arco_model::spec::VolumeSpec;
use clap::Subcommand;

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List volumes, kept ones included
    #[command(after_help = "Example:\n  arco volume list demo/web")]
    List {
        /// APP or APP/COMPONENT [default: all]
        #[arg(value_name = "APP[/COMPONENT]")]
        reference: Option<Reference>,
    },
    /// Add a volume (or change its size) and roll that out
    #[command(after_help = "Example:\n  arco volume add demo/web files:/data:2048")]
    Add {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// The volume
        #[arg(value_name = "NAME:/PATH[:SIZE_MB]", value_parser = volume)]
        volume: VolumeSpec,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a volume away from its component
    #[command(after_help = "Example:\n  arco volume remove demo/web files")]
    Remove {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Name
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Delete a volume that was kept, with its content
    #[command(after_help = "Example:\n  arco volume delete 01jz0000000000000000 --yes")]
    Delete {
        /// Id, as `arco volume list` shows it
        id: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs.
pub(crate) async fn run(command: &VolumeCommand, session: &Session<'_>) -> Result<(), Failure> {
    let (reference, name, value, wait) = match command {
        VolumeCommand::List { reference } => return list(reference.as_ref(), session).await,
        VolumeCommand::Delete { id, yes } => {
            super::delete::confirm(&format!("the volume {id} with its content"), *yes, session.ui)?;
            session.client.delete_volume(&session.tenant, id).await?;
            session.ui.document(&serde_json::json!({"deleted": id}), |ui| ui.line(&format!("volume {id} deleted")));
            return Ok(());
        }
        VolumeCommand::Add { reference, volume, wait } => {
            (reference, volume.name.to_string(), Some(volume.clone()), wait)
        }
        VolumeCommand::Remove { reference, name, wait } => (reference, name.clone(), None, wait),
    };
    let named = session.component(reference).await?;
    if value.is_none() {
        let component = session.client.component(&session.tenant, named.pair()).await?;
        if !component.spec.volumes.iter().any(|it| it.name.as_str() == name) {
            let message = format!("{named} has no volume `{}`", text::clean(&name));
            return Err(Failure::new(exit::NOT_FOUND, "not_found", message, format!("see `arco volume list {named}`")));
        }
    }
    let patch = SpecPatch { volumes: [(name, value)].into(), ..SpecPatch::default() };
    let started = session.client.patch(&session.tenant, named.pair(), &patch).await?;
    let ended = wait::operation(started, wait, Show::Progress, session).await?;
    operations::done(&ended, "changed", session);
    Ok(())
}

async fn list(reference: Option<&Reference>, session: &Session<'_>) -> Result<(), Failure> {
    let mut volumes: Vec<VolumeDocument> = Vec::new();
    match reference {
        None => volumes = session.client.tenant_volumes(&session.tenant).await?,
        Some(reference) => {
            for named in session.components(reference).await? {
                volumes.extend(session.client.volumes(&session.tenant, named.pair()).await?);
            }
        }
    }
    session.ui.list(&volumes, |ui| {
        let rows = volumes.iter().map(|it| {
            let state = if it.kept { "kept" } else { "in use" };
            let dash = |it: &str| if it.is_empty() { "-".to_owned() } else { it.to_owned() };
            let component = format!("{}/{}", it.application, it.component);
            vec![
                it.name.clone(),
                component,
                dash(&it.path),
                format!("{} MB", it.size_mb),
                state.to_owned(),
                dash(&it.id),
            ]
        });
        ui.table(&["VOLUME", "COMPONENT", "PATH", "SIZE", "STATE", "ID"], rows);
    });
    Ok(())
}
