//! Which instances of a component are ready, and which revision has proved itself: pure, from facts.
//!
//! What must hold: while a change is rolled out, instances from before it are not counted as if they were of it.

use crate::component::Component;
use crate::id::RevisionId;
use crate::observed::{InstanceFacts, InstancePhase, Observed, RolloutFacts};

fn is_ready(instance: &&InstanceFacts) -> bool {
    instance.phase == InstancePhase::Ready
}

/// The newest instance of the desired revision tells which ones are as asked now: a restart keeps the revision, but not the
/// template.
fn newest<'a>(component: &Component, instances: &'a [InstanceFacts]) -> Option<&'a InstanceFacts> {
    let of_desired = instances.iter().filter(|it| Some(&it.revision) == component.desired_revision.as_ref());
    of_desired.max_by_key(|it| &it.id)
}

fn alike(a: &InstanceFacts, b: &InstanceFacts) -> bool {
    (&a.revision, &a.template) == (&b.revision, &b.template)
}

/// How many instances are ready of those that are asked for, in words.
pub fn count_ready(component: &Component, instances: &[InstanceFacts], asked: usize) -> String {
    let newest = newest(component, instances);
    let is_new = |it: &&InstanceFacts| newest.is_some_and(|new| alike(new, it));
    let new = instances.iter().filter(is_ready).filter(is_new).count();
    let earlier = instances.iter().filter(is_ready).count() - new;
    match (new, earlier) {
        (new, 0) if new > asked => format!("{new} instances are ready, {asked} to stay"),
        (new, 0) => format!("{new} of {asked} instances are ready"),
        (new, earlier) => format!("{new} of {asked} new instances are ready, and {earlier} from before"),
    }
}

/// What is still to come of a component that answers and has not come to its end, in words. Only what replaces instances is
/// a change: a first deploy replaces none.
pub(super) fn still_to_come(component: &Component, instances: &[InstanceFacts], asked: usize) -> String {
    let newest = newest(component, instances);
    let is_new = |it: &&InstanceFacts| newest.is_some_and(|new| alike(new, it));
    let is_leaving = |it: &&InstanceFacts| matches!(it.phase, InstancePhase::Draining | InstancePhase::Stopping);
    let present = || instances.iter().filter(|it| it.phase != InstancePhase::Ended);
    let count = count_ready(component, instances, asked);
    let mut earlier = present().filter(|it| !is_new(it)).peekable();
    if earlier.peek().is_some() {
        let last = if earlier.all(|it| is_leaving(&it)) { ", and those from before are ending" } else { "" };
        return format!("a change is being rolled out; {count}{last}");
    }
    let ready = present().filter(is_ready).count();
    if ready < asked {
        return format!("its instances are starting; {count}");
    }
    if ready > asked || present().any(|it| is_leaving(&it)) {
        return format!("instances that are not asked for any more are ending; {count}");
    }
    format!("{count}, and it is watched whether they stay so")
}

/// The desired revision, when every change to it has come to its end and it answers.
pub fn healthy_revision(component: &Component, observed: &Observed) -> Option<RevisionId> {
    let desired = component.desired_revision.as_ref().filter(|_| observed.rollout == RolloutFacts::Done)?;
    let answers = observed.instances.iter().filter(is_ready).any(|it| it.revision == *desired);
    answers.then(|| desired.clone())
}
