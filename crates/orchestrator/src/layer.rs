//! Layers of images as drivers write them: a tar, compressed by zstd, kept once in the blob store.
//!
//! What must hold: the same entries in the same order give the same bytes; a digest is that of what was really written.
//! Which entries a layer has is the driver's business.

use arco_model::artifact::{Descriptor, Digest, Layer};
use arco_store::blob::{BlobError, content_path};
use arco_store::images::{Images, LAYER_ZSTD_TYPE};
use sha2::Digest as _;
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;
use tokio_util::io::ReaderStream;

/// Bytes that are read and written at a time.
const PIECE: usize = 256 << 10;

struct Hashing<W> {
    inner: W,
    hash: sha2::Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: sha2::Sha256::new(), size: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

/// Where the tar of a layer goes.
pub struct LayerSink(Hashing<zstd::stream::write::Encoder<'static, Hashing<BufWriter<File>>>>);

impl Write for LayerSink {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

/// Writes a layer to a file; `fill` puts its entries into the tar. Blocking.
pub fn pack(file: &Path, fill: impl FnOnce(&mut tar::Builder<LayerSink>) -> Result<()>) -> Result<Layer> {
    let stored = Hashing::new(BufWriter::with_capacity(PIECE, File::create(file)?));
    let mut encoder = zstd::stream::write::Encoder::new(stored, 1)?;
    encoder.include_checksum(false)?;
    let mut builder = tar::Builder::new(LayerSink(Hashing::new(encoder)));
    fill(&mut builder)?;
    let LayerSink(tar) = builder.into_inner()?;
    let diff_id = Digest::from_sha256(&tar.hash.finalize().into());
    let mut stored = tar.inner.finish()?;
    stored.flush()?;
    let size = stored.size;
    let digest = Digest::from_sha256(&stored.hash.finalize().into());
    Ok(Layer { blob: Descriptor { media_type: LAYER_ZSTD_TYPE.to_owned(), digest, size }, diff_id })
}

/// Puts a packed layer into the blob store, unless it is there.
pub async fn keep(images: &Images, file: &Path, layer: &Layer) -> std::result::Result<(), BlobError> {
    let digest = &layer.blob.digest;
    if images.claim(digest).await?.is_some() {
        return Ok(());
    }
    let opened = tokio::fs::File::open(file).await;
    let opened = opened.map_err(|source| BlobError::Io { step: "open", path: content_path(digest), source })?;
    images.put_content(digest, Box::pin(ReaderStream::with_capacity(opened, PIECE))).await.map(drop)
}
