//! Brings waiting lines to the disk: one round writes and syncs every stream that has some, then acknowledges.
//!
//! Writes go to the place where the lines belong, so a round that failed half way is simply done again.

use crate::error::EventlogError;
use crate::limits::Limits;
use crate::segment::Segment;
use crate::stream::StreamLog;
use crate::{COMPONENTS, Inner, OPERATIONS, make_folder};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Files that are kept open, the one used longest ago first.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(VecDeque<(PathBuf, Arc<File>)>);

impl OpenFiles {
    fn get(&mut self, path: &Path, most: usize) -> std::io::Result<Arc<File>> {
        if let Some(place) = self.0.iter().position(|it| it.0 == path)
            && let Some(found) = self.0.remove(place)
        {
            // Age may have deleted the file of a stream that rested; a new one has the same name.
            use std::os::unix::fs::MetadataExt as _;
            if found.1.metadata()?.nlink() > 0 {
                let file = found.1.clone();
                self.0.push_back(found);
                return Ok(file);
            }
        }
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = Arc::new(File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?);
        self.0.push_back((path.to_owned(), file.clone()));
        while self.0.len() > most.max(1) {
            self.0.pop_front();
        }
        Ok(file)
    }

    fn close(&mut self, folder: &Path) {
        self.0.retain(|it| !it.0.starts_with(folder));
    }
}

/// What a round left to do.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Streams whose lines could not be written, or that have something to say later.
    pub(crate) again: Vec<Arc<StreamLog>>,
    /// A segment was closed: there is something to seal.
    pub(crate) closed: bool,
    /// A write failed.
    pub(crate) failed: bool,
}

/// Writes what waits in `streams`.
pub(crate) fn flush(inner: &Inner, streams: Vec<Arc<StreamLog>>, files: &mut OpenFiles) -> Round {
    let mut round = Round::default();
    let low = is_disk_low(&inner.folder, &inner.limits);
    if inner.disk_low.swap(low, Ordering::Relaxed) != low {
        if low {
            tracing::warn!(folder = %inner.folder.display(), "the disk is nearly full: only logs of operations are kept");
        } else {
            tracing::info!("there is space on the disk again: logs of components are kept");
        }
    }
    let now = arco_store::clock::now();
    for stream in streams {
        let unsaid = stream.settle(&inner.limits, low, now);
        match write_stream(&stream, files, inner.limits.open_files) {
            Ok(closed) => {
                round.closed |= closed;
                if unsaid {
                    round.again.push(stream);
                }
            }
            Err(error) => {
                tracing::warn!(error = %error, "log lines wait for the disk");
                files.close(&stream.folder);
                round.failed = true;
                round.again.push(stream);
            }
        }
    }
    inner.metrics.flushes.inc();
    if round.failed {
        inner.metrics.flush_errors.inc();
    }
    round
}

/// Writes and syncs what waits in one stream, then tells its senders. Returns whether a segment was closed.
fn write_stream(stream: &StreamLog, files: &mut OpenFiles, most: usize) -> Result<bool, EventlogError> {
    let mut acknowledged = 0;
    let mut work = Vec::new();
    {
        let state = stream.lock();
        if state.removed {
            files.close(&stream.folder);
            return Ok(false);
        }
        for open in &state.open {
            if !open.tail.is_empty() {
                let tail: Vec<Bytes> = open.tail.iter().cloned().collect();
                let fail = |it| EventlogError::io("open the log segment", &open.path, it);
                // Opened under the lock: a removal either comes before, and we stopped above, or takes the file with it.
                let file = files.get(&open.path, most).map_err(fail)?;
                work.push((open.first, open.path.clone(), open.written, tail, file));
            }
        }
        acknowledged += state.waiting.len();
    }
    for (_, path, written, tail, file) in &work {
        let content: Vec<u8> = tail.concat();
        file.write_all_at(&content, *written).map_err(|it| EventlogError::io("write the log segment", path, it))?;
        file.sync_data().map_err(|it| EventlogError::io("sync the log segment", path, it))?;
    }
    let mut state = stream.lock();
    for (first, _, _, tail, _) in work {
        let bytes: usize = tail.iter().map(Bytes::len).sum();
        if let Some(open) = state.open.iter_mut().find(|it| it.first == first) {
            open.written += bytes as u64;
            open.tail.drain(..tail.len());
            state.written(bytes);
        }
    }
    let mut closed = false;
    while state.open.front().is_some_and(|it| it.full && it.tail.is_empty()) {
        if let Some(open) = state.open.pop_front() {
            state.closed.push_back(Arc::new(Segment::plain(open.path, open.first, open.marks)));
            closed = true;
        }
    }
    let most = state.waiting.len().min(acknowledged);
    for waiting in state.waiting.drain(..most) {
        let _ = waiting.send(());
    }
    Ok(closed)
}

/// Whether too little space is left.
fn is_disk_low(folder: &Path, limits: &Limits) -> bool {
    // Without an answer we go on: a full disk still shows as failed writes.
    let Ok(found) = rustix::fs::statvfs(folder) else { return false };
    let (total, free) = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize);
    free < limits.free_bytes.min(total / 20)
}

/// The folders that streams lie in.
pub(crate) fn kinds(folder: &Path) -> [PathBuf; 2] {
    [folder.join(OPERATIONS), folder.join(COMPONENTS)]
}
