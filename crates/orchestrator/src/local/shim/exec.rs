//! A program inside a running container: joins its namespaces, takes its limits and rights, relays a terminal.
//!
//! Started by the server as a process of its own. The descriptor in the arguments is a socket on which the server sends
//! [`ExecOrder`], then new terminal sizes; when it closes, the program is ended. Exit status is the program's; 125 when
//! the container could not be entered. What must hold: the program has no right that the container has not.

use super::bundle::environment;
use super::mounts::step;
use super::protocol::{BUNDLE_FILE, SPEC_FILE, STATE_FILE, ShimSpec, ShimState};
use crate::local::cgroup::Cgroup;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, seccomp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Error, Read as _, Result, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What is run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::local) struct ExecOrder {
    /// Program and arguments.
    pub(in crate::local) argv: Vec<String>,
    /// Whether it gets a terminal: columns and rows.
    pub(in crate::local) terminal: Option<(u16, u16)>,
}

/// Runs a program in the container of this run directory.
pub(super) fn run(directory: &Path, control: i32) -> i32 {
    // SAFETY: the server handed this descriptor over for us alone.
    let control = unsafe { UnixStream::from_raw_fd(control) };
    match execute(directory, control) {
        Ok(status) => status,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "arco: failed to run in the container: {error}");
            125
        }
    }
}

fn execute(directory: &Path, control: UnixStream) -> Result<i32> {
    let mut reader = BufReader::new(control.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let order: ExecOrder = serde_json::from_str(&line)?;
    let read = |name: &str| step("read", &directory.join(name), std::fs::read(directory.join(name)));
    let spec: ShimSpec = serde_json::from_slice(&read(SPEC_FILE)?)?;
    let state: ShimState = serde_json::from_slice(&read(STATE_FILE)?)?;
    let bundle: Spec = serde_json::from_slice(&read(BUNDLE_FILE)?)?;
    let pid = state.pid.ok_or_else(|| Error::other("its program does not run now"))?;
    let entries = Cgroup::new(&spec.cgroup).entries();
    let program = Program::new(&order, &bundle)?;
    let null = File::open("/dev/null")?;
    join(pid, state.user_namespace)?;
    let terminal = order.terminal.map(open_terminal).transpose()?;
    let signals = SigSet::from_iter([nix::sys::signal::Signal::SIGCHLD]);
    signals.thread_block()?;
    let signals = nix::sys::signalfd::SignalFd::new(&signals)?;
    // SAFETY: this process has one thread.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(Error::last_os_error()),
        0 => program.become_it(entries, terminal),
        child => Pid::from_raw(child),
    };
    drop(entries);
    let master = terminal.map(|it| it.master);
    if master.is_none() {
        // The program's own end of its pipes decides when they are over.
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
    }
    relay(child, master.map(File::from), &signals, reader)
}

/// Enters every namespace of the container.
fn join(pid: i32, user_namespace: bool) -> Result<()> {
    // SAFETY: plain system call.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    let process = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    // Nobody inside may look into this process.
    let _ = nix::sys::prctl::set_dumpable(false);
    let mut kinds = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    kinds |= CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    if user_namespace {
        kinds |= CloneFlags::CLONE_NEWUSER;
    }
    nix::sched::setns(process, kinds).map_err(|error| Error::other(format!("failed to enter it: {error}")))?;
    if user_namespace {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
        nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    }
    Ok(())
}

/// Changes the user; the rights stay until they are dropped one by one.
fn keep_rights_over(uid: u32) -> Result<()> {
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid))?;
    nix::sys::prctl::set_keepcaps(false)?;
    Ok(())
}

struct Terminal {
    master: OwnedFd,
    program: OwnedFd,
}

/// A terminal of the container's own devpts.
fn open_terminal((columns, rows): (u16, u16)) -> Result<Terminal> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let open = |path: &str| File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path);
    let master = open("/dev/pts/ptmx")?;
    let mut number: libc::c_int = 0;
    let unlock: libc::c_int = 0;
    // SAFETY: both calls get a pointer to one live integer.
    let done = unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) == 0
            && libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) == 0
    };
    if !done {
        return Err(Error::last_os_error());
    }
    resize(&master, columns, rows);
    let program = open(&format!("/dev/pts/{number}"))?;
    Ok(Terminal { master: master.into(), program: program.into() })
}

fn resize(master: &File, columns: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a pointer to one live value.
    unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

struct Program {
    argv: Vec<CString>,
    env: Vec<CString>,
    path: String,
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    bundle: Spec,
}

impl Program {
    fn new(order: &ExecOrder, bundle: &Spec) -> Result<Self> {
        let process = bundle.process().as_ref().ok_or_else(|| Error::other("the bundle has no process"))?;
        let mut given: BTreeMap<String, String> = process
            .env()
            .iter()
            .flatten()
            .filter_map(|it| it.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect();
        if order.terminal.is_some() {
            given.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
        }
        let path = given.get("PATH").cloned().unwrap_or_default();
        let text = |it: &String| CString::new(it.as_str()).map_err(Error::from);
        let user = process.user();
        Ok(Self {
            argv: order.argv.iter().map(text).collect::<Result<_>>()?,
            env: environment(&given, "/").iter().map(text).collect::<Result<_>>()?,
            path,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().iter().flatten().map(|it| Gid::from_raw(*it)).collect(),
            bundle: bundle.clone(),
        })
    }

    /// In the child: takes limits, terminal, rights, and becomes the program.
    fn become_it(self, entries: Vec<File>, terminal: Option<Terminal>) -> ! {
        let status = match self.prepare(entries, terminal) {
            Ok(()) => self.replace(),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "arco: failed to run in the container: {error}");
                125
            }
        };
        // SAFETY: ends the child without the parent's clean-up.
        unsafe { libc::_exit(status) }
    }

    fn prepare(&self, entries: Vec<File>, terminal: Option<Terminal>) -> Result<()> {
        for mut entry in entries {
            entry.write_all(b"0").map_err(|error| Error::other(format!("failed to enter its cgroup: {error}")))?;
        }
        SigSet::empty().thread_set_mask()?;
        nix::unistd::setsid()?;
        if let Some(terminal) = terminal {
            // SAFETY: plain call on a live descriptor.
            if unsafe { libc::ioctl(terminal.program.as_raw_fd(), libc::TIOCSCTTY, 0) } != 0 {
                return Err(Error::last_os_error());
            }
            let owner = (rustix::fs::Uid::from_raw(self.uid), rustix::fs::Gid::from_raw(5));
            let _ = rustix::fs::fchown(&terminal.program, Some(owner.0), Some(owner.1));
            nix::unistd::dup2_stdin(&terminal.program)?;
            nix::unistd::dup2_stdout(&terminal.program)?;
            nix::unistd::dup2_stderr(&terminal.program)?;
        }
        let process = self.bundle.process().as_ref().ok_or_else(|| Error::other("the bundle has no process"))?;
        if std::env::set_current_dir(process.cwd()).is_err() {
            std::env::set_current_dir("/")?;
        }
        for limit in process.rlimits().iter().flatten() {
            let kind = if limit.typ() == oci_spec::runtime::PosixRlimitType::RlimitNofile {
                nix::sys::resource::Resource::RLIMIT_NOFILE
            } else {
                nix::sys::resource::Resource::RLIMIT_CORE
            };
            nix::sys::resource::setrlimit(kind, limit.soft(), limit.hard())?;
        }
        nix::sys::prctl::set_no_new_privs()?;
        nix::unistd::setgroups(&self.groups)?;
        let system = create_syscall();
        let rights = process.capabilities().as_ref().ok_or_else(|| Error::other("the bundle has no capabilities"))?;
        nix::unistd::setresgid(Gid::from_raw(self.gid), Gid::from_raw(self.gid), Gid::from_raw(self.gid))?;
        keep_rights_over(self.uid)?;
        capabilities::reset_effective(system.as_ref()).map_err(Error::other)?;
        capabilities::drop_privileges(rights, system.as_ref()).map_err(Error::other)?;
        let filter = self.bundle.linux().as_ref().and_then(|it| it.seccomp().as_ref());
        let filter = filter.ok_or_else(|| Error::other("the bundle has no seccomp filter"))?;
        seccomp::initialize_seccomp(filter).map_err(Error::other)?;
        Ok(())
    }

    /// Replaces this process; returns the status to end with when that fails.
    fn replace(&self) -> i32 {
        let Some(name) = self.argv.first() else { return 127 };
        let candidates: Vec<CString> = if name.as_bytes().contains(&b'/') {
            vec![name.clone()]
        } else {
            let join = |folder: &str| CString::new([folder.as_bytes(), b"/", name.as_bytes()].concat()).ok();
            self.path.split(':').filter_map(join).collect()
        };
        let mut status = 127;
        for candidate in &candidates {
            match nix::unistd::execve(candidate, &self.argv, &self.env) {
                Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
                _ => status = 126,
            }
        }
        let why = if status == 127 { "no such program in the image" } else { "it is not executable" };
        let _ = writeln!(std::io::stderr(), "arco: cannot start `{}`: {why}", name.to_string_lossy());
        status
    }
}

/// Waits for the program's end; carries the terminal's bytes and sizes meanwhile.
fn relay(
    child: Pid,
    master: Option<File>,
    signals: &nix::sys::signalfd::SignalFd,
    mut control: BufReader<UnixStream>,
) -> Result<i32> {
    control.get_ref().set_nonblocking(true)?;
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let (mut input_open, mut control_open, mut status) = (master.is_some(), true, None);
    loop {
        if let Some(status) = status
            && !master.as_ref().is_some_and(has_input)
        {
            return Ok(status);
        }
        let mut descriptors = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let mut add = |open: bool, descriptor| {
            let flags = if open { PollFlags::POLLIN } else { PollFlags::empty() };
            descriptors.push(PollFd::new(descriptor, flags));
        };
        add(control_open, control.get_ref().as_fd());
        add(input_open, stdin.as_fd());
        if let Some(master) = &master {
            add(true, master.as_fd());
        }
        let _ = poll(&mut descriptors, PollTimeout::NONE);
        let ready: Vec<bool> = descriptors.iter().map(|it| it.revents().is_some_and(|it| !it.is_empty())).collect();
        drop(descriptors);
        if ready[0] {
            let _ = signals.read_signal();
        }
        while status.is_none() {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => status = Some(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => status = Some(128 + signal as i32),
                _ => break,
            }
        }
        if ready[1] && control_open {
            control_open = hear(&mut control, master.as_ref());
            if !control_open {
                end(child, status);
            }
        }
        let Some(master) = &master else { continue };
        let mut piece = [0u8; 16 << 10];
        if ready[2] && input_open {
            let count = nix::unistd::read(stdin.as_fd(), &mut piece).unwrap_or(0);
            input_open = count > 0 && (&*master).write_all(&piece[..count]).is_ok();
            if count == 0 {
                let _ = (&*master).write_all(&[4]); // end of input, as the person at a terminal says it
            }
        }
        if ready[3] {
            match (&*master).read(&mut piece) {
                Ok(count) if count > 0 => {
                    let _ = stdout.lock().write_all(&piece[..count]).and_then(|()| stdout.lock().flush());
                }
                // EIO: no program has the terminal open any more.
                _ => {
                    let ended = status.map_or_else(|| waitpid(child, None), |it| Ok(WaitStatus::Exited(child, it)));
                    return Ok(match ended {
                        Ok(WaitStatus::Exited(_, code)) => code,
                        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
                        _ => 125,
                    });
                }
            }
        }
    }
}

/// Ends the program and its group, which it may not have yet.
fn end(child: Pid, status: Option<i32>) {
    if status.is_none() {
        for target in [child.as_raw(), -child.as_raw()] {
            // SAFETY: plain calls; the child was not waited for.
            unsafe { libc::kill(target, libc::SIGKILL) };
        }
    }
}

fn has_input(file: &File) -> bool {
    let mut descriptors = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::ZERO).is_ok()
        && descriptors[0].revents().is_some_and(|it| it.contains(PollFlags::POLLIN))
}

/// Reads new sizes; returns whether the server is still there.
fn hear(control: &mut BufReader<UnixStream>, master: Option<&File>) -> bool {
    loop {
        let mut line = String::new();
        match control.read_line(&mut line) {
            Ok(0) => return false,
            Ok(_) => {
                if let (Some(master), Ok((columns, rows))) = (master, serde_json::from_str::<(u16, u16)>(&line)) {
                    resize(master, columns, rows);
                }
            }
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}
