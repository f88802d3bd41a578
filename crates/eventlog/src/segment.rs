//! Segments: files of lines. The newest ones of a stream are plain, older ones are sealed.
//!
//! A sealed segment is an ordinary zstd file (`zstdcat` reads it): a frame for each block of lines, then a skippable
//! frame with the index of the blocks. It appears whole or not at all, and is never changed.

use crate::error::EventlogError;
use crate::line;
use std::borrow::Cow;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Lines of a segment are read, compressed and skipped in blocks of about so many bytes.
pub(crate) const BLOCK_BYTES: u64 = 128 << 10;
/// Suffix of plain segments.
pub(crate) const PLAIN: &str = "log";
/// Suffix of sealed segments.
pub(crate) const SEALED: &str = "zst";

/// A block of lines and what can be known without reading it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mark {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Its bytes in the file.
    pub(crate) stored: u64,
    /// Its bytes as plain lines.
    pub(crate) raw: u64,
    /// Number of its first line in the stream.
    pub(crate) first: u64,
    /// Its lines.
    pub(crate) lines: u64,
    /// Earliest time in it, in ms.
    pub(crate) min_at: u64,
    /// Latest time in it, in ms.
    pub(crate) max_at: u64,
}

impl Mark {
    /// Number after its last line.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.lines
    }

    fn words(&self) -> [u64; 7] {
        [self.offset, self.stored, self.raw, self.first, self.lines, self.min_at, self.max_at]
    }
}

/// Adds a line of `bytes` bytes to the marks of a plain segment.
pub(crate) fn mark_line(marks: &mut Vec<Mark>, number: u64, at: u64, bytes: u64) {
    match marks.last_mut() {
        Some(mark) if mark.raw + bytes <= BLOCK_BYTES => {
            mark.stored += bytes;
            mark.raw += bytes;
            mark.lines += 1;
            mark.min_at = mark.min_at.min(at);
            mark.max_at = mark.max_at.max(at);
        }
        last => {
            let offset = last.map_or(0, |it| it.offset + it.stored);
            marks.push(Mark { offset, stored: bytes, raw: bytes, first: number, lines: 1, min_at: at, max_at: at });
        }
    }
}

/// A segment that gets no more lines.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) first: u64,
    pub(crate) lines: u64,
    pub(crate) min_at: u64,
    pub(crate) max_at: u64,
    /// Blocks of a plain segment; a sealed one has them in its file.
    plain: Option<Vec<Mark>>,
}

impl Segment {
    /// A plain segment that is full.
    pub(crate) fn plain(path: PathBuf, first: u64, marks: Vec<Mark>) -> Self {
        let mut segment = Self::summary(path, first, &marks);
        segment.plain = Some(marks);
        segment
    }

    fn summary(path: PathBuf, first: u64, marks: &[Mark]) -> Self {
        let lines = marks.last().map_or(0, |it| it.end().saturating_sub(first));
        let min_at = marks.iter().map(|it| it.min_at).min().unwrap_or(0);
        let max_at = marks.iter().map(|it| it.max_at).max().unwrap_or(0);
        Self { path, first, lines, min_at, max_at, plain: None }
    }

    /// Opens a sealed segment whose name says that it begins with line `first`.
    pub(crate) fn sealed(path: PathBuf, first: u64) -> Result<Self, EventlogError> {
        let marks = read_index(&path)?;
        if marks.first().is_some_and(|it| it.first != first) {
            return Err(EventlogError::Damaged { path, why: "its index begins with another line than its name says" });
        }
        Ok(Self::summary(path, first, &marks))
    }

    /// Whether it is not compressed yet.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// Number after its last line.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.lines
    }

    /// Its blocks.
    pub(crate) fn marks(&self) -> Result<Cow<'_, [Mark]>, EventlogError> {
        match &self.plain {
            Some(marks) => Ok(Cow::Borrowed(marks)),
            None => Ok(Cow::Owned(read_index(&self.path)?)),
        }
    }

    /// The lines of one of its blocks; `file` is it, opened.
    pub(crate) fn read(&self, file: &File, mark: &Mark) -> Result<Vec<u8>, EventlogError> {
        let mut stored = vec![0; mark.stored as usize];
        match file.read_exact_at(&mut stored, mark.offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(EventlogError::Damaged {
                    path: self.path.clone(),
                    why: "it is shorter than its index says",
                });
            }
            other => other.map_err(|it| EventlogError::io("read the log segment", &self.path, it))?,
        }
        if self.is_plain() {
            return Ok(stored);
        }
        let raw = zstd::bulk::decompress(&stored, mark.raw as usize);
        raw.map_err(|_| EventlogError::Damaged { path: self.path.clone(), why: "a block does not decompress" })
    }
}

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const INDEX_MAGIC: &[u8; 8] = b"ARCOLOG1";
const MARK_BYTES: usize = 56;
/// Number of blocks and the magic.
const TRAILER_BYTES: usize = 12;

/// Compresses a plain segment into a sealed one beside it. The plain file stays; the caller removes it.
pub(crate) fn seal(segment: &Segment, folder: &Path) -> Result<Segment, EventlogError> {
    let fail = |step| move |it| EventlogError::io(step, &segment.path, it);
    let source = File::open(&segment.path).map_err(fail("open the log segment"))?;
    let target = folder.join(format!("{:020}.{SEALED}", segment.first));
    let partial = folder.join(format!("{:020}.partial", segment.first));
    let mut out = File::create(&partial).map_err(fail("seal the log segment"))?;
    let mut offset = 0;
    let mut marks = Vec::new();
    for mark in segment.marks()?.iter() {
        let stored =
            zstd::bulk::compress(&segment.read(&source, mark)?, 3).map_err(fail("compress the log segment"))?;
        out.write_all(&stored).map_err(fail("seal the log segment"))?;
        marks.push(Mark { offset, stored: stored.len() as u64, ..*mark });
        offset += stored.len() as u64;
    }
    let index = encode_index(&marks);
    out.write_all(&index).and_then(|()| out.sync_all()).map_err(fail("seal the log segment"))?;
    std::fs::rename(&partial, &target).map_err(fail("seal the log segment"))?;
    File::open(folder).and_then(|it| it.sync_all()).map_err(fail("seal the log segment"))?;
    Ok(Segment::summary(target, segment.first, &marks))
}

fn encode_index(marks: &[Mark]) -> Vec<u8> {
    let payload = marks.len() * MARK_BYTES + TRAILER_BYTES;
    let mut out = Vec::with_capacity(payload + 8);
    out.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    out.extend_from_slice(&(payload as u32).to_le_bytes());
    for word in marks.iter().flat_map(Mark::words) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&(marks.len() as u32).to_le_bytes());
    out.extend_from_slice(INDEX_MAGIC);
    out
}

/// The index of a sealed segment.
fn read_index(path: &Path) -> Result<Vec<Mark>, EventlogError> {
    let fail = |it| EventlogError::io("read the index of", path, it);
    let damaged = |why| EventlogError::Damaged { path: path.to_owned(), why };
    let file = File::open(path).map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    let mut trailer = [0; TRAILER_BYTES];
    let trailer_at = bytes.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| damaged("it is too short"))?;
    file.read_exact_at(&mut trailer, trailer_at).map_err(fail)?;
    if &trailer[4..] != INDEX_MAGIC {
        return Err(damaged("it has no index"));
    }
    let count = u64::from(u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]));
    let index_at = count.checked_mul(MARK_BYTES as u64).and_then(|it| trailer_at.checked_sub(it));
    let index_at = index_at.ok_or_else(|| damaged("its index is longer than it"))?;
    let mut index = vec![0; (trailer_at - index_at) as usize];
    file.read_exact_at(&mut index, index_at).map_err(fail)?;
    let mut words = index.chunks_exact(8).map(|it| u64::from_le_bytes(it.try_into().unwrap_or_default()));
    let mut word = || words.next().unwrap_or(0);
    let mut marks: Vec<Mark> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (offset, stored, raw, first) = (word(), word(), word(), word());
        let (lines, min_at, max_at) = (word(), word(), word());
        let mark = Mark { offset, stored, raw, first, lines, min_at, max_at };
        let follows = marks.last().is_none_or(|it| it.end() == first);
        // A block is at most one line longer than its usual size; anything else would make us reserve absurd memory.
        let sane = raw <= BLOCK_BYTES + 2 * line::TEXT_MAX as u64
            && offset.checked_add(stored).is_some_and(|it| it <= index_at);
        if !follows || !sane || lines > raw {
            return Err(damaged("its index is not in order"));
        }
        marks.push(mark);
    }
    Ok(marks)
}

/// Reads a plain segment after a stop of any kind: its blocks and the length up to the last whole line.
///
/// What follows the last line that can be read is a torn write and not counted in.
pub(crate) fn scan(path: &Path, first: u64) -> Result<(Vec<Mark>, u64), EventlogError> {
    let content = std::fs::read(path).map_err(|it| EventlogError::io("read the log segment", path, it))?;
    let mut marks = Vec::new();
    let mut good = (0, 0); // lines and bytes up to the last readable line
    let (mut lines, mut bytes) = (0u64, 0u64);
    let mut found = Vec::new();
    for line in content.split_inclusive(|it| *it == b'\n') {
        let whole = line.last() == Some(&b'\n');
        let parsed = std::str::from_utf8(&line[..line.len() - usize::from(whole)]).ok().and_then(line::decode);
        if !whole {
            break;
        }
        lines += 1;
        bytes += line.len() as u64;
        if let Some(parsed) = parsed {
            good = (lines, bytes);
            found.push((parsed.at, line.len() as u64));
        } else {
            let at = found.last().map_or(0, |it| it.0);
            found.push((at, line.len() as u64));
        }
    }
    for (place, (at, bytes)) in found.into_iter().take(good.0 as usize).enumerate() {
        mark_line(&mut marks, first + place as u64, at, bytes);
    }
    Ok((marks, good.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(folder: &Path, lines: u64) -> Segment {
        let path = folder.join("00000000000000000007.log");
        let mut content = String::new();
        let mut marks = Vec::new();
        for number in 0..lines {
            let line = format!("{} o - line {number}\n", 1000 + number);
            mark_line(&mut marks, 7 + number, 1000 + number, line.len() as u64);
            content.push_str(&line);
        }
        std::fs::write(&path, &content).unwrap();
        Segment::plain(path, 7, marks)
    }

    #[test]
    fn a_sealed_segment_has_the_same_lines_and_is_an_ordinary_zstd_file() {
        let folder = tempfile::tempdir().unwrap();
        let before = plain(folder.path(), 20_000);
        let sealed = seal(&before, folder.path()).unwrap();
        let opened = Segment::sealed(sealed.path.clone(), 7).unwrap();
        assert_eq!((opened.first, opened.lines, opened.min_at, opened.max_at), (7, 20_000, 1000, 20_999));
        let file = File::open(&opened.path).unwrap();
        let marks = opened.marks().unwrap();
        assert!(marks.len() > 2);
        let content: Vec<u8> = marks.iter().flat_map(|it| opened.read(&file, it).unwrap()).collect();
        let expected = std::fs::read(&before.path).unwrap();
        assert!(content == expected);
        let whole = zstd::stream::decode_all(File::open(&opened.path).unwrap()).unwrap();
        assert!(whole == expected);
        assert!(Segment::sealed(sealed.path, 8).is_err());
    }

    #[test]
    fn torn_tails_are_found_and_damaged_indexes_refused() {
        let folder = tempfile::tempdir().unwrap();
        let segment = plain(folder.path(), 3);
        let whole = std::fs::read(&segment.path).unwrap();
        for tail in [&b""[..], b"17", b"1 o - half a li", b"\0\0\0\0", b"\0\0\n\0\0\n", b"nonsense\n"] {
            std::fs::write(&segment.path, [&whole, tail].concat()).unwrap();
            let (marks, length) = scan(&segment.path, 7).unwrap();
            assert_eq!((marks.last().unwrap().end(), length), (10, whole.len() as u64), "{tail:?}");
        }
        let path = folder.path().join("x.zst");
        for bad in [
            &b""[..],
            b"short",
            b"0123456789012345678901234567890",
            &[&[0xff; 8][..], b"\xff\xff\xff\xffARCOLOG1"].concat(),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(Segment::sealed(path.clone(), 0).is_err(), "{bad:?}");
        }
    }
}
