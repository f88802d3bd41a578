//! `arco export`: applications with everything that belongs to them, in one file that `arco import` makes them from.

use super::archive::{Manifest, PIECE, Seal, Writer, volume_path};
use super::failure::{Failure, exit};
use super::session::Session;
use super::text;
use super::volume_content::Volume;
use arco_api::wire::{CarriedApplication, ExportRequest, SecretText};
use arco_model::artifact::Digest;
use arco_store::clock;
use clap::Args;
use futures_util::StreamExt as _;
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Examples of the help.
pub(crate) const EXAMPLES: &str = "Examples:\n  arco export -f platform.arco --passphrase @passphrase.txt\n  arco export shop blog -f two.arco --passphrase - < passphrase.txt\n\nThe passphrase seals secrets, private keys and password hashes. Images and the content of volumes are not sealed.\nWhat runs goes on running; `arco stop` it first when the content of its volumes must be of one moment.";

/// Fewest characters of a passphrase.
const PASSPHRASE_MIN: usize = 12;

/// Flags of `export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// Applications [default: all of the tenant]
    #[arg(value_name = "APP")]
    applications: Vec<String>,
    /// The file to write, which must not be there; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Where the passphrase comes from; needed when there are secrets, private keys or passwords
    #[arg(long, value_name = "@FILE|-")]
    passphrase: Option<String>,
    /// Leave the content of volumes out
    #[arg(long)]
    without_volumes: bool,
}

/// What was written.
#[derive(Debug, Default, Serialize)]
struct Report {
    file: String,
    applications: Vec<String>,
    components: usize,
    blobs: usize,
    volumes: usize,
    bytes: u64,
    notes: Vec<String>,
}

/// Exports.
pub(crate) async fn run(args: &ExportArgs, session: &Session<'_>) -> Result<(), Failure> {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && session.ui.json() {
        let advice = "give `-f FILE`, or leave `-o json` out";
        return Err(Failure::usage(
            "file_invalid",
            "standard output cannot be both the archive and the report",
            advice,
        ));
    }
    if !to_stdout && args.file.exists() {
        let message = format!("`{}` exists already", args.file.display());
        return Err(Failure::new(exit::CONFLICT, "file_exists", message, "name another file, or move that one away"));
    }
    let sealing = match &args.passphrase {
        Some(from) => Some(Seal::new(&passphrase(from, session)?).map_err(|it| Failure::local(it, "try again"))?),
        None => None,
    };
    let mut names = args.applications.clone();
    if names.is_empty() {
        names = session.client.applications(&session.tenant).await?.into_iter().map(|it| it.application).collect();
    }
    names.sort();
    names.dedup();
    if names.is_empty() {
        let message = format!("tenant `{}` has no application", session.tenant);
        return Err(Failure::new(exit::NOT_FOUND, "not_found", message, "see `arco list`, or give `--tenant NAME`"));
    }
    let (seal, key) = sealing.unzip();
    let request = ExportRequest { key: key.map(SecretText) };
    let mut applications = Vec::new();
    for name in &names {
        session.ui.progress(format!("{name}: settings"));
        applications.push(session.client.export(&session.tenant, name, &request).await?);
    }
    let platform = session.client.whoami().await?.version;
    let manifest = Manifest::new(&platform, clock::now().0, seal, !args.without_volumes, applications);
    let mut report = Report {
        file: args.file.display().to_string(),
        applications: names,
        notes: notes(&manifest, &session.tenant),
        ..Report::default()
    };
    if to_stdout {
        write(std::io::stdout().lock(), &manifest, session, &mut report).await?;
    } else {
        let folder = args.file.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |it: std::io::Error| {
            let message = format!("`{}` cannot be written: {it}", args.file.display());
            Failure::local(message, "check the folder and the room on its disk")
        };
        // Mode 0600, and gone when this fails.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        write(file.as_file_mut(), &manifest, session, &mut report).await?;
        file.as_file().sync_all().map_err(failed)?;
        report.bytes = file.as_file().metadata().map_err(failed)?.len();
        file.persist_noclobber(&args.file).map_err(|it| failed(it.error))?;
    }
    session.ui.progress_done();
    report.notes.iter().for_each(|it| session.ui.note(&format!("note: {}", text::one_line(it))));
    let done = format!(
        "{} applications, {} components, {} blobs, {} volumes in {}",
        report.applications.len(),
        report.components,
        report.blobs,
        report.volumes,
        report.file
    );
    if to_stdout {
        session.ui.note(&done);
    } else {
        session.ui.document(&report, |ui| ui.line(&done));
    }
    Ok(())
}

async fn write(
    out: impl Write,
    manifest: &Manifest,
    session: &Session<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |it: std::io::Error| {
            Failure::local(
                format!("failed to write {what} into the archive: {it}"),
                "check the room on the disk, then export again",
            )
        }
    };
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, out), manifest).map_err(failed("the manifest"))?;
    for (digest, size) in manifest.blobs() {
        session.ui.progress(format!("{digest}: {} MB", size >> 20));
        copy_blob(&mut writer, digest, size, session).await?;
        report.blobs += 1;
    }
    for application in &manifest.applications {
        for component in &application.components {
            report.components += 1;
            let pair = (application.name.as_str(), component.name.as_str());
            for (spec, place) in component.contents().filter(|_| manifest.volumes) {
                let path = volume_path(pair.0, pair.1, spec, place);
                session.ui.progress(path.clone());
                let mut piece = Vec::with_capacity(PIECE);
                let mut keep = |mut bytes: &[u8]| -> Result<(), Failure> {
                    while !bytes.is_empty() {
                        let (now, rest) = bytes.split_at(bytes.len().min(PIECE - piece.len()));
                        piece.extend_from_slice(now);
                        bytes = rest;
                        if piece.len() == PIECE {
                            writer.volume_piece(&path, &piece).map_err(failed(&path))?;
                            piece.clear();
                        }
                    }
                    Ok(())
                };
                Volume { component: pair, spec, place }.read(session, &mut keep).await?;
                if !piece.is_empty() {
                    writer.volume_piece(&path, &piece).map_err(failed(&path))?;
                }
                report.volumes += 1;
            }
        }
    }
    writer.finish().map(drop).map_err(failed("its end"))
}

async fn copy_blob<W: Write>(
    writer: &mut Writer<W>,
    digest: &Digest,
    size: u64,
    session: &Session<'_>,
) -> Result<(), Failure> {
    let failed = |it: std::io::Error| {
        Failure::local(format!("failed to carry blob {digest}: {it}"), "check the room on the disk, then export again")
    };
    let content = session.client.blob(&session.tenant, digest.as_str()).await?;
    let mut content = std::pin::pin!(content);
    writer.blob(digest, size).map_err(failed)?;
    while let Some(bytes) = content.next().await {
        writer.bytes(&bytes?).map_err(failed)?;
    }
    writer.blob_end(digest).map_err(failed)
}

/// What somebody should know who relies on the archive.
fn notes(manifest: &Manifest, tenant: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let carried = |it: &CarriedApplication, name: &str| it.name.as_str() == name;
    for application in &manifest.applications {
        for component in &application.components {
            let reference = format!("{}/{}", application.name, component.name);
            let mut volumes = component.volumes().peekable();
            if volumes.peek().is_some() && !manifest.volumes {
                notes.push(format!("the content of the volumes of `{reference}` is not in the archive"));
            } else if volumes.peek().is_some() && component.runs {
                notes.push(format!("`{reference}` ran while its volumes were read: what it wrote meanwhile may be half there; `arco stop` it first for content of one moment"));
            }
            let outside = component.spec.bindings.iter().map(|it| it.application.as_str());
            let mut outside: Vec<_> =
                outside.filter(|it| !manifest.applications.iter().any(|carry| carried(carry, it))).collect();
            outside.dedup();
            notes.extend(
                outside
                    .iter()
                    .map(|it| format!("`{reference}` is bound to application `{it}`, which is not in the archive")),
            );
        }
    }
    notes.push(format!(
        "credentials for Git repositories, contexts of people and the quota of tenant `{tenant}` are not carried"
    ));
    notes
}

/// The passphrase of `@FILE` or `-`; never one that stands on the command line.
pub(crate) fn passphrase(from: &str, session: &Session<'_>) -> Result<String, Failure> {
    let advice = "give `--passphrase @FILE`, or `-` for standard input";
    if from != "-" && !from.starts_with('@') {
        let message = "a passphrase on the command line shows in process lists and shell history";
        return Err(Failure::usage("passphrase_invalid", message, advice));
    }
    let mut read = super::secret::read(&[format!("passphrase={from}")], session.ui)?;
    let value = read.remove("passphrase").flatten().map(|it| it.0).unwrap_or_default();
    if value.trim().chars().count() < PASSPHRASE_MIN {
        let message = format!("a passphrase has at least {PASSPHRASE_MIN} characters");
        return Err(Failure::usage("passphrase_invalid", message, "`openssl rand -base64 24 > FILE` makes a good one"));
    }
    Ok(value)
}
