//! Downloads from the registries of languages, checked against the digest that the registry gives.

use super::Say;
use base64::Engine as _;
use sha2::{Digest as _, Sha512};
use std::io::{self, Seek as _, Write as _};
use std::path::Path;

/// Largest download, in bytes.
const LARGEST: u64 = 512 << 20;

/// A client that trusts what the machine trusts.
pub(super) fn client() -> io::Result<reqwest::Client> {
    // Fails only when one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(std::time::Duration::from_secs(20))
        .read_timeout(std::time::Duration::from_secs(60))
        .user_agent("arco")
        .build()
        .map_err(io::Error::other)
}

/// What of an error helps: the innermost cause.
fn plain(url: &str, error: reqwest::Error) -> io::Error {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    io::Error::other(format!("`{url}` cannot be read: {cause}"))
}

/// A small text.
pub(super) async fn text(client: &reqwest::Client, url: &str, accept: &str) -> io::Result<String> {
    let answer = client.get(url).header("accept", accept).send().await.and_then(reqwest::Response::error_for_status);
    answer.map_err(|it| plain(url, it))?.text().await.map_err(|it| plain(url, it))
}

/// A file, read from its beginning; `integrity` is npm's `sha512-<base64>`, if there is one.
pub(super) async fn file(
    client: &reqwest::Client,
    url: &str,
    integrity: Option<&str>,
    work: &Path,
    say: Say<'_>,
) -> io::Result<std::fs::File> {
    let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let mut answer = answer.map_err(|it| plain(url, it))?;
    let total = answer.content_length().unwrap_or(0);
    say(format!("downloading {} ({} MB)", url.rsplit('/').next().unwrap_or(url), total >> 20));
    let (mut file, mut hash, mut size) = (tempfile::tempfile_in(work)?, Sha512::new(), 0u64);
    while let Some(piece) = answer.chunk().await.map_err(|it| plain(url, it))? {
        size += piece.len() as u64;
        if size > LARGEST {
            return Err(io::Error::other(format!("`{url}` is larger than {} MB", LARGEST >> 20)));
        }
        hash.update(&piece);
        file.write_all(&piece)?;
    }
    if let Some(asked) = integrity.and_then(|it| it.strip_prefix("sha512-")) {
        let found = base64::engine::general_purpose::STANDARD.encode(hash.finalize());
        if found != asked {
            return Err(io::Error::other(format!("`{url}` is not what the registry says: its SHA-512 differs")));
        }
    }
    file.rewind()?;
    Ok(file)
}
