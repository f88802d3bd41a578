//! Routes that objects of a cluster ask for, on a real API server (`ARCO_TEST_KUBECONFIG`; `tests/kubernetes/cluster.py run`
//! makes one), through a whole platform and its gateway.

use crate::behave::EXECUTABLE;
use crate::routes::get_over_tls;
use arco_testkit::{Options, Platform, until};
use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The API server by the test's kubeconfig.
struct Cluster {
    http: reqwest::Client,
    server: String,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn connect(kubeconfig: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(kubeconfig).unwrap()).unwrap();
        let (cluster, user) = (&file["clusters"][0]["cluster"], &file["users"][0]["user"]);
        let text = |it: &Value| base64::engine::general_purpose::STANDARD.decode(it.as_str().unwrap()).unwrap();
        let root = reqwest::Certificate::from_pem(&text(&cluster["certificate-authority-data"])).unwrap();
        let mut http = reqwest::Client::builder().tls_certs_only([root]);
        let mut headers = reqwest::header::HeaderMap::new();
        match user["token"].as_str() {
            Some(token) => drop(headers.insert("authorization", format!("Bearer {token}").parse().unwrap())),
            None => {
                let both = [text(&user["client-certificate-data"]), text(&user["client-key-data"])].concat();
                http = http.identity(reqwest::Identity::from_pem(&both).unwrap());
            }
        }
        let http = http.default_headers(headers).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { http, server: cluster["server"].as_str().unwrap().to_owned(), runtime }
    }

    fn ask(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.server));
        if let Some(body) = body {
            request = request.header("content-type", "application/apply-patch+yaml").body(body.to_string());
        }
        self.runtime.block_on(async {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            (status, answer.json().await.unwrap_or_default())
        })
    }

    /// Server-side apply.
    #[track_caller]
    fn apply(&self, path: &str, body: &Value) {
        let full = format!("{path}?fieldManager=arco-test&force=true");
        let (status, answer) = self.ask(reqwest::Method::PATCH, &full, Some(body));
        assert!(status < 300, "{path}: {status} {answer}");
    }

    fn get(&self, path: &str) -> Value {
        self.ask(reqwest::Method::GET, path, None).1
    }

    fn delete(&self, path: &str) {
        self.ask(reqwest::Method::DELETE, path, None);
    }
}

/// Everything that a test made in the cluster; it goes with this.
struct Cleanup<'a>(&'a Cluster, Vec<String>);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        self.1.iter().for_each(|it| self.0.delete(it));
    }
}

const GATEWAY_API: &str = "/apis/gateway.networking.k8s.io/v1";

/// The least definitions of the kinds that are used, with the fields of statuses that the real ones ask for. Returns what
/// was not there before.
fn definitions(cluster: &Cluster) -> Vec<String> {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let conditions = json!({ "type": "array", "items": {
        "type": "object", "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": { "type": "string" }, "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "reason": { "type": "string", "minLength": 1 }, "message": { "type": "string" },
            "lastTransitionTime": { "type": "string", "format": "date-time" }, "observedGeneration": { "type": "integer" },
        },
    } });
    let parents = json!({ "type": "array", "items": {
        "type": "object", "required": ["parentRef", "controllerName", "conditions"],
        "properties": { "parentRef": any, "controllerName": { "type": "string", "pattern": "^.+/.+$" }, "conditions": conditions },
    } });
    let listeners = json!({ "type": "array", "items": {
        "type": "object", "required": ["name", "attachedRoutes", "conditions"],
        "properties": {
            "name": { "type": "string" }, "attachedRoutes": { "type": "integer" },
            "supportedKinds": { "type": "array", "items": any }, "conditions": conditions,
        },
    } });
    let mut made = Vec::new();
    for (kind, plural, scope, status) in [
        ("GatewayClass", "gatewayclasses", "Cluster", json!({ "conditions": conditions })),
        (
            "Gateway",
            "gateways",
            "Namespaced",
            json!({ "conditions": conditions, "listeners": listeners, "addresses": { "type": "array", "items": any } }),
        ),
        ("HTTPRoute", "httproutes", "Namespaced", json!({ "parents": parents })),
    ] {
        let name = format!("{plural}.gateway.networking.k8s.io");
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        // One that an earlier run is still taking away is not there.
        let there = until(&format!("{name} is there or is not"), 180, || {
            let found = cluster.get(&path);
            let leaves = found["metadata"]["deletionTimestamp"].is_string();
            (!leaves).then(|| found["kind"] == "CustomResourceDefinition")
        });
        if there {
            continue;
        }
        let schema = json!({ "type": "object", "properties": { "spec": any, "status": { "type": "object", "properties": status } } });
        cluster.apply(
            &path,
            &json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": { "name": name, "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" } },
                "spec": {
                    "group": "gateway.networking.k8s.io", "scope": scope,
                    "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
                    "versions": [{
                        "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                        "schema": { "openAPIV3Schema": schema },
                    }],
                },
            }),
        );
        made.push(path);
    }
    for plural in ["gatewayclasses", "gateways", "httproutes"] {
        until(&format!("the cluster serves {plural}"), 60, || {
            (cluster.get(&format!("{GATEWAY_API}/{plural}"))["items"].is_array()).then_some(())
        });
    }
    made
}

/// Answers every request with `word` and its first line, until dropped.
struct Upstream(SocketAddr, Arc<AtomicBool>);

impl Upstream {
    fn start(word: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let ended = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut request = [0; 8192];
                let length = stream.read(&mut request).unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let body = format!("{word} {}", text.lines().next().unwrap_or_default());
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes()); // who asks may have gone
            }
        });
        Self(address, stop)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.0.port()));
    }
}

/// An address of this machine that endpoints may have: loopback may not be one.
fn own_address() -> Ipv4Addr {
    let all = nix::ifaddrs::getifaddrs().unwrap();
    let v4 = |it: nix::ifaddrs::InterfaceAddress| {
        let address = it.address?.as_sockaddr_in()?.ip();
        let usable = !address.is_loopback() && !address.is_link_local() && !address.is_unspecified();
        // Bridges of platforms come and go; on a machine with nothing else there is at least our own.
        usable.then(|| (it.interface_name.starts_with("arco-"), address))
    };
    let mut usable: Vec<_> = all.filter_map(v4).collect();
    usable.sort();
    usable.first().expect("an address of this machine beside loopback").1
}

fn slice(name: &str, address: Ipv4Addr, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "web" } },
        "ports": [{ "name": "web", "port": port, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
    })
}

/// The condition of a type in a list.
fn condition(list: &Value, kind: &str) -> String {
    let found = list.as_array().into_iter().flatten().find(|it| it["type"] == kind);
    found.map(|it| format!("{} {}", it["status"], it["reason"]).replace('"', "")).unwrap_or_default()
}

#[test]
fn an_ingress_and_a_route_of_a_gateway_are_answered() {
    let Some(kubeconfig) = std::env::var("ARCO_TEST_KUBECONFIG").ok().filter(|it| !it.is_empty()) else {
        eprintln!(
            "SKIPPED: no Kubernetes is named by ARCO_TEST_KUBECONFIG (tests/kubernetes/cluster.py run makes one)"
        );
        return;
    };
    if !arco_testkit::is_root() {
        return;
    }
    let cluster = Cluster::connect(&kubeconfig);
    let name = format!("arco-it-{}", std::process::id());
    let namespace = format!("/api/v1/namespaces/{name}");
    let mut cleanup = Cleanup(&cluster, vec![namespace.clone(), format!("{GATEWAY_API}/gatewayclasses/{name}")]);
    cleanup.1.extend(definitions(&cluster));
    cluster.apply(&namespace, &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
    let env = vec![
        ("ARCO_KUBERNETES__KUBECONFIG", kubeconfig),
        ("ARCO_KUBERNETES__ROUTE_CLASS", name.clone()),
        ("ARCO_KUBERNETES__ROUTE_ADDRESSES", "[\"192.0.2.7\"]".to_owned()),
    ];
    let platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });

    let (first, second) = (Upstream::start("first"), Upstream::start("second"));
    let address = own_address();
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{name}/endpointslices/web-1");
    cluster.apply(&slices, &slice("web-1", address, first.0.port()));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "ports": [{ "name": "web", "port": 80, "targetPort": 1 }] },
    });
    cluster.apply(&format!("{namespace}/services/web"), &service);
    let key = KeyPair::generate().unwrap();
    let host = format!("i.{name}.test");
    let chain = CertificateParams::new(vec![host.clone()]).unwrap().self_signed(&key).unwrap().pem();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "cert" }, "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": chain, "tls.key": key.serialize_pem() },
    });
    cluster.apply(&format!("{namespace}/secrets/cert"), &secret);
    let ingress = format!("/apis/networking.k8s.io/v1/namespaces/{name}/ingresses/web");
    let backend = json!({ "service": { "name": "web", "port": { "name": "web" } } });
    cluster.apply(&ingress, &json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "name": "web", "annotations": { "nginx.ingress.kubernetes.io/ssl-redirect": "false" } },
        "spec": {
            "ingressClassName": name, "tls": [{ "hosts": [host], "secretName": "cert" }],
            "rules": [{ "host": host, "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] } }],
        },
    }));
    let body = |host: &str, path: &str, wanted: &str| {
        until(&format!("{host}{path} answers `{wanted}`"), 180, || {
            platform.get(host, path).ok().filter(|it| it.body == wanted)
        });
    };
    body(&host, "/x", "first GET /x HTTP/1.1");
    let https = platform.address("https").unwrap();
    until("the certificate of the secret is served", 180, || {
        get_over_tls(https, &host, &host, "/s", &chain).ok().filter(|it| it.ends_with("first GET /s HTTP/1.1"))
    });
    until("the Ingress says where it is reached", 180, || {
        (cluster.get(&ingress)["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.7").then_some(())
    });

    // The Gateway API: a class that names our controller, a gateway, a route; one that names a service which is not there.
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": name },
        "spec": { "controllerName": format!("arco.internal/{name}") },
    });
    cluster.apply(&format!("{GATEWAY_API}/gatewayclasses/{name}"), &class);
    let gateway = format!("{GATEWAY_API}/namespaces/{name}/gateways/gw");
    cluster.apply(
        &gateway,
        &json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": { "name": "gw" },
            "spec": { "gatewayClassName": name, "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] },
        }),
    );
    let routes = format!("{GATEWAY_API}/namespaces/{name}/httproutes");
    let route = |route: &str, service: &str| {
        let rewrite = json!({ "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" } } });
        cluster.apply(
            &format!("{routes}/{route}"),
            &json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "name": route },
                "spec": {
                    "parentRefs": [{ "name": "gw" }], "hostnames": [format!("{route}.{name}.test")],
                    "rules": [{
                        "matches": [{ "path": { "type": "PathPrefix", "value": "/old" } }], "filters": [rewrite],
                        "backendRefs": [{ "name": service, "port": 80 }],
                    }],
                },
            }),
        );
    };
    route("r", "web");
    route("gone", "nothing");
    body(&format!("r.{name}.test"), "/old/x", "first GET /new/x HTTP/1.1");
    until("a route whose service is not there answers 500", 180, || {
        platform.get(&format!("gone.{name}.test"), "/old").ok().filter(|it| it.status == 500)
    });
    for (route, wanted) in [("r", "True ResolvedRefs"), ("gone", "False BackendNotFound")] {
        until(&format!("the route `{route}` says {wanted}"), 180, || {
            let object = cluster.get(&format!("{routes}/{route}"));
            let status = &object["status"]["parents"][0]["conditions"];
            (condition(status, "Accepted") == "True Accepted" && condition(status, "ResolvedRefs") == wanted)
                .then_some(())
        });
    }
    until("the gateway says that it is programmed", 180, || {
        let object = cluster.get(&gateway);
        let status = &object["status"];
        let attached = &status["listeners"][0]["attachedRoutes"];
        (condition(&status["conditions"], "Programmed") == "True Programmed" && *attached == 2).then_some(())
    });

    // Endpoints move; a route that is deleted is gone.
    cluster.apply(&slices, &slice("web-1", address, second.0.port()));
    body(&host, "/x", "second GET /x HTTP/1.1");
    body(&format!("r.{name}.test"), "/old", "second GET /new HTTP/1.1");
    cluster.delete(&ingress);
    until("the host of the Ingress that went is gone", 180, || {
        platform.get(&host, "/").ok().filter(|it| it.status == 404)
    });
}
