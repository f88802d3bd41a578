//! Ports that lead to components without HTTP: opened and closed while the gateway runs, as the store says.
//!
//! What must hold: a port that cannot be opened takes nothing else away, says why, and is tried again; one that is closed
//! leaves its open connections alone; one with an address is open while this machine has that address. Sockets outlive
//! this process like every listener.

use crate::addresses::Addresses;
use crate::bind::{BindError, bind_kept, bind_udp_kept};
use crate::engine::{Engine, Listening, Protocol};
use arco_daemon::handover::Sockets;
use arco_model::traffic::{StreamEntry, StreamProtocol};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

type Place = (StreamProtocol, u16);

/// See the module.
pub(crate) struct Streams {
    ip: IpAddr,
    sockets: Sockets,
    addresses: Addresses,
    open: BTreeMap<Place, (IpAddr, Arc<str>, Listening)>,
    problems: BTreeMap<Place, String>,
    /// Those that are for the address of another machine, or one that is not here yet.
    elsewhere: BTreeMap<Place, String>,
}

impl Streams {
    pub(crate) fn new(ip: IpAddr, sockets: Sockets, addresses: Addresses) -> Self {
        Self { ip, sockets, addresses, open: BTreeMap::new(), problems: BTreeMap::new(), elsewhere: BTreeMap::new() }
    }

    /// Opens what is wanted and not open, closes what is not wanted any more.
    pub(crate) fn apply<'a>(&mut self, engine: &Engine, wanted: impl Iterator<Item = &'a StreamEntry>) {
        let mut elsewhere = BTreeMap::new();
        let mut wanted_here: BTreeMap<Place, (IpAddr, Arc<str>)> = BTreeMap::new();
        for it in wanted {
            let (place, ip) = ((it.protocol, it.port), it.address.unwrap_or(self.ip));
            if it.address.is_none_or(|it| self.addresses.has(it)) {
                wanted_here.insert(place, (ip, it.target.to_string().into()));
            } else {
                elsewhere.insert(place, format!("this gateway's machine does not have the address {ip}"));
            }
        }
        self.open.retain(|place, (ip, ..)| wanted_here.get(place).is_some_and(|it| it.0 == *ip));
        self.problems.retain(|place, _| wanted_here.contains_key(place));
        for (place, (ip, upstream)) in wanted_here {
            if self.open.get(&place).is_some_and(|it| it.1 == upstream) {
                continue;
            }
            match self.listen(engine, place, ip, &upstream) {
                Ok(listening) => {
                    self.problems.remove(&place);
                    self.open.insert(place, (ip, upstream, listening));
                }
                Err(error) => {
                    let problem = error.to_string();
                    if self.problems.get(&place) != Some(&problem) {
                        tracing::error!(protocol = %place.0, port = place.1, problem, "a port for a component is not open");
                    }
                    self.problems.insert(place, problem);
                }
            }
        }
        self.elsewhere = elsewhere;
    }

    fn listen(
        &mut self,
        engine: &Engine,
        place: Place,
        ip: IpAddr,
        upstream: &Arc<str>,
    ) -> Result<Listening, BindError> {
        let address = SocketAddr::new(ip, place.1);
        let fail = |it: std::io::Error| BindError::new(address, &it);
        let (protocol, name) = (protocol(place.0, upstream), format!("stream {} {address}", place.0));
        match (place.0, self.open.remove(&place)) {
            // The same sockets: whoever connects meanwhile waits.
            (_, Some((.., before))) => engine.switch(before, &protocol).map_err(fail),
            (StreamProtocol::Tcp, None) => {
                let bound = bind_kept(&self.sockets, &name, address, engine.cores())?;
                engine.listen_on(bound, &protocol).map_err(fail)
            }
            (StreamProtocol::Udp, None) => {
                let bound = bind_udp_kept(&self.sockets, &name, address, engine.cores())?;
                engine.listen_udp(bound, upstream).map_err(fail)
            }
        }
    }

    /// Closes every port: this process leaves.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }

    /// Whether one could not be opened that should be.
    pub(crate) fn has_failed(&self) -> bool {
        !self.problems.is_empty()
    }

    /// What is not open, and why.
    pub(crate) fn problems(&self) -> Vec<(StreamProtocol, u16, String)> {
        self.problems.iter().chain(&self.elsewhere).map(|(place, why)| (place.0, place.1, why.clone())).collect()
    }
}

fn protocol(of: StreamProtocol, upstream: &Arc<str>) -> Protocol {
    match of {
        StreamProtocol::Tcp => Protocol::Tcp(Arc::clone(upstream)),
        StreamProtocol::Udp => Protocol::Udp(Arc::clone(upstream)),
    }
}
