//! What a holder does next: pure, decided from what happened.
//!
//! What must hold: at most one worker owns; a worker is told to drain only when another one serves, or when everything
//! stops; while nobody serves and nothing stops, somebody starts.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long a worker may take to serve.
const START: Duration = Duration::from_secs(60);
/// How much longer than it said a worker may drain.
const MERCY: Duration = Duration::from_secs(5);
/// Pause before a start after several early deaths: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A worker that served so long does not count as an early death.
const SETTLED: Duration = Duration::from_secs(10);

/// How far a worker is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// It does not serve yet.
    Starting,
    /// It serves.
    Serving,
    /// It was told to drain, and may still write.
    Releasing,
    /// It finishes what is open.
    Draining,
}

/// One worker that is alive.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) slot: u32,
    pub(super) phase: Phase,
    /// How long it may drain.
    pub(super) drain: Duration,
    /// When its phase began.
    pub(super) since: Instant,
    /// Whether it was told that it owns.
    owns: bool,
}

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A worker serves.
    Ready { slot: u32, drain: Duration },
    /// A worker writes nothing any more.
    Released { slot: u32 },
    /// A worker is gone.
    Ended { slot: u32 },
    /// Somebody wants a new executable.
    Upgrade,
    /// Somebody wants the end.
    Stop,
    /// Time passed, or nothing: what is due?
    Look,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Start a worker: of the next executable, or of this one.
    Spawn { slot: u32, next: bool },
    /// Tell a worker that it owns.
    Own { slot: u32 },
    /// Tell a worker to drain.
    Drain { slot: u32, successor: bool },
    /// End a worker at once.
    Kill { slot: u32 },
    /// The next executable serves: become it.
    Renew,
    /// The upgrade did not work; everything is as before.
    UpgradeFailed,
    /// End with this exit status.
    Exit { status: u8 },
}

/// Everything that a holder knows about its workers.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) workers: Vec<Worker>,
    /// The slot that starts from the next executable.
    upgrading: Option<u32>,
    /// An upgrade was asked for and waits for somebody who serves.
    upgrade_wanted: bool,
    stopping: bool,
    /// Whether any worker has ever served.
    served: bool,
    early_deaths: u32,
    /// When a worker may be started again.
    not_before: Option<Instant>,
}

impl Plan {
    /// A plan that goes on with workers of the holder before.
    pub(super) fn resumed(workers: impl IntoIterator<Item = (u32, Phase, Duration)>, now: Instant) -> Self {
        let worker = |(slot, phase, drain)| Worker { slot, phase, drain, since: now, owns: phase == Phase::Serving };
        Self { workers: workers.into_iter().map(worker).collect(), served: true, ..Self::default() }
    }

    /// Whether no worker has served before.
    pub(super) fn is_first(&self) -> bool {
        !self.served
    }

    /// Whether everything ends.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether this worker does not serve yet.
    pub(super) fn is_starting(&self, slot: u32) -> bool {
        self.workers.iter().any(|it| it.slot == slot && it.phase == Phase::Starting)
    }

    /// What is to be done now that `event` happened.
    pub(super) fn next(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Ready { slot, drain } => self.ready(slot, drain, now, &mut actions),
            Event::Released { slot } => {
                let Some(worker) = self.find(slot).filter(|it| it.phase != Phase::Starting) else { return actions };
                let before = std::mem::replace(&mut worker.phase, Phase::Draining);
                let since = std::mem::replace(&mut worker.since, now);
                if before == Phase::Serving {
                    self.died(before, since, now); // nobody told it to: it is broken
                }
            }
            Event::Ended { slot } => self.ended(slot, now, &mut actions),
            Event::Upgrade => self.upgrade_wanted = self.upgrading.is_none(),
            Event::Stop => self.stop(now, &mut actions),
            Event::Look => self.overdue(now, &mut actions),
        }
        self.settle(now, &mut actions);
        actions
    }

    /// When to look again, if nothing happens before.
    pub(super) fn wake(&self) -> Option<Instant> {
        let deadlines = self.workers.iter().filter_map(deadline);
        deadlines.chain(self.not_before).min()
    }

    fn ready(&mut self, slot: u32, drain: Duration, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.find(slot).filter(|it| it.phase == Phase::Starting) else { return };
        (worker.phase, worker.since, worker.drain) = (Phase::Serving, now, drain);
        self.served = true;
        if self.stopping {
            actions.extend(self.drain(slot, false, now));
            return;
        }
        let others: Vec<u32> =
            self.workers.iter().filter(|it| it.phase == Phase::Serving && it.slot != slot).map(|it| it.slot).collect();
        for other in others {
            actions.extend(self.drain(other, true, now));
        }
    }

    fn ended(&mut self, slot: u32, now: Instant, actions: &mut Vec<Action>) {
        let Some(at) = self.workers.iter().position(|it| it.slot == slot) else { return };
        let worker = self.workers.remove(at);
        if self.upgrading == Some(slot) && worker.phase == Phase::Starting {
            self.upgrading = None;
            actions.push(Action::UpgradeFailed);
        }
        self.died(worker.phase, worker.since, now);
    }

    /// How long to wait after a death in `phase`, which had begun at `since`.
    fn died(&mut self, phase: Phase, since: Instant, now: Instant) {
        if phase == Phase::Serving && now - since >= SETTLED {
            self.early_deaths = 0;
        } else if matches!(phase, Phase::Starting | Phase::Serving) {
            self.early_deaths += 1;
        }
        let pause = match self.early_deaths {
            // The first time at once: whoever connects waits for it.
            0 | 1 => Duration::ZERO,
            more => PAUSE.0.saturating_mul(1 << (more - 2).min(10)).min(PAUSE.1),
        };
        self.not_before = Some(now + pause);
    }

    fn stop(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let again = std::mem::replace(&mut self.stopping, true);
        let slots: Vec<(u32, Phase)> = self.workers.iter().map(|it| (it.slot, it.phase)).collect();
        for (slot, phase) in slots {
            match phase {
                _ if again => actions.push(Action::Kill { slot }),
                Phase::Serving => actions.extend(self.drain(slot, false, now)),
                Phase::Starting => actions.push(Action::Kill { slot }),
                Phase::Releasing | Phase::Draining => {}
            }
        }
    }

    fn drain(&mut self, slot: u32, successor: bool, now: Instant) -> Option<Action> {
        let worker = self.find(slot)?;
        (worker.phase, worker.since) = (Phase::Releasing, now);
        Some(Action::Drain { slot, successor })
    }

    fn overdue(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for worker in self.workers.iter_mut().filter(|it| deadline(it).is_some_and(|at| at <= now)) {
            worker.since = now; // once per deadline, however long the kernel takes
            actions.push(Action::Kill { slot: worker.slot });
        }
    }

    /// What follows from how things are, whatever happened.
    fn settle(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let writes = self.workers.iter().any(|it| it.owns && matches!(it.phase, Phase::Serving | Phase::Releasing));
        if let Some(worker) = self.workers.iter_mut().find(|it| it.phase == Phase::Serving && !writes) {
            worker.owns = true;
            let slot = worker.slot;
            actions.push(Action::Own { slot });
            if self.upgrading.take_if(|it| *it == slot).is_some() {
                actions.push(Action::Renew);
            }
        }
        if self.stopping {
            if self.workers.is_empty() {
                actions.push(Action::Exit { status: 0 });
            }
            return;
        }
        if self.upgrade_wanted && self.in_phase(Phase::Serving).is_some() {
            self.upgrade_wanted = false;
            let slot = self.free_slot();
            self.upgrading = Some(slot);
            self.spawn(slot, true, now, actions);
        }
        let somebody = self.workers.iter().any(|it| matches!(it.phase, Phase::Starting | Phase::Serving));
        if somebody {
            self.not_before = None;
            return;
        }
        if !self.served && self.early_deaths > 0 {
            actions.push(Action::Exit { status: 1 });
        } else if self.not_before.is_none_or(|at| at <= now) {
            let slot = self.free_slot();
            self.spawn(slot, false, now, actions);
        }
    }

    fn spawn(&mut self, slot: u32, next: bool, now: Instant, actions: &mut Vec<Action>) {
        self.not_before = None;
        self.workers.push(Worker { slot, phase: Phase::Starting, drain: Duration::ZERO, since: now, owns: false });
        actions.push(Action::Spawn { slot, next });
    }

    fn find(&mut self, slot: u32) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|it| it.slot == slot)
    }

    fn in_phase(&self, phase: Phase) -> Option<&Worker> {
        self.workers.iter().find(|it| it.phase == phase)
    }

    fn free_slot(&self) -> u32 {
        (1..).find(|slot| self.workers.iter().all(|it| it.slot != *slot)).unwrap_or(u32::MAX)
    }
}

/// When a worker has to be through with its phase.
fn deadline(worker: &Worker) -> Option<Instant> {
    match worker.phase {
        Phase::Starting => Some(worker.since + START),
        Phase::Serving => None,
        Phase::Releasing | Phase::Draining => Some(worker.since + worker.drain + MERCY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ready(slot: u32) -> Event {
        Event::Ready { slot, drain: SECOND }
    }

    /// A plan with one worker in slot 1 that serves and owns.
    fn serving(now: Instant) -> Plan {
        let mut plan = Plan::default();
        assert_eq!(plan.next(Event::Look, now), [Action::Spawn { slot: 1, next: false }]);
        assert_eq!(plan.next(ready(1), now), [Action::Own { slot: 1 }]);
        plan
    }

    #[test]
    fn a_worker_that_dies_is_started_again_later_and_later() {
        let mut now = Instant::now();
        let mut plan = serving(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let mut actions = plan.next(Event::Ended { slot: 1 }, now);
            if actions.is_empty() {
                let at = plan.wake().unwrap();
                pauses.push((at - now).as_millis());
                assert_eq!(plan.next(Event::Look, now), []);
                now = at;
                actions = plan.next(Event::Look, now);
            }
            assert_eq!(actions, [Action::Spawn { slot: 1, next: false }]);
            plan.next(ready(1), now);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000]);
        now += SETTLED;
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), [Action::Spawn { slot: 1, next: false }]);
    }

    #[test]
    fn what_never_served_is_given_up() {
        let now = Instant::now();
        let mut plan = Plan::default();
        plan.next(Event::Look, now);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), [Action::Exit { status: 1 }]);
        let mut plan = Plan::default();
        plan.next(Event::Look, now);
        assert_eq!(plan.wake(), Some(now + START));
        assert_eq!(plan.next(Event::Look, now + START), [Action::Kill { slot: 1 }]);
    }

    #[test]
    fn an_upgrade_serves_before_the_old_one_drains() {
        let now = Instant::now();
        let mut plan = serving(now);
        assert_eq!(plan.next(Event::Upgrade, now), [Action::Spawn { slot: 2, next: true }]);
        assert_eq!(plan.next(Event::Upgrade, now), []);
        assert_eq!(plan.next(ready(2), now), [Action::Drain { slot: 1, successor: true }]);
        assert_eq!(plan.next(Event::Released { slot: 1 }, now), [Action::Own { slot: 2 }, Action::Renew]);
        assert_eq!(plan.wake(), Some(now + SECOND + MERCY));
        assert_eq!(plan.next(Event::Look, now + SECOND + MERCY), [Action::Kill { slot: 1 }]);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), []);
        assert_eq!(plan.next(Event::Upgrade, now), [Action::Spawn { slot: 1, next: true }]);
    }

    #[test]
    fn an_upgrade_survives_the_death_of_either_side() {
        let now = Instant::now();
        let mut plan = serving(now);
        plan.next(Event::Upgrade, now);
        assert_eq!(plan.next(Event::Ended { slot: 2 }, now), [Action::UpgradeFailed]);
        plan.next(Event::Upgrade, now);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), []);
        assert_eq!(plan.next(ready(2), now), [Action::Own { slot: 2 }, Action::Renew]);
        let mut plan = serving(now);
        plan.next(Event::Upgrade, now);
        plan.next(ready(2), now);
        // It died before it let go.
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), [Action::Own { slot: 2 }, Action::Renew]);
    }

    #[test]
    fn a_stop_drains_and_a_second_one_kills() {
        let now = Instant::now();
        let mut plan = serving(now);
        assert_eq!(plan.next(Event::Stop, now), [Action::Drain { slot: 1, successor: false }]);
        assert_eq!(plan.next(Event::Released { slot: 1 }, now), []);
        assert_eq!(plan.next(Event::Stop, now), [Action::Kill { slot: 1 }]);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), [Action::Exit { status: 0 }]);
        let mut plan = serving(now);
        plan.next(Event::Upgrade, now);
        let stopped = [Action::Drain { slot: 1, successor: false }, Action::Kill { slot: 2 }];
        assert_eq!(plan.next(Event::Stop, now), stopped);
        assert_eq!(plan.next(Event::Ended { slot: 2 }, now), [Action::UpgradeFailed]);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), [Action::Exit { status: 0 }]);
    }

    #[test]
    fn a_worker_that_leaves_by_itself_is_replaced_while_it_drains() {
        let now = Instant::now();
        let mut plan = serving(now);
        assert_eq!(plan.next(Event::Released { slot: 1 }, now), [Action::Spawn { slot: 2, next: false }]);
        // An upgrade waits until somebody serves.
        assert_eq!(plan.next(Event::Upgrade, now), []);
        let actions = [Action::Own { slot: 2 }, Action::Spawn { slot: 3, next: true }];
        assert_eq!(plan.next(ready(2), now), actions);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), []);
    }

    #[test]
    fn a_resumed_plan_goes_on() {
        let now = Instant::now();
        let workers = [(2, Phase::Serving, SECOND), (1, Phase::Draining, SECOND)];
        let mut plan = Plan::resumed(workers, now);
        assert_eq!(plan.next(Event::Look, now), []);
        assert_eq!(plan.next(Event::Ended { slot: 1 }, now), []);
        assert_eq!(plan.next(Event::Ended { slot: 2 }, now), [Action::Spawn { slot: 1, next: false }]);
    }
}
