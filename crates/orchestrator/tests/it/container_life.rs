//! A container's life: start, output, exit, restart, stop, adoption, export, removal.

use crate::host_root::{all_lines, assert_nothing_left, in_time, place, until};
use arco_model::id::ComponentId;
use arco_model::log::LogStream;
use arco_model::plan::{HostMount, LayerExport};
use arco_orchestrator::ExecRequest;
use arco_orchestrator::local::container::{ContainerPhase, Containers, RestartPolicy};
use arco_store::clock;
use arco_store::logs::LogSink;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_and_its_output_and_status_are_kept() {
    let Some(place) = place().await else { return };
    let spec = place.spec("echo one; echo two >&2; exit 3");
    let id = spec.id.clone();
    let (lines, state) = place.run(spec).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    let exit = state.last_exit.unwrap();
    assert_eq!((state.phase, exit.status, exit.signal, exit.asked), (ContainerPhase::Exited, 3, None, false));
    assert!(exit.last_output.contains("one"), "{exit:?}");
    assert_eq!(state.labels["place"], "0");
    place.containers.remove(&id).await.unwrap();
    assert_nothing_left(&place.config, &id);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_programs_and_bad_settings_are_named() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("");
    spec.argv = vec!["no-such-program".to_owned()];
    let (lines, state) = place.run(spec).await;
    assert_eq!(state.last_exit.unwrap().status, 127);
    assert!(lines[0].contains("no-such-program"), "{lines:?}");
    let mut spec = place.spec("");
    spec.argv = vec!["/etc/passwd".to_owned()];
    assert_eq!(place.run(spec).await.1.last_exit.unwrap().status, 126);
    let mut spec = place.spec("true");
    spec.user = "nobody-here".to_owned();
    let id = spec.id.clone();
    let error = place.containers.create(spec).await.unwrap_err().to_string();
    assert!(error.contains("no user `nobody-here`"), "{error}");
    assert_nothing_left(&place.config, &id);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_started_again_and_stopped() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("if [ -e /seen ]; then trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done; fi; touch /seen; exit 1");
    spec.restart = RestartPolicy::BackOff;
    let id = spec.id.clone();
    let mut output = place.containers.output(&id).await;
    place.containers.create(spec).await.unwrap();
    // The pause is short: whoever looks late finds it running again.
    let state = until(&place.containers, &id, |it| it.last_exit.is_some()).await;
    assert_eq!(state.last_exit.unwrap().status, 1);
    assert!(state.phase == ContainerPhase::BackOff || state.restarts == 1, "{:?}", state.phase);
    until(&place.containers, &id, |it| it.restarts == 1 && it.phase == ContainerPhase::Running).await;
    assert_eq!(output.recv().await.unwrap().text, "up", "from here on it ends in its own way");
    place.containers.stop(&id, 600_000).await.unwrap();
    let state = place.containers.state(&id).await.unwrap();
    let exit = state.last_exit.unwrap();
    assert!(exit.asked && exit.status == 0, "{exit:?}");
    drop(all_lines(output).await);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_comes_before_the_program_is_not_lost() {
    let Some(place) = place().await else { return };
    for _ in 0..5 {
        let mut spec = place.spec("sleep 1000");
        spec.restart = RestartPolicy::BackOff;
        let id = spec.id.clone();
        place.containers.create(spec).await.unwrap();
        let stopped = place.containers.stop(&id, 600_000);
        tokio::time::timeout(in_time(Duration::from_secs(60)), stopped).await.expect("no end of the grace").unwrap();
        let exit = place.containers.state(&id).await.unwrap().last_exit.unwrap();
        assert_eq!((exit.status, exit.asked), (143, true), "it ended by the signal, not by the end of its grace");
        place.containers.remove(&id).await.unwrap();
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ignores_its_signal_is_killed() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("trap '' TERM; echo ready; while :; do sleep 1; done");
    spec.restart = RestartPolicy::BackOff;
    let id = spec.id.clone();
    let mut output = place.containers.output(&id).await;
    place.containers.create(spec).await.unwrap();
    assert_eq!(output.recv().await.unwrap().text, "ready");
    place.containers.stop(&id, 200).await.unwrap();
    assert_eq!(place.containers.state(&id).await.unwrap().last_exit.unwrap().status, 137);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_containers_are_adopted_with_their_log() {
    let Some(mut place) = place().await else { return };
    let mut spec = place.spec("echo first; while [ ! -e /go ]; do sleep 0.05; done; echo second; sleep 100");
    spec.restart = RestartPolicy::BackOff;
    let component = clock::fresh::<ComponentId>();
    spec.component = Some(component.clone());
    let id = spec.id.clone();
    place.containers.create(spec).await.unwrap();
    let batch = place.logs.recv().await.unwrap();
    assert_eq!((batch.stream, batch.lines[0].text.as_str()), (LogStream::Component { id: component }, "first"));
    assert_eq!(batch.lines[0].instance.as_ref(), Some(&id));
    batch.written.unwrap().send(()).unwrap();
    // The next server: the first one's tasks end as they would with its process.
    place.containers.close().await;
    let (sink, mut logs) = LogSink::channel(16);
    let next = Containers::open(place.config.clone(), place.images.clone(), sink).await.unwrap();
    let state = next.state(&id).await.unwrap();
    assert_eq!((state.phase, state.labels["place"].as_str()), (ContainerPhase::Running, "0"));
    let mut session =
        next.exec(&id, ExecRequest { argv: vec!["touch".into(), "/go".into()], terminal: None }).await.unwrap();
    assert_eq!((&mut session.exit).await.unwrap(), 0);
    loop {
        let batch = logs.recv().await.unwrap();
        let texts: Vec<_> = batch.lines.iter().map(|it| it.text.clone()).collect();
        batch.written.unwrap().send(()).unwrap();
        if texts.iter().any(|it| it == "second") {
            break;
        }
        assert_eq!(texts, ["first"], "only what was not acknowledged comes twice");
    }
    place.containers = next;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_shim_died_is_cleared() {
    let Some(mut place) = place().await else { return };
    let mut spec = place.spec("sleep 1000");
    spec.restart = RestartPolicy::BackOff;
    spec.component = Some(clock::fresh::<ComponentId>());
    let id = spec.id.clone();
    place.containers.create(spec).await.unwrap();
    let pid = place.containers.state(&id).await.unwrap().pid.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim: i32 = status.lines().find_map(|it| it.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let state = until(&place.containers, &id, |it| it.phase == ContainerPhase::Exited).await;
    assert!(state.last_exit.unwrap().last_output.contains("killed"));
    place.containers.close().await;
    let next = Containers::open(place.config.clone(), place.images.clone(), LogSink::channel(16).0).await.unwrap();
    assert!(next.list().await.is_empty());
    assert_nothing_left(&place.config, &id);
    place.containers = next;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_may_lie_within_another_one() {
    let Some(place) = place().await else { return };
    let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mount = |from: &tempfile::TempDir, path: &str| HostMount {
        host_path: from.path().to_owned(),
        path: path.to_owned(),
        writable: true,
    };
    // The inner one first: it must not be hidden below the outer one.
    for _ in 0..2 {
        let mut spec = place.spec("echo in > /data/deep/sub/file && echo out > /data/file && stat -c %u:%g /data/deep");
        spec.mounts = vec![mount(&inner, "/data/deep/sub"), mount(&outer, "/data")];
        let (lines, state) = place.run(spec).await;
        assert_eq!(state.last_exit.unwrap().status, 0, "{lines:?}");
        assert!(lines.iter().any(|it| it == "0:0"), "{lines:?}");
    }
    assert_eq!(std::fs::read_to_string(inner.path().join("file")).unwrap(), "in\n");
    assert_eq!(std::fs::read_to_string(outer.path().join("file")).unwrap(), "out\n");
    assert_eq!(std::fs::read_dir(outer.path().join("deep/sub")).unwrap().count(), 0);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_wrote_becomes_a_layer() {
    let Some(place) = place().await else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("given"), "from outside").unwrap();
    let mut spec = place.spec("mkdir -p /app/sub && cat /in/given > /app/sub/file && ln /app/sub/file /app/hard && ln -s sub /app/link && rm /etc/group && echo x > /skip && echo y > /in/back");
    spec.mounts = vec![HostMount { host_path: folder.path().to_owned(), path: "/in".to_owned(), writable: true }];
    let id = spec.id.clone();
    let (lines, state) = place.run(spec).await;
    assert_eq!(state.last_exit.unwrap().status, 0, "{lines:?}");
    assert_eq!(std::fs::read_to_string(folder.path().join("back")).unwrap(), "y\n");
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(folder.path().join("back")).unwrap()),
        0,
        "ids are shifted back"
    );
    let rules = LayerExport { include: Vec::new(), exclude: vec!["/skip".to_owned()] };
    let layer = place.containers.export_layer(&id, &rules).await.unwrap();
    assert_eq!(place.containers.export_layer(&id, &rules).await.unwrap(), layer, "twice the same");
    let mut spec = place.spec("cat /app/hard; stat -c %u:%g /app/sub/file; ls /etc/group /skip /in /.arco");
    spec.layers.push(layer);
    let (lines, _) = place.run(spec).await;
    let text = lines.join("\n");
    assert!(text.contains("from outside"), "{text}");
    assert!(text.contains("0:0"), "{text}");
    for missing in ["/etc/group", "/skip", "/in"] {
        assert!(text.contains(&format!("'{missing}': No such file")), "{missing}: {text}");
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_run_inside_with_and_without_a_terminal() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("sleep 1000");
    spec.user = "web".to_owned();
    spec.env.insert("GREETING".to_owned(), "hello".to_owned());
    let id = spec.id.clone();
    place.containers.create(spec).await.unwrap();
    let argv = |line: &str| vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()];
    let request = ExecRequest {
        argv: argv("cat; id -u; echo $GREETING; grep Seccomp: /proc/self/status; exit 7"),
        terminal: None,
    };
    let mut session = place.containers.exec(&id, request).await.unwrap();
    session.stdin.write_all(b"typed\n").await.unwrap();
    drop(session.stdin);
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(session.exit.await.unwrap(), 7);
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["typed", "1000", "hello", "Seccomp:", "2"]);
    let request = ExecRequest { argv: argv("tty; stty size; exit 5"), terminal: Some((90, 33)) };
    let mut session = place.containers.exec(&id, request).await.unwrap();
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(session.exit.await.unwrap(), 5);
    assert!(text.contains("/dev/pts/0") && text.contains("33 90"), "{text}");
    // A session that is dropped ends its program.
    let session = place.containers.exec(&id, ExecRequest { argv: argv("sleep 999"), terminal: None }).await.unwrap();
    until_pids(&place.containers, &id, |it| it >= 5).await;
    drop(session);
    until_pids(&place.containers, &id, |it| it <= 3).await;
    place.end().await;
}

/// Waits for a number of processes.
async fn until_pids(containers: &Containers, id: &arco_model::id::InstanceId, what: impl Fn(u32) -> bool) {
    let wait = async {
        while !what(containers.usage(id).await.unwrap().pids) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(in_time(Duration::from_secs(60)), wait).await.expect("the number of processes changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shots_go_with_their_server() {
    let Some(place) = place().await else { return };
    let spec = place.spec("echo started; sleep 1000");
    let id = spec.id.clone();
    let mut output = place.containers.output(&id).await;
    place.containers.create(spec).await.unwrap();
    assert_eq!(output.recv().await.unwrap().text, "started");
    place.containers.close().await;
    assert_nothing_left(&place.config, &id);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_creation_can_be_removed() {
    let Some(place) = place().await else { return };
    place.run(place.spec("echo warm")).await;
    for pause in 0..8 {
        let spec = place.spec("sleep 1000");
        let id = spec.id.clone();
        let limit = Duration::from_millis(pause * 8);
        let _ = tokio::time::timeout(limit, place.containers.create(spec)).await;
        place.containers.remove(&id).await.unwrap();
        assert_nothing_left(&place.config, &id);
    }
    place.end().await;
}
