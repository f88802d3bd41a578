//! The traffic path behind one small interface: [`Engine::start`], [`Engine::listen`], [`Engine::drain`], fed by
//! [`Shared`]. Inside: one thread per core, each with its own listeners and connections; nothing is shared on the way
//! of a request but the snapshot behind an atomic pointer, and counters.
//!
//! Ordinary HTTP/1.1 requests run on a codec of our own (`http1.rs`). HTTP/2 (`http2.rs`), and what asks for more than being
//! passed on (upgrades, routes with rules of their own, refusals), runs on hyper (`http.rs`), for HTTP/1.1 behind a strict
//! guard (`guard.rs`).

mod ahead;
mod authorize;
mod body;
mod buffers;
mod check;
mod date;
mod forward;
mod gate;
mod guard;
mod headers;
mod http;
mod http1;
mod http2;
mod multiplexed;
mod passthrough;
mod passwords;
mod pool;
mod proxy_protocol;
mod record;
mod room;
mod spool;
mod tcp;
mod timer;
mod tls;
mod transport;
mod udp;

use crate::access_log::AccessLog;
use crate::bind::{AddressLock, BindError, Bound, BoundUdp, bind};
use crate::metrics::{ConnectionGuard, Metrics};
use crate::protect::{ConnectionCounts, Counting};
use crate::snapshot::Snapshot;
use arc_swap::ArcSwap;
use arco_daemon::{CancellationToken, OnExit, Supervisor, descriptors};
use forward::Failure;
use guard::ClientLimits;
use http1::Endpoint;
use multiplexed::Multiplexed;
use nix::libc;
use pool::Pool;
use room::Room;
use socket2::TcpKeepalive;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
pub use tls::{CertificateEntry, CertificateError, Certificates};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, mpsc};
use transport::Sender;

/// Pause before the next try to accept when there is no room: what is there is served meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the kernel keeps a new connection to itself while its client has said nothing, in seconds (`TCP_DEFER_ACCEPT`).
/// Every other one comes with its first bytes: that saves waking up once, and one read that finds nothing. A client that only
/// connects is handed over after this time, and all limits and deadlines hold from then on; one that leaves, when it leaves.
/// Those that wait are bounded by the backlog as half-open ones are, lie in the socket and so outlive a worker and a hand-over;
/// when a socket is closed for good, they learn it with their first bytes.
const DEFERRED_S: libc::c_int = 1;
/// A connection on which nothing moves is asked whether its other end is there, and ends when there is no answer: a peer that
/// is gone without a word is noticed after about two minutes.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6);
/// How long a connection without a request is left to its client after another process has taken over.
const IDLE_PATIENCE: Duration = Duration::from_secs(3);
/// Most threads: beyond that, one machine's network is the limit.
const MAX_CORES: usize = 16;

/// Limits of all listeners.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    client: ClientLimits,
    /// Longest request target in bytes; beyond that 414.
    pub max_uri_bytes: usize,
    /// Most client connections; beyond that they are closed at once.
    pub max_connections: Option<usize>,
    /// Most client connections of one address.
    pub max_connections_per_address: Option<u32>,
    /// Most bytes of bodies that wait on disk, of all routes with `buffer` together.
    pub max_buffered_bytes: u64,
}

impl Limits {
    /// Largest request header in bytes, longest time for it to arrive, longest idle time between requests.
    pub fn new(max_header_bytes: usize, request_header: Duration, idle: Duration) -> Self {
        let client = ClientLimits { max_header_bytes, request_header, idle };
        Self {
            client,
            max_uri_bytes: max_header_bytes,
            max_connections: None,
            max_connections_per_address: None,
            max_buffered_bytes: 1 << 30,
        }
    }
}

/// What the traffic path reads; changed by the sources while it runs.
#[derive(Debug)]
pub struct Shared {
    /// The routing table.
    pub snapshot: ArcSwap<Snapshot>,
    /// Certificates of `https` listeners.
    pub certificates: ArcSwap<Certificates>,
    /// Counters.
    pub metrics: Metrics,
    /// Limits; a change holds for new connections.
    pub limits: ArcSwap<Limits>,
    /// The access log, which may be off.
    pub access_log: AccessLog,
    buffers: Arc<spool::Place>,
    judges: Arc<passwords::Judges>,
    connections: Arc<AtomicUsize>,
    /// Flows of datagrams: they have bounds of their own.
    flows: Arc<AtomicUsize>,
    /// Loops that accept: a connection that one of them has just taken is not among `connections` yet.
    accepting: Arc<AtomicUsize>,
    per_address: Arc<ConnectionCounts>,
    quiet: Arc<Notify>,
}

impl Shared {
    /// Without routes and certificates.
    pub fn new(limits: Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            snapshot: ArcSwap::default(),
            certificates: ArcSwap::default(),
            metrics,
            buffers: spool::Place::new(limits.max_buffered_bytes),
            limits: ArcSwap::from_pointee(limits),
            access_log: AccessLog::default(),
            judges: Arc::default(),
            connections: Arc::default(),
            flows: Arc::default(),
            accepting: Arc::default(),
            per_address: Arc::default(),
            quiet: Arc::default(),
        })
    }

    /// Bodies that wait are kept in `folder`, if this is said before the first one is; else in `/var/tmp`. Fails when no
    /// file can be made there.
    pub fn keep_bodies_in(&self, folder: &std::path::Path) -> std::io::Result<()> {
        self.buffers.set_folder(folder);
        self.buffers.check()
    }

    /// Limits from now on.
    pub(crate) fn limit(&self, limits: Limits) {
        self.buffers.set_most(limits.max_buffered_bytes);
        self.limits.store(Arc::new(limits));
    }
}

/// What a listener speaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Plain HTTP/1.1.
    Http,
    /// HTTP/1.1 or HTTP/2 over TLS.
    Https,
    /// The same, behind a proxy that says by the PROXY protocol who connects.
    Proxied(Box<Protocol>),
    /// Bytes, to this upstream.
    Tcp(Arc<str>),
    /// Datagrams, to this upstream.
    Udp(Arc<str>),
}

/// One address that is listened on until this is dropped.
#[derive(Debug)]
pub struct Listening {
    /// As really bound.
    pub address: SocketAddr,
    stop: CancellationToken,
    /// The same sockets that the cores accept on.
    listeners: Vec<std::net::TcpListener>,
    datagrams: Vec<std::net::UdpSocket>,
    lock: Option<AddressLock>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Listen {
    socket: ListenSocket,
    stop: CancellationToken,
}

enum ListenSocket {
    Stream(std::net::TcpListener, Protocol),
    Datagram(std::net::UdpSocket, Arc<str>),
}

/// What the connections of one core share.
struct Core {
    /// From 0.
    number: usize,
    shared: Arc<Shared>,
    pool: Arc<Pool<Sender>>,
    multiplexed: Arc<Multiplexed>,
    endpoints: Pool<Endpoint>,
    supervisor: Supervisor,
    /// No more requests on a connection than the one it is in.
    drain: CancellationToken,
    /// No more waiting for one, either.
    end_idle: CancellationToken,
    room: Room,
    id_high: u64,
    id_low: AtomicU64,
}

impl Core {
    /// An id for a request: random per core, then counted.
    fn fresh_id(&self) -> u128 {
        u128::from(self.id_high) << 64 | u128::from(self.id_low.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a connection ends with the answer that it gets now.
    fn keeps_none(&self) -> bool {
        self.drain.is_cancelled() || self.room.is_tight()
    }

    /// Connects to an endpoint, if need be in the place of idle connections to others.
    async fn connect(&self, address: SocketAddr, limit: Duration) -> Result<Endpoint, Failure> {
        match Endpoint::connect(address, limit).await {
            Err(Failure::NoRoom) => {
                self.room.tighten();
                self.close_idle_endpoints();
                Endpoint::connect(address, limit).await
            }
            outcome => outcome,
        }
    }

    /// Closes this core's connections to endpoints that nobody uses.
    fn close_idle_endpoints(&self) {
        self.endpoints.clear();
        self.pool.clear();
        self.multiplexed.clear();
    }
}

/// How many threads serve when `wanted` are wanted (0: one per processor).
pub fn threads(wanted: usize) -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    if wanted == 0 { available } else { wanted }.min(MAX_CORES)
}

/// The threads that serve traffic.
pub struct Engine {
    shared: Arc<Shared>,
    cores: Vec<mpsc::UnboundedSender<Listen>>,
    /// Ends accepting; after `drain`, so that whoever sees a closed port gets answers that end their connection.
    closed: CancellationToken,
    drain: CancellationToken,
    end_idle: CancellationToken,
}

impl Engine {
    /// Starts `cores` threads (0: one per processor); they end with the supervisor.
    pub fn start(supervisor: &Supervisor, shared: Arc<Shared>, cores: usize) -> std::io::Result<Self> {
        descriptors::raise_limit();
        let cores = threads(cores);
        let (drain, end_idle) = (CancellationToken::new(), CancellationToken::new());
        let mut senders = Vec::new();
        for (number, room) in Room::of_cores(cores).into_iter().enumerate() {
            let (sender, mut listens) = mpsc::unbounded_channel::<Listen>();
            senders.push(sender);
            let mut random = [0u8; 16];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| std::io::Error::other("no randomness"))?;
            let (high, low) = random.split_at(8);
            let number_of = |half: &[u8]| half.iter().fold(0u64, |sum, it| sum << 8 | u64::from(*it));
            let core = Arc::new(Core {
                number,
                shared: Arc::clone(&shared),
                pool: Arc::default(),
                multiplexed: Arc::default(),
                endpoints: Pool::default(),
                supervisor: supervisor.clone(),
                // Its own: looking at them takes a lock that no other core takes.
                drain: drain.child_token(),
                end_idle: end_idle.child_token(),
                room,
                id_high: number_of(high),
                id_low: AtomicU64::new(number_of(low)),
            });
            let token = supervisor.token().clone();
            supervisor.spawn_thread(&format!("gateway-{number}"), OnExit::Shutdown, move || async move {
                let accepting = async {
                    while let Some(listen) = listens.recv().await {
                        let (own, stop) = (Arc::clone(&core), listen.stop);
                        match listen.socket {
                            ListenSocket::Stream(listener, protocol) => {
                                let accept = accept(own, TcpListener::from_std(listener)?, protocol, stop);
                                core.supervisor.spawn("listener", OnExit::Continue, accept);
                            }
                            ListenSocket::Datagram(socket, upstream) => {
                                let serve = udp::serve(own, UdpSocket::from_std(socket)?, upstream, stop);
                                core.supervisor.spawn("UDP port", OnExit::Continue, serve);
                            }
                        }
                    }
                    // No more listeners will come, but those that are there go on until the process stops.
                    std::future::pending().await
                };
                let ending_idle = async {
                    core.end_idle.cancelled().await;
                    core.room.ring();
                    std::future::pending().await
                };
                tokio::select! {
                    ended = accepting => ended,
                    () = ending_idle => Ok(()),
                    () = core.pool.sweep() => Ok(()),
                    () = core.multiplexed.sweep() => Ok(()),
                    () = core.endpoints.sweep() => Ok(()),
                    () = token.cancelled() => Ok(()),
                }
            })?;
        }
        supervisor.spawn("health checks", OnExit::Shutdown, check::run(Arc::clone(&shared), supervisor.clone()));
        Ok(Self { shared, cores: senders, closed: CancellationToken::new(), drain, end_idle })
    }

    /// Threads that serve.
    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    /// Listens on `address` on every core. Port 0 picks a free port.
    pub fn listen(&self, address: SocketAddr, protocol: &Protocol) -> Result<Listening, BindError> {
        let bound = bind(address, self.cores.len())?;
        self.listen_on(bound, protocol).map_err(|it| BindError::new(address, &it))
    }

    /// Listens on sockets that are bound already, however many there are.
    pub fn listen_on(&self, bound: Bound, protocol: &Protocol) -> std::io::Result<Listening> {
        let stop = self.closed.child_token();
        for (core, listener) in self.cores.iter().cycle().zip(&bound.listeners) {
            prepare(listener, protocol);
            let (socket, stop) = (ListenSocket::Stream(listener.try_clone()?, protocol.clone()), stop.clone());
            // A core that has ended stops the process; nobody is left to tell.
            let _ = core.send(Listen { socket, stop });
        }
        let (address, listeners, lock) = (bound.address, bound.listeners, Some(bound.lock));
        Ok(Listening { address, stop, listeners, datagrams: Vec::new(), lock })
    }

    /// Takes datagrams on sockets that are bound already.
    pub fn listen_udp(&self, bound: BoundUdp, upstream: &Arc<str>) -> std::io::Result<Listening> {
        let stop = self.closed.child_token();
        for (core, socket) in self.cores.iter().cycle().zip(&bound.sockets) {
            udp::prepare(socket)?;
            let (socket, stop) = (ListenSocket::Datagram(socket.try_clone()?, Arc::clone(upstream)), stop.clone());
            let _ = core.send(Listen { socket, stop });
        }
        let (address, datagrams, lock) = (bound.address, bound.sockets, Some(bound.lock));
        Ok(Listening { address, stop, listeners: Vec::new(), datagrams, lock })
    }

    /// Speaks another protocol on the same sockets: whoever connects meanwhile waits.
    pub fn switch(&self, mut listening: Listening, protocol: &Protocol) -> std::io::Result<Listening> {
        let (listeners, sockets) = (std::mem::take(&mut listening.listeners), std::mem::take(&mut listening.datagrams));
        let Some(lock) = listening.lock.take() else { return Err(std::io::ErrorKind::NotConnected.into()) };
        let address = listening.address;
        drop(listening);
        if let Protocol::Udp(upstream) = protocol {
            return self.listen_udp(BoundUdp { address, sockets, lock }, upstream);
        }
        self.listen_on(Bound { address, listeners, lock }, protocol)
    }

    /// From now on each answer ends its connection. To be said before listeners are let go: whoever finds a port closed is
    /// answered so on the connections that it has.
    pub fn leave(&self) {
        self.drain.cancel();
    }

    /// Stops accepting, ends idle connections, and waits at most `grace` for open requests. Returns whether all ended.
    pub async fn drain(&self, grace: Duration) -> bool {
        // Whoever sees an idle connection end is answered on the others with `Connection: close`.
        self.drain.cancel();
        self.end_idle.cancel();
        self.drained(grace).await
    }

    /// The same while a successor accepts on the same sockets. Clients are told with their next answer to connect anew;
    /// a connection is closed on them only when none came for a while: a request that was on its way would be lost.
    pub async fn hand_over(&self, grace: Duration) -> bool {
        let patience = IDLE_PATIENCE.min(grace / 2);
        let ending = async {
            tokio::time::sleep(patience).await;
            self.end_idle.cancel();
            std::future::pending().await
        };
        tokio::select! {
            whole = self.drained(grace) => whole,
            never = ending => never,
        }
    }

    async fn drained(&self, grace: Duration) -> bool {
        self.drain.cancel();
        self.closed.cancel();
        let all_ended = async {
            loop {
                let quiet = self.shared.quiet.notified();
                let open = [&self.shared.accepting, &self.shared.connections, &self.shared.flows];
                if open.iter().all(|it| it.load(Ordering::SeqCst) == 0) {
                    return;
                }
                quiet.await;
            }
        };
        tokio::time::timeout(grace, all_ended).await.is_ok()
    }
}

/// Counts a connection, a flow of datagrams or a loop that accepts, for [`Engine::drain`].
struct Counted {
    counter: Arc<AtomicUsize>,
    quiet: Arc<Notify>,
}

impl Counted {
    fn connection(shared: &Shared) -> Self {
        Self::new(&shared.connections, &shared.quiet)
    }

    fn flow(shared: &Shared) -> Self {
        Self::new(&shared.flows, &shared.quiet)
    }

    fn new(counter: &Arc<AtomicUsize>, quiet: &Arc<Notify>) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self { counter: Arc::clone(counter), quiet: Arc::clone(quiet) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.counter.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quiet.notify_one();
        }
    }
}

async fn accept(
    core: Arc<Core>,
    listener: TcpListener,
    protocol: Protocol,
    stop: CancellationToken,
) -> Result<(), arco_daemon::BoxError> {
    let _accepting = Counted::new(&core.shared.accepting, &core.shared.quiet);
    let mut complained = false;
    loop {
        let accepting = async {
            // They go first: a client would notice.
            if !core.room.has_place(&listener) {
                core.close_idle_endpoints();
            }
            while !core.room.has_place(&listener) {
                core.room.tighten();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            listener.accept().await
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = accepting => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                complained = false;
                core.room.gave(&stream);
                begin(&core, stream, peer, &protocol);
            }
            Err(error) if room::is_used_up(&error) => {
                core.room.tighten();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, "a connection cannot be accepted; those that are open go on");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What every connection of a listener is to have: it is inherited, and costs no system call for each.
fn prepare(listener: &std::net::TcpListener, protocol: &Protocol) {
    let socket = socket2::SockRef::from(listener);
    // A socket that refuses these still works.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&KEEPALIVE);
    // In any case: the same socket may have been for another protocol before.
    defer(listener, if is_begun_by_client(protocol) { DEFERRED_S } else { 0 });
}

/// Whether nothing can happen on a connection before its client has sent something. Behind TCP there may be a server that
/// speaks first.
fn is_begun_by_client(protocol: &Protocol) -> bool {
    match protocol {
        Protocol::Http | Protocol::Https => true,
        Protocol::Proxied(inner) => is_begun_by_client(inner),
        Protocol::Tcp(_) | Protocol::Udp(_) => false,
    }
}

fn defer(listener: &std::net::TcpListener, seconds: libc::c_int) {
    let (option, length) = (libc::TCP_DEFER_ACCEPT, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel reads one number, which lives as long as the call.
    let _ = unsafe {
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const seconds).cast(), length)
    };
}

fn begin(core: &Arc<Core>, stream: TcpStream, peer: SocketAddr, protocol: &Protocol) {
    let limits = core.shared.limits.load();
    if limits.max_connections.is_some_and(|it| core.shared.connections.load(Ordering::Relaxed) >= it) {
        tracing::debug!(%peer, "a connection is refused: there are too many");
        return;
    }
    let (limits, core) = (**limits, Arc::clone(core));
    let guards = (Counted::connection(&core.shared), core.shared.metrics.connection());
    let supervisor = core.supervisor.clone();
    if *protocol == Protocol::Http {
        // Most connections, and most idle ones: they have no room for what the others need.
        let Some(counting) = counted(&core.shared, &limits, peer) else { return };
        let_go(&stream, &limits);
        let serving = http1::serve(core, stream, peer, None, (guards, counting));
        return supervisor.spawn("client connection", OnExit::Continue, serving);
    }
    let protocol = protocol.clone();
    supervisor.spawn("client connection", OnExit::Continue, async move {
        serve(core, stream, peer, protocol, limits, guards).await;
        Ok(())
    });
}

/// What counts a connection until it ends.
type Guards = (Counted, ConnectionGuard);

async fn serve(
    core: Arc<Core>,
    mut stream: TcpStream,
    mut peer: SocketAddr,
    mut protocol: Protocol,
    limits: Limits,
    guards: Guards,
) {
    let patience = limits.client.request_header;
    if let Protocol::Proxied(inner) = protocol {
        let from = peer.ip().to_canonical();
        let trusted = core.shared.snapshot.load().trusted_proxies.iter().any(|it| it.contains(&from));
        if !trusted && !is_this_machine(&stream, from) {
            tracing::debug!(%peer, "a PROXY header is taken from `trusted_proxies` only");
            return;
        }
        match Box::pin(tokio::time::timeout(patience, proxy_protocol::read(&mut stream))).await {
            // One that speaks for nobody: a check by the proxy, or by keepalived from here.
            Ok(Ok(None)) => {}
            Ok(Ok(Some(source))) if trusted => peer = source,
            outcome => {
                tracing::debug!(%peer, ?outcome, "no PROXY header");
                return;
            }
        }
        protocol = *inner;
    }
    let Some(counting) = counted(&core.shared, &limits, peer) else { return };
    let guards = (guards, counting);
    match protocol {
        Protocol::Http => {
            let_go(&stream, &limits);
            drop(Box::pin(http1::serve(core, stream, peer, None, guards)).await);
        }
        Protocol::Https => {
            if !core.shared.snapshot.load().passthrough.is_empty() {
                let passed = Box::pin(tokio::time::timeout(patience, passthrough::target(&core, &stream))).await;
                if let Ok(Some(upstream)) = passed {
                    return Box::pin(tcp::serve(core, stream, peer, upstream)).await;
                }
            }
            let_go(&stream, &limits);
            let certificates = core.shared.certificates.load_full();
            let metrics = core.shared.metrics.clone();
            let handshake = Box::pin(tokio::time::timeout(patience, tls::accept(certificates, stream, &metrics))).await;
            match handshake {
                Ok(Some((stream, secured))) if stream.protocol() == Some(b"h2") => {
                    Box::pin(http2::serve(core, stream, peer, secured)).await;
                }
                Ok(Some((stream, secured))) => {
                    drop(Box::pin(http1::serve(core, stream, peer, Some(secured), guards)).await);
                }
                Ok(None) => {}
                Err(_) => metrics.handshake_failed("timeout"),
            }
        }
        Protocol::Tcp(upstream) => Box::pin(tcp::serve(core, stream, peer, upstream)).await,
        // Datagrams come without a connection (`udp`).
        Protocol::Udp(_) => {}
        // Never built: a proxy header stands once at the beginning.
        Protocol::Proxied(_) => {}
    }
}

/// Whether `from` is an address of this machine, for a connection that comes from there.
fn is_this_machine(stream: &TcpStream, from: IpAddr) -> bool {
    from.is_loopback() || stream.local_addr().is_ok_and(|it| it.ip().to_canonical() == from)
}

/// Has the kernel end a connection whose client takes nothing for as long as one may be idle: whoever closes TLS, and
/// hyper, wait for it without a limit.
fn let_go(stream: &TcpStream, limits: &Limits) {
    // A socket that refuses it still works.
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(limits.client.idle));
}

/// Counts a connection of an address; `None` when it has too many.
fn counted(shared: &Shared, limits: &Limits, peer: SocketAddr) -> Option<Option<Counting>> {
    let Some(max) = limits.max_connections_per_address else { return Some(None) };
    let counting = shared.per_address.begin(peer.ip().to_canonical(), max);
    if counting.is_none() {
        tracing::debug!(%peer, "a connection is refused: its address has too many");
    }
    counting.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel has it.
    fn deferred(listener: &std::net::TcpListener) -> libc::c_int {
        let (mut seconds, mut length) = (-1, size_of::<libc::c_int>() as libc::socklen_t);
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
        // SAFETY: the kernel writes at most `length` bytes to a number of that length.
        let outcome = unsafe {
            libc::getsockopt(listener.as_raw_fd(), level, option, (&raw mut seconds).cast(), &raw mut length)
        };
        assert_eq!(outcome, 0);
        seconds
    }

    #[test]
    fn connections_are_asked_whether_their_other_end_is_there() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        prepare(&bound.listeners[0], &Protocol::Tcp("db".into()));
        // Whoever is accepted has it from the listener.
        let socket = socket2::SockRef::from(&bound.listeners[0]);
        assert!(socket.keepalive().unwrap());
        let asked = socket.tcp_keepalive_time().unwrap() + 6 * socket.tcp_keepalive_interval().unwrap();
        assert_eq!((asked, socket.tcp_keepalive_retries().unwrap()), (Duration::from_secs(120), 6));
    }

    #[test]
    fn a_listener_waits_for_bytes_only_where_clients_speak_first() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let proxied = |it| Protocol::Proxied(Box::new(it));
        // One socket after the other protocol, as when a file is read again.
        for (protocol, waits) in [
            (Protocol::Http, true),
            (Protocol::Tcp("db".into()), false),
            (Protocol::Https, true),
            (proxied(Protocol::Tcp("db".into())), false),
            (proxied(Protocol::Https), true),
        ] {
            prepare(&bound.listeners[0], &protocol);
            assert_eq!(deferred(&bound.listeners[0]) > 0, waits, "{protocol:?}");
        }
    }
}
