//! Backends that are not there: whose requests fail, and how.

use super::{class, gateway, http, reasons, route, told, web};
use arco_model::traffic::UpstreamState;
use serde_json::json;

#[test]
fn the_share_of_a_backend_that_is_not_there_gets_to_nobody_else() {
    let web_of = |weight: u32| json!({ "name": "web", "port": 80, "weight": weight });
    let gone = json!({ "name": "gone", "port": 80, "weight": 7 });
    let pod = json!({ "kind": "Pod", "name": "web", "port": 80, "weight": 7 });
    let closed = json!({ "name": "web", "namespace": "other", "port": 80, "weight": 7 });
    let idle = json!({ "name": "gone", "port": 80, "weight": 0 });
    let (missing, later) = (UpstreamState::Missing, UpstreamState::Up);
    for (kind, backends, wanted, status) in [
        ("HTTPRoute", json!([web_of(3), gone]), vec![("shop/web:80", 3, later), ("shop/gone:80", 7, missing)], None),
        ("HTTPRoute", json!([pod, web_of(3)]), vec![("shop/web:80", 3, later), ("shop/web:80", 7, missing)], None),
        ("HTTPRoute", json!([closed, web_of(3)]), vec![("shop/web:80", 3, later), ("other/web:80", 7, missing)], None),
        ("HTTPRoute", json!([web_of(3), idle]), vec![("shop/web:80", 3, later)], None),
        ("HTTPRoute", json!([web_of(0), gone]), vec![], Some(500)),
        ("HTTPRoute", json!([gone]), vec![], Some(500)),
        ("GRPCRoute", json!([web_of(3), gone]), vec![("shop/web:80", 3, later), ("shop/gone:80", 7, later)], None),
        ("GRPCRoute", json!([gone]), vec![], Some(503)),
    ] {
        let [service, slice] = web();
        let spec = json!({ "hostnames": ["a.test"], "rules": [{ "backendRefs": backends }] });
        let it = told(&[service, slice, class(), gateway(http()), route(kind, "r", spec)]);
        let rule = &it.table.hosts["a.test"].rules[0];
        let found: Vec<_> = rule
            .targets
            .iter()
            .map(|target| {
                let upstream = &it.table.upstreams[&target.to.component];
                let there = upstream.reference == "shop/web:80" && upstream.state == later;
                assert_eq!(!upstream.endpoints.is_empty(), there, "{kind} {backends}");
                (upstream.reference.as_str(), target.weight, upstream.state)
            })
            .collect();
        assert_eq!(found, wanted, "{kind} {backends}");
        assert_eq!(rule.answer.as_ref().map(|it| it.status), status, "{kind} {backends}");
        assert!(reasons(&it, "r")[1].starts_with("ResolvedRefs=False"), "{kind} {backends}");
    }
}
