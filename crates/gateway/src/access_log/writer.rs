//! The thread that writes the access log. It alone waits: for a disk that is slow, for a pipe that nobody reads.
//!
//! What must hold: lines are whole; what cannot be written is dropped and counted, and writing goes on by itself when it
//! can be; a file that was renamed or removed is made anew. It ends when nobody has a line for it any more.

use super::{Log, Orders, open_file};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How long a line waits at most.
const PERIOD: Duration = Duration::from_millis(200);
/// How often it is looked whether another file has the name.
const LOOK: Duration = Duration::from_secs(1);
/// After so long without any, dropped lines are spoken of again.
const QUIET: Duration = Duration::from_secs(60);

/// Where lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file of that name; which one is open, and its device and inode.
    Named(PathBuf, Option<(File, (u64, u64))>),
    /// What was handed over.
    Handed(Option<File>),
}

impl Sink {
    /// Opens the file; one that is a pipe without a reader is opened later.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match named(path) {
            Ok(open) => Ok(Self::Named(path.to_owned(), Some(open))),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(Self::Named(path.to_owned(), None)),
            Err(error) => Err(error),
        }
    }

    /// Opens the file that has the name now, and says whether it is another one. When that fails, the one before stays.
    fn follow(&mut self) -> io::Result<bool> {
        let Self::Named(path, open) = self else { return Ok(false) };
        let (there, here) = (std::fs::metadata(&*path).ok(), open.as_ref().map(|it| it.1));
        if here.is_some() && there.map(|it| (it.dev(), it.ino())) == here {
            return Ok(false);
        }
        *open = Some(named(path)?);
        Ok(true)
    }

    fn file(&self) -> Option<&File> {
        match self {
            Self::Named(_, open) => open.as_ref().map(|it| &it.0),
            Self::Handed(file) => file.as_ref(),
        }
    }
}

fn named(path: &Path) -> io::Result<(File, (u64, u64))> {
    let file = open_file(path)?;
    let metadata = file.metadata()?;
    Ok((file, (metadata.dev(), metadata.ino())))
}

struct Writer {
    log: Arc<Log>,
    sink: Sink,
    /// What is being written.
    batch: Vec<u8>,
    /// Whether what was written last is not a whole line.
    is_torn: bool,
    /// Whether it was said that the file cannot be opened.
    is_lost: bool,
    looked: Instant,
    /// How many lines were dropped so far, and since when no more are.
    dropped: (u64, Instant),
}

/// Starts the thread that writes the lines of `log`.
pub(super) fn start(log: Arc<Log>, sink: Sink) -> io::Result<Thread> {
    let (now, dropped) = (Instant::now(), log.dropped.get());
    let (batch, is_torn, is_lost, dropped) = (Vec::new(), false, false, (dropped, now));
    let writer = Writer { log, sink, batch, is_torn, is_lost, looked: now, dropped };
    let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
    Ok(thread.thread().clone())
}

impl Writer {
    fn run(mut self) {
        loop {
            std::thread::park_timeout(PERIOD);
            let Orders { file, reopen, flushed } = std::mem::take(&mut *self.log.orders());
            if let Some(file) = file {
                (self.sink, self.is_torn) = (Sink::Handed(Some(file)), false);
            }
            self.follow(reopen);
            self.pass();
            for it in flushed {
                // Who asked may have left.
                let _ = it.send(());
            }
            self.grow_quiet();
            if self.log.is_stopped.load(Ordering::SeqCst) && Arc::strong_count(&self.log) == 1 {
                // What the last one who had it wrote is seen from here on.
                fence(Ordering::Acquire);
                return self.pass();
            }
        }
    }

    fn follow(&mut self, asked: bool) {
        if !asked && self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        match self.sink.follow() {
            Ok(is_another) => (self.is_torn, self.is_lost) = (self.is_torn && !is_another, false),
            Err(error) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    let destination = &self.log.config.destination;
                    tracing::warn!(destination, %error, "the access log cannot be opened; it is tried again");
                }
            }
        }
    }

    /// Writes what is there.
    fn pass(&mut self) {
        let log = Arc::clone(&self.log);
        for lane in log.lanes.iter() {
            std::mem::swap(&mut *lane.lines(), &mut self.batch);
            if self.batch.is_empty() {
                continue;
            }
            let lines = count(&self.batch);
            let (written, outcome) = self.put();
            let left = count(&self.batch[written..]);
            log.written.inc_by(lines - left);
            if let Err(error) = outcome {
                log.dropped(left, &error.to_string());
            }
            self.batch.clear();
        }
    }

    /// Writes the batch; how much of it was written.
    fn put(&mut self) -> (usize, io::Result<()>) {
        let Some(mut file) = self.sink.file() else {
            return (0, Err(io::Error::other("its file is not open")));
        };
        let mut at = 0;
        while self.is_torn || at < self.batch.len() {
            let rest = if self.is_torn { &b"\n"[..] } else { &self.batch[at..] };
            match file.write(rest) {
                Ok(0) => return (at, Err(ErrorKind::WriteZero.into())),
                Ok(_) if self.is_torn => self.is_torn = false,
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Standard output may be somebody's who does not want to wait.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], None);
                }
                Err(error) => {
                    self.is_torn |= at > 0 && self.batch[at - 1] != b'\n';
                    return (at, Err(error));
                }
            }
        }
        (at, Ok(()))
    }

    /// When no lines were dropped for long, the next ones are spoken of.
    fn grow_quiet(&mut self) {
        let dropped = self.log.dropped.get();
        if dropped != self.dropped.0 {
            self.dropped = (dropped, Instant::now());
        } else if self.dropped.1.elapsed() >= QUIET {
            self.log.is_said.store(false, Ordering::Relaxed);
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|it| **it == b'\n').count() as u64
}
