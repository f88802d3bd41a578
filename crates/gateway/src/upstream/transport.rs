//! How the endpoints of an upstream are spoken to: HTTP/1.1 or HTTP/2, plain or over TLS, and whose certificate counts.
//!
//! What must hold: what asks for a certificate of some authority never falls back to any certificate, nor to none.
//!
//! Not here: connecting (the engine's `transport`).

use crate::balance::hash;
use arco_daemon::tls;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::{Arc, OnceLock};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Differs between transports that must not share connections.
    pub id: u64,
    /// HTTP/2, by prior knowledge or over TLS.
    pub http2: bool,
    /// TLS.
    pub tls: Option<UpstreamTls>,
}

/// TLS to endpoints.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Trusted roots and protocols; or why nobody can be trusted, and nobody is asked.
    pub config: Result<Arc<ClientConfig>, String>,
    /// Name that their certificate must have, and that they are asked by; when absent, they are asked by no name.
    pub name: Option<ServerName<'static>>,
}

impl Transport {
    /// Without TLS.
    pub fn plain(http2: bool) -> Self {
        Self { id: u64::from(http2), http2, tls: None }
    }

    /// Over TLS, with whatever certificate an endpoint shows: nobody listens in, but who answers is known by the address
    /// alone.
    pub fn of_anybody(http2: bool) -> Self {
        static CONFIGS: [OnceLock<Result<Arc<ClientConfig>, String>>; 2] = [const { OnceLock::new() }; 2];
        let config = CONFIGS[usize::from(http2)].get_or_init(|| {
            let config = arco_store::unverified::client().map_err(|it| it.to_string())?;
            Ok(speaking(config, http2))
        });
        Self { id: 2 + u64::from(http2), http2, tls: Some(UpstreamTls { config: config.clone(), name: None }) }
    }

    /// Over TLS, with a certificate for `name` of one of the authorities in `ca_pem`; the reason why that cannot be.
    pub fn of(name: &str, ca_pem: &[u8], http2: bool) -> Result<Self, String> {
        let roots = tls::authorities(ca_pem)?;
        let bare = name.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(name);
        let known = ServerName::try_from(bare.to_owned()).map_err(|_| format!("`{name}` is not a name"))?;
        let builder = ClientConfig::builder_with_provider(tls::provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(|it| it.to_string())?;
        let config = speaking(builder.with_root_certificates(roots).with_no_client_auth(), http2);
        let id = hash(ca_pem, hash(name.as_bytes(), 2 + u64::from(http2))) | 4;
        Ok(Self { id, http2, tls: Some(UpstreamTls { config: Ok(config), name: Some(known) }) })
    }

    /// Over TLS, but nobody's certificate would do, and `why`: every request fails with it.
    pub fn of_nobody(why: String, http2: bool) -> Self {
        Self { id: 4 + u64::from(http2), http2, tls: Some(UpstreamTls { config: Err(why), name: None }) }
    }
}

/// What is offered by ALPN.
fn speaking(mut config: ClientConfig, http2: bool) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shared_by_those_who_trust_alike() {
        let authority = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem()
        };
        let (one, two) = (authority("one"), authority("two"));
        let of = |name: &str, ca: &str, http2| Transport::of(name, ca.as_bytes(), http2).unwrap();
        let mut ids = vec![
            Transport::plain(false).id,
            Transport::plain(true).id,
            Transport::of_anybody(false).id,
            Transport::of_anybody(true).id,
            of("a.test", &one, false).id,
            of("a.test", &one, true).id,
            of("b.test", &one, false).id,
            of("a.test", &two, false).id,
            of("[::1]", &one, false).id,
        ];
        assert_eq!(of("a.test", &one, false).id, ids[4]);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 9);
    }

    #[test]
    fn what_cannot_be_read_trusts_nobody() {
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (name, ca) in [("a.test", ""), ("a.test", "x"), ("a.test", cut)] {
            assert!(Transport::of(name, ca.as_bytes(), false).is_err(), "{name} {ca}");
        }
        let nobody = Transport::of_nobody("why".to_owned(), false);
        assert_eq!(nobody.tls.unwrap().config.unwrap_err(), "why");
    }
}
