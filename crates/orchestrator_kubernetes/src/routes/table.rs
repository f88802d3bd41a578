//! The table while it is being made: rules of hosts with their age, certificates, ports. Pure.

use super::world::{Name, World};
use super::{RouteTable, ServedCertificate};
use arco_model::artifact::Digest;
use arco_model::id::RowId;
use arco_model::route::{Route, Target, UpstreamTarget};
use arco_model::time::Timestamp;
use arco_model::traffic::{HostEntry, HostTls, StreamEntry, StreamProtocol};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Two numbers for an id from a text: the same in every process.
pub(super) fn hashed(text: &str) -> (u64, u64) {
    let digest = Digest::of(text.as_bytes());
    let part = |from: usize| u64::from_str_radix(&digest.hex()[from..from + 13], 16).unwrap_or_default();
    (part(0), part(13))
}

/// How old the object is that asks, then its name: the older one wins.
pub(super) type Age = (Timestamp, Name);

#[derive(Default)]
struct Host {
    /// With what says that two of them are shares of one rule.
    rules: Vec<(Age, usize, Option<u32>, Route<UpstreamTarget>)>,
    certificate: Option<(Age, RowId)>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Draft {
    hosts: BTreeMap<String, Host>,
    certificates: BTreeMap<RowId, ServedCertificate>,
    streams: BTreeMap<String, (Age, StreamEntry)>,
    /// Rules so far: those of one object keep their order.
    count: usize,
}

impl Draft {
    /// A rule of a host. `share`: its part of the requests, where others of the host mean the same ones.
    pub(super) fn rule(&mut self, host: &str, age: &Age, share: Option<u32>, rule: Route<UpstreamTarget>) {
        self.count += 1;
        let host = self.hosts.entry(host.to_ascii_lowercase()).or_default();
        host.rules.push((age.clone(), self.count, share, rule));
    }

    /// Serves a host with a certificate, unless an older object has one for it.
    pub(super) fn serve(&mut self, host: &str, age: &Age, certificate: &ServedCertificate) {
        let text = format!("{}\n{}", certificate.chain_pem, certificate.key_pem);
        let (high, low) = hashed(&text);
        let id = RowId::from_parts(high, low);
        self.certificates.entry(id.clone()).or_insert_with(|| certificate.clone());
        let host = self.hosts.entry(host.to_ascii_lowercase()).or_default();
        if host.certificate.as_ref().is_none_or(|it| *age < it.0) {
            host.certificate = Some((age.clone(), id));
        }
    }

    /// Leads a port somewhere, unless somebody came first: then who.
    pub(super) fn stream(&mut self, age: &Age, port: u16, target: UpstreamTarget) -> Result<(), Name> {
        let entry = StreamEntry { protocol: StreamProtocol::Tcp, port, address: None, target };
        match self.streams.entry(format!("{}:{port}", entry.protocol)) {
            Entry::Occupied(other) => Err(other.get().0.1.clone()),
            Entry::Vacant(place) => {
                place.insert((age.clone(), entry));
                Ok(())
            }
        }
    }

    /// The table. Hosts that only have a certificate are not in it.
    pub(super) fn finish(self, upstreams: super::backend::Backends<'_>) -> RouteTable {
        let mut table = RouteTable { upstreams: upstreams.upstreams, ..RouteTable::default() };
        for (host, mut draft) in self.hosts {
            if draft.rules.is_empty() {
                continue;
            }
            draft.rules.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
            let certificate = draft.certificate.map(|it| it.1);
            if let Some(id) = &certificate
                && let Some(served) = self.certificates.get(id)
            {
                table.certificates.insert(id.clone(), served.clone());
            }
            let tls = HostTls { certificate, client_ca: None };
            let entry = HostEntry { host: host.clone(), rules: shared(draft.rules), tls, ..HostEntry::default() };
            table.hosts.insert(host, entry);
        }
        table.streams = self.streams.into_iter().map(|(key, (_, entry))| (key, entry)).collect();
        table
    }
}

/// Rules with a share become one rule with those that mean the same requests.
fn shared(rules: Vec<(Age, usize, Option<u32>, Route<UpstreamTarget>)>) -> Vec<Route<UpstreamTarget>> {
    let mut all: Vec<Route<UpstreamTarget>> = Vec::new();
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for (_, _, share, mut rule) in rules {
        let Some(share) = share else {
            all.push(rule);
            continue;
        };
        rule.targets.iter_mut().for_each(|it| it.weight = share);
        match shares.get(&rule.meaning()) {
            Some(at) => {
                let targets: &mut Vec<Target<UpstreamTarget>> = &mut all[*at].targets;
                targets.append(&mut rule.targets);
            }
            None => {
                shares.insert(rule.meaning(), all.len());
                all.push(rule);
            }
        }
    }
    all
}

/// The certificate of a secret, or why there is none.
pub(super) fn certificate<'a>(world: &'a World, name: &Name) -> Result<&'a ServedCertificate, String> {
    match (world.certificates.get(name), world.secrets.contains_key(name)) {
        (Some((_, Ok(certificate))), true) => Ok(certificate),
        (Some((_, Err(why))), true) => Err(format!("the secret `{name}` {why}")),
        (None, true) => Err(format!("the secret `{name}` was not read yet")),
        (_, false) => Err(format!("there is no secret `{name}` of the type `kubernetes.io/tls`")),
    }
}

/// Whether a chain and a key can be served together.
pub(super) fn check(certificate: &ServedCertificate) -> Result<(), String> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|it| format!("has no certificates in `tls.crt`: {it}"))?;
    if chain.is_empty() {
        return Err("has no certificates in `tls.crt`".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes())
        .map_err(|it| format!("has no private key in `tls.key`: {it}"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let made = rustls::sign::CertifiedKey::from_der(chain, key, &provider);
    made.map(drop).map_err(|it| format!("has a key that does not belong to its certificate: {it}"))
}
