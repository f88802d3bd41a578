//! What to do next with a component's instances. Pure: no clock, no I/O; everything is a row of a table test.
//!
//! What must hold: while a change is rolled out, as many instances serve as were asked (or as there were); an instance
//! that serves is let go only when another serves in its stead; a change whose new instances fail stops, and the old
//! ones keep serving; no two instances have the same place of a stateful component, even while one is ending.

use arco_model::id::InstanceId;
use arco_model::observed::InstancePhase;
use arco_model::plan::WorkloadPlan;
use arco_model::spec::{ComponentKind, RolloutSpec};
use arco_model::time::Timestamp;
use std::collections::BTreeSet;

/// A program that ended this often without becoming steady has failed.
const FAILED_ENDS: u32 = 3;
/// A program that ended often must be ready this long before it counts as steady, in ms.
const STEADY_MS: u64 = 30_000;
/// An instance whose program ended must be ready this many times as long as others until it counts.
const AGAIN: u64 = 5;
/// Pause before an instance that could not be prepared is tried again, in ms.
const FAULT_PAUSE_MS: u64 = 10_000;
/// Pause before an instance whose watcher was killed is replaced, in ms.
const LOST_PAUSE_MS: u64 = 1_000;
/// How often the program of a job is run before it counts as failed.
const JOB_RUNS: u32 = 3;

/// What is asked, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Desired {
    /// How instances live.
    pub kind: ComponentKind,
    /// How many.
    pub replicas: u32,
    /// Fingerprint of the asked template.
    pub template: String,
    /// How they are replaced.
    pub rollout: RolloutSpec,
    /// Whether new instances wait.
    pub hold: bool,
    /// Whether others call it, so that leaving instances are given time.
    pub serves: bool,
}

impl Desired {
    /// Of a plan.
    pub fn of(plan: &WorkloadPlan) -> Self {
        Self {
            kind: plan.kind,
            replicas: plan.replicas,
            template: plan.template.fingerprint(),
            rollout: plan.rollout,
            hold: plan.hold,
            serves: !plan.template.ports.is_empty(),
        }
    }
}

/// One instance, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Member {
    /// Id; ids sort by age.
    pub id: InstanceId,
    /// Fingerprint of its template.
    pub template: String,
    /// Its place.
    pub place: u32,
    /// How far it is.
    pub phase: InstancePhase,
    /// How often its program has ended.
    pub ends: u32,
    /// Since when it is in trouble or starting: made, or turned unready.
    pub waiting_since: Timestamp,
    /// Since when it is ready.
    pub ready_since: Option<Timestamp>,
    /// When it began to drain.
    pub drain_since: Option<Timestamp>,
    /// Whether every gateway has let go of it.
    pub released: bool,
    /// When it ended for good, and its exit status; `None` as status: it could not be prepared.
    pub ended: Option<(Timestamp, Option<i32>)>,
}

/// One thing to do.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum Action {
    /// Make an instance of the asked template.
    Start {
        /// Its place; 0 unless stateful or a job.
        place: u32,
    },
    /// No new requests; it is stopped when released or when its time is over.
    Drain {
        /// Which.
        id: InstanceId,
    },
    /// Stop signal, grace, gone.
    Stop {
        /// Which.
        id: InstanceId,
    },
    /// Forget one that has ended.
    Discard {
        /// Which.
        id: InstanceId,
    },
    /// Run the program of a job once more.
    Rerun {
        /// Which.
        id: InstanceId,
    },
}

/// How the change goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// As asked.
    Done,
    /// On its way.
    Moving,
    /// A new instance failed.
    Halted {
        /// Which.
        cause: InstanceId,
    },
}

/// What comes out of [`step`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// To do now; doing them all and asking again is safe in any order.
    pub actions: Vec<Action>,
    /// How the change goes.
    pub progress: Progress,
    /// When to ask again although nothing happened.
    pub wake_at: Option<Timestamp>,
}

fn alive(member: &Member) -> bool {
    use InstancePhase::{BackOff, Pending, Ready, Starting, Unready};
    matches!(member.phase, Pending | Starting | Ready | Unready | BackOff)
}

/// Decides. `completed`: whether this template with this number of replicas was reached before.
pub fn step(desired: &Desired, members: &[Member], completed: bool, now: Timestamp) -> Step {
    let mut it = Turn { desired, members, completed, now, actions: BTreeSet::new(), wake_at: None };
    it.finish_draining();
    let progress = match desired.kind {
        ComponentKind::Stateless => it.stateless(),
        ComponentKind::Stateful => it.stateful(),
        ComponentKind::Job | ComponentKind::Cron => it.job(),
    };
    Step { actions: it.actions.into_iter().collect(), progress, wake_at: it.wake_at }
}

struct Turn<'a> {
    desired: &'a Desired,
    members: &'a [Member],
    completed: bool,
    now: Timestamp,
    actions: BTreeSet<Action>,
    wake_at: Option<Timestamp>,
}

impl<'a> Turn<'a> {
    /// Remembers to ask again at that time; says whether it has come.
    fn due(&mut self, at: Timestamp) -> bool {
        if self.now >= at {
            return true;
        }
        self.wake_at = Some(self.wake_at.map_or(at, |it| it.min(at)));
        false
    }

    fn finish_draining(&mut self) {
        for member in self.members.iter().filter(|it| it.phase == InstancePhase::Draining) {
            let since = member.drain_since.unwrap_or_default();
            if member.released || self.due(since.plus_ms(self.desired.rollout.drain_ms)) {
                self.actions.insert(Action::Stop { id: member.id.clone() });
            }
        }
    }

    fn leave(&mut self, member: &Member) {
        let busy = self.desired.serves && matches!(member.phase, InstancePhase::Ready | InstancePhase::Unready);
        let id = member.id.clone();
        self.actions.insert(if busy { Action::Drain { id } } else { Action::Stop { id } });
    }

    fn is_current(&self, member: &Member) -> bool {
        member.template == self.desired.template
    }

    fn living(&self, current: bool) -> Vec<&'a Member> {
        self.members.iter().filter(|it| alive(it) && self.is_current(it) == current).collect()
    }

    /// Whether a new instance has shown that it does not come up.
    fn failed(&mut self, member: &Member) -> bool {
        match member.phase {
            InstancePhase::Ended => true,
            InstancePhase::Ready => {
                let steady_at = member.ready_since.unwrap_or(self.now).plus_ms(STEADY_MS);
                member.ends >= FAILED_ENDS && !self.due(steady_at)
            }
            InstancePhase::Pending => false,
            _ if member.ends >= FAILED_ENDS => true,
            _ => self.due(member.waiting_since.plus_ms(self.desired.rollout.start_deadline_ms)),
        }
    }

    /// Whether an instance serves for good, as far as can be known: what was reached once counts when it is ready.
    fn steady(&mut self, member: &Member, old: &[&Member]) -> bool {
        if member.phase != InstancePhase::Ready {
            return false;
        }
        if !self.is_current(member) || self.completed && old.is_empty() {
            return true;
        }
        let least = self.desired.rollout.min_ready_ms.saturating_mul(if member.ends > 0 { AGAIN } else { 1 });
        self.due(member.ready_since.unwrap_or(self.now).plus_ms(least))
    }

    /// The first failed new instance, while the change to this template has not been reached yet.
    fn failing(&mut self, old: &[&Member]) -> Option<InstanceId> {
        if self.completed && old.is_empty() {
            return None;
        }
        let current: Vec<_> = self.members.iter().filter(|it| self.is_current(it)).collect();
        let leaving = |it: &Member| matches!(it.phase, InstancePhase::Draining | InstancePhase::Stopping);
        current.into_iter().find(|it| !leaving(it) && self.failed(it)).map(|it| it.id.clone())
    }

    /// Ended instances of services: old ones go, new ones are tried again after a pause unless older ones serve.
    /// Returns how many new ones stay for now.
    fn tidy_ended(&mut self, keep: bool) -> Vec<u32> {
        let mut kept = Vec::new();
        for member in self.members.iter().filter(|it| it.phase == InstancePhase::Ended) {
            let (at, status) = member.ended.unwrap_or_default();
            let pause = if status.is_some() { LOST_PAUSE_MS } else { FAULT_PAUSE_MS };
            let current = self.is_current(member) && self.desired.replicas > 0;
            if current && (keep || !self.due(at.plus_ms(pause))) {
                kept.push(member.place);
            } else {
                self.actions.insert(Action::Discard { id: member.id.clone() });
            }
        }
        kept
    }

    fn progress(&self, failing: Option<InstanceId>, reached: bool) -> Progress {
        match failing {
            Some(cause) => Progress::Halted { cause },
            None if reached => Progress::Done,
            None => Progress::Moving,
        }
    }

    fn stateless(&mut self) -> Progress {
        let asked = self.desired.replicas as usize;
        let (mut current, mut old) = (self.living(true), self.living(false));
        let others = old.clone();
        let ready = |it: &&'a Member| it.phase == InstancePhase::Ready;
        if asked == 0 {
            current.iter().chain(&old).for_each(|it| self.leave(it));
            self.tidy_ended(false);
            return self.progress(None, self.members.is_empty());
        }
        let failing = self.failing(&old);
        let halted = failing.is_some();
        let ended = self.tidy_ended(halted && !old.is_empty()).len();

        // Too many new ones: those that are not ready first, then the newest.
        current.sort_by_key(|it| (it.phase == InstancePhase::Ready, std::cmp::Reverse(it.id.clone())));
        let surplus = current.len().saturating_sub(asked);
        current.drain(..surplus).for_each(|it| self.leave(it));

        let ceiling = if old.is_empty() { asked } else { asked + self.desired.rollout.max_surge as usize };
        // Old ones that do not serve are replaced without waiting, so they take no room.
        let room = ceiling.saturating_sub(current.len() + ended + old.iter().filter(|it| ready(it)).count());
        let missing = asked.saturating_sub(current.len() + ended);
        if !self.desired.hold && (old.is_empty() || !halted) {
            // Numbered because a set folds equal actions; the place of a stateless instance means nothing.
            self.actions.extend((0..missing.min(room)).map(|place| Action::Start { place: place as u32 }));
        }
        let steady = current.iter().filter(|it| self.steady(it, &others)).count();
        if !halted && !self.desired.hold {
            old.sort_by_key(|it| it.id.clone());
            old.iter().filter(|it| !ready(it)).for_each(|it| self.leave(it));
            let serving = old.iter().filter(|it| ready(it)).count();
            let mut spare = (steady + serving).saturating_sub(asked);
            if spare == 0 && room == 0 && missing > 0 && steady == current.len() {
                spare = 1;
            }
            let leaving: Vec<_> = old.iter().filter(|it| ready(it)).take(spare).copied().collect();
            leaving.into_iter().for_each(|it| self.leave(it));
        }
        self.progress(failing, steady == asked && current.len() == asked && self.members.len() == asked)
    }

    fn stateful(&mut self) -> Progress {
        let asked = self.desired.replicas;
        let old = self.living(false);
        let failing = self.failing(&old);
        let ended = self.tidy_ended(failing.is_some() && !old.is_empty());
        let beyond: Vec<_> = self.members.iter().filter(|it| alive(it) && it.place >= asked).collect();
        beyond.into_iter().for_each(|it| self.leave(it));

        let mut settled = true; // every lower place serves for good
        for place in 0..asked {
            let here = self.members.iter().find(|it| it.place == place && it.phase != InstancePhase::Ended);
            match here {
                Some(it) if self.steady(it, &old) => {}
                None if settled && !self.desired.hold && !ended.contains(&place) => {
                    self.actions.insert(Action::Start { place });
                    settled = false;
                }
                _ => settled = false,
            }
        }
        let reached = settled && old.is_empty() && self.members.len() == asked as usize;
        if failing.is_none() && !self.desired.hold {
            let within: Vec<_> = old.iter().filter(|it| it.place < asked).copied().collect();
            within.iter().filter(|it| it.phase != InstancePhase::Ready).for_each(|it| self.leave(it));
            // The highest place first; the next one only when all are ready again.
            if settled && let Some(next) = within.iter().max_by_key(|it| it.place) {
                self.leave(next);
            }
        }
        self.progress(failing, reached)
    }

    fn job(&mut self) -> Progress {
        let asked = self.desired.replicas;
        let mut open = 0;
        let mut failing = None;
        for member in self.members {
            let ended = member.phase == InstancePhase::Ended;
            let current = self.is_current(member);
            if ended && !current {
                self.actions.insert(Action::Discard { id: member.id.clone() });
            } else if alive(member) && (!current || member.place >= asked) {
                self.leave(member);
            } else if ended && asked > 0 {
                let (at, status) = member.ended.unwrap_or_default();
                match status {
                    Some(0) => {}
                    Some(_) if member.ends < JOB_RUNS => {
                        open += 1;
                        if self.due(at.plus_ms(1000 << member.ends)) {
                            self.actions.insert(Action::Rerun { id: member.id.clone() });
                        }
                    }
                    _ => failing = Some(member.id.clone()),
                }
            } else if !ended && member.phase != InstancePhase::Ready {
                open += 1;
            }
        }
        for place in 0..asked {
            let taken = self.members.iter().any(|it| it.place == place && self.is_current(it));
            if !taken {
                open += 1;
                if !self.desired.hold {
                    self.actions.insert(Action::Start { place });
                }
            }
        }
        self.progress(failing, open == 0)
    }
}

#[cfg(test)]
mod tests;
