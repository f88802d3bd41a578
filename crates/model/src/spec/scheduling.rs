//! Where the instances of a component may run, and beside whom. The words are Kubernetes' own.
//!
//! What must hold: nothing asked is nothing written, so that a spec without it keeps its fingerprint. Not here: what a
//! machine or cluster makes of it; a single machine has nothing to choose from.

use crate::error::Problem;
use crate::name::{ApplicationName, ComponentName, NameError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most entries of each list.
const ENTRIES_MAX: usize = 32;

/// Where instances may run.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// What else a node must or should be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_affinity: Vec<NodeAffinity>,
    /// Components that instances run beside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<ComponentAffinity>,
    /// Components that instances keep away from; the component itself keeps its instances apart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<ComponentAffinity>,
    /// How evenly instances are spread; without it a stateless component is spread over nodes where that can be had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topology_spread: Vec<TopologySpread>,
    /// Taints of nodes that do not keep instances away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Priority class; the operator says which may be asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
}

/// What a node must or should be.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAffinity {
    /// Label of the node.
    pub key: String,
    /// How it is compared.
    pub operator: NodeOperator,
    /// With what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// How much it is preferred, 1 to 100; required when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// How a label of a node is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeOperator {
    /// It is one of the values.
    In,
    /// It is none of the values, or not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// It is a number above the only value.
    Gt,
    /// It is a number below the only value.
    Lt,
}

/// A component that instances run beside, or keep away from.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentAffinity {
    /// Which.
    pub component: ComponentReference,
    /// What counts as beside: the same of this.
    #[serde(default)]
    pub topology: Topology,
    /// How much it is preferred, 1 to 100; required when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// How evenly instances are spread.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologySpread {
    /// Over what.
    #[serde(default)]
    pub topology: Topology,
    /// By how many instances two of them may differ.
    #[serde(default = "TopologySpread::default_max_skew")]
    pub max_skew: u32,
    /// What happens when that cannot be had.
    #[serde(default)]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

impl TopologySpread {
    fn default_max_skew() -> u32 {
        1
    }
}

/// What happens to an instance that cannot be spread as asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnsatisfiable {
    /// It runs where the unevenness is least.
    #[default]
    ScheduleAnyway,
    /// It waits.
    DoNotSchedule,
}

/// What nodes are grouped by: `node`, `zone`, `region`, or a label of nodes.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Topology(pub String);

impl Default for Topology {
    fn default() -> Self {
        Self("node".to_owned())
    }
}

impl Topology {
    /// The label of nodes.
    pub fn label(&self) -> &str {
        match self.0.as_str() {
            "node" => "kubernetes.io/hostname",
            "zone" => "topology.kubernetes.io/zone",
            "region" => "topology.kubernetes.io/region",
            other => other,
        }
    }
}

/// A taint of nodes that does not keep instances away.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Toleration {
    /// Key of the taint; every key when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How its value is compared.
    pub operator: TolerationOperator,
    /// Its value, for `equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its effect; every one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How long an instance stays after a `no_execute` taint came, in s; for ever when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<u32>,
}

/// How the value of a taint is compared.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TolerationOperator {
    /// It is the same.
    #[default]
    Equal,
    /// It does not matter.
    Exists,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaintEffect {
    /// No new instances.
    NoSchedule,
    /// New instances only when no other node can take them.
    PreferNoSchedule,
    /// No instances.
    NoExecute,
}

/// A component of the same tenant: `[application/]component`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComponentReference {
    /// Its application; that of the component which names it when absent.
    pub application: Option<ApplicationName>,
    /// Its name.
    pub component: ComponentName,
}

impl TryFrom<String> for ComponentReference {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let (application, component) = match text.split_once('/') {
            Some((application, component)) => (Some(ApplicationName::new(application)?), component),
            None => (None, text.as_str()),
        };
        Ok(Self { application, component: ComponentName::new(component)? })
    }
}

impl From<ComponentReference> for String {
    fn from(it: ComponentReference) -> Self {
        match it.application {
            Some(application) => format!("{application}/{}", it.component),
            None => it.component.to_string(),
        }
    }
}

impl Scheduling {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks what needs no cluster; the error names the field.
pub(super) fn validate(it: &Scheduling) -> Result<(), Problem> {
    let counts = [
        ("node_selector", it.node_selector.len()),
        ("node_affinity", it.node_affinity.len()),
        ("affinity", it.affinity.len()),
        ("anti_affinity", it.anti_affinity.len()),
        ("topology_spread", it.topology_spread.len()),
        ("tolerations", it.tolerations.len()),
    ];
    if let Some((field, count)) = counts.iter().find(|it| it.1 > ENTRIES_MAX) {
        return wrong(field, &format!("it has {count} entries"), "give at most 32");
    }
    for (key, value) in &it.node_selector {
        label_key("node_selector", key)?;
        label_value(&format!("node_selector.{key}"), value)?;
    }
    for (at, rule) in it.node_affinity.iter().enumerate() {
        let field = format!("node_affinity[{at}]");
        label_key(&format!("{field}.key"), &rule.key)?;
        weight(&field, rule.weight)?;
        let values = format!("{field}.values");
        match (rule.operator, rule.values.as_slice()) {
            (NodeOperator::In | NodeOperator::NotIn, []) => {
                return wrong(&values, "it is empty", "give at least one value");
            }
            (NodeOperator::Exists | NodeOperator::DoesNotExist, [_, ..]) => {
                return wrong(&values, "the operator takes none", "leave the values out, or use `in`");
            }
            (NodeOperator::Gt | NodeOperator::Lt, given) if !matches!(given, [one] if one.parse::<i64>().is_ok()) => {
                return wrong(&values, "the operator takes one number", "give it as text, as [\"4\"]");
            }
            _ => {}
        }
        rule.values.iter().try_for_each(|it| label_value(&values, it))?;
    }
    for (name, list) in [("affinity", &it.affinity), ("anti_affinity", &it.anti_affinity)] {
        for (at, rule) in list.iter().enumerate() {
            let field = format!("{name}[{at}]");
            label_key(&format!("{field}.topology"), rule.topology.label())?;
            weight(&field, rule.weight)?;
        }
    }
    for (at, rule) in it.topology_spread.iter().enumerate() {
        let field = format!("topology_spread[{at}]");
        label_key(&format!("{field}.topology"), rule.topology.label())?;
        if !(1..=100).contains(&rule.max_skew) {
            return wrong(&format!("{field}.max_skew"), &format!("it is {}", rule.max_skew), "give 1 to 100");
        }
        if it.topology_spread[..at].iter().any(|other| other.topology.label() == rule.topology.label()) {
            return wrong(&format!("{field}.topology"), "it is given twice", "give each topology once");
        }
    }
    for (at, rule) in it.tolerations.iter().enumerate() {
        let field = format!("tolerations[{at}]");
        if let Some(key) = &rule.key {
            label_key(&format!("{field}.key"), key)?;
        }
        match rule.operator {
            TolerationOperator::Equal if rule.key.is_none() => {
                return wrong(
                    &field,
                    "it has no key",
                    "name the taint's key, or say `operator: exists` for every taint",
                );
            }
            TolerationOperator::Exists if rule.value.is_some() => {
                return wrong(&format!("{field}.value"), "`exists` takes none", "leave it out, or use `equal`");
            }
            _ => {}
        }
        label_value(&format!("{field}.value"), rule.value.as_deref().unwrap_or_default())?;
        if rule.toleration_seconds.is_some() && rule.effect != Some(TaintEffect::NoExecute) {
            let advice = "say `effect: no_execute`, or leave it out";
            return wrong(&format!("{field}.toleration_seconds"), "only `no_execute` has a time", advice);
        }
    }
    match &it.priority_class {
        Some(class) if !is_subdomain(class) => wrong(
            "priority_class",
            &format!("`{class}` is not the name of one"),
            "`kubectl get priorityclasses` lists them",
        ),
        _ => Ok(()),
    }
}

fn wrong(field: &str, why: &str, advice: &str) -> Result<(), Problem> {
    Err(Problem::invalid("scheduling_invalid", format!("`scheduling.{field}`: {why}"), advice))
}

fn weight(field: &str, given: Option<u32>) -> Result<(), Problem> {
    match given {
        Some(weight) if !(1..=100).contains(&weight) => {
            wrong(&format!("{field}.weight"), &format!("it is {weight}"), "give 1 to 100, or none when it is required")
        }
        _ => Ok(()),
    }
}

/// `[DNS name/]name`, as Kubernetes has it.
fn label_key(field: &str, key: &str) -> Result<(), Problem> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_word(name) {
        return Ok(());
    }
    wrong(field, &format!("`{}` is not a label", shown(key)), "write it as nodes have it, as `example.com/disk`")
}

fn label_value(field: &str, value: &str) -> Result<(), Problem> {
    if is_label_word(value) {
        return Ok(());
    }
    let advice = "use at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends";
    wrong(field, &format!("`{}` is not the value of a label", shown(value)), advice)
}

/// Empty, or at most 63 letters, digits, `-`, `_`, `.` between letters or digits.
fn is_label_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= 63
        && bytes.iter().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(it))
        && ends.into_iter().flatten().all(u8::is_ascii_alphanumeric)
}

fn is_subdomain(text: &str) -> bool {
    let part = |it: &str| {
        !it.is_empty()
            && it.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
            && !it.starts_with('-')
            && !it.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<Scheduling, String> {
        let it: Scheduling = serde_json::from_value(value).map_err(|it| it.to_string())?;
        validate(&it).map(|()| it).map_err(|it| it.message)
    }

    #[test]
    fn what_a_cluster_would_refuse_is_refused_by_the_name_of_its_field() {
        let rows = [
            (json!({"node_selector": {"-a": "x"}}), "`scheduling.node_selector`"),
            (json!({"node_selector": {"disk": "a b"}}), "`scheduling.node_selector.disk`"),
            (json!({"node_affinity": [{"key": "a", "operator": "in"}]}), "`scheduling.node_affinity[0].values`"),
            (json!({"node_affinity": [{"key": "a", "operator": "exists", "values": ["b"]}]}), "[0].values`"),
            (json!({"node_affinity": [{"key": "a", "operator": "gt", "values": ["b"]}]}), "takes one number"),
            (json!({"node_affinity": [{"key": "a", "operator": "exists", "weight": 101}]}), "[0].weight`"),
            (json!({"affinity": [{"component": "db", "topology": "a b"}]}), "`scheduling.affinity[0].topology`"),
            (json!({"anti_affinity": [{"component": "db", "weight": 0}]}), "`scheduling.anti_affinity[0].weight`"),
            (json!({"affinity": [{"component": "A"}]}), "`A` is not a valid component name"),
            (json!({"topology_spread": [{"max_skew": 0}]}), "`scheduling.topology_spread[0].max_skew`"),
            (json!({"topology_spread": [{}, {"topology": "kubernetes.io/hostname"}]}), "given twice"),
            (json!({"tolerations": [{}]}), "`scheduling.tolerations[0]`: it has no key"),
            (json!({"tolerations": [{"operator": "exists", "value": "a"}]}), "`scheduling.tolerations[0].value`"),
            (json!({"tolerations": [{"key": "a", "toleration_seconds": 1}]}), "toleration_seconds`"),
            (json!({"tolerations": vec![json!({"key": "a"}); 33]}), "33 entries"),
            (json!({"priority_class": "High"}), "`scheduling.priority_class`"),
            (json!({"nodeSelector": {}}), "unknown field"),
        ];
        for (value, wanted) in rows {
            let why = read(value.clone()).expect_err(&value.to_string());
            assert!(why.contains(wanted), "{value}: {why}");
        }
    }

    #[test]
    fn what_is_written_is_what_was_read_and_nothing_is_nothing() {
        let value = json!({
            "node_selector": {"example.com/disk": "ssd"},
            "node_affinity": [{"key": "cores", "operator": "gt", "values": ["4"], "weight": 5}],
            "affinity": [{"component": "db", "topology": "zone"}],
            "anti_affinity": [{"component": "shop/web", "topology": "example.com/rack", "weight": 100}],
            "topology_spread": [{"topology": "zone", "max_skew": 2, "when_unsatisfiable": "do_not_schedule"}],
            "tolerations": [{"key": "gpu", "operator": "exists", "effect": "no_execute", "toleration_seconds": 30}],
            "priority_class": "high"
        });
        let it = read(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&it).unwrap(), value);
        assert_eq!(it.affinity[0].topology.label(), "topology.kubernetes.io/zone");
        assert!(read(json!({})).unwrap().is_empty() && !it.is_empty());
        assert_eq!(serde_json::to_value(Scheduling::default()).unwrap(), json!({}));
    }
}
