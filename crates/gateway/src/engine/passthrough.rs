//! TLS that is passed through unread: which host a client asks for, without taking a byte from its connection.

use super::Core;
use rustls::server::Acceptor;
use std::mem::MaybeUninit;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Longest beginning of a connection that is looked at: a TLS record at its largest, twice.
const LONGEST: usize = 2 * 16_400;

/// The upstream that a connection is passed to, when its host is one of those; waits until its first message is whole.
pub(super) async fn target(core: &Core, stream: &TcpStream) -> Option<Arc<str>> {
    if core.shared.snapshot.load().passthrough.is_empty() {
        return None;
    }
    let name = server_name(stream).await?;
    core.shared.snapshot.load().passed_through(&name).cloned()
}

/// The name in the first message of a TLS client; `None` when there is none, or it is not TLS.
async fn server_name(stream: &TcpStream) -> Option<String> {
    let mut known = 0;
    loop {
        let begun = stream.async_io(Interest::READABLE, || {
            let mut buffer = vec![MaybeUninit::uninit(); LONGEST];
            let length = socket2::SockRef::from(stream).peek(&mut buffer)?;
            if length <= known && length > 0 {
                // What was seen already: with more of it, this is called again.
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            // SAFETY: the kernel has written these bytes.
            Ok(buffer[..length].iter().map(|it| unsafe { it.assume_init() }).collect::<Vec<u8>>())
        });
        let begun = begun.await.ok()?;
        if begun.is_empty() || begun.len() >= LONGEST {
            return None;
        }
        known = begun.len();
        match parse(&begun) {
            Parsed::Name(name) => return name,
            Parsed::More => {}
        }
    }
}

enum Parsed {
    /// The message is whole, or not one of TLS.
    Name(Option<String>),
    More,
}

fn parse(mut begun: &[u8]) -> Parsed {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.read_tls(&mut begun) {
            Ok(0) | Err(_) => return Parsed::More,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return Parsed::Name(name.map(|it| it.trim_end_matches('.').to_ascii_lowercase()));
            }
            Ok(None) => {}
            Err(_) => return Parsed::Name(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    #[test]
    fn the_name_is_read_from_a_whole_message_only() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), "Db.Test".try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        for length in [1, 5, 6, hello.len() / 2, hello.len() - 1] {
            assert!(matches!(parse(&hello[..length]), Parsed::More), "{length}");
        }
        let Parsed::Name(name) = parse(&hello) else { panic!("it is whole") };
        assert_eq!(name.as_deref(), Some("db.test"));
        assert!(matches!(parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Parsed::Name(None)));
    }
}
