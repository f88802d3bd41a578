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
    /// List volumes, kept ones included, with what they are made of and how full they are
    #[command(after_help = "Example:\n  arco volume list demo/web")]
    List {
        /// APP or APP/COMPONENT [default: all]
        #[arg(value_name = "APP[/COMPONENT]")]
        reference: Option<Reference>,
    },
    /// Add a volume (or change its size) and roll that out
    #[command(
        after_help = "Examples:\n  arco volume add demo/web files:/data:2048\n  arco volume add demo/web files:/data:2048 --class fast"
    )]
    Add {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// The volume
        #[arg(value_name = "NAME:/PATH[:SIZE_MB[:CLASS]]", value_parser = volume)]
        volume: VolumeSpec,
        /// What it is made of (`arco volume classes`) [default: the platform's choice]
        #[arg(long, value_name = "NAME")]
        class: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Make a volume larger
    #[command(
        after_help = "Example:\n  arco volume resize demo/web files 4096\n\nA volume cannot become smaller; `arco volume classes` says which can grow."
    )]
    Resize {
        /// APP/COMPONENT
        #[arg(value_name = "APP/COMPONENT")]
        reference: Reference,
        /// Name
        name: String,
        /// New size in MiB
        #[arg(value_name = "SIZE_MB")]
        size_mb: u32,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List what volumes can be made of, and what they can then
    #[command(after_help = "Example:\n  arco volume classes")]
    Classes,
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
        VolumeCommand::Classes => return classes(session).await,
        VolumeCommand::Delete { id, yes } => {
            super::delete::confirm(&format!("the volume {id} with its content"), *yes, session.ui)?;
            session.client.delete_volume(&session.tenant, id).await?;
            session.ui.document(&serde_json::json!({"deleted": id}), |ui| ui.line(&format!("volume {id} deleted")));
            return Ok(());
        }
        VolumeCommand::Add { reference, volume, class, wait } => {
            // What the command line cannot say of one that is there stays.
            let had = volumes_of(reference, session).await?.into_iter().find(|it| it.name == volume.name);
            let kind = had.map_or(volume.kind, |it| it.kind);
            let class = class.clone().or_else(|| volume.class.clone());
            let volume = VolumeSpec { kind, class, ..volume.clone() };
            (reference, volume.name.to_string(), Some(volume), wait)
        }
        VolumeCommand::Resize { reference, name, size_mb, wait } => {
            let volume = VolumeSpec { size_mb: *size_mb, ..find(reference, name, session).await? };
            (reference, name.clone(), Some(volume), wait)
        }
        VolumeCommand::Remove { reference, name, wait } => (reference, name.clone(), None, wait),
    };
    let named = session.component(reference).await?;
    if value.is_none() {
        find(reference, &name, session).await?;
    }
    let patch = SpecPatch { volumes: [(name, value)].into(), ..SpecPatch::default() };
    let started = session.client.patch(&session.tenant, named.pair(), &patch).await?;
    let ended = wait::operation(started, wait, Show::Progress, session).await?;
    operations::done(&ended, "changed", session);
    Ok(())
}

/// The volumes of a component, as they are asked for.
async fn volumes_of(reference: &Reference, session: &Session<'_>) -> Result<Vec<VolumeSpec>, Failure> {
    let named = session.component(reference).await?;
    Ok(session.client.component(&session.tenant, named.pair()).await?.spec.volumes)
}

/// The volume of this name.
async fn find(reference: &Reference, name: &str, session: &Session<'_>) -> Result<VolumeSpec, Failure> {
    let volumes = volumes_of(reference, session).await?;
    volumes.into_iter().find(|it| it.name.as_str() == name).ok_or_else(|| {
        let message = format!("`{reference}` has no volume `{}`", text::clean(name));
        Failure::new(exit::NOT_FOUND, "not_found", message, format!("see `arco volume list {reference}`"))
    })
}

async fn classes(session: &Session<'_>) -> Result<(), Failure> {
    let classes = session.client.volume_classes().await?;
    session.ui.list(&classes, |ui| {
        let yes = |it: bool| if it { "yes" } else { "no" }.to_owned();
        let rows = classes.iter().map(|it| {
            let name = if it.default { format!("{} (default)", it.class) } else { it.class.clone() };
            let access = if it.access.is_empty() { "?".to_owned() } else { it.access.join(",") };
            let known = |it: Option<bool>| it.map_or_else(|| "?".to_owned(), yes);
            let (snapshots, limits) = (known(it.snapshots), known(it.limits));
            vec![name, it.provisioner.clone(), access, yes(it.grows), limits, snapshots, yes(it.retains)]
        });
        ui.table(&["CLASS", "PROVISIONER", "ACCESS", "GROWS", "SIZE IS LIMIT", "SNAPSHOTS", "KEPT WHEN DELETED"], rows);
    });
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
                dash(&it.class),
                dash(&it.access.join(",")),
                it.size_bytes.map_or_else(|| format!("{} MB", it.size_mb), text::megabytes),
                it.used_bytes.map_or_else(|| "-".to_owned(), text::megabytes),
                state.to_owned(),
                dash(&it.id),
            ]
        });
        ui.table(&["VOLUME", "COMPONENT", "PATH", "CLASS", "ACCESS", "SIZE", "USED", "STATE", "ID"], rows);
    });
    Ok(())
}
