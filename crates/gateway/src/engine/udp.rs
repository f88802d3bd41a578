//! UDP ports: the datagrams of one client address to one address of this machine are a flow; each has a socket of its own
//! to one endpoint, by which answers come back.
//!
//! What must hold: an answer leaves from the address that was asked (`datagram`); flows are bounded, in number and by idle
//! time; when there is no room, those that are there go on and new ones are dropped, so that made-up addresses take nothing
//! from anybody.

mod datagram;

use super::{Core, Counted};
use crate::upstream::OpenRequest;
use arco_daemon::{BoxError, CancellationToken, OnExit};
use datagram::Peer;
pub(super) use datagram::prepare;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Largest datagram.
const LARGEST: usize = 65_536;
/// Most flows of one port and core.
const MOST_FLOWS: usize = 4096;
/// A flow without datagrams either way ends after this time; one that was never answered, sooner.
const IDLE: Duration = Duration::from_secs(60);
const UNANSWERED: Duration = Duration::from_secs(10);
/// How long answers are waited for when this process leaves.
const LEAVE: Duration = Duration::from_secs(1);

/// One client and its endpoint.
struct Flow {
    endpoint: UdpSocket,
    /// Keeps the endpoint's count of open requests.
    open: OpenRequest,
    began: Instant,
    /// Milliseconds since `began` of the last datagram, and of the last answer (0: none).
    last_ms: AtomicU64,
    answered_ms: AtomicU64,
    end: CancellationToken,
}

impl Flow {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn seen(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// When it ends if nothing comes any more.
    fn ends_in(&self) -> Option<Duration> {
        let answered = self.answered_ms.load(Ordering::Relaxed) > 0;
        let idle = Duration::from_millis(self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)));
        (if answered { IDLE } else { UNANSWERED }).checked_sub(idle).filter(|it| !it.is_zero())
    }
}

type Flows = Arc<Mutex<HashMap<Peer, Arc<Flow>>>>;

/// Serves one socket of a port until `stop`.
pub(super) async fn serve(
    core: Arc<Core>,
    socket: UdpSocket,
    upstream: Arc<str>,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    let socket = Arc::new(socket);
    let flows = Flows::default();
    let (mut buffer, mut room) = (vec![0; LARGEST], datagram::room());
    let answer = Arc::new(Mutex::new(vec![0; LARGEST]));
    let mut full = false;
    loop {
        let receiving =
            socket.async_io(Interest::READABLE, || datagram::receive(socket.as_raw_fd(), &mut buffer, &mut room));
        let received = tokio::select! {
            () = stop.cancelled() => break,
            received = receiving => received,
        };
        // An error here is about a datagram that was sent before (ICMP): the socket still works.
        let Ok((length, peer)) = received else { continue };
        let known = lock(&flows).get(&peer).cloned();
        // An instance that is to go keeps no client.
        let leaving = known.as_ref().is_some_and(|it| it.open.endpoint().state.is_draining());
        if let Some(flow) = known.as_ref().filter(|_| leaving) {
            flow.end.cancel();
        }
        if let Some(flow) = known.filter(|_| !leaving) {
            flow.seen();
            // A full buffer loses a datagram, as a network would.
            let _ = flow.endpoint.try_send(&buffer[..length]);
        } else if !leaving && lock(&flows).len() >= MOST_FLOWS {
            if !std::mem::replace(&mut full, true) {
                tracing::warn!(upstream = %upstream, "a UDP port has {MOST_FLOWS} flows, new ones are dropped");
            }
        } else {
            full = false;
            if let Some(flow) = begin(&core, (&socket, &answer, &stop), &flows, peer, &upstream).await {
                // A fresh socket is not known to be writable yet.
                let _ = flow.endpoint.send(&buffer[..length]).await;
            }
        }
    }
    // Who comes later is another listener's; answers that are on their way still arrive ([`LEAVE`]).
    Ok(())
}

fn lock(flows: &Flows) -> std::sync::MutexGuard<'_, HashMap<Peer, Arc<Flow>>> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A flow to an endpoint; `None` when there is none.
async fn begin(
    core: &Arc<Core>,
    (socket, buffer, stop): (&Arc<UdpSocket>, &Arc<Mutex<Vec<u8>>>, &CancellationToken),
    flows: &Flows,
    peer: Peer,
    upstream: &Arc<str>,
) -> Option<Arc<Flow>> {
    let upstream = core.shared.snapshot.load().upstreams.get(upstream).cloned()?;
    let choice = upstream.settings.balance.choice(&http::HeaderMap::new(), peer.client.ip());
    let open = upstream.pick_for(&[], &choice)?;
    let address = open.endpoint().address;
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let connected = async {
        let endpoint = UdpSocket::bind(any).await?;
        endpoint.connect(address).await?;
        std::io::Result::Ok(endpoint)
    };
    let endpoint = match connected.await {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::debug!(client = %peer.client, %address, %error, "a UDP flow cannot begin");
            upstream.metrics.failures.inc();
            return None;
        }
    };
    let (end, began) = (stop.child_token(), Instant::now());
    let (last_ms, answered_ms) = (AtomicU64::new(0), AtomicU64::new(0));
    let flow = Arc::new(Flow { endpoint, open, began, last_ms, answered_ms, end });
    lock(flows).insert(peer, Arc::clone(&flow));
    let (socket, buffer) = (Arc::clone(socket), Arc::clone(buffer));
    let (flows, own) = (Arc::clone(flows), Arc::clone(&flow));
    let counted = Counted::connection(&core.shared);
    core.supervisor.spawn("UDP flow", OnExit::Continue, async move {
        let _counted = counted;
        upstream.metrics.open.inc();
        answers(&own, &socket, &peer, &buffer).await;
        let mut flows = lock(&flows);
        if flows.get(&peer).is_some_and(|it| Arc::ptr_eq(it, &own)) {
            flows.remove(&peer);
        }
        drop(flows);
        upstream.metrics.open.dec();
        upstream.metrics.finished(own.began.elapsed());
        Ok(())
    });
    Some(flow)
}

/// Brings the answers of an endpoint to the client until the flow is idle, or its endpoint refuses. After the end was
/// asked for, what is on its way still arrives.
async fn answers(flow: &Flow, socket: &UdpSocket, peer: &Peer, buffer: &Mutex<Vec<u8>>) {
    let mut leaving = false;
    while let Some(rest) = flow.ends_in() {
        let rest = if leaving { rest.min(LEAVE) } else { rest };
        tokio::select! {
            () = flow.end.cancelled(), if !leaving => leaving = true,
            ready = flow.endpoint.readable() => if ready.is_err() { return },
            () = tokio::time::sleep(rest) => if leaving { return } else { continue },
        }
        // One buffer for all flows: a flow that is idle holds none.
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match flow.endpoint.try_recv(&mut buffer) {
                Ok(length) => {
                    flow.seen();
                    flow.answered_ms.store(flow.now_ms().max(1), Ordering::Relaxed);
                    flow.open.endpoint().state.answered();
                    // A full buffer loses a datagram, as a network would.
                    let answer = || datagram::send(socket.as_raw_fd(), &buffer[..length], peer);
                    let _ = socket.try_io(Interest::WRITABLE, answer);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(client = %peer.client, %error, "the endpoint of a UDP flow refuses");
                    flow.open.endpoint().state.failed();
                    return;
                }
            }
        }
    }
}
