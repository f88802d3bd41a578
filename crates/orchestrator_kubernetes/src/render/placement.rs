//! Where pods may run: what a component asks in Kubernetes' words, inside what the operator allows.

use crate::names;
use arco_config::KubernetesConfig;
use arco_model::plan::WorkloadPlan;
use arco_model::spec::ComponentKind;
use arco_model::spec::scheduling::{
    ComponentAffinity, NodeAffinity, NodeOperator, Scheduling, TaintEffect, Toleration, TolerationOperator,
    WhenUnsatisfiable,
};
use serde_json::{Map, Value, json};

/// Stands for the key of the pod itself; no key is written so.
const OWN_KEY: &str = "own";

/// Everything that a plan asks.
pub(super) fn of_plan(spec: &mut Value, plan: &WorkloadPlan, config: &KubernetesConfig) -> Result<(), String> {
    let it = &plan.template.scheduling;
    of_node(spec, it, config)?;
    for (field, list) in [("podAffinity", &it.affinity), ("podAntiAffinity", &it.anti_affinity)] {
        let rules = weighted(
            list,
            |it| it.weight,
            |it| beside(it, plan),
            |weight, term| json!({ "weight": weight, "podAffinityTerm": term }),
        );
        let [mut required, preferred] = rules;
        if field == "podAntiAffinity" {
            required = together(required);
        }
        if let Some(rules) = during_scheduling(required.into(), preferred) {
            spec["affinity"][field] = rules;
        }
    }
    // What must not run twice stays where it is, as long as Kubernetes itself leaves it there.
    if plan.kind == ComponentKind::Stateless {
        let mut all: Vec<Value> = it.tolerations.iter().map(toleration).collect();
        let own = names::SILENT.iter().filter(|key| !it.tolerations.iter().any(|it| tolerates(it, key)));
        all.extend(own.map(|key| {
            json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": config.lost_node_s })
        }));
        if !all.is_empty() {
            spec["tolerations"] = all.into();
        }
    }
    let own = json!({ "matchLabels": { (names::COMPONENT): plan.component.as_str() } });
    // Old instances on their way out do not count.
    let alike = json!({ "matchLabels": { (names::COMPONENT): plan.component.as_str(), (names::KEY): OWN_KEY } });
    if !it.topology_spread.is_empty() {
        let constraint = |it: &arco_model::spec::scheduling::TopologySpread| {
            json!({
                "maxSkew": it.max_skew,
                "topologyKey": it.topology.label(),
                "whenUnsatisfiable": match it.when_unsatisfiable {
                    WhenUnsatisfiable::ScheduleAnyway => "ScheduleAnyway",
                    WhenUnsatisfiable::DoNotSchedule => "DoNotSchedule",
                },
                "labelSelector": alike,
            })
        };
        spec["topologySpreadConstraints"] = it.topology_spread.iter().map(constraint).collect();
    } else if plan.kind == ComponentKind::Stateless {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1,
            "topologyKey": names::HOSTNAME,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": own,
        }]);
    }
    Ok(())
}

/// What needs no other component.
pub(super) fn of_node(spec: &mut Value, it: &Scheduling, config: &KubernetesConfig) -> Result<(), String> {
    let mut labels = config.node_selector.clone();
    for (key, value) in &it.node_selector {
        if let Some(fixed) = labels.get(key).filter(|it| *it != value) {
            return Err(format!(
                "`scheduling.node_selector` asks for nodes with `{key}={value}`, but the platform uses only those with `{key}={fixed}` (`kubernetes.node_selector`): ask for another label"
            ));
        }
        labels.insert(key.clone(), value.clone());
    }
    if !labels.is_empty() {
        spec["nodeSelector"] = json!(labels);
    }
    let rules = weighted(
        &it.node_affinity,
        |it| it.weight,
        expression,
        |weight, one| json!({ "weight": weight, "preference": { "matchExpressions": [one] } }),
    );
    let [required, preferred] = rules;
    let required = if required.is_empty() {
        json!([])
    } else {
        json!({ "nodeSelectorTerms": [{ "matchExpressions": required }] })
    };
    if let Some(rules) = during_scheduling(required, preferred) {
        spec["affinity"]["nodeAffinity"] = rules;
    }
    if !it.tolerations.is_empty() {
        spec["tolerations"] = it.tolerations.iter().map(toleration).collect();
    }
    if let Some(class) = &it.priority_class {
        if !config.priority_classes.contains(class) {
            return Err(format!(
                "the operator does not let components ask for the priority class `{class}` (`scheduling.priority_class`), because it can end instances of others: add it to `kubernetes.priority_classes`, or leave it out"
            ));
        }
        spec["priorityClassName"] = class.as_str().into();
    }
    Ok(())
}

/// Required rules and preferred ones.
fn weighted<T>(
    rules: &[T],
    weight: impl Fn(&T) -> Option<u32>,
    term: impl Fn(&T) -> Value,
    preferred: impl Fn(u32, Value) -> Value,
) -> [Vec<Value>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    for rule in rules {
        match weight(rule) {
            None => found[0].push(term(rule)),
            Some(weight) => found[1].push(preferred(weight, term(rule))),
        }
    }
    found
}

fn during_scheduling(required: Value, preferred: Vec<Value>) -> Option<Value> {
    let mut rules = Map::new();
    if required.as_array().is_none_or(|it| !it.is_empty()) {
        rules.insert("requiredDuringSchedulingIgnoredDuringExecution".to_owned(), required);
    }
    if !preferred.is_empty() {
        rules.insert("preferredDuringSchedulingIgnoredDuringExecution".to_owned(), preferred.into());
    }
    (!rules.is_empty()).then(|| rules.into())
}

fn beside(it: &ComponentAffinity, plan: &WorkloadPlan) -> Value {
    let application = it.component.application.as_ref().unwrap_or(&plan.application);
    let mut labels = json!({
        (names::APPLICATION): application.as_str(),
        (names::NAME): it.component.component.as_str(),
        (names::ROLE): "instance",
    });
    if *application == plan.application && it.component.component == plan.name {
        // Old instances on their way out must not keep the new ones from their node.
        labels[names::KEY] = OWN_KEY.into();
    }
    json!({ "labelSelector": { "matchLabels": labels }, "topologyKey": it.topology.label() })
}

/// One term for components of one application that are to be kept away alike. It asks the same as a term for each, but
/// the scheduler looks at a pod that waits only when one goes which fits all of its terms; else after five minutes
/// (`isSchedulableAfterPodChange` of its plugin InterPodAffinity).
fn together(terms: Vec<Value>) -> Vec<Value> {
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for term in terms {
        let (mut rest, name) = (term.clone(), term["labelSelector"]["matchLabels"][names::NAME].clone());
        rest["labelSelector"]["matchLabels"][names::NAME] = Value::Null;
        match groups.iter_mut().find(|it| it.0 == rest) {
            Some((_, _, names)) => names.push(name),
            None => groups.push((rest, term, vec![name])),
        }
    }
    let whole = |(_, mut term, names): (Value, Value, Vec<Value>)| {
        if names.len() > 1 {
            let selector = &mut term["labelSelector"];
            if let Some(labels) = selector["matchLabels"].as_object_mut() {
                labels.remove(names::NAME);
            }
            selector["matchExpressions"] = json!([{ "key": names::NAME, "operator": "In", "values": names }]);
        }
        term
    };
    groups.into_iter().map(whole).collect()
}

/// Puts the key where rules of a pod speak of pods of the same key. It is known only when the pod is: it stands for the pod.
/// (`matchLabelKeys` says the same, in newer clusters only.)
pub(super) fn keyed(spec: &mut Value, key: &str) {
    for field in ["affinity", "topologySpreadConstraints"] {
        if let Some(rules) = spec.get_mut(field) {
            put_key(rules, key);
        }
    }
}

fn put_key(rules: &mut Value, key: &str) {
    match rules {
        Value::Object(fields) => {
            for (name, it) in fields {
                if name == names::KEY && it.as_str() == Some(OWN_KEY) {
                    *it = key.into();
                } else {
                    put_key(it, key);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|it| put_key(it, key)),
        _ => {}
    }
}

fn expression(it: &NodeAffinity) -> Value {
    let operator = match it.operator {
        NodeOperator::In => "In",
        NodeOperator::NotIn => "NotIn",
        NodeOperator::Exists => "Exists",
        NodeOperator::DoesNotExist => "DoesNotExist",
        NodeOperator::Gt => "Gt",
        NodeOperator::Lt => "Lt",
    };
    let mut expression = json!({ "key": it.key, "operator": operator });
    if !it.values.is_empty() {
        expression["values"] = json!(it.values);
    }
    expression
}

/// Whether a toleration says how long an instance stays on a node with this taint.
fn tolerates(it: &Toleration, taint: &str) -> bool {
    it.effect.is_none_or(|it| it == TaintEffect::NoExecute)
        && it.key.as_deref().is_none_or(|it| it == taint)
        && it.value.as_deref().is_none_or(str::is_empty)
}

fn toleration(it: &Toleration) -> Value {
    let operator = match it.operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    };
    let mut toleration = json!({ "operator": operator });
    if let Some(key) = &it.key {
        toleration["key"] = key.as_str().into();
    }
    if let Some(value) = &it.value {
        toleration["value"] = value.as_str().into();
    }
    if let Some(effect) = it.effect {
        toleration["effect"] = match effect {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        }
        .into();
    }
    if let Some(seconds) = it.toleration_seconds {
        toleration["tolerationSeconds"] = seconds.into();
    }
    toleration
}
