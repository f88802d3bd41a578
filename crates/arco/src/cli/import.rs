//! `arco import`: makes the applications of an archive. It looks first, never overwrites, and can be run again: what is
//! there already is not done twice, what was broken off goes on.

use super::archive::read::{Contents, Place, verify};
use super::archive::volume_path;
use super::args::WaitArgs;
use super::export::passphrase;
use super::failure::{Failure, exit};
use super::given_file::unreadable;
use super::session::Session;
use super::text;
use super::volume_content::Volume;
use super::wait::{self, Show};
use arco_api::wire::{
    CarriedApplication, CarriedComponent, ImportAction, ImportRequest, ImportedComponent, OperationDocument, SecretText,
};
use arco_model::spec::ComponentKind;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// Examples of the help.
pub(crate) const EXAMPLES: &str = "Examples:\n  arco import -f platform.arco --passphrase @passphrase.txt --dry-run\n  arco import -f platform.arco --passphrase @passphrase.txt\n  arco import shop -f platform.arco --passphrase @passphrase.txt\n\nNothing that is here is overwritten. Run it again after a failure: it goes on.";

/// Flags of `import`.
#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// Applications [default: all of the archive]
    #[arg(value_name = "APP")]
    applications: Vec<String>,
    /// The archive
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Where the passphrase of the export comes from
    #[arg(long, value_name = "@FILE|-")]
    passphrase: Option<String>,
    /// Check the archive, tell what would be done and what differs here, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave volumes empty
    #[arg(long)]
    without_volumes: bool,
    /// Start also what did not run when it was exported (jobs not)
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Report {
    archive: String,
    dry_run: bool,
    components: Vec<ImportedComponent>,
    notes: Vec<String>,
    blobs_sent: usize,
    bytes_sent: u64,
    volumes: usize,
    operations: Vec<OperationDocument>,
}

/// Imports.
pub(crate) async fn run(args: &ImportArgs, session: &Session<'_>) -> Result<(), Failure> {
    let shown = args.file.display();
    session.ui.progress(format!("checking {shown}"));
    let open = || File::open(&args.file).map_err(|it| unreadable(&shown, &it));
    let contents = verify(BufReader::with_capacity(1 << 20, open()?)).map_err(|why| {
        let advice = "copy or export it again; nothing was changed here";
        Failure::usage("archive_invalid", format!("`{shown}` is refused: {why}"), advice)
    })?;
    let key = match (&contents.manifest.seal, &args.passphrase) {
        (Some(seal), Some(from)) => {
            let passphrase = passphrase(from, session)?;
            let advice = "give the passphrase of the export";
            Some(seal.key(&passphrase).map_err(|why| Failure::new(exit::DENIED, "passphrase_wrong", why, advice))?)
        }
        (Some(_), None) => {
            let message = format!("`{shown}` holds values that are sealed with a passphrase");
            return Err(Failure::usage("passphrase_missing", message, "give it: `--passphrase @FILE` (or `-`)"));
        }
        (None, _) => None,
    };
    let chosen = chosen(&contents.manifest.applications, &args.applications)?;
    let requests: Vec<ImportRequest> = in_order(chosen)
        .into_iter()
        .map(|it| ImportRequest {
            archive: contents.id.clone(),
            key: key.clone().map(SecretText),
            application: it.clone(),
        })
        .collect();
    let mut report = Report { archive: contents.id.to_string(), dry_run: args.dry_run, ..Report::default() };
    look(&requests, session, &mut report).await?;
    if report.components.iter().any(|it| it.action == ImportAction::Differs) {
        tell(&report, session);
        let names: Vec<String> = report
            .components
            .iter()
            .filter(|it| it.action == ImportAction::Differs)
            .map(|it| format!("`{}/{}` ({})", it.application, it.component, it.fields.join(", ")))
            .collect();
        let message = format!("another one is here already: {}", names.join("; "));
        let advice = "nothing is overwritten and nothing was changed: `arco delete APP/COMPONENT` here first, or import other applications by name";
        return Err(Failure::new(exit::CONFLICT, "component_differs", message, advice));
    }
    if !args.dry_run {
        let whole = report.components.iter().all(|it| it.action == ImportAction::Same);
        report.components.clear();
        report.notes.clear();
        carry_out(args, &contents, &requests, whole, session, &mut report).await?;
    }
    session.ui.progress_done();
    tell(&report, session);
    session.ui.document(&report, |_| {});
    Ok(())
}

/// What would be done, without doing it.
async fn look(requests: &[ImportRequest], session: &Session<'_>, report: &mut Report) -> Result<(), Failure> {
    for request in requests {
        let name = request.application.name.as_str();
        session.ui.progress(format!("{name}: looking"));
        match session.client.import(&session.tenant, name, request, true).await {
            Ok(found) => {
                report.components.extend(found.components);
                report.notes.extend(found.notes);
            }
            // It may be bound to what the same archive brings.
            Err(error) if error.body().code == "binding_target_missing" => {
                report.notes.push(format!("`{name}`: {}", error.body().message));
                report.components.extend(request.application.components.iter().map(|it| ImportedComponent {
                    application: name.to_owned(),
                    component: it.name.to_string(),
                    action: ImportAction::Create,
                    fields: Vec::new(),
                }));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn carry_out(
    args: &ImportArgs,
    contents: &Contents,
    requests: &[ImportRequest],
    whole: bool,
    session: &Session<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let applications: Vec<&CarriedApplication> = requests.iter().map(|it| &it.application).collect();
    if !whole {
        send_blobs(args, contents, &applications, session, report).await?;
    }
    let mut started = Vec::new();
    for request in requests {
        let name = request.application.name.as_str();
        session.ui.progress(format!("{name}: settings"));
        let result = session.client.import(&session.tenant, name, request, false).await?;
        for made in result.components.iter().filter(|it| it.action != ImportAction::Same) {
            let carried = request.application.components.iter().find(|it| it.name.as_str() == made.component);
            let Some(carried) = carried.filter(|it| it.revision.is_some()) else { continue };
            let pair = (name, carried.name.as_str());
            if contents.manifest.volumes && !args.without_volumes {
                report.volumes += fill_volumes(args, contents, pair, carried, session).await?;
            }
            let runs = (carried.runs || args.start) && carried.spec.kind != ComponentKind::Job;
            // Also a stop says that it is whole now.
            let verb = if runs { "start" } else { "stop" };
            started.push(session.client.power(&session.tenant, pair, verb).await?);
        }
        report.components.extend(result.components);
        report.notes.extend(result.notes);
    }
    // All of them are told to start before any is waited for: they may need each other.
    let mut failed = None;
    for operation in started {
        session.ui.progress(format!("{}/{}: starting", operation.application, operation.component));
        match wait::operation(operation, &args.wait, Show::Progress, session).await {
            Ok(ended) => report.operations.push(ended),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    match failed {
        Some(failure) => {
            tell(report, session);
            Err(failure)
        }
        None => Ok(()),
    }
}

/// Blobs that are not here yet.
async fn send_blobs(
    args: &ImportArgs,
    contents: &Contents,
    applications: &[&CarriedApplication],
    session: &Session<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let components = applications.iter().flat_map(|it| &it.components);
    let wanted: BTreeSet<_> = components.flat_map(|it| &it.blobs).map(|it| &it.digest).collect();
    for digest in wanted {
        let Some(&(offset, size)) = contents.blobs.get(digest) else { continue };
        if session.client.has_upload(&session.tenant, digest.as_str()).await? {
            continue;
        }
        session.ui.progress(format!("sending {digest}: {} MB", size >> 20));
        let failed = |it: std::io::Error| {
            Failure::local(format!("failed to read blob {digest} of the archive: {it}"), "check the disk it lies on")
        };
        let mut file = tokio::fs::File::open(&args.file).await.map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).await.map_err(failed)?;
        session.client.put_blob(&session.tenant, digest.as_str(), size, file.take(size)).await?;
        report.blobs_sent += 1;
        report.bytes_sent += size;
    }
    Ok(())
}

async fn fill_volumes(
    args: &ImportArgs,
    contents: &Contents,
    pair: (&str, &str),
    carried: &CarriedComponent,
    session: &Session<'_>,
) -> Result<usize, Failure> {
    let mut filled = 0;
    for spec in carried.volumes() {
        session.ui.progress(format!("{}/{}: volume {}", pair.0, pair.1, spec.name));
        let path = volume_path(pair.0, pair.1, spec.name.as_str());
        let places = contents.volumes.get(&path).map(Vec::as_slice).unwrap_or_default();
        let numbered = |number: usize| places.get(number).map(|it| piece(args, *it)).transpose();
        Volume { component: pair, spec }.write(session, numbered).await?;
        filled += 1;
    }
    Ok(filled)
}

fn piece(args: &ImportArgs, (offset, size): Place) -> Result<Vec<u8>, Failure> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&args.file)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|it| {
        Failure::local(format!("failed to read `{}`: {it}", args.file.display()), "check the disk it lies on")
    })
}

fn tell(report: &Report, session: &Session<'_>) {
    let ui = session.ui;
    if !ui.json() {
        for it in &report.components {
            let reference = format!("{}/{}", it.application, it.component);
            let said = match (it.action, report.dry_run) {
                (ImportAction::Create, true) => "would be made",
                (ImportAction::Create, false) => "made",
                (ImportAction::Resume, true) => "is half here: would go on",
                (ImportAction::Resume, false) => "was half here: made whole",
                (ImportAction::Same, _) => "is here as in the archive: nothing to do",
                (ImportAction::Differs, _) => "is another one here",
            };
            ui.line(&format!("{reference}: {said}"));
        }
    }
    report.notes.iter().for_each(|it| ui.note(&format!("note: {}", text::one_line(it))));
}

/// The named applications, or all.
fn chosen<'a>(all: &'a [CarriedApplication], names: &[String]) -> Result<Vec<&'a CarriedApplication>, Failure> {
    for name in names {
        if !all.iter().any(|it| it.name.as_str() == name) {
            let holds: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
            let message = format!("the archive holds no application `{}`", text::clean(name));
            return Err(Failure::new(exit::NOT_FOUND, "not_found", message, format!("it holds {}", holds.join(", "))));
        }
    }
    Ok(all.iter().filter(|it| names.is_empty() || names.iter().any(|name| it.name.as_str() == name)).collect())
}

/// Applications after those that they are bound to, as far as that is possible.
fn in_order(mut left: Vec<&CarriedApplication>) -> Vec<&CarriedApplication> {
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let needs = |it: &CarriedApplication| {
            it.components.iter().flat_map(|it| &it.spec.bindings).any(|binding| {
                binding.application != it.name && left.iter().any(|other| other.name == binding.application)
            })
        };
        let at = left.iter().position(|it| !needs(it)).unwrap_or(0);
        ordered.push(left.remove(at));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(name: &str, needs: &[&str]) -> CarriedApplication {
        let bindings: Vec<_> =
            needs.iter().map(|it| serde_json::json!({ "application": it, "component": "web", "alias": "A" })).collect();
        serde_json::from_value(serde_json::json!({
            "name": name, "driver": "local", "domain": "x", "certificates": [],
            "components": [{
                "name": "web", "generation": 1, "runs": true, "revision": null, "secrets": [], "routes": [],
                "streams": [], "blobs": [],
                "spec": { "source": { "kind": "image", "reference": "x" }, "bindings": bindings },
            }],
        }))
        .unwrap()
    }

    #[test]
    fn applications_come_after_what_they_are_bound_to() {
        type Row<'a> = (&'a [(&'a str, &'a [&'a str])], &'a [&'a str]);
        let rows: [Row<'_>; 4] = [
            (&[("a", &["b"]), ("b", &["c"]), ("c", &[])], &["c", "b", "a"]),
            (&[("a", &["a", "elsewhere"]), ("b", &[])], &["a", "b"]),
            (&[("a", &["b"]), ("b", &["a"]), ("c", &[])], &["c", "a", "b"]),
            (&[], &[]),
        ];
        for (given, expected) in rows {
            let all: Vec<_> = given.iter().map(|(name, needs)| application(name, needs)).collect();
            let found: Vec<_> = in_order(all.iter().collect()).iter().map(|it| it.name.as_str()).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_application_that_is_not_there_is_named() {
        let all = [application("a", &[]), application("b", &[])];
        assert_eq!(chosen(&all, &[]).unwrap().len(), 2);
        assert_eq!(chosen(&all, &["b".to_owned()]).unwrap()[0].name.as_str(), "b");
        let failure = chosen(&all, &["c".to_owned()]).unwrap_err();
        assert!(failure.status == exit::NOT_FOUND && failure.body.advice.contains("a, b"), "{failure:?}");
    }
}
