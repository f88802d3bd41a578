//! Files as the kubelet and a runtime write, rotate, pack and remove them.

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write as _;

/// A container's folder, and how many lines were written.
struct Written {
    folder: tempfile::TempDir,
    count: u64,
}

impl Written {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), count: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Two lines of each millisecond.
    fn write(&mut self, name: &str, lines: u64) {
        let mut file = File::options().create(true).append(true).open(self.path(name)).unwrap();
        for _ in 0..lines {
            let (second, ms) = (self.count / 2000, self.count / 2 % 1000);
            writeln!(file, "2026-01-31T09:05:{second:02}.{ms:03}Z stdout F line {}", self.count).unwrap();
            self.count += 1;
        }
    }

    fn rotate(&self, to: &str) {
        std::fs::rename(self.path("0.log"), self.path(to)).unwrap();
    }

    fn pack(&self, name: &str) {
        self.pack_beside(name);
        std::fs::remove_file(self.path(name)).unwrap();
    }

    fn pack_beside(&self, name: &str) {
        let mut packed = GzEncoder::new(File::create(self.path(&format!("{name}.gz"))).unwrap(), Compression::fast());
        packed.write_all(&std::fs::read(self.path(name)).unwrap()).unwrap();
        packed.finish().unwrap();
    }

    fn reader(&self) -> Reader {
        Reader::new(self.folder.path().to_owned(), Resume::default())
    }
}

fn numbers(lines: &[Line]) -> Vec<u64> {
    lines.iter().map(|it| it.text.strip_prefix("line ").unwrap().parse().unwrap()).collect()
}

fn all(reader: &mut Reader) -> Vec<u64> {
    numbers(&reader.read(usize::MAX).unwrap())
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..to).collect()
}

#[test]
fn names_of_files_tell_their_order() {
    let mut names = ["0.log", "1.log.20260102-000000", "0.log.20260101-000001", "1.log", "0.log.20260101-000000.gz"];
    names.sort_by_key(|it| Named::parse(it));
    assert_eq!(names, ["0.log.20260101-000000.gz", "0.log.20260101-000001", "0.log", "1.log.20260102-000000", "1.log"]);
    for other in ["a.log", "0.txt", "0.log.gz", "0.log.20260101-000000.tmp", "0.log.tmp", ".log"] {
        assert_eq!(Named::parse(other), None, "{other}");
    }
}

#[test]
fn lines_come_once_while_files_grow_are_rotated_packed_and_removed() {
    let mut written = Written::new();
    let mut reader = written.reader();
    assert_eq!(all(&mut reader), range(0, 0));
    written.write("0.log", 3);
    assert_eq!(all(&mut reader), range(0, 3));
    written.write("0.log", 3);
    written.rotate("0.log.20260101-000001");
    written.write("0.log.20260101-000001", 1); // the runtime has not heard of it yet
    assert_eq!(all(&mut reader), range(3, 7));
    written.write("0.log", 3);
    assert_eq!(all(&mut reader), range(7, 10));

    // Two rotations while nobody reads; the first file is packed.
    written.write("0.log", 2);
    written.rotate("0.log.20260101-000002");
    written.write("0.log", 2);
    written.rotate("0.log.20260101-000003");
    written.pack("0.log.20260101-000001");
    written.pack("0.log.20260101-000002");
    written.write("0.log", 2);
    assert_eq!(all(&mut reader), range(10, 16));

    // The program runs again, and the oldest file goes.
    written.write("1.log", 2);
    std::fs::remove_file(written.path("0.log.20260101-000001.gz")).unwrap();
    assert_eq!(all(&mut reader), range(16, 18));

    // The pod goes: what is open is read to its end.
    written.write("1.log", 2);
    std::fs::remove_dir_all(written.folder.path()).unwrap();
    assert_eq!(all(&mut reader), range(18, 20));
    assert_eq!(all(&mut reader), range(0, 0));
}

#[test]
fn reading_goes_on_after_every_line_that_may_be_the_last_one_kept() {
    let mut written = Written::new();
    written.write("0.log", 5);
    written.rotate("0.log.20260101-000001");
    written.pack("0.log.20260101-000001");
    written.write("0.log", 5);
    written.rotate("0.log.20260101-000002");
    written.pack_beside("0.log.20260101-000002");
    let mut whole = written.reader();
    let lines = whole.read(usize::MAX).unwrap();
    assert_eq!(numbers(&lines), range(0, 10));
    for count in 1..=lines.len() {
        let (kept, rest) = lines.split_at(count);
        let at = kept[count - 1].at;
        let texts = kept.iter().filter(|it| it.at == at).map(|it| it.text.clone()).collect();
        let mut reader = Reader::new(written.folder.path().to_owned(), Resume { at, texts });
        assert_eq!(reader.read(usize::MAX).unwrap(), rest, "after {count}");
    }
}

#[test]
fn what_went_before_it_was_read_is_said() {
    let mut written = Written::new();
    let mut reader = written.reader();
    let mut read = || -> Vec<(LogOrigin, String)> {
        let lines = reader.read(usize::MAX).unwrap();
        lines.into_iter().map(|it| (it.origin, it.text)).collect()
    };
    let line = |number| (LogOrigin::Stdout, format!("line {number}"));
    let missing = (LogOrigin::Platform, String::new());
    written.write("0.log", 2);
    assert_eq!(read(), [line(0), line(1)]);
    for name in ["0.log.20260101-000001", "0.log.20260101-000002"] {
        written.rotate(name);
        written.write("0.log", 2);
    }
    // The file that was being read went, and the one after it.
    std::fs::remove_file(written.path("0.log.20260101-000001")).unwrap();
    std::fs::remove_file(written.path("0.log.20260101-000002")).unwrap();
    assert_eq!(read(), [missing, line(4), line(5)]);
    written.write("0.log", 1);
    assert_eq!(read(), [line(6)]);
    // The same when nobody read meanwhile.
    let kept = Resume { at: Timestamp(1), texts: vec!["line -1".to_owned()] };
    let again = Reader::new(written.folder.path().to_owned(), kept).read(usize::MAX).unwrap();
    assert_eq!((again[0].origin, again.len()), (LogOrigin::Platform, 4));
}

#[test]
fn files_of_which_all_is_kept_are_not_opened() {
    let mut written = Written::new();
    written.write("0.log", 2);
    let lines = written.reader().read(usize::MAX).unwrap();
    let at = lines[1].at;
    let wrote = |name: &str, ms: u64| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
        File::options().write(true).open(written.path(name)).unwrap().set_modified(time).unwrap();
    };
    std::fs::rename(written.path("0.log"), written.path("0.log.20260101-000001")).unwrap();
    wrote("0.log.20260101-000001", at.0);
    let after = |at| Resume { at: Timestamp(at), texts: Vec::new() };
    let opened = |kept| {
        let mut reader = Reader::new(written.folder.path().to_owned(), kept);
        reader.read(usize::MAX).unwrap();
        reader.open.is_some()
    };
    assert!(opened(after(at.0)) && opened(after(at.0 + BEHIND_MS)));
    assert!(!opened(after(at.0 + BEHIND_MS + 1)));
}

#[test]
fn a_round_takes_what_it_is_told_and_a_torn_record_waits_for_its_end() {
    let mut written = Written::new();
    written.write("0.log", 1000);
    let mut reader = written.reader();
    let mut found = numbers(&reader.read(1000).unwrap());
    assert!(found.len() < 20, "{}", found.len());
    found.extend(all(&mut reader));
    assert_eq!(found, range(0, 1000));
    let mut file = File::options().append(true).open(written.path("0.log")).unwrap();
    file.write_all(b"2026-01-31T09:06:00Z stdout F line 10").unwrap();
    assert_eq!(all(&mut reader), range(0, 0));
    file.write_all(b"00\nno record\n2026-01-31T09:06:00Z stdout F line 1001\n").unwrap();
    assert_eq!(all(&mut reader), range(1000, 1002));
}

#[test]
fn links_are_not_opened() {
    let written = Written::new();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(secret.path(), written.path("0.log")).unwrap();
    assert!(written.reader().read(usize::MAX).is_err());
}
