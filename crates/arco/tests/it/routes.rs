//! Routes and certificates of a whole platform: grey release, redirects, certificates by SNI, why a request goes where
//! it goes.

use crate::behave::{EXECUTABLE, good};
use arco_testkit::{Options, Platform, until};
use rcgen::{CertificateParams, KeyPair};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

const DOCKERFILE: &str = "FROM debian:12\nCOPY who.pl /who.pl\nEXPOSE 8080\nCMD [\"perl\", \"/who.pl\"]\n";
/// Answers with the name of its component and the first line of the request.
const PROGRAM: &str = r#"use strict; use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $ENV{PORT} // 8080, Listen => 128, ReuseAddr => 1) or die "listen: $!";
for (;;) {
  my $client = $server->accept or next;
  sysread($client, my $request, 8192);
  my ($line) = $request =~ /^([^\r\n]*)/;
  my $body = "$ENV{ARCO_COMPONENT} $line";
  print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
  close $client;
}
"#;

/// The body that `host` answers with once it answers well.
fn body(platform: &Platform, host: &str, path: &str) -> String {
    until(&format!("an answer of {host}{path}"), 60, || {
        platform.get(host, path).ok().filter(|it| it.status == 200).map(|it| it.body)
    })
}

/// Chain and key of a self-signed certificate, as files of the platform's folder.
pub(crate) fn certificate(platform: &Platform, name: &str, hosts: &[&str]) -> (PathBuf, PathBuf, String) {
    let key = KeyPair::generate().unwrap();
    let hosts: Vec<String> = hosts.iter().map(|it| (*it).to_owned()).collect();
    let made = CertificateParams::new(hosts).unwrap().self_signed(&key).unwrap().pem();
    let folder = platform.folder(name, &[("cert.pem", &made), ("key.pem", &key.serialize_pem())]);
    (folder.join("cert.pem"), folder.join("key.pem"), made)
}

/// The answer to a GET over TLS; the certificate must be signed by `root`.
pub(crate) fn get_over_tls(
    address: SocketAddr,
    sni: &str,
    host: &str,
    path: &str,
    root: &str,
) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    ask_over_tls(address, sni, &request, root).map(|it| it.0)
}

/// The answer to a request over TLS, and the certificate (DER) of who gave it; it must be signed by `root`.
pub(crate) fn ask_over_tls(
    address: SocketAddr,
    sni: &str,
    request: &str,
    root: &str,
) -> Result<(String, Vec<u8>), String> {
    let config = trusting(root);
    let name = sni.to_owned().try_into().unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).map_err(|it| it.to_string())?;
    let socket = TcpStream::connect(address).map_err(|it| it.to_string())?;
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(request.as_bytes()).map_err(|it| it.to_string())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error.to_string()),
        _ => {}
    }
    let leaf = stream.conn.peer_certificates().and_then(|it| it.first()).map(|it| it.to_vec()).unwrap_or_default();
    Ok((String::from_utf8_lossy(&answer).into_owned(), leaf))
}

/// A client of TLS that believes what `root` (PEM) signed.
pub(crate) fn trusting(root: &str) -> rustls::ClientConfig {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn secure(platform: &Platform, sni: &str, host: &str, root: &str) -> Result<String, String> {
    get_over_tls(platform.address("https").unwrap(), sni, host, "/", root)
}

/// The folder with the program.
pub(crate) fn who(platform: &Platform) -> PathBuf {
    platform.folder("who", &[("Dockerfile", DOCKERFILE), ("who.pl", PROGRAM)])
}

#[test]
fn routes_and_certificates_end_to_end() {
    if !arco_testkit::is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    // Something in front leads from ports 80 and 8443 to those of the gateway: people are told these.
    let public = |name, port: &str| (name, port.to_owned());
    let env = vec![public("ARCO_GATEWAY__PUBLIC_HTTP_PORT", "80"), public("ARCO_GATEWAY__PUBLIC_HTTPS_PORT", "8443")];
    let mut platform = Platform::start_with(EXECUTABLE, Options { data_dir: None, env });
    let source = who(&platform);
    let source = source.to_str().unwrap();
    for component in ["web", "canary"] {
        let deployed = good(&platform, &["deploy", source, "--app", "shop", "--component", component]);
        let url = format!("http://{component}-shop.test.localhost");
        let hosts = [url.as_str(), &format!("http://{component}.shop.test.localhost")];
        let urls = deployed["urls"].as_array().unwrap();
        assert!(!urls.is_empty() && urls.iter().all(|it| hosts.contains(&it.as_str().unwrap())), "{deployed}");
    }

    // Grey release: exact shares, and the whole way is explained.
    good(&platform, &["route", "add", "shop/web", "w.test", "--weight", "90", "--target", "shop/canary=10"]);
    // The command waited for the gateway.
    assert_eq!(platform.get("w.test", "/").unwrap().status, 200);
    let answers: Vec<String> = (0..100).map(|_| platform.get("w.test", "/").unwrap().body).collect();
    assert_eq!(answers.iter().filter(|it| it.starts_with("canary ")).count(), 10, "{answers:?}");
    let told = until("the gateway tells the way", 60, || {
        platform.json(&["gateway", "explain", "http://w.test/x", "--header", "a=b"])["steps"].as_array().cloned()
    });
    let steps = told.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>().join("\n");
    for part in ["`shop/web:8080` gets 90.0 %", "`shop/canary:8080` gets 10.0 %", "endpoint: "] {
        assert!(steps.contains(part), "{part}: {steps}");
    }
    // What came in the last seconds; on a slow machine they may be over.
    until("rates of the route", 60, || {
        body(&platform, "w.test", "/");
        let listed = good(&platform, &["route", "list"]);
        let shown = listed["items"].as_array()?.iter().find(|it| it["host"] == "w.test")?["rates"].clone();
        (shown["requests_per_s"].as_f64()? > 0.0 && shown["p99_ms"].as_f64()? > 0.0).then_some(())
    });

    // Conditions, rewrites and answers.
    good(&platform, &["route", "add", "shop/canary", "w.test", "--path", "/api", "--rewrite-prefix", "/"]);
    assert_eq!(
        until("the rewrite", 60, || {
            platform.get("w.test", "/api/x").ok().map(|it| it.body).filter(|it| it.starts_with("canary "))
        }),
        "canary GET /x HTTP/1.1"
    );
    let routes = good(&platform, &["route", "list", "shop/web"]);
    let id = routes["items"].as_array().unwrap().iter().find(|it| it["host"] == "w.test").unwrap()["id"].clone();
    good(&platform, &["route", "set", "shop/web", "w.test", "--maintenance", "Back at noon."]);
    assert_eq!(platform.get("w.test", "/").unwrap().status, 503);
    assert!(platform.get("w.test", "/").unwrap().body.contains("Back at noon."));
    let again = good(&platform, &["route", "set", "shop/web", "w.test", "--unset", "maintenance"]);
    assert_eq!(again["id"], id);
    body(&platform, "w.test", "/");

    // A certificate: refused when it cannot serve, then by SNI, then renewed for all of its hosts.
    let (cert, key, root) = certificate(&platform, "one", &["*.tls.test"]);
    let (_, other_key, _) = certificate(&platform, "other", &["x.test"]);
    let at = |it: &PathBuf| format!("@{}", it.display());
    let add = |cert: &PathBuf, key: &PathBuf| {
        platform.arco(&["certificate", "add", "one", "--cert", &at(cert), "--key", &at(key), "-o", "json"])
    };
    let refused = add(&cert, &other_key);
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.stdout.contains("key_mismatch"), "{refused:?}");
    assert_eq!(add(&cert, &key).status, 0);
    let unserved = platform.arco(&["route", "add", "shop/web", "plain.test", "--redirect-https", "-o", "json"]);
    assert!(unserved.status == 2 && unserved.stdout.contains("certificate_missing"), "{unserved:?}");
    for host in ["a.tls.test", "b.tls.test"] {
        good(&platform, &["route", "add", "shop/web", host, "--redirect-https", "--hsts", "60"]);
    }
    let answer = until("an answer over TLS", 60, || secure(&platform, "b.tls.test", "b.tls.test", &root).ok());
    assert!(answer.contains(" 200 ") && answer.contains("web GET /"), "{answer}");
    assert!(answer.to_lowercase().contains("strict-transport-security: max-age=60"), "{answer}");
    assert!(secure(&platform, "a.tls.test", "w.test", &root).unwrap().contains(" 421 "));
    assert!(secure(&platform, "c.tls.test", "c.tls.test", &root).is_err(), "no route names it");
    let moved = platform.get("a.tls.test", "/x").unwrap();
    assert_eq!(moved.status, 308);
    assert!(moved.head.to_lowercase().contains("location: https://a.tls.test:8443/x\r"), "{moved:?}");
    let routes = good(&platform, &["route", "list", "shop/web"])["items"].to_string();
    assert!(routes.contains("\"https://a.tls.test:8443\"") && routes.contains("\"http://w.test\""), "{routes}");
    let list = good(&platform, &["certificate", "list"]);
    assert_eq!(list["items"][0]["used_by"], serde_json::json!(["a.tls.test", "b.tls.test"]));
    let (cert, key, renewed) = certificate(&platform, "two", &["*.tls.test"]);
    assert_eq!(add(&cert, &key).status, 0);
    for host in ["a.tls.test", "b.tls.test"] {
        until("the renewed certificate", 60, || secure(&platform, host, host, &renewed).ok());
    }
    good(&platform, &["certificate", "delete", "one", "--yes"]);
    until("the alert", 60, || secure(&platform, "a.tls.test", "a.tls.test", &renewed).err());

    // A target that is gone gets nothing; its own routes go with it.
    good(&platform, &["delete", "shop/canary", "--yes"]);
    until("only one target", 60, || {
        let all = (0..20).all(|_| platform.get("w.test", "/").is_ok_and(|it| it.body.starts_with("web ")));
        all.then_some(())
    });
    assert_eq!(body(&platform, "w.test", "/api/x"), "web GET /api/x HTTP/1.1");
    good(&platform, &["delete", "shop", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
}
