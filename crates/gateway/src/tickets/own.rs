//! Keys of session tickets of a gateway without a store: it makes them itself, and leaves them to its successor.
//!
//! What must hold: they are in memory alone, in a file without a name that the holder of the sockets keeps; a worker that is
//! started again, or a new executable, goes on with them, so that sessions begun before are resumed. What is found there
//! and cannot be read is made anew: that costs whole handshakes, and nothing else.

use super::Tickets;
use arco_daemon::handover::{Claim, Sockets};
use arco_model::ticket::TicketRing;
use arco_model::time::Timestamp;
use arco_store::clock;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

/// What the keys are kept under.
const NAME: &str = "ticket keys";
/// Far more than a ring takes, in bytes.
const LARGEST: usize = 64 * 1024;

/// See the module.
pub(crate) struct OwnTickets {
    tickets: Tickets,
    ring: TicketRing,
    /// Outlives this process.
    kept: File,
    _claim: Claim,
}

impl OwnTickets {
    /// Goes on with the keys of a worker before, or makes the first one.
    pub(crate) fn open(sockets: &Sockets) -> io::Result<Self> {
        let (kept, claim) = match sockets.take(NAME, |it| it.len() == 1) {
            Some((mut files, claim)) => (File::from(files.pop().ok_or(io::ErrorKind::NotFound)?), claim),
            None => {
                let file = File::from(memfd_create("arco ticket keys", MemfdFlags::CLOEXEC)?);
                let claim = sockets.keep(NAME, &[file.as_fd()]);
                (file, claim)
            }
        };
        let ring = read(&kept).unwrap_or_default();
        let mut this = Self { tickets: Tickets::default(), ring, kept, _claim: claim };
        this.tickets.set(&this.ring);
        this.rotate(clock::now())?;
        Ok(this)
    }

    /// The keys, for certificates; they stay the ones in use.
    pub(crate) fn tickets(&self) -> Tickets {
        self.tickets.clone()
    }

    /// Makes the next key when it is due. Cheap when it is not.
    pub(crate) fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let Some(next) = self.ring.rotated(now, || (random::<16>(), random::<32>())) else { return Ok(()) };
        self.tickets.set(&next);
        let text = serde_json::to_vec(&next)?;
        self.ring = next;
        self.kept.set_len(text.len() as u64)?;
        self.kept.write_all_at(&text, 0)
    }
}

/// The ring in `file`; a descriptor that two processes share has no place of its own, so it is read from its beginning.
fn read(file: &File) -> Option<TicketRing> {
    let mut text = vec![0; usize::try_from(file.metadata().ok()?.len()).ok()?.min(LARGEST)];
    file.read_exact_at(&mut text, 0).ok()?;
    serde_json::from_slice(&text).ok()
}

/// So many random bytes, hex.
fn random<const BYTES: usize>() -> String {
    (0..BYTES.div_ceil(8)).map(|_| format!("{:016x}", clock::random())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::ticket::TICKET_PERIOD_MS;

    #[test]
    fn keys_are_made_rotated_and_found_again() {
        let mut own = OwnTickets::open(&Sockets::alone()).unwrap();
        let producer = own.tickets().for_clients(&[]);
        assert!(producer.enabled());
        let ticket = producer.encrypt(b"session").unwrap();
        assert_eq!(read(&own.kept).unwrap(), own.ring);
        let first = own.ring.clone();
        own.rotate(clock::now()).unwrap();
        assert_eq!(own.ring, first, "nothing is due");
        // A period later there is another key, and the one before still opens what it made.
        let later = Timestamp(clock::now().0 + TICKET_PERIOD_MS);
        own.rotate(later).unwrap();
        assert_eq!(own.ring.keys.len(), 2);
        assert_eq!(read(&own.kept).unwrap(), own.ring);
        assert_eq!(producer.decrypt(&ticket).unwrap(), b"session");
        // What cannot be read counts as nothing.
        own.kept.write_all_at(b"nonsense", 0).unwrap();
        assert_eq!(read(&own.kept), None);
    }
}
