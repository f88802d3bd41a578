//! Bodies that wait until they are wanted: in memory while they are small, then in a file that has no name.
//!
//! What must hold: a body takes at most [`MEMORY`] and one piece of memory; the files of all bodies together take at most
//! what the limits say; whatever ends this process leaves no file behind. Files are written and read on threads that may
//! wait, never on those that serve.
//!
//! Not here: which bodies wait (`http.rs`), and what a client is told when they cannot (`pages`).

use super::room;
use bytes::{Bytes, BytesMut};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Most bytes of a body in memory, but for the piece that comes last.
pub(super) const MEMORY: usize = 128 * 1024;
/// Most bytes that are read from a file at once.
const PIECE: u64 = 64 * 1024;
/// Where files are unless a folder is named: on a disk, by the file hierarchy standard.
const FOLDER: &str = "/var/tmp";
/// How often it is said that bodies cannot wait.
const SAID: Duration = Duration::from_secs(30);

/// The folder for all bodies, and what they take of it.
#[derive(Debug)]
pub(super) struct Place {
    folder: OnceLock<PathBuf>,
    most: AtomicU64,
    taken: AtomicU64,
    born: Instant,
    said_until: AtomicU64,
}

/// Why a body cannot wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SpoolError {
    /// The disk is full, or bodies take all that they may.
    Full,
    /// There is no descriptor for its file.
    NoRoom,
    /// The file cannot be made, written or read.
    Broken,
}

impl Place {
    /// Files together take at most `most` bytes.
    pub(super) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            folder: OnceLock::new(),
            most: AtomicU64::new(most),
            taken: AtomicU64::new(0),
            born: Instant::now(),
            said_until: AtomicU64::new(0),
        })
    }

    /// Files are in `folder`; only the first one that is named counts.
    pub(super) fn set_folder(&self, folder: &Path) {
        // Later ones would split what is written from what is counted.
        let _ = self.folder.set(folder.to_owned());
    }

    /// From now on files take at most `most` bytes together.
    pub(super) fn set_most(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    fn folder(&self) -> &Path {
        self.folder.get().map_or(Path::new(FOLDER), |it| it)
    }

    /// Takes `bytes` of the `share` (of 2) that its kind of body may have.
    fn take(&self, bytes: u64, share: u64) -> Result<(), SpoolError> {
        let most = self.most.load(Ordering::Relaxed) / 2 * share;
        let fits = |taken: u64| taken.checked_add(bytes).filter(|it| *it <= most);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(taken) => {
                self.say(&format_args!("bodies on disk take {taken} of {most} bytes that they may"));
                Err(SpoolError::Full)
            }
        }
    }

    fn give(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn failed(&self, step: &str, error: &io::Error) -> SpoolError {
        self.say(&format_args!("cannot {step} a file in {}: {error}", self.folder().display()));
        if is_full(error) {
            SpoolError::Full
        } else if room::is_used_up(error) {
            SpoolError::NoRoom
        } else {
            SpoolError::Broken
        }
    }

    /// Once in a while: one full disk is met by every request.
    fn say(&self, why: &std::fmt::Arguments<'_>) {
        if self.is_due(self.born.elapsed().as_millis() as u64) {
            tracing::warn!(
                "bodies cannot be buffered: {why}; a request is refused with 507 or 503 then, a response goes on unbuffered; \
                 make room on the disk, raise `max_buffered_bytes`, or take `buffer` off large routes"
            );
        }
    }

    /// Whether it is to be said at `now`, in milliseconds; says so to one only.
    fn is_due(&self, now: u64) -> bool {
        let (until, next) = (self.said_until.load(Ordering::Relaxed), now + SAID.as_millis() as u64);
        now >= until && self.said_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Fails when files cannot be made in the folder; that a disk is full just now is not its fault.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.open() {
            Err(error) if is_full(&error) || room::is_used_up(&error) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// A file that is gone with its last descriptor.
    fn open(&self) -> io::Result<File> {
        let (mode, flags) = (Mode::RUSR | Mode::WUSR, OFlags::RDWR | OFlags::CLOEXEC);
        match rustix::fs::open(self.folder(), flags | OFlags::TMPFILE, mode) {
            Ok(file) => Ok(file.into()),
            // Not every file system knows files without a name.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
                let mut random = [0u8; 8];
                aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no randomness"))?;
                let path = self.folder().join(format!(".arco-body-{:016x}", u64::from_le_bytes(random)));
                let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
                std::fs::remove_file(&path)?;
                Ok(file.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What a write takes of the place; given back unless a file has it: whoever waits for the write may leave meanwhile.
struct Taken {
    place: Arc<Place>,
    bytes: u64,
}

impl Taken {
    fn new(place: &Arc<Place>, bytes: u64, share: u64) -> Result<Self, SpoolError> {
        place.take(bytes, share)?;
        Ok(Self { place: Arc::clone(place), bytes })
    }

    /// From now on `stored` gives it back.
    fn pass_to(mut self, stored: &Stored) {
        stored.bytes.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.place.give(self.bytes);
    }
}

/// A file and what it takes; gives it back when nobody reads it any more.
#[derive(Debug)]
struct Stored {
    file: File,
    place: Arc<Place>,
    bytes: AtomicU64,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.place.give(*self.bytes.get_mut());
    }
}

impl Stored {
    async fn read(self: Arc<Self>, at: u64, end: u64) -> Result<Bytes, SpoolError> {
        let place = Arc::clone(&self.place);
        let length = (end - at).min(PIECE) as usize;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0u8; length];
            self.file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
        });
        let read = read.await.unwrap_or_else(|it| Err(io::Error::other(it)));
        read.map_err(|it| place.failed("read", &it))
    }
}

/// A body that is being written, and perhaps read at the same time, first in, first out.
#[derive(Debug)]
pub(super) struct Spool {
    place: Arc<Place>,
    /// Of 2: how much of the place it may have.
    share: u64,
    stored: Option<Arc<Stored>>,
    written: u64,
    read: u64,
    /// What came after everything that is in the file.
    tail: BytesMut,
}

impl Spool {
    /// For a request: it may take all of the place.
    pub(super) fn of_request(place: &Arc<Place>) -> Self {
        Self::new(place, 2)
    }

    /// For a response: slow clients leave half of the place to requests.
    pub(super) fn of_response(place: &Arc<Place>) -> Self {
        Self::new(place, 1)
    }

    fn new(place: &Arc<Place>, share: u64) -> Self {
        Self { place: Arc::clone(place), share, stored: None, written: 0, read: 0, tail: BytesMut::new() }
    }

    /// Whether all that was pushed was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.tail.is_empty() && self.read == self.written
    }

    /// Adds a piece. After an error it is there nevertheless; nothing more may be pushed until all was taken.
    pub(super) async fn push(&mut self, piece: &[u8]) -> Result<(), SpoolError> {
        self.tail.extend_from_slice(piece);
        if self.tail.len() <= MEMORY { Ok(()) } else { self.store().await }
    }

    async fn store(&mut self) -> Result<(), SpoolError> {
        let length = self.tail.len() as u64;
        let taken = Taken::new(&self.place, length, self.share)?;
        let (stored, place) = (self.stored.clone(), Arc::clone(&self.place));
        let (bytes, at) = (std::mem::take(&mut self.tail), self.written);
        let writing = tokio::task::spawn_blocking(move || {
            let outcome = stored.map_or_else(
                || {
                    let opened = place.open().map_err(|it| ("make", it));
                    opened.map(|file| Arc::new(Stored { file, place: Arc::clone(&place), bytes: AtomicU64::new(0) }))
                },
                Ok,
            );
            let outcome = outcome.and_then(|it| match it.file.write_all_at(&bytes, at) {
                Ok(()) => {
                    taken.pass_to(&it);
                    Ok(it)
                }
                Err(error) => Err(("write", error)),
            });
            (outcome, bytes)
        });
        let (outcome, mut bytes) = writing.await.unwrap_or_else(|it| {
            // Only when the process ends: nobody reads on.
            (Err(("write", io::Error::other(it))), BytesMut::new())
        });
        match outcome {
            Ok(stored) => {
                self.stored = Some(stored);
                self.written += length;
                bytes.clear();
                self.tail = bytes;
                Ok(())
            }
            Err((step, error)) => {
                self.tail = bytes;
                Err(self.place.failed(step, &error))
            }
        }
    }

    /// The next piece; `None` when there is none now. When all is taken the file is given back.
    pub(super) async fn take(&mut self) -> Result<Option<Bytes>, SpoolError> {
        if let Some(stored) = self.stored.as_ref().filter(|_| self.read < self.written) {
            let piece = Arc::clone(stored).read(self.read, self.written).await?;
            self.read += piece.len() as u64;
            return Ok(Some(piece));
        }
        (self.stored, self.written, self.read) = (None, 0, 0);
        Ok((!self.tail.is_empty()).then(|| self.tail.split().freeze()))
    }

    /// All of it, to be read as often as is needed.
    pub(super) fn whole(self) -> Arc<Held> {
        Arc::new(Held { stored: self.stored, written: self.written, tail: self.tail.freeze() })
    }
}

/// A whole body that waits.
#[derive(Debug)]
pub(super) struct Held {
    stored: Option<Arc<Stored>>,
    written: u64,
    tail: Bytes,
}

impl Held {
    /// Its length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.written + self.tail.len() as u64
    }

    /// What begins at `at`, a part of it; empty at the end.
    pub(super) async fn read(self: Arc<Self>, at: u64) -> Result<Bytes, SpoolError> {
        match &self.stored {
            Some(stored) if at < self.written => Arc::clone(stored).read(at, self.written).await,
            _ => Ok(self.tail.slice((at - self.written) as usize..)),
        }
    }
}

/// Whether there is no place for more bytes.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn place(most: u64) -> (Arc<Place>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(most);
        place.set_folder(folder.path());
        (place, folder)
    }

    fn pieces() -> impl Iterator<Item = Vec<u8>> {
        (0..100u32).map(|it| it.to_le_bytes().repeat(1000 + it as usize))
    }

    #[tokio::test]
    async fn a_whole_body_comes_back_as_often_as_it_is_read() {
        let (place, folder) = place(1 << 20);
        let all: Vec<u8> = pieces().flatten().collect();
        let mut spool = Spool::of_request(&place);
        for piece in pieces() {
            spool.push(&piece).await.unwrap();
            assert!(spool.tail.len() <= MEMORY, "the rest is in the file");
        }
        let held = spool.whole();
        assert_eq!(held.length(), all.len() as u64);
        assert!(place.taken.load(Ordering::Relaxed) > 0 && std::fs::read_dir(folder.path()).unwrap().count() == 0);
        for _ in 0..2 {
            let mut seen = Vec::new();
            loop {
                let piece = Arc::clone(&held).read(seen.len() as u64).await.unwrap();
                if piece.is_empty() {
                    break;
                }
                seen.extend_from_slice(&piece);
            }
            assert!(seen == all);
        }
        drop(held);
        assert_eq!(place.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_is_read_meanwhile_is_given_back() {
        let (place, _folder) = place(1 << 20);
        let mut spool = Spool::of_response(&place);
        let (mut seen, mut most) = (Vec::new(), 0);
        for (number, piece) in pieces().enumerate() {
            spool.push(&piece).await.unwrap();
            most = most.max(place.taken.load(Ordering::Relaxed));
            // Three come, then all is taken.
            while number % 50 == 49 && !spool.is_empty() {
                seen.extend_from_slice(&spool.take().await.unwrap().unwrap());
            }
        }
        assert!(seen == pieces().flatten().collect::<Vec<u8>>() && spool.take().await == Ok(None));
        assert!(most > 0 && most <= 512 * 1024, "{most}");
        assert_eq!(place.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_has_no_place_is_not_lost() {
        let (place, _folder) = place(4 * MEMORY as u64);
        let big = vec![7u8; MEMORY + 1];
        let mut response = Spool::of_response(&place);
        response.push(&big).await.unwrap();
        assert_eq!(response.push(&big).await, Err(SpoolError::Full), "the other half is for requests");
        let mut request = Spool::of_request(&place);
        request.push(&big).await.unwrap();
        place.set_most(0);
        assert_eq!(request.push(&big).await, Err(SpoolError::Full));
        let mut seen = 0;
        while let Some(piece) = response.take().await.unwrap() {
            assert!(piece.iter().all(|it| *it == 7));
            seen += piece.len();
        }
        assert_eq!(seen, 2 * big.len());
    }

    #[test]
    fn what_is_given_up_while_it_is_written_is_given_back() {
        // One thread that may wait: what is on it is done in order.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (place, _folder) = place(64 << 20);
            let taken = || place.taken.load(Ordering::Relaxed);
            let mut spool = Spool::of_request(&place);
            // The first write makes the file, the second one finds it.
            for already in [0, MEMORY as u64 + 1] {
                let (go, wait) = std::sync::mpsc::channel::<()>();
                let busy = tokio::task::spawn_blocking(move || wait.recv().is_ok());
                assert_eq!(spool.push(&[1; MEMORY + 1]).now_or_never(), None, "it waits for its turn");
                assert_eq!(taken(), already + MEMORY as u64 + 1);
                spool = Spool::of_request(&place);
                drop(go);
                busy.await.unwrap();
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                assert_eq!(taken(), 0);
                spool.push(&[1; MEMORY + 1]).await.unwrap();
            }
        });
    }

    #[test]
    fn it_is_said_again_after_a_while() {
        let place = Place::new(0);
        let due = [0, 10_000, 29_999, 30_000, 40_000].map(|it| place.is_due(it));
        assert_eq!(due, [true, false, false, true, false], "under load, too");
    }

    #[test]
    fn a_folder_without_files_is_told() {
        let (found, folder) = place(u64::MAX);
        assert!(found.check().is_ok() && std::fs::read_dir(folder.path()).unwrap().count() == 0);
        for nowhere in [folder.path().join("nowhere"), "/proc/self".into()] {
            let place = Place::new(u64::MAX);
            place.set_folder(&nowhere);
            assert!(place.check().is_err(), "{}", nowhere.display());
        }
    }

    #[tokio::test]
    async fn a_disk_that_takes_no_more_is_full() {
        let (place, _folder) = place(u64::MAX);
        let mut spool = Spool::of_request(&place);
        let file = File::options().read(true).write(true).open("/dev/full").unwrap();
        spool.stored = Some(Arc::new(Stored { file, place: Arc::clone(&place), bytes: AtomicU64::new(0) }));
        assert_eq!(spool.push(&[1; MEMORY + 1]).await, Err(SpoolError::Full));
        assert_eq!((spool.tail.len(), place.taken.load(Ordering::Relaxed)), (MEMORY + 1, 0));
        let nowhere = Place::new(u64::MAX);
        nowhere.set_folder(Path::new("/proc/self"));
        assert_eq!(Spool::of_request(&nowhere).push(&[1; MEMORY + 1]).await, Err(SpoolError::Broken));
    }
}
