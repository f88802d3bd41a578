//! Blobs: read whole or in part, pushed in one piece or in chunks, mounted from another repository.

use crate::Registry;
use crate::links::link_path;
use crate::refusal::Refusal;
use crate::tokens::{Action, Scope};
use arco_model::artifact::Digest;
use arco_store::blob::{BlobError, ByteStream, content_path};
use axum::body::{Body, BodyDataStream};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use oci_spec::distribution::ErrorCode;
use sha2::Digest as _;

pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The header value of a digest.
pub(crate) fn digest_value(digest: &Digest) -> HeaderValue {
    HeaderValue::from_str(digest.as_str()).unwrap_or(HeaderValue::from_static(""))
}

impl Registry {
    /// `GET` and `HEAD` of a blob, whole or a range of it.
    pub(crate) async fn read_blob(
        &self,
        method: &Method,
        repository: &str,
        digest: &Digest,
        headers: &HeaderMap,
    ) -> Result<Response, Refusal> {
        let unknown = || Refusal::not_found(ErrorCode::BlobUnknown, format!("`{repository}` has no blob {digest}"));
        let found = self.find_blob(repository, digest).await?.ok_or_else(unknown)?;
        let (start, end, status) = match headers.get(header::RANGE).map(|it| range(it, found.size)) {
            None | Some(Asked::All) => (0, found.size, StatusCode::OK),
            Some(Asked::Part(start, end)) => (start, end, StatusCode::PARTIAL_CONTENT),
            Some(Asked::Nothing) => {
                let all = HeaderValue::from_str(&format!("bytes */{}", found.size))
                    .unwrap_or(HeaderValue::from_static("bytes */0"));
                let message = "the blob has no such range";
                let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::SizeInvalid, message);
                return Err(refusal.with(header::CONTENT_RANGE, all));
            }
        };
        let mut answer = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, end - start)
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, format!("\"{digest}\""))
            .header(CONTENT_DIGEST, digest_value(digest));
        if status == StatusCode::PARTIAL_CONTENT {
            answer = answer.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{}", end - 1, found.size));
        }
        let body = if *method == Method::HEAD {
            Body::empty()
        } else {
            let content = self.0.images.blobs().get(&content_path(digest), start).await?;
            Body::from_stream(first_bytes(content, end - start))
        };
        answer.body(body).map_err(|it| Refusal::internal("answer", &it))
    }

    /// `DELETE` of a blob: the repository has it no longer; the content goes when nobody has it.
    pub(crate) async fn delete_blob(&self, repository: &str, digest: &Digest) -> Result<Response, Refusal> {
        if self.find_blob(repository, digest).await?.is_none() {
            return Err(Refusal::not_found(ErrorCode::BlobUnknown, format!("`{repository}` has no blob {digest}")));
        }
        if self.is_named(repository, digest).await? {
            let message = "a manifest of the repository names this blob; delete the manifest first";
            return Err(Refusal::new(StatusCode::CONFLICT, ErrorCode::Denied, message));
        }
        self.0.images.blobs().delete(&link_path(repository, digest)).await?;
        Ok(StatusCode::ACCEPTED.into_response())
    }

    /// `POST …/blobs/uploads/`: a mount, a whole blob, or the beginning of an upload.
    pub(crate) async fn begin_upload(
        &self,
        repository: &str,
        query: &[(String, String)],
        scope: &Scope,
        body: BodyDataStream,
    ) -> Result<Response, Refusal> {
        let word = |name: &str| query.iter().find(|it| it.0 == name).map(|it| it.1.as_str());
        if let (Some(digest), Some(from)) = (word("mount"), word("from")) {
            let digest = parse_digest(digest)?;
            // Who may not read it there learns nothing: the answer is the same as when it is not there.
            if scope.allows(from, Action::Pull) && self.find_blob(from, &digest).await?.is_some() {
                self.link(repository, &digest).await?;
                return Ok(created(repository, &digest));
            }
        }
        if let Some(digest) = word("digest") {
            let digest = parse_digest(digest)?;
            self.0.uploads.check_space()?;
            let content = body.map_err(std::io::Error::other).boxed();
            self.keep(repository, &digest, content).await?;
            return Ok(created(repository, &digest));
        }
        let id = self.0.uploads.begin(repository).await?;
        let upload = self.0.uploads.take(repository, &id).await?;
        Ok((StatusCode::ACCEPTED, upload.headers(repository)).into_response())
    }

    /// `GET` of an upload: how much has come.
    pub(crate) async fn upload_status(&self, repository: &str, id: &str) -> Result<Response, Refusal> {
        let upload = self.0.uploads.take(repository, id).await?;
        Ok((StatusCode::NO_CONTENT, upload.headers(repository)).into_response())
    }

    /// `PATCH` of an upload: a chunk.
    pub(crate) async fn upload_chunk(
        &self,
        repository: &str,
        id: &str,
        headers: &HeaderMap,
        body: BodyDataStream,
    ) -> Result<Response, Refusal> {
        self.0.uploads.check_space()?;
        let mut upload = self.0.uploads.take(repository, id).await?;
        upload.append(headers.get(header::CONTENT_RANGE), body).await?;
        Ok((StatusCode::ACCEPTED, upload.headers(repository)).into_response())
    }

    /// `PUT` of an upload: perhaps a last chunk, then the digest of all.
    pub(crate) async fn finish_upload(
        &self,
        repository: &str,
        id: &str,
        query: &[(String, String)],
        headers: &HeaderMap,
        body: BodyDataStream,
    ) -> Result<Response, Refusal> {
        let digest = query.iter().find(|it| it.0 == "digest").map(|it| it.1.as_str());
        let digest = parse_digest(digest.unwrap_or(""))?;
        let mut upload = self.0.uploads.take(repository, id).await?;
        upload.append(headers.get(header::CONTENT_RANGE), body).await?;
        let fail = |it| Refusal::internal("read the upload", &it);
        let file = tokio::fs::File::open(&upload.path).await.map_err(fail)?;
        let content = tokio_util::io::ReaderStream::with_capacity(file, 128 << 10).boxed();
        let kept = self.keep(repository, &digest, content).await;
        upload.end().await?;
        kept?;
        Ok(created(repository, &digest))
    }

    /// `DELETE` of an upload.
    pub(crate) async fn cancel_upload(&self, repository: &str, id: &str) -> Result<Response, Refusal> {
        self.0.uploads.take(repository, id).await?.end().await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// Writes a blob if its content is what its digest says.
    async fn keep(&self, repository: &str, digest: &Digest, content: ByteStream) -> Result<(), Refusal> {
        let written = self.0.images.put_content(digest, verified(content, digest.clone())).await;
        match written {
            Err(BlobError::Io { source, .. }) if source.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Refusal::invalid(ErrorCode::DigestInvalid, format!("the content is not {digest}")));
            }
            Err(BlobError::Io { step: "receive", .. }) => {
                return Err(Refusal::invalid(ErrorCode::BlobUploadInvalid, "the connection broke; push again"));
            }
            other => other?,
        };
        self.link(repository, digest).await
    }
}

fn created(repository: &str, digest: &Digest) -> Response {
    let location = format!("/v2/{repository}/blobs/{digest}");
    (StatusCode::CREATED, [(header::LOCATION, location)], [(CONTENT_DIGEST, digest_value(digest))]).into_response()
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|_| Refusal::invalid(ErrorCode::DigestInvalid, "the digest is not `sha256:` and 64 hex digits"))
}

/// The stream, with an error of kind `InvalidData` at its end when it was not what `digest` says.
fn verified(content: ByteStream, digest: Digest) -> ByteStream {
    let state = (content, Some(sha2::Sha256::new()), digest);
    let checked = futures_util::stream::unfold(state, |(mut content, mut hash, digest)| async move {
        match content.next().await {
            Some(Ok(piece)) => {
                if let Some(hash) = &mut hash {
                    hash.update(&piece);
                }
                Some((Ok(piece), (content, hash, digest)))
            }
            Some(Err(error)) => Some((Err(error), (content, None, digest))),
            None => {
                let found = Digest::from_sha256(&hash?.finalize().into());
                let wrong = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the digest is another one");
                (found != digest).then(|| (Err(wrong()), (content, None, digest)))
            }
        }
    });
    checked.boxed()
}

/// The first `length` bytes of a stream.
fn first_bytes(content: ByteStream, length: u64) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    futures_util::stream::unfold((content, length), |(mut content, left)| async move {
        if left == 0 {
            return None;
        }
        let piece = content.next().await?;
        Some(match piece {
            Ok(mut piece) => {
                piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - piece.len() as u64;
                (Ok(piece), (content, left))
            }
            Err(error) => (Err(error), (content, 0)),
        })
    })
}

/// What a `Range` header asks for.
#[derive(Debug, Eq, PartialEq)]
enum Asked {
    All,
    /// From the first to before the second.
    Part(u64, u64),
    Nothing,
}

/// Reads `bytes=a-b`, `bytes=a-`, `bytes=-n` (RFC 9110 §14.1.2). Anything else, also several ranges, means all.
fn range(value: &HeaderValue, size: u64) -> Asked {
    let text = value.to_str().ok().and_then(|it| it.strip_prefix("bytes=")).and_then(|it| it.split_once('-'));
    let Some((start, end)) = text else { return Asked::All };
    let part = |start: u64, end: u64| if start < end { Asked::Part(start, end) } else { Asked::Nothing };
    match (start.parse::<u64>(), end.parse::<u64>(), start.is_empty(), end.is_empty()) {
        (Ok(start), Ok(end), ..) if end >= start => part(start, size.min(end.saturating_add(1))),
        (Ok(start), _, _, true) => part(start, size),
        (_, Ok(last), true, _) => part(size.saturating_sub(last), size),
        _ => Asked::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_rfc_9110() {
        use Asked::*;
        for (text, asked) in [
            ("bytes=0-0", Part(0, 1)),
            ("bytes=2-4", Part(2, 5)),
            ("bytes=8-", Part(8, 10)),
            ("bytes=-3", Part(7, 10)),
            ("bytes=-30", Part(0, 10)),
            ("bytes=0-99999999999999999999", All),
            ("bytes=5-18446744073709551615", Part(5, 10)),
            ("bytes=10-", Nothing),
            ("bytes=-0", Nothing),
            ("bytes=4-2", All),
            ("bytes=0-1,3-4", All),
            ("lines=0-1", All),
            ("bytes=-", All),
        ] {
            assert_eq!(range(&HeaderValue::from_static(text), 10), asked, "{text}");
        }
    }
}
