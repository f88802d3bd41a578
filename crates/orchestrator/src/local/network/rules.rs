//! What the network is to be, and the nftables ruleset that makes it so. Pure: equal states give equal text.
//!
//! What must hold: names in the ruleset are numbers or come from our own ids, never from a user's text; instances reach
//! only their application, the components that they are bound to, and what lies outside this machine.

use arco_config::PRIVATE_NETWORKS;
use arco_model::id::{ComponentId, InstanceId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

/// What an instance is in the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceRole {
    /// Serves its component's stable address when ready.
    Service,
    /// Reaches what its component reaches, serves nothing.
    Run,
    /// The build network.
    Build,
}

/// A component in the network.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ComponentNet {
    /// Stable address.
    pub address: Ipv4Addr,
    /// Tenant.
    pub tenant: String,
    /// Application.
    pub application: String,
    /// Components of other applications that it may call.
    pub may_call: BTreeSet<ComponentId>,
}

/// An instance in the network.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct InstanceNet {
    /// Its address.
    pub address: Ipv4Addr,
    /// Component that it belongs to.
    pub component: ComponentId,
    /// What it is.
    pub role: InstanceRole,
    /// Whether it gets new connections.
    pub ready: bool,
    /// Whether it is leaving: gets new connections only while no other is ready.
    #[serde(default)]
    pub draining: bool,
}

/// Everything that the ruleset depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Every address; the lower half for instances, the upper for components.
    pub pool: Ipv4Net,
    /// Name of the bridge.
    pub bridge: String,
    /// Name of the nftables table.
    pub table: String,
    /// Components by id.
    pub components: BTreeMap<ComponentId, ComponentNet>,
    /// Instances by id.
    pub instances: BTreeMap<InstanceId, InstanceNet>,
    /// Where the search for a free instance address goes on, so that addresses are not used again at once.
    #[serde(default)]
    pub cursor: u32,
    /// Whether `ip_forward` was off before us.
    #[serde(default)]
    pub forwarding_was_off: bool,
    /// Private networks that builds may reach.
    #[serde(default)]
    pub allowed_networks: Vec<Ipv4Net>,
    /// Private addresses and ports that builds may reach.
    #[serde(default)]
    pub allowed_endpoints: Vec<SocketAddrV4>,
    /// Name servers that builds may ask.
    #[serde(default)]
    pub resolvers: Vec<Ipv4Addr>,
    /// Ports of this machine that instances may reach.
    #[serde(default)]
    pub published: BTreeSet<u16>,
    /// How builds reach what lies outside.
    #[serde(default)]
    pub build_way: BuildWay,
}

/// How builds reach what lies outside.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildWay {
    /// By themselves, where the rules let them.
    #[default]
    Direct,
    /// Not at all: the proxy does not listen yet.
    Closed,
    /// By a proxy on this port of the gateway's address, and by nothing else.
    Proxy(u16),
}

impl State {
    /// Nothing but names and the pool.
    pub fn new(pool: Ipv4Net, hex: &str) -> Self {
        Self {
            pool,
            bridge: format!("arco-{hex}"),
            table: format!("arco_{hex}"),
            components: BTreeMap::new(),
            instances: BTreeMap::new(),
            cursor: 0,
            forwarding_was_off: false,
            allowed_networks: Vec::new(),
            allowed_endpoints: Vec::new(),
            resolvers: Vec::new(),
            published: BTreeSet::new(),
            build_way: BuildWay::Direct,
        }
    }

    /// The kept state; none when there is none or it cannot be read.
    pub fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Keeps the state; readers see the old or the new one.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(self)?)?;
        std::fs::rename(fresh, path)
    }

    /// Address of the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        self.at(1)
    }

    /// How the names of the instances' links begin.
    pub fn link_prefix(&self) -> String {
        format!("v{}", self.bridge.trim_start_matches("arco-"))
    }

    /// Pattern that the instances' links match.
    pub fn links(&self) -> String {
        format!("{}*", self.link_prefix())
    }

    /// The range of stable addresses.
    pub fn stable(&self) -> Ipv4Net {
        Ipv4Net::new(self.at(self.half()), self.pool.prefix_len() + 1).unwrap_or(self.pool)
    }

    fn half(&self) -> u32 {
        1 << (31 - self.pool.prefix_len())
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pool.network()) + offset)
    }

    /// A stable address that no component has.
    pub fn free_stable(&self) -> Option<Ipv4Addr> {
        let taken: BTreeSet<_> = self.components.values().map(|it| it.address).collect();
        // The first and the last address of the half stay unused: programs take `.0` and `.255` for something else.
        (1..self.half() - 1).map(|it| self.at(self.half() + it)).find(|it| !taken.contains(it))
    }

    /// An address that no instance has; the longest unused one.
    pub fn free_instance(&mut self) -> Option<Ipv4Addr> {
        let taken: BTreeSet<_> = self.instances.values().map(|it| it.address).collect();
        let room = self.half() - 3;
        for step in 0..room {
            let offset = (self.cursor + step) % room;
            let address = self.at(2 + offset);
            if !taken.contains(&address) {
                self.cursor = (offset + 1) % room;
                return Some(address);
            }
        }
        None
    }
}

fn set(items: impl IntoIterator<Item = impl std::fmt::Display>) -> Option<String> {
    let text = items.into_iter().map(|it| it.to_string()).collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then(|| format!("{{ {text} }}"))
}

fn elements(items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!(" elements = {{ {} }};", items.join(", ")) }
}

/// The whole table, as `nft -f` reads it: one transaction that replaces what was there.
pub fn ruleset(state: &State) -> String {
    let State { table, bridge, pool, .. } = state;
    let (stable, gateway, links) = (state.stable(), state.gateway(), state.links());
    let mut out = format!("table ip {table} {{ }}\ndelete table ip {table}\ntable ip {table} {{\n");
    spread(state, &mut out);
    callers(state, &mut out);
    builds(state, &mut out);

    let own: Vec<_> =
        state.instances.values().filter(|it| it.role == InstanceRole::Service).map(|it| it.address).collect();
    let builds = set(state.instances.values().filter(|it| it.role == InstanceRole::Build).map(|it| it.address));
    let name_service = "    ip daddr {gateway} meta l4proto { tcp, udp } th dport 53 accept\n"
        .replace("{gateway}", &gateway.to_string());
    let refused = |it: &String| format!("    ip saddr {it} reject with icmp admin-prohibited\n");
    let for_builds = match (builds, state.build_way) {
        (None, _) => name_service,
        (Some(it), BuildWay::Direct) => name_service + &refused(&it),
        (Some(it), BuildWay::Closed) => refused(&it) + &name_service,
        // Names are asked by the proxy: a query is a way out, too.
        (Some(it), BuildWay::Proxy(port)) => {
            format!("    ip saddr {it} ip daddr {gateway} tcp dport {port} accept\n") + &refused(&it) + &name_service
        }
    };
    let published = set(&state.published)
        .map(|it| format!("    tcp dport {it} accept\n    udp dport {it} accept\n"))
        .unwrap_or_default();
    // An instance that reaches itself through its stable address must see another sender than itself.
    let hairpin = set(own.iter().map(|it| format!("{it} . {it}")));
    let hairpin = hairpin.map(|it| format!("    ip saddr . ip daddr {it} snat to {gateway}\n")).unwrap_or_default();
    let _ = write!(
        out,
        "  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    iifname \"{links}\" ip daddr {stable} ip daddr vmap @spread
  }}
  chain output_nat {{
    type nat hook output priority -100; policy accept;
    ip daddr {stable} ip daddr vmap @spread
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
{hairpin}    ip saddr {pool} oifname != \"{links}\" masquerade
  }}
  chain unreachable {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    ip daddr {stable} goto unreachable
  }}
  chain input {{
    type filter hook input priority -1; policy accept;
    iifname != \"{links}\" accept
    ct state established,related accept
    ip saddr != {pool} drop
{for_builds}{published}    reject with icmp admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority -1; policy accept;
    ct state established,related accept
    iifname \"{links}\" goto from_instance
    oifname \"{links}\" drop
    oifname \"{bridge}\" drop
  }}
  chain from_instance {{
    ip saddr != {pool} drop
    ip daddr {stable} goto unreachable
    ip saddr vmap @build_from
    oifname \"{links}\" goto inside
    ip daddr {pool} goto unreachable
    ip daddr {{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4 }} drop
    ip saddr vmap @from_outside
    drop
  }}
  chain inside {{
    ip saddr vmap @from
    reject with icmp admin-prohibited
  }}
}}
"
    );
    out
}

/// Stable address → a ready instance. A component without one has no entry, so that the forward chain rejects.
fn spread(state: &State, out: &mut String) {
    let mut entries = Vec::new();
    for (number, (id, component)) in state.components.iter().enumerate() {
        let of = |draining: bool| {
            let serves = |it: &&InstanceNet| it.component == *id && it.role == InstanceRole::Service && it.ready;
            state
                .instances
                .values()
                .filter(serves)
                .filter(|it| it.draining == draining)
                .map(|it| it.address)
                .collect::<Vec<_>>()
        };
        let (settled, leaving) = (of(false), of(true));
        let targets = if settled.is_empty() { leaving } else { settled };
        let chain = match targets.as_slice() {
            [] => continue,
            [one] => format!("dnat to {one}"),
            many => {
                let map = many.iter().enumerate().map(|(at, it)| format!("{at} : {it}")).collect::<Vec<_>>().join(", ");
                format!("dnat to numgen inc mod {} map {{ {map} }}", many.len())
            }
        };
        let _ = writeln!(out, "  chain s{number} {{\n    {chain}\n  }}");
        entries.push(format!("{} : goto s{number}", component.address));
    }
    let _ = writeln!(out, "  map spread {{ type ipv4_addr : verdict;{} }}", elements(&entries));
}

/// Who may reach whom: a chain per application and one per component on top of it.
fn callers(state: &State, out: &mut String) {
    let mut applications: BTreeMap<(&str, &str), Vec<Ipv4Addr>> = BTreeMap::new();
    for component in state.components.values() {
        applications.entry((&component.tenant, &component.application)).or_default();
    }
    let mut by_component: BTreeMap<&ComponentId, Vec<Ipv4Addr>> = BTreeMap::new();
    for instance in state.instances.values().filter(|it| it.role == InstanceRole::Service) {
        by_component.entry(&instance.component).or_default().push(instance.address);
        if let Some(component) = state.components.get(&instance.component) {
            applications.entry((&component.tenant, &component.application)).or_default().push(instance.address);
        }
    }
    for (number, members) in applications.values().enumerate() {
        let accept = set(members).map(|it| format!("    ip daddr {it} accept\n")).unwrap_or_default();
        let _ = writeln!(out, "  chain a{number} {{\n{accept}    reject with icmp admin-prohibited\n  }}");
    }
    let mut from = Vec::new();
    for (number, (id, component)) in state.components.iter().enumerate() {
        let callers: Vec<_> =
            state.instances.values().filter(|it| it.component == *id && it.role != InstanceRole::Build).collect();
        if callers.is_empty() {
            continue;
        }
        let application =
            applications.keys().position(|it| *it == (component.tenant.as_str(), component.application.as_str()));
        let bound = component.may_call.iter().filter_map(|it| by_component.get(it)).flatten();
        let accept = set(bound).map(|it| format!("    ip daddr {it} accept\n")).unwrap_or_default();
        let _ = writeln!(out, "  chain c{number} {{\n{accept}    goto a{}\n  }}", application.unwrap_or_default());
        from.extend(callers.iter().map(|it| format!("{} : goto c{number}", it.address)));
    }
    let outside = state.instances.values().filter(|it| it.role != InstanceRole::Build);
    let outside: Vec<_> = outside.map(|it| format!("{} : accept", it.address)).collect();
    let _ = writeln!(out, "  map from {{ type ipv4_addr : verdict;{} }}", elements(&from));
    let _ = writeln!(out, "  map from_outside {{ type ipv4_addr : verdict;{} }}", elements(&outside));
}

/// The build network.
fn builds(state: &State, out: &mut String) {
    let from = state.instances.values().filter(|it| it.role == InstanceRole::Build);
    let from: Vec<_> = from.map(|it| format!("{} : goto build", it.address)).collect();
    if state.build_way != BuildWay::Direct {
        let _ = writeln!(out, "  chain build {{\n    reject with icmp admin-prohibited\n  }}");
        let _ = writeln!(out, "  map build_from {{ type ipv4_addr : verdict;{} }}", elements(&from));
        return;
    }
    let mut rules = String::new();
    let resolvers = set(&state.resolvers);
    if let Some(resolvers) = resolvers {
        let _ = writeln!(rules, "    ip daddr {resolvers} meta l4proto {{ tcp, udp }} th dport 53 accept");
    }
    if let Some(endpoints) = set(state.allowed_endpoints.iter().map(|it| format!("{} . {}", it.ip(), it.port()))) {
        let _ = writeln!(rules, "    ip daddr . tcp dport {endpoints} accept");
    }
    let _ = writeln!(rules, "    ip daddr {} goto unreachable", state.pool);
    for network in &state.allowed_networks {
        let _ = writeln!(rules, "    ip daddr {network} accept");
    }
    let _ = writeln!(
        rules,
        "    ip daddr {{ {} }} reject with icmp admin-prohibited\n    accept",
        PRIVATE_NETWORKS.join(", ")
    );
    let _ = writeln!(out, "  chain build {{\n{rules}  }}");
    let _ = writeln!(out, "  map build_from {{ type ipv4_addr : verdict;{} }}", elements(&from));
}
