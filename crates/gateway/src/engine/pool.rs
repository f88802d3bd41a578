//! Idle connections to endpoints, per core. A connection is used by one request at a time.
//!
//! What must hold: nothing is taken that the other side has closed as far as this side knows; connections are young, so
//! that the race with a server's own idle limit (5 s is common) stays rare, and rarer still for requests that cannot be
//! repeated.

use super::transport::Sender;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest time that a connection lies idle.
const MAX_IDLE: Duration = Duration::from_secs(4);
/// The same for a request that must not be sent twice.
const MAX_IDLE_ONCE: Duration = Duration::from_secs(1);
/// Most idle connections to one endpoint.
const MAX_PER_ENDPOINT: usize = 64;

/// An address, and the id of the transport that it is spoken to by.
pub(super) type Key = (SocketAddr, u64);

struct Idle {
    sender: Sender,
    since: Instant,
}

#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    filled: Notify,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The youngest usable connection. `repeatable` says whether the request may be sent again if this one is stale.
    pub(super) fn take(&self, address: Key, repeatable: bool) -> Option<Sender> {
        let longest = if repeatable { MAX_IDLE } else { MAX_IDLE_ONCE };
        let mut idle = self.lock();
        let connections = idle.get_mut(&address)?;
        while let Some(connection) = connections.pop() {
            if connection.since.elapsed() > longest {
                // The others are older still.
                if repeatable {
                    connections.clear();
                } else {
                    connections.push(connection);
                }
                return None;
            }
            if !connection.sender.is_closed() {
                if let Some(shared) = connection.sender.share() {
                    connections.push(Idle { sender: shared, since: Instant::now() });
                }
                return Some(connection.sender);
            }
        }
        None
    }

    /// Puts a connection back after a complete exchange.
    pub(super) fn put(&self, address: Key, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        let connections = idle.entry(address).or_default();
        // One handle of a connection that many share is enough.
        if sender.share().is_some() {
            connections.clear();
        }
        if connections.len() < MAX_PER_ENDPOINT {
            connections.push(Idle { sender, since: Instant::now() });
        }
        drop(idle);
        self.filled.notify_one();
    }

    /// Drops every connection to an endpoint that closed one unexpectedly.
    pub(super) fn forget(&self, address: Key) {
        self.lock().remove(&address);
    }

    /// Closes what has been idle for too long; sleeps while the pool is empty.
    pub(super) async fn sweep(&self) {
        loop {
            let empty = {
                let mut idle = self.lock();
                idle.retain(|_, connections| {
                    connections.retain(|it| it.since.elapsed() < MAX_IDLE && !it.sender.is_closed());
                    !connections.is_empty()
                });
                idle.is_empty()
            };
            if empty {
                self.filled.notified().await;
            }
            tokio::time::sleep(MAX_IDLE / 2).await;
        }
    }
}
