//! DNS for instances: `<component>.<application>.<tenant>.arco.internal`, answered by who asks; all else is forwarded.
//!
//! Fed by a mirror of `/gateway/`, so that it answers from the last known state while the store is silent. Short names
//! are the resolver's business, through its search list.

mod forward;
pub mod table;

use arc_swap::ArcSwap;
use arco_daemon::handover::{Claim, Sockets};
use arco_daemon::{BoxError, CancellationToken};
use arco_store::kv::mirror::Mirror;
use async_trait::async_trait;
use forward::{Asker, Forwarder};
use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use table::{Decision, Table};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// How long an answer may be kept, in seconds. Component addresses are stable; short enough for names that vanish.
pub const TTL_S: u32 = 5;
/// Most questions about foreign names that a tenant (or an address that is no instance's) has open at once; further ones
/// fail at once.
pub const FOREIGN_EACH: usize = 64;
/// Longest silence of a TCP client.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that may wait for one TCP client.
const TCP_ANSWERS: usize = 32;
/// Pause between attempts to bind an address that is not free yet.
const REBIND: Duration = Duration::from_millis(500);
/// Longest time for questions that are under way when the sockets go to a successor.
const FAREWELL: Duration = Duration::from_secs(1);
/// Name of the sockets among those that outlive this process.
const KEPT: &str = "dns";

/// The name server of this machine's instances.
pub struct Dns {
    mirror: Arc<Mirror>,
    sockets: Sockets,
    /// What was kept, until it is known whether it fits.
    kept: Option<(Vec<OwnedFd>, Claim)>,
    table: Arc<ArcSwap<Table>>,
    forwarder: Arc<Forwarder>,
    bound: watch::Sender<Option<SocketAddr>>,
    under_way: Arc<AtomicUsize>,
}

/// What listens, for as long as it is kept.
struct Serving {
    asked: SocketAddrV4,
    server: Server<Answering>,
    _claim: Claim,
}

impl Dns {
    /// A name server fed by `mirror`, on `sockets` that outlive this process; nothing is bound yet.
    pub fn build(mirror: Arc<Mirror>, sockets: Sockets) -> Self {
        Self::with_forwarding(mirror, sockets, 53, forward::PATIENCE)
    }

    /// The same with another port of the forwarders, and longest wait for each of them: for tests.
    pub fn with_forwarding(mirror: Arc<Mirror>, sockets: Sockets, port: u16, patience: Duration) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(mirror.read(Table::read)));
        let (forwarder, bound) = (Arc::new(Forwarder::new(port, patience)), watch::Sender::new(None));
        // At once: what nobody takes at the start is closed.
        let kept = sockets.take(KEPT, |_| true);
        Self { mirror, sockets, kept, table, forwarder, bound, under_way: Arc::default() }
    }

    /// Where it listens now.
    pub fn bound(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.bound.subscribe()
    }

    /// Listens where the settings say, and moves when they change, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), BoxError> {
        let mut changed = self.mirror.changed();
        let mut serving: Option<Serving> = None;
        let mut complained = false;
        loop {
            self.table.store(Arc::new(self.mirror.read(Table::read)));
            let wanted = self.table.load().listen;
            if serving.as_ref().map(|it| it.asked) != wanted {
                // The old sockets close before the new ones are bound: they may share a port.
                serving = None;
                self.bound.send_replace(None);
                match wanted.map(|it| self.listen(it)) {
                    Some(Ok(it)) => {
                        complained = false;
                        serving = Some(it);
                    }
                    Some(Err(error)) if !std::mem::replace(&mut complained, true) => {
                        tracing::warn!(address = ?wanted, %error, "DNS cannot listen yet; it keeps trying");
                    }
                    Some(Err(_)) | None => {}
                }
            }
            let missing = wanted.is_some() && serving.is_none();
            tokio::select! {
                () = stop.cancelled() => {
                    if let Some(serving) = serving {
                        self.leave(serving).await;
                    }
                    return Ok(());
                }
                ended = changed.changed() => if ended.is_err() { stop.cancelled().await },
                () = tokio::time::sleep(REBIND), if missing => {}
            }
        }
    }

    fn listen(&mut self, address: SocketAddrV4) -> std::io::Result<Serving> {
        let bound_to = |it: &OwnedFd| socket2::SockRef::from(it).local_addr().ok()?.as_socket_ipv4();
        let fits = |it: SocketAddrV4| it == address || address.port() == 0 && it.ip() == address.ip();
        let kept = self.kept.take().filter(|(them, _)| them.first().and_then(bound_to).is_some_and(fits));
        let kept = kept.and_then(|(them, claim)| Some((<[OwnedFd; 2]>::try_from(them).ok()?, claim)));
        let (udp, tcp, claim): (std::net::UdpSocket, std::net::TcpListener, Claim) = match kept {
            Some(([udp, tcp], claim)) => (udp.into(), tcp.into(), claim),
            None => {
                let udp = socket(address, Type::DGRAM, Protocol::UDP)?;
                let bound = udp.local_addr()?.as_socket_ipv4().ok_or(std::io::ErrorKind::Unsupported)?;
                let tcp = socket(bound, Type::STREAM, Protocol::TCP)?;
                tcp.listen(128)?;
                let claim = self.sockets.keep(KEPT, &[udp.as_fd(), tcp.as_fd()]);
                (udp.into(), tcp.into(), claim)
            }
        };
        let bound = udp.local_addr()?;
        let answering = Answering {
            table: Arc::clone(&self.table),
            forwarder: Arc::clone(&self.forwarder),
            under_way: Arc::clone(&self.under_way),
        };
        let mut server = Server::new(answering);
        server.register_socket(UdpSocket::from_std(udp)?);
        server.register_listener(TcpListener::from_std(tcp)?, TCP_IDLE, TCP_ANSWERS);
        self.bound.send_replace(Some(bound));
        tracing::info!(address = %bound, "DNS listens");
        Ok(Serving { asked: address, server, _claim: claim })
    }

    /// Stops listening in a moment when no question is under way: what is read later is the successor's.
    async fn leave(&self, mut serving: Serving) {
        let quiet = async {
            loop {
                if self.under_way.load(Ordering::SeqCst) == 0 {
                    // The last answers are on their way out of this process.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if self.under_way.load(Ordering::SeqCst) == 0 {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, quiet).await;
        let _ = tokio::time::timeout(FAREWELL, serving.server.shutdown_gracefully()).await;
    }
}

/// A socket on an address that the machine may get only later, with the bridge.
fn socket(address: SocketAddrV4, kind: Type, protocol: Protocol) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind.nonblocking(), Some(protocol))?;
    socket.set_freebind_v4(true)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddr::V4(address).into())?;
    Ok(socket)
}

/// Answers one question at a time by the table of that moment.
struct Answering {
    table: Arc<ArcSwap<Table>>,
    forwarder: Arc<Forwarder>,
    under_way: Arc<AtomicUsize>,
}

/// Counts a question as long as it is not answered.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is sent back.
struct Outcome {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Outcome {
    fn empty(code: ResponseCode, authoritative: bool) -> Self {
        Self { code, authoritative, answers: Vec::new(), authorities: Vec::new() }
    }
}

impl Answering {
    async fn outcome(&self, request: &Request) -> Outcome {
        if request.metadata.op_code != OpCode::Query || request.metadata.message_type != MessageType::Query {
            return Outcome::empty(ResponseCode::NotImp, false);
        }
        let Ok(question) = request.request_info() else { return Outcome::empty(ResponseCode::FormErr, false) };
        let asker = match question.src.ip().to_canonical() {
            IpAddr::V4(asker) => asker,
            IpAddr::V6(_) => return Outcome::empty(ResponseCode::Refused, false),
        };
        let original = question.query.original();
        let name = original.name().to_ascii().to_ascii_lowercase();
        let table = self.table.load_full();
        match table.decide(asker, name.trim_end_matches('.')) {
            Decision::Address(address) if matches!(original.query_type(), RecordType::A | RecordType::ANY) => {
                let record = Record::from_rdata(original.name().clone(), TTL_S, RData::A(rdata::A(address)));
                Outcome { answers: vec![record], ..Outcome::empty(ResponseCode::NoError, true) }
            }
            Decision::Address(_) => Outcome::empty(ResponseCode::NoError, true),
            Decision::Unknown => Outcome::empty(ResponseCode::NXDomain, true),
            Decision::Forward => {
                let asker = table.tenant(asker).map_or(Asker::Other(asker), |it| Asker::Tenant(it.clone()));
                match self.forwarder.ask(asker, original, &table.forwarders).await {
                    Ok(answer) => Outcome {
                        code: answer.metadata.response_code,
                        authoritative: false,
                        answers: answer.answers,
                        authorities: answer.authorities,
                    },
                    Err(error) => {
                        tracing::debug!(name, %error, "a foreign name was not answered");
                        Outcome::empty(ResponseCode::ServFail, false)
                    }
                }
            }
        }
    }
}

#[async_trait]
impl RequestHandler for Answering {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let _under_way = UnderWay::new(&self.under_way);
        let outcome = self.outcome(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = outcome.code;
        metadata.authoritative = outcome.authoritative;
        metadata.recursion_available = true;
        let builder = MessageResponseBuilder::from_message_request(request);
        let message = builder.build(metadata, &outcome.answers, &outcome.authorities, [], []);
        match response.send_response(message).await {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, "an answer was not sent");
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}
