//! Built images: digests, references, descriptors (OCI image spec 1.1).

use serde::{Deserialize, Serialize};

/// `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text that is not a digest.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a digest (sha256: and 64 hex digits)")]
pub struct DigestError(String);

impl Digest {
    /// The digest of a content.
    pub fn of(content: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_sha256(&sha2::Sha256::digest(content).into())
    }

    /// From the 32 bytes of a SHA-256.
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// With the `sha256:` in front.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").unwrap_or("");
        if hex.len() == 64 && hex.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it)) {
            Ok(Self(text))
        } else {
            Err(DigestError(text.chars().take(100).collect()))
        }
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// One blob of an image.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest of the blob as stored (compressed).
    pub digest: Digest,
    /// Size of the blob as stored, in bytes.
    pub size: u64,
}

/// A layer: the stored blob and the digest of its uncompressed tar (`diff_id`).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The stored, usually compressed, tar.
    pub blob: Descriptor,
    /// Digest of the uncompressed tar; what an unpacked layer is kept under.
    pub diff_id: Digest,
}

/// An image of our own registry: a repository and the digest of its manifest.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ImageRef {
    /// `<tenant>/<application>/<component>`, or `stack/<name>` for base stacks and toolchains.
    pub repository: String,
    /// Digest of the manifest; instances always run by digest.
    pub digest: Digest,
}

/// What of an image's configuration decides how it runs (OCI image spec, `config`).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment as `K=V`.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Arguments, or the whole command without an entry point.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// `user[:group]`, by number or by name in the image's `/etc/passwd`.
    pub user: String,
    /// Ports that the image says it listens on (`8080/tcp`).
    pub exposed_ports: Vec<String>,
    /// Signal that stops it; empty means SIGTERM.
    pub stop_signal: String,
}
