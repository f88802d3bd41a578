//! Builds and sources that mean harm: a clear error each, nothing escapes, others are built and served all the while.

use crate::behave::{EXECUTABLE, dockerfile, good, says, source};
use crate::neighbour::Neighbour;
use arco_api::client::{Client, Context};
use arco_api::wire::DeployRequest;
use arco_testkit::{Options, Platform, is_root, until};
use serde_json::Value;
use std::io::Write as _;
use std::net::TcpListener;

/// A platform whose builds may take so many seconds.
fn platform(longest: u64) -> Platform {
    let env = vec![
        ("ARCO_BUILDER__TIMEOUT_MS", (longest * 1000).to_string()),
        ("ARCO_BUILDER__MEMORY_MB", "256".to_owned()),
        ("ARCO_BUILDER__DISK_MB", "256".to_owned()),
        ("ARCO_BUILDER__PIDS", "100".to_owned()),
        ("ARCO_BUILDER__CONCURRENCY", "6".to_owned()),
    ];
    Platform::start_with(EXECUTABLE, Options { env, ..Options::default() })
}

/// Begins a deploy; its operation.
fn begin(platform: &Platform, folder: &std::path::Path, component: &str) -> String {
    let words = ["deploy", folder.to_str().unwrap(), "--app", "bad", "--component", component, "--detach"];
    let document = good(platform, &words);
    document["operation"].as_str().unwrap_or_else(|| panic!("{document}")).to_owned()
}

fn build_log(platform: &Platform, operation: &str) -> String {
    platform.arco(&["logs", "--operation", operation]).stdout
}

/// The log once it has these words: lines may be kept a little after the operation has ended.
fn whole_log(platform: &Platform, operation: &str, words: &[&str]) -> String {
    until(&format!("{words:?} in the log"), 60, || {
        Some(build_log(platform, operation)).filter(|log| words.iter().all(|it| log.contains(it)))
    })
}

#[test]
fn builds_that_mean_harm_end_and_leave_others_alone() {
    if !is_root() {
        return;
    }
    let mut platform = platform(600);
    good(&platform, &["deploy", source(&platform).to_str().unwrap(), "--app", "calm", "--component", "web"]);
    let instance = platform.status("calm/web")["instances"][0].clone();
    let data = platform.data_dir();
    let probe = TcpListener::bind("0.0.0.0:0").unwrap();
    probe.set_nonblocking(true).unwrap();
    let ports = ["api", "console", "registry", "http"].map(|it| platform.address(it).unwrap().port());
    let ports = ports.iter().map(u16::to_string).chain([probe.local_addr().unwrap().port().to_string()]);
    let ports = ports.collect::<Vec<_>>().join(" ");
    let address = instance["address"].as_str().unwrap();
    let clone = env!("CARGO_MANIFEST_DIR");
    let peek = format!(
        "RUN for it in {data} /var/lib/arco /var/cache/arco /run/arco {clone} /home/*; do [ ! -e $it ] || echo SEEN $it; done; \
         echo processes $(ls /proc | grep -c '^[0-9]'); grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; \
         for host in $(sed -n 's/^nameserver //p' /etc/resolv.conf) 127.0.0.1; do for port in {ports}; do \
         timeout 2 bash -c \"exec 3<>/dev/tcp/$host/$port\" 2>/dev/null && echo REACHED $host $port; done; done; \
         timeout 2 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80' 2>/dev/null && echo REACHED metadata; \
         timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/8080' 2>/dev/null && echo REACHED instance; \
         mount -t tmpfs none /mnt 2>/dev/null && echo MOUNTED; echo looked; exit 5",
        data = data.display()
    );
    let operations = [
        ("cancelled", "RUN echo begun; sleep 100001".to_owned()),
        ("bomb", "RUN f() { f | f & }; f; sleep 2; echo still here; exit 7".to_owned()),
        ("disk", "RUN dd if=/dev/zero of=/big bs=1M count=1000".to_owned()),
        ("memory", "RUN perl -e 'push @a, \"x\" x (1<<20) while 1'".to_owned()),
        ("peek", peek),
    ]
    .map(|(name, lines)| (name, begin(&platform, &dockerfile(&platform, name, &lines), name)));
    let operation = |name: &str| operations.iter().find(|it| it.0 == name).unwrap().1.clone();

    until("the build to cancel runs", 60, || {
        build_log(&platform, &operation("cancelled")).contains("begun").then_some(())
    });
    let began = std::time::Instant::now();
    let cancelled = platform.arco(&["operation", "cancel", &operation("cancelled")]);
    assert_eq!(cancelled.status, 0, "{cancelled:?}");
    assert_eq!(platform.ended(&operation("cancelled"), 60)["status"], "cancelled", "after {:?}", began.elapsed());

    for (name, words) in [
        ("bomb", &["ended with status"][..]),
        ("disk", &["filled its disk of 256 MB"]),
        ("memory", &["out of memory at 256 MB"]),
        ("peek", &["ended with status 5"]),
    ] {
        let ended = platform.ended(&operation(name), 120);
        assert_eq!(ended["status"], "failed", "{name}: {ended}\n{}", build_log(&platform, &operation(name)));
        says(&ended["problem"]["message"], words);
        assert_ne!(ended["problem"]["advice"], "", "{ended}");
        // The controller looks once more after the build has ended.
        until(&format!("{name} shows it"), 60, || {
            (platform.status(&format!("bad/{name}"))["status"] == "build_failed").then_some(())
        });
    }
    let seen = whole_log(&platform, &operation("peek"), &["\nlooked\n", "Seccomp:\t2", "NoNewPrivs:\t1"]);
    for forbidden in ["SEEN", "REACHED", "MOUNTED"] {
        assert!(!seen.lines().any(|it| it.starts_with(forbidden)), "{seen}");
    }
    assert!(probe.accept().is_err(), "nobody came");

    // Nothing of the builds runs any more, the calm one is as it was, and builds still work.
    until("no process of a build is left", 60, || {
        let shown =
            std::process::Command::new("pgrep").args(["-f", "^(sleep 100001|/bin/sh -c f\\(\\))"]).output().unwrap();
        shown.stdout.is_empty().then_some(())
    });
    let now = platform.status("calm/web")["instances"][0].clone();
    assert_eq!((&now["id"], &now["restarts"]), (&instance["id"], &instance["restarts"]));
    good(&platform, &["deploy", source(&platform).to_str().unwrap(), "--app", "calm", "--component", "second"]);
    for app in ["bad", "calm"] {
        good(&platform, &["delete", app, "--yes"]);
    }
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

#[test]
fn a_build_that_does_not_end_is_ended() {
    if !is_root() {
        return;
    }
    let mut platform = platform(30);
    let folder = dockerfile(&platform, "endless", "RUN echo begun; sleep 100002");
    let ended = platform.ended(&begin(&platform, &folder, "endless"), 60);
    assert_eq!(ended["status"], "failed", "{ended}");
    says(&ended["problem"]["message"], &["longer than the 30 s"]);
    assert_ne!(ended["problem"]["advice"], "", "{ended}");
    let shown = || (platform.status("bad/endless")["status"] == "build_failed").then_some(());
    until("its component shows it", 60, shown);
    until("no process of the build is left", 60, || {
        let shown = std::process::Command::new("pgrep").args(["-f", "^sleep 100002"]).output().unwrap();
        shown.stdout.is_empty().then_some(())
    });
    good(&platform, &["delete", "bad", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

/// An archive with entries that a well-meaning client would not make.
fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    fill(&mut builder);
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(&builder.into_inner().unwrap()).unwrap();
    zip.finish().unwrap()
}

/// Adds an entry whose path is written as it is, also when it leaves the archive.
fn entry(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    let raw = header.as_old_mut();
    raw.name[..path.len()].copy_from_slice(path.as_bytes());
    raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

/// Calls of the API that the command line would not make.
struct Raw {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Raw {
    fn new(platform: &Platform) -> Self {
        let context = Context::load(&platform.data_dir().join("admin.toml")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { client: Client::new(&context).unwrap(), runtime }
    }

    /// Uploads an archive and begins to deploy it; the operation.
    fn deploy(&self, component: &str, archive: Vec<u8>) -> String {
        self.runtime.block_on(async {
            let size = archive.len() as u64;
            let receipt = self.client.upload("default", size, std::io::Cursor::new(archive)).await.unwrap();
            let request = serde_json::json!({"source": {"kind": "upload", "digest": receipt.digest}});
            let request: DeployRequest = serde_json::from_value(request).unwrap();
            self.client.deploy("default", ("tar", component), &request).await.unwrap().id.clone()
        })
    }
}

#[test]
fn sources_that_mean_harm_are_refused() {
    if !is_root() {
        return;
    }
    let mut platform = platform(60);
    names_and_settings_are_checked(&platform);
    urls_are_refused(&platform);

    let empty = platform.folder("empty", &[]);
    let failed = platform.json(&["deploy", empty.to_str().unwrap(), "--app", "empty", "--component", "web"]);
    says(&failed["message"], &["empty"]);
    assert_ne!(failed["advice"], "", "{failed}");

    let raw = Raw::new(&platform);
    let marker = platform.data_dir().parent().unwrap().join("escaped");
    let up = format!("../../../../../../..{}", marker.display());
    use tar::EntryType::{Block, Link, Regular, Symlink};
    let page = |it: &mut tar::Builder<Vec<u8>>| entry(it, Regular, "index.html", "", b"hello");
    let refused = [
        (
            "up",
            archive(|it| {
                page(it);
                entry(it, Regular, &up, "", b"x")
            }),
        ),
        (
            "absolute",
            archive(|it| {
                page(it);
                entry(it, Regular, marker.to_str().unwrap(), "", b"x")
            }),
        ),
        (
            "through",
            archive(|it| {
                page(it);
                entry(it, Symlink, "a", "/tmp", b"");
                entry(it, Regular, "a/escaped", "", b"x")
            }),
        ),
        (
            "hard",
            archive(|it| {
                page(it);
                entry(it, Link, "shadow.html", "/etc/shadow", b"")
            }),
        ),
        (
            "device",
            archive(|it| {
                page(it);
                entry(it, Block, "disk.html", "", b"")
            }),
        ),
        (
            "soft",
            archive(|it| {
                page(it);
                entry(it, Symlink, "passwd.html", "/etc/passwd", b"")
            }),
        ),
        ("broken", {
            let mut all = archive(page);
            all.truncate(40);
            all
        }),
    ]
    .map(|(name, archive)| (name, raw.deploy(name, archive)));
    for (name, operation) in refused {
        let ended = platform.ended(&operation, 60);
        let answer = |path: &str| platform.get(&format!("{name}.tar.test.localhost"), path).map(|it| it.status).ok();
        match ended["status"].as_str() {
            Some("failed") => assert!(!ended["problem"]["advice"].as_str().unwrap().is_empty(), "{name}: {ended}"),
            // What points out of the source may also be left out; then the rest is served.
            Some("succeeded") if ["hard", "device", "soft", "through"].contains(&name) => {
                until(&format!("{name} answers"), 60, || (answer("/index.html") == Some(200)).then_some(()));
                for path in ["/shadow.html", "/disk.html", "/passwd.html"] {
                    assert_eq!(answer(path), Some(404), "{name} {path}");
                }
            }
            _ => panic!("{name}: {ended}"),
        }
        assert!(!marker.exists() && !std::path::Path::new("/tmp/escaped").exists(), "{name} escaped");
    }
    for app in ["tar", "empty", "git"] {
        let _ = platform.arco(&["delete", app, "--yes"]);
    }
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

fn names_and_settings_are_checked(platform: &Platform) {
    let folder = platform.folder("page", &[("index.html", "hello")]);
    let folder = folder.to_str().unwrap();
    for words in [
        &["--app", "Not_A_Name", "--component", "web"][..],
        &["--app", "a--b", "--component", "web"],
        &["--app", "../etc", "--component", "web"],
        &["--app", "names", "--component", "$(touch /tmp/escaped)"],
        &["--app", "names", "--component", "web", "--env", "A B=1"],
        &["--app", "names", "--component", "web", "--volume", "v:../etc"],
        &["--app", "names", "--component", "web", "--volume", "v:/proc"],
        &["--app", "names", "--component", "web", "--bind", "no/such"],
        &["--app", "names", "--component", "web", "--memory-mb", "0"],
        &["--app", "names", "--component", "web", "--replicas", "100000"],
        &["--app", "names", "--component", "web", "--dir", "../../etc"],
        &["--app", "names", "--component", "web", "--kind", "cron", "--schedule", "* * *"],
    ] {
        let failed = platform.json(&[&["deploy", folder], words].concat());
        assert!(failed["code"].is_string() && failed["message"].is_string(), "{words:?}: {failed}");
        assert!(failed["advice"].as_str().is_some_and(|it| !it.is_empty()), "{words:?}: {failed}");
    }
    let listed = platform.json(&["list"]);
    let ran: Vec<_> = listed["items"].as_array().unwrap().iter().filter(|it| it["status"] == "running").collect();
    assert!(ran.is_empty(), "{listed}");
    good(platform, &["deploy", folder, "--app", "names", "--component", "web"]);
    good(platform, &["deploy", folder, "--app", "names", "--component", "other"]);
    good(platform, &["route", "add", "names/web", "mine.example.com"]);
    let taken = platform.arco(&["route", "add", "names/other", "mine.example.com", "-o", "json"]);
    assert_eq!(taken.status, 6, "{taken:?}");
    good(platform, &["delete", "names", "--yes"]);
}

fn urls_are_refused(platform: &Platform) {
    let marker = std::path::Path::new("/tmp/arco-url-escaped");
    for url in [
        "ext::sh -c 'touch /tmp/arco-url-escaped'",
        "--upload-pack=touch /tmp/arco-url-escaped",
        "fd::17",
        "ssh://-oProxyCommand=id/x",
    ] {
        let words = ["deploy", "--app", "git", "--component", "web", "-o", "json", "--", url];
        let refused = platform.arco(&words);
        assert!([1, 2].contains(&refused.status), "{url}: {refused:?}");
        assert!(!marker.exists(), "{url}");
    }
    // The server does not read its own files, whatever a client sends.
    let raw = Raw::new(platform);
    for url in ["file:///etc", "/etc", "ext::sh -c id", "--upload-pack=id"] {
        let request = serde_json::json!({"source": {"kind": "git", "url": url}});
        let request: DeployRequest = serde_json::from_value(request).unwrap();
        let answer = raw.runtime.block_on(raw.client.deploy("default", ("git", "raw"), &request));
        let refused = answer.map(|it| it.id).unwrap_err().to_string();
        assert!(refused.contains("refused"), "{url}: {refused}");
    }
    // A reference is no option.
    let outcome = platform.json(&[
        "deploy",
        "https://192.0.2.1/a.git",
        "--app",
        "git",
        "--component",
        "ref",
        "--ref=--upload-pack=id",
        "--timeout",
        "60",
    ]);
    assert!(outcome["advice"].is_string(), "{outcome}");
    addresses_are_out_of_reach(platform);
}

/// A Git server on this machine, on loopback and on every address: the fetch step must not get there.
fn addresses_are_out_of_reach(platform: &Platform) {
    let here = TcpListener::bind("0.0.0.0:0").unwrap();
    here.set_nonblocking(true).unwrap();
    let port = here.local_addr().unwrap().port();
    let state = std::fs::read_to_string(platform.data_dir().join("network/state.json")).unwrap();
    let pool = serde_json::from_str::<Value>(&state).unwrap()["pool"].as_str().unwrap().to_owned();
    let (network, _) = pool.split_once('/').unwrap();
    let bridge = format!("{}.1", network.rsplit_once('.').unwrap().0);
    let own = std::process::Command::new("hostname").arg("-I").output().map(|it| it.stdout).unwrap_or_default();
    let own = String::from_utf8_lossy(&own).split_whitespace().next().unwrap_or("127.0.0.1").to_owned();
    let console = platform.address("console").unwrap().port();
    let urls = [
        ("loopback", format!("http://127.0.0.1:{port}/a.git")),
        ("name", format!("http://localhost:{port}/a.git")),
        ("bridge", format!("http://{bridge}:{port}/a.git")),
        ("own", format!("git://{own}:{port}/a.git")),
        ("console", format!("http://{bridge}:{console}/a.git")),
        ("metadata", "http://169.254.169.254/latest/a.git".to_owned()),
    ];
    let operations = urls.map(|(name, url)| {
        let document = good(platform, &["deploy", &url, "--app", "git", "--component", name, "--detach"]);
        (url, document["operation"].as_str().unwrap().to_owned())
    });
    for (url, operation) in operations {
        let ended = platform.ended(&operation, 60);
        assert_eq!(ended["status"], "failed", "{url}: {ended}");
        assert_ne!(ended["problem"]["advice"], "", "{url}: {ended}");
    }
    assert!(here.accept().is_err(), "somebody came");
}

#[test]
fn a_huge_repository_is_refused_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let neighbour = Neighbour::new();
    let mut noise = vec![0; 96 << 20];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
    neighbour.repository_of("team/huge.git", &[("index.html", b"hello"), ("noise", &noise)]);
    let (port, _) = neighbour.https("ada", "token");
    let env = vec![
        ("ARCO_BUILDER__ALLOWED_NETWORKS", neighbour.network()),
        ("ARCO_BUILDER__DISK_MB", "64".to_owned()),
        ("SSL_CERT_FILE", neighbour.trust().display().to_string()),
    ];
    let mut platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });
    let page = platform.folder("page", &[("index.html", "calm")]);
    good(&platform, &["deploy", page.to_str().unwrap(), "--app", "calm", "--component", "web"]);
    let host = format!("https://{}:{port}", neighbour.address);
    let token = neighbour.folder.path().join("token");
    std::fs::write(&token, "token").unwrap();
    good(&platform, &["credential", "set", &host, "--user", "ada", "--token", &format!("@{}", token.display())]);
    let before = std::fs::read_dir(platform.data_dir().join("instances")).unwrap().count();
    let failed = platform.json(&["deploy", &format!("{host}/team/huge.git"), "--app", "huge", "--component", "web"]);
    assert_eq!(failed["code"], "source_too_large", "{failed}");
    says(&failed["message"], &["too large", "64 MB"]);
    says(&failed["advice"], &["builder.disk_mb"]);
    let shown = || (platform.status("huge/web")["status"] == "build_failed").then_some(());
    until("its component shows it", 60, shown);
    assert_eq!(std::fs::read_dir(platform.data_dir().join("instances")).unwrap().count(), before);
    assert_eq!(platform.get("web-calm.test.localhost", "/").unwrap().body, "calm");
    for app in ["calm", "huge"] {
        good(&platform, &["delete", app, "--yes"]);
    }
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

#[test]
fn a_long_build_whose_server_is_killed_is_done_again() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let lines = "RUN echo first > /first\nRUN echo begun; sleep 20.31; echo over > /second";
    let operation = begin(&platform, &dockerfile(&platform, "long", lines), "long");
    until("the build runs", 300, || build_log(&platform, &operation).lines().any(|it| it == "begun").then_some(()));
    platform.kill();
    platform.boot();
    let ended = platform.ended(&operation, 120);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    // What was finished before is found again; what was cut off is done again. The last lines before the kill may be
    // missing: they are shown before they are written.
    whole_log(&platform, &operation, &["unchanged, from the cache", "step 2 of 3"]);
    let revisions = platform.json(&["revisions", "bad/long"]);
    assert_eq!(revisions["items"].as_array().unwrap().len(), 1, "{revisions}");
    assert_eq!(platform.arco(&["exec", "bad/long", "--", "cat", "/first", "/second"]).stdout, "first\nover\n");
    until("no process of the first build is left", 60, || {
        let shown = std::process::Command::new("pgrep").args(["-f", "^sleep 20.31"]).output().unwrap();
        shown.stdout.is_empty().then_some(())
    });
    good(&platform, &["delete", "bad", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}
