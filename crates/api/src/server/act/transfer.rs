//! Applications on their way between platforms: what leaves ([`export`]) and what comes ([`import`]).
//!
//! What must hold: values that are secret leave sealed with the key of the archive and lie here sealed with our own;
//! what comes is not trusted: it is checked by the rules that every change is checked by, and never overwrites.

mod export;
mod import;
mod secrets;

use super::super::Api;
use super::super::error::ApiError;
use crate::wire::SecretText;
use arco_config::{Config, OrchestratorDriver};
use arco_model::artifact::Digest;
use arco_model::error::{ErrorKind, Problem};
use arco_store::secrets::{Sealed, SecretBox};

/// Id of the key of an archive.
const KEY_ID: &str = "archive";

/// The key of an archive, when one was given.
struct ArchiveKey(Option<SecretBox>);

impl ArchiveKey {
    fn new(text: Option<&SecretText>) -> Result<Self, Problem> {
        let parse = |text: &SecretText| {
            let bad = |why| {
                let advice = "send `archive` and 64 hex digits; `arco export --passphrase @FILE` makes them";
                Problem::invalid("key_invalid", format!("the key of the archive is not usable: {why}"), advice)
            };
            if !text.0.starts_with("archive ") {
                return Err(bad("it is not `archive HEX`"));
            }
            SecretBox::parse(&text.0).map_err(bad)
        };
        text.map(parse).transpose().map(Self)
    }

    fn seal(&self, what: &str, value: &[u8]) -> Result<String, ApiError> {
        let Some(key) = &self.0 else {
            let message = format!("{what} is secret, and the archive has no passphrase to seal it with");
            let advice = "give one: `--passphrase @FILE` (or `-` for standard input)";
            return Err(Problem::invalid("passphrase_missing", message, advice).into());
        };
        Ok(key.seal(what, value)?.text)
    }

    fn open(&self, what: &str, text: &str) -> Result<String, ApiError> {
        let Some(key) = &self.0 else {
            let message = format!("{what} is sealed with the passphrase of the archive");
            return Err(
                Problem::invalid("passphrase_missing", message, "give it: `--passphrase @FILE` (or `-`)").into()
            );
        };
        let wrong = || {
            let message = format!("{what} cannot be opened: the passphrase is another one, or the archive was changed");
            Problem::new(ErrorKind::Denied, "passphrase_wrong", message, "give the passphrase of the export")
        };
        let sealed = Sealed { key_id: KEY_ID.to_owned(), text: text.to_owned() };
        let opened = key.unseal(what, &sealed).map_err(|_| wrong())?;
        Ok(String::from_utf8(opened).map_err(|_| wrong())?)
    }
}

/// What a sealed value is, in words; it opens as nothing else.
fn secret_of(application: &str, component: &str, name: &str, version: u64) -> String {
    format!("secret `{name}` (version {version}) of `{application}/{component}`")
}

fn users_of(application: &str, component: &str, host: &str, at: usize) -> String {
    format!("the passwords of route {at} (`{host}`) of `{application}/{component}`")
}

fn certificate_key(name: &str) -> String {
    format!("the key of certificate `{name}`")
}

impl Api {
    /// Bytes of a blob that is there; it stays for whoever was told so.
    pub(in super::super) async fn blob_size(&self, digest: &Digest) -> Result<u64, ApiError> {
        let found = self.deps.images.claim(digest).await?;
        Ok(found.ok_or_else(|| Problem::not_found("blob", digest))?.size)
    }
}

/// What runs instances here, in one word.
fn driver(config: &Config) -> &'static str {
    match config.orchestrator.driver {
        OrchestratorDriver::Local => "local",
        OrchestratorDriver::Kubernetes => "kubernetes",
    }
}
