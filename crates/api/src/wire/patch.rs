//! A change of a spec: what is absent stays, `null` goes back to the default.

use super::SecretText;
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::spec::files::FileSpec;
use arco_model::spec::scheduling::Scheduling;
use arco_model::spec::{
    Binding, Command, ComponentKind, ComponentSpec, Port, Probe, Resources, RolloutSpec, VolumeKind, VolumeSpec,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A change of a spec. Maps are merged by key, and a key with `null` is removed; lists are replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpecPatch {
    /// How its instances live; cannot change once there is a revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kind: Option<ComponentKind>,
    /// Five fields, UTC.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub schedule: Option<Option<String>>,
    /// How many instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// How many instances by load, instead of a fixed number; replaced as a whole.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    pub autoscaling: Option<Option<Autoscaling>>,
    /// Memory of one instance in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Thousandths of a core of one instance; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
    /// Writable layer of one instance in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    /// Most processes and threads of one instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Ports, replaced as a whole; empty for: as detected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub ports: Option<Vec<Port>>,
    /// Variables by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Option<String>>,
    /// New values of secrets by name. They never come back.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Option<String>>)]
    pub secrets: BTreeMap<String, Option<SecretText>>,
    /// Variables of the build by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub build_env: BTreeMap<String, Option<String>>,
    /// Build strategy by name instead of detection.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub strategy: Option<Option<String>>,
    /// Path of the Dockerfile inside the source.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub dockerfile: Option<Option<String>>,
    /// Volumes by name; the name inside the value must be the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub volumes: BTreeMap<String, Option<VolumeSpec>>,
    /// Configuration files by path; the path inside the value must be the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub files: BTreeMap<String, Option<FileSpec>>,
    /// Bindings by alias; the alias inside the value must be the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub bindings: BTreeMap<String, Option<Binding>>,
    /// What runs.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    pub command: Option<Option<Command>>,
    /// How readiness is asked.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    pub probe: Option<Option<Probe>>,
    /// How a change reaches the instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub rollout: Option<RolloutSpec>,
    /// Where instances may run, on a cluster; replaced as a whole.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    pub scheduling: Option<Option<Scheduling>>,
    /// A raw part of a pod template, put over what is made of the component on Kubernetes; replaced as a whole.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    pub overlay: Option<Option<serde_json::Value>>,
}

/// Tells `null` (go back to the default) from absence (leave it).
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl SpecPatch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Writes all of it but secrets into a spec: a secret needs a version, which its store gives.
    pub fn apply(&self, spec: &mut ComponentSpec) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        fn merge<T: Clone>(to: &mut BTreeMap<String, T>, from: &BTreeMap<String, Option<T>>) {
            for (key, value) in from {
                match value {
                    Some(value) => drop(to.insert(key.clone(), value.clone())),
                    None => drop(to.remove(key)),
                }
            }
        }
        let Resources { cpu_milli, memory_mb, disk_mb, pids } = &mut spec.resources;
        set(cpu_milli, &self.cpu_milli);
        set(memory_mb, &self.memory_mb);
        set(disk_mb, &self.disk_mb);
        set(pids, &self.pids);
        set(&mut spec.kind, &self.kind);
        set(&mut spec.schedule, &self.schedule);
        set(&mut spec.replicas, &self.replicas);
        set(&mut spec.autoscaling, &self.autoscaling);
        set(&mut spec.ports, &self.ports);
        set(&mut spec.build.strategy, &self.strategy);
        set(&mut spec.build.dockerfile, &self.dockerfile);
        set(&mut spec.command, &self.command);
        set(&mut spec.probe, &self.probe);
        set(&mut spec.rollout, &self.rollout);
        set(&mut spec.scheduling, &self.scheduling.clone().map(Option::unwrap_or_default));
        set(&mut spec.overlay, &self.overlay);
        merge(&mut spec.env, &self.env);
        merge(&mut spec.build.env, &self.build_env);
        for (name, volume) in &self.volumes {
            let place = spec.volumes.iter().position(|it| it.name.as_str() == name);
            // Who names no class means the one that it has.
            let class = place.and_then(|at| spec.volumes[at].class.take());
            let kept = |it: &VolumeSpec| it.class.clone().or(class).filter(|_| it.kind != VolumeKind::Memory);
            let volume = volume.as_ref().map(|it| VolumeSpec { class: kept(it), ..it.clone() });
            replace(&mut spec.volumes, place, &volume);
        }
        for (path, file) in &self.files {
            let place = spec.files.iter().position(|it| it.path == *path);
            // Who names no mode means the one that it has.
            let mode = place.and_then(|at| spec.files[at].mode);
            let file = file.as_ref().map(|it| FileSpec { mode: it.mode.or(mode), ..it.clone() });
            replace(&mut spec.files, place, &file);
        }
        for (alias, binding) in &self.bindings {
            let place = spec.bindings.iter().position(|it| it.alias == *alias);
            replace(&mut spec.bindings, place, binding);
        }
    }
}

/// Puts `value` at its place, appends it when it has none, removes what is there when it is `None`.
fn replace<T: Clone>(list: &mut Vec<T>, place: Option<usize>, value: &Option<T>) {
    match (place, value) {
        (Some(at), Some(value)) => list[at] = value.clone(),
        (None, Some(value)) => list.push(value.clone()),
        (Some(at), None) => drop(list.remove(at)),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::source::Source;
    use arco_model::spec::files::FileMode;

    #[test]
    fn absent_stays_null_removes_and_values_merge() {
        let mut spec = ComponentSpec::new(Source::Image { reference: "a".into() });
        spec.env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())].into();
        spec.command = Some(Command::Shell("x".into()));
        spec.replicas = 3;
        let patch: SpecPatch = serde_json::from_value(serde_json::json!({
            "env": {"A": null, "C": "3"}, "command": null, "memory_mb": 64,
            "volumes": {"v": {"name": "v", "path": "/v"}},
            "scheduling": {"node_selector": {"disk": "ssd"}}, "overlay": null
        }))
        .unwrap();
        patch.apply(&mut spec);
        assert_eq!(spec.env.keys().collect::<Vec<_>>(), ["B", "C"]);
        assert_eq!((spec.command.clone(), spec.replicas, spec.resources.memory_mb), (None, 3, 64));
        assert_eq!(spec.volumes.len(), 1);
        assert_eq!((spec.of_clusters(), patch.overlay.is_some()), (vec!["scheduling"], true));
        SpecPatch { scheduling: Some(None), ..SpecPatch::default() }.apply(&mut spec);
        assert!(spec.scheduling.is_empty());
        let volume = |more: serde_json::Value| -> SpecPatch {
            let mut it = serde_json::json!({"name": "v", "path": "/v"});
            it.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(serde_json::json!({"volumes": {"v": it}})).unwrap()
        };
        for (more, class) in [
            (serde_json::json!({"class": "fast"}), Some("fast")),
            (serde_json::json!({"size_mb": 2048}), Some("fast")), // who names none means the one that it has
            (serde_json::json!({"class": "slow"}), Some("slow")),
            (serde_json::json!({"kind": "memory"}), None),
        ] {
            volume(more).apply(&mut spec);
            assert_eq!((spec.volumes.len(), spec.volumes[0].class.as_deref()), (1, class));
        }
        let files = |value: serde_json::Value| -> SpecPatch {
            serde_json::from_value(serde_json::json!({"files": value})).unwrap()
        };
        files(serde_json::json!({"/a": {"path": "/a", "content": "1", "mode": "0400"}, "/b": {"path": "/b", "secret": "KEY"}})).apply(&mut spec);
        files(serde_json::json!({"/a": {"path": "/a", "content": "2"}, "/b": null, "/c": null})).apply(&mut spec);
        let left: Vec<_> = spec.files.iter().map(|it| (it.path.as_str(), it.content.as_deref())).collect();
        assert_eq!((left, spec.files[0].mode.map(FileMode::bits)), (vec![("/a", Some("2"))], Some(0o400)));
        let again: SpecPatch = serde_json::from_str(&serde_json::to_string(&patch).unwrap()).unwrap();
        assert_eq!(again, patch);
        assert!(SpecPatch::default().is_empty() && serde_json::to_string(&SpecPatch::default()).unwrap() == "{}");
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let mut patch = SpecPatch::default();
        patch.secrets.insert("K".into(), Some(SecretText("hunter2".into())));
        assert!(!format!("{patch:?}").contains("hunter2"));
    }
}
