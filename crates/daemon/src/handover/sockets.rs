//! A worker's side: the sockets that it found, those that it asks to keep, and what its holder tells it.

use super::wire::{MAX_DESCRIPTORS, MAX_NAME, Message, apart, receive, send_in_time};
use std::collections::HashMap;
use std::io::{Error, Result};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// How a worker begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Start {
    /// Its number among the workers that are alive: 1 is the usual one.
    pub slot: u32,
    /// Whether nobody served before it.
    pub first: bool,
}

/// What a worker has to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// From now on it owns what cannot be shared.
    Own,
    /// Stop accepting, finish what is open, end. With a `successor`, the sockets go on without it.
    Drain {
        /// Whether another worker serves.
        successor: bool,
    },
    /// The holder is gone: the same as to drain, and nothing is kept any more.
    Alone,
    /// A file was opened for it: see [`Sockets::file`].
    File,
}

/// Sockets that are kept, by name; cheap to clone. Without a holder nothing is kept, and nothing is found.
#[derive(Clone, Debug)]
pub struct Sockets {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Option<OwnedFd>,
    found: Mutex<HashMap<String, (u64, Vec<OwnedFd>)>>,
    /// Files that were opened for this worker, and that it has not taken.
    files: Mutex<HashMap<String, OwnedFd>>,
    next_claim: AtomicU64,
    /// This worker leaves: what it closes stays kept.
    let_go: AtomicBool,
}

/// Keeps sockets as long as it lives, and beyond it when this process dies or leaves.
#[derive(Debug)]
pub struct Claim {
    inner: Arc<Inner>,
    name: String,
    claim: u64,
}

impl Sockets {
    /// Without a holder.
    pub fn alone() -> Self {
        Self::new(None, HashMap::new())
    }

    fn new(link: Option<OwnedFd>, found: HashMap<String, (u64, Vec<OwnedFd>)>) -> Self {
        // Claims of different workers differ.
        let next_claim = AtomicU64::new(u64::from(std::process::id()) << 32);
        let (found, files, let_go) = (Mutex::new(found), Mutex::default(), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { link, found, files, next_claim, let_go }) }
    }

    /// Takes the link to the holder from standard input, and what is kept. Call it first of all, once.
    pub fn from_holder() -> Result<(Self, Start)> {
        let link = std::io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let mut found = HashMap::new();
        loop {
            match receive(link.as_fd())? {
                Some((Message::Kept { sockets }, descriptors)) => found.extend(apart(sockets, descriptors)),
                Some((Message::Begin { slot, first }, _)) => {
                    rustix::io::ioctl_fionbio(&link, true)?;
                    return Ok((Self::new(Some(link), found), Start { slot, first }));
                }
                Some(_) => {}
                None => return Err(Error::other("the process that keeps the sockets is gone")),
            }
        }
    }

    /// What is kept under `name`, when it `fits`; otherwise it stays until [`Sockets::forget_rest`].
    pub fn take(&self, name: &str, fits: impl FnOnce(&[OwnedFd]) -> bool) -> Option<(Vec<OwnedFd>, Claim)> {
        let mut found = self.inner.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.get(name).is_some_and(|(_, them)| fits(them)) {
            return None;
        }
        let (claim, descriptors) = found.remove(name)?;
        Some((descriptors, Claim { inner: Arc::clone(&self.inner), name: name.to_owned(), claim }))
    }

    /// The file that was opened under this name last, once.
    pub fn file(&self, name: &str) -> Option<OwnedFd> {
        self.inner.files.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// Asks to keep these under `name`, in place of what was there.
    pub fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> Claim {
        let claim = self.inner.next_claim.fetch_add(1, Ordering::Relaxed);
        if name.len() <= MAX_NAME && descriptors.len() <= MAX_DESCRIPTORS {
            self.inner.say(&Message::Keep { name: name.to_owned(), claim }, descriptors);
        } else {
            tracing::warn!(name, "these sockets are not kept for a successor: they are too many");
        }
        Claim { inner: Arc::clone(&self.inner), name: name.to_owned(), claim }
    }

    /// Closes what was kept and nobody took.
    pub fn forget_rest(&self) {
        let rest = std::mem::take(&mut *self.inner.found.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, (claim, _)) in rest {
            self.inner.say(&Message::Forget { name, claim }, &[]);
        }
    }

    /// Says that this worker serves, and how long it needs to drain at most.
    pub fn ready(&self, drain: Duration) {
        let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        self.inner.say(&Message::Ready { drain_ms }, &[]);
    }

    /// Says that this worker writes nothing any more that others could write.
    pub fn released(&self) {
        self.inner.say(&Message::Released, &[]);
    }

    /// From now on sockets that this worker closes stay kept: it leaves, they do not.
    pub fn let_go(&self) {
        self.inner.let_go.store(true, Ordering::SeqCst);
    }

    /// Says why this worker does not start.
    pub fn failed(&self, why: &str) {
        self.inner.say(&Message::Failed { why: why.chars().take(1000).collect() }, &[]);
    }

    /// Asks the holder to end everything. Returns whether there is one.
    pub fn stop(&self) -> bool {
        self.inner.say(&Message::Stop, &[]);
        self.inner.link.is_some()
    }

    /// The next order; never, without a holder.
    pub async fn order(&self) -> Order {
        let Some(link) = &self.inner.link else { return std::future::pending().await };
        // SAFETY: the descriptor is open for as long as `inner` is borrowed, and is always the same one.
        let link = match unsafe { AsyncFd::register_with_interest(link.as_fd(), tokio::io::Interest::READABLE) } {
            Ok(link) => link,
            Err(error) => {
                tracing::error!(%error, "the link to the keeper of the sockets cannot be watched");
                return std::future::pending().await;
            }
        };
        loop {
            let Ok(mut ready) = link.readable().await else { return Order::Alone };
            let received = ready.try_io(|link| receive(*link.get_ref()));
            let order = match received {
                Err(_would_block) => continue,
                Ok(Err(_) | Ok(None)) => Order::Alone,
                Ok(Ok(Some((Message::Own, _)))) => Order::Own,
                Ok(Ok(Some((Message::Drain { successor }, _)))) => Order::Drain { successor },
                Ok(Ok(Some((Message::File { name }, descriptors)))) => {
                    let Some(file) = descriptors.into_iter().next() else { continue };
                    self.inner.files.lock().unwrap_or_else(PoisonError::into_inner).insert(name, file);
                    Order::File
                }
                Ok(Ok(Some(_))) => continue,
            };
            if matches!(order, Order::Alone | Order::Drain { successor: true }) {
                self.let_go();
            }
            return order;
        }
    }
}

impl Inner {
    fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let Some(link) = &self.link else { return };
        if let Err(error) = send_in_time(link.as_fd(), message, descriptors) {
            tracing::warn!(%error, ?message, "the keeper of the sockets was not told");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.inner.let_go.load(Ordering::SeqCst) {
            let name = std::mem::take(&mut self.name);
            self.inner.say(&Message::Forget { name, claim: self.claim }, &[]);
        }
    }
}
