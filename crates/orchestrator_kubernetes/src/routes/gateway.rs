//! Gateways of our class: what their listeners offer to routes, and what is said about them. Pure.

use super::ServedCertificate;
use super::kind::{GATEWAY_GROUP, Kind};
use super::object::{ClassSpec, GatewaySpec, Listener, ObjectRef};
use super::status::{Condition, Status, changed, conditions, others};
use super::table::certificate;
use super::translate::Terms;
use super::world::{Known, Name, World};
use arco_model::time::Timestamp;
use serde_json::{Value, json};

/// What a listener speaks, as far as we can.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Speaks {
    Http,
    Https,
    /// TLS, passed on unread.
    Tls,
    Tcp,
}

/// A listener, as routes may attach to it.
pub(super) struct Offer<'a> {
    pub(super) gateway: &'a Name,
    pub(super) known: &'a Known<GatewaySpec>,
    pub(super) listener: &'a Listener,
    /// `None` for what we cannot.
    pub(super) speaks: Option<Speaks>,
    pub(super) accepted: Condition,
    pub(super) resolved: Condition,
    pub(super) conflicted: Condition,
    pub(super) certificate: Option<&'a ServedCertificate>,
    /// Kinds that may attach.
    pub(super) kinds: Vec<Kind>,
    /// Routes that are attached.
    pub(super) attached: u32,
}

impl Offer<'_> {
    /// Whether requests come in here.
    pub(super) fn serves(&self) -> bool {
        self.accepted.holds && self.resolved.holds && !self.conflicted.holds && !asks_for_more(self.known)
    }
}

/// Whether a gateway is to be other than it says, by settings that are not read here.
fn asks_for_more(known: &Known<GatewaySpec>) -> bool {
    known.spec.infrastructure.parameters_ref.is_some()
}

/// Whether a class is ours.
fn is_ours(class: &ClassSpec, terms: &Terms) -> bool {
    class.controller_name == terms.controller
}

/// Gateways of our classes.
pub(super) fn ours<'a>(
    world: &'a World,
    terms: &'a Terms,
) -> impl Iterator<Item = (&'a Name, &'a Known<GatewaySpec>)> + 'a {
    world.gateways.iter().filter(|(_, it)| {
        world.classes.get(&it.spec.gateway_class_name).is_some_and(|class| is_ours(&class.spec, terms))
    })
}

/// All listeners of a gateway.
pub(super) fn offers<'a>(
    world: &'a World,
    terms: &Terms,
    (name, known): (&'a Name, &'a Known<GatewaySpec>),
) -> Vec<Offer<'a>> {
    let mut offers: Vec<Offer<'a>> =
        known.spec.listeners.iter().map(|it| offer(world, terms, name, known, it)).collect();
    let group = |it: &Offer<'_>| match it.speaks {
        Some(Speaks::Https | Speaks::Tls) => Some(Speaks::Tls),
        other => other,
    };
    let places: Vec<_> = offers.iter().map(|it| (it.listener.port, group(it), it.listener.hostname.clone())).collect();
    for (at, offer) in offers.iter_mut().enumerate() {
        let (port, speaks, host) = &places[at];
        // What is not served takes nothing from others, and is refused for that alone: a port of UDP is another one anyway.
        let others = places
            .iter()
            .enumerate()
            .filter(|(other, it)| *other != at && it.0 == *port && it.1.is_some() && speaks.is_some());
        for (_, other) in others {
            let reason = match (other.1 == *speaks, other.2 == *host || *speaks == Some(Speaks::Tcp)) {
                (false, _) => "ProtocolConflict",
                (true, true) => "HostnameConflict",
                (true, false) => continue,
            };
            let message = format!("another listener has port {port} in a way that cannot be told apart");
            offer.conflicted = Condition::new("Conflicted", true, reason, message.clone());
            offer.accepted = Condition::new("Accepted", false, reason, message);
        }
    }
    offers
}

fn offer<'a>(
    world: &'a World,
    terms: &Terms,
    gateway: &'a Name,
    known: &'a Known<GatewaySpec>,
    listener: &'a Listener,
) -> Offer<'a> {
    let mode = listener.tls.as_ref().and_then(|it| it.mode.as_deref()).unwrap_or("Terminate");
    let unsupported = |what: String| Err(Condition::new("Accepted", false, "UnsupportedProtocol", what));
    let speaks = match (listener.protocol.as_str(), mode) {
        ("HTTP", _) => Ok(Speaks::Http),
        ("HTTPS", "Terminate") => Ok(Speaks::Https),
        ("TLS", "Passthrough") => Ok(Speaks::Tls),
        ("TCP", _) => Ok(Speaks::Tcp),
        ("HTTPS" | "TLS", mode) => unsupported(format!("{} is not served with `tls.mode: {mode}`", listener.protocol)),
        (other, _) => unsupported(format!("listeners speak HTTP, HTTPS, TLS or TCP, not {other}")),
    };
    let ports = &terms.ports;
    let unavailable = |may_be: String| {
        let message = format!("port {} is not served here; {} may be on {may_be}", listener.port, listener.protocol);
        Condition::new("Accepted", false, "PortUnavailable", message)
    };
    let listed = |list: &[u16]| list.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let accepted = match &speaks {
        Err(why) => why.clone(),
        Ok(Speaks::Http) if !ports.http.contains(&listener.port) => unavailable(listed(&ports.http)),
        Ok(Speaks::Https | Speaks::Tls) if !ports.https.contains(&listener.port) => unavailable(listed(&ports.https)),
        // To serve it without would open what is meant to be closed.
        Ok(Speaks::Https) if known.spec.asks_clients(listener) => {
            let message = "certificates of clients are not asked for here: leave `tls.frontend` of the Gateway out, or give the host to a component (`arco route add … --client-ca`)";
            Condition::new("Accepted", false, "UnsupportedValue", message)
        }
        Ok(Speaks::Tcp) if !ports.streams.contains(&listener.port) => {
            unavailable(format!("{} to {} (`gateway.stream_ports`)", ports.streams.start(), ports.streams.end()))
        }
        Ok(_) => Condition::good("Accepted"),
    };
    let possible: &[Kind] = match &speaks {
        Ok(Speaks::Http | Speaks::Https) => &[Kind::HttpRoute, Kind::GrpcRoute],
        Ok(Speaks::Tls) => &[Kind::TlsRoute],
        Ok(Speaks::Tcp) => &[Kind::TcpRoute],
        Err(_) => &[],
    };
    let wished = &listener.allowed_routes.kinds;
    let is_wished = |it: &Kind| {
        wished
            .iter()
            .any(|wish| wish.kind == it.word() && wish.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP)
    };
    let kinds: Vec<Kind> = possible.iter().copied().filter(|it| wished.is_empty() || is_wished(it)).collect();
    let mut resolved = Condition::good("ResolvedRefs");
    if wished.len() > kinds.len() {
        let shown: Vec<&str> = possible.iter().map(|it| it.word()).collect();
        let message = format!("a listener for {} takes {}", listener.protocol, shown.join(", "));
        resolved = Condition::new("ResolvedRefs", false, "InvalidRouteKinds", message);
    }
    let mut served = None;
    if matches!(speaks, Ok(Speaks::Https)) {
        let references = listener.tls.as_ref().map(|it| it.certificate_refs.as_slice()).unwrap_or_default();
        match find(world, gateway, references) {
            Ok(it) => served = Some(it),
            Err((reason, message)) => resolved = Condition::new("ResolvedRefs", false, reason, message),
        }
    }
    let conflicted = Condition::new("Conflicted", false, "NoConflicts", "");
    let speaks = speaks.ok();
    Offer { gateway, known, listener, speaks, accepted, resolved, conflicted, certificate: served, kinds, attached: 0 }
}

/// The secret that a reference names; the reason why it may not be looked at.
pub(super) fn secret(world: &World, gateway: &Name, to: &ObjectRef) -> Result<Name, (&'static str, String)> {
    let (group, kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or("Secret"));
    let name = Name::new(to.namespace.as_deref().unwrap_or(&gateway.namespace), &to.name);
    if (group, kind) != ("", "Secret") {
        return Err(("InvalidCertificateRef", format!("a certificate is a Secret, not a `{kind}`")));
    }
    if !world.may_name((GATEWAY_GROUP, "Gateway", &gateway.namespace), ("", "Secret", &name)) {
        let (place, from) = (&name.namespace, &gateway.namespace);
        return Err((
            "RefNotPermitted",
            format!("no ReferenceGrant in `{place}` lets Gateways of `{from}` name `{name}`"),
        ));
    }
    Ok(name)
}

fn find<'a>(
    world: &'a World,
    gateway: &Name,
    references: &[ObjectRef],
) -> Result<&'a ServedCertificate, (&'static str, String)> {
    let [reference] = references else {
        return Err(("InvalidCertificateRef", "it needs exactly one certificate in `tls.certificateRefs`".to_owned()));
    };
    certificate(world, &secret(world, gateway, reference)?).map_err(|it| ("InvalidCertificateRef", it))
}

/// What is said about our classes.
pub(super) fn class_statuses(world: &World, terms: &Terms, now: Timestamp) -> Vec<Status> {
    let ours = world.classes.iter().filter(|it| is_ours(&it.1.spec, terms));
    let status = |(name, known): (&String, &Known<ClassSpec>)| {
        let condition = match &known.spec.parameters_ref {
            None => Condition::good("Accepted"),
            Some(_) => {
                Condition::new("Accepted", false, "InvalidParameters", "`parametersRef` is not read: leave it out")
            }
        };
        let written = conditions(&[condition], &known.status["conditions"], known.generation, now);
        changed(Kind::GatewayClass, &Name::new("", name), json!({ "conditions": written }), &known.status)
    };
    ours.filter_map(status).collect()
}

/// What is said about a gateway with these listeners.
pub(super) fn status(offers: &[Offer<'_>], addresses: &[String], now: Timestamp) -> Option<Status> {
    let first = offers.first()?;
    let (name, known) = (first.gateway, first.known);
    let bad = offers.iter().filter(|it| !it.serves()).count();
    let accepted = match bad {
        _ if asks_for_more(known) => Condition::new(
            "Accepted",
            false,
            "InvalidParameters",
            "`infrastructure.parametersRef` is not read: leave it out",
        ),
        0 => Condition::good("Accepted"),
        bad if bad == offers.len() => Condition::new(
            "Accepted",
            false,
            "ListenersNotValid",
            "none of its listeners can be served; see `listeners`",
        ),
        _ => Condition::new(
            "Accepted",
            true,
            "ListenersNotValid",
            "some of its listeners cannot be served; see `listeners`",
        ),
    };
    let programmed = if !accepted.holds {
        Condition::new("Programmed", false, "Invalid", accepted.message.clone())
    } else if addresses.is_empty() {
        let message =
            "no address of the gateway is known: set `kubernetes.route_addresses` or `kubernetes.route_service`";
        Condition::new("Programmed", false, "AddressNotAssigned", message)
    } else if let Some(other) =
        known.spec.addresses.iter().find(|it| !it.value.is_empty() && !addresses.contains(&it.value))
    {
        let message = format!("it asks for `{}`, and the gateway is reached at {}", other.value, addresses.join(", "));
        Condition::new("Programmed", false, "AddressNotUsable", message)
    } else {
        Condition::good("Programmed")
    };
    let before = |listener: &str| {
        let all = known.status["listeners"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().find(|it| it["name"] == listener).map(|it| it["conditions"].clone()).unwrap_or_default()
    };
    let listener = |it: &Offer<'_>| {
        let programmed = match it.serves() {
            true => Condition::good("Programmed"),
            false => Condition::new("Programmed", false, "Invalid", "see the other conditions"),
        };
        let all = [it.accepted.clone(), it.resolved.clone(), it.conflicted.clone(), programmed];
        let kinds: Vec<Value> =
            it.kinds.iter().map(|it| json!({ "group": GATEWAY_GROUP, "kind": it.word() })).collect();
        json!({
            "name": it.listener.name, "supportedKinds": kinds, "attachedRoutes": it.attached,
            "conditions": conditions(&all, &before(&it.listener.name), known.generation, now),
        })
    };
    let address = |it: &String| {
        let kind = if it.parse::<std::net::IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        json!({ "type": kind, "value": it })
    };
    let body = json!({
        "conditions": conditions(&[accepted, programmed], &known.status["conditions"], known.generation, now),
        "listeners": offers.iter().map(listener).collect::<Vec<_>>(),
        "addresses": addresses.iter().map(address).collect::<Vec<_>>(),
    });
    changed(Kind::Gateway, name, body, &known.status)
}

/// Takes what we said from those that are of somebody else's class now, unless that is another platform's: several of a cluster
/// write under one name.
pub(super) fn left(world: &World, addresses: &[String]) -> Vec<Status> {
    let foreign = world.gateways.iter().filter(|(_, it)| {
        let class = world.classes.get(&it.spec.gateway_class_name);
        class.is_some_and(|it| !it.spec.controller_name.starts_with("arco.internal/"))
    });
    let taken = |(name, known): (&Name, &Known<GatewaySpec>)| {
        let (status, said) = (&known.status, known.said.as_object()?);
        let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
        let mut listeners = list("listeners");
        listeners.retain_mut(|it| {
            let key = format!("k:{}", json!({ "name": it["name"] }));
            let conditions = others(&it["conditions"], &known.said["f:listeners"][key.as_str()]["f:conditions"]);
            let some = conditions.len() < it["conditions"].as_array().map_or(0, Vec::len);
            let left = !some || !conditions.is_empty();
            if some && let Some(fields) = it.as_object_mut() {
                fields.insert("conditions".to_owned(), conditions.into());
            }
            left
        });
        let mut told = list("addresses");
        if said.contains_key("f:addresses") {
            told.retain(|it| !addresses.iter().any(|own| it["value"] == own.as_str()));
        }
        let conditions = others(&status["conditions"], &known.said["f:conditions"]);
        let body = json!({ "conditions": conditions, "listeners": listeners, "addresses": told });
        changed(Kind::Gateway, name, body, status)
    };
    foreign.filter_map(taken).collect()
}
