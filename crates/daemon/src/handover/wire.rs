//! Messages between a holder and its worker: one JSON document per packet, with descriptors beside it.
//!
//! What must hold: what a newer side says and this one does not know is ignored; nothing that the other side sends takes
//! more memory than one packet; all that may be kept fits into a link that nobody reads yet.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Largest packet in bytes.
const MAX_PACKET: usize = 8 * 1024;
/// About how many bytes of a packet say what is kept: the kernel counts a page for it, and two for one more byte.
const FULL_PACKET: usize = 3 * 1024;
/// Most descriptors of a packet: the kernel takes 253.
const MAX_BESIDE: usize = 250;
/// How long a worker waits for a holder that has not read what it was told before.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most descriptors of one name.
pub(super) const MAX_DESCRIPTORS: usize = 64;
/// Longest name of kept sockets in bytes.
pub(super) const MAX_NAME: usize = 256;

/// What is kept under one name, of which so many of the descriptors are that travel beside it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) claim: u64,
    pub(super) count: usize,
}

/// What is kept by name: whose claim it is, and the descriptors.
pub(super) type Kept = BTreeMap<String, (u64, Vec<OwnedFd>)>;

/// What is said. Descriptors travel beside `Kept`, `Keep`, `File`, `Worker` and `Lock`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Message {
    /// To a worker before it begins: these are kept, and their descriptors follow each other.
    Kept { sockets: Vec<Named> },
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
    if packet.len() > MAX_PACKET || descriptors.len() > MAX_BESIDE {
        return Err(Error::other("the message is too large"));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_BESIDE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&packet)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The same for one who may wait a moment: until what was said before is read, for [`PATIENCE`] at most.
pub(super) fn send_in_time(socket: BorrowedFd<'_>, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = send(socket, message, descriptors);
        if !matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock) {
            return outcome;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return outcome;
        }
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says what is kept, in few packets: each takes more of the link's buffer than its bytes, and nobody reads them yet.
pub(super) fn send_kept(socket: BorrowedFd<'_>, kept: &Kept) -> Result<()> {
    let (mut sockets, mut descriptors, mut length) = (Vec::new(), Vec::new(), 0);
    for (name, (claim, them)) in kept {
        let named = Named { name: name.clone(), claim: *claim, count: them.len() };
        let more = serde_json::to_vec(&named)?.len();
        if length + more > FULL_PACKET || descriptors.len() + them.len() > MAX_BESIDE {
            send(socket, &Message::Kept { sockets: std::mem::take(&mut sockets) }, &descriptors)?;
            descriptors.clear();
            length = 0;
        }
        length += more;
        sockets.push(named);
        descriptors.extend(them.iter().map(|it| it.as_fd()));
    }
    if sockets.is_empty() { Ok(()) } else { send(socket, &Message::Kept { sockets }, &descriptors) }
}

/// What is kept by name, of descriptors that came beside [`Message::Kept`].
pub(super) fn apart(
    sockets: Vec<Named>,
    descriptors: Vec<OwnedFd>,
) -> impl Iterator<Item = (String, (u64, Vec<OwnedFd>))> {
    let mut descriptors = descriptors.into_iter();
    sockets.into_iter().map(move |it| (it.name, (it.claim, descriptors.by_ref().take(it.count).collect())))
}

/// Receives one message; waits when the socket does. `None`: the other side is gone.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut packet = [0u8; MAX_PACKET];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_BESIDE))];
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

    #[test]
    fn all_that_may_be_kept_waits_for_who_begins_later() {
        let (here, there) = super::super::holder::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut kept = Kept::new();
        for at in 0..600_u64 {
            let name = format!("tcp-192.168.100.{}:{}", at % 250, 10_000 + at);
            kept.insert(name, (u64::from(u32::MAX) << 22 | at, vec![file.try_clone().unwrap().into()]));
        }
        send_kept(here.as_fd(), &kept).unwrap();
        send(here.as_fd(), &Message::Begin { slot: 1, first: false }, &[]).unwrap();
        let said: Vec<_> = kept.into_iter().map(|(name, (claim, them))| (name, claim, them.len())).collect();
        let mut heard = Vec::new();
        loop {
            match receive(there.as_fd()).unwrap().unwrap() {
                (Message::Kept { sockets }, descriptors) => {
                    heard.extend(apart(sockets, descriptors).map(|(name, (claim, them))| (name, claim, them.len())));
                }
                (message, _) => {
                    assert_eq!(message, Message::Begin { slot: 1, first: false });
                    break;
                }
            }
        }
        assert_eq!(heard, said);
    }

    #[test]
    fn who_may_wait_is_heard_when_there_is_room() {
        let (here, there) = super::super::holder::pair().unwrap();
        while send(here.as_fd(), &Message::Own, &[]).is_ok() {}
        let last = Message::Ready { drain_ms: 7 };
        let telling = std::thread::spawn({
            let last = last.clone();
            move || send_in_time(here.as_fd(), &last, &[])
        });
        let mut heard = None;
        while let Some((message, _)) = receive(there.as_fd()).unwrap() {
            heard = Some(message);
        }
        telling.join().unwrap().unwrap();
        assert_eq!(heard, Some(last));
    }

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
