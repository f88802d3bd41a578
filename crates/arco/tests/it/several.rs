//! Several servers on the same stores: real etcd and PostgreSQL, blobs in a folder that they share.

use arco_store::blob::DiskBlobs;
use arco_store::images::{Image, Images};
use arco_store::sql::SeaOrmMetadata;
use arco_testkit::servers::RestartableEtcd;
use arco_testkit::{Options, Platform, get, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

mod certificates;
mod gateways;
mod killed;
mod members;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_arco");

/// Stores of a platform of its own, and settings of the servers that use them.
struct Shared {
    folder: tempfile::TempDir,
    metadata: String,
    etcd: String,
}

impl Shared {
    fn make() -> Option<Self> {
        let (etcd, metadata) = arco_testkit::servers::of_its_own()?;
        Some(Self { folder: tempfile::tempdir().unwrap(), metadata, etcd: etcd.replace("http://", "etcd://") })
    }

    /// With an etcd of three members.
    fn with_members() -> Option<(Self, Vec<RestartableEtcd>)> {
        let (members, metadata) = arco_testkit::servers::of_its_own_with_members(3)?;
        let hosts: Vec<&str> = members.iter().map(|it| it.url.trim_start_matches("http://")).collect();
        let etcd = format!("etcd://{}", hosts.join(","));
        Some((Self { folder: tempfile::tempdir().unwrap(), metadata, etcd }, members))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ARCO_STORE__METADATA", self.metadata.clone()),
            ("ARCO_STORE__COORDINATION", self.etcd.clone()),
            ("ARCO_STORE__BLOBS", format!("file:{}", self.path("blobs"))),
            ("ARCO_STORE__SECRET_KEY", self.path("secret.key")),
        ]
    }

    /// A server with these roles; `console` is what tells that it is ready.
    fn server(&self, roles: &[&str], more: &[(&'static str, String)]) -> Platform {
        let mut env = self.settings();
        env.push(("ARCO_SERVER__ROLES", format!("{roles:?}")));
        env.extend_from_slice(more);
        Platform::start_with(EXECUTABLE, Options { data_dir: None, env })
    }
}

fn health(platform: &Platform) -> Option<Value> {
    let answer = get(platform.address("console")?, "console", "/healthz").ok()?;
    serde_json::from_str(&answer.body).ok()
}

/// Whether its controller leads; one that follows says whom.
fn leads(platform: &Platform) -> bool {
    health(platform).is_some_and(|it| {
        let role = &it["roles"]["controller"];
        role["ready"] == true && role["detail"] == ""
    })
}

fn leader(servers: &mut [Platform; 2]) -> (&mut Platform, &mut Platform) {
    until("one of two leads", 60, || (leads(&servers[0]) != leads(&servers[1])).then_some(()));
    let [a, b] = servers;
    if leads(a) { (a, b) } else { (b, a) }
}

/// Begins something and returns its operation.
fn begun(platform: &Platform, words: &[&str]) -> String {
    let document = platform.json(words);
    let id = document["operation"].as_str().or(document["id"].as_str()).or(document["operations"][0].as_str());
    id.unwrap_or_else(|| panic!("{words:?}: {document}")).to_owned()
}

/// Lines of an operation's log.
fn log_of(platform: &Platform, operation: &str) -> Vec<String> {
    let outcome = platform.arco(&["logs", "--operation", operation]);
    outcome.stdout.lines().map(str::to_owned).collect()
}

mod control_plane {
    use super::*;

    /// Where the tests' Kubernetes is, when its nodes are fake.
    pub(super) fn fake_nodes() -> Option<String> {
        let Some(path) = std::env::var("ARCO_TEST_KUBECONFIG").ok().filter(|it| !it.is_empty()) else {
            eprintln!("SKIPPED: no Kubernetes is named by ARCO_TEST_KUBECONFIG");
            return None;
        };
        if std::fs::read_to_string(&path).unwrap().contains("https://10.250.") {
            eprintln!("SKIPPED: needs fake nodes, which run nothing");
            return None;
        }
        Some(path)
    }

    pub(super) fn image(shared: &Shared) -> String {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let written = runtime.block_on(async {
            let metadata = SeaOrmMetadata::connect(&shared.metadata, None).await.unwrap();
            let blobs = DiskBlobs::open(shared.folder.path().join("blobs")).unwrap();
            let images = Images::new(Arc::new(metadata), Arc::new(blobs));
            images.write("default/demo/web", &Image::default()).await.unwrap()
        });
        format!("image:{}@{}", written.repository, written.digest)
    }

    /// Settings of servers whose instances are in that cluster.
    pub(super) fn on_kubernetes(kubeconfig: &str, prefix: &str) -> [(&'static str, String); 6] {
        [
            ("ARCO_ORCHESTRATOR__DRIVER", "kubernetes".to_owned()),
            ("ARCO_KUBERNETES__KUBECONFIG", kubeconfig.to_owned()),
            ("ARCO_KUBERNETES__NAMESPACE_PREFIX", prefix.to_owned()),
            ("ARCO_KUBERNETES__REGISTRY", "registry.invalid:5000".to_owned()),
            ("ARCO_KUBERNETES__USER_NAMESPACES", "false".to_owned()),
            ("ARCO_KUBERNETES__REQUEST_PERCENT", "1".to_owned()),
        ]
    }

    /// Every component was built once and has what was asked, and nothing is open.
    fn truth(platform: &Platform, names: &[String], replicas: u64) {
        let listed = platform.json(&["operations"]);
        for it in listed["items"].as_array().unwrap() {
            assert_eq!(it["status"], "succeeded", "{it}");
        }
        for name in names {
            let reference = format!("demo/{name}");
            let status = until(&format!("{reference} runs"), 60, || {
                Some(platform.status(&reference))
                    .filter(|it| it["status"] == "running" && it["ready_replicas"] == replicas)
            });
            assert_eq!(status["instances"].as_array().unwrap().len() as u64, replicas, "{status}");
            let revisions = platform.json(&["revisions", &reference]);
            let count = revisions["items"].as_array().or(revisions.as_array()).map_or(0, Vec::len);
            assert_eq!(count, 1, "{revisions}");
        }
    }

    #[test]
    fn a_leader_that_is_killed_is_followed_and_nothing_is_lost_or_done_twice() {
        let Some(kubeconfig) = fake_nodes() else { return };
        let Some(shared) = Shared::make() else { return };
        let settings = on_kubernetes(&kubeconfig, &format!("s{}-", std::process::id()));
        let roles = ["api", "console", "controller", "builder", "eventlog", "registry"];
        let mut servers = [shared.server(&roles, &settings), shared.server(&roles, &settings)];
        let image = image(&shared);
        let names: Vec<String> = (0..6).map(|it| format!("c{it}")).collect();

        let (first, second) = leader(&mut servers);
        let deploys: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(at, name)| {
                let through = if at % 2 == 0 { &*first } else { &*second };
                let words = ["deploy", &image, "--app", "demo", "--component", name, "--port", "8080", "--detach"];
                begun(through, &words)
            })
            .collect();
        first.kill();
        let killed = Instant::now();
        until("the other one leads", 60, || leads(second).then_some(()));
        eprintln!("another server led {} ms after kill -9; the lease is 10000 ms", killed.elapsed().as_millis());
        for operation in &deploys {
            assert_eq!(second.ended(operation, 120)["status"], "succeeded");
        }
        truth(second, &names, 1);

        // The one that was killed is back and follows; then the leader is stopped in order, in the middle of work.
        first.boot();
        until("the first one follows", 60, || {
            (!leads(first) && health(first).is_some_and(|it| it["ready"] == true)).then_some(())
        });
        let scales: Vec<_> = names
            .iter()
            .map(|it| begun(first, &["scale", &format!("demo/{it}"), "--replicas", "2", "--detach"]))
            .collect();
        assert!(second.stop(), "the leader stops by itself");
        until("the first one leads", 60, || leads(first).then_some(()));
        for operation in &scales {
            assert_eq!(first.ended(operation, 120)["status"], "succeeded");
        }
        second.boot();
        truth(second, &names, 2);
        // Whoever keeps a log, everybody shows it, and each line once.
        for operation in &scales {
            let (here, there) = until("both show the same log", 60, || {
                let (here, there) = (log_of(first, operation), log_of(second, operation));
                (here == there && here.iter().any(|it| it.ends_with("done"))).then_some((here, there))
            });
            assert_eq!(here.iter().filter(|it| it.contains("scale of demo/")).count(), 1, "{there:?}");
            assert_eq!(here.iter().filter(|it| it.ends_with("done")).count(), 1, "{there:?}");
        }
        let outcome = first.arco(&["delete", "demo", "--yes"]);
        assert_eq!(outcome.status, 0, "{outcome:?}");
        for it in &mut servers {
            assert!(it.stop());
        }
    }
}

/// Roles of one machine in processes of their own. The components' containers belong to the one that controls them; builds
/// run in containers of each builder.
#[test]
fn faults_roles_in_processes_of_their_own_work_together() {
    if !arco_testkit::is_root() {
        return;
    }
    let Some(shared) = Shared::make() else { return };
    let mut control = shared.server(&["controller", "gateway", "console"], &[]);
    let mut api = shared.server(&["api", "console"], &[]);
    let mut builders = [shared.server(&["builder", "console"], &[]), shared.server(&["builder", "console"], &[])];
    let mut keeper = shared.server(&["eventlog", "console"], &[]);
    let source = api.folder("site", &[("index.html", "<h1>shared</h1>")]);
    let source = source.to_str().unwrap();

    let operation = begun(&api, &["deploy", source, "--app", "calm", "--component", "site"]);
    let answer = until("the application answers", 60, || {
        get(control.address("http").unwrap(), "site.calm.test.localhost", "/").ok().filter(|it| it.status == 200)
    });
    assert!(answer.body.contains("shared"), "{answer:?}");
    let log = until("the log of the deploy", 60, || {
        Some(log_of(&api, &operation)).filter(|it| it.iter().any(|it| it.ends_with("done")) && it.len() > 3)
    });
    // Status tells the URL of a gateway that runs elsewhere.
    let urls = api.status("calm/site")["urls"].to_string();
    assert!(urls.contains(&control.address("http").unwrap().port().to_string()), "{urls}");

    // Without a keeper the platform goes on; whoever asks for a log is told what is missing; lines come later.
    keeper.kill();
    let restart = begun(&api, &["restart", "calm/site", "--detach"]);
    assert_eq!(api.ended(&restart, 120)["status"], "succeeded");
    until("the missing role is named", 60, || {
        let outcome = api.arco(&["logs", "--operation", &restart]);
        (outcome.status != 0 && outcome.stderr.contains("--role eventlog")).then_some(())
    });
    keeper.boot();
    until("the lines are kept once a keeper is back", 60, || {
        log_of(&api, &restart).iter().any(|it| it.ends_with("done")).then_some(())
    });
    let kept = log_of(&api, &operation);
    assert!(log.iter().all(|it| kept.contains(it)), "what was kept is still there: {log:?} and {kept:?}");

    // A second controller would know nothing of the first one's containers.
    let work = tempfile::tempdir().unwrap();
    let refused = second_controller(&shared, work.path());
    assert!(refused.contains("alone can control them") && refused.contains("--role"), "{refused}");

    if std::env::var_os("ARCO_FAULT_ROUNDS").is_some() {
        let names: Vec<String> = (0..4).map(|it| format!("b{it}")).collect();
        let deploy = |it: &String| begun(&api, &["deploy", source, "--app", "calm", "--component", it, "--detach"]);
        let builds: Vec<_> = names.iter().map(deploy).collect();
        builders[0].kill();
        for operation in &builds {
            assert_eq!(api.ended(operation, 120)["status"], "succeeded");
        }
        for name in &names {
            let revisions = api.json(&["revisions", &format!("calm/{name}")]);
            let count = revisions["items"].as_array().or(revisions.as_array()).map_or(0, Vec::len);
            assert_eq!(count, 1, "{revisions}");
        }
        builders[0].boot();
    }

    let outcome = api.arco(&["delete", "calm", "--yes"]);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let [first, second] = &mut builders;
    for it in [&mut api, first, second, &mut control, &mut keeper] {
        assert!(it.stop(), "{}", it.log());
        until("nothing is left over", 60, || it.leftovers().is_empty().then_some(()));
    }
}

/// Asks the gateways in turn, as whoever balances in front of them, until it is ended.
struct Balanced {
    /// Those that are asked; who is to stop is taken out before.
    gateways: Arc<RwLock<Vec<SocketAddr>>>,
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Balanced {
    fn start(host: &'static str) -> Self {
        let (gateways, end) = (Arc::<RwLock<Vec<SocketAddr>>>::default(), Arc::<AtomicBool>::default());
        let (asked, ended) = (gateways.clone(), end.clone());
        let thread = std::thread::spawn(move || {
            let (mut count, mut lost) = (0, Vec::new());
            while !ended.load(Ordering::Relaxed) {
                // Held while a request is open, so that taking one out waits for it.
                let gateways = asked.read().unwrap();
                let Some(gateway) = gateways.get(count % gateways.len().max(1)) else { continue };
                count += 1;
                match get(*gateway, host, "/") {
                    Ok(answer) if answer.status == 200 => {}
                    other => lost.push(format!("{gateway}: {other:?}")),
                }
            }
            (count, lost)
        });
        Self { gateways, end, thread }
    }

    fn take_out(&self, gateway: SocketAddr) {
        self.gateways.write().unwrap().retain(|it| *it != gateway);
    }

    /// Takes one in that knows its routes.
    fn take_in(&self, gateway: SocketAddr, host: &str) {
        until("the gateway has its routes", 60, || get(gateway, host, "/").ok().filter(|it| it.status == 200));
        self.gateways.write().unwrap().push(gateway);
    }

    fn end(self) -> (usize, Vec<String>) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Every role in processes of its own, two of each where there may be two: each is stopped in order and started again, one
/// after the other, while an application is asked, another one changes and a third one writes lines.
#[test]
#[ignore = "restarts nine servers: make test-faults"]
fn faults_a_rolling_restart_of_every_role_loses_nothing() {
    if !arco_testkit::is_root() {
        return;
    }
    let Some(shared) = Shared::make() else { return };
    let (api, gateway, builder, keeper) =
        (["api", "registry", "console"], ["gateway", "console"], ["builder", "console"], ["eventlog", "console"]);
    let mut servers: Vec<Platform> =
        [&api[..], &api, &["controller", "console"], &builder, &builder, &keeper, &keeper, &gateway, &gateway]
            .iter()
            .map(|roles| shared.server(roles, &[]))
            .collect();
    let host = "site.calm.test.localhost";
    let source = servers[0].folder("site", &[("index.html", "<h1>calm</h1>")]).display().to_string();
    let program = "$| = 1; for (my $at = 0; ; $at++) { print \"line $at\\n\"; select undef, undef, undef, 0.05 }";
    let dockerfile = "FROM debian:12\nCOPY count.pl /count.pl\nCMD [\"perl\", \"/count.pl\"]\n";
    let count = servers[0].folder("count", &[("Dockerfile", dockerfile), ("count.pl", program)]).display().to_string();
    for (source, component) in [(&source, "site"), (&source, "busy"), (&count, "count")] {
        begun(&servers[0], &["deploy", source, "--app", "calm", "--component", component]);
    }
    let load = Balanced::start(host);
    for it in &servers[7..] {
        load.take_in(it.address("http").unwrap(), host);
    }

    let mut operations = Vec::new();
    for at in 0..servers.len() {
        let asked = usize::from(at == 0);
        let gateway = servers[at].address("http");
        gateway.into_iter().for_each(|it| load.take_out(it));
        // Work is under way when it stops.
        operations.push(begun(&servers[asked], &["restart", "calm/busy", "--detach"]));
        operations.push(begun(
            &servers[asked],
            &["deploy", &source, "--app", "calm", "--component", &format!("new{at}"), "--detach"],
        ));
        assert!(servers[at].stop(), "{}", servers[at].log());
        servers[at].boot();
        servers[at].address("http").into_iter().for_each(|it| load.take_in(it, host));
        for operation in &operations[2 * at..] {
            let ended = servers[asked].ended(operation, 120);
            assert_eq!(ended["status"], "succeeded", "after the restart of server {at}: {ended}");
        }
    }
    let (asked, lost) = load.end();
    assert!(asked > 100 && lost.is_empty(), "{} of {asked} requests were lost: {:?}", lost.len(), lost.first());
    eprintln!("{asked} requests, {} operations, 9 restarts", operations.len());

    // Every line that was written before is there, wherever it is kept; some may be there twice.
    let numbers = |platform: &Platform| -> BTreeSet<u64> {
        let outcome = platform.arco(&["logs", "calm/count"]);
        let number = |it: &str| it.rsplit_once("line ").and_then(|it| it.1.trim().parse().ok());
        outcome.stdout.lines().filter_map(number).collect()
    };
    let last = until("lines of after the restarts", 60, || numbers(&servers[0]).last().copied().filter(|it| *it > 100));
    for platform in &servers[..2] {
        let found = numbers(platform);
        let missing: Vec<u64> = (0..=last).filter(|it| !found.contains(it)).collect();
        assert!(missing.is_empty(), "{} of {last} lines are missing: {:?}", missing.len(), missing.first());
    }
    for operation in &operations {
        let log = until("a log to its end", 60, || {
            Some(log_of(&servers[1], operation)).filter(|it| it.iter().any(|it| it.ends_with("done")))
        });
        assert_eq!(log.iter().filter(|it| it.ends_with("done")).count(), 1, "{log:?}");
    }

    assert_eq!(servers[0].arco(&["delete", "calm", "--yes"]).status, 0);
    for it in &mut servers {
        assert!(it.stop(), "{}", it.log());
        until("nothing is left over", 60, || it.leftovers().is_empty().then_some(()));
    }
}

/// What a second controller of the same containers says before it ends.
fn second_controller(shared: &Shared, data_dir: &std::path::Path) -> String {
    let mut command = std::process::Command::new(EXECUTABLE);
    command.args(["server", "--role", "controller", "--data-dir"]).arg(data_dir);
    for (name, value) in shared.settings() {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}
