//! The status function, row by row.

use super::*;
use crate::id::{InstanceId, RevisionId};
use crate::sample;
use crate::spec::Protocol;

const NOW: Timestamp = Timestamp(100_000);

fn component(kind: ComponentKind, replicas: u32) -> Component {
    let mut it = sample::component();
    (it.spec.kind, it.spec.replicas) = (kind, replicas);
    (it.desired_revision, it.last_revision_number) = (Some(RevisionId::from_parts(1, 1)), 1);
    it
}

fn instance(phase: InstancePhase) -> InstanceFacts {
    InstanceFacts {
        id: InstanceId::from_parts(1, 1),
        revision: RevisionId::from_parts(1, 1),
        template: "t".into(),
        place: 0,
        phase,
        address: None,
        node: "here".into(),
        restarts: 0,
        started_at: Some(Timestamp(NOW.0 - 1_000)),
        last_exit: None,
        listens_on: Vec::new(),
        fault: None,
        node_silent: false,
    }
}

fn crashed(status: i32, restarts: u32, output: &str) -> InstanceFacts {
    let exit = ExitFacts { status, last_output: output.into(), at: NOW, ..ExitFacts::default() };
    InstanceFacts { restarts, last_exit: Some(exit), ..instance(InstancePhase::BackOff) }
}

fn context() -> StatusContext {
    StatusContext {
        ports: vec![Port { port: 8080, protocol: Protocol::Http, outer: true }],
        resources: Resources { memory_mb: 128, ..Resources::default() },
        start_deadline_ms: 60_000,
        now: NOW,
        ..StatusContext::default()
    }
}

fn seen(rollout: RolloutFacts, instances: Vec<InstanceFacts>) -> Observed {
    Observed { plan: "p".into(), instances, rollout, ..Observed::default() }
}

#[track_caller]
fn check(
    component: &Component,
    observed: Observed,
    context: &StatusContext,
    status: Status,
    reason: &str,
) -> StatusReport {
    let report = decide(component, &observed, context);
    assert_eq!(report.status, status, "{report:?}");
    assert!(report.reason.contains(reason), "{report:?}");
    let well = matches!(
        status,
        Status::Running
            | Status::Succeeded
            | Status::Starting
            | Status::Upgrading
            | Status::Stopping
            | Status::Building
    );
    assert!(well || !report.advice.is_empty(), "not well, but no advice: {report:?}");
    assert!(
        matches!(status, Status::Running | Status::Succeeded) || !report.reason.is_empty(),
        "no reason: {report:?}"
    );
    report
}

#[test]
fn power_comes_first() {
    let mut it = component(ComponentKind::Stateless, 1);
    it.power = Power::Off;
    check(&it, seen(RolloutFacts::Done, vec![]), &context(), Status::Stopped, "stopped");
    check(
        &it,
        seen(RolloutFacts::Progressing, vec![instance(InstancePhase::Stopping)]),
        &context(),
        Status::Stopping,
        "ending",
    );
    it.power = Power::Deleting { keep_volumes: false };
    check(&it, seen(RolloutFacts::Done, vec![]), &context(), Status::Stopping, "deleted");
}

#[test]
fn building_is_a_status_only_before_the_first_revision() {
    let mut it = component(ComponentKind::Stateless, 1);
    let building = StatusContext { building: true, ..context() };
    check(&it, seen(RolloutFacts::Done, vec![instance(InstancePhase::Ready)]), &building, Status::Running, "");
    it.desired_revision = None;
    check(&it, Observed::default(), &building, Status::Building, "build");
    check(&it, Observed::default(), &context(), Status::Undeployed, "nothing");
    let failed = StatusContext { build_problem: Some(("npm failed".into(), "mend it".into())), ..context() };
    check(&it, Observed::default(), &failed, Status::BuildFailed, "npm failed");
}

#[test]
fn ready_instances_decide() {
    let it = component(ComponentKind::Stateless, 2);
    let ready = || instance(InstancePhase::Ready);
    let done = |list| seen(RolloutFacts::Done, list);
    let rolling = |list| seen(RolloutFacts::Progressing, list);
    let halted = |list| seen(RolloutFacts::Halted { cause: Some(Box::new(crashed(3, 3, "no config"))) }, list);
    check(&it, done(vec![ready(), ready()]), &context(), Status::Running, "");
    check(&it, done(vec![ready(), crashed(1, 0, "")]), &context(), Status::Degraded, "1 of 2");
    check(&it, rolling(vec![instance(InstancePhase::Starting)]), &context(), Status::Starting, "starting");
    check(&it, rolling(vec![ready(), instance(InstancePhase::Starting)]), &context(), Status::Upgrading, "1 of 2");
    check(&it, rolling(vec![crashed(1, 0, "")]), &context(), Status::Abnormal, "status 1");
    let older = || InstanceFacts { revision: RevisionId::from_parts(2, 2), template: "u".into(), ..ready() };
    let report = check(&it, halted(vec![older(), older()]), &context(), Status::Degraded, "exited with status 3");
    assert!(report.advice.contains("previous revision keeps serving"), "{report:?}");
    for undo in ["arco env unset", "arco rollback"] {
        assert!(report.advice.contains(undo), "{report:?}");
    }
    let earlier = || InstanceFacts { template: "u".into(), ..ready() };
    assert!(report.reason.starts_with("exited"), "a reason begins with words, not with a code: {report:?}");
    let report = check(&it, halted(vec![earlier(), earlier()]), &context(), Status::Degraded, "exited with status 3");
    assert!(report.advice.contains("before the change") && !report.advice.contains("rollback"), "{report:?}");
    // More of the same: nothing is being replaced.
    let report = check(&it, halted(vec![ready()]), &context(), Status::Degraded, "1 of 2 instances are ready: exited");
    assert!(!report.advice.contains("revision") && !report.reason.contains("rollout"), "{report:?}");
    let report = check(&it, halted(vec![]), &context(), Status::Abnormal, "exited with status 3 four times");
    assert!(report.reason.contains("no config"));
    let waiting = StatusContext { waiting_for: vec!["shop/db".into()], ..context() };
    check(&it, done(vec![]), &waiting, Status::Starting, "shop/db");
    let zero = component(ComponentKind::Stateless, 0);
    check(&zero, done(vec![]), &context(), Status::Stopped, "scaled to 0");
}

#[test]
fn every_trouble_has_a_reason_and_an_advice() {
    let it = component(ComponentKind::Stateless, 1);
    let one = |instance| seen(RolloutFacts::Progressing, vec![instance]);
    let late = |listens_on: &[&str]| InstanceFacts {
        started_at: Some(Timestamp(NOW.0 - 61_000)),
        listens_on: listens_on.iter().map(|it| it.parse().unwrap()).collect(),
        ..instance(InstancePhase::Starting)
    };
    let oom = {
        let mut it = crashed(137, 1, "");
        it.last_exit.as_mut().unwrap().out_of_memory = true;
        it
    };
    let signal = {
        let mut it = crashed(139, 0, "");
        it.last_exit.as_mut().unwrap().signal = Some(11);
        it
    };
    let fault = InstanceFacts {
        fault: Some("failed to unpack layer x: no space left".into()),
        ..instance(InstancePhase::Pending)
    };
    for (instance, reason, advice) in [
        (oom, "out of memory at 128 MB", "--memory-mb"),
        (crashed(127, 0, ""), "status 127", "not found"),
        (crashed(0, 2, "bye"), "status 0 three times: last output: bye", "--kind job"),
        (signal, "signal 11", "arco logs"),
        (late(&["127.0.0.1:8080"]), "listens on 127.0.0.1:8080", "0.0.0.0:8080"),
        (late(&["0.0.0.0:3000"]), "listens on 0.0.0.0:3000", "--port 3000"),
        (late(&[]), "nothing listens on 0.0.0.0:8080", "PORT"),
        (fault, "no space left", "arco logs"),
    ] {
        let report = check(&it, one(instance), &context(), Status::Abnormal, reason);
        assert!(report.advice.contains(advice), "{report:?}");
    }
}

#[test]
fn a_silent_node_is_told_until_nothing_waits_for_it() {
    let on_silent = |phase| InstanceFacts {
        fault: Some("its node `n1` does not answer".into()),
        node_silent: true,
        node: "n1".into(),
        ..instance(phase)
    };
    let ready = || instance(InstancePhase::Ready);
    let stateless = component(ComponentKind::Stateless, 2);
    let stateful = component(ComponentKind::Stateful, 2);
    let job = component(ComponentKind::Job, 1);
    let (unready, stopping) = (|| on_silent(InstancePhase::Unready), || on_silent(InstancePhase::Stopping));
    let starting = || instance(InstancePhase::Starting);
    let moving = |list| seen(RolloutFacts::Progressing, list);
    for (of, observed, status, reason) in [
        (&stateless, moving(vec![ready(), unready()]), Status::Degraded, "1 of 2 instances are ready: its node `n1`"),
        (&stateless, moving(vec![unready(), unready()]), Status::Abnormal, "its node `n1` does not answer"),
        (&stateless, moving(vec![ready(), stopping(), starting()]), Status::Degraded, "its node `n1`"),
        (&stateless, moving(vec![on_silent(InstancePhase::Starting)]), Status::Abnormal, "its node `n1`"),
        (&stateless, seen(RolloutFacts::Done, vec![ready(), stopping(), ready()]), Status::Running, ""),
        (&stateful, moving(vec![ready(), unready()]), Status::Degraded, "its node `n1`"),
        (&stateful, moving(vec![ready(), stopping()]), Status::Degraded, "its node `n1`"),
        (&stateful, moving(vec![stopping()]), Status::Abnormal, "its node `n1`"),
        (&job, moving(vec![unready()]), Status::Abnormal, "its node `n1`"),
        (&job, moving(vec![stopping()]), Status::Abnormal, "its node `n1`"),
    ] {
        let report = check(of, observed, &context(), status, reason);
        let wanted = match (status, of.spec.kind) {
            (Status::Running, _) => "",
            (_, ComponentKind::Stateless) => "other nodes take its instances by themselves",
            _ => "it is not started elsewhere",
        };
        assert!(report.advice.contains(wanted) && (wanted.is_empty() || report.advice.contains("delete node n1")));
    }
    // What an earlier revision left there does not make a change look ill.
    let left = InstanceFacts { revision: RevisionId::from_parts(9, 9), ..stopping() };
    check(&stateless, moving(vec![ready(), left.clone(), starting()]), &context(), Status::Upgrading, "1 of 2");
    let of_two =
        moving(vec![left, InstanceFacts { fault: Some("no image".into()), ..instance(InstancePhase::Pending) }]);
    check(&stateless, of_two, &context(), Status::Abnormal, "no image");
    let mut off = component(ComponentKind::Stateless, 2);
    for (power, reason) in [
        (Power::Off, "its instances are ending: its node `n1`"),
        (Power::Deleting { keep_volumes: false }, "it is being deleted: its node `n1`"),
    ] {
        off.power = power;
        let report = check(&off, moving(vec![stopping()]), &context(), Status::Stopping, reason);
        assert!(report.advice.starts_with("start the node again"), "{report:?}");
    }
}

#[test]
fn recent_restarts_are_told_while_it_runs() {
    let it = component(ComponentKind::Stateless, 1);
    let again = |ms_ago: u64, restarts| {
        let mut it = InstanceFacts { phase: InstancePhase::Ready, ..crashed(137, restarts, "") };
        let exit = it.last_exit.as_mut().unwrap();
        (exit.out_of_memory, exit.at) = (true, Timestamp(0));
        (seen(RolloutFacts::Done, vec![it]), StatusContext { now: Timestamp(ms_ago), ..context() })
    };
    let (observed, at) = again(60_000, 3);
    let report =
        check(&it, observed, &at, Status::Running, "started again 3 times, the last time after: out of memory");
    assert!(report.advice.contains("--memory-mb"), "{report:?}");
    let (observed, at) = again(RECENT_MS, 3);
    assert_eq!(decide(&it, &observed, &at).reason, "");
    let (observed, at) = again(60_000, 0);
    assert_eq!(decide(&it, &observed, &at).reason, "", "what ended before this instance's first start is no restart");
    let many = seen(RolloutFacts::Progressing, vec![crashed(3, 30, "")]);
    check(&it, many, &context(), Status::Abnormal, "exited with status 3, 31 times, without any output");
}

#[test]
fn jobs_end_and_crons_wait() {
    let job = component(ComponentKind::Job, 1);
    let ended = |status| InstanceFacts { phase: InstancePhase::Ended, ..crashed(status, 0, "") };
    check(&job, seen(RolloutFacts::Done, vec![ended(0)]), &context(), Status::Succeeded, "");
    check(&job, seen(RolloutFacts::Done, vec![ended(2)]), &context(), Status::Abnormal, "status 2");
    check(&job, seen(RolloutFacts::Progressing, vec![instance(InstancePhase::Ready)]), &context(), Status::Running, "");
    let mut cron = component(ComponentKind::Cron, 1);
    check(&cron, Observed::default(), &context(), Status::Running, "");
    let run = crate::component::CronRun { scheduled_at: Timestamp(0), ended_at: Some(NOW), exit_status: Some(4) };
    cron.observed.last_run = Some(run);
    check(&cron, Observed::default(), &context(), Status::Abnormal, "status 4");
    for (ended_at, exit_status, status, reason) in [
        (None, None, Status::Running, ""),
        (Some(NOW), Some(0), Status::Running, ""),
        (Some(NOW), None, Status::Abnormal, "cut off"),
    ] {
        cron.observed.last_run = Some(crate::component::CronRun { scheduled_at: Timestamp(0), ended_at, exit_status });
        check(&cron, Observed::default(), &context(), status, reason);
    }
}

#[test]
fn a_number_that_follows_load_is_no_change_of_the_component() {
    let mut web = component(ComponentKind::Stateless, 1);
    web.spec.autoscaling = Some(crate::spec::autoscaling::Autoscaling::by_cpu(2, 4));
    let (ready, starting) = (instance(InstancePhase::Ready), instance(InstancePhase::Starting));
    let leaving = instance(InstancePhase::Draining);
    let other = InstanceFacts { template: "other".into(), ..ready.clone() };
    let asks = |replicas| crate::observed::ScalingFacts { replicas, ..Default::default() };
    for (name, rollout, instances, asked, wanted) in [
        ("as asked", RolloutFacts::Done, vec![&ready, &ready], 2, Status::Running),
        ("more on the way", RolloutFacts::Progressing, vec![&ready, &ready, &starting], 3, Status::Running),
        ("some leave", RolloutFacts::Progressing, vec![&ready, &ready, &leaving], 2, Status::Running),
        ("below the least", RolloutFacts::Progressing, vec![&ready, &starting], 2, Status::Upgrading),
        ("a rollout", RolloutFacts::Progressing, vec![&ready, &ready, &other], 2, Status::Upgrading),
        ("one was lost", RolloutFacts::Done, vec![&ready, &ready], 3, Status::Degraded),
        ("the bounds hold", RolloutFacts::Done, vec![&ready, &ready], 0, Status::Running),
    ] {
        let observed =
            Observed { scaling: Some(asks(asked)), ..seen(rollout, instances.into_iter().cloned().collect()) };
        assert_eq!(decide(&web, &observed, &context()).status, wanted, "{name}");
    }
}

#[test]
fn only_instances_of_the_change_count_as_ready_of_it() {
    let web = component(ComponentKind::Stateless, 2);
    let of = |id: u64, revision: u64, template: &str, phase| InstanceFacts {
        id: InstanceId::from_parts(id, id),
        revision: RevisionId::from_parts(revision, revision),
        template: template.into(),
        ..instance(phase)
    };
    let ready = |id, revision, template| of(id, revision, template, InstancePhase::Ready);
    let starting = |id, revision, template| of(id, revision, template, InstancePhase::Starting);
    // Revision 1 is the desired one.
    for (name, instances, said) in [
        ("none", vec![], "0 of 2 instances are ready"),
        ("all", vec![ready(1, 1, "t"), ready(2, 1, "t")], "2 of 2 instances are ready"),
        (
            "nothing of the change yet",
            vec![ready(1, 9, "s"), ready(2, 9, "s")],
            "0 of 2 new instances are ready, and 2 from before",
        ),
        (
            "a deploy",
            vec![ready(1, 9, "s"), ready(2, 9, "s"), ready(3, 1, "t")],
            "1 of 2 new instances are ready, and 2 from before",
        ),
        (
            "a restart keeps the revision",
            vec![ready(1, 1, "t"), ready(2, 1, "t"), starting(3, 1, "u")],
            "0 of 2 new instances are ready, and 2 from before",
        ),
        ("fewer", vec![ready(1, 1, "t"), ready(2, 1, "t"), ready(3, 1, "t")], "3 instances are ready, 2 to stay"),
    ] {
        assert_eq!(count_ready(&web, &instances, 2), said, "{name}");
    }
    let rolling = seen(RolloutFacts::Progressing, vec![ready(1, 9, "s"), ready(2, 9, "s"), starting(3, 1, "t")]);
    check(&web, rolling, &context(), Status::Upgrading, "0 of 2 new instances");
}

#[test]
fn what_is_still_to_come_is_called_what_it_is() {
    use InstancePhase::{Draining, Ended, Ready, Starting, Stopping};
    let web = component(ComponentKind::Stateless, 2);
    let of = |id: u64, template: &str, phase| InstanceFacts {
        id: InstanceId::from_parts(id, id),
        template: template.into(),
        ..instance(phase)
    };
    let before = |id: u64, phase| InstanceFacts { revision: RevisionId::from_parts(9, 9), ..of(id, "s", phase) };
    for (name, instances, said) in [
        (
            "a first deploy starts",
            vec![of(1, "t", Ready), of(2, "t", Starting)],
            "its instances are starting; 1 of 2 instances are ready",
        ),
        (
            "a first deploy is watched",
            vec![of(1, "t", Ready), of(2, "t", Ready)],
            "2 of 2 instances are ready, and it is watched whether they stay so",
        ),
        (
            "a first deploy after one that ended",
            vec![before(1, Ended), of(2, "t", Ready), of(3, "t", Ready)],
            "2 of 2 instances are ready, and it is watched whether they stay so",
        ),
        (
            "a change that has no instance yet",
            vec![before(1, Ready), before(2, Ready)],
            "a change is being rolled out; 0 of 2 new instances are ready, and 2 from before",
        ),
        (
            "a change is on its way",
            vec![before(1, Ready), before(2, Draining), of(3, "t", Ready)],
            "a change is being rolled out; 1 of 2 new instances are ready, and 1 from before",
        ),
        (
            "a restart is on its way",
            vec![of(1, "s", Ready), of(2, "s", Stopping), of(3, "t", Ready)],
            "a change is being rolled out; 1 of 2 new instances are ready, and 1 from before",
        ),
        (
            "a change whose instances are all ready",
            vec![before(1, Draining), before(2, Stopping), of(3, "t", Ready), of(4, "t", Ready)],
            "a change is being rolled out; 2 of 2 instances are ready, and those from before are ending",
        ),
        (
            "fewer are asked",
            vec![of(1, "t", Ready), of(2, "t", Ready), of(3, "t", Ready)],
            "instances that are not asked for any more are ending; 3 instances are ready, 2 to stay",
        ),
        (
            "the last of fewer ends",
            vec![of(1, "t", Ready), of(2, "t", Ready), of(3, "t", Draining)],
            "instances that are not asked for any more are ending; 2 of 2 instances are ready",
        ),
    ] {
        let report = decide(&web, &seen(RolloutFacts::Progressing, instances), &context());
        assert_eq!((report.status, report.reason.as_str()), (Status::Upgrading, said), "{name}");
    }
}

#[test]
fn a_revision_is_healthy_when_its_rollout_ended_and_it_answers() {
    let web = component(ComponentKind::Stateless, 1);
    let (ready, desired) = (instance(InstancePhase::Ready), web.desired_revision.clone());
    let other = InstanceFacts { revision: RevisionId::from_parts(2, 2), ..ready.clone() };
    let halted = || RolloutFacts::Halted { cause: None };
    for (name, rollout, instances, healthy) in [
        ("as asked", RolloutFacts::Done, vec![&ready], true),
        ("not at its end", RolloutFacts::Progressing, vec![&ready], false),
        ("halted", halted(), vec![&ready], false),
        ("another one answers", RolloutFacts::Done, vec![&other], false),
        ("stopped", RolloutFacts::Done, vec![], false),
    ] {
        let found = healthy_revision(&web, &seen(rollout, instances.into_iter().cloned().collect()));
        assert_eq!(found, desired.clone().filter(|_| healthy), "{name}");
    }
}
