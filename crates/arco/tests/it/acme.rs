//! Automatic certificates against a real ACME server: Pebble, made from its Go module at first need.

use crate::behave::{EXECUTABLE, good, says};
use crate::routes::{ask_over_tls, get_over_tls, who};
use arco_testkit::servers::free_port;
use arco_testkit::{Killed, Options, Platform, until};
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where programs for tests are kept between runs.
const TOOLS: &str = "/var/cache/arco/test-tools";
const MODULE: &str = "github.com/letsencrypt/pebble/v2/cmd/";
const VERSION: &str = "v2.10.1";

/// The program, made if it is not there; `None` when it cannot be had here.
fn tool(name: &str) -> Option<PathBuf> {
    let path = Path::new(TOOLS).join(name);
    if path.exists() {
        return Some(path);
    }
    std::fs::create_dir_all(TOOLS).ok()?;
    let made = Command::new("go").args(["install", &format!("{MODULE}{name}@{VERSION}")]).env("GOBIN", TOOLS).status();
    made.is_ok_and(|it| it.success()).then_some(path)
}

fn run(command: &mut Command, log: &Path) -> Killed {
    let log = std::fs::File::create(log).unwrap();
    Killed(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn post(path: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: arco-test\r\nConnection: close\r\n");
    format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Set when this goes.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An authority that is not started yet, because it has to know a gateway, which has to know its address.
pub(crate) struct Prepared {
    challenge: String,
    folder: tempfile::TempDir,
    authority_pem: String,
    pebble: PathBuf,
    names: PathBuf,
    ports: [u16; 4],
}

impl Prepared {
    pub(crate) fn make(challenge: &str) -> Option<Self> {
        if !arco_testkit::is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let (Some(pebble), Some(names)) = (tool("pebble"), tool("pebble-challtestsrv")) else {
            eprintln!("SKIPPED: automatic certificates: there is no Go to make the ACME server Pebble with");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        std::fs::write(at("ca.pem"), authority.pem()).unwrap();
        std::fs::write(at("cert.pem"), leaf.pem()).unwrap();
        std::fs::write(at("key.pem"), key.serialize_pem()).unwrap();
        let ports = std::array::from_fn(|_| free_port());
        Some(Self { challenge: challenge.to_owned(), authority_pem: authority.pem(), folder, pebble, names, ports })
    }

    /// Settings of a server whose certificates it issues.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ARCO_ACME__DIRECTORY_URL", format!("https://127.0.0.1:{}/dir", self.ports[0])),
            ("ARCO_ACME__CA_FILE", self.folder.path().join("ca.pem").display().to_string()),
            ("ARCO_ACME__AGREE_TO_TERMS", "true".to_owned()),
            ("ARCO_ACME__CONTACT", "ops@example.com".to_owned()),
            ("ARCO_ACME__CHALLENGE", self.challenge.clone()),
            ("ARCO_ACME__RENEWAL_CHECK_MS", "1000".to_owned()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
        ]
    }

    /// Starts it; it asks the gateway of `platform` for proofs.
    pub(crate) fn start(self, platform: &Platform) -> Authority {
        let Self { folder, authority_pem, ports: [port, control, dns, names_control], .. } = self;
        let at = |name: &str| folder.path().join(name);
        let settings = serde_json::json!({"pebble": {
            "listenAddress": local(port),
            "managementListenAddress": local(control),
            "certificate": at("cert.pem"),
            "privateKey": at("key.pem"),
            "httpPort": platform.address("http").unwrap().port(),
            "tlsPort": platform.address("https").unwrap().port(),
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "usual", "validityPeriod": 7_776_000}},
        }});
        std::fs::write(at("pebble.json"), settings.to_string()).unwrap();
        let names = run(
            Command::new(self.names)
                .args(["-defaultIPv6", "", "-defaultIPv4", "127.0.0.1", "-dnsserver", &local(dns).to_string()])
                .args(["-management", &local(names_control).to_string()])
                .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""]),
            &at("names.log"),
        );
        let pebble = run(
            Command::new(self.pebble)
                .arg("-config")
                .arg(at("pebble.json"))
                .args(["-dnsserver", &local(dns).to_string()])
                .env("PEBBLE_VA_NOSLEEP", "1")
                .env("PEBBLE_AUTHZREUSE", "0"),
            &at("pebble.log"),
        );
        for port in [port, control, names_control] {
            until("the ACME server listens", 60, || TcpStream::connect(local(port)).ok());
        }
        let answer = get_over_tls(local(control), "127.0.0.1", "127.0.0.1", "/roots/0", &authority_pem).unwrap();
        let root = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        let (control, names_at) = (local(control), local(names_control));
        Authority { control, names: names_at, authority_pem, root, _programs: [names, pebble], folder }
    }
}

/// An authority of its own, and where names lead where the test says.
pub(crate) struct Authority {
    control: SocketAddr,
    names: SocketAddr,
    /// Who signed the authority's own listeners.
    authority_pem: String,
    /// Who signs what it issues.
    root: String,
    _programs: [Killed; 2],
    folder: tempfile::TempDir,
}

impl Authority {
    /// What a gateway answers over TLS with a certificate of this authority, and that certificate (DER).
    pub(crate) fn get(&self, platform: &Platform, host: &str) -> Result<(String, Vec<u8>), String> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        ask_over_tls(platform.address("https").unwrap(), host, &request, &self.root)
    }

    /// Lets a name lead to an address.
    pub(crate) fn point(&self, name: &str, address: &str) {
        for (path, body) in [
            ("/clear-a", serde_json::json!({"host": name})),
            ("/add-a", serde_json::json!({"host": name, "addresses": [address]})),
        ] {
            let mut stream = TcpStream::connect(self.names).unwrap();
            stream.write_all(post(path, &body).as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains(" 200 "), "{answer}");
        }
    }

    /// Lets the authority say that a certificate (DER) is to be renewed at once.
    fn urge(&self, certificate: &[u8]) {
        let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        let window = r#"{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}}"#;
        let body = serde_json::json!({"Certificate": pem, "ARIResponse": window});
        let request = post("/set-renewal-info/", &body);
        let answer = ask_over_tls(self.control, "127.0.0.1", &request, &self.authority_pem).unwrap().0;
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// How many accounts or orders were made at it, as its log says.
    pub(crate) fn count(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("pebble.log")).unwrap();
        let what = format!(" {what} in ");
        let number = |it: &str| it.split_once("There are now ")?.1.split_once(&what)?.0.parse::<usize>().ok();
        log.lines().filter_map(number).max().unwrap_or(0)
    }
}

/// A platform whose certificates an authority of its own issues.
struct World {
    platform: Platform,
    authority: Authority,
}

impl World {
    fn start(challenge: &str) -> Option<Self> {
        let prepared = Prepared::make(challenge)?;
        let platform = Platform::start_with(EXECUTABLE, Options { env: prepared.env(), ..Options::default() });
        let authority = prepared.start(&platform);
        Some(Self { platform, authority })
    }

    fn get(&self, host: &str) -> Result<(String, Vec<u8>), String> {
        self.authority.get(&self.platform, host)
    }

    fn listed(&self, name: &str) -> serde_json::Value {
        let listed = good(&self.platform, &["certificate", "list"]);
        listed["items"].as_array().unwrap().iter().find(|it| it["name"] == name).cloned().unwrap_or_default()
    }
}

#[test]
fn certificates_are_issued_renewed_and_explained() {
    let Some(mut world) = World::start("http-01") else { return };
    let source = who(&world.platform);
    good(&world.platform, &["deploy", source.to_str().unwrap(), "--app", "shop", "--component", "web"]);
    for host in ["*.auto.test", "localhost"] {
        let refused = world.platform.arco(&["route", "add", "shop/web", host, "--tls", "auto", "-o", "json"]);
        assert!(refused.status == 2 && refused.stdout.contains("acme_host"), "{refused:?}");
    }
    good(&world.platform, &["route", "add", "shop/web", "one.auto.test", "--tls", "auto", "--redirect-https"]);
    let (answer, first) = until("the certificate", 60, || world.get("one.auto.test").ok());
    assert!(answer.contains(" 200 ") && answer.contains("web GET /"), "{answer}");
    assert_eq!(world.platform.get("one.auto.test", "/").unwrap().status, 308);
    let shown = world.listed("auto:one.auto.test");
    assert!(shown["issuer"].as_str().unwrap().contains("Pebble"), "{shown}");
    assert!(shown["days_left"].as_i64().unwrap() > 80 && shown["problem"] == "", "{shown}");
    assert!(!shown["renews_at"].as_str().unwrap().is_empty(), "{shown}");

    // The authority wants it renewed; whoever comes meanwhile notices nothing.
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    let second = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match world.get("one.auto.test") {
                        Ok((answer, _)) if answer.contains(" 200 ") => asked.store(true, Ordering::Relaxed),
                        other => failed.lock().unwrap().push(format!("{other:?}")),
                    }
                }
            });
        }
        // Also when something panics: the scope waits for its threads.
        let _stop = Raised(&stop);
        until("a request", 60, || asked.load(Ordering::Relaxed).then_some(()));
        world.authority.urge(&first);
        until("the renewed certificate", 90, || {
            world.get("one.auto.test").ok().map(|it| it.1).filter(|it| *it != first)
        })
    });
    assert!(failed.lock().unwrap().is_empty(), "{:?}", failed.lock().unwrap());
    assert_ne!(first, second);

    // A name that leads elsewhere: told why, and what to do; mended and asked for again, it is issued.
    world.authority.point("two.auto.test", "127.0.0.2");
    good(&world.platform, &["route", "add", "shop/web", "two.auto.test", "--tls", "auto"]);
    let shown = until("the reason", 60, || {
        Some(world.listed("auto:two.auto.test")).filter(|it| !it["advice"].as_str().unwrap_or_default().is_empty())
    });
    says(&shown["problem"], &["could not prove"]);
    says(&shown["advice"], &["two.auto.test", "port 80", "certificate renew"]);
    let status = world.platform.status("shop/web");
    says(&status["warnings"][0], &["two.auto.test", "was not issued", "must lead to this gateway"]);
    assert_eq!(status["status"], "running");
    world.authority.point("two.auto.test", "127.0.0.1");
    good(&world.platform, &["certificate", "renew", "auto:two.auto.test"]);
    until("the second certificate", 60, || world.get("two.auto.test").ok());
    let status = until("no more warnings", 60, || {
        Some(world.platform.status("shop/web")).filter(|it| it["warnings"].as_array().is_none_or(Vec::is_empty))
    });
    assert_eq!(status["status"], "running");

    let deleted = world.platform.arco(&["certificate", "delete", "auto:one.auto.test", "--yes", "-o", "json"]);
    assert!(deleted.status == 6 && deleted.stdout.contains("certificate_in_use"), "{deleted:?}");
    good(&world.platform, &["delete", "shop", "--yes"]);
    good(&world.platform, &["certificate", "delete", "auto:one.auto.test", "--yes"]);
    assert!(world.platform.stop(), "the server stops by itself");
}

#[test]
fn a_certificate_is_issued_by_a_tls_connection() {
    let Some(mut world) = World::start("tls-alpn-01") else { return };
    let source = who(&world.platform);
    good(&world.platform, &["deploy", source.to_str().unwrap(), "--app", "shop", "--component", "web"]);
    good(&world.platform, &["route", "add", "shop/web", "one.alpn.test", "--tls", "auto"]);
    let (answer, _) = until("the certificate", 60, || world.get("one.alpn.test").ok());
    assert!(answer.contains(" 200 "), "{answer}");
    good(&world.platform, &["delete", "shop", "--yes"]);
    assert!(world.platform.stop(), "the server stops by itself");
}
