//! TCP listeners: bytes pass in both directions until both sides are done.
//!
//! What must hold: a connection on which nothing moves holds no buffer. Those that move share the few of their core,
//! which stay in the processor's caches. What a side has said before it refuses or ends reaches the other one, and a side
//! that is gone without a word ends both.

use super::{Core, KEEPALIVE, buffers, proxy_protocol, room};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

/// How often it is looked whether a side that has ended its half is still there to hear the other one.
const LOOK: Duration = Duration::from_secs(60);

/// Joins a client with an endpoint of `upstream`.
pub(super) async fn serve(core: Arc<Core>, mut client: TcpStream, peer: SocketAddr, upstream: Arc<str>) {
    let snapshot = core.shared.snapshot.load_full();
    let Some(upstream) = snapshot.upstreams.get(&upstream).cloned() else {
        tracing::debug!(%peer, upstream = %upstream, "the upstream of a TCP listener does not exist");
        return;
    };
    drop(snapshot);
    let mut tried = Vec::new();
    let choice = upstream.settings.balance.choice(&http::HeaderMap::new(), peer.ip());
    while let Some(open) = upstream.pick_for(&tried, &choice) {
        let address = open.endpoint().address;
        tried.push(address);
        let connected = tokio::time::timeout(upstream.timeouts.connect, TcpStream::connect(address)).await;
        let mut endpoint = match connected {
            Ok(Ok(endpoint)) => endpoint,
            Ok(Err(error)) if room::is_used_up(&error) => return core.room.tighten(),
            Ok(Err(_)) | Err(_) => {
                upstream.metrics.failures.inc();
                open.endpoint().state.failed();
                continue;
            }
        };
        open.endpoint().state.answered();
        // A socket that refuses these still works.
        let _ = endpoint.set_nodelay(true);
        let _ = socket2::SockRef::from(&endpoint).set_tcp_keepalive(&KEEPALIVE);
        if let (Some(version), Ok(local)) = (upstream.settings.proxy_protocol, client.local_addr())
            && endpoint.write_all(&proxy_protocol::write(version, peer, local)).await.is_err()
        {
            upstream.metrics.failures.inc();
            continue;
        }
        let began = std::time::Instant::now();
        upstream.metrics.open.inc();
        if let Err(error) = join(&mut client, &mut endpoint).await {
            tracing::debug!(%peer, %address, %error, "a TCP connection broke off");
        }
        upstream.metrics.open.dec();
        upstream.metrics.finished(began.elapsed());
        return;
    }
}

/// Passes bytes both ways; the end of one side is passed on while the other goes on.
async fn join<A, B>(one: &mut A, other: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::default(), Way::default());
    let mut look = None;
    poll_fn(|cx| {
        // Both are polled in any case: each waits for its own side.
        match (there.poll(cx, one, other)?, back.poll(cx, other, one)?) {
            (Poll::Ready(()), Poll::Ready(())) => {
                Poll::Ready(there.refused.take().or(back.refused.take()).map_or(Ok(()), Err))
            }
            (Poll::Ready(()), Poll::Pending) => poll_gone(&mut look, cx, one),
            (Poll::Pending, Poll::Ready(())) => poll_gone(&mut look, cx, other),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    })
    .await
}

/// Fails when `side`, which has nothing more to say, is not there any more. Nobody reads from it, so the kernel tells that
/// only to who writes: nothing, each [`LOOK`].
fn poll_gone<S>(look: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>, side: &mut S) -> Poll<io::Result<()>>
where
    S: AsyncWrite + Unpin,
{
    let look = look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
    while look.as_mut().poll(cx).is_ready() {
        if let Poll::Ready(written) = Pin::new(&mut *side).poll_write(cx, &[]) {
            written?;
        }
        look.as_mut().reset(Instant::now() + LOOK);
    }
    Poll::Pending
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// What was read; without capacity while nothing is to be written.
    bytes: Vec<u8>,
    written: usize,
    at: At,
    /// Why its end was not taken as far as it should: what the same side says is still to be heard.
    refused: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    #[default]
    Passing,
    Ending,
    Done,
}

impl Way {
    /// Ready when it is done; fails when nothing can come of `from` any more.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.at == At::Done {
                return Poll::Ready(Ok(()));
            }
            if self.at == At::Ending {
                let ended = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.end(ended.err());
            } else if self.written < self.bytes.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.bytes[self.written..])) {
                    Ok(0) => self.end(Some(io::ErrorKind::WriteZero.into())),
                    Ok(count) => self.written += count,
                    Err(error) => self.end(Some(error)),
                }
            } else {
                self.written = 0;
                match &mut self.bytes {
                    none if none.capacity() == 0 => *none = buffers::take(),
                    used => used.clear(),
                }
                let read = poll_read_buf(Pin::new(&mut *from), cx, &mut self.bytes);
                if !matches!(read, Poll::Ready(Ok(1..))) {
                    buffers::put(std::mem::take(&mut self.bytes));
                }
                if ready!(read)? == 0 {
                    self.at = At::Ending;
                }
            }
        }
    }

    fn end(&mut self, refused: Option<io::Error>) {
        (self.at, self.refused) = (At::Done, refused);
        buffers::put(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        buffers::put(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn each_side_may_end_first() {
        let ((mut client, mut near), (mut far, mut endpoint)) = (tokio::io::duplex(7), tokio::io::duplex(3));
        let joined = tokio::spawn(async move { join(&mut near, &mut far).await });
        let long: Vec<u8> = (0..200_000u32).map(|it| it as u8).collect();
        let (sent, mut heard) = (long.clone(), Vec::new());
        let talking = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        endpoint.read_to_end(&mut heard).await.unwrap();
        assert!(heard == long, "{} bytes", heard.len());
        // The client has ended, and still hears.
        endpoint.write_all(b"a late answer").await.unwrap();
        drop(endpoint);
        assert_eq!(talking.await.unwrap(), "a late answer");
        joined.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_has_ended_is_heard_as_long_as_it_is_there() {
        let ((mut client, mut near), (mut far, mut endpoint)) = (tokio::io::duplex(7), tokio::io::duplex(3));
        let joined = tokio::spawn(async move { join(&mut near, &mut far).await });
        client.shutdown().await.unwrap();
        assert_eq!(endpoint.read(&mut [0; 8]).await.unwrap(), 0);
        tokio::time::advance(10 * LOOK).await;
        endpoint.write_all(b"late").await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"late");
        // The client goes, and the endpoint has nothing to say.
        drop(client);
        let ended = tokio::time::timeout(10 * LOOK, joined).await.expect("it is noticed");
        assert!(ended.unwrap().is_err());
    }

    /// Fails to take anything, and has said something before.
    struct Refusing(&'static [u8]);

    impl AsyncRead for Refusing {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }

    impl AsyncWrite for Refusing {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
        }
    }

    #[tokio::test]
    async fn what_a_side_said_before_it_refused_is_heard() {
        for ends in [false, true] {
            let (mut client, mut near) = tokio::io::duplex(100);
            let joined = tokio::spawn(async move { join(&mut near, &mut Refusing(b"too many")).await });
            client.write_all(b"a question").await.unwrap();
            if ends {
                client.shutdown().await.unwrap();
            }
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "too many");
            assert_eq!(joined.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_side_that_breaks_ends_both() {
        let ((client, mut near), (mut far, endpoint)) = (tokio::io::duplex(7), tokio::io::duplex(3));
        let joined = tokio::spawn(async move { join(&mut near, &mut far).await });
        drop(endpoint);
        let mut client = client;
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(client.write_all(&[0; 100]).await.is_err());
        assert!(joined.await.unwrap().is_err());
    }
}
