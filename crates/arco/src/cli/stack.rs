//! `arco stack`: the images that sources are built and run on, for servers that cannot make them themselves.

mod layout;

use super::failure::Failure;
use super::given_file::unreadable;
use super::session::Session;
use super::{config, text, ui::Ui, whole_file};
use arco_api::wire::{StackDocument, StackRequest};
use arco_builder::{USUAL_STACKS, make_stacks, stack_edition};
use clap::{Args, Subcommand};
use layout::Layout;
use serde::Serialize;
use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;

/// What to do with stacks.
#[derive(Debug, Subcommand)]
pub(crate) enum StackCommand {
    /// Make stacks on this machine and write them to a file (as root, on Debian; needs no platform)
    #[command(
        after_help = "Examples:\n  arco stack save stacks.tar\n  arco stack save base.tar base\n\nWithout names: base, fetch, web, node-22, python-3.11, go-1.26. `-compilers` behind a name adds compilers. With the base alone a\nserver in a cluster makes the others itself, when its builds reach the package mirrors."
    )]
    Save(SaveArgs),
    /// Give the stacks of such a file to the platform; servers take them at once
    #[command(
        after_help = "Examples:\n  arco stack load stacks.tar\n  kubectl -n arco-system exec -i arco-0 -- /usr/bin/arco --context /var/lib/arco/admin.toml stack load - <stacks.tar"
    )]
    Load {
        /// File, or `-` for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List the stacks that the platform keeps
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  arco stack list\n\nServers that are root of their machine make others there when they need them."
    )]
    List,
    /// Forget a stack, so that it is made again or must be loaded
    #[command(after_help = "Example:\n  arco stack delete node-22")]
    Delete {
        /// As `arco stack list` shows it
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Flags of `save`.
#[derive(Args, Debug)]
pub(crate) struct SaveArgs {
    /// File, or `-` for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Stacks [default: base, fetch, web, node-22, python-3.11, go-1.26]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Settings that count: mirrors of `[builder]`, `server.cache_dir`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Serialize)]
struct Saved {
    name: String,
    edition: u32,
    size_bytes: u64,
}

/// Makes stacks and writes them to a file.
pub(crate) async fn save(args: &SaveArgs, ui: &Ui) -> Result<(), Failure> {
    let config = config::read(args.config.as_deref())?;
    let mut names = args.names.clone();
    if names.is_empty() {
        names = USUAL_STACKS.map(str::to_owned).to_vec();
    }
    let say = |line: String| ui.progress(line);
    let made = Box::pin(make_stacks(&config.server.cache_dir, &config.builder, &names, &say)).await?;
    ui.progress(format!("writing {}", args.file.display()));
    whole_file::write(&args.file, |out| layout::write(out, &made))?;
    ui.progress_done();
    if args.file == Path::new("-") {
        return Ok(());
    }
    let saved: Vec<Saved> = made
        .iter()
        .map(|it| Saved {
            name: it.name.clone(),
            edition: it.edition,
            size_bytes: it.image.layers.iter().map(|it| it.blob.size).sum(),
        })
        .collect();
    ui.list(&saved, |ui| {
        let rows = saved.iter().map(|it| vec![it.name.clone(), it.edition.to_string(), text::megabytes(it.size_bytes)]);
        ui.table(&["NAME", "EDITION", "SIZE"], rows);
    });
    Ok(())
}

/// What needs a platform.
pub(crate) async fn run(command: &StackCommand, session: &Session<'_>) -> Result<(), Failure> {
    match command {
        StackCommand::Save(args) => save(args, session.ui).await,
        StackCommand::Load { file } => load(file, session).await,
        StackCommand::List => {
            let found = session.client.stacks().await?;
            session.ui.list(&found, |ui| show(&found, ui));
            Ok(())
        }
        StackCommand::Delete { name } => {
            session.client.forget_stack(name).await?;
            session.ui.document(&serde_json::json!({"deleted": name}), |ui| ui.line("forgotten"));
            Ok(())
        }
    }
}

fn show(found: &[StackDocument], ui: &Ui) {
    let rows = found.iter().map(|it| {
        let age = text::age(Some(&it.created_at));
        vec![it.name.clone(), it.edition.to_string(), text::megabytes(it.size_bytes), age]
    });
    ui.table(&["NAME", "EDITION", "SIZE", "AGE"], rows);
}

async fn load(file: &Path, session: &Session<'_>) -> Result<(), Failure> {
    let shown = file.display();
    session.ui.progress(format!("reading {shown}"));
    let content = match file == Path::new("-") {
        true => standard_input(),
        false => File::open(file),
    }
    .map_err(|it| unreadable(&shown, &it))?;
    let layout = Layout::read(content).map_err(|why| {
        let advice = "give a file that `arco stack save` wrote";
        Failure::usage("stack_invalid", format!("`{shown}` is refused: {why}"), advice)
    })?;
    let mut kept = Vec::new();
    for stack in &layout.stacks {
        for digest in &stack.blobs {
            if session.client.has_upload(&session.tenant, digest.as_str()).await? {
                continue;
            }
            let (blob, size) = layout.blob(digest).map_err(|it| unreadable(&shown, &it))?;
            session.ui.progress(format!("{}: sending {} MB", stack.name, size >> 20));
            let content = tokio::fs::File::from_std(blob).take(size);
            session.client.put_blob(&session.tenant, digest.as_str(), size, content).await?;
        }
        let request = StackRequest { edition: stack.edition, digest: stack.digest.clone() };
        kept.push(session.client.keep_stack(&stack.name, &request).await?);
        if let Some(ours) = stack_edition(&stack.name).filter(|it| *it != stack.edition) {
            session.ui.warn(&format!(
                "`{}` is of edition {}, and arco {} uses edition {ours}: save it with the program of the server's version",
                stack.name,
                stack.edition,
                env!("CARGO_PKG_VERSION"),
            ));
        }
    }
    session.ui.progress_done();
    session.ui.list(&kept, |ui| show(&kept, ui));
    Ok(())
}

/// Standard input as a file in which one can go back.
fn standard_input() -> std::io::Result<File> {
    let mut file = tempfile::tempfile()?;
    std::io::copy(&mut std::io::stdin().lock(), &mut file)?;
    file.rewind()?;
    Ok(file)
}
