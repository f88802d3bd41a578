//! What becomes of workloads, as a whole and case by case.

use super::*;
use arco_model::source::Source;
use arco_model::spec::files::FileSpec;
use arco_model::spec::{ComponentSpec, validate};
use serde_json::{Value, json};

fn deployment(name: &str, container: Value) -> Objects {
    let deployment = json!({ "metadata": { "name": name }, "spec": { "selector": {}, "template": {
        "metadata": { "labels": { "app": name } }, "spec": { "containers": [container] },
    }}});
    Objects { deployments: vec![serde_json::from_value(deployment).unwrap()], ..Objects::default() }
}

/// The component of `web`, and what it lost.
fn web(container: Value) -> Adopted {
    let mut found = found(&deployment("web", container));
    found.components.remove(&"web".parse::<ComponentName>().unwrap()).expect("it becomes a component")
}

/// Whether the platform takes it as it is.
fn is_taken(it: &Adopted) -> bool {
    let mut spec = ComponentSpec::new(Source::Image { reference: "a".to_owned() });
    let of = it.component.clone();
    (spec.kind, spec.replicas, spec.ports, spec.env) = (of.kind, of.replicas.unwrap(), of.ports, of.env);
    (spec.resources, spec.volumes, spec.probe, spec.command) =
        (of.resources.unwrap(), of.volumes, of.probe, of.command);
    spec.files = of.files;
    spec.scheduling = of.scheduling.unwrap_or_default();
    validate(&spec).is_ok()
}

#[test]
fn workloads_become_components_and_what_is_lost_is_named() {
    let deployment = json!({
        "metadata": { "name": "web" },
        "spec": { "replicas": 3, "selector": {}, "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": {
                "serviceAccountName": "web", "nodeSelector": { "disk": "ssd" },
                "initContainers": [{ "name": "wait" }],
                "volumes": [
                    { "name": "files", "persistentVolumeClaim": { "claimName": "files-claim" } },
                    { "name": "settings", "configMap": { "name": "settings" } },
                    { "name": "scratch", "emptyDir": {} },
                    { "name": "fast", "emptyDir": { "medium": "Memory", "sizeLimit": "32Mi" } },
                ],
                "containers": [{
                    "name": "web", "image": "shop/web:1", "command": ["serve"], "args": ["-v"],
                    "ports": [{ "containerPort": 9000, "name": "http" }, { "containerPort": 81, "name": "metrics" }],
                    "env": [
                        { "name": "LEVEL", "value": "info" },
                        { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
                    ],
                    "envFrom": [{ "configMapRef": { "name": "more" } }],
                    "readinessProbe": { "httpGet": { "path": "/ok", "port": "http" } },
                    "resources": { "limits": { "cpu": "500m", "memory": "256Mi" } },
                    "volumeMounts": [
                        { "name": "files", "mountPath": "/files/" }, { "name": "settings", "mountPath": "/etc/app" },
                        { "name": "scratch", "mountPath": "/scratch" }, { "name": "fast", "mountPath": "/fast" },
                    ],
                }, { "name": "proxy" }],
            },
        }},
    });
    let set = json!({
        "metadata": { "name": "db", "ownerReferences": [
            { "apiVersion": "example.com/v1", "kind": "Database", "name": "main", "uid": "1" },
        ]},
        "spec": {
            "replicas": 1, "serviceName": "db", "selector": { "matchLabels": { "app": "db" } },
            "template": { "metadata": { "labels": { "app": "db" } }, "spec": { "containers": [{
                "name": "db", "image": "db:1", "ports": [{ "containerPort": 5432 }],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }]}},
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {
                "storageClassName": "fast", "resources": { "requests": { "storage": "2Gi" } },
            }}],
        },
    });
    let claim = json!({ "metadata": { "name": "files-claim" }, "spec": {
        "storageClassName": "nfs", "resources": { "requests": { "storage": "500M" } },
    }});
    let settings = json!({ "metadata": { "name": "settings" }, "data": { "app.conf": "a=1\n" } });
    let service = json!({ "metadata": { "name": "web" }, "spec": {
        "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }],
    }});
    let outside =
        json!({ "metadata": { "name": "mail" }, "spec": { "type": "ExternalName", "externalName": "mail.test" } });
    let ingress = json!({ "metadata": { "name": "shop" }, "spec": { "rules": [{ "host": "shop.test", "http": { "paths": [
        { "pathType": "Prefix", "path": "/", "backend": { "service": { "name": "web", "port": { "number": 80 } } } },
    ]}}]}});
    let autoscaler = json!({ "metadata": { "name": "web" }, "spec": {
        "scaleTargetRef": { "kind": "Deployment", "name": "web" }, "minReplicas": 2, "maxReplicas": 5,
    }});
    let odd = json!({ "metadata": { "name": "Not.A.Name" }, "spec": { "selector": {}, "template": {} } });
    let objects = Objects {
        deployments: vec![serde_json::from_value(deployment).unwrap(), serde_json::from_value(odd).unwrap()],
        stateful_sets: vec![serde_json::from_value(set).unwrap()],
        services: vec![serde_json::from_value(service).unwrap(), serde_json::from_value(outside).unwrap()],
        ingresses: vec![serde_json::from_value(ingress).unwrap()],
        claims: vec![serde_json::from_value(claim).unwrap()],
        config_maps: vec![serde_json::from_value(settings).unwrap()],
        autoscalers: vec![serde_json::from_value(autoscaler).unwrap()],
        others: vec!["DaemonSet/agent".to_owned()],
    };
    let found = found(&objects);
    assert!(found.components.values().all(is_taken));
    let of = |name: &str| &found.components[&name.parse::<ComponentName>().unwrap()];
    let volumes = |it: &ComponentManifest| {
        let said = |it: &VolumeSpec| (it.name.to_string(), it.path.clone(), it.size_mb, it.kind, it.class.clone());
        it.volumes.iter().map(said).collect::<Vec<_>>()
    };
    let names = |lost: &[String], parts: &[&str]| {
        for part in parts {
            assert!(lost.iter().any(|it| it.contains(part)), "{part}: {lost:#?}");
        }
        assert_eq!(lost.len(), parts.len(), "{lost:#?}");
    };

    let web = &of("web").component;
    assert_eq!(
        (of("web").from.as_str(), web.kind, web.replicas),
        ("Deployment/web", ComponentKind::Stateless, Some(3))
    );
    assert_eq!(web.source.as_deref(), Some("image:shop/web:1"));
    let resources = web.resources.unwrap();
    assert_eq!((resources.cpu_milli, resources.memory_mb), (500, 256));
    let port = |port, protocol, outer| Port { port, protocol, outer };
    assert_eq!(web.ports, [port(9000, Protocol::Http, true), port(81, Protocol::Tcp, false)]);
    assert_eq!(web.env, [("LEVEL".to_owned(), "info".to_owned())].into());
    assert_eq!(web.command, Some(Command::Exec(vec!["serve".to_owned(), "-v".to_owned()])));
    assert_eq!(web.probe, Some(Probe::Http { path: "/ok".to_owned(), port: Some(9000) }));
    assert_eq!(web.scheduling.as_ref().unwrap().node_selector["disk"], "ssd");
    let files = ("files".to_owned(), "/files".to_owned(), 477, VolumeKind::Shared, Some("nfs".to_owned()));
    let fast = ("fast".to_owned(), "/fast".to_owned(), 32, VolumeKind::Memory, None);
    assert_eq!(volumes(web), [files, fast]);
    let texts: Vec<_> = web.files.iter().map(|it| (it.path.as_str(), it.content.as_deref())).collect();
    assert_eq!(texts, [("/etc/app/app.conf", Some("a=1\n"))]);
    let lost = [
        "variable `KEY`",
        "`ConfigMap/more`",
        "content of volume `files`",
        "container `proxy`",
        "init containers",
        "service account",
        "the name `web`",
        "--min 2 --max 5",
    ];
    names(&of("web").lost, &lost);

    let db = &of("db").component;
    assert_eq!((of("db").from.as_str(), db.kind, db.replicas), ("StatefulSet/db", ComponentKind::Stateful, Some(1)));
    assert_eq!(db.ports, [port(5432, Protocol::Tcp, false)]);
    let data = ("data".to_owned(), "/data".to_owned(), 2048, VolumeKind::Local, Some("fast".to_owned()));
    assert_eq!(volumes(db), [data]);
    names(&of("db").lost, &["memory without a limit", "content of volume `data`", "`Database/main`"]);

    let left = [
        "Deployment/Not.A.Name: ",
        "DaemonSet/agent: ",
        "Service/mail: ",
        "Ingress/shop: `arco route add` for shop.test",
    ];
    names(&found.left, &left);
}

/// One odd setting does not keep a workload away, and is named.
#[test]
fn what_the_platform_would_refuse_is_left_out_and_named() {
    for (more, named) in [
        (json!({ "env": [{ "name": "PORT", "value": "80" }] }), "`PORT`"),
        (json!({ "env": [{ "name": "a.b", "value": "1" }] }), "`a.b`"),
        (json!({ "env": [{ "name": "ARCO_X", "value": "1" }] }), "`ARCO_X`"),
        (json!({ "env": [{ "name": "URL", "value": "http://$(HOST)/" }] }), "`URL`"),
        (json!({ "command": ["sh", "-c", "echo $(HOST)"] }), "$(NAME)"),
        (json!({ "args": ["-v"] }), "`-v`"),
        (json!({ "readinessProbe": { "httpGet": { "port": 80, "scheme": "HTTPS" } } }), "readiness probe"),
        (json!({ "readinessProbe": { "grpc": { "port": 80 } } }), "readiness probe"),
        (json!({ "volumeMounts": [{ "name": "none", "mountPath": "/x" }] }), "/x"),
        (json!({ "workingDir": "/srv" }), "working folder"),
        (json!({ "securityContext": { "runAsUser": 1000 } }), "its user"),
        (json!({ "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } } }), "privileges"),
        (json!({ "resources": { "limits": { "cpu": "1m" } } }), "memory without a limit"),
        (json!({ "resources": { "limits": { "nvidia.com/gpu": "1" } } }), "`nvidia.com/gpu`"),
        (json!({ "securityContext": { "readOnlyRootFilesystem": true } }), "`readOnlyRootFilesystem`"),
        (json!({ "readinessProbe": { "tcpSocket": { "port": 80 }, "initialDelaySeconds": 90 } }), "within 60 s"),
        (json!({ "startupProbe": { "tcpSocket": { "port": 80 } } }), "within 60 s"),
    ] {
        let mut container = json!({ "name": "web", "image": "web" });
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let found = web(container);
        assert!(found.lost.iter().any(|it| it.contains(named)), "{more}: {:?}", found.lost);
        assert!(is_taken(&found), "{more}: {found:#?}");
    }
    let small = web(json!({ "name": "web", "resources": { "limits": { "cpu": "1m", "memory": "1Mi" } } }));
    let resources = small.component.resources.unwrap();
    assert_eq!((resources.cpu_milli, resources.memory_mb), (10, 16));
}

/// What a pod has beside its container is had by no component, and named.
#[test]
fn what_only_pods_have_is_named() {
    let container = json!({ "name": "web", "image": "web", "volumeMounts": [{ "name": "a", "mountPath": "/a" }] });
    let second = json!({ "name": "proxy", "volumeMounts": [{ "name": "a", "mountPath": "/b" }] });
    for (more, named) in [
        (json!({ "dnsConfig": {} }), "DNS settings"),
        (json!({ "dnsPolicy": "None" }), "DNS settings"),
        (json!({ "hostAliases": [{ "ip": "192.0.2.1" }] }), "names of others"),
        (json!({ "runtimeClassName": "gvisor" }), "runtime class"),
        (json!({ "nodeName": "n1" }), "its node"),
        (json!({ "shareProcessNamespace": true }), "`shareProcessNamespace`"),
        (json!({ "securityContext": { "fsGroup": 5 } }), "`fsGroup`"),
        (json!({ "securityContext": { "sysctls": [{ "name": "a", "value": "1" }] } }), "sysctls"),
        (json!({ "volumes": [{ "name": "a", "emptyDir": { "sizeLimit": "1Gi" } }] }), "`disk_mb`"),
        (
            json!({ "volumes": [{ "name": "a", "emptyDir": {} }], "containers": [container, second] }),
            "containers share",
        ),
    ] {
        let mut objects = deployment("web", container.clone());
        let pod = &mut objects.deployments[0].spec.as_mut().unwrap().template.spec;
        let mut document = serde_json::to_value(&*pod).unwrap();
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        *pod = serde_json::from_value(document).unwrap();
        let found = found(&objects);
        let web = &found.components[&"web".parse::<ComponentName>().unwrap()];
        assert!(web.lost.iter().any(|it| it.contains(named)), "{more}: {:?}", web.lost);
        assert!(is_taken(web), "{more}: {web:#?}");
    }
}

/// What the cluster itself writes into every workload is nothing that is lost.
#[test]
fn marks_and_ways_of_replacing_are_named_and_defaults_are_not() {
    let of = |strategy: &str, labels: Value, annotations: Value| {
        let probe =
            json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3 });
        let deployment = json!({ "metadata": { "name": "web" }, "spec": {
            "selector": { "matchLabels": { "app": "web" } }, "strategy": { "type": strategy },
            "template": { "metadata": { "labels": labels, "annotations": annotations }, "spec": {
                "dnsPolicy": "ClusterFirst", "securityContext": {},
                "containers": [{ "name": "web", "image": "web", "readinessProbe": probe,
                    "resources": { "limits": { "memory": "64Mi" } } }],
            }},
        }});
        let deployments = vec![serde_json::from_value(deployment).unwrap()];
        let mut found = found(&Objects { deployments, ..Objects::default() });
        found.components.remove(&"web".parse::<ComponentName>().unwrap()).unwrap().lost
    };
    let restarted = json!({ "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z" });
    assert_eq!(of("RollingUpdate", json!({ "app": "web" }), restarted), Vec::<String>::new());
    let lost = of("Recreate", json!({ "app": "web", "team": "blue" }), json!({ "prometheus.io/scrape": "true" }));
    assert!(lost.len() == 2 && lost.iter().any(|it| it.contains("Recreate")), "{lost:?}");
    assert!(lost.iter().any(|it| it.contains("(`team`, `prometheus.io/scrape`)")), "{lost:?}");
}

#[test]
fn ports_that_only_a_route_opens_are_named() {
    let ports = [
        (80, Protocol::Http, true),
        (9090, Protocol::Grpc, true),
        (5432, Protocol::Tcp, true),
        (53, Protocol::Udp, true),
        (81, Protocol::Http, false),
        (82, Protocol::Tcp, false),
    ];
    let ports = ports.map(|(port, protocol, outer)| Port { port, protocol, outer });
    let expected = [
        "9090 outside: `arco route add … HOST",
        "5432 outside: `arco route add … --tcp",
        "53 outside: `arco route add … --udp",
    ];
    let found = lost::doors(&ports);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    assert!(found.iter().zip(expected).all(|(it, wanted)| it.contains(wanted)), "{found:?}");
}

/// A volume of which one path is odd, or that is mounted twice, is said; the rest is had.
#[test]
fn volumes_are_had_once_and_where_they_can_be() {
    let mut objects = deployment(
        "web",
        json!({ "name": "web", "image": "web", "volumeMounts": [
            { "name": "a", "mountPath": "/a" }, { "name": "a", "mountPath": "/again" },
            { "name": "a", "mountPath": "/part", "subPath": "x" }, { "name": "b", "mountPath": "/proc/b" },
        ]}),
    );
    let claim = |name: &str| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } });
    let pod = objects.deployments[0].spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pod.volumes = serde_json::from_value(json!([claim("a"), claim("b")])).unwrap();
    let found = found(&objects);
    let web = &found.components[&"web".parse::<ComponentName>().unwrap()];
    assert!(is_taken(web), "{web:#?}");
    assert_eq!(web.component.volumes.iter().map(|it| it.path.as_str()).collect::<Vec<_>>(), ["/a"]);
    for path in ["/again", "/part", "/proc/b"] {
        assert!(web.lost.iter().any(|it| it.contains(path)), "{path}: {:?}", web.lost);
    }
}

/// Keys, chosen ones, single ones; what is no text or has no place is said, and Secrets are not read.
#[test]
fn mounted_config_maps_are_files() {
    let map = json!({ "metadata": { "name": "settings" },
        "data": { "a": "1", "b": "2" }, "binaryData": { "c": "AAEC" } });
    let chosen = json!({ "name": "chosen", "configMap": { "name": "settings", "defaultMode": 256,
        "items": [{ "key": "a", "path": "deep/a.conf" }, { "key": "b", "path": "b", "mode": 0o555 }] } });
    let volumes = json!([
        { "name": "whole", "configMap": { "name": "settings" } }, chosen,
        { "name": "none", "configMap": { "name": "none" } }, { "name": "tls", "secret": { "secretName": "tls" } },
    ]);
    let of = |mounts: Value| {
        let mut objects = deployment("web", json!({ "name": "web", "image": "web", "volumeMounts": mounts }));
        objects.config_maps = vec![serde_json::from_value(map.clone()).unwrap()];
        let pod = objects.deployments[0].spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pod.volumes = serde_json::from_value(volumes.clone()).unwrap();
        let mut found = found(&objects);
        let web = found.components.remove(&"web".parse::<ComponentName>().unwrap()).unwrap();
        assert!(is_taken(&web), "{web:#?}");
        let file = |it: &FileSpec| {
            let mode = it.mode.map(|it| format!(" {it}")).unwrap_or_default();
            format!("{}={}{mode}", it.path, it.content.as_deref().unwrap_or_default())
        };
        (web.component.files.iter().map(file).collect::<Vec<_>>().join(", "), web.lost.join("\n"))
    };
    for (mount, files, lost) in [
        (
            json!({ "name": "whole", "mountPath": "/etc/app/" }),
            "/etc/app/a=1, /etc/app/b=2",
            "/etc/app/c: it is not text",
        ),
        (json!({ "name": "whole", "mountPath": "/etc/one", "subPath": "a" }), "/etc/one=1", ""),
        (json!({ "name": "chosen", "mountPath": "/x" }), "/x/deep/a.conf=1 0400, /x/b=2 0555", ""),
        (json!({ "name": "chosen", "mountPath": "/x", "subPath": "deep" }), "/x/a.conf=1 0400", ""),
        (json!({ "name": "whole", "mountPath": "/etc/hosts", "subPath": "a" }), "", "the file /etc/hosts: "),
        (json!({ "name": "none", "mountPath": "/x" }), "", "mounted at /x"),
        (json!({ "name": "tls", "mountPath": "/tls" }), "", "`Secret/tls` at /tls"),
    ] {
        let found = of(json!([mount]));
        assert!(found.0 == files && found.1.contains(lost), "{mount}: {found:?}");
    }
}

/// Only what was open outside of the cluster is, and it comes first.
#[test]
fn ports_are_open_outside_where_they_were() {
    let service = |kind: &str, ports: Value| -> Service {
        let it = json!({ "metadata": { "name": "web" }, "spec": { "type": kind, "selector": { "app": "web" }, "ports": ports } });
        serde_json::from_value(it).unwrap()
    };
    for (kind, ports, expected) in [
        ("ClusterIP", json!([{ "port": 80, "targetPort": 8080 }]), "8080 Http false, 81 Tcp false"),
        ("LoadBalancer", json!([{ "port": 5432 }]), "5432 Tcp true, 81 Tcp false"),
        ("NodePort", json!([{ "port": 53, "protocol": "UDP" }]), "53 Udp true, 81 Tcp false"),
        ("ClusterIP", json!([{ "port": 9, "protocol": "SCTP" }]), "81 Tcp false"),
        ("ClusterIP", json!([{ "port": 80, "targetPort": "nobody" }]), "81 Tcp false"),
        ("ClusterIP", json!([{ "port": 9, "name": "grpc-api" }]), "9 Grpc false, 81 Tcp false"),
        ("ClusterIP", json!([{ "port": 9, "name": "grpcserver" }]), "9 Grpc false, 81 Tcp false"),
        ("ClusterIP", json!([{ "port": 9, "name": "grpcs-api" }]), "9 Grpcs false, 81 Tcp false"),
        ("ClusterIP", json!([{ "port": 9, "name": "api", "appProtocol": "grpcs" }]), "9 Grpcs false, 81 Tcp false"),
    ] {
        let mut objects = deployment("web", json!({ "name": "web", "ports": [{ "containerPort": 81 }] }));
        objects.services = vec![service(kind, ports.clone())];
        let found = found(&objects);
        let web = &found.components[&"web".parse::<ComponentName>().unwrap()];
        let said: Vec<_> =
            web.component.ports.iter().map(|it| format!("{} {:?} {}", it.port, it.protocol, it.outer)).collect();
        assert_eq!(said.join(", "), expected, "{kind} {ports}");
    }
}
