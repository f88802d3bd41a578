//! Manifests: read, pushed, deleted, and the ones that speak of another.

use crate::Registry;
use crate::blobs::{CONTENT_DIGEST, digest_value};
use crate::garbage::used_by_revision;
use crate::refusal::Refusal;
use crate::route::Reference;
use arco_model::artifact::Digest;
use arco_store::blob::content_path;
use arco_store::images::{MANIFEST_MAX, MANIFEST_TYPE, ManifestRow, TagRow, short_hash};
use arco_store::sql::{Batch, Query, SqlError};
use axum::body::{Body, BodyDataStream};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use oci_spec::distribution::ErrorCode;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Media type of an index.
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// What of a manifest matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Named>,
    #[serde(default)]
    layers: Vec<Named>,
    manifests: Option<Vec<Named>>,
    subject: Option<Named>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    digest: Digest,
    #[serde(default)]
    media_type: String,
}

impl Registry {
    /// `GET` and `HEAD` of a manifest.
    pub(crate) async fn read_manifest(
        &self,
        method: &Method,
        repository: &str,
        reference: &Reference,
    ) -> Result<Response, Refusal> {
        let images = &self.0.images;
        let unknown = || {
            Refusal::not_found(
                ErrorCode::ManifestUnknown,
                format!("`{repository}` has no manifest {}", reference.as_str()),
            )
        };
        let image = images.resolve(repository, reference.as_str()).await?;
        let row = images.manifest(repository, &image.digest).await?.ok_or_else(unknown)?.value;
        let answer = Response::builder()
            .header(header::CONTENT_TYPE, &row.media_type)
            .header(header::CONTENT_LENGTH, row.size)
            .header(header::ETAG, format!("\"{}\"", row.digest))
            .header(CONTENT_DIGEST, digest_value(&row.digest));
        let body = if *method == Method::HEAD {
            Body::empty()
        } else {
            Body::from(images.blobs().get_bytes(&content_path(&row.digest), MANIFEST_MAX).await?)
        };
        answer.body(body).map_err(|it| Refusal::internal("answer", &it))
    }

    /// `PUT` of a manifest, by tag or digest. What it names must be in the repository.
    pub(crate) async fn put_manifest(
        &self,
        repository: &str,
        reference: &Reference,
        headers: &HeaderMap,
        body: BodyDataStream,
    ) -> Result<Response, Refusal> {
        let document = read_document(body).await?;
        let digest = Digest::of(&document);
        if let Reference::Digest(named) = reference
            && *named != digest
        {
            return Err(Refusal::invalid(
                ErrorCode::DigestInvalid,
                format!("the manifest is not {named} but {digest}"),
            ));
        }
        let invalid = |why: String| Refusal::invalid(ErrorCode::ManifestInvalid, why);
        let parsed: Document =
            serde_json::from_slice(&document).map_err(|it| invalid(format!("not a manifest: {it}")))?;
        let said = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or("");
        let said = said.split(';').next().unwrap_or("").trim();
        let media_type = check_type(&parsed, said).map_err(invalid)?;
        for named in parsed.config.iter().chain(&parsed.layers) {
            // A digest that another repository has is not enough: else naming it here would open it.
            if self.find_blob(repository, &named.digest).await?.is_none() {
                let message = format!("`{repository}` has no blob {}; push it first", named.digest);
                return Err(Refusal::not_found(ErrorCode::ManifestBlobUnknown, message));
            }
        }
        for named in parsed.manifests.iter().flatten() {
            if self.0.images.manifest(repository, &named.digest).await?.is_none() {
                let message = format!("`{repository}` has no manifest {}; push it first", named.digest);
                return Err(Refusal::not_found(ErrorCode::ManifestBlobUnknown, message));
            }
        }
        self.0.images.put_manifest(repository, &media_type, document).await?;
        if let Reference::Tag(tag) = reference {
            self.0.images.pin(repository, tag, &digest).await?;
        }
        let location = format!("/v2/{repository}/manifests/{digest}");
        let mut answer =
            (StatusCode::CREATED, [(header::LOCATION, location)], [(CONTENT_DIGEST, digest_value(&digest))])
                .into_response();
        if let Some(subject) = parsed.subject {
            answer.headers_mut().insert(OCI_SUBJECT, digest_value(&subject.digest));
        }
        Ok(answer)
    }

    /// `DELETE` of a tag, or of a manifest with all its tags.
    pub(crate) async fn delete_manifest(&self, repository: &str, reference: &Reference) -> Result<Response, Refusal> {
        let metadata = self.0.images.metadata();
        let mut batch = Batch::default();
        match reference {
            Reference::Tag(tag) => {
                let unknown =
                    || Refusal::not_found(ErrorCode::ManifestUnknown, format!("`{repository}` has no tag `{tag}`"));
                let row = metadata.find::<TagRow>(&short_hash(repository), tag).await?.ok_or_else(unknown)?;
                batch.delete(&row);
            }
            Reference::Digest(digest) => {
                let unknown = || {
                    Refusal::not_found(ErrorCode::ManifestUnknown, format!("`{repository}` has no manifest {digest}"))
                };
                let row = self.0.images.manifest(repository, digest).await?.ok_or_else(unknown)?;
                if let Some(revision) = used_by_revision(metadata, repository, digest).await? {
                    let message = format!("revision {revision} runs this image; delete or replace the component first");
                    return Err(Refusal::new(StatusCode::CONFLICT, ErrorCode::Denied, message));
                }
                let siblings = metadata.list::<ManifestRow>(&Query::parent(short_hash(repository))).await?;
                if siblings.items.iter().any(|it| it.value.references.contains(digest)) {
                    let message = "an index of the repository names this manifest; delete the index first";
                    return Err(Refusal::new(StatusCode::CONFLICT, ErrorCode::Denied, message));
                }
                let tags = metadata.list::<TagRow>(&Query::parent(short_hash(repository))).await?;
                for tag in tags.items.iter().filter(|it| it.value.digest == *digest) {
                    batch.delete(tag);
                }
                batch.delete(&row);
            }
        }
        match metadata.commit(batch).await {
            Err(SqlError::Conflict { .. }) => Err(Refusal::new(
                StatusCode::CONFLICT,
                ErrorCode::Denied,
                "somebody else changed it meanwhile; try again",
            )),
            other => Ok(other.map(|()| StatusCode::ACCEPTED.into_response())?),
        }
    }

    /// `GET …/referrers/{digest}`: an index of the manifests whose subject it is.
    pub(crate) async fn referrers(
        &self,
        repository: &str,
        digest: &Digest,
        query: &[(String, String)],
    ) -> Result<Response, Refusal> {
        let wanted = query.iter().find(|it| it.0 == "artifactType").map(|it| it.1.as_str());
        let rows = self.0.images.metadata().list::<ManifestRow>(&Query::parent(short_hash(repository))).await?;
        let mut found = Vec::new();
        for row in rows.items.into_iter().map(|it| it.value).filter(|it| it.subject.as_ref() == Some(digest)) {
            let document = self.0.images.blobs().get_bytes(&content_path(&row.digest), MANIFEST_MAX).await?;
            let Ok(parsed) = serde_json::from_slice::<Document>(&document) else { continue };
            let kind = parsed.artifact_type.or(parsed.config.map(|it| it.media_type)).unwrap_or_default();
            if wanted.is_none_or(|it| it == kind) {
                let mut named = serde_json::json!({ "mediaType": row.media_type, "digest": row.digest, "size": row.size, "artifactType": kind });
                if !parsed.annotations.is_empty() {
                    named["annotations"] = serde_json::json!(parsed.annotations);
                }
                found.push(named);
            }
        }
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": found });
        let mut answer = ([(header::CONTENT_TYPE, INDEX_TYPE)], index.to_string()).into_response();
        if wanted.is_some() {
            answer.headers_mut().insert(OCI_FILTERS, HeaderValue::from_static("artifactType"));
        }
        Ok(answer)
    }
}

async fn read_document(mut body: BodyDataStream) -> Result<Bytes, Refusal> {
    let mut document = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece =
            piece.map_err(|_| Refusal::invalid(ErrorCode::ManifestInvalid, "the connection broke; push again"))?;
        if document.len() + piece.len() > MANIFEST_MAX {
            let message = format!("the manifest is larger than {MANIFEST_MAX} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, message));
        }
        document.extend_from_slice(&piece);
    }
    Ok(document.freeze())
}

/// The media type of a manifest, where header and document agree and its fields are those of its type.
fn check_type(parsed: &Document, said: &str) -> Result<String, String> {
    if parsed.schema_version != 2 {
        return Err(format!("manifests of schema version {} are not supported", parsed.schema_version));
    }
    let inside = parsed.media_type.as_deref().unwrap_or("");
    if !said.is_empty() && !inside.is_empty() && said != inside {
        return Err(format!("Content-Type says `{said}`, the manifest says `{inside}`"));
    }
    let guessed = if parsed.manifests.is_some() { INDEX_TYPE } else { MANIFEST_TYPE };
    let media_type = [said, inside, guessed].into_iter().find(|it| !it.is_empty()).unwrap_or(guessed);
    let is_right = match media_type {
        MANIFEST_TYPE | DOCKER_MANIFEST_TYPE => parsed.config.is_some() && parsed.manifests.is_none(),
        INDEX_TYPE | DOCKER_LIST_TYPE => {
            parsed.manifests.is_some() && parsed.config.is_none() && parsed.layers.is_empty()
        }
        _ => return Err(format!("the media type `{}` is not known", media_type.chars().take(100).collect::<String>())),
    };
    if is_right { Ok(media_type.to_owned()) } else { Err(format!("its fields are not those of `{media_type}`")) }
}
