//! A plain connection to an endpoint.

use crate::engine::KEEPALIVE;
use crate::engine::forward::Failure;
use crate::engine::pool::Pooled;
use crate::engine::room;
use std::net::SocketAddr;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::net::TcpStream;

/// See the module.
#[derive(Debug)]
pub(crate) struct Endpoint(pub(super) TcpStream);

impl Endpoint {
    /// Connects in at most `limit`.
    pub(crate) async fn connect(address: SocketAddr, limit: Duration) -> Result<Self, Failure> {
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it small requests wait for acknowledgements; a socket that refuses it still works.
                let _ = stream.set_nodelay(true);
                // Streams may be silent for any time: one that is gone without a word must not hold a client for ever.
                let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                Ok(Self(stream))
            }
            Ok(Err(error)) if room::is_used_up(&error) => Err(Failure::NoRoom),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "an endpoint cannot be reached");
                Err(Failure::Broken)
            }
            Err(_) => Err(Failure::TimedOut),
        }
    }
}

impl Pooled for Endpoint {
    /// Asks the runtime first: a connection on which nothing has happened costs no system call.
    fn is_closed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        if self.0.poll_read_ready(&mut cx).is_pending() {
            return false;
        }
        // An endpoint that speaks unasked is as bad as one that has left.
        !matches!(self.0.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_endpoint_is_asked_whether_it_is_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limit = Duration::from_secs(60);
        let endpoint = Endpoint::connect(listener.local_addr().unwrap(), limit).await.unwrap();
        assert!(socket2::SockRef::from(&endpoint.0).keepalive().unwrap());
    }
}
