//! Endpoints that speak TLS themselves: whose certificate counts, what they are asked by, and why one is not asked.

use crate::kit::*;
use crate::log;
use crate::rolling::{Plane, acknowledged, put};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::route::{Route, UpstreamTarget};
use arco_model::traffic::*;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// An endpoint for `inner.test`, certified by `authority`, that answers with how and by what name it was asked; and what
/// it was asked for.
async fn secure(authority: &CertifiedIssuer<'static, KeyPair>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let key = KeyPair::generate().unwrap();
    let shown = CertificateParams::new(vec!["inner.test".to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
            tokio::spawn(async move {
                // Who does not trust this endpoint leaves in the middle.
                let Ok(tls) = acceptor.accept(stream).await else { return };
                let name = tls.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let told = format!("{:?} for {name}", request.version());
                    kept.lock().unwrap().push(format!("{told} {}", request.uri().path()));
                    async move { Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(told)))) }
                });
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    (address, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_of_the_file_prove_who_they_are() {
    log::keep();
    let (ours, others) = (authority("ours"), authority("others"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ours.pem"), ours.pem()).unwrap();
    std::fs::write(folder.path().join("others.pem"), others.pem()).unwrap();
    // A handshake with an endpoint is a part of the connect.
    let mut yaml = "listeners: [{name: web, address: \"127.0.0.1:0\", protocol: http}]\n\
         timeouts: {connect_ms: 600000, response_ms: 600000}\nupstreams:\n"
        .to_owned();
    let mut addresses = Vec::new();
    for (upstream, part) in [
        ("fine", "tls: {name: inner.test, ca_file: ours.pem}"),
        ("grpc", "protocol: http2, tls: {name: inner.test, ca_file: ours.pem}"),
        ("stranger", "tls: {name: inner.test, ca_file: others.pem}"),
        ("misnamed", "tls: {name: outer.test, ca_file: ours.pem}"),
    ] {
        let (address, seen) = secure(&ours).await;
        yaml += &format!("  - {{name: {upstream}, endpoints: [\"{address}\"], {part}}}\n");
        addresses.push((address, seen));
    }
    yaml += "routes:\n";
    for upstream in ["fine", "grpc", "stranger", "misnamed"] {
        yaml += &format!("  - {{hosts: [{upstream}.test], targets: [{{upstream: {upstream}}}]}}\n");
    }
    let gateway = Gateway::start_in(folder, &yaml).await;
    for (host, said) in [("fine.test", "HTTP/1.1 for inner.test"), ("grpc.test", "HTTP/2.0 for inner.test")] {
        let answer = get(gateway.web(), host, "/").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, said), "{host}");
    }
    for (host, at, why) in [("stranger.test", 2, "UnknownIssuer"), ("misnamed.test", 3, "not valid for name")] {
        let (address, seen) = &addresses[at];
        assert_eq!(get(gateway.web(), host, "/").await.status(), 502, "{host}");
        let lines = log::with(&address.to_string());
        assert!(lines.iter().any(|it| it.contains(why)), "{host}: {lines:?}");
        assert!(seen.lock().unwrap().is_empty(), "{host}: nothing was sent to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_components_are_asked_over_tls() {
    log::keep();
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let plane = Plane::start(&store, &folder.path().join("routes.journal"));
    let (ours, others) = (authority("ours"), authority("others"));
    let (address, seen) = secure(&ours).await;
    let component = ComponentId::from_parts(3, 41);
    let instance = InstanceId::from_parts(4, 41);
    let entry = UpstreamEntry {
        component: component.clone(),
        reference: "demo/secure".to_owned(),
        state: UpstreamState::Up,
        endpoints: vec![Endpoint {
            instance,
            address: Ipv4Addr::LOCALHOST,
            port: Some(address.port()),
            draining: false,
        }],
        http2_ports: vec![50051],
        tls_ports: vec![8443, 50051],
    };
    put(&store, format!("{UPSTREAMS}{component}"), &entry).await;
    let asks = |ca: &str| serde_json::json!({"upstream_tls": {"name": "inner.test", "ca": ca}});
    let cut = "-----BEGIN CERTIFICATE-----";
    let check = serde_json::json!({"health_check": {"path": "/healthz", "interval_ms": 50}});
    let cases = [
        ("any.test", 8443, serde_json::json!({}), "HTTP/1.1 for nobody"),
        ("grpc.test", 50051, serde_json::json!({}), "HTTP/2.0 for nobody"),
        // The port speaks HTTP in the clear by itself: the route says otherwise.
        ("right.test", 8080, asks(&ours.pem()), "HTTP/1.1 for inner.test"),
        ("right-grpc.test", 50051, asks(&ours.pem()), "HTTP/2.0 for inner.test"),
        ("checked.test", 8443, check, "HTTP/1.1 for nobody"),
        ("wrong.test", 8443, asks(&others.pem()), ""),
        ("cut.test", 8443, asks(cut), ""),
    ];
    let mut revision = 0;
    for (host, port, more, _) in &cases {
        let to = UpstreamTarget { component: component.clone(), port: *port };
        let mut rule = serde_json::json!({"targets": [{"to": to}]});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rules: Vec<Route<UpstreamTarget>> = vec![serde_json::from_value(rule).unwrap()];
        let entry = HostEntry { host: (*host).to_owned(), rules, ..HostEntry::default() };
        revision = put(&store, format!("{HOSTS}{host}"), &entry).await;
    }
    acknowledged(&store, revision).await;
    for (host, _, _, said) in &cases {
        let answer = get(plane.http, host, "/").await;
        if said.is_empty() {
            assert_eq!(answer.status(), 502, "{host}: {}", answer.text());
        } else {
            assert_eq!((answer.status(), answer.text().as_str()), (200, *said), "{host}");
        }
    }
    let lines = log::with(&address.to_string());
    for why in ["UnknownIssuer", "`upstream_tls` of `inner.test`"] {
        assert!(lines.iter().any(|it| it.contains(why)), "{why}: {lines:?}");
    }
    eventually("the check over TLS", || async {
        seen.lock().unwrap().iter().any(|it| it == "HTTP/1.1 for nobody /healthz")
    })
    .await;
}
