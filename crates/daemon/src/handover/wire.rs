//! Messages between a holder and its worker: one JSON document per packet, with descriptors beside it.
//!
//! What must hold: what a newer side says and this one does not know is ignored; nothing that the other side sends takes
//! more memory than one packet.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Largest packet in bytes.
const MAX_PACKET: usize = 8 * 1024;
/// Most descriptors of one name.
pub(super) const MAX_DESCRIPTORS: usize = 64;
/// Longest name of kept sockets in bytes.
pub(super) const MAX_NAME: usize = 256;

/// What is said. Descriptors travel beside `Kept`, `Keep`, `File`, `Worker` and `Lock`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Message {
    /// To a worker before it begins: these are kept under this name.
    Kept { name: String, claim: u64 },
    /// To a worker: that was all, begin. `slot` numbers the workers that are alive; `first` when nobody served before.
    Begin { slot: u32, first: bool },
    /// To a worker: no other one writes any more.
    Own,
    /// To a worker: stop accepting, finish what is open, end.
    Drain { successor: bool },
    /// To a worker: from now on this is the file of this name.
    File { name: String },
    /// Of a worker: keep these under this name in place of what was there.
    Keep { name: String, claim: u64 },
    /// Of a worker: close what is kept under this name, if it is still of this claim.
    Forget { name: String, claim: u64 },
    /// Of a worker: it serves; once told to drain, it needs at most so long.
    Ready { drain_ms: u64 },
    /// Of a worker: it writes nothing any more.
    Released,
    /// Of a worker: everything shall end.
    Stop,
    /// Of a worker: why it does not start.
    Failed { why: String },
    /// To the next executable of a holder: a worker that is alive.
    Worker { slot: u32, pid: i32, phase: super::plan::Phase, drain_ms: u64 },
    /// To the next executable of a holder: keep this open.
    Lock,
    /// Of another version.
    #[serde(other)]
    Unknown,
}

/// Sends one message; never waits.
pub(super) fn send(socket: BorrowedFd<'_>, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > MAX_PACKET || descriptors.len() > MAX_DESCRIPTORS {
        return Err(Error::other("the message is too large"));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&packet)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; waits when the socket does. `None`: the other side is gone.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut packet = [0u8; MAX_PACKET];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(them) = message {
            descriptors.extend(them);
        }
    }
    match received.bytes {
        0 => Ok(None),
        length => Ok(Some((serde_json::from_slice(&packet[..length]).unwrap_or(Message::Unknown), descriptors))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn messages_travel_with_their_descriptors_and_unknown_ones_are_known_as_such() {
        let (here, there) = super::super::holder::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let said = Message::Keep { name: "web".to_owned(), claim: 7 };
        send(here.as_fd(), &said, &[file.as_fd(), file.as_fd()]).unwrap();
        let (heard, descriptors) = receive(there.as_fd()).unwrap().unwrap();
        assert_eq!((heard, descriptors.len()), (said, 2));
        let other = br#"{"say":"dance","with":3}"#;
        rustix::net::send(&here, other, SendFlags::empty()).unwrap();
        assert_eq!(receive(there.as_fd()).unwrap().unwrap().0, Message::Unknown);
        drop(here);
        assert!(receive(there.as_fd()).unwrap().is_none());
    }
}
