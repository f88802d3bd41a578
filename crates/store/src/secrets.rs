//! Seals secret values with a key of the platform (AES-256-GCM).
//!
//! The key file holds one line `<key id> <64 hex digits>` for each key, the first one seals, all open: a new first line
//! rotates. It is made at first start with mode 0600 and is not part of a backup of the data dir's databases.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::path::{Path, PathBuf};

/// Why a secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key file cannot be read or made.
    #[error("failed to {step} the key file `{}`", .path.display())]
    KeyFile {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The key file is damaged.
    #[error("the key file `{}` is not usable: {why}", .path.display())]
    KeyFormat {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Sealed with a key that we do not have.
    #[error("a secret is sealed with key `{0}`, which the key file does not hold; put the old key file back")]
    UnknownKey(String),
    /// The sealed text was changed or the key is wrong.
    #[error("a secret cannot be opened: it was changed, or its key is another one")]
    Broken,
}

/// A sealed value: key id and text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sealed {
    /// Key that sealed it.
    pub key_id: String,
    /// Nonce and ciphertext, hex.
    pub text: String,
}

/// Seals and opens values.
pub struct SecretBox {
    keys: Vec<SealKey>,
}

struct SealKey {
    id: String,
    /// For [`SecretBox::derive`].
    raw: [u8; 32],
    key: LessSafeKey,
}

impl SecretBox {
    /// Reads the key file, or makes it.
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let fail = |step| move |source| SecretError::KeyFile { step, path: path.to_owned(), source };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut key = [0u8; 32];
                aws_lc_rs::rand::fill(&mut key).map_err(|_| SecretError::Broken)?;
                let text = format!("k{:08x} {}\n", crate::clock::random() as u32, hex(&key));
                write_private(path, text.as_bytes()).map_err(fail("make"))?;
                text
            }
            Err(error) => return Err(fail("read")(error)),
        };
        Self::parse(&text).map_err(|why| SecretError::KeyFormat { path: path.to_owned(), why })
    }

    /// Keys from their text, a line each as in the key file.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut keys = Vec::new();
        for line in text.lines().filter(|it| !it.trim().is_empty()) {
            let (id, key) = line.trim().split_once(' ').ok_or("a line is not `<id> <hex>`")?;
            let raw = unhex(key).and_then(|it| <[u8; 32]>::try_from(it).ok()).ok_or("a key is not 64 hex digits")?;
            let key = UnboundKey::new(&AES_256_GCM, &raw).map_err(|_| "a key is refused")?;
            keys.push(SealKey { id: id.to_owned(), raw, key: LessSafeKey::new(key) });
        }
        if keys.is_empty() { Err("it holds no key") } else { Ok(Self { keys }) }
    }

    /// The text of keys for one purpose, for [`SecretBox::parse`]: made of ours (HMAC-SHA-256), telling nothing about
    /// them. Whoever gets it can open only what was sealed for that purpose.
    pub fn derive(&self, purpose: &str) -> String {
        let derived = self.keys.iter().map(|it| {
            let own = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &it.raw);
            let tag = aws_lc_rs::hmac::sign(&own, format!("arco keys for {purpose}").as_bytes());
            format!("{} {}\n", it.id, hex(tag.as_ref()))
        });
        derived.collect()
    }

    /// Seals `value`; `context` (whose secret it is) must be the same when it is opened.
    pub fn seal(&self, context: &str, value: &[u8]) -> Result<Sealed, SecretError> {
        let SealKey { id, key, .. } = &self.keys[0];
        let mut nonce = [0u8; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SecretError::Broken)?;
        let mut sealed = value.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut sealed)
            .map_err(|_| SecretError::Broken)?;
        Ok(Sealed { key_id: id.clone(), text: format!("{}{}", hex(&nonce), hex(&sealed)) })
    }

    /// Opens what [`SecretBox::seal`] made.
    pub fn unseal(&self, context: &str, sealed: &Sealed) -> Result<Vec<u8>, SecretError> {
        let unknown = || SecretError::UnknownKey(sealed.key_id.clone());
        let key = &self.keys.iter().find(|it| it.id == sealed.key_id).ok_or_else(unknown)?.key;
        let bytes = unhex(&sealed.text).filter(|it| it.len() > NONCE_LEN).ok_or(SecretError::Broken)?;
        let (nonce, text) = bytes.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SecretError::Broken)?;
        let mut text = text.to_vec();
        let opened =
            key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut text).map_err(|_| SecretError::Broken)?;
        Ok(opened.to_vec())
    }
}

/// The text of the key that a passphrase means, for [`SecretBox::parse`] (PBKDF2-HMAC-SHA-256). It takes as long as
/// `rounds` says.
pub fn key_of_passphrase(id: &str, passphrase: &str, salt: &[u8], rounds: std::num::NonZeroU32) -> String {
    let mut key = [0u8; 32];
    let kind = aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256;
    aws_lc_rs::pbkdf2::derive(kind, rounds, salt, passphrase.as_bytes(), &mut key);
    format!("{id} {}\n", hex(&key))
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?; // mode 0600
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|it| it.error)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_in_its_context() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.key");
        let sealed = SecretBox::open(&path).unwrap().seal("c/A", b"value").unwrap();
        let again = SecretBox::open(&path).unwrap();
        assert_eq!(again.unseal("c/A", &sealed).unwrap(), b"value");
        assert!(again.unseal("c/B", &sealed).is_err());
        assert!(!sealed.text.contains(&hex(b"value")));
        let derived = SecretBox::parse(&again.derive("a")).unwrap();
        let for_a = derived.seal("c", b"value").unwrap();
        assert_eq!(SecretBox::parse(&again.derive("a")).unwrap().unseal("c", &for_a).unwrap(), b"value");
        assert!(SecretBox::parse(&again.derive("b")).unwrap().unseal("c", &for_a).is_err());
        assert!(again.unseal("c", &for_a).is_err() && derived.unseal("c/A", &sealed).is_err());
        // RFC 7914 §11 (PBKDF2-HMAC-SHA-256, one round), the first 32 bytes.
        let key = key_of_passphrase("k", "passwd", b"salt", std::num::NonZeroU32::MIN);
        assert_eq!(key, "k 55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\n");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
