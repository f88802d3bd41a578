//! Files that the server leaves for others: `server.json` (where it runs), `admin.toml` (how to talk to it).

use anyhow::Context as _;
use arco_api::client::Context;
use arco_config::Config;
use arco_daemon::pki::{Leaf, Pki, PkiError, Subject, keep_fresh};
use arco_daemon::{OnExit, Supervisor};
use arco_store::secrets::write_private;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Addresses as really bound; a role that does not run here has none.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Addresses {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) console: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) registry: Option<SocketAddr>,
}

impl Addresses {
    /// How URLs of applications look, when the gateway runs here.
    pub(crate) fn applications(&self, config: &Config) -> Option<String> {
        let port = config.gateway.http_port(self.http?.port());
        let port = if port == 80 { String::new() } else { format!(":{port}") };
        Some(format!("http://COMPONENT.APPLICATION.{}{port}", config.server.domain))
    }
}

#[derive(Serialize)]
struct ServerJson<'a> {
    pid: u32,
    version: &'a str,
    #[serde(flatten)]
    addresses: &'a Addresses,
}

/// Makes the data dir, and closes its folders with sources, images and volumes to other users of the machine. Those that
/// instances and builds mount from stay passable.
pub(crate) fn make_folders(data_dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("failed to make the data dir `{}`", data_dir.display()))?;
    for (name, mode) in [("blobs", 0o700), ("network", 0o700), ("cache", 0o711), ("volumes", 0o711)] {
        let folder = data_dir.join(name);
        let made = std::fs::create_dir_all(&folder);
        made.and_then(|()| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)))
            .with_context(|| format!("failed to close the folder `{}` to others", folder.display()))?;
    }
    Ok(())
}

/// Writes `server.json`, whole or not at all.
pub(crate) fn write_server_json(config: &Config, addresses: &Addresses) -> anyhow::Result<()> {
    let document = ServerJson { pid: std::process::id(), version: env!("CARGO_PKG_VERSION"), addresses };
    let path = config.server.data_dir.join("server.json");
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    write_private(&path, &text).with_context(|| format!("failed to write `{}`", path.display()))?;
    // Not secret: scripts of other users read where the platform listens.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&path, mode).with_context(|| format!("failed to open `{}` for reading", path.display()))
}

/// Writes `admin.toml` with a fresh admin certificate, now and whenever half of its life is over.
pub(crate) fn keep_admin_context(
    config: &Config,
    pki: &Arc<Pki>,
    api: SocketAddr,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    let leaf = pki.client(&Subject::admin())?;
    write_admin_context(config, pki, api, &leaf)?;
    let (make, pki, config, token) = (pki.clone(), pki.clone(), config.clone(), supervisor.token().clone());
    supervisor.spawn("admin certificate", OnExit::Continue, async move {
        let apply = |fresh: &Leaf| {
            write_admin_context(&config, &pki, api, fresh)
                .map_err(|it| PkiError::certificate("hand over", format!("{it:#}")))
        };
        keep_fresh(leaf, move || make.client(&Subject::admin()), apply, token).await;
        Ok(())
    });
    Ok(())
}

fn write_admin_context(config: &Config, pki: &Pki, api: SocketAddr, leaf: &Leaf) -> anyhow::Result<()> {
    // A listener on all addresses is reached on this machine by loopback, which its certificate names.
    let reached = if api.ip().is_unspecified() { SocketAddr::from((Ipv4Addr::LOCALHOST, api.port())) } else { api };
    let context = Context {
        api: reached.to_string(),
        tenant: None,
        ca: pki.authority_pem().to_owned(),
        certificate: leaf.certificate_pem.clone(),
        key: leaf.key_pem.clone(),
    };
    let path = config.server.data_dir.join("admin.toml");
    write_private(&path, toml::to_string(&context)?.as_bytes())
        .with_context(|| format!("failed to write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_applications_name_the_port_unless_it_is_80() {
        for (http, public, url) in [
            (None, None, None),
            (None, Some(80), None),
            (Some("0.0.0.0:80"), None, Some("http://COMPONENT.APPLICATION.example.com")),
            (Some("127.0.0.1:8080"), None, Some("http://COMPONENT.APPLICATION.example.com:8080")),
            (Some("0.0.0.0:10080"), Some(80), Some("http://COMPONENT.APPLICATION.example.com")),
            (Some("0.0.0.0:80"), Some(30080), Some("http://COMPONENT.APPLICATION.example.com:30080")),
        ] {
            let addresses = Addresses { http: http.map(|it| it.parse().unwrap()), ..Addresses::default() };
            let mut config = Config::default();
            config.server.domain = "example.com".to_owned();
            config.gateway.public_http_port = public;
            assert_eq!(addresses.applications(&config).as_deref(), url);
        }
    }

    #[test]
    fn the_folders_are_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| {
            let mode = std::fs::metadata(path).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o007
        };
        for _ in 0..2 {
            make_folders(dir.path()).unwrap();
            assert_eq!(["blobs", "network", "cache", "volumes"].map(|it| mode(&dir.path().join(it))), [0, 0, 1, 1]);
        }
    }
}
