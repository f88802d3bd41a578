//! What findings mean, from tables.

use super::*;
use serde_json::json;

fn class(name: &str, default: bool, expands: bool) -> StorageClass {
    let annotations = json!({ "storageclass.kubernetes.io/is-default-class": default.to_string() });
    serde_json::from_value(json!({
        "metadata": { "name": name, "annotations": annotations }, "provisioner": "p.test", "allowVolumeExpansion": expands,
    }))
    .unwrap()
}

fn node(ready: &str, closed: bool, confined: bool) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": "n" },
        "spec": { "unschedulable": closed },
        "status": {
            "conditions": [{ "type": "Ready", "status": ready }],
            "runtimeHandlers": [{ "name": "", "features": { "userNamespaces": confined } }],
        },
    }))
    .unwrap()
}

#[test]
fn versions() {
    for (major, minor, wanted) in [
        ("1", "27", Weight::Bad),
        ("1", "28+", Weight::Good),
        ("1", "33", Weight::Good),
        ("1", "36", Weight::Good),
        ("1", "37", Weight::Warning),
        ("2", "0", Weight::Warning),
        ("", "", Weight::Warning),
    ] {
        assert_eq!(judge_version(major, minor, "v").weight, wanted, "{major}.{minor}");
    }
}

#[test]
fn what_a_version_lacks_is_named() {
    let with = KubernetesConfig::default();
    let without = KubernetesConfig { user_namespaces: false, eviction_pause_s: 0, ..KubernetesConfig::default() };
    let pauses = ("drained nodes", Weight::Warning);
    for (minor, config, wanted) in [
        ("28", &with, vec![("user namespaces", Weight::Bad), ("jobs", Weight::Warning), pauses]),
        ("28", &without, vec![("user namespaces", Weight::Warning), ("jobs", Weight::Warning)]),
        ("29", &with, vec![("user namespaces", Weight::Bad), pauses]),
        ("32", &with, vec![("user namespaces", Weight::Bad)]),
        ("33", &with, vec![]),
        ("36", &without, vec![]),
    ] {
        let found = judge_features(Features::of("1", minor), config);
        let said: Vec<_> = found.iter().map(|it| (it.check, it.weight)).collect();
        assert_eq!(said, wanted, "{minor}: {found:?}");
        assert!(found.iter().all(|it| !it.advice.is_empty()), "{found:?}");
    }
    // What nodes say of themselves does not count where the cluster would drop the field.
    let old = judge_nodes(&[node("True", false, true)], &without, Features::of("1", "32"));
    assert_eq!(old.weight, Weight::Good, "{old:?}");
}

#[test]
fn clocks() {
    for (seconds, wanted) in
        [(0, Weight::Good), (3, Weight::Good), (4, Weight::Warning), (30, Weight::Warning), (31, Weight::Bad)]
    {
        assert_eq!(judge_clock(seconds).weight, wanted, "{seconds}");
    }
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for (theirs, wanted) in [(95, 5), (100, 0), (130, 0), (160, 0), (167, 7)] {
        assert_eq!(apart(at(theirs), at(100), at(160)).as_secs(), wanted, "{theirs}");
    }
}

#[test]
fn missing_groups_are_named_with_their_use() {
    let all: BTreeSet<String> = GROUPS.iter().map(|(it, _)| (*it).to_owned()).collect();
    assert_eq!(judge_groups(&all).weight, Weight::Good);
    let mut some = all;
    some.remove("policy/v1");
    let found = judge_groups(&some);
    assert!(found.weight == Weight::Bad && found.found.contains("PodDisruptionBudgets"), "{found:?}");
}

#[test]
fn missing_rights_are_named() {
    let missing = BTreeMap::from([
        ("pods/exec".to_owned(), vec!["get", "create"]),
        (shown("apps", "deployments"), vec!["patch"]),
    ]);
    let found = judge_permissions(9, &missing);
    assert_eq!(found.found, "this account may not: patch deployments.apps, get/create pods/exec");
    assert_eq!(judge_permissions(9, &BTreeMap::new()).weight, Weight::Good);
}

#[test]
fn rights_of_parts_are_asked_for_as_parts() {
    let asked = question("", "pods/exec", "create").spec.resource_attributes.unwrap();
    assert_eq!((asked.resource.as_deref(), asked.subresource.as_deref()), (Some("pods"), Some("exec")));
}

#[test]
fn storage_classes() {
    let classes = [class("slow", false, false), class("fast", true, true)];
    for (classes, wanted, weight, part) in [
        (&classes[..], "", Weight::Good, "`fast`"),
        (&classes[..], "fast", Weight::Good, "also there: `slow` of p.test (keeps its size, made at once)"),
        (&classes[..], "slow", Weight::Warning, "cannot grow"),
        (&classes[..], "none", Weight::Bad, "there are slow, fast"),
        (&classes[..1], "", Weight::Bad, "no storage class is the default"),
        (&[], "", Weight::Bad, "the cluster has none"),
    ] {
        let found = judge_storage(classes, wanted, "arco-local");
        assert!(found.weight == weight && found.found.contains(part), "{wanted}: {found:?}");
    }
    assert!(judge_storage(&[], "", "").advice.contains("`arco cluster manifest --local-storage`"));
    let missing = judge_storage(&classes, "arco-local", "arco-local");
    assert!(missing.weight == Weight::Bad && missing.advice.contains("--local-storage"), "{missing:?}");
    let ours = StorageClass { provisioner: PROVISIONER.to_owned(), ..class("arco-local", false, false) };
    let found = judge_storage(&[ours], "arco-local", "arco-local");
    assert!(found.weight == Weight::Warning && found.found.contains("folders of one node"), "{found:?}");
}

#[test]
fn nodes_are_counted_when_they_take_pods() {
    let config = KubernetesConfig::default();
    let no_namespaces = KubernetesConfig { user_namespaces: false, ..KubernetesConfig::default() };
    for (nodes, config, weight, part) in [
        (vec![node("True", false, true)], &config, Weight::Good, "1 of 1"),
        (vec![node("True", false, true), node("Unknown", false, true)], &config, Weight::Good, "1 of 2"),
        (vec![node("True", false, false)], &config, Weight::Bad, "user namespace"),
        (vec![node("True", false, false)], &no_namespaces, Weight::Good, "1 of 1"),
        (vec![node("True", false, true)], &no_namespaces, Weight::Warning, "asks for none"),
        (vec![node("True", true, true), node("False", false, true)], &config, Weight::Bad, "none of 2"),
        (vec![], &config, Weight::Bad, "none of 0"),
    ] {
        let found = judge_nodes(&nodes, config, Features::of("1", "36"));
        assert!(found.weight == weight && found.found.contains(part), "{found:?}");
    }
}

#[test]
fn a_cluster_without_metrics_is_told() {
    let served = |it: &str| BTreeSet::from([it.to_owned()]);
    assert_eq!(judge_metrics(&served("metrics.k8s.io/v1beta1")).weight, Weight::Good);
    let finding = judge_metrics(&served("apps/v1"));
    assert!(finding.weight == Weight::Warning && finding.advice.contains("metrics-server"), "{finding:?}");
}
