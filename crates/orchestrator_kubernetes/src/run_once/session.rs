//! A one-shot inside a pod that waits: folders are copied in, the program runs, what it wrote is copied out.
//!
//! What of the image must be there: `/bin/sh`, `tar`, and for an export GNU `find`; the platform's own stacks have them.
//! What must hold: only what changed after the folders were copied in can be part of the layer; where the program is
//! [`unprivileged`], all that is root in the pod are programs of the image, with none of its variables. Caches are not of
//! the host: [`caches`] has them.

mod caches;
mod unprivileged;

use super::layer::{self, Change};
use super::until;
use crate::driver::Inner;
use crate::render::Object;
use crate::seen::Program;
use crate::{exec, lines};
use arco_model::observed::ExitFacts;
use arco_model::plan::{LayerExport, OneShot};
use arco_orchestrator::{Error, ExecRequest, ExecSession, OneShotResult, OutputLine};
use arco_store::clock;
use futures_util::StreamExt as _;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{broadcast, mpsc};

/// Exit status by which the runtime or `kill -9` ended a program.
const KILLED: i32 = 137;
/// How long the pod may take to tell that it was out of memory.
const TELLING: Duration = Duration::from_secs(2);
/// Most that one of our programs in the pod may write: what runs there is the image's, whatever it is called.
const OUTPUT_MAX: u64 = 256 << 20;
/// Most that it may say about what went wrong.
const SAID_MAX: u64 = 64 << 10;
/// Where our own traces in the pod are.
const OURS: &str = "/.arco";
/// Never part of a layer, and not looked through.
const NEVER: [&str; 7] = [OURS, "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// The program of a pod that waits: it ends when it is told to, and collects what others leave behind.
pub(super) fn waiting() -> Vec<String> {
    let line = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
}

/// The pod with root as its user, whatever the image says.
pub(super) fn as_root(mut pod: Object) -> Object {
    pod.body["spec"]["securityContext"]["runAsUser"] = 0.into();
    pod.body["spec"]["securityContext"]["runAsGroup"] = 0.into();
    pod
}

/// Runs the workload in the pod, which runs, until `deadline`, when the caller ends it.
pub(super) async fn run(
    inner: &Inner,
    namespace: &str,
    pod: &str,
    work: &OneShot,
    output: mpsc::Sender<OutputLine>,
    deadline: tokio::time::Instant,
    changed: &mut broadcast::Receiver<arco_model::id::ComponentId>,
) -> Result<OneShotResult, Error> {
    let at = Pod { inner, namespace, name: pod };
    for mount in &work.mounts {
        at.done("make a folder", &["mkdir", "-p", "--", &mount.path], Vec::new()).await?;
        if !mount.writable {
            at.copy_in(&mount.host_path, &mount.path).await?;
        }
    }
    let caches = at.restore(work, &output).await?;
    if work.unprivileged {
        at.hand_over(work).await?;
    }
    let before = at.begin(work).await?;
    let status = at.program(work, &output).await?;
    let mut exit = ExitFacts { status, at: clock::now(), ..ExitFacts::default() };
    exit.signal = (129..=192).contains(&status).then(|| status - 128);
    if status == KILLED {
        let ended = until(inner, &work.component, pod, changed, |it| match (&it.program, &it.over) {
            (Program::Ended(exit, _), _) => Some(exit.out_of_memory),
            (_, Some(_)) => Some(false),
            _ => None,
        });
        exit.out_of_memory = matches!(tokio::time::timeout(TELLING, ended).await, Ok(Ok(true)));
    }
    let layer = match &work.export {
        Some(export) if status == 0 => Some(at.export(work, export, before).await?),
        _ => None,
    };
    if status == 0 {
        at.keep(work, &caches, deadline, &output).await;
    }
    Ok(OneShotResult { exit, timed_out: false, layer })
}

struct Pod<'a> {
    inner: &'a Inner,
    namespace: &'a str,
    name: &'a str,
}

impl Pod<'_> {
    async fn start(&self, argv: Vec<String>) -> Result<ExecSession, Error> {
        exec::start(self.inner.cluster(), self.namespace, self.name, ExecRequest { argv, terminal: None }).await
    }

    /// Runs a program of ours to its good end; returns what it wrote.
    async fn done(&self, step: &str, argv: &[&str], input: Vec<u8>) -> Result<Vec<u8>, Error> {
        let session = self.start(argv.iter().map(|it| (*it).to_owned()).collect()).await?;
        let ExecSession { mut stdin, stdout, stderr, exit, .. } = session;
        let feed = async move {
            let _ = stdin.write_all(&input).await; // its exit status says whether it had enough
            let _ = stdin.shutdown().await;
            Ok(())
        };
        let failed = |why: String| Error::failed(format!("{step} in the pod of a one-shot workload"), why);
        let done = tokio::try_join!(feed, bounded(stdout, OUTPUT_MAX), bounded(stderr, SAID_MAX));
        let ((), out, err) = done.map_err(|it| failed(format!("`{}`: {it}", argv[0])))?;
        match exit.await {
            Ok(0) => Ok(out),
            Ok(status) => {
                Err(failed(format!("`{}` ended with {status}: {}", argv[0], String::from_utf8_lossy(&err).trim())))
            }
            Err(_) => Err(failed("the connection broke".to_owned())),
        }
    }

    /// Copies a folder of this machine into the pod.
    async fn copy_in(&self, from: &std::path::Path, to: &str) -> Result<(), Error> {
        let step = || format!("copy `{to}` into the pod of a one-shot workload");
        let argv = ["tar", "-x", "-p", "-f", "-", "-C", to].map(str::to_owned).to_vec();
        let ExecSession { mut stdin, stdout, stderr, exit, .. } = self.start(argv).await?;
        drop(stdout);
        let (mut reading, writing) = tokio::net::unix::pipe::pipe()
            .map(|(writing, reading)| (reading, writing))
            .map_err(|it| Error::failed(step(), it))?;
        let writing = writing.into_blocking_fd().map_err(|it| Error::failed(step(), it))?;
        let folder = from.to_owned();
        let pack = tokio::task::spawn_blocking(move || {
            let mut tar = tar::Builder::new(std::fs::File::from(writing));
            tar.follow_symlinks(false);
            if folder.is_dir() {
                tar.append_dir_all(".", &folder)?;
            }
            tar.finish()
        });
        let feed = async move {
            let _ = tokio::io::copy(&mut reading, &mut stdin).await; // the exit status of tar says it
            let _ = stdin.shutdown().await;
        };
        let (packed, (), said) = tokio::join!(pack, feed, bounded(stderr, SAID_MAX));
        let said = said.map_err(|it| Error::failed(step(), it))?;
        packed.map_err(|it| Error::failed(step(), it))?.map_err(|it| Error::failed(step(), it))?;
        match exit.await {
            Ok(0) => Ok(()),
            other => {
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                Err(Error::failed(step(), format!("`tar` ended with {}: {said}", other.unwrap_or(255))))
            }
        }
    }

    /// Every path that could be part of a layer before the program runs, and a mark to compare times with.
    async fn begin(&self, work: &OneShot) -> Result<BTreeSet<Vec<u8>>, Error> {
        if work.export.is_none() && work.caches.is_empty() {
            return Ok(BTreeSet::new());
        }
        self.done("prepare", &["mkdir", "-p", OURS], Vec::new()).await?;
        let before = match &work.export {
            Some(export) => self.find(work, export, &[]).await?,
            None => BTreeSet::new(),
        };
        self.done("set a mark", &["touch", &format!("{OURS}/mark")], Vec::new()).await?;
        Ok(before)
    }

    /// Paths that could be part of the layer, and that `only` says.
    async fn find(&self, work: &OneShot, export: &LayerExport, only: &[&str]) -> Result<BTreeSet<Vec<u8>>, Error> {
        let mut argv: Vec<&str> = vec!["find", "/", "-xdev", "("];
        let mounts = work.mounts.iter().map(|it| it.path.as_str());
        let caches = work.caches.iter().map(|it| it.path.as_str());
        let volumes = work.volumes.iter().map(|it| it.path.as_str());
        let excluded = NEVER.into_iter().chain(export.exclude.iter().map(String::as_str));
        let excluded = excluded.chain(mounts).chain(caches).chain(volumes);
        for (number, path) in excluded.enumerate() {
            if number > 0 {
                argv.push("-o");
            }
            argv.extend(["-path", path]);
        }
        argv.extend([")", "-prune", "-o"]);
        argv.extend(only);
        argv.push("-print0");
        let found = self.done("look at files", &argv, Vec::new()).await?;
        let wanted = |path: &[u8]| {
            export.include.is_empty()
                || export.include.iter().map(|it| it.trim_end_matches('/').as_bytes()).any(|it| {
                    path == it
                        || path.starts_with(it) && path.get(it.len()) == Some(&b'/')
                        || it.starts_with(path) && it.get(path.len()) == Some(&b'/')
                })
        };
        let paths = found.split(|it| *it == 0).filter(|it| it.len() > 1 && wanted(it));
        Ok(paths.map(<[u8]>::to_vec).collect())
    }

    /// Runs the workload's program; its exit status comes after its last line.
    async fn program(&self, work: &OneShot, output: &mpsc::Sender<OutputLine>) -> Result<i32, Error> {
        let mut argv = Vec::new();
        if work.unprivileged {
            argv.extend(unprivileged::program());
        } else if !work.user.is_empty() && work.user != "root" && work.user != "0" {
            let (user, group) = work.user.split_once(':').unwrap_or((&work.user, ""));
            argv.extend(["setpriv".to_owned(), format!("--reuid={user}")]);
            argv.push(if group.is_empty() { format!("--regid={user}") } else { format!("--regid={group}") });
            argv.extend(["--clear-groups".to_owned(), "--".to_owned()]);
        }
        argv.extend(work.argv.iter().cloned());
        let ExecSession { stdin, stdout, stderr, exit, .. } = self.start(argv).await?;
        drop(stdin);
        tokio::join!(hand_on(stdout, false, output), hand_on(stderr, true, output));
        exit.await.map_err(|_| Error::failed("run a one-shot workload", "the connection to its pod broke"))
    }

    async fn export(
        &self,
        work: &OneShot,
        export: &LayerExport,
        before: BTreeSet<Vec<u8>>,
    ) -> Result<arco_model::artifact::Layer, Error> {
        let mark = format!("{OURS}/mark");
        let after = self.find(work, export, &[]).await?;
        let written = self.find(work, export, &["-cnewer", &mark]).await?;
        let gone = layer::gone(&before, &after);
        let step = "read what a one-shot workload wrote";
        let folder = tempfile::tempdir().map_err(|it| Error::failed(step, it))?;
        let file = folder.path().join("written.tar");
        let list: Vec<u8> = written.iter().flat_map(|it| [&it[1..], b"\0"].concat()).collect();
        let mut argv = vec!["tar", "-c", "-f", "-", "-C", "/", "--numeric-owner"];
        if work.unprivileged {
            // As if root had written it, which is who reads it in an instance.
            argv.extend(["--owner=0", "--group=0"]);
        }
        argv.extend(["--no-recursion", "--null", "-T", "-"]);
        let session = self.start(argv.into_iter().map(str::to_owned).collect()).await?;
        let ExecSession { mut stdin, stdout, stderr, exit, .. } = session;
        let feed = async move {
            let _ = stdin.write_all(&list).await; // the exit status of tar says whether it had enough
            let _ = stdin.shutdown().await;
            Ok(())
        };
        // All of it lay on the pod's disk, whatever its `tar` says.
        let most = u64::from(work.resources.disk_mb) << 20;
        let store = async {
            let mut file = tokio::fs::File::create(&file).await?;
            if tokio::io::copy(&mut stdout.take(most + 1), &mut file).await? > most {
                return Err(too_much(most));
            }
            file.flush().await
        };
        let done = tokio::try_join!(feed, store, bounded(stderr, SAID_MAX));
        let ((), (), said) = done.map_err(|it| Error::failed(step, it))?;
        let status = exit.await.unwrap_or(255);
        if status != 0 {
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            return Err(Error::failed(step, format!("`tar` ended with {status}: {said}")));
        }
        layer::write(&self.inner.images, &file, Change { gone }).await
    }
}

/// All of it; an error when it is more than `most` bytes.
async fn bounded(from: impl AsyncRead + Unpin, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > most { Err(too_much(most)) } else { Ok(bytes) }
}

fn too_much(most: u64) -> std::io::Error {
    std::io::Error::other(format!("it wrote more than {most} bytes"))
}

/// Hands on lines until the end.
async fn hand_on(from: impl AsyncRead + Unpin, stderr: bool, to: &mpsc::Sender<OutputLine>) {
    let mut lines = std::pin::pin!(lines::of(BufReader::new(from)));
    while let Some(Ok(line)) = lines.next().await {
        let _ = to.send(OutputLine { stderr, text: line.text }).await; // nobody listens: read on to the end
    }
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[tokio::test]
    async fn what_never_ends_is_not_kept() {
        assert_eq!(bounded(&b"four"[..], 4).await.unwrap(), b"four");
        let error = bounded(tokio::io::repeat(0), 1000).await.unwrap_err();
        assert_eq!(error.to_string(), "it wrote more than 1000 bytes");
    }
}
