//! From what is known of the cluster to the table and to the statuses. Pure.

use super::attach::{Attached, attach};
use super::backend::{Backends, Unresolved};
use super::gateway::{self, Offer, Speaks};
use super::http;
use super::ingress;
use super::kind::{GATEWAY_GROUP, Kind};
use super::object::{ParentRef, RouteSpec};
use super::status::{Condition, Status, changed, conditions};
use super::stream;
use super::table::{Age, Draft};
use super::world::{Known, Name, World};
use super::{GatewayPorts, RouteTable};
use arco_model::route::{Route, RouteTls, Scheme, TLS_PASSTHROUGH, Target};
use arco_model::time::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What the settings say.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) class: String,
    /// Controller that our gateway classes name.
    pub(super) controller: String,
    pub(super) addresses: Vec<String>,
    pub(super) service: Option<Name>,
    pub(super) ports: GatewayPorts,
}

impl Terms {
    /// Where the gateway is reached.
    fn addresses(&self, world: &World) -> Vec<String> {
        let mut all = self.addresses.clone();
        let service = self.service.as_ref().and_then(|it| world.services.get(it));
        for it in service.into_iter().flat_map(|it| &it.outside) {
            let address = if it.ip.is_empty() { &it.hostname } else { &it.ip };
            if !address.is_empty() && !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }
}

/// What became of the objects.
#[derive(Debug, Default)]
pub(super) struct Translation {
    pub(super) table: RouteTable,
    /// Those that are other than in the cluster.
    pub(super) statuses: Vec<Status>,
    /// What cannot be served of Ingresses, which have no status for it.
    pub(super) problems: BTreeSet<String>,
}

/// Secrets with certificates that objects of our class name.
pub(super) fn secrets(world: &World, terms: &Terms) -> BTreeSet<Name> {
    let ingresses = ingress::ours(world, terms).flat_map(|(name, known)| {
        let named = known.spec.tls.iter().filter(|it| !it.secret_name.is_empty());
        named.map(move |it| Name::new(&name.namespace, &it.secret_name))
    });
    let gateways = gateway::ours(world, terms).flat_map(|(name, known)| {
        let references =
            known.spec.listeners.iter().filter_map(|it| it.tls.as_ref()).flat_map(|it| &it.certificate_refs);
        references.filter_map(move |it| gateway::secret(world, name, it).ok())
    });
    ingresses.chain(gateways).collect()
}

/// Translates everything.
pub(super) fn translate(world: &World, terms: &Terms, now: Timestamp) -> Translation {
    let (mut draft, mut backends) = (Draft::default(), Backends::new(world));
    let mut out = Translation::default();
    let addresses = terms.addresses(world);
    let mut ingresses: Vec<_> = ingress::ours(world, terms).collect();
    ingresses.sort_by_key(|it| (it.1.created, it.0));
    for it in ingresses {
        let problems = ingress::translate(world, it, terms, &mut draft, &mut backends);
        out.problems.extend(problems.into_iter().map(|problem| format!("Ingress {}: {problem}", it.0)));
        out.statuses.extend(ingress::status(it.0, it.1, &addresses));
    }

    out.statuses.extend(ingress::left(world, terms, &addresses));
    // Without these nothing true could be said, or served, of any.
    let needed = [Kind::GatewayClass, Kind::Gateway, Kind::ReferenceGrant];
    if !needed.iter().any(|it| world.withheld.contains(it)) {
        of_gateways(world, terms, now, &addresses, &mut draft, &mut backends, &mut out);
    }
    out.table = draft.finish(backends);
    out.table.partial = !world.withheld.is_empty();
    out
}

/// Translates what is of the Gateway API.
fn of_gateways<'a>(
    world: &'a World,
    terms: &'a Terms,
    now: Timestamp,
    addresses: &[String],
    draft: &mut Draft,
    backends: &mut Backends<'a>,
    out: &mut Translation,
) {
    let mut offers: Vec<Offer<'_>> = Vec::new();
    let mut of = BTreeMap::new();
    for it in gateway::ours(world, terms) {
        let from = offers.len();
        offers.extend(gateway::offers(world, terms, it));
        of.insert(it.0.clone(), from..offers.len());
    }
    let mut routes: Vec<_> = world.routes.iter().collect();
    routes.sort_by_key(|it| (it.1.created, it.0));
    for ((kind, name), known) in routes {
        let attached = attach(world, (*kind, name), known, &mut offers, &of);
        if !attached.parents.is_empty() {
            let said = serve((*kind, name), known, &attached, &offers, draft, backends);
            out.statuses.extend(status((*kind, name), known, &attached.parents, &said, terms, now));
        } else if parents_of(&known.status, &terms.controller).0 > 0 {
            out.statuses.extend(status((*kind, name), known, &[], &Said::default(), terms, now));
        }
    }
    out.statuses.extend(gateway::class_statuses(world, terms, now));
    out.statuses.extend(of.into_values().filter_map(|it| gateway::status(&offers[it], addresses, now)));
    out.statuses.extend(gateway::left(world, addresses));
}

/// What is said about a route, whatever its parents.
#[derive(Default)]
struct Said {
    unresolved: Option<Unresolved>,
    /// Why it is not accepted, although its parents take it.
    refused: Option<(&'static str, String)>,
    /// What of it is not served, although it is accepted.
    partly: Option<String>,
}

/// Puts a route into the table where it is attached.
fn serve(
    (kind, name): (Kind, &Name),
    known: &Known<RouteSpec>,
    attached: &Attached,
    offers: &[Offer<'_>],
    draft: &mut Draft,
    backends: &mut Backends<'_>,
) -> Said {
    let age: Age = (known.created, name.clone());
    let mut said = Said::default();
    match kind {
        Kind::TlsRoute | Kind::TcpRoute => match stream::target(kind, &name.namespace, &known.spec, backends) {
            Err(why) => said.refused = Some(("UnsupportedValue", why)),
            Ok(Err(why)) => said.unresolved = Some(why),
            Ok(Ok(target)) => {
                for host in attached.hosts.keys() {
                    let tls = RouteTls { certificate: Some(TLS_PASSTHROUGH.to_owned()), ..RouteTls::default() };
                    let targets = vec![Target { to: target.clone(), weight: 100 }];
                    draft.rule(host, &age, None, Route { targets, tls, ..Route::default() });
                }
                for port in &attached.ports {
                    if let Err(other) = draft.stream(&age, *port, target.clone()) {
                        let message = format!("connections to port {port} go to `{other}`, which is older");
                        said.refused = Some(("PortTaken", message));
                    }
                }
            }
        },
        _ => {
            let rules = http::rules(kind, &name.namespace, &known.spec, backends);
            for (host, over) in &attached.hosts {
                let scheme = match (over.contains(&Speaks::Http), over.contains(&Speaks::Https)) {
                    (true, false) => Some(Scheme::Http),
                    (false, true) => Some(Scheme::Https),
                    _ => None,
                };
                for rule in &rules.rules {
                    draft.rule(host, &age, None, Route { scheme, ..rule.clone() });
                }
            }
            for (at, host) in &attached.secure {
                if let Some(certificate) = offers[*at].certificate {
                    draft.serve(host, &(offers[*at].known.created, offers[*at].gateway.clone()), certificate);
                }
            }
            said.unresolved = rules.unresolved;
            let why = rules.unsupported.join("; ");
            match (why.is_empty(), rules.fine) {
                (true, _) => {}
                (false, 0) => said.refused = Some(("UnsupportedValue", why)),
                (false, _) => said.partly = Some(why),
            }
        }
    }
    said
}

/// How many of the parents in a status are ours, and all others.
fn parents_of(status: &Value, controller: &str) -> (usize, Vec<Value>) {
    let all = status["parents"].as_array().cloned().unwrap_or_default();
    let count = all.len();
    let others: Vec<Value> = all.into_iter().filter(|it| it["controllerName"] != controller).collect();
    (count - others.len(), others)
}

/// The status of a route: what other controllers say stays.
fn status(
    (kind, name): (Kind, &Name),
    known: &Known<RouteSpec>,
    parents: &[(ParentRef, Condition)],
    said: &Said,
    terms: &Terms,
    now: Timestamp,
) -> Option<Status> {
    let before = |reference: &Value| {
        let all = known.status["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found =
            all.iter().find(|it| it["controllerName"] == terms.controller.as_str() && it["parentRef"] == *reference);
        found.map(|it| it["conditions"].clone()).unwrap_or_default()
    };
    let (_, mut written) = parents_of(&known.status, &terms.controller);
    for (parent, verdict) in parents {
        let mut reference = json!({
            "group": parent.group.as_deref().unwrap_or(GATEWAY_GROUP),
            "kind": parent.kind.as_deref().unwrap_or("Gateway"),
            "name": parent.name,
        });
        let optional = [
            ("namespace", parent.namespace.clone().map(Value::from)),
            ("sectionName", parent.section_name.clone().map(Value::from)),
            ("port", parent.port.map(Value::from)),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                reference[field] = value;
            }
        }
        let mut all = vec![match &said.refused {
            Some((reason, why)) if verdict.holds => Condition::new("Accepted", false, reason, why.clone()),
            _ => verdict.clone(),
        }];
        all.push(match &said.unresolved {
            Some(it) => Condition::new("ResolvedRefs", false, it.reason, it.message.clone()),
            None => Condition::good("ResolvedRefs"),
        });
        all.extend(
            said.partly.as_ref().map(|it| Condition::new("PartiallyInvalid", true, "UnsupportedValue", it.clone())),
        );
        let conditions = conditions(&all, &before(&reference), known.generation, now);
        written.push(json!({ "parentRef": reference, "controllerName": terms.controller, "conditions": conditions }));
    }
    changed(kind, name, json!({ "parents": written }), &known.status)
}
