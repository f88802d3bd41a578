//! Objects that are of another class now: what we said of them goes, what others say stays.

use super::{NOW, class, put, terms};
use crate::routes::kind::Kind;
use crate::routes::translate::translate;
use crate::routes::world::World;
use serde_json::{Value, json};

/// An object whose status `fields` we wrote last.
fn written(kind: &str, fields: &Value, spec: &Value, status: &Value) -> Value {
    let entry = |manager: &str, fields: Value| {
        json!({
            "manager": manager, "operation": "Update", "subresource": "status", "apiVersion": "v1",
            "fieldsType": "FieldsV1", "fieldsV1": { "f:status": fields },
        })
    };
    let managed = json!([entry("other", json!({ "f:conditions": {} })), entry("arco", fields.clone())]);
    json!({ "kind": kind, "metadata": { "name": "x", "managedFields": managed }, "spec": spec, "status": status })
}

/// What is written of the only object, if anything is.
fn said(documents: &[Value], kind: Kind) -> Option<Value> {
    let mut world = World { manager: "arco".to_owned(), ..World::default() };
    for it in documents {
        put(&mut world, it.clone());
    }
    let mut statuses = translate(&world, &terms(), NOW).statuses;
    statuses.retain(|it| it.kind == kind);
    statuses.pop().map(|it| it.body)
}

#[test]
fn an_ingress_of_another_class_keeps_no_address_of_ours() {
    let ours = json!({ "f:loadBalancer": { "f:ingress": {} } });
    let at = |address: &str| json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
    for (fields, status, taken) in [
        (&ours, at("192.0.2.1"), true),
        // Somebody else's, who may be another platform that writes under the same name.
        (&ours, at("192.0.2.9"), false),
        (&json!({}), at("192.0.2.1"), false),
        (&ours, json!({ "loadBalancer": {} }), false),
    ] {
        let it = written("Ingress", fields, &json!({ "ingressClassName": "nginx" }), &status);
        let wanted = taken.then(|| json!({ "loadBalancer": { "ingress": [] } }));
        assert_eq!(said(&[it], Kind::Ingress), wanted, "{fields} {status}");
    }
}

#[test]
fn a_gateway_of_another_class_keeps_nothing_that_we_said() {
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": kind });
    let key = |field: &str, value: &str| format!("k:{}", json!({ field: value }));
    let last = json!({ "f:observedGeneration": {}, "f:status": {} });
    let fields = json!({
        "f:addresses": {},
        // The other controller has said `Accepted` since: only its `status` is still as we wrote it.
        "f:conditions": { (key("type", "Programmed")): last, (key("type", "Accepted")): { "f:status": {} } },
        "f:listeners": { (key("name", "http")): { "f:conditions": { (key("type", "Accepted")): last } } },
    });
    let status = json!({
        "addresses": [{ "type": "IPAddress", "value": "192.0.2.1" }, { "type": "IPAddress", "value": "192.0.2.9" }],
        "conditions": [condition("Accepted"), condition("Programmed"), condition("example.com/Seen")],
        "listeners": [
            { "name": "http", "attachedRoutes": 1, "conditions": [condition("Accepted")] },
            { "name": "theirs", "attachedRoutes": 1, "conditions": [condition("Accepted")] },
        ],
    });
    let left = json!({
        "addresses": [status["addresses"][1]],
        "conditions": [status["conditions"][0], status["conditions"][2]],
        "listeners": [status["listeners"][1]],
    });
    for (controller, wanted) in [("example.com/other", Some(left)), ("arco.internal/second", None)] {
        let mut theirs = class();
        theirs["metadata"]["name"] = "theirs".into();
        theirs["spec"]["controllerName"] = controller.into();
        let it = written("Gateway", &fields, &json!({ "gatewayClassName": "theirs" }), &status);
        assert_eq!(said(&[class(), theirs, it], Kind::Gateway), wanted, "{controller}");
    }
    let gone = written("Gateway", &fields, &json!({ "gatewayClassName": "nobodys" }), &status);
    assert_eq!(said(&[gone], Kind::Gateway), None, "a class that is not there may come back");
}
