//! The fake: blobs in memory.

use super::{BlobError, BlobStat, Blobs, ByteStream};
use crate::clock;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Blobs in memory, for tests.
#[derive(Default)]
pub struct MemoryBlobs {
    blobs: Mutex<BTreeMap<String, (Bytes, arco_model::time::Timestamp)>>,
}

impl MemoryBlobs {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Bytes, arco_model::time::Timestamp)>> {
        self.blobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn put(&self, path: &str, mut content: ByteStream) -> Result<u64, BlobError> {
        super::check_path(path)?;
        let mut all = BytesMut::new();
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|source| BlobError::Io { step: "receive", path: path.to_owned(), source })?;
            all.extend_from_slice(&piece);
        }
        let size = all.len() as u64;
        self.lock().insert(path.to_owned(), (all.freeze(), clock::now()));
        Ok(size)
    }

    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError> {
        super::check_path(path)?;
        let found = self.lock().get(path).cloned();
        let (content, _) = found.ok_or_else(|| BlobError::NotFound(path.to_owned()))?;
        let rest = content.slice((offset as usize).min(content.len())..);
        Ok(Box::pin(futures_util::stream::once(async move { Ok(rest) })))
    }

    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError> {
        super::check_path(path)?;
        let found = self.lock().get(path).map(|(it, at)| (it.len() as u64, *at));
        Ok(found.map(|(size, modified)| BlobStat { path: path.to_owned(), size, modified }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError> {
        let blobs = self.lock();
        let found = blobs.iter().filter(|(path, _)| path.starts_with(prefix));
        Ok(found
            .map(|(path, (it, at))| BlobStat { path: path.clone(), size: it.len() as u64, modified: *at })
            .collect())
    }

    async fn delete(&self, path: &str) -> Result<(), BlobError> {
        super::check_path(path)?;
        self.lock().remove(path);
        Ok(())
    }

    fn local_file(&self, _path: &str) -> Option<std::path::PathBuf> {
        None
    }
}
