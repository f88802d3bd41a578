//! TLS session tickets: made and opened with the keys that all gateways share ([`TicketRing`]), or with those that a gateway
//! without a store makes itself (`own`).
//!
//! What must hold: for each set of authorities that clients must show a certificate of, keys of its own are derived: a
//! session begun without a client certificate never resumes where one is required. Without keys there are no tickets, and
//! every session is a whole handshake.
//!
//! A certificate's TLS settings take [`Tickets::for_clients`] once; when keys change they need no change.

mod own;

use arc_swap::ArcSwap;
use arco_model::ticket::{SealedRing, TICKET_PERIOD_MS, TICKETS, TICKETS_CONTEXT, TicketRing};
use arco_model::time::Timestamp;
use arco_store::kv::mirror::View;
use arco_store::secrets::{Sealed, SecretBox};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
pub(crate) use own::OwnTickets;
use rustls::server::ProducesTickets;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that name the key at the beginning of a ticket.
const NAME: usize = 16;

/// The shared keys, as this gateway knows them; cheap to clone.
#[derive(Clone, Default)]
pub struct Tickets {
    ring: Arc<ArcSwap<Secrets>>,
}

#[derive(Default)]
struct Secrets {
    /// Name, secret, first moment; oldest first.
    keys: Vec<([u8; NAME], [u8; 32], u64)>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Tickets").field("keys", &self.ring.load().keys.len()).finish()
    }
}

impl Tickets {
    /// From now on these keys count; what is not readable in them is left out.
    pub fn set(&self, ring: &TicketRing) {
        let key = |it: &arco_model::ticket::TicketKey| Some((bytes(&it.id)?, bytes(&it.secret)?, it.from.0));
        self.ring.store(Arc::new(Secrets { keys: ring.keys.iter().filter_map(key).collect() }));
    }

    /// Takes the keys from the store when they are other ones than at `seen`; returns what to remember as seen.
    pub fn follow(&self, view: &View, keys: &SecretBox, seen: u64) -> u64 {
        let Some(entry) = view.entries.get(TICKETS.as_bytes()) else { return seen };
        if entry.mod_revision == seen {
            return seen;
        }
        let opened = || -> Result<TicketRing, String> {
            let sealed: SealedRing = serde_json::from_slice(&entry.value).map_err(|it| it.to_string())?;
            let sealed = Sealed { key_id: sealed.key_id, text: sealed.text };
            let text = keys.unseal(TICKETS_CONTEXT, &sealed).map_err(|it| it.to_string())?;
            serde_json::from_slice(&text).map_err(|it| it.to_string())
        };
        match opened() {
            Ok(ring) => self.set(&ring),
            Err(why) => tracing::error!(why, "the keys of session tickets cannot be used; those before stay"),
        }
        entry.mod_revision
    }

    /// Tickets for connections whose clients must show a certificate of one of `authorities` (DER; none: they need not).
    /// Their order does not count.
    pub fn for_clients(&self, authorities: &[&[u8]]) -> Arc<dyn ProducesTickets> {
        let mut digests: Vec<_> = authorities
            .iter()
            .map(|it| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, it).as_ref().to_vec())
            .collect();
        digests.sort();
        digests.dedup();
        Arc::new(Producer { ring: Arc::clone(&self.ring), clients: digests.concat(), derived: Mutex::default() })
    }
}

/// Makes and opens tickets of one set of authorities.
struct Producer {
    ring: Arc<ArcSwap<Secrets>>,
    clients: Vec<u8>,
    /// Keys by name, derived once.
    derived: Mutex<HashMap<[u8; NAME], Arc<RandomizedNonceKey>>>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Producer")
    }
}

impl Producer {
    fn derive(&self, name: &[u8; NAME], secret: &[u8; 32]) -> Option<Arc<RandomizedNonceKey>> {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = derived.get(name) {
            return Some(Arc::clone(key));
        }
        let info: [&[u8]; 2] = [b"arco session tickets 1", &self.clients];
        let extracted = Salt::new(HKDF_SHA256, name).extract(secret);
        let mut key = [0u8; 32];
        extracted.expand(&info, Length).ok()?.fill(&mut key).ok()?;
        let key = Arc::new(RandomizedNonceKey::new(&AES_256_GCM, &key).ok()?);
        let known = self.ring.load();
        derived.retain(|name, _| known.keys.iter().any(|it| it.0 == *name));
        derived.insert(*name, Arc::clone(&key));
        Some(key)
    }

    fn encrypt_at(&self, now: Timestamp, plain: &[u8]) -> Option<Vec<u8>> {
        let ring = self.ring.load();
        let (name, secret, _) = ring.keys.iter().rev().find(|it| it.2 <= now.0)?;
        let mut sealed = plain.to_vec();
        let nonce = self.derive(name, secret)?.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        Some([name.as_slice(), nonce.as_ref(), &sealed].concat())
    }
}

impl ProducesTickets for Producer {
    fn enabled(&self) -> bool {
        !self.ring.load().keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(TICKET_PERIOD_MS / 1000).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(arco_store::clock::now(), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = cipher.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let ring = self.ring.load();
        let (name, secret, _) = ring.keys.iter().find(|it| it.0 == *name)?;
        let mut buffer = sealed.to_vec();
        let key = self.derive(name, secret)?;
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name), &mut buffer).ok()?;
        Some(opened.to_vec())
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut out = [0u8; N];
    if hex.len() != 2 * N || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::ticket::TicketKey;

    fn key(number: u8, from: u64) -> TicketKey {
        TicketKey { id: format!("{number:032x}"), secret: format!("{number:064x}"), from: Timestamp(from) }
    }

    #[test]
    fn gateways_open_each_others_tickets_and_only_for_the_same_clients() {
        let ring = TicketRing { keys: vec![key(1, 0), key(2, 1000)] };
        let (here, there) = (Tickets::default(), Tickets::default());
        assert!(!here.for_clients(&[]).enabled());
        assert_eq!(here.for_clients(&[]).encrypt(b"session"), None);
        here.set(&ring);
        there.set(&ring);
        let ticket = here.for_clients(&[]).encrypt(b"session").unwrap();
        assert_eq!(there.for_clients(&[]).decrypt(&ticket).unwrap(), b"session");
        assert_eq!(there.for_clients(&[b"authority"]).decrypt(&ticket), None, "begun without a client certificate");
        let ticket = here.for_clients(&[b"one", b"two"]).encrypt(b"session").unwrap();
        assert_eq!(there.for_clients(&[b"two", b"one"]).decrypt(&ticket).unwrap(), b"session");
        assert_eq!(there.for_clients(&[b"two"]).decrypt(&ticket), None);
        let mut broken = ticket.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(there.for_clients(&[b"two", b"one"]).decrypt(&broken), None);
        assert_eq!(there.for_clients(&[]).decrypt(b"short"), None);
    }

    #[test]
    fn a_key_makes_tickets_from_its_time_on_and_opens_them_until_it_is_gone() {
        let tickets = Tickets::default();
        tickets.set(&TicketRing { keys: vec![key(1, 0), key(2, 1000)] });
        let producer = Producer { ring: Arc::clone(&tickets.ring), clients: Vec::new(), derived: Mutex::default() };
        let before = producer.encrypt_at(Timestamp(999), b"x").unwrap();
        let after = producer.encrypt_at(Timestamp(1000), b"x").unwrap();
        assert_eq!((before[NAME - 1], after[NAME - 1]), (1, 2));
        assert_eq!(producer.decrypt(&before).unwrap(), b"x");
        tickets.set(&TicketRing { keys: vec![key(2, 1000), key(3, 2000)] });
        assert_eq!(producer.decrypt(&before), None);
        assert_eq!(producer.decrypt(&after).unwrap(), b"x");
    }
}
