//! Kinds that cannot be listed: what goes on without them.

use super::{NOW, class, gateway, http, route, terms, web, world};
use crate::routes::kind::Kind;
use crate::routes::translate::translate;
use serde_json::json;
use std::collections::BTreeSet;

#[test]
fn a_kind_that_cannot_be_listed_holds_back_only_what_needs_it() {
    for (withheld, hosts) in [
        (None, vec!["i.test", "r.test"]),
        (Some(Kind::TcpRoute), vec!["i.test", "r.test"]),
        (Some(Kind::Gateway), vec!["i.test"]),
        (Some(Kind::ReferenceGrant), vec!["i.test"]),
    ] {
        let [service, slice] = web();
        let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
        let ingress = json!({
            "kind": "Ingress", "metadata": { "name": "i" },
            "spec": { "ingressClassName": "arco", "defaultBackend": backend, "rules": [{ "host": "i.test" }] },
        });
        let spec = json!({ "hostnames": ["r.test"], "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] });
        let documents = [service, slice, ingress, class(), gateway(http()), route("HTTPRoute", "r", spec)];
        let mut world = world(&documents);
        world.withheld = BTreeSet::from_iter(withheld);
        let it = translate(&world, &terms(), NOW);
        assert_eq!(it.table.hosts.keys().collect::<Vec<_>>(), hosts, "{withheld:?}");
        assert_eq!(it.table.partial, withheld.is_some());
        // Nothing is said about what is not known.
        let others = it.statuses.iter().filter(|it| it.kind != Kind::Ingress).count();
        assert_eq!(others > 0, hosts.len() > 1, "{withheld:?}: {:?}", it.statuses);
    }
}
