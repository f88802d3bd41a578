//! Idle connections to endpoints, per core. A connection is used by one request at a time; those that many share are in
//! `multiplexed.rs`.
//!
//! What must hold: nothing is taken that the other side has closed as far as this side knows. Who closes first is a race
//! that a request may lose: one that can be repeated is, and so it takes older connections than one that cannot.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest time that a connection lies idle.
pub(super) const MAX_IDLE: Duration = Duration::from_secs(30);
/// The same for a request that must not be sent twice: far below the idle limit of any server (5 s is common).
pub(super) const MAX_IDLE_ONCE: Duration = Duration::from_secs(1);
/// Pause between two looks at what is there.
pub(super) const SWEEP: Duration = Duration::from_secs(2);
/// Most idle connections to one endpoint. What a burst of requests has opened serves the next one; when descriptors run out
/// (`room.rs`), and after [`MAX_IDLE`], they are closed.
const MAX_PER_ENDPOINT: usize = 1024;

/// An address, and the id of the transport that it is spoken to by.
pub(super) type Key = (SocketAddr, u64);

/// A connection that can lie in a pool.
pub(super) trait Pooled {
    /// Whether the other side has closed it, as far as this side knows.
    fn is_closed(&self) -> bool;
}

struct Idle<C> {
    connection: C,
    since: Instant,
}

pub(super) struct Pool<C> {
    idle: Mutex<HashMap<Key, Vec<Idle<C>>>>,
    filled: Notify,
}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self { idle: Mutex::default(), filled: Notify::new() }
    }
}

impl<C: Pooled> Pool<C> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Idle<C>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The youngest usable connection. `repeatable` says whether the request may be sent again if this one is stale.
    pub(super) fn take(&self, address: Key, repeatable: bool) -> Option<C> {
        let longest = if repeatable { MAX_IDLE } else { MAX_IDLE_ONCE };
        let mut idle = self.lock();
        let connections = idle.get_mut(&address)?;
        while let Some(youngest) = connections.pop() {
            if youngest.since.elapsed() > longest {
                // The others are older still.
                if repeatable {
                    connections.clear();
                } else {
                    connections.push(youngest);
                }
                return None;
            }
            if !youngest.connection.is_closed() {
                return Some(youngest.connection);
            }
        }
        None
    }

    /// Puts a connection back after a complete exchange.
    pub(super) fn put(&self, address: Key, connection: C) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.lock();
        let connections = idle.entry(address).or_default();
        if connections.len() < MAX_PER_ENDPOINT {
            connections.push(Idle { connection, since: Instant::now() });
        }
        // The sweeper sleeps only while there is nothing to sweep.
        let first = connections.len() == 1;
        drop(idle);
        if first {
            self.filled.notify_one();
        }
    }

    /// Drops every connection to an endpoint that closed one unexpectedly.
    pub(super) fn forget(&self, address: Key) {
        self.lock().remove(&address);
    }

    /// Drops every connection.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Closes what has been idle for too long; sleeps while the pool is empty.
    pub(super) async fn sweep(&self) {
        loop {
            let empty = {
                let mut idle = self.lock();
                idle.retain(|_, connections| {
                    connections.retain(|it| it.since.elapsed() < MAX_IDLE && !it.connection.is_closed());
                    !connections.is_empty()
                });
                idle.is_empty()
            };
            if empty {
                self.filled.notified().await;
            }
            tokio::time::sleep(SWEEP).await;
        }
    }
}
