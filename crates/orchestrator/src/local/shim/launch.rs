//! Starts the program of a container with libcontainer, in a child of the shim.
//!
//! libcontainer clones without exec and allocates in the clone, so it needs a process with one thread; running it in a
//! forked child also gives its memory back. The child ends, and the container's PID 1 becomes the shim's child because
//! the shim is a subreaper.

use super::protocol::{BUNDLE_FILE, ShimSpec, write_private};
use super::rootfs::RootFs;
use super::{bundle, mounts, user};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::SigSet;
use std::fs::File;
use std::io::{Error, Read as _, Result, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

/// Starts the program; `write` are its standard output and error. Returns the pid of the container's PID 1.
pub(super) fn launch(spec: &ShimSpec, directory: &Path, root_fs: &RootFs, write: &[File; 2]) -> Result<i32> {
    let root = mounts::open_directory(&root_fs.root)?;
    let user = user::resolve(root.as_fd(), &spec.container.user)?;
    // A program may open /dev/stdout anew, which asks for the right to the pipe.
    let base = root_fs.id_base.unwrap_or(0);
    for pipe in write {
        let (uid, gid) = (rustix::fs::Uid::from_raw(base + user.uid), rustix::fs::Gid::from_raw(base + user.gid));
        let _ = rustix::fs::fchown(pipe, Some(uid), Some(gid));
    }
    let configuration = bundle::build(spec, &user, &root_fs.root, root_fs.id_base).map_err(Error::other)?;
    let bytes = serde_json::to_vec(&configuration).map_err(Error::other)?;
    write_private(&directory.join(BUNDLE_FILE), &bytes)?;
    let state = directory.join("oci");
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir(&state)?;
    let (mut answer, mut tell) = std::io::pipe()?;
    // SAFETY: this process has one thread, so the child may do whatever it likes.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => {
            drop(answer);
            // Inherited by PID 1, which the kernel spares every signal that it has neither blocked nor handled yet: a stop
            // that comes this early waits until init takes it. Init starts the program with none blocked.
            let _ = SigSet::all().thread_set_mask();
            // Half a container without its shim would belong to nobody.
            let _ = nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::Signal::SIGKILL));
            let text = match start(spec, directory, &state, write) {
                Ok(pid) => format!("ok {pid}"),
                Err(error) => format!("error {}", chain(error.as_ref())),
            };
            let _ = tell.write_all(text.as_bytes());
            drop(tell);
            // SAFETY: ends the child without running the parent's clean-up.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop(tell);
            let mut text = String::new();
            answer.read_to_string(&mut text)?;
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
            match text.strip_prefix("ok ").and_then(|it| it.parse().ok()) {
                Some(pid) => Ok(pid),
                None => Err(Error::other(text.strip_prefix("error ").unwrap_or("its starter died").to_owned())),
            }
        }
    }
}

fn start(
    spec: &ShimSpec,
    directory: &Path,
    state: &Path,
    write: &[File; 2],
) -> std::result::Result<i32, Box<dyn std::error::Error>> {
    let null: OwnedFd = File::open("/dev/null")?.into();
    let copy = |file: &File| file.try_clone().map(OwnedFd::from);
    let mut container = ContainerBuilder::new(spec.container.id.to_string(), SyscallType::default())
        .with_root_path(state)?
        .with_stdin(null)
        .with_stdout(copy(&write[0])?)
        .with_stderr(copy(&write[1])?)
        .validate_id()?
        .as_init(directory)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    container.start()?;
    container.pid().map(|it| it.as_raw()).ok_or_else(|| "the container has no process".into())
}

/// An error with its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
