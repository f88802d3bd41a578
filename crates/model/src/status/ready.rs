//! Which instances of a component are ready, and which revision has proved itself: pure, from facts.
//!
//! What must hold: while a change is rolled out, instances from before it are not counted as if they were of it.

use crate::component::Component;
use crate::id::RevisionId;
use crate::observed::{InstanceFacts, InstancePhase, Observed, RolloutFacts};

fn is_ready(instance: &&InstanceFacts) -> bool {
    instance.phase == InstancePhase::Ready
}

/// How many instances are ready of those that are asked for, in words. The newest instance of the desired revision tells
/// which ones are as asked now: a restart keeps the revision, but not the template.
pub fn count_ready(component: &Component, instances: &[InstanceFacts], asked: usize) -> String {
    let of_desired = instances.iter().filter(|it| Some(&it.revision) == component.desired_revision.as_ref());
    let newest = of_desired.max_by_key(|it| &it.id);
    let is_new =
        |it: &&InstanceFacts| newest.is_some_and(|new| (&it.revision, &it.template) == (&new.revision, &new.template));
    let new = instances.iter().filter(is_ready).filter(is_new).count();
    let earlier = instances.iter().filter(is_ready).count() - new;
    match (new, earlier) {
        (new, 0) if new > asked => format!("{new} instances are ready, {asked} to stay"),
        (new, 0) => format!("{new} of {asked} instances are ready"),
        (new, earlier) => format!("{new} of {asked} new instances are ready, and {earlier} from before"),
    }
}

/// The desired revision, when every change to it has come to its end and it answers.
pub fn healthy_revision(component: &Component, observed: &Observed) -> Option<RevisionId> {
    let desired = component.desired_revision.as_ref().filter(|_| observed.rollout == RolloutFacts::Done)?;
    let answers = observed.instances.iter().filter(is_ready).any(|it| it.revision == *desired);
    answers.then(|| desired.clone())
}
