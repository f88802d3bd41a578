//! Foreign names: asked of the configured name servers in turn, over UDP, and over TCP when the answer was cut off.
//!
//! Each question has a socket, port and number of its own, and an answer counts only when it comes from who was asked
//! and repeats the question. Each tenant has only so many questions open, so that none takes the turns of all.

use super::FOREIGN_EACH;
use arco_model::name::TenantName;
use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Longest wait for one name server.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Most questions that are open at once.
const MAX_OPEN: usize = 256;
/// Largest answer over UDP that does not get fragmented.
const MAX_UDP: u16 = 1232;

/// Why a foreign name has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("no name server is configured for foreign names")]
    NoServer,
    #[error("who asks has {} other questions open", FOREIGN_EACH)]
    TooMany,
    #[error("no name server answered in time")]
    TimedOut,
    #[error("a name server cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    #[error("the question or its answer is malformed: {0}")]
    Malformed(String),
}

impl From<ProtoError> for ForwardError {
    fn from(error: ProtoError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Who asks.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Asker {
    /// Any instance of a tenant.
    Tenant(TenantName),
    /// Something that is no instance, a build for example.
    Other(Ipv4Addr),
}

pub(super) struct Forwarder {
    port: u16,
    patience: Duration,
    open: Semaphore,
    /// How many questions of each asker are open or wait to be.
    askers: Mutex<HashMap<Asker, usize>>,
}

/// One of an asker's questions, until it is dropped.
struct Turn<'a> {
    forwarder: &'a Forwarder,
    asker: Asker,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut askers = self.forwarder.askers();
        if let Some(open) = askers.get_mut(&self.asker) {
            *open -= 1;
            if *open == 0 {
                askers.remove(&self.asker);
            }
        }
    }
}

impl Forwarder {
    pub(super) fn new(port: u16, patience: Duration) -> Self {
        Self { port, patience, open: Semaphore::new(MAX_OPEN), askers: Mutex::default() }
    }

    fn askers(&self) -> MutexGuard<'_, HashMap<Asker, usize>> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, asker: Asker) -> Result<Turn<'_>, ForwardError> {
        let mut askers = self.askers();
        let open = askers.entry(asker.clone()).or_default();
        if *open >= FOREIGN_EACH {
            return Err(ForwardError::TooMany);
        }
        *open += 1;
        Ok(Turn { forwarder: self, asker })
    }

    /// Asks the servers in turn. One that will not or cannot say is no last word, as with every resolver of programs.
    pub(super) async fn ask(
        &self,
        asker: Asker,
        question: &Query,
        servers: &[IpAddr],
    ) -> Result<Message, ForwardError> {
        let _of_asker = self.turn(asker)?;
        let _turn = self.open.acquire().await.map_err(|_| ForwardError::TimedOut)?;
        let (mut last, mut unwilling) = (ForwardError::NoServer, None);
        for server in servers {
            let server = SocketAddr::new(*server, self.port);
            match tokio::time::timeout(self.patience, ask_one(question, server)).await {
                Ok(Ok(answer)) => match answer.metadata.response_code {
                    ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused => unwilling = Some(answer),
                    _ => return Ok(answer),
                },
                Ok(Err(error)) => last = error,
                Err(_) => last = ForwardError::TimedOut,
            }
        }
        unwilling.ok_or(last)
    }
}

async fn ask_one(question: &Query, server: SocketAddr) -> Result<Message, ForwardError> {
    let mut message = Message::query();
    message.add_query(question.clone());
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    message.set_edns(edns);
    let bytes = message.to_vec()?;
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0u8; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match answer_to(&message, question, &buffer[..length]) {
            Some(answer) if answer.metadata.truncation => return ask_tcp(&message, question, &bytes, server).await,
            Some(answer) => return Ok(answer),
            // Not an answer to this question: someone guesses.
            None => {}
        }
    }
}

async fn ask_tcp(
    message: &Message,
    question: &Query,
    bytes: &[u8],
    server: SocketAddr,
) -> Result<Message, ForwardError> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| ForwardError::Malformed("too long".to_owned()))?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0u8; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    answer_to(message, question, &answer)
        .ok_or_else(|| ForwardError::Malformed("it answers another question".to_owned()))
}

fn answer_to(message: &Message, question: &Query, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == message.metadata.id
        && answer
            .queries
            .first()
            .is_some_and(|it| it.name() == question.name() && it.query_type() == question.query_type());
    same.then_some(answer)
}
