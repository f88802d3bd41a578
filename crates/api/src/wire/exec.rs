//! Messages of `exec` and `run` over a WebSocket: binary, the first byte tells the channel.
//!
//! Client → server: `0` standard input (empty: end of input), `3` a control as JSON. Server → client: `1` standard
//! output, `2` standard error, `3` a control as JSON; the last message is [`ExecControl::Exit`] or [`ExecControl::Error`].

use super::ErrorBody;
use serde::{Deserialize, Serialize};

/// Which pipe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Channel {
    /// Standard input; an empty message ends it.
    Stdin = 0,
    /// Standard output (with a terminal: all output).
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// [`ExecControl`] as JSON.
    Control = 3,
}

/// What is neither input nor output.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecControl {
    /// New size of the terminal.
    Resize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// The program ended; `128 + signal` when a signal ended it. The last message.
    Exit {
        /// Exit status.
        status: i32,
    },
    /// It could not go on. The last message.
    Error(ErrorBody),
}

/// One message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Frame {
    /// Bytes of one of the three pipes.
    Bytes(Channel, bytes::Bytes),
    /// A control.
    Control(ExecControl),
}

/// A message that is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("not a message of this protocol: {0}")]
pub struct FrameError(String);

impl Frame {
    /// As bytes of a binary WebSocket message.
    pub fn encode(&self) -> bytes::Bytes {
        let (channel, body) = match self {
            Self::Bytes(channel, bytes) => (*channel as u8, bytes.clone()),
            Self::Control(control) => (Channel::Control as u8, serde_json::to_vec(control).unwrap_or_default().into()),
        };
        let mut message = Vec::with_capacity(1 + body.len());
        message.push(channel);
        message.extend_from_slice(&body);
        message.into()
    }

    /// From a binary WebSocket message.
    pub fn decode(message: bytes::Bytes) -> Result<Self, FrameError> {
        let Some(channel) = message.first().copied() else { return Err(FrameError("it is empty".to_owned())) };
        let body = message.slice(1..);
        match channel {
            0 => Ok(Self::Bytes(Channel::Stdin, body)),
            1 => Ok(Self::Bytes(Channel::Stdout, body)),
            2 => Ok(Self::Bytes(Channel::Stderr, body)),
            3 => serde_json::from_slice(&body).map(Self::Control).map_err(|it| FrameError(it.to_string())),
            other => Err(FrameError(format!("channel {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        for frame in [
            Frame::Bytes(Channel::Stdin, bytes::Bytes::new()),
            Frame::Bytes(Channel::Stderr, "a\0b".into()),
            Frame::Control(ExecControl::Resize { columns: 80, rows: 24 }),
            Frame::Control(ExecControl::Exit { status: 137 }),
        ] {
            assert_eq!(Frame::decode(frame.encode()).unwrap(), frame);
        }
        for bad in ["", "\x07x", "\x03{"] {
            assert!(Frame::decode(bad.into()).is_err());
        }
    }
}
