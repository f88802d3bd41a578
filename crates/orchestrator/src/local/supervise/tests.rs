//! Rows: what is asked, what there is, what is done.

use super::*;
use InstancePhase::{BackOff, Draining, Ended, Pending, Ready, Starting, Stopping, Unready};

const NOW: Timestamp = Timestamp(1_000_000);

fn id(number: u64) -> InstanceId {
    InstanceId::from_parts(number, 0)
}

fn desired(kind: ComponentKind, replicas: u32) -> Desired {
    let rollout = RolloutSpec { max_surge: 1, min_ready_ms: 0, ..RolloutSpec::default() };
    Desired { kind, replicas, template: "new".to_owned(), rollout, hold: false, serves: true }
}

fn member(number: u64, template: &str, phase: InstancePhase) -> Member {
    Member {
        id: id(number),
        template: template.to_owned(),
        place: 0,
        phase,
        ends: 0,
        waiting_since: NOW,
        ready_since: (phase == Ready).then_some(NOW),
        drain_since: (phase == Draining).then_some(NOW),
        released: false,
        ended: (phase == Ended).then_some((NOW, None)),
    }
}

fn at(place: u32, it: Member) -> Member {
    Member { place, ..it }
}

fn ended(ends: u32, status: i32, it: Member) -> Member {
    Member { ends, ended: Some((NOW, Some(status))), ..it }
}

fn crashed(ends: u32, it: Member) -> Member {
    Member { ends, ..it }
}

fn start(place: u32) -> Action {
    Action::Start { place }
}

fn drain(number: u64) -> Action {
    Action::Drain { id: id(number) }
}

fn stop(number: u64) -> Action {
    Action::Stop { id: id(number) }
}

fn discard(number: u64) -> Action {
    Action::Discard { id: id(number) }
}

#[track_caller]
fn row(desired: &Desired, members: &[Member], actions: &[Action], progress: Progress) {
    let found = step(desired, members, false, NOW);
    let mut actions = actions.to_vec();
    actions.sort();
    assert_eq!((found.actions, found.progress), (actions, progress));
}

#[test]
fn stateless_components_start_and_scale() {
    let asked = |n| desired(ComponentKind::Stateless, n);
    row(&asked(2), &[], &[start(0), start(1)], Progress::Moving);
    row(&asked(2), &[member(1, "new", Starting)], &[start(0)], Progress::Moving);
    row(&asked(1), &[member(1, "new", Ready)], &[], Progress::Done);
    row(&asked(1), &[member(1, "new", Ready), member(2, "new", Ready)], &[drain(2)], Progress::Moving);
    row(&asked(1), &[member(1, "new", Pending), member(2, "new", Ready)], &[stop(1)], Progress::Moving);
    row(&asked(0), &[member(1, "new", Ready), member(2, "old", Starting)], &[drain(1), stop(2)], Progress::Moving);
    row(&asked(0), &[], &[], Progress::Done);
    row(&Desired { hold: true, ..asked(1) }, &[], &[], Progress::Moving);
    row(&Desired { hold: true, ..asked(1) }, &[member(1, "old", Ready)], &[], Progress::Moving);
}

#[test]
fn a_change_is_rolled_out_with_one_more() {
    let asked = |n| desired(ComponentKind::Stateless, n);
    let old = |number| member(number, "old", Ready);
    let new = |number, phase| member(number, "new", phase);
    row(&asked(1), &[old(1)], &[start(0)], Progress::Moving);
    row(&asked(1), &[old(1), new(2, Starting)], &[], Progress::Moving);
    row(&asked(1), &[old(1), new(2, Ready)], &[drain(1)], Progress::Moving);
    row(&asked(1), &[member(1, "old", Draining), new(2, Ready)], &[], Progress::Moving);
    row(&asked(3), &[old(1), old(2), old(3)], &[start(0)], Progress::Moving);
    row(&asked(3), &[old(1), old(2), old(3), new(4, Ready)], &[drain(1)], Progress::Moving);
    row(&asked(3), &[member(1, "old", Stopping), old(2), old(3), new(4, Ready)], &[start(0)], Progress::Moving);
    row(&asked(3), &[old(1), new(4, Ready)], &[start(0), start(1)], Progress::Moving);
    // Old ones that do not serve are replaced at once.
    row(&asked(1), &[member(1, "old", BackOff)], &[start(0), stop(1)], Progress::Moving);
    row(&asked(1), &[member(1, "old", Unready)], &[start(0), drain(1)], Progress::Moving);
    // Without surge one old leaves first.
    let mut tight = asked(2);
    tight.rollout.max_surge = 0;
    row(&tight, &[old(1), old(2)], &[drain(1)], Progress::Moving);
    row(&tight, &[old(2)], &[start(0)], Progress::Moving);
    row(&tight, &[old(2), new(3, Starting)], &[], Progress::Moving);
}

#[test]
fn a_new_instance_counts_when_it_was_ready_for_a_while() {
    let mut asked = desired(ComponentKind::Stateless, 1);
    asked.rollout.min_ready_ms = 2_000;
    let (old, new) = (member(1, "old", Ready), member(2, "new", Ready));
    let look = |members: &[Member], after_ms| {
        let it = step(&asked, members, false, NOW.plus_ms(after_ms));
        (it.actions, it.progress, it.wake_at)
    };
    let both = [old.clone(), new.clone()];
    assert_eq!(look(&both, 0), (vec![], Progress::Moving, Some(NOW.plus_ms(2_000))));
    assert_eq!(look(&both, 2_000), (vec![drain(1)], Progress::Moving, None));
    let first = std::slice::from_ref(&new);
    assert_eq!(look(first, 1_999).1, Progress::Moving, "the first deploy waits as well");
    assert_eq!(look(first, 2_000).1, Progress::Done);
    // One that ended before waits longer.
    let again = [old.clone(), crashed(1, new.clone())];
    assert_eq!(look(&again, 2_000), (vec![], Progress::Moving, Some(NOW.plus_ms(10_000))));
    assert_eq!(look(&again, 10_000).0, [drain(1)]);
    // What was reached once is not on its way again because a program was started anew.
    assert_eq!(step(&asked, &[crashed(1, new.clone())], true, NOW).progress, Progress::Done);

    let mut asked = desired(ComponentKind::Stateful, 2);
    asked.rollout.min_ready_ms = 2_000;
    let (low, high) = (at(0, old), at(1, new));
    assert_eq!(step(&asked, &[low.clone(), high.clone()], false, NOW).actions, []);
    assert_eq!(step(&asked, &[low, high], false, NOW.plus_ms(2_000)).actions, [drain(1)]);
}

#[test]
fn a_failing_change_halts_and_the_old_keep_serving() {
    let asked = desired(ComponentKind::Stateless, 2);
    let old = |number| member(number, "old", Ready);
    let halted = |number| Progress::Halted { cause: id(number) };
    let failing = crashed(3, member(3, "new", BackOff));
    row(&asked, &[old(1), old(2), failing.clone()], &[], halted(3));
    row(&asked, &[old(1), member(2, "old", Unready), failing.clone()], &[], halted(3));
    row(&asked, &[old(1), old(2), crashed(2, member(3, "new", BackOff))], &[], Progress::Moving);
    // Between two ends it may look ready; that does not count yet.
    row(&asked, &[old(1), old(2), crashed(3, member(3, "new", Ready))], &[], halted(3));
    let late = Member { waiting_since: Timestamp(NOW.0 - 60_000), ..member(3, "new", Starting) };
    row(&asked, &[old(1), old(2), late.clone()], &[], halted(3));
    row(&asked, &[old(1), old(2), member(3, "new", Ended)], &[], halted(3));
    // A further change replaces the failing one without waiting.
    let next = Desired { template: "next".to_owned(), ..asked.clone() };
    row(&next, &[old(1), old(2), failing.clone()], &[start(0), stop(3)], Progress::Moving);
    // The first deploy halts as well, and others may still come up.
    row(&asked, &[failing.clone(), member(4, "new", Ready)], &[], halted(3));
    // What was reached once is not called a halted rollout.
    assert_eq!(step(&asked, &[failing, member(4, "new", Ready)], true, NOW).progress, Progress::Moving);
}

#[test]
fn what_could_not_be_prepared_is_tried_again_after_a_pause() {
    let asked = desired(ComponentKind::Stateless, 1);
    let found = step(&asked, &[member(1, "new", Ended)], false, NOW);
    assert_eq!((found.actions, found.wake_at), (vec![], Some(NOW.plus_ms(FAULT_PAUSE_MS))));
    assert_eq!(
        step(&asked, &[member(1, "new", Ended)], false, NOW.plus_ms(FAULT_PAUSE_MS)).actions,
        [start(0), discard(1)]
    );
}

#[test]
fn draining_ends_by_release_or_by_time() {
    let asked = desired(ComponentKind::Stateless, 1);
    let (serving, leaving) = (member(2, "new", Ready), member(1, "old", Draining));
    let found = step(&asked, &[leaving.clone(), serving.clone()], false, NOW);
    assert_eq!((found.actions, found.wake_at), (vec![], Some(NOW.plus_ms(10_000))));
    let released = Member { released: true, ..leaving.clone() };
    assert_eq!(step(&asked, &[released, serving.clone()], false, NOW).actions, [stop(1)]);
    assert_eq!(step(&asked, &[leaving, serving], false, NOW.plus_ms(10_000)).actions, [stop(1)]);
}

#[test]
fn stateful_components_go_one_place_after_another() {
    let asked = |n| desired(ComponentKind::Stateful, n);
    let (old, new) = (
        |place, phase| at(place, member(1 + u64::from(place), "old", phase)),
        |place, phase| at(place, member(11 + u64::from(place), "new", phase)),
    );
    row(&asked(2), &[], &[start(0)], Progress::Moving);
    row(&asked(2), &[new(0, Starting)], &[], Progress::Moving);
    row(&asked(2), &[new(0, Ready)], &[start(1)], Progress::Moving);
    row(&asked(2), &[new(0, Ready), new(1, Ready)], &[], Progress::Done);
    row(&asked(2), &[old(0, Ready), old(1, Ready)], &[drain(2)], Progress::Moving);
    row(&asked(2), &[old(0, Ready), old(1, Draining)], &[], Progress::Moving);
    row(&asked(2), &[old(0, Ready), old(1, Stopping)], &[], Progress::Moving);
    row(&asked(2), &[old(0, Ready)], &[start(1)], Progress::Moving);
    row(&asked(2), &[old(0, Ready), new(1, Starting)], &[], Progress::Moving);
    row(&asked(2), &[old(0, Ready), new(1, Ready)], &[drain(1)], Progress::Moving);
    row(&asked(2), &[old(0, Ready), crashed(3, new(1, BackOff))], &[], Progress::Halted { cause: id(12) });
    row(&asked(2), &[old(0, BackOff), old(1, Ready)], &[stop(1)], Progress::Moving);
    row(&asked(1), &[new(0, Ready), new(1, Ready), new(2, Ready)], &[drain(12), drain(13)], Progress::Moving);
}

#[test]
fn jobs_run_once_for_each_template() {
    let asked = desired(ComponentKind::Job, 1);
    row(&asked, &[], &[start(0)], Progress::Moving);
    row(&asked, &[member(1, "new", Ready)], &[], Progress::Done);
    row(&asked, &[ended(1, 0, member(1, "new", Ended))], &[], Progress::Done);
    row(&asked, &[ended(1, 0, member(1, "old", Ended))], &[discard(1), start(0)], Progress::Moving);
    row(&asked, &[member(1, "old", Ready)], &[drain(1), start(0)], Progress::Moving);
    row(&asked, &[ended(3, 7, member(1, "new", Ended))], &[], Progress::Halted { cause: id(1) });
    let again = ended(1, 7, member(1, "new", Ended));
    row(&asked, std::slice::from_ref(&again), &[], Progress::Moving);
    assert_eq!(step(&asked, &[again], false, NOW.plus_ms(2_000)).actions, [Action::Rerun { id: id(1) }]);
    // A stopped job that has ended is not run again by a start.
    row(&desired(ComponentKind::Job, 0), &[ended(1, 0, member(1, "new", Ended))], &[], Progress::Done);
}
