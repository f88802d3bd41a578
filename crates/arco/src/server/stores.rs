//! Opens the stores that the settings name. The only place that knows which driver a URL means.

use anyhow::{Context as _, bail};
use arco_config::{Config, StoreConfig};
use arco_store::blob::{DiskBlobs, S3Access, S3Blobs, SharedBlobs};
use arco_store::images::Images;
use arco_store::kv::{EmbeddedKv, EtcdKv, EtcdTls, SharedKv};
use arco_store::secrets::SecretBox;
use arco_store::sql::{SeaOrmMetadata, SharedMetadata};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Every store of this process; cheap to clone.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) metadata: SharedMetadata,
    pub(crate) kv: SharedKv,
    pub(crate) blobs: SharedBlobs,
    pub(crate) images: Images,
    pub(crate) secrets: Arc<SecretBox>,
}

impl Stores {
    /// Opens or makes them.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Self> {
        let data_dir = &config.server.data_dir;
        let metadata = metadata(&config.store, data_dir).await.context("failed to open the metadata store")?;
        let kv = coordination(&config.store, data_dir).await.context("failed to open the coordination store")?;
        let blobs = blobs(&config.store, data_dir).await.context("failed to open the blob store")?;
        let key = match config.store.secret_key.as_os_str().is_empty() {
            true => data_dir.join("secret.key"),
            false => config.store.secret_key.clone(),
        };
        let secrets = Arc::new(SecretBox::open(&key).context("failed to open the key of secrets")?);
        let images = Images::new(metadata.clone(), blobs.clone());
        Ok(Self { metadata, kv, blobs, images, secrets })
    }
}

/// Tries each shared store that the settings name, with what it will be used for; leaves nothing in it. Stores on this
/// machine's disk are not looked at.
pub(crate) async fn look(config: &StoreConfig) -> Vec<(&'static str, anyhow::Result<String>)> {
    let mut found = Vec::new();
    if matches!(scheme(&config.metadata), "mysql" | "mariadb" | "postgres" | "postgresql") {
        found.push(("metadata", look_at_metadata(config).await));
    }
    if scheme(&config.coordination) == "etcd" {
        found.push(("coordination", look_at_coordination(config).await));
    }
    if scheme(&config.blobs) == "s3" {
        found.push(("blobs", look_at_blobs(config).await));
    }
    found
}

async fn look_at_metadata(config: &StoreConfig) -> anyhow::Result<String> {
    let password = text(&config.metadata_password_file, "metadata_password_file")?;
    let password = password.as_deref().map(|it| it.trim_end_matches(['\n', '\r']));
    let looked = SeaOrmMetadata::look(&config.metadata, password).await?;
    Ok(format!("{}, character set {}", looked.version, looked.charset))
}

async fn look_at_coordination(config: &StoreConfig) -> anyhow::Result<String> {
    let kv = coordination(config, Path::new("")).await?;
    let (key, lease) = (format!("/preflight/{}", std::process::id()), kv.lease_grant(30).await?);
    kv.put(&key, b"arco".to_vec(), Some(lease)).await?;
    let kept = kv.get(&key).await?;
    kv.lease_revoke(lease).await?;
    anyhow::ensure!(kept.is_some(), "a key that was just written is not there");
    Ok("reads, writes and leases".to_owned())
}

async fn look_at_blobs(config: &StoreConfig) -> anyhow::Result<String> {
    let blobs = blobs(config, Path::new("")).await?;
    let path = format!("preflight/{}", std::process::id());
    blobs.put_bytes(&path, bytes::Bytes::from_static(b"arco")).await?;
    let kept = blobs.get_bytes(&path, 16).await;
    blobs.delete(&path).await?;
    anyhow::ensure!(kept?.as_ref() == b"arco", "an object that was just written reads differently");
    Ok("reads, writes and deletes".to_owned())
}

async fn metadata(config: &StoreConfig, data_dir: &Path) -> anyhow::Result<SharedMetadata> {
    let url = config.metadata.as_str();
    match scheme(url) {
        "mysql" | "mariadb" | "postgres" | "postgresql" => {
            let password = text(&config.metadata_password_file, "metadata_password_file")?;
            let password = password.as_deref().map(|it| it.trim_end_matches(['\n', '\r']));
            Ok(Arc::new(SeaOrmMetadata::connect(url, password).await?))
        }
        _ => {
            let known = "sqlite:PATH, mysql://… or postgres://…";
            let file = local(url, "sqlite", data_dir.join("metadata.db"), "metadata", known)?;
            keep_private(&file).with_context(|| format!("failed to make `{}` private", file.display()))?;
            Ok(Arc::new(SeaOrmMetadata::open(&file).await?))
        }
    }
}

async fn coordination(config: &StoreConfig, data_dir: &Path) -> anyhow::Result<SharedKv> {
    let url = config.coordination.as_str();
    if scheme(url) != "etcd" {
        let known = "embedded:PATH or etcd://HOST:PORT,HOST:PORT";
        let file = local(url, "embedded", data_dir.join("coordination.db"), "coordination", known)?;
        return Ok(Arc::new(EmbeddedKv::open(&file)?));
    }
    let ca = text(&config.coordination_ca_file, "coordination_ca_file")?;
    let cert = text(&config.coordination_cert_file, "coordination_cert_file")?;
    let key = text(&config.coordination_key_file, "coordination_key_file")?;
    let tls = match (ca, cert, key) {
        (Some(ca_pem), Some(cert_pem), Some(key_pem)) => Some(EtcdTls { ca_pem, cert_pem, key_pem }),
        (None, None, None) => None,
        _ => bail!("`coordination_ca_file`, `coordination_cert_file` and `coordination_key_file` go together"),
    };
    let endpoints = etcd_endpoints(url, tls.is_some())?;
    let kv: SharedKv = Arc::new(EtcdKv::connect(&endpoints, tls.as_ref()).await?);
    // Said here, with what to do, instead of by whoever asks first.
    if let Err(error) = kv.get("/").await {
        bail!(
            "{error}\n  `etcdctl --endpoints={} endpoint health` with the same certificates says how each member is; \
             `store.coordination` names them",
            endpoints.join(",")
        );
    }
    Ok(kv)
}

async fn blobs(config: &StoreConfig, data_dir: &Path) -> anyhow::Result<SharedBlobs> {
    let url = config.blobs.as_str();
    if scheme(url) != "s3" {
        let known = "file:PATH or s3://BUCKET/PREFIX?endpoint=URL&region=NAME";
        return Ok(Arc::new(DiskBlobs::open(local(url, "file", data_dir.join("blobs"), "blobs", known)?)?));
    }
    let credentials = text(&config.blobs_credentials_file, "blobs_credentials_file")?;
    let ca_pem = text(&config.blobs_ca_file, "blobs_ca_file")?;
    Ok(Arc::new(S3Blobs::open(url, &S3Access { credentials, ca_pem }).await?))
}

/// Rows name variables and hosts: nobody but root reads them. SQLite gives the files beside it the same mode.
fn keep_private(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    std::fs::File::options().append(true).create(true).mode(0o600).open(file)?;
    for end in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(end);
        match std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}

/// The path of `SCHEME:PATH`, or the default. What the setting says is not repeated: it may hold a password.
fn local(url: &str, wanted: &str, default: PathBuf, setting: &str, known: &str) -> anyhow::Result<PathBuf> {
    match url.split_once(':') {
        None if url.is_empty() => Ok(default),
        Some((found, path)) if found == wanted => Ok(PathBuf::from(path)),
        _ => bail!("`store.{setting}` names no store of this version; use {known}, or leave it empty"),
    }
}

/// Text of a file of the settings; `None` when the setting is empty.
fn text(file: &Path, setting: &str) -> anyhow::Result<Option<String>> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("failed to read `{}`, which `store.{setting}` names", file.display()))?;
    Ok(Some(text))
}

/// The endpoints of `etcd://HOST:PORT,HOST:PORT[?tls=off]`.
fn etcd_endpoints(url: &str, tls: bool) -> anyhow::Result<Vec<String>> {
    let rest = url.trim_start_matches("etcd://");
    let (hosts, plain) = match rest.split_once('?') {
        Some((hosts, "tls=off")) => (hosts, true),
        Some((_, query)) => bail!("`{query}` is unknown; only `?tls=off` may follow the hosts of `store.coordination`"),
        None => (rest, false),
    };
    let hosts: Vec<&str> = hosts.trim_end_matches('/').split(',').map(str::trim).collect();
    for host in &hosts {
        let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(name, _)| name);
        let Some(name) = name.filter(|it| !it.is_empty() && !it.contains(['/', '@'])) else {
            bail!("`store.coordination` is etcd://HOST:PORT,HOST:PORT")
        };
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
        let near = name == "localhost" || address.is_ok_and(|it| it.is_loopback());
        if !tls && !plain && !near {
            bail!(
                "etcd on another machine (`{name}`) is reached with TLS: set `coordination_ca_file`, \
                 `coordination_cert_file` and `coordination_key_file`, or add `?tls=off` to the URL"
            )
        }
    }
    let scheme = if tls { "https" } else { "http" };
    Ok(hosts.iter().map(|it| format!("{scheme}://{it}")).collect())
}

#[cfg(test)]
mod tests {
    use super::etcd_endpoints;

    #[test]
    fn etcd_urls_name_their_endpoints_and_plain_text_must_be_asked_for() {
        for (url, tls, wanted) in [
            ("etcd://127.0.0.1:2379", false, vec!["http://127.0.0.1:2379"]),
            ("etcd://[::1]:2379/", false, vec!["http://[::1]:2379"]),
            ("etcd://a:1,b:2", true, vec!["https://a:1", "https://b:2"]),
            ("etcd://a:1,b:2?tls=off", false, vec!["http://a:1", "http://b:2"]),
        ] {
            assert_eq!(etcd_endpoints(url, tls).unwrap(), wanted);
        }
        for url in ["etcd://a:1", "etcd://", "etcd://a", "etcd://u:p@a:1?tls=off", "etcd://a:1?tls=no", "etcd://a:1,"] {
            assert!(etcd_endpoints(url, false).is_err(), "{url}");
        }
    }
}
