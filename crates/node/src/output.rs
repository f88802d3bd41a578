//! The log files of one container, read as one stream of lines: `N.log` of each run of its program, and what was rotated
//! away from it (`N.log.TIME`, later `N.log.TIME.gz`).
//!
//! What must hold: every line comes once and in order, also when files are rotated, packed or removed while they are read;
//! what was kept before ([`Resume`]) is left out; when files went before they were read, that is said. A file that is a
//! link is not opened, so that nothing outside is read.

use crate::cri::{Joiner, record};
use crate::wire::Line;
use arco_model::log::LogOrigin;
use arco_model::time::Timestamp;
use flate2::read::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// A record without an end that is longer than this is none of a runtime's.
const RECORD_MAX: usize = 256 << 10;
/// The clock of files is a little behind that of lines.
const BEHIND_MS: u64 = 1000;

/// A file of a container, in the order in which they were written.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
struct Named {
    run: u32,
    /// The one that is written comes after those that were rotated away.
    written: bool,
    rotated: String,
    packed: bool,
    name: String,
}

impl Named {
    fn parse(name: &str) -> Option<Self> {
        let (run, rest) = name.split_once(".log")?;
        let run = run.parse().ok()?;
        let (rotated, packed) = match rest.strip_suffix(".gz") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let time = rotated.strip_prefix('.').unwrap_or_default();
        let is_time = time.starts_with(|it: char| it.is_ascii_digit()) && !time.contains('.');
        match (rotated.is_empty(), packed) {
            (true, true) => None,
            (false, _) if !is_time => None, // `.tmp`, while it is packed
            (written, _) => Some(Self { run, written, rotated: time.to_owned(), packed, name: name.to_owned() }),
        }
    }
}

/// Lines that are kept already.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Resume {
    /// Everything before this is.
    pub(crate) at: Timestamp,
    /// And these lines of that millisecond.
    pub(crate) texts: Vec<String>,
}

impl Resume {
    /// Whether a line is kept; each of equal ones counts once.
    pub(crate) fn holds(&mut self, line: &Line) -> bool {
        if line.at != self.at {
            return line.at < self.at;
        }
        let place = self.texts.iter().position(|it| *it == line.text);
        place.map(|it| self.texts.swap_remove(it)).is_some()
    }

    /// Goes on with a line that was handed out.
    fn passed(&mut self, line: &Line) {
        if line.origin == LogOrigin::Platform {
            return; // in no file
        }
        if line.at > self.at {
            (self.at, self.texts) = (line.at, Vec::new());
        }
        if line.at == self.at {
            self.texts.push(line.text.clone());
        }
    }
}

enum Content {
    Plain(File),
    Packed(Box<MultiGzDecoder<File>>),
}

/// The file that is being read.
struct Open {
    content: Content,
    inode: u64,
    /// What was read and is not a whole record yet.
    rest: Vec<u8>,
}

impl Open {
    fn new(folder: &Path, named: &Named) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(folder.join(&named.name), flags, Mode::empty())?);
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other(format!("`{}` is not a file", folder.join(&named.name).display())));
        }
        let content =
            if named.packed { Content::Packed(Box::new(MultiGzDecoder::new(file))) } else { Content::Plain(file) };
        Ok(Self { content, inode: found.ino(), rest: Vec::new() })
    }

    /// Appends what is there to `rest`; how much that was.
    fn fill(&mut self) -> io::Result<usize> {
        let before = self.rest.len();
        self.rest.resize(before + CHUNK, 0);
        let read = match &mut self.content {
            Content::Plain(it) => it.read(&mut self.rest[before..]),
            Content::Packed(it) => it.read(&mut self.rest[before..]),
        };
        self.rest.truncate(before + read.as_ref().map_or(0, |it| *it));
        read
    }
}

/// The output of one container.
pub(crate) struct Reader {
    folder: PathBuf,
    open: Option<Open>,
    joiner: Joiner,
    ready: VecDeque<Line>,
    /// What is left out at the beginning.
    kept: Option<Resume>,
    /// What was handed out last.
    passed: Resume,
    /// There was a last line, and nothing up to it was found in the files yet.
    sought: bool,
}

impl Reader {
    /// Reads the files of a folder from the first one, without what is kept.
    pub(crate) fn new(folder: PathBuf, kept: Resume) -> Self {
        let (passed, sought) = (kept.clone(), !kept.texts.is_empty());
        let kept = Some(kept);
        Self { folder, open: None, joiner: Joiner::default(), ready: VecDeque::new(), kept, passed, sought }
    }

    /// The next lines, until their texts have so many bytes or nothing more is there.
    pub(crate) fn read(&mut self, bytes: usize) -> io::Result<Vec<Line>> {
        let (mut lines, mut size) = (Vec::new(), 0);
        while size < bytes {
            match self.ready.pop_front() {
                Some(line) => {
                    size += line.text.len() + 64;
                    self.passed.passed(&line);
                    lines.push(line);
                }
                None if self.advance()? => {}
                None => break,
            }
        }
        Ok(lines)
    }

    /// Reads a piece of the present file, or goes to the next one; whether anything was there.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.open else { return self.next_file(None) };
        if open.fill()? > 0 {
            self.take();
            return Ok(true);
        }
        // Written to its end as soon as a later file is there; what came between the two looks is read first.
        let inode = open.inode;
        if self.is_last(inode)? {
            return Ok(false);
        }
        let open = self.open.as_mut();
        if open.map_or(Ok(0), Open::fill)? > 0 {
            self.take();
            return Ok(true);
        }
        self.next_file(Some(inode))
    }

    /// Whole records become lines.
    fn take(&mut self) {
        let Some(open) = &mut self.open else { return };
        let Some(end) = open.rest.iter().rposition(|it| *it == b'\n') else {
            if open.rest.len() > RECORD_MAX {
                open.rest.clear();
            }
            return;
        };
        for text in open.rest[..end].split(|it| *it == b'\n') {
            let Some(line) = record(text).and_then(|it| self.joiner.push(it)) else { continue };
            if self.kept.as_mut().is_some_and(|it| it.holds(&line)) {
                self.sought = false;
                continue;
            }
            if std::mem::take(&mut self.sought) {
                self.ready.push_back(Line { at: line.at, origin: LogOrigin::Platform, text: String::new() });
            }
            // Clocks may be set back: once behind what is kept, everything is new.
            if self.kept.as_ref().is_some_and(|it| line.at > it.at) {
                self.kept = None;
            }
            self.ready.push_back(line);
        }
        open.rest.drain(..=end);
    }

    fn listed(&self) -> io::Result<Vec<Named>> {
        let names = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut found: Vec<Named> =
            names.iter().filter_map(|it| it.file_name().to_str().and_then(Named::parse)).collect();
        found.sort();
        // For a moment a file is there beside what was packed of it.
        found.dedup_by(|packed, plain| packed.run == plain.run && !plain.written && packed.rotated == plain.rotated);
        Ok(found)
    }

    /// Whether all of a file is kept: it was written before the last line that is.
    fn is_kept(&self, named: &Named) -> bool {
        let found = std::fs::symlink_metadata(self.folder.join(&named.name));
        let (Some(kept), Ok(found)) = (&self.kept, found) else { return false };
        let written_ms = u64::try_from(found.mtime() * 1000 + found.mtime_nsec() / 1_000_000).unwrap_or(u64::MAX);
        written_ms.saturating_add(BEHIND_MS) < kept.at.0
    }

    fn inode(&self, named: &Named) -> Option<u64> {
        std::fs::symlink_metadata(self.folder.join(&named.name)).ok().map(|it| it.ino())
    }

    fn is_last(&self, inode: u64) -> io::Result<bool> {
        let listed = self.listed()?;
        // An empty folder is being removed with its pod: what is open stays readable.
        Ok(listed.last().is_none_or(|it| self.inode(it) == Some(inode)))
    }

    /// Opens the file after the one with this inode, or the first one; whether there is one.
    fn next_file(&mut self, after: Option<u64>) -> io::Result<bool> {
        let listed = self.listed()?;
        let place = after.and_then(|inode| listed.iter().position(|it| self.inode(it) == Some(inode)));
        let next = match (after, place) {
            (Some(_), Some(place)) => listed.get(place + 1),
            (None, _) => listed.iter().find(|it| !self.is_kept(it)),
            (Some(_), None) => {
                // It was packed or removed: what is there is read from the first file, without what was handed out.
                self.kept = Some(self.passed.clone());
                self.sought = !self.passed.texts.is_empty();
                self.joiner = Joiner::default();
                listed.iter().find(|it| !self.is_kept(it))
            }
        };
        let Some(next) = next else { return Ok(false) };
        match Open::new(&self.folder, next) {
            Ok(open) => self.open = Some(open),
            // Rotated between the two looks: the next look finds it under its new name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
