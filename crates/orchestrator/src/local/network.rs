//! The instances' network on one machine: a link and a namespace per instance, one nftables table, one state file.
//!
//! Each instance hangs on a routed link of its own; the bridge has no ports, it only carries the gateway's address and
//! the route of the pool. Isolated ports of one bridge would not do: where the kernel filters bridged packets
//! (`bridge-nf-call-iptables`, which Docker and Kubernetes turn on for the whole machine), a packet whose destination
//! was translated is sent on inside the bridge, and dropped there. What must hold: every packet of an instance crosses
//! the forward or the input hook, and a sender's address is checked against its link; the ruleset is a pure function of [`rules::State`] and is replaced in one transaction, so a crash
//! leaves either the old or the new rules; stable addresses work while no server runs, because they live in the kernel;
//! nothing here is ever built from a user's text. Not here: DNS answers (role `mesh`), traffic from outside (gateway).

pub mod egress;
mod firewall;
mod links;
mod netns;
pub mod pool;
pub mod rules;

use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::{ApplicationName, TenantName};
use ipnet::Ipv4Net;
use rules::{BuildWay, ComponentNet, InstanceNet, InstanceRole, State};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Why the network is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A kernel interface or a tool refused a step.
    #[error("the network could not {step}: {cause}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why not.
        cause: String,
    },
    /// No address range is free or the asked one does not serve.
    #[error("{0}")]
    Pool(String),
    /// Every address of the pool is taken.
    #[error("every address of the pool {0} is taken: set a larger `network.pool`")]
    Full(Ipv4Net),
}

impl NetworkError {
    pub(crate) fn step(step: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Step { step, cause: cause.to_string() }
    }
}

/// What the network needs to know at start.
pub struct NetworkOptions {
    /// Folder for the state file.
    pub dir: PathBuf,
    /// Text that tells this server's objects from another's: the data folder's path.
    pub owner: String,
    /// Asked pool.
    pub pool: Option<Ipv4Net>,
    /// Private networks that builds may reach.
    pub allowed_networks: Vec<Ipv4Net>,
    /// Single private addresses and ports that builds may reach (package proxies of the machine).
    pub allowed_endpoints: Vec<SocketAddrV4>,
    /// Name servers that builds may ask while ours does not answer.
    pub resolvers: Vec<Ipv4Addr>,
    /// How builds reach what lies outside.
    pub build_way: BuildWay,
}

/// What one instance got.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// File that stands for its network namespace.
    pub netns: PathBuf,
    /// Its address; none without a network.
    pub address: Option<Ipv4Addr>,
}

/// The network of one server.
pub struct Network {
    dir: PathBuf,
    runtime_dir: PathBuf,
    links: links::Links,
    mtu: u32,
    state: Mutex<State>,
    /// Serialises calls of `nft`; whoever waits finds its change done by the one before.
    apply: Mutex<u64>,
    changed: std::sync::atomic::AtomicU64,
}

impl Network {
    /// Makes or adopts bridge, rules and state. `alive` are the instances that run already.
    pub async fn open(options: NetworkOptions, alive: &BTreeSet<InstanceId>) -> Result<Self, NetworkError> {
        let hex = &arco_model::artifact::Digest::of(options.owner.as_bytes()).hex()[..6].to_owned();
        let runtime_dir = PathBuf::from(format!("/run/arco/{hex}"));
        std::fs::create_dir_all(&options.dir).map_err(|it| NetworkError::step("make its folder", it))?;
        let kept = State::load(&options.dir.join("state.json"));
        let turn = pool::turn(pool::PATIENCE).await;
        let routes = pool::routes().map_err(|it| NetworkError::step("read the route table", it))?;
        let (bridge, own) = (format!("arco-{hex}"), format!("v{hex}"));
        let foreign: Vec<_> = routes
            .iter()
            .filter(|it| it.device != bridge && !it.device.starts_with(&own))
            .map(|it| it.destination)
            .collect();
        let had = kept.as_ref().map(|it| it.pool);
        let asked = match had {
            // Running instances keep their addresses; the new pool counts once none runs.
            Some(had) if !alive.is_empty() && options.pool.is_some_and(|it| it.trunc() != had) => {
                tracing::warn!(%had, "`network.pool` changed while instances run; it counts when the server starts without any");
                Some(had)
            }
            _ => options.pool,
        };
        let pool = pool::choose(asked, had, &foreign)?;
        let mut state = match kept {
            Some(kept) if kept.pool == pool => kept,
            _ => State::new(pool, hex),
        };
        state.instances.retain(|id, _| alive.contains(id));
        state.allowed_networks = options.allowed_networks;
        state.allowed_endpoints = options.allowed_endpoints;
        state.resolvers = options.resolvers;
        state.build_way = options.build_way;
        let mtu = pool::default_mtu(&routes);
        let links = links::Links::open()?;
        links.ensure_bridge(&state.bridge, state.gateway(), pool.prefix_len(), mtu).await?;
        drop(turn);
        links::device_settings(&state.bridge).map_err(|it| NetworkError::step("set up the bridge", it))?;
        if !forwarding() {
            state.forwarding_was_off = true;
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
                .map_err(|it| NetworkError::step("turn on ip_forward", it))?;
            tracing::info!(
                "net.ipv4.ip_forward was off; it is on now, because instances reach other networks through this machine"
            );
        }
        let this = Self {
            dir: options.dir,
            runtime_dir,
            links,
            mtu,
            state: Mutex::new(state),
            apply: Mutex::new(0),
            changed: std::sync::atomic::AtomicU64::new(0),
        };
        this.sweep(alive).await?;
        this.flush().await?;
        let (table, links) = {
            let state = this.state.lock().await;
            (state.table.clone(), state.links())
        };
        firewall::open_foreign_chains(&table, &links).await;
        Ok(this)
    }

    /// Address of the bridge: gateway and name server of every instance.
    pub async fn gateway(&self) -> Ipv4Addr {
        self.state.lock().await.gateway()
    }

    /// The whole address range.
    pub async fn pool(&self) -> Ipv4Net {
        self.state.lock().await.pool
    }

    /// Name servers of the machine that a build may ask while ours does not answer.
    pub async fn resolvers(&self) -> Vec<Ipv4Addr> {
        self.state.lock().await.resolvers.clone()
    }

    /// Makes a component known; returns its stable address, which it keeps until [`Network::forget_component`].
    pub async fn component(
        &self,
        id: &ComponentId,
        tenant: &TenantName,
        application: &ApplicationName,
        may_call: &BTreeSet<ComponentId>,
    ) -> Result<Ipv4Addr, NetworkError> {
        let address = {
            let mut state = self.state.lock().await;
            let address = match state.components.get(id) {
                Some(found) if found.may_call == *may_call => return Ok(found.address),
                Some(found) => found.address,
                None => state.free_stable().ok_or(NetworkError::Full(state.pool))?,
            };
            let (tenant, application, may_call) = (tenant.to_string(), application.to_string(), may_call.clone());
            state.components.insert(id.clone(), ComponentNet { address, tenant, application, may_call });
            address
        };
        self.flush().await?;
        Ok(address)
    }

    /// The stable address of a component that is known.
    pub async fn stable_address(&self, id: &ComponentId) -> Option<Ipv4Addr> {
        self.state.lock().await.components.get(id).map(|it| it.address)
    }

    /// The application of a component that is known.
    pub async fn application(&self, id: &ComponentId) -> Option<String> {
        self.state.lock().await.components.get(id).map(|it| it.application.clone())
    }

    /// Every component that has a stable address.
    pub async fn components(&self) -> Vec<ComponentId> {
        self.state.lock().await.components.keys().cloned().collect()
    }

    /// Gives a component's stable address back.
    pub async fn forget_component(&self, id: &ComponentId) -> Result<(), NetworkError> {
        if self.state.lock().await.components.remove(id).is_none() {
            return Ok(());
        }
        self.flush().await
    }

    /// Makes the namespace of an instance. Without a role it gets a loopback device and nothing else.
    pub async fn attach(
        &self,
        id: &InstanceId,
        component: &ComponentId,
        role: Option<InstanceRole>,
    ) -> Result<Attachment, NetworkError> {
        let netns = self.netns_path(id);
        let address = match role {
            None => None,
            Some(role) => {
                let mut state = self.state.lock().await;
                let address = state.free_instance().ok_or(NetworkError::Full(state.pool))?;
                state.instances.insert(
                    id.clone(),
                    InstanceNet { address, component: component.clone(), role, ready: false, draining: false },
                );
                Some(address)
            }
        };
        let (gateway, prefix) = {
            let state = self.state.lock().await;
            (state.gateway(), state.link_prefix())
        };
        let veth = veth_name(&prefix, id);
        let made = {
            let (netns, veth, mtu) = (netns.clone(), veth.clone(), self.mtu);
            netns::create(netns, address.map(|address| netns::Uplink { veth, address, gateway, mtu }))
        };
        let made = async {
            made.await?;
            if let Some(address) = address {
                // The program starts only afterwards, so no packet of it meets rules that do not know it.
                let (linked, flushed) = tokio::join!(self.links.connect(&veth, address, gateway), self.flush());
                linked.and(flushed)?;
            }
            Ok(())
        };
        match made.await {
            Ok(()) => Ok(Attachment { netns, address }),
            Err(error) => {
                let _ = self.detach(id).await;
                Err(error)
            }
        }
    }

    /// Makes an instance of an earlier process known again, in case the state file was lost.
    pub async fn recover(
        &self,
        id: &InstanceId,
        component: &ComponentId,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        {
            let mut state = self.state.lock().await;
            if state.instances.contains_key(id) || !state.pool.contains(&address) {
                return Ok(());
            }
            let (component, role) = (component.clone(), InstanceRole::Service);
            state.instances.insert(id.clone(), InstanceNet { address, component, role, ready: false, draining: false });
        }
        self.flush().await
    }

    /// Sets whether the instance gets new connections to its component's stable address.
    pub async fn set_ready(&self, id: &InstanceId, ready: bool, draining: bool) -> Result<(), NetworkError> {
        {
            let mut state = self.state.lock().await;
            let Some(found) = state.instances.get_mut(id) else { return Ok(()) };
            if (found.ready, found.draining) == (ready, draining) {
                return Ok(());
            }
            (found.ready, found.draining) = (ready, draining);
        }
        self.flush().await
    }

    /// Whether the instance was ready when the state was kept last (for adoption).
    pub async fn was_ready(&self, id: &InstanceId) -> bool {
        self.state.lock().await.instances.get(id).is_some_and(|it| it.ready)
    }

    /// Address of an instance that is attached.
    pub async fn address(&self, id: &InstanceId) -> Option<Ipv4Addr> {
        self.state.lock().await.instances.get(id).map(|it| it.address)
    }

    /// Ports of this machine that instances may reach on any of its addresses (published gateway ports).
    pub async fn publish(&self, ports: BTreeSet<u16>) -> Result<(), NetworkError> {
        {
            let mut state = self.state.lock().await;
            if state.published == ports {
                return Ok(());
            }
            state.published = ports;
        }
        self.flush().await
    }

    /// From now on builds reach a proxy on this port of the gateway's address, and nothing else.
    pub async fn set_build_proxy(&self, port: u16) -> Result<(), NetworkError> {
        self.state.lock().await.build_way = BuildWay::Proxy(port);
        self.flush().await
    }

    /// Single private addresses and ports that builds may reach.
    pub async fn allowed_endpoints(&self) -> Vec<SocketAddrV4> {
        self.state.lock().await.allowed_endpoints.clone()
    }

    /// Removes namespace, link and address of an instance. Unknown ones are fine.
    pub async fn detach(&self, id: &InstanceId) -> Result<(), NetworkError> {
        let known = self.state.lock().await.instances.remove(id);
        let flushed = if known.is_some() { self.flush().await } else { Ok(()) };
        let prefix = self.state.lock().await.link_prefix();
        self.links.delete(&veth_name(&prefix, id)).await?;
        let path = self.netns_path(id);
        netns::remove(&path).map_err(|it| NetworkError::step("remove a network namespace", it))?;
        if let Some(known) = known {
            firewall::forget_connections(known.address).await;
        }
        flushed
    }

    /// Whether no instance is attached.
    pub async fn is_empty(&self) -> bool {
        self.state.lock().await.instances.is_empty()
    }

    /// Removes bridge, rules and namespaces; the state file stays, so that addresses come back. Only when nothing runs.
    pub async fn close(&self) -> Result<(), NetworkError> {
        let state = self.state.lock().await.clone();
        firewall::close_foreign_chains(&state.table).await;
        firewall::delete_table(&state.table).await?;
        self.links.delete(&state.bridge).await?;
        // Folders that others still use stay.
        let _ = std::fs::remove_dir(self.runtime_dir.join("netns"));
        let _ = std::fs::remove_dir(&self.runtime_dir);
        let _ = std::fs::remove_dir("/run/arco");
        Ok(())
    }

    /// Connects to a port as the programs of an instance would, at `127.0.0.1`.
    pub async fn dial(&self, id: &InstanceId, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        netns::dial(self.netns_path(id), port).await
    }

    fn netns_path(&self, id: &InstanceId) -> PathBuf {
        self.runtime_dir.join("netns").join(id.as_str())
    }

    /// Removes namespaces and links whose instance is gone.
    async fn sweep(&self, alive: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        let dir = self.runtime_dir.join("netns");
        super::make_folder(&dir).map_err(|it| NetworkError::step("make the folder of its namespaces", it))?;
        let prefix = self.state.lock().await.link_prefix();
        let keep: BTreeSet<_> = alive.iter().map(|it| veth_name(&prefix, it)).collect();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let stale = entry
                .file_name()
                .to_str()
                .and_then(|it| it.parse::<InstanceId>().ok())
                .is_none_or(|it| !alive.contains(&it));
            if stale {
                netns::remove(&entry.path()).map_err(|it| NetworkError::step("remove a network namespace", it))?;
            }
        }
        self.links.delete_except(&prefix, &keep).await
    }

    /// Writes state and rules. Callers that come while another call runs share the next one.
    async fn flush(&self) -> Result<(), NetworkError> {
        use std::sync::atomic::Ordering::SeqCst;
        let mine = self.changed.fetch_add(1, SeqCst) + 1;
        let mut applied = self.apply.lock().await;
        if *applied >= mine {
            return Ok(());
        }
        let covers = self.changed.load(SeqCst);
        let state = self.state.lock().await.clone();
        state.save(&self.dir.join("state.json")).map_err(|it| NetworkError::step("keep its state", it))?;
        firewall::load(&rules::ruleset(&state)).await?;
        *applied = covers;
        Ok(())
    }
}

/// The server's prefix and the last 8 characters of the id, 40 random bits: 15 bytes together, the kernel's limit.
fn veth_name(prefix: &str, id: &InstanceId) -> String {
    format!("{prefix}{}", &id.as_str()[id.as_str().len() - 8..])
}

fn forwarding() -> bool {
    std::fs::read_to_string(Path::new("/proc/sys/net/ipv4/ip_forward")).is_ok_and(|it| it.trim() == "1")
}
