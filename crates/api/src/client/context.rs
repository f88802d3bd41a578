//! A context: where a platform is and who we are there. One TOML file, mode 0600, PEM inline.

use arco_daemon::tls::{authorities, provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where a platform is and who we are there (`admin.toml`).
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Address of the API, `host:port`.
    pub api: String,
    /// Tenant that commands without `--tenant` mean; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Certificate of the platform's authority, PEM.
    pub ca: String,
    /// Client certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("api", &self.api).field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// No file at the places where one is looked for.
    #[error("no platform is known here: {0}")]
    Missing(String),
    /// It belongs to somebody else.
    #[error("the context `{}` cannot be read: permission denied", .0.display())]
    Denied(PathBuf),
    /// It cannot be read or written.
    #[error("the context `{}` cannot be read or written: {}", .0.display(), .1)]
    File(PathBuf, std::io::Error),
    /// It is not a context.
    #[error("the context `{}` is not valid: {}", .0.display(), .1)]
    Syntax(PathBuf, String),
    /// Certificate or key do not work.
    #[error("the certificates of the context do not work: {0}")]
    Tls(String),
}

impl Context {
    /// Reads a context file.
    pub fn load(path: &Path) -> Result<Self, ContextError> {
        let text = std::fs::read_to_string(path).map_err(|it| match it.kind() {
            std::io::ErrorKind::NotFound => ContextError::Missing(format!("`{}` does not exist", path.display())),
            std::io::ErrorKind::PermissionDenied => ContextError::Denied(path.to_owned()),
            _ => ContextError::File(path.to_owned(), it),
        })?;
        toml::from_str(&text)
            .map_err(|it: toml::de::Error| ContextError::Syntax(path.to_owned(), it.message().to_owned()))
    }

    /// The context as text of a file.
    pub fn to_toml(&self) -> Result<String, ContextError> {
        toml::to_string_pretty(self).map_err(|it| ContextError::Syntax(PathBuf::new(), it.to_string()))
    }

    /// Writes a context file, readable by its owner alone, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), ContextError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let failed = |it| ContextError::File(path.to_owned(), it);
        let text = self.to_toml()?;
        let mut staged = path.as_os_str().to_owned();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        match std::fs::remove_file(&staged) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // A fresh file, so that its mode is ours and no link is followed.
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&staged, path).map_err(failed)
    }

    /// The TLS settings: only the platform's own authority is trusted, and we show our certificate.
    pub fn tls(&self) -> Result<rustls::ClientConfig, ContextError> {
        let failed = |what: &'static str| move |it: &dyn std::fmt::Display| ContextError::Tls(format!("{what}: {it}"));
        let roots = authorities(self.ca.as_bytes()).map_err(|it| failed("ca")(&it))?;
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|it| failed("certificate")(&it))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|it| failed("key")(&it))?;
        rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|it| failed("protocol")(&it))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|it| failed("certificate")(&it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_file_comes_back_and_is_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.toml");
        let pem = "-----BEGIN X-----\nAA==\n-----END X-----\n".to_owned();
        let context =
            Context { api: "127.0.0.1:8443".into(), tenant: None, ca: pem.clone(), certificate: pem.clone(), key: pem };
        context.save(&path).unwrap();
        context.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Context::load(&path).unwrap();
        assert_eq!((again.api.as_str(), again.key), ("127.0.0.1:8443", context.key));
        assert!(matches!(Context::load(&dir.path().join("none")), Err(ContextError::Missing(_))));
        std::fs::write(&path, "api = 1").unwrap();
        assert!(matches!(Context::load(&path), Err(ContextError::Syntax(..))));
    }
}
