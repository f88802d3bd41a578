//! The data plane of a platform: what it may not do, and that applications answer and names resolve while it is killed,
//! replaced by another build, and left without a server.

use crate::behave::{EXECUTABLE, good, source};
use crate::hand_over::{children, has_ended, signal};
use crate::load::Load;
use arco_gateway::process::adopt;
use arco_model::traffic::GATEWAY_PREFIX;
use arco_store::kv::mirror::Mirror;
use arco_testkit::{Options, Platform, is_root, until};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

const HOST: &str = "named.calm.test.localhost";

const JOURNAL: &str = "data-plane/state/routes.journal";

fn holder(platform: &Platform) -> u32 {
    let file = platform.data_dir().join("run/data-plane.pid");
    // It is empty for a moment, when there is another one.
    until("the number of the data plane", 60, || std::fs::read_to_string(&file).ok()?.trim().parse().ok())
}

/// Waits until the routes that count are on disk: they count first.
fn are_kept(platform: &Platform) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    until("the routes are on disk", 60, || {
        let known = runtime.block_on(adopt(&platform.data_dir()))?.status.applied_revision;
        let kept = Mirror::open_shared(GATEWAY_PREFIX, &platform.data_dir().join(JOURNAL)).ok()?;
        kept.read(|it| it.revision >= known).then_some(())
    });
}

fn worker(platform: &Platform) -> u32 {
    until("one worker of the data plane", 60, || {
        let workers = children(holder(platform));
        (workers.len() == 1).then(|| *workers.first().unwrap())
    })
}

/// Lines of `/proc/PID/status` by name.
fn status(pid: u32, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

fn has_few_rights(platform: &Platform) {
    let worker = worker(platform);
    // It begins as root, and serves nobody before it has given that up; the filter of system calls comes last.
    until("the data plane gives up root", 60, || (status(worker, "Seccomp") == ["2"]).then_some(()));
    let uids = status(worker, "Uid");
    let uid: u32 = uids[0].parse().unwrap();
    assert!((61_184..=65_519).contains(&uid), "{uids:?}");
    assert!(uids.iter().all(|it| *it == uids[0]) && status(worker, "Gid") == uids, "{uids:?}");
    assert_eq!(status(worker, "Groups"), Vec::<String>::new());
    // CAP_NET_BIND_SERVICE is number 10.
    for (set, wanted) in [("CapInh", 0), ("CapPrm", 1 << 10), ("CapEff", 1 << 10), ("CapBnd", 1 << 10), ("CapAmb", 0)] {
        let bits = u64::from_str_radix(&status(worker, set)[0], 16).unwrap();
        assert_eq!(bits, wanted, "{set} is {bits:#x}");
    }
    assert_eq!((status(worker, "NoNewPrivs"), status(worker, "Seccomp")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    let data_dir = std::fs::canonicalize(platform.data_dir()).unwrap();
    assert_eq!(std::fs::read_link(format!("/proc/{worker}/root")).unwrap(), data_dir.join("data-plane"));
    let mut secret: Vec<_> = ["secret.key", "admin.toml", "run/data-plane.pid"].map(|it| data_dir.join(it)).into();
    secret.extend(std::fs::read_dir(data_dir.join("pki")).unwrap().map(|it| it.unwrap().path()));
    let reads = |path: &Path| Command::new("cat").arg(path).uid(uid).gid(uid).output().unwrap().status.success();
    let keys: Vec<_> = secret.iter().filter(|it| it.metadata().unwrap().mode() & 0o077 == 0).collect();
    assert!(keys.len() >= 4, "{secret:?}");
    for path in keys {
        assert!(!reads(path), "the data plane's user reads {}", path.display());
    }
    let journal = until("the last known routes", 60, || data_dir.join(JOURNAL).metadata().ok());
    assert_eq!((journal.uid(), journal.mode() & 0o777), (uid, 0o600));
    // What root acts by is not its user's to change.
    let link = data_dir.join("data-plane/link.json").metadata().unwrap();
    let folder = data_dir.join("data-plane").metadata().unwrap();
    assert_eq!((link.uid(), link.mode() & 0o777, folder.uid(), folder.mode() & 0o777), (0, 0o640, 0, 0o750));
}

/// A client that asks `HOST` on a connection of its own each time.
fn load(platform: &Platform) -> Load {
    let gateway = platform.address("http").unwrap();
    Load::start(1, || {
        move || match arco_testkit::get(gateway, HOST, "/") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

#[test]
fn the_data_plane_has_few_rights_and_outlives_whatever_happens() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let folder = source(&platform);
    // Answers only when its own name resolves, so DNS is asked with every request.
    let words = ["deploy", folder.to_str().unwrap(), "--app", "calm", "--component", "named", "--env", "BEHAVE=names"];
    good(&platform, &words);
    let asks = |platform: &Platform| platform.get(HOST, "/").map(|it| it.status).map_err(|it| it.to_string());
    until("the application answers", 60, || (asks(&platform) == Ok(200)).then_some(()));
    has_few_rights(&platform);

    // Killed without a server: the last known routes are enough.
    are_kept(&platform);
    let (before, keeper) = (worker(&platform), holder(&platform));
    platform.kill();
    signal("KILL", before);
    // What it takes while it dies is lost with it.
    until("the end of the worker", 60, || has_ended(before).then_some(()));
    assert_eq!(asks(&platform), Ok(200));
    assert_ne!(worker(&platform), before);

    // The next server finds it as it is.
    let before = worker(&platform);
    platform.boot();
    assert_eq!((holder(&platform), worker(&platform)), (keeper, before), "{}", platform.log());
    has_few_rights(&platform);

    // Another build takes over: nothing is refused, nothing cut.
    let load = load(&platform);
    load.goes_on(20);
    let data_dir = platform.data_dir();
    let words = ["data-plane", "--hand-over", "--data-dir", data_dir.to_str().unwrap()];
    for _ in 0..2 {
        let before = worker(&platform);
        let outcome = platform.arco(&words);
        assert_eq!(outcome.status, 0, "{outcome:?}");
        assert!(outcome.stderr.contains("took over"), "{outcome:?}");
        load.goes_on(20);
        until("the one before ends", 60, || (!children(holder(&platform)).contains(&before)).then_some(()));
        assert_eq!(holder(&platform), keeper);
    }
    load.goes_on(20);
    let complaints = load.end();
    assert!(
        complaints.is_empty(),
        "{} requests failed: {:?}",
        complaints.len(),
        &complaints[..complaints.len().min(5)]
    );
    has_few_rights(&platform);

    // The new one follows the store: a new component is routed and resolves.
    let words = ["deploy", folder.to_str().unwrap(), "--app", "calm", "--component", "second", "--env", "BEHAVE=names"];
    good(&platform, &words);
    let second = || platform.get("second.calm.test.localhost", "/").ok().filter(|it| it.status == 200);
    until("the second component answers and resolves", 60, second);

    // Without its keeper it makes room, and the server starts another one on the same address.
    signal("KILL", keeper);
    until("a data plane with another keeper answers", 60, || {
        (asks(&platform) == Ok(200) && holder(&platform) != keeper).then_some(())
    });
    has_few_rights(&platform);

    good(&platform, &["delete", "calm", "--yes"]);
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

#[test]
fn the_access_log_is_rotated_though_its_writer_cannot_open_it() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (log, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let setting = format!("{{ destination = \"{}\", sample = 1.0 }}", log.display());
    let env = vec![("ARCO_GATEWAY__ACCESS_LOG", setting)];
    let mut platform = Platform::start_with(EXECUTABLE, Options { env, ..Options::default() });
    let asked = |platform: &Platform, path: &str, file: &Path| {
        assert_eq!(platform.get("nobody.test", path).unwrap().status, 404);
        until("its line", 60, || std::fs::read_to_string(file).ok()?.contains(&format!("\"{path}\"")).then_some(()));
    };
    asked(&platform, "/one", &log);
    let metadata = log.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o640), "only root makes it and reads it");
    std::fs::rename(&log, &old).unwrap();
    asked(&platform, "/two", &old);
    // As logrotate is told to.
    signal("HUP", holder(&platform));
    until("another file of that name", 60, || log.exists().then_some(()));
    // The worker gets it by a message: requests until then are in the one before.
    until("a line in it", 60, || {
        platform.get("nobody.test", "/three").unwrap();
        std::fs::read_to_string(&log).ok()?.contains("\"/three\"").then_some(())
    });
    // A worker that takes over opens it by itself.
    signal("KILL", worker(&platform));
    until("another worker's line", 60, || {
        platform.get("nobody.test", "/four").ok()?;
        std::fs::read_to_string(&log).ok()?.contains("\"/four\"").then_some(())
    });
    assert!(!std::fs::read_to_string(&old).unwrap().contains("/four"));
    let console = platform.address("console").unwrap();
    let metrics = || arco_testkit::get(console, "console", "/metrics/gateway").ok().filter(|it| it.status == 200);
    let metrics = until("the gateway's counters", 60, metrics);
    assert!(metrics.body.contains("\narco_gateway_access_log_dropped_total 0\n"), "{}", metrics.body);
    assert!(platform.stop(), "the server stops by itself");
}
