//! What a program writes: cut into lines, stamped, kept in two rotating files.
//!
//! A file is named by the offset of its first byte in the whole log (`<20 digits>.log`), so that a reader's cursor is one
//! number and it sees how much it missed. A record is `<ms> <o|e|p> <text>\n`. What must hold: the files never exceed
//! their limit; a flood is thinned out and said, never buffered; a line is at most 16 KiB.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Result, Write as _};
use std::path::{Path, PathBuf};

/// Longest line, in bytes; longer ones are cut into several.
pub(in crate::local) const LINE_MAX: usize = 16 << 10;
/// Output that is kept per second in the long run, in bytes.
const RATE: u64 = 4 << 20;
/// Output that is kept at once, in bytes.
const BURST: u64 = 16 << 20;
/// What `last_output` tells, in bytes.
const LAST_OUTPUT: usize = 2 << 10;

/// Name of the log file that begins at an offset.
pub(in crate::local) fn file_name(offset: u64) -> String {
    format!("{offset:020}.log")
}

/// Offset in a log file's name.
pub(in crate::local) fn file_offset(name: &str) -> Option<u64> {
    name.strip_suffix(".log")?.parse().ok()
}

/// The rotating files.
struct LogFiles {
    folder: PathBuf,
    limit: u64,
    file: Option<File>,
    start: u64,
    end: u64,
    older: Option<u64>,
}

impl LogFiles {
    fn write(&mut self, record: &[u8]) {
        if self.file.is_none() || self.end - self.start + record.len() as u64 > self.limit {
            self.rotate();
        }
        // A full disk loses log lines; the program goes on.
        if let Some(file) = &mut self.file
            && file.write_all(record).is_ok()
        {
            self.end += record.len() as u64;
        } else if let Some(file) = &self.file {
            let _ = file.set_len(self.end - self.start);
        }
    }

    fn rotate(&mut self) {
        if self.file.is_some()
            && let Some(older) = self.older.replace(self.start)
        {
            let _ = std::fs::remove_file(self.folder.join(file_name(older)));
        }
        self.start = self.end;
        let path = self.folder.join(file_name(self.start));
        self.file = File::options().create(true).append(true).open(path).ok();
    }
}

/// One pipe of the program.
struct Pipe {
    read: File,
    mark: char,
    partial: Vec<u8>,
}

/// Both pipes and the files behind them.
pub(super) struct Output {
    pipes: [Pipe; 2],
    files: LogFiles,
    last: VecDeque<u8>,
    /// Whether a flood is thinned out (services) or slowed down (one-shots, whose output is a build's log).
    thin: bool,
    budget: u64,
    filled_at_ms: u64,
    dropped: u64,
    /// When it was said last that something was dropped; a flood is told once a second, with the sum.
    told_at_ms: u64,
}

impl Output {
    /// `read` are the ends of standard output and standard error, not blocking.
    pub(super) fn new(folder: &Path, limit: u64, thin: bool, read: [File; 2]) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut files = LogFiles {
            folder: folder.to_owned(),
            limit: (limit / 2).max(64 << 10),
            file: None,
            start: 0,
            end: 0,
            older: None,
        };
        files.rotate();
        let [out, err] = read;
        let pipe = |read, mark| Pipe { read, mark, partial: Vec::new() };
        let pipes = [pipe(out, 'o'), pipe(err, 'e')];
        Ok(Self {
            pipes,
            files,
            last: VecDeque::new(),
            thin,
            budget: BURST,
            filled_at_ms: now_ms(),
            dropped: 0,
            told_at_ms: 0,
        })
    }

    /// The pipes, to wait on.
    pub(super) fn pipes(&self) -> [&File; 2] {
        [&self.pipes[0].read, &self.pipes[1].read]
    }

    /// Takes what is there, at most 64 KiB of each pipe. Returns whether anything was, and for how long (ms) the pipes
    /// should be left alone because of a flood.
    pub(super) fn take(&mut self) -> (bool, u64) {
        self.take_at(now_ms())
    }

    fn take_at(&mut self, now: u64) -> (bool, u64) {
        self.budget = (self.budget + (now.saturating_sub(self.filled_at_ms)) * RATE / 1000).min(BURST);
        self.filled_at_ms = now;
        let (mut any, mut pause) = (false, 0);
        for index in 0..self.pipes.len() {
            let mut piece = [0u8; 64 << 10];
            let count = match self.pipes[index].read.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if count == 0 {
                continue;
            }
            any = true;
            if self.budget < count as u64 {
                pause = 10;
                if self.thin {
                    self.dropped += count as u64;
                    continue;
                }
            }
            self.budget = self.budget.saturating_sub(count as u64);
            if now.saturating_sub(self.told_at_ms) >= 1000 {
                self.tell_dropped(now);
            }
            self.append(index, now, &piece[..count]);
        }
        (any, pause)
    }

    /// Takes everything that is left after the program's end, and its last line without an end.
    pub(super) fn drain(&mut self) {
        for _ in 0..1024 {
            if !self.take().0 {
                break;
            }
        }
        let now = now_ms();
        self.tell_dropped(now);
        for index in 0..self.pipes.len() {
            if !self.pipes[index].partial.is_empty() {
                self.append(index, now, b"\n");
            }
        }
    }

    /// A line of the platform itself.
    pub(super) fn say(&mut self, text: &str) {
        self.files.write(format!("{} p {}\n", now_ms(), text.replace('\n', " ")).as_bytes());
    }

    /// The last lines, at most 2 KiB, and forgets them.
    pub(super) fn last_output(&mut self) -> String {
        let bytes: Vec<u8> = self.last.drain(..).collect();
        let text = String::from_utf8_lossy(&bytes);
        let text = if bytes.len() < LAST_OUTPUT {
            text.as_ref()
        } else {
            text.split_once('\n').map_or(text.as_ref(), |it| it.1)
        };
        text.trim().to_owned()
    }

    fn tell_dropped(&mut self, now: u64) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped).div_ceil(1 << 10);
            let limit = RATE >> 10;
            self.say(&format!(
                "{dropped} KiB of output are missing here: more than {limit} KiB per second were written"
            ));
            self.told_at_ms = now;
        }
    }

    fn append(&mut self, index: usize, now: u64, bytes: &[u8]) {
        let pipe = &mut self.pipes[index];
        for piece in bytes.split_inclusive(|it| *it == b'\n') {
            for part in piece.chunks(LINE_MAX) {
                if pipe.partial.len() + part.len() > LINE_MAX + 1 {
                    write_line(&mut self.files, &mut self.last, pipe.mark, now, &pipe.partial);
                    pipe.partial.clear();
                }
                pipe.partial.extend_from_slice(part);
            }
            if pipe.partial.ends_with(b"\n") {
                pipe.partial.pop();
                write_line(&mut self.files, &mut self.last, pipe.mark, now, &pipe.partial);
                pipe.partial.clear();
            }
        }
    }
}

fn write_line(files: &mut LogFiles, last: &mut VecDeque<u8>, mark: char, now: u64, text: &[u8]) {
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut record = format!("{now} {mark} ").into_bytes();
    record.extend_from_slice(text);
    record.push(b'\n');
    files.write(&record);
    last.extend(&text[text.len().saturating_sub(LAST_OUTPUT)..]);
    last.push_back(b'\n');
    let excess = last.len().saturating_sub(LAST_OUTPUT);
    last.drain(..excess);
}

/// Milliseconds since 1970. A shim has no store, hence no `store::clock`.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |it| it.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(folder: &Path, limit: u64) -> (Output, [std::io::PipeWriter; 2]) {
        let pair = || {
            let (read, write) = std::io::pipe().unwrap();
            nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
            (File::from(std::os::fd::OwnedFd::from(read)), write)
        };
        let ((out, out_write), (err, err_write)) = (pair(), pair());
        (Output::new(folder, limit, true, [out, err]).unwrap(), [out_write, err_write])
    }

    fn kept(folder: &Path) -> Vec<(u64, String)> {
        let names = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let read = |name: String| (file_offset(&name).unwrap(), std::fs::read_to_string(folder.join(&name)).unwrap());
        let mut files: Vec<_> = names.map(read).collect();
        files.sort();
        files
    }

    #[test]
    fn lines_are_stamped_marked_and_cut() {
        let folder = tempfile::tempdir().unwrap();
        let (mut output, mut pipes) = output(folder.path(), 1 << 20);
        pipes[0].write_all(b"one\r\ntw").unwrap();
        output.take();
        pipes[0].write_all(b"o\n").unwrap();
        pipes[1].write_all(&[b'x'; LINE_MAX + 10]).unwrap();
        output.take();
        output.drain();
        let text = kept(folder.path()).remove(0).1;
        let lines: Vec<_> = text.lines().map(|it| it.split_once(' ').unwrap().1).collect();
        assert_eq!((lines[0], lines[1]), ("o one", "o two"));
        assert_eq!(lines[2..].iter().map(|it| it.len() - 2).sum::<usize>(), LINE_MAX + 10);
        assert!(lines[2..].iter().all(|it| it.starts_with("e x") && it.len() <= LINE_MAX + 3));
    }

    #[test]
    fn a_flood_is_told_once_a_second_with_its_sum() {
        let folder = tempfile::tempdir().unwrap();
        let (mut output, mut pipes) = output(folder.path(), 128 << 20);
        let begin = output.filled_at_ms;
        let piece = vec![b'z'; 64 << 10];
        let mut flood = |output: &mut Output, at: u64, pieces: u64| {
            for _ in 0..pieces {
                pipes[0].write_all(&piece).unwrap();
                output.take_at(begin + at);
            }
        };
        let (burst, second) = (BURST >> 16, RATE >> 16);
        flood(&mut output, 0, burst + 10);
        flood(&mut output, 1000, second + 5);
        flood(&mut output, 1500, second / 2 + 7);
        flood(&mut output, 2000, 1);
        output.drain();
        let text = kept(folder.path()).remove(0).1;
        let told: Vec<_> = text.lines().filter_map(|it| it.split_once(" p ")).map(|it| it.1).collect();
        let line = |pieces: u64| {
            format!("{} KiB of output are missing here: more than 4096 KiB per second were written", pieces * 64)
        };
        assert_eq!(told, [line(10), line(12)]);
    }

    #[test]
    fn two_files_are_kept_and_named_by_their_offset() {
        let folder = tempfile::tempdir().unwrap();
        let (mut output, mut pipes) = output(folder.path(), 128 << 10);
        for _ in 0..100 {
            pipes[0].write_all(&[&[b'y'; 4000][..], b"\n"].concat()).unwrap();
            output.take();
        }
        let files = kept(folder.path());
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|it| it.1.len() <= 64 << 10));
        assert_eq!(files[0].0 + files[0].1.len() as u64, files[1].0);
    }
}
