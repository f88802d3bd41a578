//! `arco apply`: a whole application as one file says; prints the difference and waits until it is there.

mod routes;

use super::args::WaitArgs;
use super::deploy;
use super::failure::Failure;
use super::given_file;
use super::reference::Named;
use super::session::Session;
use super::source::Asked;
use super::text;
use super::ui::Ui;
use super::wait::{self, Show};
use arco_api::wire::{ApplyChange, ApplyRequest, ApplyResult, ComponentApply, OperationDocument};
use arco_model::manifest::{ApplicationManifest, ComponentManifest};
use clap::Args;
use routes::Plan;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Most characters of a value in a line of the difference.
const LONGEST: usize = 80;

/// Flags of `apply`.
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// The file; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Application, when the file names none
    #[arg(long, value_name = "APP")]
    app: Option<String>,
    /// Print the difference and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete components that the file does not name
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Applies.
pub(crate) async fn run(args: &ApplyArgs, session: &Session<'_>) -> Result<(), Failure> {
    let manifest = read(&args.file)?;
    let application = match (&manifest.application, &args.app) {
        (Some(name), Some(flag)) if name.as_str() != flag => {
            let message = format!("the file describes `{name}`, `--app` says `{flag}`");
            return Err(Failure::usage("application_differs", message, "leave one of them out"));
        }
        (Some(name), _) => name.to_string(),
        (None, Some(flag)) => flag.clone(),
        (None, None) => {
            return Err(Failure::usage(
                "application_missing",
                "the file names no application",
                "add `application: NAME`, or give `--app NAME`",
            ));
        }
    };
    arco_model::name::ApplicationName::new(&application)
        .map_err(|it| Failure::usage("name_invalid", it.to_string(), "give another name"))?;
    let base = args.file.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut request = ApplyRequest { prune: args.prune, ..ApplyRequest::default() };
    for (name, component) in &manifest.components {
        let source = resolve(name.as_str(), component, base, session).await?;
        let manifest = ComponentManifest { routes: None, streams: None, ..component.clone() };
        request.components.insert(name.clone(), ComponentApply { source, manifest });
    }
    let mut result = session.client.apply(&session.tenant, &application, &request, args.dry_run).await?;
    if !session.ui.json() && !result.changes.is_empty() {
        difference(&result.changes, session.ui);
    }
    let mut ended = Vec::new();
    for operation in std::mem::take(&mut result.operations) {
        session.ui.note(&format!("{}/{}:", operation.application, operation.component));
        ended.push(wait::operation(operation, &args.wait, Show::Log, session).await?);
    }
    let mut routed = Vec::new();
    for (name, component) in &manifest.components {
        let pair = (application.as_str(), name.as_str());
        let plan = Plan::make(pair, component, session).await?;
        if !args.dry_run {
            plan.carry_out(pair, session).await?;
        }
        routed.extend(plan.changes);
    }
    if !session.ui.json() && (result.changes.is_empty() || !routed.is_empty()) {
        difference(&routed, session.ui);
    }
    if !routed.is_empty() && !args.dry_run {
        session.gateways_follow().await;
    }
    if !args.dry_run && !args.wait.detach && !session.ui.json() {
        let names: Vec<&str> = manifest.components.keys().map(|it| it.as_str()).collect();
        tell(&application, &names, &ended, session).await?;
    }
    result.changes.extend(routed);
    session.ui.document(&ApplyResult { changes: result.changes, operations: ended }, |_| {});
    Ok(())
}

/// What YAML says, in the same words as JSON: a choice with a value is `{choice: value}`, not `!choice value`.
pub(crate) fn from_yaml<T: serde::de::DeserializeOwned>(text: &str) -> serde_yaml_ng::Result<T> {
    serde_yaml_ng::with::singleton_map_recursive::deserialize(serde_yaml_ng::Deserializer::from_str(text))
}

/// The manifest of a file. Unknown keys are errors.
pub(crate) fn read(file: &Path) -> Result<ApplicationManifest, Failure> {
    from_yaml(&given_file::text(file)?).map_err(|it| {
        let advice = "`arco config schema` prints the JSON Schema of the file";
        Failure::usage("manifest_invalid", format!("`{}` is not a valid manifest: {it}", file.display()), advice)
    })
}

async fn resolve(
    name: &str,
    component: &ComponentManifest,
    base: &Path,
    session: &Session<'_>,
) -> Result<arco_model::source::Source, Failure> {
    let text = component.source.as_deref().unwrap_or(".");
    let relative = base.join(text);
    let text = if relative.is_dir() { relative.to_string_lossy().into_owned() } else { text.to_owned() };
    let mut asked = Asked::parse(&text, None).map_err(|mut failure| {
        failure.body.message = format!("component `{name}`: {}", failure.body.message);
        failure
    })?;
    // `file:` paths of a file are relative to it, too.
    if let Asked::Repository(path, _) = &mut asked
        && path.is_relative()
    {
        *path = base.join(&*path);
    }
    asked.resolve(&component.dir, session).await
}

fn difference(changes: &[ApplyChange], ui: &Ui) {
    if changes.is_empty() {
        ui.line("nothing changes");
    }
    for change in changes {
        difference_lines(change).iter().for_each(|it| ui.line(it));
    }
}

/// A line for each thing that differs: of a route, its parts.
fn difference_lines(change: &ApplyChange) -> Vec<String> {
    let place = format!("{} {}", change.component, change.field);
    match (change.action.as_str(), &change.before, &change.after) {
        ("create", ..) => vec![format!("+ {}", change.component)],
        ("delete", ..) => vec![format!("- {}", change.component)],
        (_, Value::Object(before), Value::Object(after)) => {
            let parts: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            let none = Value::Null;
            let part = |it: &&String| (before.get(*it).unwrap_or(&none), after.get(*it).unwrap_or(&none));
            let differing = parts.into_iter().filter(|it| part(it).0 != part(it).1);
            differing.map(|it| difference_line(&format!("{place}.{it}"), part(&it).0, part(&it).1)).collect()
        }
        (_, before, after) => vec![difference_line(&place, before, after)],
    }
}

fn difference_line(place: &str, before: &Value, after: &Value) -> String {
    let value = |it: &Value| match brief(it) {
        Value::Object(fields) if fields.is_empty() => String::new(),
        Value::String(text) => format!(": {}", text::one_line(&text)),
        other => format!(": {other}"),
    };
    match (before.is_null(), after.is_null()) {
        (true, _) => format!("+ {place}{}", value(after)),
        (_, true) => format!("- {place}{}", value(before)),
        _ => format!("~ {place}{} -> {}", value(before), value(after).trim_start_matches(": ")),
    }
}

/// A value for a line: texts of many lines, as certificates, are named and not shown.
fn brief(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains("-----BEGIN ") => Value::String("(PEM)".to_owned()),
        Value::String(text) if text.chars().count() > LONGEST => {
            Value::String(text.chars().take(LONGEST).chain(['…']).collect())
        }
        Value::Array(items) => items.iter().map(brief).collect(),
        Value::Object(fields) => fields.iter().map(|(name, it)| (name.clone(), brief(it))).collect(),
        other => other.clone(),
    }
}

/// What runs where now, a component after the other.
async fn tell(
    application: &str,
    names: &[&str],
    ended: &[OperationDocument],
    session: &Session<'_>,
) -> Result<(), Failure> {
    let mut first_url = None;
    for name in names {
        let named = Named { application: application.to_owned(), component: (*name).to_owned() };
        let operation = ended.iter().filter(|it| it.component == *name).max_by_key(|it| it.generation);
        let generation = operation.map_or(0, |it| it.generation);
        let component = deploy::settled(&named, generation, session).await?;
        deploy::state(&component, component.revision, session.ui);
        first_url = first_url.or(component.urls.into_iter().next());
    }
    deploy::local_hint(first_url.as_ref(), session.ui);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_read_like_a_diff() {
        let change = |action: &str, before: Value, after: Value| {
            let lines = difference_lines(&ApplyChange {
                component: "web".into(),
                action: action.into(),
                field: "env.A".into(),
                before,
                after,
            });
            lines.join(" | ")
        };
        assert_eq!(change("create", ().into(), ().into()), "+ web");
        assert_eq!(change("change", ().into(), "1".into()), "+ web env.A: 1");
        assert_eq!(change("change", 1.into(), 2.into()), "~ web env.A: 1 -> 2");
        assert_eq!(change("change", "1".into(), ().into()), "- web env.A: 1");
        // Of a route its parts, and no certificates.
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let route =
            |bytes: u64| serde_json::json!({"tls": {"client_ca": pem}, "max_body_bytes": bytes, "methods": ["GET"]});
        assert_eq!(change("change", route(1), route(2)), "~ web env.A.max_body_bytes: 1 -> 2");
        let added = change("change", ().into(), route(1));
        assert!(added.starts_with("+ web env.A: {") && added.contains(r#""client_ca":"(PEM)""#), "{added}");
        assert_eq!(change("change", ().into(), serde_json::json!({})), "+ web env.A");
        assert_eq!(change("change", ().into(), "a".repeat(100).into()), format!("+ web env.A: {}…", "a".repeat(80)));
    }

    #[test]
    fn a_manifest_with_an_unknown_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("arco.yaml");
        std::fs::write(&file, "application: demo\ncomponents:\n  web: {source: ., replicas: 2}\n").unwrap();
        assert_eq!(read(&file).unwrap().components.len(), 1);
        std::fs::write(&file, "components:\n  web: {sauce: .}\n").unwrap();
        let failure = read(&file).unwrap_err();
        assert!(failure.body.code == "manifest_invalid" && failure.body.message.contains("sauce"), "{failure:?}");
    }
}
