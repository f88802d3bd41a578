//! DNS for instances: `<component>.<application>.<tenant>.arco.internal`, answered by who asks; all else is forwarded.
//!
//! Fed by a mirror of `/gateway/`, so that it answers from the last known state while the store is silent. Short names
//! are the resolver's business, through its search list.

mod forward;
pub mod table;

use arc_swap::ArcSwap;
use arco_daemon::{BoxError, CancellationToken};
use arco_store::kv::mirror::Mirror;
use async_trait::async_trait;
use forward::Forwarder;
use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use table::{Decision, Table};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// How long an answer may be kept, in seconds. Component addresses are stable; short enough for names that vanish.
pub const TTL_S: u32 = 5;
/// Longest silence of a TCP client.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that may wait for one TCP client.
const TCP_ANSWERS: usize = 32;
/// Pause between attempts to bind an address that is not free yet.
const REBIND: Duration = Duration::from_millis(500);

/// The name server of this machine's instances.
pub struct Dns {
    mirror: Arc<Mirror>,
    table: Arc<ArcSwap<Table>>,
    forwarder: Arc<Forwarder>,
    bound: watch::Sender<Option<SocketAddr>>,
}

impl Dns {
    /// A name server fed by `mirror`; nothing is bound yet.
    pub fn build(mirror: Arc<Mirror>) -> Self {
        Self::with_forward_port(mirror, 53)
    }

    /// The same with another port of the forwarders: for tests.
    pub fn with_forward_port(mirror: Arc<Mirror>, port: u16) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(mirror.read(Table::read)));
        Self { mirror, table, forwarder: Arc::new(Forwarder::new(port)), bound: watch::Sender::new(None) }
    }

    /// Where it listens now.
    pub fn bound(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.bound.subscribe()
    }

    /// Listens where the settings say, and moves when they change, until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BoxError> {
        let mut changed = self.mirror.changed();
        let mut serving: Option<(SocketAddrV4, Server<Answering>)> = None;
        let mut complained = false;
        loop {
            self.table.store(Arc::new(self.mirror.read(Table::read)));
            let wanted = self.table.load().listen;
            if serving.as_ref().map(|it| it.0) != wanted {
                // The old sockets close before the new ones are bound: they may share a port.
                serving = None;
                self.bound.send_replace(None);
                match wanted.map(|it| self.listen(it).map(|server| (it, server))) {
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
                () = stop.cancelled() => return Ok(()),
                ended = changed.changed() => if ended.is_err() { stop.cancelled().await },
                () = tokio::time::sleep(REBIND), if missing => {}
            }
        }
    }

    fn listen(&self, address: SocketAddrV4) -> std::io::Result<Server<Answering>> {
        let udp = UdpSocket::from_std(socket(address, Type::DGRAM, Protocol::UDP)?.into())?;
        let bound = udp.local_addr()?;
        let SocketAddr::V4(tcp_address) = bound else { return Err(std::io::ErrorKind::Unsupported.into()) };
        let tcp = socket(tcp_address, Type::STREAM, Protocol::TCP)?;
        tcp.listen(128)?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let answering = Answering { table: Arc::clone(&self.table), forwarder: Arc::clone(&self.forwarder) };
        let mut server = Server::new(answering);
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
        self.bound.send_replace(Some(bound));
        tracing::info!(address = %bound, "DNS listens");
        Ok(server)
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
            Decision::Forward => match self.forwarder.ask(original, &table.forwarders).await {
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
            },
        }
    }
}

#[async_trait]
impl RequestHandler for Answering {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
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
