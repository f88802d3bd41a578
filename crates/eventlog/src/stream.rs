//! The log of one stream: closed segments, the open one, and the lines that wait for the disk.
//!
//! Every line has a number. Appending only touches memory; [`crate::write`] brings it to the disk. Readers take a
//! [`Snapshot`] and need no lock afterwards.

use crate::error::EventlogError;
use crate::limits::Limits;
use crate::line;
use crate::segment::{self, Mark, PLAIN, SEALED, Segment};
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::time::Timestamp;
use bytes::Bytes;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// How often a stream that loses lines says so in its log.
const NOTE_EVERY: Duration = Duration::from_secs(2);

/// How long a flooding stream loses lines before some are taken again.
const FLOOD_PAUSE: Duration = Duration::from_secs(1);

/// The log of one stream.
#[derive(Debug)]
pub(crate) struct StreamLog {
    pub(crate) stream: LogStream,
    pub(crate) folder: PathBuf,
    state: Mutex<State>,
    tip: watch::Sender<Tip>,
}

/// What followers wait for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tip {
    /// Number that the next line gets.
    pub(crate) next: u64,
    /// The stream was removed.
    pub(crate) removed: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    loaded: bool,
    pub(crate) removed: bool,
    /// Closed segments, oldest first.
    pub(crate) closed: VecDeque<Arc<Segment>>,
    /// Segments that are written: full ones that wait for the disk, then the one that lines are appended to.
    pub(crate) open: VecDeque<Open>,
    next: u64,
    /// Senders that wait until what they sent is on disk.
    pub(crate) waiting: Vec<oneshot::Sender<()>>,
    waiting_bytes: usize,
    /// Bytes that may be written now, and when that was true.
    allowance: f64,
    allowance_at: Instant,
    dropped: Option<Dropped>,
    /// When it was used last.
    pub(crate) used: Instant,
}

/// A segment that is being written.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) path: PathBuf,
    pub(crate) first: u64,
    pub(crate) marks: Vec<Mark>,
    /// Bytes that are on disk.
    pub(crate) written: u64,
    /// Bytes, with those that are not yet on disk.
    pub(crate) length: u64,
    /// What follows `written`.
    pub(crate) tail: VecDeque<Bytes>,
    /// It gets no more lines; becomes closed when all is on disk.
    pub(crate) full: bool,
    since: Timestamp,
}

impl Open {
    fn new(folder: &Path, first: u64, since: Timestamp) -> Self {
        let path = folder.join(format!("{first:020}.{PLAIN}"));
        Self { path, first, marks: Vec::new(), written: 0, length: 0, tail: VecDeque::new(), full: false, since }
    }
}

/// Lines that were not kept.
#[derive(Debug)]
struct Dropped {
    why: Why,
    lines: u64,
    noted: Instant,
}

/// Why lines are not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Why {
    /// The stream writes more than its share.
    Flood,
    /// The disk is nearly full.
    Disk,
    /// The disk does not take what was written before.
    Behind,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Appended {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    pub(crate) dropped: u64,
}

/// A stream at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) parts: Vec<Part>,
    /// Number that the next line will get.
    pub(crate) next: u64,
}

/// A segment at one moment.
#[derive(Debug)]
pub(crate) enum Part {
    /// It does not change any more.
    Closed(Arc<Segment>),
    /// It is being written.
    Open { path: PathBuf, first: u64, marks: Vec<Mark>, written: u64, tail: Vec<Bytes> },
}

impl StreamLog {
    /// A stream whose folder is not read yet.
    pub(crate) fn new(stream: LogStream, folder: PathBuf) -> Self {
        let now = Instant::now();
        let state = State {
            loaded: false,
            removed: false,
            closed: VecDeque::new(),
            open: VecDeque::new(),
            next: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            allowance: f64::MAX,
            allowance_at: now,
            dropped: None,
            used: now,
        };
        Self { stream, folder, state: Mutex::new(state), tip: watch::Sender::new(Tip::default()) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the folder was read.
    pub(crate) fn is_loaded(&self) -> bool {
        self.lock().loaded
    }

    /// Tells followers about new lines and the end.
    pub(crate) fn tip(&self) -> watch::Receiver<Tip> {
        self.tip.subscribe()
    }

    /// Reads the folder, once: cuts a torn tail, finishes or undoes what a stop left half done.
    pub(crate) fn load(&self) -> Result<(), EventlogError> {
        let mut state = self.lock();
        if state.loaded || state.removed {
            return Ok(());
        }
        let (closed, open) = read_folder(&self.folder)?;
        state.next = open
            .as_ref()
            .map(|it| it.marks.last().map_or(it.first, Mark::end))
            .or(closed.back().map(|it| it.end()))
            .unwrap_or(0);
        state.closed = closed;
        state.open = open.into_iter().collect();
        state.loaded = true;
        self.tip.send_replace(Tip { next: state.next, removed: false });
        Ok(())
    }

    /// Appends a batch in memory; the stream is loaded. Lines beyond the stream's share are counted and dropped.
    pub(crate) fn append(
        &self,
        lines: &[LogLine],
        written: Option<oneshot::Sender<()>>,
        limits: &Limits,
        disk_low: bool,
        now: Timestamp,
    ) -> Appended {
        let mut state = self.lock();
        let mut done = Appended::default();
        if state.removed {
            done.dropped = lines.len() as u64;
            let _ = written.map(|it| it.send(())); // as asked: nothing of it is kept, and the sender may go on
            return done;
        }
        state.used = Instant::now();
        state.refill(limits);
        let disk_low = disk_low && matches!(self.stream, LogStream::Component { .. });
        let mut chunk = Vec::new();
        for line in lines {
            for text in line.text.split('\n') {
                let cost = text.len().min(line::TEXT_MAX) as f64 + 48.0;
                let refused = if disk_low {
                    Some(Why::Disk)
                } else if state.waiting_bytes + chunk.len() >= limits.waiting_bytes {
                    Some(Why::Behind)
                } else if state.allowance < cost || state.is_paused() {
                    Some(Why::Flood)
                } else {
                    None
                };
                if let Some(why) = refused {
                    done.dropped += 1;
                    state.drop_line(why, &mut chunk, &self.folder, limits, now);
                    continue;
                }
                state.allowance -= cost;
                state.note_dropped(&mut chunk, &self.folder, limits, now);
                state.push(line, text, &mut chunk, &self.folder, limits, now);
                done.lines += 1;
            }
        }
        done.bytes = chunk.len() as u64;
        state.take_chunk(&mut chunk);
        state.waiting.extend(written);
        self.tip.send_replace(Tip { next: state.next, removed: false });
        done
    }

    /// Says in the log that lines were dropped, when it is time to. Returns whether lines wait to be said.
    pub(crate) fn settle(&self, limits: &Limits, disk_low: bool, now: Timestamp) -> bool {
        let mut state = self.lock();
        if state.removed {
            return false;
        }
        let Some(dropped) = &state.dropped else { return false };
        if dropped.lines == 0 && (dropped.why != Why::Disk || !disk_low) {
            state.dropped = None;
            return false;
        }
        if dropped.noted.elapsed() < NOTE_EVERY
            || (dropped.why == Why::Disk && disk_low)
            || state.waiting_bytes >= limits.waiting_bytes
        {
            return true;
        }
        let mut chunk = Vec::new();
        state.note_dropped(&mut chunk, &self.folder, limits, now);
        state.take_chunk(&mut chunk);
        self.tip.send_replace(Tip { next: state.next, removed: false });
        false
    }

    /// What can be read now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        state.used = Instant::now();
        let closed = state.closed.iter().cloned().map(Part::Closed);
        let open = state.open.iter().map(|it| Part::Open {
            path: it.path.clone(),
            first: it.first,
            marks: it.marks.clone(),
            written: it.written,
            tail: it.tail.iter().cloned().collect(),
        });
        Snapshot { parts: closed.chain(open).collect(), next: state.next }
    }

    /// Removes everything, now and for what still comes.
    pub(crate) fn remove(&self) -> Result<(), EventlogError> {
        let mut state = self.lock();
        state.removed = true;
        state.closed.clear();
        state.open.clear();
        for waiting in state.waiting.drain(..) {
            let _ = waiting.send(());
        }
        state.waiting_bytes = 0;
        state.used = Instant::now();
        self.tip.send_replace(Tip { next: state.next, removed: true });
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(EventlogError::io("remove the log", &self.folder, error))
            }
            _ => Ok(()),
        }
    }
}

impl State {
    /// Nothing waits for the disk or to be said.
    pub(crate) fn is_quiet(&self) -> bool {
        self.open.iter().all(|it| it.tail.is_empty()) && self.waiting.is_empty() && self.dropped.is_none()
    }

    /// The first `bytes` of what waits came to the disk.
    pub(crate) fn written(&mut self, bytes: usize) {
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
    }

    /// After a flood began to lose lines it loses them for a while, so that the log says so once and not after each line.
    fn is_paused(&self) -> bool {
        self.dropped.as_ref().is_some_and(|it| it.why == Why::Flood && it.noted.elapsed() < FLOOD_PAUSE)
    }

    fn refill(&mut self, limits: &Limits) {
        let earned = self.allowance_at.elapsed().as_secs_f64() * limits.stream_rate as f64;
        self.allowance = (self.allowance + earned).min(limits.stream_burst as f64);
        self.allowance_at = Instant::now();
    }

    fn push(
        &mut self,
        line: &LogLine,
        text: &str,
        chunk: &mut Vec<u8>,
        folder: &Path,
        limits: &Limits,
        now: Timestamp,
    ) {
        let fits = |it: &Open| {
            !it.full
                && it.length + (chunk.len() as u64) < limits.segment_bytes
                && u128::from(now.since_ms(it.since)) < limits.segment_age.as_millis()
        };
        if !self.open.back().is_some_and(fits) {
            self.take_chunk(chunk);
            if let Some(last) = self.open.back_mut() {
                last.full = true;
            }
            self.open.push_back(Open::new(folder, self.next, now));
        }
        let before = chunk.len();
        line::encode(line, text, chunk);
        if let Some(last) = self.open.back_mut() {
            segment::mark_line(&mut last.marks, self.next, line.at.0, (chunk.len() - before) as u64);
        }
        self.next += 1;
    }

    /// Hands encoded lines to the last open segment.
    fn take_chunk(&mut self, chunk: &mut Vec<u8>) {
        if chunk.is_empty() {
            return;
        }
        let chunk = std::mem::take(chunk);
        self.waiting_bytes += chunk.len();
        if let Some(last) = self.open.back_mut() {
            last.length += chunk.len() as u64;
            last.tail.push_back(Bytes::from(chunk));
        }
    }

    fn drop_line(&mut self, why: Why, chunk: &mut Vec<u8>, folder: &Path, limits: &Limits, now: Timestamp) {
        if self.dropped.as_ref().is_some_and(|it| it.why != why) {
            self.note_dropped(chunk, folder, limits, now);
        }
        match &mut self.dropped {
            Some(dropped) => dropped.lines += 1,
            None => {
                self.dropped = Some(Dropped { why, lines: 1, noted: Instant::now() });
                if why == Why::Disk {
                    let text = "the disk is nearly full: lines of components are not kept until there is space again";
                    self.say(text, chunk, folder, limits, now);
                }
            }
        }
    }

    fn note_dropped(&mut self, chunk: &mut Vec<u8>, folder: &Path, limits: &Limits, now: Timestamp) {
        let Some(dropped) = self.dropped.take().filter(|it| it.lines > 0) else { return };
        let why = match dropped.why {
            Why::Flood => format!("more than {} KiB per second were written", limits.stream_rate >> 10),
            Why::Disk => "the disk was nearly full".to_owned(),
            Why::Behind => "the disk did not take them in time".to_owned(),
        };
        let text = format!("{} lines are missing here: {why}", dropped.lines);
        self.say(&text, chunk, folder, limits, now);
    }

    fn say(&mut self, text: &str, chunk: &mut Vec<u8>, folder: &Path, limits: &Limits, now: Timestamp) {
        let line = LogLine { at: now, instance: None, origin: LogOrigin::Platform, text: text.to_owned() };
        self.push(&line, text, chunk, folder, limits, now);
    }
}

/// Closed segments in order, and the one that was written last.
fn read_folder(folder: &Path) -> Result<(VecDeque<Arc<Segment>>, Option<Open>), EventlogError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other.map_err(|it| EventlogError::io("list the log", folder, it))?,
    };
    let (mut plain, mut sealed) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(|it| EventlogError::io("list the log", folder, it))?.path();
        let first = path.file_stem().and_then(|it| it.to_str()).and_then(|it| it.parse::<u64>().ok());
        match (first, path.extension().and_then(|it| it.to_str())) {
            (Some(first), Some(PLAIN)) => plain.push((first, path)),
            (Some(first), Some(SEALED)) => sealed.push((first, path)),
            (Some(_), Some("partial")) => {
                let _ = std::fs::remove_file(&path); // a sealing that a stop interrupted; the plain file is there
            }
            _ => {} // not ours
        }
    }
    sealed.sort();
    plain.sort();
    let mut closed = Vec::new();
    for (first, path) in sealed {
        match Segment::sealed(path, first) {
            Ok(segment) => {
                // Sealing replaced it: the plain file is left over.
                plain.retain(|(it, path)| *it != first || std::fs::remove_file(path).is_err());
                closed.push(segment);
            }
            Err(error) => tracing::warn!(error = %error, "a segment of a log is left out"),
        }
    }
    let last = plain.pop();
    for (first, path) in plain {
        let (marks, _) = segment::scan(&path, first)?;
        closed.push(Segment::plain(path, first, marks));
    }
    closed.sort_by_key(|it| it.first);
    let open = last.map(|(first, path)| open_last(path, first)).transpose()?;
    Ok((closed.into_iter().map(Arc::new).collect(), open))
}

/// Takes up the segment that was written last: what a stop tore off its end is cut.
fn open_last(path: PathBuf, first: u64) -> Result<Open, EventlogError> {
    let (marks, bytes) = segment::scan(&path, first)?;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(|it| EventlogError::io("open the log segment", &path, it))?;
    file.set_len(bytes).map_err(|it| EventlogError::io("cut the torn end of", &path, it))?;
    let since = Timestamp(marks.first().map_or(0, |it| it.min_at));
    Ok(Open { path, first, marks, written: bytes, length: bytes, tail: VecDeque::new(), full: false, since })
}
