//! What a client says first, as far as its certificate is found by it.
//!
//! What must hold: nobody relies on this to refuse a client. The message is read again, by rustls, which completes the
//! handshake or says what is wrong with it; whatever is unusual here is left to rustls from the beginning.

use super::CHALLENGE;
use rustls::server::ClientHello;

/// Content type of a record, and type of the message (RFC 8446 §5.1, §4).
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Extensions (RFC 6066 §3, RFC 7301 §3.1), and the one kind of name.
const SERVER_NAME: [u8; 2] = [0, 0];
const ALPN: [u8; 2] = [0, 16];
const HOST_NAME: u8 = 0;

/// See the module.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Hello {
    /// The host that it asks for, in small letters.
    pub(super) name: Option<String>,
    /// It is an authority that wants to see ACME's proof.
    pub(super) challenged: bool,
}

impl Hello {
    /// Reads a message that is whole in one record, which `bytes` begin with; `None` when it is not, or not valid.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [HANDSHAKE, 3, _] = *rest.split_off(..3)? else { return None };
        let mut record = vector(&mut rest, 2)?;
        let [CLIENT_HELLO] = *record.split_off(..1)? else { return None };
        let mut message = vector(&mut record, 3)?;
        // Its version and random bytes; session, ciphers, compression (RFC 8446 §4.1.2).
        message.split_off(..2 + 32)?;
        for size in [1, 2, 1] {
            vector(&mut message, size)?;
        }
        let (mut this, mut extensions) = (Self::default(), vector(&mut message, 2)?);
        while !extensions.is_empty() {
            let kind = extensions.split_off(..2)?;
            let mut body = vector(&mut extensions, 2)?;
            if kind == SERVER_NAME {
                let mut names = vector(&mut body, 2)?;
                let [HOST_NAME] = *names.split_off(..1)? else { return None };
                this.name = Some(plain(std::str::from_utf8(vector(&mut names, 2)?).ok()?));
            } else if kind == ALPN {
                let mut protocols = vector(&mut body, 2)?;
                while !protocols.is_empty() {
                    this.challenged |= vector(&mut protocols, 1)? == CHALLENGE;
                }
            }
        }
        Some(this)
    }
}

impl From<ClientHello<'_>> for Hello {
    fn from(read: ClientHello<'_>) -> Self {
        let challenged = read.alpn().is_some_and(|mut it| it.any(|it| it == CHALLENGE));
        Self { name: read.server_name().map(plain), challenged }
    }
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Takes bytes that a length of `size` bytes stands before.
fn vector<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let length = rest.split_off(..size)?.iter().fold(0, |it, byte| it << 8 | usize::from(*byte));
    rest.split_off(..length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls::server::Acceptor;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use std::sync::Arc;

    fn message(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    /// As rustls reads it; `None` when it wants more or refuses it.
    fn by_rustls(mut bytes: &[u8]) -> Option<Hello> {
        let mut acceptor = Acceptor::default();
        while acceptor.read_tls(&mut bytes).ok()? > 0 {
            if let Some(accepted) = acceptor.accept().ok()? {
                return Some(accepted.client_hello().into());
            }
        }
        None
    }

    #[test]
    fn a_client_says_whom_it_wants_and_what_it_speaks() {
        let http: [&[u8]; 2] = [b"h2", b"http/1.1"];
        for (name, protocols, host, challenged) in [
            ("Shop.Test", &http[..], Some("shop.test"), false),
            ("a.test", &[], Some("a.test"), false),
            ("a.test", &[CHALLENGE], Some("a.test"), true),
            ("127.0.0.1", &http, None, false),
        ] {
            let bytes = message(name, protocols);
            let expected = Some(Hello { name: host.map(str::to_owned), challenged });
            assert_eq!((Hello::read(&bytes), by_rustls(&bytes)), (expected.clone(), expected), "{name}");
            // What follows it is none of its business.
            assert_eq!(Hello::read(&[&bytes[..], b"more"].concat()), Hello::read(&bytes));
            assert!((0..bytes.len()).all(|it| Hello::read(&bytes[..it]).is_none()), "{name}: a part of it");
        }
        assert_eq!(Hello::read(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"), None);
    }

    proptest! {
        /// A message that rustls takes is never understood in another way here.
        #[test]
        fn whatever_comes_is_read_as_rustls_reads_it(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = message("some.host.test", &[b"h2", CHALLENGE]);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.map_or(usize::MAX, |it| it.index(bytes.len())));
            if let (Some(read), Some(expected)) = (Hello::read(&bytes), by_rustls(&bytes)) {
                prop_assert_eq!(read, expected);
            }
        }
    }
}
