//! What to do next for local storage. Pure: claims, volumes, nodes and pods in, steps out.
//!
//! A claim becomes a volume in two steps, each of which the cluster keeps: a pod that makes its folder, and the volume once
//! that has ended well; it goes in two steps, too. What must hold: deciding again before the cluster has followed changes
//! nothing, so that a leader goes on where another one died; a folder is removed only when its volume is released, or
//! when no volume was ever made of it; what is in the way is told, of the claim or the volume that it concerns.

use super::world::{Claim, PREFIX, Pod, State, Task, Volume, World};
use arco_model::time::Timestamp;
use std::collections::BTreeMap;

/// Pods at work on one node at the same time.
const AT_ONCE: usize = 8;
/// How long one that failed stays before it is tried again, in ms.
const RETRY_MS: u64 = 15_000;
/// How long a node may be silent before that is told, in ms.
const PATIENCE_MS: u64 = 20_000;
/// How often what is still in the way is looked at again, in ms.
const AGAIN_MS: u64 = 60_000;

/// Whose trouble something is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum About {
    /// Namespace, name and uid.
    Claim(String, String, String),
    /// Name and uid.
    Volume(String, String),
}

impl About {
    fn claim(it: &Claim) -> Self {
        Self::Claim(it.namespace.clone(), it.name.clone(), it.uid.clone())
    }
}

/// What is asked of the cluster again, before a folder is removed: what was seen may be old.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Sure {
    /// The volume of this uid is released, and its content goes.
    Released(String),
    /// There is no such volume, nor will there be one.
    NoVolume,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Start the pod that makes a folder, for a claim.
    Make { volume: String, node: String, about: About },
    /// Start the pod that removes one.
    Remove { volume: String, node: String, folder: String, sure: Sure, about: Option<About> },
    /// Remove a pod: name and uid.
    End(String, String),
    /// Make the volume of a claim: its folder is there. Folder above it, and what volumes call the node.
    Publish { claim: Claim, folder: String, hostname: String },
    /// Remove a volume, whose folder is gone: name and uid.
    Withdraw(String, String),
    /// Let the scheduler choose another node for a claim.
    ChooseAgain(Claim),
    /// Tell what is in the way.
    Tell(About, String),
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Decision {
    pub(super) steps: Vec<Step>,
    /// When to look again although nothing happened.
    pub(super) wake_at: Option<Timestamp>,
}

/// Decides.
pub(super) fn decide(world: &World, now: Timestamp) -> Decision {
    let mut busy: BTreeMap<&str, usize> = BTreeMap::new();
    for it in world.pods.values().filter(|it| matches!(it.state, State::Begun(_)) && !it.deleting) {
        *busy.entry(it.node.as_str()).or_default() += 1;
    }
    let mut it = Decider { world, now, busy, decision: Decision::default() };
    for claim in world.claims.values() {
        it.provide(claim);
    }
    for (name, volume) in &world.volumes {
        it.withdraw(name, volume);
    }
    for (name, pod) in &world.pods {
        it.leave(name, pod);
    }
    it.decision
}

struct Decider<'a> {
    world: &'a World,
    now: Timestamp,
    /// Pods at work by node.
    busy: BTreeMap<&'a str, usize>,
    decision: Decision,
}

impl<'a> Decider<'a> {
    fn step(&mut self, step: Step) {
        self.decision.steps.push(step);
    }

    fn wake(&mut self, at: Timestamp) {
        self.decision.wake_at = Some(self.decision.wake_at.map_or(at, |it| it.min(at)));
    }

    fn tell(&mut self, about: About, text: String) {
        self.wake(self.now.plus_ms(AGAIN_MS));
        self.step(Step::Tell(about, text));
    }

    fn end(&mut self, name: String, pod: &Pod) {
        let step = Step::End(name, pod.uid.clone());
        if !pod.deleting && !self.decision.steps.contains(&step) {
            self.step(step);
        }
    }

    /// Whether a node takes one pod more; the pod that ends rings.
    fn takes(&mut self, node: &'a str) -> bool {
        let busy = self.busy.entry(node).or_default();
        *busy += 1;
        *busy <= AT_ONCE
    }

    fn ready(&self, node: &str) -> bool {
        self.world.nodes.get(node).is_some_and(|it| it.ready)
    }

    /// What is in the way of a pod that has not ended; `None` while that is no news.
    fn in_the_way(&mut self, pod: &Pod, why: Option<&str>) -> Option<String> {
        if let Some(why) = why {
            return Some(format!("node `{}` says {why}", pod.node));
        }
        let told_at = pod.created.plus_ms(PATIENCE_MS);
        if self.now < told_at {
            self.wake(told_at);
            return None;
        }
        let silent = !self.ready(&pod.node);
        silent.then(|| format!("node `{}` does not answer, start it again", pod.node))
    }

    fn provide(&mut self, claim: &'a Claim) {
        let (world, volume) = (self.world, claim.volume());
        if claim.bound || claim.deleting || claim.node.is_empty() || world.volumes.contains_key(&volume) {
            return;
        }
        let about = About::claim(claim);
        if let Some(why) = claim.impossible {
            return self.tell(about, why.to_owned());
        }
        let Some(node) = world.nodes.get(&claim.node) else {
            self.tell(about, format!("node `{}` is gone: another one is chosen", claim.node));
            return self.step(Step::ChooseAgain(claim.clone()));
        };
        let name = Task::Make.pod(&volume);
        let Some(pod) = world.pods.get(&name) else {
            if self.takes(&claim.node) {
                self.step(Step::Make { volume, node: claim.node.clone(), about });
            }
            return;
        };
        // Chosen anew meanwhile: first what was made elsewhere goes.
        if pod.node != claim.node || pod.deleting {
            return;
        }
        // Removed meanwhile: it is made again when both pods are gone.
        let remove = Task::Remove.pod(&volume);
        if let Some(removes) = world.pods.get(&remove) {
            if !matches!(removes.state, State::Begun(_)) {
                self.end(name, pod);
                self.end(remove, removes);
            }
            return;
        }
        match &pod.state {
            State::Done if node.hostname.is_empty() => {
                self.tell(about, format!("node `{}` has no label `{}`", claim.node, crate::names::HOSTNAME));
            }
            State::Done => {
                let (folder, hostname) = (pod.folder.clone(), node.hostname.clone());
                self.step(Step::Publish { claim: claim.clone(), folder, hostname });
            }
            State::Failed(why, at) => {
                let text = format!("its folder cannot be made on node `{}`: {why}", claim.node);
                self.tell(about, text);
                if at.plus_ms(RETRY_MS) <= self.now {
                    self.end(name, pod);
                    self.step(Step::ChooseAgain(claim.clone()));
                } else {
                    self.wake(at.plus_ms(RETRY_MS));
                }
            }
            State::Begun(why) => {
                let Some(text) = self.in_the_way(pod, why.as_deref()) else { return };
                self.tell(about, format!("its folder is not made yet: {text}"));
                if !node.ready {
                    self.step(Step::ChooseAgain(claim.clone()));
                }
            }
        }
    }

    fn withdraw(&mut self, name: &'a str, volume: &'a Volume) {
        if !volume.released || !volume.goes || volume.deleting {
            return;
        }
        let about = About::Volume(name.to_owned(), volume.uid.clone());
        let by_hand = format!("when it does not come back, `kubectl delete pv {name}`");
        let Some(folder) = &volume.folder else {
            let text = format!(
                "its folder does not lie where volumes are made: remove it by hand, then `kubectl delete pv {name}`"
            );
            return self.tell(about, text);
        };
        if !self.world.nodes.contains_key(&volume.node) {
            let text =
                format!("its node `{}` is gone: its folder is removed when that is back; {by_hand}", volume.node);
            return self.tell(about, text);
        }
        let (pod_name, world) = (Task::Remove.pod(name), self.world);
        let Some(pod) = world.pods.get(&pod_name) else {
            if self.takes(&volume.node) {
                self.step(Step::Remove {
                    volume: name.to_owned(),
                    node: volume.node.clone(),
                    folder: folder.clone(),
                    sure: Sure::Released(volume.uid.clone()),
                    about: Some(about),
                });
            }
            return;
        };
        match &pod.state {
            _ if pod.deleting => {}
            State::Done => self.step(Step::Withdraw(name.to_owned(), volume.uid.clone())),
            State::Failed(why, at) => {
                self.tell(about, format!("its folder cannot be removed on node `{}`: {why}", volume.node));
                self.again(pod_name, pod, *at);
            }
            State::Begun(why) => {
                if let Some(text) = self.in_the_way(pod, why.as_deref()) {
                    self.tell(about, format!("its folder is not removed yet: {text}; {by_hand}"));
                }
            }
        }
    }

    /// A pod that failed makes way for the next one after a while.
    fn again(&mut self, name: String, pod: &Pod, at: Timestamp) {
        if at.plus_ms(RETRY_MS) <= self.now {
            self.end(name, pod);
        } else {
            self.wake(at.plus_ms(RETRY_MS));
        }
    }

    /// Pods that nothing above needs (any more), and folders that no volume was made of.
    fn leave(&mut self, name: &'a str, pod: &'a Pod) {
        let world = self.world;
        let volume = world.volumes.get(&pod.volume);
        let gone = !world.nodes.contains_key(&pod.node);
        if pod.task == Task::Remove {
            let needed = volume.is_some_and(|it| it.released && it.goes)
                || world.pods.contains_key(&Task::Make.pod(&pod.volume));
            if !needed && (gone || !matches!(pod.state, State::Begun(_))) {
                self.end(name.to_owned(), pod);
            }
            return;
        }
        if volume.is_some() {
            return self.end(name.to_owned(), pod);
        }
        let claim = pod.volume.strip_prefix(PREFIX).and_then(|uid| world.claims.get(uid));
        // Of one that is bound the volume is there, and is seen in a moment.
        if claim.is_some_and(|it| it.bound || !it.deleting && it.node == pod.node) {
            return;
        }
        match &pod.state {
            State::Begun(_) if self.ready(&pod.node) => {} // it ends in a moment
            State::Begun(_) | State::Failed(..) => self.end(name.to_owned(), pod),
            State::Done if gone => self.end(name.to_owned(), pod),
            State::Done => {
                let remove = Task::Remove.pod(&pod.volume);
                match world.pods.get(&remove).map(|it| (it, &it.state)) {
                    None if self.takes(&pod.node) => self.step(Step::Remove {
                        volume: pod.volume.clone(),
                        node: pod.node.clone(),
                        folder: pod.folder.clone(),
                        sure: Sure::NoVolume,
                        about: None,
                    }),
                    Some((_, State::Done)) => self.end(name.to_owned(), pod),
                    Some((removes, State::Failed(_, at))) => self.again(remove, removes, *at),
                    None | Some(_) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
