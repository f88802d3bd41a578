//! The built-in data plane: the engine, fed by files. Its sockets outlive it: a holder keeps them over a crash and an
//! upgrade. A listener on an address of another machine waits until that address is here.

use super::Driver;
use crate::addresses::Addresses;
use crate::bind::{BindError, Bound, BoundUdp, bind_kept, bind_udp_kept};
use crate::data_plane::{GatewayError, system};
use crate::engine::{Engine, Listening, Protocol, Shared};
use crate::source::file::{ListenerSpec, Loaded};
use arco_daemon::Supervisor;
use arco_daemon::handover::Sockets;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long open requests may finish: when everything stops, and when another process goes on.
const GRACE: Duration = Duration::from_secs(10);
/// See [`GRACE`].
pub const GRACE_OF_HAND_OVER: Duration = Duration::from_secs(60);

/// See the module.
pub struct Builtin {
    engine: Engine,
    shared: Arc<Shared>,
    sockets: Sockets,
    listening: HashMap<String, (ListenerSpec, Listening)>,
    /// Every listener of the file, whether its address is here or not.
    wanted: Vec<ListenerSpec>,
    addresses: Addresses,
}

impl Builtin {
    /// An engine that serves nothing yet, on so many threads; 0 is one per processor.
    pub fn start(
        supervisor: &Supervisor,
        shared: &Arc<Shared>,
        threads: usize,
        sockets: Sockets,
        addresses: Addresses,
    ) -> Result<Self, GatewayError> {
        let engine = Engine::start(supervisor, Arc::clone(shared), threads).map_err(system("start its threads"))?;
        let (shared, listening, wanted) = (Arc::clone(shared), HashMap::new(), Vec::new());
        Ok(Self { engine, shared, sockets, listening, wanted, addresses })
    }

    /// Puts a valid file into effect: first what can fail (addresses), then the rest at once. Only then connections are
    /// accepted: they may have been waiting on kept sockets.
    fn put_listeners(&mut self, loaded: Loaded) -> Result<(), BindError> {
        let mut fresh = Vec::new();
        let here = self.here(&loaded.listeners);
        for spec in &here {
            if self.listening.get(&spec.name).is_none_or(|(known, _)| known != spec) {
                // The same address under another name or protocol is switched after the new file is in effect.
                let taken = self
                    .listening
                    .iter()
                    .find(|(_, (known, _))| is_same(known.address, spec.address) && known.is_udp() == spec.is_udp());
                let bound = match taken {
                    Some((name, _)) => Err(name.clone()),
                    None => Ok(self.bind(spec)?),
                };
                fresh.push((spec.clone(), bound));
            }
        }
        self.shared.limit(loaded.limits);
        self.shared.certificates.store(Arc::new(loaded.certificates));
        self.shared.metrics.applied(loaded.snapshot.revision);
        self.shared.snapshot.store(Arc::new(loaded.snapshot));
        self.shared.metrics.prune();
        let mut failed = None;
        let mut ready = Vec::new();
        for (spec, bound) in fresh {
            let listening = match bound {
                Ok(bound) => self.listen(bound, &spec),
                Err(name) => match self.listening.remove(&name) {
                    Some((_, before)) => {
                        self.engine.switch(before, &spec.protocol).map_err(|it| BindError::new(spec.address, &it))
                    }
                    None => self.bind(&spec).and_then(|it| self.listen(it, &spec)),
                },
            };
            match listening {
                Ok(listening) => ready.push((spec, listening)),
                Err(error) => failed = Some(error),
            }
        }
        self.listening.retain(|_, (known, _)| here.contains(known));
        self.wanted = loaded.listeners;
        self.listening.extend(ready.into_iter().map(|(spec, it)| (spec.name.clone(), (spec, it))));
        failed.map_or(Ok(()), Err)
    }

    /// The listeners whose address this machine has.
    fn here(&self, listeners: &[ListenerSpec]) -> Vec<ListenerSpec> {
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            listeners.iter().cloned().partition(|it| self.addresses.has(it.address.ip()));
        for it in elsewhere.iter().filter(|it| !self.wanted.contains(it) || self.listening.contains_key(&it.name)) {
            tracing::info!(listener = it.name, address = %it.address, "this machine does not have the address; it waits");
        }
        here
    }

    fn bind(&self, spec: &ListenerSpec) -> Result<AnyBound, BindError> {
        // A listener with an address keeps it under any name.
        let name = match spec.address.port() {
            0 => format!("listener {}", spec.name),
            _ => format!("listener {}", spec.address),
        };
        let cores = self.engine.cores();
        if let Protocol::Udp(upstream) = &spec.protocol {
            let name = format!("UDP {name}");
            let bound = bind_udp_kept(&self.sockets, &name, spec.address, cores)?;
            return Ok(AnyBound::Udp(bound, Arc::clone(upstream)));
        }
        bind_kept(&self.sockets, &name, spec.address, cores).map(AnyBound::Tcp)
    }

    fn listen(&self, bound: AnyBound, spec: &ListenerSpec) -> Result<Listening, BindError> {
        let listening = match bound {
            AnyBound::Tcp(bound) => self.engine.listen_on(bound, &spec.protocol),
            AnyBound::Udp(bound, upstream) => self.engine.listen_udp(bound, &upstream),
        };
        listening.map_err(|it| BindError::new(spec.address, &it))
    }
}

impl Driver for Builtin {
    fn name(&self) -> &'static str {
        "builtin"
    }

    fn put(&mut self, loaded: Loaded) -> BoxFuture<'_, Result<(), GatewayError>> {
        Box::pin(ready(self.put_listeners(loaded).map_err(GatewayError::from)))
    }

    fn follow_addresses(&mut self) -> BoxFuture<'_, ()> {
        let here = self.here(&self.wanted);
        self.listening.retain(|_, (known, _)| here.contains(known));
        for spec in here.into_iter().filter(|it| !self.listening.contains_key(&it.name)).collect::<Vec<_>>() {
            match self.bind(&spec).and_then(|it| self.listen(it, &spec)) {
                Ok(listening) => {
                    tracing::info!(listener = spec.name, address = %spec.address, "the address is here; listening");
                    self.listening.insert(spec.name.clone(), (spec, listening));
                }
                Err(error) => tracing::error!(%error, "a listener is not open"),
            }
        }
        Box::pin(ready(()))
    }

    fn tend(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    fn listeners(&self) -> Vec<(ListenerSpec, SocketAddr)> {
        self.listening.values().map(|(spec, it)| (spec.clone(), it.address)).collect()
    }

    fn end(&mut self, successor: bool) -> BoxFuture<'_, bool> {
        self.engine.leave();
        // Whoever connects from now on is a successor's, or refused.
        self.listening.clear();
        Box::pin(async move {
            match successor {
                true => self.engine.hand_over(GRACE_OF_HAND_OVER).await,
                false => self.engine.drain(GRACE).await,
            }
        })
    }
}

/// An address that is bound, for connections or for datagrams.
enum AnyBound {
    Tcp(Bound),
    Udp(BoundUdp, Arc<str>),
}

/// Whether two listeners are one socket; port 0 is never another's.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one == other && one.port() != 0
}
