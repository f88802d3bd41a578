//! What to do next with the workloads of a component. Pure: it asks `supervise::step`, the same decision as on one
//! machine, and translates its answer into numbers of pods, marks on pods, and objects to delete.
//!
//! What must hold: numbers are absolute, so that deciding again before the cluster has followed changes nothing; a pod
//! that serves is drained before anything ends it; no place of a stateful component is made twice; a pod that a silent node
//! does not give back keeps nothing from being done but its own place.

use crate::facts::{self, Leaving};
use crate::render::{Kind, Rendered};
use crate::seen::{ComponentSeen, PodSeen};
use arco_model::id::InstanceId;
use arco_model::observed::InstancePhase;
use arco_model::spec::ComponentKind;
use arco_model::time::Timestamp;
use arco_orchestrator::local::supervise::{self, Action, Desired, Member, Progress};
use std::collections::{BTreeMap, BTreeSet};

/// How long the facts of a pod that the cluster ended stay, in ms.
const ENDED_KEPT_MS: u64 = 300_000;

/// What a decision is made from.
pub(crate) struct Situation<'a> {
    /// What is asked; `template` is the key of the rendered pod template.
    pub(crate) desired: &'a Desired,
    pub(crate) seen: &'a ComponentSeen,
    /// By uid of the pod.
    pub(crate) leaving: &'a BTreeMap<String, Leaving>,
    /// Whether this key with this number of instances was reached before.
    pub(crate) completed: bool,
    pub(crate) now: Timestamp,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// How many pods each workload of stateless and stateful components is to have, by key; a workload that does not
    /// exist yet is made only for the asked key. For jobs: the asked number, when the job is to exist.
    pub(crate) pods: BTreeMap<String, u32>,
    /// Names of pods that begin to drain.
    pub(crate) drain: Vec<String>,
    /// Names of pods that go first when their workload shrinks.
    pub(crate) first: Vec<String>,
    /// Names of pods to delete.
    pub(crate) delete_pods: Vec<String>,
    /// Workloads to delete with their pods.
    pub(crate) delete: Vec<(Kind, String)>,
    /// How the change goes.
    pub(crate) progress: Option<Progress>,
    /// When to look again although nothing happened.
    pub(crate) wake_at: Option<Timestamp>,
}

/// The kind of workload that a component needs.
pub(crate) fn workload_kind(kind: ComponentKind) -> Kind {
    match kind {
        ComponentKind::Stateless => Kind::Deployment,
        ComponentKind::Stateful => Kind::StatefulSet,
        ComponentKind::Job | ComponentKind::Cron => Kind::Job,
    }
}

/// The pods that facts speak of: of each place of a job only the newest.
pub(crate) fn shown(seen: &ComponentSeen, job: bool) -> Vec<PodSeen> {
    let mut pods: Vec<PodSeen> = seen.instances().cloned().collect();
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    if !job {
        return pods;
    }
    let mut newest: BTreeMap<(String, u32), PodSeen> = BTreeMap::new();
    for mut pod in pods {
        let place = (pod.key.clone(), pod.place);
        if let Some(earlier) = newest.get(&place) {
            pod.restarts = earlier.restarts + 1;
            pod.last_exit = pod.last_exit.or(match &earlier.program {
                crate::seen::Program::Ended(exit, reason) => Some((exit.clone(), reason.clone())),
                _ => earlier.last_exit.clone(),
            });
        }
        newest.insert(place, pod);
    }
    newest.into_values().collect()
}

/// Decides.
pub(crate) fn decide(it: &Situation<'_>) -> Decision {
    let job = it.desired.kind.runs_to_end();
    let pods = shown(it.seen, job);
    let leaving = |pod: &PodSeen| it.leaving.get(&pod.uid).copied().unwrap_or_default();
    let mut decision = Decision::default();
    let mut members = Vec::new();
    let mut names = BTreeMap::new();
    for pod in &pods {
        let (member, leaving) = (facts::member(pod, leaving(pod), job), leaving(pod));
        if pod.deleting {
            if facts::is_silent(pod, leaving) && !keeps_place(it.desired, &member) {
                continue; // nobody says when it is gone, and its workload has replaced it
            }
            if let Some(at) = facts::overdue_at(pod).filter(|at| *at > it.now) {
                wake(&mut decision, at);
            }
        }
        names.insert(member.id.clone(), pod.name.clone());
        // Workloads replace a pod that the cluster ended by themselves; it only tells why.
        if member.phase == InstancePhase::Ended && !job {
            let at = member.ended.map_or(pod.created, |it| it.0);
            if it.now.since_ms(at) > ENDED_KEPT_MS {
                decision.delete_pods.push(pod.name.clone());
            } else {
                wake(&mut decision, at.plus_ms(ENDED_KEPT_MS + 1));
            }
            continue;
        }
        members.push(member);
    }
    let step = supervise::step(it.desired, &members, it.completed, it.now);
    if let Some(at) = step.wake_at {
        wake(&mut decision, at);
    }
    decision.progress = Some(step.progress.clone());
    let stops: BTreeSet<&InstanceId> = step
        .actions
        .iter()
        .filter_map(|it| match it {
            Action::Stop { id } | Action::Discard { id } => Some(id),
            _ => None,
        })
        .collect();
    if !job {
        let drains = step.actions.iter().filter_map(|it| match it {
            Action::Drain { id } => names.get(id),
            _ => None,
        });
        decision.drain = drains.cloned().collect();
    }
    let wanted = workload_kind(it.desired.kind);
    // What is left of another kind makes way: names and places would meet.
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::Job] {
        if kind != wanted {
            let others = it.seen.of(kind).filter(|(_, it)| !it.deleting);
            decision.delete.extend(others.map(|(name, _)| (kind, name.to_owned())));
        }
    }
    match wanted {
        Kind::Deployment => stateless(it, &members, &step, &stops, &names, &mut decision),
        Kind::StatefulSet => stateful(it, &members, &stops, &names, &mut decision),
        _ => jobs(it, &mut decision),
    }
    decision
}

/// Nothing of a stateful component begins to drain for what the cluster may refuse: its set is sent first, which by itself replaces
/// nothing, and with it all that comes before. Those that drain already go on.
pub(crate) fn send_first(decision: &mut Decision, rendered: &Rendered, seen: &ComponentSeen, now: Timestamp) {
    let set = seen.objects.get(&(Kind::StatefulSet, rendered.workload_name(&rendered.key)));
    let Some(pods) = decision.pods.get(&rendered.key).filter(|_| !decision.drain.is_empty()) else { return };
    let is_sent = set.is_some_and(|it| !it.deleting && it.applied == rendered.workload(*pods).applied());
    // Of a component without any object, one that is to have no instance may be sent nothing.
    if is_sent || seen.objects.is_empty() {
        return;
    }
    decision.drain.clear();
    // It is sent at once, unless one is in the way that goes: that rings.
    if set.is_none_or(|it| !it.deleting && it.detail.fixed == rendered.fixed()) {
        wake(decision, now);
    }
}

fn wake(decision: &mut Decision, at: Timestamp) {
    decision.wake_at = Some(decision.wake_at.map_or(at, |it| it.min(at)));
}

/// Whether a pod that was told to end must be gone before the change can be done: where it would run twice else.
fn keeps_place(desired: &Desired, member: &Member) -> bool {
    match desired.kind {
        ComponentKind::Stateless => false,
        ComponentKind::Stateful => member.place < desired.replicas,
        ComponentKind::Job | ComponentKind::Cron => {
            member.place < desired.replicas && member.template == desired.template
        }
    }
}

fn stays(member: &Member, stops: &BTreeSet<&InstanceId>) -> bool {
    !matches!(member.phase, InstancePhase::Stopping | InstancePhase::Ended) && !stops.contains(&member.id)
}

fn stateless(
    it: &Situation<'_>,
    members: &[Member],
    step: &supervise::Step,
    stops: &BTreeSet<&InstanceId>,
    names: &BTreeMap<InstanceId, String>,
    decision: &mut Decision,
) {
    let asked = it.desired.template.as_str();
    let starts = step.actions.iter().filter(|it| matches!(it, Action::Start { .. })).count();
    let keys: BTreeSet<&str> = it.seen.of(Kind::Deployment).map(|(_, it)| it.key.as_str()).chain([asked]).collect();
    for key in keys {
        let of_key = || members.iter().filter(|it| it.template == key);
        let stay = of_key().filter(|it| stays(it, stops)).count() + if key == asked { starts } else { 0 };
        let draining = of_key().filter(|it| it.phase == InstancePhase::Draining);
        let (leave, wait): (Vec<_>, Vec<_>) = draining.partition(|it| stops.contains(&it.id));
        // All that drain go before those that do not; among them, those that were let go of.
        if !wait.is_empty() {
            decision.first.extend(leave.iter().filter_map(|it| names.get(&it.id)).cloned());
        }
        // No shrinking takes them any more, as when the last one took one that was not ready: they have the room of those that are
        // to start.
        let present = of_key().filter(|it| !matches!(it.phase, InstancePhase::Stopping | InstancePhase::Ended)).count();
        if present <= stay {
            decision.delete_pods.extend(leave.iter().filter_map(|it| names.get(&it.id)).cloned());
        }
        let workload = it.seen.of(Kind::Deployment).find(|(_, it)| it.key == key);
        match workload {
            Some((_, it)) if it.deleting => {}
            Some((name, _)) if stay == 0 && key != asked && of_key().next().is_none() => {
                decision.delete.push((Kind::Deployment, name.to_owned()));
            }
            Some(_) => drop(decision.pods.insert(key.to_owned(), stay as u32)),
            None if stay > 0 && key == asked => drop(decision.pods.insert(key.to_owned(), stay as u32)),
            None => {}
        }
    }
}

fn stateful(
    it: &Situation<'_>,
    members: &[Member],
    stops: &BTreeSet<&InstanceId>,
    names: &BTreeMap<InstanceId, String>,
    decision: &mut Decision,
) {
    let asked = it.desired.replicas;
    let workload = it.seen.of(Kind::StatefulSet).find(|(_, it)| !it.deleting);
    let kept = members.iter().filter(|it| stays(it, stops) || it.phase == InstancePhase::Stopping && it.place < asked);
    let kept = kept.map(|it| it.place + 1).max().unwrap_or_default();
    let now = workload.map_or(0, |(_, it)| it.detail.replicas);
    // Held back: no new places, those that are there stay.
    let target = if it.desired.hold { kept.max(now.min(asked)) } else { kept.max(asked) };
    if workload.is_some() || target > 0 {
        decision.pods.insert(it.desired.template.clone(), target);
    }
    // Places beyond what is asked go by shrinking; those within are made again from the new template.
    let within = members.iter().filter(|it| it.place < asked && stops.contains(&it.id));
    decision.delete_pods.extend(within.filter_map(|it| names.get(&it.id)).cloned());
}

fn jobs(it: &Situation<'_>, decision: &mut Decision) {
    let asked = it.desired.template.as_str();
    let mut exists = false;
    for (name, job) in it.seen.of(Kind::Job).filter(|(_, it)| !it.deleting) {
        if job.key == asked && it.desired.replicas > 0 {
            exists = true;
            if job.detail.complete {
                decision.progress = Some(Progress::Done);
            }
        } else {
            decision.delete.push((Kind::Job, name.to_owned()));
        }
    }
    if !exists && it.desired.replicas > 0 && !it.desired.hold {
        decision.pods.insert(asked.to_owned(), it.desired.replicas);
    }
}

#[cfg(test)]
mod tests;
