//! A whole platform on MariaDB, etcd and S3, and what happens to it when they fail. For `make test-faults`.
//!
//! What must hold: everything works as on stores of its own; while connections are killed, answers cut or a store is gone,
//! running applications answer, every operation ends, and afterwards each component is what was asked last, made once.

mod faulty_s3;

use crate::behave::{EXECUTABLE, good};
use arco_testkit::servers::{self, RestartableEtcd};
use arco_testkit::{Options, Platform, Random, is_root, until};
use faulty_s3::{FaultyS3, Way};
use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DOCKERFILE: &str =
    "FROM debian:12\nCOPY answer.pl text /\nRUN sha256sum /text > /sum\nEXPOSE 8080\nCMD [\"perl\", \"/answer.pl\"]\n";
/// Answers with its text and its round, and says so.
const PROGRAM: &str = r#"use strict; use IO::Socket::INET;
$| = 1;
open my $file, '<', '/text' or die; my $text = <$file>; chomp $text;
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $ENV{PORT} // 8080, Listen => 128, ReuseAddr => 1) or die "listen: $!";
print "serving $text\n";
for (;;) {
  my $client = $server->accept or next;
  sysread($client, my $request, 8192);
  my $body = "$text " . ($ENV{ROUND} // 'none');
  print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
  close $client;
}
"#;
/// Components that are changed while something fails.
const NAMES: [&str; 3] = ["one", "two", "three"];

struct Stores {
    mysql: String,
    etcd: RestartableEtcd,
    s3: FaultyS3,
}

impl Stores {
    fn start() -> Option<Self> {
        let (mysql, etcd, s3) = (servers::mysql_of_its_own()?, RestartableEtcd::start()?, servers::s3()?);
        Some(Self { mysql, etcd, s3: FaultyS3::before(&s3) })
    }

    fn platform(&self) -> Platform {
        let env = vec![
            ("ARCO_STORE__METADATA", self.mysql.clone()),
            ("ARCO_STORE__COORDINATION", self.etcd.url.replace("http://", "etcd://")),
            ("ARCO_STORE__BLOBS", self.s3.url()),
            ("AWS_ACCESS_KEY_ID", "testing".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "testing".to_owned()),
        ];
        Platform::start_with(EXECUTABLE, Options { data_dir: None, env })
    }

    /// Kills every connection of the server to its database; returns how many.
    fn kill_connections(&self) -> usize {
        let own = "SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND db IS NOT NULL";
        let kills = self.sql(own);
        self.sql(&kills); // some are gone by themselves meanwhile
        kills.lines().count()
    }

    fn sql(&self, text: &str) -> String {
        let port = self.mysql.rsplit(':').next().and_then(|it| it.split('/').next()).unwrap();
        let mut client = Command::new("mariadb")
            .args(["--no-defaults", "--force", "--skip-column-names", "--batch", "--host=127.0.0.1", "--user=arco"])
            .arg(format!("--port={port}"))
            .env("MYSQL_PWD", "a secret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("mariadb-client is there with mariadb-server");
        client.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        String::from_utf8(client.wait_with_output().unwrap().stdout).unwrap()
    }
}

/// A source with this text.
fn source(platform: &Platform, text: &str) -> String {
    let files = [("Dockerfile", DOCKERFILE), ("answer.pl", PROGRAM), ("text", text)];
    platform.folder(&format!("source-{text}"), &files).display().to_string()
}

fn answers(platform: &Platform, host: &str, expected: &str) {
    until(&format!("{host} answers `{expected}`"), 120, || {
        platform.get(host, "/").ok().filter(|it| it.status == 200 && it.body == expected)
    });
}

fn items(document: &Value) -> Vec<Value> {
    document["items"].as_array().cloned().unwrap_or_default()
}

/// Operations, when the platform tells them.
fn operations(platform: &Platform) -> Option<Vec<Value>> {
    platform.json(&["operations"])["items"].as_array().cloned()
}

fn gone(platform: &mut Platform) {
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

#[test]
#[ignore = "longer than a minute: make test-faults"]
fn faults_aside_a_platform_on_shared_stores_is_like_any_other() {
    if !is_root() {
        return;
    }
    let Some(stores) = Stores::start() else { return };
    let mut platform = stores.platform();
    let web = ["--app", "demo", "--component", "web"];
    let deploy = |text: &str| good(&platform, &[&["deploy", &source(&platform, text)][..], &web].concat());
    let first = deploy("first");
    answers(&platform, "web.demo.test.localhost", "first none");
    let second = deploy("second");
    assert_eq!((first["revision"].as_u64(), second["revision"].as_u64()), (Some(1), Some(2)), "{first} {second}");
    answers(&platform, "web.demo.test.localhost", "second none");
    until("its output is kept", 60, || {
        platform.arco(&["logs", "demo/web"]).stdout.contains("serving second").then_some(())
    });
    let build = platform.arco(&["logs", "demo/web", "--build"]);
    assert!(build.status == 0 && build.stdout.contains("sha256sum"), "{build:?}");
    good(&platform, &["rollback", "demo/web"]);
    answers(&platform, "web.demo.test.localhost", "first none");
    good(&platform, &["env", "set", "demo/web", "ROUND=7"]);
    answers(&platform, "web.demo.test.localhost", "first 7");
    // The next server reads all of it from the stores.
    assert!(platform.stop(), "the server stops by itself");
    platform.boot();
    answers(&platform, "web.demo.test.localhost", "first 7");
    let third = good(&platform, &[&["deploy", &source(&platform, "third")][..], &web].concat());
    assert!(third["revision"].as_u64() > Some(3), "{third}");
    answers(&platform, "web.demo.test.localhost", "third 7");
    platform.status("demo/web");
    good(&platform, &["delete", "demo", "--yes"]);
    assert_eq!(platform.arco(&["status", "demo"]).status, 5);
    gone(&mut platform);
}

/// Deploys each component with this round; some may be refused while a store fails. Returns how many were taken.
fn deploy_all(platform: &Platform, round: &str) -> usize {
    let source = source(platform, round);
    let variable = format!("ROUND={round}");
    let taken = NAMES.iter().filter(|name| {
        let words =
            ["deploy", &source, "--app", "demo", "--component", name, "--env", &variable, "--detach", "-o", "json"];
        let outcome = platform.arco(&words);
        if outcome.status != 0 {
            eprintln!("{round}: demo/{name} is refused: {}", outcome.stdout.trim());
        }
        outcome.status == 0
    });
    taken.count()
}

/// Every operation ends; then a calm deploy makes each component what it says, and no revision was made without an
/// operation that asked for it.
fn truth(platform: &Platform, round: &str) {
    until(&format!("{round}: every operation ends"), 300, || {
        let open =
            |it: &Value| !["succeeded", "failed", "cancelled"].contains(&it["status"].as_str().unwrap_or_default());
        operations(platform).filter(|all| !all.iter().any(open))
    });
    for it in operations(platform).unwrap_or_default().iter().filter(|it| it["status"] == "failed") {
        eprintln!("{round}: {}/{}: {}", it["application"], it["component"], it["problem"]);
    }
    let calm = format!("after-{round}");
    let variable = format!("ROUND={calm}");
    for name in NAMES {
        good(platform, &["deploy", &source(platform, &calm), "--app", "demo", "--component", name, "--env", &variable]);
        answers(platform, &format!("{name}.demo.test.localhost"), &format!("{calm} {calm}"));
        let reference = format!("demo/{name}");
        until(&format!("{reference} has one instance, which is ready"), 60, || {
            let status = platform.status(&reference);
            let alone = status["instances"].as_array().map(Vec::len) == Some(1);
            (alone && status["status"] == "running" && status["ready_replicas"] == 1).then_some(())
        });
        let revisions = items(&platform.json(&["revisions", &reference]));
        let asked = items(&platform.json(&["operations"]));
        let asked = asked.iter().filter(|it| it["component"] == name).count();
        assert!((1..=asked).contains(&revisions.len()), "{reference}: {asked} operations made {revisions:?}");
        let mut numbers: Vec<_> = revisions.iter().map(|it| it["number"].as_u64()).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), revisions.len(), "{revisions:?}");
    }
}

#[test]
#[ignore = "several minutes: make test-faults"]
fn faults_of_shared_stores_end_with_the_truth() {
    if !is_root() {
        return;
    }
    let Some(mut stores) = Stores::start() else { return };
    let mut random = Random::seeded();
    let mut platform = stores.platform();
    good(&platform, &["deploy", &source(&platform, "calm"), "--app", "calm", "--component", "web"]);
    answers(&platform, "web.calm.test.localhost", "calm none");
    assert_eq!(deploy_all(&platform, "begin"), NAMES.len());
    truth(&platform, "begin");

    // Connections to the database are killed at random moments, also in the middle of transactions.
    let stop = AtomicBool::new(false);
    let killed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed = 0;
            while !stop.load(Ordering::Relaxed) {
                killed += stores.kill_connections();
                std::thread::sleep(Duration::from_millis(random.below(400))); // the moment of the next fault
            }
            killed
        });
        for round in 0..5 {
            deploy_all(&platform, &format!("killed-{round}"));
        }
        stop.store(true, Ordering::Relaxed);
        killer.join().unwrap()
    });
    assert!(killed > 0, "no connection was killed");
    eprintln!("{killed} connections to the database were killed");
    truth(&platform, "killed");

    // The bucket answers badly, in each way that buckets do.
    for way in [Way::Busy, Way::Broken, Way::Slow, Way::CutBody, Way::Cut] {
        stores.s3.set(way);
        let round = format!("{way:?}").to_lowercase();
        let began = Instant::now();
        deploy_all(&platform, &round);
        std::thread::sleep(Duration::from_secs(5).saturating_sub(began.elapsed())); // how long it lasts
        answers(&platform, "web.calm.test.localhost", "calm none");
        stores.s3.set(Way::Good);
        truth(&platform, &round);
    }

    // The coordination store is gone for a while.
    deploy_all(&platform, "away");
    stores.etcd.kill();
    let back = Instant::now() + Duration::from_secs(20);
    while Instant::now() < back {
        let answer = platform.get("web.calm.test.localhost", "/");
        assert!(answer.as_ref().is_ok_and(|it| it.body == "calm none"), "running applications answer: {answer:?}");
        std::thread::sleep(Duration::from_millis(50)); // the pace of a client
    }
    stores.etcd.boot();
    truth(&platform, "away");
    answers(&platform, "web.calm.test.localhost", "calm none");

    platform.status("calm/web");
    for application in ["demo", "calm"] {
        good(&platform, &["delete", application, "--yes"]);
    }
    gone(&mut platform);
}
