//! Pods as facts of instances, and as members of the decision. Pure.

use crate::seen::{PodSeen, Program};
use arco_model::id::{InstanceId, RevisionId};
use arco_model::observed::{ExitFacts, InstanceFacts, InstancePhase};
use arco_model::time::Timestamp;
use arco_orchestrator::local::supervise::Member;

/// How long after the end of its grace a node may take to confirm that a pod is gone, in ms.
const OVERDUE_MS: u64 = 60_000;

/// What this process knows of a pod beyond what the cluster says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leaving {
    /// Since when it drains.
    pub(crate) since: Option<Timestamp>,
    /// Whether every gateway has let go of it.
    pub(crate) released: bool,
    /// Whether its node did not confirm its end in time ([`overdue_at`]).
    pub(crate) overdue: bool,
}

/// Facts about a pod. `job`: its program is meant to end.
pub(crate) fn instance(pod: &PodSeen, leaving: Leaving, job: bool) -> InstanceFacts {
    let exit = last_exit(pod);
    let started_at = match &pod.program {
        Program::Running(at) => Some(*at),
        _ => None,
    };
    InstanceFacts {
        id: pod.id.clone(),
        revision: pod.revision.clone(),
        template: pod.template.clone(),
        place: pod.place,
        phase: phase(pod, leaving, job),
        address: pod.address,
        node: pod.node.clone(),
        restarts: pod.restarts,
        started_at,
        last_exit: exit,
        listens_on: Vec::new(),
        fault: fault(pod, leaving),
        node_silent: is_silent(pod, leaving),
    }
}

/// An instance that could not even become a pod.
pub(crate) fn unmade(id: InstanceId, revision: RevisionId, template: String, fault: String) -> InstanceFacts {
    InstanceFacts {
        id,
        revision,
        template,
        place: 0,
        phase: InstancePhase::Ended,
        address: None,
        node: String::new(),
        restarts: 0,
        started_at: None,
        last_exit: None,
        listens_on: Vec::new(),
        fault: Some(fault),
        node_silent: false,
    }
}

/// Whether the node of a pod does not answer, or does not confirm that the pod has ended.
pub(crate) fn is_silent(pod: &PodSeen, leaving: Leaving) -> bool {
    pod.lost || pod.deleting && leaving.overdue
}

/// When a pod that is to end counts as one that its node does not let go of.
pub(crate) fn overdue_at(pod: &PodSeen) -> Option<Timestamp> {
    pod.gone_by.map(|it| it.plus_ms(OVERDUE_MS))
}

fn phase(pod: &PodSeen, leaving: Leaving, job: bool) -> InstancePhase {
    // Its program may have ended already: it is still there, and its place is not free.
    if pod.deleting {
        return InstancePhase::Stopping;
    }
    if pod.over.is_some() {
        return InstancePhase::Ended;
    }
    if leaving.since.or(pod.draining_since).is_some() {
        return InstancePhase::Draining;
    }
    // It had come so far when its node fell silent; what its program does since, nobody knows.
    let worked = pod.ready || pod.was_ready || pod.unheard || job && matches!(pod.program, Program::Running(_));
    if pod.lost && worked {
        return InstancePhase::Unready;
    }
    match &pod.program {
        Program::Running(_) if job || pod.ready => InstancePhase::Ready,
        Program::Running(_) if pod.was_ready => InstancePhase::Unready,
        Program::Running(_) => InstancePhase::Starting,
        Program::Ended(..) => InstancePhase::BackOff,
        Program::Waiting(reason, _) if reason == "CrashLoopBackOff" => InstancePhase::BackOff,
        Program::Waiting(..) if pod.restarts > 0 => InstancePhase::BackOff,
        Program::Waiting(..) | Program::Unknown => InstancePhase::Pending,
    }
}

/// How its program ended last, with what the node says of the whole pod.
fn last_exit(pod: &PodSeen) -> Option<ExitFacts> {
    let exit = match &pod.program {
        Program::Ended(exit, _) => Some(exit),
        _ => pod.last_exit.as_ref().map(|(exit, _)| exit),
    };
    let disk_full = disk_full(pod);
    match exit {
        Some(exit) => Some(ExitFacts { disk_full, asked: pod.deleting, ..exit.clone() }),
        None if disk_full => Some(ExitFacts { status: 137, signal: Some(9), disk_full, ..ExitFacts::default() }),
        None => None,
    }
}

fn disk_full(pod: &PodSeen) -> bool {
    let evicted = pod.over.as_ref().filter(|(reason, _)| reason == "Evicted");
    evicted.is_some_and(|(_, message)| message.contains("ephemeral") || message.contains("emptyDir"))
}

/// Why it could not be prepared, why the cluster ended it, or that its node is silent.
pub(crate) fn fault(pod: &PodSeen, leaving: Leaving) -> Option<String> {
    if pod.deleting {
        // It was told to end: what was wrong with it does not matter any more, only that it does not go.
        return match (pod.lost, leaving.overdue) {
            (true, _) => Some(silent(&pod.node)),
            (false, true) => Some(format!("its node `{}` does not say that it has ended", pod.node)),
            (false, false) => None,
        };
    }
    if let Some((reason, message)) = pod.over.as_ref().filter(|it| !it.0.is_empty()) {
        let ours = ["DeadlineExceeded", "Completed"].contains(&reason.as_str());
        return (!ours && !disk_full(pod)).then(|| format!("the node ended it ({reason}): {message}"));
    }
    if pod.lost {
        return Some(silent(&pod.node));
    }
    let could_not_start = |it: &(ExitFacts, String)| {
        let never = ["StartError", "ContainerCannotRun"].contains(&it.1.as_str());
        never.then(|| format!("its program cannot be started: {}", short(&it.0.last_output)))
    };
    let by_program = match &pod.program {
        Program::Waiting(reason, message) => match reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ImageInspectError" | "ErrImageNeverPull" => {
                Some(format!("its image cannot be pulled ({reason}): {}", short(message)))
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(format!("its container cannot be made ({reason}): {}", short(message)))
            }
            "CrashLoopBackOff" => pod.last_exit.as_ref().and_then(could_not_start),
            _ => None,
        },
        Program::Ended(exit, reason) => could_not_start(&(exit.clone(), reason.clone())),
        Program::Running(_) | Program::Unknown => None,
    };
    if by_program.is_some() || matches!(pod.program, Program::Running(_) | Program::Ended(..)) {
        return by_program;
    }
    if let Some(message) = &pod.unschedulable {
        return Some(format!("no node of the cluster can take it: {}", short(message)));
    }
    pod.warning.as_deref().map(short)
}

fn silent(node: &str) -> String {
    format!("its node `{node}` does not answer")
}

/// At most 300 characters in one line. Of longer texts the end stays: that is where errors name their cause.
fn short(text: &str) -> String {
    const FIRST: usize = 60;
    const LAST: usize = 240;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = line.chars().count();
    if count <= FIRST + LAST {
        return line;
    }
    let first: String = line.chars().take(FIRST).collect();
    let last: String = line.chars().skip(count - LAST).collect();
    format!("{first} … {last}")
}

/// A pod as the decision sees it.
pub(crate) fn member(pod: &PodSeen, leaving: Leaving, job: bool) -> Member {
    let facts = instance(pod, leaving, job);
    let down = matches!(facts.phase, InstancePhase::BackOff | InstancePhase::Ended) && facts.last_exit.is_some();
    // One that cannot be prepared must not wait for ever: it counts as starting since it was made.
    let stuck = facts.phase == InstancePhase::Pending && facts.fault.is_some() && !pod.lost;
    let waiting_since = match (facts.phase, facts.started_at) {
        (InstancePhase::Unready, _) => pod.ready_changed.unwrap_or(pod.created),
        (_, Some(at)) => at,
        _ => pod.created,
    };
    let status = if facts.fault.is_some() { None } else { facts.last_exit.as_ref().map(|it| it.status) };
    let ended_at = facts.last_exit.as_ref().map_or(pod.created, |it| it.at);
    Member {
        id: facts.id,
        template: pod.key.clone(),
        place: pod.place,
        phase: match facts.phase {
            _ if stuck => InstancePhase::Starting,
            // Of one on a silent node nothing is known: it neither serves nor fails, whatever its revision, and nobody waits for
            // it to drain.
            InstancePhase::Unready | InstancePhase::Starting | InstancePhase::BackOff if pod.lost => {
                InstancePhase::Pending
            }
            phase => phase,
        },
        ends: facts.restarts + u32::from(down),
        waiting_since,
        ready_since: (facts.phase == InstancePhase::Ready).then(|| pod.ready_changed.unwrap_or(pod.created)),
        drain_since: leaving.since.or(pod.draining_since),
        released: leaving.released,
        ended: (facts.phase == InstancePhase::Ended).then_some((ended_at, status)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
