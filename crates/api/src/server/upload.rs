//! Archives that clients send: gzip-compressed tars, streamed into the blob store under their digest.
//!
//! What must hold: nothing is unpacked here; an upload that breaks off or is too large leaves nothing behind; memory does
//! not grow with the size of the upload; nobody learns of content that is not of a tenant of theirs, however well they know
//! its digest.

use super::Api;
use super::act::Target;
use super::error::ApiError;
use super::identity::Caller;
use crate::wire::UploadReceipt;
use arco_model::application::Application;
use arco_model::artifact::Digest;
use arco_model::component::{Component, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::RowId;
use arco_model::name::TenantName;
use arco_model::source::Source;
use arco_store::blob::{BlobError, BlobStat};
use arco_store::clock;
use arco_store::sql::Query;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

/// Uploads up to this size go through memory and are written once; larger ones are staged under a name of their own,
/// because their digest is known only at their end.
const IN_MEMORY: usize = 8 << 20;
/// First bytes of gzip (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

type Pieces = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

impl Api {
    /// Stores an archive for a tenant; the same archive again changes nothing.
    pub(super) async fn upload(&self, tenant: &TenantName, body: Body) -> Result<UploadReceipt, ApiError> {
        self.receive(tenant, body, None).await
    }

    /// Stores any content that has this digest for a tenant; nothing stays of another.
    pub(super) async fn put_blob(
        &self,
        tenant: &TenantName,
        body: Body,
        digest: &Digest,
    ) -> Result<UploadReceipt, ApiError> {
        self.receive(tenant, body, Some(digest)).await
    }

    /// Content that was sent for a tenant, or that a component of it has as its source (since before it was noted who sends);
    /// it stays for whoever was told so. For who may read any content, all was sent.
    pub(super) async fn find_upload(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        digest: &Digest,
    ) -> Result<Option<BlobStat>, ApiError> {
        let images = &self.deps.images;
        let has = caller.reads_any_content()
            || images.was_sent(tenant, digest).await?
            || self.is_a_source(tenant, digest).await?;
        // Looked for last: for others it makes no difference, not even in time, whether it is there.
        Ok(if has { images.claim(digest).await? } else { None })
    }

    async fn is_a_source(&self, tenant: &TenantName, digest: &Digest) -> Result<bool, ApiError> {
        let components = self.deps.metadata.list::<Component>(&Query::tag(tenant.as_str())).await?.items;
        Ok(components.iter().any(|it| is_from(&it.value.spec.source, digest)))
    }

    /// Content that is there and that a revision of the component was built from.
    pub(super) async fn find_former_source(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Result<Option<BlobStat>, ApiError> {
        let metadata = &self.deps.metadata;
        let found = metadata.find::<Application>(target.tenant.as_str(), target.application.as_str()).await?;
        let Some(application) = found else { return Ok(None) };
        let found = metadata.find::<Component>(application.value.id.as_str(), target.component.as_str()).await?;
        let Some(component) = found else { return Ok(None) };
        let revisions = metadata.list::<Revision>(&Query::parent(component.value.id.as_str())).await?.items;
        let has = revisions.iter().any(|it| is_from(&it.value.spec.source, digest));
        Ok(if has { self.deps.images.claim(digest).await? } else { None })
    }

    /// Without a digest that it must have, the content must be an archive.
    async fn receive(
        &self,
        tenant: &TenantName,
        body: Body,
        expected: Option<&Digest>,
    ) -> Result<UploadReceipt, ApiError> {
        let limit = self.deps.config.api.max_upload_bytes;
        let mut pieces: Pieces = Box::pin(body.into_data_stream().map(|it| it.map_err(std::io::Error::other)));
        let mut head = BytesMut::new();
        let mut whole = false;
        while head.len() <= IN_MEMORY {
            match pieces.next().await {
                Some(Ok(piece)) => head.extend_from_slice(&piece),
                Some(Err(error)) => return Err(broken(&error)),
                None => {
                    whole = true;
                    break;
                }
            }
        }
        if expected.is_none() && !head.starts_with(&GZIP) {
            let advice = "send a gzip-compressed tar; `arco deploy FOLDER` makes one";
            return Err(
                Problem::invalid("upload_not_gzip", "the upload is not a gzip-compressed archive", advice).into()
            );
        }
        let head = head.freeze();
        if head.len() as u64 > limit {
            return Err(too_large(limit));
        }
        let (digest, size) = match whole {
            true => self.keep(head, expected).await?,
            false => self.stage(head, pieces, limit, expected).await?,
        };
        self.deps.images.note_sent(tenant, &digest).await?;
        Ok(UploadReceipt { digest: digest.to_string(), size })
    }

    /// Digest and bytes of what is kept.
    async fn keep(&self, content: Bytes, expected: Option<&Digest>) -> Result<(Digest, u64), ApiError> {
        let (digest, size) = (Digest::of(&content), content.len() as u64);
        is_expected(&digest, expected)?;
        if self.deps.images.claim(&digest).await?.is_none() {
            self.deps.images.put_content_bytes(content).await?;
        }
        Ok((digest, size))
    }

    async fn stage(
        &self,
        head: Bytes,
        rest: Pieces,
        limit: u64,
        expected: Option<&Digest>,
    ) -> Result<(Digest, u64), ApiError> {
        let id: RowId = clock::fresh();
        let staged = format!("uploads/{id}");
        let state = Arc::new(Mutex::new(Progress { hash: Sha256::new(), size: 0, problem: None }));
        let counted = count(Box::pin(stream::once(async move { Ok(head) }).chain(rest)), limit, state.clone());
        let result = self.deps.blobs.put(&staged, counted).await;
        let (digest, size, problem) = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            (Digest::from_sha256(&state.hash.clone().finalize().into()), state.size, state.problem.take())
        };
        let moved = match (result, problem) {
            (_, Some(problem)) => Err(problem),
            (Err(error), None) => Err(error.into()),
            (Ok(_), None) => match is_expected(&digest, expected) {
                Ok(()) => self.settle(&staged, &digest).await.map_err(ApiError::from),
                Err(problem) => Err(problem.into()),
            },
        };
        // A failed put leaves nothing; deleting what is not there is no error.
        self.deps.blobs.delete(&staged).await?;
        moved.map(|()| (digest, size))
    }

    async fn settle(&self, staged: &str, digest: &Digest) -> Result<(), BlobError> {
        if self.deps.images.claim(digest).await?.is_none() {
            let content = self.deps.blobs.get(staged, 0).await?;
            self.deps.images.put_content(digest, content).await?;
        }
        Ok(())
    }
}

fn is_from(source: &Source, digest: &Digest) -> bool {
    matches!(source, Source::Upload { digest: found, .. } if found == digest)
}

fn is_expected(digest: &Digest, expected: Option<&Digest>) -> Result<(), Problem> {
    match expected {
        Some(expected) if expected != digest => {
            let message = format!("what came as {expected} is {digest}");
            Err(Problem::invalid("blob_differs", message, "send it again; the archive is damaged if it stays so"))
        }
        _ => Ok(()),
    }
}

struct Progress {
    hash: Sha256,
    size: u64,
    problem: Option<ApiError>,
}

/// Hashes and counts what passes; fails at the limit and notes why.
fn count(pieces: Pieces, limit: u64, state: Arc<Mutex<Progress>>) -> Pieces {
    Box::pin(pieces.map(move |piece| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match piece {
            Ok(piece) if state.size + piece.len() as u64 > limit => {
                state.problem = Some(too_large(limit));
                Err(std::io::Error::other("the upload is too large"))
            }
            Ok(piece) => {
                state.hash.update(&piece);
                state.size += piece.len() as u64;
                Ok(piece)
            }
            Err(error) => {
                state.problem = Some(broken(&error));
                Err(error)
            }
        }
    }))
}

fn too_large(limit: u64) -> ApiError {
    let message = format!("the upload is larger than {} MB", limit >> 20);
    let advice = "leave out what is not source (`.arcoignore`), or raise `api.max_upload_bytes`";
    Problem::new(ErrorKind::LimitReached, "upload_too_large", message, advice).into()
}

fn broken(error: &std::io::Error) -> ApiError {
    Problem::invalid("upload_broken", format!("the upload broke off: {error}"), "send it again").into()
}
