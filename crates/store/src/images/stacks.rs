//! Stacks that a platform keeps: images `stack/<name>` under the edition of the program that knows how they are made.
//!
//! What must hold: a stack of another edition is never taken for one of this. Not here: how stacks are made, and those that
//! a machine keeps in its cache (their tag is `latest`).

use super::{ImageError, Images, TagRow, short_hash};
use crate::sql::{Batch, Query, SqlError, Versioned};
use arco_model::artifact::{Digest, ImageRef};

/// Where stacks are: `stack/<name>`.
const FOLDER: &str = "stack/";
/// Rows that are read at once.
const PAGE: usize = 500;

/// The repository of a stack.
pub fn stack_repository(name: &str) -> String {
    format!("{FOLDER}{name}")
}

/// A stack that the platform keeps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeptStack {
    /// Its name, as `node-22`.
    pub name: String,
    /// Its edition.
    pub edition: u32,
    /// Its tag.
    pub tag: TagRow,
}

impl Images {
    /// The stack of this edition, if the platform keeps it.
    pub async fn stack(&self, name: &str, edition: u32) -> Result<Option<ImageRef>, ImageError> {
        let repository = stack_repository(name);
        let found = self.metadata().find::<TagRow>(&short_hash(&repository), &edition.to_string()).await?;
        Ok(found.map(|it| ImageRef { repository, digest: it.value.digest }))
    }

    /// Keeps a manifest of the stack's repository as this edition of it; an earlier one is replaced.
    pub async fn keep_stack(&self, name: &str, edition: u32, digest: &Digest) -> Result<(), ImageError> {
        self.tag(&stack_repository(name), &edition.to_string(), digest).await
    }

    /// Every stack that the platform keeps, by name and edition.
    pub async fn stacks(&self) -> Result<Vec<KeptStack>, SqlError> {
        let mut found: Vec<KeptStack> = self.stack_tags().await?.into_iter().filter_map(|it| kept(it.value)).collect();
        found.sort_by(|a, b| (&a.name, a.edition).cmp(&(&b.name, b.edition)));
        Ok(found)
    }

    /// Forgets every edition of a stack; returns how many there were.
    pub async fn forget_stack(&self, name: &str) -> Result<usize, SqlError> {
        let mut batch = Batch::default();
        let mut count = 0;
        for row in self.stack_tags().await? {
            if kept(row.value.clone()).is_some_and(|it| it.name == name) {
                batch.delete(&row);
                count += 1;
            }
        }
        if count > 0 {
            self.metadata().commit(batch).await?;
        }
        Ok(count)
    }

    async fn stack_tags(&self) -> Result<Vec<Versioned<TagRow>>, SqlError> {
        let mut found = Vec::new();
        let mut query = Query { limit: PAGE, ..Query::default() };
        loop {
            let page = self.metadata().list::<TagRow>(&query).await?;
            found.extend(page.items.into_iter().filter(|it| it.value.repository.starts_with(FOLDER)));
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return Ok(found),
            }
        }
    }
}

fn kept(tag: TagRow) -> Option<KeptStack> {
    let name = tag.repository.strip_prefix(FOLDER)?.to_owned();
    Some(KeptStack { name, edition: tag.tag.parse().ok()?, tag })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::MemoryBlobs;
    use crate::images::Image;
    use crate::sql::MemoryMetadata;
    use std::sync::Arc;

    #[tokio::test]
    async fn stacks_are_kept_by_edition() {
        let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
        let mut written = Vec::new();
        for cmd in ["a", "b"] {
            let mut image = Image::default();
            image.config.cmd = vec![cmd.to_owned()];
            written.push(images.write("stack/base", &image).await.unwrap());
        }
        images.tag("stack/base", "latest", &written[0].digest).await.unwrap();
        assert!(images.stacks().await.unwrap().is_empty(), "what is of the machine is not of the platform");
        images.keep_stack("base", 2, &written[0].digest).await.unwrap();
        images.keep_stack("base", 10, &written[0].digest).await.unwrap();
        images.keep_stack("base", 2, &written[1].digest).await.unwrap();
        assert_eq!(images.stack("base", 2).await.unwrap(), Some(written[1].clone()));
        assert_eq!(images.stack("base", 3).await.unwrap(), None);
        let found = images.stacks().await.unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.edition)).collect();
        assert_eq!(found, [("base", 2), ("base", 10)]);
        assert_eq!((images.forget_stack("bas").await.unwrap(), images.forget_stack("base").await.unwrap()), (0, 2));
        assert!(images.stacks().await.unwrap().is_empty());
        assert!(images.resolve("stack/base", "latest").await.is_ok());
    }
}
