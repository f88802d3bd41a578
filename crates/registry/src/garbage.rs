//! Collects what nothing holds any more: manifests without revision or tag of a person, then blobs without manifest.
//!
//! Tags that the platform itself set in the repository of a component (`r1`, `r2`, …) hold nothing: they name what a
//! revision holds and go with it.
//!
//! What must hold: everything that a revision runs or was built from stays, and so does what is younger than the grace
//! time (pushes, builds and uploads that are under way). When something that decides cannot be read, nothing is deleted.
//! Others write and collect meanwhile: a manifest goes only as it was read, and a blob in two steps: what nothing names is
//! condemned, and deleted by a later collection unless somebody has claimed it for the grace time.

use crate::RegistryError;
use crate::links::LINKS;
use arco_model::artifact::Digest;
use arco_model::component::{Component, Revision};
use arco_model::source::Source;
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::images::{CondemnedRow, Images, ManifestRow, TagRow, short_hash};
use arco_store::sql::{Batch, Entity, Query, SharedMetadata, SqlError, Versioned};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Rows that are read at once.
const PAGE: usize = 500;

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Collected {
    /// Manifests.
    pub manifests: u64,
    /// Blobs: layers, configurations, documents, uploaded archives.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub bytes: u64,
    /// Uploads that were begun and never finished.
    pub uploads: u64,
}

/// Collects once. `keep` names digests that are in use although no row says so (caches of builds, images of instances
/// that still run); `grace` is the age below which nothing is deleted, and for how long blobs are condemned before.
pub async fn collect(images: &Images, keep: &HashSet<Digest>, grace: Duration) -> Result<Collected, RegistryError> {
    let (metadata, blobs) = (images.metadata(), images.blobs());
    let limit = Timestamp(clock::now().0.saturating_sub(grace.as_millis() as u64));
    // Listed first: what is written afterwards is not among them.
    let contents = blobs.list("content/").await?;
    let links = blobs.list(&format!("{LINKS}/")).await?;
    let sent = images.sent().await?;

    let condemned = images.condemned().await?;
    let manifests: Vec<Versioned<ManifestRow>> = all(metadata).await?;
    let tags: Vec<Versioned<TagRow>> = all(metadata).await?;
    let revisions: Vec<Versioned<Revision>> = all(metadata).await?;
    let components: Vec<Versioned<Component>> = all(metadata).await?;

    let holds = |it: &&Versioned<TagRow>| it.value.pinned || !is_component(&it.value.repository);
    let tagged = tags.iter().filter(holds).map(|it| (it.value.repository.as_str(), &it.value.digest));
    let run = revisions.iter().map(|it| (it.value.artifact.repository.as_str(), &it.value.artifact.digest));
    let roots: HashSet<(&str, &Digest)> = tagged.chain(run).collect();
    let is_root = |it: &ManifestRow| {
        it.created_at >= limit || keep.contains(&it.digest) || roots.contains(&(it.repository.as_str(), &it.digest))
    };
    let live = living(manifests.iter().map(|it| &it.value), is_root);

    let mut used: HashSet<&Digest> = keep.iter().collect();
    used.extend(roots.iter().map(|it| it.1));
    used.extend(revisions.iter().filter_map(|it| archive(&it.value.spec.source)));
    used.extend(components.iter().filter_map(|it| archive(&it.value.spec.source)));
    for row in manifests.iter().map(|it| &it.value).filter(|it| live.contains(&(it.repository.as_str(), &it.digest))) {
        used.insert(&row.digest);
        used.extend(&row.references);
    }
    let mut used: HashSet<String> = used.into_iter().map(|it| it.hex().to_owned()).collect();
    used.extend(links.iter().filter(|it| it.modified >= limit).map(|it| last_word(&it.path).to_owned()));

    let mut done = Collected::default();
    for row in manifests.iter().filter(|it| !live.contains(&(it.value.repository.as_str(), &it.value.digest))) {
        let mut batch = Batch::default();
        batch.delete(row);
        let named = |it: &&Versioned<TagRow>| {
            it.value.repository == row.value.repository && it.value.digest == row.value.digest
        };
        for tag in tags.iter().filter(named) {
            batch.delete(tag);
        }
        match metadata.commit(batch).await {
            Ok(()) => done.manifests += 1,
            Err(SqlError::Conflict { .. }) => {
                // It was put again meanwhile: its blobs stay, too.
                used.insert(row.value.digest.hex().to_owned());
                used.extend(row.value.references.iter().map(|it| it.hex().to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    for link in links.iter().filter(|it| it.modified < limit) {
        blobs.delete(&link.path).await?;
    }
    // What was gone already when this began. A note that was written since says that it came again.
    let there: HashSet<&str> = contents.iter().map(|it| last_word(&it.path)).collect();
    for note in sent.iter().filter(|it| it.modified < limit && !there.contains(last_word(&it.path))) {
        if blobs.stat(&note.path).await?.is_some_and(|it| it.modified < limit) {
            blobs.delete(&note.path).await?;
        }
    }
    let mut condemned: HashMap<&str, &Versioned<CondemnedRow>> =
        condemned.iter().map(|it| (it.value.digest.hex(), it)).collect();
    for blob in contents.iter().filter(|it| it.modified < limit && !used.contains(last_word(&it.path))) {
        match condemned.remove(last_word(&blob.path)) {
            Some(row) if row.value.is_due(limit) => {
                if images.delete_condemned(row, limit).await? {
                    done.blobs += 1;
                    done.bytes += blob.size;
                }
            }
            Some(_) => {}
            None => {
                if let Ok(digest) = format!("sha256:{}", last_word(&blob.path)).parse() {
                    images.condemn(digest).await?;
                }
            }
        }
    }
    // What is left of them is named again, was written anew, or is gone.
    for row in condemned.into_values() {
        images.pardon(row).await?;
    }
    Ok(done)
}

/// Drops all tags of a repository (of a deleted component); the next collection takes what no revision uses.
pub async fn forget_repository(images: &Images, repository: &str) -> Result<(), RegistryError> {
    let tags = images.metadata().list::<TagRow>(&Query::parent(short_hash(repository))).await?;
    for tag in &tags.items {
        let mut batch = Batch::default();
        batch.delete(tag);
        match images.metadata().commit(batch).await {
            Ok(()) | Err(SqlError::Conflict { .. }) => {} // changed meanwhile: somebody uses it again
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The number of a revision that runs an image, if there is one.
pub(crate) async fn used_by_revision(
    metadata: &SharedMetadata,
    repository: &str,
    digest: &Digest,
) -> Result<Option<u64>, SqlError> {
    let revisions: Vec<Versioned<Revision>> = all(metadata).await?;
    let uses =
        |it: &&Versioned<Revision>| it.value.artifact.repository == repository && it.value.artifact.digest == *digest;
    Ok(revisions.iter().find(uses).map(|it| it.value.number))
}

/// Roots, what they name, and what speaks of them, by repository and digest.
fn living<'a>(
    rows: impl Iterator<Item = &'a ManifestRow> + Clone,
    is_root: impl Fn(&ManifestRow) -> bool,
) -> HashSet<(&'a str, &'a Digest)> {
    let by_name: HashMap<(&str, &Digest), &ManifestRow> =
        rows.clone().map(|it| ((it.repository.as_str(), &it.digest), it)).collect();
    let mut speaking: HashMap<(&str, &Digest), Vec<&ManifestRow>> = HashMap::new();
    for row in rows.clone() {
        if let Some(subject) = &row.subject {
            speaking.entry((row.repository.as_str(), subject)).or_default().push(row);
        }
    }
    let mut live = HashSet::new();
    let mut open: Vec<&ManifestRow> = rows.filter(|it| is_root(it)).collect();
    while let Some(row) = open.pop() {
        let name = (row.repository.as_str(), &row.digest);
        if live.insert(name) {
            open.extend(row.references.iter().filter_map(|it| by_name.get(&(row.repository.as_str(), it))));
            open.extend(speaking.get(&name).into_iter().flatten());
        }
    }
    live
}

/// Whether a repository is that of a component: `<tenant>/<application>/<component>`.
fn is_component(repository: &str) -> bool {
    repository.split('/').count() == 3
}

/// The uploaded archive that a source names.
fn archive(source: &Source) -> Option<&Digest> {
    match source {
        Source::Upload { digest, .. } => Some(digest),
        _ => None,
    }
}

fn last_word(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

async fn all<T: Entity>(metadata: &SharedMetadata) -> Result<Vec<Versioned<T>>, SqlError> {
    let mut found = Vec::new();
    let mut query = Query { limit: PAGE, ..Query::default() };
    loop {
        let page = metadata.list::<T>(&query).await?;
        found.extend(page.items);
        match page.next {
            Some(next) => query = query.after(Some(next)),
            None => return Ok(found),
        }
    }
}
