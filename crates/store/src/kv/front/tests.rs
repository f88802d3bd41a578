//! The front with our own driver (the contract, lost connections, grants) and with `etcdctl`.

use super::{Front, Grant};
use crate::kv::contract::{Fixture, PATIENCE, next, suite};
use crate::kv::{Compare, EtcdKv, EtcdTls, Event, KvError, MemoryKv, Operation, Range, SharedKv, Txn};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// An authority of a test.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn certificate(&self, common_name: &str) -> EtcdTls {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        EtcdTls { ca_pem: self.pem.clone(), cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

/// A front that serves until it is dropped or stopped.
struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

async fn serve(kv: SharedKv, authority: &Authority, address: SocketAddr) -> Served {
    let grants = vec![Grant::all("admin"), Grant::new("gateway", &["/gateway/"], &["/gateway-status/"])];
    let front = Front::bind(address, kv, &authority.certificate("server"), grants).await.unwrap();
    let (address, stop) = (front.address(), CancellationToken::new());
    let task = tokio::spawn({
        let stop = stop.clone();
        async move { front.serve(stop).await.unwrap() }
    });
    Served { address, stop, task: AbortOnDropHandle::new(task) }
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn driver(served: &Served, tls: &EtcdTls) -> SharedKv {
    Arc::new(EtcdKv::connect(&[format!("https://{}", served.address)], Some(tls)).await.unwrap())
}

async fn make() -> Option<Fixture> {
    let authority = Authority::new();
    let served = serve(Arc::new(MemoryKv::new()), &authority, anywhere()).await;
    let kv = driver(&served, &authority.certificate("admin")).await;
    Some(Fixture { kv, _keep: Box::new(served) })
}

suite!(make);

/// The same suite on a real etcd.
mod real {
    use super::*;
    use crate::kv::real_etcd;

    async fn make() -> Option<Fixture> {
        let (kv, turn) = real_etcd().await?;
        Some(Fixture { kv, _keep: Box::new(turn) })
    }

    suite!(make);
}

/// A real etcd dies and comes back with what it had: calls fail meanwhile and say so, and nothing is lost or told twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_killed_and_started_again_loses_nothing() {
    let Some(mut etcd) = arco_testkit::servers::RestartableEtcd::start() else { return };
    let kv: SharedKv = Arc::new(EtcdKv::connect(std::slice::from_ref(&etcd.url), None).await.unwrap());
    let mut watch = kv.watch(Range::Prefix(b"/w/".to_vec()), None).await.unwrap();
    let lease = kv.lease_grant(3600).await.unwrap();
    kv.put("/w/leased", b"l".to_vec(), Some(lease)).await.unwrap();
    kv.put("/w/kept", b"1".to_vec(), None).await.unwrap();
    let before = kv.get("/w/kept").await.unwrap().unwrap().mod_revision;
    let key = |it: &Event| match it {
        Event::Put(it) => (String::from_utf8(it.key.clone()).unwrap(), it.value.clone()),
        Event::Delete { .. } => panic!("nothing was deleted"),
    };
    let mut told = Vec::new();
    for _ in 0..2 {
        told.extend(next(&mut watch).await.unwrap().events.iter().map(key));
    }

    for round in 0..2 {
        etcd.kill();
        let error = kv.put("/w/refused", vec![], None).await.unwrap_err();
        assert!(matches!(error, KvError::Unavailable { .. }), "{error}");
        assert!(kv.get("/w/kept").await.is_err());
        etcd.boot();
        // A call that came before it was wholly there fails, too: whoever asks decides to ask again.
        let deadline = std::time::Instant::now() + PATIENCE;
        while let Err(error) = kv.get("/w/kept").await {
            assert!(std::time::Instant::now() < deadline, "round {round}: {error}");
        }
        kv.put(&format!("/w/after{round}"), vec![round], None).await.unwrap();
        let came = next(&mut watch).await.unwrap();
        told.extend(came.events.iter().map(key));
    }
    let wanted =
        [("/w/leased", b"l".to_vec()), ("/w/kept", b"1".to_vec()), ("/w/after0", vec![0]), ("/w/after1", vec![1])];
    assert_eq!(told, wanted.map(|(key, value)| (key.to_owned(), value)));

    let kept = kv.get("/w/kept").await.unwrap().unwrap();
    assert_eq!((kept.mod_revision, kept.value.as_slice()), (before, &b"1"[..]));
    let write = |at| Txn {
        compare: vec![Compare::ModRevision(b"/w/kept".to_vec(), at)],
        success: vec![Operation::Put { key: b"/w/kept".to_vec(), value: b"2".to_vec(), lease: None }],
        failure: Vec::new(),
    };
    assert!(!kv.txn(write(before - 1)).await.unwrap().succeeded);
    assert!(kv.txn(write(before)).await.unwrap().succeeded, "revisions are those from before");
    assert!(kv.lease_keep_alive(lease).await.unwrap() > 60, "the lease lives on");
    kv.lease_revoke(lease).await.unwrap();
    assert!(kv.get("/w/leased").await.unwrap().is_none());
}

/// The driver beside a loop that calls the same etcd by its generated client and does nothing else: medians of reads and of
/// writes, a few of each in turn. It prints both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; run it with --ignored --nocapture"]
async fn latency_of_the_etcd_driver_beside_bare_calls() {
    use arco_etcd_proto::etcdserverpb::kv_client::KvClient;
    use arco_etcd_proto::etcdserverpb::{PutRequest, RangeRequest};
    use std::time::Instant;
    let Some(etcd) = arco_testkit::servers::RestartableEtcd::start() else { return };
    let kv: SharedKv = Arc::new(EtcdKv::connect(std::slice::from_ref(&etcd.url), None).await.unwrap());
    let mut bare = KvClient::connect(etcd.url.clone()).await.unwrap();
    let mut took: [Vec<u128>; 4] = std::array::from_fn(|_| Vec::new());
    for round in 0..2000_u32 {
        // In turn, because whoever comes after the other one finds etcd and its disk awake.
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        let value = round.to_string().into_bytes();
        for driver in order {
            let value = value.clone();
            if driver {
                let began = Instant::now();
                kv.put("/driver", value, None).await.unwrap();
                took[0].push(began.elapsed().as_micros());
            } else {
                let request = PutRequest { key: b"/bare".to_vec(), value, ..PutRequest::default() };
                let began = Instant::now();
                bare.put(request).await.unwrap();
                took[1].push(began.elapsed().as_micros());
            }
        }
        for driver in order {
            if driver {
                let began = Instant::now();
                kv.get("/driver").await.unwrap().unwrap();
                took[2].push(began.elapsed().as_micros());
            } else {
                let request = RangeRequest { key: b"/bare".to_vec(), limit: 1, ..RangeRequest::default() };
                let began = Instant::now();
                assert_eq!(bare.range(request).await.unwrap().into_inner().kvs.len(), 1);
                took[3].push(began.elapsed().as_micros());
            }
        }
    }
    let [put, bare_put, get, bare_get] = took.map(|mut it| {
        it.sort_unstable();
        it[it.len() / 2]
    });
    eprintln!("etcd driver, medians of 2000 in us: put {put} bare {bare_put} get {get} bare {bare_get}");
}

/// Every member of a real etcd dies once, so the leader does, too: what two members agree on goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_whose_members_are_killed_one_after_another_goes_on() {
    let Some(mut members) = arco_testkit::servers::RestartableEtcd::members(3) else { return };
    let urls: Vec<String> = members.iter().map(|it| it.url.clone()).collect();
    let kv: SharedKv = Arc::new(EtcdKv::connect(&urls, None).await.unwrap());
    let deadline = std::time::Instant::now() + 2 * PATIENCE;
    // Asked again while members agree on a leader. Made once even if an answer was lost.
    let make = async |key: String| {
        let once = Txn {
            compare: vec![Compare::ModRevision(key.clone().into_bytes(), 0)],
            success: vec![Operation::Put { key: key.into_bytes(), value: b"v".to_vec(), lease: None }],
            failure: Vec::new(),
        };
        while let Err(error) = kv.txn(once.clone()).await {
            assert!(std::time::Instant::now() < deadline, "{error}");
        }
    };
    make("/w/first".to_owned()).await;
    let lease = loop {
        match kv.lease_grant(3600).await {
            Ok(lease) => break lease,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    };
    let mut watch = loop {
        match kv.watch(Range::Prefix(b"/w/".to_vec()), None).await {
            Ok(watch) => break watch,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    };
    let mut told = Vec::new();
    for (at, member) in members.iter_mut().enumerate() {
        member.kill();
        for number in 0..5 {
            make(format!("/w/{at}-{number}")).await;
        }
        while told.len() < 5 * (at + 1) {
            for it in next(&mut watch).await.unwrap().events {
                match it {
                    Event::Put(it) => told.push(String::from_utf8(it.key).unwrap()),
                    Event::Delete { .. } => panic!("nothing was deleted"),
                }
            }
        }
        member.boot();
        // The next one dies only when this one has caught up with what was written without it.
        let own: SharedKv = Arc::new(EtcdKv::connect(std::slice::from_ref(&member.url), None).await.unwrap());
        while !matches!(own.get(&format!("/w/{at}-4")).await, Ok(Some(_))) {
            assert!(std::time::Instant::now() < deadline, "member {at} does not come back");
        }
    }
    let wanted: Vec<String> = (0..3).flat_map(|at| (0..5).map(move |number| format!("/w/{at}-{number}"))).collect();
    assert_eq!(told, wanted, "each change once, in order");
    while let Err(error) = kv.lease_keep_alive(lease).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_after_its_connection_was_lost() {
    let authority = Authority::new();
    let below: SharedKv = Arc::new(MemoryKv::new());
    // It listens there again later, so nobody may get the port meanwhile.
    let address = SocketAddr::from(([127, 0, 0, 1], arco_testkit::servers::free_port()));
    let served = serve(below.clone(), &authority, address).await;
    let kv = driver(&served, &authority.certificate("admin")).await;
    let mut watch = kv.watch(Range::Prefix(b"/".to_vec()), None).await.unwrap();
    let mut other = kv.watch(Range::Prefix(b"/".to_vec()), None).await.unwrap();
    kv.put("/before", vec![], None).await.unwrap();
    let first = next(&mut watch).await.unwrap().revision;
    next(&mut other).await.unwrap();

    served.stop.cancel();
    served.task.await.unwrap();
    let error = kv.put("/refused", vec![], None).await.unwrap_err();
    assert!(matches!(error, KvError::Unavailable { .. }), "{error}");
    for _ in 0..3 {
        below.put("/meanwhile", vec![], None).await.unwrap();
    }
    let served = serve(below.clone(), &authority, address).await;
    for revision in first + 1..=first + 3 {
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
        assert_eq!(next(&mut other).await.unwrap().revision, revision);
    }
    kv.put("/after", vec![], None).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, first + 4);
    next(&mut other).await.unwrap();

    // What is forgotten while it is away, it is told.
    served.stop.cancel();
    served.task.await.unwrap();
    for _ in 0..3 {
        below.put("/meanwhile", vec![], None).await.unwrap();
    }
    below.compact(first + 7).await.unwrap();
    let _served = serve(below, &authority, address).await;
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, KvError::Compacted { oldest, .. } if oldest == first + 7), "{error}");
}

/// The driver leaves streams that do not answer this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_watches_says_that_it_is_alive() {
    use arco_etcd_proto::etcdserverpb::watch_client::WatchClient;
    use arco_etcd_proto::etcdserverpb::watch_request::RequestUnion;
    use arco_etcd_proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest};
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
    let authority = Authority::new();
    let served = serve(Arc::new(MemoryKv::new()), &authority, anywhere()).await;
    let own = authority.certificate("admin");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&own.ca_pem))
        .identity(Identity::from_pem(&own.cert_pem, &own.key_pem));
    let endpoint = Endpoint::from_shared(format!("https://{}", served.address)).unwrap().tls_config(tls).unwrap();
    let mut client = WatchClient::new(endpoint.connect().await.unwrap());
    let create = WatchCreateRequest { key: b"/a".to_vec(), ..WatchCreateRequest::default() };
    let requests = [RequestUnion::CreateRequest(create), RequestUnion::ProgressRequest(WatchProgressRequest {})];
    let (sender, receiver) = tokio::sync::mpsc::channel(requests.len());
    for it in requests {
        sender.send(WatchRequest { request_union: Some(it) }).await.unwrap();
    }
    let stream = client.watch(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap();
    let mut stream = stream.into_inner();
    let mut message = async || {
        let message = tokio::time::timeout(std::time::Duration::from_secs(60), stream.message()).await;
        message.expect("a message in time").unwrap().expect("the stream goes on")
    };
    assert!(message().await.created);
    let alive = message().await;
    let revision = alive.header.map(|it| it.revision);
    assert_eq!((alive.watch_id, revision, alive.events.len()), (-1, Some(0), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_opens_its_prefixes_only() {
    let authority = Authority::new();
    let below: SharedKv = Arc::new(MemoryKv::new());
    below.put("/gateway/routes/a", b"route".to_vec(), None).await.unwrap();
    let foreign = below.lease_grant(3600).await.unwrap();
    below.put("/secret", b"s".to_vec(), Some(foreign)).await.unwrap();
    let served = serve(below.clone(), &authority, anywhere()).await;
    let gateway = driver(&served, &authority.certificate("gateway")).await;

    assert_eq!(gateway.list("/gateway/").await.unwrap().items[0].value, b"route");
    let own = gateway.lease_grant(3600).await.unwrap();
    gateway.put("/gateway-status/1", vec![], Some(own)).await.unwrap();
    gateway.lease_keep_alive(own).await.unwrap();
    let denied = |error: KvError| assert!(error.to_string().contains("permission denied"), "{error}");
    denied(gateway.list("").await.unwrap_err());
    denied(gateway.list("/gateway-status/").await.unwrap_err());
    denied(gateway.get("/secret").await.unwrap_err());
    denied(gateway.put("/gateway/routes/a", vec![], None).await.unwrap_err());
    denied(gateway.delete("/secret").await.unwrap_err());
    denied(gateway.compact(2).await.unwrap_err());
    denied(gateway.lease_revoke(foreign).await.unwrap_err());
    gateway.lease_revoke(own).await.unwrap();
    let mut watch = gateway.watch(Range::Prefix(b"/secret".to_vec()), Some(1)).await.unwrap();
    denied(watch.next().await.unwrap().unwrap_err());

    // A certificate of ours without a grant, one of another authority, and none at all.
    let stranger = driver(&served, &authority.certificate("stranger")).await;
    denied(stranger.list("/gateway/").await.unwrap_err());
    let other = Authority::new().certificate("admin");
    let forged = EtcdTls { ca_pem: authority.pem.clone(), ..other };
    let forged = driver(&served, &forged).await;
    assert!(matches!(forged.list("/gateway/").await, Err(KvError::Unavailable { .. })));
    let plain = EtcdKv::connect(&[format!("http://{}", served.address)], None).await.unwrap();
    let plain: SharedKv = Arc::new(plain);
    assert!(matches!(plain.list("/gateway/").await, Err(KvError::Unavailable { .. })));
    assert_eq!(below.get("/secret").await.unwrap().unwrap().value, b"s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_while_it_serves() {
    let (old, new) = (Authority::new(), Authority::new());
    let grants = vec![Grant::all("admin")];
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let front = Front::bind(anywhere(), kv, &old.certificate("server"), grants).await.unwrap();
    let (certificates, address, stop) = (front.certificates(), front.address(), CancellationToken::new());
    let task = AbortOnDropHandle::new(tokio::spawn(front.serve(stop.clone())));
    let served = Served { address, stop, task: AbortOnDropHandle::new(tokio::spawn(async {})) };
    let first = driver(&served, &old.certificate("admin")).await;
    first.put("/a", vec![], None).await.unwrap();
    certificates.replace(&new.certificate("server")).unwrap();
    let second = driver(&served, &new.certificate("admin")).await;
    second.put("/b", vec![], None).await.unwrap();
    first.put("/c", vec![], None).await.unwrap();
    let late = driver(&served, &old.certificate("admin")).await;
    assert!(late.put("/d", vec![], None).await.is_err(), "the old authority is not trusted any more");
    drop(task);
}

/// `etcdctl` of etcd-client with the files of one certificate.
struct Etcdctl {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Etcdctl {
    fn new(served: &Served, tls: &EtcdTls) -> Option<Self> {
        if Command::new("etcdctl").arg("version").output().is_err() {
            eprintln!("SKIPPED: etcdctl is not installed (Debian: etcd-client)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("ca", &tls.ca_pem), ("cert", &tls.cert_pem), ("key", &tls.key_pem)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Some(Self { folder, endpoint: served.address.to_string() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let file = |name: &str| Path::new(self.folder.path()).join(name);
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--dial-timeout", "60s", "--command-timeout", "60s"]);
        command.arg("--endpoints").arg(&self.endpoint);
        command.arg("--cacert").arg(file("ca")).arg("--cert").arg(file("cert")).arg("--key").arg(file("key"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// What it prints; panics when it fails.
    async fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments, "").await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    async fn output(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let run = move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_works() {
    let authority = Authority::new();
    let below: SharedKv = Arc::new(MemoryKv::new());
    let served = serve(below.clone(), &authority, anywhere()).await;
    let Some(ctl) = Etcdctl::new(&served, &authority.certificate("admin")) else { return };

    assert_eq!(ctl.run(&["put", "/a", "one"]).await, "OK\n");
    assert_eq!(ctl.run(&["put", "/b", "two"]).await, "OK\n");
    assert_eq!(ctl.run(&["put", "/a", "three", "--prev-kv"]).await, "OK\n/a\none\n");
    assert_eq!(ctl.run(&["get", "/a"]).await, "/a\nthree\n");
    assert_eq!(ctl.run(&["get", "/", "--prefix", "--keys-only"]).await, "/a\n\n/b\n\n");
    assert_eq!(ctl.run(&["get", "", "--from-key", "--print-value-only"]).await, "three\ntwo\n");
    assert_eq!(ctl.run(&["get", "/", "--prefix", "--order", "DESCEND", "--limit", "1"]).await, "/b\ntwo\n");
    assert_eq!(ctl.run(&["get", "/", "--prefix", "--sort-by", "MODIFY", "--limit", "1"]).await, "/b\ntwo\n");
    assert_eq!(ctl.run(&["get", "/a", "--rev", "2"]).await, "/a\none\n");
    let json = ctl.run(&["get", "/", "--prefix", "--limit", "1", "-w", "json"]).await;
    assert!(json.contains("\"more\":true,\"count\":2"), "{json}");

    // txn: conditions, empty line, success, empty line, failure, empty line.
    for (conditions, expected) in [
        ("mod(\"/a\") > \"0\"\nvalue(\"/b\") = \"two\"", "SUCCESS"),
        ("create(\"/none\") = \"0\"", "SUCCESS"),
        ("version(\"/a\") = \"2\"\nmod(\"/a\") < \"100\"", "SUCCESS"),
        ("version(\"/a\") > \"2\"", "FAILURE"),
        ("value(\"/a\") < \"a\"", "FAILURE"),
    ] {
        let input = format!("{conditions}\n\nput /t yes\nget /a\n\nput /t no\n\n");
        let output = ctl.output(&["txn"], &input).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with(expected), "{conditions}: {text} {}", String::from_utf8_lossy(&output.stderr));
        let value = below.get("/t").await.unwrap().unwrap().value;
        assert_eq!(value, if expected == "SUCCESS" { &b"yes"[..] } else { b"no" }, "{conditions}");
    }

    let granted = ctl.run(&["lease", "grant", "3600"]).await;
    let lease = granted.split(' ').nth(1).unwrap().to_owned();
    ctl.run(&["put", "/leased", "x", "--lease", &lease]).await;
    let renewed = ctl.run(&["lease", "keep-alive", "--once", &lease]).await;
    assert!(renewed.contains("TTL(3600)"), "{renewed}");
    ctl.run(&["lease", "revoke", &lease]).await;
    assert_eq!(ctl.run(&["get", "/leased"]).await, "");

    let mut watcher = ctl.command(&["watch", "/w", "--prefix", "--rev", "1", "--prev-kv"]);
    let mut watcher = tokio::process::Command::from(std::mem::replace(&mut watcher, Command::new("true")));
    let mut watcher = watcher.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(watcher.stdout.take().unwrap()));
    below.put("/w1", b"v".to_vec(), None).await.unwrap();
    below.delete("/w1").await.unwrap();
    for expected in ["PUT", "/w1", "v", "DELETE", "/w1", "v", "/w1", ""] {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(line, expected);
    }
    drop(watcher);

    assert_eq!(ctl.run(&["del", "/", "--prefix"]).await, "3\n");
    let health = ctl.output(&["endpoint", "health"], "").await;
    assert!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
    let status = ctl.run(&["endpoint", "status", "-w", "json"]).await;
    assert!(status.contains("3.5.0-arco"), "{status}");
    ctl.run(&["compaction", "3"]).await;
    let old = ctl.output(&["get", "/a", "--rev", "2"], "").await;
    assert!(String::from_utf8_lossy(&old.stderr).contains("compacted"));

    let gateway = Etcdctl::new(&served, &authority.certificate("gateway")).unwrap();
    let refused = gateway.output(&["get", "/a"], "").await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("permission denied"));
    assert_eq!(gateway.run(&["put", "/gateway-status/x", "1"]).await, "OK\n");
}
