//! Clears away: seals full segments, keeps each stream and all of them within their sizes and age, forgets idle streams.
//!
//! The oldest segments go first. Files of streams in memory change only under the stream's lock, files of the others
//! only under the lock of the table, so that nobody opens a stream half cleared.

use crate::error::EventlogError;
use crate::segment::{PLAIN, SEALED, seal};
use crate::stream::StreamLog;
use crate::write::kinds;
use crate::{COMPONENTS, Eventlog, OPERATIONS};
use arco_model::log::LogStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a stream that nobody uses stays in memory; a removed one is remembered as long.
const FORGET_AFTER: Duration = Duration::from_secs(900);

/// A segment file on disk.
struct Found {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
    /// It is the newest of its stream.
    newest: bool,
}

impl Eventlog {
    /// One round; file work.
    pub(crate) fn clear_away(&self) {
        let streams: Vec<_> = self.streams().values().cloned().collect();
        for stream in &streams {
            if let Err(error) = self.seal_stream(stream) {
                tracing::warn!(error = %error, "a log segment stays uncompressed");
            }
        }
        drop(streams);
        match self.shrink() {
            Ok(bytes) => {
                self.0.metrics.disk_bytes.set(bytes as i64);
            }
            Err(error) => tracing::warn!(error = %error, "old logs cannot be cleared away"),
        }
        let mut streams = self.streams();
        streams.retain(|_, stream| {
            let state = stream.lock();
            // Ours is the only reference: nobody follows it, reads it or brings lines.
            Arc::strong_count(stream) > 1 || !state.is_quiet() || state.used.elapsed() < FORGET_AFTER
        });
        self.0.metrics.streams.set(streams.len() as i64);
    }

    fn seal_stream(&self, stream: &StreamLog) -> Result<(), EventlogError> {
        let plain: Vec<_> = stream.lock().closed.iter().filter(|it| it.is_plain()).cloned().collect();
        for segment in plain {
            let sealed = match seal(&segment, &stream.folder) {
                Err(error) if error.is_gone() => continue, // removed meanwhile
                other => Arc::new(other?),
            };
            let mut state = stream.lock();
            match state.closed.iter_mut().find(|it| it.first == segment.first) {
                Some(place) => {
                    *place = sealed;
                    let _ = std::fs::remove_file(&segment.path); // else the next start does it
                }
                None => {
                    let _ = std::fs::remove_file(&sealed.path);
                }
            }
        }
        Ok(())
    }

    /// Deletes what is too old or too much; returns what is left, in bytes.
    fn shrink(&self) -> Result<u64, EventlogError> {
        let oldest = SystemTime::now().checked_sub(self.0.limits.age).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut all = Vec::new();
        for folder in kinds(&self.0.folder) {
            for stream in list(&folder)? {
                let mut files = segments(&stream)?;
                let mut bytes: u64 = files.iter().map(|it| it.bytes).sum();
                files.retain(|it| {
                    let too_old = it.written < oldest;
                    let too_much = bytes > self.0.limits.stream_bytes && !it.newest;
                    let deleted = (too_old || too_much) && self.delete(it);
                    bytes -= if deleted { it.bytes } else { 0 };
                    !deleted
                });
                if files.is_empty() {
                    let _streams = self.streams(); // nobody opens it meanwhile
                    let _ = std::fs::remove_dir(&stream); // fails when a line came meanwhile: then it stays
                }
                all.extend(files);
            }
        }
        let mut total: u64 = all.iter().map(|it| it.bytes).sum();
        all.sort_by_key(|it| it.written);
        for file in all {
            if total <= self.0.limits.total_bytes {
                break;
            }
            if self.delete(&file) {
                total -= file.bytes;
            }
        }
        Ok(total)
    }

    /// Deletes a segment, unless lines are still written to it.
    fn delete(&self, file: &Found) -> bool {
        let streams = self.streams();
        let Some(stream) = stream_of(&self.0.folder, &file.path).and_then(|it| streams.get(&it).cloned()) else {
            return std::fs::remove_file(&file.path).is_ok();
        };
        drop(streams);
        let mut state = stream.lock();
        if state.open.iter().any(|it| it.path == file.path) {
            return false;
        }
        state.closed.retain(|it| it.path != file.path);
        std::fs::remove_file(&file.path).is_ok()
    }
}

/// Whose segment a file is.
fn stream_of(folder: &Path, file: &Path) -> Option<LogStream> {
    let mut words = file.strip_prefix(folder).ok()?.iter().filter_map(|it| it.to_str());
    match (words.next()?, words.next()?) {
        (OPERATIONS, id) => Some(LogStream::Operation { id: id.parse().ok()? }),
        (COMPONENTS, id) => Some(LogStream::Component { id: id.parse().ok()? }),
        _ => None,
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, EventlogError> {
    let fail = |it| EventlogError::io("list the folder of logs", folder, it);
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(fail)?.map(|it| it.map(|it| it.path()).map_err(fail)).collect(),
    }
}

/// Segment files of a stream, oldest first.
fn segments(folder: &Path) -> Result<Vec<Found>, EventlogError> {
    let mut paths = list(folder)?;
    paths.retain(|it| it.extension().is_some_and(|it| it == PLAIN || it == SEALED));
    paths.sort();
    let count = paths.len();
    let mut found = Vec::with_capacity(count);
    for (place, path) in paths.into_iter().enumerate() {
        // Sealed or removed meanwhile: the next round sees it.
        let Ok(stat) = std::fs::metadata(&path) else { continue };
        let written = stat.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push(Found { path, bytes: stat.len(), written, newest: place + 1 == count });
    }
    Ok(found)
}
