//! Upstreams as they are written in the file.

use super::super::route::{check, sticky};
use super::{TimeoutsFile, check_timeouts};
use crate::balance::{Balance, Ejection, HashKey};
use crate::upstream::{Transport, UpstreamSettings};
use arco_model::route::{HealthCheck, Sticky};
use http::HeaderName;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamFile {
    pub(crate) name: String,
    pub(crate) endpoints: Vec<SocketAddr>,
    #[serde(default)]
    pub(crate) weights: Vec<u32>,
    #[serde(default)]
    pub(crate) balance: BalanceFile,
    pub(crate) hash_by: Option<HashByFile>,
    pub(crate) sticky: Option<Sticky>,
    pub(crate) check: Option<HealthCheck>,
    pub(crate) ejection: Option<EjectionFile>,
    pub(crate) max_open: Option<usize>,
    #[serde(default)]
    pub(crate) protocol: UpstreamProtocol,
    pub(crate) tls: Option<TlsFile>,
    pub(crate) proxy_protocol: Option<u8>,
    #[serde(default)]
    pub(crate) timeouts: TimeoutsFile,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BalanceFile {
    #[default]
    RoundRobin,
    Weighted,
    LeastRequests,
    Ewma,
    ConsistentHash,
    Sticky,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UpstreamProtocol {
    #[default]
    Http1,
    Http2,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HashByFile {
    pub(crate) cookie: Option<String>,
    pub(crate) header: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EjectionFile {
    pub(crate) failures: u32,
    pub(crate) base_ms: u64,
    pub(crate) slow_return_ms: u64,
}

impl Default for EjectionFile {
    fn default() -> Self {
        Self { failures: 5, base_ms: 10_000, slow_return_ms: 10_000 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsFile {
    pub(crate) name: String,
    pub(crate) ca_file: PathBuf,
}

impl UpstreamFile {
    /// Everything but addresses and timeouts; files are read relative to `folder`.
    pub(super) fn settings(&self, folder: &Path) -> Result<UpstreamSettings, String> {
        check_timeouts("it", &self.timeouts)?;
        if !self.weights.is_empty() && (self.weights.len() != self.endpoints.len() || self.weights.contains(&0)) {
            return Err("`weights` needs one number above 0 for each endpoint".to_owned());
        }
        if self.weights.iter().any(|it| *it > 10_000) {
            return Err("`weights` are at most 10000".to_owned());
        }
        if self.hash_by.is_some() && self.balance != BalanceFile::ConsistentHash {
            return Err("`hash_by` goes with `balance: consistent_hash`".to_owned());
        }
        if self.sticky.is_some() != (self.balance == BalanceFile::Sticky) {
            return Err("`sticky` and `balance: sticky` go together".to_owned());
        }
        if self.max_open == Some(0) {
            return Err("`max_open` is at least 1".to_owned());
        }
        if self.proxy_protocol.is_some_and(|it| it != 1 && it != 2) {
            return Err("`proxy_protocol` is 1 or 2".to_owned());
        }
        Ok(UpstreamSettings {
            balance: self.balance()?,
            ejection: self.ejection.as_ref().map(|it| Ejection {
                failures: it.failures.max(1),
                base: Duration::from_millis(it.base_ms),
                slow_return: Duration::from_millis(it.slow_return_ms),
            }),
            check: self.check.as_ref().map(check).transpose()?,
            max_open: self.max_open,
            transport: self.transport(folder)?,
            proxy_protocol: self.proxy_protocol,
        })
    }

    fn balance(&self) -> Result<Balance, String> {
        Ok(match self.balance {
            BalanceFile::RoundRobin if self.weights.is_empty() => Balance::RoundRobin,
            BalanceFile::RoundRobin | BalanceFile::Weighted => Balance::Weighted,
            BalanceFile::LeastRequests => Balance::LeastRequests,
            BalanceFile::Ewma => Balance::Ewma,
            BalanceFile::Sticky => {
                let written = self.sticky.as_ref().ok_or("no `sticky`")?;
                HeaderName::try_from(written.cookie.as_str())
                    .map_err(|_| format!("`{}` is not a name for a cookie", written.cookie))?;
                Balance::Sticky(sticky(written))
            }
            BalanceFile::ConsistentHash => Balance::Hash(match &self.hash_by {
                None | Some(HashByFile { cookie: None, header: None }) => HashKey::Source,
                Some(HashByFile { cookie: Some(cookie), header: None }) => HashKey::Cookie(cookie.clone()),
                Some(HashByFile { cookie: None, header: Some(header) }) => HashKey::Header(
                    HeaderName::try_from(header.as_str()).map_err(|_| format!("`{header}` is not a header field"))?,
                ),
                _ => {
                    return Err(
                        "`hash_by` is either `cookie` or `header`; without it the client's address counts".to_owned()
                    );
                }
            }),
        })
    }

    fn transport(&self, folder: &Path) -> Result<Transport, String> {
        let http2 = self.protocol == UpstreamProtocol::Http2;
        let Some(tls) = &self.tls else { return Ok(Transport::plain(http2)) };
        let path = folder.join(&tls.ca_file);
        let fail = |cause: String| format!("cannot use the certificates in {}: {cause}", path.display());
        let pem = std::fs::read(&path).map_err(|it| fail(it.to_string()))?;
        Transport::of(&tls.name, &pem, http2).map_err(fail)
    }
}
