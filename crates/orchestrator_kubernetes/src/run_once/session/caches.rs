//! Caches of package clients around a one-shot: folders of its pod, kept as archives in the blob store.
//!
//! What must hold: an archive is of one component, only pods of that component read it, and this process hands its bytes on
//! without unpacking them; what a program that failed wrote is dropped; a cache is a help, so that it cannot be restored or
//! kept is told in the output and fails nothing. Not here: dropping the archives of builds that are long past (the
//! builder) and of deleted components (the server).

use super::{OURS, Pod, SAID_MAX};
use arco_model::plan::{CacheFolder, OneShot};
use arco_model::time::Timestamp;
use arco_orchestrator::{Error, ExecSession, OutputLine};
use arco_store::blob::{BUILD_FOLDERS, BlobError, BlobStat, ByteStream, builds_path};
use arco_store::clock;
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::io::StreamReader;
use zstd::stream::{read, write};

/// Bytes that are packed or unpacked at a time.
const PIECE: usize = 256 << 10;
/// Age from which an archive is written again although nothing in it changed, in ms: else one that is used would pass for
/// one that is not.
const OLD_MS: u64 = 7 * 24 * 3_600_000;
/// Left of the time of a one-shot when its caches are kept no further: they must not cost its result.
const SPARE: Duration = Duration::from_secs(5);
/// Most characters that are told of what a program of the pod says.
const TOLD: usize = 200;

/// A cache as the program finds it.
pub(super) struct Restored<'a> {
    folder: &'a CacheFolder,
    /// Its archive is old.
    old: bool,
}

impl Pod<'_> {
    /// Makes the folders of the caches, with what they held when the last good program ended.
    pub(super) async fn restore<'a>(
        &self,
        work: &'a OneShot,
        output: &mpsc::Sender<OutputLine>,
    ) -> Result<Vec<Restored<'a>>, Error> {
        let mut restored = Vec::with_capacity(work.caches.len());
        let mut bytes = 0;
        for folder in &work.caches {
            self.done("make a folder", &["mkdir", "-p", "-m", "0777", "--", folder.path.as_str()], Vec::new()).await?;
            let mut old = false;
            let unpacked = if work.cache_mb > 0 { self.unpack(work, folder).await } else { Ok(None) };
            match unpacked {
                Ok(None) => {}
                Ok(Some(found)) => {
                    bytes += found.size;
                    old = is_old(&found, clock::now());
                }
                Err(why) => {
                    tracing::warn!(component = %work.component, cache = folder.name, why, "a cache is not restored");
                    say(output, format!("cache: `{}` is not restored and begins empty: {why}", folder.name)).await;
                    let empty = ["find", folder.path.as_str(), "-xdev", "-mindepth", "1", "-delete"];
                    self.done("empty a folder", &empty, Vec::new()).await?;
                }
            }
            restored.push(Restored { folder, old });
        }
        if bytes > 0 {
            say(output, format!("cache: {} restored", size(bytes))).await;
        }
        Ok(restored)
    }

    /// Keeps what changed in the caches for the next one-shot of the component, well before the deadline of this one.
    pub(super) async fn keep(
        &self,
        work: &OneShot,
        restored: &[Restored<'_>],
        deadline: Instant,
        output: &mpsc::Sender<OutputLine>,
    ) {
        let end = deadline.checked_sub(SPARE).unwrap_or(deadline);
        let mut bytes = 0;
        for Restored { folder, old } in restored.iter().filter(|_| work.cache_mb > 0) {
            let packed = tokio::time::timeout_at(end, self.pack(work, folder, *old)).await;
            match packed.unwrap_or_else(|_| Err("the time of the build is over".to_owned())) {
                Ok(kept) => bytes += kept.unwrap_or_default(),
                Err(why) => {
                    tracing::warn!(component = %work.component, cache = folder.name, why, "a cache is not kept");
                    say(output, format!("cache: `{}` is not kept: {why}", folder.name)).await;
                }
            }
        }
        if bytes == 0 {
            return;
        }
        say(output, format!("cache: {} kept for the next build", size(bytes))).await;
        if let Err(error) = self.make_room(work, output).await {
            tracing::warn!(component = %work.component, error = words(&error), "caches over `builder.cache_mb` stay");
        }
    }

    /// Unpacks the archive of a cache in the pod, if there is one.
    async fn unpack(&self, work: &OneShot, folder: &CacheFolder) -> Result<Option<BlobStat>, String> {
        let (blobs, path) = (self.inner.images.blobs(), archive(work, folder));
        let Some(found) = blobs.stat(&path).await.map_err(|it| words(&it))? else { return Ok(None) };
        let content = match blobs.get(&path, 0).await {
            Err(BlobError::NotFound(_)) => return Ok(None),
            other => other.map_err(|it| words(&it))?,
        };
        let argv = ["tar", "-x", "-p", "-f", "-", "--numeric-owner", "-C", folder.path.as_str()];
        let session = self.start(argv.map(str::to_owned).to_vec()).await.map_err(|it| it.to_string())?;
        let ExecSession { stdin, stdout, stderr, exit, .. } = session;
        drop(stdout);
        // What an archive holds lay on the disk of a pod like this one.
        let (fed, said) = tokio::join!(unpacked(content, stdin, disk(work)), beginning(stderr));
        match (fed, exit.await.unwrap_or(255)) {
            (Ok(()), 0) => Ok(Some(found)),
            (Ok(()), status) => Err(format!("`tar` ended with {status}: {said}")),
            (Err(error), _) => Err(format!("{error}: {said}")),
        }
    }

    /// Keeps a cache that changed; returns how many bytes it takes.
    async fn pack(&self, work: &OneShot, folder: &CacheFolder, old: bool) -> Result<Option<u64>, String> {
        let mark = format!("{OURS}/mark");
        let changed = ["find", folder.path.as_str(), "-xdev", "-cnewer", mark.as_str(), "-print", "-quit"];
        let changed = self.done("look for changes", &changed, Vec::new()).await.map_err(|it| it.to_string())?;
        if changed.is_empty() && !old {
            return Ok(None);
        }
        let argv = ["tar", "-c", "-f", "-", "--numeric-owner", "-C", folder.path.as_str(), "."];
        let session = self.start(argv.map(str::to_owned).to_vec()).await.map_err(|it| it.to_string())?;
        let ExecSession { stdin, stdout, stderr, exit, .. } = session;
        drop(stdin);
        let (blobs, path) = (self.inner.images.blobs(), archive(work, folder));
        let content = packed(stdout, exit, disk(work), most(work)).map_err(|it| it.to_string())?;
        match tokio::join!(blobs.put(&path, content), beginning(stderr)) {
            (Ok(size), _) => Ok(Some(size)),
            (Err(BlobError::Io { source, .. }), _) if source.kind() == io::ErrorKind::FileTooLarge => {
                // One that only ever grows would otherwise stay for good as it was before it grew too large.
                blobs.delete(&path).await.map_err(|it| words(&it))?;
                Err(format!(
                    "it takes more than the {} MB of `builder.cache_mb`; the next build begins without it",
                    work.cache_mb
                ))
            }
            (Err(error), said) => Err(format!("{}: {said}", words(&error))),
        }
    }

    /// Drops other caches of the component, the oldest first, until all of them fit.
    async fn make_room(&self, work: &OneShot, output: &mpsc::Sender<OutputLine>) -> Result<(), BlobError> {
        let blobs = self.inner.images.blobs();
        let all = blobs.list(&format!("{}{BUILD_FOLDERS}", builds_path(&work.component))).await?;
        for dropped in over(all, most(work)) {
            blobs.delete(&dropped.path).await?;
            let name = dropped.path.rsplit('/').next().unwrap_or_default().trim_end_matches(ENDING);
            let limit = work.cache_mb;
            say(
                output,
                format!("cache: `{name}` is dropped: all together take more than the {limit} MB of `builder.cache_mb`"),
            )
            .await;
        }
        Ok(())
    }
}

/// How names of archives end.
const ENDING: &str = ".tar.zst";

/// Where the archive of a cache is.
fn archive(work: &OneShot, folder: &CacheFolder) -> String {
    format!("{}{BUILD_FOLDERS}{}{ENDING}", builds_path(&work.component), folder.name)
}

/// Most bytes of an archive, not compressed: the pod has no more disk.
fn disk(work: &OneShot) -> u64 {
    u64::from(work.resources.disk_mb) << 20
}

/// Most bytes of all archives of the component.
fn most(work: &OneShot) -> u64 {
    u64::from(work.cache_mb) << 20
}

fn is_old(found: &BlobStat, now: Timestamp) -> bool {
    now.since_ms(found.modified) > OLD_MS
}

/// What is too much, the newest being kept.
fn over(mut all: Vec<BlobStat>, most: u64) -> Vec<BlobStat> {
    all.sort_by_key(|it| std::cmp::Reverse(it.modified));
    let mut taken = 0;
    all.retain(|it| {
        taken += it.size;
        taken > most
    });
    all
}

async fn say(output: &mpsc::Sender<OutputLine>, text: String) {
    let _ = output.send(OutputLine { stderr: false, text }).await; // nobody listens any more
}

/// An amount for people.
fn size(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{} kB", bytes.div_ceil(1 << 10)) } else { format!("{} MB", bytes >> 20) }
}

fn words(error: &BlobError) -> String {
    match error {
        BlobError::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

/// The first line of what a program says; all of it is read, so that nothing waits for us.
async fn beginning(from: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let mut begin = from.take(SAID_MAX);
    let _ = begin.read_to_end(&mut bytes).await; // how the program ended is told by its exit status
    let _ = tokio::io::copy(&mut begin.into_inner(), &mut tokio::io::sink()).await;
    let text = String::from_utf8_lossy(&bytes);
    text.trim().lines().next().unwrap_or_default().chars().take(TOLD).collect()
}

/// What is left of a bound.
fn within(left: u64, used: usize) -> io::Result<u64> {
    left.checked_sub(used as u64).ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "it is too large"))
}

/// An archive while it is compressed.
struct Packing {
    from: Box<dyn AsyncRead + Send + Unpin>,
    ended: oneshot::Receiver<i32>,
    encoder: write::Encoder<'static, Vec<u8>>,
    /// Bytes that may still be read, and that may still be written.
    left: (u64, u64),
}

/// What a program writes, compressed. It ends with an error, so that nothing of it is kept, when the program does not end
/// well, and when more than `plain` bytes are read or more than `stored` written (`FileTooLarge`).
fn packed(
    from: Box<dyn AsyncRead + Send + Unpin>,
    ended: oneshot::Receiver<i32>,
    plain: u64,
    stored: u64,
) -> io::Result<ByteStream> {
    let mut encoder = write::Encoder::new(Vec::new(), 1)?;
    encoder.include_checksum(true)?;
    let begin = Packing { from, ended, encoder, left: (plain, stored) };
    Ok(Box::pin(futures_util::stream::try_unfold(Some(begin), |it| async move {
        match it {
            Some(it) => it.next().await,
            None => Ok(None),
        }
    })))
}

impl Packing {
    /// The next piece, and what comes after it.
    async fn next(mut self) -> io::Result<Option<(Bytes, Option<Self>)>> {
        let mut piece = vec![0; PIECE];
        loop {
            let count = self.from.read(&mut piece).await?;
            if count == 0 {
                let Self { ended, encoder, left, .. } = self;
                match ended.await {
                    Ok(0) => {}
                    Ok(status) => return Err(io::Error::other(format!("`tar` ended with {status}"))),
                    Err(_) => return Err(io::Error::other("the connection to the pod broke")),
                }
                let last = encoder.finish()?;
                within(left.1, last.len())?;
                return Ok(Some((Bytes::from(last), None)));
            }
            self.left.0 = within(self.left.0, count)?;
            self.encoder.write_all(&piece[..count])?;
            let ready = std::mem::take(self.encoder.get_mut());
            if !ready.is_empty() {
                self.left.1 = within(self.left.1, ready.len())?;
                return Ok(Some((Bytes::from(ready), Some(self))));
            }
        }
    }
}

/// Something asynchronous for code that blocks.
struct Blocking<T> {
    inner: T,
    runtime: Handle,
}

impl<T: AsyncRead + Unpin> Read for Blocking<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(self.inner.read(into))
    }
}

/// Hands on what an archive holds, at most `most` bytes of it, in bounded memory whatever it says of itself.
async fn unpacked(from: ByteStream, mut to: Box<dyn AsyncWrite + Send + Unpin>, most: u64) -> io::Result<()> {
    let runtime = Handle::current();
    let work = move || -> io::Result<()> {
        let from = Blocking { inner: StreamReader::new(from), runtime: runtime.clone() };
        let mut plain = read::Decoder::new(from)?;
        let (mut piece, mut left) = (vec![0; PIECE], most);
        loop {
            let count = plain.read(&mut piece)?;
            if count == 0 {
                return runtime.block_on(to.shutdown());
            }
            left = within(left, count)?;
            runtime.block_on(to.write_all(&piece[..count]))?;
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
