//! Decides when an operation has ended, and how. Pure.

use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::observed::{InstancePhase, Observed, RolloutFacts};
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::spec::ComponentKind;
use arco_model::status::{Status, StatusReport};
use arco_model::time::Timestamp;

/// A job that runs this long without failing has been deployed, even when it will run for hours.
const JOB_RUNS_MS: u64 = 10_000;

/// What is known when operations are judged.
pub(crate) struct View<'a> {
    pub(crate) component: &'a Component,
    pub(crate) observed: &'a Observed,
    pub(crate) report: &'a StatusReport,
    /// Fingerprint of the plan that was applied for the component's present generation.
    pub(crate) plan: &'a str,
    /// Whether every gateway routes by what was published.
    pub(crate) gateways_follow: bool,
    pub(crate) now: Timestamp,
}

/// What of a component a single machine cannot follow, said once by the operation that brought it.
pub(crate) fn without_effect(one_machine: bool, operation: &Operation, component: &Component) -> Option<String> {
    let asked = component.spec.of_clusters();
    if !one_machine || asked.is_empty() || operation.revision.is_none() {
        return None;
    }
    let (names, reference) = (asked.join("` and `"), component.reference());
    Some(format!("these fields have no effect on one machine, and are kept for Kubernetes: `{names}` of {reference}"))
}

/// How an operation ended; `None` while it goes on.
pub(crate) fn settle(operation: &Operation, view: &View<'_>) -> Option<(OperationStatus, Option<Problem>)> {
    if operation.status != OperationStatus::RollingOut {
        return overdue(operation, view); // a build is the builder's to end, but not for ever
    }
    if operation.generation > view.component.generation {
        return None; // asked after the component was read: the next look sees both
    }
    let superseded = operation.revision.is_some() && operation.revision != view.component.desired_revision;
    if superseded {
        let problem = Problem::new(
            ErrorKind::Conflict,
            "superseded",
            format!("operation {} was overtaken by a newer change of `{}`", operation.id, view.component.reference()),
            format!("`arco status {}` shows what is served now", view.component.reference()),
        );
        return Some((OperationStatus::Cancelled, Some(problem)));
    }
    if operation.kind == OperationKind::Delete {
        return overdue(operation, view); // it succeeds when the component is gone, which is then looked at no more
    }
    let succeeded = Some((OperationStatus::Succeeded, None));
    let failed = || Some((OperationStatus::Failed, Some(unhealthy(view))));
    if operation.kind == OperationKind::Stop {
        return if view.report.status == Status::Stopped { succeeded } else { overdue(operation, view) };
    }
    let reached = view.observed.plan == view.plan && view.observed.rollout == RolloutFacts::Done;
    match view.component.spec.kind {
        ComponentKind::Cron if view.observed.plan == view.plan => succeeded,
        ComponentKind::Job => match view.report.status {
            Status::Succeeded => succeeded,
            Status::Abnormal if reached || halted(view) => failed(),
            Status::Running if runs_long(operation, view) => succeeded,
            _ => overdue(operation, view),
        },
        _ if halted(view) => failed(),
        _ if reached && matches!(view.report.status, Status::Running | Status::Stopped) && view.gateways_follow => {
            succeeded
        }
        _ => overdue(operation, view),
    }
}

fn halted(view: &View<'_>) -> bool {
    view.observed.plan == view.plan && matches!(view.observed.rollout, RolloutFacts::Halted { .. })
}

fn runs_long(operation: &Operation, view: &View<'_>) -> bool {
    let started = view
        .observed
        .instances
        .iter()
        .filter(|it| it.phase == InstancePhase::Ready)
        .filter_map(|it| it.started_at)
        .min();
    started.is_some_and(|at| at >= operation.created_at && view.now.since_ms(at) > JOB_RUNS_MS)
}

fn unhealthy(view: &View<'_>) -> Problem {
    let StatusReport { reason, advice, .. } = view.report;
    let message = format!("`{}` is not healthy: {reason}", view.component.reference());
    Problem::new(ErrorKind::Failed, "not_healthy", message, advice.clone())
}

fn overdue(operation: &Operation, view: &View<'_>) -> Option<(OperationStatus, Option<Problem>)> {
    if view.now < operation.deadline {
        return None;
    }
    let seconds = operation.deadline.since_ms(operation.created_at) / 1000;
    let reference = view.component.reference();
    let reason = match view.report.reason.as_str() {
        "" => format!("it is {}", view.report.status.as_str()),
        reason => reason.to_owned(),
    };
    let advice = match view.report.advice.as_str() {
        "" => format!("`arco status {reference}` shows how it goes on"),
        advice => advice.to_owned(),
    };
    let message = format!("`{reference}` did not get there within {seconds} s: {reason}");
    Some((OperationStatus::Failed, Some(Problem::new(ErrorKind::Failed, "deadline_passed", message, advice))))
}

#[cfg(test)]
mod tests;
