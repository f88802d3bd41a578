//! A program in an instance, or a connection to a port of it, over a WebSocket on the same mutual TLS.

use super::{CONNECT_TIMEOUT, Client, ClientError, ExecCall, ForwardCall};
use crate::wire::{ErrorBody, Frame};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Both halves of a running program or a connection: what goes in and what comes out.
pub type ExecStream = (ExecSender, ExecReceiver);

impl Client {
    /// Runs a program; input and output are frames of the stream.
    pub async fn exec(&self, call: &ExecCall<'_>) -> Result<ExecStream, ClientError> {
        self.socket(&call.path()).await
    }

    /// Connects to a port of an instance; an empty frame ends its direction.
    pub async fn forward(&self, call: &ForwardCall<'_>) -> Result<ExecStream, ClientError> {
        self.socket(&call.path()).await
    }

    async fn socket(&self, path: &str) -> Result<ExecStream, ClientError> {
        let unreachable = |cause: &dyn std::fmt::Display| ClientError::Unreachable {
            api: self.api.clone(),
            cause: cause.to_string(),
        };
        let connect = async {
            let tcp = TcpStream::connect(&self.api).await.map_err(|it| unreachable(&it))?;
            let _ = tcp.set_nodelay(true);
            let host = self.api.rsplit_once(':').map_or(self.api.as_str(), |(host, _)| host).trim_matches(['[', ']']);
            let name = ServerName::try_from(host.to_owned()).map_err(|it| unreachable(&it))?;
            tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await.map_err(|it| unreachable(&it))
        };
        let timed_out = |_| unreachable(&"it did not answer in time");
        let tls = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(timed_out)??;
        let url = format!("wss://{}{path}", self.api);
        match client_async(url, tls).await {
            Ok((socket, _)) => {
                let (sink, stream) = socket.split();
                Ok((ExecSender(sink), ExecReceiver { stream, api: self.api.clone() }))
            }
            Err(SocketError::Http(answer)) => Err(refused(&answer)),
            Err(error) => Err(unreachable(&error)),
        }
    }
}

fn refused(answer: &http::Response<Option<Vec<u8>>>) -> ClientError {
    let status = answer.status().as_u16();
    let body = answer.body().as_deref().and_then(|it| serde_json::from_slice(it).ok()).unwrap_or_else(|| ErrorBody {
        code: "exec_refused".to_owned(),
        message: format!("the platform refused with status {status}"),
        advice: "see `arco status` for the component; an instance must be running".to_owned(),
        operation: None,
    });
    ClientError::Refused { status, body }
}

/// The half that sends.
pub struct ExecSender(futures_util::stream::SplitSink<Socket, Message>);

impl ExecSender {
    /// Sends a frame; `false` when the other side is gone.
    pub async fn send(&mut self, frame: &Frame) -> bool {
        self.0.send(Message::Binary(frame.encode())).await.is_ok()
    }
}

/// The half that receives.
pub struct ExecReceiver {
    stream: futures_util::stream::SplitStream<Socket>,
    api: String,
}

impl ExecReceiver {
    /// The next frame; `None` when the platform closed.
    pub async fn next(&mut self) -> Option<Result<Frame, ClientError>> {
        loop {
            return match self.stream.next().await? {
                Ok(Message::Binary(bytes)) => {
                    Some(Frame::decode(bytes).map_err(|it| ClientError::Answer(it.to_string())))
                }
                Ok(Message::Close(_)) => None,
                Ok(_) => continue,
                Err(SocketError::ConnectionClosed | SocketError::AlreadyClosed) => None,
                Err(error) => Some(Err(ClientError::Unreachable { api: self.api.clone(), cause: error.to_string() })),
            };
        }
    }
}
