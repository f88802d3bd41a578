//! What lets a component's number of instances follow load: a HorizontalPodAutoscaler, and the `ComponentScale` that it
//! writes the number into.
//!
//! What must hold: load is compared with amounts, not with percentages of requests, so that it means the same whatever a
//! pod requests; only pods that get connections count.

use super::{Kind, Object};
use crate::names;
use arco_model::plan::WorkloadPlan;
use arco_model::spec::autoscaling::Autoscaling;
use serde_json::{Map, Value, json};

/// The number that load asks for, as it is made; never changed by us afterwards.
pub(super) fn scale(plan: &WorkloadPlan, namespace: &str, base: &str, labels: &Map<String, Value>) -> Option<Object> {
    plan.autoscaling?;
    let selector = format!("{}={},{}=instance,{}=true", names::COMPONENT, plan.component, names::ROLE, names::SERVING);
    let rest = json!({ "spec": { "replicas": plan.replicas }, "status": { "selector": selector } });
    Some(Object::new(Kind::Scale, namespace, base, labels.clone(), rest).sealed())
}

/// What watches load.
pub(super) fn autoscaler(
    plan: &WorkloadPlan,
    namespace: &str,
    base: &str,
    labels: &Map<String, Value>,
) -> Option<Object> {
    let asked = plan.autoscaling.as_ref()?;
    let (version, kind, _) = Kind::Scale.wire();
    let spec = json!({
        "scaleTargetRef": { "apiVersion": version, "kind": kind, "name": base },
        "minReplicas": asked.min_replicas,
        "maxReplicas": asked.max_replicas,
        "metrics": metrics(asked, plan),
        "behavior": { "scaleDown": { "stabilizationWindowSeconds": asked.down_after_s } },
    });
    Some(Object::new(Kind::Autoscaler, namespace, base, labels.clone(), json!({ "spec": spec })).sealed())
}

fn metrics(asked: &Autoscaling, plan: &WorkloadPlan) -> Vec<Value> {
    let metric = |name: &str, amount: String| {
        let target = json!({ "type": "AverageValue", "averageValue": amount });
        json!({ "type": "Resource", "resource": { "name": name, "target": target } })
    };
    let limits = &plan.template.resources;
    let cpu = asked.cpu_target_milli(limits).map(|it| metric("cpu", format!("{it}m")));
    let memory = asked.memory_target_mb(limits).map(|it| metric("memory", format!("{it}Mi")));
    cpu.into_iter().chain(memory).collect()
}
