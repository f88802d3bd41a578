//! How an upstream chooses among its endpoints, and when one is left out for a while. Pure but for counters.

use crate::snapshot::StickyCookie;
use http::{HeaderMap, HeaderName};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
    /// In turn, by the endpoints' weights.
    Weighted,
    /// The one with fewer open requests of two.
    LeastRequests,
    /// The one that is likely to answer sooner of two, by a moving average of its response times.
    Ewma,
    /// The same for the same key while it is there (highest random weight).
    Hash(HashKey),
    /// The one that the client was sent to first.
    Sticky(StickyCookie),
}

/// What is hashed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HashKey {
    /// The client's address.
    Source,
    /// A header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// What of a request an endpoint is chosen by.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Key of [`Balance::Hash`].
    pub hash: Option<u64>,
    /// Token of [`Balance::Sticky`].
    pub token: Option<String>,
}

impl Balance {
    /// What counts of a request. Without a key the client's address does.
    pub fn choice(&self, headers: &HeaderMap, client: IpAddr) -> Choice {
        let source = || hash(client.to_canonical().to_string().as_bytes(), 0);
        match self {
            Self::Hash(key) => {
                let value = match key {
                    HashKey::Source => None,
                    HashKey::Header(name) => headers.get(name).map(|it| hash(it.as_bytes(), 0)),
                    HashKey::Cookie(name) => {
                        crate::snapshot::cookies(headers).find(|it| it.0 == name).map(|it| hash(it.1.as_bytes(), 0))
                    }
                };
                Choice { hash: Some(value.unwrap_or_else(source)), token: None }
            }
            Self::Sticky(cookie) => Choice { hash: None, token: cookie.value(headers).map(str::to_owned) },
            _ => Choice::default(),
        }
    }
}

/// A well mixed number of some bytes; the same in every process. Not for secrets.
pub(crate) fn hash(bytes: &[u8], seed: u64) -> u64 {
    let sum =
        bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |sum, it| (sum ^ u64::from(*it)).wrapping_mul(0x100_0000_01b3));
    mixed(sum)
}

/// The finalizer of SplitMix64.
pub(crate) fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// How much `address` with `weight` is worth to `key`; the highest wins, and each wins its weight's share of the keys.
pub(crate) fn affinity(key: u64, address: SocketAddr, weight: u32) -> f64 {
    let ip = match address.ip() {
        IpAddr::V4(it) => u128::from(u32::from(it)),
        IpAddr::V6(it) => u128::from(it),
    };
    let number = mixed(hash(&ip.to_be_bytes(), u64::from(address.port())) ^ mixed(key));
    let unit = ((number >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(weight.max(1)) / unit.ln()
}

/// When an endpoint is left out because of how it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ejection {
    /// So many failures (no response, or 500 and above) one after the other.
    pub failures: u32,
    /// For so long the first time; each next time in a row twice as long, up to 32 times.
    pub base: Duration,
    /// Afterwards its share grows back to the whole over so long.
    pub slow_return: Duration,
}

/// How an endpoint is asked whether it is well.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// Path of an HTTP check and the status that it must have; `None` only connects.
    pub http: Option<CheckHttp>,
    /// Time between two checks.
    pub interval: Duration,
    /// Longest wait.
    pub timeout: Duration,
    /// So many good ones in a row bring it back.
    pub healthy: u32,
    /// So many bad ones in a row leave it out.
    pub unhealthy: u32,
}

/// See [`Check::http`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckHttp {
    /// Path with query.
    pub path: http::uri::PathAndQuery,
    /// `Host`.
    pub host: http::HeaderValue,
    /// Expected status; `None` takes 200 to 399.
    pub status: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_by_weight_and_stay_when_another_leaves() {
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let best = |key: u64, ports: &[(u16, u32)]| {
            let worth = |it: &(u16, u32)| affinity(key, address(it.0), it.1);
            ports.iter().max_by(|a, b| worth(a).total_cmp(&worth(b))).map(|it| it.0).unwrap()
        };
        let all = [(1, 1), (2, 1), (3, 2)];
        let mut counts = [0; 4];
        for key in 0..40_000u64 {
            let found = best(key, &all);
            counts[usize::from(found)] += 1;
            if found != 1 {
                assert_eq!(best(key, &all[1..]), found);
            }
        }
        assert!((9_500..10_500).contains(&counts[1]) && (19_300..20_700).contains(&counts[3]), "{counts:?}");
    }
}
