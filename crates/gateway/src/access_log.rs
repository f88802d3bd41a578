//! The access log: a line for each request that was answered, in a file or on standard output.
//!
//! What must hold: whoever serves never waits for it. Lines wait in bounded memory, in a lane for each core; a thread of its
//! own writes them. What finds no room there, or cannot be written, is dropped, counted, and said once. While there is no
//! access log, it costs a look at one flag.
//!
//! Not here: what is kept of a request until it is answered (`engine/record.rs`).

mod line;
mod writer;

use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use arco_config::{AccessLogConfig, AccessLogErrors};
pub(crate) use line::Line;
use prometheus_client::metrics::counter::Counter;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use tokio::sync::oneshot;
use writer::Sink;

/// By this name a process that may open the file hands it to one that may not.
pub const NAME: &str = "access log";

/// How long lines are waited for by a process that ends.
pub const LAST_LINES: Duration = Duration::from_secs(1);

/// Most bytes that wait in a lane; a line that is begun below goes on above.
const MOST: usize = 1 << 20;
/// From so many on the writer does not wait for its time.
const MANY: usize = 64 << 10;

/// Who opens the file.
#[derive(Debug)]
pub enum Place {
    /// This process, also when another one has its name.
    Here,
    /// Another process, which hands it over ([`AccessLog::hand`]); this one was handed before.
    Handed(Option<File>),
}

/// The access log of an engine, which may be off.
#[derive(Debug, Default)]
pub struct AccessLog {
    is_on: AtomicBool,
    current: ArcSwapOption<Log>,
}

impl AccessLog {
    /// Keeps a log by these settings from now on, in `lanes` lanes, or none. Fails when its file cannot be opened here;
    /// then everything stays as it was.
    pub fn set(&self, config: &AccessLogConfig, place: Place, lanes: usize, metrics: &Metrics) -> io::Result<()> {
        if self.is(config) {
            return Ok(());
        }
        let log = match config.is_on() {
            true => Some(Log::start(config, place, lanes, metrics)?),
            false => None,
        };
        self.is_on.store(log.is_some(), Ordering::Relaxed);
        if let Some(before) = self.current.swap(log) {
            before.stop();
        }
        Ok(())
    }

    /// Whether it is kept by these settings.
    pub fn is(&self, config: &AccessLogConfig) -> bool {
        self.current.load().as_ref().map_or(!config.is_on(), |it| it.config == *config)
    }

    /// The log, if there is one.
    pub(crate) fn current(&self) -> Option<Arc<Log>> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        self.current.load_full()
    }

    /// Writes to this file from now on.
    pub fn hand(&self, file: File) {
        if let Some(log) = self.current.load_full() {
            log.orders().file = Some(file);
            log.wake();
        }
    }

    /// Opens the file anew, as after its rotation.
    pub fn reopen(&self) {
        if let Some(log) = self.current.load_full() {
            log.orders().reopen = true;
            log.wake();
        }
    }

    /// Returns when all lines until now are written, or after `patience`.
    pub async fn flush(&self, patience: Duration) {
        let Some(log) = self.current.load_full() else { return };
        let (sender, flushed) = oneshot::channel();
        log.orders().flushed.push(sender);
        log.wake();
        // Whoever reads the lines may have stopped to.
        let _ = tokio::time::timeout(patience, flushed).await;
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        if let Some(log) = self.current.swap(None) {
            log.stop();
        }
    }
}

/// Opens what the settings name, without waiting for anybody; `None` when they name nothing.
pub fn open(config: &AccessLogConfig) -> Option<io::Result<File>> {
    if !config.is_on() {
        return None;
    }
    Some(match config.file() {
        Some(path) => open_file(path),
        None => std::io::stdout().as_fd().try_clone_to_owned().map(File::from),
    })
}

/// Whether the settings can be kept here; the reason why not, with the file.
pub fn check(config: &AccessLogConfig) -> Result<(), String> {
    match open(config) {
        None | Some(Ok(_)) => Ok(()),
        // A pipe that nobody reads yet.
        Some(Err(error)) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(()),
        Some(Err(error)) => {
            let destination = &config.destination;
            Err(format!("`access_log.destination`: `{destination}` cannot be opened to write to it: {error}"))
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // A pipe that nobody reads must not hold up who opens it.
    options.append(true).create(true).mode(0o640).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY);
    let file = options.open(path)?;
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags.difference(rustix::fs::OFlags::NONBLOCK))?;
    Ok(file)
}

/// A log that is kept.
#[derive(Debug)]
pub(crate) struct Log {
    config: AccessLogConfig,
    lanes: Box<[Lane]>,
    orders: Mutex<Orders>,
    writer: OnceLock<Thread>,
    /// No further request takes it; those that are open still have their lines.
    is_stopped: AtomicBool,
    /// Whether it was said that lines are dropped.
    is_said: AtomicBool,
    written: Counter,
    dropped: Counter,
}

/// What the writer is asked for.
#[derive(Debug, Default)]
struct Orders {
    file: Option<File>,
    reopen: bool,
    flushed: Vec<oneshot::Sender<()>>,
}

/// What one core has for the writer. On cache lines of its own (the processor fetches them in pairs): the next lane is
/// another core's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    /// Requests that asked whether they are in the sample.
    turn: AtomicU64,
    /// Whole lines. But for the writer, which is quick, nobody else takes this lock.
    lines: Mutex<Vec<u8>>,
}

impl Log {
    fn start(config: &AccessLogConfig, place: Place, lanes: usize, metrics: &Metrics) -> io::Result<Arc<Self>> {
        let sink = match (place, config.file()) {
            (Place::Handed(file), _) => Sink::Handed(file),
            (Place::Here, None) => Sink::Handed(open(config).transpose()?),
            (Place::Here, Some(path)) => Sink::open(path)?,
        };
        let (written, dropped) = metrics.access_log();
        let log = Arc::new(Self {
            config: config.clone(),
            lanes: (0..lanes.max(1)).map(|_| Lane::default()).collect(),
            orders: Mutex::default(),
            writer: OnceLock::new(),
            is_stopped: AtomicBool::new(false),
            is_said: AtomicBool::new(false),
            written,
            dropped,
        });
        let thread = writer::start(Arc::clone(&log), sink)?;
        // It is empty: nobody else has the log yet.
        let _ = log.writer.set(thread);
        Ok(log)
    }

    /// Whether the next request of a core is one of the sample; `None` when it will have no line, however it is answered.
    pub(crate) fn takes(&self, core: usize) -> Option<bool> {
        let turn = self.lane(core).turn.fetch_add(1, Ordering::Relaxed);
        let sampled = is_sampled(turn, self.config.sample);
        (sampled || self.config.errors == AccessLogErrors::Always).then_some(sampled)
    }

    /// Has the line of a request written, if it is one of the sample or one that always has a line.
    pub(crate) fn write(&self, core: usize, sampled: bool, line: &Line<'_>) {
        if !(sampled || self.config.errors == AccessLogErrors::Always && line.status >= 500) {
            return;
        }
        let mut lines = self.lane(core).lines();
        let before = lines.len();
        if before >= MOST {
            drop(lines);
            return self.dropped(1, "they come faster than they are taken");
        }
        line.push(&mut lines, self.config.format, self.config.query);
        let is_many = before < MANY && lines.len() >= MANY;
        drop(lines);
        if is_many {
            self.wake();
        }
    }

    fn lane(&self, core: usize) -> &Lane {
        &self.lanes[core % self.lanes.len()]
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn dropped(&self, lines: u64, why: &str) {
        self.dropped.inc_by(lines);
        if !self.is_said.swap(true, Ordering::Relaxed) {
            let destination = &self.config.destination;
            tracing::warn!(destination, why, "lines of the access log are dropped");
        }
    }
}

impl Lane {
    fn lines(&self) -> MutexGuard<'_, Vec<u8>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a request is in a sample of this share, by its number: of any that follow one another the share is.
fn is_sampled(number: u64, share: f64) -> bool {
    // Multiples of the golden section, without their whole part, are spread evenly.
    let place = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
    place < share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_share_of_any_requests() {
        for share in [0.0, 0.001, 0.01, 0.25, 0.5, 0.99, 1.0] {
            for from in [0, 1_000_000, u64::MAX - 5_000] {
                let count = (0..10_000).filter(|it| is_sampled(from.wrapping_add(*it), share)).count() as f64;
                assert!((count - share * 10_000.0).abs() <= 5.0, "{count} of 10000 from {from}, for {share}");
            }
        }
        assert!((0..10_000).all(|it| is_sampled(it, 1.0)));
    }

    #[test]
    fn what_cannot_be_opened_is_said_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let config = |name: &str| AccessLogConfig {
            destination: folder.path().join(name).display().to_string(),
            ..AccessLogConfig::default()
        };
        assert!(check(&config("no/such/folder")).unwrap_err().contains("no/such/folder"));
        assert!(check(&config("")).is_err(), "a folder is no file");
        assert_eq!(check(&config("a.log")), Ok(()));
        assert_eq!(check(&AccessLogConfig::default()), Ok(()));
        nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(check(&config("pipe")), Ok(()), "somebody may read it later");
    }
}
