//! When operations end, row by row.

use super::*;
use crate::settle::settle;
use arco_model::id::RevisionId;
use arco_model::sample;

const CREATED: Timestamp = Timestamp(1_000);
const DEADLINE: Timestamp = Timestamp(60_000);

fn component(kind: ComponentKind) -> Component {
    let mut it = sample::component();
    it.spec.kind = kind;
    (it.generation, it.desired_revision, it.last_revision_number) = (2, Some(RevisionId::from_parts(2, 2)), 2);
    it
}

fn operation(kind: OperationKind, revision: Option<u64>) -> Operation {
    Operation {
        generation: 2,
        revision: revision.map(|it| RevisionId::from_parts(it, it)),
        revision_number: revision,
        created_at: CREATED,
        deadline: DEADLINE,
        ..sample::operation(&sample::component(), kind)
    }
}

struct Row {
    kind: ComponentKind,
    operation: (OperationKind, Option<u64>),
    generation: u64,
    status: Status,
    rollout: RolloutFacts,
    plan_applied: bool,
    gateways_follow: bool,
    now: Timestamp,
    ends: Option<(OperationStatus, &'static str)>,
}

const BASE: Row = Row {
    kind: ComponentKind::Stateless,
    operation: (OperationKind::Deploy, Some(2)),
    generation: 2,
    status: Status::Running,
    rollout: RolloutFacts::Done,
    plan_applied: true,
    gateways_follow: true,
    now: Timestamp(5_000),
    ends: Some((OperationStatus::Succeeded, "")),
};

#[test]
fn operations_end_with_the_truth() {
    use OperationStatus::{Cancelled, Failed, Succeeded};
    let halted = || RolloutFacts::Halted { cause: None };
    let rows = [
        ("all is ready", BASE),
        ("gateways are behind", Row { gateways_follow: false, ends: None, ..BASE }),
        ("an older plan is done, ours is not applied", Row { plan_applied: false, ends: None, ..BASE }),
        (
            "an older plan halted, ours is not applied",
            Row { plan_applied: false, rollout: halted(), ends: None, ..BASE },
        ),
        ("it rolls", Row { status: Status::Upgrading, rollout: RolloutFacts::Progressing, ends: None, ..BASE }),
        ("it halted", Row { status: Status::Degraded, rollout: halted(), ends: Some((Failed, "not_healthy")), ..BASE }),
        (
            "a newer revision came",
            Row { operation: (OperationKind::Deploy, Some(1)), ends: Some((Cancelled, "superseded")), ..BASE },
        ),
        (
            "it began after the component was read",
            Row { operation: (OperationKind::Deploy, Some(3)), generation: 3, ends: None, ..BASE },
        ),
        (
            "a stop that was asked after the component was read",
            Row { generation: 3, status: Status::Stopped, operation: (OperationKind::Stop, None), ends: None, ..BASE },
        ),
        (
            "time is over",
            Row { status: Status::Starting, now: DEADLINE, ends: Some((Failed, "deadline_passed")), ..BASE },
        ),
        ("scaled to zero", Row { status: Status::Stopped, ..BASE }),
        ("stopped", Row { operation: (OperationKind::Stop, None), status: Status::Stopped, ..BASE }),
        ("stopping", Row { operation: (OperationKind::Stop, None), status: Status::Stopping, ends: None, ..BASE }),
        (
            "a job ended well",
            Row { kind: ComponentKind::Job, status: Status::Succeeded, ends: Some((Succeeded, "")), ..BASE },
        ),
        (
            "a job failed",
            Row { kind: ComponentKind::Job, status: Status::Abnormal, ends: Some((Failed, "not_healthy")), ..BASE },
        ),
        ("a job runs", Row { kind: ComponentKind::Job, ends: None, ..BASE }),
        ("a schedule is in place", Row { kind: ComponentKind::Cron, ..BASE }),
    ];
    for (name, row) in rows {
        let component = component(row.kind);
        let observed = Observed {
            plan: if row.plan_applied { "p" } else { "old" }.into(),
            rollout: row.rollout,
            ..Observed::default()
        };
        let report = StatusReport { status: row.status, reason: "because".into(), advice: "do".into() };
        let (gateways_follow, now) = (row.gateways_follow, row.now);
        let view =
            View { component: &component, observed: &observed, report: &report, plan: "p", gateways_follow, now };
        let operation = Operation { generation: row.generation, ..operation(row.operation.0, row.operation.1) };
        let found =
            settle(&operation, &view).map(|(status, problem)| (status, problem.map(|it| it.code).unwrap_or_default()));
        assert_eq!(found, row.ends.map(|(status, code)| (status, code.to_owned())), "{name}");
    }
}

#[test]
fn a_build_is_ended_only_by_its_deadline() {
    let component = component(ComponentKind::Stateless);
    let (observed, report) = (Observed::default(), StatusReport { status: Status::Running, ..StatusReport::default() });
    let mut operation = operation(OperationKind::Deploy, None);
    operation.status = OperationStatus::Building;
    for (now, ended) in [(Timestamp(5_000), false), (DEADLINE, true)] {
        let view =
            View { component: &component, observed: &observed, report: &report, plan: "", gateways_follow: true, now };
        assert_eq!(settle(&operation, &view).is_some(), ended);
    }
}

#[test]
fn what_one_machine_cannot_follow_is_said_by_the_operation_that_brings_it() {
    let mut web = component(ComponentKind::Stateless);
    let deploy = operation(OperationKind::Deploy, Some(2));
    assert_eq!(without_effect(true, &deploy, &web), None);
    web.spec.scheduling.priority_class = Some("high".into());
    web.spec.overlay = Some(serde_json::json!({}));
    let said = without_effect(true, &deploy, &web).unwrap();
    assert!(said.contains("`scheduling` and `overlay` of shop/web") && said.contains("Kubernetes"), "{said}");
    for (one_machine, revision) in [(false, Some(2)), (true, None)] {
        assert_eq!(without_effect(one_machine, &operation(OperationKind::Scale, revision), &web), None);
    }
}
