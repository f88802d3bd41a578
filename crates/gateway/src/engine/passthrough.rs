//! TLS that is passed through unread: which host a client asks for, without taking a byte from its connection.

use super::{Core, buffers};
use rustls::server::Acceptor;
use std::io;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Longest beginning of a connection that is looked at: a message at its largest, in two records.
const LONGEST: usize = buffers::SIZE;

/// The upstream that a connection is passed to, when its host is one of those; waits until its first message is whole.
pub(super) async fn target(core: &Core, stream: &TcpStream) -> Option<Arc<str>> {
    let name = server_name(stream).await?;
    core.shared.snapshot.load().passed_through(&name).cloned()
}

/// The name in the first message of a TLS client; `None` when there is none, or it is not TLS.
async fn server_name(stream: &TcpStream) -> Option<String> {
    let mut known = 0;
    loop {
        // Before the look: the look has seen all that came before an end.
        let has_ended = stream.ready(Interest::READABLE).await.ok()?.is_read_closed();
        // A buffer only for the look: a client that waits holds none.
        let mut begun = buffers::take();
        let looked = look(stream, &mut begun, known);
        let parsed = looked.map(|()| parse(&begun));
        let length = begun.len();
        buffers::put(begun);
        match parsed {
            Ok(Parsed::Name(name)) => return name,
            Ok(Parsed::More) if length < LONGEST => known = length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Parsed::More) | Err(_) => return None,
        }
        // No more comes, and a socket at its end is ready for ever.
        if has_ended {
            return None;
        }
    }
}

/// Looks at what has come of a connection, without taking it; `WouldBlock` when that is no more than is known.
fn look(stream: &TcpStream, begun: &mut Vec<u8>, known: usize) -> io::Result<()> {
    let length = stream.try_io(Interest::READABLE, || {
        let length = socket2::SockRef::from(stream).peek(&mut begun.spare_capacity_mut()[..LONGEST])?;
        if length > known { Ok(length) } else { Err(io::ErrorKind::WouldBlock.into()) }
    })?;
    // SAFETY: the kernel has written these bytes.
    unsafe { begun.set_len(length) };
    Ok(())
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
