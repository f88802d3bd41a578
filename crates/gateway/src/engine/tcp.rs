//! TCP listeners: bytes pass in both directions through 64 KiB buffers until both sides are done.

use super::{Core, proxy_protocol, room};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const BUFFER: usize = 64 * 1024;

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
        let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER, BUFFER).await;
        if let Err(error) = copied {
            tracing::debug!(%peer, %address, %error, "a TCP connection broke off");
        }
        upstream.metrics.open.dec();
        upstream.metrics.finished(began.elapsed());
        return;
    }
}
