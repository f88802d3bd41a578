//! Reads lines by number, time, instance and text.
//!
//! Blocks that cannot hold a wanted line are skipped by their marks. A segment that was sealed or deleted while it was
//! read is looked for again from the line that was reached, so nothing is doubled.

use crate::error::EventlogError;
use crate::line;
use crate::segment::Mark;
use crate::stream::{Part, Snapshot, StreamLog};
use crate::{Eventlog, blocking};
use arco_model::id::InstanceId;
use arco_model::log::{LogLine, LogStream};
use arco_model::time::Timestamp;
use std::fs::File;
use std::sync::Arc;

/// Lines of a query that names no limit.
pub const LINES_DEFAULT: usize = 10_000;
/// Most lines of one query.
pub const LINES_MAX: usize = 100_000;
/// Most text of one query, in bytes.
const BYTES_MAX: usize = 16 << 20;

/// How often files that were sealed or deleted while they were read are looked for again.
const PATIENCE: u32 = 50;

/// Which lines.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filter {
    /// Only from this time on.
    pub since: Option<Timestamp>,
    /// Only up to this time.
    pub until: Option<Timestamp>,
    /// Only of this instance, and what the platform says without naming one.
    pub instance: Option<InstanceId>,
    /// Nothing that names no instance.
    pub own: bool,
    /// Only with this text in them, as it is written.
    pub grep: Option<String>,
    /// Only the last so many of the others.
    pub tail: Option<usize>,
    /// At most so many; 0 means [`LINES_DEFAULT`], and never more than [`LINES_MAX`].
    pub limit: usize,
    /// Only from this number on (as [`Found::next`] gave it).
    pub from: u64,
}

/// Lines that were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// With their numbers, oldest first.
    pub lines: Vec<(u64, LogLine)>,
    /// More lines match: after these, or with `tail` before these.
    pub more: bool,
    /// Number to go on from.
    pub next: u64,
    /// Lines that should be there but are deleted or damaged.
    pub missed: u64,
}

impl Filter {
    /// The number of lines that one answer may have.
    fn most(&self) -> usize {
        match self.limit {
            0 => LINES_DEFAULT,
            limit => limit.min(LINES_MAX),
        }
    }

    fn may_hold(&self, min_at: u64, max_at: u64) -> bool {
        self.since.is_none_or(|it| it.0 <= max_at) && self.until.is_none_or(|it| it.0 >= min_at)
    }

    fn wants(&self, line: &line::Parsed<'_>) -> bool {
        self.may_hold(line.at, line.at)
            && match line.instance {
                None => !self.own,
                Some(found) => self.instance.as_ref().is_none_or(|it| found == it.as_str()),
            }
            && self.grep.as_ref().is_none_or(|it| line.text.contains(it.as_str()))
    }
}

impl Eventlog {
    /// Lines of a stream. A stream that nobody wrote to has none.
    pub async fn query(&self, stream: &LogStream, filter: &Filter) -> Result<Found, EventlogError> {
        let stream = self.stream(stream);
        let (most, filter) = (filter.most(), filter.clone());
        self.read(stream, move |stream| match filter.tail {
            Some(tail) => last(stream, &filter, tail.min(LINES_MAX)),
            None => forward(stream, &filter, most, BYTES_MAX, Gaps::Passed),
        })
        .await
    }

    /// Reads with the stream loaded, beside the async threads, a few at a time.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        stream: Arc<StreamLog>,
        work: impl FnOnce(&StreamLog) -> Result<T, EventlogError> + Send + 'static,
    ) -> Result<T, EventlogError> {
        let _place = self.0.readers.acquire().await.map_err(|_| EventlogError::Stopped)?;
        blocking(move || {
            stream.load()?;
            work(&stream)
        })
        .await
    }
}

/// What a reader does where lines are missing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Gaps {
    /// It counts them and reads on.
    Passed,
    /// It ends before them, unless they come first: so they can be told in their place.
    End,
}

/// Lines from `filter.from` on. Lines before the first one that is left count as missed unless `from` is 0.
pub(crate) fn forward(
    stream: &StreamLog,
    filter: &Filter,
    most: usize,
    most_bytes: usize,
    gaps: Gaps,
) -> Result<Found, EventlogError> {
    let mut found = Found { next: filter.from, ..Found::default() };
    let mut room = most_bytes;
    let mut patience = PATIENCE;
    loop {
        let snapshot = stream.snapshot();
        // A number that was never given here is of another keeper, or of lines that a crash took: go on with what comes.
        found.next = found.next.min(snapshot.next);
        patience = patience.saturating_sub(1);
        match forward_in(&snapshot, filter, (most, gaps), &mut room, &mut found, patience > 0) {
            Err(error) if error.is_gone() => continue, // sealed or deleted meanwhile; each time the snapshot is newer
            other => return other.map(|()| found),
        }
    }
}

fn forward_in(
    snapshot: &Snapshot,
    filter: &Filter,
    (most, gaps): (usize, Gaps),
    room: &mut usize,
    found: &mut Found,
    patient: bool,
) -> Result<(), EventlogError> {
    let ends = |found: &Found| gaps == Gaps::End && !found.lines.is_empty();
    for part in &snapshot.parts {
        if part.end() <= found.next {
            continue;
        }
        if part.first() > found.next {
            if ends(found) {
                return Ok(());
            }
            found.missed += if found.next > 0 { part.first() - found.next } else { 0 };
            found.next = part.first();
        }
        if !part.may_hold(filter) {
            found.next = part.end();
            continue;
        }
        let reader = match part.open() {
            Err(error) if error.is_loss(patient) => {
                if ends(found) {
                    return Ok(());
                }
                found.missed += part.end() - found.next;
                found.next = part.end();
                continue;
            }
            other => other?,
        };
        for mark in &reader.marks {
            if mark.end() <= found.next {
                continue;
            }
            if !filter.may_hold(mark.min_at, mark.max_at) {
                found.next = mark.end();
                continue;
            }
            let block = match reader.block(mark) {
                Err(error) if error.is_loss(patient) => {
                    if ends(found) {
                        return Ok(());
                    }
                    found.missed += mark.end() - found.next;
                    found.next = mark.end();
                    continue;
                }
                other => other?,
            };
            for (number, line) in numbered(&block, mark) {
                if number < found.next {
                    continue;
                }
                if let Some(line) = line::decode(line).filter(|it| filter.wants(it)) {
                    if found.lines.len() >= most || line.text.len() > *room {
                        found.more = true;
                        return Ok(());
                    }
                    *room -= line.text.len();
                    found.lines.push((number, line.to_line()));
                }
                found.next = number + 1;
            }
            found.next = mark.end();
        }
    }
    found.next = found.next.max(snapshot.next);
    Ok(())
}

/// The last `tail` lines that match.
pub(crate) fn last(stream: &StreamLog, filter: &Filter, tail: usize) -> Result<Found, EventlogError> {
    let mut patience = PATIENCE;
    loop {
        let snapshot = stream.snapshot();
        patience = patience.saturating_sub(1);
        match last_in(&snapshot, filter, tail, patience > 0) {
            Err(error) if error.is_gone() => continue,
            other => return other,
        }
    }
}

fn last_in(snapshot: &Snapshot, filter: &Filter, tail: usize, patient: bool) -> Result<Found, EventlogError> {
    let mut found = Found { next: snapshot.next, ..Found::default() };
    let mut room = BYTES_MAX;
    'all: for part in snapshot.parts.iter().rev() {
        if part.end() <= filter.from || !part.may_hold(filter) {
            continue;
        }
        let reader = match part.open() {
            Err(error) if error.is_loss(patient) => {
                found.missed += part.end() - part.first();
                continue;
            }
            other => other?,
        };
        for mark in reader.marks.iter().rev() {
            if mark.end() <= filter.from || !filter.may_hold(mark.min_at, mark.max_at) {
                continue;
            }
            let block = match reader.block(mark) {
                Err(error) if error.is_loss(patient) => {
                    found.missed += mark.lines;
                    continue;
                }
                other => other?,
            };
            let wanted = |(number, line)| {
                let line = line::decode(line).filter(|it| number >= filter.from && filter.wants(it))?;
                Some((number, line))
            };
            let lines: Vec<_> = numbered(&block, mark).filter_map(wanted).collect();
            for (number, line) in lines.into_iter().rev() {
                if found.lines.len() >= tail || line.text.len() > room {
                    found.more = true;
                    break 'all;
                }
                room -= line.text.len();
                found.lines.push((number, line.to_line()));
            }
        }
    }
    found.lines.reverse();
    Ok(found)
}

/// The lines of a block with their numbers.
fn numbered<'a>(block: &'a str, mark: &Mark) -> impl Iterator<Item = (u64, &'a str)> {
    let first = mark.first;
    block.split_terminator('\n').enumerate().map(move |(place, line)| (first + place as u64, line))
}

/// A segment, opened.
struct Reader<'a> {
    part: &'a Part,
    file: Option<File>,
    marks: Vec<Mark>,
}

impl Part {
    /// Number of its first line.
    fn first(&self) -> u64 {
        match self {
            Part::Closed(segment) => segment.first,
            Part::Open { first, .. } => *first,
        }
    }

    /// Number after its last line.
    fn end(&self) -> u64 {
        match self {
            Part::Closed(segment) => segment.end(),
            Part::Open { first, marks, .. } => marks.last().map_or(*first, Mark::end),
        }
    }

    fn may_hold(&self, filter: &Filter) -> bool {
        match self {
            Part::Closed(segment) => filter.may_hold(segment.min_at, segment.max_at),
            Part::Open { .. } => true,
        }
    }

    fn open(&self) -> Result<Reader<'_>, EventlogError> {
        let open = |path| File::open(path).map_err(|it| EventlogError::io("open the log segment", path, it));
        let (file, marks) = match self {
            Part::Closed(segment) => (Some(open(&segment.path)?), segment.marks()?.into_owned()),
            Part::Open { path, marks, written, .. } => ((*written > 0).then(|| open(path)).transpose()?, marks.clone()),
        };
        Ok(Reader { part: self, file, marks })
    }
}

impl Reader<'_> {
    fn block(&self, mark: &Mark) -> Result<String, EventlogError> {
        let bytes = match (self.part, &self.file) {
            (Part::Closed(segment), Some(file)) => segment.read(file, mark)?,
            (Part::Closed(_), None) => Vec::new(),
            (Part::Open { path, written, tail, .. }, file) => {
                use std::os::unix::fs::FileExt as _;
                let (from, to) = (mark.offset, mark.offset + mark.raw);
                let mut bytes = vec![0; written.clamp(&from, &to).saturating_sub(from) as usize];
                if let Some(file) = file {
                    file.read_exact_at(&mut bytes, from)
                        .map_err(|it| EventlogError::io("read the log segment", path, it))?;
                }
                let mut at = *written;
                for chunk in tail {
                    let (start, end) = (from.max(at).min(to), to.min(at + chunk.len() as u64));
                    if start < end && end > at {
                        bytes.extend_from_slice(&chunk[(start - at) as usize..(end - at) as usize]);
                    }
                    at += chunk.len() as u64;
                }
                bytes
            }
        };
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }
}
