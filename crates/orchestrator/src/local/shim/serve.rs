//! The loop of a shim: waits for output, the program's end, requests and times; decides in [`Shim`].
//!
//! One poll loop, no thread. What must hold: every change is in `state.json` before anybody is told; a slow or dead
//! client never stops the loop, and a slow one is told the last state in the end; after `Finish`, or when a service was
//! stopped, nothing of the container is left but its folders.

use super::launch::launch;
use super::mounts::step;
use super::output::{Output, now_ms};
use super::protocol::{Notice, Request, SOCKET_FILE, SPEC_FILE, STATE_FILE, ShimSpec, ShimState, write_private};
use super::rootfs::RootFs;
use super::surroundings;
use crate::local::cgroup::Cgroup;
use crate::local::container::{ContainerPhase, RestartPolicy};
use arco_model::observed::ExitFacts;
use arco_model::time::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Result, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// First pause before a program is started again, in ms; doubles up to [`PAUSE_MAX_MS`].
const PAUSE_MIN_MS: u64 = 1_000;
/// Longest pause, in ms.
const PAUSE_MAX_MS: u64 = 60_000;
/// A program that ran this long (ms) begins with the shortest pause again.
const GOOD_RUN_MS: u64 = 60_000;

/// A one-shot whose server is away this long (ms) is given up: nobody wants its result any more.
const LONELY_MS: u64 = 30_000;

/// Runs the shim of the container whose run directory is given. Standard output tells the server `ok` or why not.
pub(super) fn run(directory: &Path) -> i32 {
    match Shim::start(directory) {
        Ok(mut shim) => {
            answer("ok\n");
            shim.serve();
            shim.end();
            0
        }
        Err(error) => {
            answer(&format!("error {error}\n"));
            1
        }
    }
}

/// Says one line to the server, then lets go of the pipe.
fn answer(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// Whether the last state is still to be told: there was no room for it.
    behind: bool,
}

impl Client {
    /// What to wait for.
    fn events(&self) -> PollFlags {
        if self.behind { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// Tells it something; returns whether it is still to be told anything.
    fn tell(&mut self, notice: &Notice) -> bool {
        let is_state = matches!(notice, Notice::State(_));
        match write_notice(&self.stream, notice) {
            Written::Whole => self.behind &= !is_state,
            // It has unread notices, after which it looks at the log anyway; but nothing else says what the state is.
            Written::NoRoom => self.behind |= is_state,
            Written::Broken => return false,
        }
        true
    }
}

struct Shim {
    spec: ShimSpec,
    directory: PathBuf,
    cgroup: Cgroup,
    root_fs: Option<RootFs>,
    output: Output,
    write: [File; 2],
    signals: SignalFd,
    listener: UnixListener,
    clients: Vec<Client>,
    state: ShimState,
    oom_kills: u64,
    pause_ms: u64,
    restart_at: Option<u64>,
    kill_at: Option<u64>,
    quiet_until: u64,
    /// Since when no server is connected to a one-shot.
    lonely_since: Option<u64>,
    stopping: bool,
    finish: bool,
}

impl Shim {
    fn start(directory: &Path) -> Result<Self> {
        let path = directory.join(SPEC_FILE);
        let mut spec: ShimSpec = serde_json::from_slice(&step("read", &path, std::fs::read(&path))?)?;
        // Said at once, so that a later server finds a shim whose own server died meanwhile.
        let early = ShimState { shim_pid: std::process::id() as i32, ..ShimState::default() };
        write_private(&directory.join(STATE_FILE), &serde_json::to_vec(&early)?)?;
        // The container asks for its own value, so only the shim is spared.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
        let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
        let ignored = SigSet::from_iter([Signal::SIGHUP, Signal::SIGPIPE]);
        signals.thread_block()?;
        ignored.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let listener = UnixListener::bind(directory.join(SOCKET_FILE))?;
        listener.set_nonblocking(true)?;
        surroundings::leave(&spec)?;
        let cgroup = Cgroup::new(&spec.cgroup);
        step("make the cgroup", Path::new(&spec.cgroup), cgroup.make())?;
        let (out, err) = (pipe()?, pipe()?);
        let thin = spec.container.restart == RestartPolicy::BackOff;
        let output = Output::new(&spec.log_dir, spec.log_bytes, thin, [out.0, err.0])?;
        let made = RootFs::mount(&spec, &cgroup).and_then(|root_fs| {
            let pid = launch(&spec, directory, &root_fs, &[out.1.try_clone()?, err.1.try_clone()?]);
            Ok((root_fs, pid))
        });
        let (root_fs, pid) = match made {
            Ok((root_fs, Ok(pid))) => (root_fs, pid),
            Ok((root_fs, Err(error))) => {
                root_fs.unmount();
                cgroup.remove();
                return Err(error);
            }
            Err(error) => {
                cgroup.remove();
                return Err(error);
            }
        };
        if !spec.container.files.is_empty() {
            // They are written, once for all runs of the program: their contents are in nobody's way any more.
            spec.container.files.clear();
            if let Ok(bytes) = serde_json::to_vec(&spec) {
                let _ = write_private(&path, &bytes); // as it was, it only takes more memory
            }
        }
        let state = ShimState {
            phase: ContainerPhase::Running,
            shim_pid: std::process::id() as i32,
            pid: Some(pid),
            started_at: Some(Timestamp(now_ms())),
            user_namespace: root_fs.id_base.is_some(),
            ..ShimState::default()
        };
        let mut shim = Self {
            directory: directory.to_owned(),
            cgroup,
            root_fs: Some(root_fs),
            output,
            write: [out.1, err.1],
            signals,
            listener,
            clients: Vec::new(),
            state,
            oom_kills: 0,
            pause_ms: PAUSE_MIN_MS,
            restart_at: None,
            kill_at: None,
            quiet_until: 0,
            lonely_since: None,
            stopping: false,
            finish: false,
            spec,
        };
        shim.publish();
        Ok(shim)
    }

    /// Until the container is to be given up.
    fn serve(&mut self) {
        self.keep_times();
        while !self.is_done() {
            let ready = self.wait();
            if ready.signals {
                self.take_signals();
            }
            if ready.output {
                let (any, pause) = self.output.take();
                if pause > 0 {
                    self.quiet_until = now_ms() + pause;
                }
                if any {
                    self.tell(&Notice::Log);
                }
            }
            if ready.listener {
                self.accept();
            }
            for index in (0..self.clients.len()).rev().filter(|it| ready.clients.contains(it)) {
                self.hear(index);
            }
            self.catch_up();
            self.keep_times();
        }
    }

    fn is_done(&self) -> bool {
        let service = self.spec.container.restart == RestartPolicy::BackOff;
        self.state.phase == ContainerPhase::Exited && (self.finish || service)
    }

    fn wait(&self) -> Ready {
        let now = now_ms();
        let quiet = now < self.quiet_until;
        let lonely = self.lonely_since.map(|it| it + LONELY_MS);
        let times = [self.restart_at, self.kill_at, quiet.then_some(self.quiet_until), lonely];
        let timeout = times.into_iter().flatten().min().map(|it| it.saturating_sub(now).min(60_000) as u16);
        let mut descriptors = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        descriptors.extend(self.clients.iter().map(|it| PollFd::new(it.stream.as_fd(), it.events())));
        let pipes = descriptors.len();
        if !quiet {
            descriptors.extend(self.output.pipes().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        }
        let _ = poll(&mut descriptors, timeout.map_or(PollTimeout::NONE, PollTimeout::from));
        let ready = |index: usize| descriptors.get(index).is_some_and(|it| it.any().unwrap_or(false));
        Ready {
            signals: ready(0),
            listener: ready(1),
            clients: (0..self.clients.len()).filter(|it| ready(it + 2)).collect(),
            output: (pipes..descriptors.len()).any(ready),
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                self.finish = true;
                self.stop(10_000);
            }
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => self.ended(pid, status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.ended(pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: i32) {
        if self.state.pid != Some(pid.as_raw()) {
            return;
        }
        self.output.drain();
        let oom_kills = self.cgroup.oom_kills();
        let signal = Some(status - 128).filter(|it| (1..=64).contains(it));
        let last_output = self.output.last_output();
        let complained = last_output.contains("No space left") || last_output.contains("ENOSPC");
        let exit = ExitFacts {
            status,
            signal,
            out_of_memory: oom_kills > self.oom_kills && status != 0,
            disk_full: status != 0 && self.root_fs.as_ref().is_some_and(|it| it.is_full(complained)),
            asked: self.stopping,
            last_output,
            at: Timestamp(now_ms()),
        };
        let service = self.spec.container.restart == RestartPolicy::BackOff;
        if exit.out_of_memory && service {
            // The program itself has no time to say it, and a restart later nothing else would.
            let limit = self.spec.container.resources.memory_mb;
            let raise = "`arco scale APP/COMPONENT --memory-mb` raises it";
            self.output.say(&format!("the program was ended: out of memory at {limit} MB; {raise}"));
        }
        self.oom_kills = oom_kills;
        self.state.pid = None;
        self.kill_at = None;
        self.set_exit(exit);
    }

    fn set_exit(&mut self, exit: ExitFacts) {
        let ran_ms = self.state.started_at.map_or(0, |it| exit.at.since_ms(it));
        self.state.last_exit = Some(exit);
        if self.stopping || self.spec.container.restart == RestartPolicy::Never {
            self.state.phase = ContainerPhase::Exited;
        } else {
            if ran_ms >= GOOD_RUN_MS {
                self.pause_ms = PAUSE_MIN_MS;
            }
            self.state.phase = ContainerPhase::BackOff;
            self.restart_at = Some(now_ms() + self.pause_ms);
            self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
        }
        self.publish();
        self.tell(&Notice::Log);
    }

    fn restart(&mut self) {
        self.restart_at = None;
        let Some(root_fs) = &self.root_fs else { return };
        self.state.restarts += 1;
        self.state.started_at = Some(Timestamp(now_ms()));
        match launch(&self.spec, &self.directory, root_fs, &self.write) {
            Ok(pid) => {
                self.state.pid = Some(pid);
                self.state.phase = ContainerPhase::Running;
                self.publish();
            }
            Err(error) => {
                self.output.say(&format!("failed to start the program again: {error}"));
                let last_output = error.to_string().chars().take(1000).collect();
                self.set_exit(ExitFacts { status: 126, last_output, at: Timestamp(now_ms()), ..ExitFacts::default() });
            }
        }
    }

    fn stop(&mut self, grace_ms: u64) {
        self.stopping = true;
        self.restart_at = None;
        match (self.state.phase, self.state.pid) {
            (ContainerPhase::Running, Some(pid)) => {
                let signal = if grace_ms == 0 { libc::SIGKILL } else { self.spec.stop_signal };
                signal_process(pid, signal);
                let kill_at = now_ms() + grace_ms;
                self.kill_at = Some(self.kill_at.map_or(kill_at, |it| it.min(kill_at)));
            }
            (ContainerPhase::Exited, _) => {}
            _ => {
                self.state.phase = ContainerPhase::Exited;
                self.publish();
            }
        }
    }

    fn keep_times(&mut self) {
        let now = now_ms();
        let alone = self.spec.container.component.is_none() && self.clients.is_empty() && !self.finish;
        self.lonely_since = alone.then(|| self.lonely_since.unwrap_or(now));
        if self.lonely_since.is_some_and(|it| it + LONELY_MS <= now) {
            self.finish = true;
            self.stop(0);
        }
        if self.restart_at.is_some_and(|it| it <= now) {
            self.restart();
        }
        if self.kill_at.is_some_and(|it| it <= now) {
            self.kill_at = None;
            if let Some(pid) = self.state.pid {
                signal_process(pid, libc::SIGKILL);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(copy) = stream.try_clone() else { continue };
            if stream.set_nonblocking(true).is_ok() {
                let mut client = Client { stream, reader: BufReader::new(copy), behind: false };
                if client.tell(&Notice::State(self.state.clone())) {
                    self.clients.push(client);
                }
            }
        }
    }

    fn hear(&mut self, index: usize) {
        loop {
            let mut line = String::new();
            // Requests are short and written at once, so a line that came in part is a broken client.
            let request = match self.clients[index].reader.by_ref().take(4096).read_line(&mut line) {
                Ok(0) => None,
                Ok(_) => serde_json::from_str(&line).ok(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => None,
            };
            match request {
                Some(Request::Stop { grace_ms }) => self.stop(grace_ms),
                Some(Request::Finish) => {
                    self.finish = true;
                    self.stop(0);
                }
                None => {
                    self.clients.remove(index);
                    return;
                }
            }
        }
    }

    fn publish(&mut self) {
        if let Ok(bytes) = serde_json::to_vec(&self.state) {
            let _ = write_private(&self.directory.join(STATE_FILE), &bytes);
        }
        self.tell(&Notice::State(self.state.clone()));
    }

    fn tell(&mut self, notice: &Notice) {
        self.clients.retain_mut(|it| it.tell(notice));
    }

    /// Tells the state to whoever had no room for it before.
    fn catch_up(&mut self) {
        if self.clients.iter().any(|it| it.behind) {
            let notice = Notice::State(self.state.clone());
            self.clients.retain_mut(|it| !it.behind || it.tell(&notice));
        }
    }

    /// Undoes everything; the folders are the server's.
    fn end(mut self) {
        if let Some(root_fs) = self.root_fs.take() {
            root_fs.unmount();
        }
        self.cgroup.remove();
        let _ = std::fs::remove_file(self.directory.join(SOCKET_FILE));
    }
}

struct Ready {
    signals: bool,
    listener: bool,
    clients: Vec<usize>,
    output: bool,
}

/// What became of a notice.
#[derive(Debug, Eq, PartialEq)]
enum Written {
    Whole,
    /// The client has so many unread notices that its buffer is full.
    NoRoom,
    /// It was cut in the middle, or the client is gone.
    Broken,
}

fn write_notice(mut stream: &UnixStream, notice: &Notice) -> Written {
    let Ok(mut line) = serde_json::to_vec(notice) else { return Written::Whole };
    line.push(b'\n');
    match stream.write(&line) {
        Ok(count) if count == line.len() => Written::Whole,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Written::NoRoom,
        Ok(_) | Err(_) => Written::Broken,
    }
}

fn signal_process(pid: i32, signal: i32) {
    // SAFETY: plain call; the pid is our child that was not waited for, so it cannot be somebody else's.
    unsafe { libc::kill(pid, signal) };
}

/// A pipe whose reading end does not block.
fn pipe() -> Result<(File, File)> {
    let (read, write) = std::io::pipe()?;
    let (read, write) = (File::from(OwnedFd::from(read)), File::from(OwnedFd::from(write)));
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).map_err(Error::from)?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_for_a_while_learns_the_last_state() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = Client { reader: BufReader::new(ours.try_clone().unwrap()), stream: ours, behind: false };
        while write_notice(&client.stream, &Notice::Log) == Written::Whole {}
        let ended = Notice::State(ShimState { phase: ContainerPhase::Exited, ..ShimState::default() });
        assert!(client.tell(&Notice::Log) && !client.behind, "unread notices say as much");
        assert!(client.tell(&ended) && client.behind);
        assert!(client.events().contains(PollFlags::POLLOUT));
        theirs.set_nonblocking(true).unwrap();
        let (mut reader, mut line) = (BufReader::new(theirs), String::new());
        while reader.read_line(&mut line).is_ok() {
            assert!(matches!(serde_json::from_str(&line).unwrap(), Notice::Log), "{line}");
            line.clear();
        }
        assert!(client.tell(&ended) && !client.behind);
        assert!(reader.read_line(&mut line).is_ok());
        assert!(
            matches!(serde_json::from_str(&line).unwrap(), Notice::State(it) if it.phase == ContainerPhase::Exited)
        );
    }
}
