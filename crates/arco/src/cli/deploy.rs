//! `arco deploy`: a source becomes a revision that answers, and the command waits for it.

use super::args::WaitArgs;
use super::failure::Failure;
use super::reference::Named;
use super::session::Session;
use super::source::Asked;
use super::spec_flags::SpecFlags;
use super::ui::Ui;
use super::wait::{self, Show};
use arco_api::wire::{ComponentDocument, DeployRequest, OperationDocument};
use arco_model::name::{ApplicationName, ComponentName};
use arco_model::status::Status;
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// Shown below the flags.
pub(crate) const EXAMPLES: &str =
    "SOURCE is a folder or a `file:` Git URL (both read here and sent), a Git URL that the platform
fetches (https, http, ssh, git; `#ref` or --ref), or `image:REFERENCE`. What `.gitignore` and
`.arcoignore` name does not go along.

Examples:
  arco deploy . --app demo
  arco deploy https://example.com/shop.git#main --app shop --replicas 2 --env LEVEL=info
  arco deploy ./api --app shop --port 9000 --bind shop/store --volume files:/var/files:2048

A second deploy keeps what its flags do not name.";

/// Flags of `arco deploy`.
#[derive(Args, Debug)]
pub(crate) struct DeployArgs {
    /// Folder, `file:` URL, Git URL, or `image:REFERENCE`
    source: String,
    /// Application; made when there is none
    #[arg(long, value_name = "APP")]
    app: String,
    /// Component [default: the base name of the source]
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Branch, tag or commit
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Folder inside the source that is built
    #[arg(long, value_name = "SUBDIR", default_value = "", hide_default_value = true)]
    dir: String,
    #[command(flatten)]
    spec: SpecFlags,
    /// Run every step of the build again, with empty caches
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What a deploy came to.
#[derive(Debug, PartialEq, Serialize)]
struct Deployed<'a> {
    application: &'a str,
    component: &'a str,
    revision: Option<u64>,
    operation: &'a str,
    status: Status,
    urls: &'a [String],
    build_ms: Option<u64>,
    rollout_ms: Option<u64>,
}

/// Deploys.
pub(crate) async fn run(args: &DeployArgs, session: &Session<'_>) -> Result<(), Failure> {
    let asked = Asked::parse(&args.source, args.reference.as_deref())?;
    let named = named(args, &asked)?;
    let patch = args.spec.patch(&named.application, session.ui)?;
    let source = asked.resolve(&args.dir, session).await?;
    let request = DeployRequest { source, patch, no_cache: args.no_cache };
    let started = session.client.deploy(&session.tenant, named.pair(), &request).await?;
    let ended = wait::operation(started, &args.wait, Show::Log, session).await?;
    let component = if args.wait.detach {
        session.client.component(&session.tenant, named.pair()).await?
    } else {
        settled(&named, ended.generation, session).await?
    };
    report(&ended, &component, args.wait.detach, session);
    Ok(())
}

fn named(args: &DeployArgs, asked: &Asked) -> Result<Named, Failure> {
    let application = ApplicationName::new(&args.app)
        .map_err(|it| Failure::usage("name_invalid", it.to_string(), "give another `--app`"))?;
    let component = match &args.component {
        Some(component) => component.clone(),
        None => asked.component_name().ok_or_else(|| {
            let message = format!("`{}` gives no name for the component", args.source);
            Failure::usage("component_missing", message, "give `--component NAME`")
        })?,
    };
    let component = ComponentName::new(component)
        .map_err(|it| Failure::usage("name_invalid", it.to_string(), "give another `--component`"))?;
    Ok(Named { application: application.to_string(), component: component.to_string() })
}

/// The component once its status speaks of `generation`: the operation's end may be seen a moment before.
pub(crate) async fn settled(
    named: &Named,
    generation: u64,
    session: &Session<'_>,
) -> Result<ComponentDocument, Failure> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let component = session.client.component(&session.tenant, named.pair()).await?;
        let moving =
            matches!(component.status, Status::Undeployed | Status::Building | Status::Starting | Status::Upgrading);
        if (component.observed_generation >= generation && !moving) || Instant::now() >= deadline {
            return Ok(component);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn report(operation: &OperationDocument, component: &ComponentDocument, detached: bool, session: &Session<'_>) {
    let deployed = Deployed {
        application: &component.application,
        component: &component.component,
        revision: operation.revision,
        operation: &operation.id,
        status: component.status,
        urls: &component.urls,
        build_ms: operation.build_ms,
        rollout_ms: operation.rollout_ms,
    };
    session.ui.document(&deployed, |ui| {
        let what = format!("{}/{}", deployed.application, deployed.component);
        if detached {
            return ui.line(&format!("{what}  operation {}", operation.id));
        }
        state(component, operation.revision, ui);
    });
    local_hint(component.urls.first(), session.ui);
}

/// How a component is, and where it is reached.
pub(crate) fn state(component: &ComponentDocument, revision: Option<u64>, ui: &Ui) {
    let revision = revision.map(|it| format!(" (revision {it})")).unwrap_or_default();
    let (application, name) = (&component.application, &component.component);
    ui.line(&format!("{application}/{name} is {}{revision}", component.status.as_str()));
    component.urls.iter().for_each(|it| ui.line(it));
}

/// Says how a URL that others cannot open becomes one for everybody.
pub(crate) fn local_hint(url: Option<&String>, ui: &Ui) {
    if let Some(url) = url.filter(|it| is_local(it)) {
        ui.note(&hint(url));
    }
}

/// Whether a URL can be opened on this machine alone (RFC 6761 §6.3).
fn is_local(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or("");
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost" || host.ends_with(".localhost")
}

/// How such a URL becomes one for everybody.
pub(crate) fn hint(url: &str) -> String {
    format!(
        "hint: {url} opens on this machine only; for others start the server with `--domain NAME`, where *.NAME leads to this machine"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_localhost_are_local() {
        for (url, local) in [
            ("http://web-demo.localhost", true),
            ("http://web-demo.spine.localhost:8080/", true),
            ("http://web-demo.example.com", false),
            ("http://localhost.example.com", false),
        ] {
            assert_eq!(is_local(url), local, "{url}");
        }
    }
}
