//! Stacks that the platform keeps: what an administrator loaded, and what builders had steps make.

use super::super::Api;
use super::super::error::ApiError;
use crate::wire::{StackDocument, StackRequest};
use arco_model::artifact::ImageRef;
use arco_model::error::Problem;
use arco_store::blob::{BlobError, content_path};
use arco_store::images::{ImageError, KeptStack, MANIFEST_MAX, MANIFEST_TYPE, stack_repository};

/// Longest name of a stack.
const NAME_MAX: usize = 40;

impl Api {
    pub(in super::super) async fn stacks(&self) -> Result<Vec<StackDocument>, ApiError> {
        let mut found = Vec::new();
        for it in self.deps.images.stacks().await? {
            found.push(self.stack_document(it).await?);
        }
        Ok(found)
    }

    pub(in super::super) async fn keep_stack(
        &self,
        name: &str,
        request: &StackRequest,
    ) -> Result<StackDocument, ApiError> {
        let named = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-' || it == '.';
        if name.is_empty()
            || name.len() > NAME_MAX
            || !name.chars().all(named)
            || !name.starts_with(char::is_alphabetic)
        {
            let message = format!("`{}` is no name of a stack", name.chars().take(NAME_MAX).collect::<String>());
            return Err(Problem::invalid(
                "stack_invalid",
                message,
                "`arco stack load` sends what `arco stack save` wrote",
            )
            .into());
        }
        let unusable = |why: String| {
            let message = format!("the stack `{name}` cannot be kept: {why}");
            Problem::invalid("stack_invalid", message, "save it again with `arco stack save`, and load that file")
        };
        let images = &self.deps.images;
        let document = match self.deps.blobs.get_bytes(&content_path(&request.digest), MANIFEST_MAX).await {
            Err(BlobError::NotFound(_)) => {
                return Err(unusable(format!("its manifest {} is not here", request.digest)).into());
            }
            other => other?,
        };
        let repository = stack_repository(name);
        let told = |it: ImageError| match it {
            ImageError::Sql(it) => ApiError::from(it),
            ImageError::Blob(it) => it.into(),
            it @ (ImageError::NotFound(_) | ImageError::Invalid { .. }) => unusable(it.to_string()).into(),
        };
        let digest = images.put_manifest(&repository, MANIFEST_TYPE, document).await.map_err(told)?;
        let image = images.read(&ImageRef { repository, digest: digest.clone() }).await.map_err(told)?;
        if image.layers.is_empty() {
            return Err(unusable("it has no layer".to_owned()).into());
        }
        images.keep_stack(name, request.edition, &digest).await.map_err(told)?;
        let kept = images.stacks().await?.into_iter().find(|it| it.name == name && it.edition == request.edition);
        match kept {
            Some(kept) => self.stack_document(kept).await,
            None => Err(Problem::not_found("stack", name).into()),
        }
    }

    pub(in super::super) async fn forget_stack(&self, name: &str) -> Result<(), ApiError> {
        match self.deps.images.forget_stack(name).await? {
            0 => {
                let message =
                    format!("this platform keeps no stack `{}`", name.chars().take(NAME_MAX).collect::<String>());
                let kind = arco_model::error::ErrorKind::NotFound;
                Err(Problem::new(kind, "not_found", message, "`arco stack list` shows those that it keeps").into())
            }
            _ => Ok(()),
        }
    }

    async fn stack_document(&self, KeptStack { name, edition, tag }: KeptStack) -> Result<StackDocument, ApiError> {
        let image = ImageRef { repository: tag.repository, digest: tag.digest };
        // A stack whose image is damaged is shown, so that it can be replaced.
        let layers = self.deps.images.read(&image).await.map(|it| it.layers).unwrap_or_default();
        Ok(StackDocument {
            name,
            edition,
            digest: image.digest.to_string(),
            size_bytes: layers.iter().map(|it| it.blob.size).sum(),
            created_at: tag.created_at.rfc3339(),
        })
    }
}
