//! `arco list`, `status`, `ps`.

use super::failure::Failure;
use super::reference::Reference;
use super::session::Session;
use super::text;
use super::ui::Ui;
use arco_api::wire::{ComponentDocument, InstanceUsage, RunsDocument};
use arco_model::source::Source;
use arco_model::spec::ComponentKind;
use arco_model::status::Status;
use serde::Serialize;

/// Lists applications and components.
pub(crate) async fn list(session: &Session<'_>) -> Result<(), Failure> {
    let applications = session.client.applications(&session.tenant).await?;
    session.ui.list(&applications, |ui| {
        if applications.is_empty() {
            return ui.note("nothing is deployed yet; try `arco deploy . --app demo`");
        }
        let mut rows = Vec::new();
        for application in &applications {
            if application.components.is_empty() {
                rows.push([&application.application, "-", "-", "-", "-"].map(str::to_owned).to_vec());
            }
            for component in &application.components {
                let url = component.urls.first().map_or("-", String::as_str);
                let ready = if waits(component.kind) {
                    format!("{}/{}", component.ready_replicas, component.replicas)
                } else {
                    "-".to_owned()
                };
                let columns =
                    [&application.application, component.component.as_str(), component.status.as_str(), &ready, url];
                rows.push(columns.map(str::to_owned).to_vec());
            }
        }
        ui.table(&["APPLICATION", "COMPONENT", "STATUS", "READY", "URL"], rows);
    });
    Ok(())
}

/// An application with the whole truth about each component.
#[derive(Serialize)]
struct ApplicationStatus {
    application: String,
    components: Vec<ComponentDocument>,
}

/// Shows one component, or every component of an application that has several.
pub(crate) async fn status(reference: &Reference, session: &Session<'_>) -> Result<(), Failure> {
    let mut components = Vec::new();
    for named in session.components(reference).await? {
        components.push(session.client.component(&session.tenant, named.pair()).await?);
    }
    if let [component] = &components[..] {
        session.ui.document(component, |ui| show(component, ui));
        return Ok(());
    }
    let status = ApplicationStatus { application: reference.application.clone(), components };
    session.ui.document(&status, |ui| {
        if status.components.is_empty() {
            ui.line(&format!("application {} has no component", status.application));
        }
        for (at, component) in status.components.iter().enumerate() {
            if at > 0 {
                ui.line("");
            }
            show(component, ui);
        }
    });
    Ok(())
}

fn show(component: &ComponentDocument, ui: &Ui) {
    let field = |name: &str, value: &str| ui.line(&format!("{:<11}{}", format!("{name}:"), text::one_line(value)));
    ui.line(&format!("{}/{}", component.application, component.component));
    field("status", component.status.as_str());
    for (name, value) in [("reason", &component.reason), ("advice", &component.advice)] {
        if !value.is_empty() {
            field(name, value);
        }
    }
    if waits(component.spec.kind) {
        field("ready", &ready(component));
    }
    if let (Some(asked), Some(scaling)) = (&component.spec.autoscaling, &component.scaling) {
        let why = scaling.problem.as_ref().map_or(scaling.reason.clone(), |it| format!("load is not followed: {it}"));
        let by = asked.describe();
        field("scaling", &if why.is_empty() { by } else { format!("{by}; {why}") });
    }
    if let Some(runs) = &component.runs {
        field("schedule", &format!("{} (UTC)", runs.schedule));
        field("last run", &last_run(runs));
        field("next run", runs.next_at.as_deref().unwrap_or("none"));
    }
    field("revision", &revision(component.status, component.revision, component.desired_revision));
    field("source", &source(&component.spec.source));
    component.urls.iter().for_each(|it| field("url", it));
    component.warnings.iter().for_each(|it| field("warning", it));
    if !component.instances.is_empty() {
        ui.line("");
        let rows = component.instances.iter().map(|it| {
            let columns =
                [it.id.as_str(), &it.status, &it.restarts.to_string(), it.address.as_deref().unwrap_or("-"), &it.node];
            let mut row: Vec<String> = columns.map(str::to_owned).to_vec();
            row.push(text::age(it.started_at.as_deref()));
            row.push(text::one_line(&it.reason));
            row
        });
        ui.table(&["INSTANCE", "STATUS", "RESTARTS", "ADDRESS", "NODE", "AGE", "REASON"], rows);
    }
}

/// Whether its instances wait for requests; nothing is ever ready of what runs and ends.
fn waits(kind: ComponentKind) -> bool {
    matches!(kind, ComponentKind::Stateless | ComponentKind::Stateful)
}

/// `3 of 3`; by load: `3 of 3, 2–10 by load`.
fn ready(component: &ComponentDocument) -> String {
    let fixed = format!("{} of {}", component.ready_replicas, component.replicas);
    match &component.spec.autoscaling {
        Some(asked) => format!("{fixed}, {}–{} by load", asked.min_replicas, asked.max_replicas),
        None => fixed,
    }
}

/// How the last run of a cron component went, and how long it took.
fn last_run(runs: &RunsDocument) -> String {
    let Some(at) = &runs.last_at else { return "none yet".to_owned() };
    let ended = runs.last_ended_at.as_deref().and_then(text::parse_rfc3339);
    let took = ended.zip(text::parse_rfc3339(at)).map(|(ended, at)| ended.saturating_sub(at).div_ceil(1000));
    let after = took.map(|it| format!(" after {}", text::short_duration(it))).unwrap_or_default();
    match (runs.last_exit_status, ended) {
        (None, None) => format!("{at}, running"),
        (None, Some(_)) => format!("{at}, cut off"),
        (Some(0), _) => format!("{at}, succeeded{after}"),
        (Some(-1), _) => format!("{at}, could not start"),
        (Some(status), _) => format!("{at}, ended with status {status}{after}"),
    }
}

/// Which revision answers, and which one is to.
fn revision(status: Status, now: Option<u64>, next: Option<u64>) -> String {
    match (now, next) {
        (Some(now), Some(next)) if now != next => format!("{now} serves, {next} is to"),
        (Some(now), _) => now.to_string(),
        (None, Some(next)) => match status {
            Status::Stopped | Status::Stopping => format!("{next}, when it is started"),
            Status::Succeeded | Status::Running => next.to_string(),
            _ => format!("{next}, not ready"),
        },
        (None, None) => "none yet".to_owned(),
    }
}

fn source(source: &Source) -> String {
    let short = |it: &str| it.get(..12).unwrap_or(it).to_owned();
    match source {
        Source::Upload { origin, commit, digest, .. } => {
            let at = commit.as_deref().map_or_else(|| short(digest.hex()), short);
            if origin.is_empty() { format!("upload {at}") } else { format!("{origin} at {at}") }
        }
        Source::Git { url, reference, .. } if reference.is_empty() => url.clone(),
        Source::Git { url, reference, .. } => format!("{url}#{reference}"),
        Source::Image { reference } => format!("image:{reference}"),
    }
}

/// An instance with the component that it belongs to.
#[derive(Serialize)]
struct Process {
    component: String,
    #[serde(flatten)]
    usage: InstanceUsage,
}

/// The runs of a cron component, between which it has no instance.
#[derive(Serialize)]
struct Runs {
    component: String,
    #[serde(flatten)]
    runs: RunsDocument,
}

/// Shows instances and what they use, and for cron components when they run.
pub(crate) async fn ps(reference: &Reference, session: &Session<'_>) -> Result<(), Failure> {
    let (mut processes, mut crons) = (Vec::new(), Vec::new());
    for named in session.components(reference).await? {
        let instances = session.client.instances(&session.tenant, named.pair()).await?;
        if instances.is_empty() {
            let runs = session.client.component(&session.tenant, named.pair()).await?.runs;
            crons.extend(runs.map(|runs| Runs { component: named.component.clone(), runs }));
        }
        processes.extend(instances.into_iter().map(|usage| Process { component: named.component.clone(), usage }));
    }
    let mut document = serde_json::json!({"items": processes});
    if !crons.is_empty() {
        document["runs"] = serde_json::json!(crons);
    }
    session.ui.document(&document, |ui| {
        if !processes.is_empty() || crons.is_empty() {
            ui.table(
                &["INSTANCE", "COMPONENT", "NODE", "STATUS", "RESTARTS", "CPU", "MEMORY", "AGE"],
                processes.iter().map(process_row),
            );
        }
        if !processes.is_empty() && !crons.is_empty() {
            ui.line("");
        }
        if !crons.is_empty() {
            ui.table(&["COMPONENT", "SCHEDULE (UTC)", "LAST RUN", "NEXT RUN"], crons.iter().map(cron_row));
        }
    });
    Ok(())
}

fn cron_row(cron: &Runs) -> Vec<String> {
    let next = cron.runs.next_at.as_deref().unwrap_or("none");
    vec![cron.component.clone(), cron.runs.schedule.clone(), last_run(&cron.runs), next.to_owned()]
}

fn process_row(process: &Process) -> Vec<String> {
    let instance = &process.usage.instance;
    let (cpu, memory) = match &process.usage.usage {
        Some(usage) => (
            format!("{}.{:02}s", usage.cpu_ms / 1000, usage.cpu_ms % 1000 / 10),
            format!("{} of {}", text::megabytes(usage.memory_bytes), text::megabytes(usage.memory_limit_bytes)),
        ),
        None => ("-".to_owned(), "-".to_owned()),
    };
    vec![
        instance.id.clone(),
        process.component.clone(),
        instance.node.clone(),
        instance.status.clone(),
        instance.restarts.to_string(),
        cpu,
        memory,
        text::age(instance.started_at.as_deref()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cron_component_says_how_its_last_run_went() {
        let (at, end) = ("2026-01-31T09:05:00.000Z", "2026-01-31T09:05:02.250Z");
        for (last_at, last_ended_at, last_exit_status, said) in [
            (None, None, None, "none yet".to_owned()),
            (Some(at), None, None, format!("{at}, running")),
            (Some(at), Some(end), Some(0), format!("{at}, succeeded after 3s")),
            (Some(at), Some(end), Some(3), format!("{at}, ended with status 3 after 3s")),
            (Some(at), Some(end), Some(-1), format!("{at}, could not start")),
            (Some(at), Some(end), None, format!("{at}, cut off")),
        ] {
            let runs = RunsDocument {
                schedule: "* * * * *".to_owned(),
                last_at: last_at.map(str::to_owned),
                last_ended_at: last_ended_at.map(str::to_owned),
                last_exit_status,
                next_at: None,
            };
            assert_eq!(last_run(&runs), said);
        }
    }

    #[test]
    fn revisions_say_what_serves_and_what_is_to() {
        for (status, now, next, text) in [
            (Status::Running, Some(3), Some(3), "3"),
            (Status::Degraded, Some(2), Some(3), "2 serves, 3 is to"),
            (Status::Stopped, None, Some(3), "3, when it is started"),
            (Status::Abnormal, None, Some(3), "3, not ready"),
            (Status::Succeeded, None, Some(3), "3"),
            (Status::Undeployed, None, None, "none yet"),
            (Status::BuildFailed, None, None, "none yet"),
        ] {
            assert_eq!(revision(status, now, next), text, "{status:?}");
        }
    }
}
