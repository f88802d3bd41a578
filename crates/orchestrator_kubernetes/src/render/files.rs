//! Configuration files of instances: a ConfigMap for those with a text of their own, and one volume that shows these and values
//! of the variables' Secret at their paths. Pure.
//!
//! What must hold: nothing is made where there are no files; a secret's value stands in the variables' Secret alone.
//!
//! The cluster gives files to root. Where instances run as another user, who is alone in the container, everybody in it may do
//! what the owner may, so that the mode means to that user what it says.

use super::{Kind, Object};
use arco_model::plan::{FileContent, InstanceFile};
use serde_json::{Map, Value, json};

/// Name of the volume in pods. No volume of a component can have it: names of ours have no `--`.
const VOLUME: &str = "arco--files";

/// What stands for a file in the ConfigMap and in the volume.
fn key(number: usize) -> String {
    format!("file-{number}")
}

/// The ConfigMap of the files with a text of their own; none when there are none. `labels` are all that it has.
pub(crate) fn config_map(
    files: &[InstanceFile],
    namespace: &str,
    name: &str,
    labels: Map<String, Value>,
) -> Option<Object> {
    let text = |(number, file): (usize, &InstanceFile)| match &file.content {
        FileContent::Text(text) => Some((key(number), Value::from(text.as_str()))),
        FileContent::Variable(_) => None,
    };
    let texts: Map<String, Value> = files.iter().enumerate().filter_map(text).collect();
    let rest = json!({ "immutable": true, "data": texts });
    (!texts.is_empty()).then(|| Object::new(Kind::ConfigMap, namespace, name, labels, rest))
}

/// Puts the files into the first container of a pod. `name` is that of their ConfigMap and of the Secret with the
/// variables; `root` says whether the program runs as root.
pub(super) fn mount(spec: &mut Value, files: &[InstanceFile], name: &str, root: bool) {
    if files.is_empty() {
        return;
    }
    let mode = |file: &InstanceFile| {
        let bits = file.mode.bits();
        let owner = (bits >> 6) & 0o5; // a file that is only read has nobody who writes
        if root { bits } else { bits | (owner << 3) | owner }
    };
    let (mut texts, mut values) = (Vec::new(), Vec::new());
    for (number, file) in files.iter().enumerate() {
        let item = |from: &str| json!({ "key": from, "path": key(number), "mode": mode(file) });
        match &file.content {
            FileContent::Text(_) => texts.push(item(&key(number))),
            FileContent::Variable(variable) => values.push(item(variable)),
        }
        let mount = json!({ "name": VOLUME, "mountPath": file.path, "subPath": key(number), "readOnly": true });
        push(&mut spec["containers"][0], "volumeMounts", mount);
    }
    let source = |kind: &str, items: Vec<Value>| {
        (!items.is_empty()).then(|| json!({ (kind): { "name": name, "items": items } }))
    };
    let sources: Vec<Value> = source("configMap", texts).into_iter().chain(source("secret", values)).collect();
    push(spec, "volumes", json!({ "name": VOLUME, "projected": { "sources": sources } }));
}

fn push(to: &mut Value, list: &str, item: Value) {
    match to[list].as_array_mut() {
        Some(items) => items.push(item),
        None => to[list] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{known, plan, rendered};
    use super::*;
    use crate::render::{Packed, Rendered};
    use arco_model::plan::WorkloadPlan;
    use arco_model::spec::ComponentKind;
    use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};

    fn file(path: &str, mode: &str, content: FileContent) -> InstanceFile {
        InstanceFile { path: path.to_owned(), mode: mode.parse().unwrap(), content }
    }

    /// A web server with a configuration and a key.
    fn with_files() -> WorkloadPlan {
        let mut plan = plan();
        plan.template.files = vec![
            file("/etc/app/app.conf", "0444", FileContent::Text("a=1\n".to_owned())),
            file("/etc/app/key.pem", "0400", FileContent::Variable("PASSWORD".to_owned())),
        ];
        plan
    }

    fn map(it: &Rendered) -> Option<Object> {
        it.others.iter().find(|it| it.kind == Kind::ConfigMap).map(Packed::unpack)
    }

    #[test]
    fn texts_are_in_a_config_map_and_secrets_stay_where_they_are() {
        let plan = with_files();
        let it = rendered(&plan);
        let secret = it.others.iter().find(|it| it.kind == Kind::Secret).unwrap().unpack();
        let map = map(&it).unwrap();
        assert_eq!(map.name, secret.name);
        assert_eq!(map.body["data"], json!({ "file-0": "a=1\n" }));
        assert_eq!(map.body["metadata"]["labels"], secret.body["metadata"]["labels"], "they go together");
        assert!(map.body["immutable"] == true && !map.applied().is_empty());
        known::<ConfigMap>(&map.body);
        let workload = it.workload(1).body;
        known::<Deployment>(&workload);
        let pod = &workload["spec"]["template"]["spec"];
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        assert_eq!(
            mounts[mounts.len() - 2..],
            [
                json!({ "name": VOLUME, "mountPath": "/etc/app/app.conf", "subPath": "file-0", "readOnly": true }),
                json!({ "name": VOLUME, "mountPath": "/etc/app/key.pem", "subPath": "file-1", "readOnly": true }),
            ]
        );
        // It runs as user 1000, to whom the cluster does not give the files.
        let sources = json!([
            { "configMap": { "name": map.name, "items": [{ "key": "file-0", "path": "file-0", "mode": 0o444 }] } },
            { "secret": { "name": map.name, "items": [{ "key": "PASSWORD", "path": "file-1", "mode": 0o444 }] } },
        ]);
        let volumes = pod["volumes"].as_array().unwrap();
        assert_eq!(volumes.last().unwrap(), &json!({ "name": VOLUME, "projected": { "sources": sources } }));
        for object in
            it.others.iter().filter(|it| it.kind != Kind::Secret).map(|it| it.unpack().body).chain([workload.clone()])
        {
            assert!(!object.to_string().contains("hunter2"), "{object}");
        }
    }

    #[test]
    fn another_text_is_another_key_and_no_file_is_no_object() {
        let before = rendered(&with_files());
        let mut plan = with_files();
        plan.template.files[0].content = FileContent::Text("a=2\n".to_owned());
        let after = rendered(&plan);
        assert!(before.key != after.key && map(&before).unwrap().name != map(&after).unwrap().name);
        plan.template.files.remove(0);
        assert!(map(&rendered(&plan)).is_none(), "a secret alone needs no ConfigMap");
        plan.kind = ComponentKind::Stateful;
        let pod = rendered(&plan).workload(1).body["spec"]["template"]["spec"].clone();
        assert_eq!(pod["volumes"].as_array().unwrap().last().unwrap()["name"], VOLUME);
        plan.template.files.clear();
        plan.template.volumes.clear();
        let pod = rendered(&plan).workload(1).body["spec"]["template"]["spec"].clone();
        assert!(pod["volumes"].is_null() && pod["containers"][0]["volumeMounts"].is_null(), "{pod}");
    }

    #[test]
    fn a_mode_means_to_the_instances_user_what_it_says() {
        for (mode, root, seen) in [
            ("0400", true, 0o400),
            ("0400", false, 0o444),
            ("0500", false, 0o555),
            ("0600", false, 0o644),
            ("0640", true, 0o640),
            ("0444", false, 0o444),
        ] {
            let mut spec = json!({ "containers": [{}] });
            mount(&mut spec, &[file("/a", mode, FileContent::Text(String::new()))], "name", root);
            let items = &spec["volumes"][0]["projected"]["sources"][0]["configMap"]["items"];
            assert_eq!(items[0]["mode"], seen, "{mode} {root}");
        }
    }
}
