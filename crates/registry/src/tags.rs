//! The list of tags, in pages.

use crate::Registry;
use crate::refusal::Refusal;
use arco_store::images::{ManifestRow, short_hash};
use arco_store::sql::Query;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use oci_spec::distribution::ErrorCode;

impl Registry {
    /// `GET …/tags/list?n=&last=`: at most `n` tags after `last`, in order; a `Link` leads to the next page.
    pub(crate) async fn list_tags(&self, repository: &str, query: &[(String, String)]) -> Result<Response, Refusal> {
        let word = |name: &str| query.iter().find(|it| it.0 == name).map(|it| it.1.as_str());
        let wrong = |_| Refusal::invalid(ErrorCode::Unsupported, "`n` is not a number");
        let most = word("n").map(str::parse::<usize>).transpose().map_err(wrong)?;
        let all = self.0.images.tags(repository).await?;
        if all.is_empty() {
            let query = Query { limit: 1, ..Query::parent(short_hash(repository)) };
            if self.0.images.metadata().list::<ManifestRow>(&query).await?.items.is_empty() {
                return Err(Refusal::not_found(
                    ErrorCode::NameUnknown,
                    format!("the repository `{repository}` does not exist"),
                ));
            }
        }
        let mut tags: Vec<String> = all.into_iter().map(|it| it.tag).collect();
        if let Some(last) = word("last") {
            tags.retain(|it| it.as_str() > last);
        }
        let more = most.is_some_and(|it| it > 0 && it < tags.len());
        tags.truncate(most.unwrap_or(usize::MAX));
        let link = tags
            .last()
            .filter(|_| more)
            .map(|it| format!("</v2/{repository}/tags/list?n={}&last={it}>; rel=\"next\"", tags.len()));
        let mut answer = Json(serde_json::json!({ "name": repository, "tags": tags })).into_response();
        if let Some(link) = link.and_then(|it| HeaderValue::from_str(&it).ok()) {
            answer.headers_mut().insert(header::LINK, link);
        }
        Ok(answer)
    }
}
