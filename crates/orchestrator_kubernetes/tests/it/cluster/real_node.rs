//! What needs a node that really runs programs: the whole contract, faults, exits, one-shots, logs. Nodes pull from the
//! platform's own registry, with the tenant's credential.

mod cuts;

use super::place::{Place, kubeconfig, network_of_node, on_a_platform};
use arco_config::KubernetesConfig;
use arco_model::artifact::{Descriptor, Digest, ImageConfig, Layer};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::LogLine;
use arco_model::name::TenantName;
use arco_model::observed::{InstanceFacts, InstancePhase, Observed};
use arco_model::plan::{
    CacheFolder, FileContent, HostMount, InstanceFile, LayerExport, OneShot, OneShotNetwork, WorkloadPlan,
};
use arco_model::spec::autoscaling::Autoscaling;
use arco_orchestrator::contract::{caches, contract, in_time, one_shot, plan, reached, until};
use arco_orchestrator::{Error, ExecSession, OneShotResult, Orchestrator as _, Removal};
use arco_orchestrator_kubernetes::{KeptLines, PullCredentials};
use arco_registry::{Action, Registry, RegistryDeps, Scope};
use arco_store::blob::{BUILD_FOLDERS, MemoryBlobs, builds_path, content_path};
use arco_store::clock;
use arco_store::images::{Image, Images, LAYER_ZSTD_TYPE};
use arco_store::sql::MemoryMetadata;
use kube::api::{EvictParams, ListParams};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

/// Serves on port 8080.
pub(crate) const SERVE: [&str; 3] = ["sh", "-c", "echo serving; exec busybox httpd -f -p 8080"];
/// Programs of this machine that the image has beside busybox. Its shell would run the applets of these names in their place.
const PROGRAMS: [&str; 5] = ["sh", "find", "tar", "setpriv", "chown"];

/// Runs a test on a real node that pulls from our registry.
pub(crate) async fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Arc<Place>) -> F) {
    let Some(kubeconfig) = kubeconfig() else { return };
    let network = network_of_node(&kubeconfig);
    let (Some(network), true) = (network, Path::new("/bin/busybox").exists()) else {
        eprintln!("SKIPPED: needs busybox and a real node (tests/kubernetes/cluster.py run --node)");
        return;
    };
    let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
    let layer = layer(&images).await;
    let config = ImageConfig { env: vec!["PATH=/bin".to_owned()], ..ImageConfig::default() };
    let image = images.write("default/demo/web", &Image { layers: vec![layer], config }).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let deps = RegistryDeps { images: images.clone(), folder: folder.path().to_owned(), public_url: None };
    let registry = Registry::build(deps).unwrap();
    let listener = tokio::net::TcpListener::bind((format!("10.250.{network}.1"), 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = registry.router();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    trust(&kubeconfig, &address);
    let credentials = Arc::new(Logins(registry));
    on_a_platform(images, image, &address, Some(credentials), test).await;
    serving.abort();
}

/// Logins of one tenant's images.
struct Logins(Registry);

impl PullCredentials for Logins {
    fn issue(&self, tenant: &TenantName, life: Duration) -> String {
        self.0.tokens().issue(&Scope::tenant(tenant, &[Action::Pull]), life)
    }

    fn takes(&self, credential: &str) -> bool {
        self.0.tokens().check(credential).is_some()
    }
}

/// Lets the node's containerd pull from an address without TLS.
fn trust(kubeconfig: &Path, address: &str) {
    let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/kubernetes/cluster.py");
    let hosts = format!(
        "server = \"http://{address}\"\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    let script = "mkdir -p /etc/containerd/certs.d/$0 && printf %s \"$1\" > /etc/containerd/certs.d/$0/hosts.toml";
    let mut command = Command::new(cluster);
    command.arg("enter").arg(kubeconfig).args(["--", "sh", "-c", script, address, &hosts]);
    assert!(command.status().unwrap().success());
}

fn entry(name: &str, kind: tar::EntryType, mode: u32) -> (tar::Header, String) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    (header, name.to_owned())
}

/// A layer with busybox and a few programs of this machine with their libraries.
async fn layer(images: &Images) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    for name in ["bin/", "tmp/", "etc/"] {
        let (mut header, name) = entry(name, tar::EntryType::Directory, 0o755);
        builder.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    builder.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
    for name in ["echo", "sleep", "true", "false", "cat", "mkdir", "rm", "touch", "dd", "tail", "id", "printf"] {
        let (mut header, name) = entry(&format!("bin/{name}"), tar::EntryType::Symlink, 0o777);
        builder.append_link(&mut header, name, "busybox").unwrap();
    }
    let mut files = BTreeSet::new();
    for name in PROGRAMS {
        let path = ["/usr/bin", "/bin"].map(|it| Path::new(it).join(name)).into_iter().find(|it| it.exists()).unwrap();
        let listed = Command::new("ldd").arg(&path).output().unwrap();
        let words = String::from_utf8_lossy(&listed.stdout).into_owned();
        files.extend(words.split_whitespace().filter(|it| it.starts_with('/')).map(PathBuf::from));
        builder.append_path_with_name(std::fs::canonicalize(&path).unwrap(), format!("bin/{name}")).unwrap();
    }
    for path in files {
        builder.append_path_with_name(std::fs::canonicalize(&path).unwrap(), path.strip_prefix("/").unwrap()).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let bytes = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    images.blobs().put_bytes(&content_path(&digest), bytes.into()).await.unwrap();
    let blob = Descriptor { media_type: LAYER_ZSTD_TYPE.to_owned(), digest, size };
    Layer { blob, diff_id: Digest::of(&tar) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_keeps_the_contract() {
    on_a_node(|place| async move { contract(place.driver.clone(), plan(place.image.clone(), &SERVE)).await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_evicted_answers_to_the_end() {
    on_a_node(|place| async move {
        const MB: usize = 48;
        let config = KubernetesConfig { eviction_pause_s: 20, ..place.config.clone() };
        let pausing = place.another(config, None).await;
        let driver: &dyn arco_orchestrator::Orchestrator = pausing.as_ref();
        // At the stop signal it ends at once, whatever is open.
        let serve = format!(
            "trap 'exit 0' TERM; mkdir /tmp/www; dd if=/dev/zero of=/tmp/www/large bs=1M count={MB} 2> /dev/null; busybox httpd -f -p 8080 -h /tmp/www & wait"
        );
        let mut asked = plan(place.image.clone(), &["sh", "-c", &serve]);
        (asked.template.resources.memory_mb, asked.template.resources.disk_mb) = (256, 256);
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await.instances.remove(0).id;
        let mut web = driver.connect(&first, 8080).await.unwrap();
        web.stream.write_all(b"GET /large HTTP/1.0\r\n\r\n").await.unwrap();
        let mut got = vec![0; 1 << 20];
        web.stream.read_exact(&mut got).await.unwrap();

        // Most of it is still to be sent when the node is drained: more than lies in buffers on the way.
        let pods = place.api::<k8s_openapi::api::core::v1::Pod>();
        let instances = ListParams::default().labels("arco.internal/role=instance");
        let name = pods.list_metadata(&instances).await.unwrap().items.remove(0).metadata.name.unwrap();
        pods.evict(&name, &EvictParams::default()).await.unwrap();
        until(driver, &asked.component, "nobody new is sent to it", |it| {
            it.instances.iter().any(|it| it.id == first && it.phase == InstancePhase::Stopping)
        })
        .await;
        // One that is cut ends, too, with an error or without.
        let rest = tokio::time::timeout(in_time(Duration::from_secs(60)), web.stream.read_to_end(&mut got));
        let outcome = rest.await.unwrap();
        let head = got.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(got.len() - head, MB << 20, "{outcome:?}");
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        pausing.shutdown(false).await.unwrap();
    })
    .await;
}

/// Applies a plan and waits until an instance of it is as wanted.
async fn until_one(
    place: &Place,
    plan: &WorkloadPlan,
    what: &str,
    wanted: impl Fn(&InstanceFacts) -> bool,
) -> Observed {
    place.driver.apply(plan).await.unwrap();
    let found = until(place.driver.as_ref(), &plan.component, what, |it| it.instances.iter().any(&wanted)).await;
    place.driver.remove(&plan.component, &Removal::Everything).await.unwrap();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_told_with_its_reason() {
    on_a_node(|place| async move {
        let fresh = |argv: &[&str]| plan(place.image.clone(), argv);
        let exit = |it: &InstanceFacts| it.last_exit.clone();
        let fault = |it: &InstanceFacts, part: &str| it.fault.as_ref().is_some_and(|it| it.contains(part));

        let crash = fresh(&["sh", "-c", "echo no database; exit 7"]);
        until_one(&place, &crash, "it crashes", |it| {
            exit(it).is_some_and(|it| it.status == 7 && it.last_output == "no database")
        })
        .await;

        let hungry = fresh(&["sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=200M count=10"]);
        until_one(&place, &hungry, "it is out of memory", |it| exit(it).is_some_and(|it| it.out_of_memory)).await;

        let missing = fresh(&["/no/such/program"]);
        until_one(&place, &missing, "its program is missing", |it| fault(it, "cannot be started")).await;

        let mut large = fresh(&SERVE);
        large.template.resources.memory_mb = 1_000_000_000;
        until_one(&place, &large, "no node takes it", |it| fault(it, "no node of the cluster")).await;

        let mut lost = fresh(&SERVE);
        // Of another tenant, whose images our credential does not open.
        lost.template.image = place.images.write("other/demo/web", &Image::default()).await.unwrap();
        until_one(&place, &lost, "its image is not to be had", |it| fault(it, "cannot be pulled")).await;
    })
    .await;
}

/// How long one run may take, with what the cluster does before and after it.
const PATIENCE: Duration = Duration::from_secs(300);

async fn attempt(place: &Place, work: &OneShot) -> (Result<OneShotResult, Error>, Vec<String>) {
    let (output, mut lines) = mpsc::channel(1024);
    let (_keep, cancel) = oneshot::channel();
    let result = tokio::time::timeout(in_time(PATIENCE), place.driver.run(work, output, cancel)).await.unwrap();
    let mut all = Vec::new();
    while let Ok(line) = lines.try_recv() {
        all.push(line.text);
    }
    (result, all)
}

async fn run(place: &Place, work: &OneShot) -> (OneShotResult, Vec<String>) {
    let (result, lines) = attempt(place, work).await;
    (result.unwrap(), lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_shot_tells_its_output_and_its_end() {
    on_a_node(|place| async move {
        let asked = plan(place.image.clone(), &SERVE);
        let (result, lines) = run(&place, &one_shot(&asked, &["sh", "-c", "echo $COLOUR; exit 3"])).await;
        assert_eq!((result.exit.status, result.timed_out, lines), (3, false, vec!["red".to_owned()]));

        // How long it takes to begin is the node's: a limit that is over before says so, and is too short to be tested.
        let mut slow = one_shot(&asked, &["sleep", "600"]);
        slow.timeout_ms = 5_000;
        let result = loop {
            match attempt(&place, &slow).await.0 {
                Ok(result) => break result,
                Err(error) => assert!(error.to_string().contains("before it could start"), "{error}"),
            }
            (slow.id, slow.timeout_ms) = (clock::fresh(), slow.timeout_ms * 4);
            assert!(slow.timeout_ms < 300_000, "it does not begin");
        };
        assert!(result.timed_out && result.exit.asked, "{result:?}");
        let left: kube::api::ObjectList<k8s_openapi::api::core::v1::Secret> =
            place.api().list(&kube::api::ListParams::default().labels("arco.internal/role=one-shot")).await.unwrap();
        assert!(left.items.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_files_are_read_by_whoever_runs_and_never_written() {
    on_a_node(|place| async move {
        let asked = plan(place.image.clone(), &SERVE);
        let file = |path: &str, mode: &str, content| InstanceFile {
            path: path.to_owned(),
            mode: mode.parse().unwrap(),
            content,
        };
        let line = "cat /etc/app/app.conf /etc/app/key; echo; echo x > /etc/app/app.conf || echo refused; id -u";
        for user in ["", "1000:1000"] {
            let mut work = one_shot(&asked, &["sh", "-c", line]);
            work.user = user.to_owned();
            work.files = vec![
                file("/etc/app/app.conf", "0444", FileContent::Text("a=1\n".to_owned())),
                file("/etc/app/key", "0400", FileContent::Variable("COLOUR".to_owned())),
            ];
            let (result, lines) = run(&place, &work).await;
            let id = if user.is_empty() { "0" } else { "1000" };
            assert_eq!(result.exit.status, 0, "{lines:?}");
            for wanted in ["a=1", "red", "refused", id] {
                assert!(lines.iter().any(|it| it == wanted), "{wanted}: {lines:?}");
            }
        }
        let maps = place.api::<k8s_openapi::api::core::v1::ConfigMap>();
        let one_shots = kube::api::ListParams::default().labels("arco.internal/role=one-shot");
        assert!(maps.list(&one_shots).await.unwrap().items.is_empty(), "its end is told when nothing is left");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_off_instance_is_talked_with_and_leaves_nothing() {
    on_a_node(|place| async move {
        let asked = plan(place.image.clone(), &SERVE);
        let work = one_shot(&asked, &["sh", "-c", "read line; echo $COLOUR $line; exit 4"]);
        let session = place.driver.attach(&work, None).await.unwrap();
        let ExecSession { mut stdin, mut stdout, exit, .. } = session;
        stdin.write_all(b"hello\n").await.unwrap();
        let mut said = String::new();
        stdout.read_to_string(&mut said).await.unwrap();
        let status = tokio::time::timeout(in_time(PATIENCE), exit).await.unwrap().unwrap();
        assert_eq!((said.as_str(), status), ("red hello\n", 4));
        let secrets = place.api::<k8s_openapi::api::core::v1::Secret>();
        let one_shots = kube::api::ListParams::default().labels("arco.internal/role=one-shot");
        assert!(secrets.list(&one_shots).await.unwrap().items.is_empty(), "its exit is told when nothing is left");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_of_a_registry_that_is_gone_is_made_anew() {
    on_a_node(|place| async move {
        let asked = plan(place.image.clone(), &SERVE);
        let (result, _) = run(&place, &one_shot(&asked, &["true"])).await;
        assert_eq!(result.exit.status, 0);
        let secrets = place.api::<k8s_openapi::api::core::v1::Secret>();
        let held = async || secrets.get("arco-registry").await.unwrap().data.unwrap();
        let good = held().await;
        let wrong = serde_json::json!({ "auths": { (place.config.registry.as_str()): { "password": "of another" } } });
        let fields = serde_json::json!({ "stringData": { ".dockerconfigjson": wrong.to_string() } });
        let how = kube::api::PatchParams::default();
        secrets.patch("arco-registry", &how, &kube::api::Patch::Merge(fields)).await.unwrap();
        assert_ne!(held().await, good);

        let next = place.restarted().await;
        next.apply(&asked).await.unwrap();
        reached(next.as_ref(), &asked).await;
        assert!(!String::from_utf8_lossy(&held().await[".dockerconfigjson"].0).contains("of another"));
        next.remove(&asked.component, &Removal::Everything).await.unwrap();
        next.shutdown(false).await.unwrap();
    })
    .await;
}

/// A cache that is only in the blob store: of this machine's disk a driver of a cluster uses nothing.
fn cache(path: &str) -> CacheFolder {
    CacheFolder { name: "packages".to_owned(), path: path.to_owned(), host_path: "/nowhere".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_step_gets_its_folders_and_leaves_a_layer() {
    on_a_node(|place| async move {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("input"), "42").unwrap();
        let asked = plan(place.image.clone(), &SERVE);
        let script = "mkdir /out; cat /source/input > /out/answer; echo done >&2; rm /bin/id; echo cached > /cache/x";
        let mut step = OneShot { export: Some(LayerExport::default()), ..one_shot(&asked, &["sh", "-c", script]) };
        step.network = OneShotNetwork::None;
        step.mounts =
            vec![HostMount { host_path: folder.path().to_owned(), path: "/source".to_owned(), writable: false }];
        step.caches = vec![cache("/cache")];
        let (result, lines) = run(&place, &step).await;
        assert_eq!((result.exit.status, lines[0].as_str()), (0, "done"), "{result:?} {lines:?}");
        let made = result.layer.unwrap();
        let bytes = place.images.blobs().get_bytes(&content_path(&made.blob.digest), 1 << 20).await.unwrap();
        let tar = zstd::decode_all(bytes.as_ref()).unwrap();
        assert_eq!(Digest::of(&tar), made.diff_id);
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: BTreeSet<String> =
            archive.entries().unwrap().map(|it| it.unwrap().path().unwrap().display().to_string()).collect();
        assert!(names.contains("out/answer") && names.contains("bin/.wh.id"), "{names:?}");
        assert!(
            !names.iter().any(|it| it.starts_with("source") || it.starts_with("cache") || it.contains("busybox")),
            "{names:?}"
        );

        // The next step runs on top of it.
        let mut next = one_shot(&asked, &["cat", "/out/answer"]);
        next.id = clock::fresh();
        next.extra_layers = vec![made];
        let (result, lines) = run(&place, &next).await;
        assert_eq!((result.exit.status, lines), (0, vec!["42".to_owned()]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unprivileged_step_is_nobody_and_its_variables_are_its_own() {
    on_a_node(|place| async move {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("input"), "42").unwrap();
        let asked = plan(place.image.clone(), &SERVE);
        let script = "echo \"$(id -u) $(id -g) $COLOUR $(cat /source/input)\"; \
            while read -r name value; do case $name in CapEff:|CapPrm:|NoNewPrivs:) echo \"$name $value\";; esac; done < /proc/self/status; \
            if (echo x > /etc/mine) 2> /dev/null; then echo root; fi; \
            mkdir /app/made; echo made > /app/made/file; echo made > /opt/venv/file; echo made > /cache/x";
        // Our own programs in the pod are root: these would be told to them, too, if they were the pod's.
        let variables = [("COLOUR", "it's red"), ("PATH", "/bin"), ("TAR_OPTIONS", "--no-such-option")];
        let include = ["/app", "/opt/venv"].map(str::to_owned).to_vec();
        let mut step = OneShot {
            unprivileged: true,
            working_dir: "/app".to_owned(),
            env: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            export: Some(LayerExport { include, exclude: Vec::new() }),
            ..one_shot(&asked, &["sh", "-euc", script])
        };
        step.network = OneShotNetwork::None;
        step.mounts =
            vec![HostMount { host_path: folder.path().to_owned(), path: "/source".to_owned(), writable: false }];
        step.caches = vec![cache("/cache")];
        let (result, lines) = run(&place, &step).await;
        assert_eq!(result.exit.status, 0, "{lines:?}");
        for wanted in ["65534 65534 it's red 42", "CapEff: 0000000000000000", "CapPrm: 0000000000000000", "NoNewPrivs: 1"] {
            assert!(lines.iter().any(|it| it == wanted), "{wanted} is not in {lines:?}");
        }
        assert!(!lines.iter().any(|it| it == "root"), "{lines:?}");
        let made = result.layer.unwrap();
        let bytes = place.images.blobs().get_bytes(&content_path(&made.blob.digest), 1 << 20).await.unwrap();
        let tar = zstd::decode_all(bytes.as_ref()).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let owners: BTreeMap<String, (u64, u64)> = archive
            .entries()
            .unwrap()
            .map(|it| {
                let it = it.unwrap();
                let owner = (it.header().uid().unwrap(), it.header().gid().unwrap());
                (it.path().unwrap().display().to_string(), owner)
            })
            .collect();
        for file in ["app/made/file", "opt/venv/file"] {
            assert_eq!(owners.get(file), Some(&(0, 0)), "{owners:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_of_build_steps_are_kept_in_the_blob_store() {
    on_a_node(|place| async move {
        let asked = plan(place.image.clone(), &SERVE);
        caches(place.driver.as_ref(), &asked, Path::new("/nowhere")).await;

        let other = WorkloadPlan { component: clock::fresh(), ..asked.clone() };
        let step = |plan: &WorkloadPlan, script: &str, cache_mb: u32| {
            let mut step = one_shot(plan, &["sh", "-c", script]);
            (step.network, step.cache_mb) = (OneShotNetwork::None, cache_mb);
            step.caches = vec![cache("/cache")];
            step
        };
        // What the suite left is read, what a step that failed wrote is not, and nobody else sees any of it.
        let (result, lines) = run(&place, &step(&asked, "cat /cache/two; echo c > /cache/three; exit 5", 64)).await;
        assert_eq!((result.exit.status, lines.len(), lines[1].as_str()), (5, 2, "b"), "{lines:?}");
        assert!(lines[0].starts_with("cache: ") && lines[0].ends_with(" restored"), "{lines:?}");
        let (result, _) = run(&place, &step(&asked, "test ! -e /cache/three", 64)).await;
        assert_eq!(result.exit.status, 0);
        let (result, lines) = run(&place, &step(&other, "test ! -e /cache/two", 64)).await;
        assert_eq!((result.exit.status, lines), (0, Vec::new()));

        // One that grows too large is told, and the next build begins without it.
        let large = "dd if=/dev/urandom of=/cache/large bs=1M count=2 2> /dev/null";
        let (result, lines) = run(&place, &step(&asked, large, 1)).await;
        assert_eq!(result.exit.status, 0, "{lines:?}");
        assert!(lines.iter().any(|it| it.contains("more than the 1 MB of `builder.cache_mb`")), "{lines:?}");
        let (result, lines) = run(&place, &step(&asked, "test ! -e /cache/two", 64)).await;
        assert_eq!((result.exit.status, lines), (0, Vec::new()));

        // One that is broken costs the time of an empty one.
        let path = format!("{}{BUILD_FOLDERS}packages.tar.zst", builds_path(&asked.component));
        place.images.blobs().put_bytes(&path, "no archive".into()).await.unwrap();
        let (result, lines) = run(&place, &step(&asked, "echo d > /cache/four", 64)).await;
        assert_eq!(result.exit.status, 0);
        assert!(lines[0].contains("is not restored and begins empty"), "{lines:?}");
        let (result, lines) = run(&place, &step(&asked, "cat /cache/four", 64)).await;
        assert_eq!((result.exit.status, lines[1].as_str()), (0, "d"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_instances_reaches_the_log() {
    on_a_node(|place| async move {
        let asked = plan(place.image.clone(), &SERVE);
        place.driver.apply(&asked).await.unwrap();
        let found = reached(place.driver.as_ref(), &asked).await;
        assert!(found.instances.iter().all(|it| it.phase == InstancePhase::Ready));
        let mut logs = place.logs.lock().await;
        let batch = tokio::time::timeout(in_time(PATIENCE), logs.recv()).await.unwrap().unwrap();
        assert_eq!(
            (batch.lines[0].text.as_str(), batch.lines[0].instance.as_ref()),
            ("serving", Some(&found.instances[0].id))
        );
        place.driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}

/// What a keeper of logs has.
#[derive(Default)]
struct Kept(std::sync::Mutex<Vec<LogLine>>);

#[async_trait::async_trait]
impl KeptLines for Kept {
    async fn last(&self, _: &ComponentId, instance: &InstanceId, most: usize) -> Result<Vec<LogLine>, String> {
        let kept = self.0.lock().unwrap();
        let mut last: Vec<_> =
            kept.iter().rev().filter(|it| it.instance.as_ref() == Some(instance)).take(most).cloned().collect();
        last.reverse();
        Ok(last)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_goes_on_with_the_output_where_one_ended() {
    on_a_node(|place| async move {
        let count = "n=0; (while :; do echo $n; n=$((n+1)); sleep 0.01; done) & exec busybox httpd -f -p 8080";
        let asked = plan(place.image.clone(), &["sh", "-c", count]);
        place.driver.apply(&asked).await.unwrap();
        reached(place.driver.as_ref(), &asked).await;
        let kept = Arc::new(Kept::default());
        let mut logs = place.logs.lock().await;
        let mut reader = place.driver.clone();
        for until in [60, 120, 180, 240] {
            // A process reads for a while and ends, whatever it had in its hands.
            loop {
                let batch = tokio::time::timeout(in_time(PATIENCE), logs.recv()).await.unwrap().unwrap();
                let mut kept = kept.0.lock().unwrap();
                kept.extend(batch.lines);
                if kept.len() >= until {
                    break;
                }
            }
            reader.shutdown(false).await.unwrap();
            while logs.try_recv().is_ok() {} // lost with it
            reader = place.restarted_with(Some(kept.clone())).await;
        }
        let texts: Vec<String> = kept.0.lock().unwrap().iter().map(|it| it.text.clone()).collect();
        let wanted: Vec<String> = (0..texts.len()).map(|it| it.to_string()).collect();
        assert_eq!(texts, wanted);
        reader.remove(&asked.component, &Removal::Everything).await.unwrap();
        reader.shutdown(false).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clusters_own_autoscaler_scales_a_component() {
    on_a_node(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &SERVE);
        (asked.replicas, asked.autoscaling) = (1, Some(Autoscaling::by_cpu(1, 4)));
        driver.apply(&asked).await.unwrap();
        assert_eq!(reached(driver, &asked).await.scaling.unwrap().replicas, 1);
        // There is no metrics API, so it can hold the bounds alone, and says what is missing.
        asked.autoscaling = Some(Autoscaling::by_cpu(2, 4));
        driver.apply(&asked).await.unwrap();
        let slow = in_time(PATIENCE); // it looks for kinds that it does not know every 30 s
        let told = async {
            let mut bell = driver.changes();
            loop {
                let found = driver.observe(&asked.component).await.unwrap();
                let problem = found.scaling.and_then(|it| it.problem).unwrap_or_default();
                let scales = place.scales().list(&ListParams::default()).await.unwrap().items;
                let number = scales[0].data["spec"]["replicas"].as_u64().unwrap();
                if number == 2 && problem.contains("metrics-server") {
                    return;
                }
                let _ = bell.recv().await; // a lagged bell is a bell
            }
        };
        if tokio::time::timeout(slow, told).await.is_err() {
            panic!("it does not: {:#?}", driver.observe(&asked.component).await);
        }
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}
