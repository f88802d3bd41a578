//! The role that keeps logs: of operations, of builds, of instances.
//!
//! Lines come in through [`arco_store::logs::LogSink`], get a number in their stream, and lie in segment files below the
//! data dir; queries and followers read by number, so nothing is shown twice or left out between what was and what comes.
//! What must hold:
//! - a batch is acknowledged only when its lines are on disk;
//! - a flood in one stream costs that stream lines (counted, and said in the log), never another one;
//! - logs never take the last space of the disk.
//!
//! Not here: who may read which log (`api` decides), and where lines come from (shims and builders).

mod error;
mod follow;
mod http;
mod ingest;
mod limits;
mod line;
mod metrics;
mod query;
mod retention;
mod segment;
mod stream;
mod write;

pub use error::EventlogError;
pub use follow::Event;
pub use limits::Limits;
pub use metrics::Metrics;
pub use query::{Filter, Found, LINES_DEFAULT, LINES_MAX};

use arco_config::EventlogConfig;
use arco_daemon::CancellationToken;
use arco_model::log::LogStream;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stream::StreamLog;
use tokio::sync::Semaphore;

/// Queries that read files at the same time; more wait.
const READERS: usize = 8;

/// The logs of a platform; cheap to clone.
#[derive(Clone)]
pub struct Eventlog(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    limits: Limits,
    streams: Mutex<HashMap<LogStream, Arc<StreamLog>>>,
    readers: Semaphore,
    /// Too little space is left on the disk: only logs of operations are kept.
    disk_low: AtomicBool,
    closing: CancellationToken,
    metrics: Metrics,
}

impl Eventlog {
    /// Opens or makes the folder (mode 0700). Streams are read when they are first asked for.
    pub fn open(config: &EventlogConfig, folder: impl Into<PathBuf>) -> Result<Self, EventlogError> {
        Self::open_with(Limits::from(config), folder)
    }

    /// As [`Eventlog::open`], with every limit given.
    pub fn open_with(limits: Limits, folder: impl Into<PathBuf>) -> Result<Self, EventlogError> {
        let folder = folder.into();
        make_folder(&folder).map_err(|it| EventlogError::io("open the folder of logs", &folder, it))?;
        Ok(Self(Arc::new(Inner {
            folder,
            limits,
            streams: Mutex::default(),
            readers: Semaphore::new(READERS),
            disk_low: AtomicBool::new(false),
            closing: CancellationToken::new(),
            metrics: Metrics::default(),
        })))
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Acts as if the disk were nearly full until the next round of writing looks; for tests of exactly that.
    #[doc(hidden)]
    pub fn pretend_disk_low(&self, low: bool) {
        self.0.disk_low.store(low, std::sync::atomic::Ordering::Relaxed);
    }

    /// Removes the log of a stream. Its followers end, and what still comes in for it is dropped.
    pub async fn remove(&self, stream: &LogStream) -> Result<(), EventlogError> {
        let found = self.stream(stream);
        blocking(move || found.remove()).await
    }

    /// The log of a stream, made if it is not in memory.
    fn stream(&self, stream: &LogStream) -> Arc<StreamLog> {
        let mut streams = self.streams();
        let make = || Arc::new(StreamLog::new(stream.clone(), folder_of(&self.0.folder, stream)));
        let found = streams.entry(stream.clone()).or_insert_with(make).clone();
        self.0.metrics.streams.set(streams.len() as i64);
        found
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<LogStream, Arc<StreamLog>>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `<folder>/components/<id>` or `<folder>/operations/<id>`.
fn folder_of(folder: &Path, stream: &LogStream) -> PathBuf {
    match stream {
        LogStream::Operation { id } => folder.join(OPERATIONS).join(id.as_str()),
        LogStream::Component { id } => folder.join(COMPONENTS).join(id.as_str()),
    }
}

const OPERATIONS: &str = "operations";
const COMPONENTS: &str = "components";

/// Makes a folder that only the platform may look into.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Runs file work beside the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EventlogError> + Send + 'static,
) -> Result<T, EventlogError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| EventlogError::Stopped)?
}
