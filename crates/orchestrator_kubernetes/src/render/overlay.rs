//! A component's overlay, put over the pod that was made of it.
//!
//! Objects are merged by field, `null` takes a field away, and lists are merged by the key that Kubernetes' strategic merge
//! has for them; every other list is replaced. What must hold: nothing by which the platform finds, feeds or judges its
//! instances is overridden; nothing loosens how they are confined unless the operator allows it (`kubernetes.any_overlay`);
//! a field that Kubernetes does not know is refused. Each refusal names the field, before anything is sent.

use super::pod::CAPABILITIES;
use crate::names;
use arco_config::KubernetesConfig;
use arco_model::spec::container_memory_mb;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};

/// Fields of a pod that confine nothing.
const POD: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "hostAliases",
    "hostname",
    "imagePullSecrets",
    "initContainers",
    "nodeSelector",
    "readinessGates",
    "schedulerName",
    "securityContext",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
];

/// Fields of a container that confine nothing.
const CONTAINER: &[&str] = &[
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeMounts",
    "workingDir",
];

/// Fields of security contexts that only choose who a program is.
const SECURITY: &[&str] = &[
    "fsGroup",
    "fsGroupChangePolicy",
    "readOnlyRootFilesystem",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "supplementalGroups",
];

/// Sources of volumes that hold nothing of other tenants and reach nothing outside.
const VOLUME: &[&str] = &["configMap", "downwardAPI", "emptyDir", "ephemeral", "name", "persistentVolumeClaim"];

/// Fields of the app's container that a one-off run takes over, too.
const OF_RUNS: &[&str] = &["env", "envFrom", "name", "resources", "securityContext", "volumeMounts"];

/// By which field items of a list are the same, where Kubernetes merges it.
fn merge_key(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "ports" => Some("containerPort"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

/// Puts an overlay over a pod template (`metadata` and `spec`).
pub(super) fn put_over(pod: &mut Value, overlay: &Value, config: &KubernetesConfig) -> Result<(), String> {
    Check { pod, config }.look(&mut Vec::new(), overlay)?;
    let own: Vec<Value> = LISTS.iter().flat_map(|list| containers(pod, list)).map(|it| it["name"].clone()).collect();
    merge(pod, overlay, "");
    known(pod)?;
    if config.any_overlay { Ok(()) } else { limited(pod, &own) }
}

/// The lists of containers of a pod.
const LISTS: [&str; 2] = ["initContainers", "containers"];

fn containers<'p>(pod: &'p Value, list: &str) -> &'p [Value] {
    pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Every container that is not the platform's `own` says how much memory it may use: the tenant's quota counts it.
fn limited(pod: &Value, own: &[Value]) -> Result<(), String> {
    for list in LISTS {
        let without = |it: &&Value| !own.contains(&it["name"]) && container_memory_mb(it).is_none();
        if let Some(name) = containers(pod, list).iter().find(without).and_then(|it| it["name"].as_str()) {
            return Err(format!(
                "`overlay.spec.{list}[{name}].resources.limits.memory` is missing: a further container says how much memory it may use, in whole units as `128Mi` or `1Gi`"
            ));
        }
    }
    Ok(())
}

/// What of an overlay counts for a one-off run: it has one container, which ends, and nobody asks whether it is ready.
pub(super) fn of_run(overlay: &Value) -> Value {
    let mut overlay = overlay.clone();
    let Some(spec) = overlay.get_mut("spec").and_then(Value::as_object_mut) else { return overlay };
    for field in ["initContainers", "terminationGracePeriodSeconds", "activeDeadlineSeconds", "readinessGates"] {
        spec.remove(field);
    }
    if let Some(containers) = spec.get_mut("containers").and_then(Value::as_array_mut) {
        containers.retain(|it| it["name"] == names::CONTAINER);
        for app in containers.iter_mut().filter_map(Value::as_object_mut) {
            app.retain(|field, _| OF_RUNS.contains(&field.as_str()));
        }
    }
    overlay
}

struct Check<'a> {
    /// As it is without the overlay.
    pod: &'a Value,
    config: &'a KubernetesConfig,
}

impl Check<'_> {
    /// Looks at all of it; `path` leads to `value`, items of lists by their key in brackets.
    fn look(&self, path: &mut Vec<String>, value: &Value) -> Result<(), String> {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        if let Some(why) = self.ours(&words) {
            return Err(format!("{} cannot be set: {why}", shown(path)));
        }
        if !self.config.any_overlay && loosens(&words) {
            return Err(format!(
                "{} cannot be set: it may loosen how instances are confined, or reach what is not the component's; the operator allows it by `kubernetes.any_overlay = true`",
                shown(path)
            ));
        }
        // What a further container begins with ([`confined`]) is not in the pod yet, and stays as well.
        let confines = matches!(words[..], ["spec", "containers" | "initContainers", _, "securityContext"]);
        if value.is_null() && (confines || self.there(&words).is_some_and(|it| it.is_object() || it.is_array())) {
            return Err(format!(
                "{} cannot be taken away as a whole: the platform put something there; name single fields of it",
                shown(path)
            ));
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    path.push(name.clone());
                    self.look(path, value)?;
                    path.pop();
                }
                Ok(())
            }
            Value::Array(items) => {
                let key = merge_key(path.last().map_or("", String::as_str));
                for (at, item) in items.iter().enumerate() {
                    let name = match key.map(|key| (key, text(&item[key]))) {
                        Some((_, Some(name))) => name,
                        Some((key, None)) => return Err(format!("{}[{at}] has no `{key}`", shown(path))),
                        None => at.to_string(),
                    };
                    path.push(format!("[{name}]"));
                    self.look(path, item)?;
                    path.pop();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What the pod has at a path.
    fn there(&self, path: &[&str]) -> Option<&Value> {
        let mut found = self.pod;
        let mut list = "";
        for step in path {
            found = match step.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
                Some(item) => {
                    let key = merge_key(list)?;
                    found.as_array()?.iter().find(|it| text(&it[key]).as_deref() == Some(item))?
                }
                None => found.get(step)?,
            };
            list = step;
        }
        Some(found)
    }

    /// Why a field is the platform's.
    fn ours(&self, path: &[&str]) -> Option<&'static str> {
        const APP: &str = "[app]";
        const {
            let (app, name) = (APP.as_bytes(), names::CONTAINER.as_bytes());
            assert!(app.len() == name.len() + 2 && app[1] == name[0] && app[2] == name[1] && app[3] == name[2]);
        }
        match path {
            [.., field] if field.starts_with('$') => Some("directives of patches are not known here"),
            ["metadata", field] if !matches!(*field, "labels" | "annotations") => {
                Some("of the metadata only labels and annotations are free")
            }
            ["metadata", _, key] if key.starts_with("arco.internal/") || self.there(path).is_some() => {
                Some("the platform finds its instances by it")
            }
            ["spec", "restartPolicy"] => Some("the component's `kind` decides it"),
            ["spec", "nodeSelector", key] if self.config.node_selector.contains_key(*key) => {
                Some("`kubernetes.node_selector` decides it")
            }
            ["spec", "volumes", _] if self.there(path).is_some() => Some("it is one of the component's `volumes`"),
            ["spec", "imagePullSecrets", _] if self.there(path).is_some() => Some("the platform renews it"),
            ["spec", "containers", APP, rest @ ..] => match rest {
                ["image" | "imagePullPolicy"] => Some("the revision decides what runs"),
                ["command" | "args"] => Some("set `command` of the component"),
                ["env", name] if name.starts_with("[ARCO_") => Some("the platform sets it"),
                ["volumeMounts", _] if self.there(path).is_some() => Some("it is one of the component's `volumes`"),
                ["resources", "limits" | "requests", "cpu" | "memory" | "ephemeral-storage"] => {
                    Some("set `resources` of the component")
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Whether a field may loosen how pods are confined. What is not known to be harmless may.
fn loosens(path: &[&str]) -> bool {
    match path {
        [.., "httpGet" | "tcpSocket", "host"] => true, // the node would ask where the pod may not
        [.., "valueFrom", "secretKeyRef"] | [.., "envFrom", _, "secretRef"] => true,
        // By these, network plugins put a pod into other networks, and a node confines it less.
        ["metadata", "annotations", key] => key.contains("cni") || key.starts_with("container.apparmor."),
        // A rule about pods of other namespaces keeps those away from nodes as well.
        ["spec", "affinity", .., "namespaces" | "namespaceSelector"] => true,
        ["spec", field] => !POD.contains(field),
        ["spec", "securityContext", field] => !SECURITY.contains(field),
        ["spec", "volumes", _, field] => !VOLUME.contains(field),
        ["spec", "containers" | "initContainers", _, field] => !CONTAINER.contains(field),
        ["spec", "containers" | "initContainers", _, "securityContext", field] => !SECURITY.contains(field),
        ["spec", "containers" | "initContainers", _, "ports", _, "hostPort" | "hostIP"] => true,
        _ => false,
    }
}

fn merge(to: &mut Value, from: &Value, field: &str) {
    match from {
        Value::Object(fields) => {
            if !to.is_object() {
                *to = json!({});
            }
            let Some(to) = to.as_object_mut() else { return };
            for (name, value) in fields {
                match value {
                    Value::Null => drop(to.remove(name)),
                    // Kubernetes takes `1` for `"1"` as an amount; its types do not.
                    Value::Number(amount) if matches!(field, "limits" | "requests") => {
                        to.insert(name.clone(), amount.to_string().into());
                    }
                    value => merge(to.entry(name.clone()).or_insert(Value::Null), value, name),
                }
            }
        }
        Value::Array(items) => {
            let Some(key) = merge_key(field) else {
                *to = from.clone();
                return;
            };
            if !to.is_array() {
                *to = json!([]);
            }
            let Some(to) = to.as_array_mut() else { return };
            for item in items {
                let at = to.iter().position(|it| it[key] == item[key]).unwrap_or_else(|| {
                    to.push(if matches!(field, "containers" | "initContainers") { confined() } else { json!({}) });
                    to.len() - 1
                });
                merge(&mut to[at], item, "");
            }
        }
        other => *to = other.clone(),
    }
}

/// A container as every one begins.
fn confined() -> Value {
    json!({ "securityContext": {
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"], "add": CAPABILITIES },
    }})
}

/// Whether Kubernetes knows every field.
fn known(pod: &Value) -> Result<(), String> {
    let typed: PodTemplateSpec =
        serde_json::from_value(pod.clone()).map_err(|it| format!("`overlay` is not a part of a pod template: {it}"))?;
    let back = serde_json::to_value(typed).unwrap_or_default();
    match lost(pod, &back, &mut Vec::new()) {
        Some(path) => Err(format!("{} is not a field of a pod template that is known", shown(&path))),
        None => Ok(()),
    }
}

/// The first field of `a` that is not in `b`; what is empty may be left out.
fn lost(a: &Value, b: &Value, path: &mut Vec<String>) -> Option<Vec<String>> {
    match (a, b) {
        (Value::Object(a), _) => a.iter().find_map(|(name, value)| {
            path.push(name.clone());
            let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
            let found = match b.get(name) {
                Some(other) => lost(value, other, path),
                None if empty => None,
                None => Some(path.clone()),
            };
            path.pop();
            found
        }),
        (Value::Array(a), Value::Array(b)) => {
            let key = merge_key(path.last().map_or("", String::as_str)).unwrap_or_default();
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| {
                path.push(format!("[{}]", text(&a[key]).unwrap_or_else(|| at.to_string())));
                let found = lost(a, b, path);
                path.pop();
                found
            })
        }
        _ => None,
    }
}

/// A key of an item, as text.
fn text(key: &Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The path as people write it.
fn shown(path: &[String]) -> String {
    let mut text = "`overlay".to_owned();
    for step in path {
        if !step.starts_with('[') {
            text.push('.');
        }
        text.push_str(step);
    }
    text.push('`');
    text
}

#[cfg(test)]
mod tests;
