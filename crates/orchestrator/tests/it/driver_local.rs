//! The local driver with real containers, each test in a network namespace that stands for the machine.

use crate::driver_contract::{caches, contract, one_shot, plan, reached, ready, until};
use crate::host_root::{in_time, put_layer};
use arco_config::{Egress, NetworkConfig};
use arco_model::artifact::{ImageConfig, ImageRef};
use arco_model::observed::{InstancePhase, Observed, RolloutFacts};
use arco_model::plan::{FileContent, InstanceFile, LayerExport, OneShot, OneShotNetwork, WorkloadPlan};
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::spec::{ComponentKind, VolumeKind, VolumeSpec};
use arco_model::storage::VolumeFacts;
use arco_orchestrator::local::{LocalConfig, LocalOrchestrator, Pace};
use arco_orchestrator::{ExecRequest, Orchestrator as _, Removal, Storage as _, Telling};
use arco_store::blob::MemoryBlobs;
use arco_store::images::{Image, Images};
use arco_store::logs::LogSink;
use arco_store::sql::MemoryMetadata;
use futures_util::FutureExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

/// Serves its own name on port 8080.
const SERVE: [&str; 3] = ["sh", "-c", "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"];

struct Place {
    folder: tempfile::TempDir,
    images: Images,
    image: ImageRef,
}

/// Runs a test as root with busybox on a "machine" of its own, and checks that nothing is left of it.
fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce(Arc<Place>) -> F + Send + 'static) {
    let busybox = Path::new("/bin/busybox");
    if !nix::unistd::geteuid().is_root() || !busybox.exists() || Command::new("nft").arg("-v").output().is_err() {
        eprintln!("SKIPPED: needs root, busybox and nft");
        return;
    }
    let work = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
            let layer = put_layer(&images, &root_of(busybox)).await;
            let config = ImageConfig { env: vec!["PATH=/bin".to_owned()], ..ImageConfig::default() };
            let image = images.write("default/demo/web", &Image { layers: vec![layer], config }).await.unwrap();
            let place = Arc::new(Place { folder: tempfile::tempdir().unwrap(), images, image });
            let outcome = std::panic::AssertUnwindSafe(test(place.clone())).catch_unwind().await;
            if let Err(panic) = outcome {
                let _ = place.driver().await.shutdown(true).await; // the panic is the finding
                std::panic::resume_unwind(panic);
            }
            let data = place.folder.path().to_str().unwrap();
            assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(data));
            let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
            assert!(!String::from_utf8_lossy(&links).contains("arco-"));
        });
    };
    std::thread::spawn(work).join().unwrap();
}

fn root_of(busybox: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_path_with_name(busybox, "bin/busybox").unwrap();
    for name in [
        "sh", "httpd", "mkdir", "hostname", "sleep", "true", "false", "echo", "cat", "nc", "wget", "touch", "dd", "df",
        "test", "env", "ls", "rm", "grep",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    builder.into_inner().unwrap()
}

impl Place {
    async fn driver(&self) -> Arc<LocalOrchestrator> {
        let config = LocalConfig {
            data_dir: self.folder.path().join("data"),
            cache_dir: self.folder.path().join("cache"),
            network: NetworkConfig::default(),
            allowed_networks: Vec::new(),
            egress: Egress::Public,
            instance_log_mb: 1,
            executable: std::env::current_exe().unwrap(),
            pace: Pace { look_ms: 300, window_ms: 900 },
        };
        std::fs::create_dir_all(&config.data_dir).unwrap();
        std::fs::create_dir_all(&config.cache_dir).unwrap();
        let (logs, mut lines) = LogSink::channel(64);
        tokio::spawn(async move {
            while let Some(batch) = lines.recv().await {
                if let Some(written) = batch.written {
                    let _ = written.send(()); // the sender may have gone
                }
            }
        });
        LocalOrchestrator::start(config, self.images.clone(), logs).await.unwrap()
    }

    fn plan(&self, argv: &[&str]) -> WorkloadPlan {
        plan(self.image.clone(), argv)
    }
}

async fn get(address: std::net::Ipv4Addr) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect((address, 8080)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[test]
fn the_local_driver_keeps_the_contract() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        contract(driver, place.plan(&SERVE)).await;
    });
}

#[test]
fn configuration_files_are_in_instances_and_in_runs() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let mut plan = place.plan(&SERVE);
        let file = |path: &str, content| InstanceFile { path: path.to_owned(), mode: "0400".parse().unwrap(), content };
        plan.template.files = vec![
            file("/etc/app/app.conf", FileContent::Text("a=1\n".to_owned())),
            file("/srv/colour", FileContent::Variable("COLOUR".to_owned())),
        ];
        driver.apply(&plan).await.unwrap();
        let found = reached(driver.as_ref(), &plan).await;
        let id = ready(&found).pop_first().unwrap();
        let words = ["cat", "/etc/app/app.conf", "/srv/colour"];
        let request = ExecRequest { argv: words.map(str::to_owned).to_vec(), terminal: None };
        let mut session = driver.exec(&id, request).await.unwrap();
        let mut text = String::new();
        session.stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!((session.exit.await, text.as_str()), (Ok(0), "a=1\nblue"));

        let once = OneShot { files: plan.template.files.clone(), ..one_shot(&plan, &words) };
        let (output, mut lines) = mpsc::channel(16);
        let (_cancel, cancelled) = oneshot::channel();
        let result = driver.run(&once, output, cancelled).await.unwrap();
        let mut texts = Vec::new();
        while let Some(line) = lines.recv().await {
            texts.push(line.text);
        }
        assert_eq!((result.exit.status, texts), (0, vec!["a=1".to_owned(), "red".to_owned()]));

        // A secret that is not there is said, and nothing of the instance is left.
        plan.template.files[1].content = FileContent::Variable("NONE".to_owned());
        driver.apply(&plan).await.unwrap();
        let faults = |it: &Observed| {
            it.instances.iter().any(|it| it.fault.as_ref().is_some_and(|it| it.contains("/srv/colour")))
        };
        until(driver.as_ref(), &plan.component, "the fault names the file", faults).await;
        driver.shutdown(true).await.unwrap();
    });
}

#[test]
fn instances_answer_soon_and_are_adopted() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let mut plan = place.plan(&SERVE);
        let began = Instant::now();
        driver.apply(&plan).await.unwrap();
        let first = reached(driver.as_ref(), &plan).await;
        eprintln!("first instance ready after {:?}", began.elapsed()); // the figure itself is the benchmark's
        let began = Instant::now();
        plan.replicas = 2;
        driver.apply(&plan).await.unwrap();
        let two = reached(driver.as_ref(), &plan).await;
        eprintln!("second instance ready after {:?}", began.elapsed());
        assert!(get(first.address.unwrap()).await.unwrap().contains("web-"));

        // The next process finds them, and they answer all the while.
        driver.shutdown(false).await.unwrap();
        drop(driver);
        assert!(get(two.address.unwrap()).await.unwrap().contains("web-"));
        let driver = place.driver().await;
        let adopted = driver.observe(&plan.component).await.unwrap();
        assert_eq!(ready(&adopted), ready(&two));
        driver.apply(&plan).await.unwrap();
        let again = reached(driver.as_ref(), &plan).await;
        assert_eq!(ready(&again), ready(&two));
        assert_eq!(again.address, two.address);
        driver.remove(&plan.component, &Removal::Everything).await.unwrap();
        driver.shutdown(false).await.unwrap();
    });
}

#[test]
fn instances_become_more_and_fewer_as_load_asks() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        // Busy until somebody removes the file; each may use a twentieth of a core, a fifth of which is asked. While it is
        // busy it does not shrink, also where the machine gives it no time for a while.
        let mut plan = place.plan(&["sh", "-c", "touch /busy; while [ -e /busy ]; do :; done; exec sleep 3600"]);
        (plan.template.ports, plan.template.resources.cpu_milli) = (Vec::new(), 50);
        let asked = Autoscaling { cpu_percent: Some(20), down_after_s: 3600, ..Autoscaling::by_cpu(1, 3) };
        plan.autoscaling = Some(asked);
        driver.apply(&plan).await.unwrap();
        let scaling = |it: &Observed| it.scaling.clone().unwrap_or_default();
        assert_eq!(scaling(&driver.observe(&plan.component).await.unwrap()).replicas, 1, "as few as may be at first");
        let all = |it: &Observed, wanted: u32| {
            scaling(it).replicas == wanted
                && ready(it).len() == wanted as usize
                && it.instances.len() == wanted as usize
        };
        let busy = until(driver.as_ref(), &plan.component, "load asks for three", |it| all(it, 3)).await;
        let reason = scaling(&busy).reason;
        assert!(reason.starts_with("scaled from ") && reason.contains("CPU is at "), "{reason}");

        // The next process goes on with as many.
        driver.shutdown(false).await.unwrap();
        drop(driver);
        let driver = place.driver().await;
        driver.apply(&plan).await.unwrap();
        assert_eq!(scaling(&driver.observe(&plan.component).await.unwrap()).replicas, 3);
        let busy = until(driver.as_ref(), &plan.component, "all are ready again", |it| all(it, 3)).await;

        for id in ready(&busy) {
            let argv = ["rm", "/busy"].map(str::to_owned).to_vec();
            let mut session = driver.exec(&id, ExecRequest { argv, terminal: None }).await.unwrap();
            assert_eq!((&mut session.exit).await.unwrap(), 0);
        }
        plan.autoscaling = Some(Autoscaling { down_after_s: 1, ..asked });
        driver.apply(&plan).await.unwrap();
        let idle = until(driver.as_ref(), &plan.component, "one is enough", |it| all(it, 1)).await;
        let reason = scaling(&idle).reason;
        assert!(reason.contains("fewer have been enough for 1 s"), "{reason}");

        plan.autoscaling = None;
        driver.apply(&plan).await.unwrap();
        assert_eq!(reached(driver.as_ref(), &plan).await.scaling, None);
        driver.shutdown(true).await.unwrap();
    });
}

#[test]
fn a_change_that_fails_is_halted_and_names_the_cause() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let mut plan = place.plan(&SERVE);
        driver.apply(&plan).await.unwrap();
        let good = reached(driver.as_ref(), &plan).await;
        plan.template.argv = ["sh", "-c", "echo broken; exit 3"].map(str::to_owned).to_vec();
        driver.apply(&plan).await.unwrap();
        let halted =
            until(driver.as_ref(), &plan.component, "it halts", |it| matches!(it.rollout, RolloutFacts::Halted { .. }))
                .await;
        let RolloutFacts::Halted { cause: Some(cause) } = &halted.rollout else { panic!("{halted:#?}") };
        let exit = cause.last_exit.as_ref().unwrap();
        assert_eq!((exit.status, exit.last_output.trim()), (3, "broken"));
        assert_eq!(ready(&halted), ready(&good), "the old one keeps serving");
        // Listens where nobody reaches it.
        plan.template.argv = ["httpd", "-f", "-p", "127.0.0.1:3000"].map(str::to_owned).to_vec();
        plan.rollout.start_deadline_ms = in_time(Duration::from_secs(4)).as_millis() as u64;
        driver.apply(&plan).await.unwrap();
        let found = until(
            driver.as_ref(),
            &plan.component,
            "it halts again",
            |it| matches!(&it.rollout, RolloutFacts::Halted { cause: Some(cause) } if !cause.listens_on.is_empty()),
        );
        let RolloutFacts::Halted { cause: Some(cause) } = found.await.rollout else { unreachable!() };
        assert_eq!(cause.listens_on[0].to_string(), "127.0.0.1:3000");
        driver.shutdown(true).await.unwrap();
    });
}

#[test]
fn nothing_that_cannot_be_reached_is_ever_called_ready() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let mut plan = place.plan(&["httpd", "-f", "-p", "127.0.0.1:3000"]);
        plan.replicas = 8; // started at once, so that their events overlap
        plan.template.resources.memory_mb = 16;
        driver.apply(&plan).await.unwrap();
        until(driver.as_ref(), &plan.component, "it is seen where they listen", |found| {
            assert_eq!(ready(found).len(), 0, "{found:#?}");
            found.instances.len() == 8 && found.instances.iter().all(|it| !it.listens_on.is_empty())
        })
        .await;
        driver.shutdown(true).await.unwrap();
    });
}

#[test]
fn volumes_outlive_instances_and_hold_no_more_than_their_size() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let mut plan =
            place.plan(&["sh", "-c", "test -e /data/kept || echo first > /data/kept; exec httpd -f -p 8080 -h /data"]);
        plan.kind = ComponentKind::Stateful;
        let volume = |name: &str, path: &str, kind| VolumeSpec {
            name: name.parse().unwrap(),
            path: path.to_owned(),
            size_mb: 16,
            kind,
            class: None,
        };
        plan.template.volumes =
            vec![volume("data", "/data", VolumeKind::Local), volume("fast", "/fast", VolumeKind::Memory)];
        driver.apply(&plan).await.unwrap();
        let first = reached(driver.as_ref(), &plan).await;
        let id = ready(&first).into_iter().next().unwrap();
        let run = async |argv: &[&str]| {
            let found = driver.observe(&plan.component).await.unwrap();
            let id = ready(&found).into_iter().next().unwrap();
            let argv = argv.iter().map(|it| (*it).to_owned()).collect();
            let mut session = driver.exec(&id, ExecRequest { argv, terminal: None }).await.unwrap();
            let mut text = String::new();
            session.stdout.read_to_string(&mut text).await.unwrap();
            (session.exit.await.unwrap(), text)
        };
        assert_ne!(run(&["dd", "if=/dev/zero", "of=/data/big", "bs=1M", "count=40"]).await.0, 0, "it is full before");
        assert_ne!(run(&["dd", "if=/dev/zero", "of=/fast/big", "bs=1M", "count=40"]).await.0, 0, "it is full before");
        assert_eq!(run(&["sh", "-c", "rm /data/big; echo second > /data/kept"]).await.0, 0);
        // A new instance, a bigger volume, the same content.
        let mut plan = plan.clone();
        plan.template.volumes[0].size_mb = 64;
        driver.apply(&plan).await.unwrap();
        driver.release(&id).await.unwrap();
        let next = reached(driver.as_ref(), &plan).await;
        assert!(!ready(&next).contains(&id));
        let id = ready(&next).into_iter().next().unwrap();
        let argv = ["sh", "-c", "cat /data/kept; dd if=/dev/zero of=/data/big bs=1M count=40 2>&1"]
            .map(str::to_owned)
            .to_vec();
        let mut session = driver.exec(&id, ExecRequest { argv, terminal: None }).await.unwrap();
        let mut text = String::new();
        session.stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(session.exit.await, Ok(0), "{text}");
        assert!(text.starts_with("second"), "{text}");
        let whole = |held: &[VolumeFacts]| {
            let good = |it: &VolumeFacts| it.size_bytes >= 16 << 20 && it.used_bytes > Some(0) && it.class == "local";
            !held.is_empty() && held.iter().all(|it| good(it) && it.component == plan.component)
        };
        let held = driver.volumes(Some(&plan.component), Telling::Use).await.unwrap();
        assert!(whole(&held) && held[0].place == Some(0), "{held:#?}");
        assert!(held[0].size_bytes == 64 << 20 && held[0].used_bytes >= Some(40 << 20), "{held:#?}");
        let other = arco_store::clock::fresh();
        assert!(driver.volumes(Some(&other), Telling::Use).await.unwrap().is_empty(), "another component has none");
        driver.remove(&plan.component, &Removal::KeepVolumes).await.unwrap();
        assert_eq!(driver.components().await.unwrap(), [plan.component.clone()], "its volume is kept");
        let kept = driver.volumes(None, Telling::Use).await.unwrap();
        assert!(whole(&kept) && kept.len() == held.len(), "{kept:#?}");
        driver.remove(&plan.component, &Removal::Everything).await.unwrap();
        assert!(driver.components().await.unwrap().is_empty());
        driver.shutdown(false).await.unwrap();
    });
}

#[test]
fn jobs_run_once_and_again_when_they_fail() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let mut plan = place.plan(&["sh", "-c", "echo done"]);
        plan.kind = ComponentKind::Job;
        plan.template.ports.clear();
        driver.apply(&plan).await.unwrap();
        let ended = |it: &arco_model::observed::Observed| {
            it.instances.iter().all(|it| it.phase == InstancePhase::Ended) && !it.instances.is_empty()
        };
        let found =
            until(driver.as_ref(), &plan.component, "the job ends", |it| ended(it) && it.rollout == RolloutFacts::Done)
                .await;
        assert_eq!(found.instances[0].last_exit.as_ref().unwrap().status, 0);
        let id = found.instances[0].id.clone();
        // The next process does not run it again.
        driver.shutdown(false).await.unwrap();
        let driver = place.driver().await;
        driver.apply(&plan).await.unwrap();
        let again =
            until(driver.as_ref(), &plan.component, "it is still ended", |it| it.rollout == RolloutFacts::Done).await;
        assert_eq!(again.instances[0].id, id);
        driver.shutdown(true).await.unwrap();
    });
}

#[test]
fn one_shots_end_by_themselves_by_time_and_by_cancel() {
    on_a_machine(|place| async move {
        let driver = place.driver().await;
        let plan = place.plan(&SERVE);
        let attempt =
            async |argv: &[&str], change: &dyn Fn(&mut arco_model::plan::OneShot), cancel_at: Option<&str>| {
                let mut once = one_shot(&plan, argv);
                change(&mut once);
                let (output, mut lines) = mpsc::channel::<arco_orchestrator::OutputLine>(64);
                let (stop, cancel) = oneshot::channel();
                let mut stop = Some(stop);
                let read = async {
                    let mut texts = Vec::new();
                    while let Some(line) = lines.recv().await {
                        if cancel_at.is_some_and(|it| it == line.text) {
                            drop(stop.take());
                        }
                        texts.push(line.text);
                    }
                    texts
                };
                let (result, texts) = tokio::join!(driver.run(&once, output, cancel), read);
                (result, texts)
            };
        let run = async |argv: &[&str], change: &dyn Fn(&mut arco_model::plan::OneShot), cancel_at: Option<&str>| {
            let (result, texts) = attempt(argv, change, cancel_at).await;
            (result.unwrap(), texts)
        };
        let (result, texts) = run(&["sh", "-c", "echo $COLOUR; exit 4"], &|_| {}, None).await;
        assert_eq!((result.exit.status, texts), (4, vec!["red".to_owned()]));
        // How long it takes to begin is the machine's: a limit that is over before says so, and is too short to be tested.
        let mut limit_ms = 3_000;
        let result = loop {
            match attempt(&["sleep", "1000"], &|it| it.timeout_ms = limit_ms, None).await.0 {
                Ok(result) => break result,
                Err(error) => assert!(error.to_string().contains("before it could start"), "{error}"),
            }
            limit_ms *= 4;
            assert!(limit_ms < 500_000, "it does not begin");
        };
        assert!(result.timed_out && result.exit.asked, "{result:?}");
        let (result, _) = run(&["sh", "-c", "echo up; exec sleep 1000"], &|_| {}, Some("up")).await;
        assert!(!result.timed_out && result.exit.asked, "{result:?}");
        let export = LayerExport { include: vec!["/app".to_owned()], exclude: Vec::new() };
        let write = ["sh", "-c", "mkdir /app && echo hello > /app/file && echo other > /other"];
        let (result, texts) = run(&write, &|it| it.export = Some(export.clone()), None).await;
        let layer = result.layer.unwrap_or_else(|| panic!("{:?} {texts:?}", result.exit));
        let (result, texts) =
            run(&["sh", "-c", "cat /app/file; test ! -e /other"], &|it| it.extra_layers.push(layer.clone()), None)
                .await;
        assert_eq!((result.exit.status, texts), (0, vec!["hello".to_owned()]));
        let (result, _) = run(
            &["sh", "-c", "test -z \"$(ls /sys/class/net 2>/dev/null | grep eth0)\""],
            &|it| it.network = OneShotNetwork::None,
            None,
        )
        .await;
        assert_eq!(result.exit.status, 0);
        driver.shutdown(false).await.unwrap();
    });
}

#[test]
fn caches_of_one_shots_are_kept() {
    on_a_machine(|place| async move {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let driver = place.driver().await;
        caches(driver.as_ref(), &place.plan(&SERVE), folder.path()).await;
        driver.shutdown(false).await.unwrap();
    });
}
