//! The registry as its clients use it: HTTP by hand, `skopeo`, and the collection of garbage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod chores;
mod http;
mod interleaved;
mod skopeo;

use arco_model::artifact::Digest;
use arco_registry::{Action, Registry, RegistryDeps, Scope};
use arco_store::blob::{DiskBlobs, content_path};
use arco_store::images::Images;
use arco_store::sql::MemoryMetadata;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

const REPOSITORY: &str = "default/shop/web";
/// How long tokens hold: longer than any test.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const ALL: [Action; 3] = [Action::Pull, Action::Push, Action::Delete];

struct Running {
    registry: Registry,
    images: Images,
    _folder: tempfile::TempDir,
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |it| it.to_str().unwrap())
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Code of the first error.
    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or("").to_owned()
    }
}

impl Running {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (registry, images) = open(folder.path());
        Self { registry, images, _folder: folder }
    }

    fn token(&self, repository: &str, actions: &[Action]) -> String {
        self.registry.tokens().issue(&Scope::repository(repository, actions), LIFE)
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.registry.router().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        Answer { status, headers, body }
    }

    /// A request that may do everything.
    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let token = self.registry.tokens().issue(&Scope::everything(&ALL), LIFE);
        let bearer = format!("Bearer {token}");
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        self.send(method, path, &headers, body).await
    }

    /// Pushes a blob in one piece.
    async fn push_blob(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.call("POST", &path, &[], content.to_vec()).await.status, StatusCode::CREATED);
        digest
    }

    /// Pushes an image of one layer; `extra` goes into its manifest.
    async fn push_image(&self, repository: &str, reference: &str, layer: &[u8], extra: serde_json::Value) -> Digest {
        let (config, layer_digest) = (self.push_blob(repository, b"{}").await, self.push_blob(repository, layer).await);
        let mut manifest = manifest(&config, 2, &layer_digest, layer.len());
        manifest.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
        let document = manifest.to_string();
        let digest = Digest::of(document.as_bytes());
        let reference = if reference.is_empty() { digest.as_str() } else { reference };
        let headers = [("content-type", arco_store::images::MANIFEST_TYPE)];
        let answer = self.call("PUT", &format!("/v2/{repository}/manifests/{reference}"), &headers, document).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&answer.body));
        digest
    }

    async fn has(&self, digest: &Digest) -> bool {
        self.images.blobs().stat(&content_path(digest)).await.unwrap().is_some()
    }
}

fn open(folder: &Path) -> (Registry, Images) {
    let blobs = Arc::new(DiskBlobs::open(folder.join("blobs")).unwrap());
    let images = Images::new(Arc::new(MemoryMetadata::default()), blobs);
    let deps = RegistryDeps { images: images.clone(), folder: folder.join("registry"), public_url: None };
    (Registry::build(deps).unwrap(), images)
}

fn manifest(config: &Digest, config_size: usize, layer: &Digest, layer_size: usize) -> serde_json::Value {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": arco_store::images::MANIFEST_TYPE,
        "config": { "mediaType": arco_store::images::CONFIG_TYPE, "digest": config, "size": config_size },
        "layers": [{ "mediaType": arco_store::images::LAYER_GZIP_TYPE, "digest": layer, "size": layer_size }],
    })
}
