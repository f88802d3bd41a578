//! Why there is no certificate, and what people can do about it. The advice is pure.

use crate::traffic::PublishError;
use arco_config::AcmeChallenge;
use arco_store::kv::KvError;
use arco_store::secrets::SecretError;
use instant_acme::Problem;

/// Why there is no certificate; people read it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the authority cannot be asked: {0}")]
    Unreachable(String),
    #[error("the authority refuses: {}", said(.0))]
    Refused(Problem),
    #[error("the authority could not prove the host: {}", said(.0))]
    Unproven(Problem),
    #[error("the authority offers no {0} challenge for the host")]
    NoChallenge(&'static str),
    #[error("the gateways did not take the answer to the authority's challenge in time")]
    NotPublished,
    #[error("the order took longer than {0} ms")]
    Slow(u64),
    #[error("what the authority sent cannot be used: {0}")]
    Unusable(String),
    #[error("the authorities of `{0}` cannot be read: {1}")]
    CaFile(String, String),
    #[error("the kept account cannot be used: {0}")]
    Account(String),
    #[error("a key or a request cannot be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error("the answer to the authority's challenge cannot be published: {0}")]
    Publish(#[from] PublishError),
}

impl From<instant_acme::Error> for Trouble {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused(problem),
            other => {
                let mut cause: &dyn std::error::Error = &other;
                let mut text = cause.to_string();
                while let Some(inner) = cause.source() {
                    cause = inner;
                    text = cause.to_string();
                }
                Self::Unreachable(text)
            }
        }
    }
}

/// The words of the authority.
fn said(problem: &Problem) -> String {
    let parts = problem.subproblems.iter().filter_map(|it| it.detail.as_deref());
    let parts: Vec<_> = problem.detail.as_deref().into_iter().chain(parts).collect();
    if parts.is_empty() { format!("`{}`, without a word", kind(problem)) } else { parts.join("; ") }
}

/// The last part of the type of a problem (RFC 8555 §6.7); that of a part where the whole is only `compound`.
fn kind<'a>(problem: &'a Problem) -> &'a str {
    let last = |it: &'a Option<String>| it.as_deref().and_then(|it| it.rsplit(':').next()).unwrap_or_default();
    match last(&problem.r#type) {
        "compound" => problem.subproblems.first().map_or("compound", |it| last(&it.r#type)),
        own => own,
    }
}

impl Trouble {
    /// Whether the authority does not know the account any more.
    pub(super) fn is_account_gone(&self) -> bool {
        matches!(self, Self::Refused(it) if kind(it) == "accountDoesNotExist")
    }

    /// Whether there were too many orders.
    pub(super) fn is_rate_limited(&self) -> bool {
        matches!(self, Self::Refused(it) | Self::Unproven(it) if kind(it) == "rateLimited")
    }

    /// What to do.
    pub(super) fn advice(&self, host: &str, challenge: AcmeChallenge) -> String {
        let port = match challenge {
            AcmeChallenge::Http01 => 80,
            AcmeChallenge::TlsAlpn01 => 443,
        };
        let check = format!("check its A and AAAA records, and that port {port} is open from outside");
        let again = format!("; `arco certificate renew auto:{host}` tries again at once");
        match self {
            Self::Unproven(problem) | Self::Refused(problem) => match kind(problem) {
                "dns" => format!(
                    "the name `{host}` has no usable address: make an A or AAAA record that leads to this gateway{again}"
                ),
                "connection" | "tls" => format!("the name `{host}` must lead to this gateway: {check}{again}"),
                "unauthorized" | "incorrectResponse" => {
                    format!("the name `{host}` does not point here, or another server answers for it: {check}{again}")
                }
                "caa" => format!("the CAA record of `{host}` allows other authorities only: add this one to it{again}"),
                "rateLimited" => "the authority had too many orders: wait; it is tried again later".to_owned(),
                "rejectedIdentifier" => {
                    format!("this authority does not issue for `{host}`: bring a certificate, `arco certificate add`")
                }
                "userActionRequired"
                | "unauthorizedAccount"
                | "externalAccountRequired"
                | "invalidContact"
                | "unsupportedContact" => "check `[acme]` in the server's settings: contact and authority".to_owned(),
                _ => format!("read what the authority says{again}"),
            },
            Self::Unreachable(_) | Self::CaFile(..) => {
                "check `directory_url` and `ca_file` of `[acme]`, and that this machine reaches the authority"
                    .to_owned()
            }
            Self::NoChallenge(_) => "set another `challenge` in `[acme]` of the server's settings".to_owned(),
            Self::NotPublished => format!("does a gateway run? The console's page shows it{again}"),
            Self::Slow(_) => format!("raise `order_timeout_ms` of `[acme]` if the authority is slow{again}"),
            Self::Unusable(_) | Self::Account(_) | Self::Key(_) => format!("the server's log says more{again}"),
            Self::Secret(_) | Self::Kv(_) | Self::Publish(_) => "it is tried again by itself".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str) -> Problem {
        let text = format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "no way"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_people_can_do() {
        for (kind, part) in [
            ("dns", "no usable address"),
            ("connection", "port 80"),
            ("unauthorized", "does not point here"),
            ("incorrectResponse", "does not point here"),
            ("caa", "CAA"),
            ("rateLimited", "wait"),
            ("rejectedIdentifier", "arco certificate add"),
            ("externalAccountRequired", "[acme]"),
            ("somethingNew", "read what"),
        ] {
            let trouble = Trouble::Unproven(problem(kind));
            let advice = trouble.advice("a.test", AcmeChallenge::Http01);
            assert!(advice.contains(part), "{kind}: {advice}");
            assert!(trouble.to_string().contains("no way"));
        }
        let other = Trouble::Unproven(problem("connection")).advice("a.test", AcmeChallenge::TlsAlpn01);
        assert!(other.contains("port 443") && other.contains("`a.test`"), "{other}");
        assert!(Trouble::Refused(problem("rateLimited")).is_rate_limited());
        assert!(Trouble::Refused(problem("accountDoesNotExist")).is_account_gone());
        let compound = r#"{"type": "urn:ietf:params:acme:error:compound", "subproblems": [
            {"type": "urn:ietf:params:acme:error:dns", "detail": "no such name"}]}"#;
        let trouble = Trouble::Unproven(serde_json::from_str(compound).unwrap());
        assert!(trouble.to_string().contains("no such name"), "{trouble}");
        assert!(trouble.advice("a.test", AcmeChallenge::Http01).contains("no usable address"));
    }
}
