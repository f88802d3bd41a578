//! Our own certificate authority: made at first start, signs the leaves of servers and clients.
//!
//! What must hold: the key of the authority never leaves its folder and has mode 0600; a leaf lives
//! [`LEAF_DAYS`] days and is due for renewal at half of that; the authority is never replaced silently, because every
//! client that knows the old one would be locked out. Who may do what with a certificate is the API's business.

mod subject;

use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::secrets::write_private;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use subject::Subject;

/// How long a leaf is valid, in days.
pub const LEAF_DAYS: u64 = 30;
/// How long the authority is valid, in days.
const AUTHORITY_DAYS: u64 = 3650;
/// Clocks of clients may be this far behind.
const SKEW_MS: u64 = 300_000;
const DAY_MS: u64 = 86_400_000;

/// Why certificates cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file of the authority cannot be read or written.
    #[error("failed to {step} `{}`: {source}", .path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate is there, its key is not.
    #[error("`{}` is missing although the certificate of the authority is there: put the key back, or remove the folder to begin with a new authority (clients then need new contexts)", .0.display())]
    KeyMissing(PathBuf),
    /// A certificate or key is damaged, or cannot be made.
    #[error("failed to {step}: {cause}")]
    Certificate {
        /// What was tried.
        step: String,
        /// Why not.
        cause: String,
    },
}

impl PkiError {
    /// A certificate that could not be made, read or handed over.
    pub fn certificate(step: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Certificate { step: step.into(), cause: cause.to_string() }
    }
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct Leaf {
    /// Certificate.
    pub certificate_pem: String,
    /// Private key (PKCS #8).
    pub key_pem: String,
    /// Valid until.
    pub expires_at: Timestamp,
    /// From now on a new one should be made: half of its life is over.
    pub renew_at: Timestamp,
}

impl Leaf {
    /// Writes `<folder>/<name>.pem` and `<folder>/<name>.key` with mode 0600, the key first.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(), PkiError> {
        for (extension, text) in [("key", &self.key_pem), ("pem", &self.certificate_pem)] {
            let path = folder.join(format!("{name}.{extension}"));
            write_private(&path, text.as_bytes()).map_err(|source| PkiError::File { step: "write", path, source })?;
        }
        Ok(())
    }
}

/// The certificate authority of a platform.
pub struct Pki {
    authority_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Reads the authority below `folder` (`<data-dir>/pki`), or makes folder (mode 0700) and authority.
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let file = |step, path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::File { step, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file("make", folder))?;
        let (certificate_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        let (certificate, key) = (read(&certificate_path)?, read(&key_path)?);
        if certificate.is_some() && key.is_none() {
            return Err(PkiError::KeyMissing(key_path));
        }
        // The key is written first: after a crash between the two files the certificate is made again from it.
        let key = match key {
            Some(pem) => KeyPair::from_pem(&pem)
                .map_err(|it| PkiError::certificate(format!("read `{}`", key_path.display()), it))?,
            None => {
                let key = KeyPair::generate().map_err(|it| PkiError::certificate("make the authority's key", it))?;
                write_private(&key_path, key.serialize_pem().as_bytes()).map_err(file("write", &key_path))?;
                key
            }
        };
        let authority_pem = match certificate {
            Some(pem) => pem,
            None => {
                let pem = authority(&key)?;
                write_private(&certificate_path, pem.as_bytes()).map_err(file("write", &certificate_path))?;
                pem
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&authority_pem, key)
            .map_err(|it| PkiError::certificate(format!("read `{}`", certificate_path.display()), it))?;
        Ok(Self { authority_pem, issuer })
    }

    /// The certificate of the authority, PEM: what clients and servers trust.
    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// A server certificate for DNS names and IP addresses.
    pub fn server(&self, hosts: &[String]) -> Result<Leaf, PkiError> {
        let params =
            CertificateParams::new(hosts).map_err(|it| PkiError::certificate("name the hosts of a certificate", it))?;
        let common = hosts.first().map_or("arco", String::as_str);
        self.sign(params, common_name(common), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate.
    pub fn client(&self, subject: &Subject) -> Result<Leaf, PkiError> {
        self.sign(CertificateParams::default(), subject.distinguished_name(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: DistinguishedName,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Leaf, PkiError> {
        let now = clock::now();
        let (expires_at, renew_at) = (now.plus_ms(LEAF_DAYS * DAY_MS), now.plus_ms(LEAF_DAYS * DAY_MS / 2));
        params.distinguished_name = name;
        params.not_before = point(Timestamp(now.0.saturating_sub(SKEW_MS)));
        params.not_after = point(expires_at);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|it| PkiError::certificate("make a key", it))?;
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(|it| PkiError::certificate("sign a certificate", it))?;
        Ok(Leaf { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), expires_at, renew_at })
    }
}

/// A self-signed authority that may sign leaves only.
fn authority(key: &KeyPair) -> Result<String, PkiError> {
    let now = clock::now();
    let mut params = CertificateParams::default();
    // The random part lets a person tell two platforms apart, and clients never mix up their authorities.
    params.distinguished_name = common_name(&format!("arco {:08x}", clock::random() as u32));
    params.not_before = point(Timestamp(now.0.saturating_sub(SKEW_MS)));
    params.not_after = point(now.plus_ms(AUTHORITY_DAYS * DAY_MS));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key).map(|it| it.pem()).map_err(|it| PkiError::certificate("sign the authority", it))
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { step: "read", path: path.to_owned(), source }),
    }
}

/// Whole seconds only: certificates know no fractions.
fn point(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(at.0 / 1000)
}

/// Makes a leaf anew whenever half of its life is over, and hands it to `apply`; until `token` is cancelled. A failure
/// is logged and tried again at the next look, while the old leaf still has half of its life.
pub async fn keep_fresh(
    mut leaf: Leaf,
    make: impl Fn() -> Result<Leaf, PkiError> + Send,
    apply: impl Fn(&Leaf) -> Result<(), PkiError> + Send,
    token: tokio_util::sync::CancellationToken,
) {
    // One look each hour: a sleep until `renew_at` would be wrong after the clock was set or the machine slept.
    let mut hour = tokio::time::interval(Duration::from_secs(3600));
    while token.run_until_cancelled(hour.tick()).await.is_some() {
        if clock::now() < leaf.renew_at {
            continue;
        }
        match make().and_then(|fresh| apply(&fresh).map(|()| fresh)) {
            Ok(fresh) => {
                tracing::info!(expires_at = fresh.expires_at.rfc3339(), "certificate renewed");
                leaf = fresh;
            }
            Err(error) => tracing::error!(%error, "certificate not renewed; next attempt in an hour"),
        }
    }
}

#[cfg(test)]
mod tests;
