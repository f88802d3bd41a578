//! The rules that span components, row by row.

use super::*;
use arco_model::sample;
use arco_model::time::Timestamp;

fn component(number: u64, tenant: &str, name: &str, calls: &[&str]) -> Component {
    let (application, name) = name.split_once('/').unwrap();
    let mut it = sample::component();
    for call in calls {
        let (application, component) = call.split_once('/').unwrap();
        let (application, component) = (application.parse().unwrap(), component.parse().unwrap());
        it.spec.bindings.push(Binding { application, component, alias: "A".into() });
    }
    (it.id, it.tenant) = (ComponentId::from_parts(number, number), tenant.parse().unwrap());
    (it.application, it.name) = (application.parse().unwrap(), name.parse().unwrap());
    it
}

fn after(all: &[Component]) -> After<'_> {
    After {
        all: all.iter().collect(),
        changed: all.iter().map(|it| &it.id).collect(),
        created: all.iter().map(|it| &it.id).collect(),
    }
}

fn code(result: Result<(), Problem>) -> String {
    result.map_or_else(|it| it.code, |()| String::new())
}

#[test]
fn bindings_lead_somewhere_and_never_back() {
    let row = |components: &[(&str, &str, &[&str])]| {
        let all: Vec<_> = components
            .iter()
            .enumerate()
            .map(|(at, (tenant, name, calls))| component(at as u64 + 1, tenant, name, calls))
            .collect();
        code(after(&all).bindings(&TenantName::new("t").unwrap()))
    };
    assert_eq!(row(&[("t", "a/x", &["a/y"]), ("t", "a/y", &[])]), "");
    assert_eq!(row(&[("t", "a/x", &["a/y"])]), "binding_target_missing");
    assert_eq!(row(&[("t", "a/x", &["a/y"]), ("other", "a/y", &[])]), "binding_target_missing");
    let asked = [component(1, "t", "a/x", &["a/y"])];
    let said = after(&asked).bindings(&TenantName::new("t").unwrap()).unwrap_err().message;
    assert_eq!(said, "`a/x` cannot be bound to `a/y`: there is none", "it is not bound yet");
    assert_eq!(row(&[("t", "a/x", &["a/x"])]), "binding_cycle");
    assert_eq!(row(&[("t", "a/x", &["a/y"]), ("t", "a/y", &["b/z"]), ("t", "b/z", &["a/x"])]), "binding_cycle");
    assert_eq!(row(&[("t", "a/x", &["a/y", "a/z"]), ("t", "a/y", &["a/z"]), ("t", "a/z", &[])]), "");
}

#[test]
fn what_is_called_cannot_go_alone() {
    let tenant = TenantName::new("t").unwrap();
    let mut all = vec![component(1, "t", "a/x", &["a/y"]), component(2, "t", "a/y", &[])];
    all[1].power = Power::Deleting { keep_volumes: false };
    assert_eq!(code(after(&all).deletions(&tenant)), "bound_to");
    all[0].power = Power::Deleting { keep_volumes: false };
    assert_eq!(code(after(&all).deletions(&tenant)), "");
}

#[test]
fn a_quota_stops_growth_only() {
    let tenant = Tenant { name: TenantName::new("t").unwrap(), memory_quota_mb: 1000, created_at: Timestamp(0) };
    let before = [component(1, "t", "a/x", &[])];
    let mut all = before.to_vec();
    for (was, replicas, expected) in
        [(1, 1, ""), (1, 2, "quota_reached"), (4, 3, ""), (4, 4, ""), (4, 5, "quota_reached")]
    {
        let mut before = before.to_vec();
        before[0].spec.replicas = was;
        all[0].spec.replicas = replicas;
        assert_eq!(
            code(after(&all).quota(&tenant, &before.iter().collect::<Vec<_>>())),
            expected,
            "{was} → {replicas}"
        );
    }
    // What an overlay puts beside each instance counts as well.
    all[0].spec.replicas = 1;
    for (memory, expected) in [("488Mi", ""), ("489Mi", "quota_reached")] {
        let proxy = serde_json::json!({"name": "proxy", "resources": {"limits": {"memory": memory}}});
        all[0].spec.overlay = Some(serde_json::json!({"spec": {"containers": [proxy]}}));
        assert_eq!(code(after(&all).quota(&tenant, &before.iter().collect::<Vec<_>>())), expected, "{memory}");
    }
    all[0].spec.replicas = 50;
    all[0].power = Power::Off;
    assert_eq!(code(after(&all).quota(&tenant, &[])), "");
}

#[test]
fn hosts_are_unique_and_fit() {
    let row = |names: &[(&str, &str)]| {
        let all: Vec<_> =
            names.iter().enumerate().map(|(at, (tenant, name))| component(at as u64 + 1, tenant, name, &[])).collect();
        code(after(&all).hosts("example.com", &[]))
    };
    assert_eq!(row(&[("default", "a/x"), ("default", "b/x"), ("t", "a/x")]), "");
    let long = format!("{}/{}", "a".repeat(30), "b".repeat(30));
    assert_eq!(row(&[("tenant", &long)]), "host_too_long");
    assert_eq!(row(&[("default", "c/a-b"), ("default", "b-c/a")]), "host_taken");
    // `x-a-t` in both; nobody learns the name of another tenant's component.
    let all = [component(1, "default", "t/x-a", &[]), component(2, "t", "a/x", &[])];
    let said = after(&all).hosts("example.com", &[]).unwrap_err().message;
    assert!(said.ends_with("already leads to another tenant"), "{said}");
}
