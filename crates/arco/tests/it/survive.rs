//! Applications that behave badly, each with the right status, reason and advice, and the others untouched; a full disk.

use crate::behave::{EXECUTABLE, good, says, source};
use arco_testkit::{Options, Platform, is_root, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// What is asked of one way to behave: name, status, words of the reason, words of the advice.
const WAYS: [(&str, &str, &[&str], &[&str]); 12] = [
    ("serve", "running", &[], &[]),
    ("late", "running", &[], &[]),
    ("stubborn", "running", &[], &[]),
    ("flood", "running", &[], &[]),
    ("binary", "running", &[], &[]),
    ("crash", "abnormal", &["exited with status 3", "the cellar is on fire"], &["arco logs mad/crash"]),
    ("brief", "abnormal", &["exited with status 4", "the well is dry"], &["arco logs mad/brief"]),
    ("never", "abnormal", &["nothing listens on 0.0.0.0:8080"], &["0.0.0.0", "PORT"]),
    ("loopback", "abnormal", &["nothing listens on 0.0.0.0:8080; it listens on 127.0.0.1:8080"], &["0.0.0.0:8080"]),
    ("other", "abnormal", &["it listens on 0.0.0.0:3999"], &["--port 3999"]),
    ("memory", "abnormal", &["out of memory at 48 MB"], &["--memory-mb"]),
    ("disk", "abnormal", &["is full at 64 MB"], &["--volume"]),
];

fn manifest() -> String {
    let mut text = "application: mad\ncomponents:\n".to_owned();
    for (way, ..) in WAYS {
        // Only what never listens is given up because time is over; the machine may be slow.
        let deadline = if ["never", "loopback", "other"].contains(&way) { 30_000 } else { 600_000 };
        // What ends a second after its start never counts, however late that is seen; `late` is to behave so as well.
        let least = [("brief", 600_000), ("late", 20_000)].iter().find(|it| it.0 == way).map_or(2_000, |it| it.1);
        text += &format!(
            "  {way}:\n    source: .\n    env: {{BEHAVE: {way}}}\n    resources: {{memory_mb: 48, disk_mb: 64}}\n    \
             rollout: {{start_deadline_ms: {deadline}, min_ready_ms: {least}, stop_grace_ms: 1000, drain_ms: 2000, \
             max_surge: 1}}\n"
        );
    }
    text
}

#[test]
fn applications_that_behave_badly_get_a_reason_and_leave_others_alone() {
    if !is_root() {
        return;
    }
    let platform = Platform::start(EXECUTABLE);
    let folder = source(&platform);
    let file = folder.join("all.yaml");
    std::fs::write(&file, manifest()).unwrap();
    let applied = good(&platform, &["apply", "-f", file.to_str().unwrap(), "--detach"]);
    let operations: BTreeMap<String, String> = applied["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["component"].as_str().unwrap().to_owned(), it["id"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(operations.len(), WAYS.len(), "{applied}");
    for (way, status, reason, advice) in WAYS {
        let ended = platform.ended(&operations[way], 120);
        let reference = format!("mad/{way}");
        let wanted = if status == "running" { "succeeded" } else { "failed" };
        assert_eq!(ended["status"], wanted, "{way}: {ended} {}", platform.status(&reference));
        if status != "running" {
            says(&ended["problem"]["message"], reason);
            says(&ended["problem"]["advice"], advice);
        }
        let now = until(&format!("{way} is {status}"), 60, || {
            let now = platform.status(&reference);
            (now["status"] == status).then_some(now)
        });
        says(&now["reason"], reason);
        says(&now["advice"], advice);
    }
    for way in ["serve", "late", "stubborn", "flood", "binary"] {
        answers(&platform, way, 200);
    }
    answers(&platform, "crash", 503);
    let ids: Vec<_> = platform.status("mad/serve")["instances"].as_array().unwrap().clone();
    assert_eq!(ids[0]["restarts"], 0, "the calm one is untouched");

    binary_output_is_readable(&platform);
    until("the log says why the program was ended", 60, || {
        let log = platform.arco(&["logs", "mad/memory", "--grep", "the program was ended"]).stdout;
        log.contains("out of memory at 48 MB").then_some(())
    });
    floods_fill_nothing(&platform);
    good(&platform, &["stop", "mad/stubborn"]);
    a_second_size_that_fails_says_what_is_true(&platform);

    good(&platform, &["delete", "mad", "--yes"]);
    let mut platform = platform;
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

/// Waits until the component that behaves so answers with this status.
fn answers(platform: &Platform, way: &str, status: u16) {
    let host = format!("{way}.mad.test.localhost");
    until(&format!("{way} answers {status}"), 60, || platform.get(&host, "/").ok().filter(|it| it.status == status));
}

fn binary_output_is_readable(platform: &Platform) {
    until("the log of binary output is whole", 60, || {
        let log = platform.arco(&["logs", "mad/binary"]);
        (log.status == 0 && log.stdout.contains("after it")).then_some(())
    });
    let lines = platform.json(&["logs", "mad/binary"]);
    let longest = lines["lines"].as_array().unwrap().iter().map(|it| it["text"].as_str().unwrap().len()).max();
    assert!(longest.unwrap() <= 64 << 10, "{longest:?}");
}

fn floods_fill_nothing(platform: &Platform) {
    let bytes = |path: &str| -> u64 {
        let out = Command::new("du").args(["-sb", "--"]).arg(platform.data_dir().join(path)).output().unwrap();
        String::from_utf8_lossy(&out.stdout).split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(0)
    };
    assert!(bytes("logs") < 600 << 20, "{}", bytes("logs"));
    let tail = platform.arco(&["logs", "mad/flood", "--tail", "5"]);
    assert!(tail.status == 0 && tail.stdout.contains("0123456789"), "{tail:?}");
    assert_eq!(platform.arco(&["list"]).status, 0, "the platform answers beside a flood");
}

/// A size that does not fit: the same revision, so nothing "previous" serves.
fn a_second_size_that_fails_says_what_is_true(platform: &Platform) {
    let failed = platform.json(&["env", "set", "mad/late", "BEHAVE=crash"]);
    says(&failed["message"], &["exited with status 3"]);
    let degraded = || Some(platform.status("mad/late")).filter(|it| it["status"] == "degraded");
    let now = until("it is degraded", 60, degraded);
    says(&now["reason"], &["exited with status 3"]);
    says(&now["advice"], &["previous revision keeps serving", "arco rollback mad/late"]);
    answers(platform, "late", 200);
    // One that opens its port before it fails replaces nothing either.
    let failed = platform.json(&["env", "set", "mad/late", "BEHAVE=brief"]);
    says(&failed["message"], &["exited with status 4"]);
    until("it is degraded again", 60, degraded);
    answers(platform, "late", 200);
}

/// A small file system of its own in a file.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(megabytes: u64) -> Self {
        let folder = tempfile::Builder::new().prefix("arco-disk-").tempdir().unwrap();
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let run = |program: &str, words: &[&std::ffi::OsStr]| {
            let done = Command::new(program).args(words).output().unwrap();
            assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        };
        run("mkfs.ext4", &["-q".as_ref(), "-m0".as_ref(), image.as_os_str()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()]);
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("mount").join(name)
    }

    /// Takes all room there is.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.path("fill")).unwrap();
        let mut size = 1 << 20;
        while size > 0 {
            if file.write_all(&vec![1; size]).and_then(|()| file.sync_data()).is_err() {
                size /= 2;
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.path("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path("")).status();
    }
}

#[test]
fn a_full_disk_stops_deploys_and_nothing_else() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::new(1536);
    let data_dir = disk.path("data");
    std::fs::create_dir(&data_dir).unwrap();
    let mut platform = Platform::start_with(EXECUTABLE, Options { data_dir: Some(data_dir), ..Options::default() });
    let folder = source(&platform);
    let folder = folder.to_str().unwrap();
    good(&platform, &["deploy", folder, "--app", "full", "--component", "web"]);
    let before = platform.status("full/web")["instances"].clone();
    let asks = |platform: &Platform| platform.get("web.full.test.localhost", "/").map(|it| it.status).ok();
    disk.fill();
    let failed = platform.json(&["deploy", folder, "--app", "full", "--component", "second", "--timeout", "600"]);
    let text = Value::from(failed.to_string());
    says(&text, &["full"]);
    says(&text, &["advice", "space"]);
    assert_eq!(asks(&platform), Some(200));
    assert_eq!(platform.arco(&["status", "full/web"]).status, 0, "reading goes on");
    // Also across a restart of the server.
    platform.kill();
    assert_eq!(asks(&platform), Some(200));
    disk.free();
    platform.boot();
    good(&platform, &["deploy", folder, "--app", "full", "--component", "third"]);
    let now = until("the application is as it was", 60, || {
        let now = platform.status("full/web");
        (now["status"] == "running").then(|| now["instances"].clone())
    });
    assert_eq!((&before[0]["id"], &before[0]["restarts"]), (&now[0]["id"], &now[0]["restarts"]));
    // And once more without a restart.
    disk.fill();
    let _ = platform.arco(&["deploy", folder, "--app", "full", "--component", "fourth", "--timeout", "30"]);
    disk.free();
    until("deploys work again", 60, || {
        (platform.arco(&["deploy", folder, "--app", "full", "--component", "fifth"]).status == 0).then_some(())
    });
    // What was under way then has ended, and its component takes the next deploy.
    good(&platform, &["deploy", folder, "--app", "full", "--component", "second"]);
    until("the component that was being built can be deployed", 60, || {
        (platform.arco(&["deploy", folder, "--app", "full", "--component", "fourth"]).status == 0).then_some(())
    });
    assert_eq!(asks(&platform), Some(200));
    good(&platform, &["delete", "full", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}
