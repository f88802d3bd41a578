//! Who may come in, how often, and with what: addresses, rates, passwords, sizes. No I/O.
//!
//! What must hold: memory is bounded whoever asks; no lock on the way of a request that a rate limit looks at.

use crate::balance::{hash, mixed};
use base64::Engine as _;
use http::{HeaderMap, HeaderName, header};
use ipnet::{IpNet, Ipv4Net};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What protects a route.
#[derive(Debug, Default)]
pub struct Protection {
    /// When not empty, only these may come in.
    pub allow: Vec<IpNet>,
    /// These may not, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// All must have room.
    pub rates: Vec<Arc<RateLimit>>,
    /// Names and passwords.
    pub users: Option<Arc<Users>>,
    /// Largest request body in bytes.
    pub max_body_bytes: Option<u64>,
}

impl Protection {
    /// Whether a client at `address` may come in.
    pub fn admits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let within = |list: &[IpNet]| list.iter().any(|it| it.contains(&address));
        !within(&self.deny) && (self.allow.is_empty() || within(&self.allow))
    }

    /// How long a client must wait for its turn; `None` when it may go on.
    pub fn wait(&self, address: IpAddr, headers: &HeaderMap) -> Option<Duration> {
        self.rates.iter().find_map(|it| it.take(it.key.of(address, headers)).err())
    }
}

/// The same network as clients are compared with it: what stands for an IPv4 network among IPv6 addresses (`::ffff:10.0.0.0/104`)
/// is that network.
pub(crate) fn canonical(network: &IpNet) -> IpNet {
    let IpNet::V6(it) = network else { return *network };
    let mapped = it.addr().to_ipv4_mapped().zip(it.prefix_len().checked_sub(96));
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(*network, IpNet::V4)
}

/// What a rate is counted by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RateKey {
    /// All requests of the route together.
    Route,
    /// The client's address; of IPv6 the /64.
    Address,
    /// A header field; requests without it share one count.
    Header(HeaderName),
}

impl RateKey {
    fn of(&self, address: IpAddr, headers: &HeaderMap) -> u64 {
        match self {
            Self::Route => 0,
            Self::Address => match address.to_canonical() {
                IpAddr::V4(it) => hash(&it.octets(), 4),
                IpAddr::V6(it) => hash(&it.octets()[..8], 6),
            },
            Self::Header(name) => hash(headers.get(name).map_or(b"", |it| it.as_bytes()), 1),
        }
    }
}

/// Keys that are noted at once for other gateways: more than they are told.
const NOTED: usize = 2048;
/// Places of a rate limit: 128 KiB. Each holds one key; a key has four places to be.
const PLACES: usize = 16 * 1024;
const WAYS: usize = 4;
const TAG_BITS: u32 = 20;
const TIME_MASK: u64 = (1 << (64 - TAG_BITS)) - 1;

/// How far beyond twice its burst a key may be in debt for what other gateways let through, in microseconds.
const DEBT: u64 = 60_000_000;

/// At most so many requests per time and key (the generic cell rate algorithm). When more keys are active than there
/// are places, the ones that have waited longest begin anew: the limit becomes laxer, never stricter.
#[derive(Debug)]
pub struct RateLimit {
    /// What is counted.
    pub key: RateKey,
    /// The same for the same limit at every gateway.
    id: u64,
    /// Microseconds per request.
    interval: u64,
    /// How far a key may run ahead, in microseconds.
    tolerance: u64,
    secret: u64,
    born: Instant,
    places: Box<[AtomicU64]>,
    /// What was let through since it was last told, once there is somebody to tell: key and count. Keys that meet in a
    /// place forget each other: the limit becomes laxer, never stricter.
    untold: OnceLock<Box<[(AtomicU64, AtomicU32)]>>,
}

impl RateLimit {
    /// `requests` (at least 1) per `period`, with at most `burst` (at least 1) at once.
    pub fn new(key: RateKey, requests: u32, period: Duration, burst: u32) -> Self {
        let interval = (period.as_micros() as u64 / u64::from(requests.max(1))).max(1);
        let mut secret = [0u8; 8];
        // Without randomness keys can be made to collide; the limit works nevertheless.
        let _ = aws_lc_rs::rand::fill(&mut secret);
        let count = if key == RateKey::Route { WAYS } else { PLACES };
        Self {
            key,
            id: 0,
            interval,
            tolerance: interval * u64::from(burst.max(1)),
            secret: u64::from_le_bytes(secret),
            born: Instant::now(),
            places: (0..count).map(|_| AtomicU64::new(0)).collect(),
            untold: OnceLock::new(),
        }
    }

    /// The limit that other gateways call by this name, too.
    pub fn named(mut self, name: &str) -> Self {
        self.id = hash(name.as_bytes(), 7);
        self
    }

    /// What it is called between gateways.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// From now on what is let through is noted for [`RateLimit::untold`].
    pub fn note(&self) {
        self.untold.get_or_init(|| (0..NOTED.min(self.places.len())).map(|_| Default::default()).collect());
    }

    /// Keys with how many of their requests were let through since this was last asked.
    pub fn untold(&self) -> impl Iterator<Item = (u64, u32)> {
        let noted = self.untold.get().map_or(&[][..], |it| &it[..]);
        noted.iter().filter(|it| it.1.load(Ordering::Relaxed) > 0).map(|(key, count)| {
            let key = key.load(Ordering::Relaxed);
            (key, count.swap(0, Ordering::Relaxed))
        })
    }

    /// Most requests of one key that are let through in `time`.
    pub fn most_in(&self, time: Duration) -> u32 {
        u32::try_from((self.tolerance + time.as_micros() as u64) / self.interval).unwrap_or(u32::MAX)
    }

    /// Counts `count` requests of `key` that another gateway let through. What is counted so is paid back like its own, but
    /// for what goes far beyond.
    pub fn count(&self, key: u64, count: u32) {
        self.count_at(key, count, self.born.elapsed().as_micros() as u64 + 1);
    }

    fn count_at(&self, key: u64, count: u32, now: u64) {
        loop {
            let (tag, at, value) = self.place(key);
            let due = if value >> (64 - TAG_BITS) == tag { (value & TIME_MASK).max(now) } else { now };
            let most = now + 2 * self.tolerance + DEBT;
            let next = due.saturating_add(self.interval.saturating_mul(count.into())).min(most.max(due));
            let new = tag << (64 - TAG_BITS) | (next & TIME_MASK);
            if self.places[at].compare_exchange(value, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Counts a request of `key`, or says how long it must wait.
    pub fn take(&self, key: u64) -> Result<(), Duration> {
        self.take_at(key, self.born.elapsed().as_micros() as u64 + 1)
    }

    /// Whether a request of `key` would go through; counts nothing.
    pub fn has_room(&self, key: u64) -> bool {
        let now = self.born.elapsed().as_micros() as u64 + 1;
        let (tag, _, value) = self.place(key);
        let known = value >> (64 - TAG_BITS) == tag;
        !known || (value & TIME_MASK).max(now) + self.interval <= now + self.tolerance
    }

    /// The tag of a key, its place or the one that it would get, and what is there.
    fn place(&self, key: u64) -> (u64, usize, u64) {
        let number = mixed(key ^ self.secret);
        let bucket = (number as usize % (self.places.len() / WAYS)) * WAYS;
        let tag = (number >> (64 - TAG_BITS)) | 1;
        let (mut place, mut value) = (bucket, self.places[bucket].load(Ordering::Relaxed));
        for other in bucket..bucket + WAYS {
            let found = self.places[other].load(Ordering::Relaxed);
            if found >> (64 - TAG_BITS) == tag {
                return (tag, other, found);
            }
            if found & TIME_MASK < value & TIME_MASK {
                (place, value) = (other, found);
            }
        }
        (tag, place, value)
    }

    fn take_at(&self, key: u64, now: u64) -> Result<(), Duration> {
        loop {
            let (tag, at, value) = self.place(key);
            let known = value >> (64 - TAG_BITS) == tag;
            let due = if known { (value & TIME_MASK).max(now) } else { now };
            let next = due + self.interval;
            if next > now + self.tolerance {
                return Err(Duration::from_micros(next - now - self.tolerance));
            }
            let new = tag << (64 - TAG_BITS) | (next & TIME_MASK);
            if self.places[at].compare_exchange(value, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                // Keys are mixed well already.
                if let Some((noted, count)) = self.untold.get().map(|it| &it[key as usize % it.len()]) {
                    match noted.swap(key, Ordering::Relaxed) == key {
                        true => drop(count.fetch_add(1, Ordering::Relaxed)),
                        false => count.store(1, Ordering::Relaxed),
                    }
                }
                return Ok(());
            }
        }
    }
}

/// Most rounds of PBKDF2 that a users file may ask for: each wrong password costs them.
const MAX_ROUNDS: u32 = 600_000;
/// Most proven passwords that are remembered, so that they are not computed for each request.
const MAX_PROVEN: usize = 4096;

/// Names and password hashes for basic authentication.
pub struct Users {
    /// Shown by browsers.
    pub realm: String,
    hashes: HashMap<String, (NonZeroU32, Vec<u8>, Vec<u8>)>,
    secret: [u8; 32],
    proven: Mutex<std::collections::HashSet<Fingerprint>>,
    /// Wrong passwords per address.
    wrong: RateLimit,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Users({})", self.hashes.len())
    }
}

/// What came of a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Login {
    /// It is right.
    Welcome,
    /// None was given, or a wrong one.
    Refused,
    /// Too many wrong ones came from this address.
    TooMany,
    /// Too many wait to be judged.
    Busy,
}

/// What can be said of a request at once.
pub enum Look {
    /// This came of its password, or of its having none.
    Known(Login),
    /// Its password has to be judged.
    Unknown(Attempt),
}

/// Stands for a name and a password; says nothing of them.
pub type Fingerprint = [u8; 32];

/// A name and a password that were not proven before.
#[derive(Clone)]
pub struct Attempt {
    encoded: String,
    fingerprint: Fingerprint,
    /// What wrong ones of its address are counted by.
    source: u64,
}

impl Attempt {
    /// What stands for it.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl Users {
    /// Reads lines `name:pbkdf2-sha256$ROUNDS$SALT$HASH`, salt and hash in hexadecimal; `#` begins a comment.
    pub fn parse(text: &str, realm: &str) -> Result<Self, String> {
        let mut hashes = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|it| !it.1.trim().is_empty() && !it.1.starts_with('#')) {
            let parsed = line.trim().split_once(':').and_then(|(name, hash)| Some((name, parse(hash)?)));
            let Some((name, hash)) = parsed else {
                return Err(format!(
                    "line {} is not `name:pbkdf2-sha256$ROUNDS$SALT$HASH` \
                     (1000 to {MAX_ROUNDS} rounds, salt and hash in hexadecimal)",
                    number + 1
                ));
            };
            hashes.insert(name.to_owned(), hash);
        }
        let mut secret = [0u8; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| "there is no randomness".to_owned())?;
        let wrong = RateLimit::new(RateKey::Address, 10, Duration::from_secs(60), 10);
        Ok(Self { realm: realm.to_owned(), hashes, secret, proven: Mutex::default(), wrong })
    }

    /// Looks at what a client at `address` sent; takes no time.
    pub fn look(&self, headers: &HeaderMap, address: IpAddr) -> Look {
        let given = headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let encoded = given.split_once(' ').filter(|it| it.0.eq_ignore_ascii_case("basic")).map(|it| it.1.trim());
        let Some(encoded) = encoded else { return Look::Known(Login::Refused) };
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(&self.secret);
        context.update(encoded.as_bytes());
        let mut fingerprint = [0u8; 32];
        fingerprint.copy_from_slice(context.finish().as_ref());
        if self.proven.lock().unwrap_or_else(PoisonError::into_inner).contains(&fingerprint) {
            return Look::Known(Login::Welcome);
        }
        let source = RateKey::Address.of(address, headers);
        if !self.wrong.has_room(source) {
            return Look::Known(Login::TooMany);
        }
        Look::Unknown(Attempt { encoded: encoded.to_owned(), fingerprint, source })
    }

    /// Whether it is right; takes tens of milliseconds. `None` when its address has sent too many wrong ones since it was
    /// looked at: it is not judged then.
    pub fn judge(&self, attempt: &Attempt) -> Option<bool> {
        if !self.wrong.has_room(attempt.source) {
            return None;
        }
        if !self.is_right(&attempt.encoded) {
            self.refused(attempt);
            return Some(false);
        }
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.len() >= MAX_PROVEN {
            proven.clear();
        }
        proven.insert(attempt.fingerprint);
        Some(true)
    }

    /// Counts one that is wrong, as is known from another client.
    pub fn refused(&self, attempt: &Attempt) {
        // Whether this one still fits does not matter: it is refused anyway.
        let _ = self.wrong.take(attempt.source);
    }

    fn is_right(&self, encoded: &str) -> bool {
        let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(encoded) else { return false };
        let Some(at) = decoded.iter().position(|it| *it == b':') else { return false };
        let known = std::str::from_utf8(&decoded[..at]).ok().and_then(|it| self.hashes.get(it));
        // An unknown name takes as long as a known one.
        let Some((rounds, salt, hash)) = known.or_else(|| self.hashes.values().next()) else { return false };
        let algorithm = aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256;
        let right = aws_lc_rs::pbkdf2::verify(algorithm, *rounds, salt, &decoded[at + 1..], hash).is_ok();
        right && known.is_some()
    }
}

/// The hash of a password as a route or users file keeps it, with fresh salt.
pub fn password_hash(password: &[u8]) -> Result<String, String> {
    const ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();
    let (mut salt, mut hash) = ([0u8; 16], [0u8; 32]);
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| "there is no randomness".to_owned())?;
    aws_lc_rs::pbkdf2::derive(aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password, &mut hash);
    let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
    Ok(format!("pbkdf2-sha256${ROUNDS}${}${}", hex(&salt), hex(&hash)))
}

fn parse(hash: &str) -> Option<(NonZeroU32, Vec<u8>, Vec<u8>)> {
    let mut parts = hash.split('$');
    let scheme = parts.next()?;
    let rounds: NonZeroU32 = parts.next()?.parse().ok()?;
    let (salt, hash) = (unhex(parts.next()?)?, unhex(parts.next()?)?);
    let fine = scheme == "pbkdf2-sha256" && parts.next().is_none() && (1000..=MAX_ROUNDS).contains(&rounds.get());
    (fine && salt.len() >= 8 && hash.len() == 32).then_some((rounds, salt, hash))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// What connections of `address` are counted by: of IPv6 its /64, which a client has to itself.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(it) => it.into(),
        IpAddr::V6(it) => Ipv6Addr::from_bits(it.to_bits() >> 64 << 64).into(),
    }
}

/// Counts the connections of each address (of IPv6 each /64); only looked at when one comes or goes.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    counts: Mutex<HashMap<IpAddr, u32>>,
}

impl ConnectionCounts {
    /// Counts one, unless the address has `max` already.
    pub fn begin(self: &Arc<Self>, address: IpAddr, max: u32) -> Option<Counting> {
        let address = whose(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counting { counts: Arc::clone(self), address })
    }
}

/// One connection that counts until this is dropped.
#[derive(Debug)]
pub struct Counting {
    counts: Arc<ConnectionCounts>,
    address: IpAddr,
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut counts = self.counts.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_compared_as_addresses_are() {
        for (written, network) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1/128", "192.0.2.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::ffff:0:0/95", "::ffff:0:0/95"),
            ("2001:db8::/32", "2001:db8::/32"),
        ] {
            let network: IpNet = network.parse().unwrap();
            assert_eq!(canonical(&written.parse().unwrap()), network, "{written}");
        }
    }

    #[test]
    fn connections_count_for_whoever_has_the_address() {
        let counts = Arc::new(ConnectionCounts::default());
        let begin = |address: &str| counts.begin(address.parse().unwrap(), 1);
        let held = ["192.0.2.1", "2001:db8::1", "2001:db8:0:1::1"].map(|it| begin(it).expect(it));
        for address in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::2", "2001:db8::ffff:0:0:1"] {
            assert!(begin(address).is_none(), "{address}");
        }
        assert!(begin("192.0.2.2").is_some());
        drop(held);
        assert!(begin("2001:db8::2").is_some());
        assert!(counts.counts.lock().unwrap().is_empty());
    }

    #[test]
    fn rates_hold_per_key() {
        let limit = RateLimit::new(RateKey::Address, 10, Duration::from_secs(1), 5);
        let passed = |key, now| (0..100).filter(|_| limit.take_at(key, now).is_ok()).count();
        assert_eq!((passed(1, 1_000), passed(2, 1_000)), (5, 5), "a burst each");
        assert_eq!(limit.take_at(1, 1_000), Err(Duration::from_millis(100)));
        assert_eq!(passed(1, 301_000), 3);
        assert_eq!(passed(1, 10_000_000), 5, "never more than the burst");
        // Nobody gets more than that in two seconds.
        let one = RateLimit::new(RateKey::Route, 10, Duration::from_secs(1), 5);
        let in_two_s = (0..=2000).filter(|it| one.take_at(0, 1_000 + it * 1_000).is_ok()).count();
        assert!(in_two_s <= one.most_in(Duration::from_secs(2)) as usize, "{in_two_s}");
        assert_eq!(one.most_in(Duration::from_secs(2)), 25);
        // Far more keys than places: nobody is refused on account of another.
        assert!((0..200_000u64).all(|key| limit.take_at(key + 10, 20_000_000).is_ok()));
    }

    #[test]
    fn what_others_let_through_counts() {
        let limit = RateLimit::new(RateKey::Address, 10, Duration::from_secs(1), 10);
        let passed = |key, now| (0..100).filter(|_| limit.take_at(key, now).is_ok()).count();
        assert_eq!(passed(1, 1_000), 10);
        assert_eq!(limit.untold().count(), 0, "nobody asked for it");
        limit.note();
        assert!(limit.untold.get().unwrap().len() <= NOTED, "not one for each place");
        assert_eq!((passed(1, 1_001_000), passed(2, 1_001_000)), (10, 10));
        let mut told: Vec<_> = limit.untold().collect();
        told.sort();
        assert_eq!((told, limit.untold().count()), (vec![(1, 10), (2, 10)], 0), "each once");
        // A second of another gateway is a second more to wait, whether its key is known here or not.
        limit.count_at(1, 10, 1_001_000);
        assert_eq!((passed(1, 2_001_000), passed(1, 2_101_000), passed(2, 2_001_000)), (0, 1, 10));
        limit.count_at(3, 4, 2_101_000);
        assert_eq!(passed(3, 2_101_000), 6);
        // Nobody can be kept out for long by what others say.
        limit.count_at(4, u32::MAX, 3_000_000);
        limit.count_at(4, u32::MAX, 3_000_000);
        assert_eq!((passed(4, 3_000_000 + DEBT), passed(4, 3_000_000 + DEBT + 2_000_000)), (0, 10));
    }

    #[test]
    fn passwords_are_judged_and_guessing_ends() {
        let mut hash = [0u8; 32];
        let rounds = NonZeroU32::new(1000).unwrap();
        aws_lc_rs::pbkdf2::derive(aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256, rounds, b"saltsalt", b"pass:word", &mut hash);
        let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
        let text = format!("# us\nann:pbkdf2-sha256$1000${}${}\n", hex(b"saltsalt"), hex(&hash));
        let users = Users::parse(&text, "r").unwrap();
        let judge = |given: Option<&str>, address: [u8; 4]| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                let encoded = base64::engine::general_purpose::STANDARD.encode(given);
                headers.insert("authorization", format!("Basic {encoded}").parse().unwrap());
            }
            match users.look(&headers, address.into()) {
                Look::Known(login) => login,
                Look::Unknown(attempt) => match users.judge(&attempt) {
                    Some(true) => Login::Welcome,
                    Some(false) => Login::Refused,
                    None => Login::TooMany,
                },
            }
        };
        assert_eq!(judge(None, [1; 4]), Login::Refused);
        assert_eq!(judge(Some("ann:pass:word"), [1; 4]), Login::Welcome);
        for given in ["ann:pass", "bob:pass:word", "ann", ":"] {
            assert_eq!(judge(Some(given), [1; 4]), Login::Refused);
        }
        // One more guess every six seconds, however long this takes.
        assert!((0..100).any(|_| judge(Some("ann:guess"), [2; 4]) == Login::TooMany));
        assert_eq!(judge(Some("ann:pass:word"), [2; 4]), Login::Welcome, "proven before");
        // Looked at while there was room for them: what is judged later counts.
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Basic eDp5".parse().unwrap());
        let Look::Unknown(attempt) = users.look(&headers, [3; 4].into()) else { panic!("it was never seen") };
        let judged = (0..30).filter(|_| users.judge(&attempt) == Some(false)).count();
        assert!((10..20).contains(&judged), "{judged}");
        assert!(Users::parse("ann:secret\n", "r").unwrap_err().contains("line 1"));
    }
}
