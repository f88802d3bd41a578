//! Who may learn which address: a pure function of the last known state.

use arco_model::id::ComponentId;
use arco_model::name::TenantName;
use arco_model::traffic::{DataPlaneSettings, NAMES, NameEntry, SETTINGS};
use arco_store::kv::mirror::View;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// The zone of all instances.
pub const ZONE: &str = "arco.internal";

/// What to answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The name is ours, and the asker may know its address.
    Address(Ipv4Addr),
    /// The name is ours to answer, and there is no such name for this asker.
    Unknown,
    /// The name is not ours.
    Forward,
}

#[derive(Debug)]
struct Row {
    tenant: TenantName,
    component: ComponentId,
    address: Ipv4Addr,
}

#[derive(Debug)]
struct Asker {
    tenant: TenantName,
    may_call: HashSet<ComponentId>,
}

/// Names, askers and settings.
#[derive(Debug, Default)]
pub struct Table {
    names: HashMap<String, Row>,
    askers: HashMap<Ipv4Addr, Asker>,
    /// Where foreign names are asked.
    pub forwarders: Vec<IpAddr>,
    /// Where to listen, if anywhere.
    pub listen: Option<SocketAddrV4>,
}

impl Table {
    /// The table for what the mirror knows. Entries that cannot be read are left out, and said.
    pub fn read(view: &View) -> Self {
        let mut table = Self::default();
        for (key, entry) in view.entries.range(NAMES.as_bytes().to_vec()..) {
            let Some(id) = key.strip_prefix(NAMES.as_bytes()) else { break };
            let id = std::str::from_utf8(id).ok().and_then(|it| it.parse::<ComponentId>().ok());
            match (id, serde_json::from_slice::<NameEntry>(&entry.value)) {
                (Some(id), Ok(name)) => table.add(id, name),
                (_, Err(error)) => {
                    tracing::error!(key = %String::from_utf8_lossy(key), %error, "a name entry cannot be read");
                }
                (None, _) => {}
            }
        }
        if let Some(entry) = view.entries.get(SETTINGS.as_bytes()) {
            match serde_json::from_slice::<DataPlaneSettings>(&entry.value) {
                Ok(settings) => (table.forwarders, table.listen) = (settings.dns_forwarders, settings.dns_listen),
                Err(error) => tracing::error!(key = SETTINGS, %error, "the data plane's settings cannot be read"),
            }
        }
        table
    }

    fn add(&mut self, component: ComponentId, entry: NameEntry) {
        for instance in &entry.instances {
            let may_call = entry.may_call.iter().cloned().collect();
            self.askers.insert(*instance, Asker { tenant: entry.tenant.clone(), may_call });
        }
        let name = format!("{}.{}.{}", entry.component, entry.application, entry.tenant);
        self.names.insert(name, Row { tenant: entry.tenant, component, address: entry.address });
    }

    /// Whose instance has this address; `None`: nobody's.
    pub fn tenant(&self, address: Ipv4Addr) -> Option<&TenantName> {
        self.askers.get(&address).map(|it| &it.tenant)
    }

    /// What `asker` learns about `name` (lower case, without final dot).
    pub fn decide(&self, asker: Ipv4Addr, name: &str) -> Decision {
        let Some(ours) = name.strip_suffix(ZONE).filter(|it| it.is_empty() || it.ends_with('.')) else {
            return if is_local(name) { Decision::Unknown } else { Decision::Forward };
        };
        let row = ours.strip_suffix('.').and_then(|it| self.names.get(it));
        match (row, self.askers.get(&asker)) {
            (Some(row), Some(asker)) if row.tenant == asker.tenant || asker.may_call.contains(&row.component) => {
                Decision::Address(row.address)
            }
            _ => Decision::Unknown,
        }
    }
}

/// Names that mean something only on a local network: asking others about them tells about us and waits for nothing.
fn is_local(name: &str) -> bool {
    let reverse = name.strip_suffix(".in-addr.arpa").map(|it| it.rsplit('.').take(2).collect::<Vec<_>>());
    let private = match reverse.as_deref() {
        Some(["10" | "127", ..] | ["192", "168"] | ["169", "254"]) => true,
        Some(["172", second]) => second.parse::<u8>().is_ok_and(|it| (16..32).contains(&it)),
        _ => false,
    };
    let single_label = !name.is_empty() && !name.contains('.');
    private || single_label || name.ends_with(".local") || name.ends_with(".localhost") || name.ends_with(".ip6.arpa")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::name::{ApplicationName, ComponentName};

    fn id(number: u64) -> ComponentId {
        ComponentId::from_parts(1, number)
    }

    fn entry(component: &str, tenant: &str, last: u8, may_call: Vec<ComponentId>) -> NameEntry {
        NameEntry {
            tenant: TenantName::new(tenant).unwrap(),
            application: ApplicationName::new("shop").unwrap(),
            component: ComponentName::new(component).unwrap(),
            address: Ipv4Addr::new(10, 64, 1, last),
            instances: vec![Ipv4Addr::new(10, 64, 0, last)],
            may_call,
        }
    }

    #[test]
    fn the_answer_depends_on_who_asks() {
        let mut table = Table::default();
        table.add(id(1), entry("web", "blue", 1, vec![]));
        table.add(id(2), entry("db", "blue", 2, vec![]));
        table.add(id(3), entry("spy", "red", 3, vec![]));
        table.add(id(4), entry("friend", "green", 4, vec![id(2)]));
        let address = |last| Decision::Address(Ipv4Addr::new(10, 64, 1, last));
        for (asker, name, decision) in [
            (1, "db.shop.blue.arco.internal", address(2)),
            (1, "web.shop.blue.arco.internal", address(1)),
            (2, "web.shop.blue.arco.internal", address(1)),
            (3, "web.shop.blue.arco.internal", Decision::Unknown),
            (3, "spy.shop.red.arco.internal", address(3)),
            (4, "db.shop.blue.arco.internal", address(2)),
            (4, "web.shop.blue.arco.internal", Decision::Unknown),
            (9, "web.shop.blue.arco.internal", Decision::Unknown),
            (1, "nothing.shop.blue.arco.internal", Decision::Unknown),
            (1, "shop.blue.arco.internal", Decision::Unknown),
            (1, "x.web.shop.blue.arco.internal", Decision::Unknown),
            (1, "arco.internal", Decision::Unknown),
            (1, "notarco.internal", Decision::Forward),
            (1, "example.com", Decision::Forward),
            (9, "example.com", Decision::Forward),
            (1, "web", Decision::Unknown),
            (1, "1.0.64.10.in-addr.arpa", Decision::Unknown),
            (1, "1.0.20.172.in-addr.arpa", Decision::Unknown),
            (1, "8.8.8.8.in-addr.arpa", Decision::Forward),
            (1, "", Decision::Forward),
        ] {
            assert_eq!(table.decide(Ipv4Addr::new(10, 64, 0, asker), name), decision, "{asker} asks for {name}");
        }
    }
}
