//! What a cluster asks of a whole platform, on a real API server (`ARCO_TEST_KUBECONFIG`; `tests/kubernetes/cluster.py run`
//! makes one): an Ingress here, the Gateway API and adoption below.

mod adopt;
mod gateway_api;

use crate::behave::EXECUTABLE;
use crate::routes::get_over_tls;
use arco_testkit::{Options, Platform, until};
use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The cluster of this run, and its kubeconfig; says why where there is none.
fn cluster() -> Option<(Cluster, String)> {
    let Some(kubeconfig) = std::env::var("ARCO_TEST_KUBECONFIG").ok().filter(|it| !it.is_empty()) else {
        eprintln!(
            "SKIPPED: no Kubernetes is named by ARCO_TEST_KUBECONFIG (tests/kubernetes/cluster.py run makes one)"
        );
        return None;
    };
    arco_testkit::is_root().then(|| (Cluster::connect(&kubeconfig), kubeconfig))
}

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

/// Answers every request with `word` and its first line, until dropped.
struct Upstream(SocketAddr, Arc<AtomicBool>);

impl Upstream {
    fn start(word: &'static str) -> Self {
        Self::serving(move |mut stream| answer(word, &mut stream))
    }

    /// Has each connection served by `serve`, one after the other.
    fn serving(serve: impl Fn(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let ended = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                serve(stream);
            }
        });
        Self(address, stop)
    }
}

/// Answers one request with `word` and its first line.
fn answer(word: &str, stream: &mut (impl Read + Write)) {
    let (mut request, mut piece) = (Vec::new(), [0; 8192]);
    // What is left unread when it closes would reset the connection.
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(length @ 1..) => request.extend_from_slice(&piece[..length]),
            Ok(0) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let body = format!("{word} {}", text.lines().next().unwrap_or_default());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes()); // who asks may have gone
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.0.port()));
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

/// The only EndpointSlice of a service with the port `web`.
fn slice(service: &str, address: Ipv4Addr, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "web", "port": port, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
    })
}

/// A service without pods whose port 80 is what a [`slice`] says.
fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "name": "web", "port": 80, "targetPort": 1 }] },
    })
}

/// A secret with a certificate.
fn secret(name: &str, chain: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": chain, "tls.key": key },
    })
}

#[test]
fn an_ingress_is_answered() {
    let Some((cluster, kubeconfig)) = cluster() else { return };
    let name = format!("arco-it-ingress-{}", std::process::id());
    let namespace = format!("/api/v1/namespaces/{name}");
    let _cleanup = Cleanup(&cluster, vec![namespace.clone()]);
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
    cluster.apply(&slices, &slice("web", address, first.0.port()));
    cluster.apply(&format!("{namespace}/services/web"), &service("web"));
    let key = KeyPair::generate().unwrap();
    let host = format!("i.{name}.test");
    let chain = CertificateParams::new(vec![host.clone()]).unwrap().self_signed(&key).unwrap().pem();
    cluster.apply(&format!("{namespace}/secrets/cert"), &secret("cert", &chain, &key.serialize_pem()));
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

    // Endpoints move; what is deleted is gone.
    cluster.apply(&slices, &slice("web", address, second.0.port()));
    body(&host, "/x", "second GET /x HTTP/1.1");
    cluster.delete(&ingress);
    until("the host of the Ingress that went is gone", 180, || {
        platform.get(&host, "/").ok().filter(|it| it.status == 404)
    });
}
