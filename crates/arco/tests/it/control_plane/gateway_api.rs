//! The Gateway API on its real definitions (`cluster.py … --gateway-api` installs them): what objects ask for is answered,
//! and what is said in their statuses passes their schemas.

use super::{Cleanup, Cluster, Upstream, answer, cluster, own_address, secret, service, slice};
use crate::behave::EXECUTABLE;
use crate::routes::get_over_tls;
use arco_testkit::servers::free_port;
use arco_testkit::{Options, Platform, get, until};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Runtime;

const GROUP: &str = "gateway.networking.k8s.io";
const API: &str = "/apis/gateway.networking.k8s.io/v1";
/// Conditions of a route's first parent.
const OF_ROUTE: &str = "/status/parents/0/conditions";
const ACCEPTED: &str = "Accepted True Accepted";
const RESOLVED: &str = "ResolvedRefs True ResolvedRefs";
const NOT_PERMITTED: &str = "ResolvedRefs False RefNotPermitted";
const PROGRAMMED: &str = "Programmed True Programmed";

/// A class and a namespace of one name, and a platform that serves the class.
struct Scene<'a> {
    cluster: &'a Cluster,
    platform: Platform,
    name: String,
    cleanup: Cleanup<'a>,
}

impl<'a> Scene<'a> {
    /// `None` where the cluster has no Gateway API, which is said.
    fn begin(cluster: &'a Cluster, kubeconfig: String, word: &str, more: Vec<(&'static str, String)>) -> Option<Self> {
        if !cluster.get(&format!("{API}/tcproutes"))["items"].is_array() {
            eprintln!("SKIPPED: the cluster has no Gateway API (tests/kubernetes/cluster.py run --gateway-api)");
            return None;
        }
        let name = format!("arco-it-{word}-{}", std::process::id());
        let class = format!("{API}/gatewayclasses/{name}");
        let mut cleanup = Cleanup(cluster, vec![class.clone()]);
        namespace(cluster, &mut cleanup, &name);
        let mut env = vec![
            ("ARCO_KUBERNETES__KUBECONFIG", kubeconfig),
            ("ARCO_KUBERNETES__ROUTE_CLASS", name.clone()),
            ("ARCO_KUBERNETES__ROUTE_ADDRESSES", "[\"192.0.2.7\"]".to_owned()),
        ];
        env.extend(more);
        let platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });
        let this = Self { cluster, platform, name, cleanup };
        let spec = json!({ "controllerName": format!("arco.internal/{}", this.name) });
        cluster.apply(&class, &document("GatewayClass", &this.name, &spec));
        this.says(&class, "/status/conditions", &[ACCEPTED]);
        Some(this)
    }

    /// Makes another namespace.
    fn other(&mut self) -> String {
        let name = format!("{}-other", self.name);
        namespace(self.cluster, &mut self.cleanup, &name);
        name
    }

    /// Applies an object; its path.
    fn put(&self, namespace: &str, (kind, plural): (&str, &str), name: &str, spec: &Value) -> String {
        let path = format!("{API}/namespaces/{namespace}/{plural}/{name}");
        self.cluster.apply(&path, &document(kind, name, spec));
        path
    }

    fn gateway(&self, listeners: &Value) -> String {
        let spec = json!({ "gatewayClassName": self.name, "listeners": listeners });
        self.put(&self.name, ("Gateway", "gateways"), "gw", &spec)
    }

    /// A service that leads to a port of this machine.
    fn backend(&self, namespace: &str, name: &str, to: SocketAddr) {
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}-1");
        self.cluster.apply(&slices, &slice(name, own_address(), to.port()));
        self.cluster.apply(&format!("/api/v1/namespaces/{namespace}/services/{name}"), &service(name));
    }

    /// An HTTPRoute with one rule for the host of its name.
    fn http_route(&self, name: &str, rule: &Value) -> String {
        let spec = json!({ "parentRefs": [{ "name": "gw" }], "hostnames": [self.host(name)], "rules": [rule] });
        self.put(&self.name, ("HTTPRoute", "httproutes"), name, &spec)
    }

    fn host(&self, word: &str) -> String {
        format!("{word}.{}.test", self.name)
    }

    /// Waits until an object says all of these, of what it is now: `TYPE STATUS REASON`.
    #[track_caller]
    fn says(&self, path: &str, at: &str, wanted: &[&str]) {
        until(&format!("{path} says {wanted:?} in {at}"), 180, || {
            let object = self.cluster.get(path);
            let all = object.pointer(at).and_then(Value::as_array).into_iter().flatten();
            let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
            let said: Vec<String> = all
                .filter(|it| it["observedGeneration"] == object["metadata"]["generation"])
                .map(|it| format!("{} {} {}", text(&it["type"]), text(&it["status"]), text(&it["reason"])))
                .collect();
            wanted.iter().all(|it| said.iter().any(|said| said == it)).then_some(())
        });
    }

    /// Waits until a host answers with this status and body.
    #[track_caller]
    fn answers(&self, host: &str, path: &str, status: u16, body: &str) {
        until(&format!("{host}{path} answers {status} `{body}`"), 180, || {
            self.platform.get(host, path).ok().filter(|it| it.status == status && it.body.contains(body))
        });
    }

    /// No status was refused by the schema of its kind.
    #[track_caller]
    fn end(self) {
        let log = self.platform.log();
        assert!(!log.contains("a status cannot be written"), "{log}");
    }
}

fn document(kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn namespace(cluster: &Cluster, cleanup: &mut Cleanup<'_>, name: &str) {
    let path = format!("/api/v1/namespaces/{name}");
    cleanup.1.push(path.clone());
    cluster.apply(&path, &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
}

/// Chain and key of a host, PEM.
fn certificate(host: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
    (made.pem(), key.serialize_pem())
}

#[test]
fn http_routes_are_answered_and_other_namespaces_must_let_them() {
    let Some((cluster, kubeconfig)) = cluster() else { return };
    let Some(mut scene) = Scene::begin(&cluster, kubeconfig, "http", Vec::new()) else { return };
    let (name, other) = (scene.name.clone(), scene.other());
    let (here, there) = (Upstream::start("here"), Upstream::start("there"));
    scene.backend(&name, "web", here.0);
    scene.backend(&other, "far", there.0);
    let secure = scene.host("secure");
    let (chain, key) = certificate(&secure);
    cluster.apply(&format!("/api/v1/namespaces/{other}/secrets/cert"), &secret("cert", &chain, &key));
    let gateway = scene.gateway(&json!([
        { "name": "http", "port": 80, "protocol": "HTTP" },
        { "name": "https", "port": 443, "protocol": "HTTPS", "hostname": secure,
            "tls": { "certificateRefs": [{ "name": "cert", "namespace": other }] } },
    ]));
    let to_web = json!([{ "name": "web", "port": 80 }]);

    // One that is served, one whose service is not there, one that asks for what nobody has here.
    let rewrite = json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" });
    let served = scene.http_route(
        "served",
        &json!({
            "matches": [{ "path": { "type": "PathPrefix", "value": "/old" } }],
            "filters": [{ "type": "URLRewrite", "urlRewrite": { "path": rewrite } }], "backendRefs": to_web,
        }),
    );
    scene.says(&served, OF_ROUTE, &[ACCEPTED, RESOLVED]);
    scene.answers(&scene.host("served"), "/old/x", 200, "here GET /new/x HTTP/1.1");
    let gone = scene.http_route("gone", &json!({ "backendRefs": [{ "name": "nothing", "port": 80 }] }));
    scene.says(&gone, OF_ROUTE, &[ACCEPTED, "ResolvedRefs False BackendNotFound"]);
    scene.answers(&scene.host("gone"), "/", 500, "");
    let header = json!({ "type": "RequestHeaderModifier", "requestHeaderModifier": { "remove": ["x"] } });
    let strange =
        scene.http_route("strange", &json!({ "backendRefs": [{ "name": "web", "port": 80, "filters": [header] }] }));
    scene.says(&strange, OF_ROUTE, &["Accepted False UnsupportedValue"]);
    scene.answers(&scene.host("strange"), "/", 500, "");

    // A listener that is not there, and a gateway that does not take routes of the namespace.
    let http = ("HTTPRoute", "httproutes");
    let lost = json!({ "parentRefs": [{ "name": "gw", "sectionName": "none" }], "rules": [{ "backendRefs": to_web }] });
    scene.says(&scene.put(&name, http, "lost", &lost), OF_ROUTE, &["Accepted False NoMatchingParent"]);
    let stranger = json!({ "parentRefs": [{ "name": "gw", "namespace": name }], "hostnames": [scene.host("stranger")],
        "rules": [{ "backendRefs": [{ "name": "far", "port": 80 }] }] });
    scene.says(&scene.put(&other, http, "stranger", &stranger), OF_ROUTE, &["Accepted False NotAllowedByListeners"]);
    scene.answers(&scene.host("stranger"), "/", 404, "");

    // Without a grant neither the service nor the certificate of the other namespace is used.
    let far = scene.http_route("far", &json!({ "backendRefs": [{ "name": "far", "namespace": other, "port": 80 }] }));
    let over_tls =
        json!({ "parentRefs": [{ "name": "gw", "sectionName": "https" }], "rules": [{ "backendRefs": to_web }] });
    let over_tls = scene.put(&name, http, "over-tls", &over_tls);
    scene.says(&far, OF_ROUTE, &[ACCEPTED, NOT_PERMITTED]);
    scene.answers(&scene.host("far"), "/", 500, "");
    scene.says(&gateway, "/status/conditions", &["Accepted True ListenersNotValid", PROGRAMMED]);
    let listener = [ACCEPTED, RESOLVED, "Conflicted False NoConflicts", PROGRAMMED];
    scene.says(&gateway, "/status/listeners/0/conditions", &listener);
    scene.says(&gateway, "/status/listeners/1/conditions", &[NOT_PERMITTED, "Programmed False Invalid"]);
    let from = |kind: &str| json!({ "group": GROUP, "kind": kind, "namespace": name });
    let grant = json!({
        "from": [from("HTTPRoute"), from("Gateway")],
        "to": [{ "group": "", "kind": "Service", "name": "far" }, { "group": "", "kind": "Secret" }],
    });
    let grant = scene.put(&other, ("ReferenceGrant", "referencegrants"), "grant", &grant);
    scene.says(&far, OF_ROUTE, &[ACCEPTED, RESOLVED]);
    scene.answers(&scene.host("far"), "/f", 200, "there GET /f HTTP/1.1");
    scene.says(&gateway, "/status/conditions", &[ACCEPTED, PROGRAMMED]);
    scene.says(&gateway, "/status/listeners/1/conditions", &listener);
    scene.says(&over_tls, OF_ROUTE, &[ACCEPTED, RESOLVED]);
    let https = scene.platform.address("https").unwrap();
    until("the certificate of the other namespace is served", 180, || {
        get_over_tls(https, &secure, &secure, "/s", &chain).ok().filter(|it| it.ends_with("here GET /s HTTP/1.1"))
    });
    until("the gateway says what is attached", 180, || {
        let object = cluster.get(&gateway);
        let status = &object["status"];
        let kinds: Vec<&str> =
            status["listeners"][0]["supportedKinds"].as_array()?.iter().filter_map(|it| it["kind"].as_str()).collect();
        let addresses = status["addresses"] == json!([{ "type": "IPAddress", "value": "192.0.2.7" }]);
        let attached = |at: usize| status["listeners"][at]["attachedRoutes"].as_u64();
        // `over-tls` names its listener, `lost` none that is there.
        let right =
            addresses && kinds == ["HTTPRoute", "GRPCRoute"] && attached(0) == Some(4) && attached(1) == Some(1);
        right.then_some(())
    });
    cluster.delete(&grant);
    scene.says(&far, OF_ROUTE, &[ACCEPTED, NOT_PERMITTED]);
    scene.answers(&scene.host("far"), "/", 500, "");
    scene.says(&gateway, "/status/listeners/1/conditions", &[NOT_PERMITTED]);

    cluster.delete(&served);
    scene.answers(&scene.host("served"), "/old", 404, "");
    scene.end();
}

#[test]
fn grpc_tls_and_tcp_routes_are_answered() {
    let Some((cluster, kubeconfig)) = cluster() else { return };
    let port = free_port();
    let more = vec![
        ("ARCO_GATEWAY__STREAM_LISTEN", "127.0.0.1".to_owned()),
        ("ARCO_GATEWAY__STREAM_PORTS", format!("{port}-{port}")),
    ];
    let Some(mut scene) = Scene::begin(&cluster, kubeconfig, "streams", more) else { return };
    let (name, other) = (scene.name.clone(), scene.other());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (calls, sealed) = (scene.host("calls"), scene.host("sealed"));
    let (chain, key) = certificate(&calls);
    let (own_chain, own_key) = certificate(&sealed);
    let (secure, raw) = (tls_upstream(&own_chain, &own_key), Upstream::start("raw"));
    scene.backend(&name, "cart", grpc_upstream(&runtime));
    scene.backend(&name, "sealed", secure.0);
    scene.backend(&name, "raw", raw.0);
    scene.backend(&other, "raw", raw.0);
    cluster.apply(&format!("/api/v1/namespaces/{name}/secrets/cert"), &secret("cert", &chain, &key));
    let gateway = scene.gateway(&json!([
        { "name": "calls", "port": 443, "protocol": "HTTPS", "hostname": calls, "tls": { "certificateRefs": [{ "name": "cert" }] } },
        { "name": "sealed", "port": 443, "protocol": "TLS", "hostname": sealed, "tls": { "mode": "Passthrough" } },
        { "name": "raw", "port": port, "protocol": "TCP" },
        { "name": "elsewhere", "port": 1, "protocol": "TCP" },
    ]));
    let to = |service: &str| json!([{ "backendRefs": [{ "name": service, "port": 80 }] }]);
    let parent = json!([{ "name": "gw" }]);

    // gRPC over TLS to a server that speaks HTTP/2 in the clear, trailers included.
    let mut rules = to("cart");
    rules[0]["matches"] = json!([{ "method": { "service": "shop.Cart", "method": "Get" } }]);
    let spec = json!({ "parentRefs": parent, "hostnames": [calls], "rules": rules });
    let route = scene.put(&name, ("GRPCRoute", "grpcroutes"), "cart", &spec);
    scene.says(&route, OF_ROUTE, &[ACCEPTED, RESOLVED]);
    let https = scene.platform.address("https").unwrap();
    let answer = until("a gRPC call is answered", 180, || {
        runtime.block_on(call(https, &calls, &chain, "/shop.Cart/Get")).ok().filter(|it| it.status == 200)
    });
    let wanted = Answer { status: 200, path: "/shop.Cart/Get".into(), body: MESSAGE.to_vec(), grpc_status: "0".into() };
    assert_eq!(answer, wanted);

    // TLS that the gateway does not open: the certificate is the server's own.
    let spec = json!({ "parentRefs": parent, "hostnames": [sealed], "rules": to("sealed") });
    let route = scene.put(&name, ("TLSRoute", "tlsroutes"), "sealed", &spec);
    scene.says(&route, OF_ROUTE, &[ACCEPTED, RESOLVED]);
    until("TLS is passed on", 180, || {
        get_over_tls(https, &sealed, &sealed, "/p", &own_chain).ok().filter(|it| it.ends_with("sealed GET /p HTTP/1.1"))
    });

    // A port, to one backend; a route to another namespace's changes nothing.
    let spec = json!({ "parentRefs": [{ "name": "gw", "sectionName": "raw" }], "rules": to("raw") });
    let tcp = ("TCPRoute", "tcproutes");
    let route = scene.put(&name, tcp, "raw", &spec);
    scene.says(&route, OF_ROUTE, &[ACCEPTED, RESOLVED]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let answers = || get(address, "any", "/t").ok().filter(|it| it.body == "raw GET /t HTTP/1.1");
    until("the port leads to its backend", 180, answers);
    let mut spec = spec;
    spec["rules"][0]["backendRefs"][0]["namespace"] = other.as_str().into();
    let refused = scene.put(&name, tcp, "refused", &spec);
    scene.says(&refused, OF_ROUTE, &[ACCEPTED, NOT_PERMITTED]);
    assert!(answers().is_some(), "the other route stays");

    scene.says(&gateway, "/status/conditions", &["Accepted True ListenersNotValid", PROGRAMMED]);
    for at in 0..3 {
        scene.says(&gateway, &format!("/status/listeners/{at}/conditions"), &[ACCEPTED, RESOLVED, PROGRAMMED]);
    }
    scene.says(&gateway, "/status/listeners/3/conditions", &["Accepted False PortUnavailable"]);
    until("the gateway says what is attached", 180, || {
        let object = cluster.get(&gateway);
        let status = &object["status"];
        let attached = |at: usize| status["listeners"][at]["attachedRoutes"].as_u64().unwrap_or_default();
        ([attached(0), attached(1), attached(2), attached(3)] == [1, 1, 2, 0]).then_some(())
    });
    cluster.delete(&route);
    until("the port is closed again", 180, || get(address, "any", "/t").is_err().then_some(()));
    scene.end();
}

/// A gRPC message of two bytes.
const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// A body of these frames.
struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.pop_front().map(Ok))
    }
}

/// Everything of a body, and its trailers.
async fn whole<B: Body<Data = Bytes>>(body: B) -> Result<(Vec<u8>, HeaderMap), B::Error> {
    let mut body = pin!(body);
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        match frame?.into_data() {
            Ok(part) => bytes.extend_from_slice(&part),
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok((bytes, trailers))
}

/// Gives back what it gets, as a gRPC server does; ends with the runtime.
fn grpc_upstream(runtime: &Runtime) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let service = hyper::service::service_fn(echo);
                let _ = http2.serve_connection(TokioIo::new(stream), service).await; // who asks may have gone
            });
        }
    });
    address
}

async fn echo(request: Request<Incoming>) -> Result<Response<Frames>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let (body, _) = whole(request.into_body()).await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
    let frames = Frames([Frame::data(Bytes::from(body)), Frame::trailers(trailers)].into());
    let response = Response::builder().header("content-type", "application/grpc").header("x-path", path);
    Ok(response.body(frames).unwrap())
}

/// What a call got.
#[derive(Debug, Eq, PartialEq)]
struct Answer {
    status: u16,
    /// What the server was asked for.
    path: String,
    body: Vec<u8>,
    grpc_status: String,
}

/// One gRPC call over TLS and HTTP/2.
async fn call(address: SocketAddr, host: &str, root: &str, path: &str) -> Result<Answer, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let asked = async {
        let stream = tokio::net::TcpStream::connect(address).await.map_err(|it| it.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = connector.connect(name, stream).await.map_err(|it| it.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(|it| it.to_string())?;
        tokio::spawn(connection);
        let request = Request::post(format!("https://{host}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Frames([Frame::data(Bytes::from_static(MESSAGE))].into()))
            .unwrap();
        let response = sender.send_request(request).await.map_err(|it| it.to_string())?;
        let text =
            |of: &HeaderMap, name: &str| of.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
        let (status, path) = (response.status().as_u16(), text(response.headers(), "x-path"));
        let (body, trailers) = whole(response.into_body()).await.map_err(|it| it.to_string())?;
        Ok::<_, String>(Answer { status, path, body, grpc_status: text(&trailers, "grpc-status") })
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), asked).await;
    answer.unwrap_or_else(|_| Err("no answer".to_owned()))
}

/// Answers over TLS with a certificate of its own.
fn tls_upstream(chain: &str, key: &str) -> Upstream {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    Upstream::serving(move |stream| {
        let connection = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        answer("sealed", &mut stream);
        stream.conn.send_close_notify();
        let _ = stream.flush();
    })
}
