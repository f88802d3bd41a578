//! Blobs as files below a folder.

use super::{BlobError, BlobStat, Blobs, ByteStream};
use arco_model::time::Timestamp;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

/// Blobs as files below a folder. Unfinished writes lie in `<folder>/.partial` and are removed when it is opened.
pub struct DiskBlobs {
    root: PathBuf,
}

impl DiskBlobs {
    /// Opens or makes the folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, BlobError> {
        let root = root.into();
        let partial = root.join(".partial");
        let io = |source| BlobError::Io { step: "open the folder of", path: root.display().to_string(), source };
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(io)?;
        }
        std::fs::create_dir_all(&partial).map_err(io)?;
        Ok(Self { root })
    }

    fn file(&self, path: &str) -> Result<PathBuf, BlobError> {
        super::check_path(path)?;
        Ok(self.root.join(path))
    }
}

fn io(step: &'static str, path: &str, source: std::io::Error) -> BlobError {
    match source.kind() {
        std::io::ErrorKind::NotFound => BlobError::NotFound(path.to_owned()),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => BlobError::Full(path.to_owned()),
        _ => BlobError::Io { step, path: path.to_owned(), source },
    }
}

#[async_trait]
impl Blobs for DiskBlobs {
    fn name(&self) -> &'static str {
        "disk"
    }

    async fn put(&self, path: &str, mut content: ByteStream) -> Result<u64, BlobError> {
        let target = self.file(path)?;
        // A name of its own for each writer; removed on drop unless it was persisted.
        let partial = tempfile::NamedTempFile::new_in(self.root.join(".partial")).map_err(|it| io("make", path, it))?;
        let (file, partial) = partial.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        let mut size = 0;
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|it| io("receive", path, it))?;
            size += piece.len() as u64;
            file.write_all(&piece).await.map_err(|it| io("write", path, it))?;
        }
        file.flush().await.map_err(|it| io("write", path, it))?;
        file.sync_data().await.map_err(|it| io("write", path, it))?;
        let folder = target.parent().unwrap_or(&self.root).to_owned();
        tokio::fs::create_dir_all(&folder).await.map_err(|it| io("make the folder of", path, it))?;
        partial.persist(&target).map_err(|it| io("rename", path, it.error))?;
        let synced = tokio::fs::File::open(&folder).await;
        if let Ok(folder) = synced {
            folder.sync_all().await.map_err(|it| io("sync the folder of", path, it))?;
        }
        Ok(size)
    }

    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError> {
        let mut file = tokio::fs::File::open(self.file(path)?).await.map_err(|it| io("open", path, it))?;
        if offset > 0 {
            file.seek(std::io::SeekFrom::Start(offset)).await.map_err(|it| io("read", path, it))?;
        }
        Ok(Box::pin(tokio_util::io::ReaderStream::with_capacity(file, 64 << 10)))
    }

    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError> {
        match tokio::fs::metadata(self.file(path)?).await {
            Ok(found) if found.is_file() => Ok(Some(stat(path.to_owned(), &found))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("look at", path, error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError> {
        let root = self.root.clone();
        let start = if prefix.is_empty() { root.clone() } else { self.file(prefix.trim_end_matches('/'))? };
        let walk = move || -> std::io::Result<Vec<BlobStat>> {
            let mut found = Vec::new();
            walk(&root, &start, &mut found)?;
            found.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(found)
        };
        let walked =
            tokio::task::spawn_blocking(walk).await.map_err(|it| io("list", prefix, std::io::Error::other(it)))?;
        walked.map_err(|it| io("list", prefix, it))
    }

    async fn delete(&self, path: &str) -> Result<(), BlobError> {
        match tokio::fs::remove_file(self.file(path)?).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("delete", path, error)),
            _ => Ok(()),
        }
    }

    fn local_file(&self, path: &str) -> Option<PathBuf> {
        self.file(path).ok()
    }
}

fn stat(path: String, found: &std::fs::Metadata) -> BlobStat {
    let since = found.modified().ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    BlobStat { path, size: found.len(), modified: Timestamp(since.as_millis() as u64) }
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<BlobStat>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let Some(relative) = path.strip_prefix(root).ok().and_then(|it| it.to_str()) else { continue };
        match entry.metadata() {
            Ok(meta) if meta.is_dir() && relative != ".partial" => walk(root, &path, found)?,
            Ok(meta) if meta.is_file() => found.push(stat(relative.to_owned(), &meta)),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {} // deleted meanwhile, or not ours
        }
    }
    Ok(())
}
