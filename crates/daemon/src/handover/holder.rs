//! The acting half of a holder: signals, packets and deaths become events of the plan; what it says is done.
//!
//! One thread, no runtime: it must cost next to nothing and outlive everything that it starts.

use super::plan::{Action, Event, Phase, Plan};
use super::wire::{Kept, Message, apart, receive, send, send_kept};
use crate::descriptors;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions, kill_process, waitpid};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most names that are kept.
const MAX_KEPT: usize = 1024;
/// Most wishes of a worker that starts: it may let go of all that was kept, and have as much kept anew.
const MAX_WISHES: usize = 2 * MAX_KEPT;
/// Most packets of one worker before the others get their turn.
const MAX_HEARD: usize = 256;

/// Why a holder does not go on.
#[derive(Debug, thiserror::Error)]
#[error("the keeper of the sockets cannot {step}: {cause}")]
pub struct HoldError {
    step: &'static str,
    cause: io::Error,
}

fn fail<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> HoldError {
    move |cause| HoldError { step, cause: cause.into() }
}

/// What a holder starts, and how.
pub struct Holding {
    /// The command line of a worker of this executable. Its standard input is taken.
    pub worker: Box<dyn Fn(&Path) -> Command>,
    /// The command line by which this executable goes on as the holder: it calls [`resume`].
    pub renewed: Box<dyn Fn(&Path) -> Command>,
    /// The executable that an upgrade starts.
    pub next: Box<dyn Fn() -> io::Result<PathBuf>>,
    /// Opens files that workers write and cannot open, by their names, when SIGHUP asks for it: others may have them by then.
    /// Workers open the first ones before they give up the right to.
    pub files: Box<dyn Fn() -> Vec<(String, OwnedFd)>>,
    /// Told why the first worker, or that of an upgrade, did not start.
    pub failed: Box<dyn Fn(&str)>,
    /// Kept open for ever, such as a lock; workers do not get it.
    pub lock: Option<OwnedFd>,
    /// Sockets that are kept from the beginning.
    pub sockets: Vec<(String, OwnedFd)>,
}

/// What the holder before handed to this one.
struct Inherited {
    kept: Kept,
    lock: Option<OwnedFd>,
    workers: Vec<(u32, Pid, Phase, Duration, OwnedFd)>,
}

struct Child {
    pid: Pid,
    link: OwnedFd,
    /// It has nothing more to say.
    silent: bool,
    /// Why it does not start.
    said: Option<String>,
    /// What it wants to have kept or forgotten; done when it serves, so that a start that fails changes nothing.
    wishes: Vec<(Message, Vec<OwnedFd>)>,
}

impl Child {
    fn new(pid: Pid, link: OwnedFd) -> Self {
        Self { pid, link, silent: false, said: None, wishes: Vec::new() }
    }
}

struct Loop {
    holding: Holding,
    plan: Plan,
    kept: Kept,
    children: HashMap<u32, Child>,
    /// What the last upgrade started.
    next: Option<PathBuf>,
    /// It serves, so this process is to become it.
    renews: bool,
}

/// Keeps sockets and starts workers on them until everything is stopped; returns the exit status. SIGTERM and SIGINT
/// stop (a second one at once), SIGUSR2 upgrades, SIGHUP goes to the workers, with their files.
pub fn hold(holding: Holding) -> Result<u8, HoldError> {
    // What does not fit into it is closed on its way, here or in a worker, which has the same limit.
    descriptors::raise_limit();
    let mut holding = holding;
    let kept = holding.sockets.drain(..).map(|(name, socket)| (name, (0, vec![socket]))).collect();
    Loop { holding, plan: Plan::default(), kept, children: HashMap::new(), next: None, renews: false }.run()
}

/// Goes on where the holder before stopped; its words wait on standard input.
pub fn resume(holding: Holding) -> Result<u8, HoldError> {
    descriptors::raise_limit();
    let inherited = inherit().map_err(fail("take over from the one before"))?;
    let mut holding = holding;
    holding.lock = inherited.lock;
    let now = Instant::now();
    let plan = Plan::resumed(inherited.workers.iter().map(|it| (it.0, it.2, it.3)), now);
    let child = |(slot, pid, _, _, link)| (slot, Child::new(pid, link));
    let children = inherited.workers.into_iter().map(child).collect();
    Loop { holding, plan, kept: inherited.kept, children, next: None, renews: false }.run()
}

/// The two ends of a link.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn inherit() -> io::Result<Inherited> {
    let link = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let mut inherited = Inherited { kept: Kept::new(), lock: None, workers: Vec::new() };
    loop {
        let (message, mut descriptors) = receive(link.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match message {
            Message::Kept { sockets } => inherited.kept.extend(apart(sockets, descriptors)),
            Message::Lock => inherited.lock = descriptors.pop(),
            Message::Worker { slot, pid, phase, drain_ms } => {
                if let (Some(pid), Some(link)) = (Pid::from_raw(pid), descriptors.pop()) {
                    inherited.workers.push((slot, pid, phase, Duration::from_millis(drain_ms), link));
                }
            }
            Message::Begin { .. } => return Ok(inherited),
            _ => {}
        }
    }
}

impl Loop {
    fn run(mut self) -> Result<u8, HoldError> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGCHLD] {
            wanted.add(signal);
        }
        wanted.thread_block().map_err(fail("block signals"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&wanted, flags).map_err(fail("listen for signals"))?;
        // A worker may have ended while the holder before became this one.
        let mut events = self.reap();
        events.push(Event::Look);
        loop {
            for event in events.drain(..) {
                if let Some(status) = self.happened(event) {
                    return Ok(status);
                }
            }
            // Only now: what else happened would be forgotten.
            if std::mem::take(&mut self.renews) && !self.plan.is_stopping() {
                let error = self.next.take().and_then(|it| self.renew(&it).err());
                tracing::error!(?error, "the keeper of the sockets stays the old one; its worker is new");
            }
            self.wait(&signals).map_err(fail("wait"))?;
            while let Ok(Some(signal)) = signals.read_signal() {
                match Signal::try_from(signal.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGTERM | Signal::SIGINT) => events.push(Event::Stop),
                    Ok(Signal::SIGUSR2) => events.push(Event::Upgrade),
                    Ok(Signal::SIGHUP) => {
                        self.hand_files();
                        // One that starts reads everything anyway, and one that has just died nothing.
                        for (_, child) in self.children.iter().filter(|it| !self.plan.is_starting(*it.0)) {
                            let _ = kill_process(child.pid, rustix::process::Signal::HUP);
                        }
                    }
                    _ => {}
                }
            }
            events.extend(self.hear());
            events.extend(self.reap());
            events.push(Event::Look);
        }
    }

    /// Waits until something happens or is due.
    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let mut watched = vec![PollFd::new(signals, PollFlags::IN)];
        let heard = self.children.values().filter(|it| !it.silent);
        watched.extend(heard.map(|it| PollFd::new(&it.link, PollFlags::IN)));
        let left = self.plan.wake().map(|at| at.saturating_duration_since(Instant::now()));
        // Rounded up, so that what is due is due.
        let left = left.map(|it| it + Duration::from_millis(1)).and_then(|it| it.try_into().ok());
        match poll(&mut watched, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What workers said.
    fn hear(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for (slot, child) in &mut self.children {
            let slot = *slot;
            for _ in 0..MAX_HEARD {
                let (message, descriptors) = match receive(child.link.as_fd()) {
                    Ok(Some(heard)) => heard,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Ok(None) | Err(_) => {
                        child.silent = true;
                        break;
                    }
                };
                match message {
                    Message::Keep { .. } | Message::Forget { .. } if child.wishes.len() < MAX_WISHES => {
                        child.wishes.push((message, descriptors));
                    }
                    Message::Ready { drain_ms } => {
                        events.push(Event::Ready { slot, drain: Duration::from_millis(drain_ms) });
                    }
                    Message::Released => events.push(Event::Released { slot }),
                    Message::Stop => events.push(Event::Stop),
                    Message::Failed { why } => child.said = Some(why),
                    _ => {}
                }
            }
            if !self.plan.is_starting(slot)
                || events.iter().any(|it| matches!(it, Event::Ready { slot: it, .. } if *it == slot))
            {
                for (wish, descriptors) in child.wishes.drain(..) {
                    grant(&mut self.kept, wish, descriptors);
                }
            }
        }
        events
    }

    /// Which workers ended.
    fn reap(&mut self) -> Vec<Event> {
        let mut ended = Vec::new();
        for (slot, child) in &self.children {
            match waitpid(Some(child.pid), WaitOptions::NOHANG) {
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Ok(Some((_, status))) => ended.push((*slot, Some(status))),
                Err(_) => ended.push((*slot, None)),
            }
        }
        let mut events = Vec::new();
        for (slot, status) in ended {
            let Some(mut child) = self.children.remove(&slot) else { continue };
            // Its last words may have come after the others were heard.
            while let Ok(Some((message, _))) = receive(child.link.as_fd()) {
                if let Message::Failed { why } = message {
                    child.said = Some(why);
                }
            }
            let pid = child.pid.as_raw_nonzero().get();
            let how = match status {
                Some(it) if it.exit_status() == Some(0) => "done".to_owned(),
                Some(it) => it.terminating_signal().map_or_else(
                    || format!("exit status {}", it.exit_status().unwrap_or(-1)),
                    |signal| format!("signal {signal}"),
                ),
                None => "gone".to_owned(),
            };
            tracing::info!(pid, slot, how, "a worker ended");
            if self.plan.is_first() {
                (self.holding.failed)(child.said.as_deref().unwrap_or(&format!("it ended ({how}); see its log")));
            } else if let Some(said) = child.said {
                (self.holding.failed)(&said);
            }
            events.push(Event::Ended { slot });
        }
        events
    }

    fn happened(&mut self, event: Event) -> Option<u8> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.plan.next(event, Instant::now()) {
                match action {
                    Action::Spawn { slot, next } => {
                        if let Err(error) = self.spawn(slot, next) {
                            tracing::error!(%error, "a worker cannot be started");
                            (self.holding.failed)(&format!("it cannot be started: {error}"));
                            events.push(Event::Ended { slot });
                        }
                    }
                    Action::Own { slot } => self.tell(slot, &Message::Own),
                    Action::Drain { slot, successor } => self.tell(slot, &Message::Drain { successor }),
                    Action::Kill { slot } => {
                        if let Some(child) = self.children.get(&slot) {
                            // It ends by itself at the same moment, perhaps.
                            let _ = kill_process(child.pid, rustix::process::Signal::KILL);
                        }
                    }
                    Action::UpgradeFailed => tracing::error!("the upgrade failed; everything is as before"),
                    Action::Renew => self.renews = true,
                    Action::Exit { status } => return Some(status),
                }
            }
        }
        None
    }

    fn tell(&self, slot: u32, message: &Message) {
        let told = self.children.get(&slot).map(|it| send(it.link.as_fd(), message, &[]));
        if let Some(Err(error)) = told {
            tracing::warn!(%error, slot, ?message, "a worker was not told");
        }
    }

    /// Opens the files of workers anew. One that starts may have opened what had the name before.
    fn hand_files(&self) {
        for (name, file) in (self.holding.files)() {
            let message = Message::File { name };
            for (slot, child) in &self.children {
                if let Err(error) = send(child.link.as_fd(), &message, &[file.as_fd()]) {
                    tracing::warn!(%error, slot, ?message, "a worker was not told");
                }
            }
        }
    }

    fn spawn(&mut self, slot: u32, next: bool) -> io::Result<()> {
        let executable = if next {
            let next = (self.holding.next)()?;
            self.next = Some(next.clone());
            next
        } else {
            // The very file that runs, also when another one has its name by now.
            PathBuf::from("/proc/self/exe")
        };
        let (link, theirs) = pair()?;
        send_kept(link.as_fd(), &self.kept)?;
        send(link.as_fd(), &Message::Begin { slot, first: self.plan.is_first() }, &[])?;
        rustix::io::ioctl_fionbio(&link, true)?;
        let mut command = (self.holding.worker)(&executable);
        let child = command.stdin(Stdio::from(theirs)).spawn()?;
        let pid = Pid::from_child(&child);
        tracing::info!(pid = child.id(), slot, "a worker starts");
        self.children.insert(slot, Child::new(pid, link));
        Ok(())
    }

    /// Becomes `executable`, which finds everything on its standard input. Returns only when that failed.
    fn renew(&self, executable: &Path) -> io::Result<()> {
        let (ours, theirs) = pair()?;
        let link = ours.as_fd();
        send_kept(link, &self.kept)?;
        if let Some(lock) = &self.holding.lock {
            send(link, &Message::Lock, &[lock.as_fd()])?;
        }
        for worker in &self.plan.workers {
            let Some(child) = self.children.get(&worker.slot) else { continue };
            let drain_ms = u64::try_from(worker.drain.as_millis()).unwrap_or(u64::MAX);
            let pid = child.pid.as_raw_nonzero().get();
            let message = Message::Worker { slot: worker.slot, pid, phase: worker.phase, drain_ms };
            send(link, &message, &[child.link.as_fd()])?;
        }
        send(link, &Message::Begin { slot: 0, first: false }, &[])?;
        Err((self.holding.renewed)(executable).stdin(Stdio::from(theirs)).exec())
    }
}

fn grant(kept: &mut Kept, wish: Message, descriptors: Vec<OwnedFd>) {
    match wish {
        Message::Keep { name, claim } if kept.len() < MAX_KEPT || kept.contains_key(&name) => {
            kept.insert(name, (claim, descriptors));
        }
        Message::Forget { name, claim } if kept.get(&name).is_some_and(|it| it.0 == claim) => drop(kept.remove(&name)),
        Message::Keep { name, .. } => tracing::warn!(name, "these sockets are not kept for a successor: too many are"),
        _ => {}
    }
}
