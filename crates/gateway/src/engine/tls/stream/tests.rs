//! Against rustls's own client with buffers, over pipes of all sizes.

use super::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

type Versions = &'static [&'static SupportedProtocolVersion];
const BOTH: [Versions; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];

/// A client and a server that know each other, by a pipe of `size` bytes.
async fn pair(versions: Versions, size: usize) -> (ClientStream<DuplexStream>, TlsStream<DuplexStream>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::KeyPair::generate().unwrap();
    let shown = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(shown.der().clone()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(shown.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"x".to_vec(), b"h2".to_vec()];
    let (near, far) = tokio::io::duplex(size);
    let connecting = TlsConnector::from(Arc::new(client)).connect("a.test".try_into().unwrap(), near);
    let (client, server) = tokio::join!(connecting, TlsStream::accept(far, Span::default(), Arc::new(config)));
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.protocol(), Some(&b"h2"[..]));
    (client, *server)
}

fn long(count: u32) -> Vec<u8> {
    (0..count).map(|it| (it % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_said_arrives_whole_both_ways() {
    for versions in BOTH {
        for (size, count) in [(1, 2_000), (100, 40_000), (5_000, 200_000), (1 << 20, 300_000)] {
            let (client, server) = pair(versions, size).await;
            let (mut heard, mut said) = tokio::io::split(client);
            let (mut server_heard, mut server_said) = tokio::io::split(server);
            let saying = async {
                said.write_all(&long(count)).await.unwrap();
                said.shutdown().await.unwrap();
            };
            let answering = async {
                let long = long(count);
                let (head, body) = long.split_at(7);
                let mut sent = server_said.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await.unwrap();
                assert!(sent > 7, "a head goes with its body");
                while sent < long.len() {
                    sent += server_said.write(&long[sent..]).await.unwrap();
                }
                server_said.shutdown().await.unwrap();
                assert!(server_said.write(b"more").await.is_err());
            };
            let (mut one, mut other) = (Vec::new(), Vec::new());
            let hearing = async { heard.read_to_end(&mut one).await.unwrap() };
            // Into rooms that are smaller than a record.
            let server_hearing = async {
                let mut room = [0; 777];
                loop {
                    match server_heard.read(&mut room).await.unwrap() {
                        0 => break,
                        count => other.extend_from_slice(&room[..count]),
                    }
                }
            };
            tokio::join!(saying, answering, hearing, server_hearing);
            assert!(one == long(count) && other == long(count), "{size}: {} {}", one.len(), other.len());
        }
    }
}

#[tokio::test]
async fn tickets_go_with_the_first_answer() {
    let (mut client, mut server) = pair(BOTH[1], 1 << 16).await;
    let tickets = server.outgoing.len();
    assert!(tickets > 0, "they wait");
    let waiting = poll_fn(|cx| {
        let mut room = [0; 16];
        Poll::Ready(Pin::new(&mut server).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending())
    });
    assert!(waiting.await);
    assert_eq!((server.outgoing.len(), server.tickets.len()), (0, tickets), "also while nothing comes");
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!((server.outgoing.len(), server.tickets.len()), (0, tickets), "and until somebody answers");
    server.write_all(b"world").await.unwrap();
    assert!(server.outgoing.is_empty());
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"world");
}

/// A pair whose tickets wait without a buffer.
async fn pair_that_waits() -> (ClientStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (client, mut server) = pair(BOTH[1], 1 << 16).await;
    poll_fn(|cx| {
        let mut room = [0; 16];
        assert!(Pin::new(&mut server).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending());
        Poll::Ready(())
    })
    .await;
    assert!(server.outgoing.is_empty() && !server.tickets.is_empty());
    (client, server)
}

#[tokio::test]
async fn what_rustls_says_by_itself_goes_behind_the_tickets() {
    // The client wants new keys.
    let (mut client, mut server) = pair_that_waits().await;
    client.get_mut().1.refresh_traffic_keys().unwrap();
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(b"world").await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"world");
    // It breaks the protocol, and is told.
    let (mut client, mut server) = pair_that_waits().await;
    client.get_mut().0.write_all(&[23, 3, 3, 0, 20].into_iter().chain([0; 20]).collect::<Vec<u8>>()).await.unwrap();
    assert!(server.read_exact(&mut heard).await.is_err());
    let told = client.read_exact(&mut heard).await.unwrap_err();
    let expected = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
    assert_eq!(told.get_ref().and_then(|it| it.downcast_ref()), Some(&expected), "{told}");
}

#[tokio::test]
async fn new_keys_are_agreed_on_while_bytes_move() {
    let (mut client, mut server) = pair(BOTH[1], 1 << 16).await;
    for round in 0..5u8 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[round; 100]).await.unwrap();
        client.flush().await.unwrap();
        let mut heard = [0; 100];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, [round; 100]);
        server.write_all(&[round; 50]).await.unwrap();
        server.flush().await.unwrap();
        let mut answer = [9; 50];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [round; 50]);
    }
}

#[tokio::test]
async fn an_end_without_a_word_is_an_error_and_idle_connections_hold_nothing() {
    for versions in BOTH {
        let (mut client, mut server) = pair(versions, 1 << 16).await;
        let mut heard = [0; 5];
        // Before the first word, with tickets, and after an answer.
        for _ in 0..2 {
            let waiting = poll_fn(|cx| {
                let mut room = [0; 16];
                Poll::Ready(Pin::new(&mut server).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending())
            });
            assert!(waiting.await);
            for span in [&server.incoming, &server.outgoing, &server.said] {
                assert!(format!("{span:?}").contains("bytes: []"), "{span:?}");
            }
            client.write_all(b"hello").await.unwrap();
            client.flush().await.unwrap();
            server.read_exact(&mut heard).await.unwrap();
            server.write_all(b"world").await.unwrap();
            client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"world");
        }
        drop(client.into_inner());
        assert_eq!(server.read(&mut heard).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn who_has_hung_up_is_not_answered_and_who_listens_is() {
    for versions in BOTH {
        for (hangs_up, speaks_since) in [(true, false), (true, true), (false, false), (false, true)] {
            let (mut client, mut server) = pair(versions, 1 << 16).await;
            // With it go the tickets.
            server.write_all(b"hello").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            let (mut pipe, mut tls) = client.into_inner();
            tls.send_close_notify();
            let mut told = Vec::new();
            tls.write_tls(&mut told).unwrap();
            pipe.write_all(&told).await.unwrap();
            if hangs_up {
                pipe.shutdown().await.unwrap();
            }
            assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
            if speaks_since {
                server.write_all(b"late").await.unwrap();
            }
            server.shutdown().await.unwrap();
            drop(server);
            let mut heard = Vec::new();
            pipe.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard.is_empty(), hangs_up && !speaks_since, "{hangs_up} {speaks_since} {heard:?}");
            if speaks_since {
                let mut heard = heard.as_slice();
                while tls.read_tls(&mut heard).unwrap() > 0 {}
                assert!(tls.process_new_packets().unwrap().peer_has_closed());
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_tls_gets_an_alert_and_ends() {
    for versions in BOTH {
        let (client, mut server) = pair(versions, 1 << 16).await;
        let mut pipe = client.into_inner().0;
        pipe.write_all(b"\x17\x03\x03\x00\x20 this was not encrypted by anybody").await.unwrap();
        let error = server.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(server.write(b"x").await.is_err());
        drop(server);
        let mut told = Vec::new();
        pipe.read_to_end(&mut told).await.unwrap();
        assert!(told.len() > 5, "{told:?}");
    }
    // A message that never ends is not held for ever.
    let config = {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let resolver = Arc::new(rustls::server::ResolvesServerCertUsingSni::new());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_no_client_auth().with_cert_resolver(resolver))
    };
    let (mut pipe, far) = tokio::io::duplex(1 << 20);
    let record = [&[22, 3, 3, 0x40, 0][..], &[1, 0x0f, 0xff, 0xff], &vec![0; 0x4000 - 4]].concat();
    let more = [&[22, 3, 3, 0x40, 0][..], &vec![0; 0x4000]].concat();
    pipe.write_all(&record).await.unwrap();
    for _ in 0..10 {
        pipe.write_all(&more).await.unwrap();
    }
    assert!(TlsStream::accept(far, Span::default(), config).await.is_err());
}
