//! Image layers: written entry by entry as a gzip-compressed tar, read back, and put into the blob store.
//!
//! The same entries in the same order give the same bytes. Everything but the calls that take `Images` is blocking:
//! call it in `spawn_blocking`. Not here: running anything.

mod folder;
mod index;
mod rewrite;

pub(crate) use folder::from_folder;
pub(crate) use index::{FileTree, Seen};
pub(crate) use rewrite::{above, rewrite};

use arco_model::artifact::{Descriptor, Digest, Layer};
use arco_store::blob::{BlobError, content_path};
use arco_store::images::{Images, LAYER_GZIP_TYPE, LAYER_ZSTD_TYPE};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// Counts and hashes what goes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Compressed = Hashing<BufWriter<tempfile::NamedTempFile>>;

/// Metadata of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since 1970.
    pub(crate) mtime: u64,
}

impl Meta {
    /// Of root, at the beginning of time.
    pub(crate) fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: 0 }
    }
}

/// Writes one layer.
pub(crate) struct LayerWriter {
    builder: tar::Builder<Hashing<GzEncoder<Compressed>>>,
}

/// A written layer that is not in a store yet.
pub(crate) struct FinishedLayer {
    pub(crate) file: tempfile::NamedTempFile,
    pub(crate) layer: Layer,
}

impl LayerWriter {
    /// A writer with its file in `folder`.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(256 << 10, tempfile::NamedTempFile::new_in(folder)?);
        let gzip = GzEncoder::new(Hashing::new(file), Compression::fast());
        Ok(Self { builder: tar::Builder::new(Hashing::new(gzip)) })
    }

    fn header(kind: tar::EntryType, meta: Meta, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode & 0o7777);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(size);
        header
    }

    /// A regular file; `path` is relative.
    pub(crate) fn file(&mut self, path: &str, meta: Meta, size: u64, content: impl Read) -> io::Result<()> {
        self.builder.append_data(&mut Self::header(tar::EntryType::Regular, meta, size), path, content)
    }

    /// A small file with mode 0644 or as given.
    pub(crate) fn text(&mut self, path: &str, mode: u32, text: &str) -> io::Result<()> {
        self.file(path, Meta::root(mode), text.len() as u64, text.as_bytes())
    }

    /// A folder.
    pub(crate) fn folder(&mut self, path: &str, meta: Meta) -> io::Result<()> {
        self.builder.append_data(&mut Self::header(tar::EntryType::Directory, meta, 0), format!("{path}/"), io::empty())
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, meta: Meta, target: &Path) -> io::Result<()> {
        self.builder.append_link(&mut Self::header(tar::EntryType::Symlink, meta, 0), path, target)
    }

    /// A second name of a file of this layer.
    pub(crate) fn hard_link(&mut self, path: &str, meta: Meta, target: &str) -> io::Result<()> {
        self.builder.append_link(&mut Self::header(tar::EntryType::Link, meta, 0), path, target)
    }

    /// Ends the layer.
    pub(crate) fn finish(self) -> io::Result<FinishedLayer> {
        let tar = self.builder.into_inner()?;
        let diff_id = Digest::from_sha256(&tar.hash.finalize().into());
        let compressed = tar.inner.finish()?;
        let digest = Digest::from_sha256(&compressed.hash.finalize().into());
        let file = compressed.inner.into_inner().map_err(|it| it.into_error())?;
        let blob = Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest, size: compressed.bytes };
        Ok(FinishedLayer { file, layer: Layer { blob, diff_id } })
    }
}

/// The tar inside of a stored layer.
pub(crate) fn read_tar(file: File, media_type: &str) -> io::Result<Box<dyn Read + Send>> {
    let buffered = BufReader::with_capacity(256 << 10, file);
    Ok(match media_type {
        LAYER_ZSTD_TYPE => Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?),
        it if it.ends_with("gzip") => Box::new(MultiGzDecoder::new(buffered)),
        _ => Box::new(buffered),
    })
}

/// Puts a finished layer into the blob store, if it is not there yet.
pub(crate) async fn store(images: &Images, finished: FinishedLayer) -> Result<Layer, BlobError> {
    let digest = &finished.layer.blob.digest;
    if images.claim(digest).await?.is_none() {
        let reopened = |it| BlobError::Io { step: "reopen", path: content_path(digest), source: it };
        put_file(images, digest, finished.file.reopen().map_err(reopened)?).await?;
    }
    Ok(finished.layer)
}

/// Copies a file that has this digest into the blob store.
pub(crate) async fn put_file(images: &Images, digest: &Digest, file: File) -> Result<u64, BlobError> {
    let stream = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10);
    images.put_content(digest, Box::pin(stream)).await
}

/// A blob as a file of this machine; where the store keeps it elsewhere, as a copy in `folder`.
pub(crate) async fn open_blob(images: &Images, digest: &Digest, folder: &Path) -> Result<File, BlobError> {
    let path = content_path(digest);
    let io = |step| {
        let path = path.clone();
        move |source| BlobError::Io { step, path, source }
    };
    if let Some(local) = images.blobs().local_file(&path) {
        return match File::open(local) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BlobError::NotFound(path)),
            other => other.map_err(io("open")),
        };
    }
    use futures_util::StreamExt as _;
    use std::io::Seek as _;
    let mut stream = images.blobs().get(&path, 0).await?;
    let mut file = tempfile::tempfile_in(folder).map_err(io("copy"))?;
    while let Some(piece) = stream.next().await {
        file.write_all(&piece.map_err(io("read"))?).map_err(io("copy"))?;
    }
    file.rewind().map_err(io("copy"))?;
    Ok(file)
}
