//! `apply`: a whole application as one document says, with the difference that it makes.
//!
//! What the document leaves out goes back to its default, but values of secrets, which it only names.

use super::super::Api;
use super::super::change::{Change, SecretEdits, runs_differently};
use super::super::error::ApiError;
use super::super::identity::Caller;
use super::Target;
use crate::wire::{ApplyChange, ApplyRequest, ApplyResult, ComponentApply, OperationDocument};
use arco_model::component::{Component, Power};
use arco_model::error::Problem;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::operation::OperationKind;
use arco_model::spec::{Binding, ComponentSpec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Mutex;

impl Api {
    pub(in super::super) async fn apply(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        application: &ApplicationName,
        request: &ApplyRequest,
        dry_run: bool,
    ) -> Result<ApplyResult, ApiError> {
        for (name, component) in &request.components {
            let target = Target { tenant: tenant.clone(), application: application.clone(), component: name.clone() };
            self.source_is_here(caller, &target, &component.source).await?;
            self.volumes_fit(&target, component.manifest.volumes.iter()).await?;
        }
        // The last attempt's difference; decisions are pure but for this note.
        let changes = Mutex::new(Vec::new());
        let decide = |change: &mut Change<'_>| {
            let found = apply(change, application, request)?;
            *changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
            Ok(())
        };
        let operations = if dry_run {
            self.try_out(tenant, application, decide).await?;
            Vec::new()
        } else {
            self.change(caller, tenant, application, None, decide).await?
        };
        let changes = changes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(ApplyResult { changes, operations: operations.iter().map(OperationDocument::from).collect() })
    }
}

fn apply(
    change: &mut Change<'_>,
    application: &ApplicationName,
    request: &ApplyRequest,
) -> Result<Vec<ApplyChange>, ApiError> {
    let mut changes = Vec::new();
    for (name, wanted) in &request.components {
        let found = change.world.find(name).map(|it| &it.value);
        let spec = spec(application, name, wanted, found)?;
        let replace = |it: &mut ComponentSpec| *it = spec.clone();
        let fresh = found.is_none_or(|it| it.desired_revision.is_none());
        match found {
            None => changes.push(whole(name, "create", Value::Null, to_json(&spec))),
            Some(found) => changes.extend(difference(name, &found.spec, &spec)),
        }
        let none = SecretEdits::new();
        match found {
            Some(it) if !fresh && it.spec == spec && it.power == Power::On => {}
            Some(it) if !fresh && it.spec.source == spec.source && it.spec.build == spec.build => {
                let scales = !runs_differently(&it.spec, &spec);
                let kind = if scales { OperationKind::Scale } else { OperationKind::Configure };
                change.configure(name, kind, "apply", &replace, &none)?;
            }
            _ => change.deploy(name, &wanted.source, &replace, &none, false)?,
        }
    }
    if request.prune {
        let gone: Vec<_> =
            change.world.siblings().filter(|it| !request.components.contains_key(&it.value.name)).collect();
        for component in gone {
            changes.push(whole(&component.value.name, "delete", to_json(&component.value.spec), Value::Null));
            change.delete(component, true)?;
        }
    }
    Ok(changes)
}

/// The spec that a document asks for.
fn spec(
    application: &ApplicationName,
    name: &ComponentName,
    wanted: &ComponentApply,
    found: Option<&Component>,
) -> Result<ComponentSpec, Problem> {
    let manifest = &wanted.manifest;
    let mut spec = ComponentSpec::new(wanted.source.clone());
    spec.kind = manifest.kind;
    spec.schedule.clone_from(&manifest.schedule);
    spec.replicas = match (manifest.autoscaling, found) {
        // How many at first says nothing once it follows load, and what runs is where it begins.
        (Some(_), Some(found)) if found.spec.autoscaling.is_some() => found.spec.replicas,
        (Some(_), Some(found)) => manifest.replicas.unwrap_or(found.spec.replicas),
        _ => manifest.replicas.unwrap_or(1),
    };
    spec.autoscaling = manifest.autoscaling;
    spec.resources = manifest.resources.unwrap_or_default();
    spec.ports.clone_from(&manifest.ports);
    spec.env.clone_from(&manifest.env);
    spec.build.env.clone_from(&manifest.build_env);
    spec.volumes.clone_from(&manifest.volumes);
    spec.files.clone_from(&manifest.files);
    spec.command.clone_from(&manifest.command);
    spec.probe.clone_from(&manifest.probe);
    spec.rollout = manifest.rollout.unwrap_or_default();
    spec.scheduling = manifest.scheduling.clone().unwrap_or_default();
    spec.overlay.clone_from(&manifest.overlay);
    spec.bindings = manifest.bind.iter().map(|text| binding(application, text)).collect::<Result<_, _>>()?;
    for secret in &manifest.secrets {
        let Some(version) = found.and_then(|it| it.spec.secrets.get(secret)) else {
            let message = format!("secret `{secret}` of `{application}/{name}` is not set");
            let advice = match found {
                Some(_) => format!(
                    "`arco secret set {application}/{name} {secret}=@FILE` first; values never stand in this file"
                ),
                None => format!("deploy it once with `--secret {secret}=@FILE`; values never stand in this file"),
            };
            return Err(Problem::invalid("secret_missing", message, advice));
        };
        spec.secrets.insert(secret.clone(), *version);
    }
    Ok(spec)
}

/// `[application/]component[=ALIAS]`; the alias is the component's name in upper case when it is left out.
fn binding(own: &ApplicationName, text: &str) -> Result<Binding, Problem> {
    let bad = |why: String| {
        Problem::invalid(
            "binding_invalid",
            format!("binding `{text}`: {why}"),
            "write `[application/]component[=ALIAS]`",
        )
    };
    let (reference, alias) = text.split_once('=').map_or((text, None), |(reference, alias)| (reference, Some(alias)));
    let (application, component) = match reference.split_once('/') {
        Some((application, component)) => {
            (ApplicationName::new(application).map_err(|it| bad(it.to_string()))?, component)
        }
        None => (own.clone(), reference),
    };
    let component = ComponentName::new(component).map_err(|it| bad(it.to_string()))?;
    let alias = alias.map_or_else(|| component.as_str().to_ascii_uppercase().replace('-', "_"), str::to_owned);
    Ok(Binding { application, component, alias })
}

fn whole(name: &ComponentName, action: &str, before: Value, after: Value) -> ApplyChange {
    ApplyChange { component: name.to_string(), action: action.to_owned(), field: String::new(), before, after }
}

/// Each field that differs, by its path.
pub(super) fn difference(name: &ComponentName, before: &ComponentSpec, after: &ComponentSpec) -> Vec<ApplyChange> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten(String::new(), to_json(before), &mut old);
    flatten(String::new(), to_json(after), &mut new);
    let mut fields: Vec<&String> = old.keys().chain(new.keys()).collect();
    fields.sort();
    fields.dedup();
    let value = |from: &BTreeMap<String, Value>, field: &String| from.get(field).cloned().unwrap_or_default();
    let changed = |field: &&String| old.get(*field) != new.get(*field);
    let change = |field: &String| ApplyChange {
        component: name.to_string(),
        action: "change".to_owned(),
        field: field.clone(),
        before: value(&old, field),
        after: value(&new, field),
    };
    fields.into_iter().filter(changed).map(change).collect()
}

fn to_json(spec: &ComponentSpec) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

/// Field of a spec with the configuration files.
const FILES: &str = "files";

/// Objects by path of their fields; lists stay whole, but files, each of which is named. What is empty counts as absent.
fn flatten(path: String, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(if path.is_empty() { key } else { format!("{path}.{key}") }, value, into);
            }
        }
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Array(files) if path == FILES => {
            for file in files {
                let at = file["path"].as_str().unwrap_or_default();
                into.insert(format!("{path}.{at}"), file);
            }
        }
        other => drop(into.insert(path, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::source::Source;
    use arco_model::spec::files::FileSpec;

    #[test]
    fn bindings_are_read_with_their_defaults() {
        let own = ApplicationName::new("shop").unwrap();
        let rows = [
            ("db", Some(("shop", "db", "DB"))),
            ("my-db=STORE", Some(("shop", "my-db", "STORE"))),
            ("other/my-db", Some(("other", "my-db", "MY_DB"))),
            ("", None),
            ("a/b/c", None),
            ("A", None),
        ];
        for (text, expected) in rows {
            let found = binding(&own, text).ok();
            let found = found.as_ref().map(|it| (it.application.as_str(), it.component.as_str(), it.alias.as_str()));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_difference_names_fields() {
        let name = ComponentName::new("web").unwrap();
        let before = ComponentSpec::new(Source::Image { reference: "a".into() });
        let mut after = before.clone();
        after.env.insert("A".into(), "1".into());
        after.replicas = 3;
        let file = |content: &str| -> FileSpec {
            serde_json::from_value(serde_json::json!({"path": "/etc/a", "content": content})).unwrap()
        };
        after.files = vec![file("x")];
        let changes = difference(&name, &before, &after);
        let fields: Vec<_> =
            changes.iter().map(|it| (it.field.as_str(), it.before.clone(), it.after.clone())).collect();
        let whole = serde_json::json!({"path": "/etc/a", "content": "x"});
        let expected = [
            ("env.A", Value::Null, Value::from("1")),
            ("files./etc/a", Value::Null, whole),
            ("replicas", Value::from(1), Value::from(3)),
        ];
        assert_eq!(fields, expected);
        assert_eq!(difference(&name, &after, &after), []);
    }
}
