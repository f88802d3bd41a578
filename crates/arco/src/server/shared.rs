//! What servers on the same shared stores have in common: one authority, one key of registry tokens.
//!
//! What must hold: the first server makes them and puts them into the coordination store, sealed by the key of secrets
//! (which every server of these stores has); the others take them from there. An authority that a data dir has already
//! is never replaced: people hold certificates of it.

use anyhow::{Context as _, bail};
use arco_daemon::pki::Pki;
use arco_registry::Tokens;
use arco_store::clock;
use arco_store::kv::{Compare, KeyValue, Operation, Range, SharedKv, Txn};
use arco_store::secrets::{Sealed, SecretBox, write_private};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// Where the shared files lie in the store, sealed.
const SHARED: &str = "/platform/";

/// Files with their content.
type Files = Vec<(String, String)>;

#[derive(Serialize, Deserialize)]
struct SealedFiles {
    key_id: String,
    text: String,
}

/// The name of the server with this data dir: what it keeps is found by it, also after a start anew.
pub(super) fn name_of_server(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("name");
    if let Ok(name) = std::fs::read_to_string(&path) {
        return Ok(name.trim().to_owned());
    }
    // Short enough for a label of Kubernetes.
    let machine: String = machine().chars().take(40).collect();
    let name = format!("{machine}-{:08x}", clock::random() as u32);
    write_private(&path, name.as_bytes()).with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(name)
}

/// A name that no other process has, and that tells people where it runs.
pub(super) fn name_of_process(server: &str) -> String {
    format!("{server}-{}-{:04x}", std::process::id(), clock::random() as u16)
}

/// This machine's name.
pub(super) fn machine() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The platform's authority, the same on every server of a shared store.
pub(super) async fn authority(kv: &SharedKv, secrets: &SecretBox, folder: &Path) -> anyhow::Result<Pki> {
    let names = ["ca.key", "ca.pem"];
    if kv.name() != "embedded" {
        let before = read(folder, &names)?;
        let shared = match fetch(kv, secrets, "authority").await? {
            Some(shared) => shared,
            None if before.is_empty() => {
                // Not in its place: one of which nobody knows whether it is shared would be taken for this server's own.
                let made = tempfile::tempdir_in(folder.parent().unwrap_or(folder));
                let made = made.context("failed to make a folder for the platform's authority")?;
                Pki::open(made.path())?;
                offer(kv, secrets, "authority", read(made.path(), &names)?).await?
            }
            None => {
                Pki::open(folder)?;
                offer(kv, secrets, "authority", read(folder, &names)?).await?
            }
        };
        if before.len() == names.len() && before != shared {
            bail!(
                "the data dir has an authority of its own (`{}`), but the servers of these stores have another one\n  \
                 use a data dir of its own for this server, or remove that folder if nobody holds a context of it",
                folder.display()
            );
        }
        write(folder, &shared)?;
    }
    Pki::open(folder).context("failed to open the platform's authority")
}

/// The key of registry tokens, the same on every server of a shared store.
pub(super) async fn registry_key(kv: &SharedKv, secrets: &SecretBox, folder: &Path) -> anyhow::Result<()> {
    if kv.name() == "embedded" {
        return Ok(());
    }
    let shared = match fetch(kv, secrets, "registry").await? {
        Some(shared) => shared,
        None => {
            std::fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
            Tokens::open(&folder.join("token.key"))?;
            offer(kv, secrets, "registry", read(folder, &["token.key"])?).await?
        }
    };
    write(folder, &shared)
}

fn read(folder: &Path, names: &[&str]) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for name in names {
        match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => files.push(((*name).to_owned(), text)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("failed to read `{}`", folder.join(name).display()));
            }
        }
    }
    Ok(files)
}

/// Writes what is not there as it should be.
fn write(folder: &Path, files: &Files) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("failed to make `{}`", folder.display()))?;
    for (name, text) in files {
        let path = folder.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|it| it == *text) {
            continue;
        }
        write_private(&path, text.as_bytes()).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    Ok(())
}

fn context(name: &str) -> String {
    format!("{SHARED}{name}")
}

async fn fetch(kv: &SharedKv, secrets: &SecretBox, name: &str) -> anyhow::Result<Option<Files>> {
    let found = kv.get(&context(name)).await.with_context(|| format!("failed to read the shared {name}"))?;
    found.map(|it| open(&it, secrets, name)).transpose()
}

fn open(found: &KeyValue, secrets: &SecretBox, name: &str) -> anyhow::Result<Files> {
    let sealed: SealedFiles =
        serde_json::from_slice(&found.value).with_context(|| format!("the shared {name} is not readable"))?;
    let sealed = Sealed { key_id: sealed.key_id, text: sealed.text };
    let opened = secrets.unseal(&context(name), &sealed).with_context(|| {
        format!("the shared {name} cannot be opened: every server of these stores needs the same `store.secret_key`")
    })?;
    Ok(serde_json::from_slice(&opened)?)
}

/// Puts ours there unless somebody was faster; returns what counts.
async fn offer(kv: &SharedKv, secrets: &SecretBox, name: &str, ours: Files) -> anyhow::Result<Files> {
    let key = context(name).into_bytes();
    let sealed = secrets.seal(&context(name), &serde_json::to_vec(&ours)?)?;
    let value = serde_json::to_vec(&SealedFiles { key_id: sealed.key_id, text: sealed.text })?;
    let txn = Txn {
        compare: vec![Compare::Absent(key.clone())],
        success: vec![Operation::Put { key: key.clone(), value, lease: None }],
        failure: vec![Operation::Get(Range::Key(key))],
    };
    let done = kv.txn(txn).await.with_context(|| format!("failed to share the {name}"))?;
    match done.results.iter().flatten().next().filter(|_| !done.succeeded) {
        Some(theirs) => open(theirs, secrets, name),
        None => Ok(ours),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::kv::{Kv, KvError, KvLayer, MemoryKv, TxnResult};
    use async_trait::async_trait;
    use std::sync::Arc;

    /// A store that is read, and takes no transaction.
    struct ReadOnly(SharedKv);

    #[async_trait]
    impl KvLayer for ReadOnly {
        fn inner(&self) -> &dyn Kv {
            &*self.0
        }

        async fn txn(&self, _: Txn) -> Result<TxnResult, KvError> {
            Err(KvError::Unavailable { step: "write", cause: "no leader".to_owned() })
        }
    }

    #[tokio::test]
    async fn a_server_that_could_not_share_its_authority_takes_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let secrets = SecretBox::open(&place("secret.key")).unwrap();
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let without_leader: SharedKv = Arc::new(ReadOnly(kv.clone()));
        assert!(authority(&without_leader, &secrets, &place("a")).await.is_err());
        let other = authority(&kv, &secrets, &place("b")).await.unwrap();
        let again = authority(&kv, &secrets, &place("a")).await.unwrap();
        assert_eq!(again.authority_pem(), other.authority_pem());
    }

    #[tokio::test]
    async fn servers_of_one_store_have_one_authority() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let secrets = SecretBox::open(&place("secret.key")).unwrap();
        let kv: SharedKv = Arc::new(MemoryKv::new());
        // Two that start at once, and one that comes later.
        let (first, second) = tokio::join!(async { authority(&kv, &secrets, &place("a")).await.unwrap() }, async {
            authority(&kv, &secrets, &place("b")).await.unwrap()
        },);
        let third = authority(&kv, &secrets, &place("c")).await.unwrap();
        assert_eq!(first.authority_pem(), second.authority_pem());
        assert_eq!(first.authority_pem(), third.authority_pem());
        let again = authority(&kv, &secrets, &place("a")).await.unwrap();
        assert_eq!(again.authority_pem(), first.authority_pem());
        let stored = String::from_utf8(kv.get("/platform/authority").await.unwrap().unwrap().value).unwrap();
        assert!(!stored.contains("PRIVATE KEY"), "it is sealed");

        let foreign = Pki::open(&place("foreign")).unwrap();
        let refused = authority(&kv, &secrets, &place("foreign")).await.err().unwrap().to_string();
        assert!(refused.contains("authority of its own"), "{refused}");
        let kept = std::fs::read_to_string(place("foreign").join("ca.pem")).unwrap();
        assert_eq!(kept, foreign.authority_pem(), "it stays");
        let other = SecretBox::open(&place("other.key")).unwrap();
        let refused = format!("{:#}", authority(&kv, &other, &place("d")).await.err().unwrap());
        assert!(refused.contains("store.secret_key"), "{refused}");
    }

    #[tokio::test]
    async fn tokens_of_one_registry_are_good_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = SecretBox::open(&folder.path().join("secret.key")).unwrap();
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        for it in [&a, &b] {
            registry_key(&kv, &secrets, it).await.unwrap();
        }
        assert_eq!(std::fs::read(a.join("token.key")).unwrap(), std::fs::read(b.join("token.key")).unwrap());
    }
}
