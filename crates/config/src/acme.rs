//! Settings of automatic certificates: `[acme]`.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a host is proven to the authority.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// It asks for a path over plain HTTP: port 80 of the host leads to the gateway (RFC 8555 §8.3).
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// It begins a TLS connection: port 443 of the host leads to the gateway (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// Where certificates are issued (RFC 8555), for routes with `--tls auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcmeConfig {
    /// Whether you agree to the terms of the authority; without it no certificate is asked for.
    pub agree_to_terms: bool,
    /// The directory of the authority.
    pub directory_url: String,
    /// Address that the authority writes to, as `admin@example.com`. Empty gives none.
    pub contact: String,
    /// Authorities that the directory's own certificate may be signed by (PEM); empty takes those of the system.
    pub ca_file: PathBuf,
    /// How a host is proven: `http-01` or `tls-alpn-01`.
    pub challenge: AcmeChallenge,
    /// How long one order may take, in ms.
    pub order_timeout_ms: u64,
    /// How often the authority is asked at least when to renew (RFC 9773), in ms.
    pub renewal_check_ms: u64,
}

impl Default for AcmeConfig {
    fn default() -> Self {
        Self {
            agree_to_terms: false,
            directory_url: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            contact: String::new(),
            ca_file: PathBuf::new(),
            challenge: AcmeChallenge::default(),
            order_timeout_ms: 120_000,
            renewal_check_ms: 6 * 3_600_000,
        }
    }
}

impl AcmeConfig {
    /// Whether certificates can be asked for.
    pub fn is_on(&self) -> bool {
        self.agree_to_terms
    }
}
