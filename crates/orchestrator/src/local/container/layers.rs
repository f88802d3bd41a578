//! Unpacked layers, one folder per `diff_id`, shared by all servers of this machine.
//!
//! What must hold: a folder that is there is complete and its tar had that digest; two processes never unpack the same
//! layer at once. The folders lie below a directory that only root can enter, because of set-user-id programs in them.

use super::state::Inner;
use super::unpack;
use crate::Error;
use arco_model::artifact::{Digest, Layer};
use arco_store::blob::{BlobError, content_path};
use futures_util::StreamExt as _;
use sha2::Digest as _;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt as _;

/// The folders of `layers`, unpacking what is missing.
pub(super) async fn ensure(inner: &Inner, layers: &[Layer]) -> Result<Vec<PathBuf>, Error> {
    let mut folders = Vec::with_capacity(layers.len());
    for layer in layers {
        let folder = inner.config.cache_dir.join("layers").join(layer.diff_id.hex());
        if !folder.exists() {
            fetch(inner, layer, &folder).await?;
        }
        folders.push(folder);
    }
    Ok(folders)
}

async fn fetch(inner: &Inner, layer: &Layer, folder: &Path) -> Result<(), Error> {
    let blobs = inner.images.blobs();
    let path = content_path(&layer.blob.digest);
    let what = format!("unpack layer {}", layer.diff_id);
    let local = match blobs.local_file(&path) {
        Some(file) => file,
        None => {
            let copy = folder.with_extension(format!("blob.{:x}", arco_store::clock::random()));
            let copied = copy_blob(inner, &path, &copy).await;
            if let Err(error) = copied {
                let _ = tokio::fs::remove_file(&copy).await;
                return Err(Error::failed(what, error));
            }
            copy
        }
    };
    let copied = blobs.local_file(&path).is_none();
    let (diff_id, folder, file) = (layer.diff_id.clone(), folder.to_owned(), local.clone());
    let done = tokio::task::spawn_blocking(move || unpack_locked(&file, &diff_id, &folder)).await;
    if copied {
        let _ = tokio::fs::remove_file(&local).await;
    }
    match done {
        Ok(result) => result.map_err(|error| Error::failed(what, error)),
        Err(error) => Err(Error::failed(what, error)),
    }
}

async fn copy_blob(inner: &Inner, path: &str, copy: &Path) -> Result<(), BlobError> {
    let io = |source| BlobError::Io { step: "copy", path: path.to_owned(), source };
    let mut stream = inner.images.blobs().get(path, 0).await?;
    let mut file = tokio::fs::File::create(copy).await.map_err(io)?;
    while let Some(piece) = stream.next().await {
        file.write_all(&piece.map_err(io)?).await.map_err(io)?;
    }
    file.flush().await.map_err(io)
}

fn unpack_locked(blob: &Path, diff_id: &Digest, folder: &Path) -> std::io::Result<()> {
    let lock = File::create(folder.with_extension("lock"))?;
    lock.lock()?;
    if folder.exists() {
        return Ok(());
    }
    let fresh = folder.with_extension("new");
    let _ = std::fs::remove_dir_all(&fresh);
    std::fs::create_dir(&fresh)?;
    let result = unpack_into(blob, diff_id, &fresh).and_then(|()| std::fs::rename(&fresh, folder));
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&fresh);
    }
    // The lock file stays: taking it away would let two processes hold different locks of one name.
    result
}

fn unpack_into(blob: &Path, diff_id: &Digest, folder: &Path) -> std::io::Result<()> {
    let mut reader = Hashing { inner: decompressed(blob)?, hash: sha2::Sha256::new() };
    unpack::unpack(&mut reader, folder)?;
    // Padding behind the archive's end belongs to the digest as well.
    std::io::copy(&mut reader, &mut std::io::sink())?;
    let found = Digest::from_sha256(&reader.hash.finalize().into());
    if found == *diff_id { Ok(()) } else { Err(std::io::Error::other(format!("its content has the digest {found}"))) }
}

/// The tar in a blob, by its first bytes: gzip, zstd or plain.
fn decompressed(blob: &Path) -> std::io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(256 << 10, File::open(blob)?);
    let magic = std::io::BufRead::fill_buf(&mut file)?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

struct Hashing<R> {
    inner: R,
    hash: sha2::Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }
}
