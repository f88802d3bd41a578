//! Settings of the stores: `[store]`. Their URLs decide whether this is one machine or a cluster.
//!
//! A URL may carry a password, so it is shown only by [`StoreConfig::shown`].

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where things are kept. An empty URL means the embedded store below the data dir; an empty path means no file.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Metadata: `sqlite:PATH`, `mysql://USER@HOST:PORT/DATABASE` or `postgres://USER@HOST:PORT/DATABASE`; empty means
    /// `<data-dir>/metadata.db`.
    pub metadata: String,
    /// File with the password of the metadata database; goes before one in the URL.
    pub metadata_password_file: PathBuf,
    /// Coordination: `embedded:PATH` or `etcd://HOST:PORT,HOST:PORT`; empty means `<data-dir>/coordination.db`.
    pub coordination: String,
    /// Certificates of the authority that signs the etcd servers, PEM.
    pub coordination_ca_file: PathBuf,
    /// Our certificate for etcd, PEM.
    pub coordination_cert_file: PathBuf,
    /// Its private key, PEM.
    pub coordination_key_file: PathBuf,
    /// Blobs: `file:PATH` or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`; empty means `<data-dir>/blobs`.
    pub blobs: String,
    /// File with the bucket's credentials in the form of `~/.aws/credentials`; without one the environment is asked.
    pub blobs_credentials_file: PathBuf,
    /// Authorities to trust for the bucket's server beside the system's, PEM.
    pub blobs_ca_file: PathBuf,
    /// File with the key that secrets are sealed with; empty means `<data-dir>/secret.key`, made at first start.
    pub secret_key: PathBuf,
}

impl StoreConfig {
    /// The same without the passwords of its URLs.
    pub fn shown(&self) -> Self {
        let url = |text: &str| {
            let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
            // Passwords are not always escaped as they must be: all up to the last `@` may be one, with its `/` and `?`.
            let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
            let user = user.map(|it| match it.split_once(':') {
                Some((name, _)) => format!("{name}:***@"),
                None => format!("{it}@"),
            });
            let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
            let pair = |it: &str| match it.split_once('=') {
                Some((key, _)) if key.eq_ignore_ascii_case("password") => format!("{key}=***"),
                _ => it.to_owned(),
            };
            let query = query.map(|it| format!("?{}", it.split('&').map(pair).collect::<Vec<_>>().join("&")));
            format!("{scheme}://{}{place}{}", user.unwrap_or_default(), query.unwrap_or_default())
        };
        Self {
            metadata: url(&self.metadata),
            coordination: url(&self.coordination),
            blobs: url(&self.blobs),
            ..self.clone()
        }
    }
}

/// Passwords stay out of every log.
impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.shown();
        let urls = [("metadata", shown.metadata), ("coordination", shown.coordination), ("blobs", shown.blobs)];
        f.debug_map().entries(urls).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::StoreConfig;

    #[test]
    fn passwords_are_not_shown() {
        let config = StoreConfig {
            metadata: "mysql://arco:se@cret@db:3306/arco".to_owned(),
            coordination: "etcd://a:1,b:2".to_owned(),
            ..StoreConfig::default()
        };
        assert_eq!(config.shown().metadata, "mysql://arco:***@db:3306/arco");
        assert_eq!(config.shown().coordination, config.coordination);
        assert!(!format!("{config:?}").contains("cret"));
        for (url, shown) in [
            ("mysql://arco:se/cr?et@db/arco", "mysql://arco:***@db/arco"),
            ("mysql://arco:s@e/cret@db/arco", "mysql://arco:***@db/arco"),
            (
                "postgres://db/arco?user=u&password=secret&sslmode=require",
                "postgres://db/arco?user=u&password=***&sslmode=require",
            ),
            ("postgres://u@db:5432/arco?sslmode=require", "postgres://u@db:5432/arco?sslmode=require"),
            (
                "s3://bucket/a?endpoint=https://s3.test:9000&region=x",
                "s3://bucket/a?endpoint=https://s3.test:9000&region=x",
            ),
            ("sqlite:/a/b.db", "sqlite:/a/b.db"),
        ] {
            let config = StoreConfig { metadata: url.to_owned(), ..StoreConfig::default() };
            assert_eq!(config.shown().metadata, shown);
        }
    }
}
