//! Which listeners a route attaches to, and for which hosts. Pure.

use super::gateway::{Offer, Speaks};
use super::kind::{GATEWAY_GROUP, Kind};
use super::object::{AllowedNamespaces, ParentRef, RouteSpec, Selector, Words};
use super::status::Condition;
use super::world::{Known, Name, World};
use std::collections::{BTreeMap, BTreeSet};

/// Where a route is served.
#[derive(Default)]
pub(super) struct Attached {
    /// By host, what requests for it come over.
    pub(super) hosts: BTreeMap<String, Vec<Speaks>>,
    /// Ports of listeners without hosts.
    pub(super) ports: BTreeSet<u16>,
    /// Listeners (by their place) that serve a host with TLS.
    pub(super) secure: Vec<(usize, String)>,
    /// What is said to each parent that is ours.
    pub(super) parents: Vec<(ParentRef, Condition)>,
}

/// Attaches a route. `of` are the places of a gateway's listeners among the offers.
pub(super) fn attach(
    world: &World,
    (kind, name): (Kind, &Name),
    route: &Known<RouteSpec>,
    offers: &mut [Offer<'_>],
    of: &BTreeMap<Name, std::ops::Range<usize>>,
) -> Attached {
    let mut attached = Attached::default();
    let mut counted = BTreeSet::new();
    for parent in &route.spec.parent_refs {
        let (group, what) =
            (parent.group.as_deref().unwrap_or(GATEWAY_GROUP), parent.kind.as_deref().unwrap_or("Gateway"));
        let gateway = Name::new(parent.namespace.as_deref().unwrap_or(&name.namespace), &parent.name);
        let Some(places) = of.get(&gateway).filter(|_| (group, what) == (GATEWAY_GROUP, "Gateway")) else { continue };
        let named = |it: &Offer<'_>| {
            parent.section_name.as_ref().is_none_or(|section| section.is_empty() || *section == it.listener.name)
                && parent.port.is_none_or(|port| port == it.listener.port)
        };
        let mut verdict = Condition::new(
            "Accepted",
            false,
            "NoMatchingParent",
            format!("the gateway `{gateway}` has no such listener"),
        );
        for at in places.clone() {
            let offer = &mut offers[at];
            if !named(offer) {
                continue;
            }
            let allowed = offer.kinds.contains(&kind)
                && admits(world, &offer.listener.allowed_routes.namespaces, &gateway.namespace, &name.namespace);
            if !allowed {
                let message = format!("no listener of `{gateway}` takes {} of `{}`", kind.word(), name.namespace);
                // A reason that came nearer stays.
                if verdict.reason == "NoMatchingParent" {
                    verdict = Condition::new("Accepted", false, "NotAllowedByListeners", message);
                }
                continue;
            }
            let hosts = meet(&offer.listener.hostname, &route.spec.hostnames);
            if hosts.is_empty() && offer.speaks != Some(Speaks::Tcp) {
                if !verdict.holds {
                    let message = format!("no host of it falls under a listener of `{gateway}`");
                    verdict = Condition::new("Accepted", false, "NoMatchingListenerHostname", message);
                }
                continue;
            }
            verdict = Condition::good("Accepted");
            if counted.insert(at) {
                offer.attached += 1;
            }
            if !offer.serves() {
                continue;
            }
            let Some(speaks) = offer.speaks else { continue };
            if speaks == Speaks::Tcp {
                attached.ports.insert(offer.listener.port);
                continue;
            }
            for host in hosts {
                if speaks == Speaks::Https {
                    attached.secure.push((at, host.clone()));
                }
                let over = attached.hosts.entry(host).or_default();
                if !over.contains(&speaks) {
                    over.push(speaks);
                }
            }
        }
        attached.parents.push((parent.clone(), verdict));
    }
    attached
}

/// Whether routes of a namespace may attach.
fn admits(world: &World, allowed: &AllowedNamespaces, gateway: &str, route: &str) -> bool {
    match allowed.from.as_deref().unwrap_or("Same") {
        "All" => true,
        "Same" => gateway == route,
        "Selector" => world.namespaces.get(route).is_some_and(|labels| selects(&allowed.selector, labels)),
        _ => false,
    }
}

fn selects(selector: &Selector, labels: &Words) -> bool {
    selector.match_labels.iter().all(|(name, value)| labels.get(name) == Some(value))
        && selector.match_expressions.iter().all(|it| {
            let value = labels.get(&it.key);
            match it.operator.as_str() {
                "In" => value.is_some_and(|value| it.values.contains(value)),
                "NotIn" => value.is_none_or(|value| !it.values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Hosts of a route that fall under a listener's; `*` stands for any. The narrower of two counts.
fn meet(listener: &str, route: &[String]) -> Vec<String> {
    let (listener, any) = (listener.to_ascii_lowercase(), "*".to_owned());
    if route.is_empty() {
        return vec![if listener.is_empty() { any } else { listener }];
    }
    let mut all: Vec<String> = route
        .iter()
        .filter_map(|host| {
            let host = host.to_ascii_lowercase();
            if listener.is_empty() || host == listener || under(&host, &listener) {
                Some(host)
            } else {
                under(&listener, &host).then(|| listener.clone())
            }
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Whether everything that `narrow` stands for falls under `wide`.
fn under(narrow: &str, wide: &str) -> bool {
    let Some(suffix) = wide.strip_prefix('*') else { return false };
    let bare = narrow.strip_prefix('*').unwrap_or(narrow);
    bare.ends_with(suffix) && (bare.len() > suffix.len() || narrow.starts_with('*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_routes_meet_those_of_listeners() {
        for (listener, route, wanted) in [
            ("", vec![], vec!["*"]),
            ("a.test", vec![], vec!["a.test"]),
            ("", vec!["A.test"], vec!["a.test"]),
            ("*.test", vec!["a.test", "b.c.test", "test", "other"], vec!["a.test", "b.c.test"]),
            ("a.test", vec!["*.test"], vec!["a.test"]),
            ("*.b.test", vec!["*.test"], vec!["*.b.test"]),
            ("*.test", vec!["*.b.test", "*.test"], vec!["*.b.test", "*.test"]),
            ("*.test", vec!["nottest", "*.other"], vec![]),
            ("a.test", vec!["b.test"], vec![]),
        ] {
            let route: Vec<String> = route.into_iter().map(str::to_owned).collect();
            assert_eq!(meet(listener, &route), wanted, "{listener} {route:?}");
        }
    }

    #[test]
    fn selectors_choose_by_labels() {
        let labels = Words::from([("a".to_owned(), "1".to_owned())]);
        for (text, wanted) in [
            (r#"{}"#, true),
            (r#"{"matchLabels": {"a": "1"}}"#, true),
            (r#"{"matchLabels": {"a": "2"}}"#, false),
            (r#"{"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}"#, true),
            (r#"{"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}"#, false),
            (r#"{"matchExpressions": [{"key": "b", "operator": "Exists"}]}"#, false),
            (r#"{"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}"#, true),
            (r#"{"matchExpressions": [{"key": "a", "operator": "Later"}]}"#, false),
        ] {
            assert_eq!(selects(&serde_json::from_str(text).unwrap(), &labels), wanted, "{text}");
        }
    }
}
