//! Certificates that people bring, or that an authority issued: whether chain and key can serve, and for which hosts.
//!
//! What must hold: whatever is accepted here, a gateway can serve. Nothing here keeps a key, and no message holds one.

use arco_model::error::Problem;
use arco_model::time::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a certificate says about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFacts {
    /// DNS names that it is for, in lower case; `*.suffix` stands for one label.
    pub hosts: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
}

/// Checks a chain (PEM, the certificate of the host first) and its private key (PEM) at the time `now`.
pub fn inspect(chain_pem: &str, key_pem: &str, now: Timestamp) -> Result<CertificateFacts, Problem> {
    let chain = chain(chain_pem)?;
    let bad = |message: String, advice: &str| Problem::invalid("certificate_invalid", message, advice);
    let parsed = chain
        .iter()
        .enumerate()
        .map(|(at, it)| {
            let advice = "give the file as the authority sent it, in PEM";
            X509Certificate::from_der(it)
                .map(|it| it.1)
                .map_err(|error| bad(format!("certificate {} of the chain cannot be read: {error}", at + 1), advice))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let leaf = &parsed[0];
    // What `openssl req -x509` makes says that it is an authority. Alone it is nobody's but the host's.
    let is_alone = parsed.len() == 1 && leaf.issuer() == leaf.subject();
    if leaf.is_ca() && !is_alone {
        return Err(bad(
            format!("the first certificate is that of an authority (`{}`)", leaf.subject()),
            "the chain begins with the certificate of the host, then those that signed it, in order",
        ));
    }
    for (at, pair) in parsed.windows(2).enumerate() {
        if pair[0].issuer() != pair[1].subject() {
            return Err(bad(
                format!(
                    "certificate {} is signed by `{}`, but certificate {} is that of `{}`",
                    at + 1,
                    pair[0].issuer(),
                    at + 2,
                    pair[1].subject()
                ),
                "put the chain in order: the host's certificate first, each followed by the one that signed it",
            ));
        }
    }
    let facts = facts(leaf);
    if facts.hosts.is_empty() {
        return Err(bad(
            "the certificate names no DNS host (subject alternative name)".to_owned(),
            "browsers ignore the common name: have one issued with `subjectAltName=DNS:…`",
        ));
    }
    if facts.not_after <= now {
        return Err(bad(
            format!("the certificate for {} ended on {}", facts.hosts.join(", "), facts.not_after.rfc3339()),
            "have it renewed by its authority, then add the new one",
        ));
    }
    if facts.not_before.since_ms(now) > 300_000 {
        let message = format!("the certificate begins only on {}", facts.not_before.rfc3339());
        return Err(bad(message, "check the clocks of this machine and of the authority, or wait"));
    }
    key_fits(chain, key_pem)?;
    Ok(facts)
}

/// What the first certificate of a chain says.
pub fn read(chain_pem: &str) -> Result<CertificateFacts, Problem> {
    let chain = chain(chain_pem)?;
    let parsed = X509Certificate::from_der(&chain[0]).map_err(|error| {
        let message = format!("the certificate cannot be read: {error}");
        Problem::invalid("certificate_invalid", message, "give it in PEM")
    })?;
    Ok(facts(&parsed.1))
}

/// The certificates of a text, at least one.
fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let bad = |message: String| {
        let advice =
            "give a text with `-----BEGIN CERTIFICATE-----`: the host's certificate, then those that signed it";
        Problem::invalid("certificate_invalid", message, advice)
    };
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|it| bad(format!("the chain is not PEM: {it}")))?;
    match chain.len() {
        0 => Err(bad("the chain holds no certificate".to_owned())),
        1..=10 => Ok(chain),
        many => Err(bad(format!("the chain holds {many} certificates, more than 10"))),
    }
}

fn facts(leaf: &X509Certificate<'_>) -> CertificateFacts {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map(|it| it.value.general_names.clone()).unwrap_or_default();
    let host = |it: &GeneralName<'_>| match it {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    let at = |it: x509_parser::time::ASN1Time| Timestamp(u64::try_from(it.timestamp()).unwrap_or(0) * 1000);
    let issuer = leaf.issuer();
    let common = issuer.iter_common_name().next().and_then(|it| it.as_str().ok()).map(str::to_owned);
    CertificateFacts {
        hosts: names.iter().filter_map(host).collect(),
        issuer: common.unwrap_or_else(|| issuer.to_string()),
        not_before: at(leaf.validity().not_before),
        not_after: at(leaf.validity().not_after),
    }
}

fn key_fits(chain: Vec<CertificateDer<'static>>, key_pem: &str) -> Result<(), Problem> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| {
        let advice = if key_pem.contains("ENCRYPTED") {
            "the key is encrypted: write it without a password first (`openssl pkey -in KEY -out PLAIN`)"
        } else {
            "give a text with `-----BEGIN PRIVATE KEY-----`"
        };
        Problem::invalid("key_invalid", format!("the private key cannot be read: {error}"), advice)
    })?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(key).map_err(|error| {
        let advice = "use a key of RSA (2048 bits or more), ECDSA (P-256, P-384, P-521) or Ed25519";
        Problem::invalid("key_invalid", format!("the private key cannot be used: {error}"), advice)
    })?;
    rustls::sign::CertifiedKey::new(chain, key).keys_match().map_err(|_| {
        Problem::invalid(
            "key_mismatch",
            "the private key is not that of the certificate",
            "give the key that the certificate was requested with; `openssl x509 -in CERT -noout -pubkey` and `openssl pkey -in KEY -pubout` must print the same",
        )
    })
}

/// Whether a certificate for `names` is for `host`. A wildcard stands for one label (RFC 6125 §6.4.3); the host may be a
/// wildcard itself, then the certificate must have the same.
pub fn covers(names: &[String], host: &str) -> bool {
    let parent = host.split_once('.').map(|it| it.1);
    names.iter().any(|name| {
        name == host || name.strip_prefix("*.").is_some_and(|suffix| Some(suffix) == parent && !host.starts_with('*'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    struct Made {
        authority: String,
        leaf: String,
        key: String,
    }

    fn make(hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Made {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let hosts: Vec<String> = hosts.iter().map(|it| (*it).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &authority).unwrap();
        Made { authority: authority.pem(), leaf: leaf.pem(), key: key.serialize_pem() }
    }

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn a_good_pair_says_what_it_is_for() {
        let made = make(&["A.test", "*.b.test"], |_| {});
        let facts = inspect(&format!("{}{}", made.leaf, made.authority), &made.key, NOW).unwrap();
        assert_eq!(facts.hosts, ["a.test", "*.b.test"]);
        assert_eq!(facts.issuer, "authority");
        assert!(inspect(&made.leaf, &made.key, NOW).is_ok(), "a chain without its authority is fine");
        assert_eq!(read(&made.leaf).unwrap().hosts, facts.hosts);
    }

    #[test]
    fn a_certificate_that_signed_itself_serves_alone() {
        for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            let mut params = CertificateParams::new(vec!["*.a.test".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, "example");
            params.is_ca = is_ca;
            let key = KeyPair::generate().unwrap();
            let made = params.self_signed(&key).unwrap().pem();
            assert_eq!(inspect(&made, &key.serialize_pem(), NOW).unwrap().hosts, ["*.a.test"]);
        }
    }

    #[test]
    fn what_cannot_serve_is_refused_with_its_reason() {
        let (made, other) = (make(&["a.test"], |_| {}), make(&["b.test"], |_| {}));
        let old = make(&["a.test"], |it| it.not_after = time::OffsetDateTime::UNIX_EPOCH);
        let early = make(&["a.test"], |it| it.not_before = rcgen::date_time_ymd(4000, 1, 1));
        let nameless = make(&[], |_| {});
        let in_order = |first: &str, second: &str| format!("{first}{second}");
        for (chain, key, code, part) in [
            (String::new(), &made.key, "certificate_invalid", "no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
                &made.key,
                "certificate_invalid",
                "cannot be read",
            ),
            (in_order(&made.authority, &made.leaf), &made.key, "certificate_invalid", "that of an authority"),
            (in_order(&made.leaf, &other.leaf), &made.key, "certificate_invalid", "is signed by"),
            (old.leaf.clone(), &old.key, "certificate_invalid", "ended on"),
            (early.leaf.clone(), &early.key, "certificate_invalid", "begins only"),
            (nameless.leaf.clone(), &nameless.key, "certificate_invalid", "names no DNS host"),
            (made.leaf.clone(), &other.key, "key_mismatch", "not that of the certificate"),
            (made.leaf.clone(), &"x".to_owned(), "key_invalid", "cannot be read"),
        ] {
            let problem = inspect(&chain, key, NOW).unwrap_err();
            assert_eq!(problem.code, code, "{problem:?}");
            assert!(problem.message.contains(part) && !problem.advice.is_empty(), "{problem:?}");
            assert!(!problem.message.contains("PRIVATE KEY-----\nM"), "{problem:?}");
        }
    }

    #[test]
    fn which_hosts_are_covered() {
        let names = ["a.test".to_owned(), "*.b.test".to_owned()];
        for (host, covered) in [
            ("a.test", true),
            ("x.b.test", true),
            ("*.b.test", true),
            ("b.test", false),
            ("x.y.b.test", false),
            ("*.a.test", false),
            ("*.x.b.test", false),
            ("*", false),
        ] {
            assert_eq!(covers(&names, host), covered, "{host}");
        }
    }
}
