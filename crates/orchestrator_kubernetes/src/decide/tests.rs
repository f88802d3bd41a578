//! Rollouts, drains and stops as numbers of pods, row by row.

use super::*;
use crate::facts::tests::pod;
use crate::seen::{Detail, ObjectSeen, Record, Seen};
use arco_model::id::ComponentId;
use arco_model::plan::WorkloadPlan;
use arco_model::spec::RolloutSpec;
use serde_json::json;

/// When the decision is made: ten seconds after the pods were made.
const NOW: Timestamp = Timestamp(1_767_225_610_000);

fn desired(kind: ComponentKind, replicas: u32) -> Desired {
    let rollout = RolloutSpec { drain_ms: 60_000, min_ready_ms: 0, ..RolloutSpec::default() };
    Desired { kind, replicas, template: "new".to_owned(), rollout, hold: false, serves: true }
}

/// A cluster: pods by name, key, place and whether they are ready; workloads by kind, key and number of pods.
fn seen(pods: &[(&str, &str, u32, bool)], workloads: &[(Kind, &str, u32)]) -> ComponentSeen {
    let (seen, id) = (Seen::default(), ComponentId::from_parts(1, 1));
    for (number, (name, key, place, ready)) in pods.iter().enumerate() {
        let mut it = pod(name, json!({}));
        it.created = it.created.plus_ms(number as u64); // the earlier named are older
        it.id = crate::names::instance_id(it.created.0, &it.uid);
        (it.key, it.place, it.ready) = ((*key).to_owned(), *place, *ready);
        seen.put(&id, 1, Record::Pod(Box::new(it)));
    }
    for (kind, key, replicas) in workloads {
        let detail = Detail { replicas: *replicas, ..Detail::default() };
        let object = ObjectSeen { key: (*key).to_owned(), detail, ..ObjectSeen::default() };
        seen.put(&id, 1, Record::Object(*kind, format!("w-{key}"), Box::new(object)));
    }
    seen.component(&id)
}

fn leaving(pods: &[(&str, bool)]) -> BTreeMap<String, Leaving> {
    let of = |(name, released): &(&str, bool)| {
        (format!("uid-{name}"), Leaving { since: Some(NOW), released: *released, overdue: false })
    };
    pods.iter().map(of).collect()
}

fn decided(desired: &Desired, seen: &ComponentSeen, leaving: &BTreeMap<String, Leaving>) -> Decision {
    decide(&Situation { desired, seen, leaving, completed: false, now: NOW })
}

fn pods(decision: &Decision) -> Vec<(&str, u32)> {
    decision.pods.iter().map(|(key, pods)| (key.as_str(), *pods)).collect()
}

const D: Kind = Kind::Deployment;
const S: Kind = Kind::StatefulSet;
use ComponentKind::{Job, Stateful, Stateless};

#[test]
fn a_new_component_gets_its_pods_at_once_and_the_same_again_while_they_come() {
    let two = desired(Stateless, 2);
    assert_eq!(pods(&decided(&two, &seen(&[], &[]), &leaving(&[]))), [("new", 2)]);
    let coming = seen(&[("a", "new", 0, false)], &[(D, "new", 2)]);
    assert_eq!(pods(&decided(&two, &coming, &leaving(&[]))), [("new", 2)]);
    let there = decided(&two, &seen(&[("a", "new", 0, true), ("b", "new", 0, true)], &[(D, "new", 2)]), &leaving(&[]));
    assert_eq!((pods(&there).as_slice(), &there.progress), ([("new", 2)].as_slice(), &Some(Progress::Done)));
    assert!(there.drain.is_empty() && there.delete.is_empty() && there.wake_at.is_none());
}

#[test]
fn a_change_is_rolled_out_one_by_one_and_the_old_leaves_only_when_released() {
    let two = desired(Stateless, 2);
    let old = [("a", "old", 0, true), ("b", "old", 0, true)];
    let begun = decided(&two, &seen(&old, &[(D, "old", 2)]), &leaving(&[]));
    assert_eq!(pods(&begun), [("new", 1), ("old", 2)]);

    let with_new = [old[0], old[1], ("c", "new", 0, true)];
    let workloads = [(D, "old", 2), (D, "new", 1)];
    let ready = decided(&two, &seen(&with_new, &workloads), &leaving(&[]));
    assert_eq!((pods(&ready), ready.drain.as_slice()), (vec![("new", 1), ("old", 2)], ["a".to_owned()].as_slice()));

    let drains = decided(&two, &seen(&with_new, &workloads), &leaving(&[("a", false)]));
    assert_eq!(pods(&drains), [("new", 2), ("old", 2)], "one that drains is still there");
    assert!(drains.wake_at.is_some());
    let released = decided(&two, &seen(&with_new, &workloads), &leaving(&[("a", true)]));
    assert_eq!(pods(&released), [("new", 2), ("old", 1)]);
    assert!(released.first.is_empty(), "it is the only one that drains, and marked already");

    let done = seen(&[("c", "new", 0, true), ("d", "new", 0, true)], &[(D, "old", 0), (D, "new", 2)]);
    let done = decided(&two, &done, &leaving(&[]));
    assert_eq!((pods(&done), done.delete.as_slice()), (vec![("new", 2)], [(D, "w-old".to_owned())].as_slice()));
}

#[test]
fn a_change_is_done_only_when_the_old_are_gone() {
    let one = desired(Stateless, 1);
    let mut cluster = seen(&[("a", "old", 0, true), ("b", "new", 0, true)], &[(D, "old", 0), (D, "new", 1)]);
    if let Some((_, it)) = cluster.pods.get_mut("a") {
        (it.deleting, it.over) = (true, Some(Default::default()));
    }
    let it = decided(&one, &cluster, &leaving(&[]));
    assert_eq!((it.progress, it.delete.len()), (Some(Progress::Moving), 0));
}

/// What the cluster says of a pod whose node is silent: first nothing more than that, then that it was told to end.
fn silent(cluster: &mut ComponentSeen, name: &str, deleting: bool) {
    if let Some((_, it)) = cluster.pods.get_mut(name) {
        (it.ready, it.lost, it.deleting) = (false, true, deleting);
        it.gone_by = deleting.then_some(NOW);
    }
}

#[test]
fn what_a_silent_node_keeps_is_not_waited_for() {
    let two = desired(Stateless, 2);
    let of = |pods: &[(&str, &str, u32, bool)], workloads: &[(Kind, &str, u32)], deleting: bool| {
        let mut cluster = seen(pods, workloads);
        silent(&mut cluster, "a", deleting);
        decided(&two, &cluster, &leaving(&[]))
    };
    let (a, b, c) = (("a", "new", 0, true), ("b", "new", 0, true), ("c", "new", 0, true));
    let now = of(&[a, b], &[(D, "new", 2)], false);
    assert_eq!((pods(&now), &now.progress), (vec![("new", 2)], &Some(Progress::Moving)), "it may come back");
    let evicted = of(&[a, b, ("c", "new", 0, false)], &[(D, "new", 2)], true);
    assert_eq!((pods(&evicted), &evicted.progress), (vec![("new", 2)], &Some(Progress::Moving)), "another one starts");
    let replaced = of(&[a, b, c], &[(D, "new", 2)], true);
    assert_eq!((pods(&replaced), &replaced.progress), (vec![("new", 2)], &Some(Progress::Done)));

    assert_eq!(replaced.wake_at, None, "nothing more is to happen");

    // A change goes past one that is lost, and leaves nothing of the old template behind.
    let old = ("a", "old", 0, true);
    let lost = of(&[old, b, c], &[(D, "old", 1), (D, "new", 2)], false);
    assert_eq!((pods(&lost), lost.drain.len()), (vec![("new", 2), ("old", 0)], 0), "nobody waits for it to drain");
    let gone = of(&[old, b, c], &[(D, "old", 0), (D, "new", 2)], true);
    assert_eq!((&gone.progress, gone.delete.as_slice()), (&Some(Progress::Done), [(D, "w-old".to_owned())].as_slice()));
}

#[test]
fn a_pod_whose_end_is_never_confirmed_is_waited_for_a_while() {
    let one = desired(Stateless, 1);
    let mut cluster = seen(&[("a", "new", 0, false), ("b", "new", 0, true)], &[(D, "new", 1)]);
    if let Some((_, it)) = cluster.pods.get_mut("a") {
        (it.deleting, it.gone_by) = (true, Some(NOW));
    }
    let waits = decided(&one, &cluster, &leaving(&[]));
    assert_eq!((&waits.progress, waits.wake_at), (&Some(Progress::Moving), Some(NOW.plus_ms(60_000))));
    let overdue = BTreeMap::from([("uid-a".to_owned(), Leaving { overdue: true, ..Leaving::default() })]);
    assert_eq!(decided(&one, &cluster, &overdue).progress, Some(Progress::Done));
}

#[test]
fn an_instance_on_a_silent_node_fails_no_change_however_long_it_is_silent() {
    for kind in [Stateless, Stateful] {
        let two = desired(kind, 2);
        let workload = if kind == Stateful { (S, "", 2) } else { (D, "new", 2) };
        let mut cluster = seen(&[("a", "new", 0, true), ("b", "new", 1, true)], &[workload]);
        silent(&mut cluster, "a", false);
        // Another process takes over: it does not know what was reached before.
        let now = NOW.plus_ms(3_600_000);
        let it = Situation { desired: &two, seen: &cluster, leaving: &leaving(&[]), completed: false, now };
        assert_eq!(decide(&it).progress, Some(Progress::Moving), "{kind:?}");
    }
}

#[test]
fn a_change_is_not_halted_by_a_new_instance_that_was_starting_when_its_node_fell_silent() {
    let two = desired(Stateless, 2);
    let old = [("a", "old", 0, true), ("b", "old", 0, true)];
    let of = |more: &[(&str, &str, u32, bool)], lost: Option<bool>| {
        let mut cluster = seen(&[&old[..], more].concat(), &[(D, "old", 2), (D, "new", 1)]);
        if let Some(deleting) = lost {
            silent(&mut cluster, "c", deleting);
        }
        // Long after it should have been ready.
        let now = NOW.plus_ms(3_600_000);
        decide(&Situation { desired: &two, seen: &cluster, leaving: &leaving(&[]), completed: false, now })
    };
    let (starts, ready) = (("c", "new", 0, false), ("d", "new", 0, true));
    let fails = of(&[starts], None);
    assert!(matches!(fails.progress, Some(Progress::Halted { .. })), "it had time enough: {fails:?}");
    let lost = of(&[starts], Some(false));
    assert_eq!((pods(&lost), &lost.progress), (vec![("new", 1), ("old", 2)], &Some(Progress::Moving)));
    // The cluster tells it to end and makes another one elsewhere: the change goes on with that.
    let replaced = of(&[starts, ready], Some(true));
    assert_eq!((pods(&replaced), replaced.drain.len()), (vec![("new", 1), ("old", 2)], 1), "{replaced:?}");
    assert_eq!(replaced.progress, Some(Progress::Moving));
}

#[test]
fn a_place_on_a_silent_node_waits_and_one_that_is_not_asked_for_keeps_nothing_open() {
    let pods_now = [("p-0", "new", 0, true), ("p-1", "new", 1, true)];
    let mut cluster = seen(&pods_now, &[(S, "", 2)]);
    silent(&mut cluster, "p-1", true);
    let two = decided(&desired(Stateful, 2), &cluster, &leaving(&[]));
    assert_eq!((pods(&two), &two.progress, two.delete_pods.len()), (vec![("new", 2)], &Some(Progress::Moving), 0));
    let one = decided(&desired(Stateful, 1), &cluster, &leaving(&[]));
    assert_eq!((pods(&one), &one.progress), (vec![("new", 1)], &Some(Progress::Done)));
}

#[test]
fn of_two_that_drain_the_released_one_goes_first() {
    let one = desired(Stateless, 1);
    let all = [("a", "new", 0, true), ("b", "new", 0, true), ("c", "new", 0, true)];
    let it = decided(&one, &seen(&all, &[(D, "new", 3)]), &leaving(&[("a", false), ("b", true)]));
    assert_eq!((pods(&it), it.first.as_slice()), (vec![("new", 2)], ["b".to_owned()].as_slice()));
}

#[test]
fn one_that_drained_and_that_no_shrinking_takes_makes_room_for_another() {
    let two = desired(Stateless, 2);
    let (a, b, c) = (("a", "new", 0, true), ("b", "new", 0, true), ("c", "new", 0, true));
    let of = |pods: &[(&str, &str, u32, bool)], replicas: u32, released: bool| {
        decided(&two, &seen(pods, &[(D, "new", replicas)]), &leaving(&[("c", released)]))
    };
    for (why, pods_now, replicas, released, wanted, deleted) in [
        ("it goes when its workload shrinks", vec![a, b, c], 3, true, 2, None),
        ("it has shrunk, and the cluster is about to follow", vec![a, b, c], 2, true, 2, None),
        ("`b` was not ready and went in its stead", vec![a, c], 2, true, 2, Some("c")),
        ("somebody may still talk with it", vec![a, c], 2, false, 3, None),
    ] {
        let it = of(&pods_now, replicas, released);
        let first = it.delete_pods.first().map(String::as_str);
        assert_eq!((pods(&it), first), (vec![("new", wanted)], deleted), "{why}");
    }
    // Three were asked, then two, and three again when it was let go of.
    let three = desired(Stateless, 3);
    let again = decided(&three, &seen(&[a, b, c], &[(D, "new", 3)]), &leaving(&[("c", true)]));
    assert_eq!((pods(&again), again.delete_pods.as_slice()), (vec![("new", 3)], ["c".to_owned()].as_slice()));
}

#[test]
fn a_change_whose_instances_fail_stops_and_the_old_keep_serving() {
    let two = desired(Stateless, 2);
    let mut cluster =
        seen(&[("a", "old", 0, true), ("b", "old", 0, true), ("c", "new", 0, false)], &[(D, "old", 2), (D, "new", 1)]);
    if let Some((_, it)) = cluster.pods.get_mut("c") {
        it.restarts = 3;
    }
    let it = decided(&two, &cluster, &leaving(&[]));
    assert!(matches!(it.progress, Some(Progress::Halted { .. })));
    assert_eq!((pods(&it), it.drain.len()), (vec![("new", 1), ("old", 2)], 0));
}

#[test]
fn a_pod_that_the_cluster_ended_is_replaced_by_its_workload_and_forgotten_later() {
    let one = desired(Stateless, 1);
    let mut cluster = seen(&[("a", "new", 0, false), ("b", "new", 0, true)], &[(D, "new", 1)]);
    if let Some((_, it)) = cluster.pods.get_mut("a") {
        it.over = Some(("Evicted".to_owned(), "low on memory".to_owned()));
    }
    let it = decided(&one, &cluster, &leaving(&[]));
    assert_eq!((pods(&it), &it.progress, it.delete_pods.len()), (vec![("new", 1)], &Some(Progress::Done), 0));
    let situation =
        Situation { desired: &one, seen: &cluster, leaving: &leaving(&[]), completed: true, now: NOW.plus_ms(600_000) };
    assert_eq!(decide(&situation).delete_pods, ["a"]);
}

#[test]
fn nothing_asked_drains_everything_and_makes_nothing() {
    let none = desired(Stateless, 0);
    assert_eq!(decided(&none, &seen(&[], &[]), &leaving(&[])).pods.len(), 0);
    let cluster = seen(&[("a", "new", 0, true)], &[(D, "new", 1)]);
    let it = decided(&none, &cluster, &leaving(&[]));
    assert_eq!((pods(&it), it.drain.as_slice()), (vec![("new", 1)], ["a".to_owned()].as_slice()));
    assert_eq!(pods(&decided(&none, &cluster, &leaving(&[("a", true)]))), [("new", 0)]);
}

#[test]
fn a_component_that_waits_for_a_binding_gets_no_pods() {
    let held = Desired { hold: true, ..desired(Stateless, 2) };
    assert_eq!(decided(&held, &seen(&[], &[]), &leaving(&[])).pods.len(), 0);
    let held = Desired { hold: true, ..desired(Stateful, 2) };
    assert_eq!(decided(&held, &seen(&[], &[]), &leaving(&[])).pods.len(), 0);
    let held = Desired { hold: true, ..desired(Job, 2) };
    assert_eq!(decided(&held, &seen(&[], &[]), &leaving(&[])).pods.len(), 0);
}

#[test]
fn places_are_replaced_from_the_highest_by_deleting_their_pods() {
    let three = desired(Stateful, 3);
    let pods_now = [("p-0", "old", 0, true), ("p-1", "old", 1, true), ("p-2", "old", 2, true)];
    let cluster = seen(&pods_now, &[(S, "", 3)]);
    let it = decided(&three, &cluster, &leaving(&[]));
    assert_eq!((pods(&it), it.drain.as_slice()), (vec![("new", 3)], ["p-2".to_owned()].as_slice()));
    let it = decided(&three, &cluster, &leaving(&[("p-2", true)]));
    assert_eq!((pods(&it), it.delete_pods.as_slice()), (vec![("new", 3)], ["p-2".to_owned()].as_slice()));
}

#[test]
fn places_beyond_what_is_asked_go_by_shrinking_highest_first() {
    let one = desired(Stateful, 1);
    let pods_now = [("p-0", "new", 0, true), ("p-1", "new", 1, true), ("p-2", "new", 2, true)];
    let cluster = seen(&pods_now, &[(S, "", 3)]);
    let it = decided(&one, &cluster, &leaving(&[]));
    assert_eq!((pods(&it), it.drain.len()), (vec![("new", 3)], 2));
    let lower_first = decided(&one, &cluster, &leaving(&[("p-1", true), ("p-2", false)]));
    assert_eq!((pods(&lower_first), lower_first.delete_pods.len()), (vec![("new", 3)], 0), "the highest goes first");
    let both = decided(&one, &cluster, &leaving(&[("p-1", true), ("p-2", true)]));
    assert_eq!((pods(&both), both.delete_pods.len()), (vec![("new", 1)], 0));
}

#[test]
fn a_job_is_made_once_for_each_template_and_ended_when_nothing_is_asked() {
    let one = desired(Job, 1);
    let it = decided(&one, &seen(&[], &[(Kind::Job, "old", 1)]), &leaving(&[]));
    assert_eq!((pods(&it), it.delete.as_slice()), (vec![("new", 1)], [(Kind::Job, "w-old".to_owned())].as_slice()));
    assert!(decided(&one, &seen(&[], &[(Kind::Job, "new", 1)]), &leaving(&[])).pods.is_empty());
    let none = decided(&desired(Job, 0), &seen(&[], &[(Kind::Job, "new", 1)]), &leaving(&[]));
    assert_eq!(none.delete, [(Kind::Job, "w-new".to_owned())]);
}

#[test]
fn of_each_place_of_a_job_the_newest_attempt_counts() {
    let mut cluster = seen(&[("a", "new", 0, false), ("b", "new", 0, false)], &[(Kind::Job, "new", 1)]);
    let exit = |status| {
        crate::seen::Program::Ended(arco_model::observed::ExitFacts { status, ..Default::default() }, String::new())
    };
    for (name, status, later) in [("a", 1, 0), ("b", 0, 5_000)] {
        if let Some((_, it)) = cluster.pods.get_mut(name) {
            (it.program, it.over) = (exit(status), Some(Default::default()));
            it.created = it.created.plus_ms(later);
            it.id = crate::names::instance_id(it.created.0, &it.uid);
        }
    }
    let shown = shown(&cluster, true);
    assert_eq!((shown.len(), shown[0].name.as_str(), shown[0].restarts), (1, "b", 1));
    assert_eq!(decided(&desired(Job, 1), &cluster, &leaving(&[])).progress, Some(Progress::Done));
}

#[test]
fn workloads_of_another_kind_make_way() {
    let it = decided(&desired(Stateful, 1), &seen(&[], &[(D, "old", 2)]), &leaving(&[]));
    assert_eq!(it.delete, [(D, "w-old".to_owned())]);
}

#[test]
fn nothing_of_a_stateful_component_drains_for_a_template_that_is_not_sent() {
    let plan = WorkloadPlan { kind: ComponentKind::Stateful, ..crate::render::tests::plan() };
    let rendered = crate::render::tests::rendered(&plan);
    let sent = rendered.workload(2).applied().to_owned();
    let now = Timestamp(5_000);
    let set = |applied: &str, fixed: &str, deleting: bool| {
        let detail = Detail { replicas: 2, fixed: fixed.to_owned(), ..Detail::default() };
        Some(ObjectSeen { applied: applied.to_owned(), deleting, detail, ..ObjectSeen::default() })
    };
    for (set, drains, looks_again) in [
        (None, false, true),
        (set("before", rendered.fixed(), false), false, true),
        (set("before", "other claims", false), false, false), // it makes way first
        (set(&sent, rendered.fixed(), true), false, false),
        (set(&sent, rendered.fixed(), false), true, false),
    ] {
        let mut seen = ComponentSeen::default();
        let shown = format!("{set:?}");
        seen.objects.insert((Kind::Service, "web".to_owned()), ObjectSeen::default());
        seen.objects.extend(set.map(|it| ((Kind::StatefulSet, rendered.workload_name(&rendered.key)), it)));
        let pods = [(rendered.key.clone(), 2)].into();
        let mut decision = Decision { pods, drain: vec!["web-1".to_owned()], ..Decision::default() };
        send_first(&mut decision, &rendered, &seen, now);
        assert_eq!(!decision.drain.is_empty(), drains, "{shown}");
        assert_eq!(decision.wake_at, looks_again.then_some(now), "{shown}");
    }
    // Where nothing is to drain, or nothing may be sent, nothing is looked at again.
    for drain in [Vec::new(), vec!["web-1".to_owned()]] {
        let pods = [(rendered.key.clone(), 2)].into();
        let mut decision = Decision { pods, drain: drain.clone(), ..Decision::default() };
        send_first(&mut decision, &rendered, &ComponentSeen::default(), now);
        assert_eq!((decision.drain, decision.wake_at), (drain, None));
    }
}
