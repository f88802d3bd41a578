//! Content that a collection of garbage has condemned: it is deleted a while later, unless somebody claims it before.
//!
//! Several servers write images and collect garbage at the same time, and a blob store deletes without a condition. So there
//! is a row for what nothing names, which a claim takes away, and a deletion changes before it deletes: of the two one has
//! it. What must hold: whoever relies on content that is there, or writes some, claims it first, and names it in a row of
//! its own before the grace time of a collection has passed. Not here: what is garbage (the registry's collection).

use super::Images;
use crate::blob::{BlobError, BlobStat, ByteStream, content_path};
use crate::clock;
use crate::sql::{Batch, Entity, Kind, Query, SqlError, Versioned};
use arco_model::artifact::Digest;
use arco_model::id::RowId;
use arco_model::time::Timestamp;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A deletion that takes longer was cut off with its process, in ms: somebody else does it again.
const STALE_MS: u64 = 600_000;
/// How long a claim waits for a deletion that is under way, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);
/// Rows that are read at once.
const PAGE: usize = 500;
/// The name of each row below its digest, so that there is one.
const NAME: &str = "content";

/// Content that is to be deleted.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CondemnedRow {
    /// Of this sentence: a row that is made again for the same content is another one.
    pub id: RowId,
    /// Which content.
    pub digest: Digest,
    /// Since when.
    pub since: Timestamp,
    /// When its deletion began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleting: Option<Timestamp>,
}

impl Entity for CondemnedRow {
    const KIND: Kind = Kind::Condemned;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn parent(&self) -> String {
        self.digest.hex().to_owned()
    }
    fn name(&self) -> String {
        NAME.to_owned()
    }
    fn created_at(&self) -> Timestamp {
        self.since
    }
}

impl CondemnedRow {
    /// Whether the deletion that began was cut off.
    fn is_stale(&self) -> bool {
        self.deleting.is_some_and(|it| clock::now().since_ms(it) > STALE_MS)
    }

    /// Whether it is to be deleted by who collects with this limit of age.
    pub fn is_due(&self, limit: Timestamp) -> bool {
        self.since < limit && (self.deleting.is_none() || self.is_stale())
    }
}

impl Images {
    /// Content that is there and stays: no collection takes it before its grace time has passed. `None`: it is not there.
    pub async fn claim(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.free(digest).await?;
        self.blobs.stat(&content_path(digest)).await
    }

    /// Writes content that has this digest, whether it is there or not; returns its size. It is young then.
    pub async fn put_content(&self, digest: &Digest, content: ByteStream) -> Result<u64, BlobError> {
        self.free(digest).await?;
        self.blobs.put(&content_path(digest), content).await
    }

    /// Writes content from memory under its digest.
    pub async fn put_content_bytes(&self, content: Bytes) -> Result<Digest, BlobError> {
        let digest = Digest::of(&content);
        self.put_content(&digest, Box::pin(futures_util::stream::once(async move { Ok(content) }))).await?;
        Ok(digest)
    }

    /// Takes the sentence away, or waits until it is done.
    async fn free(&self, digest: &Digest) -> Result<(), BlobError> {
        let failed = |source: std::io::Error| BlobError::Io { step: "claim", path: content_path(digest), source };
        let unread = |it: SqlError| failed(std::io::Error::other(it));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let Some(row) = self.metadata.find::<CondemnedRow>(digest.hex(), NAME).await.map_err(unread)? else {
                return Ok(());
            };
            if row.value.deleting.is_none() {
                if self.take_away(&row).await.map_err(unread)? {
                    return Ok(());
                }
            } else if row.value.is_stale() {
                self.delete_condemned(&row, Timestamp(u64::MAX)).await?;
            } else if tokio::time::Instant::now() > deadline {
                return Err(failed(std::io::Error::other("it is being deleted; try again in ten minutes")));
            } else {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// All that is condemned.
    pub async fn condemned(&self) -> Result<Vec<Versioned<CondemnedRow>>, SqlError> {
        let mut found = Vec::new();
        let mut query = Query { limit: PAGE, ..Query::default() };
        loop {
            let page = self.metadata.list::<CondemnedRow>(&query).await?;
            found.extend(page.items);
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return Ok(found),
            }
        }
    }

    /// Condemns content that nothing names.
    pub async fn condemn(&self, digest: Digest) -> Result<(), SqlError> {
        let row = CondemnedRow { id: clock::fresh(), digest, since: clock::now(), deleting: None };
        match self.metadata.insert(&row).await {
            Ok(()) | Err(SqlError::Exists { .. }) => Ok(()), // another collection was faster
            Err(error) => Err(error),
        }
    }

    /// Lets content stay that is named again, or forgets some that is gone.
    pub async fn pardon(&self, row: &Versioned<CondemnedRow>) -> Result<(), SqlError> {
        match row.value.deleting.is_some() && !row.value.is_stale() {
            true => Ok(()), // who deletes it says when it is done
            false => self.take_away(row).await.map(drop),
        }
    }

    /// Deletes condemned content that was not written since `limit`; whether it did: nothing happens to what was claimed
    /// since the row was read, or what another collection deletes.
    pub async fn delete_condemned(&self, row: &Versioned<CondemnedRow>, limit: Timestamp) -> Result<bool, BlobError> {
        let path = content_path(&row.value.digest);
        let failed = |it: SqlError| BlobError::Io {
            step: "delete",
            path: content_path(&row.value.digest),
            source: std::io::Error::other(it),
        };
        let mut row = row.clone();
        row.value.deleting = Some(clock::now());
        match self.metadata.update(&row).await {
            Ok(()) => row.version += 1,
            Err(SqlError::Conflict { .. }) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        let old = self.blobs.stat(&path).await?.is_some_and(|it| it.modified < limit);
        if old {
            self.blobs.delete(&path).await?;
        }
        self.take_away(&row).await.map_err(failed)?;
        Ok(old)
    }

    /// Removes the row as it was read; whether it was so still.
    async fn take_away(&self, row: &Versioned<CondemnedRow>) -> Result<bool, SqlError> {
        let mut batch = Batch::default();
        batch.delete(row);
        match self.metadata.commit(batch).await {
            Ok(()) => Ok(true),
            Err(SqlError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
