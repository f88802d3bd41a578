//! Keys of TLS session tickets, which all gateways share: a session begun at one is resumed at another.
//!
//! What must hold: a key is known everywhere before it is used, and until the last ticket made with it is void.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// `/gateway/tickets` → [`SealedRing`].
pub const TICKETS: &str = "/gateway/tickets";
/// The context that the ring is sealed in for the gateways.
pub const TICKETS_CONTEXT: &str = "gateway tickets";
/// How long a key makes tickets, and how long a ticket is good, in ms.
pub const TICKET_PERIOD_MS: u64 = 12 * 3600 * 1000;
/// How long before its time a key is told to everybody, in ms.
const LEAD_MS: u64 = 10 * 60 * 1000;

/// A ring on its way to the gateways, sealed with their keys ([`crate::traffic::GATEWAY_KEYS`]).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SealedRing {
    /// Which key sealed it.
    pub key_id: String,
    /// The sealed [`TicketRing`] (JSON); its context is [`TICKETS_CONTEXT`].
    pub text: String,
}

/// One key. Its secret is in no log: [`std::fmt::Debug`] leaves it out.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize)]
pub struct TicketKey {
    /// What tickets made with it begin with: 16 bytes, hex.
    pub id: String,
    /// What keys are derived from: 32 bytes, hex.
    pub secret: String,
    /// From when it makes tickets.
    pub from: Timestamp,
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TicketKey").field("id", &self.id).field("from", &self.from).finish_non_exhaustive()
    }
}

/// Keys in use, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct TicketRing {
    /// See [`TicketRing`].
    pub keys: Vec<TicketKey>,
}

impl TicketRing {
    /// The ring that there should be at `now`, when it is another one; `fresh` makes id and secret of a key.
    pub fn rotated(&self, now: Timestamp, fresh: impl FnOnce() -> (String, String)) -> Option<Self> {
        let mut next = self.clone();
        let due = self.keys.last().map(|it| it.from.0 + TICKET_PERIOD_MS);
        if due.is_none_or(|due| due <= now.0 + LEAD_MS) {
            let (id, secret) = fresh();
            // The first one at once: nobody has another.
            let from = due.map_or(now.0, |due| due.max(now.0 + LEAD_MS));
            next.keys.push(TicketKey { id, secret, from: Timestamp(from) });
        }
        // A key is void when the one after it has been in use for the life of a ticket.
        let void = next.keys.windows(2).filter(|pair| pair[1].from.0 + TICKET_PERIOD_MS <= now.0).count();
        next.keys.drain(..void);
        (next != *self).then_some(next)
    }

    /// The key that makes tickets at `now`.
    pub fn current(&self, now: Timestamp) -> Option<&TicketKey> {
        self.keys.iter().rev().find(|it| it.from <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_before_they_are_used_and_kept_until_tickets_are_void() {
        let (mut ring, mut made) = (TicketRing::default(), 0);
        let mut seen = Vec::new();
        for minute in 0..60 * 60 {
            let now = Timestamp(minute * 60_000);
            if let Some(next) = ring.rotated(now, || {
                made += 1;
                (made.to_string(), "s".to_owned())
            }) {
                ring = next;
            }
            let current = ring.current(now).unwrap().clone();
            assert!(ring.keys.len() <= 3, "{ring:?}");
            // Whatever made tickets in the last period is still there.
            seen.push((now.0, current.id));
            let valid = seen.iter().filter(|it| it.0 + TICKET_PERIOD_MS > now.0);
            assert!(valid.clone().all(|it| ring.keys.iter().any(|key| key.id == it.1)), "{ring:?}");
        }
        assert_eq!(made, 6, "60 hours: one every twelve, and the next one told");
    }

    #[test]
    fn after_a_long_silence_there_is_a_new_key_soon() {
        let key = |id: &str, from| TicketKey { id: id.to_owned(), secret: "s".to_owned(), from: Timestamp(from) };
        let ring = TicketRing { keys: vec![key("1", 0)] };
        let now = Timestamp(10 * TICKET_PERIOD_MS);
        let next = ring.rotated(now, || ("2".to_owned(), "s".to_owned())).unwrap();
        assert_eq!(next.current(now).unwrap().id, "1");
        assert_eq!(next.current(Timestamp(now.0 + LEAD_MS)).unwrap().id, "2");
        assert!(!format!("{next:?}").contains("\"s\""));
    }
}
