//! Routes and ports of the gateway as the file says them: what is to be added and what goes. They come after the
//! components, whose ports the build may have found out.

use super::super::failure::{Failure, exit};
use super::super::session::Session;
use arco_api::client::ClientError;
use arco_api::wire::{ApplyChange, RouteDocument, RouteRequest, StreamDocument, StreamRequest};
use arco_model::manifest::{ComponentManifest, StreamManifest};
use serde_json::Value;

/// What is done for one component.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) changes: Vec<ApplyChange>,
    add_routes: Vec<RouteRequest>,
    delete_routes: Vec<String>,
    add_streams: Vec<StreamRequest>,
    delete_streams: Vec<String>,
}

impl Plan {
    /// The difference between what is there and what the file says; what it is silent about stays.
    pub(super) async fn make(
        name: (&str, &str),
        manifest: &ComponentManifest,
        session: &Session<'_>,
    ) -> Result<Self, Failure> {
        let mut plan = Self::default();
        if let Some(wanted) = &manifest.routes {
            let there = or_none(session.client.routes(&session.tenant, name).await)?;
            plan.routes(name.1, &there, wanted);
        }
        if let Some(wanted) = &manifest.streams {
            let there = or_none(session.client.streams(&session.tenant, name).await)?;
            plan.streams(name.1, &there, wanted);
        }
        Ok(plan)
    }

    /// Does it: what is new first, so that no request falls between.
    pub(super) async fn carry_out(&self, name: (&str, &str), session: &Session<'_>) -> Result<(), Failure> {
        let (client, tenant) = (&session.client, &session.tenant);
        for it in &self.add_routes {
            client.add_route(tenant, name, it).await?;
        }
        for it in &self.delete_streams {
            client.delete_stream(tenant, name, it).await?;
        }
        for it in &self.add_streams {
            client.add_stream(tenant, name, it).await?;
        }
        for it in &self.delete_routes {
            client.delete_route(tenant, name, it).await?;
        }
        Ok(())
    }

    fn routes(&mut self, component: &str, there: &[RouteDocument], wanted: &[RouteRequest]) {
        let mut kept: Vec<&str> = Vec::new();
        for wanted in wanted {
            for host in &wanted.hosts {
                let one = RouteRequest { hosts: vec![host.to_ascii_lowercase()], ..wanted.clone() };
                let same =
                    |it: &&RouteDocument| !it.default && it.host == one.hosts[0] && it.route.meaning() == one.meaning();
                let before = there.iter().find(same);
                kept.extend(before.and_then(|it| it.id.as_deref()));
                let (old, new) = (before.map(|it| shown(&it.route, component)), shown(&one, component));
                if old.as_ref() != Some(&new) {
                    self.change(component, "routes", &one.hosts[0], &one.meaning(), old.unwrap_or_default(), new);
                }
                self.add_routes.push(one);
            }
        }
        for it in there.iter().filter(|it| !it.default) {
            let Some(id) = it.id.as_deref().filter(|id| !kept.contains(id)) else { continue };
            let old = shown(&it.route, component);
            self.change(component, "routes", &it.host, &it.route.meaning(), old, Value::Null);
            self.delete_routes.push(id.to_owned());
        }
    }

    fn streams(&mut self, component: &str, there: &[StreamDocument], wanted: &[StreamManifest]) {
        let mut left: Vec<&StreamDocument> = there.iter().collect();
        // Those that name their port choose first.
        let (named, free): (Vec<_>, Vec<_>) = wanted.iter().partition(|it| it.port.is_some());
        for wanted in named.into_iter().chain(free) {
            let fits = |it: &&StreamDocument| {
                it.protocol == wanted.protocol
                    && wanted.port.is_none_or(|port| port == it.port)
                    && wanted.target_port.is_none_or(|port| port == it.target_port)
                    && wanted.address == it.address
            };
            if let Some(at) = left.iter().position(fits) {
                left.swap_remove(at);
                continue;
            }
            let request = StreamRequest {
                protocol: wanted.protocol,
                port: wanted.port,
                target_port: wanted.target_port,
                address: wanted.address,
            };
            let place = wanted.port.map_or_else(|| "a free port".to_owned(), |it| it.to_string());
            let after = serde_json::to_value(&request).unwrap_or_default();
            self.change(component, "streams", wanted.protocol.as_str(), &place, Value::Null, after);
            self.add_streams.push(request);
        }
        for it in left {
            // As it would be asked for; what else is known of it says nothing here.
            let (port, target_port) = (Some(it.port), Some(it.target_port));
            let asked = StreamRequest { protocol: it.protocol, port, target_port, address: it.address };
            let before = serde_json::to_value(&asked).unwrap_or_default();
            self.change(component, "streams", it.protocol.as_str(), &it.port.to_string(), before, Value::Null);
            self.delete_streams.push(it.id.clone());
        }
    }

    fn change(&mut self, component: &str, part: &str, of: &str, which: &str, before: Value, after: Value) {
        let field = format!("{part}[{of} {which}]");
        let (component, action) = (component.to_owned(), "change".to_owned());
        self.changes.push(ApplyChange { component, action, field, before, after });
    }
}

/// What a component that is not there yet has.
fn or_none<T>(found: Result<Vec<T>, ClientError>) -> Result<Vec<T>, Failure> {
    match found.map_err(Failure::from) {
        Err(failure) if failure.status == exit::NOT_FOUND => Ok(Vec::new()),
        found => found,
    }
}

/// A route so that two that mean the same are equal: hosts are elsewhere, ports of targets may be left out, hashes of
/// passwords are not told.
fn shown(route: &RouteRequest, component: &str) -> Value {
    let mut route = RouteRequest { hosts: Vec::new(), ..route.clone() };
    let itself = route.targets.len() == 1 && route.targets[0].to.component.as_str() == component;
    if itself {
        route.targets.clear();
    }
    for target in &mut route.targets {
        target.to.port = None;
    }
    if let Some(auth) = &mut route.basic_auth {
        auth.users.values_mut().for_each(|it| "…".clone_into(it));
    }
    serde_json::to_value(&route).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(id: &str, host: &str, route: Value) -> RouteDocument {
        let route: RouteRequest = serde_json::from_value(route).unwrap();
        serde_json::from_value(json!({
            "id": id, "application": "shop", "component": "web", "host": host, "path": "/", "port": 80,
            "default": false, "url": "", "route": route, "rates": null,
        }))
        .unwrap()
    }

    #[test]
    fn routes_become_those_of_the_file() {
        let there = [
            document("1", "a.test", json!({"targets": [{"to": "shop/web:80"}]})),
            document("2", "a.test", json!({"paths": [{"prefix": "/old"}], "targets": [{"to": "shop/web:80"}]})),
            RouteDocument { default: true, ..document("3", "web-shop.localhost", json!({})) },
        ];
        let wanted: Vec<RouteRequest> = serde_json::from_value(json!([{"hosts": ["A.test", "b.test"]}])).unwrap();
        let mut plan = Plan::default();
        plan.routes("web", &there, &wanted);
        let fields: Vec<_> = plan.changes.iter().map(|it| (it.field.as_str(), it.after.is_null())).collect();
        assert_eq!(fields, [("routes[b.test prefix /]", false), ("routes[a.test prefix /old]", true)]);
        assert_eq!((plan.add_routes.len(), plan.delete_routes), (2, vec!["2".to_owned()]));
    }

    #[test]
    fn ports_become_those_of_the_file() {
        let stream = |id: &str, protocol: &str, port: u16| -> StreamDocument {
            serde_json::from_value(json!({
                "id": id, "application": "shop", "component": "db", "protocol": protocol, "port": port,
                "target_port": 5432, "url": "", "problem": "",
            }))
            .unwrap()
        };
        let there = [stream("1", "tcp", 10_000), stream("2", "tcp", 10_001), stream("3", "udp", 10_000)];
        let wanted: Vec<StreamManifest> = serde_json::from_value(json!([
            {"protocol": "tcp"}, {"protocol": "tcp", "port": 10_000}, {"protocol": "tcp", "port": 10_005},
        ]))
        .unwrap();
        let mut plan = Plan::default();
        plan.streams("db", &there, &wanted);
        assert_eq!(plan.delete_streams, ["3"]);
        let gone = plan.changes.iter().find(|it| it.after.is_null()).unwrap();
        assert!(gone.before.get("id").is_none() && gone.before.get("problem").is_none(), "{gone:?}");
        assert_eq!(plan.add_streams.iter().map(|it| it.port).collect::<Vec<_>>(), [Some(10_005)]);
        let mut same = Plan::default();
        same.streams("db", &there[..1], &wanted[1..2]);
        assert_eq!(same, Plan::default(), "nothing to do");
    }
}
