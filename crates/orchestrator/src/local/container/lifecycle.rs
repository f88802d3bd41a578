//! Making, watching, stopping and removing: what a container goes through, in that order.
//!
//! What must hold: a failed [`create`] leaves nothing; [`remove`] works on whatever a crash left, in any half-made state.

use super::state::{Entry, Inner};
use super::{ContainerPhase, ContainerSpec, disk, layers};
use crate::local::cgroup::Cgroup;
use crate::local::shim::protocol::{self, Notice, Request, ShimSpec, ShimState, write_private};
use crate::{Error, Usage};
use arco_model::id::InstanceId;
use arco_model::observed::ExitFacts;
use arco_store::clock;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest time a shim needs to start a program, unless the machine is broken.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest time a shim needs to end after it was told to.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for the last log lines to be kept before their files go.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// Makes a container and starts its program.
pub(super) async fn create(inner: &Arc<Inner>, spec: ContainerSpec) -> Result<(), Error> {
    let id = spec.id.clone();
    if spec.argv.is_empty() {
        return Err(Error::Refused("the image names no program to run: give a command".to_owned()));
    }
    let stop_signal = parse_signal(&spec.stop_signal)?;
    let entry = Entry::new(spec.component.clone(), spec.labels.clone(), Some(inner.id_base));
    if !inner.insert(&id, entry) {
        return Err(Error::Refused(format!("container {id} exists already")));
    }
    let made = start(inner, spec, stop_signal).await;
    if made.is_err() {
        clear(inner, &id).await;
        inner.forget(&id);
    }
    made
}

async fn start(inner: &Arc<Inner>, spec: ContainerSpec, stop_signal: i32) -> Result<(), Error> {
    let id = spec.id.clone();
    let folder = inner.folder(&id);
    let failed = |step: &str, error: &dyn std::fmt::Display| Error::failed(format!("{step} of container {id}"), error);
    tokio::fs::create_dir_all(&folder).await.map_err(|error| failed("make the folder", &error))?;
    let unpacked = layers::ensure(inner, &spec.layers).await?;
    let image = folder.join("disk.img");
    let disk_image = disk::prepare(inner, spec.disk_mb, &image).await?.then_some(image);
    let log_mb = u64::from(inner.config.instance_log_mb.max(1));
    let shim = ShimSpec {
        layers: unpacked,
        disk_image,
        disk_dir: folder.join("disk"),
        log_dir: folder.join("log"),
        log_bytes: log_mb << 20,
        data_dir: inner.config.data_dir.clone(),
        run_root: inner.run_root.clone(),
        cgroup: inner.cgroup_name(&id),
        id_base: Some(inner.id_base),
        stop_signal,
        container: spec,
    };
    let directory = inner.run_directory(&id);
    let bytes = serde_json::to_vec(&shim).map_err(|error| failed("write the specification", &error))?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .and_then(|()| write_private(&directory.join(protocol::SPEC_FILE), &bytes))
        .map_err(|error| failed("write the specification", &error))?;
    spawn_shim(inner, &id, &directory).await?;
    connect(inner, &id).await?;
    if inner.with(&id, |entry| !entry.shim.user_namespace).unwrap_or(false) {
        tracing::warn!(container = %id, "no user namespace: this kernel or file system cannot map the ids of layers");
    }
    inner.start_tail(&id);
    let _ = inner.changes.send(id);
    Ok(())
}

async fn spawn_shim(inner: &Arc<Inner>, id: &InstanceId, directory: &Path) -> Result<(), Error> {
    let mut child = Command::new(&inner.config.executable)
        .args(["shim", "run"])
        .arg(directory)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::failed(format!("start the shim of container {id}"), error))?;
    let shim_pid = child.id();
    let _ = inner.with(id, |entry| entry.kill_shim = shim_pid.map(|it| it as i32));
    let mut answer = String::new();
    let mut stdout = child.stdout.take();
    let read = async {
        if let Some(stdout) = &mut stdout {
            let _ = stdout.read_to_string(&mut answer).await;
        }
    };
    if timeout(START_LIMIT, read).await.is_err() {
        let _ = child.start_kill();
        return Err(Error::failed(format!("start the program of container {id}"), "its shim did not answer in 60 s"));
    }
    // Whoever ends first: the shim is reaped by this process while it lives.
    inner.spawn(async move {
        let _ = child.wait().await;
    });
    match answer.trim() {
        "ok" => Ok(()),
        text => {
            let why = text.strip_prefix("error ").unwrap_or("its shim died");
            Err(Error::failed(format!("start the program of container {id}"), why))
        }
    }
}

/// Connects to the shim of a container and watches it until it ends.
async fn connect(inner: &Arc<Inner>, id: &InstanceId) -> Result<(), Error> {
    let mut reader = greet(inner, id).await?;
    let (inner, id) = (Arc::clone(inner), id.clone());
    let watcher = Arc::clone(&inner);
    inner.spawn(async move {
        loop {
            while let Some(notice) = read_notice(&mut reader).await {
                take_notice(&watcher, &id, notice);
            }
            // A shim hangs up on a reader that is too slow; only one that does not answer again is gone.
            match greet(&watcher, &id).await {
                Ok(again) => reader = again,
                Err(_) => break,
            }
        }
        shim_ended(&watcher, &id);
    });
    Ok(())
}

/// Opens a connection and takes the state that comes first.
async fn greet(inner: &Inner, id: &InstanceId) -> Result<BufReader<OwnedReadHalf>, Error> {
    let path = inner.run_directory(id).join(protocol::SOCKET_FILE);
    let failed = |error: &dyn std::fmt::Display| Error::failed(format!("reach the shim of container {id}"), error);
    let stream = UnixStream::connect(&path).await.map_err(|error| failed(&error))?;
    let (read, write) = stream.into_split();
    let mut reader = BufReader::new(read);
    let first = timeout(START_LIMIT, read_notice(&mut reader)).await.map_err(|error| failed(&error))?;
    let Some(notice @ Notice::State(_)) = first else { return Err(failed(&"it does not answer")) };
    inner.with(id, |entry| entry.requests = Some(Arc::new(tokio::sync::Mutex::new(write))));
    take_notice(inner, id, notice);
    Ok(reader)
}

fn take_notice(inner: &Inner, id: &InstanceId, notice: Notice) {
    let is_state = matches!(notice, Notice::State(_));
    inner.with(id, |entry| {
        if let Notice::State(state) = notice {
            let ended = state.phase == ContainerPhase::Exited;
            entry.shim = state;
            entry.log.send_modify(|it| it.1 |= ended);
        }
        entry.log.send_modify(|it| it.0 += 1);
    });
    if is_state {
        let _ = inner.changes.send(id.clone());
    }
}

async fn read_notice(reader: &mut BufReader<OwnedReadHalf>) -> Option<Notice> {
    let mut line = String::new();
    match reader.read_line(&mut line).await {
        Ok(count) if count > 0 => serde_json::from_str(&line).ok(),
        _ => None,
    }
}

/// The shim is gone: what it wrote last is the truth, and if that is no end, it was killed.
fn shim_ended(inner: &Arc<Inner>, id: &InstanceId) {
    let last = inner.read_state(id);
    inner.with(id, |entry| {
        entry.shim = ended_state(last.unwrap_or_else(|| entry.shim.clone()));
        entry.requests = None;
        entry.log.send_modify(|it| *it = (it.0 + 1, true));
        entry.gone.send_replace(true);
    });
    let _ = inner.changes.send(id.clone());
}

fn ended_state(state: ShimState) -> ShimState {
    if state.phase == ContainerPhase::Exited {
        return state;
    }
    let last_output = "the process that watched over the container was killed".to_owned();
    let exit = ExitFacts { status: 137, signal: Some(9), last_output, at: clock::now(), ..ExitFacts::default() };
    ShimState { phase: ContainerPhase::Exited, pid: None, last_exit: Some(exit), ..state }
}

async fn request(inner: &Inner, id: &InstanceId, request: &Request) -> bool {
    let Some(Some(requests)) = inner.with(id, |entry| entry.requests.clone()) else { return false };
    let Ok(mut line) = serde_json::to_vec(request) else { return false };
    line.push(b'\n');
    requests.lock().await.write_all(&line).await.is_ok()
}

/// Ends the program; returns when it has ended.
pub(super) async fn stop(inner: &Inner, id: &InstanceId, grace_ms: u64) -> Result<(), Error> {
    let known = inner.with(id, |entry| (entry.gone.subscribe(), entry.shim.phase));
    let Some((mut gone, phase)) = known else { return Err(Error::NotFound(id.to_string())) };
    if phase == ContainerPhase::Exited {
        return Ok(());
    }
    let mut changes = inner.changes.subscribe();
    if !request(inner, id, &Request::Stop { grace_ms }).await {
        return Ok(());
    }
    let has_ended = || inner.state(id).is_none_or(|it| it.phase == ContainerPhase::Exited);
    let ended = async {
        while !has_ended() {
            tokio::select! {
                _ = changes.recv() => {}
                _ = gone.changed() => return,
            }
        }
    };
    match timeout(Duration::from_millis(grace_ms) + END_LIMIT, ended).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Error::failed(format!("stop container {id}"), "its program did not end after SIGKILL")),
    }
}

/// Removes a container with everything.
pub(super) async fn remove(inner: &Inner, id: &InstanceId) -> Result<(), Error> {
    let Some((mut gone, mut tailed)) = inner.with(id, |entry| (entry.gone.subscribe(), entry.tailed.subscribe()))
    else {
        return Ok(());
    };
    let connected = inner.with(id, |entry| entry.requests.is_some()).unwrap_or(false);
    if connected {
        // A service's shim may be ending by itself; then nobody reads the request.
        let _ = request(inner, id, &Request::Finish).await;
        let _ = timeout(END_LIMIT, wait_for(&mut gone)).await;
    }
    inner.with(id, |entry| entry.log.send_modify(|it| *it = (it.0 + 1, true)));
    let _ = timeout(LOG_LIMIT, wait_for(&mut tailed)).await;
    let cleared = clear(inner, id).await;
    inner.forget(id);
    if cleared {
        Ok(())
    } else {
        Err(Error::failed(format!("remove container {id}"), "a process in it cannot be ended"))
    }
}

async fn wait_for(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|it| *it).await;
}

/// Ends what is left of a container, in whatever state; returns whether nothing is left.
async fn clear(inner: &Inner, id: &InstanceId) -> bool {
    let shim_pid =
        inner.with(id, |entry| entry.kill_shim).flatten().or_else(|| inner.read_state(id).map(|it| it.shim_pid));
    let (directory, folder, cgroup) = (inner.run_directory(id), inner.folder(id), inner.cgroup_name(id));
    let done = tokio::task::spawn_blocking(move || {
        if let Some(pid) = shim_pid {
            kill_shim(pid, &directory);
        }
        let gone = Cgroup::new(&cgroup).remove();
        for folder in [&directory, &folder] {
            // A creation that was given up may still put its last file there.
            let left = |_: &i32| {
                std::fs::remove_dir_all(folder).is_err_and(|it| it.kind() == std::io::ErrorKind::DirectoryNotEmpty)
            };
            let _ = (0..100).take_while(left).count();
        }
        gone
    });
    done.await.unwrap_or(false)
}

/// Ends a shim that has not ended by itself, and what it has forked so far; all have the same arguments.
fn kill_shim(pid: i32, directory: &Path) {
    await_arguments(pid);
    let mut next = Some(pid).filter(|it| *it > 1 && is_shim(*it, directory));
    for _ in 0..100 {
        let Some(pid) = next else { return };
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        for _ in 0..200 {
            // A process that has ended but was not waited for has no arguments any more.
            if !is_shim(pid, directory) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        next = find_shim(directory);
    }
}

/// A process that was started a moment ago has the arguments of this one, then none, until the kernel has laid out its
/// memory; whoever looks too early takes it for another and lets it live.
fn await_arguments(pid: i32) {
    let process = Path::new("/proc").join(pid.to_string());
    let own = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    // What has ended, or is the kernel's, has no executable either.
    let is_starting = || {
        std::fs::read(process.join("cmdline")).is_ok_and(|it| it.is_empty() || it == own)
            && process.join("exe").read_link().is_ok()
    };
    for _ in 0..10_000 {
        if !is_starting() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The shim of a directory among all processes; for what a crash left.
fn find_shim(directory: &Path) -> Option<i32> {
    // A process that forks and ends after its number was read and before its arguments are hides its child from one look.
    // A launch forks three times at most.
    (0..4).find_map(|_| {
        let names =
            std::fs::read_dir("/proc").ok()?.filter_map(|it| it.ok()?.file_name().into_string().ok()?.parse().ok());
        let mut pids = names.filter(|pid: &i32| is_shim(*pid, directory));
        pids.next()
    })
}

fn is_shim(pid: i32, directory: &Path) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = arguments.split(|it| *it == 0).skip(1);
    words.next() == Some(b"shim") && words.any(|it| it == directory.as_os_str().as_encoded_bytes())
}

/// Finds what earlier processes left: takes over what runs, clears the rest.
pub(super) async fn adopt_all(inner: &Arc<Inner>) -> Result<(), Error> {
    for folder in [inner.run_root.clone(), inner.config.data_dir.join("instances")] {
        let names = std::fs::read_dir(&folder)
            .map_err(|error| Error::failed(format!("list {}", folder.display()), error))?
            .filter_map(|it| it.ok()?.file_name().into_string().ok());
        for id in names.filter_map(|it| it.parse::<InstanceId>().ok()) {
            if inner.with(&id, |_| ()).is_none() {
                adopt(inner, &id).await;
            }
        }
    }
    Ok(())
}

async fn adopt(inner: &Arc<Inner>, id: &InstanceId) {
    let Some(spec) = inner.read_spec(id) else {
        clear(inner, id).await;
        return;
    };
    inner.insert(id, Entry::new(spec.container.component.clone(), spec.container.labels.clone(), spec.id_base));
    // A shim that is still preparing lost its server, and with it whoever wanted the container.
    let ready = inner.read_state(id).is_some_and(|it| it.phase != ContainerPhase::Preparing);
    if ready && connect(inner, id).await.is_ok() {
        inner.start_tail(id);
        tracing::info!(container = %id, "adopted a container");
        return;
    }
    tracing::info!(container = %id, "cleared what was left of a container");
    let shim_pid = find_shim(&inner.run_directory(id));
    inner.with(id, |entry| {
        entry.log.send_modify(|it| *it = (1, true));
        entry.kill_shim = shim_pid;
    });
    inner.start_tail(id);
    let _ = remove(inner, id).await;
}

/// What a container uses now.
pub(super) async fn usage(inner: &Inner, id: &InstanceId) -> Result<Usage, Error> {
    if inner.state(id).is_none() {
        return Err(Error::NotFound(id.to_string()));
    }
    let name = inner.cgroup_name(id);
    tokio::task::spawn_blocking(move || Cgroup::new(&name).usage())
        .await
        .map_err(|error| Error::failed(format!("read the usage of container {id}"), error))
}

fn parse_signal(text: &str) -> Result<i32, Error> {
    let name = text.trim();
    if name.is_empty() {
        return Ok(libc::SIGTERM);
    }
    if let Ok(number) = name.parse::<i32>()
        && (1..=64).contains(&number)
    {
        return Ok(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>().map(|it| it as i32).map_err(|_| {
        Error::Refused(format!("`{name}` is not a signal: use a name as SIGTERM or a number from 1 to 64"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("", 15), ("SIGQUIT", 3), ("quit", 3), ("9", 9), ("37", 37)] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["0", "65", "SIGNAL", "-9", "9; reboot"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
