//! The role that serves images: OCI distribution 1.1 over [`arco_store::images::Images`].
//!
//! What must hold: without a token that names the repository nothing is read or written; a blob is readable only in
//! repositories that have it (pushed, mounted, or named by one of their manifests), so a digest alone opens nothing;
//! what a revision uses is neither deleted on request nor collected.
//!
//! Not here: TLS (the listener's work) and who gets a credential (`api` decides and calls [`Tokens::issue`]).

mod access;
mod blobs;
mod error;
pub mod garbage;
mod links;
mod manifests;
mod refusal;
mod route;
mod serve;
mod tags;
mod tokens;
mod uploads;

pub use error::RegistryError;
pub use tokens::{Action, Grant, Scope, Tokens};

use arco_daemon::CancellationToken;
use arco_model::artifact::Digest;
use arco_store::images::Images;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uploads::Uploads;

/// How long unfinished uploads and what nothing names are left alone.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// How often garbage is collected, and when first.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// What the registry works on.
pub struct RegistryDeps {
    /// Manifests, tags and blobs.
    pub images: Images,
    /// Its folder, `<data-dir>/registry`: the token key and unfinished uploads.
    pub folder: PathBuf,
    /// Address under which clients reach it (`https://registry.example.com`); `None` means `http://` and the host that
    /// the client asked for.
    pub public_url: Option<String>,
}

/// The registry; cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    images: Images,
    uploads: Uploads,
    tokens: Tokens,
    public_url: Option<String>,
}

impl Registry {
    /// Opens its folder; makes the token key at first start.
    pub fn build(deps: RegistryDeps) -> Result<Self, RegistryError> {
        let uploads = Uploads::open(deps.folder.join("uploads"))?;
        let tokens = Tokens::open(&deps.folder.join("token.key"))?;
        Ok(Self(Arc::new(Inner { images: deps.images, uploads, tokens, public_url: deps.public_url })))
    }

    /// `/v2/…` and `/token`.
    pub fn router(&self) -> axum::Router {
        serve::router(self.clone())
    }

    /// The same API for a listener that ends TLS.
    pub fn router_over_tls(&self) -> axum::Router {
        serve::over_tls(self.clone())
    }

    /// Gives credentials.
    pub fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// Collects garbage once: blobs, manifests, uploads that were never finished.
    pub async fn collect(&self, keep: &HashSet<Digest>, grace: Duration) -> Result<garbage::Collected, RegistryError> {
        let mut collected = garbage::collect(&self.0.images, keep, grace).await?;
        collected.uploads = self.0.uploads.collect(grace).await?;
        Ok(collected)
    }

    /// Collects garbage every hour until `token` is cancelled. `keep` names, each time, the digests that are in use
    /// although no row says so: caches of builds, images of instances that still run. When it fails, nothing is deleted.
    pub async fn run<K, F>(&self, keep: K, token: CancellationToken) -> Result<(), RegistryError>
    where
        K: Fn() -> F + Send + Sync,
        F: Future<Output = Result<HashSet<Digest>, arco_daemon::BoxError>> + Send,
    {
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(COLLECT_EVERY) => {}
            }
            let keep = match keep().await {
                Ok(keep) => keep,
                Err(error) => {
                    tracing::warn!(error = %error, "garbage stays: what is in use is not known");
                    continue;
                }
            };
            match self.collect(&keep, GRACE).await {
                Ok(done) if done == garbage::Collected::default() => {}
                Ok(done) => tracing::info!(
                    manifests = done.manifests,
                    blobs = done.blobs,
                    bytes = done.bytes,
                    uploads = done.uploads,
                    "garbage was collected"
                ),
                Err(error) => tracing::warn!(error = %error, "garbage was not collected"),
            }
        }
    }
}
