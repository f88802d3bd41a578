//! `arco cluster image`: a container image of this very program, made without a base image.
//!
//! What must hold: the same program on the same machine gives the same digest. Where the layer's files come from is in
//! [`root`], how they are written in [`layout`], how they reach a registry in [`push`].

mod layout;
mod push;
mod root;

use super::super::whole_file;
use super::Failure;
use super::Ui;
use clap::{Args, Subcommand};
use layout::Image;
use push::{Access, Registry};
use serde::Serialize;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Name of the image where it is loaded from a file.
pub(super) const DEFAULT_NAME: &str = concat!("arco.local/arco:", env!("CARGO_PKG_VERSION"));

/// Where the image goes.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Write it to a file: an OCI layout, for `ctr images import`, `docker load`, `skopeo copy oci-archive:`
    #[command(after_help = "Example:\n  arco cluster image save arco.tar && ctr -n k8s.io images import arco.tar")]
    Save {
        /// File, or `-` for standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Name that it gets where it is loaded
        #[arg(long, value_name = "REF", default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Push it to a registry
    #[command(
        after_help = "Example:\n  arco cluster image push registry.example.com/platform/arco:1 --username ci --password @token.txt"
    )]
    Push(PushArgs),
}

/// Flags of `push`.
#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    /// Where to: HOST[:PORT]/NAME[:TAG]
    #[arg(value_name = "REF")]
    reference: String,
    /// Person that pushes [default: the login of `docker login` for this registry]
    #[arg(long, value_name = "NAME", requires = "password")]
    username: Option<String>,
    /// Password or token: a file, or standard input
    #[arg(long, value_name = "@FILE|-", requires = "username")]
    password: Option<String>,
    /// Certificate authority of the registry, beside those of this machine
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Speak HTTP without TLS; loopback addresses always do
    #[arg(long)]
    plain_http: bool,
}

#[derive(Serialize)]
struct Made<'a> {
    reference: &'a str,
    digest: &'a str,
    size_bytes: u64,
}

/// Runs.
pub(crate) async fn run(command: &ImageCommand, ui: &Ui) -> Result<(), Failure> {
    ui.progress("packing this program");
    let files = root::files().map_err(|it| {
        Failure::local(
            format!("packing this program failed: {it:#}"),
            "the program and its libraries must be readable; run it from the file that you installed",
        )
    })?;
    let image = Image::of(&files)
        .map_err(|it| Failure::local(format!("writing the image failed: {it}"), "check free memory and disk"))?;
    let reference = match command {
        ImageCommand::Save { file, name } => {
            whole_file::write(file, |mut out| image.write_layout(&mut out, name))?;
            name
        }
        ImageCommand::Push(args) => {
            ui.progress(format!("pushing to {}", args.reference));
            push(&image, args).await?;
            &args.reference
        }
    };
    ui.progress_done();
    if matches!(command, ImageCommand::Save { file, .. } if file == Path::new("-")) {
        return Ok(());
    }
    let made = Made { reference, digest: image.digest().as_str(), size_bytes: image.size_bytes() };
    ui.document(&made, |ui| {
        ui.line(&format!("{}@{} ({:.1} MB)", made.reference, made.digest, made.size_bytes as f64 / 1e6));
    });
    Ok(())
}

async fn push(image: &Image, args: &PushArgs) -> Result<(), Failure> {
    let registry = Registry::of(&args.reference, args.plain_http)
        .map_err(|it| Failure::usage("reference_invalid", it, "write HOST[:PORT]/NAME[:TAG]"))?;
    let access = match (&args.username, &args.password) {
        (Some(name), Some(source)) => Access::Login { name: name.clone(), password: password(source)? },
        _ => push::docker_login(registry.host()).unwrap_or(Access::Anonymous),
    };
    let ca = match &args.ca {
        None => None,
        Some(file) => Some(std::fs::read(file).map_err(|it| {
            Failure::usage(
                "ca_unreadable",
                format!("{}: {it}", file.display()),
                "give the PEM file of the registry's CA",
            )
        })?),
    };
    registry.push(image, &access, ca.as_deref()).await
}

fn password(source: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if source == "-" {
        std::io::stdin().lock().take(64 << 10).read_to_string(&mut text)
    } else if let Some(file) = source.strip_prefix('@') {
        std::fs::File::open(file).and_then(|it| it.take(64 << 10).read_to_string(&mut text))
    } else {
        return Err(Failure::usage(
            "password_in_arguments",
            "a password on the command line shows in process lists",
            "give `--password @FILE` or `--password -` and standard input",
        ));
    };
    read.map_err(|it| Failure::usage("password_unreadable", format!("{source}: {it}"), "check the file"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
