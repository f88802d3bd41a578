//! Plans, from tables.

use super::*;
use crate::component::RunDefaults;
use crate::sample::{self, component};
use crate::spec::Command;

fn revision(component: &Component) -> Revision {
    let defaults = RunDefaults {
        command: Some(Command::Shell("node server.js".into())),
        ports: vec![Port { port: 8080, protocol: Protocol::Http, outer: true }],
        env: [("NODE_ENV".to_owned(), "production".to_owned())].into(),
        ..RunDefaults::default()
    };
    Revision { number: 7, defaults, ..sample::revision(component) }
}

#[test]
fn variables_come_in_order_of_strength() {
    let component = component();
    let mut revision = revision(&component);
    revision.spec.env.insert("NODE_ENV".into(), "test".into());
    let bound = BoundComponent {
        alias: "my-db".into(),
        id: ComponentId::from_parts(2, 2),
        host: "db.shop.default.arco.internal".into(),
        port: Some(Port { port: 5432, protocol: Protocol::Tcp, outer: false }),
        ready: true,
    };
    let secrets = [("TOKEN".to_owned(), "s".to_owned())].into();
    let plan = build(&component, &revision, &PlanContext { bound: vec![bound], secrets, already_runs: false });
    let env = &plan.template.env;
    for (name, value) in [
        ("NODE_ENV", "test"),
        ("PORT", "8080"),
        ("MY_DB_HOST", "db.shop.default.arco.internal"),
        ("MY_DB_PORT", "5432"),
        ("MY_DB_URL", "tcp://db.shop.default.arco.internal:5432"),
        ("TOKEN", "s"),
        ("ARCO_REVISION", "7"),
        ("ARCO_COMPONENT", "web"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(plan.template.argv, ["/bin/sh", "-c", "exec node server.js"]);
    assert!(!plan.hold);
}

#[test]
fn a_one_off_run_knows_its_own_id() {
    let component = component();
    let template = build(&component, &revision(&component), &PlanContext::default()).template;
    let id = InstanceId::from_parts(1, 2);
    let run = OneShot::of_template(id.clone(), component.tenant, component.id, template, 1);
    assert_eq!((run.env["ARCO_INSTANCE"].as_str(), run.env["NODE_ENV"].as_str()), (id.as_str(), "production"));
}

#[test]
fn an_import_fills_in_every_place_that_a_stateful_component_may_have() {
    let of = |kind: ComponentKind, replicas: u32, arriving: bool| {
        let mut component = component();
        (component.spec.kind, component.spec.replicas) = (kind, replicas);
        component.arriving = arriving.then(|| Digest::of(b"archive"));
        let plan = build(&component, &revision(&component), &PlanContext::default());
        let json = serde_json::to_value(&plan).unwrap();
        (plan.prepared_places, json.get("prepared_places").is_some())
    };
    assert_eq!(of(ComponentKind::Stateful, 3, true), (3, true));
    assert_eq!(of(ComponentKind::Stateful, 0, true), (1, true));
    assert_eq!(of(ComponentKind::Stateful, 3, false), (0, false), "and its fingerprint is as ever");
    assert_eq!(of(ComponentKind::Stateless, 3, true), (0, false));

    // It was scaled down where it comes from.
    let mut component = component();
    (component.spec.kind, component.arriving_places) = (ComponentKind::Stateful, 3);
    assert_eq!(component.prepared_places(ComponentKind::Stateful), 0);
    component.arriving = Some(Digest::of(b"archive"));
    assert_eq!(component.prepared_places(ComponentKind::Stateful), 3);
    assert_eq!(component.prepared_places(ComponentKind::Stateless), 0);
}

#[test]
fn files_hold_texts_or_name_the_variable_of_their_secret() {
    let component = component();
    let mut revision = revision(&component);
    revision.spec.secrets.insert("KEY".into(), 2);
    let file = |it: serde_json::Value| serde_json::from_value::<FileSpec>(it).unwrap();
    revision.spec.files = vec![
        file(serde_json::json!({"path": "/etc/app.conf", "content": "a=1"})),
        file(serde_json::json!({"path": "/etc/key.pem", "secret": "KEY", "mode": "0400"})),
    ];
    let secrets = [("KEY".to_owned(), "hunter2".to_owned())].into();
    let context = PlanContext { secrets, ..PlanContext::default() };
    let template = build(&component, &revision, &context).template;
    let found: Vec<_> =
        template.files.iter().map(|it| (it.path.as_str(), it.mode.bits(), it.text(&template.env))).collect();
    assert_eq!(found, [("/etc/app.conf", 0o444, Some("a=1")), ("/etc/key.pem", 0o400, Some("hunter2"))]);
    assert!(!serde_json::to_string(&template.files).unwrap().contains("hunter2"), "its value stands in one place");
    assert_eq!(template.files[1].text(&BTreeMap::new()), None);
    let before = template.fingerprint();
    revision.spec.files[0].content = Some("a=2".into());
    assert_ne!(build(&component, &revision, &context).template.fingerprint(), before, "instances are replaced");
    revision.spec.files.clear();
    let none = serde_json::to_value(build(&component, &revision, &context).template).unwrap();
    assert!(none.get("files").is_none(), "fingerprints of what has none stay");
}

#[test]
fn a_binding_that_is_not_ready_holds_back_only_the_first_start() {
    let component = component();
    let revision = revision(&component);
    let id = ComponentId::from_parts(2, 2);
    let bound = vec![BoundComponent { alias: "db".into(), id, host: "h".into(), port: None, ready: false }];
    for (already_runs, hold) in [(false, true), (true, false)] {
        let context = PlanContext { bound: bound.clone(), already_runs, ..PlanContext::default() };
        assert_eq!(build(&component, &revision, &context).hold, hold);
    }
}

#[test]
fn only_the_template_decides_whether_instances_are_replaced() {
    let mut component = component();
    let revision = revision(&component);
    let before = build(&component, &revision, &PlanContext::default());
    component.spec.replicas = 3;
    let scaled = build(&component, &revision, &PlanContext::default());
    assert_eq!(before.template.fingerprint(), scaled.template.fingerprint());
    assert_ne!(before.fingerprint(), scaled.fingerprint());
    component.restarts_asked = 1;
    let restarted = build(&component, &revision, &PlanContext::default());
    assert_ne!(scaled.template.fingerprint(), restarted.template.fingerprint());
    component.power = Power::Off;
    assert_eq!(build(&component, &revision, &PlanContext::default()).replicas, 0);
}
