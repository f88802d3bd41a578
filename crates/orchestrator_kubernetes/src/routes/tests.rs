//! The translation from tables of objects: what is served, what is said, who wins.

mod backends;
mod left;
mod withheld;

use super::kind::Kind;
use super::translate::{Terms, Translation, secrets, translate};
use super::world::{Name, World};
use super::{GatewayPorts, ServedCertificate};
use arco_model::time::Timestamp;
use kube::core::DynamicObject;
use serde_json::{Value, json};

/// Now; a fixed time.
const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn terms() -> Terms {
    Terms {
        class: "arco".to_owned(),
        controller: "arco.internal/arco".to_owned(),
        addresses: vec!["192.0.2.1".to_owned()],
        service: Name::parse("arco-system/arco-gateway"),
        ports: GatewayPorts { http: vec![80], https: vec![443], streams: 10_000..=10_999 },
    }
}

/// A world of documents; every secret is there with a certificate that is its name.
fn world(documents: &[Value]) -> World {
    let mut world = World::default();
    for it in documents {
        put(&mut world, it.clone());
    }
    let names: Vec<Name> = world.secrets.keys().cloned().collect();
    for name in names {
        let served = ServedCertificate { chain_pem: format!("chain of {name}"), key_pem: "key".to_owned() };
        world.certificates.insert(name, (String::new(), Ok(served)));
    }
    world
}

fn put(world: &mut World, mut it: Value) {
    let kind = Kind::ALL.into_iter().find(|kind| it["kind"] == kind.word()).unwrap_or_else(|| panic!("{it}"));
    if !matches!(kind, Kind::Namespace | Kind::GatewayClass) && it["metadata"]["namespace"].is_null() {
        it["metadata"]["namespace"] = "shop".into();
    }
    let object: DynamicObject = serde_json::from_value(it).unwrap();
    world.put(kind, object).unwrap();
}

fn service(name: &str, ports: Value) -> Value {
    json!({ "kind": "Service", "metadata": { "name": name }, "spec": { "type": "ClusterIP", "ports": ports } })
}

fn slice(service: &str, port: u16, endpoints: Value) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "web", "port": port }], "endpoints": endpoints,
    })
}

fn web() -> [Value; 2] {
    [
        service("web", json!([{ "name": "web", "port": 80 }])),
        slice("web", 8080, json!([{ "addresses": ["10.0.0.1"], "conditions": { "ready": true } }])),
    ]
}

fn class() -> Value {
    json!({ "kind": "GatewayClass", "metadata": { "name": "ours" }, "spec": { "controllerName": "arco.internal/arco" } })
}

fn gateway(listeners: Value) -> Value {
    json!({ "kind": "Gateway", "metadata": { "name": "gw" }, "spec": { "gatewayClassName": "ours", "listeners": listeners } })
}

fn http() -> Value {
    json!([{ "name": "http", "port": 80, "protocol": "HTTP" }])
}

fn route(kind: &str, name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec["parentRefs"].is_null() {
        spec["parentRefs"] = json!([{ "name": "gw" }]);
    }
    json!({ "kind": kind, "metadata": { "name": name, "generation": 3 }, "spec": spec })
}

/// The table as text in which ids are what they stand for, and the statuses.
fn shown(it: &Translation) -> String {
    let table = &it.table;
    let status = |it: &super::status::Status| json!({ format!("{} {}", it.kind.word(), it.name): it.body });
    let all = json!({
        "hosts": table.hosts.values().collect::<Vec<_>>(),
        "upstreams": table.upstreams.values().collect::<Vec<_>>(),
        "streams": table.streams,
        "statuses": it.statuses.iter().map(status).collect::<Vec<_>>(),
        "problems": it.problems,
    });
    let mut text = serde_json::to_string_pretty(&all).unwrap();
    for (id, upstream) in &table.upstreams {
        text = text.replace(id.as_str(), &format!("<{}>", upstream.reference));
        for (at, endpoint) in upstream.endpoints.iter().enumerate() {
            text = text.replace(endpoint.instance.as_str(), &format!("<endpoint {at}>"));
        }
    }
    for (id, certificate) in &table.certificates {
        text = text.replace(id.as_str(), &format!("<{}>", certificate.chain_pem));
    }
    text
}

fn told(documents: &[Value]) -> Translation {
    translate(&world(documents), &terms(), NOW)
}

/// Reasons of the conditions of a route for its first parent, by their type.
fn reasons(it: &Translation, route: &str) -> Vec<String> {
    let status = it.statuses.iter().find(|it| it.name.name == route).unwrap_or_else(|| panic!("{route}: {it:?}"));
    let conditions = status.body["parents"][0]["conditions"].as_array().unwrap();
    conditions.iter().map(|it| format!("{}={} {}", it["type"], it["status"], it["reason"]).replace('"', "")).collect()
}

#[test]
fn an_ingress_is_served_with_what_its_annotations_ask_for() {
    let note = |name: &str, text: &str| (format!("nginx.ingress.kubernetes.io/{name}"), json!(text));
    let annotations: serde_json::Map<String, Value> = [
        note("proxy-read-timeout", "5"),
        note("proxy-body-size", "8m"),
        note("set-header-x-from", "ingress"),
        note("resp-header-x-by", "arco"),
        note("upstream-hash-by", "$http_x_user"),
        note("cookie", "side:b"),
        note("app-root", "/start"),
        note("whitelist-source-range", "10.0.0.0/8, 192.0.2.7"),
        note("configuration-snippet", "return 200;"),
    ]
    .into_iter()
    .collect();
    let [service, slice] = web();
    let mut elsewhere =
        json!({ "kind": "Ingress", "metadata": { "name": "not-ours" }, "spec": { "ingressClassName": "nginx" } });
    elsewhere["spec"]["rules"] = json!([{ "host": "not-ours.test" }]);
    let backend = json!({ "service": { "name": "web", "port": { "name": "web" } } });
    let it = told(&[
        service,
        slice,
        elsewhere,
        json!({ "kind": "Secret", "metadata": { "name": "cert", "resourceVersion": "1" } }),
        json!({
            "kind": "Ingress", "metadata": { "name": "web", "annotations": annotations },
            "spec": {
                "ingressClassName": "arco",
                "tls": [{ "hosts": ["A.test"], "secretName": "cert" }, { "hosts": ["b.test"], "secretName": "none" }],
                "rules": [
                    { "host": "A.test", "http": { "paths": [{ "path": "/x", "pathType": "Prefix", "backend": backend }] } },
                    { "http": { "paths": [
                        { "path": "/one", "pathType": "Exact", "backend": backend },
                        { "path": "/gone", "pathType": "Prefix", "backend": { "service": { "name": "gone", "port": { "number": 1 } } } },
                    ] } },
                ],
            },
        }),
    ]);
    insta::assert_snapshot!(shown(&it));
}

#[test]
fn hosts_of_an_ingress_have_the_certificate_that_is_named_for_them() {
    let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
    let paths = json!({ "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] });
    for (tls, rules, wanted) in [
        (
            json!([{ "hosts": ["*.test"], "secretName": "wide" }]),
            json!([{ "host": "a.test", "http": paths }, { "host": "a.b.test", "http": paths }]),
            vec![("a.b.test", None), ("a.test", Some("wide"))],
        ),
        (
            json!([{ "hosts": ["*.test"], "secretName": "wide" }, { "hosts": ["a.test"], "secretName": "own" }]),
            json!([{ "host": "a.test", "http": paths }, { "host": "*.test", "http": paths }]),
            vec![("*.test", Some("wide")), ("a.test", Some("own"))],
        ),
        (json!([{ "hosts": ["*.test"], "secretName": "none" }]), json!([{ "host": "a.test" }]), vec![("a.test", None)]),
        (json!([{ "secretName": "own" }]), json!([]), vec![("*", Some("own"))]),
    ] {
        let [service, slice] = web();
        let secret = |name: &str| json!({ "kind": "Secret", "metadata": { "name": name } });
        let it = told(&[
            service,
            slice,
            secret("wide"),
            secret("own"),
            json!({
                "kind": "Ingress", "metadata": { "name": "i" },
                "spec": { "ingressClassName": "arco", "tls": tls, "rules": rules, "defaultBackend": backend },
            }),
        ]);
        let found: Vec<_> = it
            .table
            .hosts
            .iter()
            .map(|(host, entry)| {
                let id = entry.tls.certificate.as_ref();
                let chain = id.map(|it_id| it.table.certificates[it_id].chain_pem.clone());
                (host.clone(), chain)
            })
            .collect();
        let wanted: Vec<_> = wanted
            .into_iter()
            .map(|(host, name)| (host.to_owned(), name.map(|it| format!("chain of shop/{it}"))))
            .collect();
        assert_eq!(found, wanted, "{tls} {rules}");
        // Where people want a certificate, plain HTTP leads to it, whether it is there or not.
        let plain = |host: &str| it.table.hosts[host].rules.iter().filter(|it| it.redirect.is_some()).count();
        for (host, _) in &wanted {
            assert_eq!(plain(host) > 0, host != "a.b.test", "{host} {tls} {rules}");
        }
    }
}

#[test]
fn backends_are_asked_over_tls_where_ingress_or_service_say_so() {
    for (annotation, app_protocol, http2, tls) in [
        ("HTTP", "", false, false),
        ("HTTPS", "", false, true),
        ("GRPC", "", true, false),
        ("GRPCS", "", true, true),
        ("HTTP", "https", false, true),
        ("HTTP", "kubernetes.io/wss", false, true),
        ("HTTP", "grpcs", true, true),
        ("GRPC", "https", true, true),
        ("HTTPS", "http", false, true),
    ] {
        let ingress = json!({
            "kind": "Ingress",
            "metadata": {
                "name": "i",
                "annotations": {
                    "nginx.ingress.kubernetes.io/backend-protocol": annotation,
                    "nginx.ingress.kubernetes.io/proxy-ssl-verify": "off",
                },
            },
            "spec": {
                "ingressClassName": "arco",
                "defaultBackend": { "service": { "name": "web", "port": { "number": 443 } } },
            },
        });
        let web = service("web", json!([{ "name": "web", "port": 443, "appProtocol": app_protocol }]));
        let it = told(&[web, ingress]);
        assert_eq!(it.problems.len(), 0, "{:?}", it.problems);
        let ports = |asked: bool| if asked { vec![443] } else { Vec::new() };
        let spoken: Vec<_> =
            it.table.upstreams.values().map(|it| (it.http2_ports.clone(), it.tls_ports.clone())).collect();
        assert_eq!(spoken, [(ports(http2), ports(tls))], "{annotation} {app_protocol}");
    }
}

#[test]
fn annotations_rewrite_share_and_close() {
    let paths = json!([{ "path": "/a(/|$)(.*)", "pathType": "ImplementationSpecific", "backend": { "service": { "name": "web", "port": { "number": 80 } } } }]);
    let ingress = |name: &str, annotations: Value| {
        let mut full = serde_json::Map::new();
        for (name, text) in annotations.as_object().unwrap() {
            full.insert(format!("nginx.ingress.kubernetes.io/{name}"), text.clone());
        }
        json!({
            "kind": "Ingress", "metadata": { "name": name, "annotations": full },
            "spec": { "ingressClassName": "arco", "rules": [{ "host": format!("{name}.test"), "http": { "paths": paths } }] },
        })
    };
    let rule = |annotations: Value| {
        let [service, slice] = web();
        let it = told(&[service, slice, ingress("i", annotations)]);
        let rules = it.table.hosts.get("i.test").map(|it| it.rules.clone()).unwrap_or_default();
        (rules, it.problems.into_iter().collect::<Vec<_>>().join("\n"))
    };
    let (rules, problems) = rule(json!({ "use-regex": "true", "rewrite-target": "/$2" }));
    assert_eq!(problems, "");
    assert_eq!(rules[0].paths[0].regex.as_deref(), Some("(?i)^/a(/|$)(.*)"));
    let rewrite = rules[0].rewrite.clone().and_then(|it| it.regex).unwrap();
    assert_eq!((rewrite.pattern.as_str(), rewrite.replacement.as_str()), ("(?i)^/a(/|$)(.*).*$", "/${2}"));

    for (annotations, part) in [
        (json!({ "auth-url": "http://x" }), "open to everybody"),
        (json!({ "whitelist-source-range": "everybody" }), "not served"),
        (json!({ "backend-protocol": "FCGI" }), "cannot be called by `FCGI`"),
        (json!({ "backend-protocol": "HTTPS", "proxy-ssl-verify": "on" }), "are not verified here"),
    ] {
        let (rules, problems) = rule(annotations.clone());
        let closed = rules.iter().all(|it| it.answer.as_ref().is_some_and(|it| it.status == 503));
        assert!(!rules.is_empty() && closed && problems.contains(part), "{annotations}: {problems}");
    }
    // A path that is closed does not fall to the one above, which is another Ingress's.
    let [service, slice] = web();
    let (mut open, mut admin) = (ingress("i", json!({})), ingress("i", json!({ "auth-url": "http://x" })));
    admin["metadata"]["name"] = "admin".into();
    for (it, path) in [(&mut open, "/"), (&mut admin, "/admin")] {
        it["spec"]["rules"][0]["http"]["paths"][0]["path"] = path.into();
        it["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = "Prefix".into();
    }
    let rules = told(&[service, slice, open, admin]).table.hosts["i.test"].rules.clone();
    let answers: Vec<_> = rules.iter().map(|it| (it.paths[0].prefix.as_deref(), it.answer.is_some())).collect();
    assert!(answers.contains(&(Some("/admin"), true)) && answers.contains(&(Some("/"), false)), "{answers:?}");
    for (annotations, part) in [
        (json!({ "proxy-next-upstream": "error" }), "`proxy-next-upstream` is not read"),
        (json!({ "proxy-read-timeout": "soon" }), "`soon` is not a number"),
        (json!({ "lb-type": "best" }), "`best` is no way to choose"),
    ] {
        let (rules, problems) = rule(annotations.clone());
        assert!(rules.len() == 1 && problems.contains(part), "{annotations}: {problems}");
    }
    let (rules, problems) = rule(json!({ "force-ssl-redirect": "true" }));
    assert_eq!(problems, "");
    let over: Vec<_> = rules.iter().map(|it| (it.scheme.map(|it| it.as_str()), it.redirect.is_some())).collect();
    assert_eq!(over, [(Some("http"), true), (Some("https"), false)]);

    // Two Ingresses that mean the same requests share them.
    let [service, slice] = web();
    let beta = json!({ "kind": "Service", "metadata": { "name": "beta" }, "spec": { "ports": [{ "port": 80 }] } });
    let mut second = ingress("i", json!({ "weight": "20" }));
    second["metadata"]["name"] = "second".into();
    second["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = "beta".into();
    let first = ingress("i", json!({ "weight": "80" }));
    let mut plain = [service, slice, beta, first, second];
    for it in &mut plain[3..] {
        it["spec"]["rules"][0]["http"]["paths"][0]["path"] = "/".into();
    }
    let it = told(&plain);
    let rules = &it.table.hosts["i.test"].rules;
    assert_eq!((rules.len(), rules[0].targets.iter().map(|it| it.weight).collect::<Vec<_>>()), (1, vec![80, 20]));
}

#[test]
fn routes_of_gateways_are_served_as_they_match() {
    let listeners = json!([
        { "name": "http", "port": 80, "protocol": "HTTP" },
        { "name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.test",
          "tls": { "certificateRefs": [{ "name": "cert" }] } },
    ]);
    let [service, slice] = web();
    let it = told(&[
        service,
        slice,
        class(),
        gateway(listeners),
        json!({ "kind": "Secret", "metadata": { "name": "cert" } }),
        route(
            "HTTPRoute",
            "redirect",
            json!({
                "parentRefs": [{ "name": "gw", "sectionName": "http" }], "hostnames": ["a.test"],
                "rules": [{ "filters": [{ "type": "RequestRedirect", "requestRedirect": { "scheme": "https", "statusCode": 301 } }] }],
            }),
        ),
        route(
            "HTTPRoute",
            "app",
            json!({
                "parentRefs": [{ "name": "gw", "sectionName": "https" }], "hostnames": ["a.test", "other.example"],
                "rules": [
                    {
                        "matches": [
                            { "path": { "type": "Exact", "value": "/one" }, "method": "GET" },
                            { "path": { "type": "RegularExpression", "value": "/v[0-9]+" },
                              "headers": [{ "name": "x-a", "value": "1" }, { "name": "X-A", "value": "2" }],
                              "queryParams": [{ "type": "RegularExpression", "name": "q", "value": "a+" }] },
                        ],
                        "filters": [
                            { "type": "URLRewrite", "urlRewrite": { "hostname": "inner.test", "path": { "type": "ReplaceFullPath", "replaceFullPath": "/two" } } },
                            { "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": [{ "name": "x-b", "value": "2" }], "remove": ["x-c"] } },
                            { "type": "ResponseHeaderModifier", "responseHeaderModifier": { "add": [{ "name": "x-d", "value": "3" }] } },
                        ],
                        "timeouts": { "request": "10s", "backendRequest": "500ms" },
                        "backendRefs": [{ "name": "web", "port": 80, "weight": 3 }, { "name": "gone", "port": 80 }],
                    },
                    { "matches": [{ "path": { "value": "/none" } }], "backendRefs": [{ "name": "gone", "port": 80 }] },
                ],
            }),
        ),
        route(
            "GRPCRoute",
            "calls",
            json!({
                "hostnames": ["g.test"],
                "rules": [{ "matches": [{ "method": { "service": "a.B", "method": "C" } }], "backendRefs": [{ "name": "web", "port": 80 }] }],
            }),
        ),
    ]);
    insta::assert_snapshot!(shown(&it));
}

#[test]
fn what_keeps_a_route_away_is_said() {
    let backends = json!([{ "backendRefs": [{ "name": "web", "port": 80 }] }]);
    let with = |spec: Value| {
        let mut spec = spec;
        if spec["rules"].is_null() {
            spec["rules"] = backends.clone();
        }
        spec
    };
    for (listeners, kind, spec, wanted) in [
        (http(), "HTTPRoute", with(json!({})), "Accepted=True Accepted, ResolvedRefs=True ResolvedRefs"),
        (
            http(),
            "HTTPRoute",
            with(json!({ "parentRefs": [{ "name": "gw", "sectionName": "x" }] })),
            "Accepted=False NoMatchingParent, ResolvedRefs=True ResolvedRefs",
        ),
        (
            http(),
            "HTTPRoute",
            with(json!({ "parentRefs": [{ "name": "gw", "port": 81 }] })),
            "Accepted=False NoMatchingParent, ResolvedRefs=True ResolvedRefs",
        ),
        (http(), "TLSRoute", with(json!({})), "Accepted=False NotAllowedByListeners, ResolvedRefs=True ResolvedRefs"),
        (
            json!([{ "name": "http", "port": 80, "protocol": "HTTP", "hostname": "b.test" }]),
            "HTTPRoute",
            with(json!({ "hostnames": ["a.test"] })),
            "Accepted=False NoMatchingListenerHostname, ResolvedRefs=True ResolvedRefs",
        ),
        (
            http(),
            "HTTPRoute",
            with(json!({ "rules": [{ "filters": [{ "type": "ExtensionRef" }] }] })),
            "Accepted=False UnsupportedValue, ResolvedRefs=True ResolvedRefs",
        ),
        (
            http(),
            "HTTPRoute",
            with(json!({ "rules": [{ "backendRefs": [{ "name": "web" }] }] })),
            "Accepted=True Accepted, ResolvedRefs=False UnsupportedValue",
        ),
        (
            http(),
            "HTTPRoute",
            with(json!({ "rules": [{ "backendRefs": [{ "kind": "Pod", "name": "web", "port": 80 }] }] })),
            "Accepted=True Accepted, ResolvedRefs=False InvalidKind",
        ),
        (
            http(),
            "HTTPRoute",
            with(json!({ "rules": [{ "backendRefs": [{ "name": "web", "namespace": "other", "port": 80 }] }] })),
            "Accepted=True Accepted, ResolvedRefs=False RefNotPermitted",
        ),
        (
            json!([{ "name": "tcp", "port": 10_000, "protocol": "TCP" }]),
            "TCPRoute",
            json!({ "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }, { "name": "web", "port": 80 }] }] }),
            "Accepted=False UnsupportedValue, ResolvedRefs=True ResolvedRefs",
        ),
    ] {
        let [service, slice] = web();
        let it = told(&[service, slice, class(), gateway(listeners), route(kind, "r", spec.clone())]);
        assert_eq!(reasons(&it, "r").join(", "), wanted, "{spec}");
    }
    // A route of somebody else's gateway is not ours to speak of.
    let [service, slice] = web();
    let foreign = json!({ "parentRefs": [{ "name": "theirs" }] });
    assert!(
        told(&[service, slice, class(), route("HTTPRoute", "r", with(foreign))])
            .statuses
            .iter()
            .all(|it| it.name.name != "r")
    );
}

#[test]
fn what_is_not_served_answers_500_and_never_falls_through() {
    let [service, slice] = web();
    let it = told(&[
        service,
        slice,
        class(),
        gateway(http()),
        route(
            "HTTPRoute",
            "r",
            json!({ "hostnames": ["a.test"], "rules": [
            { "matches": [{ "path": { "value": "/bad" } }], "filters": [{ "type": "ExtensionRef" }], "backendRefs": [{ "name": "web", "port": 80 }] },
            { "backendRefs": [{ "name": "web", "port": 80 }] },
        ] }),
        ),
    ]);
    let rules = &it.table.hosts["a.test"].rules;
    assert_eq!(rules[0].answer.as_ref().map(|it| it.status), Some(500));
    assert_eq!(rules[0].paths[0].prefix.as_deref(), Some("/bad"));
    assert!(rules[1].answer.is_none() && rules[1].targets.len() == 1);
    assert_eq!(reasons(&it, "r")[2], "PartiallyInvalid=True UnsupportedValue");
}

#[test]
fn another_namespace_is_reached_only_where_it_lets() {
    let mut service = service("web", json!([{ "port": 80 }]));
    service["metadata"]["namespace"] = "back".into();
    let grant = |namespace: &str, kind: &str, to: Value| {
        json!({
            "kind": "ReferenceGrant", "metadata": { "name": "g", "namespace": namespace },
            "spec": { "from": [{ "group": "gateway.networking.k8s.io", "kind": kind, "namespace": "shop" }], "to": [to] },
        })
    };
    let rules = json!({ "rules": [{ "backendRefs": [{ "name": "web", "namespace": "back", "port": 80 }] }] });
    for (grant, wanted) in [
        (grant("back", "HTTPRoute", json!({ "group": "", "kind": "Service" })), "ResolvedRefs"),
        (grant("back", "HTTPRoute", json!({ "group": "", "kind": "Service", "name": "web" })), "ResolvedRefs"),
        (grant("back", "HTTPRoute", json!({ "group": "", "kind": "Service", "name": "other" })), "RefNotPermitted"),
        (grant("back", "GRPCRoute", json!({ "group": "", "kind": "Service" })), "RefNotPermitted"),
        (grant("back", "HTTPRoute", json!({ "group": "", "kind": "Secret" })), "RefNotPermitted"),
        (grant("shop", "HTTPRoute", json!({ "group": "", "kind": "Service" })), "RefNotPermitted"),
    ] {
        let it =
            told(&[service.clone(), class(), gateway(http()), grant.clone(), route("HTTPRoute", "r", rules.clone())]);
        assert!(reasons(&it, "r")[1].ends_with(wanted), "{grant}: {:?}", reasons(&it, "r"));
        assert_eq!(it.table.upstreams.len(), usize::from(wanted == "ResolvedRefs"));
    }
    // The same for certificates: what may not be named is not even fetched.
    let mut listeners = http();
    listeners[0] = json!({ "name": "s", "port": 443, "protocol": "HTTPS", "tls": { "certificateRefs": [{ "name": "c", "namespace": "back" }] } });
    let closed = world(&[class(), gateway(listeners.clone())]);
    assert!(secrets(&closed, &terms()).is_empty());
    let open =
        world(&[class(), gateway(listeners), grant("back", "Gateway", json!({ "group": "", "kind": "Secret" }))]);
    assert_eq!(secrets(&open, &terms()).into_iter().collect::<Vec<_>>(), [Name::new("back", "c")]);
}

#[test]
fn listeners_say_why_they_are_not_served() {
    let secure = |tls: Value| json!({ "name": "l", "port": 443, "protocol": "HTTPS", "tls": tls });
    for (listeners, wanted) in [
        (http(), ["Accepted", "ResolvedRefs", "NoConflicts", "Programmed"]),
        (
            json!([{ "name": "l", "port": 81, "protocol": "HTTP" }]),
            ["PortUnavailable", "ResolvedRefs", "NoConflicts", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 80, "protocol": "QUIC" }]),
            ["UnsupportedProtocol", "ResolvedRefs", "NoConflicts", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 443, "protocol": "TLS" }]),
            ["UnsupportedProtocol", "ResolvedRefs", "NoConflicts", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 9, "protocol": "TCP" }]),
            ["PortUnavailable", "ResolvedRefs", "NoConflicts", "Invalid"],
        ),
        (json!([secure(json!({}))]), ["Accepted", "InvalidCertificateRef", "NoConflicts", "Invalid"]),
        (
            json!([secure(json!({ "certificateRefs": [{ "name": "none" }] }))]),
            ["Accepted", "InvalidCertificateRef", "NoConflicts", "Invalid"],
        ),
        (
            json!([secure(json!({ "certificateRefs": [{ "name": "c", "namespace": "back" }] }))]),
            ["Accepted", "RefNotPermitted", "NoConflicts", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 80, "protocol": "HTTP", "allowedRoutes": { "kinds": [{ "kind": "TCPRoute" }] } }]),
            ["Accepted", "InvalidRouteKinds", "NoConflicts", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 80, "protocol": "HTTP" }, { "name": "m", "port": 80, "protocol": "HTTP" }]),
            ["HostnameConflict", "ResolvedRefs", "HostnameConflict", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 443, "protocol": "TLS", "hostname": "a", "tls": { "mode": "Passthrough" } },
                   { "name": "m", "port": 443, "protocol": "TCP" }]),
            ["ProtocolConflict", "ResolvedRefs", "ProtocolConflict", "Invalid"],
        ),
        (
            json!([{ "name": "l", "port": 10_053, "protocol": "TCP" }, { "name": "m", "port": 10_053, "protocol": "UDP" }]),
            ["Accepted", "ResolvedRefs", "NoConflicts", "Programmed"],
        ),
        (
            json!([{ "name": "l", "port": 10_053, "protocol": "UDP" }, { "name": "m", "port": 10_053, "protocol": "TCP" }]),
            ["UnsupportedProtocol", "ResolvedRefs", "NoConflicts", "Invalid"],
        ),
    ] {
        let it = told(&[class(), gateway(listeners.clone())]);
        let status = it.statuses.iter().find(|it| it.kind == Kind::Gateway).unwrap();
        let conditions = status.body["listeners"][0]["conditions"].as_array().unwrap();
        let found: Vec<&str> = conditions.iter().map(|it| it["reason"].as_str().unwrap()).collect();
        assert_eq!(found, wanted, "{listeners}");
    }
}

#[test]
fn ready_endpoints_get_requests_and_ending_ones_only_when_none_is_ready() {
    let endpoint = |address: &str, ready: bool, serving: bool, terminating: bool| json!({ "addresses": [address], "conditions": { "ready": ready, "serving": serving, "terminating": terminating } });
    for (endpoints, wanted) in [
        (json!([{ "addresses": ["10.0.0.1"] }]), vec![("10.0.0.1", false)]),
        (json!([endpoint("10.0.0.1", false, false, false)]), vec![]),
        (
            json!([endpoint("10.0.0.1", true, true, false), endpoint("10.0.0.2", false, true, true)]),
            vec![("10.0.0.1", false), ("10.0.0.2", true)],
        ),
        (json!([endpoint("10.0.0.2", false, true, true)]), vec![("10.0.0.2", false)]),
        (json!([endpoint("10.0.0.2", false, false, true)]), vec![]),
        (json!([{ "addresses": ["not an address"] }]), vec![]),
    ] {
        let [service, _] = web();
        let rules = json!({ "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] });
        let it = told(&[
            service,
            slice("web", 8080, endpoints.clone()),
            class(),
            gateway(http()),
            route("HTTPRoute", "r", rules),
        ]);
        let upstream = it.table.upstreams.values().next().unwrap();
        let mut found: Vec<_> = upstream.endpoints.iter().map(|it| (it.address.to_string(), it.draining)).collect();
        found.sort();
        let wanted: Vec<_> = wanted.into_iter().map(|(address, draining)| (address.to_owned(), draining)).collect();
        assert_eq!(found, wanted, "{endpoints}");
        assert!(upstream.endpoints.iter().all(|it| it.port == Some(8080)));
    }
}

#[test]
fn an_endpoint_in_two_slices_is_as_ready_as_in_the_better_one() {
    let [service, _] = web();
    let both = slice("web", 8080, json!([{ "addresses": ["10.0.0.1"] }, { "addresses": ["10.0.0.2"] }]));
    let conditions = json!({ "ready": false, "serving": true, "terminating": true });
    let mut ends = slice("web", 8080, json!([{ "addresses": ["10.0.0.1"], "conditions": conditions }]));
    let to_web = route("HTTPRoute", "r", json!({ "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] }));
    for name in ["before", "z-after"] {
        ends["metadata"]["name"] = name.into();
        let it = told(&[service.clone(), both.clone(), ends.clone(), class(), gateway(http()), to_web.clone()]);
        let endpoints = &it.table.upstreams.values().next().unwrap().endpoints;
        assert_eq!(endpoints.iter().map(|it| it.draining).collect::<Vec<_>>(), [false, false], "{name}");
    }
}

#[test]
fn connections_are_passed_on_and_the_older_of_two_wins() {
    let listeners = json!([
        { "name": "tls", "port": 443, "protocol": "TLS", "tls": { "mode": "Passthrough" } },
        { "name": "tcp", "port": 10_001, "protocol": "TCP" },
    ]);
    let [service, slice] = web();
    let to_web = json!([{ "backendRefs": [{ "name": "web", "port": 80 }] }]);
    let aged = |mut it: Value, when: &str| {
        it["metadata"]["creationTimestamp"] = when.into();
        it
    };
    let it = told(&[
        service,
        slice,
        class(),
        gateway(listeners),
        aged(route("TLSRoute", "t", json!({ "hostnames": ["p.test"], "rules": to_web })), "2026-01-01T00:00:00Z"),
        aged(route("TCPRoute", "younger", json!({ "rules": to_web })), "2026-01-02T00:00:00Z"),
        aged(route("TCPRoute", "zz-older", json!({ "rules": to_web })), "2026-01-01T00:00:00Z"),
    ]);
    assert!(it.table.hosts["p.test"].rules[0].passes_through());
    assert_eq!(it.table.streams.keys().collect::<Vec<_>>(), ["tcp:10001"]);
    assert!(reasons(&it, "zz-older")[0].starts_with("Accepted=True"), "{:?}", reasons(&it, "zz-older"));
    assert!(reasons(&it, "younger")[0].starts_with("Accepted=False PortTaken"), "{:?}", reasons(&it, "younger"));
}

#[test]
fn what_is_said_once_is_not_said_again_and_others_may_speak_too() {
    let [service, slice] = web();
    let other = json!({ "controllerName": "example.com/other", "parentRef": { "name": "theirs" }, "conditions": [] });
    let mut first = route("HTTPRoute", "r", json!({ "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] }));
    first["status"] = json!({ "parents": [other] });
    let ingress = json!({ "kind": "Ingress", "metadata": { "name": "i" }, "spec": { "ingressClassName": "arco" } });
    let mut documents = vec![service, slice, class(), gateway(http()), first, ingress];
    let it = told(&documents);
    assert_eq!(it.statuses.len(), 4, "{:?}", it.statuses);
    for status in &it.statuses {
        let document = documents.iter_mut().find(|it| it["kind"] == status.kind.word()).unwrap();
        document["status"] = status.body.clone();
    }
    assert_eq!(documents[4]["status"]["parents"].as_array().map(Vec::len), Some(2));
    let later = Timestamp(NOW.0 + 3_600_000);
    assert_eq!(translate(&world(&documents), &terms(), later).statuses, []);

    // When the gateway goes, what we said goes with it, and what others said stays.
    documents.retain(|it| it["kind"] != "Gateway");
    let after = translate(&world(&documents), &terms(), later);
    let status = after.statuses.iter().find(|it| it.kind == Kind::HttpRoute).unwrap();
    assert_eq!(status.body, json!({ "parents": [other] }));
}

/// Whoever asks clients for certificates must not be served without.
#[test]
fn a_listener_that_asks_clients_for_certificates_is_not_served() {
    let secret = json!({ "kind": "Secret", "metadata": { "name": "c" } });
    let reference = json!([{ "name": "c" }]);
    let asks = json!({ "validation": { "caCertificateRefs": [{ "kind": "ConfigMap", "name": "ca" }] } });
    for (tls, more, wanted) in [
        (json!(null), json!({}), "Accepted"),
        (json!({ "backend": {}, "frontend": { "default": {} } }), json!({}), "Accepted"),
        (json!({ "frontend": { "default": asks } }), json!({}), "UnsupportedValue"),
        (
            json!({ "frontend": { "default": {}, "perPort": [{ "port": 443, "tls": asks }] } }),
            json!({}),
            "UnsupportedValue",
        ),
        (json!({ "frontend": { "default": asks, "perPort": [{ "port": 443, "tls": {} }] } }), json!({}), "Accepted"),
        (json!({ "frontend": { "default": {}, "perPort": [{ "port": 8443, "tls": asks }] } }), json!({}), "Accepted"),
        (json!(null), json!({ "caCertificateRefs": [] }), "UnsupportedValue"),
    ] {
        let mut listener = json!({ "name": "l", "port": 443, "protocol": "HTTPS", "hostname": "a.test",
            "tls": { "certificateRefs": reference } });
        if more != json!({}) {
            listener["tls"]["frontendValidation"] = more;
        }
        let mut gateway = gateway(json!([listener]));
        gateway["spec"]["tls"] = tls.clone();
        let [service, slice] = web();
        let to_web = route("HTTPRoute", "r", json!({ "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] }));
        let it = told(&[service, slice, class(), secret.clone(), gateway, to_web]);
        let status = it.statuses.iter().find(|it| it.kind == Kind::Gateway).unwrap();
        assert_eq!(status.body["listeners"][0]["conditions"][0]["reason"], wanted, "{tls}");
        assert_eq!(it.table.hosts.contains_key("a.test"), wanted == "Accepted", "{tls}");
    }
}

#[test]
fn addresses_that_a_gateway_asks_for_are_ours_or_not_usable() {
    for (asked, wanted) in [
        (json!([]), "Programmed"),
        (json!([{ "type": "IPAddress", "value": "192.0.2.1" }, { "type": "IPAddress" }]), "Programmed"),
        (json!([{ "type": "IPAddress", "value": "192.0.2.9" }]), "AddressNotUsable"),
    ] {
        let mut gateway = gateway(http());
        gateway["spec"]["addresses"] = asked.clone();
        let it = told(&[class(), gateway]);
        let status = it.statuses.iter().find(|it| it.kind == Kind::Gateway).unwrap();
        assert_eq!(status.body["conditions"][1]["reason"], wanted, "{asked}");
    }
}

#[test]
fn a_gateway_that_names_settings_of_its_own_is_not_served() {
    for (infrastructure, wanted) in [
        (json!({ "labels": { "a": "1" } }), "Accepted"),
        (json!({ "parametersRef": { "group": "", "kind": "ConfigMap", "name": "more" } }), "InvalidParameters"),
    ] {
        let mut gateway = gateway(http());
        gateway["spec"]["infrastructure"] = infrastructure;
        let [service, slice] = web();
        let spec = json!({ "hostnames": ["a.test"], "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] });
        let it = told(&[service, slice, class(), gateway, route("HTTPRoute", "r", spec)]);
        let status = it.statuses.iter().find(|it| it.kind == Kind::Gateway).unwrap();
        assert_eq!(status.body["conditions"][0]["reason"], wanted);
        assert_eq!(it.table.hosts.contains_key("a.test"), wanted == "Accepted");
    }
}

#[test]
fn addresses_of_the_gateway_are_those_of_the_settings_and_of_its_service() {
    let service = json!({
        "kind": "Service", "metadata": { "name": "arco-gateway", "namespace": "arco-system" }, "spec": { "ports": [] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.9" }, { "hostname": "lb.example" }] } },
    });
    let ingress = json!({ "kind": "Ingress", "metadata": { "name": "i" }, "spec": { "ingressClassName": "arco" } });
    let it = told(&[service, ingress, class(), gateway(http())]);
    let of = |kind| it.statuses.iter().find(|it| it.kind == kind).unwrap().body.clone();
    assert_eq!(
        of(Kind::Ingress)["loadBalancer"]["ingress"],
        json!([{ "ip": "192.0.2.1" }, { "ip": "198.51.100.9" }, { "hostname": "lb.example" }])
    );
    assert_eq!(of(Kind::Gateway)["addresses"][2], json!({ "type": "Hostname", "value": "lb.example" }));
    let nowhere = Terms { addresses: Vec::new(), service: None, ..terms() };
    let it = translate(&world(&[class(), gateway(http())]), &nowhere, NOW);
    let gateway = it.statuses.iter().find(|it| it.kind == Kind::Gateway).unwrap();
    assert_eq!(gateway.body["conditions"][1]["reason"], "AddressNotAssigned");
}
