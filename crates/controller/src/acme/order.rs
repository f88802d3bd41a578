//! One order: prove the host, have a certificate signed for a fresh key.

use super::trouble::Trouble;
use crate::Controller;
use crate::traffic::Proof;
use arco_config::AcmeChallenge;
use arco_model::time::Timestamp;
use arco_store::sql::CertificateRow;
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, NewOrder, OrderStatus, Problem,
    RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::time::Duration;

/// How long gateways may take to answer a challenge.
const PUBLISHED: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

impl Controller {
    /// Chain and private key (PEM) for `host`. `before` is what it replaces.
    pub(super) async fn order(
        &self,
        account: &Account,
        host: &str,
        before: Option<&CertificateRow>,
    ) -> Result<(String, String), Trouble> {
        let identifiers = [Identifier::Dns(host.to_owned())];
        let plain = NewOrder::new(&identifiers);
        let mut order = match before.and_then(|it| identifier(&it.chain_pem)) {
            None => account.new_order(&plain).await?,
            // An authority that does not know the old one, or does not care, gets an order like any other.
            Some(old) => match account.new_order(&NewOrder::new(&identifiers).replaces(old)).await {
                Ok(order) => order,
                Err(_) => account.new_order(&plain).await?,
            },
        };
        self.prove(&mut order, host).await?;
        let patience = RetryPolicy::new().timeout(Duration::from_millis(self.deps.acme.order_timeout_ms));
        match order.poll_ready(&patience).await {
            Ok(OrderStatus::Invalid) => return Err(Trouble::Unproven(why(&mut order, None).await)),
            Ok(_) => {}
            Err(instant_acme::Error::Api(problem)) => {
                return Err(Trouble::Unproven(why(&mut order, Some(problem)).await));
            }
            Err(error) => return Err(error.into()),
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key)?.der()).await?;
        Ok((order.poll_certificate(&patience).await?, key.serialize_pem()))
    }

    /// Answers what the authority wants to see before it takes the host for ours.
    async fn prove(&self, order: &mut instant_acme::Order, host: &str) -> Result<(), Trouble> {
        let (kind, name) = match self.deps.acme.challenge {
            AcmeChallenge::Http01 => (ChallengeType::Http01, "http-01"),
            AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge = authorization.challenge(kind.clone()).ok_or(Trouble::NoChallenge(name))?;
            let answer = challenge.key_authorization();
            let proof = match self.deps.acme.challenge {
                AcmeChallenge::Http01 => {
                    Proof::Http { token: challenge.token.clone(), answer: answer.as_str().to_owned() }
                }
                AcmeChallenge::TlsAlpn01 => proof_by_tls(host, answer.digest().as_ref())?,
            };
            let published = self.traffic.prove(host, Some(proof)).await?;
            self.everywhere(published).await?;
            challenge.set_ready().await?;
        }
        Ok(())
    }

    /// Waits until every live gateway, and at least one, answers by a revision.
    async fn everywhere(&self, revision: u64) -> Result<(), Trouble> {
        let applied = async {
            while !(self.gateways.any() && self.gateways.applied(revision)) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PUBLISHED, applied).await.map_err(|_| Trouble::NotPublished)
    }
}

/// What the authority found wrong with the host; it says it at the challenge, `whole` is what it says of the order.
async fn why(order: &mut instant_acme::Order, whole: Option<Problem>) -> Problem {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        if let Some(problem) = authorization.challenges.iter().find_map(|it| it.error.clone()) {
            return problem;
        }
    }
    whole.unwrap_or(Problem { r#type: None, detail: None, status: None, subproblems: Vec::new() })
}

/// A certificate that says no more than the digest of the answer (RFC 8737 §3).
fn proof_by_tls(host: &str, digest: &[u8]) -> Result<Proof, Trouble> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    Ok(Proof::Tls { chain_pem: params.self_signed(&key)?.pem(), key_pem: key.serialize_pem() })
}

fn identifier(chain_pem: &str) -> Option<CertificateIdentifier<'static>> {
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).ok()?;
    let found = CertificateIdentifier::try_from(&leaf).ok()?;
    Some(found.into_owned())
}

/// The window in which the authority wants a certificate renewed, and in how many ms to ask again; `None` when there is
/// no way to ask.
pub(super) async fn suggested(
    account: &Account,
    chain_pem: &str,
) -> Result<Option<(Timestamp, Timestamp, u64)>, Trouble> {
    let Some(id) = identifier(chain_pem) else { return Ok(None) };
    match account.renewal_info(&id).await {
        Ok((info, again)) => {
            let at = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0) * 1000);
            let window = info.suggested_window;
            let again_ms = u64::try_from(again.as_millis()).unwrap_or(u64::MAX);
            Ok(Some((at(window.start.unix_timestamp()), at(window.end.unix_timestamp()), again_ms)))
        }
        Err(instant_acme::Error::Unsupported(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
