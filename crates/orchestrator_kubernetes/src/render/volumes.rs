//! Claims of storage: one for a component, or one for each place of a stateful component.

use super::{Kind, Object};
use crate::names;
use arco_config::{KubernetesConfig, VolumeAccess};
use arco_model::id::ComponentId;
use arco_model::plan::WorkloadPlan;
use arco_model::spec::{ComponentKind, VolumeKind, VolumeSpec};
use serde_json::{Map, Value, json};

/// Name of the claim that all instances of a component share.
pub(super) fn claim_name(component: &ComponentId, volume: &VolumeSpec) -> String {
    format!("{}-{component}", volume.name)
}

fn by_place(plan: &WorkloadPlan, volume: &VolumeSpec) -> bool {
    volume.kind == VolumeKind::Local && plan.kind == ComponentKind::Stateful
}

/// The claims that a component shares, and those of places that are to be there before their pods: called as the stateful set
/// calls and finds them.
pub(super) fn claims(
    plan: &WorkloadPlan,
    config: &KubernetesConfig,
    namespace: &str,
    labels: &Map<String, Value>,
) -> Vec<Object> {
    let base = names::base(plan);
    let claim = |it: &VolumeSpec, name: &str| {
        let mut labels = labels.clone();
        labels.insert(names::VOLUME.to_owned(), it.name.as_str().into());
        let rest = json!({ "spec": spec(it, config) });
        Object::new(Kind::Claim, namespace, name, labels, rest).sealed()
    };
    let mut claims = Vec::new();
    for it in plan.template.volumes.iter().filter(|it| it.kind != VolumeKind::Memory) {
        if by_place(plan, it) {
            claims.extend((0..plan.prepared_places).map(|place| claim(it, &format!("{}-{base}-{place}", it.name))));
        } else {
            claims.push(claim(it, &claim_name(&plan.component, it)));
        }
    }
    claims
}

/// The claims that a stateful set makes for each place.
pub(super) fn templates(plan: &WorkloadPlan, config: &KubernetesConfig, labels: &Map<String, Value>) -> Value {
    let asked = plan.template.volumes.iter().filter(|it| by_place(plan, it));
    let template = |it: &VolumeSpec| {
        let mut labels = labels.clone();
        labels.insert(names::VOLUME.to_owned(), it.name.as_str().into());
        // Kind and version are what the API server fills in: without them each look would find a difference.
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": it.name.as_str(), "labels": labels },
            "spec": spec(it, config),
        })
    };
    asked.map(template).collect()
}

fn spec(volume: &VolumeSpec, config: &KubernetesConfig) -> Value {
    let shared = volume.kind == VolumeKind::Shared;
    let mode = match config.shared_access {
        VolumeAccess::ReadWriteMany if shared => "ReadWriteMany",
        _ => "ReadWriteOnce",
    };
    let mut spec = json!({
        "accessModes": [mode],
        "resources": { "requests": { "storage": format!("{}Mi", volume.size_mb) } },
    });
    let class = match (&volume.class, config.shared_storage_class.as_str()) {
        (Some(asked), _) => asked.as_str(),
        (None, own) if shared && !own.is_empty() => own,
        _ => config.storage_class.as_str(),
    };
    if !class.is_empty() {
        spec["storageClassName"] = class.into();
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, volume};
    use super::*;

    #[test]
    fn a_component_says_its_class_else_the_operator_else_the_cluster() {
        let operator = |class: &str, shared: &str| KubernetesConfig {
            storage_class: class.to_owned(),
            shared_storage_class: shared.to_owned(),
            ..config()
        };
        let of = |kind, class: Option<&str>, config: &KubernetesConfig| {
            let asked = VolumeSpec { class: class.map(str::to_owned), ..volume("data", kind) };
            spec(&asked, config).get("storageClassName").and_then(Value::as_str).unwrap_or("-").to_owned()
        };
        let (none, all) = (operator("", ""), operator("own", "nfs"));
        for (kind, class, config, expected) in [
            (VolumeKind::Local, Some("fast"), &all, "fast"),
            (VolumeKind::Shared, Some("fast"), &all, "fast"),
            (VolumeKind::Shared, None, &all, "nfs"),
            (VolumeKind::Local, None, &all, "own"),
            (VolumeKind::Shared, None, &operator("own", ""), "own"),
            (VolumeKind::Local, None, &none, "-"),
        ] {
            assert_eq!(of(kind, class, config), expected, "{kind:?} {class:?}");
        }
    }
}
