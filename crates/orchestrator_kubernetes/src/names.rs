//! Names, labels and annotations of what is ours in a cluster. Pure.
//!
//! What must hold: every object carries [`component_labels`], so that one selector finds all of a component and nothing
//! foreign; names of different components never meet, because they end with a part of the component's id.

use arco_model::artifact::Digest;
use arco_model::id::InstanceId;
use arco_model::name::TenantName;
use arco_model::plan::WorkloadPlan;
use serde_json::{Map, Value, json};

/// Who manages an object; the value is [`OURS`].
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub(crate) const OURS: &str = "arco";
/// Which platform, where several share a cluster.
pub(crate) const PLATFORM: &str = "arco.internal/platform";
/// Tenant of an object.
pub(crate) const TENANT: &str = "arco.internal/tenant";
/// Application of an object.
pub(crate) const APPLICATION: &str = "arco.internal/application";
/// Name of the component of an object.
pub(crate) const NAME: &str = "arco.internal/name";
/// Id of the component of an object.
pub(crate) const COMPONENT: &str = "arco.internal/component";
/// Which pod template a pod was made from.
pub(crate) const KEY: &str = "arco.internal/key";
/// Whether a pod gets new connections: `true` or `false`.
pub(crate) const SERVING: &str = "arco.internal/serving";
/// `instance`, or `one-shot`.
pub(crate) const ROLE: &str = "arco.internal/role";
/// The server that waits for a one-shot, where there are several.
pub(crate) const SERVER: &str = "arco.internal/server";
/// Fingerprint of the plan's template (annotation).
pub(crate) const TEMPLATE: &str = "arco.internal/template";
/// Id of the revision (annotation).
pub(crate) const REVISION: &str = "arco.internal/revision";
/// When a pod began to drain, in ms since 1970 (annotation).
pub(crate) const DRAINING_SINCE: &str = "arco.internal/draining-since";
/// Digest of what was applied last (annotation): an equal one is not sent again.
pub(crate) const APPLIED: &str = "arco.internal/applied";
/// Digest of the fields that cannot be changed (annotation of stateful sets).
pub(crate) const FIXED: &str = "arco.internal/fixed";
/// When a pull credential must be renewed, in ms since 1970 (annotation).
pub(crate) const RENEW_AT: &str = "arco.internal/renew-at";
/// Name of the volume that a claim holds.
pub(crate) const VOLUME: &str = "arco.internal/volume";
/// Which pods of a set go first when it shrinks (Kubernetes' own annotation).
pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Place of a pod of an indexed Job (Kubernetes' own label and annotation).
pub(crate) const JOB_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Place of a pod of a stateful set (Kubernetes' own label).
pub(crate) const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// What volumes and rules call a node (Kubernetes' own label).
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
/// Taints of a node that does not answer, or says that it is not well.
pub(crate) const SILENT: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Name of the secret with the pull credential in each tenant's namespace.
pub(crate) const PULL_SECRET: &str = "arco-registry";
/// Name of a tenant's quota.
pub(crate) const QUOTA: &str = "arco";
/// Name of the container in every pod of ours.
pub(crate) const CONTAINER: &str = arco_model::spec::APP_CONTAINER;

/// Longest readable part of a name; with id and key it stays below the 52 characters that a stateful set may have.
const READABLE: usize = 30;

/// Which platform this is, from its prefix of namespaces.
pub(crate) fn platform(prefix: &str) -> String {
    let name = prefix.trim_matches('-');
    if name.is_empty() { OURS.to_owned() } else { name.to_owned() }
}

/// Selector of everything that is this platform's.
pub(crate) fn platform_selector(prefix: &str) -> String {
    format!("{MANAGED_BY}={OURS},{PLATFORM}={}", platform(prefix))
}

/// The namespace of a tenant.
pub(crate) fn namespace(prefix: &str, tenant: &TenantName) -> String {
    format!("{prefix}{tenant}")
}

/// The name that all objects of a component begin with. A letter stands first, as services want it.
pub(crate) fn base(plan: &WorkloadPlan) -> String {
    let mut readable = format!("{}-{}", plan.application, plan.name);
    if !readable.starts_with(|it: char| it.is_ascii_lowercase()) {
        readable.insert(0, 'a');
    }
    readable.truncate(READABLE);
    let id = plan.component.as_str();
    format!("{}-{}", readable.trim_end_matches('-'), &id[id.len() - 8..])
}

/// What names of one-shots begin with; the id follows. An application may be called so, too.
const ONE_SHOT: &str = "run-";

/// The name of a one-shot's pod.
pub(crate) fn one_shot(id: &InstanceId) -> String {
    format!("{ONE_SHOT}{id}")
}

/// The one-shot whose pod, variables or files an object of this name is, if it is that.
pub(crate) fn of_one_shot(name: &str) -> Option<InstanceId> {
    name.strip_prefix(ONE_SHOT)?.parse().ok()
}

/// Labels of a platform's object.
pub(crate) fn platform_labels(prefix: &str) -> Map<String, Value> {
    let labels = json!({ (MANAGED_BY): OURS, (PLATFORM): platform(prefix) });
    labels.as_object().cloned().unwrap_or_default()
}

/// Labels of every object of a component.
pub(crate) fn component_labels(prefix: &str, plan: &WorkloadPlan) -> Map<String, Value> {
    let mut labels = platform_labels(prefix);
    for (name, value) in [
        (TENANT, plan.tenant.as_str()),
        (APPLICATION, plan.application.as_str()),
        (NAME, plan.name.as_str()),
        (COMPONENT, plan.component.as_str()),
    ] {
        labels.insert(name.to_owned(), value.into());
    }
    labels
}

/// The instance that a pod is: as old as the pod, unique as its uid, and the same in every process.
pub(crate) fn instance_id(created_ms: u64, uid: &str) -> InstanceId {
    let digest = Digest::of(uid.as_bytes());
    InstanceId::from_parts(created_ms, u64::from_str_radix(&digest.hex()[..13], 16).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_enough_and_never_meet() {
        let mut plan = crate::render::tests::plan();
        plan.application = "0-shop-with-a-very-long-name12".parse().unwrap();
        plan.name = "web-with-a-long-name-of-thirty".parse().unwrap();
        let name = base(&plan);
        assert!(name.len() <= 41 && name.starts_with('a') && !name.contains("--"), "{name}");
        plan.component = arco_model::id::ComponentId::from_parts(1, 2);
        assert_ne!(base(&plan), name);
    }

    #[test]
    fn what_an_application_called_run_has_is_no_one_shot() {
        let id = InstanceId::from_parts(1, 2);
        assert_eq!(of_one_shot(&one_shot(&id)), Some(id));
        let mut plan = crate::render::tests::plan();
        plan.application = "run".parse().unwrap();
        let base = base(&plan);
        assert!(base.starts_with(ONE_SHOT), "{base}");
        assert_eq!((of_one_shot(&base), of_one_shot(&format!("{base}-0123456789"))), (None, None));
    }

    #[test]
    fn an_instance_is_named_by_age_and_uid() {
        let (old, new) = (instance_id(1_000, "b"), instance_id(2_000, "a"));
        assert!(old < new && old != instance_id(1_000, "c"));
        assert_eq!(old, instance_id(1_000, "b"));
    }

    #[test]
    fn platforms_are_told_apart_by_their_prefix() {
        assert_eq!((platform("arco-"), platform("")), ("arco".to_owned(), "arco".to_owned()));
        assert_eq!(platform_selector("x-"), "app.kubernetes.io/managed-by=arco,arco.internal/platform=x");
    }
}
