//! UDP ports: the datagrams of one client address to one address of this machine are a flow (`flows`); each has a socket of
//! its own to one endpoint, by which answers come back.
//!
//! What must hold: an answer leaves from the address that was asked (`datagram`); flows are bounded, in number and by idle
//! time, and leave room for connections; no flow keeps the others of its thread waiting, however much its endpoint sends;
//! an endpoint that refuses, drains or is gone from its upstream keeps no client.

mod datagram;
mod flows;

use super::{Core, Counted, room};
use crate::upstream::{OpenRequest, Upstream};
use arco_daemon::{BoxError, CancellationToken, OnExit};
use datagram::Peer;
pub(super) use datagram::prepare;
use flows::Flows;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;

/// Largest datagram.
const LARGEST: usize = 65_536;
/// Most flows of one port and core.
const MOST_FLOWS: usize = 4096;
/// How often it is looked which flows are over.
const SWEEP: Duration = Duration::from_secs(1);
/// How long further answers are waited for when a flow has to end.
const LEAVE: Duration = Duration::from_secs(1);
/// Most answers of one flow before others have their turn.
const BURST: usize = 64;
/// How often dropped datagrams are spoken of.
const SAID_MS: u64 = 60_000;

type Flow = flows::Flow<Link>;

/// The way of a flow to its endpoint.
struct Link {
    endpoint: UdpSocket,
    /// Keeps the endpoint's count of open requests.
    open: OpenRequest,
    upstream: Arc<Upstream>,
    /// No datagram of the client goes this way any more.
    end: CancellationToken,
    /// Nor is an answer waited for.
    cut: AtomicBool,
}

impl Link {
    /// Sends a datagram to the endpoint; whether the endpoint is there to take it.
    fn send(&self, bytes: &[u8]) -> bool {
        match send(self.endpoint.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
            Err(error) if !is_loss(error) => {
                self.refuses();
                false
            }
            _ => true,
        }
    }

    fn refuses(&self) {
        self.upstream.metrics.failures.inc();
        self.open.endpoint().state.failed();
    }
}

/// Whether an error says that one datagram is lost, as networks lose them: there is no room for it, or it is too large for
/// the way. All others say that nobody is there.
fn is_loss(error: Errno) -> bool {
    // `EPERM` comes of a firewall, and of a full table of connections.
    matches!(error, Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EMSGSIZE | Errno::EPERM | Errno::EINTR)
}

/// One socket of a port.
struct Port {
    core: Arc<Core>,
    upstream: Arc<str>,
    socket: UdpSocket,
    flows: Mutex<Flows<Link>>,
    /// One buffer for the answers of all flows: a flow that is idle holds none.
    answer: Mutex<Vec<u8>>,
    opened: Instant,
    /// See [`SAID_MS`].
    said_until_ms: AtomicU64,
    stop: CancellationToken,
}

/// Serves one socket of a port until `stop`.
pub(super) async fn serve(
    core: Arc<Core>,
    socket: UdpSocket,
    upstream: Arc<str>,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    let _accepting = Counted::new(&core.shared.accepting, &core.shared.quiet);
    let port = Arc::new(Port {
        core,
        upstream,
        socket,
        flows: Mutex::default(),
        answer: Mutex::new(vec![0; LARGEST]),
        opened: Instant::now(),
        said_until_ms: AtomicU64::new(0),
        stop: stop.clone(),
    });
    let (mut buffer, mut room) = (vec![0; LARGEST], datagram::room());
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A port that nobody uses costs nothing.
    let mut is_used = false;
    let mut stopped = pin!(stop.cancelled());
    loop {
        let receive = || datagram::receive(port.socket.as_raw_fd(), &mut buffer, &mut room);
        let received = tokio::select! {
            () = &mut stopped => break,
            _ = sweep.tick(), if is_used => {
                is_used = port.sweep();
                continue;
            }
            received = port.socket.async_io(Interest::READABLE, receive) => received,
        };
        // An error here is about a datagram that was sent before (ICMP): the socket still works.
        if let Ok((length, peer)) = received {
            port.take(&buffer[..length], peer);
            is_used = true;
        }
    }
    // Who comes later is another listener's; answers that are on their way still arrive ([`LEAVE`]).
    Ok(())
}

impl Port {
    fn flows(&self) -> MutexGuard<'_, Flows<Link>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Brings a datagram to the endpoint of its flow.
    fn take(self: &Arc<Self>, bytes: &[u8], peer: Peer) {
        let known = self.flows().get(&peer);
        if let Some(flow) = known {
            // An instance that is to go keeps no client.
            if !flow.link.open.endpoint().state.is_draining() && flow.link.send(bytes) {
                return flow.asked(self.now_ms());
            }
            self.flows().remove(&flow);
            flow.link.end.cancel();
        }
        self.begin(bytes, peer);
    }

    /// Begins a flow with its first datagram, which is lost when no endpoint takes it.
    fn begin(self: &Arc<Self>, bytes: &[u8], peer: Peer) {
        let Some(upstream) = self.core.shared.snapshot.load().upstreams.get(&self.upstream).cloned() else { return };
        if !self.has_place() {
            return;
        }
        let choice = upstream.settings.balance.choice(&http::HeaderMap::new(), peer.client.ip());
        let mut tried = Vec::new();
        while let Some(open) = upstream.pick_for(&tried, &choice) {
            let address = open.endpoint().address;
            tried.push(address);
            let endpoint = match connect(address) {
                Ok(endpoint) => endpoint,
                Err(error) if room::is_used_up(&error) => return self.core.room.tighten(),
                // Nor is this the endpoint's fault: there is no port left, or no memory.
                Err(error) if error.raw_os_error().is_some_and(|it| is_loss(Errno::from_raw(it))) => return,
                Err(error) => {
                    tracing::debug!(client = %peer.client, %address, %error, "a UDP flow cannot begin");
                    upstream.metrics.failures.inc();
                    open.endpoint().state.failed();
                    continue;
                }
            };
            self.core.room.gave(&endpoint);
            let (end, cut) = (self.stop.child_token(), AtomicBool::new(false));
            let link = Link { endpoint, open, upstream: Arc::clone(&upstream), end, cut };
            if link.send(bytes) {
                return self.follow(Flow::new(peer, link, self.now_ms()));
            }
        }
    }

    /// Whether there is room for one more flow, if need be in the place of another one.
    fn has_place(&self) -> bool {
        let (room, mut flows) = (&self.core.room, self.flows());
        let has_descriptor = room.has_place(&self.socket);
        if has_descriptor && room.has_flow() && flows.len() < MOST_FLOWS {
            return true;
        }
        if !has_descriptor {
            room.tighten();
        }
        if let Some(oldest) = flows.evict() {
            oldest.link.cut.store(true, Ordering::Relaxed);
            oldest.link.end.cancel();
            return true;
        }
        drop(flows);
        let now_ms = self.now_ms();
        if now_ms >= self.said_until_ms.load(Ordering::Relaxed) {
            self.said_until_ms.store(now_ms + SAID_MS, Ordering::Relaxed);
            tracing::warn!(
                upstream = %self.upstream,
                "a UDP port has no room for further clients: those that it has go on, datagrams of others are dropped"
            );
        }
        false
    }

    /// Brings the answers of a flow to its client until it ends.
    fn follow(self: &Arc<Self>, flow: Flow) {
        let (port, flow) = (Arc::clone(self), Arc::new(flow));
        self.flows().insert(&flow);
        let guards = (Counted::flow(&self.core.shared), self.core.room.flow());
        self.core.supervisor.spawn("UDP flow", OnExit::Continue, async move {
            let _guards = guards;
            let (began, metrics) = (Instant::now(), &flow.link.upstream.metrics);
            metrics.open.inc();
            port.answers(&flow).await;
            port.flows().remove(&flow);
            metrics.open.dec();
            metrics.finished(began.elapsed());
            Ok(())
        });
    }

    /// Passes answers on until the end is asked for or the endpoint refuses. What is on its way at the end still arrives.
    async fn answers(&self, flow: &Flow) {
        let mut ended = pin!(flow.link.end.cancelled());
        loop {
            let is_there = tokio::select! {
                () = &mut ended => break,
                is_there = self.some_answers(flow) => is_there,
            };
            if !is_there {
                return;
            }
        }
        while !flow.link.cut.load(Ordering::Relaxed) {
            match tokio::time::timeout(LEAVE, self.some_answers(flow)).await {
                Ok(true) => {}
                // One that is in the middle of an answer is left its time.
                Err(_) if flow.idle(self.now_ms()) < LEAVE => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Passes answers on until others have to have their turn; whether the endpoint is there.
    async fn some_answers(&self, flow: &Flow) -> bool {
        // That an endpoint refuses is told as an error alone.
        let ready = Interest::READABLE | Interest::ERROR;
        match flow.link.endpoint.async_io(ready, || self.pass(flow)).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => {
                tracing::debug!(client = %flow.peer.client, %error, "the endpoint of a UDP flow refuses");
                flow.link.refuses();
                return false;
            }
        }
        true
    }

    /// Passes on what has come, [`BURST`] of it at most; `WouldBlock` when that was all.
    fn pass(&self, flow: &Flow) -> io::Result<()> {
        let mut buffer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BURST {
            match recv(flow.link.endpoint.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    flow.answered(self.now_ms());
                    flow.link.open.endpoint().state.answered();
                    let answer = || datagram::send(self.socket.as_raw_fd(), &buffer[..length], &flow.peer);
                    // A full buffer loses it, as a network would.
                    let _ = self.socket.try_io(Interest::WRITABLE, answer);
                }
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if is_loss(error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ends what is over, and what leads to an endpoint that is to go or has gone; whether flows are left.
    fn sweep(&self) -> bool {
        let upstream = self.core.shared.snapshot.load().upstreams.get(&self.upstream).cloned();
        let is_named = |link: &Link| {
            let state = &link.open.endpoint().state;
            upstream.as_ref().is_some_and(|it| {
                Arc::ptr_eq(it, &link.upstream) || it.endpoints.iter().any(|it| Arc::ptr_eq(&it.state, state))
            })
        };
        let stays = |link: &Link| !link.open.endpoint().state.is_draining() && is_named(link);
        let mut flows = self.flows();
        for flow in flows.sweep(self.now_ms(), stays) {
            flow.link.end.cancel();
        }
        flows.len() > 0
    }
}

/// A socket to an endpoint.
fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let (domain, kind) = (socket2::Domain::for_address(address), socket2::Type::DGRAM.nonblocking());
    let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::UDP))?;
    socket.connect(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_is_lost_says_nothing_about_the_endpoint() {
        for (error, lost) in [
            (Errno::EAGAIN, true),
            (Errno::ENOBUFS, true),
            (Errno::EMSGSIZE, true),
            (Errno::EPERM, true),
            (Errno::ECONNREFUSED, false),
            (Errno::EHOSTUNREACH, false),
            (Errno::ENETUNREACH, false),
        ] {
            assert_eq!(is_loss(error), lost, "{error}");
        }
    }
}
