//! A stand-in for an orchestrator: runs one-shots in a chroot on an overlay, with its own mount and process namespaces.
//!
//! No isolation beyond that, and the network of the machine: it runs only what these tests bring.

use arco_model::artifact::{Descriptor, Digest, Layer};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::observed::{ExitFacts, Observed};
use arco_model::plan::{OneShot, WorkloadPlan};
use arco_orchestrator::{
    Connection, Error, ExecRequest, ExecSession, OneShotResult, Orchestrator, OutputLine, Removal, Usage,
};
use arco_store::blob::content_path;
use arco_store::images::{Images, LAYER_GZIP_TYPE};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::{broadcast, mpsc, oneshot};

/// `$1` overlay options, `$2` root, `$3` working directory, then mounts as `from to mode` up to `--`, then the program.
const ENTER: &str = "\
options=$1 root=$2 dir=$3; shift 3; \
mount -t overlay overlay -o \"$options\" \"$root\"; \
mkdir -p \"$root/proc\" \"$root/dev\" \"$root/tmp\" \"$root$dir\"; mount -t proc proc \"$root/proc\"; mount --rbind /dev \"$root/dev\"; mount -t tmpfs tmpfs \"$root/tmp\"; \
while [ \"$1\" != -- ]; do mkdir -p \"$root$2\"; mount --bind \"$1\" \"$root$2\"; shift 2; done; shift; \
mkdir -p \"$root/etc\"; cat /etc/resolv.conf > \"$root/etc/resolv.conf\"; \
exec chroot \"$root\" /bin/sh -c 'cd \"$1\" && shift && exec \"$@\"' enter \"$dir\" \"$@\"";

/// The stand-in.
pub(crate) struct Chroot {
    images: Images,
    layers: PathBuf,
    changes: broadcast::Sender<ComponentId>,
    /// How many one-shots ran.
    pub(crate) ran: std::sync::atomic::AtomicUsize,
    /// How many of them asked for a user without rights; here they are root nevertheless.
    pub(crate) unprivileged: std::sync::atomic::AtomicUsize,
}

impl Chroot {
    pub(crate) fn new(images: Images, folder: &Path) -> Self {
        Self {
            images,
            layers: folder.join("layers"),
            changes: broadcast::channel(1).0,
            ran: Default::default(),
            unprivileged: Default::default(),
        }
    }

    /// A layer as a folder.
    async fn unpacked(&self, layer: &Layer) -> Result<PathBuf, Error> {
        let target = self.layers.join(layer.diff_id.hex());
        if !target.is_dir() {
            let partial = self.layers.join(format!("{}.{}", layer.diff_id.hex(), arco_store::clock::random()));
            tokio::fs::create_dir_all(&partial).await.map_err(|it| Error::failed("make a folder", it))?;
            let file = self.images.blobs().local_file(&content_path(&layer.blob.digest)).expect("blobs on disk");
            let done = Command::new("tar")
                .arg("-xzpf")
                .arg(file)
                .arg("-C")
                .arg(&partial)
                .arg("--numeric-owner")
                .output()
                .await;
            let done = done.map_err(|it| Error::failed("unpack", it))?;
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            if std::fs::rename(&partial, &target).is_err() {
                let _ = std::fs::remove_dir_all(&partial);
            }
        }
        Ok(target)
    }

    async fn export(&self, upper: &Path, workload: &OneShot) -> Result<Option<Layer>, Error> {
        let Some(export) = &workload.export else { return Ok(None) };
        let tar = upper.with_extension("tar");
        let mut command = Command::new("tar");
        command.arg("-C").arg(upper).args(["--numeric-owner", "--sort=name"]);
        command.args(export.exclude.iter().map(|it| format!("--exclude=.{it}")));
        command.arg("-cf").arg(&tar);
        let mut any = false;
        for path in export.include.iter().map(|it| it.trim_start_matches('/')) {
            if upper.join(path).exists() {
                command.arg(format!("./{path}"));
                any = true;
            }
        }
        if export.include.is_empty() {
            command.arg(".");
        } else if !any {
            command.args(["-T", "/dev/null"]);
        }
        let done = command.output().await.map_err(|it| Error::failed("export", it))?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let diff_id = Digest::of(&std::fs::read(&tar).map_err(|it| Error::failed("export", it))?);
        let zipped = Command::new("gzip")
            .args(["-1nc"])
            .arg(&tar)
            .output()
            .await
            .map_err(|it| Error::failed("export", it))?
            .stdout;
        let digest = Digest::of(&zipped);
        let blob =
            Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest: digest.clone(), size: zipped.len() as u64 };
        self.images
            .blobs()
            .put_bytes(&content_path(&digest), zipped.into())
            .await
            .map_err(|it| Error::failed("export", it))?;
        Ok(Some(Layer { blob, diff_id }))
    }
}

#[async_trait]
impl Orchestrator for Chroot {
    async fn apply(&self, _: &WorkloadPlan) -> Result<(), Error> {
        Ok(())
    }
    async fn remove(&self, _: &ComponentId, _: &Removal) -> Result<(), Error> {
        Ok(())
    }
    async fn observe(&self, _: &ComponentId) -> Result<Observed, Error> {
        Ok(Observed::default())
    }
    async fn components(&self) -> Result<Vec<ComponentId>, Error> {
        Ok(Vec::new())
    }
    fn changes(&self) -> broadcast::Receiver<ComponentId> {
        self.changes.subscribe()
    }
    async fn release(&self, _: &InstanceId) -> Result<(), Error> {
        Ok(())
    }

    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error> {
        self.ran.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.unprivileged.fetch_add(usize::from(workload.unprivileged), std::sync::atomic::Ordering::SeqCst);
        let image = self.images.read(&workload.image).await.map_err(|it| Error::failed("read the image", it))?;
        let mut lower = Vec::new();
        for layer in image.layers.iter().chain(&workload.extra_layers).rev() {
            lower.push(self.unpacked(layer).await?.display().to_string());
        }
        let place = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(self.layers.parent().expect("a parent"))
            .expect("a folder");
        let [upper, work, root] = ["upper", "work", "root"].map(|it| place.path().join(it));
        for folder in [&upper, &work, &root] {
            std::fs::create_dir(folder).map_err(|it| Error::failed("make a folder", it))?;
        }
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "/bin/sh",
            "-euc",
            ENTER,
            "enter",
        ]);
        command
            .arg(format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display()))
            .arg(&root);
        command.arg(if workload.working_dir.is_empty() { "/" } else { &workload.working_dir });
        for mount in &workload.mounts {
            command.arg(&mount.host_path).arg(&mount.path);
        }
        for cache in &workload.caches {
            command.arg(&cache.host_path).arg(&cache.path);
        }
        command.arg("--").args(&workload.argv).env_clear().envs(&workload.env);
        if !workload.env.contains_key("PATH") {
            command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|it| Error::failed("start", it))?;
        let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut err = BufReader::new(child.stderr.take().expect("piped")).lines();
        let reading = async {
            let one = async {
                while let Ok(Some(text)) = out.next_line().await {
                    let _ = output.send(OutputLine { stderr: false, text }).await;
                }
            };
            let two = async {
                while let Ok(Some(text)) = err.next_line().await {
                    let _ = output.send(OutputLine { stderr: true, text }).await;
                }
            };
            tokio::join!(one, two);
        };
        let limit = std::time::Duration::from_millis(workload.timeout_ms);
        let (mut timed_out, mut asked) = (false, false);
        tokio::select! {
            () = reading => {}
            _ = cancel => asked = true,
            () = tokio::time::sleep(limit) => timed_out = true,
        }
        if timed_out || asked {
            let _ = child.kill().await;
        }
        let status = child.wait().await.map_err(|it| Error::failed("wait", it))?;
        use std::os::unix::process::ExitStatusExt as _;
        let code = status.code().unwrap_or(128 + status.signal().unwrap_or(9));
        let layer = if code == 0 && !timed_out && !asked { self.export(&upper, workload).await? } else { None };
        let exit = ExitFacts { status: code, signal: status.signal(), asked, ..ExitFacts::default() };
        Ok(OneShotResult { exit, timed_out, layer })
    }

    async fn exec(&self, _: &InstanceId, _: ExecRequest) -> Result<ExecSession, Error> {
        Err(Error::Refused("not here".to_owned()))
    }
    async fn connect(&self, _: &InstanceId, _: u16) -> Result<Connection, Error> {
        Err(Error::Refused("not here".to_owned()))
    }
    async fn usage(&self, _: &InstanceId) -> Result<Usage, Error> {
        Ok(Usage::default())
    }
    async fn shutdown(&self, _: bool) -> Result<(), Error> {
        Ok(())
    }
}
