//! What the server tells the data plane: a file that root writes and the data plane's user reads.
//!
//! `<data-dir>/data-plane/` is the whole file system of the data plane: `link.json` (root's, readable for its group) and
//! `state/`, where it keeps the last known routes and their key. What root does by this file, such as which executable
//! it starts, nobody else may write.

use anyhow::Context as _;
use arco_config::GatewayConfig;
use arco_daemon::confine::derived_user;
use arco_store::kv::{EtcdKv, EtcdTls, SharedKv};
use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::Permissions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the server tells the data plane.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Link {
    /// Log filter.
    pub(super) log: String,
    /// Listeners and limits.
    pub(super) gateway: GatewayConfig,
    /// What an upgrade starts.
    pub(super) executable: PathBuf,
    /// Address of the store's etcd interface.
    pub(super) store: SocketAddr,
    /// Opens the private keys of certificates ([`arco_model::traffic::GATEWAY_KEYS`]).
    pub(super) certificate_keys: String,
    pub(super) authority_pem: String,
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
}

/// The data plane's folder, as the server sees it.
pub(super) fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("data-plane")
}

/// The journal of the last known routes in the data plane's folder.
pub(super) fn journal(folder: &Path) -> PathBuf {
    folder.join("state").join("routes.journal")
}

/// The file in the data plane's folder.
pub(super) fn file(folder: &Path) -> PathBuf {
    folder.join("link.json")
}

impl Link {
    /// Reads it from the data plane's folder.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = file(folder);
        let text = std::fs::read(&path)
            .with_context(|| format!("failed to read `{}`; `arco server` writes it", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("`{}` is damaged; `arco server` writes it anew", path.display()))
    }

    /// Writes it, whole or not at all, after making the folder what it has to be.
    pub(super) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let folder = folder(data_dir);
        let written = || -> anyhow::Result<()> {
            let user = self.user(data_dir);
            own_folder(&folder, user)?;
            let mut file = tempfile::NamedTempFile::new_in(&folder)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            if let Some(user) = user {
                fchown(file.as_file(), Some(Uid::from_raw(0)), Some(Gid::from_raw(user)))?;
                file.as_file().set_permissions(Permissions::from_mode(0o640))?;
            }
            file.as_file().sync_all()?;
            file.persist(self::file(&folder))?;
            Ok(())
        };
        written().with_context(|| format!("failed to write `{}`", file(&folder).display()))
    }

    /// The user that the data plane runs as; `None` when this process cannot choose one.
    pub(super) fn user(&self, data_dir: &Path) -> Option<u32> {
        let derived = || derived_user(&std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()));
        let wanted = self.gateway.user_id;
        nix::unistd::geteuid().is_root().then(|| if wanted == 0 { derived() } else { wanted })
    }

    /// Stands for the settings that only a new process can take; addresses are compared by themselves.
    pub(super) fn settings(&self) -> String {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let gateway = GatewayConfig { http_listen: any, https_listen: any, ..self.gateway.clone() };
        let text = serde_json::to_vec(&(&self.log, &gateway)).unwrap_or_default();
        Sha256::digest(text).iter().take(8).map(|it| format!("{it:02x}")).collect()
    }

    /// The store, as a client.
    pub(super) async fn store(&self) -> anyhow::Result<SharedKv> {
        let tls = EtcdTls {
            ca_pem: self.authority_pem.clone(),
            cert_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
        };
        Ok(Arc::new(EtcdKv::connect(&[format!("https://{}", self.store)], Some(&tls)).await?))
    }
}

/// Makes the folder: root's, open to the group of the data plane, which owns `state/` in it.
fn own_folder(folder: &Path, user: Option<u32>) -> anyhow::Result<()> {
    let state = folder.join("state");
    std::fs::create_dir_all(&state)?;
    let Some(user) = user else {
        std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        return Ok(());
    };
    std::os::unix::fs::chown(folder, Some(0), Some(user))?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o750))?;
    std::fs::set_permissions(&state, Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(&state)? {
        let entry = entry?;
        let metadata = entry.metadata()?; // of the entry itself, not of what it points to
        // A file with two names may be somebody else's as well.
        if metadata.is_file() && metadata.nlink() == 1 && metadata.uid() != user {
            std::os::unix::fs::lchown(entry.path(), Some(user), Some(user))?;
        }
    }
    std::os::unix::fs::lchown(&state, Some(user), Some(user))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            log: "info".to_owned(),
            gateway: GatewayConfig::default(),
            executable: PathBuf::from("/usr/bin/arco"),
            store: SocketAddr::from(([127, 0, 0, 1], 1)),
            certificate_keys: String::new(),
            authority_pem: String::new(),
            certificate_pem: String::new(),
            key_pem: "key".to_owned(),
        }
    }

    #[test]
    fn only_settings_that_need_a_new_process_count() {
        let one = link();
        let mut moved = one.clone();
        moved.gateway.http_listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        moved.key_pem = "renewed".to_owned();
        assert_eq!(one.settings(), moved.settings());
        for change in [|it: &mut Link| it.gateway.idle_ms += 1, |it: &mut Link| it.log = "debug".to_owned()] {
            let mut other = link();
            change(&mut other);
            assert_ne!(one.settings(), other.settings());
        }
    }

    #[test]
    fn the_file_is_for_the_data_plane_and_nobody_else() {
        let data_dir = tempfile::tempdir().unwrap();
        let link = link();
        link.write(data_dir.path()).unwrap();
        let folder = folder(data_dir.path());
        assert_eq!(Link::read(&folder).unwrap().key_pem, "key");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        match link.user(data_dir.path()) {
            None => assert_eq!((mode(&folder), mode(&file(&folder))), (0o700, 0o600)),
            Some(user) => {
                assert_eq!((mode(&folder), mode(&file(&folder)), mode(&folder.join("state"))), (0o750, 0o640, 0o700));
                let (of_file, of_state) = (file(&folder).metadata().unwrap(), folder.join("state").metadata().unwrap());
                assert_eq!((of_file.uid(), of_file.gid(), of_state.uid()), (0, user, user));
                // Another user than before: what is kept goes with it.
                std::fs::write(journal(&folder), "x").unwrap();
                link.write(data_dir.path()).unwrap();
                assert_eq!(journal(&folder).metadata().unwrap().uid(), user);
            }
        }
    }
}
