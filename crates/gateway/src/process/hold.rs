//! The holder of a data plane: takes the data directory, makes the control socket, keeps both and every socket of its
//! workers.

use super::{FAILURE, LOCK, SOCKET};
use crate::data_plane::{GatewayError, system};
use arco_daemon::handover::{Claim, Holding, Sockets, hold as hold_sockets, resume};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Name of the control socket among those that are kept.
const CONTROL: &str = "control";

/// What the holder of a data plane needs.
pub struct HoldArgs {
    /// Everything the platform keeps.
    pub data_dir: PathBuf,
    /// Goes on for a holder that became this one.
    pub resumed: bool,
    /// Command line of a worker of an executable.
    pub worker: Box<dyn Fn(&Path) -> Command>,
    /// Command line by which an executable goes on as the holder.
    pub renewed: Box<dyn Fn(&Path) -> Command>,
    /// The executable that an upgrade starts; what tells it must be root's.
    pub next: Box<dyn Fn() -> std::io::Result<PathBuf>>,
    /// Opens the file of the access log for workers, which cannot; `None` without one.
    pub access_log: Box<dyn Fn() -> Option<File>>,
}

/// Is the data plane of a data directory, by its workers, until it is stopped; the exit status.
pub fn hold(args: HoldArgs) -> Result<u8, GatewayError> {
    let run = folder(&args.data_dir.join("run"))?;
    let failure = run.join(FAILURE);
    let failed = move |why: &str| {
        tracing::error!(why, "the data plane does not start");
        // The starter reads it.
        let _ = std::fs::write(&failure, why);
    };
    let access_log = args.access_log;
    let file = move || access_log().map(|it| (crate::access_log::NAME.to_owned(), OwnedFd::from(it)));
    let mut holding = Holding {
        files: Box::new(move || file().into_iter().collect()),
        worker: args.worker,
        renewed: args.renewed,
        next: args.next,
        failed: Box::new(failed),
        lock: None,
        sockets: Vec::new(),
    };
    if args.resumed {
        return Ok(resume(holding)?);
    }
    // Fails only for the leader of a group: then it has a session of its own already, or a terminal that ends it.
    let _ = nix::unistd::setsid();
    let taken = lock(&run.join(LOCK)).and_then(|lock| {
        let control = listen(&run).map_err(system("listen on its control socket"))?;
        Ok((lock, control))
    });
    let (lock, control) = taken.inspect_err(|it| (holding.failed)(&it.to_string()))?;
    (holding.lock, holding.sockets) = (Some(lock.into()), vec![(CONTROL.to_owned(), control.into())]);
    Ok(hold_sockets(holding)?)
}

/// The control socket, in a worker; the claim is to be held as long as anything is.
pub fn inherited_control(sockets: &Sockets) -> Result<(UnixListener, Claim), GatewayError> {
    let (kept, claim) = sockets
        .take(CONTROL, |it| it.len() == 1)
        .ok_or_else(|| system("find its control socket")(std::io::ErrorKind::NotFound.into()))?;
    let control = kept.into_iter().next().ok_or(std::io::ErrorKind::NotFound);
    let control = control.map_err(|it| system("find its control socket")(it.into()))?;
    Ok((control.into(), claim))
}

/// Makes the control socket of a data directory.
pub fn control(data_dir: &Path) -> Result<UnixListener, GatewayError> {
    let run = folder(&data_dir.join("run"))?;
    listen(&run).map_err(system("listen on its control socket"))
}

/// Makes a folder that only its owner may enter.
pub(super) fn folder(path: &Path) -> Result<PathBuf, GatewayError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(system("make a folder in its data directory"))?;
    Ok(path.to_owned())
}

/// How long a lock may be somebody's who is just ending.
const ENDING: Duration = Duration::from_secs(1);
/// How long it may be taken by those who only look: [`holder`] has it for a moment, which is longer where threads are held up.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// Takes the lock and writes the process id into it.
fn lock(path: &Path) -> Result<File, GatewayError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(system("open its lock"))?;
    let began = Instant::now();
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        // Who looks shares it; who has it does not.
        let is_looked_at = flock(&file, FlockOperation::NonBlockingLockShared).is_ok();
        let _ = flock(&file, FlockOperation::Unlock);
        if began.elapsed() < if is_looked_at { LOOKED_AT } else { ENDING } {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let mut pid = String::new();
        // The number is only for the message.
        let _ = file.read_to_string(&mut pid);
        return Err(GatewayError::Running(pid.trim().to_owned()));
    }
    let written = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(system("write its process id"))?;
    Ok(file)
}

/// The holder that has the data directory, if one does.
pub(super) fn holder(run: &Path) -> Option<rustix::process::Pid> {
    let mut file = File::open(run.join(LOCK)).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None; // the kernel let go of it: nobody has it
    }
    let mut pid = String::new();
    file.read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw).filter(|it| !it.is_init())
}

/// A path to `name` in `folder` that fits into a socket address (107 bytes), however deep the folder is; it is valid
/// while the file lives.
pub(super) fn short(folder: &Path, name: &str) -> std::io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    let folder = options.read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
    Ok((folder, path))
}

/// Listens on the control socket; the lock is held, so what is there is a left-over.
fn listen(run: &Path) -> std::io::Result<UnixListener> {
    let (_folder, path) = short(run, SOCKET)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn who_looks_keeps_nobody_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    holder(folder.path());
                }
            });
            let taken = (0..500).all(|_| lock(&path).is_ok());
            over.store(true, Ordering::Relaxed);
            assert!(taken);
        });
        let held = lock(&path).unwrap();
        assert_eq!(holder(folder.path()).map(|it| it.as_raw_nonzero().get().cast_unsigned()), Some(std::process::id()));
        assert!(matches!(lock(&path), Err(GatewayError::Running(pid)) if pid == std::process::id().to_string()));
        drop(held);
    }
}
