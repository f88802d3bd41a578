//! Ports of services as upstreams: which endpoints answer for them. Pure.

use super::object::{ObjectRef, ServicePort};
use super::table::hashed;
use super::world::{Name, World};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::route::UpstreamTarget;
use arco_model::traffic::{Endpoint, UpstreamEntry, UpstreamState};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Why a reference leads nowhere: the reason as the Gateway API words it, and a sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Unresolved {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Unresolved {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message }
    }
}

/// A port of a service, by number or by name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Port<'a> {
    Number(u16),
    Named(&'a str),
}

/// What a port speaks beyond HTTP/1.1 in the clear.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Speech {
    /// HTTP/2.
    pub(super) http2: bool,
    /// TLS, with any certificate.
    pub(super) tls: bool,
}

impl Speech {
    /// HTTP/2 without TLS.
    pub(super) const H2C: Self = Self { http2: true, tls: false };

    /// As a service says it (`appProtocol`); `None` when that says nothing.
    fn of(app_protocol: &str) -> Option<Self> {
        match app_protocol {
            "kubernetes.io/h2c" | "h2c" | "grpc" => Some(Self::H2C),
            "https" | "kubernetes.io/wss" | "tls" => Some(Self { http2: false, tls: true }),
            "grpcs" => Some(Self { http2: true, tls: true }),
            _ => None,
        }
    }
}

/// The upstreams that routes named.
pub(super) struct Backends<'a> {
    world: &'a World,
    pub(super) upstreams: BTreeMap<ComponentId, UpstreamEntry>,
}

impl<'a> Backends<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self { world, upstreams: BTreeMap::new() }
    }

    /// What a route of the Gateway API names. `from` is the kind and the namespace of the route.
    pub(super) fn referred(
        &mut self,
        from: (&str, &str),
        to: &ObjectRef,
        speech: Speech,
    ) -> Result<UpstreamTarget, Unresolved> {
        let (kind, namespace) = from;
        let (to_group, to_kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or("Service"));
        let name = Name::new(to.namespace.as_deref().unwrap_or(namespace), &to.name);
        if (to_group, to_kind) != ("", "Service") {
            let message = format!("`{to_kind}` `{name}` cannot answer: only a Service can");
            return Err(Unresolved::new("InvalidKind", message));
        }
        if !self.world.may_name((super::kind::GATEWAY_GROUP, kind, namespace), ("", "Service", &name)) {
            let place = &name.namespace;
            let message =
                format!("no ReferenceGrant in `{place}` lets {kind} of `{namespace}` name the service `{name}`");
            return Err(Unresolved::new("RefNotPermitted", message));
        }
        let Some(port) = to.port else {
            return Err(Unresolved::new(
                "UnsupportedValue",
                format!("the reference to the service `{name}` needs a port"),
            ));
        };
        self.port(&name, Port::Number(port), speech)
    }

    /// Stands for what a route of `namespace` names in vain, so that its share of the requests gets to nobody else. `state` says
    /// how these fail.
    pub(super) fn missing(&mut self, namespace: &str, to: &ObjectRef, state: UpstreamState) -> UpstreamTarget {
        let name = Name::new(to.namespace.as_deref().unwrap_or(namespace), &to.name);
        let port = to.port.unwrap_or(80);
        let reference = format!("{name}:{port}");
        let later = if state == UpstreamState::Missing { "" } else { " later" };
        let (high, low) = hashed(&format!("{reference} missing{later}"));
        let component = ComponentId::from_parts(high, low);
        let entry = UpstreamEntry {
            component: component.clone(),
            reference,
            state,
            endpoints: Vec::new(),
            http2_ports: Vec::new(),
            tls_ports: Vec::new(),
        };
        self.upstreams.entry(component.clone()).or_insert(entry);
        UpstreamTarget { component, port }
    }

    /// A port of a service, and what it speaks when the service does not say.
    pub(super) fn port(&mut self, name: &Name, port: Port<'_>, speech: Speech) -> Result<UpstreamTarget, Unresolved> {
        let missing = |what: String| Unresolved::new("BackendNotFound", what);
        let service = self.world.services.get(name).ok_or_else(|| missing(format!("there is no service `{name}`")))?;
        if service.spec.r#type == "ExternalName" {
            let message =
                format!("the service `{name}` leads outside the cluster (ExternalName), which is not followed");
            return Err(Unresolved::new("BackendNotFound", message));
        }
        let is_wanted = |it: &&ServicePort| match port {
            Port::Number(number) => it.port == number,
            Port::Named(word) => it.name == word,
        };
        let udp = |it: &&ServicePort| it.protocol.as_deref() == Some("UDP");
        let mut ports = service.spec.ports.iter().filter(|it| !udp(it));
        let found = ports.find(is_wanted).ok_or_else(|| {
            let shown = match port {
                Port::Number(number) => number.to_string(),
                Port::Named(word) => format!("`{word}`"),
            };
            missing(format!("the service `{name}` has no port {shown}"))
        })?;
        let said = Speech::of(&found.app_protocol);
        // Either of both can ask for what the other leaves open; nothing takes TLS away.
        let speech = said.map_or(speech, |it| Speech { http2: it.http2 || speech.http2, tls: it.tls || speech.tls });
        let reference = format!("{name}:{}", found.port);
        let (high, low) = hashed(&format!("{reference} {}{}", speech.http2, if speech.tls { " tls" } else { "" }));
        let target = UpstreamTarget { component: ComponentId::from_parts(high, low), port: found.port };
        if !self.upstreams.contains_key(&target.component) {
            let entry = UpstreamEntry {
                component: target.component.clone(),
                reference,
                state: UpstreamState::Up,
                endpoints: self.endpoints(name, &found.name),
                http2_ports: speech.http2.then_some(found.port).into_iter().collect(),
                tls_ports: speech.tls.then_some(found.port).into_iter().collect(),
            };
            self.upstreams.insert(target.component.clone(), entry);
        }
        Ok(target)
    }

    /// Endpoints of a port. Those that are ready get requests; when none is, those that end but still answer do.
    fn endpoints(&self, service: &Name, port: &str) -> Vec<Endpoint> {
        let mut found: BTreeMap<InstanceId, (Endpoint, bool)> = BTreeMap::new();
        let slices = self.world.slices_of.get(service).into_iter().flatten().filter_map(|it| self.world.slices.get(it));
        for slice in slices.filter(|it| it.address_type == "IPv4") {
            let numbers = slice.ports.iter().filter(|it| it.name.as_deref().unwrap_or_default() == port);
            for number in numbers.filter_map(|it| it.port) {
                for it in &slice.endpoints {
                    let Some(address) = it.addresses.first().and_then(|it| it.parse::<Ipv4Addr>().ok()) else {
                        continue;
                    };
                    let ending = it.conditions.terminating == Some(true);
                    let ready = it.conditions.ready != Some(false) && !ending;
                    let serving = it.conditions.serving.unwrap_or(ready);
                    if !(ready || ending && serving) {
                        continue;
                    }
                    let uid = it.target_ref.as_ref().map(|it| it.uid.as_str()).unwrap_or_default();
                    let (high, low) = hashed(&format!("{service} {uid} {address}:{number}"));
                    let instance = InstanceId::from_parts(high, low);
                    let endpoint =
                        Endpoint { instance: instance.clone(), address, port: Some(number), draining: !ready };
                    // One may be in two slices, as while they are put in order: the better of both counts.
                    if found.get(&instance).is_none_or(|it| !it.1) {
                        found.insert(instance, (endpoint, ready));
                    }
                }
            }
        }
        let none_ready = !found.values().any(|it| it.1);
        let endpoints = found.into_values().map(|(mut it, _)| {
            it.draining &= !none_ready;
            it
        });
        endpoints.collect()
    }
}
