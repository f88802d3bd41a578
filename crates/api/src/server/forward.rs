//! Ports of instances over a WebSocket (`arco port-forward`): one socket for each connection.
//!
//! Messages are [`Frame`]s: bytes to the instance as standard input, bytes from it as standard output, an empty one ends
//! that direction. What must hold: both directions flow on their own; the connection ends when both have ended, when
//! either end is gone, or when one direction has ended and the other is silent for [`LINGER`]; the client gets the last word
//! also when it is still sending.

use super::Api;
use super::act::Target;
use super::error::ApiError;
use crate::wire::{Channel, ErrorBody, ExecControl, ForwardQuery, Frame};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::{IdError, InstanceId};
use arco_orchestrator::Connection;
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// How long a connection of which one direction has ended may be silent in the other.
const LINGER: Duration = Duration::from_secs(300);
/// How long the reason of an end may take.
const REASON: Duration = Duration::from_secs(1);

impl Api {
    /// Connects to a port inside a running instance: the asked one, else the first ready one.
    pub(super) async fn forward(&self, target: &Target, asked: &ForwardQuery) -> Result<Connection, ApiError> {
        let bad = |message: String| Problem::invalid("forward_invalid", message, "`--instance` is an id of `arco ps`");
        let wanted = asked.instance.as_deref().map(str::parse::<InstanceId>).transpose();
        let wanted = wanted.map_err(|it: IdError| bad(it.to_string()))?;
        if asked.port == 0 {
            return Err(bad("port 0 cannot be connected to".to_owned()).into());
        }
        let (component, _) = self.serving(target).await?;
        let instance = super::exec::running(&component, wanted.as_ref())?;
        self.deps.orchestrator.connect(&instance, asked.port).await.map_err(|error| match error {
            arco_orchestrator::Error::Refused(why) => {
                let reference = component.reference();
                let advice =
                    format!("a program must listen there, on 127.0.0.1 or every address: see `arco logs {reference}`");
                Problem::new(ErrorKind::Conflict, "port_refused", why, advice).into()
            }
            other => ApiError::from(other),
        })
    }
}

/// Carries bytes both ways.
pub(super) async fn carry(connection: Connection, socket: WebSocket) {
    let Connection { stream, failure } = connection;
    let (from, to) = tokio::io::split(stream);
    let (mut sink, mut messages) = socket.split();
    let half = Notify::new();
    let down = async {
        let input_over = down(from, &mut sink, &half).await;
        // Why it ended, if for a reason; the sender goes with the connection.
        if let Ok(Ok(why)) = tokio::time::timeout(REASON, failure).await {
            let advice = "see `arco status` and `arco logs` of the component";
            let body = ErrorBody::from(Problem::new(ErrorKind::Conflict, "port_refused", why, advice));
            send(&mut sink, Frame::Control(ExecControl::Error(body))).await;
        } else if send(&mut sink, Frame::Bytes(Channel::Stdout, Bytes::new())).await && !input_over {
            let _ = tokio::time::timeout(LINGER, half.notified()).await;
        }
        let _ = sink.close().await;
    };
    tokio::select! {
        () = down => {}
        () = up(&mut messages, to, &half) => return,
    }
    super::exec::until_gone(messages).await;
}

/// Bytes of the instance, until it has no more. Returns whether the client had ended its direction.
async fn down(mut from: impl AsyncRead + Unpin, sink: &mut SplitSink<WebSocket, Message>, half: &Notify) -> bool {
    let mut buffer = vec![0; 32_768];
    let mut input_over = false;
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = half.notified(), if !input_over => {
                input_over = true;
                continue;
            }
            () = tokio::time::sleep(LINGER), if input_over => return true,
        };
        match read {
            Ok(count @ 1..) => {
                if !send(sink, Frame::Bytes(Channel::Stdout, Bytes::copy_from_slice(&buffer[..count]))).await {
                    return true;
                }
            }
            _ => return input_over,
        }
    }
}

/// Bytes of the client; ends when the client is gone.
async fn up(messages: &mut SplitStream<WebSocket>, to: impl AsyncWrite + Unpin, half: &Notify) {
    let mut to = Some(to);
    while let Some(Ok(message)) = messages.next().await {
        let Message::Binary(bytes) = message else { continue };
        let Ok(Frame::Bytes(Channel::Stdin, bytes)) = Frame::decode(bytes) else { continue };
        if bytes.is_empty() {
            if let Some(mut to) = to.take() {
                let _ = to.shutdown().await;
            }
            half.notify_one();
        } else if let Some(open) = &mut to
            && (open.write_all(&bytes).await.is_err() || open.flush().await.is_err())
        {
            to = None; // the instance reads no more; it may still write
        }
    }
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, frame: Frame) -> bool {
    sink.send(Message::Binary(frame.encode())).await.is_ok()
}
