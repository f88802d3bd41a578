//! TCP listeners: bytes pass in both directions until both sides are done.
//!
//! What must hold: a connection on which nothing moves holds no buffer. Those that move share the few of their core,
//! which stay in the processor's caches.

use super::{Core, buffers, proxy_protocol, room};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

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
        // A socket that refuses this still works.
        let _ = endpoint.set_nodelay(true);
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
    poll_fn(|cx| {
        // Both are polled in any case: each waits for its own side.
        match (there.poll(cx, one, other)?, back.poll(cx, other, one)?) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// What was read; without capacity while nothing is to be written.
    bytes: Vec<u8>,
    written: usize,
    at: At,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    #[default]
    Passing,
    Ending,
    Done,
}

impl Way {
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
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.at = At::Done;
            } else if self.written < self.bytes.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.bytes[self.written..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.written += count,
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
