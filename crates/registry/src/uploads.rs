//! Uploads that have begun: a file each below `<data-dir>/registry/uploads`, kept over restarts, collected when stale.
//!
//! The name of an upload holds the repository that it was begun in, so it works nowhere else.

use crate::RegistryError;
use crate::refusal::Refusal;
use arco_store::clock;
use arco_store::images::short_hash;
use axum::body::BodyDataStream;
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, StatusCode, header};
use oci_spec::distribution::ErrorCode;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt as _;

/// Free space of the disk that pushes leave alone, in bytes; a twentieth of a small disk.
const FREE_BYTES: u64 = 512 << 20;

/// Uploads that have begun.
pub(crate) struct Uploads {
    folder: PathBuf,
    busy: Mutex<HashSet<String>>,
}

/// One upload, held by one request.
pub(crate) struct Upload<'a> {
    uploads: &'a Uploads,
    id: String,
    pub(crate) path: PathBuf,
    /// Bytes that have come.
    pub(crate) size: u64,
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        self.uploads.busy().remove(&self.id);
    }
}

impl Uploads {
    pub(crate) fn open(folder: PathBuf) -> Result<Self, RegistryError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|it| RegistryError::io("make the folder of uploads", &folder, it))?;
        Ok(Self { folder, busy: Mutex::default() })
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload; returns its id.
    pub(crate) async fn begin(&self, repository: &str) -> Result<String, Refusal> {
        self.check_space()?;
        let id = format!("{}-{:016x}{:016x}", short_hash(repository), clock::random(), clock::random());
        let path = self.folder.join(&id);
        let made = tokio::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).await;
        made.map_err(|it| RegistryError::io("begin the upload", &path, it))?;
        Ok(id)
    }

    /// Takes an upload of a repository.
    pub(crate) async fn take(&self, repository: &str, id: &str) -> Result<Upload<'_>, Refusal> {
        let unknown =
            || Refusal::not_found(ErrorCode::BlobUploadUnknown, "the upload does not exist or has ended: begin again");
        let ours = id.strip_prefix(&short_hash(repository)).and_then(|it| it.strip_prefix('-'));
        if !ours.is_some_and(|it| it.len() == 32 && it.bytes().all(|it| it.is_ascii_hexdigit())) {
            return Err(unknown());
        }
        let path = self.folder.join(id);
        if !self.busy().insert(id.to_owned()) {
            let message = "another request works on this upload";
            return Err(Refusal::new(StatusCode::CONFLICT, ErrorCode::BlobUploadInvalid, message));
        }
        let mut upload = Upload { uploads: self, id: id.to_owned(), path, size: 0 };
        match tokio::fs::metadata(&upload.path).await {
            Ok(found) => upload.size = found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(RegistryError::io("look at the upload", &upload.path, error).into()),
        }
        Ok(upload)
    }

    /// Deletes uploads that nobody wrote to for `grace`.
    pub(crate) async fn collect(&self, grace: Duration) -> Result<u64, RegistryError> {
        let folder = self.folder.clone();
        let fail = move |it| RegistryError::io("list the folder of uploads", &folder, it);
        let oldest = SystemTime::now().checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut entries = tokio::fs::read_dir(&self.folder).await.map_err(&fail)?;
        let mut deleted = 0;
        while let Some(entry) = entries.next_entry().await.map_err(&fail)? {
            let Ok(stat) = entry.metadata().await else { continue };
            let busy = entry.file_name().to_str().is_some_and(|it| self.busy().contains(it));
            if !busy
                && stat.modified().is_ok_and(|it| it < oldest)
                && tokio::fs::remove_file(entry.path()).await.is_ok()
            {
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    /// Refuses while the disk is nearly full: the databases need what is left.
    pub(crate) fn check_space(&self) -> Result<(), Refusal> {
        match rustix::fs::statvfs(&self.folder) {
            Ok(it) if it.f_bavail * it.f_frsize < FREE_BYTES.min(it.f_blocks * it.f_frsize / 20) => {
                Err(Refusal::full())
            }
            _ => Ok(()), // without an answer a full disk still shows as a failed write
        }
    }
}

impl Upload<'_> {
    /// Appends a body. What came before a connection broke stays, so that the client can go on from there.
    pub(crate) async fn append(
        &mut self,
        range: Option<&HeaderValue>,
        mut body: BodyDataStream,
    ) -> Result<(), Refusal> {
        let expected = range.map(|it| self.check_range(it)).transpose()?;
        let path = self.path.clone();
        let fail = |it| Refusal::from(RegistryError::io("write the upload", &path, it));
        let mut file = tokio::fs::File::options().append(true).open(&self.path).await.map_err(fail)?;
        let start = self.size;
        while let Some(piece) = body.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(_) => {
                    let _ = file.flush().await;
                    return Err(Refusal::invalid(
                        ErrorCode::BlobUploadInvalid,
                        "the connection broke; ask how much has come",
                    ));
                }
            };
            file.write_all(&piece).await.map_err(fail)?;
            self.size += piece.len() as u64;
        }
        file.flush().await.map_err(fail)?;
        if expected.is_some_and(|it| it != self.size - start) {
            return Err(Refusal::invalid(ErrorCode::SizeInvalid, "the body is not as long as Content-Range says"));
        }
        Ok(())
    }

    /// A chunk must begin where the last one ended. Returns its length.
    fn check_range(&self, range: &HeaderValue) -> Result<u64, Refusal> {
        let text = range.to_str().unwrap_or("");
        let text = text.strip_prefix("bytes ").unwrap_or(text).split('/').next().unwrap_or("");
        let numbers = text.split_once('-').and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.parse::<u64>().ok()?)));
        let wrong = |message: &str| {
            Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::BlobUploadInvalid, message)
                .with(header::RANGE, self.range())
        };
        match numbers {
            Some((start, end)) if start == self.size && end >= start => Ok(end - start + 1),
            Some(_) => Err(wrong("the chunk does not begin where the last one ended")),
            None => Err(wrong("Content-Range is not `START-END`")),
        }
    }

    /// What has come, as the `Range` header says it.
    pub(crate) fn range(&self) -> HeaderValue {
        let range = format!("0-{}", self.size.saturating_sub(1));
        HeaderValue::from_str(&range).unwrap_or(HeaderValue::from_static("0-0"))
    }

    /// Ends it; what has come is deleted.
    pub(crate) async fn end(self) -> Result<(), Refusal> {
        remove(&self.path).await
    }

    /// Headers that every answer about an upload has.
    pub(crate) fn headers(&self, repository: &str) -> [(HeaderName, HeaderValue); 3] {
        let location = format!("/v2/{repository}/blobs/uploads/{}", self.id);
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        [
            (header::LOCATION, value(&location)),
            (header::RANGE, self.range()),
            (HeaderName::from_static("docker-upload-uuid"), value(&self.id)),
        ]
    }
}

async fn remove(path: &Path) -> Result<(), Refusal> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RegistryError::io("remove the upload", path, error).into())
        }
        _ => Ok(()),
    }
}
