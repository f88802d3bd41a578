//! `arco adopt`: workloads of a namespace that something else made, as components; shown first, made on command.
//!
//! What must hold: the namespace is read from here, with the rights of whoever asks, and nothing in it is changed: the
//! components run beside what they were made after, until a person removes that. A component that is there already is
//! never made another one.

use super::args::WaitArgs;
use super::failure::{Failure, exit};
use super::session::Session;
use super::text;
use super::ui::Ui;
use super::wait::{self, Show};
use arco_api::wire::{ApplyRequest, ComponentApply};
use arco_config::KubernetesConfig;
use arco_model::manifest::ComponentManifest;
use arco_model::source::Source;
use arco_orchestrator_kubernetes::adopt::{self, Adopted, Found};
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Flags of `adopt`.
#[derive(Args, Debug)]
pub(crate) struct AdoptArgs {
    /// Namespace whose workloads are looked at
    #[arg(long, value_name = "NAME")]
    namespace: String,
    /// Application that the components belong to
    #[arg(long, value_name = "APP")]
    app: String,
    /// File that names the cluster and your own account [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Make the components; without it they are only shown
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Adopts.
pub(crate) async fn run(args: &AdoptArgs, session: &Session<'_>) -> Result<(), Failure> {
    arco_model::name::ApplicationName::new(&args.app)
        .map_err(|it| Failure::usage("name_invalid", it.to_string(), "give another name"))?;
    let kubeconfig = args.kubeconfig.clone().unwrap_or_default();
    let config = KubernetesConfig { kubeconfig, ..KubernetesConfig::default() };
    let mut found = adopt::read(&config, &args.namespace).await.map_err(|it| {
        let place = text::clean(&args.namespace);
        let advice = format!(
            "`--kubeconfig FILE` names cluster and account; see whether it may: `kubectl get deployments -n {place}`"
        );
        Failure::new(exit::FAILED, "cluster_unreadable", it.to_string(), advice)
    })?;
    classes_of_here(&mut found, session).await?;
    let request = request(&found);
    if !args.yes {
        // What the platform would refuse is told with the rest, and first tried.
        let refused = if request.components.is_empty() { Ok(()) } else { fits(&request, args, session).await };
        session.ui.document(&found, |ui| show(&found, ui));
        if refused.is_ok() && !request.components.is_empty() {
            session.ui.note("nothing was changed; `--yes` makes the components");
        }
        return refused;
    }
    if request.components.is_empty() {
        let message = format!("nothing in the namespace `{}` can become a component", text::clean(&args.namespace));
        return Err(Failure::new(exit::NOT_FOUND, "not_found", message, "without `--yes` it is said why"));
    }
    fits(&request, args, session).await?;
    let result = session.client.apply(&session.tenant, &args.app, &request, false).await?;
    let (nothing_new, mut ended) = (result.operations.is_empty(), Vec::new());
    for operation in result.operations {
        session.ui.note(&format!("{}/{}:", operation.application, operation.component));
        ended.push(wait::operation(operation, &args.wait, Show::Log, session).await?);
    }
    session.ui.document(&ended, |ui| {
        let place = &args.namespace;
        if nothing_new {
            ui.line(&format!("what is in `{place}` was adopted already; nothing was changed"));
            return;
        }
        ui.line(&format!("adopted; what was in `{place}` still runs: remove it when the components serve"));
    });
    Ok(())
}

/// Takes away classes of volumes that are not here.
async fn classes_of_here(found: &mut Found, session: &Session<'_>) -> Result<(), Failure> {
    if !found.components.values().any(|it| it.component.volumes.iter().any(|it| it.class.is_some())) {
        return Ok(());
    }
    let here = session.client.volume_classes().await?;
    let here: BTreeSet<&str> = here.iter().map(|it| it.class.as_str()).collect();
    for adopted in found.components.values_mut() {
        for volume in &mut adopted.component.volumes {
            if let Some(class) = volume.class.take_if(|it| !here.contains(it.as_str())) {
                adopted
                    .lost
                    .push(format!("class `{class}` of volume `{}`: not here, the platform chooses", volume.name));
            }
        }
    }
    Ok(())
}

/// Whether the platform takes all of it, and whether all of it is new.
async fn fits(request: &ApplyRequest, args: &AdoptArgs, session: &Session<'_>) -> Result<(), Failure> {
    let tried = session.client.apply(&session.tenant, &args.app, request, true).await?;
    let Some(other) = tried.changes.iter().find(|it| it.action != "create") else { return Ok(()) };
    let message = format!("component `{}/{}` is there already, and another one", args.app, other.component);
    Err(Failure::new(exit::CONFLICT, "exists", message, "give another `--app`, or delete that component first"))
}

fn request(found: &Found) -> ApplyRequest {
    let component = |it: &Adopted| {
        let image = it.component.source.as_deref().unwrap_or_default();
        let reference = image.strip_prefix("image:").unwrap_or(image).to_owned();
        ComponentApply {
            source: Source::Image { reference },
            manifest: ComponentManifest { source: None, ..it.component.clone() },
        }
    };
    let components = found.components.iter().map(|(name, it)| (name.clone(), component(it))).collect();
    ApplyRequest { components, prune: false }
}

fn show(found: &Found, ui: &Ui) {
    for (name, it) in &found.components {
        let component = &it.component;
        let outside = |outer| if outer { " (outside)" } else { "" };
        let ports: Vec<_> = component.ports.iter().map(|it| format!("{}{}", it.port, outside(it.outer))).collect();
        let ports = if ports.is_empty() { String::new() } else { format!(", ports {}", ports.join(" ")) };
        let (source, replicas) = (component.source.as_deref().unwrap_or_default(), component.replicas.unwrap_or(1));
        ui.line(&format!("+ {name}: from {}, {}, {replicas} instances{ports}", it.from, text::one_line(source)));
        it.lost.iter().for_each(|it| ui.line(&format!("    not adopted: {}", text::one_line(it))));
    }
    found.left.iter().for_each(|it| ui.line(&format!("- {}", text::one_line(it))));
    if found.components.is_empty() && found.left.is_empty() {
        ui.line("there is nothing to adopt");
    }
}
