//! How the instances behind a target are chosen, as it is written down: `ewma`, `{hash: {header: x-user}}`.

use super::Sticky;
use serde::{Deserialize, Serialize};

/// How an instance is chosen among those of a target.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// Of two at random, the one with fewer open requests.
    LeastRequests,
    /// Of two at random, the one that is likely to answer sooner, by a moving average.
    Ewma,
    /// The same for the same value while it is there.
    Hash(HashBy),
    /// The one that a client got first, by a cookie.
    Sticky(Sticky),
}

/// What is hashed; without the field or cookie, the client's address is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashBy {
    /// The client's address.
    Address,
    /// A header field.
    Header(String),
    /// A cookie.
    Cookie(String),
}

/// As the command line writes it; two that mean the same have the same text.
impl std::fmt::Display for Balance {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RoundRobin => out.write_str("round_robin"),
            Self::LeastRequests => out.write_str("least_requests"),
            Self::Ewma => out.write_str("ewma"),
            Self::Hash(HashBy::Address) => out.write_str("hash"),
            Self::Hash(HashBy::Header(name)) => write!(out, "hash:header={}", name.to_ascii_lowercase()),
            Self::Hash(HashBy::Cookie(name)) => write!(out, "hash:cookie={name}"),
            Self::Sticky(Sticky { cookie, max_age_s: None }) => write!(out, "sticky:{cookie}"),
            Self::Sticky(Sticky { cookie, max_age_s: Some(age) }) => write!(out, "sticky:{cookie}={age}"),
        }
    }
}

impl std::str::FromStr for Balance {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        Ok(match (kind, rest) {
            ("round_robin", None) => Self::RoundRobin,
            ("least_requests", None) => Self::LeastRequests,
            ("ewma", None) => Self::Ewma,
            ("hash", None) => Self::Hash(HashBy::Address),
            ("hash", Some(by)) => match by.split_once('=') {
                Some(("header", name)) => Self::Hash(HashBy::Header(name.to_owned())),
                Some(("cookie", name)) => Self::Hash(HashBy::Cookie(name.to_owned())),
                _ => return Err(format!("`{by}` cannot be hashed: write hash, hash:header=NAME or hash:cookie=NAME")),
            },
            ("sticky", Some(cookie)) => {
                let (cookie, age) = cookie.split_once('=').map_or((cookie, None), |(it, age)| (it, Some(age)));
                let age = age.map(|it| it.parse().map_err(|_| format!("`{it}` is not a number of seconds")));
                Self::Sticky(Sticky { cookie: cookie.to_owned(), max_age_s: age.transpose()? })
            }
            _ => {
                return Err(format!(
                    "`{text}` is no way to choose: round_robin, least_requests, ewma, hash, hash:header=NAME, \
                     hash:cookie=NAME, sticky:COOKIE"
                ));
            }
        })
    }
}
