//! Blobs in a bucket of S3 or of a server that speaks its protocol.
//!
//! A blob that fits into one part is one request; a larger one is a multipart upload, which the server shows when it is
//! completed and not before. An upload that fails, or whose writer goes away, is aborted; one whose process died stays invisible
//! and is for the bucket's own rule to remove. Credentials are never part of the URL and never shown.

use super::{BlobError, BlobStat, Blobs, ByteStream};
use arco_model::time::Timestamp;
use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore as _, ObjectStoreExt as _,
    PutPayload, PutPayloadMut, RetryConfig, WriteMultipart,
};
use std::time::Duration;
use url::Url;

/// Size of a part; S3 allows 10 000 parts, so a blob may have 80 GB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one upload on their way, which bounds the memory that it takes.
const PARTS_AT_ONCE: usize = 3;

/// What a bucket needs beside its URL.
#[derive(Default)]
pub struct S3Access {
    /// Text of a file in the form of `~/.aws/credentials`; its section `[default]` counts. Without one the environment
    /// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, a web identity, the machine's role) is asked.
    pub credentials: Option<String>,
    /// Authorities to trust beside the system's, PEM.
    pub ca_pem: Option<String>,
}

/// The credentials stay out of every log.
impl std::fmt::Debug for S3Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Access").finish_non_exhaustive()
    }
}

/// Blobs in a bucket.
pub struct S3Blobs {
    store: AmazonS3,
    /// Before each path; empty or without a `/` at the end.
    prefix: String,
}

impl S3Blobs {
    /// Connects to the bucket of `s3://BUCKET/PREFIX?endpoint=URL&region=NAME` and looks into it. `endpoint` is for other
    /// servers than Amazon's, which are asked with the bucket in the path; with `http://` nothing is encrypted.
    pub async fn open(url: &str, access: &S3Access) -> Result<Self, BlobError> {
        let (store, prefix) = bucket(url, access).map_err(|cause| BlobError::Io {
            step: "open the bucket of",
            path: prefix_of(url),
            source: std::io::Error::other(cause),
        })?;
        let blobs = Self { store, prefix };
        let below = (!blobs.prefix.is_empty()).then(|| Path::from(blobs.prefix.as_str()));
        let mut listed = blobs.store.list(below.as_ref());
        match listed.next().await {
            Some(Err(error)) => Err(failed("list the bucket of", &prefix_of(url), error)),
            _ => Ok(blobs),
        }
    }

    fn key(&self, path: &str) -> Result<Path, BlobError> {
        super::check_path(path)?;
        self.below(path)
    }

    fn below(&self, path: &str) -> Result<Path, BlobError> {
        let whole = format!("{}/{path}", self.prefix);
        Path::parse(whole.trim_matches('/')).map_err(|_| BlobError::Path(path.to_owned()))
    }

    fn stat_of(&self, found: &ObjectMeta) -> Option<BlobStat> {
        let path = found.location.as_ref().strip_prefix(self.prefix.as_str())?.trim_start_matches('/').to_owned();
        let modified = Timestamp(found.last_modified.timestamp_millis().max(0) as u64);
        Some(BlobStat { path, size: found.size, modified })
    }

    /// A multipart upload that begins with a full part.
    async fn put_parts(
        &self,
        path: &str,
        key: &Path,
        first: PutPayloadMut,
        content: &mut ByteStream,
    ) -> Result<u64, BlobError> {
        let upload = self.store.put_multipart(key).await.map_err(|it| failed("begin to write", path, it))?;
        let mut begun = Begun { upload: None, path: path.to_owned() };
        let upload = begun.upload.insert(WriteMultipart::new_with_chunk_size(upload, PART_BYTES));
        let mut size = 0;
        for piece in PutPayload::from(first) {
            size += piece.len() as u64;
            upload.put(piece);
        }
        loop {
            let step = match content.next().await {
                None => break,
                Some(Err(source)) => Err(BlobError::Io { step: "receive", path: path.to_owned(), source }),
                Some(Ok(piece)) => {
                    let room = upload.wait_for_capacity(PARTS_AT_ONCE).await;
                    size += piece.len() as u64;
                    upload.put(piece);
                    room.map_err(|it| failed("write a part of", path, it))
                }
            };
            if let Err(error) = step {
                if let Some(upload) = begun.upload.take() {
                    abort(upload, path).await;
                }
                return Err(error);
            }
        }
        if let Some(upload) = begun.upload.take() {
            upload.finish().await.map_err(|it| failed("finish writing", path, it))?;
        }
        Ok(size)
    }
}

/// A multipart upload that takes content, and whose parts do not stay when whoever writes goes away.
struct Begun {
    upload: Option<WriteMultipart>,
    path: String,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let path = std::mem::take(&mut self.path);
            runtime.spawn(async move { abort(upload, &path).await });
        }
    }
}

async fn abort(upload: WriteMultipart, path: &str) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(path, %error, "the parts of a failed upload stay in the bucket");
    }
}

/// The bucket's client and the prefix in it.
fn bucket(url: &str, access: &S3Access) -> Result<(AmazonS3, String), String> {
    let url = Url::parse(url).map_err(|it| format!("its URL is not valid: {it}"))?;
    let name = url.host_str().unwrap_or_default();
    if url.scheme() != "s3" || name.is_empty() {
        return Err("its URL is s3://BUCKET/PREFIX?endpoint=URL&region=NAME".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into the URL; name a file with `blobs_credentials_file`".to_owned());
    }
    let prefix = url.path().trim_matches('/').to_owned();
    if !prefix.is_empty() {
        super::check_path(&prefix).map_err(|it| it.to_string())?;
    }
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only when another thread was faster, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    // A body may take long; silence may not.
    let mut client = ClientOptions::new().with_timeout_disabled().with_connect_timeout(Duration::from_secs(5));
    client = client.with_read_timeout(Duration::from_secs(30));
    if let Some(pem) = &access.ca_pem {
        let roots =
            Certificate::from_pem_bundle(pem.as_bytes()).map_err(|it| format!("the authorities' file: {it}"))?;
        client = roots.into_iter().fold(client, ClientOptions::with_root_certificate);
    }
    // Each delete is a request of its own: not every server knows the call for many.
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(name).with_disable_bulk_delete(true);
    for (key, value) in url.query_pairs() {
        builder = match &*key {
            "endpoint" => {
                client = client.with_allow_http(value.starts_with("http://"));
                builder.with_endpoint(value)
            }
            "region" => builder.with_region(value),
            "virtual_hosted" => builder.with_virtual_hosted_style_request(value == "true"),
            _ => {
                return Err(format!(
                    "its URL has the unknown parameter `{key}`; known: endpoint, region, virtual_hosted"
                ));
            }
        };
    }
    if let Some(text) = &access.credentials {
        let found = credentials(text)?;
        builder = builder.with_access_key_id(found.id).with_secret_access_key(found.secret);
        if let Some(token) = found.token {
            builder = builder.with_token(token);
        }
    }
    let retry = RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
    let store = builder.with_client_options(client).with_retry(retry).build();
    Ok((store.map_err(|it| it.to_string())?, prefix))
}

/// A key of the section `[default]`.
struct Credentials {
    id: String,
    secret: String,
    token: Option<String>,
}

fn credentials(text: &str) -> Result<Credentials, String> {
    let (mut inside, mut id, mut secret, mut token) = (true, None, None, None);
    for line in text.lines().map(str::trim).filter(|it| !it.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.trim_end_matches(']').trim() == "default";
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let value = Some(value.trim().to_owned()).filter(|it| !it.is_empty());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(Credentials { id, secret, token }),
        _ => Err("the credentials' file has no aws_access_key_id and aws_secret_access_key in [default]".to_owned()),
    }
}

/// Bucket and prefix for errors.
fn prefix_of(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| "(no URL)".to_owned(),
        |it| format!("{}{}", it.host_str().unwrap_or_default(), it.path().trim_end_matches('/')),
    )
}

fn failed(step: &'static str, path: &str, error: Error) -> BlobError {
    match error {
        Error::NotFound { .. } if step.starts_with("list") => {
            BlobError::Io { step, path: path.to_owned(), source: std::io::Error::other("the bucket does not exist") }
        }
        Error::NotFound { .. } => BlobError::NotFound(path.to_owned()),
        error => BlobError::Io { step, path: path.to_owned(), source: std::io::Error::other(error) },
    }
}

#[async_trait]
impl Blobs for S3Blobs {
    fn name(&self) -> &'static str {
        "s3"
    }

    async fn put(&self, path: &str, mut content: ByteStream) -> Result<u64, BlobError> {
        let key = self.key(path)?;
        let mut first = PutPayloadMut::new();
        while first.content_length() < PART_BYTES {
            match content.next().await {
                Some(Ok(piece)) => first.push(piece),
                Some(Err(source)) => return Err(BlobError::Io { step: "receive", path: path.to_owned(), source }),
                None => {
                    let size = first.content_length() as u64;
                    let done = self.store.put(&key, first.into()).await;
                    return done.map(|_| size).map_err(|it| failed("write", path, it));
                }
            }
        }
        self.put_parts(path, &key, first, &mut content).await
    }

    async fn get(&self, path: &str, offset: u64) -> Result<ByteStream, BlobError> {
        let key = self.key(path)?;
        let mut options = GetOptions::default();
        if offset > 0 {
            // A range that begins at the end or behind it is an error on the wire, and an empty rest here.
            let size = self.store.head(&key).await.map_err(|it| failed("look at", path, it))?.size;
            if offset >= size {
                return Ok(Box::pin(futures_util::stream::empty()));
            }
            options.range = Some(GetRange::Offset(offset));
        }
        let found = self.store.get_opts(&key, options).await.map_err(|it| failed("read", path, it))?;
        Ok(Box::pin(found.into_stream().map_err(std::io::Error::other)))
    }

    async fn stat(&self, path: &str) -> Result<Option<BlobStat>, BlobError> {
        match self.store.head(&self.key(path)?).await {
            Ok(found) => Ok(self.stat_of(&found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look at", path, error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobStat>, BlobError> {
        let folder = prefix.trim_end_matches('/');
        if !folder.is_empty() {
            super::check_path(folder)?;
        }
        let below = self.below(folder)?;
        let below = (!below.as_ref().is_empty()).then_some(below);
        let listed = self.store.list(below.as_ref()).map_err(|it| failed("list", prefix, it));
        let mut found: Vec<_> = listed.try_filter_map(|it| async move { Ok(self.stat_of(&it)) }).try_collect().await?;
        found.sort_by(|a: &BlobStat, b| a.path.cmp(&b.path));
        Ok(found)
    }

    async fn delete(&self, path: &str) -> Result<(), BlobError> {
        match self.store.delete(&self.key(path)?).await {
            Err(error) if !matches!(error, Error::NotFound { .. }) => Err(failed("delete", path, error)),
            _ => Ok(()),
        }
    }

    fn local_file(&self, _path: &str) -> Option<std::path::PathBuf> {
        None
    }
}

#[cfg(test)]
mod faults;

#[cfg(test)]
mod tests {
    use super::{S3Access, bucket, credentials};

    #[test]
    fn credentials_come_from_the_default_section() {
        let found = credentials(
            "[other]\naws_access_key_id=x\n[default]\n# no\naws_access_key_id = a\naws_secret_access_key=b=\n",
        );
        let found = found.unwrap();
        assert_eq!((found.id.as_str(), found.secret.as_str(), found.token), ("a", "b=", None));
        assert!(credentials("[default]\naws_access_key_id=a\n").is_err());
        assert!(credentials("[other]\naws_access_key_id=a\naws_secret_access_key=b\n").is_err());
    }

    #[test]
    fn wrong_urls_are_refused_without_showing_secrets() {
        for url in ["s3://", "http://bucket/", "s3://id:secret@bucket/", "s3://bucket/../x?secret=1", "s3://b/a%20b"] {
            let error = bucket(url, &S3Access::default()).map(drop).unwrap_err();
            assert!(!error.contains("secret@"), "{error}");
        }
    }
}
