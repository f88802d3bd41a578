//! The one function that decides a component's status, with a reason and an advice.

mod ready;
mod telling;

pub use ready::{count_ready, healthy_revision};

use crate::component::{Component, Power};
use crate::observed::{ExitFacts, InstanceFacts, InstancePhase, Observed, RolloutFacts};
use crate::spec::{ComponentKind, Port, Resources};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// How long a restart is told of a component that runs again.
const RECENT_MS: u64 = 15 * 60 * 1000;

/// How a component is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing has been deployed.
    #[default]
    Undeployed,
    /// The first build runs.
    Building,
    /// The first build failed.
    BuildFailed,
    /// Instances start, none is ready yet.
    Starting,
    /// All that was asked is ready.
    Running,
    /// It answers, but not as asked.
    Degraded,
    /// It answers, and a change or its first deploy has not come to its end.
    Upgrading,
    /// It does not answer.
    Abnormal,
    /// Instances are ending.
    Stopping,
    /// A person stopped it.
    Stopped,
    /// A job that ended well.
    Succeeded,
}

impl Status {
    /// The word in every output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undeployed => "undeployed",
            Self::Building => "building",
            Self::BuildFailed => "build_failed",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Upgrading => "upgrading",
            Self::Abnormal => "abnormal",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Succeeded => "succeeded",
        }
    }
}

/// A status with its reason and, when it is not well, what to do.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// How it is.
    pub status: Status,
    /// Why, in one sentence; empty only when all is well.
    pub reason: String,
    /// What to do; empty only when all is well or it passes by itself.
    pub advice: String,
}

impl StatusReport {
    fn new(status: Status, reason: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), advice: advice.into() }
    }
}

/// What the decision needs beside the component and what was seen.
#[derive(Clone, Debug, Default)]
pub struct StatusContext {
    /// Whether a build runs now.
    pub building: bool,
    /// Why the last build failed, when no revision has ever been made.
    pub build_problem: Option<(String, String)>,
    /// Bound components (`application/component`) that are not ready, when instances wait for them.
    pub waiting_for: Vec<String>,
    /// Ports of the desired revision.
    pub ports: Vec<Port>,
    /// Limits of the desired revision.
    pub resources: Resources,
    /// How long a new instance may take.
    pub start_deadline_ms: u64,
    /// Now.
    pub now: Timestamp,
}

/// Decides the status. No other code sets it.
///
/// What was not well stays that until it is seen to be: when a server starts again, the facts that made it so are not
/// judged yet, and instances that are on their way for the same generation are no news.
pub fn decide(component: &Component, observed: &Observed, context: &StatusContext) -> StatusReport {
    let now = judge(component, observed, context);
    let before = &component.observed;
    let was_bad = before.observed_generation == component.generation
        && matches!(before.report.status, Status::Abnormal | Status::Degraded);
    let on_its_way = matches!(now.status, Status::Starting | Status::Upgrading) && now.advice.is_empty();
    if was_bad && on_its_way { before.report.clone() } else { now }
}

fn judge(component: &Component, observed: &Observed, context: &StatusContext) -> StatusReport {
    let instances = &observed.instances;
    let present = instances.iter().filter(|it| it.phase != InstancePhase::Ended).count();
    let ready = instances.iter().filter(|it| it.phase == InstancePhase::Ready).count();
    match component.power {
        Power::Deleting { .. } => return ending("it is being deleted", component, instances, context),
        Power::Off if present > 0 => return ending("its instances are ending", component, instances, context),
        Power::Off => {
            return StatusReport::new(
                Status::Stopped,
                "it was stopped",
                format!("`arco start {}` lets it run again", component.reference()),
            );
        }
        Power::On => {}
    }
    if component.desired_revision.is_none() {
        return not_built_yet(component, context);
    }
    match component.spec.kind {
        ComponentKind::Job => return job(component, observed, context),
        ComponentKind::Cron => return cron(component),
        ComponentKind::Stateless | ComponentKind::Stateful => {}
    }
    let asked = component.wanted_replicas(observed.scaling.as_ref()) as usize;
    let count = || count_ready(component, instances, asked);
    if asked == 0 && present == 0 {
        let advice = format!("`arco scale {} --replicas 1` starts it", component.reference());
        return StatusReport::new(Status::Stopped, "it is scaled to 0 instances", advice);
    }
    if let RolloutFacts::Halted { cause } = &observed.rollout {
        let (reason, advice) = match cause {
            Some(it) => explain(it, component, context),
            None => {
                ("a new instance did not become ready".to_owned(), format!("see `arco logs {}`", component.reference()))
            }
        };
        // Which ones serve meanwhile decides what is true: of an older revision, made before a restart, or the same.
        let serving = || instances.iter().filter(|it| it.phase == InstancePhase::Ready);
        let older = serving().any(|it| Some(&it.revision) != component.desired_revision.as_ref());
        let earlier = cause.as_ref().is_none_or(|cause| serving().any(|it| it.template != cause.template));
        return match ready {
            0 => StatusReport::new(Status::Abnormal, reason, advice),
            _ if older => {
                let advice = format!(
                    "{advice}; the previous revision keeps serving. Undo what was changed (as `arco env unset {reference} NAME`), \
                     or all of it with `arco rollback {reference}`: later changes build on it",
                    reference = component.reference()
                );
                StatusReport::new(Status::Degraded, reason, advice)
            }
            _ if earlier => {
                let advice = format!("{advice}; the instances from before the change keep serving");
                StatusReport::new(Status::Degraded, reason, advice)
            }
            _ => StatusReport::new(Status::Degraded, format!("{}: {reason}", count()), advice),
        };
    }
    if !context.waiting_for.is_empty() && ready == 0 {
        let names = context.waiting_for.join(", ");
        let first = &context.waiting_for[0];
        return StatusReport::new(
            Status::Starting,
            format!("it waits for {names}, which it is bound to"),
            format!("see `arco status {first}`"),
        );
    }
    // What a change left on a silent node is no trouble of what it brought.
    let ill = instances.iter().filter(|it| is_ill(it, context) && !is_left_behind(it, component));
    let ill = ill.min_by_key(|it| it.phase == InstancePhase::Stopping);
    if let (RolloutFacts::Progressing, None) = (&observed.rollout, ill)
        && follows_load(component, instances, ready)
    {
        return StatusReport { status: Status::Running, ..StatusReport::default() };
    }
    match (&observed.rollout, ready) {
        (RolloutFacts::Progressing, 0) => match ill {
            Some(it) => {
                let (reason, advice) = explain(it, component, context);
                StatusReport::new(Status::Abnormal, reason, advice)
            }
            None => StatusReport::new(Status::Starting, "its instances are starting", ""),
        },
        (RolloutFacts::Progressing, _) => match ill {
            Some(it) => {
                let (reason, advice) = explain(it, component, context);
                StatusReport::new(Status::Degraded, format!("{}: {reason}", count()), advice)
            }
            None => StatusReport::new(Status::Upgrading, ready::still_to_come(component, instances, asked), ""),
        },
        (_, 0) => match ill.or(instances.first()) {
            Some(it) if ill.is_some() => {
                let (reason, advice) = explain(it, component, context);
                StatusReport::new(Status::Abnormal, reason, advice)
            }
            _ => StatusReport::new(Status::Starting, "its instances are starting", ""),
        },
        _ if ready >= asked => running(component, instances, context),
        _ => {
            let (reason, advice) = match ill {
                Some(it) => explain(it, component, context),
                None => ("the others are starting".to_owned(), format!("see `arco ps {}`", component.reference())),
            };
            StatusReport::new(Status::Degraded, format!("{}: {reason}", count()), advice)
        }
    }
}

/// On its way to nothing, which a node that does not answer can hold up.
fn ending(what: &str, component: &Component, instances: &[InstanceFacts], context: &StatusContext) -> StatusReport {
    let held = instances.iter().find(|it| it.node_silent).map(|it| explain(it, component, context));
    match held {
        Some((reason, advice)) => StatusReport::new(Status::Stopping, format!("{what}: {reason}"), advice),
        None => StatusReport::new(Status::Stopping, what, ""),
    }
}

/// Whether nothing happens but that the number of instances follows load: enough are ready, and all are alike.
fn follows_load(component: &Component, instances: &[InstanceFacts], ready: usize) -> bool {
    let Some(asked) = &component.spec.autoscaling else { return false };
    let staying =
        || instances.iter().filter(|it| !matches!(it.phase, InstancePhase::Draining | InstancePhase::Stopping));
    let alike = staying().all(|it| Some(&it.revision) == component.desired_revision.as_ref())
        && staying().zip(staying().skip(1)).all(|(a, b)| a.template == b.template);
    ready >= asked.min_replicas as usize && alike
}

/// It runs as asked; a program that was started again not long ago is told, or its next end would come out of the blue.
fn running(component: &Component, instances: &[InstanceFacts], context: &StatusContext) -> StatusReport {
    let well = StatusReport { status: Status::Running, ..StatusReport::default() };
    let ended = |it: &&InstanceFacts| {
        let exit = it.last_exit.as_ref().filter(|exit| !exit.asked);
        it.restarts > 0 && exit.is_some_and(|exit| context.now.since_ms(exit.at) < RECENT_MS)
    };
    let Some((instance, exit)) = instances.iter().find(ended).and_then(|it| Some((it, it.last_exit.as_ref()?))) else {
        return well;
    };
    let (reason, advice) = explain_exit(exit, 0, &component.reference(), context);
    let times = match instance.restarts {
        1 => "once".to_owned(),
        n => format!("{n} times"),
    };
    StatusReport {
        reason: format!("an instance was started again {times}, the last time after: {reason}"),
        advice,
        ..well
    }
}

fn not_built_yet(component: &Component, context: &StatusContext) -> StatusReport {
    if context.building {
        return StatusReport::new(Status::Building, "its first build runs", "");
    }
    match &context.build_problem {
        Some((message, advice)) => StatusReport::new(Status::BuildFailed, message.clone(), advice.clone()),
        None => {
            let advice = format!(
                "`arco deploy SOURCE --app {} --component {}` builds it",
                component.application, component.name
            );
            StatusReport::new(Status::Undeployed, "nothing has been deployed yet", advice)
        }
    }
}

fn job(component: &Component, observed: &Observed, context: &StatusContext) -> StatusReport {
    let instances = &observed.instances;
    let ended: Vec<_> = instances.iter().filter(|it| it.phase == InstancePhase::Ended).collect();
    if let Some(failed) =
        ended.iter().find(|it| it.fault.is_some() || it.last_exit.as_ref().is_some_and(|exit| exit.status != 0))
    {
        let (reason, advice) = explain(failed, component, context);
        return StatusReport::new(Status::Abnormal, reason, advice);
    }
    if let Some(ill) = instances.iter().find(|it| is_ill(it, context)) {
        let (reason, advice) = explain(ill, component, context);
        return StatusReport::new(Status::Abnormal, reason, advice);
    }
    if !instances.is_empty() && ended.len() == instances.len() {
        return StatusReport { status: Status::Succeeded, ..StatusReport::default() };
    }
    if instances.iter().any(|it| matches!(it.phase, InstancePhase::Ready | InstancePhase::Starting)) {
        return StatusReport { status: Status::Running, ..StatusReport::default() };
    }
    StatusReport::new(Status::Starting, "its instance is starting", "")
}

fn cron(component: &Component) -> StatusReport {
    let reference = component.reference();
    let Some(run) = &component.observed.last_run else {
        return StatusReport { status: Status::Running, ..StatusReport::default() };
    };
    let at = run.scheduled_at.rfc3339();
    match (run.exit_status, run.ended_at) {
        (Some(0), _) | (None, None) => StatusReport { status: Status::Running, ..StatusReport::default() },
        (Some(status), _) => {
            let reason = format!("its run of {at} ended with status {status}");
            StatusReport::new(Status::Abnormal, reason, format!("see `arco logs {reference}`"))
        }
        (None, Some(_)) => StatusReport::new(
            Status::Abnormal,
            format!("its run of {at} was cut off: the server that ran it ended"),
            format!("it runs again at its next time; `arco logs {reference}` shows how far it came"),
        ),
    }
}

/// Whether an instance is of an earlier revision, was told to end, and nothing waits for it.
fn is_left_behind(instance: &InstanceFacts, component: &Component) -> bool {
    instance.phase == InstancePhase::Stopping
        && component.spec.kind == ComponentKind::Stateless
        && Some(&instance.revision) != component.desired_revision.as_ref()
}

/// Whether an instance is in trouble, as opposed to on its way.
fn is_ill(instance: &InstanceFacts, context: &StatusContext) -> bool {
    match instance.phase {
        InstancePhase::BackOff | InstancePhase::Unready => true,
        InstancePhase::Ended => instance.fault.is_some(),
        InstancePhase::Pending => instance.fault.is_some(),
        InstancePhase::Starting => {
            instance.node_silent
                || instance.restarts > 0
                || instance.started_at.is_some_and(|at| context.now.since_ms(at) > context.start_deadline_ms)
        }
        // It was told to end, but nobody says that it has.
        InstancePhase::Stopping => instance.node_silent,
        InstancePhase::Ready | InstancePhase::Draining => false,
    }
}

/// Reason and advice for an instance that is not well.
pub fn explain(instance: &InstanceFacts, component: &Component, context: &StatusContext) -> (String, String) {
    let reference = component.reference();
    if let Some(fault) = &instance.fault {
        let advice = if instance.node_silent {
            of_silent_node(&instance.node, component)
        } else {
            format!("it is tried again; the server's log and `arco logs {reference}` have more about the cause")
        };
        return (fault.clone(), advice);
    }
    let runs = matches!(instance.phase, InstancePhase::Starting | InstancePhase::Unready | InstancePhase::Ready);
    let deadline_passed = instance.started_at.is_some_and(|at| context.now.since_ms(at) > context.start_deadline_ms);
    if let Some(exit) = &instance.last_exit
        && !(runs && deadline_passed)
    {
        return explain_exit(exit, instance.restarts, &reference, context);
    }
    let declared = context.ports.first().map(|it| it.port);
    match (declared, instance.listens_on.first()) {
        (Some(port), Some(other)) if other.port() == port => (
            format!("nothing listens on 0.0.0.0:{port}; it listens on {other}"),
            format!("let the program listen on 0.0.0.0:{port} instead of {}", other.ip()),
        ),
        (Some(port), Some(other)) => (
            format!("nothing listens on 0.0.0.0:{port}; it listens on {other}"),
            format!("listen on the port in the variable PORT, or deploy with `--port {}`", other.port()),
        ),
        (Some(port), None) => (
            format!("nothing listens on 0.0.0.0:{port}"),
            format!(
                "let the program listen on 0.0.0.0 and the port in the variable PORT ({port}); `arco logs {reference}` shows what it does"
            ),
        ),
        (None, _) => ("its probe fails".to_owned(), format!("`arco logs {reference}` shows what it does")),
    }
}

/// What to do about a node that does not answer. Nothing here moves what must not run twice: only people know whether the
/// node is off, or still runs it where nobody sees it.
fn of_silent_node(node: &str, component: &Component) -> String {
    let remove = format!("`kubectl delete node {node}`");
    match component.spec.kind {
        _ if component.power != Power::On => {
            format!("start the node again; when it is off for good, {remove} ends the wait")
        }
        ComponentKind::Stateless => format!(
            "other nodes take its instances by themselves after a while; start the node again, or remove it when it is off for good: {remove}"
        ),
        ComponentKind::Stateful | ComponentKind::Job | ComponentKind::Cron => format!(
            "it is not started elsewhere, so that it never runs twice: start the node again; only when it is surely off, \
             {remove} lets another node take it"
        ),
    }
}

fn explain_exit(exit: &ExitFacts, restarts: u32, reference: &str, context: &StatusContext) -> (String, String) {
    if exit.out_of_memory {
        let limit = context.resources.memory_mb;
        let more = limit.saturating_mul(2);
        return (
            format!("out of memory at {limit} MB"),
            format!("raise `--memory-mb`: `arco scale {reference} --memory-mb {more}`"),
        );
    }
    if exit.disk_full {
        return (
            format!("its writable layer is full at {} MB", context.resources.disk_mb),
            "write to a volume (`--volume NAME:/path:SIZE_MB`) and remove what is not needed".to_owned(),
        );
    }
    let times = match restarts + 1 {
        1 => String::new(),
        n if n as usize >= WORDS.len() => format!(", {n} times"),
        n => format!(" {} times", WORDS[n as usize]),
    };
    let how = match exit.signal {
        Some(signal) => format!("ended by signal {signal}{times}"),
        None => format!("exited with status {}{times}", exit.status),
    };
    let last = telling::telling(&exit.last_output).join(" | ");
    let reason =
        if last.is_empty() { format!("{how}, without any output") } else { format!("{how}: last output: {last}") };
    let advice = match exit.status {
        127 => "the program was not found: check the command (`--command`, Procfile)".to_owned(),
        126 => "the program cannot be executed: check its permissions".to_owned(),
        0 => format!(
            "it ended by itself; a program that is meant to end is deployed with `--kind job`; see `arco logs {reference}`"
        ),
        _ => format!("mend what the output says; `arco logs {reference}` has all of it"),
    };
    (reason, advice)
}

const WORDS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

#[cfg(test)]
mod tests;
