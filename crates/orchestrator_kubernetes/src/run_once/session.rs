//! A one-shot inside a pod that waits: folders are copied in, the program runs, what it wrote is copied out.
//!
//! What of the image must be there: `/bin/sh`, `sleep`, `tar`, and for an export GNU `find`; the platform's own stacks have them.
//! What must hold: only what changed after the folders were copied in can be part of the layer; where the program is
//! [`unprivileged`], all that is root in the pod are programs of the image, with none of its variables; no connection into the
//! pod is what the program lives by: the pod's first process runs it and keeps its status, its output is the pod's log, and what
//! is done over a connection that broke is done again. Caches are not of the host: [`caches`] has them.

mod caches;
mod unprivileged;

use super::layer::{self, Change};
use super::output::{self, Output};
use super::{PAUSE, result, until};
use crate::driver::Inner;
use crate::facts::{self, Leaving};
use crate::render::Object;
use crate::seen::{PodSeen, Program};
use crate::{exec, names};
use arco_model::observed::ExitFacts;
use arco_model::plan::{LayerExport, OneShot};
use arco_orchestrator::{Error, ExecRequest, ExecSession, OneShotResult, OutputLine};
use arco_store::clock;
use caches::Restored;
use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{broadcast, mpsc, oneshot};

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
/// How long an answer of [`AWAIT`] may take, which is there after half a minute: nobody says so when a connection is dead.
const AWAITED: Duration = Duration::from_secs(90);
/// The first process of the pod. `$1`: what it writes to both outputs when the program has ended; the program and its arguments
/// follow. It begins when it is told to, and collects what others leave behind.
const HOLD: &str = r#"trap 'exit 0' TERM
mark=$1
shift
until [ -e /.arco/go ]; do sleep 0.1 2>/dev/null || sleep 1; done
(exec "$@") </dev/null
echo $? >/.arco/status
echo "$mark"
echo "$mark" >&2
while :; do sleep 3600 & wait $!; done"#;
/// Lets the program begin, and says its status, or nothing when it has none after half a minute.
const AWAIT: &str = r#": >/.arco/go
n=0
until [ -s /.arco/status ] || [ $n -ge 300 ]; do
  n=$((n + 1))
  sleep 0.1 2>/dev/null || { sleep 1; n=$((n + 9)); }
done
if [ -s /.arco/status ]; then read -r status </.arco/status; echo "$status"; fi"#;
/// Never part of a layer, and not looked through.
const NEVER: [&str; 7] = [OURS, "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// The program of a pod that waits for nothing: it ends when it is told to, and collects what others leave behind.
pub(super) fn waiting() -> Vec<String> {
    let line = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
}

/// The program of a pod that runs the workload's when it is told to.
pub(super) fn holding(work: &OneShot) -> Vec<String> {
    let hold = ["/bin/sh".to_owned(), "-c".to_owned(), HOLD.to_owned(), names::OURS.to_owned(), mark(work)];
    hold.into_iter().chain(program(work)).collect()
}

/// What no program writes at the end of a line.
fn mark(work: &OneShot) -> String {
    format!("[{} has ended]", names::one_shot(&work.id))
}

/// The workload's program as its user, with its arguments.
fn program(work: &OneShot) -> Vec<String> {
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
    argv
}

/// The pod with root as its user, whatever the image says.
pub(super) fn as_root(mut pod: Object) -> Object {
    pod.body["spec"]["securityContext"]["runAsUser"] = 0.into();
    pod.body["spec"]["securityContext"]["runAsGroup"] = 0.into();
    pod
}

/// How the program came to its end.
enum Ended {
    /// With this status.
    Program(i32),
    /// With its whole pod.
    Pod(Box<PodSeen>),
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
    let over = until(inner, &work.component, pod, changed, |it| it.over.as_ref().map(|_| Box::new(it.clone())));
    let mut over = pin!(over);
    let (caches, before) = tokio::select! {
        pod = &mut over => return Err(early(pod?.as_ref())),
        prepared = at.prepare(work, &output) => prepared?,
    };
    let ended = async {
        tokio::select! {
            pod = &mut over => pod.map(Ended::Pod),
            status = at.status() => status.map(Ended::Program),
        }
    };
    let mark = mark(work);
    let said = Output { inner, namespace, component: &work.component, pod, to: &output, mark: Some(&mark) };
    let status = match Box::pin(output::told(&said, ended)).await? {
        Ended::Pod(pod) => return Ok(result(&pod)),
        Ended::Program(status) => status,
    };
    let mut exit = ExitFacts { status, at: clock::now(), ..ExitFacts::default() };
    if status != 0 {
        exit.signal = (129..=192).contains(&status).then(|| status - 128);
        if status == KILLED
            && let Ok(Ok(pod)) = tokio::time::timeout(TELLING, &mut over).await
        {
            exit.out_of_memory = matches!(&pod.program, Program::Ended(it, _) if it.out_of_memory);
        }
        return Ok(OneShotResult { exit, timed_out: false, layer: None });
    }
    let layer = tokio::select! {
        pod = &mut over => return Err(early(pod?.as_ref())),
        layer = at.finish(work, before, &caches, deadline, &output) => layer?,
    };
    Ok(OneShotResult { exit, timed_out: false, layer })
}

/// The pod ended while something was done in it that is not the workload's program.
fn early(pod: &PodSeen) -> Error {
    let out_of_memory = matches!(&pod.program, Program::Ended(it, _) if it.out_of_memory);
    let why = match facts::fault(pod, Leaving::default()) {
        Some(why) => why,
        None if out_of_memory => "its pod was out of memory while folders were copied".to_owned(),
        None => "its pod ended while folders were copied".to_owned(),
    };
    Error::failed("run a one-shot workload", why)
}

/// Why something was not done in the pod.
enum Trouble {
    /// The connection broke, or was not made: it is to be done again.
    Cut(String),
    /// For good.
    Failed(Error),
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

    /// The same, for what is begun again when that cannot be done now.
    async fn try_start(&self, argv: Vec<String>) -> Result<ExecSession, Trouble> {
        self.start(argv).await.map_err(|it| match it {
            Error::Failed { cause, .. } => Trouble::Cut(cause),
            other => Trouble::Failed(other),
        })
    }

    /// After a connection broke.
    async fn pause(&self, step: &str, why: &str) {
        tracing::warn!(pod = self.name, step, why, "the connection to a pod broke; what it was for is done again");
        tokio::time::sleep(PAUSE).await;
    }

    /// Makes ready what the program needs: the caches that it finds, and what was there before it.
    async fn prepare<'a>(
        &self,
        work: &'a OneShot,
        output: &mpsc::Sender<OutputLine>,
    ) -> Result<(Vec<Restored<'a>>, BTreeSet<Vec<u8>>), Error> {
        for mount in &work.mounts {
            self.done("make a folder", &["mkdir", "-p", "--", &mount.path], Vec::new()).await?;
            if !mount.writable {
                self.copy_in(&mount.host_path, &mount.path).await?;
            }
        }
        let caches = self.restore(work, output).await?;
        if work.unprivileged {
            self.hand_over(work).await?;
        }
        let before = self.begin(work).await?;
        Ok((caches, before))
    }

    /// Takes out what a program left that ended well.
    async fn finish(
        &self,
        work: &OneShot,
        before: BTreeSet<Vec<u8>>,
        caches: &[Restored<'_>],
        deadline: tokio::time::Instant,
        output: &mpsc::Sender<OutputLine>,
    ) -> Result<Option<arco_model::artifact::Layer>, Error> {
        let layer = match &work.export {
            Some(export) => Some(self.export(work, export, before).await?),
            None => None,
        };
        self.keep(work, caches, deadline, output).await;
        Ok(layer)
    }

    /// Lets the program begin, if it has not; returns its status when it has ended.
    async fn status(&self) -> Result<i32, Error> {
        let (step, argv) = ("run the program of a one-shot workload", ["/bin/sh", "-c", AWAIT]);
        loop {
            let asked = self.done(step, &argv, Vec::new());
            let Ok(said) = tokio::time::timeout(AWAITED, asked).await else { continue };
            let said = String::from_utf8_lossy(&said?).trim().to_owned();
            if !said.is_empty() {
                return said.parse().map_err(|_| Error::failed(step, format!("`{said}` is no exit status")));
            }
        }
    }

    /// Runs a program of ours to its good end; returns what it wrote. Run twice it must do what it does once.
    async fn done(&self, step: &str, argv: &[&str], input: Vec<u8>) -> Result<Vec<u8>, Error> {
        loop {
            match self.done_once(step, argv, &input).await {
                Ok(out) => return Ok(out),
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Cut(why)) => self.pause(step, &why).await,
            }
        }
    }

    async fn done_once(&self, step: &str, argv: &[&str], input: &[u8]) -> Result<Vec<u8>, Trouble> {
        let session = self.try_start(argv.iter().map(|it| (*it).to_owned()).collect()).await?;
        let ExecSession { mut stdin, stdout, stderr, exit, .. } = session;
        let feed = async move {
            let _ = stdin.write_all(input).await; // its exit status says whether it had enough
            let _ = stdin.shutdown().await;
            Ok(())
        };
        let failed =
            |why: String| Trouble::Failed(Error::failed(format!("{step} in the pod of a one-shot workload"), why));
        let done = tokio::try_join!(feed, bounded(stdout, OUTPUT_MAX), bounded(stderr, SAID_MAX));
        let ((), out, err) = done.map_err(|it| failed(format!("`{}`: {it}", argv[0])))?;
        match ended(exit).await? {
            0 => Ok(out),
            status => {
                Err(failed(format!("`{}` ended with {status}: {}", argv[0], String::from_utf8_lossy(&err).trim())))
            }
        }
    }

    /// Copies a folder of this machine into the pod.
    async fn copy_in(&self, from: &std::path::Path, to: &str) -> Result<(), Error> {
        let step = format!("copy `{to}` into the pod of a one-shot workload");
        loop {
            match self.copy_in_once(&step, from, to).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Cut(why)) => self.pause(&step, &why).await,
            }
        }
    }

    async fn copy_in_once(&self, step: &str, from: &std::path::Path, to: &str) -> Result<(), Trouble> {
        let failed = |it: &dyn std::fmt::Display| Trouble::Failed(Error::failed(step, it));
        let argv = ["tar", "-x", "-p", "-f", "-", "-C", to].map(str::to_owned).to_vec();
        let ExecSession { mut stdin, stdout, stderr, exit, .. } = self.try_start(argv).await?;
        drop(stdout);
        let (mut reading, writing) =
            tokio::net::unix::pipe::pipe().map(|(writing, reading)| (reading, writing)).map_err(|it| failed(&it))?;
        let writing = writing.into_blocking_fd().map_err(|it| failed(&it))?;
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
        let said = said.map_err(|it| failed(&it))?;
        let status = ended(exit).await?;
        if status != 0 {
            return Err(failed(&format!("`tar` ended with {status}: {}", String::from_utf8_lossy(&said).trim())));
        }
        packed.map_err(|it| failed(&it))?.map_err(|it| failed(&it))
    }

    /// Every path that could be part of a layer before the program runs, and a mark to compare times with.
    async fn begin(&self, work: &OneShot) -> Result<BTreeSet<Vec<u8>>, Error> {
        self.done("prepare", &["mkdir", "-p", OURS], Vec::new()).await?;
        if work.export.is_none() && work.caches.is_empty() {
            return Ok(BTreeSet::new());
        }
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
        loop {
            match self.copy_out(step, work, &list, &file).await {
                Ok(()) => break,
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Cut(why)) => self.pause(step, &why).await,
            }
        }
        layer::write(&self.inner.images, &file, Change { gone }).await
    }

    /// Writes what is listed into a file of this machine, as a tar.
    async fn copy_out(&self, step: &str, work: &OneShot, list: &[u8], file: &std::path::Path) -> Result<(), Trouble> {
        let mut argv = vec!["tar", "-c", "-f", "-", "-C", "/", "--numeric-owner"];
        if work.unprivileged {
            // As if root had written it, which is who reads it in an instance.
            argv.extend(["--owner=0", "--group=0"]);
        }
        argv.extend(["--no-recursion", "--null", "-T", "-"]);
        let session = self.try_start(argv.into_iter().map(str::to_owned).collect()).await?;
        let ExecSession { mut stdin, stdout, stderr, exit, .. } = session;
        let feed = async move {
            let _ = stdin.write_all(list).await; // the exit status of tar says whether it had enough
            let _ = stdin.shutdown().await;
            Ok(())
        };
        // All of it lay on the pod's disk, whatever its `tar` says.
        let most = u64::from(work.resources.disk_mb) << 20;
        let store = async {
            let mut file = tokio::fs::File::create(file).await?;
            if tokio::io::copy(&mut stdout.take(most + 1), &mut file).await? > most {
                return Err(too_much(most));
            }
            file.flush().await
        };
        let failed = |it: &dyn std::fmt::Display| Trouble::Failed(Error::failed(step, it));
        let ((), (), said) = tokio::try_join!(feed, store, bounded(stderr, SAID_MAX)).map_err(|it| failed(&it))?;
        match ended(exit).await? {
            0 => Ok(()),
            status => Err(failed(&format!("`tar` ended with {status}: {}", String::from_utf8_lossy(&said).trim()))),
        }
    }
}

/// The exit status of a program, unless its connection broke before.
async fn ended(exit: oneshot::Receiver<i32>) -> Result<i32, Trouble> {
    match exit.await {
        Ok(exec::BROKEN) | Err(_) => Err(Trouble::Cut("it ended without an exit status".to_owned())),
        Ok(status) => Ok(status),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    #[tokio::test]
    async fn what_never_ends_is_not_kept() {
        assert_eq!(bounded(&b"four"[..], 4).await.unwrap(), b"four");
        let error = bounded(tokio::io::repeat(0), 1000).await.unwrap_err();
        assert_eq!(error.to_string(), "it wrote more than 1000 bytes");
    }

    /// The first process of a pod with all that it began.
    struct First(Child);

    impl Drop for First {
        fn drop(&mut self) {
            let group = format!("-{}", self.0.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status(); // the test has its finding
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_program_runs_once_when_it_is_told_to_and_its_status_stays() {
        for (script, status, out, err) in [
            ("echo one; printf two; echo odd >&2; exit 3", "3\n", "one\ntwo[mark]\n", "odd\n[mark]\n"),
            ("read line || echo nothing; kill -9 $$", "137\n", "nothing\n[mark]\n", "[mark]\n"),
        ] {
            let program = ["sh", "-c", script];
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let here = |it: &str| it.replace(OURS, folder.path().to_str().unwrap());
            let mut first = Command::new("/bin/sh");
            first.args(["-c", &here(HOLD), "arco", "[mark]"]).args(program).process_group(0);
            first.stdout(File::create(path("out")).unwrap()).stderr(File::create(path("err")).unwrap());
            let _first = First(first.spawn().unwrap());
            assert!(!path("status").exists(), "nobody has told it to begin");
            for _ in 0..2 {
                let asked = Command::new("/bin/sh").args(["-c", &here(AWAIT)]).stdin(Stdio::null()).output().unwrap();
                assert_eq!(String::from_utf8(asked.stdout).unwrap(), status, "{script}: {:?}", asked.stderr);
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            let read = |name: &str| fs::read_to_string(path(name)).unwrap();
            while !read("err").ends_with("[mark]\n") {
                assert!(Instant::now() < deadline, "{script}: {:?}", read("err"));
                std::thread::sleep(Duration::from_millis(10)); // the pace of looking
            }
            assert_eq!(read("out"), out, "{script}");
            // Shells differ in what they say of a program that was killed.
            let said: Vec<String> = read("err").lines().map(str::to_owned).collect();
            assert!(err.lines().all(|it| said.iter().any(|said| said == it)), "{script}: {said:?}");
        }
    }
}
